"""The disk format of a store, and writing it: one Zarr group per scene, one chunk per tile, one shard per block.

This is the only module that creates Zarr arrays. A block is a rectangle of consecutive tile rows and columns. Its
pixels are one shard and its statuses one chunk, so a block is written once, by one task, without coordination.
`status` is written last: a block with a non-zero status is done. Every chunk has a checksum.
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

SMALL_ARRAY_CODECS = (ZstdCodec(level=0), Crc32cCodec())
"""Codecs of the arrays that store one or a few numbers per tile."""
MISMATCH_ADVICE = "build into another data set, undo the change, or delete the scene from the store to rebuild it"
"""What to do if a scene was built with other settings."""


class DurableStore(LocalStore):
    """A store on a disk. Once written, its files survive a power cut, while zarr-python renames files without fsync."""

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()
        if not self.root.is_dir():  # otherwise files would go to the mount point of a lost file system
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.root))
        await asyncio.to_thread(files.write, self.root / key, value.as_buffer_like())  # type: ignore[arg-type]

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        if not await self.exists(key):
            await self.set(key, value)

    def __str__(self) -> str:
        return str(self.root)


def open_store(root: str, *, writable: bool = False) -> Store:
    """Open the store at a directory or URL, for zarr-python and xarray.

    Raises FileNotFoundError if the directory does not exist.
    """
    if files.in_bucket(root):
        return ObjectStore(files.s3_store(root, files.s3_endpoint()), read_only=not writable)
    if not Path(root).is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), root)
    return DurableStore(root, read_only=not writable)


@contextmanager
def translate_errors(target: str) -> Iterator[None]:
    """Raise StoreWriteError naming `target` for any error of a disk or server while the context is active."""
    try:
        yield
    except OSError as error:
        raise StoreWriteError(_describe_write_error(target, error.strerror or str(error))) from error
    except Exception as error:
        if not type(error).__module__.startswith("obstore"):
            raise
        raise StoreWriteError(_describe_write_error(target, str(error).split("\n")[0])) from error


def _describe_write_error(target: str, reason: str) -> str:
    return f"{target}: cannot be written: {reason}; fix the cause, then run the same command again to resume"


def _flag_attributes(names: tuple[str, ...]) -> dict[str, Any]:
    """Attributes that name the codes of an array, following the CF conventions."""
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
    """Create a scene's group with `image` (row, col, band, y, x) and `status` (row, col), or check the existing one.

    The group also has `cloud` (row, col) float32, the share of bright pixels, NaN where a tile was not examined, and
    `lattice_error` (row, col) float32, the error of the orthorectification of the tile's block, px of the image.

    An existing group is left as it is if its attributes and the layout of its arrays match the arguments.
    A rejected tile stays at the fill value 0, which takes no space in a shard.
    Raises StoreError, naming what differs, if the scene was built with other settings.
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
            # Decodes several times as fast as zstd in random reads: see docs/decisions.md. Must match `encode_shard`.
            compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()],
        )
        options: dict[str, Any] = {"shape": shape, "chunks": (block, block), "dtype": "float32"}
        for name in ("cloud", "lattice_error"):
            group.create_array(name, **options, fill_value=float("nan"), dimension_names=["row", "col"])
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
    """Create a scene's group with `fraction` (row, col, class), `known` and `status` (row, col), or check it.

    fraction: float32, sums to 1 over the classes, or is 0 for all of them where nothing is known. known: float32, the
    share of the tile's area that the product covers with a class of the legend.
    Raises StoreError in the same cases as `create_tiles`.
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
            compressors=SMALL_ARRAY_CODECS,
        )
        group.create_array(
            "known",
            shape=shape,
            chunks=(block, block),
            dtype="float32",
            fill_value=0.0,
            dimension_names=["row", "col"],
            compressors=SMALL_ARRAY_CODECS,
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
        compressors=SMALL_ARRAY_CODECS,
        attributes=_flag_attributes(names),
    )


def _new_group(
    root: str, scene: str, attributes: Mapping[str, Any], array: str, layout: Mapping[str, Any]
) -> zarr.Group | None:
    """Create a scene's group, ready for its arrays. Returns None if the scene and its arrays exist already.

    layout: the arguments for creating `array`, the main array of the scene. Raises StoreError if the attributes or
    the layout of an existing scene differ.
    """
    expected: dict[str, Any] = json.loads(json.dumps(dict(attributes)))  # the values as read back from JSON
    if not files.in_bucket(root):
        files.make_directory(Path(root))
    opened = open_store(root, writable=True)
    zarr.open_group(opened, mode="a")
    group = zarr.open_group(opened, path=scene, mode="a")
    if "status" not in group:  # it is created last: if it is missing, an earlier run was killed at this point
        for name in list(group.array_keys()):
            del group[name]
        group.attrs.put(expected)
        return group
    stored_layout = {f"{key} of {array}": str(getattr(group[array], key)) for key in layout}
    expected_layout = {f"{key} of {array}": str(value) for key, value in layout.items()}
    require_same(root, scene, dict(group.attrs) | stored_layout, expected | expected_layout)
    return None


def require_same(root: str, scene: str, stored: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise StoreError if a scene's stored attributes differ from the expected ones: its input or settings changed.

    The message lists what changed, and what to do.
    """
    # Through JSON, so that both have the types that are read back from a store.
    before, after = flatten(json.loads(json.dumps(stored))), flatten(json.loads(json.dumps(expected)))
    changes = [
        f"{key} was {before.get(key, 'missing')}, now {after.get(key, 'missing')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    if changes:
        more = f" and {len(changes) - 5} more" if len(changes) > 5 else ""
        summary = f"{', '.join(changes[:5])}{more}"
        raise StoreError(
            f"{root}/{scene} was built with other settings or from other input ({summary}); {MISMATCH_ADVICE}"
        )


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings: dotted name -> value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def open_scene(root: str, scene: str, mode: str = "r") -> zarr.Group:
    """Open the group of a scene.

    Raises an error naming the path if it does not exist: StoreError if opened to read, otherwise StoreWriteError.
    """
    try:
        opened = open_store(root, writable=mode != "r")
        return zarr.open_group(opened, path=scene, mode=mode, use_consolidated=False)  # type: ignore[arg-type]
    except FileNotFoundError as error:
        # A scene that is opened to write was created earlier: if it is missing, its file system was lost.
        kind = StoreError if mode == "r" else StoreWriteError
        raise kind(f"{root}/{scene}: no such scene in the store") from error


def write_block(
    group: zarr.Group,
    rows: slice,
    cols: slice,
    arrays: Mapping[str, npt.NDArray[Any]],
    status: npt.NDArray[np.uint8],
) -> None:
    """Write a complete block: its arrays first, and last `status` (row, col), which marks the block as done.

    In a sharded array, only tiles with the status ACCEPTED are stored; the others stay at the fill value 0. On a disk,
    each array is flushed before the next one is written. Raises StoreError, without writing anything, if a status is
    0, an array does not have the block's shape, or the rows and columns are not those of a block. Raises
    StoreWriteError if the store fails.
    """
    if not status.all():
        raise StoreError("a block's status must be non-zero everywhere: 0 means not built")
    targets = []
    for name, values in [*arrays.items(), ("status", status)]:
        if name not in group:
            raise StoreWriteError(_describe_write_error(str(group.store_path), f"the array {name} is gone"))
        array = group[name]
        assert isinstance(array, zarr.Array)
        side = (array.shards or array.chunks)[0]
        i, j = rows.start // side, cols.start // side
        block = [slice(k * side, min((k + 1) * side, n)) for k, n in zip((i, j), array.shape[:2], strict=True)]
        if [rows, cols] != block:
            raise StoreError(
                f"rows {rows.start}-{rows.stop}, columns {cols.start}-{cols.stop} are not a block of {name}"
            )
        shape = (rows.stop - rows.start, cols.stop - cols.start, *array.shape[2:])
        if values.shape != shape:  # zarr-python would crop it
            raise StoreError(f"{name} of a block has shape {values.shape}, expected {shape}")
        targets.append((array, values, i, j, side))
    with translate_errors(f"{group.store_path}, rows {rows.start}-{rows.stop}, columns {cols.start}-{cols.stop}"):
        # Delete the status first, so that the block is always either complete or not built. Other existing files are
        # replaced, not deleted: a worker that has lost its client may still be writing the same block.
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
    """Write the full chunk (i, j, 0 ...), whether or not it exists.

    At the border of the grid, a block is smaller than its chunk. Zarr would then read an existing chunk, possibly left
    by a killed run, to keep the part outside the block. To avoid this, the array is written as if it extended to the
    end of the chunk.
    """
    shape = ((i + 1) * side, (j + 1) * side, *array.shape[2:])
    padding = [(0, side - values.shape[0]), (0, side - values.shape[1]), *[(0, 0)] * (values.ndim - 2)]
    metadata = replace(array.metadata, shape=shape)
    extended: Any = zarr.Array(zarr.AsyncArray(metadata=metadata, store_path=array.store_path, config=array.config))
    extended[i * side :, j * side :] = np.pad(values, padding) if any(map(any, padding)) else values


def consolidate(root: str) -> None:
    """Copy the metadata of all groups and arrays into the store's root, so that opening the store reads one file."""
    import warnings

    with warnings.catch_warnings():
        # Consolidated metadata is an extension of Zarr v3; xarray and zarr-python read it.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        with translate_errors(root):
            zarr.consolidate_metadata(open_store(root, writable=True))
