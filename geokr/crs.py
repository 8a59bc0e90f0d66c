"""Coordinate reference systems, and transformations between them."""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import shapely
import shapely.affinity
from pyproj import CRS, Transformer


@lru_cache(maxsize=512)
def transformer(source: str, target: str) -> Transformer:
    """A coordinate transformer, x before y on both sides. It is cached, because building one takes milliseconds."""
    return Transformer.from_crs(source, target, always_xy=True)


@lru_cache(maxsize=64)
def parse(crs: str) -> CRS:
    """A CRS from a code or WKT. It is cached, because parsing takes up to a millisecond."""
    return CRS.from_user_input(crs)


@lru_cache(maxsize=64)
def is_geographic(crs: str) -> bool:
    """Whether coordinates are longitude and latitude in degrees."""
    return bool(parse(crs).is_geographic)


CYLINDRICAL = ("Mercator", "Cylindrical", "Plate", "Miller", "Gall")
"""Words in the names of projection methods whose x is proportional to longitude."""


@lru_cache(maxsize=64)
def longitude_period(crs: str) -> float:
    """The length of 360 degrees of longitude along x, in units of the CRS; 0 if x is not proportional to longitude.

    Degrees and cylindrical projections have one. Their rasters may continue past 180 degrees in either direction.
    """
    parsed = parse(crs)
    if parsed.is_geographic:
        return round(2 * math.pi / parsed.axis_info[0].unit_conversion_factor, 6)
    operation = parsed.coordinate_operation
    method = "" if operation is None else operation.method_name
    if not any(word in method for word in CYLINDRICAL) or "Transverse" in method or "Oblique" in method:
        return 0.0
    # Both longitudes lie inside the map, wherever its central meridian is.
    x, _ = transformer("EPSG:4326", crs).transform([0.0, 1.0], [0.0, 0.0])
    period = 360.0 * (x[1] - x[0])
    return float(period) if 0 < period < math.inf else 0.0


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


def footprint_polygons(corners: npt.NDArray[np.float64]) -> npt.NDArray[np.object_]:
    """(n,) polygons from (n, 4, 2) corners. One that crosses the antimeridian is cut in two there (RFC 7946, 3.1.9)."""
    lon, lat = np.unwrap(corners[..., 0], period=360.0, axis=1), corners[..., 1]
    polygons = np.asarray(shapely.polygons(np.stack([lon, lat], axis=-1)))
    for i in np.flatnonzero((lon.min(axis=1) < -180.0) | (lon.max(axis=1) > 180.0)):
        polygons[i] = cut_at_antimeridian(polygons[i])
    return polygons
