"""Tile shards to batches.

tensorstore reads and decodes in threads of its own, so there are no worker processes; a process that
has read with it must not be forked.
"""

import json
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts
import torch

from geokr import files
from geokr.index import TILES
from geokr.selection import Weighting, choose

CACHE = 2**27
"""Bytes of decoded chunks and shard indexes kept. Order is random, so the indexes are what it is for."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """Tiles with their labels, on the host, in pinned memory where there is a GPU."""

    image: torch.Tensor
    """(n, band, y, x) uint8, bands as asked for."""
    share: torch.Tensor
    """(n, class) float32, rows sum to 1."""
    known: torch.Tensor
    """(n,) float32: share of the tile's area that the label covers."""
    weight: torch.Tensor
    """(n,) float32: what the tile counts for in a loss; 1 where no weight was asked for."""
    pair: torch.Tensor | None = None
    """Like `image`, of the same places at other dates; None unless pairs were asked for."""


class TileLoader:
    """Batches of the tiles of one split.

    Shuffled, an epoch is a random permutation of all tiles, a function of seed and epoch alone; the last
    tiles that do not fill a batch on every rank are dropped. Not shuffled, it is every tile once, in the
    order of the index. `world` ranks read disjoint parts of it, so that together they see the same tiles
    at a step as one rank with a batch `world` times as large; within such a step the tiles are sorted by
    place, since order does not matter there.
    """

    def __init__(
        self,
        dataset: str | Path,
        split: str,
        *,
        bands: Sequence[str] = ("red", "green", "blue"),
        batch: int,
        classes: Sequence[str] = (),
        min_known: float = 0.0,
        where: Sequence[str] = (),
        weight: Weighting = (),
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        prefetch: int = 4,
    ) -> None:
        """batch: tiles in a batch of this rank. classes: those to learn, over which shares are renormalised;
        none given, all of the data set's. where: conditions on columns of the index, such as `gsd<=4` or
        `satellite=GF1|GF2`, all of which a tile must meet. weight: columns of the index whose product is a tile's
        weight, or a function. prefetch: batches read ahead.

        Raises ValueError where no tile is left: none in the split, none of these classes, no scene with these bands.
        """
        self.dataset, self.split = str(dataset), split
        self.bands, self.batch, self.shuffle = tuple(bands), batch, shuffle
        self.seed, self.rank, self.world, self.prefetch = seed, rank, world, prefetch
        self.classes, tiles = choose(dataset, split, classes=classes, min_known=min_known, where=where, weight=weight)
        self._root = f"{self.dataset}/{TILES}"
        self._arrays, lacking = _open_scenes(self._root, tiles.scenes, self.bands)
        self.scenes_left_out: tuple[str, ...] = tuple(lacking)
        """Scenes with tiles of this split that lack one of the bands."""
        if lacking:
            there = np.array([name in self._arrays for name in tiles.scenes])[tiles.scene]
            if not there.any():
                found = "; ".join(sorted({", ".join(bands) for bands in lacking.values()}))
                raise ValueError(
                    f"{dataset}: no scene of split {split} has bands {', '.join(self.bands)}; they have {found}"
                )
            log.warning("%s: %d scenes lack a band of %s, left out", dataset, len(lacking), ", ".join(self.bands))
            tiles = tiles.only(there)
        self.chosen = tiles
        """All tiles read, in the order of the index."""
        self._tile: tuple[int, ...] = next(iter(self._arrays.values())).shape[2:]
        if shuffle and len(self) == 0:
            raise ValueError(f"{dataset}: split {split} has {self.tiles} tiles, too few for a batch of {batch * world}")

    @property
    def tiles(self) -> int:
        """Tiles in an epoch, over all ranks."""
        return len(self.chosen)

    @property
    def share(self) -> npt.NDArray[np.float32]:
        """(tile, class): the labels of all tiles read, in the order of the index."""
        return self.chosen.share

    def __len__(self) -> int:
        """Batches in an epoch on this rank. Not shuffled, ranks may differ by one."""
        span = self.batch * self.world
        return self.tiles // span if self.shuffle else len(range(self.rank * self.batch, self.tiles, span))

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def order(self, number: int) -> npt.NDArray[np.int64]:
        """Positions of all tiles in the order of an epoch, over all ranks."""
        if not self.shuffle:
            return np.arange(self.tiles)
        return np.random.default_rng([self.seed, number]).permutation(self.tiles)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from batch `start` on; those before it are not read.

        Raises ValueError naming scene and tile where pixels are missing or cannot be read.
        """
        order, span = self.order(number), self.batch * self.world
        return self._read(self._part(order[i * span : (i + 1) * span]) for i in range(start, len(self)))

    def _part(self, step: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """This rank's part of the tiles of one step."""
        step = step[np.lexsort((self.chosen.col[step], self.chosen.row[step], self.chosen.scene[step]))]
        return step[self.rank * self.batch : (self.rank + 1) * self.batch]

    def statistics(self, tiles: int = 1024) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each band, over up to `tiles` tiles drawn by the seed; pixels in 0..1.

        The same on every rank and for every size of batch.
        """
        chosen = self.order(0)[:tiles]
        counts = np.zeros((len(self.bands), 256), dtype=np.int64)
        for batch in self._read(chosen[i : i + 64] for i in range(0, len(chosen), 64)):
            for band in range(len(self.bands)):
                counts[band] += np.bincount(batch.image[:, band].numpy().ravel(), minlength=256)
        level = np.arange(256) / 255
        weight = counts / counts.sum(axis=1, keepdims=True)
        mean = weight @ level
        # A band without contrast would be divided by 0; half a grey level is the noise of 8 bits.
        std = np.maximum(np.sqrt(np.maximum(weight @ level**2 - mean**2, 0)), 0.5 / 255)
        return mean.tolist(), std.tolist()

    def _read(self, parts: Iterable[npt.NDArray[np.int64]]) -> Iterator[Batch]:
        """A batch for each array of positions, several of them under way at once."""
        under_way: deque[tuple[Batch, list[tuple[str, npt.NDArray[np.int64], Any]]]] = deque()
        for part in parts:
            under_way.append(self._request(part))
            if len(under_way) > self.prefetch:
                yield self._finish(*under_way.popleft())
        while under_way:
            yield self._finish(*under_way.popleft())

    def _request(self, part: npt.NDArray[np.int64]) -> tuple[Batch, list[tuple[str, npt.NDArray[np.int64], Any]]]:
        """A batch whose pixels are being read, and for each scene in it its tiles and the pending read."""
        pinned = torch.cuda.is_available()
        image = torch.empty((len(part), len(self.bands), *self._tile[1:]), dtype=torch.uint8, pin_memory=pinned)
        target = image.numpy()
        pending = []
        bounds = np.flatnonzero(np.diff(self.chosen.scene[part], prepend=-1, append=-1))
        for first, end in pairwise(bounds):
            here = part[first:end]
            scene = self.chosen.scenes[self.chosen.scene[here[0]]]
            # One read a scene: tensorstore then opens each shard, and reads its index, once for all its tiles.
            wanted = self._arrays[scene].vindex[self.chosen.row[here], self.chosen.col[here]]
            pending.append((scene, here, ts.array(target[first:end]).write(wanted)))
        labels = [
            torch.from_numpy(values[part]) for values in (self.chosen.share, self.chosen.known, self.chosen.weight)
        ]
        return Batch(image, *(label.pin_memory() if pinned else label for label in labels)), pending

    def _finish(self, batch: Batch, pending: list[tuple[str, npt.NDArray[np.int64], Any]]) -> Batch:
        for scene, positions, future in pending:
            try:
                future.result()
            except Exception as error:  # tensorstore raises ValueError, IndexError, OSError and others
                raise ValueError(self._why(scene, positions, error)) from error
        return batch

    def _why(self, scene: str, positions: npt.NDArray[np.int64], error: Exception) -> str:
        """A sentence naming the first tile of a scene's read that cannot be read."""
        for position in positions:
            row, col = int(self.chosen.row[position]), int(self.chosen.col[position])
            try:
                self._arrays[scene][row, col].read().result()
            except Exception as its:
                reason = str(its).split(" [")[0]
                return (
                    f"{self._root}/{scene}: tile ({row}, {col}) cannot be read; build the scene's tiles again: {reason}"
                )
        return f"{self._root}/{scene}: a read failed, and went well when tried again: {error}"


def _open_scenes(
    root: str, scenes: Sequence[str], bands: tuple[str, ...]
) -> tuple[Mapping[str, Any], Mapping[str, tuple[str, ...]]]:
    """The scenes' images (row, col, band, y, x) with their bands as asked for, and the bands of scenes that lack one.

    Raises ValueError naming the scene that is not in the store, or whose tiles differ in size or type.
    """
    context = ts.Context({"cache_pool": {"total_bytes_limit": CACHE}})
    store = ts.KvStore.open(files.kvstore(root), context=context).result()
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
        expected = expected or (array.shape[3:], array.dtype)
        if (array.shape[3:], array.dtype) != expected or array.dtype != ts.uint8:
            raise ValueError(
                f"{root}/{scene}: tiles of {array.shape[3:]} px in {array.dtype.name}, "
                f"expected {expected[0]} px in uint8 as in the other scenes"
            )
        arrays[scene] = _pick(array, order[scene])
    return arrays, lacking


def _pick(array: Any, bands: list[int]) -> Any:
    """An image's bands, by position. Evenly spaced ones as a slice: tensorstore copies a list 2.5 times as slowly."""
    step = bands[1] - bands[0] if len(bands) > 1 else 1
    if bands != [bands[0] + step * i for i in range(len(bands))]:
        return array[:, :, bands]
    end = bands[-1] + (1 if step > 0 else -1)  # -1 is not the last one in tensorstore: it comes before the first
    picked = array[:, :, bands[0] : end : step]
    return picked[ts.d["band"].translate_to[0]]
