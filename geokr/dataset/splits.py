"""Spatial splits: the globe is divided into equal-area cells, each assigned at random to a split.

A footprint belongs to a split if all cells that it touches do.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

EARTH_RADIUS = 6371007.181
"""Radius of the sphere with the area of WGS84, m."""
SMALLEST_CELL = 25_000.0
"""Side of a cell that is chosen for tiles of a few kilometres or less, m."""
COS_TRUE_SCALE = math.cos(math.radians(30.0))
"""Cosine of the standard parallel of the cells' projection, as in EASE-Grid 2.0: cells are square at 30 degrees."""


def count_columns(cell: float) -> int:
    """Count the cells around the globe. The number is an integer, so that the cells meet at the antimeridian."""
    return max(1, round(2 * math.pi * EARTH_RADIUS * COS_TRUE_SCALE / cell))


def find_cell_ranges(lonlat: npt.NDArray[np.float64], cell: float) -> npt.NDArray[np.int64]:
    """Find the equal-area cells that each footprint touches: (n, 4) int64 first and last column, first and last row.

    lonlat: (n, corner, 2) float64, degrees. cell: side of a cell, m. The cells form a grid in Lambert's cylindrical
    equal-area projection (Snyder 1987, p. 76). A footprint is represented by its bounding box in that projection,
    widened by 1/200 of its size on each side, because its edges bend slightly between the corners. For a footprint
    that crosses the antimeridian, the columns continue past 180 degrees.
    """
    lon = np.unwrap(lonlat[..., 0], period=360.0, axis=1)
    grid_x = lon * (count_columns(cell) / 360.0)
    grid_y = np.sin(np.deg2rad(lonlat[..., 1])) * (EARTH_RADIUS / COS_TRUE_SCALE / cell)
    ranges = []
    for values in (grid_x, grid_y):
        low, high = values.min(axis=1), values.max(axis=1)
        margin = (high - low) * 5e-3
        ranges += [np.floor(low - margin), np.floor(high + margin)]
    return np.stack(ranges, axis=1).astype(np.int64)


def choose_cell(tiles: Iterable[float]) -> float:
    """The side of a cell, m, for tiles of these sides, m: SMALLEST_CELL, doubled until three of the largest fit."""
    doublings = math.ceil(math.log2(max(1.0, 3 * max(tiles, default=0.0) / SMALLEST_CELL)))
    return SMALLEST_CELL * 2.0**doublings


def propose_cell(
    lonlat: npt.NDArray[np.float64], shares: Mapping[str, float], cell: float, seed: int
) -> tuple[float, dict[str, int]] | None:
    """The side of a cell nearest to `cell`, m, with which each split has a footprint, and the number of each.

    The side is a round number, not smaller than a footprint. None if there is no such side. The splits that have a
    share count. Arguments: see `split_by_place`.
    """
    wanted = [name for name, share in shares.items() if share]
    if len(lonlat) < len(wanted):
        return None
    ranges = find_cell_ranges(lonlat, 1000.0)
    largest = 1000.0 * float(max((ranges[:, 1] - ranges[:, 0]).max(), (ranges[:, 3] - ranges[:, 2]).max()))
    sides = [digit * 10.0**power for power in range(1, 8) for digit in (1, 1.5, 2, 3, 4, 5, 6, 8)]
    for side in sorted((s for s in sides if s >= largest / 2), key=lambda s: abs(math.log(s / cell))):
        split = split_by_place(lonlat, shares, side, seed)
        counts = {name: int((split == name).sum()) for name in shares}
        if all(counts[name] for name in wanted):
            return side, counts
    return None


def draw_cells(column: npt.NDArray[np.int64], row: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.float64]:
    """Draw a number in [0, 1) for each cell. It depends only on the cell and the seed.

    The mixing is the finaliser of SplitMix64 (Steele et al. 2014). It starts from the seed, and is applied to the
    column, then to the row.
    """
    state = np.full(np.shape(column), seed, dtype=np.uint64)
    for part in (column, row):
        state = state * np.uint64(0x9E3779B97F4A7C15) + part.astype(np.int64).view(np.uint64)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def split_by_place(
    lonlat: npt.NDArray[np.float64], shares: Mapping[str, float], cell: float, seed: int
) -> npt.NDArray[np.object_]:
    """Choose the split of each footprint: (n,) str, or None for a footprint that touches cells of two splits.

    lonlat: (n, corner, 2) float64, degrees. shares: split -> share of the cells, summing to 1.
    cell: side of a cell, m. Footprints of different splits do not overlap.
    Raises ValueError if an argument is invalid.
    """
    if abs(sum(shares.values()) - 1) > 1e-9 or min(shares.values(), default=0) < 0:
        raise ValueError(f"the shares of the splits must sum to 1, got {dict(shares)}")
    if cell <= 0:
        raise ValueError(f"the side of a cell must be positive, got {cell} m")
    if not np.isfinite(lonlat).all():
        raise ValueError("a corner of a footprint has a coordinate that is not finite")
    names = np.array([*shares, None], dtype=object)
    edges = np.cumsum(list(shares.values()))[:-1]
    ranges = find_cell_ranges(lonlat, cell)
    choice = np.full(len(ranges), -2)  # index of the split; -2: no cell visited yet, -1: cells of two splits
    columns = int((ranges[:, 1] - ranges[:, 0]).max(initial=0)) + 1
    rows = int((ranges[:, 3] - ranges[:, 2]).max(initial=0)) + 1
    for i in range(columns):
        for j in range(rows):
            column, row = ranges[:, 0] + i, ranges[:, 2] + j
            inside = (column <= ranges[:, 1]) & (row <= ranges[:, 3])
            cell_split = np.searchsorted(edges, draw_cells(column % count_columns(cell), row, seed), side="right")
            choice = np.where(inside, np.where((choice == -2) | (choice == cell_split), cell_split, -1), choice)
    return np.asarray(names[choice])
