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
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, ObjectStore

from geokr.dataset.layout import ACCEPTED, LABEL_STATUS, TILE_STATUS, StoreError, StoreWriteError
from geokr.dataset.shards import encode_shard
from geokr.storage import files

SMALL = (ZstdCodec(level=0), Crc32cCodec())
"""How arrays are stored that hold a number or a few a tile."""
GO_ON = "build into another data set, undo the change, or delete the scene there to have it built anew"
"""What to do where a scene was built with other settings."""


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


def open_store(root: str, *, writable: bool = False) -> Store:
    """The store at a directory or URL, for zarr-python and xarray.

    Raises FileNotFoundError for a directory that is not there.
    """
    if files.in_bucket(root):
        return ObjectStore(files.s3_store(root, files.s3_endpoint()), read_only=not writable)
    if not Path(root).is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), root)
    return DurableStore(root, read_only=not writable)


@contextmanager
def translate_errors(where: str) -> Iterator[None]:
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

    Beside them `cloud` (row, col) float32, the share of bright pixels, NaN where a tile was not looked at, and
    `lattice_error` (row, col) float32, the error of its block's orthorectification, px of the image.

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
    with translate_errors(f"{root}/{scene}"):
        group = _new_group(root, scene, attributes, "image", layout)
        if group is None:
            return
        group.create_array(
            "image",
            **layout,
            fill_value=0,
            dimension_names=["row", "col", "band", "y", "x"],
            # Read at random it is decoded several times as fast as zstd: see docs/decisions.md. As `_shard` has it.
            compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()],
        )
        figures: dict[str, Any] = {"shape": shape, "chunks": (block, block), "dtype": "float32"}
        for name in ("cloud", "lattice_error"):
            group.create_array(name, **figures, fill_value=float("nan"), dimension_names=["row", "col"])
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
    with translate_errors(f"{root}/{scene}"):
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
    if not files.in_bucket(root):
        files.make_directory(Path(root))
    whole = open_store(root, writable=True)
    zarr.open_group(whole, mode="a")
    group = zarr.open_group(whole, path=scene, mode="a")
    if "status" not in group:  # the last one made: without it, an earlier run was killed at this point
        for name in list(group.array_keys()):
            del group[name]
        group.attrs.put(wanted)
        return group
    there = {f"{key} of {array}": str(getattr(group[array], key)) for key in layout}
    asked = {f"{key} of {array}": str(value) for key, value in layout.items()}
    require_same(root, scene, dict(group.attrs) | there, wanted | asked)
    return None


def require_same(root: str, scene: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise StoreError where a scene's attributes are not the wanted ones: it was built from other input or settings.

    The sentence says what changed, and how to go on.
    """
    was, now = flatten(json.loads(json.dumps(found))), flatten(json.loads(json.dumps(wanted)))  # as they will be read
    changed = [
        f"{key} was {was.get(key, 'not there')}, now {now.get(key, 'not there')}"
        for key in sorted(was.keys() | now.keys())
        if was.get(key) != now.get(key)
    ]
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        what = f"{', '.join(changed[:5])}{more}"
        raise StoreError(f"{root}/{scene} was built with other settings or from other input ({what}); {GO_ON}")


def flatten(values: Mapping[str, Any], head: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flatten(value, f"{head}{key}.") if isinstance(value, dict) else {f"{head}{key}": value}
    return found


def open_scene(root: str, scene: str, mode: str = "r") -> zarr.Group:
    """One scene's group. Raises StoreError naming the path where there is none; to write, StoreWriteError."""
    try:
        whole = open_store(root, writable=mode != "r")
        return zarr.open_group(whole, path=scene, mode=mode, use_consolidated=False)  # type: ignore[arg-type]
    except FileNotFoundError as error:
        kind = StoreError if mode == "r" else StoreWriteError  # it was made before: a file system was lost
        raise kind(f"{root}/{scene}: no such scene in the store") from error


def write_block(
    group: zarr.Group,
    rows: slice,
    cols: slice,
    arrays: Mapping[str, npt.NDArray[Any]],
    status: npt.NDArray[np.uint8],
) -> None:
    """Write a whole block: its arrays first, `status` (row, col) last, which marks the block as done.

    Of an array in shards only those tiles are kept whose status is ACCEPTED; the others stay at the fill value 0.
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
        targets.append((array, values, i, j, side))
    with translate_errors(f"{group.store_path}, rows {rows.start}-{rows.stop}, columns {cols.start}-{cols.stop}"):
        # The status goes first, so that a block is whole or not built. What else is there is replaced, not deleted:
        # a worker that has lost its client may be writing the same block to its end.
        sync((array.store_path / f"c/{i}/{j}").delete())
        for array, values, i, j, side in targets:
            if array.shards is None:
                _write_chunk(array, values, i, j, side)
            else:
                shard = encode_shard(values, status == ACCEPTED, side)
                path = array.store_path / array.metadata.encode_chunk_key((i, j, *(0,) * (values.ndim - 2)))
                buffer = default_buffer_prototype().buffer
                sync(path.delete() if shard is None else path.set(buffer.from_array_like(shard)))


def _write_chunk(array: Any, values: npt.NDArray[Any], i: int, j: int, side: int) -> None:
    """Write the whole chunk (i, j, 0 ...), whatever is there.

    At the grid's border a block is smaller than its chunk, and Zarr would read what is there, to keep the rest of it:
    the remains of a killed run, perhaps. So the array is written as if it went on to the chunk's end.
    """
    shape = ((i + 1) * side, (j + 1) * side, *array.shape[2:])
    padding = [(0, side - values.shape[0]), (0, side - values.shape[1]), *[(0, 0)] * (values.ndim - 2)]
    metadata = replace(array.metadata, shape=shape)
    wider: Any = zarr.Array(zarr.AsyncArray(metadata=metadata, store_path=array.store_path, config=array.config))
    wider[i * side :, j * side :] = np.pad(values, padding) if any(map(any, padding)) else values


def consolidate(root: str) -> None:
    """Gather the store's metadata into its root, so that opening it reads one file."""
    import warnings

    with warnings.catch_warnings():
        # Consolidated metadata is an extension of Zarr v3; xarray and zarr-python read it.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        with translate_errors(root):
            zarr.consolidate_metadata(open_store(root, writable=True))
