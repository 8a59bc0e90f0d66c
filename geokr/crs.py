"""Coordinate systems, and the way from one to another."""

from functools import lru_cache

import shapely
import shapely.affinity
from pyproj import CRS, Transformer


@lru_cache(maxsize=64)
def transformer(source: str, target: str) -> Transformer:
    """A cached coordinate transformer, x before y on both sides. Building one costs milliseconds."""
    return Transformer.from_crs(source, target, always_xy=True)


@lru_cache(maxsize=64)
def is_geographic(crs: str) -> bool:
    """Whether coordinates are longitude and latitude in degrees."""
    return bool(CRS(crs).is_geographic)


def cut_at_antimeridian(polygon: shapely.Polygon) -> shapely.Polygon | shapely.MultiPolygon:
    """A polygon in longitude and latitude, cut where it crosses 180 degrees (RFC 7946, 3.1.9).

    Longitudes of the polygon go on past 180 degrees either way; those of the result lie within. One that does not
    cross comes back as it is.
    """
    west, _, east, _ = polygon.bounds
    if west >= -180.0 and east <= 180.0:
        return polygon
    world = shapely.box(-180.0, -90.0, 180.0, 90.0)
    turns = [shapely.affinity.translate(polygon, turn) for turn in (-360.0, 0.0, 360.0)]
    parts = [shapely.intersection(turn, world) for turn in turns]
    return shapely.MultiPolygon([part for part in parts if isinstance(part, shapely.Polygon) and part.area > 0])
