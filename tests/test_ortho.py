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
from rasterio.warp import Resampling, reproject

from pipeline.grid import TileGrid
from pipeline.ortho import STEPS, TOLERANCE, Lattice, lattice, orthorectify, resample
from pipeline.scene import SceneError
from pipeline.sensor import RPC, Floats, Georeferenced, SensorModel
from pipeline.terrain import Terrain
from tests.deliveries import GROUND, GSD, HEIGHT, LAT, LON, WIDTH, camera, coordinates, image_of, rpb, write_dem

CRS = "EPSG:32648"
EAST, NORTH = (float(v) for v in Transformer.from_crs(4326, CRS, always_xy=True).transform(LON, LAT))
SCALE = 32
"""Grey values a pixel of the image's columns and rows: 32 see a 32nd of a pixel."""
FLAT = Terrain(None, GROUND)


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
    assert mesh.error < 1e-3  # a plane seen by a linear camera bends with the Earth alone
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
        resampling=Resampling.bilinear, tolerance=0, RPC_DEM=dem,
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
    whole, valid, mesh = orthorectify(grid.geobox, image, Terrain(dem, GROUND))
    assert mesh.error > 0.005  # there is something to differ by
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
def test_a_grid_within_the_image_is_whole_however_narrow_the_lattice(tmp_path: Path, heading: float) -> None:
    """What is read of the image is all that its pixels are drawn from."""
    model = camera(lean=(0.02, 0.01), heading=heading)
    image = image_of(tmp_path / "image.tif", coordinates(scale=SCALE), model)
    height = GROUND + 500 * smooth(np.random.default_rng(3).normal(size=(60, 60)), 3)
    dem = write_dem(tmp_path / "dem.tif", height, Affine(30, 0, EAST - 900, 0, -30, NORTH + 900), CRS)
    for size in ((30, 20), (1, 1), (2, 9)):
        _, valid, mesh = orthorectify(area(*size), image, Terrain(dem, GROUND))
        assert mesh.step == STEPS[-1]
        assert valid.all()


def test_a_grid_beside_the_image_is_void(tmp_path: Path) -> None:
    image = image_of(tmp_path / "image.tif", coordinates(), camera())
    pixels, valid, _ = orthorectify(area(20, 30, east=5000), image, FLAT)
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
    with pytest.raises(SceneError, match=r"image\.tif: a block of 40 x 8 px at 8 m draws on 40000 x 60 px of it"):
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


def between(mesh: Lattice, values: Floats, x: Floats, y: Floats) -> Floats:
    """A lattice's value at positions in px from the grid's outer corner, in float64."""
    u, v = x / mesh.step + 0.5, y / mesh.step + 0.5
    j, i = np.floor(u).astype(int), np.floor(v).astype(int)
    u, v = u - j, v - i
    upper = values[i, j] * (1 - u) + values[i, j + 1] * u
    lower = values[i + 1, j] * (1 - u) + values[i + 1, j + 1] * u
    return np.asarray(upper * (1 - v) + lower * v)


@pytest.mark.parametrize(
    ("relief", "times", "step"), [(0, 0, 16), (60, 30, 16), (150, 30, 8), (400, 30, 4), (1000, 30, 2), (400, 3, 2)]
)
def test_the_error_of_the_lattice_bounds_the_truth(tmp_path: Path, relief: float, times: int, step: int) -> None:
    """At random places, against the camera itself: ground in cells of 30 m, seen 14 degrees off nadir."""
    rng = np.random.default_rng(1)
    height = GROUND + relief * smooth(rng.normal(size=(160, 160)), times)
    dem = write_dem(tmp_path / "dem.tif", height, Affine(30, 0, EAST - 2400, 0, -30, NORTH + 2400), CRS)
    model, terrain, geobox = camera(lean=(0.03, -0.01), heading=12), Terrain(dem, GROUND), area(403, 310)
    mesh = lattice(geobox, model, terrain)
    assert mesh.step == step
    x, y = rng.uniform(0, 403, 20_000), rng.uniform(0, 310, 20_000)
    worst = 0.0
    for values, right in zip((mesh.col, mesh.row), truth(geobox, x, y, model, terrain), strict=True):
        worst = max(worst, float(np.abs(between(mesh, values, x, y) - right).max()))
    print(f"step {mesh.step}: {mesh.error:.4f} px found, {worst:.4f} px in truth")
    assert worst < 2 * mesh.error
    assert mesh.error <= TOLERANCE or step == STEPS[-1]


def test_the_widest_lattice_within_the_tolerance_is_taken(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    height = GROUND + 600 * smooth(rng.normal(size=(160, 160)), 6)
    dem = write_dem(tmp_path / "dem.tif", height, Affine(30, 0, EAST - 2400, 0, -30, NORTH + 2400), CRS)
    model, terrain, geobox = camera(lean=(0.03, 0.0)), Terrain(dem, GROUND), area(300, 200)
    found = {tolerance: lattice(geobox, model, terrain, tolerance) for tolerance in (10.0, 0.1, 0.05, 0.02, 0.0)}
    steps = [mesh.step for mesh in found.values()]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] == STEPS[0]
    assert steps[-1] == STEPS[-1]
    for tolerance, mesh in found.items():
        assert mesh.error <= tolerance or mesh.step == STEPS[-1]


@given(
    step=st.sampled_from(STEPS),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    slope=st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
    start=st.floats(-5000, 30_000),
)
@example(step=16, height=33, width=17, slope=(0.7, -1.3), start=27_000.0)
@settings(max_examples=60)
def test_a_linear_function_comes_back_at_every_pixels_centre(
    step: int, height: int, width: int, slope: tuple[float, float], start: float
) -> None:
    y, x = (np.arange(-(-n // step) + 2) * step - step / 2 for n in (height, width))
    nodes = start + slope[0] * x + slope[1] * y[:, None]
    mesh = Lattice(step, nodes, nodes, 0.0)
    found = mesh.dense(nodes, start, (height, width))
    wanted = slope[0] * (np.arange(width) + 0.5) + slope[1] * (np.arange(height)[:, None] + 0.5)
    assert found.shape == (height, width)
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() < 1e-3


# --- resampling

DRAWN: dict[str, Callable[[Any, Any], Any]] = {
    "columns": lambda x, y: 50 + 20.0 * x,
    "rows": lambda x, y: 900 - 25.0 * y,
    "both": lambda x, y: 300 + 10.0 * x - 8.0 * y,
}


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("ramp", DRAWN)
def test_a_ramp_is_resampled_to_a_32nd_of_a_pixel(bands: int, ramp: str) -> None:
    function = DRAWN[ramp]
    row, col = np.mgrid[:23, :31].astype(float)
    source = np.stack([function(col, row)] * bands, axis=-1).astype(np.uint16)
    rng = np.random.default_rng(bands)
    x, y = rng.uniform(0, 30, (40, 25)).astype(np.float32), rng.uniform(0, 22, (40, 25)).astype(np.float32)
    pixels, good = resample(source, None, x, y)
    assert pixels.shape == (40, 25, bands)
    assert pixels.dtype == np.uint16
    assert good.all()
    slope = sum(abs(function(*one) - function(0.0, 0.0)) for one in ((1.0, 0.0), (0.0, 1.0)))
    assert np.abs(pixels - function(x, y)[..., None]).max() <= 0.5 + slope / 32


def test_the_mask_ends_at_the_centres_of_the_outermost_pixels() -> None:
    source = np.full((5, 7, 3), 9, np.uint8)
    x, y = np.meshgrid(np.array([-0.1, 0, 3, 6, 6.1, np.nan, np.inf], "f4"), np.array([-0.1, 0, 2, 4, 4.1], "f4"))
    good = resample(source, None, x, y)[1]
    inside_x, inside_y = np.array([False, True, True, True, False, False, False]), np.array([0, 1, 1, 1, 0], bool)
    assert np.array_equal(good, inside_y[:, None] & inside_x)


@pytest.mark.parametrize(("dx", "dy"), [(0.02, 0.02), (0.03, 0.04), (0.5, 0.5), (0.98, 0.01)])
def test_no_weight_of_a_pixel_without_data_is_too_small_to_matter(dx: float, dy: float) -> None:
    """A weight of 1/2500 of 65535 is 26 grey values."""
    source, valid = np.full((6, 6, 1), 100, np.uint16), np.ones((6, 6), bool)
    source[3, 3], valid[3, 3] = 65535, False
    x, y = np.full((9, 8), 2 + dx, np.float32), np.full((9, 8), 2 + dy, np.float32)
    pixels, good = resample(source, valid, x, y)
    assert not good.any() or (pixels[good] == 100).all()
    for sign in (-1, 1):  # on the other side it is not drawn on at all
        assert resample(source, valid, np.full_like(x, 3 + sign * 1.25), y)[1].all()
