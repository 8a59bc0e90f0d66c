"""Which tile comes when: pure functions of a seed and the epoch's number, on positions in the list of chosen tiles."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]

ORDER, DRAW, PAIRS = range(3)
"""Streams of random numbers: no draw depends on whether another one was made."""


def make_generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, epoch] if stream == ORDER else [seed, epoch, stream])


def class_probabilities(fraction: npt.NDArray[np.float32], balance: float) -> npt.NDArray[np.float64]:
    """The chance of each tile to be drawn, such that the classes' expected mass is balanced: (tile,), sums to 1.

    fraction: (tile, class). balance: 0 leaves the classes' mass as it is, 1 asks for the same of each class.
    A tile is drawn for a class, in proportion to its share of it, and how often for which class is found such that
    the mass expected in the end is as near to the wanted one as that allows, by KL divergence: the proportions of a
    mixture, by expectation maximisation (Dempster et al. 1977). Tiles of one class reach it; where a class comes
    only with much of another one, that one remains the larger.
    """
    fraction = fraction[:, fraction.any(axis=0)].astype(np.float64)
    mass = fraction.sum(axis=0)
    wanted = mass ** (1 - balance)
    wanted /= wanted.sum()
    label = fraction.T @ fraction / mass[:, None]  # (class, class): mean label of the tiles drawn for a class
    drawn = wanted.copy()
    for _ in range(2000):
        drawn *= label @ (wanted / (drawn @ label))
    chance = fraction @ (drawn / mass)
    return np.asarray(chance / chance.sum())


def draw_tiles(chance: npt.NDArray[np.float64], rng: np.random.Generator) -> Positions:
    """As many positions as there are tiles, each one n or n + 1 times where n <= chance * tiles < n + 1."""
    tiles = len(chance)
    around = rng.permutation(tiles)
    edges = np.cumsum(chance[around]) * tiles
    edges[-1] = tiles
    times = np.diff(np.floor(edges + rng.random()), prepend=0.0)
    return np.repeat(around, times.astype(np.int64))


def shuffle_by_shard(
    shard: npt.NDArray[np.int64], buffer: int, rng: np.random.Generator, rank: int, length: int
) -> npt.NDArray[np.int64]:
    """A rank's part of the tiles, shard after shard, shuffled over about `buffer` tiles: (length,) int64.

    shard: (tile,) number of the shard that holds it. The shards come in a random order, the ranks share that
    sequence out in runs of `length` tiles, so that a shard belongs to one rank, or at a run's end to two. A tile
    comes at most `buffer` places, and the rest of its shard, after its shard's first place.
    """
    turn = rng.permutation(int(shard.max(initial=-1)) + 1)[shard]
    sequence = np.lexsort((rng.random(len(shard)), turn))
    delay = rng.random(len(shard)) * buffer
    mine = slice(rank * length, (rank + 1) * length)
    turns = turn[sequence[mine]]
    return sequence[mine][np.argsort(np.searchsorted(turns, turns) + delay[mine], kind="stable")]


@dataclass(frozen=True, slots=True)
class Companions:
    """For each tile, the others of its place at other dates: a run of `sequence` without the tiles of its own date."""

    sequence: Positions
    """Tiles by place, then date."""
    first: Positions
    """Where a tile's place begins in `sequence`."""
    own: Positions
    """Where its own date begins there."""
    dated: Positions
    """How many tiles of the place have its own date, itself among them."""
    others: Positions
    """How many have another."""

    def draw_partners(self, rng: np.random.Generator) -> Positions:
        """For each tile, one of the others; itself where there is none."""
        chosen = self.first + (rng.random(len(self.first)) * self.others).astype(np.int64)
        chosen += np.where(chosen >= self.own, self.dated, 0)
        alone = np.arange(len(self.first))
        return np.where(self.others > 0, self.sequence[np.where(self.others > 0, chosen, 0)], alone)


def find_companions(place: npt.NDArray[np.int64], date: npt.NDArray[np.int64]) -> Companions:
    """place, date: (tile,) whole numbers that are equal where place or date are the same."""
    sequence = np.lexsort((date, place))
    places, dates = place[sequence], date[sequence]
    new_place = np.diff(places, prepend=places[:1] - 1) != 0
    new_date = new_place | (np.diff(dates, prepend=dates[:1] - 1) != 0)
    columns = []
    for new in (new_place, new_date):
        begins = np.flatnonzero(new)
        run = np.cumsum(new) - 1
        columns += [begins[run], np.diff(begins, append=len(place))[run]]
    first, tiles, own, dated = (np.empty_like(column) for column in columns)
    for target, column in zip((first, tiles, own, dated), columns, strict=True):
        target[sequence] = column
    return Companions(sequence, first, own, dated, tiles - dated)
