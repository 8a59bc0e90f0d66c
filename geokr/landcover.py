"""Land-cover products and their sheets, as found in directories or under places in a bucket.

A product is described by a file in `knowledge/products/`, or one of the user's: how its sheets are named, how far
each one counts, and what its codes mean.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import shapely
from pyproj import CRS
from pyproj.exceptions import ProjError
from rasterio.errors import RasterioIOError
from rasterio.windows import Window

from geokr import gdal, inputs
from geokr.crs import is_geographic
from geokr.legend import BASE, KNOWLEDGE, OWN, Legend, Taxonomy, read_legend, read_taxonomy, read_toml
from geokr.outlines import LONLAT, Floats, project, rings

log = logging.getLogger(__name__)

Extent = tuple[float, float, float, float]
"""West, south, east and north, degrees. East may lie beyond 180."""

RASTERS = (".tif", ".tiff", ".img", ".nc", ".hdf", ".vrt", ".jp2")
"""How files are named that may be sheets of a product nobody has described."""


class LandCoverError(ValueError):
    """A product or sheet that cannot be used: one sentence that names the file and the fault."""


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


@dataclass(frozen=True, slots=True)
class Product:
    """A land-cover product as its file describes it."""

    path: Path
    name: str
    rules: tuple[dict[str, Any], ...]
    """How its sheets are named, one for each kind of file: see docs/landcover.md."""

    def match(self, file: str) -> tuple[dict[str, Any], dict[str, str]] | None:
        """The rule that a file's name follows, and the parts of the name; None where it follows none."""
        for rule in self.rules:
            if match := re.search(rule["name"], file, re.IGNORECASE):
                return rule, match.groupdict()
        return None


def products(own: Iterable[str | Path] = ()) -> list[Product]:
    """The products that are known: first those described in the user's files or directories, then the shipped ones.

    Raises LandCoverError for a description that cannot be used.
    """
    files: list[Path] = []
    for place in map(Path, own):
        found = sorted(place.glob("*.toml")) if place.is_dir() else [place]
        if not found:
            raise LandCoverError(f"{place}: no .toml file is in there")
        files += found
    return [read_product(path) for path in [*files, *sorted((KNOWLEDGE / "products").glob("*.toml"))]]


def read_product(path: Path) -> Product:
    """A product's description. Raises LandCoverError naming the file and the fault."""
    try:
        content = read_toml(path)
        rules = content["sheets"]
        for rule in rules:
            groups = re.compile(rule["name"]).groupindex
            if not {"year", "years"} & {*groups, *rule}:
                raise ValueError("a rule for sheets has no group `year` in its name, and no key `year` or `years`")
            match rule["extent"]:
                case "bounds" | [_, _, _, _]:
                    needed: set[str] = set()
                case "globeland30":
                    needed = {"hemisphere", "zone", "latitude"}
                case "grid_zone":
                    needed = {"zone", "band"}
                case {"degrees": _, "corner": "lower left" | "upper left"}:
                    needed = {"latitude", "longitude"}
                case other:
                    raise ValueError(f"no sheet can have the extent {other!r}")
            if missing := needed - set(groups):
                raise ValueError(f"the sheets' name has no group {sorted(missing)}, which their extent needs")
        if not re.fullmatch(r"[a-z0-9_]+", content["name"]):
            raise ValueError(f"the name {content['name']!r} must be of small letters, digits and _")
        return Product(path, content["name"], tuple(rules))
    except KeyError as error:
        raise LandCoverError(f"{path}: {error} is missing") from error
    except re.error as error:
        raise LandCoverError(f"{path}: the sheets' name is not a regular expression: {error}") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise LandCoverError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def find(paths: Iterable[str | Path], legends: Iterable[str | Path] = (), taxonomy: str = BASE) -> list[LandCover]:
    """Products found under directories, URLs or named files, sorted by name; other files are passed over.

    So are rasters that no product names, with a warning. legends: the user's descriptions of products. taxonomy: see
    `read_taxonomy`, or `own` for each product's own classes. Raises LandCoverError where a path does not exist, a
    description or a sheet cannot be used, a sheet is there twice or overlaps another, or nothing is recognised.
    """
    known = products(legends)
    places = [str(path) for path in paths]
    survey = take_stock(places, known, taxonomy)
    if survey.faults:
        raise LandCoverError(survey.faults[0])
    if not survey.covers:
        names = ", ".join(product.name for product in known)
        raise LandCoverError(f"{', '.join(places)}: no land-cover sheet is recognised here; known are {names}")
    if survey.unplaced:
        more = f" and {len(survey.unplaced) - 1} more" if len(survey.unplaced) > 1 else ""
        log.warning("%s%s: no product names its sheets so; passed over", survey.unplaced[0], more)
    return survey.covers


@dataclass(frozen=True, slots=True)
class Survey:
    """What lies under some places."""

    covers: list[LandCover]
    """Sorted by name; of sheets without a fault."""
    faults: list[str]
    """A sentence for each sheet that cannot be used."""
    unplaced: list[str]
    """Rasters that no product recognises."""


def take_stock(places: Iterable[str | Path], known: Sequence[Product], taxonomy: str) -> Survey:
    """The products under directories or URLs, and all that is wrong with their sheets.

    Raises LandCoverError where a path does not exist, or a description or taxonomy cannot be used.
    """
    faults: list[str] = []
    unplaced: list[str] = []
    recognised: list[tuple[str, Product, dict[str, Any], dict[str, str]]] = []
    for file in walk(places):
        product, matched = next(((p, m) for p in known if (m := p.match(PurePosixPath(file).name))), (None, None))
        if product is None or matched is None:
            unplaced += [file] if PurePosixPath(file).suffix.lower() in RASTERS else []
        else:
            recognised.append((file, product, *matched))
    found: dict[tuple[str, int], tuple[Product, dict[str, Sheet]]] = {}
    away = any(inputs.is_remote(file) for file, *_ in recognised)
    with ThreadPoolExecutor(gdal.READERS if away else 1) as pool:
        reading = [pool.submit(read_sheets, file, rule, parts) for file, _, rule, parts in recognised]
        for (file, product, *_), read in zip(recognised, reading, strict=True):
            try:
                for year, sheet in read.result():
                    _, sheets = found.setdefault((product.name, year), (product, {}))
                    if (key := PurePosixPath(file).name.lower()) in sheets:  # its area would count twice
                        raise LandCoverError(f"{file}: the sheet is there already, as {sheets[key].path}")
                    sheets[key] = sheet
            except LandCoverError as error:
                faults.append(str(error))
    try:
        classes: Taxonomy | None = None if taxonomy == OWN else read_taxonomy(taxonomy)
        legends = {product.path: read_legend(product.path, classes) for product, _ in found.values()}
    except ValueError as error:
        raise LandCoverError(str(error)) from error
    covers = [
        LandCover(f"{name}_{year}", year, legends[product.path], tuple(sheets.values()))
        for (name, year), (product, sheets) in sorted(found.items(), key=lambda item: item[0])
    ]
    for cover in covers:
        faults += overlaps(cover.sheets)
    return Survey(covers, faults, unplaced)


def walk(places: Iterable[str | Path]) -> Iterator[str]:
    """The files under directories or URLs, and named files, in order, each once.

    Raises LandCoverError for a wrong path, or a server that does not list what is there.
    """
    files: dict[str, str] = {}
    for place in places:
        if inputs.is_remote(place):
            files |= {url: url for url in under(str(place))}
            continue
        place = Path(place)
        if not place.exists():
            raise LandCoverError(f"{place}: no such file or directory")
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file():
                files[str(path.resolve())] = str(path)
    return iter(files.values())


def under(url: str) -> list[str]:
    """The objects under a place in a bucket, or the file that a URL names. Raises LandCoverError for neither."""
    try:
        if url.lower().startswith("s3://") and (found := inputs.listing(url)):
            return [*found]
        inputs.stat(url)
    except OSError as error:
        raise LandCoverError(str(error)) from error
    return [url]


def read_sheets(path: str, rule: dict[str, Any], parts: dict[str, str]) -> list[tuple[int, Sheet]]:
    """The sheets of a file with their years, one for each band that stands for a year.

    Reads the raster's header, and its last block. Raises LandCoverError where the raster cannot be opened, is cut
    short, has no CRS or one that is not of the Earth, is rotated, has other bands than its rule says, or denies its
    name.
    """
    source = rule.get("layer", "{path}").format(path=gdal.path(path))
    years = [int(year) for year in rule.get("years") or [rule.get("year") or parts["year"]]]
    try:
        with gdal.opened(source) as raster:
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
    region = outline(path, crs, *shape)
    extent = nominal(path, rule["extent"], parts, region)
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


def outline(path: str, crs: str, transform: Sequence[float], width: int, height: int) -> shapely.Polygon:
    """Where a raster's cells lie, in longitude and latitude; a little too large, so that no place is lost.

    Raises LandCoverError where they are no place on Earth.
    """
    a, _, left, _, e, top = transform
    right, bottom = left + a * width, top + e * height
    corners = np.array([[(left, top), (right, top), (right, bottom), (left, bottom)]])
    tolerance = 1e-5
    try:
        ring = rings(corners, crs, LONLAT, tolerance)
        if is_geographic(crs) or returns(ring[0], corners[0, 0], crs, abs(a)):
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


def returns(ring: Floats, corner: Floats, crs: str, tolerance: float) -> bool:
    """Whether the first place of a ring is where it came from: no other way round the world was taken."""
    return bool(np.abs(project(ring[:1], LONLAT, crs)[0] - corner).max() < tolerance)


def nominal(path: str, rule: Any, parts: dict[str, str], region: shapely.Polygon) -> Extent | None:
    """Where a sheet counts by its name and its product's rule. Raises LandCoverError where its pixels lie elsewhere."""
    match rule:
        case "bounds":
            return None
        case [west, south, east, north]:
            return west, south, east, north
        case "globeland30":
            extent = globeland30_extent(path, region, parts)
        case "grid_zone":
            extent = grid_zone(path, int(parts["zone"]), parts["band"].upper())
        case _:
            west, corner = degrees(parts["longitude"]), degrees(parts["latitude"])
            south = corner - (rule["degrees"] if rule["corner"] == "upper left" else 0)
            extent = west, south, west + rule["degrees"], south + rule["degrees"]
    west, south, east, north = extent
    middle = region.centroid
    x = middle.x + 360.0 * round(((west + east) / 2 - middle.x) / 360.0)
    if not (west - 1 <= x <= east + 1 and south - 1 <= middle.y <= north + 1):
        raise LandCoverError(
            f"{path}: its pixels lie around longitude {middle.x:.1f}, latitude {middle.y:.1f}, its name says otherwise"
        )
    return extent


def degrees(text: str) -> float:
    """`N24`, `W125` or `-2` as degrees, north and east positive."""
    number = float(text.lstrip("NSEWnsew"))
    return -number if text[0] in "SWsw" else number


def globeland30_extent(path: str, region: shapely.Polygon, parts: dict[str, str]) -> Extent:
    """The nominal extent of a GlobeLand30 sheet: 5 degrees of latitude by the 6 (12 from 60 on) of its zone.

    The name gives the zone; its latitude is the band's edge nearer to the equator or farther from it, so the
    band is the one that holds the middle of the pixels. Raises LandCoverError where the two disagree.
    """
    south = float(np.floor(region.centroid.y / 5.0) * 5.0)
    north = south + 5.0
    hemisphere = "n" if south >= 0 else "s"
    if parts["hemisphere"].lower() != hemisphere or float(parts["latitude"]) not in (abs(south), abs(north)):
        raise LandCoverError(
            f"{path}: its pixels lie between latitudes {south:g} and {north:g}, its name says otherwise"
        )
    west = -180.0 + 6.0 * (int(parts["zone"]) - 1)
    return west, south, west + (6.0 if max(abs(south), abs(north)) <= 60.0 else 12.0), north


def grid_zone(path: str, zone: int, band: str) -> Extent:
    """A zone of the military grid: 6 degrees by 8 (12 in band X), with the exceptions of Norway and Svalbard.

    Source: DMA TM 8358.1, chapter 3. Raises LandCoverError where there is none of that name.
    """
    row = "CDEFGHJKLMNPQRSTUVWX".find(band)
    if row < 0 or not 1 <= zone <= 60:
        raise LandCoverError(f"{path}: the military grid has no zone {zone}{band}")
    west = -180.0 + 6.0 * (zone - 1)
    odd = {"31V": (0, 3), "32V": (3, 12), "31X": (0, 9), "33X": (9, 21), "35X": (21, 33), "37X": (33, 42)}
    west, east = odd.get(f"{zone}{band}", (west, west + 6.0))
    return west, -80.0 + 8.0 * row, east, 84.0 if band == "X" else -72.0 + 8.0 * row


def overlaps(sheets: Sequence[Sheet]) -> list[str]:
    """A sentence for each pair of sheets whose pixels overlap by more than a cell, no extent saying which counts.

    Only sheets of one CRS are compared here; what others share is found where a footprint is covered twice.
    """
    faults = []
    free = [sheet for sheet in sheets if sheet.extent is None]
    for crs in sorted({sheet.crs for sheet in free}):
        group = [sheet for sheet in free if sheet.crs == crs]
        boxes = []
        for sheet in group:
            a, _, left, _, e, top = sheet.transform
            boxes.append(shapely.box(left + a, top + e * (sheet.height - 1), left + a * (sheet.width - 1), top + e))
        first, second = shapely.STRtree(boxes).query(boxes, predicate="intersects")
        faults += [
            f"{group[j].path}: it overlaps {group[i].path}; their common area would count twice"
            for i, j in zip(first, second, strict=True)
            if i < j
        ]
    return faults
