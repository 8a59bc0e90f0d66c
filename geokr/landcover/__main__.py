"""What is known of land-cover products, and what a directory or bucket of sheets holds.

python -m geokr.landcover list
python -m geokr.landcover describe worldcover
python -m geokr.landcover check DIR...  (or s3://bucket/prefix)
"""

import argparse
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from pyproj import CRS
from rasterio.errors import RasterioIOError
from rasterio.windows import Window

from geokr.landcover.discovery import take_inventory
from geokr.landcover.legend import BASE, IGNORE, OWN, read_legend, read_taxonomy, read_toml
from geokr.landcover.products import LandCoverError, Product, load_products
from geokr.landcover.sheets import LandCover, Sheet, read_cells
from geokr.storage import rasters

SAMPLE = 16
"""Blocks of a sheet that are looked into, unless all are asked for: the first, the last, and some between."""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m geokr.landcover", description="Land-cover products.")
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--legend", nargs="+", default=[], metavar="FILE", help="descriptions of your own products")
    common.add_argument("--taxonomy", default=BASE, metavar="NAME", help=f"classes: {BASE}, paper, {OWN} or a file")
    commands.add_parser("list", parents=[common], help="the products that are known")
    describe = commands.add_parser("describe", parents=[common], help="one product: codes, and what becomes of them")
    describe.add_argument("product", metavar="PRODUCT")
    check = commands.add_parser(
        "check",
        parents=[common],
        help="what is in a directory: products, years, sheets, CRSs, codes",
        epilog="Exit status: 0 all is well; 1 a sheet cannot be used, or holds a code that its legend lacks; "
        "2 a path or description is at fault.",
    )
    check.add_argument("directories", nargs="+", metavar="DIR", help="directories, files, or URLs of such")
    check.add_argument("--all", action="store_true", help=f"read every cell, not {SAMPLE} blocks of each sheet")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    options = make_parser().parse_args(argv)
    try:
        known = load_products(options.legend)
        match options.command:
            case "list":
                print("\n".join(list_products(known)))
                return 0
            case "describe":
                print("\n".join(describe_product(known, options.product, options.taxonomy)))
                return 0
        good = True
        for line, fine in check_places(options.directories, known, options.taxonomy, options.all):
            print(line, flush=True)
            good &= fine
        return 0 if good else 1
    except (LandCoverError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def list_products(known: Sequence[Product]) -> list[str]:
    """A line for each product."""
    lines = []
    for product in known:
        content = read_toml(product.path)
        lines.append(f"{product.name:<14} {content['title']}; {content.get('years', 'years by their names')}")
    return lines


def describe_product(known: Sequence[Product], name: str, taxonomy: str) -> list[str]:
    """All that is known of a product. Raises LandCoverError where there is none of that name."""
    product = next((product for product in known if product.name == name), None)
    if product is None:
        raise LandCoverError(f"{name}: no such product; there are {', '.join(product.name for product in known)}")
    content = read_toml(product.path)
    legend = read_legend(product.path, None if taxonomy == OWN else read_taxonomy(taxonomy))
    lines = [f"{name}: {content['title']}"]
    lines += [f"  {key:<9} {content[key]}" for key in ("citation", "licence", "years", "zero", "sea") if key in content]
    for rule in product.rules:
        lines.append(f"  sheets    {rule['name']}")
        lines.append(f"            count within {rule['extent']}" + (f", CRS {rule['crs']}" if "crs" in rule else ""))
    lines.append(f"  codes, in the classes of {legend.taxonomy}:")
    for row in sorted(content["codes"], key=lambda row: int(row["code"])):
        parts = dict(zip(legend.classes, legend.codes.get(row["code"], ()), strict=False))
        shares = [f"{share:g} {target}" if share < 1 else target for target, share in parts.items() if share]
        note = f"   ({row['note']})" if "note" in row else ""
        lines.append(f"  {row['code']:>5} {row['name']:<50} {' + '.join(shares) or IGNORE}{note}")
    return lines


def check_places(
    places: Sequence[str], known: Sequence[Product], taxonomy: str, everything: bool
) -> Iterator[tuple[str, bool]]:
    """Lines on what directories hold, each with whether it is well so."""
    survey = take_inventory(places, known, taxonomy)
    for cover in survey.covers:
        west, south, east, north = np.array([sheet.outline.bounds for sheet in cover.sheets]).T
        yield (
            (
                f"{cover.name}: {len(cover.sheets)} sheets, longitude {west.min():.2f} to {east.max():.2f}, "
                f"latitude {south.min():.2f} to {north.max():.2f}, in {', '.join(crs_names(cover))}, "
                f"classes of {cover.legend.taxonomy}"
            ),
            True,
        )
        yield from check_codes(cover, everything)
    for fault in survey.faults:
        yield f"cannot be used: {fault}", False
    for path in survey.unplaced:
        yield f"not placed: {path}: no product names its sheets so; describe it in a file for --legend", True
    if not survey.covers and not survey.faults:
        yield f"{', '.join(places)}: no land-cover sheet is recognised here", False


def crs_names(cover: LandCover) -> list[str]:
    """Short names of the CRSs of a product's sheets."""
    found = {sheet.crs: CRS(sheet.crs) for sheet in cover.sheets}
    return sorted({f"{crs.name}" + (f" (EPSG:{code})" if (code := crs.to_epsg()) else "") for crs in found.values()})


def check_codes(cover: LandCover, everything: bool) -> Iterator[tuple[str, bool]]:
    """What codes a product's cells hold, and which of them its legend lacks."""
    counts: dict[int, int] = {}
    strange: dict[int, str] = {}
    for sheet in cover.sheets:
        try:
            for code, count in count_cells(sheet, everything).items():
                counts[code] = counts.get(code, 0) + count
                if code != sheet.nodata and cover.legend.unlisted([code]):
                    strange.setdefault(code, sheet.path)
        except (LandCoverError, RasterioIOError) as error:
            yield f"  cannot be used: {error}", False
    total = sum(counts.values())
    shares = ", ".join(f"{code} {100 * count / total:.3g} %" for code, count in sorted(counts.items()))
    yield f"  codes in {total} cells{'' if everything else ', of some blocks of each sheet'}: {shares}", True
    for code, path in sorted(strange.items()):
        yield f"  code {code} is not in the legend, first met in {path}; its area counts as unknown", False


def count_cells(sheet: Sheet, everything: bool) -> dict[int, int]:
    """Code -> cells of it, in all blocks of a sheet or in some. Raises LandCoverError where one cannot be read."""
    with rasters.open_raster(sheet.source) as raster:
        rows, cols = raster.block_shapes[sheet.band - 1]
    across, down = -(-sheet.width // cols), -(-sheet.height // rows)
    chosen = range(across * down)
    if not everything and len(chosen) > SAMPLE:
        chosen = np.linspace(0, len(chosen) - 1, SAMPLE).astype(int).tolist()
    counts: dict[int, int] = {}
    for block in chosen:
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
