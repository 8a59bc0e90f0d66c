"""The disk format of a store, and writing it: one Zarr group per scene, one chunk per tile, one shard per block.

This is the only module that creates Zarr arrays. A block is a rectangle of consecutive tile rows and columns. Its
pixels are one shard and its statuses one chunk, so a block is written once, by one task, without coordination.
`status` is written last: a block with a non-zero status is done. Every chunk has a checksum.
"""

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore, MemoryStore, ObjectStore

from geokr.dataset.layout import ACCEPTED, LABEL_STATUS, TILE_STATUS, StoreError, StoreWriteError
from geokr.dataset.shards import encode_chunk, encode_shard
from geokr.storage import files

DOCUMENT = "zarr.json"
"""Name of the metadata document of a store, a group or an array."""
SHARDING = "sharding_indexed"
"""Name of the codec of an array with shards."""
ROOT = {"attributes": {}, "zarr_format": 3, "node_type": "group"}
"""The document of a group without attributes."""
SMALL_ARRAY_CODECS = (ZstdCodec(level=0), Crc32cCodec())
"""Codecs of the arrays that store one or a few numbers per tile."""
CONSOLIDATED = 4096
"""Scenes of a store that has consolidated metadata, at most: each takes some 3.5 KB, which every reader would load."""
MISMATCH_ADVICE = "build into another data set, undo the change, or delete the scene from the store to rebuild it"
"""What to do if a scene was built with other settings."""


def open_store(root: str, *, writable: bool = False) -> Store:
    """Open the store at a directory or URL, for zarr-python and xarray. What they write is not flushed to the disk.

    Raises FileNotFoundError if the directory does not exist.
    """
    if files.in_bucket(root):
        return ObjectStore(files.s3_store(root, files.s3_endpoint()), read_only=not writable)
    if not Path(root).is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), root)
    return LocalStore(root, read_only=not writable)


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
    options: dict[str, Any] = {"dtype": "float32", "fill_value": float("nan"), "compressors": SMALL_ARRAY_CODECS}
    for name in ("cloud", "lattice_error"):
        group.create_array(name, shape=side, chunks=side, **options, dimension_names=["row", "col"])
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
        files.remove(files.join(root, scene, "status", DOCUMENT))


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
    arrays = {name: {**document, "shape": [*shape, *document["shape"][2:]]} for name, document in documents.items()}
    paths = [DOCUMENT, *(f"{scene}/{name}{DOCUMENT}" for name in ("", f"{main}/", "status/"))]
    store, group, stored, status = map(_parse, files.read_all(root, paths))
    if status is not None:
        before = {} if group is None else group["attributes"]
        layouts = [_describe_layout(document, main) for document in (stored, arrays[main])]
        require_same(root, scene, before | layouts[0], expected | layouts[1])
        return
    if group is not None:
        files.remove_directory(files.join(root, scene))
    encoded = {} if store is not None else {DOCUMENT: _encode_document(ROOT)}
    encoded[paths[1]] = _encode_document(ROOT | {"attributes": expected})
    encoded |= {f"{scene}/{name}/{DOCUMENT}": _encode_document(document) for name, document in arrays.items()}
    _write_in_order(root, encoded)


def _write_in_order(root: str, contents: dict[str, Any]) -> None:
    """Write files as `files.write_all` does, the last of them once all others are on the disk."""
    last = dict([contents.popitem()])
    files.write_all(root, contents)
    files.write_all(root, last)


def _encode_document(document: Mapping[str, Any]) -> bytes:
    """A metadata document. Without indentation, which takes ten times as long."""
    return json.dumps(document).encode()


def _describe_layout(document: Mapping[str, Any] | None, name: str) -> dict[str, str]:
    """How the values of an array lie on the disk, by its metadata. Empty for an array that is not there."""
    if document is None:
        return {}
    whole, codec = document["chunk_grid"]["configuration"]["chunk_shape"], document["codecs"][0]
    sharded = codec["name"] == SHARDING
    layout = {
        "shape": tuple(document["shape"]),
        "chunks": tuple(codec["configuration"]["chunk_shape"] if sharded else whole),
        "shards": tuple(whole) if sharded else None,
        "dtype": document["data_type"],
    }
    return {f"{key} of {name}": str(value) for key, value in layout.items()}


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


def open_scene(root: str, scene: str, mode: Literal["r", "r+"] = "r") -> zarr.Group:
    """Open the group of a scene. Raises StoreError naming the path if it does not exist."""
    try:
        opened = open_store(root, writable=mode != "r")
        return zarr.open_group(opened, path=scene, mode=mode, use_consolidated=False)
    except FileNotFoundError as error:
        raise StoreError(f"{root}/{scene}: no such scene in the store") from error


def _parse(document: bytes | None) -> dict[str, Any] | None:
    """A metadata document; None for one that is not there."""
    return None if document is None else json.loads(document)


def write_block(
    root: str,
    scene: str,
    rows: slice,
    cols: slice,
    arrays: Mapping[str, npt.NDArray[Any]],
    status: npt.NDArray[np.uint8],
) -> None:
    """Write a complete block: its arrays first, and last `status` (row, col), which marks the block as done.

    In a sharded array, only tiles with the status ACCEPTED are stored; the others stay at the fill value 0. On a disk,
    all arrays are flushed before `status` is written. Raises StoreError, without writing anything, if a status is
    0, an array does not have the block's shape, or the rows and columns are not those of a block. Raises
    StoreWriteError if the store fails, or has no such scene or array.
    """
    if not status.all():
        raise StoreError("a block's status must be non-zero everywhere: 0 means not built")
    contents: dict[str, bytes | npt.NDArray[np.uint8] | None] = {}
    with translate_errors(f"{root}/{scene}"):
        documents = files.read_all(root, [f"{scene}/{name}/{DOCUMENT}" for name in (*arrays, "status")])
    parsed = map(_parse, documents)
    for (name, values), document in zip([*arrays.items(), ("status", status)], parsed, strict=True):
        if document is None:  # the scene was created earlier: its file system was lost
            raise StoreWriteError(_describe_write_error(f"{root}/{scene}", f"the array {name} is gone"))
        side = document["chunk_grid"]["configuration"]["chunk_shape"][0]
        i, j = rows.start // side, cols.start // side
        count = document["shape"][:2]
        block = [slice(k * side, min((k + 1) * side, n)) for k, n in zip((i, j), count, strict=True)]
        if [rows, cols] != block:
            raise StoreError(
                f"rows {rows.start}-{rows.stop}, columns {cols.start}-{cols.stop} are not a block of {name}"
            )
        shape = (rows.stop - rows.start, cols.stop - cols.start, *document["shape"][2:])
        if values.shape != shape:  # the chunk would be read as something else
            raise StoreError(f"{name} of a block has shape {values.shape}, expected {shape}")
        values = values.astype(document["data_type"], copy=False)
        key = "/".join(map(str, [scene, name, "c", i, j, *[0] * (values.ndim - 2)]))
        if document["codecs"][0]["name"] == SHARDING:
            contents[key] = encode_shard(values, status == ACCEPTED, side)
        else:
            contents[key] = encode_chunk(values, side, float(document["fill_value"]), document["codecs"])
    *_, last = contents
    with translate_errors(f"{root}/{scene}, rows {rows.start}-{rows.stop}, columns {cols.start}-{cols.stop}"):
        # Delete the status first, so that the block is always either complete or not built. Other existing files are
        # replaced, not deleted: a worker that has lost its client may still be writing the same block.
        files.remove(files.join(root, last))
        _write_in_order(root, contents)


def consolidate(root: str) -> None:
    """Copy the metadata of all groups and arrays into the store's root, so that opening the store reads one file.

    A store with more than CONSOLIDATED scenes has no such copy. It is an extension of Zarr v3, which zarr-python and
    xarray read.
    """
    with translate_errors(root):
        (scenes,) = files.list_directories([root])
        document: dict[str, Any] = ROOT
        if len(scenes) <= CONSOLIDATED:
            document = ROOT | _inline(_read_metadata(root, scenes))
        files.write_all(root, {DOCUMENT: _encode_document(document)})


def _read_metadata(root: str, names: Sequence[str]) -> dict[str, Any]:
    """The metadata documents of scenes and of their arrays, by path, in the order in which zarr-python lists them."""
    inner = files.list_directories([files.join(root, name) for name in names])
    arrays = [f"{name}/{array}" for name, found in zip(names, inner, strict=True) for array in found]
    documents = map(_parse, files.read_all(root, [f"{path}/{DOCUMENT}" for path in (*names, *arrays)]))
    groups = {name: next(documents) for name in names}
    metadata = {name: group and group | _inline({}) for name, group in groups.items()}
    metadata |= dict(zip(arrays, documents, strict=True))
    return {path: document for path, document in metadata.items() if document is not None}


def _inline(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a group's document for the metadata below it."""
    return {"consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": metadata}}
