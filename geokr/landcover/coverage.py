"""The area of each land-cover code in a footprint: the inner loop of labelling.

The coverage of a cell is the share of its area that lies in the footprint. Along a row of cells it is the running
sum of the changes that the footprint's edges cause, as in font rasterisation. It is exact for any simple polygon, in
double precision. Only cells that an edge crosses are visited one by one for this; the runs between them are counted.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CODES = 256
"""Number of codes that a cell can have. The result has one more column, for the area outside the cells."""


@njit(cache=True, nogil=True)
def sum_code_areas(
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
    """Area of each code in each footprint: (footprint, CODES + 1) float64, in cells of weight 1.

    The last column is the area outside the cells.

    points: (m, 2) float64, column and row (downwards) in the plane of the cells, all within 0..width and
    0..len(weights); cell (r, c) of that plane is the square from (c, r) to (c + 1, r + 1).
    offsets: (ring + 1,) int64: ring k is points[offsets[k]:offsets[k + 1]], simple, not closed, in either orientation.
    owners: (ring,) int64: the footprint that each ring belongs to. Rings of one footprint do not overlap.
    cells: (h, w) uint8 codes; the first one is cell (top, left) of the plane.
    weights: (row,) float64: weight of a cell in each row.
    """
    areas = np.zeros((footprints, CODES + 1))
    height = len(weights)
    head = np.full(height + 1, -1)
    change = np.zeros(width + 3)
    counts = np.zeros((4, CODES), np.int32)
    max_pieces = 0
    for ring in range(len(owners)):
        crossings, previous = 0, offsets[ring + 1] - 1
        for p in range(offsets[ring], offsets[ring + 1]):
            crossings += int(abs(points[p, 1] - points[previous, 1])) + 2
            previous = p
        max_pieces = max(max_pieces, crossings)
    # Each edge is cut into pieces within one row: x where a piece enters and leaves the row, and its signed descent.
    x_enter, x_leave, descent = np.empty(max_pieces), np.empty(max_pieces), np.empty(max_pieces)
    next_piece = np.empty(max_pieces, np.int64)
    order, first, last = np.empty(max_pieces, np.int64), np.empty(max_pieces, np.int64), np.empty(max_pieces, np.int64)

    for ring in range(len(owners)):
        area = areas[owners[ring]]
        pieces, first_row, last_row, twice_area = 0, height, -1, 0.0
        begin, end = offsets[ring], offsets[ring + 1]
        x1, y1 = points[end - 1, 0], points[end - 1, 1]
        for p in range(begin, end):
            x0, y0, x1, y1 = x1, y1, points[p, 0], points[p, 1]
            twice_area += (x0 - points[begin, 0]) * (y1 - points[begin, 1])
            twice_area -= (x1 - points[begin, 0]) * (y0 - points[begin, 1])
            if y0 == y1:
                continue
            slope = (x1 - x0) / (y1 - y0)
            direction = 1.0 if y1 > y0 else -1.0
            xa, ya, xb, yb = (x0, y0, x1, y1) if direction > 0 else (x1, y1, x0, y0)
            row, final_row = int(ya), int(np.ceil(yb)) - 1
            first_row, last_row = min(first_row, row), max(last_row, final_row)
            x, y = xa, ya
            while row <= final_row:
                y_below = row + 1.0
                if row == final_row:
                    x_below, y_below = xb, yb
                else:
                    x_below = min(max(xa + (y_below - ya) * slope, min(xa, xb)), max(xa, xb))
                x_enter[pieces], x_leave[pieces], descent[pieces] = x, x_below, direction * (y_below - y)
                next_piece[pieces] = head[row]
                head[row] = pieces
                pieces += 1
                x, y = x_below, y_below
                row += 1
        sign = -1.0 if twice_area > 0 else 1.0  # 1 where a downward edge starts the area to its right
        counted_area = 0.0  # area of each cell in `counts`; 0 while `counts` is empty

        for row in range(first_row, last_row + 1):
            # Sort the row's pieces by the first column that they touch.
            m, piece = 0, head[row]
            head[row] = -1
            while piece >= 0:
                a, b = min(x_enter[piece], x_leave[piece]), max(x_enter[piece], x_leave[piece])
                column, k = int(a), m
                while k > 0 and first[k - 1] > column:
                    first[k], last[k], order[k] = first[k - 1], last[k - 1], order[k - 1]
                    k -= 1
                first[k], last[k], order[k] = column, int(b), piece
                m += 1
                piece = next_piece[piece]
            # Add up the change of coverage that each piece causes from one cell to the next.
            for k in range(m):
                piece = order[k]
                remainder = sign * descent[piece]
                x, b = min(x_enter[piece], x_leave[piece]), max(x_enter[piece], x_leave[piece])
                rate = remainder / (b - x) if b > x else 0.0
                for column in range(first[k], last[k] + 1):
                    x_next = min(b, column + 1.0)
                    part = remainder if column == last[k] else (x_next - x) * rate
                    centre = (x + x_next) / 2 - column
                    change[column] += part * (1.0 - centre)
                    change[column + 1] += part * centre
                    remainder -= part
                    x = x_next
            r, weight = row - top, weights[row]
            row_has_cells = 0 <= r < cells.shape[0]
            coverage, k = 0.0, 0
            while k < m:
                first_column, last_column = first[k], last[k] + 1
                k += 1
                while k < m and first[k] <= last_column + 1:
                    last_column = max(last_column, last[k] + 1)
                    k += 1
                for column in range(first_column, last_column + 1):
                    coverage += change[column]
                    change[column] = 0.0
                    c = column - left
                    code = cells[r, c] if row_has_cells and 0 <= c < cells.shape[1] else CODES
                    area[code] += max(coverage, 0.0) * weight  # rounding may turn 0 into a negative number
                if k == m or abs(coverage) < 1e-13:
                    continue
                if abs(coverage - 1.0) < 1e-13:
                    coverage = 1.0  # so that whole rows of a projected CRS are counted together
                cell_area = coverage * weight
                run_begin, run_end = last_column + 1 - left, first[k] - left  # a run of cells with equal coverage
                start, stop = (max(run_begin, 0), min(run_end, cells.shape[1])) if row_has_cells else (0, 0)
                stop = max(stop, start)
                area[CODES] += (run_end - run_begin - (stop - start)) * cell_area
                if stop - start < 32:
                    for c in range(start, stop):
                        area[cells[r, c]] += cell_area
                    continue
                if cell_area != counted_area:
                    add_counts(counts, area, counted_area)
                    counted_area = cell_area
                row_cells = cells[r]
                c = start
                while c + 4 <= stop:  # four tables: an equal code in the next cell need not wait for this increment
                    counts[0, row_cells[c]] += 1
                    counts[1, row_cells[c + 1]] += 1
                    counts[2, row_cells[c + 2]] += 1
                    counts[3, row_cells[c + 3]] += 1
                    c += 4
                while c < stop:
                    counts[0, row_cells[c]] += 1
                    c += 1
        add_counts(counts, area, counted_area)
    return areas


@njit(cache=True, nogil=True)
def add_counts(counts: npt.NDArray[np.int32], area: Floats, cell_area: float) -> None:
    """Add the counted cells, of `cell_area` each, to the areas of their codes, and reset the counts to 0."""
    if cell_area == 0.0:
        return
    for code in range(CODES):
        area[code] += (counts[0, code] + counts[1, code] + counts[2, code] + counts[3, code]) * cell_area
    counts[:] = 0
