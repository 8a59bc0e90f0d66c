"""Land cover as found in directories and under places in a bucket: its sheets, and what is wrong with them."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import shapely

from geokr.landcover.legend import BASE, OWN, Taxonomy, read_legend, read_taxonomy
from geokr.landcover.products import LandCoverError, Product, load_products
from geokr.landcover.sheets import LandCover, Sheet, read_sheets
from geokr.storage import inputs, rasters

log = logging.getLogger(__name__)

RASTERS = (".tif", ".tiff", ".img", ".nc", ".hdf", ".vrt", ".jp2")
"""How files are named that may be sheets of a product nobody has described."""


def find_landcover(
    paths: Iterable[str | Path], legends: Iterable[str | Path] = (), taxonomy: str = BASE
) -> list[LandCover]:
    """Products found under directories, URLs or named files, sorted by name; other files are passed over.

    So are rasters that no product names, with a warning. legends: the user's descriptions of products. taxonomy: see
    `read_taxonomy`, or `own` for each product's own classes. Raises LandCoverError where a path does not exist, a
    description or a sheet cannot be used, a sheet is there twice or overlaps another, or nothing is recognised.
    """
    known = load_products(legends)
    places = [str(path) for path in paths]
    survey = take_inventory(places, known, taxonomy)
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
class Inventory:
    """What lies under some places."""

    covers: list[LandCover]
    """Sorted by name; of sheets without a fault."""
    faults: list[str]
    """A sentence for each sheet that cannot be used."""
    unplaced: list[str]
    """Rasters that no product recognises."""


def take_inventory(places: Iterable[str | Path], known: Sequence[Product], taxonomy: str) -> Inventory:
    """The products under directories or URLs, and all that is wrong with their sheets.

    Raises LandCoverError where a path does not exist, or a description or taxonomy cannot be used.
    """
    faults: list[str] = []
    unplaced: list[str] = []
    recognised: list[tuple[str, Product, dict[str, Any], dict[str, str]]] = []
    for file in list_files(places):
        product, matched = next(((p, m) for p in known if (m := p.match(PurePosixPath(file).name))), (None, None))
        if product is None or matched is None:
            unplaced += [file] if PurePosixPath(file).suffix.lower() in RASTERS else []
        else:
            recognised.append((file, product, *matched))
    found: dict[tuple[str, int], tuple[Product, dict[str, Sheet]]] = {}
    away = any(inputs.is_remote(file) for file, *_ in recognised)
    with ThreadPoolExecutor(rasters.READERS if away else 1) as pool:
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
        faults += find_overlaps(cover.sheets)
    return Inventory(covers, faults, unplaced)


def list_files(places: Iterable[str | Path]) -> Iterator[str]:
    """The files under directories or URLs, and named files, in order, each once.

    Raises LandCoverError for a wrong path, or a server that does not list what is there.
    """
    files: dict[str, str] = {}
    for place in places:
        if inputs.is_remote(place):
            files |= {url: url for url in list_url(str(place))}
            continue
        place = Path(place)
        if not place.exists():
            raise LandCoverError(f"{place}: no such file or directory")
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file():
                files[str(path.resolve())] = str(path)
    return iter(files.values())


def list_url(url: str) -> list[str]:
    """The objects under a place in a bucket, or the file that a URL names. Raises LandCoverError for neither."""
    try:
        if url.lower().startswith("s3://") and (found := inputs.list_bucket(url)):
            return [*found]
        inputs.stat(url)
    except OSError as error:
        raise LandCoverError(str(error)) from error
    return [url]


def find_overlaps(sheets: Sequence[Sheet]) -> list[str]:
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
