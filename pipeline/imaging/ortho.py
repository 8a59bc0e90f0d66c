"""Orthorectification: the pixels of a map grid, from one image.

There is one path for all sources. The sensor model is evaluated in float64 on a lattice of destination pixels and
interpolated between its nodes; the ground height is taken at each pixel; all bands are resampled at once.
"""

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from numba import njit
from odc.geo.geobox import GeoBox
from rasterio.windows import Window

from pipeline.geometry.sensor import RPC, Floats
from pipeline.geometry.terrain import Terrain
from pipeline.imaging.lattice import Lattice, Map, fit_lattice
from pipeline.imaging.quality import find_missing_lines
from pipeline.scenes.raster import BufferPool, Pixels, Valid, read_bands
from pipeline.scenes.scene import Image, SceneError

Resampling = Literal["bilinear", "cubic", "nearest"]
STRIP = 64
"""Number of rows that are resampled at a time. Their coordinates stay in the processor's cache."""
LONGEST = 32_766
"""Longest side of an image that OpenCV can resample, px."""


def resample(source: Pixels, x: Map, y: Map, kind: Resampling, pixels: Pixels) -> None:
    """Sample an image at index coordinates (0 is the centre of the first pixel) and write the result to `pixels`.

    source: (row, col, band), at most 4 bands. x, y: float32. pixels: (*x.shape, band), of the source's type.
    A sample that draws on a pixel outside the source is undefined.
    """
    if kind == "cubic":
        convolve(source, x, y, pixels)
        return
    code = cv2.INTER_LINEAR if kind == "bilinear" else cv2.INTER_NEAREST
    if pixels.strides[1] == source.shape[2] * source.itemsize:
        cv2.remap(source, x, y, code, dst=pixels)
    else:  # a subset of the bands, which OpenCV cannot write in place
        pixels[...] = cv2.remap(source, x, y, code).reshape(pixels.shape)


@njit(cache=True, nogil=True, error_model="numpy")
def convolve(source: Pixels, x: Map, y: Map, pixels: Pixels) -> None:  # pragma: no cover
    """Resample by cubic convolution over 4 x 4 pixels (R. Keys, 1981, a = -1/2), rounded and clipped to the type."""
    rows, cols, bands = source.shape
    type_max = 255.0 if source.itemsize == 1 else 65535.0
    x_weights, y_weights = np.empty(4), np.empty(4)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            if not (x[i, j] >= 1 and y[i, j] >= 1 and x[i, j] <= cols - 2 and y[i, j] <= rows - 2):
                pixels[i, j] = 0
                continue
            col, row = min(int(x[i, j]), cols - 3), min(int(y[i, j]), rows - 3)
            for weights, t in ((x_weights, x[i, j] - col), (y_weights, y[i, j] - row)):
                weights[0] = ((-0.5 * t + 1.0) * t - 0.5) * t
                weights[1] = (1.5 * t - 2.5) * t * t + 1.0
                weights[2] = ((-1.5 * t + 2.0) * t + 0.5) * t
                weights[3] = (0.5 * t - 0.5) * t * t
            for band in range(bands):
                total = 0.0
                for r in range(4):
                    part = 0.0
                    for c in range(4):
                        part += x_weights[c] * source[row - 1 + r, col - 1 + c, band]
                    total += y_weights[r] * part
                pixels[i, j, band] = int(min(max(total, 0.0), type_max) + 0.5)


def band_groups(bands: int) -> list[slice]:
    """Group the bands to resample together: at most four, and never two, for which OpenCV has no exact weights."""
    groups, start = [], 0
    while start < bands:
        remaining = bands - start
        size = 4 if remaining >= 4 else 1 if remaining == 2 else remaining
        groups.append(slice(start, start + size))
        start += size
    return groups


Mask = npt.NDArray[np.bool_] | np.bool_
SOURCES = BufferPool()
MARGIN: dict[Resampling, float] = {"nearest": -0.499, "bilinear": 0.0, "cubic": 1.0}
"""Distance inside the centres of the outermost pixels at which a sample draws on no pixel outside the image, px."""


@dataclass(frozen=True, slots=True)
class Ortho:
    """The orthorectified pixels of a grid."""

    pixels: Pixels
    """(row, col, band), in the file's type."""
    valid: npt.NDArray[np.bool_]
    """(row, col): False where a pixel draws on nodata or on pixels outside the image; its value is then undefined."""
    missing: npt.NDArray[np.bool_] | None
    """(row, col): True where a pixel draws on a missing line of the image; None if no line is missing."""
    lattice: Lattice


def orthorectify(
    geobox: GeoBox, image: Image, terrain: Terrain, kind: Resampling = "bilinear", missing_level: float = 0.0
) -> Ortho:
    """Compute a grid's pixels from an image, of which only the window that the grid needs is read.

    missing_level: see `quality.find_missing_lines`; not used for georeferenced images, whose lines are not raw.
    Raises SceneError naming the file if it cannot be read.
    """
    shape = (geobox.shape[0], geobox.shape[1])
    lattice = fit_lattice(geobox, image.model, terrain)
    pixels, valid = np.empty((*shape, len(image.bands)), image.read_type), np.zeros(shape, np.bool_)
    reach = lattice.reach()
    window = find_source_window(reach, image.width, image.height)
    if window is None:
        pixels[...] = 0
        return Ortho(pixels, valid, None, lattice)
    c0, r0, width, height = window
    if max(width, height) > LONGEST:
        raise SceneError(
            f"{image.path}: a block of {shape[1]} x {shape[0]} px at {image.gsd:g} m needs {width} x {height} px "
            f"of the image, more than {LONGEST}; choose a smaller block, or check the ground sampling distance"
        )
    parts = band_groups(len(image.bands))
    sources, source_valid = read_bands(image, Window(c0, r0, width, height), parts, memory=SOURCES, one_of_many=True)
    nodata = mark_nodata(source_valid, kind)
    missing_rows = (
        find_missing_lines(sources[0], missing_level) if isinstance(image.model, RPC) else np.zeros(height, np.bool_)
    )
    missing = np.zeros(shape, np.bool_) if missing_rows.any() else None
    missing_or_next = missing_rows | np.append(missing_rows[1:], False) | np.insert(missing_rows[:-1], 0, False)
    for top in range(0, shape[0], STRIP):
        rows = slice(top, min(top + STRIP, shape[0]))
        cols, all_inside = find_columns(reach, lattice.step, rows, shape[1], window)
        pixels[rows, : cols.start], pixels[rows, cols.stop :] = 0, 0
        if cols.start == cols.stop:
            continue
        x, y = lattice.maps(rows, cols, (c0 + 0.5, r0 + 0.5))
        for part, source in zip(parts, sources, strict=True):
            resample(source, x, y, kind, pixels[rows, cols, part])
        strip_valid: Mask = np.True_ if all_inside else mask_inside(x, y, (height, width), MARGIN[kind])
        if nodata is not None:
            # In 16 bits, so that no weight large enough to change a pixel is rounded to 0.
            nodata_weight = np.empty((*x.shape, 1), np.uint16)
            resample(nodata, x, y, "nearest" if kind == "nearest" else "bilinear", nodata_weight)
            strip_valid = strip_valid & (nodata_weight[..., 0] == 0)
        valid[rows, cols] = strip_valid
        if missing is not None:
            missing[rows, cols] = (
                strip_valid & missing_or_next[np.clip(np.nan_to_num(y + 0.5), 0, height - 1).astype(np.intp)]
            )
    return Ortho(pixels, valid, missing, lattice)


def mask_inside(x: Map, y: Map, shape: tuple[int, int], margin: float) -> npt.NDArray[np.bool_]:
    """Mask the index coordinates that lie at least a margin inside the centres of an image's outermost pixels."""
    height, width = shape
    return (x >= margin) & (x <= width - 1 - margin) & (y >= margin) & (y <= height - 1 - margin)


def mark_nodata(valid: Valid, kind: Resampling) -> Pixels | None:
    """Return 65535 at every nodata pixel and 0 elsewhere, (row, col, 1) uint16; None if there is no nodata pixel."""
    if valid is None or valid.all():
        return None
    mask = (~valid).astype(np.uint16) * np.uint16(65535)
    if kind == "cubic":  # cubic sampling draws on one pixel more than bilinear on every side
        mask = np.asarray(cv2.dilate(mask, np.ones((3, 3), np.uint8)), np.uint16)
    return np.asarray(mask[..., None])


def find_source_window(reach: Floats, width: int, height: int) -> tuple[int, int, int, int] | None:
    """The window of an image that samples draw on: first column, first row, width, height; None if there is none."""
    finite = np.isfinite(reach).all(axis=-1)
    if not finite.any():
        return None
    low_x, high_x, low_y, high_y = reach[finite].T
    # Cells entirely outside the image draw on nothing.
    overlapping = (high_x > -2) & (low_x < width + 2) & (high_y > -2) & (low_y < height + 2)
    if not overlapping.any():
        return None
    c0, c1 = max(0, math.floor(low_x[overlapping].min()) - 2), min(width, math.ceil(high_x[overlapping].max()) + 2)
    r0, r1 = max(0, math.floor(low_y[overlapping].min()) - 2), min(height, math.ceil(high_y[overlapping].max()) + 2)
    return (c0, r0, c1 - c0, r1 - r0) if c1 > c0 and r1 > r0 else None


def find_columns(
    reach: Floats, step: int, rows: slice, width: int, window: tuple[int, int, int, int]
) -> tuple[slice, bool]:
    """Find the run of destination columns, for a range of rows, that can lie in a window of the image.

    Also returns whether all of them certainly lie in it, far enough from its border that no sample draws on pixels
    outside it.
    """
    c0, r0, w, h = window
    first, last = (2 * row // step + 1 >> 1 for row in (rows.start, rows.stop - 1))
    low_x, high_x, low_y, high_y = np.moveaxis(reach[first : last + 1], -1, 0)
    overlapping = (high_x > c0 - 2) & (low_x < c0 + w + 2) & (high_y > r0 - 2) & (low_y < r0 + h + 2)
    cells = np.flatnonzero(overlapping.any(axis=0))
    if len(cells) == 0:
        return slice(0, 0), False
    run = slice(cells[0], cells[-1] + 1)
    sides = (
        low_x[:, run].min() - c0, c0 + w - high_x[:, run].max(),
        low_y[:, run].min() - r0, r0 + h - high_y[:, run].max(),
    )  # fmt: skip
    start, stop = int(cells[0]) * step - step // 2, int(cells[-1] + 1) * step - step // 2
    # Cells extend beyond the grid. Cubic convolution draws on pixels up to two away, and pixel centres are at 0.5.
    return slice(min(max(start, 0), width), min(stop, width)), bool(np.min(sides) >= 1.75)
