"""Coordinate reference systems, and transformations between them."""

from functools import lru_cache

import shapely
import shapely.affinity
from pyproj import CRS, Transformer


@lru_cache(maxsize=64)
def transformer(source: str, target: str) -> Transformer:
    """A coordinate transformer, x before y on both sides. It is cached, because building one takes milliseconds."""
    return Transformer.from_crs(source, target, always_xy=True)


@lru_cache(maxsize=64)
def is_geographic(crs: str) -> bool:
    """Whether coordinates are longitude and latitude in degrees."""
    return bool(CRS(crs).is_geographic)


def cut_at_antimeridian(polygon: shapely.Polygon) -> shapely.Polygon | shapely.MultiPolygon:
    """Cut a polygon in longitude and latitude where it crosses 180 degrees (RFC 7946, 3.1.9).

    Longitudes of the input continue past 180 degrees in either direction; those of the result are within [-180, 180].
    A polygon that does not cross is returned unchanged.
    """
    west, _, east, _ = polygon.bounds
    if west >= -180.0 and east <= 180.0:
        return polygon
    world = shapely.box(-180.0, -90.0, 180.0, 90.0)
    copies = [shapely.affinity.translate(polygon, lon_shift) for lon_shift in (-360.0, 0.0, 360.0)]
    parts = [shapely.intersection(copy, world) for copy in copies]
    return shapely.MultiPolygon([part for part in parts if isinstance(part, shapely.Polygon) and part.area > 0])
