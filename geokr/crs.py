"""Coordinate systems, and the way from one to another."""

from functools import lru_cache

from pyproj import CRS, Transformer


@lru_cache(maxsize=64)
def transformer(source: str, target: str) -> Transformer:
    """A cached coordinate transformer, x before y on both sides. Building one costs milliseconds."""
    return Transformer.from_crs(source, target, always_xy=True)


@lru_cache(maxsize=64)
def is_geographic(crs: str) -> bool:
    """Whether coordinates are longitude and latitude in degrees."""
    return bool(CRS(crs).is_geographic)
