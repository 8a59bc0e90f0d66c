"""The kernel of exact coverage, held against three computations of another kind to 1e-9."""

import numpy as np
import numpy.typing as npt
import pytest
import shapely
from exactextract import exact_extract
from exactextract.raster import NumPyRasterSource
from hypothesis import given, settings
from hypothesis import strategies as st

from geokr.landcover.coverage import CODES, sum_code_areas

Floats = npt.NDArray[np.float64]

WIDTH, HEIGHT = 46, 31
LEFT, TOP, ROWS, COLS = 3, 5, 18, 33
"""Where the cells lie in the plane; around them is nothing."""
CELLS = np.random.default_rng(7).choice([0, 10, 60, 255], (ROWS, COLS)).astype(np.uint8)
SMALL = 200
"""exactextract holds the covered part of a cell as float32, 6e-8 of it wrong; of a ring of so many cells across, that
is 1e-10."""


def areas(rings: list[Floats], owners: list[int] | None = None, weights: Floats | None = None) -> Floats:
    """What the kernel says of rings."""
    owners = list(range(len(rings))) if owners is None else owners
    offsets = np.cumsum([0, *(len(ring) for ring in rings)])
    weights = np.ones(HEIGHT) if weights is None else weights
    points = np.concatenate(rings)
    return sum_code_areas(points, offsets, np.array(owners), max(owners) + 1, CELLS, LEFT, TOP, WIDTH, weights)[0]


def summed(of_cell: Floats, weights: Floats | None = None) -> Floats:
    """Areas by code from the covered part of each cell, (HEIGHT, WIDTH)."""
    if weights is not None:
        of_cell = of_cell * weights[:, None]
    inside = of_cell[TOP : TOP + ROWS, LEFT : LEFT + COLS]
    result = np.zeros(CODES + 1)
    np.add.at(result, CELLS, inside)
    result[CODES] = of_cell.sum() - inside.sum()
    return result


def by_shapely(ring: Floats) -> Floats:
    row, col = np.mgrid[:HEIGHT, :WIDTH]
    cells = shapely.box(col, row, col + 1, row + 1)
    return np.asarray(shapely.area(shapely.intersection(cells, shapely.Polygon(ring))))


def by_clipping(ring: Floats) -> Floats:
    """Sutherland and Hodgman's clipping of a convex ring by each cell's four sides, and the shoelace formula."""
    covered = np.zeros((HEIGHT, WIDTH))
    low, high = np.floor(ring.min(axis=0)).astype(int), np.ceil(ring.max(axis=0)).astype(int)
    for row in range(low[1], min(high[1], HEIGHT)):
        for col in range(low[0], min(high[0], WIDTH)):
            points = [point - (col, row) for point in ring]
            for axis, side, sign in ((0, 0.0, 1.0), (0, 1.0, -1.0), (1, 0.0, 1.0), (1, 1.0, -1.0)):
                kept: list[Floats] = []
                for here, there in zip(points, points[1:] + points[:1], strict=True):
                    a, b = sign * (here[axis] - side), sign * (there[axis] - side)
                    if a >= 0:
                        kept.append(here)
                    if (a > 0 > b) or (a < 0 < b):
                        kept.append(here + (there - here) * (a / (a - b)))
                points = kept
            if points:
                x, y = np.array(points).T
                covered[row, col] = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    return covered


def by_exactextract(ring: Floats, across: int) -> Floats:
    """exactextract over cells cut into so small ones that the ring is at least `across` of them wide and high, summed
    into whole ones. Its rows count upwards."""
    parts = 2 ** max(0, int(np.ceil(np.log2(max(across, 1e-9) / np.ptp(ring, axis=0).min()))))
    low = np.floor(ring.min(axis=0) * parts).astype(int)
    cols, rows = np.ceil(ring.max(axis=0) * parts).astype(int) - low
    corner = low / parts
    extent = (0.0, 0.0, cols / parts, rows / parts)
    fine = NumPyRasterSource(np.zeros((rows, cols), np.uint8), *extent)
    turned = shapely.Polygon(np.stack([ring[:, 0] - corner[0], extent[3] - (ring[:, 1] - corner[1])], axis=-1))
    feature = {"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(turned)}
    (result,) = exact_extract(fine, [feature], ["coverage", "cell_id"])
    row, col = np.divmod(result["properties"]["cell_id"], cols)
    covered = np.zeros((HEIGHT, WIDTH))
    place = (row + low[1]) // parts, (col + low[0]) // parts
    np.add.at(covered, place, result["properties"]["coverage"].astype(float) / parts**2)
    return covered


@st.composite
def quads(draw: st.DrawFn) -> Floats:
    """A convex quadrilateral within the plane: from deep inside one cell to most of the plane, askew or along the
    cells' borders, inside the cells or partly outside, either way round."""
    if draw(st.booleans()):
        x, y = draw(st.integers(0, WIDTH - 1)), draw(st.integers(0, HEIGHT - 1))
        w, h = draw(st.integers(1, WIDTH - x)), draw(st.integers(1, HEIGHT - y))
        ring = np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h)], float)
    else:
        size, aspect, turn = 10 ** draw(st.floats(-2, 1.17)), draw(st.floats(0.2, 1)), draw(st.floats(0, 6.3))
        angles = np.deg2rad([90 * k + draw(st.floats(-35, 35)) for k in range(4)])  # on an ellipse: convex
        local = np.stack([np.cos(angles), np.sin(angles) * aspect], axis=-1) * size
        local = local @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        ring = np.add(local, [draw(st.floats(size, WIDTH - size)), draw(st.floats(size, HEIGHT - size))])
    return ring[::-1].copy() if draw(st.booleans()) else ring


@given(quads())
@settings(max_examples=150)
def test_areas_are_those_of_the_intersections_with_each_cell(ring: Floats) -> None:
    covered, found = by_shapely(ring), areas([ring])[0]
    assert found / covered.sum() == pytest.approx(summed(covered) / covered.sum(), abs=1e-9)
    assert found.min() == 0.0  # not a rounding below it, of which no logarithm is to be had


@given(quads())
@settings(max_examples=40)
def test_areas_are_those_of_polygons_clipped_in_double_precision(ring: Floats) -> None:
    covered = by_clipping(ring)
    assert areas([ring])[0] / covered.sum() == pytest.approx(summed(covered) / covered.sum(), abs=1e-9)


@given(quads())
@settings(max_examples=60)
def test_shares_are_exactextracts_over_cells_so_small_that_its_single_precision_does_not_show(ring: Floats) -> None:
    covered = by_exactextract(ring, SMALL)
    found = areas([ring])[0]
    assert found / found.sum() == pytest.approx(summed(covered) / covered.sum(), abs=1e-9)


@given(quads())
@settings(max_examples=60)
def test_shares_are_exactextracts_to_its_single_precision(ring: Floats) -> None:
    covered = by_exactextract(ring, 0)
    found = areas([ring])[0]
    assert found / found.sum() == pytest.approx(summed(covered) / covered.sum(), abs=1e-7)


@given(st.lists(quads(), min_size=1, max_size=5), st.integers(0, 9))
@settings(max_examples=40)
def test_rows_weigh_and_footprints_do_not_depend_on_their_company(rings: list[Floats], seed: int) -> None:
    weights = np.random.default_rng(seed).uniform(0.1, 2.0, HEIGHT)
    together = areas(rings, weights=weights)
    for ring, found in zip(rings, together, strict=True):
        assert np.array_equal(found, areas([ring], weights=weights)[0])
        covered = by_shapely(ring)
        assert found / covered.sum() == pytest.approx(summed(covered, weights) / covered.sum(), abs=1e-9)


@given(quads(), st.integers(1, 60))
@settings(max_examples=30)
def test_points_on_straight_edges_change_nothing(ring: Floats, pieces: int) -> None:
    steps = np.linspace(0, 1, pieces, endpoint=False)[:, None]
    dense = np.concatenate([a * (1 - steps) + b * steps for a, b in zip(ring, np.roll(ring, -1, axis=0), strict=True)])
    whole = shapely.Polygon(ring).area
    assert areas([dense])[0] / whole == pytest.approx(areas([ring])[0] / whole, abs=1e-9)


@given(st.integers(5, 12), st.integers(0, 200))
@settings(max_examples=40)
def test_a_ring_may_be_of_any_shape(corners: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    star = np.stack([np.cos(angles), np.sin(angles)], axis=-1) * rng.uniform(1, 14, corners)[:, None] + [23.3, 15.1]
    if shapely.Polygon(star).is_valid:
        covered = by_shapely(star)
        assert areas([star])[0] / covered.sum() == pytest.approx(summed(covered) / covered.sum(), abs=1e-9)


def test_the_parts_of_a_footprint_add_up_and_lie_where_they_may() -> None:
    square = np.array([(1.5, 2.5), (20.5, 2.5), (20.5, 9.0), (1.5, 9.0)])
    beside = np.add(square, [22.0, 0.0])
    below = np.add(square[::-1], [0.0, 10.0])
    found = areas([square, beside, below], owners=[0, 0, 1])
    assert found[0] == pytest.approx(summed(by_shapely(square)) + summed(by_shapely(beside)), abs=1e-9)
    assert found[1] == pytest.approx(summed(by_shapely(below)), abs=1e-9)


def test_the_whole_plane_is_every_cell_once() -> None:
    ring = np.array([(0, 0), (WIDTH, 0), (WIDTH, HEIGHT), (0, HEIGHT)], float)
    found = areas([ring])[0]
    assert np.array_equal(found[:CODES], np.bincount(CELLS.ravel(), minlength=CODES))
    assert found[CODES] == WIDTH * HEIGHT - ROWS * COLS


def test_a_footprint_of_no_area_has_none() -> None:
    for ring in ([(3.0, 6.0), (9.0, 6.0), (4.0, 6.0)], [(7.0, 6.0), (7.0, 9.0), (7.0, 7.0)]):
        assert areas([np.array(ring)])[0] == pytest.approx(np.zeros(CODES + 1), abs=1e-12)


def test_without_cells_all_lies_beyond_them() -> None:
    ring = np.array([(0.5, 0.5), (4.0, 0.5), (4.0, 3.0), (0.5, 3.0)])
    nothing = np.zeros((0, 0), np.uint8)
    found, codes = sum_code_areas(ring, np.array([0, 4]), np.array([0]), 1, nothing, 0, 0, 5, np.ones(4))
    assert found[0, CODES] == pytest.approx(3.5 * 2.5, abs=1e-12)
    assert not found[0, :CODES].any()
    assert codes.tolist() == [CODES]
