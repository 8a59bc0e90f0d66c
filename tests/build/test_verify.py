"""Each kind of damage is found, by the check that should find it, with scene and block."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pytest

from geokr.dataset import contents, layout, store
from geokr.dataset.index import combine_digests, list_parts
from geokr.landcover.discovery import find_landcover
from geokr.storage import files
from pipeline.stages import index
from pipeline.verify import checks
from pipeline.verify.__main__ import main
from pipeline.verify.dataset import DataSet
from tests.build.conftest import Built

LABELS = layout.label_store("globeland30_2020")


@pytest.fixture
def dataset(built: Built, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(built.dataset, tmp_path / "dataset")
    return tmp_path / "dataset"


def failed(dataset: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, str]:
    """Check -> first fault, of the checks that fail; the others must be ok, and the exit status must say it."""
    capsys.readouterr()
    status = main([str(dataset), *options])
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:1].strip()]
    assert {line[:6] for line in lines} <= {"ok    ", "FAIL  "}
    names = [line[6:].split(":")[0] for line in lines]
    there = ["schema", "metadata", "provenance", "statuses", "shards", "labels", "index", "splits", "sample"]
    assert names == [
        name
        for name in there
        if (name != "labels" or "--fast" not in options) and (name != "sample" or "--sample" in options)
    ]
    found = dict(line[6:].split(": ", 1) for line in lines if line.startswith("FAIL"))
    assert status == (1 if found else 0)
    return found


def with_tiles(dataset: Path) -> tuple[str, int, int, Path]:
    """A scene, a block of it that is not its first and has accepted tiles, and its shard."""
    for scene in contents.list_scenes(str(dataset / layout.TILES)):
        for shard in sorted((dataset / layout.TILES / scene / "image" / "c").glob("*/*/0/0/0")):
            i, j = int(shard.parts[-5]), int(shard.parts[-4])
            if (i, j) != (0, 0):
                return scene, i, j, shard
    raise AssertionError("no such block")


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


def rewrite(dataset: Path, change: Callable[[geopandas.GeoDataFrame], geopandas.GeoDataFrame]) -> None:
    """Change the index as somebody would who takes care that dataset.json goes with it."""
    index = change(geopandas.read_parquet(dataset / "index.parquet"))
    part, *others = map(Path, list_parts(dataset))
    assert not others
    index.to_parquet(part, index=False, schema_version="1.1.0")
    summary = json.loads((dataset / "dataset.json").read_text())
    summary["sha256"]["index.parquet"] = combine_digests([files.sha256(part)])
    summary["counts"]["index"] = len(index)
    (dataset / "dataset.json").write_text(json.dumps(summary))


def place(tile: Any, block: int = 8) -> str:
    row, col = int(tile["row"]), int(tile["col"])
    return f"{tile['scene']} block ({row // block}, {col // block}): tile ({row}, {col})"


@pytest.mark.parametrize("options", [["--fast"], [], ["--full", "--sample", "12"]])
def test_a_sound_data_set_passes(built: Built, capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    assert failed(built.dataset, capsys, *options) == {}


def test_a_place_without_a_data_set_is_said_to_be_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no dataset.json" in capsys.readouterr().err


def test_a_flipped_byte_in_any_shard(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    shards = sorted(dataset.glob(f"{layout.TILES}/*/image/c/*/*/0/0/0"))
    assert len(shards) > 10
    for shard in shards[::4]:
        whole = shard.read_bytes()
        flip(shard, int(rng.integers(len(whole))))
        (check, fault), *others = failed(dataset, capsys, "--full").items()
        assert (check, others) == ("shards", [])
        scene, i, j = shard.parts[-8], shard.parts[-5], shard.parts[-4]
        assert fault.startswith(f"{scene} block ({i}, {j}): its shard cannot be read")
        shard.write_bytes(whole)


@pytest.mark.parametrize("size", [0, 1000])
def test_half_a_shard(dataset: Path, capsys: pytest.CaptureFixture[str], size: int) -> None:
    scene, i, j, shard = with_tiles(dataset)
    shard.write_bytes(shard.read_bytes()[:size])
    assert failed(dataset, capsys)["shards"].startswith(f"{scene} block ({i}, {j}): its shard cannot be read")


def test_a_deleted_shard(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene, i, j, shard = with_tiles(dataset)
    shard.unlink()
    assert failed(dataset, capsys, "--fast") == {"shards": f"{scene} block ({i}, {j}): its shard is missing"}


def test_pixels_that_are_no_fault_of_the_disk(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Checksums are right: only computing the tile anew tells."""
    scene, i, j, _ = with_tiles(dataset)
    image: Any = store.open_scene(str(dataset / layout.TILES), scene, "r+")["image"]
    rows, cols = slice(8 * i, 8 * i + 8), slice(8 * j, 8 * j + 8)
    pixels = image[rows, cols]
    pixels[pixels > 0] -= 1
    image[rows, cols] = pixels
    assert failed(dataset, capsys, "--full") == {}
    found = failed(dataset, capsys, "--sample", "200")
    assert set(found) == {"sample"}
    assert "has other pixels when computed again" in found["sample"]
    assert found["sample"].startswith(f"{scene} block ({i}, {j})")


def test_a_source_that_is_gone(dataset: Path, built: Built, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.move(built.directory / "scenes", built.directory / "away")
    try:
        assert "cannot be computed again" in failed(dataset, capsys, "--sample", "1")["sample"]
    finally:
        shutil.move(built.directory / "away", built.directory / "scenes")


def test_a_status_that_is_not_there(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene, i, j, _ = with_tiles(dataset)
    (dataset / layout.TILES / scene / "status" / "c" / str(i) / str(j)).unlink()
    found = failed(dataset, capsys, "--fast")
    assert set(found) == {"statuses", "shards", "index"}
    assert found["statuses"].startswith(f"{scene} block ({i}, {j}): not built in ")
    assert found["shards"] == f"{scene} block ({i}, {j}): a shard without accepted tiles"


def test_a_flipped_byte_in_a_status(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene, i, j, _ = with_tiles(dataset)
    flip(dataset / layout.TILES / scene / "status" / "c" / str(i) / str(j), 9)
    found = failed(dataset, capsys, "--fast")
    assert set(found) == {"statuses", "shards", "index"}
    assert found["statuses"].startswith(f"{scene} block ({i}, {j}): the status of ")


def test_a_status_and_its_pixels_disagree(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene, *_ = with_tiles(dataset)
    status: Any = store.open_scene(str(dataset / layout.TILES), scene, "r+")["status"]
    row, col = np.argwhere(status[:] == layout.ACCEPTED)[-1]
    status[row, col] = layout.TILE_STATUS.index("cloud")
    found = failed(dataset, capsys, "--full")
    tile = place({"scene": scene, "row": row, "col": col})
    assert set(found) == {"statuses", "shards", "index"}
    assert found["shards"] == f"{tile} was rejected, but has pixels"
    assert found["index"] == f"{tile} is listed, but was not accepted"


def test_shares_that_do_not_sum_to_one(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene, *_ = with_tiles(dataset)
    group: Any = store.open_scene(str(dataset / LABELS), scene, "r+")
    row, col = np.argwhere(group["known"][:] > 0)[-1]
    group["fraction"][row, col, 0] += 0.001
    fault = failed(dataset, capsys)["labels"]
    assert fault.startswith(f"{place({'scene': scene, 'row': row, 'col': col})}: its shares sum to 1.001")


def test_parts_whose_mean_is_not_the_tile(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene, *_ = with_tiles(dataset)
    group: Any = store.open_scene(str(dataset / LABELS), scene, "r+")
    row, col = np.argwhere(group["known"][:] > 0)[-1]
    group["fraction_grid"][row, col] = np.roll(group["fraction_grid"][row, col], 1, axis=-1)
    tile = place({"scene": scene, "row": row, "col": col})
    assert failed(dataset, capsys) == {"labels": f"{tile}: its shares are not the mean of those of its parts"}


def test_a_flipped_byte_in_labels(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene, *_ = with_tiles(dataset)
    flip(dataset / LABELS / scene / "fraction" / "c" / "1" / "0" / "0", 40)
    found = failed(dataset, capsys)
    assert set(found) == {"labels", "index"}
    assert found["labels"].startswith(f"{scene} block (1, 0): labels cannot be read")


def test_a_duplicated_row(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(dataset, lambda index: pd.concat([index, index.iloc[[17]]], ignore_index=True))
    tile = geopandas.read_parquet(dataset / "index.parquet").iloc[17]
    for options in (["--fast"], []):
        assert failed(dataset, capsys, *options) == {"index": f"{place(tile)} is listed 2 times"}


def test_a_row_that_is_not_there(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tile = geopandas.read_parquet(dataset / "index.parquet").iloc[17]
    rewrite(dataset, lambda index: index.drop(index=17))
    assert failed(dataset, capsys) == {"index": f"{place(tile)} is accepted and labelled, but not listed"}


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("forest", 0.123, "has other shares in the index than in the labels"),
        ("known", 0.75, "has other shares in the index than in the labels"),
        ("gsd", 3.0, "has gsd 3.0, its scene"),
        ("place", "32648_8_1_1", "has another place in the index"),
        ("col", 999, "is listed, but the scene has"),
        ("satellite", "GF9", "has satellite GF9, its scene"),
        ("sensor", "PMS9", "has sensor PMS9, its scene"),
        ("cloud", 0.5, "has cloud 0.5, in the stores 0.0"),
        ("agreement", 0.5, "has agreement 0.5, in the stores nan"),
        ("year_gap", 9, "has year_gap 9.0, in the stores 0.0"),
        ("scene", "ghost", "ghost: is listed, but is not in the stores"),
    ],
)
def test_a_value_of_a_row_that_is_not_the_stores(
    dataset: Path, capsys: pytest.CaptureFixture[str], column: str, value: object, said: str
) -> None:
    def change(index: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
        index.loc[17, column] = value if isinstance(value, str) else np.array(value, dtype=index[column].dtype)
        return index

    rewrite(dataset, change)
    found = failed(dataset, capsys)
    assert set(found) == {"index"}
    assert said in found["index"]


def test_a_train_tile_moved_onto_a_validation_tile(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = geopandas.read_parquet(dataset / "index.parquet")
    val = index.index[index["split"] == "val"][7]
    train = index.index[(index["split"] == "train") & (index["scene"] != index.loc[val, "scene"])][100]

    def move(index: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
        index.loc[train, "geometry"] = index.loc[val, "geometry"]
        return index

    rewrite(dataset, move)
    found = failed(dataset, capsys, "--fast")
    assert set(found) == {"index", "splits"}
    assert found["index"] == f"{place(index.loc[train])} has another footprint in the index"
    assert f"of val shares ground with {place(index.loc[train])} of train" in found["splits"]
    assert " block (" in found["splits"].split(" of val")[0]


def test_a_tile_between_two_splits_that_is_said_to_be_of_one(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ground in common of a corner: found without trust in what the index says of the splits."""
    index = geopandas.read_parquet(dataset / "index.parquet")
    val = index[index["split"] == "val"]
    between = index[index["split"].isna()]
    pairs = between.sjoin(val, predicate="overlaps")
    tile = pairs.index[0]

    def claim(index: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
        index.loc[tile, "split"] = "train"
        return index

    rewrite(dataset, claim)
    found = failed(dataset, capsys, "--fast")
    assert set(found) == {"index", "splits"}
    assert found["index"] == f"{place(index.loc[tile])} is in split train, but by its location in None"
    assert f"shares ground with {place(index.loc[tile])} of train" in found["splits"]


def test_metadata_that_differ_from_the_catalog(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene, *_ = with_tiles(dataset)
    file = dataset / layout.TILES / scene / "zarr.json"
    said = json.loads(file.read_text())
    said["attributes"]["stretch"] = [0, 1]
    file.write_text(json.dumps(said))
    found = failed(dataset, capsys, "--fast")
    assert set(found) == {"metadata", "provenance"}
    assert found["provenance"].startswith(f"{scene}: its group and scenes.parquet differ in stretch")
    assert found["metadata"].startswith(f"{scene}: its metadata")


def test_a_scene_that_nothing_is_known_of(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    catalog = geopandas.read_parquet(dataset / "scenes.parquet")
    catalog.iloc[1:].to_parquet(dataset / "scenes.parquet", index=False)
    found = failed(dataset, capsys, "--fast")
    assert set(found) == {"schema", "provenance"}
    assert found["schema"] == "scenes.parquet: its SHA-256 is not the one in dataset.json"
    assert found["provenance"] == f"{catalog['id'].iloc[0]}: is not in scenes.parquet"


def test_blocks_that_could_not_be_built_are_no_damage(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As far as the quarantine says so, and no further."""
    scene, i, j, shard = with_tiles(dataset)
    shard.unlink()
    (dataset / layout.TILES / scene / "status" / "c" / str(i) / str(j)).unlink()

    def without(index: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
        lost = (index["scene"] == scene) & (index["row"] // 8 == i) & (index["col"] // 8 == j)
        return index[~lost]

    rewrite(dataset, without)
    file = dataset / "dataset.json"
    summary = json.loads(file.read_text())
    root = str(dataset / layout.TILES)
    statuses = np.concatenate(
        [contents.read_status(store.open_scene(root, name)).ravel() for name in contents.list_scenes(root)]
    )
    summary["counts"]["tiles"] = dict(contents.count_statuses(statuses, layout.TILE_STATUS))
    file.write_text(json.dumps(summary))
    assert set(failed(dataset, capsys)) == {"statuses"}
    entry = {"scene": scene, "stage": "tiles", "reason": "SceneError", "detail": "", "blocks": [[i, j]]}
    (dataset / "quarantine.jsonl").write_text(json.dumps(entry) + "\n")
    assert failed(dataset, capsys) == {}

    other = next(path for path in (dataset / layout.TILES / scene / "status" / "c").glob("*/*"))
    other.unlink()  # of which the quarantine says nothing
    assert f"{scene} block ({other.parent.name}, {other.name}): not built in " in failed(dataset, capsys)["statuses"]


def change(file: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON document."""
    document = json.loads(file.read_text())
    edit(document)
    file.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda said: said.update(stride=47), "stride of its labels differs from that of its tiles"),
        (lambda said: said.pop("product"), "its labels do not record which land cover they were made from"),
        (lambda said: said.pop("sheets"), "its labels do not record which land cover they were made from"),
    ],
)
def test_labels_that_do_not_say_where_they_are_from(
    dataset: Path, capsys: pytest.CaptureFixture[str], edit: Callable[[dict[str, Any]], Any], said: str
) -> None:
    scene, *_ = with_tiles(dataset)
    change(dataset / LABELS / scene / "zarr.json", lambda document: edit(document["attributes"]))
    assert failed(dataset, capsys, "--fast")["provenance"] == f"{scene}: {said}"


@pytest.mark.parametrize(("column", "value"), [("metadata_digest", ""), ("bytes", 0)])
def test_a_catalog_that_does_not_say_what_a_scene_was_made_from(
    dataset: Path, capsys: pytest.CaptureFixture[str], column: str, value: object
) -> None:
    catalog = geopandas.read_parquet(dataset / "scenes.parquet")
    catalog[column] = value
    catalog.to_parquet(dataset / "scenes.parquet", index=False)
    found = failed(dataset, capsys, "--fast")["provenance"]
    assert found == f"{catalog['id'].iloc[0]}: scenes.parquet does not record which files it was made from"


def test_a_store_whose_root_says_other_than_its_scenes(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene, *_ = with_tiles(dataset)
    root = dataset / LABELS / "zarr.json"
    whole = root.read_text()
    edits: dict[str, Callable[[dict[str, Any]], Any]] = {
        "lacks its metadata": lambda held: held.pop(scene),
        "has metadata of a missing scene": lambda held: held.update(ghost={}),
        "its metadata differ from those in the root of": lambda held: held[scene]["attributes"].update(stride=47),
    }
    for said, edit in edits.items():
        change(root, lambda document: edit(document["consolidated_metadata"]["metadata"]))  # noqa: B023 - used at once
        found = failed(dataset, capsys, "--fast")
        assert set(found) == {"metadata"}
        assert said in found["metadata"]
        root.write_text(whole)
    shutil.copytree(dataset / LABELS / scene, dataset / LABELS / "ghost")
    store.consolidate(str(dataset / LABELS))
    assert failed(dataset, capsys, "--fast")["metadata"].startswith("ghost: is in ")


def test_a_status_without_a_meaning(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene, i, j, _ = with_tiles(dataset)
    status: Any = store.open_scene(str(dataset / layout.TILES), scene, "r+")["status"]
    status[8 * i, 8 * j] = 99
    assert f"{scene} block ({i}, {j}): status 99 of " in failed(dataset, capsys, "--fast")["statuses"]


def test_labels_that_are_not_there(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene, *_ = with_tiles(dataset)
    (dataset / LABELS / scene / "status" / "c" / "1" / "0").unlink()
    found = failed(dataset, capsys, "--fast")
    assert set(found) == {"statuses"}
    assert found["statuses"].startswith(f"{scene} block (1, 0): not built in ")
    assert LABELS in found["statuses"]


def test_an_accepted_tile_without_pixels(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene, i, j, _ = with_tiles(dataset)
    group: Any = store.open_scene(str(dataset / layout.TILES), scene, "r+")
    here = slice(8 * i, 8 * i + 8), slice(8 * j, 8 * j + 8)
    row, col = np.argwhere(group["status"][here] == layout.ACCEPTED)[0] + (8 * i, 8 * j)
    group["image"][row, col] = 0
    tile = place({"scene": scene, "row": row, "col": col})
    assert failed(dataset, capsys) == {"shards": f"{tile} is accepted, but has no pixels"}


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("fault", ["negative", "too much known", "unknown, by its status"])
def test_labels_that_cannot_be(dataset: Path, capsys: pytest.CaptureFixture[str], fault: str, second: bool) -> None:
    """In the label set of the index, and in another one."""
    root = dataset / LABELS
    if second:
        root = shutil.copytree(root, dataset / layout.label_store("another_2020"))
        change(dataset / "dataset.json", lambda said: said["label_sets"].append("another_2020"))
    scene, *_ = with_tiles(dataset)
    group: Any = store.open_scene(str(root), scene, "r+")
    row, col = np.argwhere(group["known"][:] > 0)[-1]
    match fault:
        case "negative":
            group["fraction"][row, col, :] = [-0.5, 1.5, *[0] * 8]
        case "too much known":
            group["known"][row, col] = 1.25
        case _:
            group["status"][row, col] = layout.LABEL_STATUS.index("unknown")
    found = failed(dataset, capsys)["labels"]
    tile = place({"scene": scene, "row": row, "col": col})
    assert found.startswith(f"{tile}: its shares sum to 1, its known share is ")


def test_a_tile_of_which_too_little_is_known(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The stores agree on it, and it should not be listed."""
    tile = geopandas.read_parquet(dataset / "index.parquet").iloc[17]
    group: Any = store.open_scene(str(dataset / LABELS), tile["scene"], "r+")
    group["known"][tile["row"], tile["col"]] = 0.25
    parts = group["fraction_grid"][tile["row"], tile["col"]]
    group["fraction_grid"][tile["row"], tile["col"]] = parts // 4
    rewrite(dataset, lambda index: index.assign(known=index["known"].where(index.index != 17, np.float32(0.25))))
    assert failed(dataset, capsys) == {"index": f"{place(tile)} is listed, but was not accepted"}


def test_labels_that_their_sheets_do_not_give(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The stores agree on them: only computing them anew tells."""
    scene, *_ = with_tiles(dataset)
    classes = json.loads((dataset / "dataset.json").read_text())["classes"]
    group: Any = store.open_scene(str(dataset / LABELS), scene, "r+")
    for name in ("fraction", "fraction_grid"):
        group[name][:] = group[name][:][..., ::-1]

    def turn(index: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
        here = index["scene"] == scene
        index.loc[here, classes] = index.loc[here, classes].to_numpy()[:, ::-1]
        return index

    rewrite(dataset, turn)
    assert failed(dataset, capsys) == {}
    found = failed(dataset, capsys, "--sample", "12")
    assert set(found) == {"sample"}
    assert found["sample"].startswith(f"{scene} block (")
    assert found["sample"].endswith("has other shares (fraction) when computed again")


def test_a_check_does_not_list_all_faults_of_a_scene(dataset: Path) -> None:
    with ThreadPoolExecutor(2) as threads:
        data = DataSet(str(dataset), threads)
        first, *others = [scene.name for scene in data.scenes]
        faults = data.check_scenes(lambda scene: map(str, range(100 if scene.name == first else 10**9)))
    assert faults == [
        *map(str, range(100)),
        *(text for name in others for text in [*map(str, range(100)), f"{name}: and more"]),
    ]


def test_a_count_that_is_not_the_indexs(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(dataset / "dataset.json", lambda said: said["counts"].update(index=1))
    assert failed(dataset, capsys, "--fast")["index"].endswith(" rows, but dataset.json counts 1")


def test_another_layout(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = dataset / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": layout.SCHEMA + 1}))
    expected = f"dataset.json: schema {layout.SCHEMA + 1}"
    assert failed(dataset, capsys, "--fast")["schema"].startswith(expected)


def test_some_scenes_are_checked_for_all(
    dataset: Path, built: Built, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --scenes, those of one part of the index: a fault in them is found, and one elsewhere is not looked for."""
    monkeypatch.setattr(index, "PART_SCENES", 1)
    config = built.config.model_copy(update={"out": str(dataset)})
    index.run(config, find_landcover(config.labels.landcover), built.entries, None)
    assert len(list_parts(dataset)) == 3
    drawn = draw_scenes(dataset)
    others = [entry.scene.id for entry in built.entries if entry.scene.id != drawn]
    for name in others:  # without these, every check of all scenes fails
        shutil.rmtree(dataset / LABELS / name / "status")
    assert failed(dataset, capsys, "--scenes", "1") == {}
    assert failed(dataset, capsys, "--scenes", "1", "--fast") == {}
    assert {"statuses", "labels"} <= failed(dataset, capsys).keys()
    status = dataset / layout.TILES / drawn / "status"
    flip(next(path for path in sorted((status / "c").rglob("*")) if path.is_file()), 0)
    assert drawn in failed(dataset, capsys, "--scenes", "1")["statuses"]


def draw_scenes(dataset: Path) -> str:
    """The scene that is checked with `--scenes 1`."""
    with ThreadPoolExecutor(1) as threads:
        (scene,) = DataSet(str(dataset), threads, 1).scenes
    return scene.name


def test_some_scenes_and_some_tiles_of_them(
    built: Built, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dataset: Path
) -> None:
    """The tiles that are computed again are those of the scenes that are checked."""
    monkeypatch.setattr(index, "PART_SCENES", 1)
    config = built.config.model_copy(update={"out": str(dataset)})
    index.run(config, find_landcover(config.labels.landcover), built.entries, None)
    seen: list[str] = []
    make = checks.make_tiles
    monkeypatch.setattr(checks, "make_tiles", lambda job: seen.append(job.entry.scene.id) or make(job))
    assert main([str(dataset), "--scenes", "1", "--sample", "6"]) == 0
    assert set(seen) == {draw_scenes(dataset)}
    assert "1 of 3 scenes were checked" in capsys.readouterr().out
