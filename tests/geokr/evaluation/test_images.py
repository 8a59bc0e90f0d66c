"""Image files are read by band name, or refused with one sentence that names the file."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning

from geokr.dataset.layout import RGB
from geokr.evaluation.images import find_bands, find_images, find_scale, read_pixels
from geokr.storage.inputs import InputError


def write(path: Path, pixels: np.ndarray, bands: Sequence[str] = (), **options: object) -> Path:
    driver = {".png": "PNG", ".jpg": "JPEG", ".tif": "GTiff"}[path.suffix]
    count, height, width = pixels.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", driver=driver, count=count, height=height, width=width, dtype=pixels.dtype, **options
        ) as image:
            image.write(pixels)
            if bands:
                image.descriptions = bands
    return path


def pixels(bands: int, dtype: type = np.uint8) -> np.ndarray:
    """Each band is a constant: ten times its number from 1."""
    return np.stack([np.full((5, 7), 10 * (band + 1), dtype) for band in range(bands)])


def test_bands_are_named_by_the_file_by_the_user_or_by_their_number(tmp_path: Path) -> None:
    named = write(tmp_path / "named.tif", pixels(3, np.uint16), ("nir", "red", "green"))
    assert find_bands(named) == ("nir", "red", "green")
    plain = write(tmp_path / "plain.tif", pixels(4))
    assert find_bands(plain) == (*RGB, "nir")  # although GDAL marks the fourth as alpha
    assert find_bands(plain, ("a", "b", "c", "d")) == ("a", "b", "c", "d")
    assert find_bands(write(tmp_path / "alpha.png", pixels(4))) == RGB
    with pytest.raises(InputError, match=r"plain.tif: 4 bands, but 2 names: a, b"):
        find_bands(plain, ("a", "b"))
    with pytest.raises(InputError, match=r"many.tif: 6 bands without names; name them"):
        find_bands(write(tmp_path / "many.tif", pixels(6)))


def test_a_file_that_names_its_bands_is_read_by_name(tmp_path: Path) -> None:
    named = write(tmp_path / "named.tif", pixels(4, np.uint16), ("nir", "blue", "red", "green"))
    read = read_pixels(named, RGB)
    assert read.dtype == np.uint16
    assert read[:, 0, 0].tolist() == [30, 40, 20]
    plain = write(tmp_path / "plain.tif", pixels(4))
    assert read_pixels(plain, (*RGB, "nir"))[:, 0, 0].tolist() == [10, 20, 30, 40]


def test_grey_images_and_alpha_become_red_green_and_blue(tmp_path: Path) -> None:
    grey = write(tmp_path / "grey.png", pixels(1))
    assert read_pixels(grey, find_bands(grey))[:, 0, 0].tolist() == [10, 10, 10]
    alpha = write(tmp_path / "alpha.png", pixels(4))
    assert read_pixels(alpha, find_bands(alpha))[:, 0, 0].tolist() == [10, 20, 30]


def test_sixteen_bits_need_the_number_that_means_one(tmp_path: Path) -> None:
    deep = write(tmp_path / "deep.tif", pixels(3, np.uint16))
    assert find_scale(deep, 10000.0) == 10000
    assert find_scale(write(tmp_path / "plain.png", pixels(3))) == 255
    with pytest.raises(InputError, match=r"deep.tif: pixels of uint16; say which number means 1.0"):
        find_scale(deep)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"", "the file is empty"), (b"not an image", "not a readable image"), (None, "no such image")],
)
def test_what_is_no_image_is_refused_by_name(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "bad.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"bad\.png: {sentence}") as raised:
        read_pixels(path, RGB)
    assert "\n" not in str(raised.value)


def test_an_image_that_breaks_off_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "half.png", np.random.default_rng(0).integers(0, 255, (3, 64, 64)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"half\.png: not a readable image"):
        read_pixels(path, RGB)


def test_other_bands_and_types_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"two\.tif: 2 bands, expected 3: red, green, blue"):
        read_pixels(write(tmp_path / "two.tif", pixels(2)), RGB)
    with pytest.raises(InputError, match=r"real\.tif: pixels of float32"):
        read_pixels(write(tmp_path / "real.tif", pixels(3, np.float32)), RGB)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        find_images(tmp_path / "none")
    with pytest.raises(InputError, match="there is no image"):
        find_images(tmp_path)
