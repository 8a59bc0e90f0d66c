"""List and describe land-cover products, and check the sheets in a directory or bucket.

geokr landcover list
geokr landcover describe worldcover
geokr landcover describe map.tif  (the draft of a description of one's own product)
geokr landcover check DIR...  (or s3://bucket/prefix)
geokr landcover check DIR... --scenes DATASET --product worldcover_2021  (the sheets that are missing)
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import PurePosixPath

import numpy as np
from pyproj import CRS
from rasterio.errors import RasterioIOError
from rasterio.windows import Window

from geokr.landcover.areas import read_outlines
from geokr.landcover.discovery import Inventory, take_inventory
from geokr.landcover.draft import draft_description
from geokr.landcover.gaps import Gap, find_gaps
from geokr.landcover.legend import BASE, IGNORE, OWN, read_legend, read_taxonomy, read_toml
from geokr.landcover.products import LandCoverError, Product, load_products
from geokr.landcover.sheets import LandCover, Sheet, read_cells
from geokr.storage import inputs, rasters

SAMPLE = 16
"""Number of blocks that `check` reads of a sheet without --all: the first, the last, and evenly spaced ones between."""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="geokr landcover", description="Land-cover products.")
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--legend",
        nargs="+",
        type=inputs.expand_home,
        default=[],
        metavar="FILE",
        help="descriptions of your own products",
    )
    common.add_argument("--taxonomy", default=BASE, metavar="NAME", help=f"classes: {BASE}, paper, {OWN} or a file")
    commands.add_parser("list", parents=[common], help="list the products")
    describe = commands.add_parser(
        "describe", parents=[common], help="show the codes of a product and their classes, or draft those of a raster"
    )
    describe.add_argument("product", metavar="PRODUCT|FILE")
    check = commands.add_parser(
        "check",
        parents=[common],
        help="check the sheets in a directory: products, years, CRSs, codes",
        epilog="Exit status: 0 no fault; 1 a sheet cannot be used, or contains a code that its legend lacks, or "
        "a sheet for --scenes is missing; 2 a path or a product description is faulty.",
    )
    check.add_argument(
        "directories", nargs="*", type=inputs.expand_home, metavar="DIR", help="directories or files, as paths or URLs"
    )
    check.add_argument(
        "--scenes",
        nargs="+",
        type=inputs.expand_home,
        metavar="PLACE",
        help="name the sheets that these lack: data sets, STAC items and other GeoJSON, images on a map, directories",
    )
    check.add_argument("--product", nargs="+", metavar="NAME_YEAR", help="for --scenes (those in the directories)")
    check.add_argument("--all", action="store_true", help=f"read every cell, not {SAMPLE} blocks of each sheet")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit status."""
    options = make_parser().parse_args(argv)
    try:
        products = load_products(options.legend)
        match options.command:
            case "list":
                print("\n".join(list_products(products)))
                return 0
            case "describe":
                if (path := inputs.local_path(options.product)).is_file():
                    print("\n".join(draft_description(str(path))))
                else:
                    print("\n".join(describe_product(products, options.product, options.taxonomy)))
                return 0
        all_valid = True
        if not options.directories and not options.scenes:
            raise ValueError("give directories with sheets, or --scenes, or both")
        inventory = take_inventory(options.directories, products, options.taxonomy)
        lines = check_sheets(options.directories, inventory, options.all) if options.directories else iter(())
        if options.scenes:
            lines = chain(lines, check_gaps(options.scenes, options.product or [], products, inventory))
        for line, valid in lines:
            print(line, flush=True)
            all_valid &= valid
        return 0 if all_valid else 1
    except (LandCoverError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def list_products(products: Sequence[Product]) -> list[str]:
    """One line for each product: name, title and years."""
    lines = []
    for product in products:
        content = read_toml(product.path)
        lines.append(f"{product.name:<14} {content['title']}; {content.get('years', 'years from the file names')}")
    return lines


def describe_product(products: Sequence[Product], name: str, taxonomy: str) -> list[str]:
    """Lines that describe the product with this name. Raises LandCoverError if there is none."""
    product = next((product for product in products if product.name == name.lower()), None)
    if product is None and ("/" in name or "." in name):
        raise LandCoverError(f"{name}: no such file")
    if product is None:
        raise LandCoverError(f"{name}: no such product; available: {', '.join(product.name for product in products)}")
    content = read_toml(product.path)
    legend = read_legend(product.path, None if taxonomy == OWN else read_taxonomy(taxonomy))
    lines = [f"{name}: {content['title']}"]
    lines += [f"  {key:<9} {content[key]}" for key in ("citation", "licence", "years", "zero", "sea") if key in content]
    for rule in product.rules:
        lines.append(f"  sheets    {rule['name']}")
        lines.append(f"            extent {rule['extent']}" + (f", CRS {rule['crs']}" if "crs" in rule else ""))
    lines.append(f"  codes, in the classes of {legend.taxonomy}:")
    for row in sorted(content["codes"], key=lambda row: int(row["code"])):
        parts = dict(zip(legend.classes, legend.codes.get(row["code"], ()), strict=False))
        shares = [f"{share:g} {target}" if share < 1 else target for target, share in parts.items() if share]
        note = f"   ({row['note']})" if "note" in row else ""
        lines.append(f"  {row['code']:>5} {row['name']:<50} {' + '.join(shares) or IGNORE}{note}")
    return lines


def check_sheets(paths: Sequence[str], inventory: Inventory, every_cell: bool) -> Iterator[tuple[str, bool]]:
    """Report lines on the sheets under directories or URLs, each with whether it reports no fault."""
    for cover in inventory.land_covers:
        west, south, east, north = np.array([sheet.outline.bounds for sheet in cover.sheets]).T
        yield (
            (
                f"{cover.name}: {len(cover.sheets)} sheets, longitude {west.min():.2f} to {east.max():.2f}, "
                f"latitude {south.min():.2f} to {north.max():.2f}, in {', '.join(list_crs_names(cover))}, "
                f"classes of {cover.legend.taxonomy}"
            ),
            True,
        )
        yield from check_codes(cover, every_cell)
    for fault in inventory.faults:
        yield f"cannot be used: {fault}", False
    for path in inventory.unrecognised:
        yield f"not recognised: {path}: {advise(path)}", True
    if not inventory.land_covers and not inventory.faults:
        yield f"{', '.join(paths)}: no land-cover sheet recognised", False


def check_gaps(
    scenes: Sequence[str], wanted: Sequence[str], products: Sequence[Product], inventory: Inventory
) -> Iterator[tuple[str, bool]]:
    """Report lines on the sheets that scenes lack, each with whether nothing is missing.

    wanted: names and years of products, `worldcover_2021`; if empty, those of the inventory. Raises LandCoverError if
    a product or year does not exist, or if there is none.
    """
    by_name = {product.name: product for product in reversed(products)}  # the first of a name counts
    named = ", ".join(product.name for product in products if any("file" in rule for rule in product.rules))
    covers = {cover.name: cover.sheets for cover in inventory.land_covers}
    if not (wanted or covers):
        raise LandCoverError(f"which product is needed? give it as --product NAME_YEAR; names of sheets: {named}")
    outlines, unplaced = read_outlines(scenes, products)
    if unplaced:
        more = f" and {len(unplaced) - 1} more" if len(unplaced) > 1 else ""
        yield (
            (
                f"without an outline: {unplaced[0]}{more}; `geokr build --scenes ... --only "
                "catalog --out DATASET` finds it, then give --scenes DATASET"
            ),
            True,
        )
    if not outlines:
        raise LandCoverError(f"{', '.join(scenes)}: no outline of a scene")
    for name in wanted or covers:
        product_name, _, year = name.rpartition("_")
        if product_name not in by_name or not year.isdecimal():
            raise LandCoverError(f"{name}: not the name of a product and a year, such as worldcover_2021")
        gaps, needed = find_gaps(by_name[product_name], int(year), covers.get(name, ()), outlines)
        yield from describe_gaps(name, gaps, needed, len(outlines))


def describe_gaps(name: str, gaps: Sequence[Gap], needed: int, scenes: int) -> Iterator[tuple[str, bool]]:
    """Report lines on what a product lacks for a number of scenes: see `find_gaps`."""
    if not gaps:
        yield f"{name}: no sheet is missing for {scenes} scenes", True
    elif not needed:
        more = f" and {len(gaps[0].scenes) - 1} more" if len(gaps[0].scenes) > 1 else ""
        yield f"{name}: nothing covers all of {gaps[0].scenes[0]}{more}; no names of sheets are known", False
    else:
        yield f"{name}: {len(gaps)} of {needed} sheets are missing for {scenes} scenes, if not open sea:", False
        for gap in gaps:
            yield f"  {gap.sheet}  ({len(gap.scenes)} scenes, such as {gap.scenes[0]})", False


def advise(path: str) -> str:
    """What to do with a raster whose name matches no product."""
    match = HDF4.search(PurePosixPath(path).name)
    if match is None:
        return (
            "no product matches its name; if it is of one, give it as PRODUCT_YEAR=PATH; otherwise, "
            f"`geokr landcover describe {path}` drafts a --legend file"
        )
    layer = HDF4_LAYERS[match[1].upper()]
    target = f"{path.removesuffix('.hdf')}{'_LC_Type1' if layer.endswith('LC_Type1') else ''}.tif"
    source = f"HDF4_EOS:EOS_GRID:{path}:{layer}"
    return f"HDF4, which is not read; convert it: `gdal_translate -co COMPRESS=DEFLATE '{source}' '{target}'`"


HDF4 = re.compile(r"^(MCD12[QC]1)\..*\.hdf$", re.IGNORECASE)
HDF4_LAYERS = {"MCD12Q1": "MCD12Q1:LC_Type1", "MCD12C1": "MOD12C1:Majority_Land_Cover_Type_1"}
"""Product of MODIS -> the grid and layer in its file whose codes are known."""


def list_crs_names(cover: LandCover) -> list[str]:
    """Short names of the CRSs of a product's sheets."""
    systems = {sheet.crs: CRS(sheet.crs) for sheet in cover.sheets}
    return sorted({f"{crs.name}" + (f" (EPSG:{code})" if (code := crs.to_epsg()) else "") for crs in systems.values()})


def check_codes(cover: LandCover, every_cell: bool) -> Iterator[tuple[str, bool]]:
    """Report lines on the codes in a product's cells, and on those that its legend lacks."""
    counts: dict[int, int] = {}
    unlisted: dict[int, str] = {}
    for sheet in cover.sheets:
        try:
            for code, count in count_cells(sheet, every_cell).items():
                counts[code] = counts.get(code, 0) + count
                if code != sheet.nodata and cover.legend.unlisted([code]):
                    unlisted.setdefault(code, sheet.path)
        except (LandCoverError, RasterioIOError) as error:
            yield f"  cannot be used: {error}", False
    total = sum(counts.values())
    shares = ", ".join(f"{code} {100 * count / total:.3g} %" for code, count in sorted(counts.items()))
    yield f"  codes in {total} cells{'' if every_cell else ' (a sample of blocks of each sheet)'}: {shares}", True
    for code, path in sorted(unlisted.items()):
        yield f"  code {code} is not in the legend, first seen in {path}; its area counts as unknown", False


def count_cells(sheet: Sheet, every_cell: bool) -> dict[int, int]:
    """Code -> number of cells, in all blocks of a sheet or in a sample. Raises LandCoverError if one is unreadable."""
    with rasters.open_raster(sheet.source) as raster:
        rows, cols = raster.block_shapes[sheet.band - 1]
    across, down = -(-sheet.width // cols), -(-sheet.height // rows)
    blocks = range(across * down)
    if not every_cell and len(blocks) > SAMPLE:
        blocks = np.linspace(0, len(blocks) - 1, SAMPLE).astype(int).tolist()
    counts: dict[int, int] = {}
    for block in blocks:
        row, col = block // across * rows, block % across * cols
        window = Window(col, row, min(cols, sheet.width - col), min(rows, sheet.height - row))
        cells, codes = read_cells(sheet, window)
        for position, count in enumerate(np.bincount(cells.ravel(), minlength=len(codes)).tolist()):
            if count:
                code = int(codes[position])
                counts[code] = counts.get(code, 0) + count
    return counts


if __name__ == "__main__":
    raise SystemExit(main())
