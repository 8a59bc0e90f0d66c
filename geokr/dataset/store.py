"""The disk format of a store, and writing it: one Zarr group per scene, one chunk per tile, one shard per block.

This is the only module that creates Zarr arrays. A block is a rectangle of consecutive tile rows and columns. Its
pixels are one shard and its statuses one chunk, so a block is written once, by one task, without coordination.
`status` is written last: a block with a non-zero status is done. Every chunk has a checksum.
"""

import asyncio
import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.metadata import ArrayV3Metadata
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore, ObjectStore

from geokr.dataset.layout import ACCEPTED, LABEL_STATUS, TILE_STATUS, StoreError, StoreWriteError
from geokr.dataset.shards import encode_chunk, encode_shard
from geokr.storage import files

DOCUMENT = "zarr.json"
"""Name of the metadata document of a store, a group or an array."""
ROOT = {"attributes": {}, "zarr_format": 3, "node_type": "group"}
"""The document of a group without attributes."""
SMALL = 1 << 16
"""Files of fewer bytes are written without another thread."""
SMALL_ARRAY_CODECS = (ZstdCodec(level=0), Crc32cCodec())
"""Codecs of the arrays that store one or a few numbers per tile."""
CONSOLIDATED = 4096
"""Scenes of a store that has consolidated metadata, at most: a scene takes some 7 KB, which every reader would load."""
MISMATCH_ADVICE = "build into another data set, undo the change, or delete the scene from the store to rebuild it"
"""What to do if a scene was built with other settings."""


class DurableStore(LocalStore):
    """A store on a disk. Once written, its files survive a power cut, while zarr-python renames files without fsync."""

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()
        if not self.root.is_dir():  # otherwise files would go to the mount point of a lost file system
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.root))
        content: Any = value.as_buffer_like()
        if len(content) < SMALL:
            files.write(self.root / key, content)  # takes less time than passing it to another thread
        else:
            await asyncio.to_thread(files.write, self.root / key, content)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        if not await self.exists(key):
            await self.set(key, value)

    def _str__(self) -> str:
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
    documents = _describe_tiles(bands, tile, block, dtype)
    with translate_errors(f"{root}/{scene}"):
        _create_scene(root, scene, attributes, shape, documents, "image")


@lru_cache(maxsize=64)
def _describe_tiles(bands: int, tile: int, block: int, dtype: str) -> dict[str, Any]:
    """Metadata documents of the arrays of a scene's tiles, by name, for a scene of one block."""
    pixels, side = (bands, tile, tile), (block, block)
    group = zarr.create_group(MemoryStore())
    group.create_array(
        "image",
        shape=(*side, *pixels),
        chunks=(1, 1, *pixels),
        shards=(*side, *pixels),
        dtype=dtype,
        fill_value=0,
        dimension_names=["row", "col", "band", "y", "x"],
        # Decodes several times as fast as zstd in random reads: see docs/decisions.md. Must match `encode_shard`.
        compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()],
    )
    options: dict[str, Any] = {"shape": side, "chunks": side, "dtype": "float32", "fill_value": float("nan")}
    for name in ("cloud", "lattice_error"):
        group.create_array(name, **options, dimension_names=["row", "col"])
    _create_status(group, block, TILE_STATUS)
    return _read_documents(group)


def create_labels(
    root: str,
    scene: str,
    *,
    shape: tuple[int, int],
    classes: tuple[str, ...],
    grid: int,
    block: int,
    attributes: Mapping[str, Any],
) -> None:
    """Create a scene's group with `fraction` (row, col, class), `known` and `status` (row, col), or check it.

    fraction: float32, sums to 1 over the classes, or is 0 for all of them where nothing is known. known: float32, the
    share of the tile's area that the product covers with a class of the legend.
    The group also has `fraction_grid` (row, col, part_row, part_col, class) uint8 with grid x grid parts of each tile:
    the area of each class in units of 1 / WHOLE_PART of a part. Its sum over the classes is what is known of the part.
    Raises StoreError in the same cases as `create_tiles`.
    """
    documents = _describe_labels(len(classes), grid, block)
    with translate_errors(f"{root}/{scene}"):
        _create_scene(root, scene, {**attributes, "grid": grid, "classes": list(classes)}, shape, documents, "fraction")


@lru_cache(maxsize=64)
def _describe_labels(classes: int, grid: int, block: int) -> dict[str, Any]:
    """Metadata documents of the arrays of a scene's labels, by name, for a scene of one block."""
    group = zarr.create_group(MemoryStore())
    options: dict[str, Any] = {"dtype": "float32", "fill_value": 0.0, "compressors": SMALL_ARRAY_CODECS}
    shape, names = (block, block, classes), ["row", "col", "class"]
    group.create_array("fraction", shape=shape, chunks=shape, **options, dimension_names=names)
    parts = (block, block, grid, grid, classes)
    group.create_array(
        "fraction_grid",
        shape=parts,
        chunks=parts,
        dtype="uint8",
        fill_value=0,
        compressors=SMALL_ARRAY_CODECS,
        dimension_names=["row", "col", "part_row", "part_col", "class"],
    )
    group.create_array("known", shape=shape[:2], chunks=shape[:2], **options, dimension_names=names[:2])
    _create_status(group, block, LABEL_STATUS)
    return _read_documents(group)


def discard_scene(root: str, scene: str) -> None:
    """Mark a scene as not built: creating it again replaces it. Raises StoreWriteError if the store fails."""
    with translate_errors(f"{root}/{scene}"):
        del zarr.open_group(open_store(root, writable=True), path=scene, mode="r+", use_consolidated=False)["status"]


def _create_status(group: zarr.Group, block: int, names: tuple[str, ...]) -> None:
    group.create_array(
        "status",
        shape=(block, block),
        chunks=(block, block),
        dtype="uint8",
        fill_value=0,
        dimension_names=["row", "col"],
        compressors=SMALL_ARRAY_CODECS,
        attributes=_flag_attributes(names),
    )


def _read_documents(group: zarr.Group) -> dict[str, Any]:
    """The metadata documents of a group's arrays, by name; `status` is the last."""
    names = sorted(group.array_keys(), key=lambda name: (name == "status", name))
    return {name: group[name].metadata.to_dict() for name in names}


def _create_scene(
    root: str,
    scene: str,
    attributes: Mapping[str, Any],
    shape: tuple[int, int],
    documents: Mapping[str, Any],
    main: str,
) -> None:
    """Create a scene's group and arrays, or check the existing ones.

    documents: array -> its metadata, for another number of rows and columns. They are written as they are, since
    zarr-python takes ten times as long to create an array. `status` is the last: if it is missing, an earlier run was
    killed at this point. main: the array whose layout is checked. Raises StoreError if the attributes or the layout of
    an existing scene differ.
    """
    expected: dict[str, Any] = json.loads(json.dumps(dict(attributes)))  # the values as read back from JSON
    if not files.in_bucket(root):
        files.make_directory(Path(root))
    opened = open_store(root, writable=True)
    arrays = {name: {**document, "shape": [*shape, *document["shape"][2:]]} for name, document in documents.items()}

    async def create() -> bool:
        if not await opened.exists(DOCUMENT):
            await opened.set(DOCUMENT, _encode_document(ROOT))
        if await opened.exists(f"{scene}/status/{DOCUMENT}"):
            return False
        if await opened.exists(f"{scene}/{DOCUMENT}"):
            await opened.delete_dir(scene)
        await opened.set(f"{scene}/{DOCUMENT}", _encode_document(ROOT | {"attributes": expected}))
        for name, document in arrays.items():
            await opened.set(f"{scene}/{name}/{DOCUMENT}", _encode_document(document))
        return True

    if sync(create()):
        return
    group = zarr.open_group(opened, path=scene, mode="r")
    metadata = ArrayV3Metadata.from_dict(arrays[main])
    array = zarr.Array(zarr.AsyncArray(metadata=metadata, store_path=group.store_path / main))
    stored = _describe_layout(group[main], main) if main in group else {}
    require_same(root, scene, dict(group.attrs) | stored, expected | _describe_layout(array, main))


def _encode_document(document: Mapping[str, Any]) -> Buffer:
    """A metadata document as zarr-python writes it."""
    return default_buffer_prototype().buffer.from_bytes(json.dumps(document, indent=2).encode())


def _describe_layout(array: Any, name: str) -> dict[str, str]:
    """How the values of an array lie on the disk."""
    return {f"{key} of {name}": str(getattr(array, key)) for key in ("shape", "chunks", "shards", "dtype")}


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


def _open_arrays(group: zarr.Group, names: Sequence[str]) -> dict[str, zarr.Array[Any]]:
    """Open arrays of a group, by name. Raises StoreWriteError if one is gone.

    All at once: in zarr-python, each array of its own takes a millisecond, most of it to pass to another thread.
    """

    async def read() -> list[Buffer | None]:
        return await asyncio.gather(*[(group.store_path / name / DOCUMENT).get() for name in names])

    with translate_errors(str(group.store_path)):
        documents = sync(read())
    arrays: dict[str, zarr.Array[Any]] = {}
    for name, document in zip(names, documents, strict=True):
        if document is None:
            raise StoreWriteError(_describe_write_error(str(group.store_path), f"the array {name} is gone"))
        metadata = _parse_metadata(document.to_bytes())
        arrays[name] = zarr.Array(zarr.AsyncArray(metadata=metadata, store_path=group.store_path / name))
    return arrays


@lru_cache(maxsize=64)
def _parse_metadata(document: bytes) -> ArrayV3Metadata:
    """The metadata of an array. Cached, because parsing takes a millisecond, and blocks and scenes have the same."""
    return ArrayV3Metadata.from_dict(json.loads(document))


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
    opened = _open_arrays(group, [*arrays, "status"])
    for name, values in [*arrays.items(), ("status", status)]:
        array = opened[name]
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
        if array.shards is None:
            encoded = encode_chunk(values.astype(array.dtype, copy=False), side, array.fill_value, array.compressors)
        else:
            encoded = encode_shard(values, status == ACCEPTED, side)
        key = array.metadata.encode_chunk_key((i, j, *(0,) * (values.ndim - 2)))
        targets.append((array.store_path / key, encoded))

    async def write() -> None:
        # Delete the status first, so that the block is always either complete or not built. Other existing files are
        # replaced, not deleted: a worker that has lost its client may still be writing the same block.
        await targets[-1][0].delete()
        for path, encoded in targets:
            if encoded is None:
                await path.delete()
            else:
                await path.set(default_buffer_prototype().buffer.from_array_like(encoded))

    with translate_errors(f"{group.store_path}, rows {rows.start}-{rows.stop}, columns {cols.start}-{cols.stop}"):
        sync(write())


def consolidate(root: str, scenes: int) -> None:
    """Copy the metadata of all groups and arrays into the store's root, so that opening the store reads one file.

    scenes: number of scenes of the store. The root of one with more than CONSOLIDATED has no such copy.
    """
    import warnings

    if scenes > CONSOLIDATED:
        with translate_errors(root):
            files.write_text(files.join(root, DOCUMENT), json.dumps(ROOT))
        return
    with warnings.catch_warnings():
        # Consolidated metadata is an extension of Zarr v3; xarray and zarr-python read it.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        with translate_errors(root):
            zarr.consolidate_metadata(open_store(root, writable=True))
