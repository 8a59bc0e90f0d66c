"""Heights of the ground: a digital elevation model, or one height for a whole scene."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from pyproj import CRS
from rasterio.enums import Resampling
from rasterio.errors import RasterioIOError
from rasterio.fill import fillnodata
from rasterio.windows import Window

from geokr.crs import is_geographic, transformer
from geokr.storage import rasters
from geokr.storage.inputs import InputError
from pipeline.geometry.sensor import Floats

FILL = 100
"""Holes of a DEM are filled from heights up to so many cells away."""
LOWEST, HIGHEST = -1000.0, 10_000.0
"""No ground lies beyond, m: what a DEM says so is a hole, whatever its nodata value is."""
HOLE = np.float32(-32768.0)


class TerrainError(InputError):
    """A DEM or a geoid that cannot be used: one sentence that names the file and the fault."""


@dataclass(frozen=True, slots=True)
class Relief:
    """The ground under a block: heights on the cells of a DEM, without a hole."""

    cells: npt.NDArray[np.float32]
    """(row, col), at least 2 x 2: height above the ellipsoid, m."""
    crs: str
    inverse: Affine | None
    """Coordinates in the CRS to index coordinates of the cells, (0, 0) the centre of the first; None for a flat
    ground, of which every place is (0, 0)."""
    period: float = 0.0
    """Cells once round the Earth; 0 where columns are no longitudes."""

    def cell_coordinates(self, lon: Floats, lat: Floats) -> tuple[Floats, Floats]:
        """Index coordinates (col, row) of points, on the cells or beyond; (0, 0) where the CRS has no such place."""
        if self.inverse is None:
            return np.zeros(np.shape(lon)), np.zeros(np.shape(lon))
        u, v = apply_affine(self.inverse, *transformer("EPSG:4326", self.crs).transform(lon, lat))
        if self.period:
            u = wrap_columns(u, (self.cells.shape[1] - 1) / 2, self.period)
        known = np.isfinite(u) & np.isfinite(v)
        return np.where(known, u, 0.0), np.where(known, v, 0.0)

    def heights_at(self, u: Floats, v: Floats) -> Floats:
        """Heights at index coordinates, float64: bilinear between the cells' centres, beyond them as on the border."""
        rows, cols = self.cells.shape
        u, v = np.clip(u, 0, cols - 1), np.clip(v, 0, rows - 1)
        j, i = np.minimum(u.astype(np.intp), cols - 2), np.minimum(v.astype(np.intp), rows - 2)
        fu, fv = u - j, v - i
        upper = self.cells[i, j] * (1 - fu) + self.cells[i, j + 1] * fu
        lower = self.cells[i + 1, j] * (1 - fu) + self.cells[i + 1, j + 1] * fu
        return np.asarray(upper * (1 - fv) + lower * fv)


@contextmanager
def open_heights(path: str) -> Iterator[Any]:
    """A DEM opened by rasterio. GDAL sizes its cache when it first reads, be it a DEM: unbidden, 5 % of all memory."""
    with rasterio.Env(GDAL_CACHEMAX=64), rasters.open_raster(path) as source:
        yield source


def flat_relief(height: float) -> Relief:
    """Ground of one height."""
    return Relief(np.full((2, 2), height, np.float32), "EPSG:4326", None)


def apply_affine(inverse: Affine, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """(col, row) of coordinates; not finite where they are not."""
    with np.errstate(invalid="ignore"):
        return inverse.a * x + inverse.b * y + inverse.c, inverse.d * x + inverse.e * y + inverse.f


def wrap_columns(col: Floats, centre: float, period: float) -> Floats:
    """Columns moved by whole turns of the Earth to within half a turn of a centre."""
    with np.errstate(invalid="ignore"):
        return (col - centre + period / 2) % period - period / 2 + centre


@dataclass(frozen=True, slots=True)
class Terrain:
    """Where heights come from."""

    dem: str | None
    """A raster or a mosaic of such (VRT), a path or a URL, in any CRS, heights in m; None for a flat ground."""
    height: float
    """Height above the ellipsoid where there is no DEM, or where it has none, m."""
    geoid: str | None = None
    """A raster of the geoid's heights above the ellipsoid, m, which are added to those of the DEM; None where the
    DEM's are above the ellipsoid already."""

    def relief(self, lon: Floats, lat: Floats, most: int = 1 << 24) -> Relief:
        """The ground under points: the window of the DEM that holds them.

        A hole is filled from heights up to FILL cells away; a larger one, and all that lies beyond the DEM, has
        the flat height. A cell's height does not depend on the window. most: a window of more cells is read at a
        lower resolution. Raises TerrainError naming the file where it lies on no map or cannot be read.
        """
        if self.dem is None:
            return flat_relief(self.height)
        try:
            with open_heights(self.dem) as source:
                crs = horizontal_crs(self.dem, source.crs)
                box, turn, period = dem_window(source, crs, lon, lat)
                if box is None:
                    return flat_relief(self.height)
                step = 1 << max(0, math.ceil(math.log2((box[2] - box[0]) * (box[3] - box[1]) / most) / 2))
                c0, r0, c1, r1 = (
                    *(low // step * step for low in box[:2]),
                    *(-(-high // step) * step for high in box[2:]),
                )
                cells = read_cells(source, (c0, r0, c1, r1), step, turn)
                inverse = ~source.transform
        except RasterioIOError as error:
            raise TerrainError(f"{self.dem}: the heights cannot be read: {error}") from error
        placed = Affine.translation(-0.5, -0.5) @ Affine.scale(1 / step) @ Affine.translation(-c0, -r0) @ inverse
        if self.geoid is not None:
            cells += self.undulation(cells.shape, ~placed, crs)
        cells[np.isnan(cells)] = self.height
        return Relief(cells, crs, placed, period / step)

    def undulation(self, shape: tuple[int, int], transform: Affine, crs: str, step: int = 16) -> Any:
        """The geoid's height at the centres of cells, float32; bilinear between every `step`-th of them."""
        rows, cols = (-(-n // step) + 1 for n in shape)
        c, r = np.meshgrid(np.arange(cols) * float(step), np.arange(rows) * float(step))
        x, y = transform.a * c + transform.b * r + transform.c, transform.d * c + transform.e * r + transform.f
        if is_geographic(crs):
            y = np.clip(y, -90.0, 90.0)  # a border beyond the pole
        lon, lat = transformer(crs, "EPSG:4326").transform(x, y)
        nodes = Terrain(self.geoid, np.nan).heights(lon, lat).astype(np.float32)
        if not np.isfinite(nodes).all():
            raise TerrainError(f"{self.geoid}: the geoid has no height at {lon.flat[0]:.2f} E, {lat.flat[0]:.2f} N")
        u, v = (np.arange(n, dtype=np.float32) / step for n in shape[::-1])
        return cv2.remap(nodes, *np.meshgrid(u, v), cv2.INTER_LINEAR)

    def heights(self, lon: Floats, lat: Floats) -> Floats:
        """Height above the ellipsoid at each point, float64, of the inputs' shape."""
        relief = self.relief(lon, lat)
        return relief.heights_at(*relief.cell_coordinates(lon, lat))

    def coverage(self, lon: Floats, lat: Floats) -> float:
        """Share of the points that the DEM has a height for, be it an interpolated one; 0 without a DEM."""
        if self.dem is None:
            return 0.0
        return float(np.isfinite(Terrain(self.dem, np.nan).heights(lon, lat)).mean())

    def holes(self, lon: Floats, lat: Floats) -> int:
        """Cells without a height in the window of the DEM that holds the points; 0 without a DEM."""
        if self.dem is None:
            return 0
        with open_heights(self.dem) as source:
            box, turn, _ = dem_window(source, horizontal_crs(self.dem, source.crs), lon, lat)
            if box is None:
                return 0
            found = 0
            for top in range(box[1], box[3], 1024):
                cells, inside = window_cells(source, (box[0], top, box[2], min(top + 1024, box[3])), 1, turn)
                found += int(np.isnan(cells[inside]).sum())
        return found


Box = tuple[int, int, int, int]
"""First column and row of a window, and one past its last ones."""


def dem_window(source: Any, crs: str, lon: Floats, lat: Floats) -> tuple[Box | None, int, float]:
    """The part of an open DEM that points draw on, with a border, which may lie beyond it; None where all of it does.

    Also the columns once round the Earth: of a DEM that goes round it, or 0; and of any in longitude, or 0.
    """
    col, row = apply_affine(~source.transform, *transformer("EPSG:4326", crs).transform(lon, lat))
    known = np.isfinite(col) & np.isfinite(row)
    period = 360.0 / abs(source.transform.a) if is_geographic(crs) else 0.0
    turn = round(period) if period and source.width >= period - 1 else 0
    if not known.any():
        return None, turn, period
    col, row = col[known], row[known]
    if period:
        col = wrap_columns(col, col[0], period)
        col -= np.rint((col.min() + col.max() - source.width) / 2 / period) * period
    (c0, c1), (r0, r1) = held(col, np.inf if turn else source.width), held(row, source.height)
    return ((c0, r0, c1, r1) if c0 < c1 and r0 < r1 else None), turn, period


def held(places: Floats, size: float) -> tuple[int, int]:
    """First and one past the last cell that places draw on, with a border; no further than the DEM and a border."""
    low = -1.0 if np.isfinite(size) else -np.inf
    first, last = math.floor(max(low, places.min())) - 1, math.ceil(min(size + 1.0, places.max())) + 2
    return (first, last) if first < size and last > low + 1 else (0, 0)


def horizontal_crs(path: str, crs: Any) -> str:
    """The horizontal part of a raster's CRS, as WKT. Raises TerrainError where there is none."""
    if crs is None:
        raise TerrainError(f"{path}: the heights have no coordinate system")
    found = CRS(crs.to_wkt())
    return str((found.sub_crs_list[0] if found.is_compound else found).to_2d().to_wkt())


def vertical_datum(path: str) -> str | None:
    """What a DEM says that its heights are above: a vertical CRS's name, `ellipsoid`, or None where it says nothing."""
    with open_heights(path) as source:
        if source.crs is None:
            return None
        found = CRS(source.crs.to_wkt())
    if found.is_compound:
        return str(found.sub_crs_list[-1].name)
    return "ellipsoid" if len(found.axis_info) == 3 else None


def read_cells(source: Any, box: Box, step: int, turn: int) -> npt.NDArray[np.float32]:
    """Heights of a window of an open DEM: float32, NaN beyond it and in holes too large to be filled.

    The cells along its border go on for one cell more, so that it holds to its edge. step: a cell is the mean of
    step x step of the DEM's. turn: columns once round the Earth, of a DEM that goes round it, or 0.
    """
    cells, inside = window_cells(source, box, step, turn)
    if not np.isfinite(cells[inside]).all():
        edge = FILL * step
        wide, _ = window_cells(source, (box[0] - edge, box[1] - edge, box[2] + edge, box[3] + edge), step, turn)
        known = np.isfinite(wide)
        filled = fillnodata(np.where(known, wide, HOLE), known.astype(np.uint8), FILL)[FILL:-FILL, FILL:-FILL]
        cells = np.where(inside & (filled != HOLE), filled, np.float32(np.nan))
    nearest, near = [], []
    for axis in (0, 1):
        places, held = np.arange(cells.shape[axis]), np.flatnonzero(inside.any(axis=1 - axis))
        nearest.append(np.clip(places, held[0], held[-1]))
        near.append(np.abs(places - nearest[-1]) <= 1)
    return np.where(np.logical_and.outer(*near), cells[np.ix_(*nearest)], np.float32(np.nan))


def window_cells(source: Any, box: Box, step: int, turn: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Heights as a DEM has them, NaN where it has none; and which cells of the window it holds."""
    c0, r0, c1, r1 = box
    cells = np.full(((r1 - r0) // step, (c1 - c0) // step), np.nan, np.float32)
    inside = np.zeros(cells.shape, np.bool_)
    for move in (-turn, 0, turn) if turn else (0,):
        left, right = max(c0, move), min(c1, move + source.width)
        top, bottom = max(r0, 0), min(r1, source.height)
        if left >= right or top >= bottom:
            continue
        here = np.s_[(top - r0) // step : -(-(bottom - r0) // step), (left - c0) // step : -(-(right - c0) // step)]
        window = Window(left - move, top, right - left, bottom - top)
        part = source.read(1, window=window, out_shape=cells[here].shape, masked=True, resampling=Resampling.average)
        values = part.astype(np.float32).filled(np.nan)
        values[~((values > LOWEST) & (values < HIGHEST))] = np.nan  # a hole, whether or not the file says so
        cells[here], inside[here] = values, True
    return cells, inside
