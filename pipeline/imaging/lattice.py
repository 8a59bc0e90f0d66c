"""Image coordinates of a grid's pixels: the sensor model on a lattice of nodes, interpolated between them."""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from numba import njit, uint64
from odc.geo.geobox import GeoBox

from geokr.crs import transformer
from pipeline.geometry.sensor import RPC, Floats, SensorModel
from pipeline.geometry.terrain import Relief, Terrain, flat_relief

Map = npt.NDArray[np.float32]
Heights = npt.NDArray[np.float32]
TOLERANCE = 0.05
"""Largest accepted interpolation error of the lattice, px of the image."""
STEPS = (128, 64, 32, 16, 8, 4)
"""Node spacings that are tried, destination px."""
FIELDS = 8
"""Number of smooth functions of map position from which a pixel's image coordinates are computed."""


@dataclass(frozen=True, slots=True)
class Lattice:
    """Image coordinates of destination pixels, as a function of map position and height.

    The camera is a smooth function of map position, while the ground need not be. So each node of the lattice stores
    its position in the DEM's cells, and its image coordinates as quadratics in height. These are interpolated between
    the nodes, and the height is taken from the DEM at each pixel.
    """

    step: int
    """Node spacing, destination px. Node k is at (k - 0.5) * step, measured from the grid's edge."""
    fields: Floats
    """(FIELDS, node row, node col) float64: column and row in the relief's cells, then three coefficients each, of
    z ** 0, 1 and 2, for the image's column and row; not finite where the sensor model is undefined."""
    relief: Relief
    middle: float
    half: float
    """z = (height - middle) / half; m."""
    error: float
    """Largest error at the centres of the lattice's cells, px of the image."""

    def maps(self, rows: slice, cols: slice, origin: tuple[float, float] = (0.5, 0.5)) -> tuple[Map, Map]:
        """Image coordinates (x, y) of destination pixels, float32, minus an origin: index coordinates by default."""
        shape = (rows.stop - rows.start, cols.stop - cols.start)
        x, y = np.empty(shape, np.float32), np.empty(shape, np.float32)
        fields = self.fields.copy()
        fields[2] -= origin[0]
        fields[5] -= origin[1]
        interpolate_maps(fields, self.step, rows.start, cols.start, self.relief.cells, self.middle, self.half, x, y)
        return x, y

    def dense(self, shape: tuple[int, int]) -> tuple[Map, Map]:
        """Image coordinates (col, row) of every pixel of a grid of the given shape, float32."""
        return self.maps(slice(0, shape[0]), slice(0, shape[1]), (0.0, 0.0))

    def reach(self) -> Floats:
        """Bounds of the image coordinates in each cell of the lattice, over the heights in it.

        (cell row, cell col, 4) float64: lowest and highest column, lowest and highest row; NaN where undefined.
        """
        return cell_bounds(self.fields, self.relief.cells, self.middle, self.half)


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz", "reassoc", "arcp"})
def interpolate_maps(
    fields: Floats, step: int, top: int, left: int, cells: Heights, middle: float, half: float, x: Map, y: Map
) -> None:  # pragma: no cover
    """Write the image coordinates of the pixels starting at (top, left) to x and y: see Lattice."""
    height, width = cells.shape
    flat, nodes, n = cells.ravel(), fields.shape[2], x.shape[1]
    line = np.empty((FIELDS, nodes), np.float32)
    u, v, index = np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, np.uint32)
    ramp = ((np.arange(step) + 0.5) / step).astype(np.float32)
    # Positions stay within the last pair of cells, since the loops below read the next cell, too.
    far_u, far_v, zero = np.float32(width - 1.001), np.float32(height - 1.001), np.float32(0)
    scale, shift = np.float32(1 / half), np.float32(-middle / half)
    for i in range(x.shape[0]):
        node_row = (top + i + 0.5) / step + 0.5
        k = int(node_row)
        t = node_row - k
        for q in range(FIELDS):
            for m in range(nodes):
                line[q, m] = np.float32(fields[q, k, m] * (1 - t) + fields[q, k + 1, m] * t)
        for m in range(nodes - 1):
            start = m * step - step // 2 - left
            low, high = max(0, -start), min(step, n - start)
            u0, v0 = line[0, m], line[1, m]
            du, dv = line[0, m + 1] - u0, line[1, m + 1] - v0
            for j in range(low, high):
                uj = min(max(u0 + du * ramp[j], zero), far_u)
                vj = min(max(v0 + dv * ramp[j], zero), far_v)
                col, row = np.int32(uj), np.int32(vj)
                u[start + j], v[start + j] = uj - np.float32(col), vj - np.float32(row)
                index[start + j] = np.uint32(row * np.int32(width) + col)
        for j in range(n):  # overwrite u with z
            # Unsigned, since a signed index would be checked for wrap-around.
            upper, lower = uint64(index[j]), uint64(index[j]) + uint64(width)
            one = uint64(1)
            upper_height = flat[upper] + (flat[upper + one] - flat[upper]) * u[j]
            lower_height = flat[lower] + (flat[lower + one] - flat[lower]) * u[j]
            u[j] = (upper_height + (lower_height - upper_height) * v[j]) * scale + shift
        for m in range(nodes - 1):
            start = m * step - step // 2 - left
            low, high = max(0, -start), min(step, n - start)
            a0, a1, a2, b0, b1, b2 = line[2, m], line[3, m], line[4, m], line[5, m], line[6, m], line[7, m]
            da0, da1, da2 = line[2, m + 1] - a0, line[3, m + 1] - a1, line[4, m + 1] - a2
            db0, db1, db2 = line[5, m + 1] - b0, line[6, m + 1] - b1, line[7, m + 1] - b2
            for j in range(low, high):
                s, z = ramp[j], u[start + j]
                x[i, start + j] = (a0 + da0 * s) + z * ((a1 + da1 * s) + z * (a2 + da2 * s))
                y[i, start + j] = (b0 + db0 * s) + z * ((b1 + db1 * s) + z * (b2 + db2 * s))


@njit(cache=True, nogil=True)
def cell_bounds(fields: Floats, cells: Heights, middle: float, half: float) -> Floats:  # pragma: no cover
    """Compute Lattice.reach. A quadratic exceeds its end values by at most coefficient x range ** 2 / 4."""
    height, width = cells.shape
    bounds = np.full((fields.shape[1] - 1, fields.shape[2] - 1, 4), np.nan)
    for i in range(bounds.shape[0]):
        for j in range(bounds.shape[1]):
            corners = fields[:, i : i + 2, j : j + 2]
            if not np.isfinite(corners).all():
                continue
            # Beyond the cells the border values continue, so at least one row and one column counts.
            c0, r0 = min(max(int(corners[0].min()), 0), width - 1), min(max(int(corners[1].min()), 0), height - 1)
            c1, r1 = max(int(corners[0].max()) + 2, c0 + 1), max(int(corners[1].max()) + 2, r0 + 1)
            low = (cells[r0:r1, c0:c1].min() - middle) / half
            high = (cells[r0:r1, c0:c1].max() - middle) / half
            for axis in range(2):
                a, b, c = corners[2 + 3 * axis], corners[3 + 3 * axis], corners[4 + 3 * axis]
                at_low, at_high = a + low * (b + low * c), a + high * (b + high * c)
                bend = np.abs(c).max() * (high - low) ** 2 / 4
                bounds[i, j, 2 * axis] = min(at_low.min(), at_high.min()) - bend
                bounds[i, j, 2 * axis + 1] = max(at_low.max(), at_high.max()) + bend
    return bounds


def to_lonlat(geobox: GeoBox, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Longitude and latitude of destination positions; x and y in px from the grid's outer corner."""
    t = geobox.transform
    lon, lat = transformer(str(geobox.crs), "EPSG:4326").transform(t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f)
    return lon, lat


def fit_lattice(geobox: GeoBox, model: SensorModel, terrain: Terrain, tolerance: float = TOLERANCE) -> Lattice:
    """Fit the widest lattice whose error, measured at the centres of its cells, is within the tolerance.

    If none is, the result is the narrowest of STEPS, with its error.
    """
    rows, cols = geobox.shape
    relief = None
    for step in STEPS:
        nx, ny = math.ceil(cols / step), math.ceil(rows / step)
        x, y = np.meshgrid((np.arange(nx + 2) - 0.5) * step, (np.arange(ny + 2) - 0.5) * step)
        lon, lat = to_lonlat(geobox, x, y)
        if relief is None:  # the widest lattice reaches farthest
            relief = terrain.relief(lon, lat, most=rows * cols + 4096) if isinstance(model, RPC) else flat_relief(0.0)
            low, high = float(relief.cells.min()), float(relief.cells.max())
            middle, half = (low + high) / 2, max((high - low) / 2, 1.0)
        fields = np.empty((FIELDS, *x.shape))
        fields[:2] = relief.cell_coordinates(lon, lat)
        low_xy, mid_xy, high_xy = (
            np.stack(model.image(lon, lat, np.full(x.shape, middle + z * half))) for z in (-1, 0, 1)
        )
        fields[2::3], fields[3::3], fields[4::3] = mid_xy, (high_xy - low_xy) / 2, (high_xy + low_xy) / 2 - mid_xy
        lattice = Lattice(step, fields, relief, middle, half, 0.0)
        error = measure_error(lattice, geobox, model)
        if error <= tolerance:
            break
    return replace(lattice, error=error)


def measure_error(lattice: Lattice, geobox: GeoBox, model: SensorModel) -> float:
    """Largest difference, px of the image, between lattice and sensor model at the centres of the lattice's cells."""
    means = (
        lattice.fields[:, :-1, :-1]
        + lattice.fields[:, 1:, :-1]
        + lattice.fields[:, :-1, 1:]
        + lattice.fields[:, 1:, 1:]
    ) / 4
    x, y = np.meshgrid(np.arange(means.shape[2]) * float(lattice.step), np.arange(means.shape[1]) * float(lattice.step))
    z = (lattice.relief.heights_at(means[0], means[1]) - lattice.middle) / lattice.half
    lon, lat = to_lonlat(geobox, x, y)
    exact = np.stack(model.image(lon, lat, lattice.relief.heights_at(*lattice.relief.cell_coordinates(lon, lat))))
    with np.errstate(invalid="ignore"):
        interpolated = means[2::3] + z * (means[3::3] + z * means[4::3])
        return float(np.nan_to_num(np.abs(interpolated - exact), nan=0.0, posinf=0.0).max())
