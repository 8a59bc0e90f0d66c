"""The shares of a footprint's parts: exact, and together those of the footprint."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import shapely
from affine import Affine
from exactextract import exact_extract
from exactextract.raster import NumPyRasterSource
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer

from geokr.landcover.discovery import find_landcover
from geokr.landcover.outlines import LONLAT, divide, divide_rings, project_rings
from geokr.landcover.shares import Shares, compute_class_shares
from geokr.landcover.sheets import LandCover

Floats = npt.NDArray[np.float64]

UTM = "EPSG:32648"
LEFT, TOP, CELL, SIDE = 400_000.0, 2_700_000.0, 10.0, 120
CODES = (11, 21, 41, 82, 255)  # the last one is unknown
CELLS = np.random.default_rng(3).choice(CODES, (SIDE, SIDE)).astype(np.uint8)


def write(path: Path, cells: npt.NDArray[np.uint8], transform: Affine, crs: str) -> LandCover:
    height, width = cells.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": "uint8", "crs": crs}
    with rasterio.open(path, "w", **profile, transform=transform) as file:
        file.write(cells, 1)
    (cover,) = find_landcover([path])
    return cover


@pytest.fixture(scope="module")
def utm(tmp_path_factory: pytest.TempPathFactory) -> LandCover:
    path = tmp_path_factory.mktemp("utm") / "nlcd_2019.tif"
    return write(path, CELLS, Affine(CELL, 0, LEFT, 0, -CELL, TOP), UTM)


@pytest.fixture(scope="module")
def degrees(tmp_path_factory: pytest.TempPathFactory) -> LandCover:
    x, y = Transformer.from_crs(UTM, LONLAT, always_xy=True).transform(LEFT, TOP)
    path = tmp_path_factory.mktemp("degrees") / "nlcd_2019.tif"
    return write(path, CELLS, Affine(1e-4, 0, x - 1e-4, 0, -1e-4, y + 1e-4), LONLAT)


def quadrilateral(side: float, turn: float, x: float = 600.0, y: float = -600.0) -> Floats:
    local = np.array([(-1, 1), (1, 1.2), (1, -1), (-1, -1)]) * side / 2
    spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.asarray(local @ spin + [LEFT + x, TOP + y])[None]


def by_shapely(ring: Floats, cover: LandCover) -> Floats:
    """Area of each class in a ring of the map's plane, relative to the ring's."""
    (sheet,) = cover.sheets
    a, _, left, _, e, top = sheet.transform
    row, col = np.mgrid[:SIDE, :SIDE]
    cells = shapely.box(left + a * col, top + e * (row + 1), left + a * (col + 1), top + e * row)
    polygon = shapely.Polygon(ring)
    area = shapely.area(shapely.intersection(cells, polygon)) / polygon.area
    return np.asarray(area.ravel() @ cover.legend.shares(CELLS.ravel()))


def laws(shares: Shares, alone: Shares) -> None:
    """The mean of the parts is the footprint's label, which does not depend on the parts."""
    areas = shares.fraction * shares.known[:, None]
    assert shares.parts.mean(axis=(1, 2)) == pytest.approx(areas, abs=1e-12)
    assert shares.fraction == pytest.approx(alone.fraction, abs=1e-12)
    assert shares.known == pytest.approx(alone.known, abs=1e-12)


@given(st.floats(100, 1000), st.floats(0, 6.3), st.sampled_from([1, 2, 4, 8]), st.booleans())
@settings(max_examples=15, deadline=None)
def test_parts_are_those_of_shapely(utm: LandCover, side: float, turn: float, grid: int, backwards: bool) -> None:
    corners = quadrilateral(side, turn)
    corners = corners[:, ::-1] if backwards else corners
    shares = compute_class_shares(corners, UTM, utm, grid)
    for r, c in {(0, 0), (grid - 1, 0), (grid // 2, grid - 1)}:
        wanted = by_shapely(divide(corners, grid)[0, r, c], utm)
        size = shapely.Polygon(divide(corners, grid)[0, r, c]).area * grid**2 / shapely.Polygon(corners[0]).area
        assert shares.parts[0, r, c] / size == pytest.approx(wanted, abs=1e-9)
    laws(shares, compute_class_shares(corners, UTM, utm))


@pytest.mark.parametrize("grid", [2, 8])
def test_parts_are_those_of_exactextract_where_its_single_precision_does_not_show(utm: LandCover, grid: int) -> None:
    corners = quadrilateral(700.0, 0.0)
    corners[:, :, :] = np.round(corners / 5) * 5  # halves of cells are exact in single precision
    corners[0, 1, 1] = corners[0, 0, 1]
    shares = compute_class_shares(corners, UTM, utm, grid)
    parts = divide(corners, grid).reshape(-1, 4, 2)
    extent = (LEFT, TOP - SIDE * CELL, LEFT + SIDE * CELL, TOP)
    raster = NumPyRasterSource(CELLS, *extent, srs_wkt=rasterio.crs.CRS.from_string(UTM).to_wkt())
    features = [
        {"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(shapely.Polygon(ring))}
        for ring in parts
    ]
    found = exact_extract(raster, features, ["unique", "frac"])
    wanted = np.stack(
        [row["properties"]["frac"] @ utm.legend.shares(row["properties"]["unique"].astype(int)) for row in found]
    )
    assert shares.parts.reshape(wanted.shape) == pytest.approx(wanted, abs=1e-6 if grid == 8 else 1e-9)


@pytest.mark.parametrize("grid", [2, 4, 8])
def test_parts_over_a_map_in_degrees_are_those_of_shapely(degrees: LandCover, grid: int) -> None:
    corners = quadrilateral(500.0, 0.3)
    shares = compute_class_shares(corners, UTM, degrees, grid)
    laws(shares, compute_class_shares(corners, UTM, degrees))
    points, offsets = divide_rings(project_rings(corners, UTM, LONLAT), grid)
    for part in (0, grid * grid // 2 + 1, grid * grid - 1):
        got = shares.parts.reshape(-1, shares.parts.shape[-1])[part]
        wanted = by_shapely(points[0, offsets[part] : offsets[part + 1]], degrees)
        # The area of a cell depends on its latitude: by 1e-5 within the footprint, and little of it within a part.
        assert got / got.sum() == pytest.approx(wanted / wanted.sum(), abs=1e-6)
        alone = compute_class_shares(divide(corners, grid).reshape(-1, 4, 2)[part : part + 1], UTM, degrees)
        assert got / got.sum() == pytest.approx(alone.fraction[0], abs=2e-6)


@pytest.mark.parametrize(("side", "latitude"), [(4_096.0, 24.0), (4_096.0, 78.0), (250_000.0, 60.0)])
@pytest.mark.parametrize("grid", [2, 8])
def test_divided_outlines_are_projected_parts(side: float, latitude: float, grid: int) -> None:
    x, y = Transformer.from_crs(LONLAT, UTM, always_xy=True).transform(103.5, latitude)
    corners = np.array([(x, y), (x + side, y), (x + side, y - side), (x, y - side)])[None]
    outline = project_rings(corners, UTM, LONLAT)
    points, offsets = divide_rings(outline, grid)
    parts = [shapely.Polygon(points[0, a:b]) for a, b in pairwise(offsets)]
    exact = [
        shapely.Polygon(project_rings(part[None], UTM, LONLAT)[0]) for part in divide(corners, grid).reshape(-1, 4, 2)
    ]
    for ours, wanted in zip(parts, exact, strict=True):
        assert shapely.area(shapely.symmetric_difference(ours, wanted)) / wanted.area < (5e-4 if side > 1e5 else 1e-5)
    whole = shapely.Polygon(outline[0])
    assert sum(part.area for part in parts) == pytest.approx(whole.area, rel=1e-12)
    assert shapely.area(shapely.symmetric_difference(shapely.union_all(parts), whole)) < 1e-12 * whole.area


def test_parts_across_two_sheets_add_up(tmp_path: Path) -> None:
    for name, west, seed in (("E102", 102.0, 1), ("E105", 105.0, 2)):
        cells = np.random.default_rng(seed).choice([10, 30, 40, 0], (60, 60)).astype(np.uint8)
        path = tmp_path / f"ESA_WorldCover_10m_2020_v100_N24{name}_Map.tif"
        write(path, cells, Affine(0.05, 0, west, 0, -0.05, 27), LONLAT)
    (cover,) = find_landcover([tmp_path])
    x, y = Transformer.from_crs(LONLAT, UTM, always_xy=True).transform(105.0, 25.5)
    corners = (np.array([(-1, 1), (1, 1), (1, -1), (-1, -1)]) * 20_000.0 + [x + 3_000.0, y])[None]
    alone = compute_class_shares(corners, UTM, cover)
    for grid in (2, 8):
        shares = compute_class_shares(corners, UTM, cover, grid)
        areas = shares.fraction * shares.known[:, None]
        assert shares.parts.mean(axis=(1, 2)) == pytest.approx(areas, abs=1e-12)
        assert areas == pytest.approx(alone.fraction * alone.known[:, None], abs=1e-4)
        of_parts = compute_class_shares(divide(corners, grid).reshape(-1, 4, 2), UTM, cover)
        wanted = (of_parts.fraction * of_parts.known[:, None]).reshape(shares.parts.shape)
        assert shares.parts == pytest.approx(wanted, abs=1e-3)


def test_parts_around_a_pole_are_footprints_of_their_own(tmp_path: Path) -> None:
    cells = np.tile(np.repeat(np.array([1, 7, 10, 16], np.uint8), 18), (36, 1))
    path = tmp_path / "MCD12C1.A2020001.061.2022172062638.tif"
    cover = write(path, cells, Affine(5, 0, -180, 0, -5, 90), LONLAT)
    crs = "EPSG:5041"
    corners = (np.array([(-1, 1), (1, 1), (1, -1), (-1, -1)]) * 5_000.0 + [2_000_000.0 + 700.0, 2_000_000.0])[None]
    shares = compute_class_shares(corners, crs, cover, 2)
    of_parts = compute_class_shares(divide(corners, 2).reshape(-1, 4, 2), crs, cover)
    parts = shares.parts.reshape(4, -1)  # of the map's large cells near the pole, the plane distorts areas
    assert parts / parts.sum(axis=1, keepdims=True) == pytest.approx(of_parts.fraction, abs=1e-9)
    assert shares.parts.mean(axis=(1, 2)) == pytest.approx(shares.fraction * shares.known[:, None], abs=1e-12)
    assert shares.fraction == pytest.approx(compute_class_shares(corners, crs, cover).fraction, abs=1e-4)
