"""Outlines of footprints in another CRS: how they bend there, go on past 180 degrees, or hold a pole."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import shapely
from pyproj import CRS

from geokr.crs import is_geographic, transformer

Floats = npt.NDArray[np.float64]

LONLAT = "EPSG:4326"
POLE_MARGIN = 3.0
"""Footprints nearer to a pole than this, in their diagonals, are followed with points that crowd towards it."""
POLE_POINTS = 1024
"""Points of an edge near a pole."""


@lru_cache(maxsize=64)
def same_crs(source: str, target: str) -> bool:
    """Whether two CRSs are one. Parsing them costs milliseconds."""
    return bool(source == target or CRS(source) == CRS(target))


def project(points: Floats, source: str, target: str) -> Floats:
    """(..., 2) float64 points from one CRS to another, x before y. Longitudes are those nearest to the old ones."""
    if same_crs(source, target):
        return points
    x, y = transformer(source, target).transform(points[..., 0], points[..., 1])
    if is_geographic(source) and is_geographic(target):
        x = x + 360.0 * np.round((points[..., 0] - x) / 360.0)
    return np.stack([x, y], axis=-1)


def project_rings(corners: Floats, source: str, target: str, tolerance: float = 1e-7) -> Floats:
    """Footprints in another CRS, with points added to their edges until these bend as they must: (n, m, 2).

    corners: (n, corner, 2). An edge's middle misses the straight line between its projected ends by some share
    of the edge's length; k parts lower that by k squared, to the tolerance. Longitudes do not jump along a
    footprint: they go on past 180 degrees; round a pole they go on by 360, and the ring is closed over the pole.
    Raises ValueError where a point has no place in the target.
    """
    if len(corners) == 0 or same_crs(source, target):
        return corners
    if is_geographic(target) and not is_geographic(source):
        for latitude in (90.0, -90.0):
            pole = find_pole(corners, source, latitude)
            if pole is not None:
                return ring_around_pole(corners, source, target, pole, latitude)
    halved = project_ring(densify(corners, np.arange(2) / 2), source, target)
    ends, middles = halved[:, 0::2], halved[:, 1::2]
    following = np.roll(ends, -1, axis=1)
    miss = np.linalg.norm(middles - (ends + following) / 2, axis=2)
    length = np.linalg.norm(following - ends, axis=2)
    k = int(np.clip(np.ceil(np.sqrt((miss / length).max() / tolerance)), 1, 256))
    return project_ring(densify(corners, np.arange(k) / k), source, target)


def densify(corners: Floats, steps: Floats) -> Floats:
    """Footprints with points on their edges: (n, corner * k, 2).

    steps: (k,), or (n, corner, k), shares of each edge from its beginning on, the first of them 0.
    """
    share = np.broadcast_to(steps, (*corners.shape[:2], steps.shape[-1]))[..., None]
    points = corners[:, :, None] * (1 - share) + np.roll(corners, -1, axis=1)[:, :, None] * share
    return points.reshape(len(corners), -1, 2)


def project_ring(points: Floats, source: str, target: str) -> Floats:
    """Rings in another CRS, without jumps of longitude. Raises ValueError where a point has no place there."""
    result = project(points, source, target)
    if not np.isfinite(result).all():
        raise ValueError(f"a point has no place in {target}")
    if is_geographic(target) and not is_geographic(source):
        result[..., 0] = np.unwrap(result[..., 0], period=360.0, axis=1)
    return result


def find_pole(corners: Floats, crs: str, latitude: float) -> Floats | None:
    """Where the pole of a latitude (90 or -90) lies in a projected CRS, if any of the footprints is near to it."""
    x, y = transformer(LONLAT, crs).transform(0.0, latitude)
    if not np.isfinite([x, y]).all():
        return None
    pole = np.array([x, y])
    size = np.ptp(corners, axis=1)
    away = np.linalg.norm(corners.mean(axis=1) - pole, axis=1)
    return pole if (away < (POLE_MARGIN + 1) * np.hypot(size[:, 0], size[:, 1])).any() else None


def ring_around_pole(corners: Floats, source: str, target: str, pole: Floats, latitude: float) -> Floats:
    """As `project_rings`, for footprints near a pole: (n, m, 2). pole: its place in the source.

    On an edge that passes a pole at a distance d, longitude turns within some d of the nearest point. An edge
    through the pole would turn at once; such a footprint is moved by 2 mm.
    """
    start = corners - pole
    edge = np.roll(corners, -1, axis=1) - corners
    length = np.linalg.norm(edge, axis=2)
    nearest = -(start * edge).sum(axis=2) / length**2  # share of the edge, possibly beyond its ends
    foot = start + edge * np.clip(nearest, 0, 1)[..., None]
    through = np.linalg.norm(foot, axis=2).min(axis=1) < 1e-3
    if through.any():
        aside = np.where(through[:, None, None], 2e-3 * np.array([np.cos(1.0), np.sin(1.0)]), 0.0)
        return ring_around_pole(corners + aside, source, target, pole, latitude)
    distance = np.abs(start[..., 0] * edge[..., 1] - start[..., 1] * edge[..., 0]) / length**2
    distance = np.maximum(distance, 1e-3 / length)
    low, high = np.arcsinh(-nearest / distance), np.arcsinh((1 - nearest) / distance)
    between = low[..., None] + (high - low)[..., None] * (np.arange(POLE_POINTS) / POLE_POINTS)
    steps = np.clip(nearest[..., None] + distance[..., None] * np.sinh(between), 0, 1)
    steps[..., 0] = 0.0
    points = project_ring(densify(corners, steps), source, target)
    turns = np.round((points[:, -1, 0] - points[:, 0, 0]) / 360.0)
    last = points[:, :1] + np.stack([360.0 * turns, np.zeros(len(turns))], axis=-1)[:, None]
    # Up to the pole at the end of the turn, and down from it at the beginning; nothing where there is no turn.
    over = np.where(turns[:, None] != 0, latitude, last[..., 1])
    up = np.stack([last[..., 0], over], axis=-1)
    down = np.stack([points[:, :1, 0], over], axis=-1)
    return np.concatenate([points, last, up, down], axis=1)


def ring_bounds(points: Floats) -> Floats:
    """Left, lower, right and upper bound of each ring: (n, 4) from (n, m, 2)."""
    return np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)


def to_equal_area(polygons: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """Polygons in longitude and latitude, in the plane of longitude and the sine of latitude: a sphere's areas."""

    def flat(points: Floats) -> Floats:
        return np.column_stack([np.deg2rad(points[:, 0]), np.sin(np.deg2rad(points[:, 1]))])

    return np.asarray(shapely.transform(polygons, flat))
