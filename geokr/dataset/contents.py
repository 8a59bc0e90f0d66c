"""Reading what a store contains: scenes, finished blocks, full arrays, metadata."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.common import concurrent_map
from zarr.core.sync import sync

from geokr.dataset.layout import StoreError
from geokr.dataset.store import open_store
from geokr.storage import files

CHUNK = re.compile(r"/c/(\d+)/(\d+)$")
"""Matches the key of a chunk of `status`: its block row and column."""


@dataclass(frozen=True, slots=True)
class SceneContents:
    """What a store contains of a scene."""

    attributes: dict[str, Any]
    shape: tuple[int, ...]
    """Number of rows and columns of tiles."""
    blocks: frozenset[tuple[int, int]]
    """Row and column of the blocks that are done. Their chunk of `status` exists; it is non-zero everywhere, since a
    block's statuses are only ever written together."""


def read_scene_contents(root: str, names: Iterable[str]) -> dict[str, SceneContents]:
    """Read what a store contains of the named scenes, by name. Scenes with incomplete groups are left out.

    Reads no chunk, only two small files and one listing per scene: a store of a thousand scenes takes a second.
    """
    try:
        return sync(_read_scene_contents(root, list(names)))
    except FileNotFoundError:  # no store yet
        return {}


async def _read_scene_contents(root: str, names: list[str]) -> dict[str, SceneContents]:
    store = open_store(root)
    prototype = default_buffer_prototype()

    async def read_scene(name: str) -> tuple[str, SceneContents] | None:
        documents = [await store.get(f"{name}/{part}", prototype) for part in ("zarr.json", "status/zarr.json")]
        if None in documents:
            return None
        group, array = (json.loads(document.to_bytes()) for document in documents if document is not None)
        blocks = set()
        async for key in store.list_prefix(f"{name}/status/c/"):
            if match := CHUNK.search(key):
                blocks.add((int(match[1]), int(match[2])))
        return name, SceneContents(group["attributes"], tuple(array["shape"]), frozenset(blocks))

    return dict(filter(None, await concurrent_map([(name,) for name in names], read_scene, 64)))


def list_scenes(root: str) -> list[str]:
    """List the names of the scenes in a store, sorted, without reading files. Empty if the store does not exist."""

    async def list_names() -> list[str]:
        return [name async for name in open_store(root).list_dir("")]

    try:
        return sorted(name.rstrip("/") for name in sync(list_names()) if not name.startswith("zarr.json"))
    except FileNotFoundError:
        return []


def read_status(group: zarr.Group) -> npt.NDArray[np.uint8]:
    """Read the statuses of a scene's tiles: (row, col) uint8, codes of TILE_STATUS or LABEL_STATUS."""
    return np.asarray(group["status"][:])  # type: ignore[index]


def open_array(root: str, array: str) -> Any:
    """Open an array of a store with tensorstore, which reads in its own threads; nothing is cached."""
    spec = {"driver": "zarr3", "kvstore": files.kvstore_spec(files.join(root, array)), "recheck_cached_data": False}
    return ts.open(spec, read=True, context=_UNCACHED)


_UNCACHED = ts.Context({"cache_pool": {"total_bytes_limit": 0}})


def read_arrays(root: str, scene: str, *names: str) -> list[npt.NDArray[Any]]:
    """Read arrays of a scene in full, concurrently. Raises StoreError naming the scene if one is missing or damaged."""
    try:
        arrays = [open_array(root, f"{scene}/{name}") for name in names]
        reads = [array.result().read() for array in arrays]
        return [np.asarray(values.result()) for values in reads]
    except ValueError as error:  # tensorstore raises it for every fault
        message = str(error).split(" [")[0]
        fault = "no such scene in the store" if message.startswith("NOT_FOUND") else f"cannot be read: {message}"
        raise StoreError(f"{root}/{scene}: {fault}") from error


def read_consolidated(root: str) -> dict[str, Any]:
    """Read the consolidated metadata in a store's root: path of a group or array -> metadata. Empty if it has none."""
    document = json.loads(files.read(files.join(root, "zarr.json")))
    metadata: dict[str, Any] = (document.get("consolidated_metadata") or {}).get("metadata", {})
    return metadata


def read_attributes(root: str, scene: str) -> dict[str, Any]:
    """Read the attributes of a scene's group. Raises StoreError naming the path if the scene does not exist."""
    try:
        attributes: dict[str, Any] = read_metadata(root, scene)["attributes"]
    except FileNotFoundError as error:
        raise StoreError(f"{root}/{scene}: no such scene in the store") from error
    return attributes


def read_metadata(root: str, path: str) -> dict[str, Any]:
    """Read the metadata document of a group or array. Raises FileNotFoundError if it does not exist."""
    metadata: dict[str, Any] = json.loads(files.read(files.join(root, path, "zarr.json")))
    return metadata


def list_chunks(group: zarr.Group, name: str) -> set[tuple[int, int]]:
    """List row and column of the blocks for which an array has a file, without reading the files."""

    async def list_keys() -> list[str]:
        chunks = group.store_path / name / "c"
        return [key async for key in chunks.store.list_prefix(f"{chunks.path}/")]

    indices = [key.split("/c/")[-1].split("/") for key in sync(list_keys())]
    return {(int(i), int(j)) for i, j, *inner in indices if all(part.isdecimal() for part in inner)}


def count_statuses(statuses: npt.NDArray[np.uint8], names: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Yield each status and how many tiles have it, in the order of the codes."""
    yield from zip(names, np.bincount(statuses.ravel(), minlength=len(names)).tolist(), strict=True)
