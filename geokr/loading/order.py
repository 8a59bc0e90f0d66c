"""The order of tiles: pure functions of the seed and the epoch number, on positions in the list of selected tiles."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]
Counts = npt.NDArray[np.signedinteger[Any]]
"""Positions or numbers of tiles, of 32 bits where these suffice."""

LARGE = 1 << 24
"""More tiles than this are ordered by functions, not by arrays of positions."""
PIECE = 1 << 20
"""Tiles whose labels are converted to 64 bits at once."""
ORDER, DRAW, PAIRS, BUFFER, CUT = range(5)
"""Independent streams of random numbers: whether one is used does not change the others."""


def make_generator(seed: int, epoch: int, stream: int, *more: int) -> np.random.Generator:
    """Random numbers of a stream. more: numbers of a part of it, such as a rank."""
    return np.random.default_rng([seed, epoch] if stream == ORDER else [seed, epoch, stream, *more])


def class_probabilities(fraction: npt.NDArray[np.float32], balance: float) -> npt.NDArray[np.float64]:
    """Compute the probability of drawing each tile that balances the expected mass of the classes: (tile,), sums to 1.

    fraction: (tile, class). balance: 0 leaves the class masses as they are, 1 aims at the same mass for each class.
    A tile is drawn for a class with a probability proportional to its share of that class. How often to draw for each
    class is chosen so that the expected class masses come as close as possible to the target masses, by KL
    divergence. These are the proportions of a mixture, found by expectation maximisation (Dempster et al. 1977).
    Tiles of a single class reach the target; if a class occurs only together with much of another class, the other
    class keeps the larger mass.
    """
    # In pieces, since the copy of 64 bits would be the largest array of all.
    pieces = [fraction[start : start + PIECE] for start in range(0, len(fraction), PIECE)]
    chosen = np.any([piece.any(axis=0) for piece in pieces], axis=0)
    mass = sum(piece[:, chosen].astype(np.float64).sum(axis=0) for piece in pieces)
    target_mass = mass ** (1 - balance)
    target_mass /= target_mass.sum()
    products = (piece[:, chosen].astype(np.float64) for piece in pieces)
    mean_label = sum(piece.T @ piece for piece in products) / mass[:, None]
    """(class, class): mean label of the tiles drawn for a class."""
    proportions = target_mass.copy()
    for _ in range(2000):
        proportions *= mean_label @ (target_mass / (proportions @ mean_label))
    chance = np.concatenate([piece[:, chosen].astype(np.float64) @ (proportions / mass) for piece in pieces])
    return np.asarray(chance / chance.sum())


def draw_tiles(chance: npt.NDArray[np.float64], rng: np.random.Generator) -> Positions:
    """Draw as many positions as there are tiles, each one n or n + 1 times if n <= chance * tiles < n + 1."""
    tiles = len(chance)
    permutation = rng.permutation(tiles)
    edges = np.cumsum(chance[permutation]) * tiles
    edges[-1] = tiles
    counts = np.diff(np.floor(edges + rng.random()), prepend=0.0)
    return np.repeat(permutation, counts.astype(np.int64))


@dataclass(frozen=True, slots=True)
class Permutation:
    """A permutation of 0..length - 1 that is computed where it is asked for, and takes no memory.

    A Feistel network over the smallest even number of bits that holds the length; a result beyond it is permuted again
    (cycle walking: Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002).
    """

    length: int
    keys: tuple[int, ...]
    """One for each round, 64 bits."""

    def __call__(self, positions: Positions) -> Positions:
        bits = np.uint64(max(1, ((self.length - 1).bit_length() + 1) // 2))
        mask = np.uint64((1 << int(bits)) - 1)
        result = positions.astype(np.uint64)
        left_out = np.arange(len(result))
        while len(left_out):
            left, right = result[left_out] >> bits, result[left_out] & mask
            for key in self.keys:
                left, right = right, left ^ (mix(right + np.uint64(key)) & mask)
            result[left_out] = left << bits | right
            left_out = left_out[result[left_out] >= self.length]
        return result.astype(np.int64)


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Spread numbers over 64 bits, one to one: the finaliser of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))


def draw_permutation(length: int, rng: np.random.Generator) -> Permutation:
    """Draw a permutation of 0..length - 1, which may be large."""
    return Permutation(length, tuple(rng.integers(0, 2**64, 8, dtype=np.uint64).tolist()))


@dataclass(frozen=True, slots=True)
class LazyOrder:
    """An order of many tiles: an array of positions of which only slices are computed."""

    length: int
    find: Callable[[Positions], Positions]
    """Positions of tiles from places in the order."""

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, places: slice) -> Positions:
        return self.find(np.arange(*places.indices(self.length)))


def draw_lazily(edges: npt.NDArray[np.float64], rng: np.random.Generator) -> Callable[[Positions], Positions]:
    """Like `draw_tiles`, for many tiles: a function from places 0..tiles - 1 to positions, in the order of the tiles.

    edges: (tile,) cumulative chances. A tile comes n or n + 1 times if n <= chance * tiles < n + 1.
    """
    tiles, offset = len(edges), rng.random()
    return lambda places: np.minimum(np.searchsorted(edges, (places + 1 - offset) / tiles), tiles - 1)


@dataclass(frozen=True, slots=True)
class Companions:
    """For each tile, the tiles of the same place at other dates: a range of `sequence` without the tile's own date."""

    sequence: Counts
    """Tiles sorted by place, then by date."""
    first: Counts
    """Index in `sequence` at which the tile's place begins."""
    own: Counts
    """Index in `sequence` at which the tile's own date begins."""
    dated: Counts
    """Number of tiles of the place with the tile's own date, including itself."""
    others: Counts
    """Number of tiles of the place with another date."""

    def draw_partners(self, tiles: Positions, key: int) -> Positions:
        """Draw one companion for each of some tiles; the tile itself if it has none.

        key: 64 bits. A tile has the same partner whenever it is drawn with the same key.
        """
        others, own = self.others[tiles], self.own[tiles]
        random = mix(mix(tiles.astype(np.uint64)) ^ np.uint64(key)) / 2.0**64
        index = self.first[tiles] + np.minimum((random * others).astype(np.int64), others - 1)
        index += np.where(index >= own, self.dated[tiles], 0)
        return np.where(others > 0, self.sequence[np.where(others > 0, index, 0)], tiles).astype(np.int64)


def find_companions(place: npt.NDArray[np.int64], date: npt.NDArray[np.int64]) -> Companions:
    """Find the companions of each tile. place, date: (tile,) integers, equal for tiles of the same place or date."""
    kind: type[np.signedinteger[Any]] = np.int32 if len(place) < 2**31 else np.int64
    sequence = np.lexsort((date, place)).astype(kind)
    new_place = np.diff(place[sequence], prepend=place[sequence[:1]] - 1) != 0
    new_date = new_place | (np.diff(date[sequence], prepend=date[sequence[:1]] - 1) != 0)
    columns: list[Counts] = []
    for starts_run in (new_place, new_date):
        starts = np.flatnonzero(starts_run)
        run = np.cumsum(starts_run, dtype=kind) - 1
        for values in (starts, np.diff(starts, append=len(place))):
            column = np.empty(len(place), kind)
            column[sequence] = values.astype(kind)[run]
            columns.append(column)
    first, tiles, own, dated = columns
    return Companions(sequence, first, own, dated, tiles - dated)
