"""The loader on the same tiles in one scene and in 400 scenes, each scene one shard of nine tiles.

`main` is the processor time of the main thread for a batch of 256, `prepare` that of the loader's own thread until the
batch is requested. The tiles of both are compared first. The goal is a ratio of 1.3 between the rates.
"""

import json
import statistics
import time
import zlib
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from geokr.dataset import store
from geokr.dataset.index import write_index
from geokr.dataset.layout import DATASET, SCHEMA, TILES
from geokr.loading.loader import TileLoader
from geokr.loading.pixels import PendingRead, TileReader
from geokr.loading.selection import Selection

SCENES = 400
SIDE = 3
"""Rows and columns of tiles of a scene, and of a shard."""
BATCH = 256
GOAL = 1.3


def measure_scenes(images: npt.NDArray[np.uint8], folder: Path, rounds: int) -> int:
    """Write both data sets, compare them, measure them in turns, and print. Returns the exit status.

    images: (tile, band, y, x). They are repeated until there are enough.
    """
    tiles = np.resize(np.arange(len(images)), SCENES * SIDE * SIDE)
    loaders = {}
    for scenes in (1, SCENES):
        write_scenes(folder / f"scenes-{scenes}", images, tiles.reshape(scenes, -1))
        loaders[scenes] = TileLoader(folder / f"scenes-{scenes}", Selection("train"), batch=BATCH, prefetch=4)
    checksums = {scenes: sorted(list_checksums(loader)) for scenes, loader in loaders.items()}
    equal = checksums[1] == checksums[SCENES]
    figures: dict[int, list[tuple[float, float, float]]] = {scenes: [] for scenes in loaders}
    for number in range(rounds):
        for scenes, loader in loaders.items():
            figures[scenes].append(measure_epoch(loader, number))
    rates = {}
    for scenes, rows in figures.items():
        rates[scenes], main, prepare = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"case=scenes-{scenes} rate={rates[scenes]:.0f} unit=tiles/s main={main:.2f} ms prepare={prepare:.2f} ms")
    ratio = statistics.median(a[0] / b[0] for a, b in zip(figures[1], figures[SCENES], strict=True))
    print(f"case=scenes-1-{SCENES} ratio={ratio:.2f} equal={'yes' if equal else 'NO'} goal={GOAL}")
    return 0 if equal else 1


def write_scenes(root: Path, images: npt.NDArray[np.uint8], tiles: npt.NDArray[np.int64]) -> None:
    """Write a data set. tiles: (scene, n), numbers of the images of each scene."""
    scenes, count = tiles.shape
    columns = count // SIDE if scenes > 1 else int(np.sqrt(count) // SIDE * SIDE)
    rows, target = count // columns, f"{root}/{TILES}"
    attributes = {"bands": ["blue", "green", "red", "nir"], "tile": images.shape[-1], "stride": images.shape[-1]}
    for number, its_tiles in enumerate(tiles):
        scene = f"scene-{number:03d}"
        layout: dict[str, Any] = {"bands": images.shape[1], "tile": images.shape[-1], "block": SIDE, "dtype": "uint8"}
        store.create_tiles(target, scene, shape=(rows, columns), attributes=attributes, **layout)
        cells = its_tiles.reshape(rows, columns)
        for top, left in product(range(0, rows, SIDE), range(0, columns, SIDE)):
            block = slice(top, top + SIDE), slice(left, left + SIDE)
            store.write_block(target, scene, *block, {"image": images[cells[block]]}, np.ones((SIDE, SIDE), np.uint8))
    store.consolidate(target)
    at, row, col = np.indices((scenes, rows, columns)).reshape(3, -1)
    names = np.array([f"scene-{number:03d}" for number in range(scenes)], object)[at]
    index: dict[str, Any] = {"tile": np.arange(tiles.size).astype(str).astype(object), "scene": names}
    index |= {"row": row.astype(np.int32), "col": col.astype(np.int32), "split": np.full(tiles.size, "train", object)}
    index |= {name: np.ones(tiles.size, np.float32) for name in ("known", "land")}
    write_index(root, index, [shapely.box(0, 0, 1, 1)] * tiles.size)
    summary = {"schema": SCHEMA, "classes": ["land"], "colours": ["#888888"], "label_set": "made_2020"}
    (root / DATASET).write_text(json.dumps(summary), encoding="utf-8")


def list_checksums(loader: TileLoader) -> list[int]:
    unshuffled = TileLoader(loader.datasets, Selection("train"), batch=BATCH, shuffle=False)
    return [zlib.crc32(tile.tobytes()) for batch in unshuffled for tile in batch.image.numpy()]


def measure_epoch(loader: TileLoader, number: int) -> tuple[float, float, float]:
    """Read an epoch. Returns tiles/s, and the processor time for a batch in the main thread and to prepare it, ms."""
    prepared = []
    request = TileReader.request

    def timed(reader: TileReader, *arguments: Any) -> PendingRead:
        began = time.thread_time()
        read = request(reader, *arguments)
        prepared.append(time.thread_time() - began)
        return read

    TileReader.request = timed  # type: ignore[method-assign, assignment]
    try:
        began, main = time.perf_counter(), time.thread_time()
        batches = sum(1 for _ in loader.epoch(number))
        main, duration = time.thread_time() - main, time.perf_counter() - began
    finally:
        TileReader.request = request  # type: ignore[method-assign]
    return batches * BATCH / duration, 1e3 * main / batches, 1e3 * statistics.median(prepared)
