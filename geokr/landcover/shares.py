"""Class shares of footprints, from exact areas of intersection with the cells of a land-cover product."""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import shapely
from rasterio.windows import Window

from geokr.crs import is_geographic
from geokr.landcover.coverage import sum_code_areas
from geokr.landcover.legend import Legend
from geokr.landcover.outlines import (
    LONLAT,
    Floats,
    compute_bounds,
    divide,
    divide_rings,
    project,
    project_rings,
    same_crs,
    to_equal_area,
)
from geokr.landcover.products import LandCoverError
from geokr.landcover.sheets import LandCover, Sheet, read_cells

LARGEST_WINDOW = 2**26
"""Largest number of cells to read at once; a single footprint may need more."""

ROUNDING = 1e-9
"""Shares up to this may result from rounding alone, and do not count as an occurrence of a code."""


@dataclass(frozen=True, slots=True)
class Shares:
    """Class shares of footprints in one product."""

    fraction: Floats
    """(n, class) float64: area share of each class within the known part; sums to 1, or all 0 where known is 0."""
    known: Floats
    """(n,) float64: share of the footprint's area that a class of the legend covers."""
    parts: Floats
    """(n, grid, grid, class) float64: area of each class in each part, relative to the mean area of the footprint's
    parts, which differ by up to 1e-4 in the map's plane. So the sum over the classes is the known share of the part,
    and the mean over the parts is `known` times `fraction`, exactly."""
    unlisted: frozenset[int]
    """Codes in the footprints that the legend does not list; their area counts as unknown."""


@dataclass(frozen=True, slots=True)
class Rings:
    """Footprints in the CRS of a sheet, as rings of points."""

    points: Floats
    """(m, 2) float64."""
    offsets: npt.NDArray[np.int64]
    """(ring + 1,): ring k is points[offsets[k]:offsets[k + 1]]."""
    owners: npt.NDArray[np.int64]
    """(ring,): the footprint that each ring belongs to, in ascending order."""

    def select(self, first: int, last: int) -> "Rings":
        """The rings of the footprints first..last - 1, with owners counted from `first`."""
        a, b = np.searchsorted(self.owners, [first, last])
        begin, end = self.offsets[a], self.offsets[b]
        return Rings(self.points[begin:end], self.offsets[a : b + 1] - begin, self.owners[a:b] - first)


def select_sheets(corners: Floats, crs: str, cover: LandCover) -> LandCover:
    """A copy of a product with the sheets that may touch a footprint. corners, crs: see `compute_class_shares`."""
    boxes = compute_bounding_boxes(corners, crs)
    outlines = np.array([sheet.outline for sheet in cover.sheets], dtype=object)[:, None]
    touched = np.zeros(len(cover.sheets), bool)
    for lon_shift in (-360.0, 0.0, 360.0):
        touched |= shapely.intersects(outlines, shift_boxes(boxes, lon_shift)).any(axis=1)
    return replace(cover, sheets=tuple(cover.sheets[k] for k in np.flatnonzero(touched)))


def compute_class_shares(corners: Floats, crs: str, cover: LandCover, grid: int = 1) -> Shares:
    """Class shares of quadrilateral footprints and of their grid x grid parts, as areas of intersection.

    corners: (n, 4, 2) float64 in `crs`, in order around the footprint; its edges are straight in that CRS, and it is
    divided as in `divide`. The areas of a footprint are the sums over its parts. A sheet
    counts only within its nominal extent. Areas within a sheet are measured in the plane of its CRS; for a geographic
    CRS, as the covered share of each cell in that plane times the cell's area on the sphere. If a footprint lies in
    several nominal extents, its parts are weighted by their areas on the sphere.
    Raises LandCoverError that names a sheet that cannot be read, or a product with several sheets at one location.
    """
    n, classes = len(corners), len(cover.legend.classes)
    parts = np.zeros((n, grid * grid, classes))
    unlisted: frozenset[int] = frozenset()
    boxes = compute_bounding_boxes(corners, crs)
    for lon_shift in (-360.0, 0.0, 360.0):  # near the antimeridian, sheet and footprint may differ by 360 degrees
        shifted_boxes = shift_boxes(boxes, lon_shift)
        for sheet in cover.sheets:
            candidates = np.flatnonzero(shapely.intersects(shifted_boxes, sheet.outline))
            if len(candidates) == 0:
                continue
            crosses_extent = np.zeros(len(candidates), bool)
            if sheet.extent is not None:
                crosses_extent = ~shapely.contains_properly(shapely.box(*sheet.extent), shifted_boxes[candidates])
            inside, crossing = candidates[~crosses_extent], candidates[crosses_extent]
            if len(inside):
                rings = project_to_sheet(corners[inside], crs, sheet, lon_shift, grid)
                areas, total, codes = compute_sheet_areas(rings, len(inside) * grid**2, sheet, cover.legend)
                mean_part = total.reshape(-1, grid**2).mean(axis=1)[:, None, None]
                areas = areas.reshape(-1, grid**2, classes)
                parts[inside] += np.divide(areas, mean_part, out=np.zeros_like(areas), where=mean_part > 0)
                unlisted |= codes
            if len(crossing):
                corners_of_parts = divide(corners[crossing], grid).reshape(-1, 4, 2)
                rings, weight = clip_to_extent(
                    project_rings(corners_of_parts, crs, LONLAT) + np.array([lon_shift, 0.0]), sheet, grid
                )
                areas, total, codes = compute_sheet_areas(rings, len(weight), sheet, cover.legend)
                areas *= np.divide(weight, total, out=np.zeros_like(total), where=total > 0)[:, None]
                parts[crossing] += areas.reshape(-1, grid**2, classes)
                unlisted |= codes
    areas = parts.mean(axis=1)
    nothing = areas.sum(axis=1) <= ROUNDING
    parts[nothing], areas[nothing] = 0.0, 0.0
    known = areas.sum(axis=1)
    if (known > 1.001).any():
        k = int(np.argmax(known))
        x, y = project(corners[k].mean(axis=0), crs, LONLAT)
        raise LandCoverError(f"{cover.name}: several of its sheets cover longitude {x:.4f}, latitude {y:.4f}")
    fraction = np.divide(areas, known[:, None], out=np.zeros_like(areas), where=known[:, None] > 0)
    return Shares(fraction, np.minimum(known, 1.0), parts.reshape(n, grid, grid, classes), unlisted)


def compute_bounding_boxes(corners: Floats, crs: str) -> Floats:
    """West, south, east and north bounds of footprints, with a margin: (n, 4), degrees."""
    bounds = compute_bounds(project_rings(corners, crs, LONLAT, 1e-3)) if len(corners) else np.zeros((0, 4))
    margin = 0.01 * np.maximum(bounds[:, 2] - bounds[:, 0], bounds[:, 3] - bounds[:, 1])[:, None]
    return np.asarray(bounds + margin * np.array([-1, -1, 1, 1]))


def shift_boxes(boxes: Floats, lon_shift: float) -> npt.NDArray[np.object_]:
    """Polygons of bounding boxes that are shifted in longitude, degrees."""
    west, south, east, north = boxes.T
    return np.asarray(shapely.box(west + lon_shift, south, east + lon_shift, north))


def project_to_sheet(corners: Floats, crs: str, sheet: Sheet, lon_shift: float, grid: int) -> Rings:
    """Project the grid x grid parts of footprints to a sheet's CRS: a ring each, in the order of the footprints.

    lon_shift: degrees to add to the longitudes if that CRS is geographic.
    """
    outlines = project_rings(corners, crs, sheet.crs)
    if grid == 1:
        points, ends = outlines, np.array([0, outlines.shape[1]])
    elif same_crs(crs, sheet.crs) or outlines.shape[1] % 4:  # or closed over a pole
        points = project_rings(divide(corners, grid).reshape(-1, 4, 2), crs, sheet.crs)
        ends = np.array([0, points.shape[1]])
    else:
        points, ends = divide_rings(outlines, grid)
    n, m = points.shape[:2]
    offsets = np.append((np.arange(n)[:, None] * m + ends[:-1]).ravel(), n * m)
    points = points.reshape(-1, 2)
    if lon_shift and is_geographic(sheet.crs):
        points = points + np.array([lon_shift, 0.0])
    return Rings(points, offsets, np.arange(len(offsets) - 1))


def clip_to_extent(outlines: Floats, sheet: Sheet, grid: int) -> tuple[Rings, Floats]:
    """Clip the grid x grid parts of footprints to a sheet's nominal extent, and project them to the sheet's CRS.

    outlines: (n, m, 2) longitude and latitude of the parts, footprint by footprint. Also returns each part's area in
    the extent, relative to the mean part of its footprint, (n,).
    """
    assert sheet.extent is not None
    full = np.asarray(shapely.polygons(outlines))
    step = np.sqrt(shapely.area(full)) / 64
    full = shapely.segmentize(full, step)
    # Segmentized again: the edges that the extent adds, such as parallels, are curved in the sheet's CRS as well.
    clipped = shapely.segmentize(shapely.intersection(full, shapely.box(*sheet.extent)), step)
    full_area = shapely.area(to_equal_area(full)).reshape(-1, grid**2)
    weight = (
        shapely.area(to_equal_area(clipped)).reshape(full_area.shape) / full_area.mean(axis=1, keepdims=True)
    ).ravel()
    parts, owners = shapely.get_parts(clipped, return_index=True)
    has_area = shapely.area(parts) > 0  # a footprint that only touches the extent gives points, lines or nothing
    exteriors = shapely.get_exterior_ring(parts[has_area])
    points, ring = shapely.get_coordinates(exteriors, return_index=True)
    offsets = np.searchsorted(ring, np.arange(len(exteriors) + 1))
    return Rings(project(points, LONLAT, sheet.crs), offsets, owners[has_area]), weight


def compute_sheet_areas(
    rings: Rings, footprints: int, sheet: Sheet, legend: Legend
) -> tuple[Floats, Floats, frozenset[int]]:
    """Area of each class in footprints, (footprint, class), their whole area, (footprint,), and the unlisted codes.

    Areas are in cells; in a geographic CRS, in cells at the equator. Raises LandCoverError that names the sheet if it
    cannot be read.
    """
    if len(rings.owners) == 0:
        return np.zeros((footprints, len(legend.classes))), np.zeros(footprints), frozenset()
    a, _, left, _, e, top = sheet.transform
    points = np.empty_like(rings.points)
    for k, (origin, step) in enumerate(((left, a), (top, e))):  # numpy is 30 times slower along an axis of length 2
        np.divide(rings.points[:, k] - origin, step, out=points[:, k])
    c0, r0 = (math.floor(points[:, k].min()) for k in (0, 1))
    c1, r1 = (math.floor(points[:, k].max()) + 1 for k in (0, 1))
    if (c1 - c0) * (r1 - r0) > LARGEST_WINDOW and footprints > 1:
        half = footprints // 2
        areas1, total1, unlisted1 = compute_sheet_areas(rings.select(0, half), half, sheet, legend)
        areas2, total2, unlisted2 = compute_sheet_areas(
            rings.select(half, footprints), footprints - half, sheet, legend
        )
        return np.concatenate([areas1, areas2]), np.concatenate([total1, total2]), unlisted1 | unlisted2
    col, row = (np.clip(np.array(ends), 0, size) for ends, size in (((c0, c1), sheet.width), ((r0, r1), sheet.height)))
    cells, codes = read_cells(sheet, Window(col[0], row[0], col[1] - col[0], row[1] - row[0]))
    weights = np.ones(r1 - r0)
    if is_geographic(sheet.crs):  # the area of a cell is proportional to the cosine of the latitude of its centre
        latitude = top + e * (np.arange(r0, r1) + 0.5)
        weights = np.cos(np.deg2rad(np.clip(latitude, -90.0, 90.0)))
    points[:, 0] -= c0
    points[:, 1] -= r0
    areas, found = sum_code_areas(
        points,
        rings.offsets,
        rings.owners,
        footprints,
        cells,
        col[0] - c0,
        row[0] - r0,
        c1 - c0,
        weights,
    )
    found = np.sort(found)
    by_code = areas.T[found]  # (code, footprint)
    total = by_code.sum(axis=0)
    present = (found < len(codes)) & (by_code > ROUNDING * total).any(axis=1)
    present_codes = codes[found[present]]
    class_areas = np.ascontiguousarray((legend.shares(present_codes).T @ by_code[present]).T)
    return class_areas, total, legend.unlisted(present_codes) - {sheet.nodata}
