"""What is there in a store: scenes, finished blocks, whole arrays, metadata."""

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
"""A chunk of `read_status` by its key."""


@dataclass(frozen=True, slots=True)
class SceneContents:
    """What is there of a scene in a store."""

    attributes: dict[str, Any]
    shape: tuple[int, ...]
    """Rows and columns of tiles."""
    blocks: frozenset[tuple[int, int]]
    """Row and column of the blocks that are done: their part of `read_status` exists, and is non-zero, since it is only
    ever written whole."""


def scene_contents(root: str, names: Iterable[str]) -> dict[str, SceneContents]:
    """What is there of the named scenes, by name; scenes whose groups are not whole are left out.

    Reads no chunk, and of each scene two small files and one listing: a store of a thousand scenes takes a second.
    """
    try:
        return sync(_scene_contents(root, list(names)))
    except FileNotFoundError:  # no store yet
        return {}


async def _scene_contents(root: str, names: list[str]) -> dict[str, SceneContents]:
    there = open_store(root)
    prototype = default_buffer_prototype()

    async def one(name: str) -> tuple[str, SceneContents] | None:
        documents = [await there.get(f"{name}/{part}", prototype) for part in ("zarr.json", "status/zarr.json")]
        if None in documents:
            return None
        group, array = (json.loads(document.to_bytes()) for document in documents if document is not None)
        done = set()
        async for key in there.list_prefix(f"{name}/status/c/"):
            if match := CHUNK.search(key):
                done.add((int(match[1]), int(match[2])))
        return name, SceneContents(group["attributes"], tuple(array["shape"]), frozenset(done))

    return dict(filter(None, await concurrent_map([(name,) for name in names], one, 64)))


def list_scenes(root: str) -> list[str]:
    """Names of the scenes in a store, sorted, by listing alone. Empty where the store does not exist."""

    async def listed() -> list[str]:
        return [name async for name in open_store(root).list_dir("")]

    try:
        return sorted(name.rstrip("/") for name in sync(listed()) if not name.startswith("zarr.json"))
    except FileNotFoundError:
        return []


def read_status(group: zarr.Group) -> npt.NDArray[np.uint8]:
    """(row, col) uint8: see TILE_STATUS and LABEL_STATUS."""
    return np.asarray(group["status"][:])  # type: ignore[index]


def open_array(root: str, array: str) -> Any:
    """An array of a store, opened by tensorstore: with its own threads, and without caching."""
    spec = {"driver": "zarr3", "kvstore": files.kvstore_spec(files.join(root, array)), "recheck_cached_data": False}
    return ts.open(spec, read=True, context=_UNCACHED)


_UNCACHED = ts.Context({"cache_pool": {"total_bytes_limit": 0}})


def read_arrays(root: str, scene: str, *names: str) -> list[npt.NDArray[Any]]:
    """Whole arrays of a scene, read at once. Raises StoreError naming the scene where one is not there or damaged."""
    try:
        opening = [open_array(root, f"{scene}/{name}") for name in names]
        reading = [array.result().read() for array in opening]
        return [np.asarray(values.result()) for values in reading]
    except ValueError as error:  # what tensorstore raises, whatever happened
        said = str(error).split(" [")[0]
        why = "no such scene in the store" if said.startswith("NOT_FOUND") else f"cannot be read: {said}"
        raise StoreError(f"{root}/{scene}: {why}") from error


def read_consolidated(root: str) -> dict[str, Any]:
    """What a store's root says of the groups and arrays in it: path -> metadata; nothing where it says none."""
    document = json.loads(files.read(files.join(root, "zarr.json")))
    found: dict[str, Any] = (document.get("consolidated_metadata") or {}).get("metadata", {})
    return found


def read_attributes(root: str, scene: str) -> dict[str, Any]:
    """What a scene's group says of itself. Raises StoreError naming the path where there is none."""
    try:
        found: dict[str, Any] = read_metadata(root, scene)["attributes"]
    except FileNotFoundError as error:
        raise StoreError(f"{root}/{scene}: no such scene in the store") from error
    return found


def read_metadata(root: str, path: str) -> dict[str, Any]:
    """What a group or array says of itself."""
    found: dict[str, Any] = json.loads(files.read(files.join(root, path, "zarr.json")))
    return found


def list_chunks(group: zarr.Group, name: str) -> set[tuple[int, int]]:
    """Row and column of the blocks of which an array has a file, by listing alone."""

    async def listed() -> list[str]:
        place = group.store_path / name / "c"
        return [key async for key in place.store.list_prefix(f"{place.path}/")]

    parts = [key.split("/c/")[-1].split("/") for key in sync(listed())]
    return {(int(i), int(j)) for i, j, *rest in parts if all(part.isdecimal() for part in rest)}


def count_statuses(statuses: npt.NDArray[np.uint8], names: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """How many tiles have each status, in the order of the codes."""
    yield from zip(names, np.bincount(statuses.ravel(), minlength=len(names)).tolist(), strict=True)
