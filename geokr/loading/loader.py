"""Tile shards to batches: what is read, in its order, as tensors."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from geokr.dataset.layout import TILES
from geokr.loading.order import (
    DRAW,
    ORDER,
    PAIRS,
    Companions,
    Positions,
    class_probabilities,
    draw_tiles,
    find_companions,
    make_generator,
    shuffle_by_shard,
)
from geokr.loading.pixels import PendingRead, TileReader
from geokr.loading.selection import Selection, Tiles, select_tiles

log = logging.getLogger(__name__)

RGB = ("red", "green", "blue")


@dataclass(frozen=True, slots=True)
class Batch:
    """Tiles with their labels, on the host, in pinned memory where there is a GPU."""

    image: torch.Tensor
    """(n, band, y, x) uint8, bands as asked for."""
    fraction: torch.Tensor
    """(n, class) float32, rows sum to 1."""
    known: torch.Tensor
    """(n,) float32: share of the tile's area that the label covers."""
    weight: torch.Tensor
    """(n,) float32: what the tile counts for in a loss; 1 where no weight was asked for."""
    pair: torch.Tensor | None = None
    """Like `image`, of the same places at other dates; None unless pairs were asked for."""


class TileLoader:
    """Batches of tiles.

    Shuffled, an epoch has as many tiles as were selected, in an order that is a function of seed and epoch alone; the
    last ones, that do not fill a batch on every rank, are dropped. Not shuffled, it is every tile once, in the order
    of the index. `world` ranks read disjoint parts of an epoch.

    Without `shuffle_buffer` the order is a random permutation: together the ranks see the same tiles at a step as one
    rank with a batch `world` times as large, and within such a step tiles are sorted by place, since order does not
    matter there. With it, tiles come shard after shard, each read once and whole: see `shuffle_by_shard`.
    """

    def __init__(
        self,
        dataset: str | Path,
        selection: Selection,
        *,
        bands: Sequence[str] = RGB,
        batch: int,
        balance: float = 0.0,
        shuffle: bool = True,
        shuffle_buffer: int = 0,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        prefetch: int = 4,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        """selection: which tiles; of pairs, another one of its place comes with each, drawn anew each epoch.

        batch: tiles in a batch of this rank.
        balance: 0 reads each tile once an epoch; 1 draws tiles, some several times and some not at all, such that
        the classes come with equal mass; numbers between are between.
        shuffle_buffer: 0 for a full permutation; else about how many tiles are shuffled in memory, read shard by shard.
        prefetch: batches read ahead.
        on_error: raise where a tile cannot be read, or leave it out of its batch and count it in `skipped`.

        Raises ValueError where no tile is left, naming what was asked for.
        """
        self.dataset, split = str(dataset), selection.split
        self.bands, self.batch, self.shuffle, self.shuffle_buffer = tuple(bands), batch, shuffle, shuffle_buffer
        self.seed, self.rank, self.world, self.prefetch, self.on_error = seed, rank, world, prefetch, on_error
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be raise or skip, got {on_error}")
        if not 0 <= balance <= 1:
            raise ValueError(f"balance must be in 0..1, got {balance:g}")
        if shuffle_buffer and (selection.pairs or not shuffle):
            raise ValueError("a shuffle_buffer is for shuffled tiles without pairs: it reads shard after shard")
        if balance and not shuffle:
            raise ValueError("balanced tiles are drawn at random; they need shuffle")
        self.classes, tiles = select_tiles(dataset, selection)
        self._reader = _open_reader(self.dataset, split, tiles, self.bands)
        self.scenes_left_out: tuple[str, ...] = tuple(self._reader.lacking)
        """Scenes with tiles of this split that lack one of the bands."""
        self.chosen = self._reader.tiles
        """All tiles read, in the order of the index."""
        self._companions: Companions | None = None
        self._candidates = np.arange(len(self.chosen))
        if self.chosen.place is not None and self.chosen.date is not None:
            self._companions = find_companions(self.chosen.place, self.chosen.date)
            self._candidates = np.flatnonzero(self._companions.others)
            if len(self._candidates) == 0:
                raise ValueError(f"{dataset}: split {split} has no place of two dates with bands {', '.join(bands)}")
        self._chance = class_probabilities(self.fraction, balance) if balance else None
        self._shard = np.unique(self._reader.block[self._candidates], axis=0, return_inverse=True)[1].ravel()
        self._told: set[str] = set()
        self.skipped = 0
        """Tiles that could not be read so far, on this rank."""
        if shuffle and len(self) == 0:
            raise ValueError(f"{dataset}: split {split} has {self.tiles} tiles, too few for a batch of {batch * world}")

    @property
    def tiles(self) -> int:
        """Tiles in an epoch, over all ranks."""
        return len(self._candidates)

    @property
    def fraction(self) -> npt.NDArray[np.float32]:
        """(tile, class): the labels of the tiles of an epoch, in the order of the index."""
        return self.chosen.fraction[self._candidates]

    def __len__(self) -> int:
        """Batches in an epoch on this rank. Not shuffled, ranks may differ by one."""
        span = self.batch * self.world
        return self.tiles // span if self.shuffle else len(range(self.rank * self.batch, self.tiles, span))

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def order(self, number: int) -> Positions:
        """Positions in `chosen` in the order of an epoch: over all ranks, with a buffer those of this rank."""
        if not self.shuffle:
            return self._candidates
        drawn = np.arange(self.tiles)
        if self._chance is not None:
            drawn = draw_tiles(self._chance, make_generator(self.seed, number, DRAW))
        rng = make_generator(self.seed, number, ORDER)
        if self.shuffle_buffer:
            own = shuffle_by_shard(self._shard[drawn], self.shuffle_buffer, rng, self.rank, len(self) * self.batch)
        else:
            own = rng.permutation(self.tiles)
        return self._candidates[drawn[own]]

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from batch `start` on; those before it are not read.

        Raises ValueError naming shard and tile where pixels are missing or cannot be read.
        """
        order = self.order(number)
        if self.shuffle_buffer:
            return self._shards(order[start * self.batch :])
        span = self.batch * self.world
        partner = (
            None
            if self._companions is None
            else self._companions.draw_partners(make_generator(self.seed, number, PAIRS))
        )
        steps = (order[i * span : (i + 1) * span] for i in range(start, len(self)))
        return self._scattered((self._part(step) for step in steps), partner)

    def _part(self, step: Positions) -> Positions:
        """This rank's part of the tiles of one step."""
        step = step[np.lexsort((self.chosen.col[step], self.chosen.row[step], self.chosen.scene[step]))]
        return step[self.rank * self.batch : (self.rank + 1) * self.batch]

    def statistics(self, tiles: int = 1024) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each band, over up to `tiles` tiles drawn by the seed; pixels in 0..1.

        The same on every rank and for every size of batch.
        """
        chosen = self._candidates[make_generator(self.seed, 0, ORDER).permutation(self.tiles)[:tiles]]
        counts = np.zeros((len(self.bands), 256), dtype=np.int64)
        for batch in self._scattered(chosen[i : i + 64] for i in range(0, len(chosen), 64)):
            for band in range(len(self.bands)):
                counts[band] += np.bincount(batch.image[:, band].numpy().ravel(), minlength=256)
        level = np.arange(256) / 255
        weight = counts / counts.sum(axis=1, keepdims=True)
        mean = weight @ level
        # A band without contrast would be divided by 0; half a grey level is the noise of 8 bits.
        std = np.maximum(np.sqrt(np.maximum(weight @ level**2 - mean**2, 0)), 0.5 / 255)
        return mean.tolist(), std.tolist()

    def _scattered(self, parts: Iterable[Positions], partner: Positions | None = None) -> Iterator[Batch]:
        """A batch for each array of positions, several of them under way at once."""
        under_way: deque[tuple[list[torch.Tensor], list[PendingRead]]] = deque()
        for part in parts:
            wanted = [part] if partner is None else [part, partner[part]]
            images = [self._empty(len(part)) for _ in wanted]
            reads = [self._reader.request(*its) for its in zip(wanted, (i.numpy() for i in images), strict=True)]
            under_way.append((images, reads))
            if len(under_way) > self.prefetch:
                yield self._finish(*under_way.popleft())
        while under_way:
            yield self._finish(*under_way.popleft())

    def _finish(self, images: list[torch.Tensor], reads: list[PendingRead]) -> Batch:
        wrong = {row: why for read in reads for row, why in self._reader.finish(read).items()}
        return self._batch(reads[0].positions, images, wrong)

    def _shards(self, order: Positions) -> Iterator[Batch]:
        """Batches of consecutive positions; each shard is read at its first tile and kept until its last one."""
        steps = len(order) // self.batch
        shard = np.unique(self._reader.block[order], axis=0, return_inverse=True)[1].ravel()
        by_shard = np.argsort(shard, kind="stable")
        runs = np.split(by_shard, np.flatnonzero(np.diff(shard[by_shard])) + 1)
        slot = np.empty(len(order), dtype=np.int64)
        tiles_of: list[Positions] = []
        for run in runs:  # a tile that was drawn several times is read once
            unique, slot[run] = np.unique(order[run], return_inverse=True)
            tiles_of.append(unique)
        begins: dict[int, list[int]] = {}
        for number, run in enumerate(runs):
            begins.setdefault(int(run[0]) // self.batch, []).append(number)
        last = [int(run[-1]) // self.batch for run in runs]
        held: dict[int, PendingRead] = {}
        broken: dict[int, dict[int, str]] = {}
        for ahead in range(steps + self.prefetch):
            for number in begins.get(ahead, ()):
                target = np.empty((len(tiles_of[number]), *self._reader.tile), dtype=np.uint8)
                held[number] = self._reader.request(tiles_of[number], target)
            step = ahead - self.prefetch
            if step < 0:
                continue
            mine = slice(step * self.batch, (step + 1) * self.batch)
            image, wrong = self._empty(self.batch), {}
            target = image.numpy()
            for row, (number, its) in enumerate(zip(shard[mine].tolist(), slot[mine].tolist(), strict=True)):
                if number not in broken:
                    broken[number] = self._reader.finish(held[number])
                if its in broken[number]:
                    wrong[row] = broken[number][its]
                else:
                    target[row] = held[number].target[its]
            for number in set(shard[mine].tolist()):
                if last[number] == step:
                    del held[number], broken[number]
            yield self._batch(order[mine], [image], wrong)

    def _batch(self, positions: Positions, images: list[torch.Tensor], wrong: dict[int, str]) -> Batch:
        """A batch of tiles whose pixels are there, less those that are wrong: row -> why."""
        if wrong and self.on_error == "raise":
            raise ValueError(next(iter(wrong.values())))
        if wrong:
            for shard in {self._reader.shard(positions[row]) for row in wrong} - self._told:
                log.warning("%s: tiles cannot be read, left out", shard)
                self._told.add(shard)
            if len(wrong) == len(positions):
                raise ValueError(f"no tile of a batch can be read: {next(iter(wrong.values()))}")
            self.skipped += len(wrong)
            right = np.setdiff1d(np.arange(len(positions)), list(wrong))
            positions, images = positions[right], [_pin(image[right]) for image in images]
        tiles = self.chosen
        fraction, known, weight = (
            _pin(torch.from_numpy(values[positions])) for values in (tiles.fraction, tiles.known, tiles.weight)
        )
        return Batch(images[0], fraction, known, weight, images[1] if len(images) > 1 else None)

    def _empty(self, tiles: int) -> torch.Tensor:
        shape = (tiles, *self._reader.tile)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available())


def _pin(values: torch.Tensor) -> torch.Tensor:
    return values.pin_memory() if torch.cuda.is_available() else values


def _open_reader(dataset: str, split: str, tiles: Tiles, bands: Sequence[str]) -> TileReader:
    pixels = TileReader(f"{dataset}/{TILES}", tiles, bands)
    if pixels.lacking:
        log.warning(
            "%s: %d scenes of split %s lack a band of %s, left out",
            dataset,
            len(pixels.lacking),
            split,
            ", ".join(bands),
        )
    return pixels


class TileDataset(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Tiles by number, for a `DataLoader` of PyTorch or Lightning, with its own sampler.

    A sample is {"image": (band, y, x) uint8, "fraction": (class,) float32, "known", "weight": float32}. Batches are
    read at once, in tensorstore's threads: `num_workers=0` is as it should be. Worker processes must not be forked
    (`multiprocessing_context="spawn"`).
    """

    def __init__(self, dataset: str | Path, selection: Selection, *, bands: Sequence[str] = RGB) -> None:
        """selection: without pairs."""
        self.bands = tuple(bands)
        self.classes, tiles = select_tiles(dataset, selection)
        self._reader: TileReader | None = _open_reader(str(dataset), selection.split, tiles, self.bands)
        self.chosen = self._reader.tiles
        self._root = self._reader.root

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}  # a worker process opens the shards for itself

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """Samples by number. Raises ValueError naming shard and tile where one cannot be read."""
        self._reader = self._reader or TileReader(self._root, self.chosen, self.bands)
        positions = np.asarray(indices, dtype=np.int64)
        image = torch.empty((len(positions), *self._reader.tile), dtype=torch.uint8)
        if wrong := self._reader.finish(self._reader.request(positions, image.numpy())):
            raise ValueError(next(iter(wrong.values())))
        arrays = {
            name: torch.from_numpy(getattr(self.chosen, name)[positions]) for name in ("fraction", "known", "weight")
        }
        return [
            {"image": image[i], **{name: values[i] for name, values in arrays.items()}} for i in range(len(positions))
        ]
