"""The nominal extent of a sheet, from its file name and its product's rule."""

from typing import Any

import numpy as np
import shapely

from geokr.landcover.products import LandCoverError

Extent = tuple[float, float, float, float]
"""West, south, east and north, degrees. East may exceed 180."""


def find_nominal_extent(path: str, rule: Any, parts: dict[str, str], region: shapely.Polygon) -> Extent | None:
    """The extent in which a sheet counts; None if all of its cells count.

    rule: the key `extent` of the product's `[[sheets]]`. parts: named groups of the file name. region: outline of the
    pixels, degrees. Raises LandCoverError if the pixels lie elsewhere than the name says.
    """
    match rule:
        case "bounds":
            return None
        case [west, south, east, north]:
            return west, south, east, north
        case "globeland30":
            extent = find_globeland30_extent(path, region, parts)
        case "grid_zone":
            extent = find_grid_zone_extent(path, int(parts["zone"]), parts["band"].upper())
        case _:
            west, corner = parse_degrees(parts["longitude"]), parse_degrees(parts["latitude"])
            south = corner - (rule["degrees"] if rule["corner"] == "upper left" else 0)
            extent = west, south, west + rule["degrees"], south + rule["degrees"]
    west, south, east, north = extent
    centre = region.centroid
    x = centre.x + 360.0 * round(((west + east) / 2 - centre.x) / 360.0)
    if not (west - 1 <= x <= east + 1 and south - 1 <= centre.y <= north + 1):
        raise LandCoverError(
            f"{path}: its pixels lie around longitude {centre.x:.1f}, latitude {centre.y:.1f}, "
            "which does not match the file name"
        )
    return extent


def parse_degrees(text: str) -> float:
    """Degrees of a coordinate such as `N24`, `W125` or `-2`; north and east are positive."""
    number = float(text.lstrip("NSEWnsew"))
    return -number if text[0] in "SWsw" else number


def find_globeland30_extent(path: str, region: shapely.Polygon, parts: dict[str, str]) -> Extent:
    """The nominal extent of a GlobeLand30 sheet: 5 degrees of latitude by 6 of longitude (12 poleward of 60).

    The name gives the UTM zone and a latitude. That latitude is the band's edge nearer to the equator or the one
    farther from it, so the band is taken from the centre of the pixels. Raises LandCoverError if the two disagree.
    """
    south = float(np.floor(region.centroid.y / 5.0) * 5.0)
    north = south + 5.0
    hemisphere = "n" if south >= 0 else "s"
    if parts["hemisphere"].lower() != hemisphere or float(parts["latitude"]) not in (abs(south), abs(north)):
        raise LandCoverError(
            f"{path}: its pixels lie between latitudes {south:g} and {north:g}, which does not match the file name"
        )
    west = -180.0 + 6.0 * (int(parts["zone"]) - 1)
    return west, south, west + (6.0 if max(abs(south), abs(north)) <= 60.0 else 12.0), north


def find_grid_zone_extent(path: str, zone: int, band: str) -> Extent:
    """The extent of an MGRS grid zone: 6 degrees by 8 (12 in band X), with the exceptions around Norway and Svalbard.

    Source: DMA TM 8358.1, chapter 3. Raises LandCoverError if there is no such zone.
    """
    row = "CDEFGHJKLMNPQRSTUVWX".find(band)
    if row < 0 or not 1 <= zone <= 60:
        raise LandCoverError(f"{path}: MGRS has no grid zone {zone}{band}")
    west = -180.0 + 6.0 * (zone - 1)
    exceptions = {"31V": (0, 3), "32V": (3, 12), "31X": (0, 9), "33X": (9, 21), "35X": (21, 33), "37X": (33, 42)}
    west, east = exceptions.get(f"{zone}{band}", (west, west + 6.0))
    return west, -80.0 + 8.0 * row, east, 84.0 if band == "X" else -72.0 + 8.0 * row
