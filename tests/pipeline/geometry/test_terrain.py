"""Heights from a DEM that is a plane, so that bilinear interpolation has one right answer everywhere."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Transformer

from pipeline.geometry.sensor import Floats
from pipeline.geometry.terrain import Terrain, TerrainError, find_geoid, find_unit_conflict, vertical_datum
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


def test_the_border_cell_goes_on_for_one_cell_and_then_down_to_the_flat_height(dem: str) -> None:
    """Without a step, which would tear the image."""
    terrain, values = Terrain(dem, FLAT), cells()
    col, row = np.array([0.01, COLS - 0.01, 0.01, 20.5]), np.array([0.01, 0.01, ROWS - 0.01, ROWS - 0.01])
    assert heights(terrain, col, row) == pytest.approx([values[0, 0], values[0, -1], values[-1, 0], values[-1, 20]])
    for away, share in ((0.3, 1.0), (0.5, 1.0), (1.0, 0.5), (1.25, 0.25), (1.5, 0.0), (30.0, 0.0)):
        beyond = np.array([-away, COLS + away, 20.5, 20.5]), np.array([5.5, 5.5, -away, ROWS + away])
        border = np.array([values[5, 0], values[5, -1], values[0, 20], values[-1, 20]])
        assert heights(terrain, *beyond) == pytest.approx(share * border + (1 - share) * FLAT, abs=1e-3)
    mixed = heights(terrain, np.array([-500.0, 10.5, 9999.0]), np.array([3.5, 3.5, 3.5]))
    assert mixed == pytest.approx([FLAT, values[3, 10], FLAT])


@pytest.mark.parametrize(
    ("hole", "nodata"), [(-32768.0, -32768.0), (np.nan, np.nan), (np.nan, None), (-9999.0, None), (3e38, None)]
)
def test_a_hole_is_filled_from_its_border_and_counted(tmp_path: Path, hole: float, nodata: float | None) -> None:
    """Whether or not the file says what stands for no height."""
    values = cells()
    values[10:20, 5:25] = hole
    terrain = Terrain(write_dem(tmp_path / "dem.tif", values, TRANSFORM, CRS, nodata), FLAT)
    col, row = np.meshgrid(np.arange(5.5, 25), np.arange(10.5, 20))
    border = cells()[9:21, 4:26]
    found = heights(terrain, col, row)
    assert (found >= border.min()).all()
    assert (found <= border.max()).all()
    assert np.abs(found - plane(LEFT + col * CELL, TOP - row * CELL)).max() < 60  # of a hole over 120 m of relief
    x, y = np.meshgrid(np.arange(0.75, COLS), np.arange(0.75, ROWS))
    lon, lat = Transformer.from_crs(CRS, 4326, always_xy=True).transform(LEFT + x * CELL, TOP - y * CELL)
    assert terrain.coverage(lon, lat) == 1
    assert terrain.count_holes(lon, lat) == 200
    assert terrain.count_holes(lon[:5], lat[:5]) == 0


def test_a_hole_is_filled_alike_whatever_window_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    values = rng.uniform(500, 900, (300, 320)).astype(np.float32)
    values[100:210, 90:230] = np.nan
    values[20:30, 5:9] = np.nan
    terrain = Terrain(write_dem(tmp_path / "dem.tif", values, TRANSFORM, CRS), FLAT)
    col, row = np.meshgrid(np.arange(100.5, 200, 7), np.arange(110.5, 200, 7))
    whole = heights(terrain, np.array([[1.0, 319.0]]), np.array([[1.0, 299.0]]))
    assert whole.shape == (1, 2)
    at_once = heights(terrain, np.append(col, [0.5, 319.5]), np.append(row, [0.5, 299.5]))[:-2]
    one_by_one = [
        float(heights(terrain, np.array([c]), np.array([r]))[0]) for c, r in zip(col.flat, row.flat, strict=True)
    ]
    assert at_once == pytest.approx(one_by_one, abs=1e-3)
    assert np.ptp(at_once) > 10


def test_a_hole_too_large_to_fill_has_the_flat_height(tmp_path: Path) -> None:
    values = np.full((250, 260), 800.0, np.float32)
    values[:, 20:] = np.nan
    terrain = Terrain(write_dem(tmp_path / "dem.tif", values, TRANSFORM, CRS), FLAT)
    assert heights(terrain, np.array([60.5, 250.5]), np.array([100.5, 100.5])) == pytest.approx([800, FLAT])
    lon, lat = Transformer.from_crs(CRS, 4326, always_xy=True).transform(LEFT + 250.5 * CELL, TOP - 100.5 * CELL)
    assert terrain.coverage(np.array([lon]), np.array([lat])) == 0


def test_a_mosaic_is_read_as_one(tmp_path: Path) -> None:
    """A VRT over two sheets that meet."""
    values = cells()
    for name, part in (("west", np.s_[:, :30]), ("east", np.s_[:, 30:])):
        moved = TRANSFORM @ Affine.translation(part[1].start or 0, 0)
        write_dem(tmp_path / f"{name}.tif", values[part], moved, CRS)
    size = "yOff='0' ySize='40'"
    sources = "".join(
        f"<SimpleSource><SourceFilename relativeToVRT='1'>{name}.tif</SourceFilename><SourceBand>1</SourceBand>"
        f"<SrcRect xOff='0' xSize='{w}' {size}/><DstRect xOff='{x}' xSize='{w}' {size}/></SimpleSource>"
        for name, x, w in (("west", 0, 30), ("east", 30, 20))
    )
    (tmp_path / "dem.vrt").write_text(
        f"<VRTDataset rasterXSize='{COLS}' rasterYSize='{ROWS}'><SRS>{CRS}</SRS>"
        f"<GeoTransform>{', '.join(map(str, TRANSFORM.to_gdal()))}</GeoTransform>"
        f"<VRTRasterBand dataType='Float32' band='1'>{sources}</VRTRasterBand></VRTDataset>"
    )
    col, row = np.meshgrid(np.arange(1.3, COLS - 1, 2.7), np.arange(1.3, ROWS - 1, 3.1))
    found = heights(Terrain(str(tmp_path / "dem.vrt"), FLAT), col, row)
    assert found == pytest.approx(plane(LEFT + col * CELL, TOP - row * CELL), abs=1e-3)


@pytest.mark.parametrize("left", [-180.0, 0.0])
@pytest.mark.parametrize("lon", [179.3, 179.99, -179.99, 180.0, 0.02, -0.02])
def test_a_dem_of_the_whole_earth_goes_on_past_its_edge(tmp_path: Path, left: float, lon: float) -> None:
    """Heights that are no function of where the file begins: 1000 + 500 sin(longitude) + latitude."""
    col, row = np.arange(720), np.arange(40)
    values = 1000 + 500 * np.sin(np.radians(left + (col + 0.5) / 2)) + (10 - (row[:, None] + 0.5) / 2)
    placed = Affine(0.5, 0, left, 0, -0.5, 10.0)
    dem = write_dem(tmp_path / "dem.tif", values.astype(np.float32), placed, "EPSG:4326")
    lons = lon + np.linspace(-0.7, 0.7, 29)
    lats = np.linspace(3, 4, 29)
    found = Terrain(dem, FLAT).heights(lons, lats)
    assert found == pytest.approx(1000 + 500 * np.sin(np.radians(lons)) + lats, abs=0.05)
    assert Terrain(dem, FLAT).relief(lons, lats).cells.size < 100  # and not all the way round
    coarse = Terrain(dem, FLAT).relief(lons, lats, most=10)
    assert coarse.cells.size < 20
    assert coarse.heights_at(*coarse.cell_coordinates(lons, lats)) == pytest.approx(found, abs=0.5)


@pytest.mark.parametrize("lon", [179.95, -179.95, 180.0])
def test_a_dem_across_the_antimeridian_is_read_on_both_sides(tmp_path: Path, lon: float) -> None:
    """A regional one from 179 E on, whose longitudes go past 180."""
    values = np.tile(100.0 + np.arange(40), (30, 1)).astype(np.float32)
    dem = write_dem(tmp_path / "dem.tif", values, Affine(0.05, 0, 179.0, 0, -0.05, 1.0), "EPSG:4326")
    lons = lon + np.array([-0.1, 0.0, 0.1])
    wanted = 100 + ((lons - 179) % 360) / 0.05 - 0.5
    assert Terrain(dem, FLAT).heights(lons, np.full(3, 0.5)) == pytest.approx(wanted, abs=1e-2)


def test_a_dem_much_finer_than_asked_for_is_read_in_larger_cells(tmp_path: Path) -> None:
    values = np.add.outer(np.arange(640.0), np.arange(512.0) * 2).astype(np.float32)
    dem = write_dem(tmp_path / "dem.tif", values, TRANSFORM, CRS)
    col, row = np.meshgrid(np.linspace(30, 480, 9), np.linspace(30, 600, 9))
    lon, lat = Transformer.from_crs(CRS, 4326, always_xy=True).transform(LEFT + col * CELL, TOP - row * CELL)
    relief = Terrain(dem, FLAT).relief(lon, lat, most=5000)
    assert 1000 < relief.cells.size <= 6000
    assert relief.heights_at(*relief.cell_coordinates(lon, lat)) == pytest.approx(
        (row - 0.5) + (col - 0.5) * 2, abs=1e-2
    )
    values[300:330, 200:260] = np.nan
    holed = Terrain(write_dem(tmp_path / "holed.tif", values, TRANSFORM, CRS), FLAT).relief(lon, lat, most=5000)
    away = np.abs(holed.cells - relief.cells)
    assert 0 < away.max() < 60  # of a hole over 150 m of relief
    assert (away > 0).mean() < 0.03


# --- heights above the geoid


def geoid_grid(path: Path, left: float = -180.0) -> str:
    """Undulations that are linear: 20 + longitude / 10 + latitude / 5 on a quarter of a degree."""
    lon, lat = left + 0.25 * np.arange(1440), 90.0 - 0.25 * np.arange(721)
    values = 20 + ((lon + 180) % 360 - 180) / 10 + lat[:, None] / 5
    return write_dem(path, values.astype(np.float32), Affine(0.25, 0, left - 0.125, 0, -0.25, 90.125), "EPSG:4326")


@pytest.mark.parametrize("left", [-180.0, 0.0])
def test_heights_above_the_geoid_become_ellipsoidal(tmp_path: Path, dem: str, left: float) -> None:
    terrain = Terrain(dem, FLAT, geoid_grid(tmp_path / "geoid.tif", left))
    col, row = np.meshgrid(np.arange(0.75, COLS - 0.5, 3.3), np.arange(0.75, ROWS - 0.5, 2.9))
    lon, lat = Transformer.from_crs(CRS, 4326, always_xy=True).transform(LEFT + col * CELL, TOP - row * CELL)
    wanted = plane(LEFT + col * CELL, TOP - row * CELL) + 20 + lon / 10 + lat / 5
    assert heights(terrain, col, row) == pytest.approx(wanted, abs=2e-3)
    # The flat height is the camera's own, and ellipsoidal already.
    assert heights(terrain, np.array([-50.0]), np.array([5.0])) == pytest.approx([FLAT])
    assert heights(terrain, np.array([-1.5, 2.0]), np.array([5.0, 5.0]))[0] == pytest.approx(FLAT)


def test_a_geoid_has_its_own_scale_offset_and_unit(tmp_path: Path, dem: str) -> None:
    plain = geoid_grid(tmp_path / "geoid.tif")
    with rasterio.open(plain) as file:
        values, transform = file.read(1).astype(np.float64), file.transform
    odd = write_dem(tmp_path / "odd.tif", (values * 100 - 50) / 0.25, transform, "EPSG:4326")
    with rasterio.open(odd, "r+") as file:
        file.scales, file.offsets, file.units = (0.25,), (50.0,), ("cm",)
    col, row = np.array([1.5, 9.25]), np.array([2.0, 11.0])
    wanted = heights(Terrain(dem, FLAT, plain), col, row)
    assert heights(Terrain(dem, FLAT, odd), col, row) == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize(("name", "file"), [("egm96", "egm96_15.gtx"), ("EGM2008", "us_nga_egm08_25.tif")])
def test_a_geoid_is_found_by_the_name_of_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str
) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / file).touch()
    monkeypatch.setenv("PROJ_DATA", f"{tmp_path / 'a'}:{tmp_path / 'b'}")
    assert find_geoid(name) == str(tmp_path / "b" / file)
    assert find_geoid("mine.tif") == "mine.tif"
    monkeypatch.setattr("pipeline.geometry.terrain.GEOIDS", {name.lower(): ("us_nga.tif",)})
    with pytest.raises(TerrainError, match=rf"^{name}: none of PROJ's folders, .*/a, .*/b, .*`projsync --file us_nga"):
        find_geoid(name)


def test_a_geoid_that_ends_before_the_dem_is_refused_by_name(tmp_path: Path, dem: str) -> None:
    grid = write_dem(tmp_path / "geoid.tif", np.full((5, 5), 30.0), Affine(1, 0, 10, 0, -1, 40), "EPSG:4326")
    with pytest.raises(TerrainError, match=r"geoid\.tif: the geoid has no height at 10\d\.\d\d E, 2\d\.\d\d N"):
        heights(Terrain(dem, FLAT, grid), np.array([10.0]), np.array([10.0]))


@pytest.mark.parametrize(
    ("crs", "datum"),
    [
        ("EPSG:4326+5773", "EGM96 height"),
        ("EPSG:32648+3855", "EGM2008 height"),
        ("EPSG:4326", None),
        ("EPSG:4979", "ellipsoid"),
    ],
)
def test_what_a_dem_says_of_its_heights_is_noticed(tmp_path: Path, crs: str, datum: str | None) -> None:
    placed = TRANSFORM if "32648" in crs else Affine(0.01, 0, 105.0, 0, -0.01, 25.0)
    dem = write_dem(tmp_path / "dem.tif", np.full((60, 60), 700.0), placed, CRS)
    with rasterio.open(dem, "r+") as file:
        file.crs = rasterio.CRS.from_user_input(crs)
    assert vertical_datum(dem) == datum
    lon, lat = np.array([105.2]), np.array([24.7]) if "32648" not in crs else np.array([24.85])
    if "32648" in crs:
        lon = np.array([105.003])
    assert Terrain(dem, FLAT).heights(lon, lat) == pytest.approx([700])


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
    with pytest.raises(TerrainError, match=r"heights\.tif: the heights have no coordinate system"):
        Terrain(str(path), FLAT).heights(np.array([105.0]), np.array([24.0]))


@pytest.mark.parametrize(
    ("crs", "unit", "scale", "offset", "metres"),
    [
        (CRS, None, 0.1, 0.0, 1.0),  # decimetres by the band's scale
        (CRS, None, 0.5, 100.0, 1.0),
        (CRS, "dm", 1.0, 0.0, 0.1),
        (CRS, "Foot", 1.0, 0.0, 0.3048),
        (CRS, "US survey foot", 0.1, 0.0, 1200 / 3937),
        (f"{CRS}+6360", None, 1.0, 0.0, 1200 / 3937),  # NAVD88 height (ftUS)
        (f"{CRS}+5773", None, 1.0, 0.0, 1.0),
        (f"{CRS}+5773", "ft", 1.0, 0.0, 0.3048),  # what the band says comes first
    ],
)
def test_heights_are_metres_whatever_the_file_counts_in(
    tmp_path: Path, crs: str, unit: str | None, scale: float, offset: float, metres: float
) -> None:
    path = write_dem(tmp_path / "dem.tif", (cells() / metres - offset) / scale, TRANSFORM, crs)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (scale,), (offset,)
        if unit:
            file.units = (unit,)
    col, row = np.array([3.5, 20.5]), np.array([7.5, 30.5])
    expected = plane(LEFT + col * CELL, TOP - row * CELL)
    assert heights(Terrain(path, FLAT), col, row) == pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize(
    ("crs", "unit", "said"),
    [
        (
            f"{CRS}+5773",
            "ft",
            "the band's heights are in ft, those of its CRS in units of 1 m; the band is believed",
        ),
        (
            f"{CRS}+6360",
            "m",
            "the band's heights are in m, those of its CRS in units of 0.3048 m; the band is believed",
        ),
        (f"{CRS}+6360", "foot", ""),  # 2 millionths longer
        (f"{CRS}+5773", "metre", ""),
        (CRS, "ft", ""),
        (f"{CRS}+5773", None, ""),
    ],
)
def test_a_band_and_a_crs_of_different_units_are_noticed(tmp_path: Path, crs: str, unit: str | None, said: str) -> None:
    path = write_dem(tmp_path / "dem.tif", cells(), TRANSFORM, crs)
    with rasterio.open(path, "r+") as file:
        if unit:
            file.units = (unit,)
    assert find_unit_conflict(path) == said


def test_a_unit_that_is_no_length_is_named(tmp_path: Path) -> None:
    path = write_dem(tmp_path / "dem.tif", cells(), TRANSFORM, CRS)
    with rasterio.open(path, "r+") as file:
        file.units = ("kelvin",)
    with pytest.raises(TerrainError, match=r"dem.tif: its heights are in kelvin, which is no known unit of length"):
        heights(Terrain(path, FLAT), np.array([3.5]), np.array([3.5]))
