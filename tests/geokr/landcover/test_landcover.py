"""Land-cover sheets, and class shares held against areas of intersection taken cell by cell."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS, Geod, Transformer
from rasterio.io import DatasetReader
from rasterio.transform import Affine
from rasterio.windows import Window

from geokr.landcover.discovery import find_landcover
from geokr.landcover.legend import Legend
from geokr.landcover.products import LandCoverError
from geokr.landcover.shares import compute_class_shares
from geokr.landcover.sheets import LandCover

Floats = npt.NDArray[np.float64]

COVERAGE = 1e-9
"""How far apart two exact answers may be."""
CUT = 1e-7
"""The same where a footprint is cut at nominal extents: a parallel bends in the sheets' CRS."""
BENDING = 1e-6
"""The same where edges bend between two CRSs, which both sides follow by short straight pieces."""

LONLAT = "EPSG:4326"
SPHERE = "+proj=cea +R=6371007.181"  # equal-area
CLARKE = (
    'GEOGCS["Unknown datum based upon the Clarke 1866 ellipsoid",'
    'DATUM["Not specified (based on Clarke 1866 spheroid)",SPHEROID["Clarke 1866",6378206.4,294.9786982]],'
    'PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433]]'
)
NLCD_CODES = [0, 11, 21, 31, 41, 52, 71, 82, 90, 77]  # 0 is ignored, 77 not in the legend


# --- rasters, and the slow and obvious answer


@dataclass(frozen=True)
class Raster:
    """Land cover as a test makes it."""

    cells: npt.NDArray[np.uint8]
    left: float
    top: float
    size: float
    """Side of a cell, units of the CRS."""
    crs: str | None

    @property
    def transform(self) -> Affine:
        return Affine(self.size, 0, self.left, 0, -self.size, self.top)

    def write(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = self.cells.shape
        profile = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": "uint8"}
        with rasterio.open(path, "w", **profile, crs=self.crs, transform=self.transform) as file:
            file.write(self.cells, 1)
        return path

    def corners(self, quads: npt.ArrayLike) -> Floats:
        """Points in (column, row) as coordinates."""
        return np.asarray(quads, float) * [self.size, -self.size] + [self.left, self.top]


def drawn(seed: int, shape: tuple[int, int], codes: Iterable[int]) -> npt.NDArray[np.uint8]:
    """Cells of codes drawn from a seed."""
    return np.random.default_rng(seed).choice(list(codes), shape).astype(np.uint8)


def moved(points: Floats, source: str, target: str) -> Floats:
    """(..., 2) points in another CRS."""
    x, y = Transformer.from_crs(source, target, always_xy=True).transform(points[..., 0], points[..., 1])
    return np.stack([x, y], axis=-1)


def outline(corners: Floats, source: str, target: str, pieces: int = 100) -> shapely.Polygon:
    """A footprint in another CRS, its straight edges bent there."""
    steps = np.linspace(0, 1, pieces, endpoint=False)[:, None]
    edges = [a + (b - a) * steps for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True)]
    return shapely.Polygon(moved(np.concatenate(edges), source, target))


def by_cells(footprint: shapely.Polygon, raster: Raster, legend: Legend) -> Floats:
    """(class,) share of a footprint (in the raster's CRS) by intersecting it with every cell of the grid."""
    x0, y0, x1, y1 = footprint.bounds
    left, right = np.floor((np.array([x0, x1]) - raster.left) / raster.size).astype(int)
    upper, lower = np.floor((raster.top - np.array([y1, y0])) / raster.size).astype(int)
    col, row = (index.ravel() for index in np.meshgrid(np.arange(left, right + 1), np.arange(upper, lower + 1)))
    x, y = raster.left + col * raster.size, raster.top - row * raster.size
    area = shapely.area(shapely.intersection(shapely.box(x, y - raster.size, x + raster.size, y), footprint))
    if raster.crs is not None and CRS(raster.crs).is_geographic:
        # The part of a cell in its own plane times the cell's area on the sphere, as in exactextract.
        area *= np.sin(np.deg2rad(y)) - np.sin(np.deg2rad(y - raster.size))
    height, width = raster.cells.shape
    inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
    codes = raster.cells[row[inside], col[inside]]
    return (legend.shares(codes) * area[inside, None]).sum(axis=0) / area.sum()


def by_sheets(
    corners: Floats, crs: str, sheets: Mapping[tuple[float, float, float, float], Raster], legend: Legend
) -> Floats:
    """(class,) share of a footprint over sheets that count within extents, weighed by their areas on the sphere."""
    whole = outline(corners, crs, LONLAT)
    total = np.zeros(len(legend.classes))
    for extent, raster in sheets.items():
        part = shapely.intersection(whole, shapely.box(*extent))
        if part.area < 1e-12 * whole.area:
            continue
        part = shapely.segmentize(part, whole.length / 500)
        weight = on_sphere(part) / on_sphere(whole)
        in_plane = shapely.transform(part, lambda points, to=str(raster.crs): moved(points, LONLAT, to))
        total += weight * by_cells(in_plane, raster, legend)
    return total


def on_sphere(polygon: shapely.Polygon) -> float:
    return float(shapely.transform(polygon, lambda points: moved(points, LONLAT, SPHERE)).area)


# --- footprints


@st.composite
def quads(draw: st.DrawFn, cols: float, rows: float, sizes: tuple[float, float] = (-2.0, 1.5)) -> Floats:
    """Corners of a convex quadrilateral in cells: from deep inside one cell to larger than the raster, askew or on
    the cells' borders, inside or partly outside."""
    if draw(st.booleans()):
        x, y = draw(st.integers(-3, int(cols) + 2)), draw(st.integers(-3, int(rows) + 2))
        w, h = draw(st.integers(1, 12)), draw(st.integers(1, 12))
        corners = np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h)], float)
    else:
        centre = [draw(st.floats(-3, cols + 3)), draw(st.floats(-3, rows + 3))]
        size, aspect, turn = 10 ** draw(st.floats(*sizes)), draw(st.floats(0.3, 1)), draw(st.floats(0, 6.3))
        angles = np.deg2rad([90 * k + draw(st.floats(-30, 30)) for k in range(4)])  # on an ellipse: convex
        local = np.stack([np.cos(angles), np.sin(angles) * aspect], axis=-1) * size
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        corners = local @ rotation.T + centre
    return corners[::-1] if draw(st.booleans()) else corners


def agree(corners: Floats, crs: str, cover: LandCover, expected: Iterable[Floats], tolerance: float) -> None:
    """Assert that shares are as expected: (class,) for each footprint, its sum being what is known."""
    found, wanted = compute_class_shares(corners, crs, cover), np.stack(list(expected))
    assert found.known == pytest.approx(wanted.sum(axis=1), abs=tolerance)
    assert found.fraction * found.known[:, None] == pytest.approx(wanted, abs=tolerance)
    assert found.fraction.sum(axis=1) == pytest.approx(np.where(found.known > 0, 1.0, 0.0), abs=1e-12)


# --- one sheet


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> tuple[LandCover, Raster]:
    """A small projected map; its origin is no multiple of its cells."""
    raster = Raster(drawn(1, (17, 24), NLCD_CODES), 440_011.25, 2_765_073.5, 30.0, "EPSG:32648")
    (cover,) = find_landcover([raster.write(tmp_path_factory.mktemp("plane") / "nlcd_2019.tif")])
    return cover, raster


@given(st.lists(quads(24, 17), min_size=1, max_size=6))
@settings(max_examples=40)
def test_shares_in_the_sheets_own_crs_are_areas_of_intersection_with_its_cells(
    plane: tuple[LandCover, Raster], footprints: list[Floats]
) -> None:
    cover, raster = plane
    corners = raster.corners(footprints)
    expected = [by_cells(shapely.Polygon(ring), raster, cover.legend) for ring in corners]
    agree(corners, str(raster.crs), cover, expected, COVERAGE)


ELSEWHERE = {
    "geographic, fine": ("ESA_WorldCover_10m_2021_v200_N24E102_Map.tif", 0.002, LONLAT, (104.4, 25.0), 222.0, 32648),
    "geographic, far north": (
        "ESA_WorldCover_10m_2021_v200_N69E018_Map.tif",
        0.002,
        LONLAT,
        (19.9, 70.2),
        150.0,
        32634,
    ),
    "geographic, coarse": ("MCD12C1.A2020001.061.2022172062638.tif", 0.05, CLARKE, (-63.0, -31.0), 5000.0, 32720),
    "another zone": ("nlcd_2019.tif", 30.0, "EPSG:32648", (107.9, 25.0), 30.0, 32649),
    "Albers": ("nlcd_2019.tif", 30.0, "EPSG:5070", (-89.0, 43.0), 30.0, 32616),
}


@pytest.fixture(scope="module", params=ELSEWHERE)
def elsewhere(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LandCover, Raster, Floats, float, str]:
    """A map, and the frame of footprints in another CRS: origin at the map's first corner, scale of a cell."""
    name, size, crs, place, metres, code = ELSEWHERE[request.param]
    left, top = moved(np.array(place), LONLAT, crs) if crs != CLARKE else place
    codes = NLCD_CODES if "nlcd" in name else [0, 10, 20, 30, 60, 90] if "ESA" in name else [0, 3, 7, 12, 14, 255]
    raster = Raster(drawn(2, (17, 24), codes), left, top, size, crs)
    (cover,) = find_landcover([raster.write(tmp_path_factory.mktemp("elsewhere") / name)])
    origin = moved(np.array(place), LONLAT, f"EPSG:{code}")
    return cover, raster, origin, metres, f"EPSG:{code}"


@given(st.lists(quads(24, 17), min_size=1, max_size=3))
@settings(max_examples=12)
def test_shares_across_crss_are_areas_of_intersection_with_bent_footprints(
    elsewhere: tuple[LandCover, Raster, Floats, float, str], footprints: list[Floats]
) -> None:
    cover, raster, origin, metres, crs = elsewhere
    corners = np.array(footprints) * [metres, -metres] + origin
    target = LONLAT if raster.crs == CLARKE else str(raster.crs)  # its datum is overridden
    expected = [by_cells(outline(ring, crs, target), raster, cover.legend) for ring in corners]
    agree(corners, crs, cover, expected, BENDING)


@given(st.lists(quads(24, 17), min_size=2, max_size=6))
@settings(max_examples=8)
def test_a_footprints_shares_do_not_depend_on_its_company(
    plane: tuple[LandCover, Raster], footprints: list[Floats]
) -> None:
    cover, raster = plane
    corners = raster.corners(footprints)
    together = compute_class_shares(corners, str(raster.crs), cover)
    for k in range(len(corners)):
        alone = compute_class_shares(corners[k : k + 1], str(raster.crs), cover)
        assert alone.known[0] == pytest.approx(together.known[k], abs=COVERAGE)
        assert (alone.fraction * alone.known[0])[0] == pytest.approx(
            together.fraction[k] * together.known[k], abs=COVERAGE
        )


@given(quads(24, 17, sizes=(-1.0, 1.0)), st.floats(0.1, 0.9))
@settings(max_examples=20)
def test_the_parts_of_a_footprint_weigh_up_to_the_whole(
    plane: tuple[LandCover, Raster], footprint: Floats, cut: float
) -> None:
    cover, raster = plane
    a, b, c, d = raster.corners(footprint)
    upper, lower = a + (d - a) * cut, b + (c - b) * cut
    rings = np.array([[a, b, lower, upper], [upper, lower, c, d], [a, b, c, d]])
    shares = compute_class_shares(rings, str(raster.crs), cover)
    areas = (shares.fraction * shares.known[:, None]) * shapely.area(shapely.polygons(rings))[:, None]
    whole = shapely.Polygon(rings[2]).area
    assert (areas[0] + areas[1]) / whole == pytest.approx(areas[2] / whole, abs=3 * COVERAGE)


def test_footprints_from_no_places_have_no_shares(plane: tuple[LandCover, Raster]) -> None:
    cover, raster = plane
    shares = compute_class_shares(np.zeros((0, 4, 2)), "EPSG:32616", cover)
    assert shares.fraction.shape == (0, len(cover.legend.classes))
    assert shares.known.shape == (0,)
    away = compute_class_shares(raster.corners([[(500, 0), (510, 0), (510, 9), (500, 9)]]), str(raster.crs), cover)
    assert away.known.tolist() == [0.0]
    assert not away.fraction.any()


def test_unlisted_codes_are_told_and_count_as_unknown(tmp_path: Path) -> None:
    cells = np.array([[41, 77, 78], [41, 0, 41]], np.uint8)
    raster = Raster(cells, 440_000.0, 2_765_000.0, 30.0, "EPSG:32648")
    (cover,) = find_landcover([raster.write(tmp_path / "nlcd_2019.tif")])
    square = np.array([(0.0, 0.0), (2.0, 0.0), (2.0, 2.0), (0.0, 2.0)])
    shares = compute_class_shares(raster.corners([square]), "EPSG:32648", cover)
    assert shares.unlisted == {77}  # 78 lies outside the footprint, 0 is ignored, beyond the raster is no code
    assert shares.known[0] == pytest.approx(0.5, abs=COVERAGE)
    assert shares.fraction[0, cover.legend.classes.index("forest")] == pytest.approx(1.0, abs=1e-12)
    beyond = compute_class_shares(raster.corners([square + np.array((2.0, 0.0))]), "EPSG:32648", cover)
    assert beyond.unlisted == {78}
    assert beyond.known[0] == pytest.approx(0.25, abs=COVERAGE)
    with rasterio.open(tmp_path / "nlcd_2019.tif", "r+") as file:
        file.nodata = 77  # which the file itself calls no data: nobody need be told
    (cover,) = find_landcover([tmp_path / "nlcd_2019.tif"])
    assert compute_class_shares(raster.corners([square]), "EPSG:32648", cover).unlisted == frozenset()


def test_of_ignored_codes_alone_nothing_is_known(tmp_path: Path) -> None:
    raster = Raster(np.zeros((9, 9), np.uint8), 440_000.0, 2_765_000.0, 30.0, "EPSG:32648")
    (cover,) = find_landcover([raster.write(tmp_path / "nlcd_2019.tif")])
    shares = compute_class_shares(raster.corners([[(1, 1), (5, 1), (5, 5), (1, 5)]]), "EPSG:32648", cover)
    assert shares.known.tolist() == [0.0]
    assert not shares.fraction.any()
    assert shares.unlisted == frozenset()


def test_zero_is_water_in_a_modis_map_and_its_unknown_datum_is_overridden(tmp_path: Path) -> None:
    raster = Raster(np.zeros((40, 60), np.uint8), 101.0, 26.0, 0.05, CLARKE)
    (cover,) = find_landcover([raster.write(tmp_path / "MCD12C1.A2020001.061.2022172062638.tif")])
    corners = moved(np.array([(102.0, 25.0), (102.04, 25.0), (102.04, 24.96), (102.0, 24.96)]), LONLAT, "EPSG:32648")
    shares = compute_class_shares(corners[None], "EPSG:32648", cover)
    assert cover.sheets[0].crs == LONLAT
    assert shares.known == pytest.approx([1.0], abs=1e-12)
    assert shares.fraction[0, cover.legend.classes.index("water")] == pytest.approx(1.0, abs=1e-12)


def test_places_at_the_bent_border_of_a_wide_sheet_are_found(tmp_path: Path) -> None:
    # 4,800 km of Albers: the upper border, straight in the sheet, bulges by kilometres in longitude and latitude.
    raster = Raster(np.full((300, 480), 41, np.uint8), -2_400_000.0, 3_200_000.0, 10_000.0, "EPSG:5070")
    (cover,) = find_landcover([raster.write(tmp_path / "nlcd_2019.tif")])
    x, side = np.arange(0.1, 479.0, 3.7), 0.001  # 10 m
    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) * side
    quads = np.stack([x, np.zeros_like(x)], axis=-1)[:, None] + square
    corners = raster.corners(quads)
    assert compute_class_shares(corners, "EPSG:5070", cover).known == pytest.approx(np.ones(len(x)), abs=COVERAGE)


@pytest.mark.parametrize("side", [60, 6000])
def test_what_is_read_does_not_depend_on_the_size_of_the_raster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    raster = Raster(np.zeros((1, 1), np.uint8), 440_000.0, 2_765_000.0, 30.0, "EPSG:32648")
    path = tmp_path / "nlcd_2019.tif"
    profile = {"driver": "GTiff", "height": side, "width": side, "count": 1, "dtype": "uint8", "tiled": True}
    with rasterio.open(path, "w", **profile, crs=raster.crs, transform=raster.transform, sparse_ok=True) as file:
        file.write(np.full((60, 60), 41, np.uint8), 1, window=Window(0, 0, 60, 60))
    (cover,) = find_landcover([path])
    windows: list[Window] = []
    read = DatasetReader.read

    def watched(self: DatasetReader, *args: object, window: Window, **options: object) -> npt.NDArray[np.uint8]:
        windows.append(window)
        return read(self, *args, window=window, **options)

    monkeypatch.setattr(DatasetReader, "read", watched)
    corners = raster.corners([[(20.5, 30.5), (33.5, 30.5), (33.5, 39.5), (20.5, 39.5)]])
    assert compute_class_shares(corners, "EPSG:32648", cover).known == pytest.approx([1.0], abs=1e-12)
    assert [(w.col_off, w.row_off, w.width, w.height) for w in windows] == [(20, 30, 14, 10)]


# --- sheets that overlap


SIDE, BEYOND, CELL = 60, 4, 300.0
"""Of the sheets of a corner: side and overlap in cells, cell in metres."""


def corner_of_sheets(
    folder: Path, west: int, east: int, gap: int = 0
) -> dict[tuple[float, float, float, float], Raster]:
    """Four GlobeLand30 sheets that meet at 25 N between two zones, overlap and disagree; extent -> raster.

    gap: how many cells the northern sheets lack instead of overlapping.
    """
    sheets = {}
    for zone, codes in ((west, ([10, 20], [30, 40])), (east, ([50, 60], [80, 90]))):
        crs, first = f"EPSG:326{zone:02d}", -180.0 + 6.0 * (zone - 1)
        x, y = moved(np.array([first + (6.0 if zone == west else 0.0), 25.0]), LONLAT, crs)
        left = x + (BEYOND - SIDE if zone == west else -BEYOND) * CELL + 7.0
        for south, kinds in zip((20.0, 25.0), codes, strict=True):
            top = y + (BEYOND if south == 20.0 else SIDE - BEYOND) * CELL + 11.0
            cells = drawn(int(zone % 2 * 100 + south), (SIDE, SIDE), kinds)
            if gap and south == 25.0:
                cells = cells[: SIDE - BEYOND - gap]
            raster = Raster(cells, left, top, CELL, crs)
            raster.write(folder / f"n{zone:02d}_{south:.0f}_2020lc030.tif")
            sheets[first, south, first + 6.0, south + 5.0] = raster
    return sheets


Corner = tuple[LandCover, dict[tuple[float, float, float, float], Raster]]


@pytest.fixture(scope="module")
def corner(tmp_path_factory: pytest.TempPathFactory) -> Corner:
    folder = tmp_path_factory.mktemp("corner")
    sheets = corner_of_sheets(folder, 48, 49)
    (cover,) = find_landcover([folder])
    return cover, sheets


@pytest.fixture(scope="module")
def gap(tmp_path_factory: pytest.TempPathFactory) -> Corner:
    folder = tmp_path_factory.mktemp("gap")
    sheets = corner_of_sheets(folder, 48, 49, gap=5)
    (cover,) = find_landcover([folder])
    return cover, sheets


def around(footprints: list[Floats], crs: str, place: tuple[float, float]) -> Floats:
    """Footprints in cells, put around a place."""
    return np.array(footprints) * [CELL, -CELL] + moved(np.array(place), LONLAT, crs)


near_corner = st.lists(quads(20, 20, sizes=(-2.0, 1.2)).map(lambda ring: ring - 10.0), min_size=1, max_size=4)
either_zone = st.sampled_from(["EPSG:32648", "EPSG:32649"])


@given(near_corner, either_zone)
@settings(max_examples=25)
def test_each_of_four_disagreeing_sheets_counts_within_its_nominal_extent(
    corner: Corner, footprints: list[Floats], crs: str
) -> None:
    cover, sheets = corner
    corners = around(footprints, crs, (108.0, 25.0))
    agree(corners, crs, cover, [by_sheets(ring, crs, sheets, cover.legend) for ring in corners], BENDING)
    assert compute_class_shares(corners, crs, cover).known == pytest.approx(np.ones(len(corners)), abs=CUT)


@given(st.lists(quads(20, 20, sizes=(0.0, 1.2)).map(lambda ring: ring - 10.0), min_size=1, max_size=2), either_zone)
@settings(max_examples=10)
def test_a_sheets_part_of_a_footprint_is_its_area_on_the_ellipsoid(
    corner: Corner, footprints: list[Floats], crs: str
) -> None:
    cover, sheets = corner
    corners, geod = around(footprints, crs, (108.0, 25.0)), Geod(ellps="WGS84")
    shares = compute_class_shares(corners, crs, cover).fraction
    for ring, row in zip(corners, shares, strict=True):
        whole = outline(ring, crs, LONLAT)
        for extent, raster in sheets.items():
            part = shapely.segmentize(shapely.intersection(whole, shapely.box(*extent)), whole.length / 500)
            ground = sum(abs(geod.geometry_area_perimeter(p)[0]) for p in shapely.get_parts(part) if p.area > 0)
            found = row @ (cover.legend.shares(np.unique(raster.cells)).sum(axis=0) > 0)
            assert found == pytest.approx(ground / abs(geod.geometry_area_perimeter(whole)[0]), abs=1e-5)


@given(near_corner, either_zone)
@settings(max_examples=12)
def test_a_gap_between_sheets_counts_as_unknown(gap: Corner, footprints: list[Floats], crs: str) -> None:
    cover, sheets = gap
    corners = around(footprints, crs, (108.0, 25.0))
    agree(corners, crs, cover, [by_sheets(ring, crs, sheets, cover.legend) for ring in corners], BENDING)


@pytest.mark.parametrize(
    "ring",
    [
        pytest.param([(0.01, 0.0), (0.02, 0.0), (0.02, 0.01), (0.01, 0.01)], id="along an edge"),
        pytest.param([(0.0, 0.0), (0.01, 0.0), (0.01, 0.01), (0.0, 0.01)], id="along two edges"),
        pytest.param([(0.01, 0.0), (0.02, 0.01), (0.01, 0.02), (0.005, 0.01)], id="with a corner"),
    ],
)
def test_a_footprint_that_only_touches_a_sheet_takes_nothing_from_it(
    corner: Corner, ring: list[tuple[float, float]]
) -> None:
    cover, sheets = corner
    corners = np.array([ring]) + np.array((108.0, 25.0))
    shares = compute_class_shares(corners, LONLAT, cover)
    own = cover.legend.shares(np.unique(sheets[108.0, 25.0, 114.0, 30.0].cells)).sum(axis=0) > 0
    assert shares.known == pytest.approx([1.0], abs=1e-12)
    assert not shares.fraction[0, ~own].any()


@pytest.mark.parametrize("up", [1, -1])
def test_a_footprint_that_enters_a_sheet_and_touches_it_as_well_counts_as_what_enters(corner: Corner, up: int) -> None:
    cover, sheets = corner
    dart = np.array([(0.01, -0.04), (0.05, 0.04), (0.09, 0.0), (0.05, 0.02)]) * [1, up] + np.array((108.0, 25.0))
    agree(dart[None], LONLAT, cover, [by_sheets(dart, LONLAT, sheets, cover.legend)], BENDING)


# --- the antimeridian


@given(near_corner, st.sampled_from(["west", "east"]))
@settings(max_examples=15)
def test_sheets_at_the_antimeridian_count_like_those_at_greenwich(
    both_corners: tuple[LandCover, LandCover], footprints: list[Floats], side: str
) -> None:
    here, there = {"west": ("EPSG:32630", "EPSG:32660"), "east": ("EPSG:32631", "EPSG:32601")}[side]
    corners = around(footprints, here, (0.0, 25.0))
    greenwich, antimeridian = (
        compute_class_shares(corners, here, both_corners[0]),
        compute_class_shares(corners, there, both_corners[1]),
    )
    assert greenwich.known == pytest.approx(np.ones(len(corners)), abs=CUT)
    assert antimeridian.known == pytest.approx(greenwich.known, abs=CUT)
    assert antimeridian.fraction == pytest.approx(greenwich.fraction, abs=BENDING)


@pytest.fixture(scope="module")
def both_corners(tmp_path_factory: pytest.TempPathFactory) -> tuple[LandCover, LandCover]:
    """The same four sheets, about 0 and about 180 degrees."""
    folders = tmp_path_factory.mktemp("greenwich"), tmp_path_factory.mktemp("antimeridian")
    zones = (30, 31), (60, 1)
    for folder, (west, east) in zip(folders, zones, strict=True):
        corner_of_sheets(folder, west, east)
    (greenwich,), (antimeridian,) = find_landcover([folders[0]]), find_landcover([folders[1]])
    return greenwich, antimeridian


@pytest.fixture(scope="module")
def both_worlds(tmp_path_factory: pytest.TempPathFactory) -> tuple[LandCover, LandCover]:
    """A map of the whole globe, and the same turned by 180 degrees."""
    cells, folder = drawn(5, (180, 360), range(17)), tmp_path_factory.mktemp("worlds")
    name = "MCD12C1.A2020001.061.2022172062638.tif"
    Raster(cells, -180.0, 90.0, 1.0, CLARKE).write(folder / "greenwich" / name)
    Raster(np.roll(cells, 180, axis=1), -180.0, 90.0, 1.0, CLARKE).write(folder / "antimeridian" / name)
    (greenwich,), (antimeridian,) = find_landcover([folder / "greenwich"]), find_landcover([folder / "antimeridian"])
    return greenwich, antimeridian


@given(near_corner, st.sampled_from(["west", "east"]), st.floats(-80, 80))
@settings(max_examples=20)
def test_a_global_map_has_no_seam(
    both_worlds: tuple[LandCover, LandCover], footprints: list[Floats], side: str, latitude: float
) -> None:
    here, there = {"west": ("EPSG:32630", "EPSG:32660"), "east": ("EPSG:32631", "EPSG:32601")}[side]
    corners = around(footprints, here, (0.0, latitude))
    greenwich, antimeridian = (
        compute_class_shares(corners, here, both_worlds[0]),
        compute_class_shares(corners, there, both_worlds[1]),
    )
    assert greenwich.known == pytest.approx(np.ones(len(corners)), abs=CUT)
    assert antimeridian.known == pytest.approx(greenwich.known, abs=CUT)
    assert antimeridian.fraction == pytest.approx(greenwich.fraction, abs=BENDING)


# --- finding sheets


def at(place: tuple[float, float], crs: str | None = "EPSG:32648", side: int = 10, size: float = 1000.0) -> Raster:
    """A map around a place."""
    x, y = moved(np.array(place), LONLAT, crs or LONLAT)
    return Raster(np.full((side, side), 10, np.uint8), x - side / 2 * size, y + side / 2 * size, size, crs)


@pytest.mark.parametrize(
    ("name", "zone", "place", "extent"),
    [
        ("n48_20", 32648, (105.0, 22.5), (102, 20, 108, 25)),
        ("n48_25", 32648, (105.0, 22.5), (102, 20, 108, 25)),  # some makers name the far edge
        ("n48_20", 32648, (102.05, 24.9), (102, 20, 108, 25)),
        ("N48_20", 32648, (107.95, 20.1), (102, 20, 108, 25)),
        ("n31_00", 32631, (3.0, 0.2), (0, 0, 6, 5)),
        ("s31_00", 32731, (3.0, -0.2), (0, -5, 6, 0)),
        ("s31_05", 32731, (3.0, -0.2), (0, -5, 6, 0)),
        ("s19_30", 32719, (-69.0, -32.5), (-72, -35, -66, -30)),
        ("s19_35", 32719, (-69.0, -32.5), (-72, -35, -66, -30)),
        ("n47_55", 32647, (99.0, 57.5), (96, 55, 102, 60)),
        ("n47_60", 32647, (99.0, 62.5), (96, 60, 108, 65)),  # 12 degrees from 60 on
        ("n47_60", 32647, (107.0, 62.5), (96, 60, 108, 65)),
        ("s19_55", 32719, (-69.0, -57.5), (-72, -60, -66, -55)),
        ("s19_60", 32719, (-69.0, -62.5), (-72, -65, -60, -60)),
        ("n01_65", 32601, (-179.9, 67.0), (-180, 65, -168, 70)),
        ("n60_00", 32660, (179.97, 2.5), (174, 0, 180, 5)),  # its pixels go on past 180
        ("s01_05", 32701, (-179.97, -2.5), (-180, -5, -174, 0)),
    ],
)
def test_a_globeland30_sheet_counts_within_its_band_and_zone(
    tmp_path: Path, name: str, zone: int, place: tuple[float, float], extent: tuple[float, float, float, float]
) -> None:
    at(place, f"EPSG:{zone}").write(tmp_path / f"{name}_2020lc030.tif")
    (cover,) = find_landcover([tmp_path])
    assert cover.name == "globeland30_2020"
    assert cover.sheets[0].extent == extent
    assert shapely.equals(cover.sheets[0].outline, shapely.box(*extent))


@pytest.mark.parametrize(
    "name", ["n48_30", "n48_15", "s48_20", "s48_25", "n49_20", "n47_20", "n18_20", "n00_20", "n99_20"]
)
def test_a_sheet_whose_name_denies_its_pixels_is_refused(tmp_path: Path, name: str) -> None:
    path = at((105.0, 22.5)).write(tmp_path / f"{name}_2020lc030.tif")
    with pytest.raises(LandCoverError, match="pixels lie") as caught:
        find_landcover([path])
    assert str(caught.value).startswith(f"{path}: ")


def test_sheets_are_found_in_several_directories_by_product_and_year(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lonlat = at((105.0, 22.5), LONLAT, size=0.01)
    for name, raster in {
        "a/deep/er/n48_20_2020lc030.tif": at((105.0, 22.5)),
        "b/N48_25_2020LC030.TIF": at((105.0, 27.5)),
        "b/n48_20_2010lc030.tif": at((105.0, 22.5)),
        "a/ESA_WorldCover_10m_2020_v100_N21E105_Map.tif": lonlat,
        "b/esa_worldcover_10m_2020_v100_s21w105_map.TIFF": at((-103.5, -19.5), LONLAT, size=0.01),
        "b/ESA_WorldCover_10m_2021_v200_N21E105_Map.tif": lonlat,
        "a/MCD12C1.A2020001.061.2022172062638.tif": lonlat,
        "a/mcd12c1.a2001001.006.tif": lonlat,
        "a/NLCD_2019_Land_Cover_L48.tif": at((-89.0, 43.0), "EPSG:5070"),
        "c/nlcd2011.tif": at((-89.0, 43.0), "EPSG:32616"),
    }.items():
        raster.write(tmp_path / name)
    for name in (
        "a/n48_20_2020lc030.tif.aux.xml",
        "b/readme.txt",
        "b/n48_20_2020lc030.tfw",
        "a/dem.tif",
        "b/48_20_2020.tif",
    ):
        (tmp_path / name).write_text("not a sheet")
    covers = find_landcover([tmp_path / "a", str(tmp_path / "b"), tmp_path / "c" / "nlcd2011.tif"])
    assert caplog.messages == [f"{tmp_path}/a/dem.tif and 1 more: no product matches this file name; ignored"]
    assert {cover.name: len(cover.sheets) for cover in covers} == {
        "globeland30_2010": 1,
        "globeland30_2020": 2,
        "mcd12c1_2001": 1,
        "mcd12c1_2020": 1,
        "nlcd_2011": 1,
        "nlcd_2019": 1,
        "worldcover_2020": 2,
        "worldcover_2021": 1,
    }
    assert [cover.name for cover in covers] == sorted(cover.name for cover in covers)
    assert all(cover.legend.name == cover.name.rpartition("_")[0] for cover in covers)
    assert find_landcover([tmp_path / "a", tmp_path / "b", tmp_path / "c"]) == covers


def test_a_sheet_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    path = at((105.0, 22.5)).write(tmp_path / "deep" / "n48_20_2020lc030.tif")
    (cover,) = find_landcover([tmp_path, tmp_path / "deep", path])
    assert len(cover.sheets) == 1


def refused(paths: Iterable[Path]) -> str:
    """Why sheets are refused, found to be one sentence."""
    with pytest.raises(LandCoverError, match=r"^[^\n]+$") as caught:
        find_landcover(paths)
    return str(caught.value)


def test_two_copies_of_a_sheet_are_refused(tmp_path: Path) -> None:
    first = at((105.0, 22.5)).write(tmp_path / "a" / "n48_20_2020lc030.tif")
    second = at((105.0, 22.5)).write(tmp_path / "b" / "N48_20_2020lc030.tif")
    message = refused([tmp_path])
    assert str(first) in message
    assert str(second) in message


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert refused([tmp_path, tmp_path / "nowhere"]) == f"{tmp_path / 'nowhere'}: no such file or directory"


def test_a_directory_without_sheets_is_told_what_would_be_recognised(tmp_path: Path) -> None:
    (tmp_path / "lulc.tif").write_text("of another product")
    message = refused([tmp_path])
    assert str(tmp_path) in message
    assert all(name in message for name in ("globeland30", "worldcover", "mcd12c1", "nlcd"))


def test_a_file_that_is_no_raster_is_refused(tmp_path: Path) -> None:
    whole = at((105.0, 22.5)).write(tmp_path / "whole.tif").read_bytes()
    for content in (b"", b"not a raster", whole[:60]):
        path = tmp_path / "n48_20_2020lc030.tif"
        path.write_bytes(content)
        assert refused([path]).startswith(f"{path}: not a raster that can be read")


def test_a_sheet_that_is_cut_short_is_refused_before_it_is_needed(tmp_path: Path) -> None:
    path = at((105.0, 22.5), side=300, size=30.0).write(tmp_path / "n48_20_2020lc030.tif")
    path.write_bytes(path.read_bytes()[:-30_000])
    assert refused([path]) == f"{path}: its last block cannot be read; the file may be truncated"


def test_a_sheet_that_is_damaged_is_told_when_it_is_read(tmp_path: Path) -> None:
    raster = at((105.0, 22.5), side=300, size=30.0)
    path = tmp_path / "n48_20_2020lc030.tif"
    profile = {"driver": "GTiff", "height": 300, "width": 300, "count": 1, "dtype": "uint8", "compress": "deflate"}
    with rasterio.open(path, "w", **profile, crs=raster.crs, transform=raster.transform) as file:
        file.write(drawn(3, (300, 300), [10, 20, 60]), 1)
    content = bytearray(path.read_bytes())
    content[2000:8000] = bytes(6000)
    path.write_bytes(content)
    (cover,) = find_landcover([path])
    with pytest.raises(LandCoverError, match="cannot be read") as caught:
        compute_class_shares(raster.corners([[(10, 30), (290, 30), (290, 60), (10, 60)]]), "EPSG:32648", cover)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("raster", "fault"),
    [
        (at((105.0, 22.5), None), "the raster has no CRS"),
        (Raster(np.zeros((5, 5), np.uint8), 0.0, 0.0, 30.0, 'LOCAL_CS["a table",UNIT["metre",1]]'), "CRS"),
        (Raster(np.zeros((5, 5), np.uint8), 0.0, 0.0, 1e9, "EPSG:5070"), "CRS"),
    ],
)
def test_a_sheet_that_lies_nowhere_is_refused(tmp_path: Path, raster: Raster, fault: str) -> None:
    path = raster.write(tmp_path / "nlcd_2019.tif")
    message = refused([path])
    assert message.startswith(f"{path}: ")
    assert fault in message


@pytest.mark.parametrize("transform", [Affine(30, 0, 0, 0, 30, 0), Affine(20, 20, 0, 20, -20, 0)])
def test_a_sheet_must_be_north_up(tmp_path: Path, transform: Affine) -> None:
    path = tmp_path / "nlcd_2019.tif"
    profile = {"driver": "GTiff", "height": 5, "width": 5, "count": 1, "dtype": "uint8", "crs": "EPSG:5070"}
    with rasterio.open(path, "w", **profile, transform=transform) as file:
        file.write(np.zeros((5, 5), np.uint8), 1)
    assert refused([path]).startswith(f"{path}: a sheet must be north-up")
