"""Sensor models against the standard's formula, GDAL and pyproj."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from rasterio.transform import RPCTransformer

from pipeline.geometry.sensor import RPC, Floats, Georeferenced, model_from_json
from pipeline.scenes.gaofen import parse_rpb
from tests.deliveries import camera, coordinates, rpb, tiff

seeds = st.integers(0, 2**32 - 1)


def curved(seed: int, lon_off: float | None = None) -> RPC:
    """A rotated camera with all cubic terms at work and denominators that are nowhere near 0."""
    rng = np.random.default_rng(seed)
    angle, small = rng.uniform(0, 2 * np.pi), 0.01
    turn = {"samp": (np.cos(angle), np.sin(angle)), "line": (np.sin(angle), -np.cos(angle))}

    def numerator(axis: str) -> tuple[float, ...]:
        values = rng.uniform(-small, small, 20)
        values[1:3] = turn[axis]
        return tuple(map(float, values))

    def denominator() -> tuple[float, ...]:
        return (1.0, *map(float, rng.uniform(-small, small, 19)))

    return RPC(
        line_off=float(rng.uniform(300, 900)),
        samp_off=float(rng.uniform(300, 900)),
        lat_off=float(rng.uniform(-70, 70)),
        lon_off=float(rng.uniform(-170, 170)) if lon_off is None else lon_off,
        height_off=float(rng.uniform(0, 3000)),
        line_scale=float(rng.uniform(300, 1000)),
        samp_scale=float(rng.uniform(300, 1000)),
        lat_scale=float(rng.uniform(0.2, 0.5)),
        lon_scale=float(rng.uniform(0.2, 0.5)),
        height_scale=float(rng.uniform(300, 1500)),
        line_num=numerator("line"),
        line_den=denominator(),
        samp_num=numerator("samp"),
        samp_den=denominator(),
    )


def places(rpc: RPC, seed: int, shape: tuple[int, ...]) -> tuple[Floats, Floats, Floats]:
    """Longitudes, latitudes and heights within a camera's scales."""
    x, y, z = np.random.default_rng(seed).uniform(-1, 1, (3, *shape))
    heights = rpc.height_off + z * rpc.height_scale
    return rpc.lon_off + x * rpc.lon_scale, rpc.lat_off + y * rpc.lat_scale, heights


def rpc00b(c: tuple[float, ...], lon: Any, lat: Any, h: Any) -> Any:
    """The polynomial of STDI-0002, appendix E, as it is printed: L longitude, P latitude, H height."""
    return (
        c[0] + c[1] * lon + c[2] * lat + c[3] * h
        + c[4] * lon * lat + c[5] * lon * h + c[6] * lat * h + c[7] * lon**2 + c[8] * lat**2 + c[9] * h**2
        + c[10] * lat * lon * h + c[11] * lon**3 + c[12] * lon * lat**2 + c[13] * lon * h**2 + c[14] * lon**2 * lat
        + c[15] * lat**3 + c[16] * lat * h**2 + c[17] * lon**2 * h + c[18] * lat**2 * h + c[19] * h**3
    )  # fmt: skip


@given(seed=seeds)
@settings(max_examples=40)
def test_rpc_is_the_standards_polynomial_with_half_a_pixel(seed: int) -> None:
    rpc = curved(seed)
    lon, lat, height = places(rpc, seed, (3, 5))
    col, row = rpc.image(lon, lat, height)
    assert col.shape == row.shape == (3, 5)
    for k in np.ndindex(3, 5):
        x = (lon[k] - rpc.lon_off) / rpc.lon_scale
        y = (lat[k] - rpc.lat_off) / rpc.lat_scale
        z = (height[k] - rpc.height_off) / rpc.height_scale
        samp = rpc00b(rpc.samp_num, x, y, z) / rpc00b(rpc.samp_den, x, y, z) * rpc.samp_scale + rpc.samp_off
        line = rpc00b(rpc.line_num, x, y, z) / rpc00b(rpc.line_den, x, y, z) * rpc.line_scale + rpc.line_off
        # Line 0, sample 0 is the centre of the first pixel; (0, 0) here is its outer corner.
        assert math.hypot(col[k] - samp - 0.5, row[k] - line - 0.5) < 1e-9


@given(seed=seeds, across=st.booleans())
@settings(max_examples=10)
def test_rpc_agrees_with_gdal(tmp_path_factory: pytest.TempPathFactory, seed: int, across: bool) -> None:
    """GDAL reads the RPB by itself, so the reader of the file is held against it as well."""
    folder = tmp_path_factory.mktemp("gdal")
    text = rpb(curved(seed, 179.9 if across else None))
    (folder / "image.tiff").write_bytes(tiff(coordinates(7, 5)))
    (folder / "image.rpb").write_text(text)
    rpc = parse_rpb(text)
    lon, lat, height = places(rpc, seed, (50,))
    with rasterio.open(folder / "image.tiff") as file, RPCTransformer(file.rpcs) as gdal:
        rows, cols = gdal.rowcol(lon, lat, zs=height, op=lambda value: value)
    col, row = rpc.image(lon, lat, height)
    assert np.hypot(col - cols, row - rows).max() < 1e-6


@given(seed=seeds)
@settings(max_examples=40)
def test_ground_of_a_pixel_is_seen_in_that_pixel(seed: int) -> None:
    rpc = curved(seed)
    wanted = rpc.image(*places(rpc, seed, (4, 6)))
    height = places(rpc, seed, (4, 6))[2]
    lon, lat = rpc.ground(*wanted, height)
    assert np.abs(np.subtract(rpc.image(lon, lat, height), wanted)).max() < 1e-6
    assert lon == pytest.approx(places(rpc, seed, (4, 6))[0], abs=1e-9)
    assert lat == pytest.approx(places(rpc, seed, (4, 6))[1], abs=1e-9)


@pytest.mark.parametrize("lon_off", [179.9, -179.9, 180.0, 359.9])
def test_longitude_wraps_at_the_antimeridian(lon_off: float) -> None:
    rpc = curved(5, lon_off)
    lon, lat, height = places(rpc, 1, (40,))
    here = rpc.image(lon, lat, height)
    for turn in (-720, -360, 360):
        assert np.abs(np.subtract(rpc.image(lon + turn, lat, height), here)).max() < 1e-6
    away = rpc.image(np.array([lon_off + 0.1]), np.array([rpc.lat_off]), np.array([rpc.height_off]))
    assert max(abs(away[0][0]), abs(away[1][0])) < 3000


def test_heights_are_broadcast() -> None:
    rpc = curved(2)
    lon, lat, _ = places(rpc, 2, (3, 4))
    one = rpc.image(lon, lat, np.array(900.0))
    assert np.array_equal(one, rpc.image(lon, lat, np.full((3, 4), 900.0)))
    assert np.array_equal(rpc.ground(*one, np.array(900.0)), rpc.ground(*one, np.full((3, 4), 900.0)))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"line_num": (1.0,) * 19}, "line_num has 19 coefficients, expected 20"),
        ({"samp_den": (1.0,) * 21}, "samp_den has 21 coefficients, expected 20"),
        ({"samp_num": (math.nan, *(0.0,) * 19)}, "samp_num holds a value that is not a finite number"),
        ({"line_den": (math.inf, *(0.0,) * 19)}, "line_den holds a value that is not a finite number"),
        ({"line_den": (0.0,) * 20}, "line_den is all zeros"),
        ({"samp_den": (0.0,) * 20}, "samp_den is all zeros"),
        ({"line_off": math.nan}, "line_off is not a finite number"),
        ({"height_off": math.inf}, "height_off is not a finite number"),
        ({"lat_scale": 0.0}, "lat_scale must be a positive number, got 0.0"),
        ({"lon_scale": -0.1}, "lon_scale must be a positive number, got -0.1"),
        ({"height_scale": math.nan}, "height_scale must be a positive number, got nan"),
        ({"lat_off": 95.0}, "latitude 95.0, longitude 105.3 is not a place on Earth"),
        ({"lon_off": 400.0}, "latitude 24.8, longitude 400.0 is not a place on Earth"),
    ],
)
def test_a_camera_refuses_nonsense_by_name(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(camera(), **change)


def test_a_camera_that_sees_no_ground_says_so() -> None:
    """Both image coordinates follow longitude alone: no latitude can be found."""
    good = camera()
    blind = replace(good, line_num=good.samp_num, line_scale=good.samp_scale, line_off=good.samp_off)
    with pytest.raises(ValueError, match="no ground point"):
        blind.ground(np.array([3.0]), np.array([40.0]), np.array([0.0]))


# --- images on a map

OTHERS = [
    ("EPSG:32649", (7.9, 1.3, 230_000.0, 1.1, -8.2, 2_760_000.0)),
    ("EPSG:4326", (1e-4, 0.0, 105.2, 0.0, -9e-5, 24.9)),
    ("EPSG:3857", (9.0, 0.0, 11_720_000.0, 0.0, -9.0, 2_850_000.0)),
]


@pytest.mark.parametrize(("crs", "transform"), OTHERS)
def test_an_image_on_a_map_lies_where_pyproj_says(crs: str, transform: tuple[float, ...]) -> None:
    a, b, c, d, e, f = transform
    model = Georeferenced(crs, (a, b, c, d, e, f))
    col, row = np.meshgrid(np.arange(0.5, 90, 7), np.arange(0.5, 60, 7))
    lon, lat = Transformer.from_crs(crs, 4326, always_xy=True).transform(a * col + b * row + c, d * col + e * row + f)
    assert np.abs(np.subtract(model.ground(col, row, np.zeros(col.shape)), (lon, lat))).max() < 1e-12
    for height in (0.0, 3000.0):  # heights play no part
        assert np.abs(np.subtract(model.image(lon, lat, np.full(col.shape, height)), (col, row))).max() < 1e-5


def test_a_transform_without_inverse_is_refused() -> None:
    with pytest.raises(ValueError, match="has no inverse"):
        Georeferenced("EPSG:32648", (1.0, 2.0, 0.0, 2.0, 4.0, 0.0))


@pytest.mark.parametrize("model", [curved(3), Georeferenced("EPSG:32648", tuple(Affine(2, 0, 5, 0, -2, 9))[:6])])
def test_a_model_comes_back_from_json(model: RPC | Georeferenced) -> None:
    assert model_from_json(json.loads(json.dumps(model.to_json()))) == model


def test_a_model_of_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown sensor model 'sar'"):
        model_from_json({"kind": "sar"})


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:4326", (1e-3, 0.0, 190.0, 0.0, -1e-3, 24.9)),  # counted from 0 to 360
        ("EPSG:4326", (1e-3, 0.0, -185.0, 0.0, -1e-3, 24.9)),
        ("EPSG:4326", (1e-3, 0.0, 179.97, 0.0, -1e-3, 24.9)),  # across the antimeridian
        ("EPSG:4326", (-1e-3, 0.0, 180.02, 0.0, -1e-3, 24.9)),  # columns run west
        ("EPSG:4269", (1e-3, 0.0, 359.98, 0.0, -1e-3, 24.9)),  # across the prime meridian
        ("EPSG:3857", (100.0, 0.0, 20_035_000.0, 0.0, -100.0, 2_850_000.0)),
        ("EPSG:6933", (100.0, 0.0, 17_365_000.0, 0.0, -100.0, 2_850_000.0)),
    ],
)
def test_an_image_may_continue_past_180_degrees(crs: str, transform: tuple[float, ...]) -> None:
    """Ground in -180 to 180 is found in the image, whichever way its own longitudes are counted."""
    a, b, c, d, e, f = transform
    model = Georeferenced(crs, (a, b, c, d, e, f))
    col, row = np.meshgrid(np.arange(0.5, 90, 7), np.arange(0.5, 60, 7))
    lon, lat = model.ground(col, row, np.zeros(col.shape))
    lon = (lon + 180.0) % 360.0 - 180.0
    assert np.abs(np.subtract(model.image(lon, lat, np.zeros(col.shape)), (col, row))).max() < 1e-4
