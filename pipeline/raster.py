"""Images as files: opening one, and the pixels and validity of a window of it."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.windows import Window

from pipeline.scene import Image, SceneError

Pixels = npt.NDArray[Any]
Valid = npt.NDArray[np.bool_] | None
"""(row, col), where there is data; None where nothing in the file says that a pixel could hold none."""

OPTIONS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no siblings of an image that GDAL would add of its own accord
    "GDAL_CACHEMAX": 64,
    "CPL_VSIL_GZIP_WRITE_PROPERTIES": "NO",  # or a file appears beside each archive
    "GDAL_HTTP_CONNECTTIMEOUT": 30,
    "GDAL_HTTP_LOW_SPEED_TIME": 60,  # a server that says nothing for a minute is not waited for
    "GDAL_HTTP_LOW_SPEED_LIMIT": 1,
    "GDAL_HTTP_MAX_RETRY": 4,
    "GDAL_HTTP_RETRY_DELAY": 1,
}


@contextmanager
def open_image(path: str) -> Iterator[Any]:
    """A TIFF opened by rasterio, without the siblings and tags that GDAL would add of its own accord.

    A TIFF alone: other formats lead GDAL to other files (VRT) or addresses, which a delivery must not choose.
    """
    with rasterio.Env(**OPTIONS), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, driver="GTiff") as source:
            yield source


def read(image: Image, window: Window | None = None, shape: tuple[int, int] | None = None) -> tuple[Pixels, Valid]:
    """Pixels of an image, (band, row, col) in the file's type, and where all bands hold data.

    window: in px of the image, the whole of it if None. shape: to which it is decimated, nearest neighbour.
    Raises SceneError naming the file where it cannot be read.
    """
    whole = [slice(0, len(image.bands))]
    (pixels,), valid = read_parts(image, window or Window(0, 0, image.width, image.height), whole, shape)
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0)), valid


def read_parts(
    image: Image, window: Window, parts: Sequence[slice], shape: tuple[int, int] | None = None
) -> tuple[list[Pixels], Valid]:
    """Pixels of some runs of an image's bands, (row, col, band) each, and where all of its bands hold data.

    As `read`; a pixel's bands beside each other are what most files hold, and what resampling wants.
    """
    size = (int(window.height), int(window.width)) if shape is None else shape
    indexes = image.indexes or tuple(range(1, len(image.bands) + 1))
    found, mask = [], None
    try:
        with open_image(image.path) as file:
            for part in parts:
                pixels = np.empty((*size, part.stop - part.start), file.dtypes[0])
                file.read([*indexes[part]], window=window, out=np.moveaxis(pixels, -1, 0))
                found.append(pixels)
            if image.masked:
                mask = np.asarray(file.dataset_mask(window=window, out_shape=size)) != 0
    except RasterioIOError as error:
        raise SceneError(f"{image.path}: cannot be read: {error}") from error
    if image.nodata is None:
        return found, mask
    valid = np.logical_and.reduce([(pixels != image.nodata).all(axis=2) for pixels in found])
    return found, valid if mask is None else valid & mask
