"""Orthorectification of images whose pixels hold their own coordinates: geometry is asserted in pixels."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from hypothesis import example, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio.warp import Resampling as Gdals
from rasterio.warp import reproject

from pipeline.geometry.grid import TileGrid, make_scene_grid
from pipeline.geometry.sensor import RPC, Floats, Georeferenced, SensorModel
from pipeline.geometry.terrain import Relief, Terrain, flat_relief
from pipeline.imaging import ortho
from pipeline.imaging.lattice import STEPS, TOLERANCE, Lattice, fit_lattice
from pipeline.imaging.ortho import Resampling, band_groups, resample
from pipeline.scenes.footprint import image_footprint
from pipeline.scenes.raster import Pixels
from pipeline.scenes.scene import Image, SceneError
from tests.deliveries import GROUND, GSD, HEIGHT, LAT, LON, WIDTH, camera, coordinates, image_of, rpb, write_dem

CRS = "EPSG:32648"
EAST, NORTH = (float(v) for v in Transformer.from_crs(4326, CRS, always_xy=True).transform(LON, LAT))
SCALE = 32
"""Grey values a pixel of the image's columns and rows: 32 see a 32nd of a pixel."""
FLAT = Terrain(None, GROUND)


def orthorectify(
    geobox: GeoBox, image: Image, terrain: Terrain, kind: Resampling = "bilinear"
) -> tuple[Pixels, npt.NDArray[np.bool_], Lattice]:
    found = ortho.orthorectify(geobox, image, terrain, kind)
    return found.pixels, found.valid, found.lattice


def area(width: int, height: int, gsd: float = GSD, east: float = 0.0, north: float = 0.0) -> GeoBox:
    """A grid about the image's centre, moved by metres."""
    left, top = EAST + east - width * gsd / 2, NORTH + north + height * gsd / 2
    return GeoBox((height, width), Affine(gsd, 0, left, 0, -gsd, top), CRS)


def places(geobox: GeoBox) -> tuple[Floats, Floats]:
    """Longitude and latitude of every pixel's centre."""
    t, (height, width) = geobox.transform, geobox.shape
    x, y = np.meshgrid(t.c + (np.arange(width) + 0.5) * t.a, t.f + (np.arange(height) + 0.5) * t.e)
    lon, lat = Transformer.from_crs(CRS, 4326, always_xy=True).transform(x, y)
    return lon, lat


def expected(geobox: GeoBox, model: SensorModel, height: float = GROUND) -> tuple[Floats, Floats]:
    """Where each pixel's centre lies in the image, by the model alone: (col, row) index coordinates."""
    lon, lat = places(geobox)
    col, row = model.image(lon, lat, np.full(lon.shape, height))
    return col - 0.5, row - 0.5


def drawn_on(x: Floats, y: Floats, margin: float = 0.0) -> npt.NDArray[np.bool_]:
    """Whether the neighbours of an index position are all in the image; so far inside, or outside if negative."""
    return (x >= margin) & (x <= WIDTH - 1 - margin) & (y >= margin) & (y <= HEIGHT - 1 - margin)


# --- the whole way


@pytest.mark.parametrize("heading", [0.0, 20.0, 155.0])
@pytest.mark.parametrize(("east", "north"), [(0.0, 0.0), (231.7, -88.3)])
def test_every_pixel_comes_from_where_the_camera_saw_it(
    tmp_path: Path, heading: float, east: float, north: float
) -> None:
    model = camera(heading=heading)
    image = image_of(tmp_path / "image.tif", coordinates(scale=SCALE), model)
    geobox = area(61, 47, 7.3, east, north)
    pixels, valid, mesh = orthorectify(geobox, image, FLAT)
    x, y = expected(geobox, model)
    assert pixels.shape == (47, 61, 4)
    assert pixels.dtype == np.uint16
    assert mesh.error < 2e-3  # a plane seen by a linear camera bends with the Earth alone
    assert valid.sum() > 1000
    inside = drawn_on(x, y)
    wanted = 100 + SCALE * np.stack([x, y, x, y], axis=-1)
    assert np.abs(pixels - wanted)[valid].max() <= 1.6  # half a grey value and a 32nd of a pixel
    unsure = drawn_on(x, y, margin=-0.01) & ~drawn_on(x, y, margin=0.01)
    assert np.array_equal(valid[~unsure], inside[~unsure])


@pytest.mark.parametrize("lean", [(0.12, 0.0), (-0.05, 0.21)])
def test_relief_moves_pixels_by_the_analytic_amount(tmp_path: Path, lean: tuple[float, float]) -> None:
    """A slope of 1 in 4: a bilinear DEM of a plane is the plane."""
    model, cell = camera(lean=lean), 30.0
    image = image_of(tmp_path / "image.tif", coordinates(scale=SCALE), model)
    left, top = EAST - 900, NORTH + 900
    row, col = np.mgrid[:60, :60]
    height = GROUND + 0.25 * (left + (col + 0.5) * cell - EAST) - 0.1 * (top - (row + 0.5) * cell - NORTH)
    dem = write_dem(tmp_path / "dem.tif", height.astype(np.float64), Affine(cell, 0, left, 0, -cell, top), CRS)
    geobox = area(40, 31)
    pixels, valid, _ = orthorectify(geobox, image, Terrain(dem, 0.0))
    t = geobox.transform
    e, n = np.meshgrid(t.c + (np.arange(40) + 0.5) * t.a - EAST, t.f + (np.arange(31) + 0.5) * t.e - NORTH)
    relief = 0.25 * e - 0.1 * n
    x, y = expected(geobox, model)
    moved = np.stack([x + lean[0] * relief, y + lean[1] * relief], axis=-1)
    assert np.abs(lean[0] * relief).max() > 1.0  # px
    assert valid.mean() > 0.9
    assert np.abs(pixels[..., :2] - (100 + SCALE * moved))[valid].max() <= 1.6


def test_pixels_are_those_of_gdals_rpc_warp_over_a_dem(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    model = camera(lean=(0.11, -0.07), heading=63)
    image = image_of(tmp_path / "image.tif", coordinates(scale=SCALE), model)
    (tmp_path / "image.rpb").write_text(rpb(model))
    height = GROUND + 300 * smooth(rng.normal(size=(60, 60)), 20)
    dem = write_dem(tmp_path / "dem.tif", height, Affine(30, 0, EAST - 900, 0, -30, NORTH + 900), CRS)
    geobox = area(64, 49, 7.7)
    pixels, valid, _ = orthorectify(geobox, image, Terrain(dem, 0.0))
    with rasterio.open(image.path) as file:
        rpcs, bands = file.rpcs, file.read()
    theirs = np.zeros((4, *geobox.shape), np.uint16)
    reproject(
        bands, theirs, rpcs=rpcs, src_crs="EPSG:4326", dst_transform=geobox.transform, dst_crs=CRS,
        resampling=Gdals.bilinear, tolerance=0, RPC_DEM=dem,
    )  # fmt: skip
    # At the image's border GDAL's kernel is lopsided.
    x, y = (np.rint((band.astype(float) - 100) / SCALE) for band in theirs[:2])
    inner = valid & drawn_on(x, y, margin=1.0)
    assert inner.sum() > 2000
    apart = np.abs(pixels - np.moveaxis(theirs, 0, -1).astype(float))[inner] / SCALE
    assert apart.max() < 0.1  # px


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:32649", (7.9, 1.3, 0.0, 1.1, -8.2, 0.0)),
        ("EPSG:32648", (0.0, 6.0, 0.0, 6.5, 0.0, 0.0)),
        ("EPSG:4326", (8e-5, 0.0, 0.0, 0.0, -7e-5, 0.0)),
        ("EPSG:3857", (8.8, 0.0, 0.0, 0.0, -8.8, 0.0)),
    ],
)
def test_an_image_on_another_map_lands_where_pyproj_says(
    tmp_path: Path, crs: str, transform: tuple[float, ...]
) -> None:
    a, b, _, d, e, _ = transform
    project = Transformer.from_crs(4326, crs, always_xy=True).transform
    x0, y0 = project(LON, LAT)
    c, f = float(x0) - a * 45 - b * 35, float(y0) - d * 45 - e * 35  # the centre of the image
    image = image_of(tmp_path / "image.tif", coordinates(scale=SCALE), Georeferenced(crs, (a, b, c, d, e, f)))
    geobox = area(71, 52, 6.1)
    pixels, valid, _ = orthorectify(geobox, image, Terrain(None, 0.0))
    inverse = ~Affine(a, b, c, d, e, f)
    u, v = project(*places(geobox))
    x = inverse.a * u + inverse.b * v + inverse.c - 0.5
    y = inverse.d * u + inverse.e * v + inverse.f - 0.5
    assert valid.sum() > 2000
    assert np.array_equal(valid, drawn_on(x, y))
    assert np.abs(pixels[..., :2] - (100 + SCALE * np.stack([x, y], axis=-1)))[valid].max() <= 1.6


def test_blocks_together_equal_the_whole_grid(tmp_path: Path) -> None:
    """To the lattice's tolerance, which is all that a block's own lattice may change."""
    rng = np.random.default_rng(4)
    model = camera(200, 180, lean=(0.02, -0.03), heading=70)
    image = image_of(tmp_path / "image.tif", coordinates(200, 180, scale=SCALE), model, nodata=100 + SCALE * 60)
    height = GROUND + smooth(rng.normal(size=(90, 90)), 5) * 400
    dem = write_dem(tmp_path / "dem.tif", height, Affine(30, 0, EAST - 1350, 0, -30, NORTH + 1350), CRS)
    grid = TileGrid(area(15 * 11 + 20, 12 * 11 + 20), 20, 11, 3)
    whole, valid, _ = orthorectify(grid.geobox, image, Terrain(dem, GROUND))
    parts, covered = 0, np.zeros(valid.shape, bool)
    for block in grid:
        pixels, good, _ = orthorectify(block.geobox, image, Terrain(dem, GROUND))
        y, x = block.rows.start * grid.stride, block.cols.start * grid.stride
        here = np.s_[y : y + good.shape[0], x : x + good.shape[1]]
        both = good & valid[here]
        apart = np.abs(pixels.astype(int) - whole[here])[both]
        assert apart.max(initial=0) <= SCALE * 2 * TOLERANCE + 2
        assert (good != valid[here]).mean() < 0.02  # borders move by as little
        covered[here], parts = True, parts + int(both.sum())
    assert covered.all()
    assert parts > 10_000


@pytest.mark.parametrize("heading", [0.0, 120.0])
def test_a_grid_within_the_image_is_whole_however_rough_the_ground(tmp_path: Path, heading: float) -> None:
    """What is read of the image is all that its pixels are drawn from."""
    model = camera(lean=(0.02, 0.01), heading=heading)
    image = image_of(tmp_path / "image.tif", coordinates(scale=SCALE), model)
    height = GROUND + 500 * smooth(np.random.default_rng(3).normal(size=(60, 60)), 3)
    dem = write_dem(tmp_path / "dem.tif", height, Affine(30, 0, EAST - 900, 0, -30, NORTH + 900), CRS)
    for size in ((30, 20), (1, 1), (2, 9)):
        _, valid, _ = orthorectify(area(*size), image, Terrain(dem, GROUND))
        assert valid.all()
    for kind in ortho.MARGIN:  # a grid so fine that its lattice reaches less than a pixel beyond it
        _, valid, _ = orthorectify(area(60, 90, GSD / 100), image, Terrain(dem, GROUND), kind)
        assert valid.all()


@pytest.mark.parametrize(("east", "north"), [(5000, 0), (700, 0), (-700, 30), (-1100, 0), (0, 800), (900, -900)])
def test_a_grid_beside_the_image_is_void(tmp_path: Path, east: float, north: float) -> None:
    """Far from it, and so near that a cell of the lattice, which is wider than the grid, lies on both."""
    image = image_of(tmp_path / "image.tif", coordinates(), camera())
    pixels, valid, _ = orthorectify(area(20, 30, east=east, north=north), image, FLAT)
    assert pixels.shape == (30, 20, 4)
    assert pixels.dtype == np.uint16
    assert not valid.any()


@pytest.mark.parametrize("bands", [1, 3, 4, 8])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_nodata_spoils_what_is_drawn_from_it_and_nothing_else(
    tmp_path: Path, bands: int, dtype: type[np.unsignedinteger]
) -> None:
    values = np.full((bands, HEIGHT, WIDTH), 90, dtype)
    values[bands // 2, 20:40, 30:33] = 255  # in one band of several
    model = camera(heading=33)
    image = image_of(tmp_path / "image.tif", values, model, nodata=255)
    geobox = area(60, 50, 7.0)
    pixels, valid, _ = orthorectify(geobox, image, FLAT)
    x, y = expected(geobox, model)

    def touched(margin: float) -> npt.NDArray[np.bool_]:
        return (x > 29 + margin) & (x < 33 - margin) & (y > 19 + margin) & (y < 40 - margin)

    assert touched(0.0).sum() > 50
    # A neighbour with a weight of less than a 32nd may count as none.
    assert not valid[touched(1 / 32)].any()
    assert valid[drawn_on(x, y, margin=0.01) & ~touched(-0.01)].all()
    assert (pixels[valid] == 90).all()


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 5, 8])
def test_all_bands_are_resampled_in_their_order(tmp_path: Path, bands: int) -> None:
    values = coordinates(bands=bands) + (1000 * np.arange(bands, dtype=np.uint16))[:, None, None]
    image = image_of(tmp_path / "image.tif", values, camera())
    geobox = area(30, 20)
    pixels, valid, _ = orthorectify(geobox, image, FLAT)
    x, y = expected(geobox, camera())
    assert valid.all()
    for k in range(bands):
        assert np.abs(pixels[..., k] - (100 + 1000 * k + (y if k % 2 else x))).max() <= 0.6


def test_an_image_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    good = image_of(tmp_path / "image.tif", coordinates(), camera())
    (tmp_path / "image.tif").write_bytes((tmp_path / "image.tif").read_bytes()[:20_000])
    for bad in (good, replace(good, path=str(tmp_path / "gone.tif"))):
        with pytest.raises(SceneError, match=f"{Path(bad.path).name}: cannot be read"):
            orthorectify(area(40, 40), bad, FLAT)


def test_a_gsd_that_asks_for_half_the_world_is_refused(tmp_path: Path) -> None:
    """What OpenCV cannot resample is said before it is read."""
    image = image_of(tmp_path / "image.tif", coordinates(), camera(40_000, 60))
    with pytest.raises(SceneError, match=r"image\.tif: a block of 40 x 8 px at 8 m needs 40000 x 60 px of the image"):
        orthorectify(area(40, 8, 10_000.0), replace(image, width=40_000, height=60), FLAT)


# --- the lattice


def smooth(values: Floats, times: int) -> Floats:
    """Each cell the mean of its neighbours, so many times over."""
    for _ in range(times):
        for axis in (0, 1):
            values = (np.roll(values, 1, axis) + values + np.roll(values, -1, axis)) / 3
    return values


def truth(geobox: GeoBox, x: Floats, y: Floats, model: RPC, terrain: Terrain) -> tuple[Floats, Floats]:
    t = geobox.transform
    lon, lat = Transformer.from_crs(CRS, 4326, always_xy=True).transform(t.c + x * t.a, t.f + y * t.e)
    return model.image(lon, lat, terrain.heights(lon, lat))


def bent(seed: int = 3, strength: float = 0.02, width: int = 400, height: int = 300) -> RPC:
    """A camera with cubic terms in place and height, much stronger than a real one's."""
    rng = np.random.default_rng(seed)
    model = camera(width, height, lean=(0.03, -0.01), heading=12)
    line, samp = (np.array(values) for values in (model.line_num, model.samp_num))
    line[4:], samp[4:] = rng.uniform(-strength, strength, (2, 16))
    return replace(model, line_num=tuple(map(float, line)), samp_num=tuple(map(float, samp)))


@pytest.mark.parametrize(
    ("model", "relief", "times", "step"),
    [
        (camera(400, 300, lean=(0.03, -0.01), heading=12), 0, 0, 128),
        (camera(400, 300, lean=(0.03, -0.01), heading=12), 1000, 30, 128),
        (camera(400, 300, lean=(0.03, -0.01), heading=12), 400, 3, 128),
        (bent(strength=0.005), 400, 3, 64),
        (bent(), 400, 3, 16),
        (bent(strength=0.2), 60, 3, 8),
    ],
)
def test_the_error_of_the_lattice_bounds_the_truth(
    tmp_path: Path, model: RPC, relief: float, times: int, step: int
) -> None:
    """At every pixel, against the camera itself: ground in cells of 30 m, seen 14 degrees off nadir.

    However rough the ground, it is the camera that decides how wide the lattice may be.
    """
    rng = np.random.default_rng(1)
    height = GROUND + relief * smooth(rng.normal(size=(160, 160)), times)
    dem = write_dem(tmp_path / "dem.tif", height, Affine(30, 0, EAST - 2400, 0, -30, NORTH + 2400), CRS)
    terrain, geobox = Terrain(dem, GROUND), area(403, 310)
    mesh = fit_lattice(geobox, model, terrain)
    assert mesh.step == step
    x, y = np.meshgrid(np.arange(403) + 0.5, np.arange(310) + 0.5)
    worst = float(np.abs(np.subtract(mesh.dense((310, 403)), truth(geobox, x, y, model, terrain))).max())
    print(f"step {mesh.step}: {mesh.error:.4f} px found, {worst:.4f} px in truth")
    assert worst < 2 * mesh.error + 1e-3  # coordinates in single precision
    assert mesh.error <= TOLERANCE


def test_ground_that_the_dem_ends_on_costs_no_accuracy(tmp_path: Path) -> None:
    """Nodes that lie beyond the DEM, and pixels whose ground runs down from its last cell to the flat height."""
    height = GROUND + 300 * smooth(np.random.default_rng(2).normal(size=(20, 25)), 2)
    dem = write_dem(tmp_path / "dem.tif", height, Affine(30, 0, EAST - 100, 0, -30, NORTH + 150), CRS)
    model, terrain, geobox = camera(400, 300, lean=(0.05, 0.02)), Terrain(dem, GROUND - 200), area(300, 200)
    mesh = fit_lattice(geobox, model, terrain)
    x, y = np.meshgrid(np.arange(300) + 0.5, np.arange(200) + 0.5)
    worst = np.abs(np.subtract(mesh.dense((200, 300)), truth(geobox, x, y, model, terrain))).max(axis=0)
    assert mesh.step == STEPS[0]
    assert mesh.error < TOLERANCE
    assert worst.max() < TOLERANCE
    inside = terrain.heights(*places(geobox)) != GROUND - 200
    assert 0.05 < inside.mean() < 0.5


def test_the_widest_lattice_within_the_tolerance_is_taken(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    height = GROUND + 600 * smooth(rng.normal(size=(160, 160)), 6)
    dem = write_dem(tmp_path / "dem.tif", height, Affine(30, 0, EAST - 2400, 0, -30, NORTH + 2400), CRS)
    model, terrain, geobox = bent(), Terrain(dem, GROUND), area(300, 200)
    found = {tolerance: fit_lattice(geobox, model, terrain, tolerance) for tolerance in (10.0, 0.1, 0.05, 0.001, 0.0)}
    steps = [mesh.step for mesh in found.values()]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] == STEPS[0]
    assert steps[-1] == STEPS[-1]
    for tolerance, mesh in found.items():
        assert mesh.error <= tolerance or mesh.step == STEPS[-1]


@given(
    step=st.sampled_from(STEPS),
    rows=st.tuples(st.integers(0, 150), st.integers(1, 70)),
    cols=st.tuples(st.integers(0, 150), st.integers(1, 70)),
    slope=st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
    start=st.floats(-5000, 30_000),
)
@example(step=16, rows=(0, 33), cols=(0, 17), slope=(0.7, -1.3), start=27_000.0)
@example(step=128, rows=(100, 70), cols=(100, 70), slope=(0.0, 0.0), start=0.0)
@settings(max_examples=60)
def test_linear_functions_come_back_at_every_pixels_centre(
    step: int, rows: tuple[int, int], cols: tuple[int, int], slope: tuple[float, float], start: float
) -> None:
    """Of place and of height: fields without a bend, over a DEM that is a slope, in a part of the grid."""
    y, x = ((np.arange(-(-(first + n) // step) + 2) - 0.5) * step for first, n in (rows, cols))
    x, y = np.meshgrid(x, y)
    nothing = np.zeros(x.shape)
    relief = Relief(np.array([[0, 10, 20], [10, 20, 30], [20, 30, 40]], np.float32), "", None)
    plane = start + slope[0] * x + slope[1] * y
    fields = np.stack([x / 300, y / 300, plane, nothing + 3, nothing, -plane, nothing, nothing - 2])
    mesh = Lattice(step, fields, relief, 12.0, 10.0, 0.0)
    area = slice(rows[0], sum(rows)), slice(cols[0], sum(cols))
    found = mesh.maps(*area, (start, -start))
    x, y = np.meshgrid(np.arange(cols[0], sum(cols)) + 0.5, np.arange(rows[0], sum(rows)) + 0.5)
    z = ((x + y) / 30 - 12) / 10
    assert found[0].shape == x.shape
    assert found[0].dtype == found[1].dtype == np.float32
    assert np.abs(found[0] - (slope[0] * x + slope[1] * y + 3 * z)).max() < 1e-3
    assert np.abs(found[1] + slope[0] * x + slope[1] * y + 2 * z * z).max() < 1e-3
    reach = mesh.reach()[(y / step + 0.5).astype(int), (x / step + 0.5).astype(int)]
    for values, low, high in ((found[0] + start, 0, 1), (found[1] - start, 2, 3)):
        assert (values > reach[..., low] - 1e-2).all()
        assert (values < reach[..., high] + 1e-2).all()


@given(seed=st.integers(0, 99))
@settings(max_examples=15)
def test_no_pixel_lies_beyond_the_reach_of_its_cell(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """What is read of the image follows from it."""
    rng = np.random.default_rng(seed)
    height = GROUND + 400 * smooth(rng.normal(size=(60, 60)), 1 + seed % 4)
    folder = tmp_path_factory.mktemp("reach")
    dem = write_dem(folder / "dem.tif", height, Affine(30, 0, EAST - 900, 0, -30, NORTH + 900), CRS)
    mesh = fit_lattice(area(233, 171), bent(seed, 0.05), Terrain(dem, GROUND))
    col, row = mesh.dense((171, 233))
    reach = mesh.reach()
    i = ((np.arange(171) + 0.5) / mesh.step + 0.5).astype(int)[:, None]
    j = ((np.arange(233) + 0.5) / mesh.step + 0.5).astype(int)
    for values, low, high in ((col, 0, 1), (row, 2, 3)):
        assert (values > reach[i, j, low] - 1e-3).all()
        assert (values < reach[i, j, high] + 1e-3).all()
        assert (reach[i, j, high] - reach[i, j, low]).max() < 2 * mesh.step + 100  # and it is no guess


# --- resampling

DRAWN: dict[str, Callable[[Any, Any], Any]] = {
    "columns": lambda x, y: 50 + 20.0 * x,
    "rows": lambda x, y: 900 - 25.0 * y,
    "both": lambda x, y: 300 + 10.0 * x - 8.0 * y,
}


@pytest.mark.parametrize("kind", ["bilinear", "cubic", "nearest"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("bands", [1, 3, 4])
@pytest.mark.parametrize("ramp", DRAWN)
def test_a_ramp_is_resampled_to_a_32nd_of_a_pixel(
    ramp: str, bands: int, dtype: type[np.unsignedinteger], kind: Resampling
) -> None:
    function, shrink = DRAWN[ramp], 4 if dtype is np.uint8 else 1
    row, col = np.mgrid[:23, :31].astype(float)
    source = np.stack([function(col, row) / shrink] * bands, axis=-1).round().astype(dtype)
    rng = np.random.default_rng(bands)
    x, y = rng.uniform(1, 29, (40, 25)).astype(np.float32), rng.uniform(1, 21, (40, 25)).astype(np.float32)
    slope = sum(abs(function(*one) - function(0.0, 0.0)) for one in ((1.0, 0.0), (0.0, 1.0))) / shrink
    wanted = function(np.rint(x), np.rint(y)) if kind == "nearest" else function(x, y)
    among = np.full((44, 30, bands + 1), 7, dtype)  # as part of more rows, columns and bands
    for pixels in (np.empty((40, 25, bands), dtype), among[2:42, 3:28, :bands], among[2:42, 3:28, 1:]):
        resample(source, x, y, kind, pixels)
        # Half a grey value of the source, half of the result, and a 32nd of a pixel.
        assert np.abs(pixels - wanted[..., None] / shrink).max() <= 1.25 + slope / 32
    assert (among[:2] == 7).all()
    assert (among[:, 28:] == 7).all()


def test_cubic_resampling_is_that_of_gdal(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    values = rng.integers(0, 65536, (2, 40, 50)).astype(np.uint16)
    image = image_of(tmp_path / "image.tif", values, Georeferenced(CRS, (10.0, 0.0, EAST, 0.0, -10.0, NORTH)))
    geobox = GeoBox((34, 44), Affine(10, 0, EAST + 33.7, 0, -10, NORTH - 26.1), CRS)
    pixels, valid, _ = orthorectify(geobox, image, Terrain(None, 0.0), "cubic")
    theirs = np.zeros((2, *geobox.shape), np.uint16)
    with rasterio.open(image.path) as file:
        reproject(
            rasterio.band(file, [1, 2]), theirs, dst_transform=geobox.transform, dst_crs=CRS,
            resampling=Gdals.cubic, tolerance=0,
        )  # fmt: skip
    assert valid.all()
    assert np.abs(pixels.astype(int) - np.moveaxis(theirs, 0, -1)).max() <= 2


@pytest.mark.parametrize(("kind", "margin"), [("bilinear", 0.0), ("cubic", 1.0), ("nearest", -0.5)])
def test_the_mask_is_of_what_each_resampling_draws_on(tmp_path: Path, kind: Resampling, margin: float) -> None:
    """At the image's border and about a pixel without data, whose value would be seen."""
    values = np.full((3, HEIGHT, WIDTH), 1000, np.uint16)
    values[1, 30, 40] = 60_000
    image = image_of(tmp_path / "image.tif", values, camera(heading=33), nodata=60_000)
    geobox = area(110, 90, 6.0)
    pixels, valid, _ = orthorectify(geobox, image, FLAT, kind)
    x, y = expected(geobox, camera(heading=33))
    far = np.maximum(np.abs(x - 40), np.abs(y - 30)) > 1 + margin
    assert (pixels[valid] == 1000).all()
    edge = drawn_on(x, y, margin=margin + 0.01)
    assert valid[edge & (np.maximum(np.abs(x - 40), np.abs(y - 30)) > 1.01 + margin)].all()
    assert not valid[~drawn_on(x, y, margin=margin - 0.01)].any()
    assert not valid[np.maximum(np.abs(x - 40), np.abs(y - 30)) < 1 + margin - 1 / 32].any()
    assert 0 < (edge & ~far).sum() < 60


@pytest.mark.parametrize("strength", [0.02, 0.2])
def test_a_narrow_lattice_misses_nothing_of_an_image(tmp_path: Path, strength: float) -> None:
    """Several of its rows in a strip of the grid, over which the image's slanting borders move on."""
    model = bent(strength=strength)
    image = image_of(tmp_path / "image.tif", coordinates(400, 300, scale=SCALE), model)
    geobox = area(470, 390)
    pixels, valid, mesh = orthorectify(geobox, image, FLAT)
    assert mesh.step <= 32
    x, y = expected(geobox, model)

    def drawn_on(margin: float) -> npt.NDArray[np.bool_]:
        return (x >= margin) & (x <= 399 - margin) & (y >= margin) & (y <= 299 - margin)

    assert valid[drawn_on(2 * TOLERANCE)].all()
    assert not valid[~drawn_on(-2 * TOLERANCE)].any()
    assert 0.3 < valid.mean() < 0.95
    wanted = 100 + SCALE * np.stack([x, y], axis=-1)
    assert np.abs(pixels[..., :2] - wanted)[valid].max() <= 1.6 + 2 * SCALE * TOLERANCE


@pytest.mark.parametrize("kind", ortho.MARGIN)
@pytest.mark.parametrize("side", ["top", "bottom", "left", "right"])
@pytest.mark.parametrize("beyond", [-9.7, -1.6, -0.2, 0.2, 0.7, 1.6, 2.3])
def test_the_border_of_an_image_is_met_where_a_cell_of_the_lattice_ends(
    tmp_path: Path, beyond: float, side: str, kind: Resampling
) -> None:
    """There a whole strip of the grid lies inside, or nearly: 64 px beside it on the others."""
    low, high = {"top": (64 - beyond, 330), "bottom": (-70, 64 + beyond)}.get(side, (-70.4, 330))
    left, right = {"left": (64 - beyond, 330), "right": (-70, 64 + beyond)}.get(side, (-70.4, 330))
    width, height = round(right - left), round(high - low)
    left, low = (right - width, high - height) if side in ("right", "bottom") else (left, low)
    model = Georeferenced(CRS, (10, 0, EAST + 10 * left, 0, -10, NORTH - 10 * low))
    image = image_of(tmp_path / "image.tif", np.full((1, height, width), 1000, np.uint16), model)
    geobox = GeoBox((128, 150), Affine(10, 0, EAST, 0, -10, NORTH), CRS)
    pixels, valid, mesh = orthorectify(geobox, image, FLAT, kind)
    assert mesh.step == STEPS[0]
    x, y = np.meshgrid(np.arange(150) - left, np.arange(128) - low)
    margin = ortho.MARGIN[kind]
    wanted = (x >= margin) & (x <= width - 1 - margin) & (y >= margin) & (y <= height - 1 - margin)
    assert 0.2 < wanted.mean() < 1
    assert np.array_equal(valid, wanted)
    assert (pixels[valid] == 1000).all()


def test_a_place_without_coordinates_is_void() -> None:
    """A lattice whose nodes lie nowhere on one side."""
    x, y = np.meshgrid((np.arange(6) - 0.5) * 16, (np.arange(5) - 0.5) * 16)
    fields = np.stack([x * 0, y * 0, x, x * 0, x * 0, y, x * 0, x * 0])
    fields[2:, :, 4:] = np.nan
    mesh = Lattice(16, fields, flat_relief(0.0), 0.0, 1.0, 0.0)
    col, row = mesh.dense((60, 70))
    assert np.isnan(col[:, 56:]).all()
    assert not np.isnan(row[:, :40]).any()
    assert np.isnan(mesh.reach()[:, 3:]).all()


@pytest.mark.parametrize(
    ("bands", "sizes"),
    [(1, [1]), (2, [1, 1]), (3, [3]), (4, [4]), (5, [4, 1]), (6, [4, 1, 1]), (8, [4, 4]), (13, [4, 4, 4, 1])],
)
def test_bands_are_resampled_in_groups_without_a_pair(bands: int, sizes: list[int]) -> None:
    found = band_groups(bands)
    assert [part.stop - part.start for part in found] == sizes
    assert [k for part in found for k in range(part.start, part.stop)] == [*range(bands)]


@pytest.mark.parametrize(("dx", "dy"), [(0.02, 0.02), (0.03, 0.04), (0.5, 0.5), (0.98, 0.01)])
def test_no_weight_of_a_pixel_without_data_is_too_small_to_matter(tmp_path: Path, dx: float, dy: float) -> None:
    """A weight of 1/2500 of 65535 is 26 grey values."""
    values = np.full((1, 20, 20), 100, np.uint16)
    values[0, 9, 8] = 65535
    image = image_of(tmp_path / "image.tif", values, Georeferenced(CRS, (10, 0, EAST, 0, -10, NORTH)), nodata=65535)
    geobox = GeoBox((12, 12), Affine(10, 0, EAST + 10 * (3 + dx), 0, -10, NORTH - 10 * (3 + dy)), CRS)
    pixels, valid, _ = orthorectify(geobox, image, Terrain(None, 0.0))
    assert (pixels[valid] == 100).all()
    assert valid.sum() >= valid.size - 4


# --- wherever on Earth


@pytest.mark.parametrize(
    ("lon", "lat"),
    [(108.0, 24.8), (105.3, 0.0), (180.0, -17.0), (-179.999, 60.0), (10.0, 86.0), (179.99, 88.5), (-45.0, -85.0)],
)
def test_a_scene_lands_where_its_camera_puts_it_anywhere(tmp_path: Path, lon: float, lat: float) -> None:
    """On a zone's edge, the equator, the antimeridian and near the poles, on the grid that it gets there."""
    model = camera(lon=lon, lat=lat, heading=33, lean=(0.02, 0.01))
    image = image_of(tmp_path / "image.tif", coordinates(scale=SCALE), model)
    footprint = image_footprint(image, FLAT)
    grid = make_scene_grid(footprint, 7.3, 16, 12, 8)
    assert grid is not None
    drawn = 0
    for block in grid:
        pixels, valid, mesh = orthorectify(block.geobox, image, FLAT)
        t, (height, width) = block.geobox.transform, block.geobox.shape
        east, north = np.meshgrid(t.c + (np.arange(width) + 0.5) * t.a, t.f + (np.arange(height) + 0.5) * t.e)
        there = Transformer.from_crs(str(block.geobox.crs), 4326, always_xy=True).transform(east, north)
        col, row = model.image(*there, np.full(east.shape, GROUND))
        wanted = 100 + SCALE * np.stack([col, row], axis=-1) - SCALE / 2
        assert np.abs(pixels[..., :2] - wanted)[valid].max(initial=0) <= 1.6 + SCALE * mesh.error
        assert mesh.error <= TOLERANCE
        drawn += int(valid.sum())
    assert drawn > 4000


# --- missing lines


def raw(values: npt.NDArray[Any], gone: list[slice]) -> npt.NDArray[Any]:
    for lines in gone:
        values[:, lines] = 0
    return values


@pytest.mark.parametrize("kind", ["bilinear", "cubic", "nearest"])
def test_pixels_that_draw_on_missing_lines_are_marked(tmp_path: Path, kind: Resampling) -> None:
    values = raw(np.random.default_rng(0).integers(300, 500, (4, HEIGHT, WIDTH)).astype(np.uint16), [slice(20, 27)])
    model = camera(heading=33)
    geobox = area(80, 70, 7.0)
    image = image_of(tmp_path / "image.tif", values, model)
    found = ortho.orthorectify(geobox, image, FLAT, kind, 0.2)
    x, y = expected(geobox, model)
    inside = drawn_on(x, y, margin=1.1)
    assert found.missing is not None
    assert found.missing[inside & (y > 19) & (y < 27)].all()
    assert not found.missing[(y < 17) | (y > 29)].any()
    assert found.valid[inside].all()
    assert found.pixels[found.valid & ~found.missing].min() >= 250
    assert ortho.orthorectify(geobox, image, FLAT, kind).missing is None


def test_lines_of_an_image_on_a_map_are_not_looked_at(tmp_path: Path) -> None:
    values = raw(np.full((1, 60, 60), 400, np.uint16), [slice(20, 27)])
    image = image_of(tmp_path / "image.tif", values, Georeferenced(CRS, (10, 0, EAST, 0, -10, NORTH)))
    geobox = GeoBox((50, 50), Affine(10, 0, EAST + 50, 0, -10, NORTH - 50), CRS)
    assert ortho.orthorectify(geobox, image, FLAT, "bilinear", 0.2).missing is None
