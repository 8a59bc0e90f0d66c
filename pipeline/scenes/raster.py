"""Images as files: what the header of one says, and the pixels and validity of a window of it."""

import math
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.windows import Window

from geokr.storage import rasters
from pipeline.geometry.sensor import SensorModel
from pipeline.scenes.scene import Image, SceneError
from pipeline.scenes.scratch import local_copy

Pixels = npt.NDArray[Any]
Valid = npt.NDArray[np.bool_] | None
"""(row, col), where there is data; None where nothing in the file says that a pixel could hold none."""

OPTIONS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no siblings of an image that GDAL would add of its own accord
    "GDAL_CACHEMAX": 64,
    "CPL_VSIL_GZIP_WRITE_PROPERTIES": "NO",  # or a file appears beside each archive
}


MAPPED = 64 << 20
"""Bytes of an image that are mapped into memory at a time; they count as the process's own."""


@contextmanager
def open_image(path: str, *, mapped: bool = False) -> Iterator[Any]:
    """A TIFF opened by rasterio, from a compressed archive a copy of it; without the siblings that GDAL would add.

    A TIFF alone: other formats lead GDAL to other files (VRT) or addresses, which a delivery must not choose.
    mapped: pixels that are not compressed are taken from the file's pages, past GDAL's cache of blocks.
    """
    options = OPTIONS | rasters.gdal_options() | ({"GTIFF_VIRTUAL_MEM_IO": "YES"} if mapped else {})
    with rasterio.Env(**options), warnings.catch_warnings(), local_copy(path) as opened:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.open(opened, driver="GTiff") as source:
                yield source
        except RasterioIOError as error:
            if opened != path:  # nobody knows the copy's name
                raise RasterioIOError(str(error).replace(opened, path)) from error
            raise


@dataclass(frozen=True, slots=True)
class Header:
    """What an image's header says."""

    width: int
    height: int
    indexes: tuple[int, ...]
    """Bands that hold pixels, from 1: all but alpha."""
    masked: bool
    """Whether alpha or a mask in the file says where there is data."""
    dtypes: tuple[str, ...]
    crs: Any
    """None where the image does not lie on a map."""
    transform: Any
    nodata: float | None
    descriptions: tuple[str, ...]
    tags: dict[str, str]

    @property
    def count(self) -> int:
        return len(self.indexes)

    def image(self, path: str, bands: tuple[str, ...], gsd: float, model: SensorModel) -> Image:
        """The image that the header is of."""
        indexes = () if self.indexes == tuple(range(1, len(self.dtypes) + 1)) else self.indexes
        return Image(
            path, bands, self.width, self.height, self.dtypes[0], self.nodata, gsd, model, indexes, self.masked
        )


def read_header(path: str) -> Header:
    """What an image's header says. Raises SceneError where it is no image of whole numbers."""
    try:
        with open_image(path) as file:
            alpha = [k for k, colour in enumerate(file.colorinterp, 1) if colour == ColorInterp.alpha]
            found = Header(
                file.width, file.height,
                tuple(k for k in range(1, file.count + 1) if k not in alpha),
                bool(alpha) or MaskFlags.per_dataset in file.mask_flag_enums[0],
                file.dtypes,
                # A CRS alone places nothing: without a transform, GDAL makes one up that does nothing.
                None if file.transform == Affine.identity() else file.crs,
                file.transform, file.nodata,
                tuple(description or "" for description in file.descriptions), file.tags(),
            )  # fmt: skip
    except RasterioIOError as error:
        raise SceneError(f"{path}: not an image that can be opened: {error}") from error
    if len(set(found.dtypes)) != 1 or found.dtypes[0] not in ("uint8", "uint16"):
        raise SceneError(f"{path}: pixels are {sorted(set(found.dtypes))}, expected uint8 or uint16")
    if not found.indexes:
        raise SceneError(f"{path}: it holds a mask alone")
    return found


def read_image(
    image: Image, window: Window | None = None, shape: tuple[int, int] | None = None
) -> tuple[Pixels, Valid]:
    """Pixels of an image, (band, row, col) in the file's type, and where all bands hold data.

    window: in px of the image, the whole of it if None. shape: to which it is decimated, nearest neighbour.
    Raises SceneError naming the file where it cannot be read.
    """
    whole = [slice(0, len(image.bands))]
    (pixels,), valid = read_bands(image, window or Window(0, 0, image.width, image.height), whole, shape)
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0)), valid


class BufferPool(threading.local):
    """Where a thread reads one window after the other to.

    The kernel zeroes memory that is new, which takes as long as reading.
    """

    def __init__(self) -> None:
        self.kept: dict[int, npt.NDArray[np.uint8]] = {}

    def empty(self, part: int, shape: tuple[int, ...], dtype: str) -> Pixels:
        """An array that is overwritten by the next one of the same part."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if part not in self.kept or self.kept[part].size < size:
            self.kept.pop(part, None)
            self.kept[part] = np.empty(size, np.uint8)
        return self.kept[part][:size].view(dtype).reshape(shape)


def read_bands(
    image: Image,
    window: Window,
    parts: Sequence[slice],
    shape: tuple[int, int] | None = None,
    memory: BufferPool | None = None,
) -> tuple[list[Pixels], Valid]:
    """Pixels of some runs of an image's bands, (row, col, band) each, and where all of its bands hold data.

    As `read_image`; a pixel's bands beside each other are what most files hold, and what resampling wants.
    memory: what the pixels are read to; they are there until something else is.
    """
    rows, cols = (int(window.height), int(window.width)) if shape is None else shape
    indexes = image.indexes or tuple(range(1, len(image.bands) + 1))
    shapes = [(rows, cols, part.stop - part.start) for part in parts]
    if memory is None:
        found = [np.empty(size, image.dtype) for size in shapes]
    else:
        found = [memory.empty(k, size, image.dtype) for k, size in enumerate(shapes)]
    mask = np.empty((rows, cols), np.bool_) if image.masked else None
    done = 0
    try:
        while done < rows:
            with open_image(image.path, mapped=shape is None) as file:
                here, of = slice(done, rows), window
                if shape is None and file.compression is None:
                    line = file.width * file.count * np.dtype(image.dtype).itemsize
                    here = slice(done, min(done + max(1, MAPPED // line), rows))
                    of = Window(window.col_off, window.row_off + done, cols, here.stop - done)
                for part, pixels in zip(parts, found, strict=True):
                    file.read([*indexes[part]], window=of, out=np.moveaxis(pixels[here], -1, 0))
                if mask is not None:
                    mask[here] = file.dataset_mask(window=of, out_shape=mask[here].shape)
            done = here.stop
    except RasterioIOError as error:
        raise SceneError(f"{image.path}: cannot be read: {error.__cause__ or error}") from error
    if image.nodata is None:
        return found, mask
    valid = np.logical_and.reduce([(pixels != image.nodata).all(axis=2) for pixels in found])
    return found, valid if mask is None else valid & mask
