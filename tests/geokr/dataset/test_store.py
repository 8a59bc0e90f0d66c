"""The disk contract of a block store: what lies where, what is written last, and what a kill leaves behind."""

import itertools
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorstore
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from geokr.dataset import contents, layout, store
from geokr.storage import files
from geokr.storage.files import write

ATTRIBUTES = {
    "proj:code": "EPSG:32648",
    "spatial:transform": [2.0, 0.0, 440_000.0, 0.0, -2.0, 2_765_000.0],
    "tile": 16,
    "bands": ["blue", "nir"],
    "acquired": None,
    "gsd": 2.1,
    "rules": {"dark": 20, "cloud": 0.5},
}
TILES: dict[str, Any] = {
    "shape": (5, 7),
    "bands": 2,
    "tile": 16,
    "block": 4,
    "dtype": "uint8",
    "attributes": ATTRIBUTES,
}
LABELS: dict[str, Any] = {
    "shape": (5, 7),
    "classes": ("wet", "dry", "icy"),
    "grid": 2,
    "block": 4,
    "attributes": ATTRIBUTES,
}
STATUS = "status"


@pytest.fixture
def root(tmp_path: Path) -> str:
    return files.join(tmp_path, layout.TILES)


def metadata(root: str, *parts: str) -> dict[str, Any]:
    """What a group or array says of itself on disk."""
    found: dict[str, Any] = json.loads(Path(files.join(root, *parts, "zarr.json")).read_text())
    return found


def disk_files(root: str) -> dict[str, bytes]:
    """Every file of a store."""
    return {str(path.relative_to(root)): path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}


def blocks(shape: tuple[int, int], block: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of every block; those at the border may be smaller."""
    for r in range(0, shape[0], block):
        for c in range(0, shape[1], block):
            yield slice(r, min(r + block, shape[0])), slice(c, min(c + block, shape[1]))


def pixels(seed: int, shape: tuple[int, ...], dtype: str = "uint8") -> npt.NDArray[Any]:
    """Values that no compression makes smaller."""
    return np.random.default_rng(seed).integers(1, np.iinfo(dtype).max, shape, dtype, endpoint=True)


# --- layout


def test_a_chunk_is_a_tile_and_a_shard_is_a_block(root: str) -> None:
    store.create_tiles(root, "scene", **TILES)
    image, status = metadata(root, "scene", "image"), metadata(root, "scene", STATUS)
    assert {image["zarr_format"], status["zarr_format"]} == {3}
    assert image["shape"] == [5, 7, 2, 16, 16]
    assert image["data_type"] == "uint8"
    assert image["fill_value"] == 0
    assert image["dimension_names"] == ["row", "col", "band", "y", "x"]
    assert image["chunk_grid"]["configuration"]["chunk_shape"] == [4, 4, 2, 16, 16]
    (sharding,) = image["codecs"]
    assert sharding["name"] == "sharding_indexed"
    assert sharding["configuration"]["chunk_shape"] == [1, 1, 2, 16, 16]
    _, blosc, checksum = sharding["configuration"]["codecs"]
    assert checksum["name"] == "crc32c"
    assert {key: blosc["configuration"][key] for key in ("cname", "clevel", "shuffle")} == {
        "cname": "lz4",
        "clevel": 5,
        "shuffle": "bitshuffle",
    }
    assert status["shape"] == [5, 7]
    assert status["data_type"] == "uint8"
    assert status["dimension_names"] == ["row", "col"]
    assert status["chunk_grid"]["configuration"]["chunk_shape"] == [4, 4]


def test_a_chunk_of_labels_is_a_block(root: str) -> None:
    store.create_labels(root, "scene", **LABELS)
    for name, shape, chunk, names in (
        ("fraction", [5, 7, 3], [4, 4, 3], ["row", "col", "class"]),
        ("fraction_grid", [5, 7, 2, 2, 3], [4, 4, 2, 2, 3], ["row", "col", "part_row", "part_col", "class"]),
        ("known", [5, 7], [4, 4], ["row", "col"]),
        (STATUS, [5, 7], [4, 4], ["row", "col"]),
    ):
        found = metadata(root, "scene", name)
        assert found["shape"] == shape
        assert found["chunk_grid"]["configuration"]["chunk_shape"] == chunk
        assert found["dimension_names"] == names
        assert found["data_type"] == ("uint8" if name in (STATUS, "fraction_grid") else "float32")
    assert metadata(root, "scene")["attributes"] == {**ATTRIBUTES, "grid": 2, "classes": ["wet", "dry", "icy"]}


def test_a_status_names_its_codes_as_the_cf_conventions_do(root: str) -> None:
    store.create_tiles(root, "tiles", **TILES)
    store.create_labels(root, "labels", **LABELS)
    for scene, names in (("tiles", layout.TILE_STATUS), ("labels", layout.LABEL_STATUS)):
        attributes = metadata(root, scene, STATUS)["attributes"]
        assert attributes == {"flag_values": list(range(len(names))), "flag_meanings": " ".join(names)}
        assert names[0] == "not_built"
        assert not any(" " in name for name in names)
    assert layout.TILE_STATUS[layout.ACCEPTED] == "accepted"


def test_a_scene_carries_its_attributes(root: str) -> None:
    store.create_tiles(root, "scene", **TILES)
    assert metadata(root, "scene")["attributes"] == ATTRIBUTES
    assert dict(store.open_scene(root, "scene").attrs) == ATTRIBUTES


def test_the_root_holds_all_metadata_once_consolidated(root: str) -> None:
    for scene in ("a", "b"):
        store.create_tiles(root, scene, **TILES)
    store.consolidate(root)
    held = metadata(root)["consolidated_metadata"]["metadata"]
    arrays = ("image", "cloud", "lattice_error", "status")
    assert set(held) == {"a", "b", *(f"{scene}/{array}" for scene in "ab" for array in arrays)}
    store.create_tiles(root, "c", **TILES)
    remains = Path(root) / "zarr.json.1f2e.partial"  # of a killed run
    remains.write_text("half")
    assert contents.list_scenes(root) == ["a", "b", "c"]  # as on disk, not as the root remembers
    remains.unlink()
    store.consolidate(root)
    ours = metadata(root)
    assert "c/image" in ours["consolidated_metadata"]["metadata"]
    with warnings.catch_warnings(action="ignore"):  # it is an extension of Zarr v3
        zarr.consolidate_metadata(store.open_store(root, writable=True))
    assert metadata(root) == ours


def test_places_in_a_data_set_are_joined_for_paths_and_urls() -> None:
    assert files.join(Path("a") / "b", "c", "d") == "a/b/c/d"
    assert files.join("s3://bucket/a/", "tiles.zarr") == "s3://bucket/a/tiles.zarr"
    assert layout.label_store("worldcover_2021") == "labels/worldcover_2021.zarr"


# --- write, then read


@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    block=st.integers(1, 4),
    bands=st.integers(1, 3),
    dtype=st.sampled_from(["uint8", "uint16"]),
    seed=st.integers(0, 99),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=15)
def test_what_is_read_is_what_was_written_block_by_block_in_any_order(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, int],
    block: int,
    bands: int,
    dtype: str,
    seed: int,
    order: Any,
) -> None:
    root = files.join(tmp_path_factory.mktemp("store"), layout.TILES)
    store.create_tiles(root, "scene", shape=shape, bands=bands, tile=4, block=block, dtype=dtype, attributes={})
    status = np.random.default_rng(seed).integers(1, len(layout.TILE_STATUS), shape, np.uint8)
    image = pixels(seed, (*shape, bands, 4, 4), dtype)
    image[status != layout.ACCEPTED] = 0
    places = list(blocks(shape, block))
    order.shuffle(places)
    for rows, cols in places:
        store.write_block(root, "scene", rows, cols, {"image": image[rows, cols]}, status[rows, cols])
    group = store.open_scene(root, "scene")
    assert np.array_equal(group["image"][:], image)
    assert np.array_equal(contents.read_status(group), status)
    held = np.bincount(status.ravel(), minlength=len(layout.TILE_STATUS)).tolist()
    assert list(contents.count_statuses(status, layout.TILE_STATUS)) == list(zip(layout.TILE_STATUS, held, strict=True))


def written(root: str) -> npt.NDArray[Any]:
    """A whole scene on disk, consolidated; its pixels."""
    image = pixels(1, (5, 7, 2, 16, 16))
    store.create_tiles(root, "scene", **TILES)
    for rows, cols in blocks((5, 7), 4):
        ones = np.ones((rows.stop - rows.start, cols.stop - cols.start), np.uint8)
        store.write_block(root, "scene", rows, cols, {"image": image[rows, cols]}, ones)
    store.consolidate(root)
    return image


def test_xarray_opens_a_store_as_a_tree(root: str) -> None:
    image = written(root)
    with xarray.open_datatree(root, engine="zarr") as tree:
        scene = tree["scene"]
        assert scene["image"].dims == ("row", "col", "band", "y", "x")
        assert scene["image"].dtype == np.uint8
        assert np.array_equal(scene["image"].values, image)
        assert scene["status"].attrs["flag_meanings"].split() == list(layout.TILE_STATUS)
        assert scene.attrs == ATTRIBUTES


def test_tensorstore_reads_a_shard_tile_by_tile(root: str) -> None:
    image = written(root)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": files.join(root, "scene", "image")}}
    array = tensorstore.open(spec, read=True).result()
    assert array.chunk_layout.read_chunk.shape == (1, 1, 2, 16, 16)
    assert array.chunk_layout.write_chunk.shape == (4, 4, 2, 16, 16)
    assert np.array_equal(array.read().result(), image)
    assert np.array_equal(array[4, 6].read().result(), image[4, 6])


# --- what a shard takes


def test_a_block_is_one_file_and_its_border_needs_no_filling(root: str) -> None:
    image = written(root)
    sizes = {name: len(data) for name, data in disk_files(root).items() if "/image/c/" in name}
    assert set(sizes) == {f"scene/image/c/{i}/{j}/0/0/0" for i in (0, 1) for j in (0, 1)}
    tile = image[0, 0].nbytes
    for name, tiles in (("0/0", 16), ("0/1", 12), ("1/0", 4), ("1/1", 3)):
        assert tiles * tile <= sizes[f"scene/image/c/{name}/0/0/0"] < tiles * (tile + 68) + 1024


def test_a_rejected_tile_takes_no_space(root: str) -> None:
    accepted = np.zeros((4, 4), bool)
    accepted[[0, 2, 3], [1, 3, 0]] = True
    sizes = []
    for scene, keep in (("some", accepted), ("all", ~(accepted & False)), ("none", accepted & False)):
        image = pixels(2, (4, 4, 2, 16, 16))
        store.create_tiles(root, scene, **{**TILES, "shape": (4, 4)})
        group = store.open_scene(root, scene, "r+")
        store.write_block(
            root, scene, slice(0, 4), slice(0, 4), {"image": image}, np.where(keep, 1, 2).astype(np.uint8)
        )
        assert np.array_equal(group["image"][:], np.where(keep[..., None, None, None], image, 0))  # type: ignore[index]
        sizes.append(sum(len(data) for name, data in disk_files(root).items() if name.startswith(f"{scene}/image/c/")))
    some, whole, none = sizes
    index = 16 * 16 + 4  # offset and length of each tile, and a checksum
    assert none == 0
    assert (some - index) * 16 == pytest.approx((whole - index) * 3, rel=1e-3)


def test_a_block_written_again_without_an_accepted_tile_has_no_shard(root: str) -> None:
    """As one of which a killed run left a shard that was built with other rules."""
    image = written(root)
    store.write_block(root, "scene", slice(0, 4), slice(0, 4), {"image": image[:4, :4]}, np.full((4, 4), 2, np.uint8))
    assert "scene/image/c/0/0/0/0/0" not in disk_files(root)
    image[:4, :4] = 0
    assert np.array_equal(store.open_scene(root, "scene")["image"][:], image)


# --- status comes last


class Killed(BaseException):
    """Stands for a kill."""


def stored(monkeypatch: pytest.MonkeyPatch, root: str) -> list[str]:
    """Keys in the order in which they get their names on the disk, from now on."""
    keys: list[str] = []
    rename = os.replace

    def watched(path: str, target: str) -> None:
        keys.append(str(Path(target).relative_to(root)))
        rename(path, target)

    monkeypatch.setattr(os, "replace", watched)
    return keys


def kill(patch: pytest.MonkeyPatch, left: int) -> None:
    """Let the process do `left` further things to the disk. Nothing is done any more after the kill."""
    done = itertools.count()

    def limited(method: Any) -> Any:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            if next(done) >= left:
                raise Killed
            return method(*arguments, **options)

        return wrapper

    for name in ("fsync", "replace", "unlink", "mkdir"):
        patch.setattr(os, name, limited(getattr(os, name)))


def test_a_blocks_status_reaches_the_disk_after_all_else(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create_labels(root, "scene", **LABELS)
    keys = stored(monkeypatch, root)
    arrays = {"known": np.ones((4, 4), np.float32), "fraction": np.ones((4, 4, 3), np.float32)}
    store.write_block(root, "scene", slice(0, 4), slice(0, 4), arrays, np.ones((4, 4), np.uint8))
    assert keys[-1] == "scene/status/c/0/0"
    assert sorted(keys[:-1]) == ["scene/fraction/c/0/0/0", "scene/known/c/0/0"]


@pytest.mark.parametrize("create", [store.create_tiles, store.create_labels])
def test_a_scenes_status_is_made_after_all_else(root: str, monkeypatch: pytest.MonkeyPatch, create: Any) -> None:
    keys = stored(monkeypatch, root)
    create(root, "scene", **(TILES if create is store.create_tiles else LABELS))
    assert keys[-1] == "scene/status/zarr.json"
    assert len(keys) > 2


@pytest.mark.parametrize("full", ["fraction", "known"])
def test_a_block_that_fails_is_not_marked_as_done(root: str, monkeypatch: pytest.MonkeyPatch, full: str) -> None:
    store.create_labels(root, "scene", **LABELS)
    group = store.open_scene(root, "scene", "r+")
    rename = os.replace

    def failing(path: str, target: str) -> None:
        if f"/{full}/" in target:
            raise OSError("no space left on device")
        rename(path, target)

    monkeypatch.setattr(os, "replace", failing)
    arrays = {"fraction": np.ones((4, 4, 3), np.float32), "known": np.ones((4, 4), np.float32)}
    with pytest.raises(
        layout.StoreWriteError, match=f"{root}/scene, rows 0-4, columns 0-4: cannot be written: no space"
    ):
        store.write_block(root, "scene", slice(0, 4), slice(0, 4), arrays, np.ones((4, 4), np.uint8))
    assert not contents.read_status(group).any()


def test_a_block_that_is_killed_at_any_write_is_whole_or_not_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, cols, ones = slice(4, 5), slice(4, 7), np.ones((1, 3), np.uint8)
    image = pixels(1, (1, 3, 2, 16, 16))
    fresh, root = str(tmp_path / "fresh.zarr"), str(tmp_path / "killed.zarr")
    for store_root in (fresh, root):
        store.create_tiles(store_root, "scene", **TILES)
        store.write_block(store_root, "scene", rows, cols, {"image": image}, ones)
    after = disk_files(fresh)
    for left in itertools.count():
        # The block is written again: by a task that was thought lost, say.
        with monkeypatch.context() as patch:
            kill(patch, left)
            try:
                store.write_block(root, "scene", rows, cols, {"image": image}, ones)
            except Killed:
                killed = True
            else:
                killed = False
        found = {name: data for name, data in disk_files(root).items() if not name.endswith(".partial")}
        if contents.read_status(store.open_scene(root, "scene")).any():
            assert found == after
        else:
            assert found.items() < after.items()
        if not killed:
            break
    assert left > 6  # status away; data, name and directory of the shard, and then of the status
    assert disk_files(root) == after


def test_the_remains_of_a_killed_run_leave_no_trace(root: str) -> None:
    written(root)
    before = disk_files(root)
    shard = Path(root) / "scene" / "image" / "c" / "1" / "1" / "0" / "0" / "0"
    shard.with_name("0.1f2e.partial").write_bytes(b"half a shard")
    shard.write_bytes((Path(root) / "scene" / "image" / "c" / "0" / "0" / "0" / "0" / "0").read_bytes())
    image = pixels(1, (5, 7, 2, 16, 16))
    store.write_block(root, "scene", slice(4, 5), slice(4, 7), {"image": image[4:, 4:]}, np.ones((1, 3), np.uint8))
    assert disk_files(root) == before


def test_a_block_is_built_when_its_status_has_its_name(root: str) -> None:
    """Not while it is being written, and not in a scene whose making was killed."""
    written(root)
    store.create_tiles(root, "empty", **TILES)
    store.create_tiles(root, "half", **TILES)
    (Path(root) / "half" / STATUS / "zarr.json").unlink()
    chunk = Path(root) / "scene" / STATUS / "c" / "1" / "0"
    chunk.rename(chunk.with_name("0.1f2e.partial"))
    found = contents.read_scene_contents(root, ["scene", "empty", "half", "none"])
    assert {name: there.blocks for name, there in found.items()} == {
        "scene": {(0, 0), (0, 1), (1, 1)},
        "empty": frozenset(),
    }
    assert found["scene"].attributes == json.loads(json.dumps(ATTRIBUTES))
    assert found["scene"].shape == (5, 7)
    assert contents.read_scene_contents(f"{root}/none", ["scene"]) == {}


@pytest.mark.parametrize(
    ("rows", "cols"),
    [
        (slice(0, 3), slice(0, 4)),
        (slice(1, 5), slice(0, 4)),
        (slice(0, 4), slice(4, 8)),
        (slice(0, 5), slice(0, 4)),
        (slice(8, 12), slice(0, 4)),
    ],
)
def test_a_place_that_is_not_a_block_is_refused_untouched(root: str, rows: slice, cols: slice) -> None:
    written(root)
    before = disk_files(root)
    size = (rows.stop - rows.start, cols.stop - cols.start)
    with pytest.raises(layout.StoreError, match="not a block of image"):
        store.write_block(root, "scene", rows, cols, {"image": pixels(1, (*size, 2, 16, 16))}, np.ones(size, np.uint8))
    assert disk_files(root) == before


@pytest.mark.parametrize("name", ["fraction", "known", STATUS])
@pytest.mark.parametrize("shape", [(9, 9), (3, 4), (1, 1)])
def test_an_array_that_is_not_of_the_blocks_shape_is_refused_untouched(
    root: str, name: str, shape: tuple[int, int]
) -> None:
    store.create_labels(root, "scene", **LABELS)
    arrays = {"fraction": np.ones((4, 4, 3), np.float32), "known": np.ones((4, 4), np.float32)}
    wrong = {**arrays, STATUS: np.ones((4, 4), np.uint8)}
    wrong[name] = np.ones((*shape, *wrong[name].shape[2:]), wrong[name].dtype)
    refused_untouched(root, name, wrong)


@pytest.mark.parametrize("shape", [(4, 4, 2), (4, 4, 4), (4, 4), (4, 4, 3, 1)])
def test_an_array_of_other_classes_is_refused_untouched(root: str, shape: tuple[int, ...]) -> None:
    ones = {"known": np.ones((4, 4), np.float32), STATUS: np.ones((4, 4), np.uint8)}
    store.create_labels(root, "scene", **LABELS)
    refused_untouched(root, "fraction", {"fraction": np.ones(shape, np.float32), **ones})


def refused_untouched(root: str, name: str, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Assert that a block of labels is refused for one of its arrays, before any is written."""
    before = disk_files(root)
    status = arrays.pop(STATUS)
    with pytest.raises(layout.StoreError, match=f"{name} of a block has shape"):
        store.write_block(root, "scene", slice(0, 4), slice(0, 4), arrays, status)
    assert disk_files(root) == before


def test_a_block_with_a_status_of_zero_is_refused_untouched(root: str) -> None:
    store.create_tiles(root, "scene", **TILES)
    before = disk_files(root)
    status = np.ones((4, 4), np.uint8)
    status[1, 2] = 0
    with pytest.raises(layout.StoreError, match="non-zero"):
        store.write_block(
            root,
            "scene",
            slice(0, 4),
            slice(0, 4),
            {"image": pixels(3, (4, 4, 2, 16, 16))},
            status,
        )
    assert disk_files(root) == before


def test_a_block_written_again_gives_the_same_bytes(root: str) -> None:
    written(root)
    before = disk_files(root)
    image = pixels(1, (5, 7, 2, 16, 16))
    for rows, cols in reversed(list(blocks((5, 7), 4))):
        ones = np.ones((rows.stop - rows.start, cols.stop - cols.start), np.uint8)
        store.write_block(root, "scene", rows, cols, {"image": image[rows, cols]}, ones)
    assert disk_files(root) == before


# --- it outlives a power cut


def to_the_disk(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The calls that bring files to the disk and give them their names, from now on."""
    calls: list[tuple[str, str]] = []
    sizes: dict[str, int] = {}
    sync, rename = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        calls.append(("sync", path))
        sizes[path] = os.fstat(descriptor).st_size
        sync(descriptor)

    def renamed(path: str, target: str) -> None:
        calls.append(("rename", target))
        assert sizes[path] == Path(path).stat().st_size  # all of it was on the disk
        rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    return calls


def test_a_file_is_on_the_disk_before_it_has_its_name_and_a_shard_before_its_status(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls in their order: data, names, directories, of the arrays and then of the status."""
    store.create_tiles(root, "scene", **TILES)
    calls = to_the_disk(monkeypatch)
    arrays = {"image": pixels(1, (4, 4, 2, 16, 16)), "cloud": np.zeros((4, 4), np.float32)}
    store.write_block(root, "scene", slice(0, 4), slice(0, 4), arrays, np.ones((4, 4), np.uint8))
    for names in (["image/c/0/0/0/0/0", "cloud/c/0/0"], ["status/c/0/0"]):
        written = {f"{root}/scene/{name}" for name in names}
        data, named, rest = calls[: len(names)], calls[len(names) : 2 * len(names)], calls[2 * len(names) :]
        assert {(kind, path.rpartition("/")[0]) for kind, path in data} == {
            ("sync", str(Path(f).parent)) for f in written
        }
        assert all(any(path.startswith(f"{file}.") for file in written) for _, path in data)
        assert {*named} == {("rename", file) for file in written}
        above = {
            str(above) for file in written for above in Path(file).parents if str(above).startswith(f"{root}/scene/")
        }
        assert {*rest[: len(above)]} == {("sync", directory) for directory in above}
        calls = rest[len(above) :]
    assert calls == []


@pytest.mark.parametrize("create", [store.create_tiles, store.create_labels])
def test_all_files_of_a_new_scene_are_on_the_disk(root: str, monkeypatch: pytest.MonkeyPatch, create: Any) -> None:
    calls = to_the_disk(monkeypatch)
    create(root, "scene", **(TILES if create is store.create_tiles else LABELS))
    assert {path for kind, path in calls if kind == "rename"} == {f"{root}/{name}" for name in disk_files(root)}


@pytest.mark.parametrize("size", [3, 100_000])
def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    file = tmp_path / "new" / "file"
    write(file, b"old")
    neighbour = file.with_name("another.1f2e.partial")  # of a writer that is at work
    neighbour.write_bytes(b"half")
    names = []

    def full(descriptor: int) -> None:
        names.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                write(file, bytes(size))
    assert {path.name: path.read_bytes() for path in file.parent.iterdir()} == {
        "file": b"old",
        neighbour.name: b"half",
    }
    assert len(set(names)) == 2  # two writers of one file never share what is not whole
    file.with_name("file.1f2e.partial").write_bytes(b"half")
    write(file, bytes(size))
    assert {path.name for path in file.parent.iterdir()} == {"file", neighbour.name}
    assert file.read_bytes() == bytes(size)


def test_a_store_that_is_gone_is_not_written_elsewhere(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where its file system is mounted no more."""
    store.create_tiles(root, "scene", **TILES)
    place, ones = (slice(0, 4), slice(0, 4)), np.ones((4, 4), np.uint8)
    image = pixels(1, (4, 4, 2, 16, 16))
    encode = store.encode_shard

    def losing(*arguments: Any) -> Any:
        Path(root).rename(tmp_path / "elsewhere")
        return encode(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(store, "encode_shard", losing)
        with pytest.raises(layout.StoreWriteError, match="cannot be written: No such file or directory"):
            store.write_block(root, "scene", *place, {"image": image}, ones)  # lost while a block is written
    with pytest.raises(layout.StoreWriteError, match="cannot be written: the array image is gone"):
        store.write_block(root, "scene", *place, {"image": image}, ones)
    assert not Path(root).exists()


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "dataset").write_text("a file where a directory should be")
    with pytest.raises(layout.StoreWriteError, match=r"dataset/tiles.zarr/scene: cannot be written: File exists"):
        store.create_tiles(f"{tmp_path}/dataset/tiles.zarr", "scene", **TILES)


# --- a byte that has changed


def test_any_changed_byte_of_a_shard_is_found_by_both_readers(root: str) -> None:
    image = written(root)
    shard = Path(root) / "scene" / "image" / "c" / "1" / "1" / "0" / "0" / "0"
    whole = shard.read_bytes()
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": files.join(root, "scene", "image")}}
    places = [*range(0, len(whole), 127), *range(len(whole) - 16 * 16 - 4, len(whole))]
    for place in places:
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises((ValueError, RuntimeError)):
            tensorstore.open(spec, read=True).result()[4:, 4:].read().result()
        if place % 10 == 0:
            with pytest.raises((ValueError, RuntimeError)):
                store.open_scene(root, "scene")["image"][4:, 4:]
    shard.write_bytes(whole)
    assert np.array_equal(store.open_scene(root, "scene")["image"][:], image)


@pytest.mark.parametrize("name", ["fraction", "known", STATUS])
def test_any_changed_byte_of_labels_is_found(root: str, name: str) -> None:
    store.create_labels(root, "scene", **LABELS)
    arrays = {"fraction": pixels(1, (4, 4, 3)).astype(np.float32), "known": pixels(2, (4, 4)).astype(np.float32)}
    status = pixels(3, (4, 4))
    store.write_block(root, "scene", slice(0, 4), slice(0, 4), arrays, status)
    (chunk,) = [path for path in Path(root).glob(f"scene/{name}/c/**/0") if path.is_file()]
    whole = chunk.read_bytes()
    for place in range(0, len(whole), 7):
        chunk.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises((ValueError, RuntimeError)):
            store.open_scene(root, "scene")[name][:]


@pytest.mark.parametrize("name", ["cloud", "lattice_error"])
def test_any_changed_byte_of_what_is_known_of_tiles_is_found(root: str, name: str) -> None:
    store.create_tiles(root, "scene", **TILES)
    arrays = {name: pixels(2, (4, 4)).astype(np.float32)}
    store.write_block(root, "scene", slice(0, 4), slice(0, 4), arrays, np.ones((4, 4), np.uint8))
    chunk = Path(root, "scene", name, "c/0/0")
    whole = chunk.read_bytes()
    for place in range(len(whole)):
        chunk.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises((ValueError, RuntimeError)):
            store.open_scene(root, "scene")[name][:]


# --- opened again


def test_a_scene_opened_again_with_equal_settings_is_left_alone(root: str) -> None:
    written(root)
    store.create_labels(root, "labels", **LABELS)
    before = disk_files(root)
    store.create_tiles(root, "scene", **TILES)
    store.create_tiles(root, "scene", **{**TILES, "attributes": dict(reversed(ATTRIBUTES.items()))})
    store.create_tiles(root, "scene", **{**TILES, "attributes": {**ATTRIBUTES, "bands": ("blue", "nir")}})
    store.create_labels(root, "labels", **LABELS)
    assert disk_files(root) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"attributes": {**ATTRIBUTES, "gsd": 2.0}}, ["gsd"]),
        ({"attributes": {**ATTRIBUTES, "rules": {"dark": 21, "cloud": 0.5}}}, ["rules"]),
        ({"attributes": {**ATTRIBUTES, "tile": 32, "dem": "dem.tif"}}, ["dem", "tile"]),
        ({"attributes": {key: value for key, value in ATTRIBUTES.items() if key != "bands"}}, ["bands"]),
        ({"shape": (5, 8)}, ["shape of image"]),
        ({"bands": 3}, ["shape of image", "chunks of image", "shards of image"]),
        ({"block": 2}, ["shards of image"]),  # other shards: two tasks would write one
        ({"dtype": "uint16"}, ["dtype of image"]),
    ],
)
def test_a_scene_opened_again_with_other_settings_is_refused_by_their_names(
    root: str, change: dict[str, Any], named: list[str]
) -> None:
    store.create_tiles(root, "scene", **TILES)
    before = disk_files(root)
    with pytest.raises(layout.StoreError, match="other settings") as caught:
        store.create_tiles(root, "scene", **{**TILES, **change})
    message = str(caught.value)
    assert message.startswith(f"{root}/scene was built with other settings or from other input (")
    assert "\n" not in message
    assert all(name in message for name in named)
    assert not any(f"{key} was" in message for key in set(ATTRIBUTES) - {name.partition(".")[0] for name in named})
    assert disk_files(root) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"classes": ("dry", "wet", "icy")}, "classes"),
        ({"shape": (4, 7)}, "shape of fraction"),
        ({"grid": 4}, "grid was 2, now 4"),
        ({"block": 8}, "chunks of fraction"),
        ({"attributes": {**ATTRIBUTES, "product": "nlcd_2019"}}, "product"),
    ],
)
def test_labels_opened_again_with_other_settings_are_refused_by_their_names(
    root: str, change: dict[str, Any], named: str
) -> None:
    store.create_labels(root, "scene", **LABELS)
    with pytest.raises(layout.StoreError, match=named):
        store.create_labels(root, "scene", **{**LABELS, **change})


@pytest.mark.parametrize("create", [store.create_tiles, store.create_labels])
def test_a_scene_whose_making_was_killed_at_any_write_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, create: Any
) -> None:
    settings = TILES if create is store.create_tiles else LABELS
    fresh = str(tmp_path / "fresh.zarr")
    create(fresh, "scene", **settings)
    for left in itertools.count():
        root = str(tmp_path / f"{left}.zarr")
        with monkeypatch.context() as patch:
            kill(patch, left)
            try:
                create(root, "scene", **settings)
            except Killed:
                pass
            else:
                break
        # The next run: nothing of the half-made scene shows through.
        create(root, "scene", **settings)
        assert disk_files(root) == disk_files(fresh)
    assert left > 20
    assert disk_files(root) == disk_files(fresh)


def test_a_half_made_scene_takes_new_settings(root: str) -> None:
    store.create_tiles(root, "scene", **{**TILES, "attributes": {"old": 1}, "shape": (9, 9), "dtype": "uint16"})
    shutil.rmtree(Path(root) / "scene" / STATUS)
    store.create_tiles(root, "scene", **TILES)
    assert metadata(root, "scene")["attributes"] == ATTRIBUTES
    assert store.open_scene(root, "scene")["image"].shape == (5, 7, 2, 16, 16)
    assert store.open_scene(root, "scene")["image"].dtype == np.uint8


def test_blocks_of_a_scene_without_attributes_are_not_taken_for_those_of_another(root: str) -> None:
    written(root)
    (Path(root) / "scene/zarr.json").unlink()
    before = disk_files(root)
    with pytest.raises(layout.StoreError, match="gsd was missing"):
        store.create_tiles(root, "scene", **{**TILES, "attributes": {"gsd": 4.0}})
    assert disk_files(root) == before


def test_a_discarded_scene_is_replaced_and_the_others_stay(root: str) -> None:
    for scene in ("scene", "other"):
        store.create_labels(root, scene, **LABELS)
        arrays = {"fraction": np.ones((4, 4, 3), np.float32), "known": np.ones((4, 4), np.float32)}
        store.write_block(root, scene, slice(0, 4), slice(0, 4), arrays, np.ones((4, 4), np.uint8))
    before = {path: digest for path, digest in disk_files(root).items() if path.startswith("other")}
    store.discard_scene(root, "scene")
    assert contents.read_scene_contents(root, ["scene", "other"]).keys() == {"other"}
    store.create_labels(root, "scene", **{**LABELS, "grid": 4})
    group = store.open_scene(root, "scene")
    assert group.attrs["grid"] == 4
    assert group["fraction_grid"].shape == (5, 7, 4, 4, 3)
    assert not group["fraction"][:].any()
    assert {path: digest for path, digest in disk_files(root).items() if path.startswith("other")} == before


# --- what is not there


def test_a_scene_that_is_not_there_is_named(root: str) -> None:
    with pytest.raises(layout.StoreError, match=f"{root}/scene: no such scene"):
        store.open_scene(root, "scene")
    store.create_tiles(root, "scene", **TILES)
    for mode in ("r", "r+"):
        with pytest.raises(layout.StoreError, match=f"{root}/other: no such scene"):
            store.open_scene(root, "other", mode)
    assert contents.list_scenes(root) == ["scene"]


def test_a_store_that_is_not_there_has_no_scenes(root: str) -> None:
    assert contents.list_scenes(root) == []
    assert not Path(root).exists()


def test_scenes_opened_to_read_cannot_be_written(root: str) -> None:
    store.create_tiles(root, "scene", **TILES)
    group = store.open_scene(root, "scene")
    assert isinstance(group, zarr.Group)
    with pytest.raises(ValueError, match="read"):
        group[STATUS][0, 0] = 1
