"""Orthorectification: the pixels of a grid on the map, from one image.

One path for every source. The sensor model is evaluated in float64 on a lattice of destination pixels,
interpolated between its nodes, and all bands are resampled at once.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox
from rasterio.windows import Window

from geokr.crs import transformer
from pipeline.raster import Pixels, read
from pipeline.scene import Image, SceneError
from pipeline.sensor import Floats, SensorModel
from pipeline.terrain import Terrain

TOLERANCE = 0.05
"""Largest interpolation error of the lattice that is accepted, px of the image."""
STEPS = (16, 8, 4, 2)
"""Distances of lattice nodes that are tried, destination px."""
LONGEST = 32_766
"""The longest side of an image that OpenCV resamples, px."""


@dataclass(frozen=True, slots=True)
class Lattice:
    """Where the destination pixels lie in the image, on every `step`-th of them."""

    step: int
    """Distance of the nodes, destination px. Node k stands at (k - 0.5) * step, measured from the grid's edge."""
    col: Floats
    row: Floats
    """(node row, node col) float64: image coordinates, px from the image's outer corner."""
    error: float
    """Largest interpolation error found at the centres of cells, px of the image."""

    def dense(self, values: Floats, offset: float, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
        """Values at every destination pixel less an offset: `shape` float32, bilinear between the nodes."""
        nodes = (values - offset).astype(np.float32)
        size = (nodes.shape[1] * self.step, nodes.shape[0] * self.step)
        whole = cv2.resize(nodes, size, interpolation=cv2.INTER_LINEAR)
        return np.asarray(whole[self.step : self.step + shape[0], self.step : self.step + shape[1]])


def locate(geobox: GeoBox, x: Floats, y: Floats, model: SensorModel, terrain: Terrain) -> tuple[Floats, Floats]:
    """Image coordinates (col, row) of destination positions; x and y in px from the grid's outer corner."""
    transform = geobox.transform
    east = transform.a * x + transform.b * y + transform.c
    north = transform.d * x + transform.e * y + transform.f
    lon, lat = transformer(str(geobox.crs), "EPSG:4326").transform(east, north)
    return model.image(lon, lat, terrain.heights(lon, lat))


def lattice(geobox: GeoBox, model: SensorModel, terrain: Terrain, tolerance: float = TOLERANCE) -> Lattice:
    """The widest lattice whose error, measured at the centres of its cells, is within the tolerance.

    The narrowest of STEPS is used where none is; its error is in the result.
    """
    rows, cols = geobox.shape
    for step in STEPS:
        nx, ny = math.ceil(cols / step), math.ceil(rows / step)
        x, y = np.meshgrid((np.arange(nx + 2) - 0.5) * step, (np.arange(ny + 2) - 0.5) * step)
        col, row = locate(geobox, x, y, model, terrain)
        # The centre of the cell between four nodes. Every second one either way is enough to judge by.
        x, y = np.meshgrid(np.arange(0, nx + 1, 2) * step, np.arange(0, ny + 1, 2) * step)
        found = locate(geobox, x.astype(np.float64), y.astype(np.float64), model, terrain)
        error = 0.0
        for nodes, truth in zip((col, row), found, strict=True):
            means = (nodes[:-1, :-1] + nodes[1:, :-1] + nodes[:-1, 1:] + nodes[1:, 1:])[::2, ::2] / 4
            error = max(error, float(np.nan_to_num(np.abs(means - truth)).max()))
        if error <= tolerance:
            break
    return Lattice(step, col, row, error)


def resample(
    source: Pixels, valid: npt.NDArray[np.bool_] | None, x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]
) -> tuple[Pixels, npt.NDArray[np.bool_]]:
    """Bilinear samples of an image at pixel centres (x, y): (row, col, band) of the source's type, and a mask.

    source: (row, col, band). valid: (row, col), False where a source pixel is no data; None if all are good.
    x, y: float32, index coordinates (0 is the centre of the first pixel). The mask is False where a sample
    draws on a pixel outside the source or on one without data; the values there mean nothing.
    """
    height, width, bands = source.shape
    good = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    # OpenCV weighs up to four channels at once, on a raster of 1/32 px.
    groups = [
        np.atleast_3d(cv2.remap(np.ascontiguousarray(source[..., k : k + 4]), x, y, cv2.INTER_LINEAR))
        for k in range(0, bands, 4)
    ]
    pixels = groups[0] if len(groups) == 1 else np.concatenate(groups, axis=2)
    if valid is not None and not valid.all():
        # In 16 bits, so that no weight that could change a pixel is rounded away.
        good &= cv2.remap((~valid).astype(np.uint16) * np.uint16(65535), x, y, cv2.INTER_LINEAR) == 0
    return pixels, good


def orthorectify(geobox: GeoBox, image: Image, terrain: Terrain) -> tuple[Pixels, npt.NDArray[np.bool_], Lattice]:
    """A grid's pixels from an image: (row, col, band) in the file's type, (row, col) validity, and the lattice.

    Validity is False where the ground lies outside the image or the image has no data. Only the window of the
    image that the grid needs is read. Raises SceneError naming the file where it cannot be read.
    """
    shape = (geobox.shape[0], geobox.shape[1])
    mesh = lattice(geobox, image.model, terrain)
    window = source_window(mesh, image.width, image.height)
    if window is None:
        return np.zeros((*shape, len(image.bands)), image.dtype), np.zeros(shape, np.bool_), mesh
    c0, r0, width, height = window
    if max(width, height) > LONGEST:
        raise SceneError(
            f"{image.path}: a block of {shape[1]} x {shape[0]} px at {image.gsd:g} m draws on {width} x {height} px "
            f"of it, more than {LONGEST}; give a smaller block, or is the ground sampling distance wrong?"
        )
    bands, valid = read(image, Window(c0, r0, width, height))
    source = np.ascontiguousarray(np.moveaxis(bands, 0, -1))
    del bands  # a block's memory is promised: see pipeline.grid.peak_bytes
    x = mesh.dense(mesh.col, c0 + 0.5, shape)
    y = mesh.dense(mesh.row, r0 + 0.5, shape)
    pixels, good = resample(source, valid, x, y)
    return pixels, good, mesh


def source_window(mesh: Lattice, width: int, height: int) -> tuple[int, int, int, int] | None:
    """The part of an image that a lattice draws on: first column, first row, width, height; None where none."""
    known = np.isfinite(mesh.col) & np.isfinite(mesh.row)
    if not known.any():
        return None
    col, row = mesh.col[known], mesh.row[known]
    c0, c1 = max(0, math.floor(col.min()) - 2), min(width, math.ceil(col.max()) + 2)
    r0, r1 = max(0, math.floor(row.min()) - 2), min(height, math.ceil(row.max()) + 2)
    return (c0, r0, c1 - c0, r1 - r0) if c1 > c0 and r1 > r0 else None
