"""Pixels of tiles from their shards.

tensorstore reads and decodes in threads of its own, so there are no worker processes; its threads do not live
on in a process that is forked off, where a read would wait for ever.
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from geokr.loading.order import Positions
from geokr.loading.selection import Tiles
from geokr.storage import files

CACHE = 2**27
"""Bytes of decoded chunks and shard indexes kept. Order is random, so the indexes are what it is for."""

log = logging.getLogger(__name__)


class _Threads:
    """Whether tensorstore has threads in this process, and whether they were lost in a fork."""

    started = False
    lost = False


def _note_fork() -> None:
    _Threads.lost = _Threads.started


os.register_at_fork(after_in_child=_note_fork)


def _check_threads() -> None:
    if _Threads.lost:
        raise RuntimeError(
            "this process was forked from one that had read tiles, and tensorstore does not survive that; use "
            "num_workers=0, for tensorstore reads in threads of its own, or multiprocessing_context='spawn'"
        )
    _Threads.started = True


@dataclass(frozen=True, slots=True)
class PendingRead:
    """Tiles that are being read into an array."""

    positions: Positions
    target: npt.NDArray[np.uint8]
    """(tile, band, y, x), complete once the futures are."""
    futures: list[tuple[npt.NDArray[np.int64], Any]]
    """Rows of `target`, and the read that fills them."""


class TileReader:
    """The images of the chosen tiles' scenes, opened."""

    def __init__(self, root: str, tiles: Tiles, bands: Sequence[str]) -> None:
        """root: path or URL of the store. bands: those to read, in this order.

        Raises ValueError naming the scene that is not in the store, whose image cannot be opened, or whose tiles
        differ in size or type from another's, and where no scene has all bands.
        """
        _check_threads()
        self.root = root
        context = ts.Context({"cache_pool": {"total_bytes_limit": CACHE}})
        store = ts.KvStore.open(files.kvstore_spec(root), context=context).result()
        self._arrays, self.lacking = _open_scenes(store, context, root, tiles.scenes, tuple(bands))
        """`lacking`: the bands of the scenes that lack one."""
        if not self._arrays:
            found = "; ".join(sorted({", ".join(bands) for bands in self.lacking.values()}))
            raise ValueError(f"{root}: no scene with these tiles has bands {', '.join(bands)}; they have {found}")
        self.tiles = tiles.filter(np.array([name in self._arrays for name in tiles.scenes])[tiles.scene])
        """Those of the tiles that can be read."""
        self.tile: tuple[int, ...] = next(iter(self._arrays.values())).shape[2:]
        """(band, y, x)."""
        sides = np.ones((len(tiles.scenes), 2), dtype=np.int64)
        for number, name in enumerate(tiles.scenes):
            if name in self._arrays:
                sides[number] = self._arrays[name].chunk_layout.write_chunk.shape[:2]
        i, j = self.tiles.row // sides[self.tiles.scene, 0], self.tiles.col // sides[self.tiles.scene, 1]
        self.block = np.stack([self.tiles.scene, i, j], axis=1)
        """(tile, 3): scene, and row and column of its shard there."""

    def shard(self, position: int) -> str:
        """Path or URL of the shard that holds a tile."""
        scene, i, j = self.block[position]
        return f"{self.root}/{self.tiles.scenes[scene]}/image/c/{i}/{j}/0/0/0"

    def request(self, positions: Positions, target: npt.NDArray[np.uint8]) -> PendingRead:
        """Begin to read tiles into an array (tile, band, y, x)."""
        _check_threads()
        tiles, futures = self.tiles, []
        # One read a scene: tensorstore then opens each shard, and reads its index, once for all its tiles, and joins
        # the reads of neighbours in a shard; one of all its tiles reads it in one piece.
        scene = tiles.scene[positions]
        order = np.lexsort((tiles.col[positions], tiles.row[positions], scene))
        bounds = np.flatnonzero(np.diff(scene[order], prepend=-1, append=-1))
        for first, end in pairwise(bounds):
            rows = order[first:end]
            here = positions[rows]
            wanted = self._arrays[tiles.scenes[scene[rows[0]]]].vindex[tiles.row[here], tiles.col[here]]
            futures.append((rows, _rows_of(target, rows).write(wanted)))
        return PendingRead(positions, target, futures)

    def finish(self, read: PendingRead) -> dict[int, str]:
        """Wait for a read. What is wrong with each tile that cannot be read: row of the target -> sentence."""
        wrong: dict[int, str] = {}
        for rows, future in read.futures:
            try:
                future.result()
            except Exception as error:  # tensorstore raises ValueError, IndexError, OSError and others
                before = len(wrong)
                wrong.update(self._again(read, rows))
                if len(wrong) == before:
                    log.warning("%s: a read failed, and went well when tried again: %s", self.root, error)
        return wrong

    def _again(self, read: PendingRead, rows: npt.NDArray[np.int64]) -> Iterator[tuple[int, str]]:
        """Read tile by tile; the rows that cannot be read, and why."""
        for row in rows:
            position = read.positions[row]
            scene = self.tiles.scenes[self.tiles.scene[position]]
            place = int(self.tiles.row[position]), int(self.tiles.col[position])
            try:
                read.target[row] = self._arrays[scene][place].read().result()
            except Exception as error:
                reason = str(error).split(" [")[0]
                yield int(row), f"{self.shard(position)}: tile {place} cannot be read; build it again: {reason}"


def _rows_of(target: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]) -> Any:
    """Rows of an array as what tensorstore writes to. As a slice where they are one: a list takes longer."""
    first = int(rows[0])
    if (rows == np.arange(first, first + len(rows))).all():
        return ts.array(target[first : first + len(rows)])
    return ts.array(target)[rows]


def _open_scenes(
    store: Any, context: Any, root: str, scenes: Sequence[str], bands: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]]:
    """The scenes' images (row, col, band, y, x) with their bands as asked for, and the bands of scenes that lack one.

    Raises ValueError naming the scene that is not in the store, or whose tiles differ in size or type.
    """
    groups = [(scene, store.read(f"{scene}/zarr.json")) for scene in scenes]
    order: dict[str, list[int]] = {}
    lacking: dict[str, tuple[str, ...]] = {}
    for scene, answer in groups:
        found = answer.result()
        if found.state != "value":
            raise ValueError(f"{root}/{scene}: the index lists tiles of this scene, but the store does not have it")
        there = tuple(json.loads(found.value)["attributes"]["bands"])
        if set(bands) <= set(there):
            order[scene] = [there.index(band) for band in bands]
        else:
            lacking[scene] = there
    # A chunk that is not there must raise: the fill value would be a black tile with a real label.
    spec = {"driver": "zarr3", "fill_missing_data_reads": False, "recheck_cached_data": False}
    opening = {
        scene: ts.open({**spec, "kvstore": (store / f"{scene}/image/").spec().to_json()}, context=context, read=True)
        for scene in order
    }
    arrays: dict[str, Any] = {}
    expected: Any = None
    for scene, future in opening.items():
        try:
            array = future.result()
        except Exception as error:
            raise ValueError(f"{root}/{scene}: its image cannot be opened: {str(error).split(' [')[0]}") from error
        if array.dtype != ts.uint8:
            raise ValueError(
                f"{root}/{scene}: tiles in {array.dtype.name}, but training reads 8 bits (see --radiometry)"
            )
        expected = expected or array.shape[3:]
        if array.shape[3:] != expected:
            raise ValueError(
                f"{root}/{scene}: tiles of {array.shape[3:]} px, expected {expected} px as in the other scenes"
            )
        arrays[scene] = _select_bands(array, order[scene])
    return arrays, lacking


def _select_bands(array: Any, bands: list[int]) -> Any:
    """An image's bands, by position. Evenly spaced ones as a slice: tensorstore copies a list 2.5 times as slowly."""
    step = bands[1] - bands[0] if len(bands) > 1 else 1
    if bands != [bands[0] + step * i for i in range(len(bands))]:
        return array[:, :, bands]
    end = bands[-1] + (1 if step > 0 else -1)  # -1 is not the last one in tensorstore: it comes before the first
    picked = array[:, :, bands[0] : end : step]
    return picked[ts.d["band"].translate_to[0]]
