"""Orthorectification: the pixels of a grid on the map, from one image.

One path for every source. The sensor model is evaluated in float64 on a lattice of destination pixels and
interpolated between its nodes; the ground's height is taken at each pixel; all bands are resampled at once.
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
"""Rows that are resampled at a time, so that their coordinates stay in the processor's cache."""
LONGEST = 32_766
"""The longest side of an image that OpenCV resamples, px."""


def resample(source: Pixels, x: Map, y: Map, kind: Resampling, pixels: Pixels) -> None:
    """Samples of an image at index coordinates (0 is the centre of the first pixel), into pixels.

    source: (row, col, band), at most 4 bands. x, y: float32. pixels: (*x.shape, band), of the source's type.
    What draws on a pixel outside the source means nothing.
    """
    if kind == "cubic":
        convolve(source, x, y, pixels)
        return
    code = cv2.INTER_LINEAR if kind == "bilinear" else cv2.INTER_NEAREST
    if pixels.strides[1] == source.shape[2] * source.itemsize:
        cv2.remap(source, x, y, code, dst=pixels)
    else:  # some of a pixel's bands, which OpenCV cannot write apart from the others
        pixels[...] = cv2.remap(source, x, y, code).reshape(pixels.shape)


@njit(cache=True, nogil=True, error_model="numpy")
def convolve(source: Pixels, x: Map, y: Map, pixels: Pixels) -> None:  # pragma: no cover
    """Cubic convolution of four by four pixels (R. Keys, 1981, a = -1/2), rounded and held within the type."""
    rows, cols, bands = source.shape
    most = 255.0 if source.itemsize == 1 else 65535.0
    across, down = np.empty(4), np.empty(4)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            if not (x[i, j] >= 1 and y[i, j] >= 1 and x[i, j] <= cols - 2 and y[i, j] <= rows - 2):
                pixels[i, j] = 0
                continue
            col, row = min(int(x[i, j]), cols - 3), min(int(y[i, j]), rows - 3)
            for weights, t in ((across, x[i, j] - col), (down, y[i, j] - row)):
                weights[0] = ((-0.5 * t + 1.0) * t - 0.5) * t
                weights[1] = (1.5 * t - 2.5) * t * t + 1.0
                weights[2] = ((-1.5 * t + 2.0) * t + 0.5) * t
                weights[3] = (0.5 * t - 0.5) * t * t
            for band in range(bands):
                total = 0.0
                for r in range(4):
                    part = 0.0
                    for c in range(4):
                        part += across[c] * source[row - 1 + r, col - 1 + c, band]
                    total += down[r] * part
                pixels[i, j, band] = int(min(max(total, 0.0), most) + 0.5)


def band_groups(bands: int) -> list[slice]:
    """Bands that are resampled together: at most four, and not two, for which OpenCV has no exact weights."""
    found, start = [], 0
    while start < bands:
        left = bands - start
        size = 4 if left >= 4 else 1 if left == 2 else left
        found.append(slice(start, start + size))
        start += size
    return found


Mask = npt.NDArray[np.bool_] | np.bool_
SOURCES = BufferPool()
MARGIN: dict[Resampling, float] = {"nearest": -0.499, "bilinear": 0.0, "cubic": 1.0}
"""A sample so far within the outermost pixels' centres draws on no pixel outside the image, px."""


@dataclass(frozen=True, slots=True)
class Ortho:
    """A grid's pixels."""

    pixels: Pixels
    """(row, col, band), in the file's type."""
    valid: npt.NDArray[np.bool_]
    """(row, col): False where a pixel draws on what lies outside the image or has no data; it means nothing there."""
    missing: npt.NDArray[np.bool_] | None
    """(row, col): where a pixel draws on a line that is missing in the image; None where none does."""
    lattice: Lattice


def orthorectify(
    geobox: GeoBox, image: Image, terrain: Terrain, kind: Resampling = "bilinear", missing_level: float = 0.0
) -> Ortho:
    """A grid's pixels from an image, of which only the window that the grid needs is read.

    missing_level: see `quality.missing_lines`; the lines of an image that lies on a map are not raw ones.
    Raises SceneError naming the file where it cannot be read.
    """
    shape = (geobox.shape[0], geobox.shape[1])
    mesh = fit_lattice(geobox, image.model, terrain)
    pixels, valid = np.empty((*shape, len(image.bands)), image.dtype), np.zeros(shape, np.bool_)
    reach = mesh.reach()
    window = source_window(reach, image.width, image.height)
    if window is None:
        pixels[...] = 0
        return Ortho(pixels, valid, None, mesh)
    c0, r0, width, height = window
    if max(width, height) > LONGEST:
        raise SceneError(
            f"{image.path}: a block of {shape[1]} x {shape[0]} px at {image.gsd:g} m draws on {width} x {height} px "
            f"of it, more than {LONGEST}; give a smaller block, or is the ground sampling distance wrong?"
        )
    parts = band_groups(len(image.bands))
    sources, known = read_bands(image, Window(c0, r0, width, height), parts, memory=SOURCES)
    bad = without_data(known, kind)
    gone = find_missing_lines(sources[0], missing_level) if isinstance(image.model, RPC) else np.zeros(height, np.bool_)
    lost = np.zeros(shape, np.bool_) if gone.any() else None
    near = gone | np.append(gone[1:], False) | np.insert(gone[:-1], 0, False)
    for top in range(0, shape[0], STRIP):
        rows = slice(top, min(top + STRIP, shape[0]))
        cols, inside = columns(reach, mesh.step, rows, shape[1], window)
        pixels[rows, : cols.start], pixels[rows, cols.stop :] = 0, 0
        if cols.start == cols.stop:
            continue
        x, y = mesh.maps(rows, cols, (c0 + 0.5, r0 + 0.5))
        for part, source in zip(parts, sources, strict=True):
            resample(source, x, y, kind, pixels[rows, cols, part])
        good: Mask = np.True_ if inside else within(x, y, (height, width), MARGIN[kind])
        if bad is not None:
            # In 16 bits, so that no weight that could change a pixel is rounded away.
            drawn = np.empty((*x.shape, 1), np.uint16)
            resample(bad, x, y, "nearest" if kind == "nearest" else "bilinear", drawn)
            good = good & (drawn[..., 0] == 0)
        valid[rows, cols] = good
        if lost is not None:
            lost[rows, cols] = good & near[np.clip(np.nan_to_num(y + 0.5), 0, height - 1).astype(np.intp)]
    return Ortho(pixels, valid, lost, mesh)


def within(x: Map, y: Map, shape: tuple[int, int], margin: float) -> npt.NDArray[np.bool_]:
    """Where index coordinates lie a margin or more within the centres of an image's outermost pixels."""
    height, width = shape
    return (x >= margin) & (x <= width - 1 - margin) & (y >= margin) & (y <= height - 1 - margin)


def without_data(valid: Valid, kind: Resampling) -> Pixels | None:
    """65535 at every pixel without data, (row, col, 1) uint16; None where there is no such pixel."""
    if valid is None or valid.all():
        return None
    mask = (~valid).astype(np.uint16) * np.uint16(65535)
    if kind == "cubic":  # which draws on one pixel more than bilinear sampling, all round
        mask = np.asarray(cv2.dilate(mask, np.ones((3, 3), np.uint8)), np.uint16)
    return np.asarray(mask[..., None])


def source_window(reach: Floats, width: int, height: int) -> tuple[int, int, int, int] | None:
    """The part of an image that is drawn on: first column, first row, width, height; None where none is."""
    known = np.isfinite(reach).all(axis=-1)
    if not known.any():
        return None
    low_x, high_x, low_y, high_y = reach[known].T
    # Cells that miss the image altogether draw on nothing.
    near = (high_x > -2) & (low_x < width + 2) & (high_y > -2) & (low_y < height + 2)
    if not near.any():
        return None
    c0, c1 = max(0, math.floor(low_x[near].min()) - 2), min(width, math.ceil(high_x[near].max()) + 2)
    r0, r1 = max(0, math.floor(low_y[near].min()) - 2), min(height, math.ceil(high_y[near].max()) + 2)
    return (c0, r0, c1 - c0, r1 - r0) if c1 > c0 and r1 > r0 else None


def columns(reach: Floats, step: int, rows: slice, width: int, window: tuple[int, int, int, int]) -> tuple[slice, bool]:
    """The run of destination columns of some rows that can lie in a window of the image.

    Also whether all of these lie in it for certain, and so far from its border that no sample draws on more.
    """
    c0, r0, w, h = window
    first, last = (2 * row // step + 1 >> 1 for row in (rows.start, rows.stop - 1))
    low_x, high_x, low_y, high_y = np.moveaxis(reach[first : last + 1], -1, 0)
    near = (high_x > c0 - 2) & (low_x < c0 + w + 2) & (high_y > r0 - 2) & (low_y < r0 + h + 2)
    cells = np.flatnonzero(near.any(axis=0))
    if len(cells) == 0:
        return slice(0, 0), False
    run = slice(cells[0], cells[-1] + 1)
    sides = (
        low_x[:, run].min() - c0, c0 + w - high_x[:, run].max(),
        low_y[:, run].min() - r0, r0 + h - high_y[:, run].max(),
    )  # fmt: skip
    start, stop = int(cells[0]) * step - step // 2, int(cells[-1] + 1) * step - step // 2
    # Cells reach beyond the grid. Cubic convolution draws on pixels up to two from the sample, whose centre is at 0.5.
    return slice(min(max(start, 0), width), min(stop, width)), bool(np.min(sides) >= 1.75)
