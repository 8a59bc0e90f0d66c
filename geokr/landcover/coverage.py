"""How much of each grid cell a footprint covers, summed by the cells' codes: the inner loop of labels.

The coverage of a row of cells is the running sum of what the footprint's edges change in it, as in the
rasterizing of fonts; it is exact for any simple polygon, in double precision. Only the cells that an edge
crosses are visited one by one for that; the runs between them are counted.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CODES = 256
"""Codes that a cell can hold. One place more of the result is for the area beyond the cells."""


@njit(cache=True, nogil=True)
def code_areas(
    points: Floats,
    offsets: Ints,
    owners: Ints,
    footprints: int,
    cells: npt.NDArray[np.uint8],
    left: int,
    top: int,
    width: int,
    weights: Floats,
) -> Floats:
    """Area of each code in each footprint: (footprint, CODES + 1) float64, in cells of weight 1; the last is the
    area that lies beyond the cells.

    points: (m, 2) float64, column and row (downwards) in the plane of the cells, all within 0..width and
    0..len(weights); cell (r, c) of that plane is the square from (c, r) to (c + 1, r + 1).
    offsets: (ring + 1,) int64: ring k is points[offsets[k]:offsets[k + 1]], simple, open, either way round.
    owners: (ring,) int64: the footprint that it is a part of. Rings of one footprint do not overlap.
    cells: (h, w) uint8 codes; their first is cell (top, left) of the plane.
    weights: (row,) float64: what a cell of a row counts for.
    """
    areas = np.zeros((footprints, CODES + 1))
    height = len(weights)
    head = np.full(height + 1, -1)
    change = np.zeros(width + 3)
    counts = np.zeros((4, CODES), np.int32)
    most = 0
    for ring in range(len(owners)):
        crossed, before = 0, offsets[ring + 1] - 1
        for here in range(offsets[ring], offsets[ring + 1]):
            crossed += int(abs(points[here, 1] - points[before, 1])) + 2
            before = here
        most = max(most, crossed)
    # Pieces of edges, each within one row: where they enter and leave it, and how far they go down.
    enter, leave, down = np.empty(most), np.empty(most), np.empty(most)
    following = np.empty(most, np.int64)
    chosen, first, last = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)

    for ring in range(len(owners)):
        area = areas[owners[ring]]
        pieces, upper, lower, twice = 0, height, -1, 0.0
        begin, end = offsets[ring], offsets[ring + 1]
        x1, y1 = points[end - 1, 0], points[end - 1, 1]
        for p in range(begin, end):
            x0, y0, x1, y1 = x1, y1, points[p, 0], points[p, 1]
            twice += (x0 - points[begin, 0]) * (y1 - points[begin, 1])
            twice -= (x1 - points[begin, 0]) * (y0 - points[begin, 1])
            if y0 == y1:
                continue
            slope = (x1 - x0) / (y1 - y0)
            way = 1.0 if y1 > y0 else -1.0
            xa, ya, xb, yb = (x0, y0, x1, y1) if way > 0 else (x1, y1, x0, y0)
            row, final = int(ya), int(np.ceil(yb)) - 1
            upper, lower = min(upper, row), max(lower, final)
            x, y = xa, ya
            while row <= final:
                below = row + 1.0
                if row == final:
                    x_below, below = xb, yb
                else:
                    x_below = min(max(xa + (below - ya) * slope, min(xa, xb)), max(xa, xb))
                enter[pieces], leave[pieces], down[pieces] = x, x_below, way * (below - y)
                following[pieces] = head[row]
                head[row] = pieces
                pieces += 1
                x, y = x_below, below
                row += 1
        sign = -1.0 if twice > 0 else 1.0  # an edge downwards begins what lies to its right
        counted = 0.0  # what the cells in `counts` are worth each; 0 while there are none

        for row in range(upper, lower + 1):
            # The row's pieces by the first column that they touch.
            m, piece = 0, head[row]
            head[row] = -1
            while piece >= 0:
                a, b = min(enter[piece], leave[piece]), max(enter[piece], leave[piece])
                column, k = int(a), m
                while k > 0 and first[k - 1] > column:
                    first[k], last[k], chosen[k] = first[k - 1], last[k - 1], chosen[k - 1]
                    k -= 1
                first[k], last[k], chosen[k] = column, int(b), piece
                m += 1
                piece = following[piece]
            # What each of them changes in the coverage from one cell to the next.
            for k in range(m):
                piece = chosen[k]
                rest = sign * down[piece]
                x, b = min(enter[piece], leave[piece]), max(enter[piece], leave[piece])
                rate = rest / (b - x) if b > x else 0.0
                for column in range(first[k], last[k] + 1):
                    until = min(b, column + 1.0)
                    part = rest if column == last[k] else (until - x) * rate
                    middle = (x + until) / 2 - column
                    change[column] += part * (1.0 - middle)
                    change[column + 1] += part * middle
                    rest -= part
                    x = until
            r, weight = row - top, weights[row]
            within = 0 <= r < cells.shape[0]
            coverage, k = 0.0, 0
            while k < m:
                start, until = first[k], last[k] + 1
                k += 1
                while k < m and first[k] <= until + 1:
                    until = max(until, last[k] + 1)
                    k += 1
                for column in range(start, until + 1):
                    coverage += change[column]
                    change[column] = 0.0
                    c = column - left
                    code = cells[r, c] if within and 0 <= c < cells.shape[1] else CODES
                    area[code] += max(coverage, 0.0) * weight  # a rounded 0 may lie below it
                if k == m or abs(coverage) < 1e-13:
                    continue
                if abs(coverage - 1.0) < 1e-13:
                    coverage = 1.0  # so that whole rows of a plane count together
                worth = coverage * weight
                a, b = until + 1 - left, first[k] - left  # a run of cells that are covered alike
                start, stop = (max(a, 0), min(b, cells.shape[1])) if within else (0, 0)
                stop = max(stop, start)
                area[CODES] += (b - a - (stop - start)) * worth
                if stop - start < 32:
                    for c in range(start, stop):
                        area[cells[r, c]] += worth
                    continue
                if worth != counted:
                    add_counts(counts, area, counted)
                    counted = worth
                line = cells[r]
                c = start
                while c + 4 <= stop:  # four tables: a cell like the one before it need not wait for its sum
                    counts[0, line[c]] += 1
                    counts[1, line[c + 1]] += 1
                    counts[2, line[c + 2]] += 1
                    counts[3, line[c + 3]] += 1
                    c += 4
                while c < stop:
                    counts[0, line[c]] += 1
                    c += 1
        add_counts(counts, area, counted)
    return areas


@njit(cache=True, nogil=True)
def add_counts(counts: npt.NDArray[np.int32], area: Floats, worth: float) -> None:
    """Add counted cells to the areas of their codes, and count anew."""
    if worth == 0.0:
        return
    for code in range(CODES):
        area[code] += (counts[0, code] + counts[1, code] + counts[2, code] + counts[3, code]) * worth
    counts[:] = 0
