"""Image files as people have them: PNG, JPEG and GeoTIFF, of 8 or 16 bits, with any bands."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from geokr.dataset.layout import RGB
from geokr.evaluation.examples import PixelArray
from geokr.storage.inputs import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
"""Endings of image files, in lower case."""


@contextmanager
def open_image(path: Path) -> Iterator[rasterio.DatasetReader]:
    """Open an image file. Raises InputError naming it if it is empty or cannot be opened or read."""
    if not path.is_file():
        raise InputError(f"{path}: no such image")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    if path.suffix.lower() == ".png" and not _has_end(path):
        raise InputError(f"{path}: not a readable image: the file breaks off")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as image:
                yield image
    except RasterioError as error:
        raise InputError(f"{path}: not a readable image: {' '.join(str(error).split())}") from error


def find_images(folder: Path) -> list[Path]:
    """All image files below a folder, by name; hidden ones are left out. Raises InputError if there are none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
    if not found:
        raise InputError(f"{folder}: there is no image ({', '.join(SUFFIXES)}) in this folder")
    return found


def find_bands(path: Path, given: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the bands of an image: `given`, or those in the file, or red, green, blue and near infrared.

    Raises InputError if there is another number of bands than names, or no names for them.
    """
    with open_image(path) as image:
        count, described = _count_bands(image), [name for name in image.descriptions if name]
    if given:
        if len(given) != count:
            raise InputError(f"{path}: {count} bands, but {len(given)} names: {', '.join(given)}")
        return tuple(given)
    if len(described) == count:
        return tuple(described)
    if count in (1, 3):  # a grey image is read as red, green and blue
        return RGB
    if count == 4:
        return (*RGB, "nir")
    raise InputError(f"{path}: {count} bands without names; name them, such as bands=blue,green,red,nir,swir1")


def find_scale(path: Path, given: float = 0.0) -> float:
    """Digital number that means 1.0. given: 0 if it is not known. Raises InputError for 16 bits without it."""
    with open_image(path) as image:
        dtype = image.dtypes[0]
    if given:
        return given
    if dtype != "uint8":
        raise InputError(f"{path}: pixels of {dtype}; say which number means 1.0, such as scale=10000")
    return 255.0


def read_pixels(path: Path, bands: Sequence[str]) -> PixelArray:
    """Read an image: (band, y, x) uint8 or uint16. A grey image is repeated for each of three bands.

    bands: their names; a file that names its bands itself may have others as well, and another order. Raises InputError
    naming the file if it lacks a band, has another type of pixels, or cannot be read.
    """
    with open_image(path) as image:
        if image.dtypes[0] not in ("uint8", "uint16"):
            raise InputError(f"{path}: pixels of {image.dtypes[0]}; images have 8 or 16 bits without sign")
        count = _count_bands(image)
        described = list(image.descriptions[:count])
        if set(bands) <= set(described):
            indexes = [described.index(name) + 1 for name in bands]
        elif count == len(bands):
            indexes = list(range(1, count + 1))
        elif count == 1 and tuple(bands) == RGB:
            return _read_grey_or_palette(image)
        else:
            raise InputError(f"{path}: {count} bands, expected {len(bands)}: {', '.join(bands)}")
        pixels: PixelArray = image.read(indexes)
    return pixels


def _has_end(path: Path) -> bool:
    """Whether a PNG file has its last chunk. GDAL returns other pixels for one that breaks off, without an error."""
    with path.open("rb") as file:
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            return True  # not a PNG: GDAL says what it is
        file.seek(max(8, path.stat().st_size - 4096))
        return b"IEND" in file.read()


def _count_bands(image: rasterio.DatasetReader) -> int:
    """Number of bands without a PNG's alpha. GDAL marks the fourth band of a GeoTIFF as alpha without reason."""
    alpha = image.driver != "GTiff" and image.colorinterp[-1] == ColorInterp.alpha
    return int(image.count) - int(alpha)


def _read_grey_or_palette(image: rasterio.DatasetReader) -> PixelArray:
    """Read one band as red, green and blue."""
    grey: Any = image.read(1)
    if image.colorinterp[0] != ColorInterp.palette:
        repeated: PixelArray = np.repeat(grey[None], 3, axis=0)
        return repeated
    palette = np.zeros((256, 3), np.uint8)
    for index, colour in image.colormap(1).items():
        palette[index] = colour[:3]
    return np.ascontiguousarray(palette[grey].transpose(2, 0, 1))
