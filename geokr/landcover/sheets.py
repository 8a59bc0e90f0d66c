"""Sheets of land-cover products: their headers, outlines and cells.

A product is described by a file in `knowledge/products/`, or by a user's file: the names of its sheets, the nominal
extent of each one, and the classes of its codes.
"""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from pyproj.exceptions import ProjError
from rasterio.errors import RasterioIOError
from rasterio.windows import Window

from geokr.crs import is_geographic, parse
from geokr.landcover.coverage import CODES
from geokr.landcover.extents import Extent, find_nominal_extent
from geokr.landcover.legend import Legend
from geokr.landcover.outlines import LONLAT, Floats, project, project_rings
from geokr.landcover.products import LandCoverError
from geokr.storage import inputs, rasters


@dataclass(frozen=True, slots=True)
class Sheet:
    """One raster of a product, or one band of it."""

    path: str
    """The file: a path or a URL."""
    source: str
    """The name that GDAL opens: the file, or a layer in it."""
    band: int
    """Starting at 1."""
    crs: str
    """WKT or authority code."""
    transform: tuple[float, float, float, float, float, float]
    """Geotransform from pixel corner (col, row) to CRS units, row-major; without rotation."""
    width: int
    height: int
    nodata: int | None
    """The nodata value that the file declares."""
    extent: Extent | None
    """Nominal extent in which the sheet counts; None if all of its pixels count. Outside their extents, neighbouring
    sheets may overlap and disagree."""
    outline: shapely.Polygon
    """The area in which the sheet counts, longitude and latitude, for finding the sheets of a footprint. Without an
    extent it is slightly too large. Longitudes may exceed 180 degrees."""


@dataclass(frozen=True, slots=True)
class LandCover:
    """The sheets of one product and year."""

    name: str
    """`<product>_<year>`: also the name of its label set."""
    year: int
    legend: Legend
    sheets: tuple[Sheet, ...]


def read_sheets(path: str, rule: dict[str, Any], parts: dict[str, str]) -> list[tuple[int, Sheet]]:
    """The sheets of a file with their years: one sheet per band if each band is a year.

    Reads the raster's header and its last block. Raises LandCoverError if the raster cannot be opened, is truncated,
    has no CRS or a local one, is rotated, has cells that are not integers, has a different number of bands than its
    rule says, or lies elsewhere than its name says.
    """
    source = rule.get("layer", "{path}").format(path=rasters.gdal_path(path))
    years = [read_year(year) for year in rule.get("years") or [rule.get("year") or parts["year"]]]
    try:
        with rasters.open_raster(source) as raster:
            crs = rule.get("crs") or (raster.crs.to_wkt() if raster.crs else "")
            transform, width, height = raster.transform, raster.width, raster.height
            count, kind = raster.count, raster.dtypes[0] if raster.count else "none"
            nodata = raster.nodata
            if count:
                read_last_block(path, raster)
    except RasterioIOError as error:
        raise LandCoverError(f"{path}: not a raster that can be read: {' '.join(str(error).split())}") from error
    if not crs:
        raise LandCoverError(f"{path}: the raster has no CRS")
    if transform.b or transform.d or transform.e >= 0:
        raise LandCoverError(f"{path}: a sheet must be north-up, its transform is {tuple(transform)[:6]}")
    if np.dtype(kind).kind not in "iu" if count else True:
        raise LandCoverError(f"{path}: its cells are of type {kind}, expected integers")
    if "years" in rule and count != len(years):
        raise LandCoverError(f"{path}: it has {count} bands, expected {len(years)}, one for each year of {years}")
    if parse(crs) == parse(LONLAT):
        crs = LONLAT
    shape = tuple(transform)[:6], width, height
    region = compute_outline(path, crs, *shape)
    extent = find_nominal_extent(path, rule["extent"], parts, region)
    if extent is not None:
        extent_box = shapely.box(*extent)
        region = shapely.intersection(region, extent_box) if isinstance(rule["extent"], list) else extent_box
    code = None if nodata is None or not np.isfinite(nodata) else int(nodata)
    if code is not None and kind == "int8":  # `read_cells` returns signed bytes as unsigned ones
        code %= 256
    return [
        (year, Sheet(path, source, band, crs, *shape, code, extent, region)) for band, year in enumerate(years, start=1)
    ]


def read_year(year: int | str) -> int:
    """The year of a number or of a group of a file name; two digits are a year from 1970 to 2069."""
    year = int(year)
    return year if year > 99 else 1900 + year if year >= 70 else 2000 + year


def read_last_block(path: str, raster: Any) -> None:
    """Raise LandCoverError if the last block of a raster cannot be read, as after an interrupted download."""
    rows, cols = raster.block_shapes[-1]
    row, col = (raster.height - 1) // rows * rows, (raster.width - 1) // cols * cols
    try:
        raster.read(raster.count, window=Window(col, row, raster.width - col, raster.height - row))
    except RasterioIOError as error:
        raise LandCoverError(f"{path}: its last block cannot be read; the file may be truncated") from error


def compute_outline(path: str, crs: str, transform: Sequence[float], width: int, height: int) -> shapely.Polygon:
    """Outline of a raster's cells in longitude and latitude; slightly too large, so that it contains every cell.

    Raises LandCoverError if the cells do not lie on Earth.
    """
    a, _, left, _, e, top = transform
    right, bottom = left + a * width, top + e * height
    corners = np.array([[(left, top), (right, top), (right, bottom), (left, bottom)]])
    tolerance = 1e-5
    try:
        ring = project_rings(corners, crs, LONLAT, tolerance)
        if is_geographic(crs) or projects_back(ring[0], corners[0, 0], crs, abs(a)):
            # The outline is straight between its points: without a margin, it would miss some locations at the edge.
            polygon = shapely.Polygon(ring[0])
            return polygon.buffer(tolerance * polygon.length)
    except (ProjError, ValueError):
        pass
    # A corner lies off the globe, as in sheets at the rim of the sinusoidal grid: use the part on the globe.
    try:
        x, y = np.meshgrid(np.linspace(left, right, 65), np.linspace(top, bottom, 65))
        points = np.stack([x, y], axis=-1).reshape(-1, 2)
        lonlat = project(points, crs, LONLAT)
        error = np.abs(project(lonlat, LONLAT, crs) - points).max(axis=1)
        lonlat = lonlat[np.isfinite(lonlat).all(axis=1) & (error < abs(a))]
    except ProjError as fault:
        raise LandCoverError(f"{path}: its bounds do not lie on Earth in its CRS: {fault}") from fault
    if len(lonlat) < 3:
        raise LandCoverError(f"{path}: its bounds do not lie on Earth in its CRS")
    margin = np.ptp(lonlat, axis=0) / 32 + 1e-3
    return shapely.box(*(lonlat.min(axis=0) - margin), *(lonlat.max(axis=0) + margin))


def projects_back(ring: Floats, corner: Floats, crs: str, tolerance: float) -> bool:
    """Whether the first point of a ring projects back to its corner, and not to the opposite side of the globe."""
    return bool(np.abs(project(ring[:1], LONLAT, crs)[0] - corner).max() < tolerance)


def read_cells(sheet: Sheet, window: Window) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Read a window of a sheet: (row, col) uint8 indices, and the code for each index, (k,) int64.

    Raises LandCoverError if the sheet cannot be read, or the window contains more than 256 codes.
    """
    all_codes = np.arange(CODES)
    if window.width <= 0 or window.height <= 0:
        return np.zeros((0, 0), np.uint8), all_codes
    try:
        # After a sheet was replaced, close the cached rasters and open it again: GDAL caches blocks of an open raster.
        version = inputs.stat(sheet.path).version
        if VERSIONS.setdefault(sheet.source, version) != version:
            open_sheet.cache_clear()
            VERSIONS[sheet.source] = version
        with rasterio.Env(**rasters.gdal_options()):
            cells = open_sheet(sheet.source, version, threading.get_ident(), os.getpid()).read(
                sheet.band, window=window
            )
    except (RasterioIOError, OSError) as error:
        raise LandCoverError(f"{sheet.path}: cannot be read: {' '.join(str(error).split())}") from error
    if cells.dtype.itemsize == 1:  # some products declare their bytes as signed
        return cells.view(np.uint8), all_codes
    codes, positions = np.unique(cells, return_inverse=True)
    if len(codes) > CODES:
        raise LandCoverError(f"{sheet.path}: a window contains {len(codes)} different codes, expected at most {CODES}")
    return positions.reshape(cells.shape).astype(np.uint8), codes.astype(np.int64)


VERSIONS: dict[str, str] = {}
"""Source -> version of each sheet that was opened."""


@lru_cache(maxsize=32)
def open_sheet(source: str, version: str, thread: int, process: int) -> Any:
    """An open raster for one thread of one process: GDAL datasets must not be shared by threads or after a fork."""
    return rasterio.open(source)
