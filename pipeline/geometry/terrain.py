"""Heights of the ground: a digital elevation model (DEM), or one height for a full scene."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from pyproj import CRS, datadir
from rasterio.enums import Resampling
from rasterio.errors import RasterioIOError
from rasterio.fill import fillnodata
from rasterio.windows import Window

from geokr.crs import is_geographic, longitude_period, transformer
from geokr.storage import rasters
from geokr.storage.inputs import InputError
from pipeline.geometry.sensor import Floats

FILL = 100
"""Holes of a DEM are filled from heights at most this many cells away."""
LOWEST, HIGHEST = -1000.0, 10_000.0
"""Range of heights on Earth, m. A DEM value outside it is a hole, whatever the nodata value of the DEM is."""
HOLE = np.float32(-32768.0)


class TerrainError(InputError):
    """A DEM or geoid cannot be used. The message is one sentence that names the file and the fault."""


GEOIDS = {
    "egm96": ("us_nga_egm96_15.tif", "egm96_15.gtx"),
    "egm2008": ("us_nga_egm08_25.tif", "egm08_25.gtx"),
}
"""Name of a geoid model -> the files in which PROJ and GDAL keep its heights above the WGS 84 ellipsoid, m."""


def find_geoid(name: str) -> str:
    """The grid of a geoid model that PROJ has on this machine; any other name is returned as it is: that of a file.

    Raises TerrainError naming the folders if PROJ does not have the grid.
    """
    files = GEOIDS.get(name.lower())
    if files is None or Path(name).exists():
        return name
    listed = (os.environ.get("PROJ_DATA"), os.environ.get("PROJ_LIB"), datadir.get_data_dir())
    folders = [folder for text in listed if text for folder in text.split(os.pathsep)]
    user_folder = datadir.get_user_data_dir()  # type: ignore[attr-defined]
    folders += [user_folder, "/usr/share/proj", "/usr/local/share/proj"]
    for path in (Path(folder, file) for folder in folders for file in files):
        if path.is_file():
            return str(path)
    raise TerrainError(
        f"{name}: none of PROJ's folders, {', '.join(dict.fromkeys(folders))}, has its grid; fetch it with `projsync "
        f"--file {files[0]}`, or give a file with the geoid's heights"
    )


@dataclass(frozen=True, slots=True)
class Relief:
    """The ground under a block: heights on the cells of a DEM, without holes."""

    cells: npt.NDArray[np.float32]
    """(row, col), at least 2 x 2: height above the ellipsoid, m."""
    crs: str
    inverse: Affine | None
    """From coordinates in the CRS to index coordinates of the cells, where (0, 0) is the centre of the first cell. None
    for flat ground, where every point has the index coordinates (0, 0)."""
    period: float = 0.0
    """Number of cells in 360 degrees of longitude; 0 if columns are not longitudes."""

    def cell_coordinates(self, lon: Floats, lat: Floats) -> tuple[Floats, Floats]:
        """Index coordinates (col, row) of points, on the cells or beyond; (0, 0) outside the domain of the CRS."""
        if self.inverse is None:
            return np.zeros(np.shape(lon)), np.zeros(np.shape(lon))
        u, v = apply_affine(self.inverse, *transformer("EPSG:4326", self.crs).transform(lon, lat))
        if self.period:
            u = wrap_columns(u, (self.cells.shape[1] - 1) / 2, self.period)
        finite = np.isfinite(u) & np.isfinite(v)
        return np.where(finite, u, 0.0), np.where(finite, v, 0.0)

    def heights_at(self, u: Floats, v: Floats) -> Floats:
        """Heights at index coordinates, float64: bilinear between cell centres, constant beyond the outermost ones."""
        rows, cols = self.cells.shape
        u, v = np.clip(u, 0, cols - 1), np.clip(v, 0, rows - 1)
        j, i = np.minimum(u.astype(np.intp), cols - 2), np.minimum(v.astype(np.intp), rows - 2)
        fu, fv = u - j, v - i
        upper = self.cells[i, j] * (1 - fu) + self.cells[i, j + 1] * fu
        lower = self.cells[i + 1, j] * (1 - fu) + self.cells[i + 1, j + 1] * fu
        return np.asarray(upper * (1 - fv) + lower * fv)


@contextmanager
def open_heights(path: str) -> Iterator[Any]:
    """Open a DEM with rasterio and a small cache: GDAL sizes its cache at its first read, by default to 5 % of RAM."""
    with rasterio.Env(GDAL_CACHEMAX=rasters.CACHE_BYTES), rasters.open_raster(path) as source:
        yield source


def flat_relief(height: float) -> Relief:
    """Return a relief with the same height everywhere."""
    return Relief(np.full((2, 2), height, np.float32), "EPSG:4326", None)


def apply_affine(inverse: Affine, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """(col, row) of coordinates; not finite where the coordinates are not."""
    with np.errstate(invalid="ignore"):
        return inverse.a * x + inverse.b * y + inverse.c, inverse.d * x + inverse.e * y + inverse.f


def wrap_columns(col: Floats, centre: float, period: float) -> Floats:
    """Shift columns by multiples of the period to within half a period of a centre."""
    with np.errstate(invalid="ignore"):
        return (col - centre + period / 2) % period - period / 2 + centre


@dataclass(frozen=True, slots=True)
class Terrain:
    """The source of heights."""

    dem: str | None
    """Path or URL of a raster or a mosaic of rasters (VRT), in any CRS: see `height_scale`. None for flat ground."""
    height: float
    """Height above the ellipsoid if there is no DEM, and where the DEM has no height, m."""
    geoid: str | None = None
    """Raster of the geoid's heights above the ellipsoid, m, which are added to those of the DEM. None if the DEM's
    heights are already above the ellipsoid."""

    def relief(self, lon: Floats, lat: Floats, most: int = 1 << 24) -> Relief:
        """The ground under points: the window of the DEM that contains them.

        A hole is filled from heights up to FILL cells away. A larger hole, and everything beyond the DEM, has the
        flat height. A cell's height does not depend on the window. most: a window of more cells than this is read at a
        lower resolution. Raises TerrainError naming the file if it has no CRS or cannot be read.
        """
        if self.dem is None:
            return flat_relief(self.height)
        try:
            with open_heights(self.dem) as source:
                crs = horizontal_crs(self.dem, source.crs)
                box, wrap_width, period = find_dem_window(source, crs, lon, lat)
                if box is None:
                    return flat_relief(self.height)
                step = 1 << max(0, math.ceil(math.log2((box[2] - box[0]) * (box[3] - box[1]) / most) / 2))
                c0, r0, c1, r1 = (
                    *(low // step * step for low in box[:2]),
                    *(-(-high // step) * step for high in box[2:]),
                )
                cells = read_cells(source, (c0, r0, c1, r1), step, wrap_width)
                inverse = ~source.transform
        except RasterioIOError as error:
            raise TerrainError(f"{self.dem}: the heights cannot be read: {error}") from error
        to_cells = Affine.translation(-0.5, -0.5) @ Affine.scale(1 / step) @ Affine.translation(-c0, -r0) @ inverse
        if self.geoid is not None:
            cells += self.undulation(cells.shape, ~to_cells, crs)
        cells[np.isnan(cells)] = self.height
        return Relief(cells, crs, to_cells, period / step)

    def undulation(self, shape: tuple[int, int], transform: Affine, crs: str, step: int = 16) -> Any:
        """Heights of the geoid at cell centres, float32: computed at every `step`-th centre, bilinear between them."""
        rows, cols = (-(-n // step) + 1 for n in shape)
        c, r = np.meshgrid(np.arange(cols) * float(step), np.arange(rows) * float(step))
        x, y = transform.a * c + transform.b * r + transform.c, transform.d * c + transform.e * r + transform.f
        if is_geographic(crs):
            y = np.clip(y, -90.0, 90.0)  # the border may reach beyond the pole
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
        """Share of the points for which the DEM has a height, interpolated ones included; 0 without a DEM."""
        if self.dem is None:
            return 0.0
        return float(np.isfinite(Terrain(self.dem, np.nan).heights(lon, lat)).mean())

    def count_holes(self, lon: Floats, lat: Floats) -> int:
        """Number of cells without a height in the window of the DEM that contains the points; 0 without a DEM."""
        if self.dem is None:
            return 0
        with open_heights(self.dem) as source:
            box, wrap_width, _ = find_dem_window(source, horizontal_crs(self.dem, source.crs), lon, lat)
            if box is None:
                return 0
            count = 0
            for top in range(box[1], box[3], 1024):
                cells, inside = read_raw_cells(source, (box[0], top, box[2], min(top + 1024, box[3])), 1, wrap_width)
                count += int(np.isnan(cells[inside]).sum())
        return count


Box = tuple[int, int, int, int]
"""First column, first row, last column + 1 and last row + 1 of a window."""


def find_dem_window(source: Any, crs: str, lon: Floats, lat: Floats) -> tuple[Box | None, int, float]:
    """The window of an open DEM that points need, with a border that may extend beyond it; None if nothing is inside.

    Also returns the number of columns in 360 degrees of longitude: first as an integer, or 0 if the DEM does not go
    round the Earth; then exactly, or 0 if its columns are not longitudes.
    """
    col, row = apply_affine(~source.transform, *transformer("EPSG:4326", crs).transform(lon, lat))
    finite = np.isfinite(col) & np.isfinite(row)
    period = longitude_period(crs) / abs(source.transform.a)
    wrap_width = round(period) if period and source.width >= period - 1 else 0
    if not finite.any():
        return None, wrap_width, period
    col, row = col[finite], row[finite]
    if period:
        col = wrap_columns(col, col[0], period)
        col -= np.rint((col.min() + col.max() - source.width) / 2 / period) * period
    (c0, c1), (r0, r1) = clip_span(col, np.inf if wrap_width else source.width), clip_span(row, source.height)
    return ((c0, r0, c1, r1) if c0 < c1 and r0 < r1 else None), wrap_width, period


def clip_span(positions: Floats, size: float) -> tuple[int, int]:
    """First cell and last cell + 1 that positions need, with a border, limited to the DEM and a border; or (0, 0)."""
    low = -1.0 if np.isfinite(size) else -np.inf
    first, last = math.floor(max(low, positions.min())) - 1, math.ceil(min(size + 1.0, positions.max())) + 2
    return (first, last) if first < size and last > low + 1 else (0, 0)


def horizontal_crs(path: str, crs: Any) -> str:
    """The horizontal part of a raster's CRS, as WKT. Raises TerrainError if the raster has no CRS."""
    if crs is None:
        raise TerrainError(f"{path}: the heights have no coordinate system")
    parsed = CRS(crs.to_wkt())
    return str((parsed.sub_crs_list[0] if parsed.is_compound else parsed).to_2d().to_wkt())


def vertical_datum(path: str) -> str | None:
    """The vertical datum that a DEM states: the name of a vertical CRS, `ellipsoid`, or None if it states none."""
    with open_heights(path) as source:
        if source.crs is None:
            return None
        parsed = CRS(source.crs.to_wkt())
    if parsed.is_compound:
        return str(parsed.sub_crs_list[-1].name)
    return "ellipsoid" if len(parsed.axis_info) == 3 else None


METRES = {
    "m": 1.0, "metre": 1.0, "metres": 1.0, "meter": 1.0, "meters": 1.0, "dm": 0.1, "decimetre": 0.1, "decimeter": 0.1,
    "cm": 0.01, "centimetre": 0.01, "centimeter": 0.01, "km": 1000.0, "kilometre": 1000.0, "kilometer": 1000.0,
    "ft": 0.3048, "foot": 0.3048, "feet": 0.3048, "international foot": 0.3048, "us-ft": 1200 / 3937,
    "us_survey_foot": 1200 / 3937, "us survey foot": 1200 / 3937, "ftus": 1200 / 3937, "foot_us": 1200 / 3937,
}  # fmt: skip
"""Unit of a band, in lower case -> its length, m."""


def height_scale(source: Any) -> tuple[float, float]:
    """Factor and summand, m, that convert the values of an open DEM to metres.

    The band's scale and offset come first, then its unit: that of the band, otherwise that of the vertical axis of the
    CRS, otherwise metres. Raises TerrainError naming the file if the band's unit is no known length.
    """
    unit = (source.units[0] or "").strip().lower()
    if unit and unit not in METRES:
        raise TerrainError(f"{source.name}: its heights are in {source.units[0]}, which is no known unit of length")
    metres = METRES.get(unit) or vertical_unit(source.crs) or 1.0
    return source.scales[0] * metres, source.offsets[0] * metres


def find_unit_conflict(path: str) -> str:
    """How the unit of a DEM's band differs from that of its CRS's vertical axis; empty if it does not."""
    with open_heights(path) as source:
        unit, by_crs = source.units[0] or "", vertical_unit(source.crs)
    by_band = METRES.get(unit.strip().lower())
    if not by_band or not by_crs or math.isclose(by_band, by_crs, rel_tol=1e-3):
        return ""
    return f"the band's heights are in {unit}, those of its CRS in units of {by_crs:.4g} m; the band is believed"


def vertical_unit(crs: Any) -> float | None:
    """The length of the unit of a CRS's vertical axis, m; None if it has no such axis."""
    if crs is None:
        return None
    parsed = CRS(crs.to_wkt())
    vertical = parsed.sub_crs_list[-1] if parsed.is_compound else parsed
    lengths = [axis.unit_conversion_factor for axis in vertical.axis_info if axis.direction in ("up", "down")]
    return float(lengths[0]) if lengths else None


def read_cells(source: Any, box: Box, step: int, wrap_width: int) -> npt.NDArray[np.float32]:
    """Heights of a window of an open DEM: float32, NaN beyond the DEM and in holes too large to be filled.

    The cells along the DEM's border are repeated by one cell, so that interpolation works up to its edge. step: a cell
    is the mean of step x step cells of the DEM. wrap_width: number of columns in 360 degrees of longitude, or 0 if the
    DEM does not go round the Earth.
    """
    cells, inside = read_raw_cells(source, box, step, wrap_width)
    if not np.isfinite(cells[inside]).all():
        edge = FILL * step
        padded, _ = read_raw_cells(
            source, (box[0] - edge, box[1] - edge, box[2] + edge, box[3] + edge), step, wrap_width
        )
        finite = np.isfinite(padded)
        filled = fillnodata(np.where(finite, padded, HOLE), finite.astype(np.uint8), FILL)[FILL:-FILL, FILL:-FILL]
        cells = np.where(inside & (filled != HOLE), filled, np.float32(np.nan))
    nearest, adjacent = [], []
    for axis in (0, 1):
        indices, covered = np.arange(cells.shape[axis]), np.flatnonzero(inside.any(axis=1 - axis))
        nearest.append(np.clip(indices, covered[0], covered[-1]))
        adjacent.append(np.abs(indices - nearest[-1]) <= 1)
    return np.where(np.logical_and.outer(*adjacent), cells[np.ix_(*nearest)], np.float32(np.nan))


def read_raw_cells(
    source: Any, box: Box, step: int, wrap_width: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Heights of a DEM, m, NaN in holes and beyond it; and a mask of the cells that lie within the DEM."""
    c0, r0, c1, r1 = box
    scale, offset = height_scale(source)
    cells = np.full(((r1 - r0) // step, (c1 - c0) // step), np.nan, np.float32)
    inside = np.zeros(cells.shape, np.bool_)
    for shift in (-wrap_width, 0, wrap_width) if wrap_width else (0,):
        left, right = max(c0, shift), min(c1, shift + source.width)
        top, bottom = max(r0, 0), min(r1, source.height)
        if left >= right or top >= bottom:
            continue
        target = np.s_[(top - r0) // step : -(-(bottom - r0) // step), (left - c0) // step : -(-(right - c0) // step)]
        window = Window(left - shift, top, right - left, bottom - top)
        part = source.read(1, window=window, out_shape=cells[target].shape, masked=True, resampling=Resampling.average)
        values = part.astype(np.float32).filled(np.nan) * np.float32(scale) + np.float32(offset)
        values[~((values > LOWEST) & (values < HIGHEST))] = (
            np.nan
        )  # a hole, even if the file does not mark it as nodata
        cells[target], inside[target] = values, True
    return cells, inside
