"""Land-cover sheets under directories or in a bucket: which products they belong to, and their faults."""

import logging
import re
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

ASSIGNED = re.compile(r"(?P<product>[a-z0-9_]+)_(?P<year>\d{4})=(?P<path>.+)", re.DOTALL | re.IGNORECASE)
"""A location with the product and the year of its sheets: `corine_2018=maps/clc.tif`."""
RASTERS = (".tif", ".tiff", ".img", ".nc", ".hdf", ".vrt", ".jp2")
"""Suffixes of files that are reported if no product matches their name."""


def find_landcover(
    paths: Iterable[str | Path], legends: Iterable[str | Path] = (), taxonomy: str = BASE
) -> list[LandCover]:
    """Products under directories, URLs or single files, sorted by name; other files are ignored.

    paths: one may be given as `PRODUCT_YEAR=PATH`, if its names do not tell what it is. Rasters that match no product
    are also ignored, with a warning. legends: the user's product descriptions. taxonomy: see `read_taxonomy`, or `own`
    for each product's own classes. Raises LandCoverError if a path does not exist, a description or a sheet cannot be
    used, a sheet occurs twice or overlaps another, or no sheet is recognised.
    """
    products = load_products(legends)
    locations = [str(path) for path in paths]
    inventory = take_inventory(locations, products, taxonomy)
    if inventory.faults:
        raise LandCoverError(inventory.faults[0])
    if not inventory.land_covers:
        names = ", ".join(product.name for product in products)
        raise LandCoverError(f"{', '.join(locations)}: no land-cover sheet recognised; known products: {names}")
    if inventory.unrecognised:
        more = f" and {len(inventory.unrecognised) - 1} more" if len(inventory.unrecognised) > 1 else ""
        log.warning("%s%s: no product matches this file name; ignored", inventory.unrecognised[0], more)
    return inventory.land_covers


@dataclass(frozen=True, slots=True)
class Inventory:
    """Land cover under directories or URLs."""

    land_covers: list[LandCover]
    """Sorted by name; only sheets without a fault."""
    faults: list[str]
    """One sentence for each sheet that cannot be used."""
    unrecognised: list[str]
    """Rasters that match no product."""


def take_inventory(paths: Iterable[str | Path], products: Sequence[Product], taxonomy: str) -> Inventory:
    """The land cover under directories or URLs, and all faults of its sheets.

    Raises LandCoverError if a path does not exist, or a description or taxonomy cannot be used.
    """
    faults: list[str] = []
    unrecognised: list[str] = []
    recognised: list[tuple[str, Product, dict[str, Any], dict[str, str]]] = []
    for file, assigned in list_assigned(paths):
        name = PurePosixPath(file).name
        if assigned is not None:
            if name.lower().endswith(RASTERS):
                recognised.append((file, *assign(name, *assigned, products)))
            continue
        product, match = next(((p, m) for p in products if (m := p.match(name))), (None, None))
        if product is None or match is None:
            unrecognised += [file] if PurePosixPath(file).suffix.lower() in RASTERS else []
        else:
            recognised.append((file, product, *match))
    editions: dict[tuple[str, int], tuple[Product, dict[str, Sheet]]] = {}
    remote = any(inputs.is_remote(file) for file, *_ in recognised)
    with ThreadPoolExecutor(rasters.READERS if remote else 1) as pool:
        futures = [pool.submit(read_sheets, file, rule, parts) for file, _, rule, parts in recognised]
        for (file, product, *_), future in zip(recognised, futures, strict=True):
            try:
                for year, sheet in future.result():
                    _, sheets = editions.setdefault((product.name, year), (product, {}))
                    if (key := PurePosixPath(file).name.lower()) in sheets:  # its area would count twice
                        raise LandCoverError(f"{file}: a sheet of this name already exists: {sheets[key].path}")
                    sheets[key] = sheet
            except LandCoverError as error:
                faults.append(str(error))
    try:
        classes: Taxonomy | None = None if taxonomy == OWN else read_taxonomy(taxonomy)
        legends = {product.path: read_legend(product.path, classes) for product, _ in editions.values()}
    except ValueError as error:
        raise LandCoverError(str(error)) from error
    covers = [
        LandCover(f"{name}_{year}", year, legends[product.path], tuple(sheets.values()))
        for (name, year), (product, sheets) in sorted(editions.items(), key=lambda item: item[0])
    ]
    for cover in covers:
        faults += find_overlaps(cover.sheets)
    return Inventory(covers, faults, unrecognised)


def split_location(location: str | Path) -> tuple[str, tuple[str, int] | None]:
    """Split `PRODUCT_YEAR=PATH` into path, and product and year; any other location has none of these.

    A file or directory that is really called so is a path.
    """
    text = str(location)
    match = ASSIGNED.fullmatch(text)
    if match is None or Path(text).exists():
        return text, None
    return inputs.expand_home(match["path"]), (match["product"].lower(), int(match["year"]))


def assign(
    name: str, product_name: str, year: int, products: Sequence[Product]
) -> tuple[Product, dict[str, Any], dict[str, str]]:
    """The product, and the rule and groups for a sheet of which the user says what it is. name: of its file.

    Raises LandCoverError if there is no such product.
    """
    product = next((product for product in products if product.name == product_name), None)
    if product is None:
        names = ", ".join(sorted({product.name for product in products}))
        raise LandCoverError(
            f"{product_name}_{year}={name}: there is no product {product_name}; known products: {names}"
        )
    if (match := product.match(name)) is not None and "years" not in match[0]:
        return product, match[0] | {"year": year}, match[1]
    kind = PurePosixPath(name).suffix.lower() == ".nc"
    rule = next((rule for rule in product.rules if ("layer" in rule) == kind), {})
    return product, {key: rule[key] for key in ("crs", "layer") if key in rule} | {"extent": "bounds", "year": year}, {}


def list_assigned(locations: Iterable[str | Path]) -> Iterator[tuple[str, tuple[str, int] | None]]:
    """The files under locations, in order and each once, with the product and year that the user gives them.

    Raises LandCoverError if a path does not exist, or a server cannot list its files.
    """
    files: dict[str, tuple[str, tuple[str, int] | None]] = {}
    for location in locations:
        path, assigned = split_location(location)
        if inputs.is_remote(path):
            found = {url: url for url in list_url(path)}
        else:
            root = Path(path)
            if not root.exists():
                hint = "" if "=" not in path else "; what a map is, is written as PRODUCT_YEAR=PATH: corine_2018=FILE"
                raise LandCoverError(f"{root}: no such file or directory{hint}")
            found = {str(p.resolve()): str(p) for p in (inputs.list_folder(root) if root.is_dir() else [root])}
        for key, file in found.items():
            if assigned is not None or key not in files:  # what the user says is more than what a name says
                files[key] = file, assigned
    return iter(files.values())


def list_files(locations: Iterable[str | Path]) -> Iterator[str]:
    """The files under directories or URLs, and single files, in order and without duplicates.

    Raises LandCoverError if a path does not exist, or a server cannot list its files.
    """
    return (file for file, _ in list_assigned(locations))


def list_url(url: str) -> list[str]:
    """The objects under a prefix of a bucket, or the file at a URL. Raises LandCoverError if there is neither."""
    try:
        if url.lower().startswith("s3://") and (objects := inputs.list_bucket(url)):
            return [*objects]
        inputs.stat(url)
    except OSError as error:
        raise LandCoverError(str(error)) from error
    return [url]


def find_overlaps(sheets: Sequence[Sheet]) -> list[str]:
    """One sentence for each pair of sheets without a nominal extent that overlap by more than a cell.

    Compares only sheets of the same CRS. An overlap of sheets in different CRSs is found later, by
    `compute_class_shares`, in a footprint that both cover.
    """
    faults = []
    unbounded = [sheet for sheet in sheets if sheet.extent is None]
    for crs in sorted({sheet.crs for sheet in unbounded}):
        group = [sheet for sheet in unbounded if sheet.crs == crs]
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
