"""Outlines of footprints in another CRS, including curved edges, the antimeridian and the poles."""

from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import shapely

from geokr.crs import is_geographic, parse, transformer

Floats = npt.NDArray[np.float64]

LONLAT = "EPSG:4326"
POLE_MARGIN = 3.0
"""A footprint within this distance of a pole, in its diagonals, gets points that become denser towards the pole."""
POLE_POINTS = 1024
"""Number of points per edge near a pole."""


@lru_cache(maxsize=64)
def same_crs(source: str, target: str) -> bool:
    """Whether two CRSs are the same. Cached, because parsing takes milliseconds."""
    return bool(source == target or parse(source) == parse(target))


def project(points: Floats, source: str, target: str) -> Floats:
    """Project (..., 2) float64 points, x before y, to another CRS.

    From one geographic CRS to another, each longitude is the one nearest to the original longitude.
    """
    if same_crs(source, target):
        return points
    x, y = transformer(source, target).transform(points[..., 0], points[..., 1])
    if is_geographic(source) and is_geographic(target):
        x = x + 360.0 * np.round((points[..., 0] - x) / 360.0)
    return np.stack([x, y], axis=-1)


def project_rings(corners: Floats, source: str, target: str, tolerance: float = 1e-7) -> Floats:
    """Project footprints to another CRS, with points added to the edges to follow their curvature: (n, m, 2).

    corners: (n, corner, 2). tolerance: largest deviation of an edge, as a share of its length. The deviation is
    measured at the projected midpoint of each edge, from the straight line between the projected ends; k parts per
    edge reduce it by k squared. Longitudes do not jump along a footprint: they continue past 180 degrees. Around a
    pole they run through 360 degrees, and the ring is closed over the pole.
    Raises ValueError if a point cannot be projected to the target.
    """
    if len(corners) == 0 or same_crs(source, target):
        return corners
    if is_geographic(target) and not is_geographic(source):
        for latitude in (90.0, -90.0):
            pole = find_pole(corners, source, latitude)
            if pole is not None:
                return project_around_pole(corners, source, target, pole, latitude)
    halved = project_ring(densify(corners, np.arange(2) / 2), source, target)
    starts, midpoints = halved[:, 0::2], halved[:, 1::2]
    ends = np.roll(starts, -1, axis=1)
    deviation = np.linalg.norm(midpoints - (starts + ends) / 2, axis=2)
    length = np.linalg.norm(ends - starts, axis=2)
    k = int(np.clip(np.ceil(np.sqrt((deviation / length).max() / tolerance)), 1, 256))
    return project_ring(densify(corners, np.arange(k) / k), source, target)


def divide(corners: Floats, grid: int) -> Floats:
    """Divide footprints into grid x grid parts, straight in their CRS: (n, grid, grid, corner, 2) from (n, corner, 2).

    A row of parts runs from the first corner to the second, a column to the last; so do the corners of a part.
    """
    t = (np.arange(grid + 1) / grid)[:, None]
    # In this form, coordinates that are equal along an edge stay equal: the parts of an upright tile are upright.
    top, bottom = (corners[:, None, a] + (corners[:, None, b] - corners[:, None, a]) * t for a, b in ((0, 1), (3, 2)))
    nodes = top[:, None] + (bottom - top)[:, None] * t[:, None]  # (n, row, col, 2)
    return np.stack([nodes[:, :-1, :-1], nodes[:, :-1, 1:], nodes[:, 1:, 1:], nodes[:, 1:, :-1]], axis=3)


def divide_rings(rings: Floats, grid: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Divide projected footprints into grid x grid parts whose union is exactly the footprint.

    rings: (n, 4 * k, 2), k points from one corner to the next, as `project_rings` returns them away from the poles.
    Returns points (n, m, 2) and offsets (grid * grid + 1,): part p is points[:, offsets[p]:offsets[p + 1]], row by row.
    Lines between parts are interpolated between opposite edges (Coons 1967). That moves them by less than the outline's
    own tolerance for tiles of some kilometres, and by 1e-5 of a side for a side of 250 km.
    """
    k = rings.shape[1] // 4
    t = np.unique(np.round(np.concatenate([np.arange(k + 1) / k, np.arange(grid + 1) / grid]), 12))
    before = np.minimum((t * k).astype(np.int64), k - 1)
    share = (t * k - before)[:, None]
    closed = np.concatenate([rings, rings[:, :1]], axis=1)
    top, right, bottom, left = (
        closed[:, edge * k + before] * (1 - share) + closed[:, edge * k + before + 1] * share for edge in range(4)
    )
    bottom, left = bottom[:, ::-1], left[:, ::-1]
    ends = np.searchsorted(t, np.round(np.arange(grid + 1) / grid, 12))
    side = len(t)
    perimeters = []
    for r0, r1 in pairwise(ends):
        for c0, c1 in pairwise(ends):
            across, down = np.arange(c0, c1), np.arange(r0, r1)
            perimeters.append(
                np.concatenate(
                    [r0 * side + across, down * side + c1, r1 * side + across[::-1] + 1, (down[::-1] + 1) * side + c0]
                )
            )
    offsets = np.cumsum([0, *(len(perimeter) for perimeter in perimeters)])
    used, place = np.unique(np.concatenate(perimeters), return_inverse=True)  # those on lines between parts
    row, col = used // side, used % side
    u, v = t[None, col, None], t[None, row, None]
    nodes = (1 - v) * top[:, col] + v * bottom[:, col] + (1 - u) * left[:, row] + u * right[:, row]
    corners = [rings[:, corner * k][:, None] for corner in range(4)]
    nodes -= (1 - v) * ((1 - u) * corners[0] + u * corners[1]) + v * ((1 - u) * corners[3] + u * corners[2])
    return nodes[:, place], offsets


def densify(corners: Floats, steps: Floats) -> Floats:
    """Add points to the edges of footprints: (n, corner * k, 2).

    steps: (k,) or (n, corner, k), positions of the points along each edge, as a share of its length; the first is 0.
    """
    share = np.broadcast_to(steps, (*corners.shape[:2], steps.shape[-1]))[..., None]
    points = corners[:, :, None] * (1 - share) + np.roll(corners, -1, axis=1)[:, :, None] * share
    return points.reshape(len(corners), -1, 2)


def project_ring(points: Floats, source: str, target: str) -> Floats:
    """Project rings to another CRS, without jumps in longitude. Raises ValueError if a point cannot be projected."""
    result = project(points, source, target)
    if not np.isfinite(result).all():
        raise ValueError(f"a point cannot be projected to {target}")
    if is_geographic(target) and not is_geographic(source):
        result[..., 0] = np.unwrap(result[..., 0], period=360.0, axis=1)
    return result


def find_pole(corners: Floats, crs: str, latitude: float) -> Floats | None:
    """The pole at a latitude (90 or -90) in a projected CRS, or None if no footprint is near it."""
    x, y = transformer(LONLAT, crs).transform(0.0, latitude)
    if not np.isfinite([x, y]).all():
        return None
    pole = np.array([x, y])
    size = np.ptp(corners, axis=1)
    distance = np.linalg.norm(corners.mean(axis=1) - pole, axis=1)
    return pole if (distance < (POLE_MARGIN + 1) * np.hypot(size[:, 0], size[:, 1])).any() else None


def project_around_pole(corners: Floats, source: str, target: str, pole: Floats, latitude: float) -> Floats:
    """Like `project_rings`, for footprints near a pole: (n, m, 2). pole: its position in the source CRS.

    On an edge that passes a pole at a distance d, most of the change in longitude lies within a few d of the nearest
    point. On an edge through the pole, longitude would change abruptly; such a footprint is moved by 2 mm.
    """
    start = corners - pole
    edge = np.roll(corners, -1, axis=1) - corners
    length = np.linalg.norm(edge, axis=2)
    nearest = -(start * edge).sum(axis=2) / length**2  # as a share of the edge; may lie beyond its ends
    foot = start + edge * np.clip(nearest, 0, 1)[..., None]
    hits_pole = np.linalg.norm(foot, axis=2).min(axis=1) < 1e-3
    if hits_pole.any():
        offset = np.where(hits_pole[:, None, None], 2e-3 * np.array([np.cos(1.0), np.sin(1.0)]), 0.0)
        return project_around_pole(corners + offset, source, target, pole, latitude)
    distance = np.abs(start[..., 0] * edge[..., 1] - start[..., 1] * edge[..., 0]) / length**2
    distance = np.maximum(distance, 1e-3 / length)
    low, high = np.arcsinh(-nearest / distance), np.arcsinh((1 - nearest) / distance)
    asinh_steps = low[..., None] + (high - low)[..., None] * (np.arange(POLE_POINTS) / POLE_POINTS)
    steps = np.clip(nearest[..., None] + distance[..., None] * np.sinh(asinh_steps), 0, 1)
    steps[..., 0] = 0.0
    points = project_ring(densify(corners, steps), source, target)
    turns = np.round((points[:, -1, 0] - points[:, 0, 0]) / 360.0)
    last = points[:, :1] + np.stack([360.0 * turns, np.zeros(len(turns))], axis=-1)[:, None]
    # A ring around the pole is closed over it: to the pole at the last longitude, and back at the first one. For a
    # ring that does not enclose the pole, the added points repeat its start.
    pole_latitude = np.where(turns[:, None] != 0, latitude, last[..., 1])
    pole_end = np.stack([last[..., 0], pole_latitude], axis=-1)
    pole_start = np.stack([points[:, :1, 0], pole_latitude], axis=-1)
    return np.concatenate([points, last, pole_end, pole_start], axis=1)


def compute_bounds(points: Floats) -> Floats:
    """Minimum x, minimum y, maximum x and maximum y of each ring: (n, 4) from (n, m, 2)."""
    return np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)


def to_equal_area(polygons: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """Project polygons from degrees to longitude (radians) and sine of latitude: areas equal those on a unit sphere."""

    def to_plane(points: Floats) -> Floats:
        return np.column_stack([np.deg2rad(points[:, 0]), np.sin(np.deg2rad(points[:, 1]))])

    return np.asarray(shapely.transform(polygons, to_plane))
