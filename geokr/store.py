"""The disk contract of a block store: one Zarr group a scene, one chunk a tile, one shard a block.

The only module that creates Zarr arrays. A block is a run of tile rows and columns; its pixels are
one shard, its statuses one chunk, so a block is written once, by one task, without coordination.
`status` is written last: a block whose status is not 0 is done. Every chunk carries a checksum.
"""

import asyncio
import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.core.sync import sync
from zarr.storage import LocalStore, ObjectStore

from geokr import files
from geokr.index import TILES as TILES

SCHEMA = 1
"""Version of the layout on disk. A reader refuses a newer one."""

LABELS = "labels"

TILE_STATUS = ("not_built", "accepted", "void", "dark", "flat", "cloud")
"""Why a tile was rejected. Position is code; append only."""
LABEL_STATUS = ("not_built", "labelled", "unknown")
"""`unknown`: the product covers no part of the tile with a class of the legend."""
ACCEPTED = TILE_STATUS.index("accepted")

SMALL = (ZstdCodec(level=0), Crc32cCodec())
"""How arrays are stored that hold a number or a few a tile."""


class StoreError(ValueError):
    """The store on disk is not what the caller wants to write or read."""


class StoreWriteError(StoreError):
    """What should be written did not reach the store: no input is at fault, and no other block would fare better."""


class DurableStore(LocalStore):
    """A store on a disk whose files outlive a power cut once they are written; zarr-python renames without fsync."""

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()
        if not self.root.is_dir():  # else the files would go where a lost file system used to be
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.root))
        await asyncio.to_thread(files.write, self.root / key, value.as_buffer_like())  # type: ignore[arg-type]

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        if not await self.exists(key):
            await self.set(key, value)

    def __str__(self) -> str:
        return str(self.root)


def opened(root: str, *, writable: bool = False) -> Store:
    """The store at a directory or URL, for zarr-python and xarray.

    Raises FileNotFoundError for a directory that is not there.
    """
    if files.is_url(root):
        return _bucket(root, files.endpoint()).with_read_only(not writable)
    if not Path(root).is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), root)
    return DurableStore(root, read_only=not writable)


@lru_cache(maxsize=16)  # one pool of connections a store
def _bucket(root: str, endpoint: str | None) -> Store:
    from obstore.store import S3Store  # the extra `s3`

    # A server that is not AWS's own may be one without encryption on the same network.
    given: Any = {} if endpoint is None else {"endpoint": endpoint, "client_options": {"allow_http": True}}
    return ObjectStore(S3Store.from_url(root, **given))


@contextmanager
def writing(where: str) -> Iterator[None]:
    """Raises StoreWriteError naming `where` for any error that a disk or a server causes meanwhile."""
    try:
        yield
    except OSError as error:
        raise StoreWriteError(_cannot(where, error.strerror or str(error))) from error
    except Exception as error:
        if not type(error).__module__.startswith("obstore"):
            raise
        raise StoreWriteError(_cannot(where, str(error).split("\n")[0])) from error


def _cannot(where: str, why: str) -> str:
    return f"{where}: cannot be written: {why}; put that right, and the same command goes on from here"


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
    with writing(f"{root}/{scene}"):
        group = _new_group(root, scene, attributes, "image", layout)
        if group is None:
            return
        group.create_array(
            "image",
            **layout,
            fill_value=0,
            dimension_names=["row", "col", "band", "y", "x"],
            # Read at random it is decoded several times as fast as zstd: see docs/decisions.md.
            compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()],
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
    with writing(f"{root}/{scene}"):
        group = _new_group(root, scene, {**attributes, "classes": list(classes)}, "fraction", layout)
        if group is None:
            return
        group.create_array(
            "fraction",
            **layout,
            fill_value=0.0,
            dimension_names=["row", "col", "class"],
            compressors=SMALL,
        )
        group.create_array(
            "known",
            shape=shape,
            chunks=(block, block),
            dtype="float32",
            fill_value=0.0,
            dimension_names=["row", "col"],
            compressors=SMALL,
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
        compressors=SMALL,
        attributes=_flags(names),
    )


def _new_group(
    root: str, scene: str, attributes: Mapping[str, Any], array: str, layout: Mapping[str, Any]
) -> zarr.Group | None:
    """A scene's group, for its arrays to be created in; None where they exist. Raises StoreError where they differ.

    layout: what `array`, the scene's main one, is created with.
    """
    wanted: dict[str, Any] = json.loads(json.dumps(dict(attributes)))  # as they will be read
    if not files.is_url(root):
        files.make(Path(root))
    whole = opened(root, writable=True)
    zarr.open_group(whole, mode="a")
    group = zarr.open_group(whole, path=scene, mode="a")
    if "status" not in group:  # the last one made: without it, an earlier run was killed at this point
        for name in list(group.array_keys()):
            del group[name]
        group.attrs.put(wanted)
        return group
    found = dict(group.attrs)
    differing = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
    for key, now in layout.items():
        if (was := getattr(group[array], key)) != now:
            differing.append(f"{key} of {array} ({was}, now {now})")
    if differing:
        raise StoreError(
            f"{root}/{scene} was built with other settings ({', '.join(differing)}); "
            "build into another data set, or delete this one"
        )
    return None


def open_scene(root: str, scene: str, mode: str = "r") -> zarr.Group:
    """One scene's group. Raises StoreError naming the path where there is none; to write, StoreWriteError."""
    try:
        whole = opened(root, writable=mode != "r")
        return zarr.open_group(whole, path=scene, mode=mode, use_consolidated=False)  # type: ignore[arg-type]
    except FileNotFoundError as error:
        kind = StoreError if mode == "r" else StoreWriteError  # it was made before: a file system was lost
        raise kind(f"{root}/{scene}: no such scene in the store") from error


def scenes(root: str) -> list[str]:
    """Names of the scenes in a store, sorted. Empty where the store does not exist."""
    try:
        return sorted(zarr.open_group(opened(root), mode="r", use_consolidated=False).group_keys())
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

    On a disk each is there to stay before the next is begun. Raises StoreError where a status is 0, a shape is not
    the block's, or the place is not a block, and nothing is written then; StoreWriteError where the store fails.
    """
    if not status.all():
        raise StoreError("a block's status must be non-zero everywhere: 0 means not built")
    targets = []
    for name, values in [*arrays.items(), ("status", status)]:
        if name not in group:
            raise StoreWriteError(_cannot(str(group.store_path), f"the array {name} is gone"))
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
    with writing(f"{group.store_path}, rows {rows.start}-{rows.stop}, columns {cols.start}-{cols.stop}"):
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
        with writing(root):
            zarr.consolidate_metadata(opened(root, writable=True))


def count(statuses: npt.NDArray[np.uint8], names: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """How many tiles have each status, in the order of the codes."""
    yield from zip(names, np.bincount(statuses.ravel(), minlength=len(names)).tolist(), strict=True)
