"""A land-cover product: its sheets, and exact class shares of footprints.

A product is described by a file in `knowledge/`: how its sheets are named, how far each one counts, and
what its codes mean.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from exactextract import exact_extract
from exactextract.raster import NumPyRasterSource
from pyproj import CRS, Transformer
from rasterio.errors import RasterioIOError
from rasterio.windows import Window

from geokr.legend import KNOWLEDGE, Legend, read_legend, read_toml

Floats = npt.NDArray[np.float64]


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
    """Where the sheet counts, as a polygon in longitude and latitude, for finding the sheets of a place."""


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


@lru_cache(maxsize=64)
def transformer(source: str, target: str) -> Transformer:
    """A cached coordinate transformer, x before y on both sides."""
    return Transformer.from_crs(source, target, always_xy=True)


def find(paths: Iterable[str | Path], knowledge: Path = KNOWLEDGE) -> list[LandCover]:
    """Products found under directories (or named files), sorted by name; other files are passed over.

    Raises LandCoverError where a path does not exist, a sheet cannot be used, or nothing is recognised.
    """
    descriptions = [(path, read_toml(path)) for path in sorted(knowledge.glob("*.toml")) if path.stem != "classes"]
    files: list[Path] = []
    paths = [Path(path) for path in paths]
    for path in paths:
        if not path.exists():
            raise LandCoverError(f"{path}: no such file or directory")
        files += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    found: dict[str, list[Sheet]] = {}
    legends: dict[str, Legend] = {}
    for file in files:
        for path, description in descriptions:
            match = re.search(description["sheets"]["name"], file.name, re.IGNORECASE)
            if match:
                name = f"{description['name']}_{match['year']}"
                legends[name] = read_legend(path)
                found.setdefault(name, []).append(read_sheet(file, description["sheets"], match.groupdict()))
                break
    if not found:
        known = ", ".join(description["name"] for _, description in descriptions)
        raise LandCoverError(f"{', '.join(map(str, paths))}: no land-cover sheet is recognised here; known are {known}")
    return [LandCover(name, legends[name], tuple(sheets)) for name, sheets in sorted(found.items())]


def read_sheet(path: Path, rules: dict[str, Any], parts: dict[str, str]) -> Sheet:
    """A sheet from its raster's header, its product's rules and the parts of its name.

    Raises LandCoverError where the raster cannot be opened, has no CRS, is rotated, or denies its name.
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
    bounds = shapely.segmentize(shapely.box(left, bottom, right, top), max(right - left, top - bottom) / 16)
    outline = shapely.Polygon(project(shapely.get_coordinates(bounds), crs, "EPSG:4326"))
    extent = None
    if rules["extent"] == "utm_sheet":
        extent = utm_sheet(path, outline, parts)
        outline = shapely.box(*extent)
    return Sheet(str(path), crs, tuple(transform)[:6], width, height, extent, outline)


def utm_sheet(path: Path, outline: shapely.Polygon, parts: dict[str, str]) -> tuple[float, float, float, float]:
    """The nominal extent of a GlobeLand30 sheet, degrees: 5 of latitude by the 6 (12 from 60 on) of its zone.

    The name gives the zone; its latitude is the band's edge nearer to the equator or farther from it, so the
    band is the one that holds the middle of the pixels. Raises LandCoverError where the two disagree.
    """
    south = float(np.floor(outline.centroid.y / 5.0) * 5.0)
    north = south + 5.0
    hemisphere = "n" if south >= 0 else "s"
    if parts["hemisphere"].lower() != hemisphere or float(parts["latitude"]) not in (abs(south), abs(north)):
        raise LandCoverError(f"{path}: its pixels lie between latitudes {south:g} and {north:g}, its name says otherwise")
    west = -180.0 + 6.0 * (int(parts["zone"]) - 1)
    east = west + (6.0 if max(abs(south), abs(north)) <= 60.0 else 12.0)
    middle = west + (outline.centroid.x - west) % 360.0
    if not west - 1 <= middle <= east + 1:
        raise LandCoverError(f"{path}: its pixels lie at longitude {outline.centroid.x:.1f}, not in zone {parts['zone']}")
    return west, south, east, north


def project(points: Floats, source: str, target: str) -> Floats:
    """(n, 2) float64 points from one CRS to another, x before y."""
    return np.column_stack(transformer(source, target).transform(points[:, 0], points[:, 1]))


def class_shares(corners: Floats, crs: str, cover: LandCover) -> Shares:
    """Class shares of quadrilateral footprints, as areas of intersection.

    corners: (n, 4, 2) float64 in `crs`, in order around the footprint; its edges are straight there. Areas are
    measured in the plane of each sheet's CRS, on the sphere for a geographic one, and each as a share of the
    whole footprint's area in the same measure. A sheet counts within its nominal extent alone.
    Raises LandCoverError naming a sheet that cannot be read.
    """
    n, classes = len(corners), len(cover.legend.classes)
    areas = np.zeros((n, classes))
    unlisted: frozenset[int] = frozenset()
    ring = densify(corners, crs, "EPSG:4326")
    quads = shapely.polygons(project(ring.reshape(-1, 2), crs, "EPSG:4326").reshape(ring.shape))
    for sheet in cover.sheets:
        touching = np.flatnonzero(shapely.intersects(quads, sheet.outline))
        if len(touching) == 0:
            continue
        # One footprint may leave the sheet's extent; the whole footprint is what its area is a share of.
        whole = in_sheet(corners[touching], crs, sheet)
        parts = whole
        if sheet.extent is not None:
            inside = shapely.contains_properly(sheet.outline, quads[touching])
            parts = whole.copy()
            parts[~inside] = clip(quads[touching[~inside]], sheet)
        shares, codes = sheet_shares(parts, measured(whole, sheet), sheet, cover.legend)
        areas[touching] += shares
        unlisted |= cover.legend.unlisted(codes)
    known = areas.sum(axis=1)
    fraction = np.divide(areas, known[:, None], out=np.zeros_like(areas), where=known[:, None] > 0)
    return Shares(fraction, np.minimum(known, 1.0), unlisted)


def densify(corners: Floats, source: str, target: str, tolerance: float = 1e-7) -> Floats:
    """Footprints with points added to their edges until these bend with the CRS: (n, 4 * k, 2) float64 in `source`.

    An edge's middle misses the straight line between its projected ends by some share of the edge's length;
    k parts lower that by k squared, to the tolerance.
    """
    if CRS(source) == CRS(target):
        return corners
    following = np.roll(corners, -1, axis=1)
    ends = project(corners.reshape(-1, 2), source, target).reshape(corners.shape)
    middles = project(((corners + following) / 2).reshape(-1, 2), source, target).reshape(corners.shape)
    miss = np.linalg.norm(middles - (ends + np.roll(ends, -1, axis=1)) / 2, axis=2)
    length = np.linalg.norm(ends - np.roll(ends, -1, axis=1), axis=2)
    k = int(np.clip(np.ceil(np.sqrt((miss / length).max(initial=0.0) / tolerance)), 1, 256))
    steps = np.arange(k)[None, None, :, None] / k
    points = corners[:, :, None] * (1 - steps) + following[:, :, None] * steps
    return points.reshape(len(corners), -1, 2)


def in_sheet(corners: Floats, crs: str, sheet: Sheet) -> npt.NDArray[np.object_]:
    """Footprints as polygons in a sheet's CRS."""
    ring = densify(corners, crs, sheet.crs)
    points = project(ring.reshape(-1, 2), crs, sheet.crs).reshape(ring.shape)
    return np.asarray(shapely.polygons(points))


def clip(quads: npt.NDArray[np.object_], sheet: Sheet) -> npt.NDArray[np.object_]:
    """Footprints (longitude, latitude) cut to a sheet's nominal extent, in the sheet's CRS."""
    cut = shapely.intersection(quads, sheet.outline)
    # The cut follows a parallel or meridian, which bends in the sheet's CRS.
    size = np.sqrt(np.maximum(shapely.area(quads), 1e-18))
    cut = shapely.segmentize(cut, size / 64)
    return np.asarray(shapely.transform(cut, lambda points: project(points, "EPSG:4326", sheet.crs)))


def measured(polygons: npt.NDArray[np.object_], sheet: Sheet) -> Floats:
    """Area of each polygon in the measure that `sheet_shares` uses: cells of a projected sheet, m2 of a geographic."""
    if not CRS(sheet.crs).is_geographic:
        return np.asarray(shapely.area(polygons)) / abs(sheet.transform[0] * sheet.transform[4])
    # exactextract's sphere; on it x and the sine of the latitude are an equal-area plane.
    radius = 6378137.0

    def flat(points: Floats) -> Floats:
        return np.column_stack([np.deg2rad(points[:, 0]), np.sin(np.deg2rad(points[:, 1]))]) * radius

    return np.asarray(shapely.area(shapely.transform(polygons, flat)))


def sheet_shares(
    polygons: npt.NDArray[np.object_], whole: Floats, sheet: Sheet, legend: Legend
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Area of each class under polygons (in the sheet's CRS), as shares of `whole`: (n, class), and the codes met."""
    shares = np.zeros((len(polygons), len(legend.classes)))
    used = np.flatnonzero(~shapely.is_empty(polygons))
    if len(used) == 0:
        return shares, np.array([], np.int64)
    a, _, left, _, e, top = sheet.transform
    x0, y0, x1, y1 = shapely.total_bounds(polygons[used])
    c0, c1 = max(0, int((x0 - left) // a)), min(sheet.width, int((x1 - left) // a) + 1)
    r0, r1 = max(0, int((y1 - top) // e)), min(sheet.height, int((y0 - top) // e) + 1)
    if c1 <= c0 or r1 <= r0:
        return shares, np.array([], np.int64)
    try:
        with rasterio.open(sheet.path) as source:
            cells = source.read(1, window=Window(c0, r0, c1 - c0, r1 - r0))
    except RasterioIOError as error:
        raise LandCoverError(f"{sheet.path}: cannot be read: {error}") from error
    wkt = CRS(sheet.crs).to_wkt()
    raster = NumPyRasterSource(
        cells, xmin=left + a * c0, ymin=top + e * r1, xmax=left + a * c1, ymax=top + e * r0, srs_wkt=wkt
    )
    frame = geopandas.GeoDataFrame(geometry=polygons[used], crs=sheet.crs)
    area = "(coverage_weight=area_spherical_m2)" if CRS(sheet.crs).is_geographic else ""
    table = exact_extract(raster, frame, ["unique", f"frac{area}", f"count{area}"], output="pandas")
    sizes = [len(codes) for codes in table["unique"]]
    codes = np.concatenate(table["unique"].to_list()).astype(np.int64)
    row = np.repeat(used, sizes)
    amount = np.concatenate(table["frac"].to_list()) * np.repeat(table["count"].to_numpy(), sizes)
    np.add.at(shares, row, legend.shares(codes) * (amount / whole[row])[:, None])
    return shares, np.unique(codes)


def summary(covers: Sequence[LandCover]) -> list[str]:
    """One line a product: name, sheets, classes."""
    return [f"{cover.name}: {len(cover.sheets)} sheets" for cover in covers]
