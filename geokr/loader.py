"""Tile shards to batches: which tiles a run reads, in what order, and their pixels as tensors.

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
import pyarrow as pa
import pyarrow.compute as pc
import tensorstore as ts
import torch

from geokr.index import INDEX, TILES, read_index, read_summary

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
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        prefetch: int = 4,
    ) -> None:
        """batch: tiles in a batch of this rank. classes: those to learn, over which shares are renormalised;
        none given, all of the data set's. prefetch: batches read ahead.

        Raises ValueError where no tile is left: none in the split, none of these classes, no scene with these bands.
        """
        self.dataset, self.split = str(dataset), split
        self.bands, self.batch, self.shuffle = tuple(bands), batch, shuffle
        self.seed, self.rank, self.world, self.prefetch = seed, rank, world, prefetch
        known_classes = read_summary(dataset)["classes"]
        self.classes: tuple[str, ...] = tuple(classes or known_classes)
        if unknown := [name for name in self.classes if name not in known_classes]:
            raise ValueError(f"{dataset} has no class {', '.join(unknown)}, only {', '.join(known_classes)}")

        rows = self._select(min_known)
        encoded = rows["scene"].combine_chunks().dictionary_encode()
        names = encoded.dictionary.to_pylist()
        self._root = f"{self.dataset}/{TILES}"
        self._arrays, lacking = _open_scenes(self._root, names, self.bands)
        self.scenes_left_out: tuple[str, ...] = tuple(lacking)
        """Scenes with tiles of this split that lack one of the bands."""
        keep = np.array([name in self._arrays for name in names])[encoded.indices.to_numpy()]
        if not keep.any():
            found = "; ".join(sorted({", ".join(bands) for bands in lacking.values()}))
            raise ValueError(
                f"{dataset}: no scene of split {split} has bands {', '.join(self.bands)}; they have {found}"
            )
        if lacking:
            log.warning("%s: %d scenes lack a band of %s, left out", dataset, len(lacking), ", ".join(self.bands))
        self._names = names
        self._scene = encoded.indices.to_numpy()[keep]
        self._row, self._col = (rows[name].to_numpy()[keep] for name in ("row", "col"))
        self.known: npt.NDArray[np.float32] = rows["known"].to_numpy()[keep].astype(np.float32)
        share = np.stack([rows[name].to_numpy()[keep] for name in self.classes], axis=1).astype(np.float64)
        self.share: npt.NDArray[np.float32] = (share / share.sum(axis=1, keepdims=True)).astype(np.float32)
        """(tile, class) float32: the labels of all tiles read, in the order of the index."""
        self._tile: tuple[int, ...] = next(iter(self._arrays.values())).shape[2:]
        if shuffle and len(self) == 0:
            raise ValueError(f"{dataset}: split {split} has {self.tiles} tiles, too few for a batch of {batch * world}")

    def _select(self, min_known: float) -> pa.Table:
        rows = read_index(self.dataset, ["scene", "row", "col", "known", "split", *self.classes])
        rows = rows.filter(pc.and_(pc.equal(rows["split"], self.split), pc.greater_equal(rows["known"], min_known)))
        if rows.num_rows == 0:
            raise ValueError(f"{self.dataset}/{INDEX}: no tile of split {self.split} with known >= {min_known:g}")
        total = np.sum([rows[name].to_numpy() for name in self.classes], axis=0)
        if not (total > 0).any():
            raise ValueError(f"{self.dataset}: no tile of split {self.split} holds any of {', '.join(self.classes)}")
        return rows.filter(pa.array(total > 0))

    @property
    def tiles(self) -> int:
        """Tiles in an epoch, over all ranks."""
        return len(self._scene)

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
        step = step[np.lexsort((self._col[step], self._row[step], self._scene[step]))]
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
        bounds = np.flatnonzero(np.diff(self._scene[part], prepend=-1, append=-1))
        for first, end in pairwise(bounds):
            here = part[first:end]
            scene = self._names[self._scene[here[0]]]
            # One read a scene: tensorstore then opens each shard, and reads its index, once for all its tiles.
            wanted = self._arrays[scene].vindex[self._row[here], self._col[here]]
            pending.append((scene, here, ts.array(target[first:end]).write(wanted)))
        share, known = torch.from_numpy(self.share[part]), torch.from_numpy(self.known[part])
        return Batch(image, share.pin_memory() if pinned else share, known), pending

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
            row, col = int(self._row[position]), int(self._col[position])
            try:
                self._arrays[scene][row, col].read().result()
            except Exception as its:
                reason = str(its).split(" [")[0]
                return (
                    f"{self._root}/{scene}: tile ({row}, {col}) cannot be read; build the scene's tiles again: {reason}"
                )
        return f"{self._root}/{scene}: a read failed, and went well when tried again: {error}"


def _kvstore(root: str) -> dict[str, str] | str:
    """tensorstore's name for a directory or URL."""
    return root + "/" if "://" in root else {"driver": "file", "path": f"{Path(root).resolve()}/"}


def _open_scenes(
    root: str, scenes: Sequence[str], bands: tuple[str, ...]
) -> tuple[Mapping[str, Any], Mapping[str, tuple[str, ...]]]:
    """The scenes' images (row, col, band, y, x) with their bands as asked for, and the bands of scenes that lack one.

    Raises ValueError naming the scene that is not in the store, or whose tiles differ in size or type.
    """
    context = ts.Context({"cache_pool": {"total_bytes_limit": CACHE}})
    store = ts.KvStore.open(_kvstore(root), context=context).result()
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
