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
Cells = npt.NDArray[np.uint8]

CODES = 256
"""Number of codes that a cell can have. The result has one more column, for the area outside the cells."""
TABLES = 8
"""Number of tables that count cells in turn: an equal code in the next cell need not wait for the last increment."""
SHORT = 16
"""A run of fewer cells is not counted, but added cell by cell."""
LONG = 64
"""A run of so many cells is worth a count of its own."""


def sum_code_areas(
    points: Floats,
    offsets: Ints,
    owners: Ints,
    footprints: int,
    cells: Cells,
    left: int,
    top: int,
    width: int,
    weights: Floats,
) -> tuple[Floats, Ints]:
    """Area of each code in each footprint: (footprint, CODES + 1) float64, in cells of weight 1; and the codes found.

    The last column is the area outside the cells. The codes are the indices of the columns that are not all 0, with
    CODES for the last one, in no particular order. Other columns take no memory until they are read.

    points: (m, 2) float64, column and row (downwards) in the plane of the cells, all within 0..width and
    0..len(weights); cell (r, c) of that plane is the square from (c, r) to (c + 1, r + 1).
    offsets: (ring + 1,) int64: ring k is points[offsets[k]:offsets[k + 1]], simple, not closed, in either orientation.
    owners: (ring,) int64: the footprint that each ring belongs to. Rings of one footprint do not overlap.
    cells: (h, w) uint8 codes; the first one is cell (top, left) of the plane.
    weights: (row,) float64: weight of a cell in each row.
    """
    areas = np.zeros((CODES + 1, footprints))  # by code, so that codes that do not occur are never written
    codes = np.empty(CODES + 1, np.int64)
    found = _add_ring_areas(points, offsets, owners, cells, left, top, width, weights, areas, codes)
    return areas.T, codes[:found]


@njit(cache=True, nogil=True)
def _add_ring_areas(
    points: Floats,
    offsets: Ints,
    owners: Ints,
    cells: Cells,
    left: int,
    top: int,
    width: int,
    weights: Floats,
    areas: Floats,
    codes: Ints,
) -> int:
    """Add the areas of all rings to `areas` (CODES + 1, footprint), and write the codes found to `codes`.

    Returns the number of codes. Other arguments: see `sum_code_areas`.
    """
    found = 0
    area = np.zeros(CODES + 1)
    height = len(weights)
    head = np.full(height + 1, -1)
    change = np.zeros(width + 3)
    counts = np.zeros((TABLES, CODES), np.int32)
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
        pieces, first_row, last_row, twice_area = 0, height, -1, 0.0
        begin, end = offsets[ring], offsets[ring + 1]
        counted, counted_area = 0, 1.0  # number of cells in `counts`, and the area of each
        sign = 1.0
        if _is_upright(points, begin, end):  # as in the map's own CRS: no edge needs to be cut
            x0, y0, x1, y1 = points[begin, 0], points[begin, 1], points[begin + 2, 0], points[begin + 2, 1]
            left_edge, right_edge, upper_edge, lower_edge = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
            first_column, last_column = int(left_edge), int(np.ceil(right_edge)) - 1
            for row in range(int(upper_edge), int(np.ceil(lower_edge))):
                r = row - top
                cell_area = (min(lower_edge, row + 1.0) - max(upper_edge, float(row))) * weights[row]
                if not 0 <= r < cells.shape[0]:
                    area[CODES] += (right_edge - left_edge) * cell_area
                    continue
                c, end_column = first_column - left, last_column - left
                if c == end_column:
                    code = cells[r, c] if 0 <= c < cells.shape[1] else CODES
                    area[code] += (right_edge - left_edge) * cell_area
                    continue
                code = cells[r, c] if 0 <= c < cells.shape[1] else CODES
                area[code] += (first_column + 1.0 - left_edge) * cell_area
                code = cells[r, end_column] if 0 <= end_column < cells.shape[1] else CODES
                area[code] += (right_edge - last_column) * cell_area
                start, stop = max(c + 1, 0), min(end_column, cells.shape[1])
                stop = max(stop, start)
                area[CODES] += (end_column - c - 1 - (stop - start)) * cell_area
                # In a geographic CRS, the cells of each row have an area of their own.
                if stop - start < SHORT or (cell_area != counted_area and stop - start < LONG):
                    for c in range(start, stop):
                        area[cells[r, c]] += cell_area
                    continue
                if cell_area != counted_area:
                    if counted > 0:
                        _add_counts(counts, counted, area, counted_area, codes[:found])
                    counted, counted_area = 0, cell_area
                _count_cells(cells[r, start:stop], counts)
                counted += stop - start
        else:
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
                if first[k] == last[k]:
                    centre = (x + b) / 2 - first[k]
                    change[first[k]] += remainder * (1.0 - centre)
                    change[first[k] + 1] += remainder * centre
                    continue
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
                # In a geographic CRS, the cells of each row have an area of their own.
                if stop - start < SHORT or (cell_area != counted_area and stop - start < LONG):
                    for c in range(start, stop):
                        area[cells[r, c]] += cell_area
                    continue
                if cell_area != counted_area:
                    if counted > 0:
                        _add_counts(counts, counted, area, counted_area, codes[:found])
                    counted, counted_area = 0, cell_area
                _count_cells(cells[r, start:stop], counts)
                counted += stop - start
        if counted > 0:
            _add_counts(counts, counted, area, counted_area, codes[:found])
        owner = owners[ring]
        for k in range(found):
            areas[codes[k], owner] += area[codes[k]]
            area[codes[k]] = 0.0
        if _any_set(area.view(np.int64)):
            for code in range(CODES + 1):
                if area[code] != 0.0:
                    codes[found] = code
                    found += 1
                    areas[code, owner] += area[code]
                    area[code] = 0.0
    return found


@njit(cache=True, nogil=True)
def _is_upright(points: Floats, begin: int, end: int) -> bool:
    """Whether the ring points[begin:end] is a rectangle with edges along rows and columns."""
    if end - begin != 4:
        return False
    for p in range(begin, end, 2):
        a, b = (0, 1) if points[begin, 1] == points[begin + 1, 1] else (1, 0)
        if points[p, b] != points[p + 1, b] or points[p, a] == points[p + 1, a]:
            return False
    return bool(points[begin, a] == points[begin + 3, a] and points[begin + 1, a] == points[begin + 2, a])


@njit(cache=True, nogil=True)
def _any_set(bits: Ints) -> bool:
    """Whether any bit is set. Without a branch in the loop, which takes a tenth of the time."""
    union = 0
    for k in range(len(bits)):
        union |= bits[k]
    return union != 0


@njit(cache=True, nogil=True)
def _count_cells(run: Cells, counts: npt.NDArray[np.int32]) -> None:
    """Count the cells of a run by their codes."""
    whole = len(run) // TABLES
    for k in range(whole):
        for table in range(TABLES):
            counts[table, run[k * TABLES + table]] += 1
    for c in range(whole * TABLES, len(run)):
        counts[0, run[c]] += 1


@njit(cache=True, nogil=True)
def _add_counts(counts: npt.NDArray[np.int32], counted: int, area: Floats, cell_area: float, codes: Ints) -> None:
    """Add the counted cells, of `cell_area` each, to the areas of their codes, and reset the counts to 0.

    codes: those that are likely; the others are looked at only if these do not explain all cells.
    """
    for k in range(len(codes)):
        if codes[k] < CODES:
            counted -= _take_count(counts, codes[k], area, cell_area)
    if counted > 0:
        for code in range(CODES):
            _take_count(counts, code, area, cell_area)


@njit(cache=True, nogil=True)
def _take_count(counts: npt.NDArray[np.int32], code: int, area: Floats, cell_area: float) -> int:
    """Add the counted cells of one code to its area, and reset their counts. Returns their number."""
    cells = 0
    for table in range(TABLES):
        cells += counts[table, code]
        counts[table, code] = 0
    area[code] += cells * cell_area
    return cells
