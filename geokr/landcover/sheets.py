"""Land-cover products and their sheets, as found in directories or under places in a bucket.

A product is described by a file in `knowledge/products/`, or one of the user's: how its sheets are named, how far
each one counts, and what its codes mean.
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
from pyproj import CRS
from pyproj.exceptions import ProjError
from rasterio.errors import RasterioIOError
from rasterio.windows import Window

from geokr.crs import is_geographic
from geokr.landcover.coverage import CODES
from geokr.landcover.extents import Extent, nominal_extent
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
    """What GDAL opens: the file, or a layer in it."""
    band: int
    """From 1 on."""
    crs: str
    """WKT or authority code."""
    transform: tuple[float, float, float, float, float, float]
    """Pixel corner (col, row) to CRS units, row-major; without rotation."""
    width: int
    height: int
    nodata: int | None
    """The code that the file itself calls no data."""
    extent: Extent | None
    """Where the sheet counts; None for all that its pixels cover. Neighbouring sheets may overlap beyond it, and
    disagree there."""
    outline: shapely.Polygon
    """Where the sheet counts, as a polygon in longitude and latitude, for finding the sheets of a place. Without
    an extent it is a little too large. It may go on past 180 degrees."""


@dataclass(frozen=True, slots=True)
class LandCover:
    """The sheets of one product and year."""

    name: str
    """`<product>_<year>`: the name of the label set that comes of it."""
    year: int
    legend: Legend
    sheets: tuple[Sheet, ...]


def read_sheets(path: str, rule: dict[str, Any], parts: dict[str, str]) -> list[tuple[int, Sheet]]:
    """The sheets of a file with their years, one for each band that stands for a year.

    Reads the raster's header, and its last block. Raises LandCoverError where the raster cannot be opened, is cut
    short, has no CRS or one that is not of the Earth, is rotated, has other bands than its rule says, or denies its
    name.
    """
    source = rule.get("layer", "{path}").format(path=rasters.gdal_path(path))
    years = [int(year) for year in rule.get("years") or [rule.get("year") or parts["year"]]]
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
        raise LandCoverError(f"{path}: its cells are of type {kind}, expected whole numbers")
    if "years" in rule and count != len(years):
        raise LandCoverError(f"{path}: it has {count} bands, expected {len(years)}, one for each year of {years}")
    if CRS(crs) == CRS(LONLAT):
        crs = LONLAT
    shape = tuple(transform)[:6], width, height
    region = sheet_outline(path, crs, *shape)
    extent = nominal_extent(path, rule["extent"], parts, region)
    if extent is not None:
        beyond = shapely.box(*extent)
        region = shapely.intersection(region, beyond) if isinstance(rule["extent"], list) else beyond
    code = None if nodata is None or not np.isfinite(nodata) else int(nodata)
    if code is not None and kind == "int8":  # signed bytes are read as unsigned ones
        code %= 256
    return [
        (year, Sheet(path, source, band, crs, *shape, code, extent, region)) for band, year in enumerate(years, start=1)
    ]


def read_last_block(path: str, raster: Any) -> None:
    """Raise LandCoverError where the last block of a raster cannot be read: a download that broke off lacks it."""
    rows, cols = raster.block_shapes[-1]
    row, col = (raster.height - 1) // rows * rows, (raster.width - 1) // cols * cols
    try:
        raster.read(raster.count, window=Window(col, row, raster.width - col, raster.height - row))
    except RasterioIOError as error:
        raise LandCoverError(f"{path}: its last cells cannot be read; is it cut short?") from error


def sheet_outline(path: str, crs: str, transform: Sequence[float], width: int, height: int) -> shapely.Polygon:
    """Where a raster's cells lie, in longitude and latitude; a little too large, so that no place is lost.

    Raises LandCoverError where they are no place on Earth.
    """
    a, _, left, _, e, top = transform
    right, bottom = left + a * width, top + e * height
    corners = np.array([[(left, top), (right, top), (right, bottom), (left, bottom)]])
    tolerance = 1e-5
    try:
        ring = project_rings(corners, crs, LONLAT, tolerance)
        if is_geographic(crs) or round_trips(ring[0], corners[0, 0], crs, abs(a)):
            # The edges are straight between their points: without a margin, places at the border would be lost.
            polygon = shapely.Polygon(ring[0])
            return polygon.buffer(tolerance * polygon.length)
    except (ProjError, ValueError):
        pass
    # A corner beyond the edge of the world, as in sheets at the rim of the sinusoidal grid: what lies within counts.
    try:
        x, y = np.meshgrid(np.linspace(left, right, 65), np.linspace(top, bottom, 65))
        points = np.stack([x, y], axis=-1).reshape(-1, 2)
        places = project(points, crs, LONLAT)
        error = np.abs(project(places, LONLAT, crs) - points).max(axis=1)
        places = places[np.isfinite(places).all(axis=1) & (error < abs(a))]
    except ProjError as fault:
        raise LandCoverError(f"{path}: its bounds in its CRS are no place on Earth: {fault}") from fault
    if len(places) < 3:
        raise LandCoverError(f"{path}: its bounds in its CRS are no place on Earth")
    margin = np.ptp(places, axis=0) / 32 + 1e-3
    return shapely.box(*(places.min(axis=0) - margin), *(places.max(axis=0) + margin))


def round_trips(ring: Floats, corner: Floats, crs: str, tolerance: float) -> bool:
    """Whether the first place of a ring is where it came from: no other way round the world was taken."""
    return bool(np.abs(project(ring[:1], LONLAT, crs)[0] - corner).max() < tolerance)


def read_cells(sheet: Sheet, window: Window) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """A window of a sheet as (row, col) uint8, and the code that each of its values stands for, (k,) int64.

    Raises LandCoverError where the sheet cannot be read, or holds more than 256 codes there.
    """
    every = np.arange(CODES)
    if window.width <= 0 or window.height <= 0:
        return np.zeros((0, 0), np.uint8), every
    try:
        # A sheet that was replaced is opened anew, when the old one is closed: GDAL keeps what it has read till then.
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
    if cells.dtype.itemsize == 1:  # some products call their bytes signed
        return cells.view(np.uint8), every
    codes, positions = np.unique(cells, return_inverse=True)
    if len(codes) > CODES:
        raise LandCoverError(f"{sheet.path}: it holds {len(codes)} different codes, expected {CODES} at most")
    return positions.reshape(cells.shape).astype(np.uint8), codes.astype(np.int64)


VERSIONS: dict[str, str] = {}
"""Of the sheets that were opened."""


@lru_cache(maxsize=32)
def open_sheet(source: str, version: str, thread: int, process: int) -> Any:
    """An open raster, of one thread of one process alone: GDAL's are not to be shared, by threads or by forks."""
    return rasterio.open(source)
