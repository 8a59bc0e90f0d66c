"""The class shares of the parts of tiles, read from a label set into memory: one byte a class and part."""

import json
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from geokr.dataset.layout import label_store
from geokr.storage import files

Shares = npt.NDArray[np.uint8]
AHEAD = 64
"""Scenes whose arrays are opened ahead of the one that is read."""


def read_part_labels(
    dataset: str,
    label_set: str,
    scenes: Sequence[str],
    scene: npt.NDArray[np.int32],
    row: npt.NDArray[np.int32],
    col: npt.NDArray[np.int32],
    classes: Sequence[str],
    chosen: Sequence[int],
    grid: int,
) -> Shares:
    """Read the areas of classes in the grid x grid parts of tiles: (tile, grid, grid, class), see `create_labels`.

    scene, row, col: (tile,), the place of each tile; scene is an index into `scenes`. classes: those of the index.
    chosen: the columns to read. A finer grid of a scene is averaged, and a coarser one is repeated: then parts share
    what is known of both. Raises ValueError naming the scene if its labels have no parts, or other classes.
    """
    root = files.join(dataset, label_store(label_set))
    store = ts.KvStore.open(files.kvstore_spec(root)).result()
    result = np.empty((len(scene), grid, grid, len(chosen)), np.uint8)
    # The tiles of a scene are one run of the index.
    edges = np.flatnonzero(np.diff(scene)) + 1
    runs = [*zip([0, *edges], [*edges, len(scene)], strict=True)] if len(scene) else []
    opened = deque((run, _open(store, root, scenes[scene[run[0]]])) for run in runs[:AHEAD])
    for number in range(len(runs)):
        run, (group, array) = opened.popleft()
        name = scenes[scene[run[0]]]
        try:
            areas = np.asarray(array.result().read().result())
            its_classes = json.loads(group.result().value)["attributes"]["classes"]
        except ValueError as error:  # tensorstore raises it for every fault
            message = str(error).split(" [")[0]
            if message.startswith("NOT_FOUND"):
                message = "its labels have no parts; label it again with geokr label"
            raise ValueError(f"{root}/{name}: {message}") from error
        if its_classes != [*classes]:
            raise ValueError(
                f"{root}/{name}: its labels have the classes {', '.join(its_classes)}, and the index has "
                f"{', '.join(classes)}; run geokr label again"
            )
        tiles = slice(*run)
        result[tiles] = resample(areas[row[tiles], col[tiles]][..., list(chosen)], grid)
        opened.extend(
            (following, _open(store, root, scenes[scene[following[0]]])) for following in runs[number + AHEAD :][:1]
        )
    return result


def _open(store: Any, root: str, scene: str) -> tuple[Any, Any]:
    """The futures of the metadata document of a scene and of its opened parts."""
    kvstore = files.kvstore_spec(files.join(root, scene, "fraction_grid"))
    array = ts.open({"driver": "zarr3", "kvstore": kvstore, "recheck_cached_data": False}, read=True)
    return store.read(f"{scene}/zarr.json"), array


def resample(areas: Shares, grid: int) -> Shares:
    """Average or repeat parts: (n, grid, grid, class) from (n, g, g, class) uint8. Sums over classes are rounded."""
    n, g, classes = len(areas), areas.shape[1], areas.shape[3]
    if g <= grid:
        return areas.repeat(grid // g, axis=1).repeat(grid // g, axis=2)
    sums = np.cumsum(areas, axis=-1, dtype=np.float64)
    means = sums.reshape(n, grid, g // grid, grid, g // grid, classes).mean(axis=(2, 4))
    units: Shares = np.diff(np.rint(means), axis=-1, prepend=0.0).astype(np.uint8)
    return units
