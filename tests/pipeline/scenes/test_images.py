"""Images on a map, whatever file holds them: names of bands, types of pixels, georeference."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from geokr.dataset import layout
from pipeline.config import GridConfig
from pipeline.plan import tile_grid
from pipeline.scenes.delivery import read_delivery
from pipeline.scenes.discovery import find_deliveries
from pipeline.scenes.numbers import Numbers, choose_numbers
from pipeline.scenes.raster import read_image
from pipeline.scenes.scene import Scene, SceneError
from pipeline.tasks.tiles import make_tiles
from tests.deliveries import HEIGHT, WIDTH, coordinates, surveyed, tiff, tile_job

PLACE = {"crs": "EPSG:32648", "transform": Affine(8, 0, 5e5, 0, -8, 2.7e6)}


def read(path: Path, **settings: Any) -> Scene:
    """The one scene of a path."""
    (scene,) = [item for one in find_deliveries([path]) for item in read_delivery(one, **settings)]
    assert isinstance(scene, Scene), scene
    return scene


# --- names of bands

I = ColorInterp  # noqa: E741


@pytest.mark.parametrize(
    ("colours", "descriptions", "names"),
    [
        ((I.red, I.green, I.blue), None, ("red", "green", "blue")),
        ((I.blue, I.green, I.red, I.undefined), None, ("blue", "green", "red", "band_4")),
        ((I.gray, I.undefined), None, ("band_1", "band_2")),
        ((I.undefined, I.undefined), None, ("band_1", "band_2")),
        ((I.red, I.red), None, ("band_1", "band_2")),  # not two bands of one name
        ((I.red, I.green, I.blue), ("NIR", "Red", "Green"), ("nir", "red", "green")),  # a name is more than a colour
        ((I.red, I.green, I.blue), ("Near Infrared", "Red Edge", "x"), ("nir", "red_edge", "x")),
        ((I.red, I.green, I.blue), ("NIR", "Red", ""), ("red", "green", "blue")),
        ((I.red, I.green, I.blue), ("b", "b", "c"), ("red", "green", "blue")),
    ],
)
def test_bands_are_named_by_the_file(
    tmp_path: Path, colours: tuple[ColorInterp, ...], descriptions: tuple[str, ...] | None, names: tuple[str, ...]
) -> None:
    path = tmp_path / "map.tif"
    path.write_bytes(tiff(coordinates(bands=len(colours)), **PLACE))
    with rasterio.open(path, "r+") as file:
        file.colorinterp = colours
        if descriptions:
            file.descriptions = descriptions
    assert read(path).bands == names


def test_a_plain_picture_has_red_green_and_blue(tmp_path: Path) -> None:
    path = tmp_path / "picture.tif"
    path.write_bytes(tiff(coordinates(bands=3).astype(np.uint8), photometric="RGB", **PLACE))
    assert read(path).bands == ("red", "green", "blue")


def test_the_user_names_the_bands_of_images_with_as_many(tmp_path: Path) -> None:
    for bands in (3, 4):
        image = tiff(coordinates(bands=bands), **PLACE | {"photometric": "RGB" if bands == 3 else "MINISBLACK"})
        (tmp_path / f"{bands}.tif").write_bytes(image)
    names = ("nir", "red", "green", "blue")
    assert read(tmp_path / "3.tif", band_names=names).bands == ("red", "green", "blue")
    assert read(tmp_path / "4.tif", band_names=names).bands == names


# --- types of pixels


def ramp(dtype: str, low: float, high: float) -> np.ndarray:
    """(band, row, col): from low to high along columns, and along rows, in the type of the file."""
    col, row = np.meshgrid(np.linspace(low, high, WIDTH), np.linspace(low, high, HEIGHT))
    return np.stack([col, row]).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "low", "high", "nodata", "exact"),
    [
        ("int16", 0, 9000, -9999, True),  # surface reflectance
        ("int16", -3000, 9000, -9999, True),
        ("int16", -32768, 32767, None, True),
        ("int8", -100, 100, None, True),
        ("int32", 0, 60_000, 0, True),
        ("uint32", 0, 60_000, None, True),
        ("int32", -70_000, 900_000, -(2**31), False),
        ("float32", 0.0, 0.6, -9999, False),  # reflectance
        ("float32", -25.0, 3.0, float("nan"), False),  # decibels
        ("float64", 0.0, 1e4, -1.7976931348623157e308, False),
    ],
)
@pytest.mark.parametrize("compress", [None, "deflate"])
def test_pixels_of_any_type_keep_their_values(
    tmp_path: Path, dtype: str, low: float, high: float, nodata: float | None, exact: bool, compress: str | None
) -> None:
    pixels, path = ramp(dtype, low, high), tmp_path / "map.tif"
    if nodata is not None:
        pixels[:, 10:20, 30:40] = nodata
    path.write_bytes(tiff(pixels, nodata=nodata, compress=compress, tiled=bool(compress), **PLACE))
    (image,) = read(path).images
    numbers, valid = read_image(image)
    assert numbers.dtype == np.uint16
    expected = np.ones((HEIGHT, WIDTH), np.bool_)
    if nodata is not None:
        expected[10:20, 30:40] = False
        expected &= (pixels != nodata).all(axis=0)  # a ramp may begin with it
    assert valid is not None
    assert np.array_equal(valid, expected)
    error = np.abs(image.numbers.decode(numbers.astype(np.float64)) - pixels)[:, valid].max()
    assert error <= (0 if exact else (high - low) / 20_000)
    window = Window(20, 8, 40, 30)  # the same wherever the file is read
    part, part_valid = read_image(image, window)
    assert np.array_equal(part, numbers[:, 8:38, 20:60])
    assert part_valid is not None
    assert np.array_equal(part_valid, valid[8:38, 20:60])


def test_a_little_noise_below_zero_is_zero_and_digital_numbers_stay_what_they_are(tmp_path: Path) -> None:
    pixels, path = ramp("int16", 100, 4000), tmp_path / "map.tif"
    pixels[:, 5, 5] = -40
    path.write_bytes(tiff(pixels, **PLACE))
    (image,) = read(path).images
    assert image.numbers == Numbers()
    assert np.array_equal(read_image(image)[0], pixels.clip(0))


def test_fill_values_that_nothing_declares_are_no_data(tmp_path: Path) -> None:
    pixels, path = ramp("float32", 0.1, 0.5), tmp_path / "map.tif"
    pixels[:, 0], pixels[:, 1], pixels[:, 2] = np.nan, np.inf, -3.4e38
    path.write_bytes(tiff(pixels, **PLACE))
    numbers, valid = read_image(read(path).images[0])
    assert valid is not None
    assert not valid[:3].any()
    assert valid[3:].all()
    assert (numbers[:, 3:] > 0).all()


def test_zero_is_zero_in_any_numbers() -> None:
    for low, high in ((-25.3, 3.1), (-1e-3, 0.7), (-5e6, 1e9)):
        numbers = choose_numbers(np.linspace(low, high, 1000))
        found = np.zeros((1, 1), np.uint16)
        numbers.encode(np.zeros((1, 1)), found)
        assert numbers.decode(found)[0, 0] == 0
        assert numbers.base < low


def test_complex_pixels_are_refused(tmp_path: Path) -> None:
    (tmp_path / "map.tif").write_bytes(tiff(coordinates().astype(np.complex64), **PLACE))
    (refusal,) = [item for one in find_deliveries([tmp_path]) for item in read_delivery(one)]
    assert "map.tif: pixels are ['complex64'], expected whole or real numbers of one type" in refusal.detail  # type: ignore[union-attr]


@pytest.mark.parametrize("radiometry", ["percentile", "percentile-per-band", "toa"])
def test_tiles_do_not_depend_on_the_type_of_the_pixels(tmp_path: Path, radiometry: Any) -> None:
    """The same reflectance in five types; stretches and what is stored are in the units of each file."""
    reflectance = np.random.default_rng(3).integers(-200, 9000, (2, HEIGHT, WIDTH))
    files = {
        "shifted": (reflectance + 3000).astype(np.uint16), "signed": reflectance.astype(np.int16),
        "wide": reflectance.astype(np.int32), "real": (reflectance * 1e-4).astype(np.float32),
        "double": reflectance.astype(np.float64),
    }  # fmt: skip
    scales = {"real": None, "shifted": (1e-4, -0.3)}
    stored, ranges = {}, {}
    for name, pixels in files.items():
        path = tmp_path / f"{name}.tif"
        path.write_bytes(tiff(pixels, **PLACE))
        scale = scales.get(name, (1e-4, 0.0))
        if scale:
            with rasterio.open(path, "r+") as file:
                file.scales, file.offsets = [scale[0]] * 2, [scale[1]] * 2
        entry = surveyed(read(path), radiometry=radiometry, reflectance_scale=1.0)
        ranges[name] = [
            (value * (scale or (1, 0))[0] + (scale or (1, 0))[1]) for value in (entry.stretch.low, entry.stretch.high)
        ]
        grid = tile_grid(entry, GridConfig(tile=32, stride=32))
        assert grid is not None
        job = tile_job("none", entry.scene, entry.terrain, entry.stretch, grid, radiometry=entry.radiometry)
        arrays, status, _ = make_tiles(job)
        assert (status == layout.ACCEPTED).all()
        stored[name] = arrays["image"].astype(int)
    for name in files:
        assert ranges[name] == pytest.approx(ranges["signed"], abs=1e-4)
        assert np.abs(stored[name] - stored["signed"]).max() <= 1
    assert stored["signed"].std() > 40


def test_reflectance_needs_a_scale(tmp_path: Path) -> None:
    path = tmp_path / "map.tif"
    path.write_bytes(tiff(ramp("int16", 0, 9000), **PLACE))
    with pytest.raises(SceneError, match=r"map\.tif: reflectance needs .* or the setting reflectance_scale"):
        surveyed(read(path), radiometry="toa")
