"""A land-cover product: its sheets, and exact class shares of footprints.

A product is described by a file in `knowledge/`: how its sheets are named, how far each one counts, and
what its codes mean.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from exactextract import exact_extract
from exactextract.raster import NumPyRasterSource
from pyproj import CRS
from pyproj.exceptions import ProjError
from rasterio.errors import RasterioIOError
from rasterio.windows import Window

from geokr.crs import is_geographic, transformer
from geokr.legend import KNOWLEDGE, Legend, read_legend, read_toml

Floats = npt.NDArray[np.float64]

OUTSIDE = -1
"""Stands for a cell outside the raster; no code of a product."""
POLYGONAL = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)


class LandCoverError(ValueError):
    """A product or sheet that cannot be used: one sentence that names the file and the fault."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """One raster of a product."""

    path: str
    crs: str
    """WKT or authority code."""
    transform: tuple[float, float, float, float, float, float]
    """Pixel corner (col, row) to CRS units, row-major; without rotation."""
    width: int
    height: int
    extent: tuple[float, float, float, float] | None
    """Where the sheet counts: west, south, east, north in degrees; None for all that its pixels cover.
    Neighbouring sheets may overlap beyond it, and disagree there."""
    outline: shapely.Polygon
    """Where the sheet counts, as a polygon in longitude and latitude, for finding the sheets of a place. Without
    an extent it is a little too large. It may go on past 180 degrees."""


@dataclass(frozen=True, slots=True)
class LandCover:
    """The sheets of one product and year."""

    name: str
    """`<product>_<year>`: the name of the label set that comes of it."""
    legend: Legend
    sheets: tuple[Sheet, ...]


@dataclass(frozen=True, slots=True)
class Shares:
    """What a product says about footprints."""

    fraction: Floats
    """(n, class) float64: area share of each class within the known part; sums to 1, or all 0 where known is 0."""
    known: Floats
    """(n,) float64: share of the footprint's area that is covered with a class of the legend."""
    unlisted: frozenset[int]
    """Codes met in the pixels that the legend does not mention; their area counts as unknown."""


def find(paths: Iterable[str | Path], knowledge: Path = KNOWLEDGE) -> list[LandCover]:
    """Products found under directories (or named files), sorted by name; other files are passed over.

    Raises LandCoverError where a path does not exist, a sheet cannot be used or is there twice, or nothing is
    recognised.
    """
    descriptions = [(path, read_toml(path)) for path in sorted(knowledge.glob("*.toml")) if path.stem != "classes"]
    files: list[Path] = []
    places = [Path(path) for path in paths]
    for place in places:
        if not place.exists():
            raise LandCoverError(f"{place}: no such file or directory")
        files += sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
    found: dict[str, dict[str, Sheet]] = {}
    legends: dict[str, Legend] = {}
    for file in {file.resolve(): file for file in files}.values():
        for path, description in descriptions:
            match = re.search(description["sheets"]["name"], file.name, re.IGNORECASE)
            if match:
                name = f"{description['name']}_{match['year']}"
                if name not in legends:
                    legends[name] = read_legend(path, knowledge / "classes.toml")
                sheets = found.setdefault(name, {})
                if (key := file.name.lower()) in sheets:  # its area would count twice
                    raise LandCoverError(f"{file}: the sheet is there already, as {sheets[key].path}")
                sheets[key] = read_sheet(file, description["sheets"], match.groupdict())
                break
    if not found:
        known = ", ".join(description["name"] for _, description in descriptions)
        raise LandCoverError(
            f"{', '.join(map(str, places))}: no land-cover sheet is recognised here; known are {known}"
        )
    return [LandCover(name, legends[name], tuple(sheets.values())) for name, sheets in sorted(found.items())]


def read_sheet(path: Path, rules: dict[str, Any], parts: dict[str, str]) -> Sheet:
    """A sheet from its raster's header, its product's rules and the parts of its name.

    Raises LandCoverError where the raster cannot be opened, has no CRS or one that is not of the Earth, is
    rotated, or denies its name.
    """
    try:
        with rasterio.open(path) as source:
            crs = rules.get("crs") or (source.crs.to_wkt() if source.crs else "")
            transform, width, height = source.transform, source.width, source.height
    except RasterioIOError as error:
        raise LandCoverError(f"{path}: not a raster that can be read: {error}") from error
    if not crs:
        raise LandCoverError(f"{path}: the raster has no CRS")
    if transform.b or transform.d or transform.e >= 0:
        raise LandCoverError(f"{path}: a sheet must be north-up, its transform is {tuple(transform)[:6]}")
    left, top = transform.c, transform.f
    right, bottom = left + transform.a * width, top + transform.e * height
    bounds = np.array([[(left, top), (right, top), (right, bottom), (left, bottom)]])
    tolerance = 1e-5
    try:
        outline = shapely.Polygon(rings(bounds, crs, "EPSG:4326", tolerance)[0])
    except (ProjError, ValueError) as error:
        raise LandCoverError(f"{path}: its bounds in its CRS are no place on Earth: {error}") from error
    if rules["extent"] == "utm_sheet":
        extent = utm_sheet(path, outline, parts)
        return Sheet(str(path), crs, tuple(transform)[:6], width, height, extent, shapely.box(*extent))
    # The outline's edges are straight between its points: without a margin, places at the border would be lost.
    outline = outline.buffer(tolerance * outline.length)
    return Sheet(str(path), crs, tuple(transform)[:6], width, height, None, outline)


def utm_sheet(path: Path, outline: shapely.Polygon, parts: dict[str, str]) -> tuple[float, float, float, float]:
    """The nominal extent of a GlobeLand30 sheet, degrees: 5 of latitude by the 6 (12 from 60 on) of its zone.

    The name gives the zone; its latitude is the band's edge nearer to the equator or farther from it, so the
    band is the one that holds the middle of the pixels. Raises LandCoverError where the two disagree.
    """
    south = float(np.floor(outline.centroid.y / 5.0) * 5.0)
    north = south + 5.0
    hemisphere = "n" if south >= 0 else "s"
    if parts["hemisphere"].lower() != hemisphere or float(parts["latitude"]) not in (abs(south), abs(north)):
        raise LandCoverError(
            f"{path}: its pixels lie between latitudes {south:g} and {north:g}, its name says otherwise"
        )
    west = -180.0 + 6.0 * (int(parts["zone"]) - 1)
    east = west + (6.0 if max(abs(south), abs(north)) <= 60.0 else 12.0)
    middle = outline.centroid.x + 360.0 * round(((west + east) / 2 - outline.centroid.x) / 360.0)
    if not west - 1 <= middle <= east + 1:
        raise LandCoverError(
            f"{path}: its pixels lie at longitude {outline.centroid.x:.1f}, not in zone {parts['zone']}"
        )
    return west, south, east, north


def project(points: Floats, source: str, target: str) -> Floats:
    """(..., 2) float64 points from one CRS to another, x before y. Longitudes are those nearest to the old ones."""
    if source == target:
        return points
    x, y = transformer(source, target).transform(points[..., 0], points[..., 1])
    if is_geographic(source) and is_geographic(target):
        x = x + 360.0 * np.round((points[..., 0] - x) / 360.0)
    return np.stack([x, y], axis=-1)


def class_shares(corners: Floats, crs: str, cover: LandCover) -> Shares:
    """Class shares of quadrilateral footprints, as areas of intersection.

    corners: (n, 4, 2) float64 in `crs`, in order around the footprint; its edges are straight there. A sheet
    counts within its nominal extent alone. Areas within a sheet are measured in the plane of its CRS; on a
    geographic one, as the part of each cell in that plane times the cell's area on the sphere. The parts of a
    footprint in several nominal extents weigh by their areas on the sphere.
    Raises LandCoverError naming a sheet that cannot be read.
    """
    areas = np.zeros((len(corners), len(cover.legend.classes)))
    unlisted: frozenset[int] = frozenset()
    outlines = rings(corners, crs, "EPSG:4326")
    for turn in (-360.0, 0.0, 360.0):  # at the antimeridian, a place has two longitudes
        quads = np.asarray(shapely.polygons(outlines + np.array([turn, 0.0])))
        for sheet in cover.sheets:
            touching = np.flatnonzero(shapely.intersects(quads, sheet.outline))
            if len(touching) == 0:
                continue
            parts = in_sheet(corners[touching], crs, sheet, outlines[touching, 0, 0] + turn)
            weight = np.ones(len(touching))
            if sheet.extent is not None:
                leaving = ~shapely.contains_properly(sheet.outline, quads[touching])
                parts[leaving], weight[leaving] = clip(quads[touching[leaving]], sheet)
            shares, codes = sheet_shares(parts, sheet, cover.legend)
            areas[touching] += shares * weight[:, None]
            unlisted |= cover.legend.unlisted(codes)
    known = areas.sum(axis=1)
    fraction = np.divide(areas, known[:, None], out=np.zeros_like(areas), where=known[:, None] > 0)
    return Shares(fraction, np.minimum(known, 1.0), unlisted)


def rings(corners: Floats, source: str, target: str, tolerance: float = 1e-7) -> Floats:
    """Footprints in another CRS, with points added to their edges until these bend as they must: (n, 4 * k, 2).

    An edge's middle misses the straight line between its projected ends by some share of the edge's length;
    k parts lower that by k squared, to the tolerance. Longitudes do not jump along a footprint: they go on
    past 180 degrees. Raises ValueError where a point has no place in the target.
    """
    if len(corners) == 0 or CRS(source) == CRS(target):
        return corners
    halved = bent(cut_edges(corners, 2), source, target)
    ends, middles = halved[:, 0::2], halved[:, 1::2]
    following = np.roll(ends, -1, axis=1)
    miss = np.linalg.norm(middles - (ends + following) / 2, axis=2)
    length = np.linalg.norm(following - ends, axis=2)
    k = int(np.clip(np.ceil(np.sqrt((miss / length).max() / tolerance)), 1, 256))
    return bent(cut_edges(corners, k), source, target)


def cut_edges(corners: Floats, k: int) -> Floats:
    """Footprints with each edge cut into k equal parts: (n, 4 * k, 2)."""
    steps = np.arange(k)[:, None] / k
    points = corners[:, :, None] * (1 - steps) + np.roll(corners, -1, axis=1)[:, :, None] * steps
    return points.reshape(len(corners), -1, 2)


def bent(points: Floats, source: str, target: str) -> Floats:
    """Rings in another CRS, without jumps of longitude. Raises ValueError where a point has no place there."""
    result = project(points, source, target)
    if not np.isfinite(result).all():
        raise ValueError(f"a point has no place in {target}")
    if is_geographic(target) and not is_geographic(source):
        result[..., 0] = np.unwrap(result[..., 0], period=360.0, axis=1)
    return result


def in_sheet(corners: Floats, crs: str, sheet: Sheet, longitudes: Floats) -> npt.NDArray[np.object_]:
    """Footprints as polygons in a sheet's CRS. longitudes: of the first corners; tells which turn a geographic CRS
    is to count."""
    points = rings(corners, crs, sheet.crs)
    if is_geographic(sheet.crs):
        turns = np.round((longitudes - points[:, 0, 0]) / 360.0)
        points = points + np.stack([360.0 * turns, np.zeros(len(points))], axis=-1)[:, None]
    return np.asarray(shapely.polygons(points))


def clip(quads: npt.NDArray[np.object_], sheet: Sheet) -> tuple[npt.NDArray[np.object_], Floats]:
    """Footprints (longitude, latitude) cut to a sheet's nominal extent, in the sheet's CRS; the area left of each."""
    step = np.sqrt(shapely.area(quads)) / 64
    quads = shapely.segmentize(quads, step)
    cut = np.asarray(shapely.intersection(quads, sheet.outline))
    for i in np.flatnonzero(~np.isin(shapely.get_type_id(cut), POLYGONAL)):  # a footprint that touches leaves points
        cut[i] = shapely.MultiPolygon([part for part in shapely.get_parts(cut[i]) if part.geom_type == "Polygon"])
    cut = shapely.segmentize(cut, step)  # it follows a parallel or meridian, which bends in the sheet's CRS
    left = shapely.area(equal_area(cut)) / shapely.area(equal_area(quads))
    return np.asarray(shapely.transform(cut, lambda points: project(points, "EPSG:4326", sheet.crs))), left


def equal_area(polygons: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """Polygons in longitude and latitude, in the plane of longitude and the sine of latitude: a sphere's areas."""

    def flat(points: Floats) -> Floats:
        return np.column_stack([np.deg2rad(points[:, 0]), np.sin(np.deg2rad(points[:, 1]))])

    return np.asarray(shapely.transform(polygons, flat))


def sheet_shares(
    polygons: npt.NDArray[np.object_], sheet: Sheet, legend: Legend
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Area share of each class in polygons (in the sheet's CRS): (n, class), and the codes met."""
    shares = np.zeros((len(polygons), len(legend.classes)))
    used = np.flatnonzero(~shapely.is_empty(polygons))
    if len(used) == 0:
        return shares, np.array([], np.int64)
    cells, bounds = read_cells(sheet, shapely.total_bounds(polygons[used]))
    raster = NumPyRasterSource(cells, *bounds, srs_wkt=CRS(sheet.crs).to_wkt())
    frame = geopandas.GeoDataFrame(geometry=polygons[used], crs=sheet.crs)
    weighted = "(coverage_weight=area_spherical_m2)" if is_geographic(sheet.crs) else ""
    table = exact_extract(raster, frame, ["unique", f"frac{weighted}"], output="pandas")
    row = np.repeat(used, [len(codes) for codes in table["unique"]])
    codes = np.concatenate(table["unique"].to_list()).astype(np.int64)
    np.add.at(shares, row, legend.shares(codes) * np.concatenate(table["frac"].to_list())[:, None])
    return shares, np.setdiff1d(codes, [OUTSIDE])


def read_cells(sheet: Sheet, bounds: Floats) -> tuple[npt.NDArray[Any], tuple[float, float, float, float]]:
    """The window of a sheet's grid that covers bounds (left, bottom, right, top), and the window's own bounds.

    Cells beyond the raster are OUTSIDE. Raises LandCoverError where the sheet cannot be read.
    """
    a, _, left, _, e, top = sheet.transform
    c0, c1 = int((bounds[0] - left) // a), int((bounds[2] - left) // a) + 1
    r0, r1 = int((bounds[3] - top) // e), int((bounds[1] - top) // e) + 1
    c, r = np.clip([c0, c1], 0, sheet.width), np.clip([r0, r1], 0, sheet.height)
    try:
        with rasterio.open(sheet.path) as source:
            cells = np.full((r1 - r0, c1 - c0), OUTSIDE, np.promote_types(source.dtypes[0], np.int16))
            if c[0] < c[1] and r[0] < r[1]:
                window = Window(c[0], r[0], c[1] - c[0], r[1] - r[0])
                cells[r[0] - r0 : r[1] - r0, c[0] - c0 : c[1] - c0] = source.read(1, window=window)
    except RasterioIOError as error:
        raise LandCoverError(f"{sheet.path}: cannot be read: {error}") from error
    return cells, (left + a * c0, top + e * r1, left + a * c1, top + e * r0)
