"""Loading tiles from shards into batches of tensors, in a reproducible order."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from geokr.loading.background import iterate_in_thread
from geokr.loading.levels import PixelLevels, measure_levels
from geokr.loading.order import (
    DRAW,
    LARGE,
    ORDER,
    PAIRS,
    Companions,
    Counts,
    LazyOrder,
    Positions,
    class_probabilities,
    draw_lazily,
    draw_permutation,
    draw_tiles,
    find_companions,
    make_generator,
)
from geokr.loading.pixels import PendingRead, open_reader
from geokr.loading.selection import DataSets, Selection, list_datasets, share_scenes, share_tiles
from geokr.loading.shard_order import Drawn, ShardOrder, Shards, group_by_shard
from geokr.loading.shared import share_arrays
from geokr.loading.units import PixelUnits

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """Tiles with their labels in host memory, which is pinned if there is a GPU."""

    image: torch.Tensor
    """(n, band, y, x) uint8 or uint16, with the bands of the loader in its order."""
    fraction: torch.Tensor
    """(n, class) float32, rows sum to 1."""
    known: torch.Tensor
    """(n,) float32: share of the tile's area that its label covers."""
    weight: torch.Tensor
    """(n,) float32: weight of the tile in the loss; 1 by default."""
    pair: torch.Tensor | None = None
    """Like `image`, for the same places at other dates; None unless the selection has `pairs`."""
    year_gap: torch.Tensor | None = None
    """(n,) float32: year of the map minus year of the image, NaN if unknown; None unless the selection has
    `year_gap`."""
    gsd: torch.Tensor | None = None
    """(n,) float32: ground distance of the tile's pixels, m; None unless the selection has `gsd`."""
    parts: torch.Tensor | None = None
    """(n, part row, part column, class) uint8, see `Tiles`; None unless the selection has a `grid`."""

    def arrays(self) -> dict[str, torch.Tensor]:
        """The tensors of the batch by name: each has one row per tile."""
        return {f.name: values for f in fields(self) if (values := getattr(self, f.name)) is not None}


class TileLoader:
    """Batches of tiles.

    With `shuffle`, an epoch has as many tiles as were selected, in an order that depends on the seed and the epoch
    only. The last tiles are dropped if they do not fill a batch on every rank. Without `shuffle`, an epoch has each
    tile once, in the order of the index. The `world` ranks read disjoint parts of an epoch.

    Without `shuffle_buffer` the order is a random permutation. At each step, the ranks together read the same tiles as
    one rank with a batch `world` times as large. Within a step, tiles are sorted by scene, row and column, since their
    order does not matter there. With `shuffle_buffer`, tiles are read shard by shard, each shard once and in one
    piece: see `ShardOrder`.
    """

    def __init__(
        self,
        dataset: DataSets,
        selection: Selection,
        *,
        bands: Sequence[str] = (),
        units: PixelUnits | None = None,
        batch: int,
        side: int = 0,
        balance: float = 0.0,
        mixture: Sequence[float] = (),
        shuffle: bool = True,
        shuffle_buffer: int = 0,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        prefetch: int = 4,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        """dataset: one data set, or several, whose tiles are read as those of one.

        selection: tiles to read; with `pairs`, each comes with a tile of the same place, drawn again every epoch.

        bands: bands to read, in this order; if empty, those of `choose_bands`.
        units: of the pixels of all batches; by default the common ones of the scenes.
        batch: number of tiles in a batch of this rank.
        side: side to which all tiles are resized if the data sets' tiles have unlike sizes, px.
        balance: 0 reads each tile once per epoch. 1 draws tiles, some several times and some not at all, so that the
        classes have equal mass. Values in between give a partial balance.
        mixture: shares of the data sets in an epoch, relative to each other: tiles are drawn, and `balance` is that of
        each data set. Empty: by number of tiles.
        shuffle_buffer: 0 for a full permutation; otherwise about how many tiles, read shard by shard, are shuffled in
        memory.
        prefetch: number of batches to read ahead.
        on_error: if a tile cannot be read, raise an error, or skip it: leave it out of its batch and count it in
        `skipped`.

        Raises ValueError naming the selection if no tile is left.
        """
        self.datasets, split = list_datasets(dataset), selection.split
        """Paths or URLs of the data sets."""
        where = ", ".join(self.datasets)
        self.batch, self.shuffle, self.shuffle_buffer = batch, shuffle, shuffle_buffer
        self.seed, self.rank, self.world, self.prefetch, self.on_error = seed, rank, world, prefetch, on_error
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be raise or skip, got {on_error}")
        if not 0 <= balance <= 1:
            raise ValueError(f"balance must be in 0..1, got {balance:g}")
        if shuffle_buffer and (selection.pairs or not shuffle):
            raise ValueError("a shuffle_buffer is for shuffled tiles without pairs, because it reads shard by shard")
        if (balance or mixture) and not shuffle:
            raise ValueError("balanced and mixed tiles are drawn at random: set shuffle")
        if mixture and len(mixture) != len(self.datasets):
            raise ValueError(
                f"mixture has {len(mixture)} shares, expected one for each of {len(self.datasets)} data sets"
            )
        self.classes, tiles = share_tiles(dataset, selection)
        self._reader = open_reader(self.datasets, split, tiles, bands, units, side, share_scenes)
        self.bands, self.units = self._reader.bands, self._reader.units
        self.scenes_left_out: tuple[str, ...] = tuple(tiles.scenes[n] for n in self._reader.scenes_without_bands)
        """Scenes with selected tiles that lack one of the bands."""
        self.selected = self._reader.tiles
        """The tiles that can be read, in the order of the index."""
        self._companions: Companions | None = None
        self._candidates: Counts | None = None
        """Positions of the tiles of an epoch in `selected`; None for all."""
        if self.selected.place is not None and self.selected.date is not None:
            self._companions, self._candidates = _share_companions(self.selected.place, self.selected.date)
            if self.tiles == 0:
                raise ValueError(f"{where}: split {split} has no place of two dates with bands {', '.join(self.bands)}")
        self._chance: npt.NDArray[np.float64] | None = None
        self._edges: npt.NDArray[np.float64] | None = None
        """Cumulative chances, in place of `_chance`, for more tiles than are drawn by arrays, or by shard."""
        self._shards = self._group_by_shard() if shuffle_buffer else None
        if balance or mixture:
            if self._large or self._shards is not None:
                self._edges = self._share_edges(balance, mixture)
            else:
                self._chance = self._find_chances(balance, mixture)
        self._warned_shards: set[str] = set()
        self.skipped = 0
        """Number of tiles that could not be read so far, on this rank."""
        if shuffle and len(self) == 0:
            raise ValueError(f"{where}: split {split} has {self.tiles} tiles, too few for a batch of {batch * world}")

    @property
    def tiles(self) -> int:
        """Number of tiles in an epoch, over all ranks."""
        return len(self.selected) if self._candidates is None else len(self._candidates)

    def count_by_dataset(self) -> tuple[int, ...]:
        """Number of tiles of an epoch in each data set."""
        tiles = self.selected.scene if self._candidates is None else self.selected.scene[self._candidates]
        by_scene = np.bincount(tiles, minlength=len(self.selected.scenes))
        return tuple(np.bincount(self.selected.homes, by_scene, len(self.datasets)).astype(int).tolist())

    def _find_chances(self, balance: float, mixture: Sequence[float]) -> npt.NDArray[np.float64]:
        """The probability of drawing each tile of an epoch: (tile,), sums to 1."""
        if not mixture:
            return class_probabilities(self.fraction, balance)
        chances, first = [], 0
        for dataset, share, count in zip(self.datasets, mixture, self.count_by_dataset(), strict=True):
            if share and not count:
                raise ValueError(f"{dataset}: mixture asks for tiles of this data set, but none is selected")
            part = self.fraction[first : first + count]  # the tiles of a data set are in one run
            even = np.full(count, 1 / max(count, 1))
            chances.append(share / sum(mixture) * (class_probabilities(part, balance) if balance and count else even))
            first += count
        return np.concatenate(chances)

    def _share_edges(self, balance: float, mixture: Sequence[float]) -> npt.NDArray[np.float64]:
        """Cumulative chances of the tiles, in the order of the index or of the shards, once for all processes."""

        def make() -> tuple[None, dict[str, npt.NDArray[np.float64]]]:
            chances = self._find_chances(balance, mixture)
            return None, {"edges": np.cumsum(chances if self._shards is None else chances[self._shards.tiles])}

        return share_arrays(make)[1]["edges"]

    def _group_by_shard(self) -> Shards:
        """The tiles by shard, in memory once for all processes of a machine."""

        def make() -> tuple[None, dict[str, Positions]]:
            shards = group_by_shard(self.selected.scene, lambda tiles: self._reader.shard_cells(tiles)[:, 1:])
            return None, {"tiles": shards.tiles, "edges": shards.edges}

        return Shards(**share_arrays(make)[1])

    @property
    def _large(self) -> bool:
        return self.tiles > LARGE

    @property
    def fraction(self) -> npt.NDArray[np.float32]:
        """(tile, class): labels of the tiles of an epoch, in the order of the index."""
        return self.selected.fraction if self._candidates is None else self.selected.fraction[self._candidates]

    def __len__(self) -> int:
        """Number of batches in an epoch on this rank. Without `shuffle`, ranks may differ by one."""
        span = self.batch * self.world
        return self.tiles // span if self.shuffle else len(range(self.rank * self.batch, self.tiles, span))

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def order(self, number: int) -> Positions | LazyOrder:
        """Positions in `selected`, in an epoch's order for all ranks, without a `shuffle_buffer`."""
        if self._large:
            return self._order_lazily(number)
        tiles = np.arange(self.tiles)
        if not self.shuffle:
            return self._find(tiles)
        if self._chance is not None:
            tiles = draw_tiles(self._chance, make_generator(self.seed, number, DRAW))
        return self._find(tiles[make_generator(self.seed, number, ORDER).permutation(self.tiles)])

    def _order_lazily(self, number: int) -> LazyOrder:
        """`order` for more tiles than arrays of positions are made for: other random numbers, the same distribution."""
        if not self.shuffle:
            return LazyOrder(self.tiles, self._find)
        permutation = draw_permutation(self.tiles, make_generator(self.seed, number, ORDER))
        if self._edges is None:
            return LazyOrder(self.tiles, lambda places: self._find(permutation(places)))
        draw = draw_lazily(self._edges, make_generator(self.seed, number, DRAW))
        return LazyOrder(self.tiles, lambda places: self._find(draw(permutation(places))))

    def _find(self, numbers: Positions) -> Positions:
        """Positions in `selected` of tiles by their number in an epoch."""
        return numbers if self._candidates is None else self._candidates[numbers].astype(np.int64)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of one epoch, starting at batch `start`; earlier batches are not read.

        Raises ValueError naming the shard and the tile if pixels are missing or cannot be read.
        """
        for batch, skipped in iterate_in_thread(self._read_epoch(number, start)):
            self.skipped += skipped
            yield batch

    def _read_epoch(self, number: int, start: int) -> Iterator[tuple[Batch, int]]:
        """Read the batches of an epoch, each with the number of tiles left out of it."""
        if self._shards is not None:
            length = len(self) * self.batch
            by_shard = ShardOrder(
                self._shards, self.shuffle_buffer, length, self.seed, number, self.rank, chances=self._edges
            )
            return self._read_by_shard(by_shard, start)
        order = self.order(number)
        span = self.batch * self.world
        steps = (order[i * span : (i + 1) * span] for i in range(start, len(self)))
        partner = None
        if self._companions is not None:
            key = int(make_generator(self.seed, number, PAIRS).integers(2**64, dtype=np.uint64))
            partner = partial(self._companions.draw_partners, key=key)
        return self._read_parts((self._rank_part(step) for step in steps), partner)

    def _rank_part(self, step: Positions) -> Positions:
        """Select this rank's part of the tiles of one step."""
        step = step[np.lexsort((self.selected.col[step], self.selected.row[step], self.selected.scene[step]))]
        return step[self.rank * self.batch : (self.rank + 1) * self.batch]

    def sample(self, tiles: int) -> Iterator[Batch]:
        """Read this rank's part of up to `tiles` random tiles of the whole split, each once, whatever `balance` is.

        The tiles depend on the seed only. Ranks may have different numbers of batches, and the last one may be short.
        """
        part = self._draw_sample(tiles)[self.rank :: self.world]
        parts = (part[i : i + self.batch] for i in range(0, len(part), self.batch))
        for batch, skipped in iterate_in_thread(self._read_parts(parts)):
            self.skipped += skipped
            yield batch

    def _draw_sample(self, tiles: int) -> Positions:
        rng = make_generator(self.seed, 0, ORDER)
        if self.tiles > LARGE:
            drawn = draw_permutation(self.tiles, rng)(np.arange(min(tiles, self.tiles)))
        else:
            drawn = rng.permutation(self.tiles)[:tiles]
        return self._find(drawn)

    def measure_levels(self, tiles: int = 1024) -> PixelLevels:
        """Measure range, mean and spread of each band over up to `tiles` random tiles.

        The tiles depend on the seed only, so that the result is the same on all ranks and for all batch sizes.
        """
        sample = self._draw_sample(tiles)
        levels = np.iinfo(self._reader.dtype).max + 1
        counts = np.zeros((len(self.bands), levels), dtype=np.int64)
        for batch, skipped in self._read_parts(sample[i : i + 64] for i in range(0, len(sample), 64)):
            self.skipped += skipped
            for band in range(len(self.bands)):
                counts[band] += np.bincount(batch.image[:, band].numpy().ravel(), minlength=levels)
        return measure_levels(counts, self._reader.dtype.name)

    def _read_parts(
        self, parts: Iterable[Positions], partner: Callable[[Positions], Positions] | None = None
    ) -> Iterator[tuple[Batch, int]]:
        """Read a batch for each array of positions, with several reads in flight. partner: finds the pairs of tiles."""
        in_flight: deque[tuple[list[torch.Tensor], list[PendingRead]]] = deque()
        for part in parts:
            requests = [part] if partner is None else [part, partner(part)]
            images = [self._allocate(len(part)) for _ in requests]
            targets = (image.numpy() for image in images)
            reads = [self._reader.request(*request) for request in zip(requests, targets, strict=True)]
            in_flight.append((images, reads))
            if len(in_flight) > self.prefetch:
                yield self._finish(*in_flight.popleft())
        while in_flight:
            yield self._finish(*in_flight.popleft())

    def _finish(self, images: list[torch.Tensor], reads: list[PendingRead]) -> tuple[Batch, int]:
        errors = {row: message for read in reads for row, message in self._reader.finish(read).items()}
        return self._make_batch(reads[0].positions, images, errors)

    def _read_by_shard(self, order: ShardOrder, start: int) -> Iterator[tuple[Batch, int]]:
        """Read the batches of an order. Each shard is read at its first tile and kept until its last tile."""
        in_flight: deque[Drawn] = deque()
        reads: dict[int, PendingRead] = {}
        errors: dict[int, dict[int, str]] = {}
        for drawn in order.batches(self.batch, start * self.batch):
            for shard in np.unique(drawn.shard).tolist():
                if shard not in reads:
                    tiles = np.unique(order.draw(shard))  # one that occurs several times is read once
                    target = np.empty((len(tiles), *self._reader.tile_shape), dtype=self._reader.dtype)
                    reads[shard] = self._reader.request(tiles, target)
            in_flight.append(drawn)
            if len(in_flight) > self.prefetch:
                yield self._finish_drawn(in_flight.popleft(), reads, errors)
        while in_flight:
            yield self._finish_drawn(in_flight.popleft(), reads, errors)

    def _finish_drawn(
        self, drawn: Drawn, reads: dict[int, PendingRead], errors: dict[int, dict[int, str]]
    ) -> tuple[Batch, int]:
        """Make a batch of tiles of shards. reads, errors: shard -> its read, and its tiles that cannot be read."""
        image = self._allocate(self.batch)
        target, unreadable = image.numpy(), dict[int, str]()
        for shard in np.unique(drawn.shard).tolist():
            if shard not in errors:
                errors[shard] = self._reader.finish(reads[shard])
            rows = np.flatnonzero(drawn.shard == shard)
            numbers = np.searchsorted(reads[shard].positions, drawn.tiles[rows])
            target[rows] = reads[shard].target[numbers]
            found = zip(rows.tolist(), numbers.tolist(), strict=True)
            unreadable |= {row: errors[shard][number] for row, number in found if number in errors[shard]}
        for shard in drawn.shard[drawn.last].tolist():
            del reads[shard], errors[shard]
        return self._make_batch(drawn.tiles, [image], unreadable)

    def _make_batch(
        self, positions: Positions, images: list[torch.Tensor], errors: dict[int, str]
    ) -> tuple[Batch, int]:
        """Make a batch of tiles that have been read, and count those left out.

        errors: row -> message, for tiles that could not be read.
        """
        if errors and self.on_error == "raise":
            raise ValueError(next(iter(errors.values())))
        if errors:
            for shard in {self._reader.shard(positions[row]) for row in errors} - self._warned_shards:
                log.warning("%s: tiles cannot be read, left out", shard)
                self._warned_shards.add(shard)
            if len(errors) == len(positions):
                raise ValueError(f"no tile of a batch can be read: {next(iter(errors.values()))}")
            readable = np.setdiff1d(np.arange(len(positions)), list(errors))
            positions, images = positions[readable], [_pin(image[readable]) for image in images]
        tiles = self.selected
        fraction, known, weight = (
            _pin(torch.from_numpy(values[positions])) for values in (tiles.fraction, tiles.known, tiles.weight)
        )
        pair = images[1] if len(images) > 1 else None
        gap, parts = (
            None if values is None else _pin(torch.from_numpy(values[positions]))
            for values in (tiles.year_gap, tiles.parts)
        )
        distance = self._reader.ground_distance(positions)
        gsd = None if distance is None else _pin(torch.from_numpy(distance))
        return Batch(images[0], fraction, known, weight, pair, gap, gsd, parts), len(errors)

    def _allocate(self, tiles: int) -> torch.Tensor:
        shape = (tiles, *self._reader.tile_shape)
        return torch.empty(shape, dtype=getattr(torch, self._reader.dtype.name), pin_memory=torch.cuda.is_available())


def _share_companions(place: npt.NDArray[np.int64], date: npt.NDArray[np.int64]) -> tuple[Companions, Counts | None]:
    """The companions of tiles, and the tiles that have any, None if these are all.

    In memory once for all processes of a machine.
    """

    def make() -> tuple[None, dict[str, Counts]]:
        found = find_companions(place, date)
        arrays = {field.name: getattr(found, field.name) for field in fields(found)}
        return None, arrays | {"candidates": np.flatnonzero(found.others).astype(found.others.dtype)}

    arrays = share_arrays(make)[1]
    candidates = arrays.pop("candidates")
    return Companions(**arrays), candidates if len(candidates) < len(place) else None


def _pin(values: torch.Tensor) -> torch.Tensor:
    return values.pin_memory() if torch.cuda.is_available() else values
