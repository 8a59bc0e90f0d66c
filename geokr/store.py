"""The disk contract of a block store: one Zarr group a scene, one chunk a tile, one shard a block.

The only module that creates Zarr arrays. A block is a run of tile rows and columns; its pixels are
one shard, its statuses one chunk, so a block is written once, by one task, without coordination.
`status` is written last: a block whose status is not 0 is done.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.common import concurrent_map
from zarr.core.sync import sync
from zarr.storage._common import make_store_path

from geokr.index import TILES as TILES

SCHEMA = 1
"""Version of the layout on disk. A reader refuses a newer one."""

LABELS = "labels"

TILE_STATUS = ("not_built", "accepted", "void", "dark", "flat", "cloud")
"""Why a tile was rejected. Position is code; append only."""
LABEL_STATUS = ("not_built", "labelled", "unknown")
"""`unknown`: the product covers no part of the tile with a class of the legend."""
ACCEPTED = TILE_STATUS.index("accepted")

CHUNK = re.compile(r"/c/(\d+)/(\d+)$")
"""A chunk of `status` by its key."""


GO_ON = "build into another data set, undo the change, or delete the scene there to have it built anew"
"""What to do where a scene was built with other settings."""


class StoreError(ValueError):
    """The store on disk is not what the caller wants to write or read."""


def join(dataset: str | Path, *parts: str) -> str:
    """A path or URL inside the data set. `dataset` may be a local directory or `s3://...`."""
    return "/".join([str(dataset).rstrip("/"), *parts])


def label_store(label_set: str) -> str:
    """Name of a label set's store inside the data set; `label_set` is `<product>_<year>`."""
    return f"{LABELS}/{label_set}.zarr"


def _flags(names: tuple[str, ...]) -> dict[str, Any]:
    # The CF conventions' way to name the codes of an array.
    return {"flag_values": list(range(len(names))), "flag_meanings": " ".join(names)}


def create_tiles(
    root: str,
    scene: str,
    *,
    shape: tuple[int, int],
    bands: int,
    tile: int,
    block: int,
    dtype: str,
    attributes: Mapping[str, Any],
) -> None:
    """Make a scene's group with `image` (row, col, band, y, x) and `status` (row, col), or check it.

    A group that is there already is left as it is if its attributes and its arrays' layout are the wanted ones.
    A rejected tile stays at the fill value 0, which a shard stores for free.
    Raises StoreError where the scene was built with other settings, naming what differs.
    """
    pixels = (bands, tile, tile)
    layout: dict[str, Any] = {
        "shape": (*shape, *pixels),
        "chunks": (1, 1, *pixels),
        "shards": (block, block, *pixels),
        "dtype": dtype,
    }
    if not _new_group(root, scene, attributes, "image", layout):
        return
    group = zarr.open_group(root, path=scene, mode="r+")
    group.create_array(
        "image",
        **layout,
        fill_value=0,
        dimension_names=["row", "col", "band", "y", "x"],
        # The fastest of those measured, and the smallest: see docs/decisions.md.
        compressors=BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"),
    )
    _create_status(group, shape, block, TILE_STATUS)


def create_labels(
    root: str,
    scene: str,
    *,
    shape: tuple[int, int],
    classes: tuple[str, ...],
    block: int,
    attributes: Mapping[str, Any],
) -> None:
    """Make a scene's group with `fraction` (row, col, class), `known` and `status` (row, col), or check it.

    fraction: float32, sums to 1 over classes, or all 0 where nothing is known. known: float32, the
    share of the tile's area that the product covers with a class of the legend.
    Raises StoreError as `create_tiles` does.
    """
    k = len(classes)
    layout: dict[str, Any] = {"shape": (*shape, k), "chunks": (block, block, k), "dtype": "float32"}
    if not _new_group(root, scene, {**attributes, "classes": list(classes)}, "fraction", layout):
        return
    group = zarr.open_group(root, path=scene, mode="r+")
    group.create_array(
        "fraction",
        **layout,
        fill_value=0.0,
        dimension_names=["row", "col", "class"],
    )
    group.create_array(
        "known",
        shape=shape,
        chunks=(block, block),
        dtype="float32",
        fill_value=0.0,
        dimension_names=["row", "col"],
    )
    _create_status(group, shape, block, LABEL_STATUS)


def _create_status(group: zarr.Group, shape: tuple[int, int], block: int, names: tuple[str, ...]) -> None:
    group.create_array(
        "status",
        shape=shape,
        chunks=(block, block),
        dtype="uint8",
        fill_value=0,
        dimension_names=["row", "col"],
        attributes=_flags(names),
    )


def _new_group(root: str, scene: str, attributes: Mapping[str, Any], array: str, layout: Mapping[str, Any]) -> bool:
    """Whether the scene's arrays must be created. Raises StoreError where they exist and differ.

    layout: what `array`, the scene's main one, is created with.
    """
    wanted: dict[str, Any] = json.loads(json.dumps(dict(attributes)))  # as they will be read
    zarr.open_group(root, mode="a")
    group = zarr.open_group(root, path=scene, mode="a")
    if "status" not in group:  # the last one made: without it, an earlier run was killed at this point
        for name in list(group.array_keys()):
            del group[name]
        group.attrs.put(wanted)
        return True
    there = {f"{key} of {array}": str(getattr(group[array], key)) for key in layout}
    asked = {f"{key} of {array}": str(value) for key, value in layout.items()}
    same(root, scene, dict(group.attrs) | there, wanted | asked)
    return False


def same(root: str, scene: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise StoreError where a scene's attributes are not the wanted ones: it was built from other input or settings.

    The sentence says what changed, and how to go on.
    """
    was, now = flat(json.loads(json.dumps(found))), flat(json.loads(json.dumps(wanted)))  # as they will be read
    changed = [
        f"{key} was {was.get(key, 'not there')}, now {now.get(key, 'not there')}"
        for key in sorted(was.keys() | now.keys())
        if was.get(key) != now.get(key)
    ]
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        what = f"{', '.join(changed[:5])}{more}"
        raise StoreError(f"{root}/{scene} was built with other settings or from other input ({what}); {GO_ON}")


def flat(values: Mapping[str, Any], head: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{head}{key}.") if isinstance(value, dict) else {f"{head}{key}": value}
    return found


def open_scene(root: str, scene: str, mode: str = "r") -> zarr.Group:
    """One scene's group. Raises StoreError naming the path where there is none."""
    try:
        return zarr.open_group(root, path=scene, mode=mode, use_consolidated=False)  # type: ignore[arg-type]
    except FileNotFoundError as error:
        raise StoreError(f"{root}/{scene}: no such scene in the store") from error


@dataclass(frozen=True, slots=True)
class Built:
    """What is there of a scene in a store."""

    attributes: dict[str, Any]
    shape: tuple[int, ...]
    """Rows and columns of tiles."""
    blocks: frozenset[tuple[int, int]]
    """Row and column of the blocks that are done: their part of `status` exists, and is non-zero, since it is only
    ever written whole."""


def built(root: str, names: Iterable[str]) -> dict[str, Built]:
    """What is there of the named scenes, by name; scenes whose groups are not whole are left out.

    Reads no chunk, and of each scene two small files and one listing: a store of a thousand scenes takes a second.
    """
    try:
        return sync(_built(root, list(names)))
    except FileNotFoundError:  # no store yet
        return {}


async def _built(root: str, names: list[str]) -> dict[str, Built]:
    path = await make_store_path(root, mode="r")
    prototype = default_buffer_prototype()

    async def one(name: str) -> tuple[str, Built] | None:
        documents = [await (path / name / part).get(prototype) for part in ("zarr.json", "status/zarr.json")]
        if None in documents:
            return None
        group, array = (json.loads(document.to_bytes()) for document in documents if document is not None)
        done = set()
        async for key in path.store.list_prefix(f"{(path / name / 'status').path}/c/"):
            if match := CHUNK.search(key):
                done.add((int(match[1]), int(match[2])))
        return name, Built(group["attributes"], tuple(array["shape"]), frozenset(done))

    return dict(filter(None, await concurrent_map([(name,) for name in names], one, 64)))


def scenes(root: str) -> list[str]:
    """Names of the scenes in a store, sorted. Empty where the store does not exist."""
    try:
        return sorted(zarr.open_group(root, mode="r", use_consolidated=False).group_keys())
    except FileNotFoundError:
        return []


def write_block(
    group: zarr.Group,
    rows: slice,
    cols: slice,
    arrays: Mapping[str, npt.NDArray[Any]],
    status: npt.NDArray[np.uint8],
) -> None:
    """Write a whole block: its arrays first, `status` (row, col) last, which marks the block as done.

    Raises StoreError where a status is 0, a shape is not the block's, or the place is not a block; nothing is
    written then.
    """
    if not status.all():
        raise StoreError("a block's status must be non-zero everywhere: 0 means not built")
    targets = []
    for name, values in [*arrays.items(), ("status", status)]:
        array = group[name]
        assert isinstance(array, zarr.Array)
        side = (array.shards or array.chunks)[0]
        i, j = rows.start // side, cols.start // side
        whole = [slice(k * side, min((k + 1) * side, n)) for k, n in zip((i, j), array.shape[:2], strict=True)]
        if [rows, cols] != whole:
            raise StoreError(
                f"rows {rows.start}-{rows.stop}, columns {cols.start}-{cols.stop} are not a block of {name}"
            )
        wanted = (rows.stop - rows.start, cols.stop - cols.start, *array.shape[2:])
        if values.shape != wanted:  # zarr-python would cut it to size
            raise StoreError(f"{name} of a block has shape {values.shape}, expected {wanted}")
        key = array.metadata.encode_chunk_key((i, j, *(0,) * (values.ndim - 2)))
        targets.append((array, values, array.store_path / key))
    # At the grid's border a block is smaller than its shard, and Zarr would read what is there, to keep the rest
    # of it: the remains of a killed run, perhaps. The status goes first, so that a block is whole or not built.
    for _, _, path in reversed(targets):
        sync(path.delete())
    for array, values, _ in targets:
        array[rows, cols] = values


def status(group: zarr.Group) -> npt.NDArray[np.uint8]:
    """(row, col) uint8: see TILE_STATUS and LABEL_STATUS."""
    return np.asarray(group["status"][:])  # type: ignore[index]


def consolidate(root: str) -> None:
    """Gather the store's metadata into its root, so that opening it reads one file."""
    import warnings

    with warnings.catch_warnings():
        # Consolidated metadata is an extension of Zarr v3; xarray and zarr-python read it.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(root)


def count(statuses: npt.NDArray[np.uint8], names: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """How many tiles have each status, in the order of the codes."""
    yield from zip(names, np.bincount(statuses.ravel(), minlength=len(names)).tolist(), strict=True)
