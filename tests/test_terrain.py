"""Heights from a DEM that is a plane, so that bilinear interpolation has one right answer everywhere."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Transformer

from pipeline.scene import SceneError
from pipeline.sensor import Floats
from pipeline.terrain import Terrain
from tests.deliveries import tiff, write_dem

CRS, CELL, ROWS, COLS, LEFT, TOP = "EPSG:32648", 30.0, 40, 50, 500_000.0, 2_750_000.0
TRANSFORM = Affine(CELL, 0, LEFT, 0, -CELL, TOP)
FLAT = 321.0
"""Height where the DEM says nothing."""


def plane(x: Floats, y: Floats) -> Floats:
    return 700.0 + 0.3 * (x - LEFT) - 0.2 * (y - TOP)


def cells() -> npt.NDArray[np.float32]:
    row, col = np.mgrid[:ROWS, :COLS]
    return plane(LEFT + (col + 0.5) * CELL, TOP - (row + 0.5) * CELL).astype(np.float32)


def heights(terrain: Terrain, col: Floats, row: Floats) -> Floats:
    """Heights at places given in cells of the DEM; (0, 0) is its outer corner."""
    lon, lat = Transformer.from_crs(CRS, 4326, always_xy=True).transform(LEFT + col * CELL, TOP - row * CELL)
    return terrain.heights(lon, lat)


@pytest.fixture(scope="module")
def dem(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dem(tmp_path_factory.mktemp("dem") / "dem.tif", cells(), TRANSFORM, CRS)


@given(col=st.floats(0.5, COLS - 0.5), row=st.floats(0.5, ROWS - 0.5), width=st.floats(0, 5))
def test_a_plane_comes_back_between_the_centres(dem: str, col: float, row: float, width: float) -> None:
    """However small the part that is asked for, down to a point."""
    cols = np.clip(col + np.array([[0.0, 0.3, 1.0]]) * width, 0.5, COLS - 0.5)
    rows = np.clip(row - np.array([[1.0], [0.0]]) * width, 0.5, ROWS - 0.5)
    cols, rows = np.broadcast_arrays(cols, rows)
    found = heights(Terrain(dem, FLAT), cols, rows)
    assert found.shape == (2, 3)
    assert found == pytest.approx(plane(LEFT + cols * CELL, TOP - rows * CELL), abs=1e-3)


def test_the_border_cell_goes_on_to_its_edge_and_no_further(dem: str) -> None:
    terrain, values = Terrain(dem, FLAT), cells()
    col, row = np.array([0.01, COLS - 0.01, 0.01, 20.5]), np.array([0.01, 0.01, ROWS - 0.01, ROWS - 0.01])
    assert heights(terrain, col, row) == pytest.approx([values[0, 0], values[0, -1], values[-1, 0], values[-1, 20]])
    beyond = np.array([-0.01, COLS + 0.01, 20.0, 20.0]), np.array([5.0, 5.0, -0.01, ROWS + 0.01])
    assert heights(terrain, *beyond) == pytest.approx([FLAT] * 4)
    mixed = heights(terrain, np.array([-500.0, 10.5, 9999.0]), np.array([3.5, 3.5, 3.5]))
    assert mixed == pytest.approx([FLAT, values[3, 10], FLAT])


@pytest.mark.parametrize(("hole", "nodata"), [(-32768.0, -32768.0), (np.nan, np.nan), (np.nan, None)])
def test_a_hole_has_the_flat_height_and_does_not_count_as_covered(
    tmp_path: Path, hole: float, nodata: float | None
) -> None:
    values = cells()
    values[10:20, 5:25] = hole
    terrain = Terrain(write_dem(tmp_path / "dem.tif", values, TRANSFORM, CRS, nodata), FLAT)
    col, row = np.array([10.0, 24.0, 30.0]), np.array([15.0, 11.0, 15.0])
    inside = plane(LEFT + col * CELL, TOP - row * CELL)[2]
    assert heights(terrain, col, row) == pytest.approx([FLAT, FLAT, inside])
    # Half in, half out of the hole: between the two heights.
    (edge,) = heights(terrain, np.array([25.0]), np.array([15.5]))
    assert edge == pytest.approx((FLAT + values[15, 25]) / 2)
    x, y = np.meshgrid(np.arange(0.75, COLS), np.arange(0.75, ROWS))
    lon, lat = Transformer.from_crs(CRS, 4326, always_xy=True).transform(LEFT + x * CELL, TOP - y * CELL)
    # The hole's 10 x 20 cells, and the points whose neighbours are in it.
    assert terrain.coverage(lon, lat) == pytest.approx(1 - 11 * 21 / (COLS * ROWS))


def test_a_dem_in_another_crs_and_upside_down_is_read_where_it_lies(tmp_path: Path) -> None:
    """Rows from south to north, longitude and latitude: the height is the cell's own latitude and longitude."""
    row, col = np.mgrid[:30, :50]
    values = ((24.0 + (row + 0.5) * 0.01) * 10 + (105.0 + (col + 0.5) * 0.01)).astype(np.float64)
    dem = write_dem(tmp_path / "dem.tif", values, Affine(0.01, 0, 105.0, 0, 0.01, 24.0), "EPSG:4326")
    lon, lat = np.array([105.1234, 105.4321]), np.array([24.2, 24.0777])
    assert Terrain(dem, FLAT).heights(lon, lat) == pytest.approx(lat * 10 + lon)


def test_whole_numbers_are_interpolated_as_such(tmp_path: Path) -> None:
    values = np.array([[0, 1], [2, 3]], np.int16)
    dem = write_dem(tmp_path / "dem.tif", values, TRANSFORM, CRS)
    assert heights(Terrain(dem, FLAT), np.array([1.0]), np.array([1.0])) == pytest.approx([1.5])


def test_without_a_dem_the_ground_is_flat() -> None:
    terrain = Terrain(None, FLAT)
    assert terrain.heights(np.zeros((2, 3)), np.zeros((2, 3))).tolist() == [[FLAT] * 3] * 2
    assert terrain.coverage(np.zeros(4), np.zeros(4)) == 0


def test_coverage_is_the_share_of_points_inside(dem: str) -> None:
    lon, lat = Transformer.from_crs(CRS, 4326, always_xy=True).transform(
        LEFT + np.arange(-4.5, 16) * CELL, np.full(21, TOP - 5 * CELL)
    )
    assert Terrain(dem, FLAT).coverage(lon, lat) == pytest.approx(16 / 21)
    assert Terrain(dem, FLAT).coverage(lon + 5, lat) == 0


def test_a_dem_that_lies_nowhere_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "heights.tif"
    path.write_bytes(tiff(cells()[None], transform=TRANSFORM))
    with pytest.raises(SceneError, match=r"heights\.tif: the heights have no coordinate system"):
        Terrain(str(path), FLAT).heights(np.array([105.0]), np.array([24.0]))
