"""The sheets that a product lacks for an area, by the names that its producer gives them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely

from geokr.landcover.extents import Extent, find_grid_zone_extent
from geokr.landcover.products import LandCoverError, Product
from geokr.landcover.sheets import Sheet

SLIVER = 1e-8
"""Parts of an area that are smaller than this, square degrees, need no sheet: about 10 m x 10 m."""
EARTH = shapely.box(-180, -90, 180, 90)


@dataclass(frozen=True, slots=True)
class Gap:
    """A part of an area that no sheet at hand covers."""

    sheet: str
    """Name of the sheet that covers it, or two names with `or` between them; empty if no name can be given."""
    scenes: tuple[str, ...]
    """Names of the outlines in which it lies."""


def find_gaps(
    product: Product, year: int, sheets: Iterable[Sheet], outlines: Mapping[str, shapely.Polygon]
) -> tuple[list[Gap], int]:
    """What a product's sheets of a year leave uncovered of an area, and the number of sheets that cover the area.

    sheets: those at hand. outlines: name -> longitude and latitude in degrees; longitudes may exceed 180. The number
    is 0 if the product has no key `file`; then one gap without a name has all that is uncovered. Sheets are counted in
    the open sea too, where a product may have none. Raises LandCoverError if the product does not have that year.
    """
    names = [*outlines]
    areas = np.array([wrap(outlines[name]) for name in names], dtype=object)
    covered = shapely.union_all([wrap(sheet.outline) for sheet in sheets])
    uncovered = shapely.difference(areas, covered)
    named = [*name_sheets(product, year)]
    if not named:
        lacking = tuple(name for name, area in zip(names, shapely.area(uncovered), strict=True) if area > SLIVER)
        return ([Gap("", lacking)] if lacking else []), 0
    boxes = np.array([shapely.box(*extent) for _, extent in named], dtype=object)
    tree = shapely.STRtree(boxes)
    scene, box = tree.query(areas, predicate="intersects")
    needed = shapely.area(shapely.intersection(areas[scene], boxes[box])) > SLIVER
    missing = shapely.area(shapely.intersection(uncovered[scene], boxes[box])) > SLIVER
    gaps = [
        Gap(named[k][0], tuple(names[n] for n in np.unique(scene[missing & (box == k)])))
        for k in np.unique(box[missing])
    ]
    return gaps, len(np.unique(box[needed]))


def wrap(area: Any) -> Any:
    """The same area with longitudes of -180 to 180, in several parts if it crosses the antimeridian."""
    west, _, east, _ = area.bounds
    if west >= -180 and east <= 180:
        return area
    shifted = [shapely.transform(area, lambda points, x=x: points + np.array([x, 0.0])) for x in (-360.0, 0.0, 360.0)]
    return shapely.union_all(shapely.intersection(shifted, EARTH))


def name_sheets(product: Product, year: int) -> Iterator[tuple[str, Extent]]:
    """Name and extent of each sheet that a product may have on Earth for a year; nothing if names cannot be told.

    Raises LandCoverError if the product does not have that year.
    """
    rules = [rule for rule in product.rules if "file" in rule]
    matching = [rule for rule in rules if year in (known_years(rule) or [year])]
    if rules and not matching:
        years = sorted({year for rule in rules for year in known_years(rule)})
        raise LandCoverError(f"{product.name} has no sheets of {year}, only of {', '.join(map(str, years))}")
    for rule in matching[:1]:
        edition = rule.get("editions", {}).get(str(year), "")
        for parts, extent in list_cells(rule["extent"]):
            names = [rule["file"].format(year=year, next_year=year + 1, edition=edition, **part) for part in parts]
            yield " or ".join(names), extent


def known_years(rule: Mapping[str, Any]) -> list[int]:
    """The years of which a rule has sheets; empty if they are not listed."""
    listed = rule.get("years") or rule.get("editions") or ([rule["year"]] if "year" in rule else [])
    return [int(year) for year in listed]


Parts = dict[str, int | str]
"""Field of a name -> value."""


def list_cells(extent: Any) -> Iterator[tuple[Sequence[Parts], Extent]]:
    """The cells of a grid of sheets, over the whole Earth: the fields of the name, and the extent.

    extent: the key of a `[[sheets]]` rule. A cell has the fields of two names if it is not known which one it has.
    """
    match extent:
        case "grid_zone":
            for zone in range(1, 61):
                for band in "CDEFGHJKLMNPQRSTUVWX":
                    if f"{zone}{band}" not in ("32X", "34X", "36X"):
                        yield [{"zone": zone, "band": band}], find_grid_zone_extent("", zone, band)
        case "globeland30":
            for south in range(-90, 90, 5):
                wide = max(abs(south), abs(south + 5)) > 60
                for zone in range(1, 61, 2 if wide else 1):
                    west = -180.0 + 6.0 * (zone - 1)
                    # In the south it is not known which of its latitudes a sheet is named after.
                    latitudes = [south] if south >= 0 else [-south - 5, -south]
                    hemisphere = "n" if south >= 0 else "s"
                    fields: Parts = {"hemisphere": hemisphere, "zone": zone}
                    yield (
                        [fields | {"latitude": latitude} for latitude in latitudes],
                        (west, float(south), west + (12.0 if wide else 6.0), south + 5.0),
                    )
        case {"degrees": size, "corner": corner}:
            for south in range(-(90 // size) * size, 90 // size * size, size):
                for west in range(-180, 180, size):
                    lat = south + size if corner == "upper left" else south
                    parts: Parts = {
                        "lat": lat, "lon": west, "north": abs(lat), "east": abs(west),
                        "n": "N" if lat >= 0 else "S", "e": "E" if west >= 0 else "W",
                    }  # fmt: skip
                    yield [parts], (float(west), float(south), float(west + size), float(south + size))
