"""The order of tiles that are read shard by shard: computed in pieces, since an array of all tiles may be large."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geokr.loading.order import BUFFER, CUT, DRAW, ORDER, PIECE, Positions, make_generator


@dataclass(frozen=True, slots=True)
class Shards:
    """The tiles of an epoch, shard by shard."""

    tiles: Positions
    """(tile,) positions of the tiles: those of a shard follow one another, in ascending order."""
    edges: Positions
    """(shard + 1,) where each shard begins in `tiles`, and their number."""


def group_by_shard(
    scene: npt.NDArray[np.int32], find_cells: Callable[[Positions], Positions], piece: int = PIECE
) -> Shards:
    """Group tiles by shard. The tiles of a scene must be in one run.

    scene: (tile,). find_cells: (tile, 2) row and column of the shard of tiles in their scene. piece: about so many
    tiles are sorted at once.
    """
    ends = np.append(np.flatnonzero(np.diff(scene)) + 1, len(scene))
    tiles, edges, start = np.empty(len(scene), np.int64), [np.zeros(1, np.int64)], 0
    while start < len(scene):
        stop = int(ends[np.searchsorted(ends, min(start + piece, len(scene)))])
        part = np.arange(start, stop)
        row, col = find_cells(part).T
        order = np.lexsort((col, row, scene[start:stop]))
        tiles[start:stop] = part[order]
        new = np.any(np.diff(np.stack([scene[start:stop], row, col])[:, order], axis=1), axis=0)
        edges += [start + 1 + np.flatnonzero(new), np.array([stop])]
        start = stop
    return Shards(tiles, np.concatenate(edges))


class Drawn(NamedTuple):
    """Tiles that follow one another in an epoch; arrays (tile,)."""

    tiles: Positions
    """Positions of the tiles."""
    shard: Positions
    """The shard of each, by its place among those of the rank."""
    last: npt.NDArray[np.bool_]
    """Whether no tile of this shard comes after it."""

    def select(self, which: slice | npt.NDArray[np.bool_] | Positions) -> "Drawn":
        return Drawn(self.tiles[which], self.shard[which], self.last[which])


def join(*parts: Drawn) -> Drawn:
    """The tiles of several parts, one part after the other."""
    tiles, shard, last = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Drawn(tiles, shard, last)


class ShardOrder:
    """The order of a rank's tiles in an epoch, shard by shard, shuffled over about `buffer` tiles.

    The shards are put in a random order, and this sequence of tiles is split into one run of `length` tiles per rank. A
    shard therefore belongs to one rank, or to two at the boundary of a run, each with some of its tiles. A tile comes
    at most `buffer` positions, plus the size of its shard, after the first position of its shard.

    It is computed in pieces: a tile moves back by less than a piece, so that a piece consists of tiles of the shards
    that begin in it, and of those that begin in the one before.
    """

    def __init__(
        self,
        shards: Shards,
        buffer: int,
        length: int,
        seed: int,
        epoch: int,
        rank: int = 0,
        chances: npt.NDArray[np.float64] | None = None,
        piece: int = PIECE,
    ) -> None:
        """chances: (tile,) cumulative chances of the tiles in the order of `shards`. As many are drawn as there are,
        each n or n + 1 times if n <= chance * tiles < n + 1. By default, each comes once.
        """
        self._shards, self._buffer, self._seed, self._epoch, self._rank = shards, buffer, seed, epoch, rank
        self._length, self._piece = length, max(buffer, piece)
        self._chances, self._offset = chances, make_generator(seed, epoch, DRAW).random()
        sizes = np.diff(self._count_draws(shards.edges))
        order = make_generator(seed, epoch, ORDER).permutation(len(sizes))
        edges = np.append(0, np.cumsum(sizes[order])) - rank * length
        own = slice(np.searchsorted(edges, 0, "right") - 1, np.searchsorted(edges, length, "left"))
        self._shard = order[own]
        """The shards of the rank."""
        self._begin = edges[: len(order)][own]
        """Where each of them begins in the run of the rank; before 0, if it begins in that of another."""
        self._size = sizes[self._shard]
        """Number of tiles that are drawn from each, for all ranks."""

    def __len__(self) -> int:
        return self._length

    def _count_draws(self, ends: Positions) -> Positions:
        """How many draws fall on the tiles before each of `ends`, in the order of the shards."""
        if self._chances is None:
            return ends
        tiles = len(self._chances)
        counts = np.floor(self._chances[ends - 1] * tiles + self._offset).astype(np.int64)
        return np.where(ends == 0, 0, np.where(ends == tiles, tiles, np.minimum(counts, tiles)))

    def draw(self, shard: int) -> Positions:
        """The rank's tiles of a shard, by its place among those of the rank: positions, in ascending order.

        A tile that is drawn several times occurs as often.
        """
        start, stop = self._shards.edges[self._shard[shard] :][:2].tolist()
        tiles = self._shards.tiles[start:stop]
        if self._chances is not None:
            tiles = np.repeat(tiles, np.diff(self._count_draws(np.arange(start, stop + 1))))
        first = max(0, -int(self._begin[shard]))
        end = min(int(self._size[shard]), self._length - int(self._begin[shard]))
        if first or end < len(tiles):  # the others are those of another rank, or of none
            mixed = make_generator(self._seed, self._epoch, CUT, int(self._shard[shard])).permutation(len(tiles))
            tiles = tiles[np.sort(mixed[first:end])]
        return tiles

    def batches(self, size: int, start: int = 0) -> Iterator[Drawn]:
        """The tiles in batches of `size`, without the first `start` tiles and those that do not fill a batch."""
        left: list[Drawn] = []
        for part in self.parts(start):
            drawn = join(*left, part)
            whole = len(drawn.tiles) // size * size
            for k in range(0, whole, size):
                yield drawn.select(slice(k, k + size))
            left = [drawn.select(slice(whole, None))]

    def parts(self, start: int = 0) -> Iterator[Drawn]:
        """The tiles in parts of about a piece each, without the first `start` tiles."""
        if not 0 <= start < self._length:
            return
        begin = np.maximum(self._begin, 0)
        piece = int(begin[np.searchsorted(begin, start, "right") - 1]) // self._piece
        pending, place = self._mix(begin, piece - 1)
        late = place >= piece * self._piece
        pending, place = pending.select(late), place[late]
        before = int(begin[np.searchsorted(begin, piece * self._piece)]) - len(place)
        while piece * self._piece < self._length + self._buffer:
            following, its_place = self._mix(begin, piece)
            pending, place = join(pending, following), np.append(place, its_place)
            order = np.argsort(place, kind="stable")
            piece += 1
            count = int(np.searchsorted(place[order], piece * self._piece))
            yield pending.select(order[:count][max(0, start - before) :])
            before += count
            pending, place = pending.select(order[count:]), place[order[count:]]

    def _mix(self, begin: Positions, piece: int) -> tuple[Drawn, npt.NDArray[np.float64]]:
        """The tiles of the shards that begin in a piece, and the place that each moves back to, in ascending order.

        begin: where each shard begins in the run.
        """
        first, stop = np.searchsorted(begin, [piece * self._piece, (piece + 1) * self._piece]).tolist()
        parts = [self.draw(shard) for shard in range(first, stop)]
        tiles = np.concatenate([np.empty(0, np.int64), *parts])
        shard = np.repeat(np.arange(first, stop), [len(part) for part in parts])
        random = make_generator(self._seed, self._epoch, BUFFER, self._rank, piece) if parts else None
        place = begin[shard] + (random.random(len(tiles)) * self._buffer if random else 0.0)
        order = np.argsort(place, kind="stable")
        tiles, shard, place = tiles[order], shard[order], place[order]
        last = np.zeros(len(tiles), np.bool_)
        last[len(tiles) - 1 - np.unique(shard[::-1], return_index=True)[1]] = True
        return Drawn(tiles, shard, last), place
