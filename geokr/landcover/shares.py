"""Class shares of footprints, from exact areas of intersection with the cells of a land-cover product."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import shapely
from rasterio.windows import Window

from geokr.crs import is_geographic
from geokr.landcover.coverage import sum_code_areas
from geokr.landcover.legend import Legend
from geokr.landcover.outlines import LONLAT, Floats, compute_bounds, project, project_rings, to_equal_area
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


def compute_class_shares(corners: Floats, crs: str, cover: LandCover) -> Shares:
    """Class shares of quadrilateral footprints, as areas of intersection.

    corners: (n, 4, 2) float64 in `crs`, in order around the footprint; its edges are straight in that CRS. A sheet
    counts only within its nominal extent. Areas within a sheet are measured in the plane of its CRS; for a geographic
    CRS, as the covered share of each cell in that plane times the cell's area on the sphere. If a footprint lies in
    several nominal extents, its parts are weighted by their areas on the sphere.
    Raises LandCoverError that names a sheet that cannot be read, or a product with several sheets at one location.
    """
    areas = np.zeros((len(corners), len(cover.legend.classes)))
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
                rings = project_to_sheet(corners[inside], crs, sheet, lon_shift)
                shares, codes = compute_sheet_shares(rings, len(inside), sheet, cover.legend)
                areas[inside] += shares
                unlisted |= codes
            if len(crossing):
                rings, weight = clip_to_extent(
                    project_rings(corners[crossing], crs, LONLAT) + np.array([lon_shift, 0.0]), sheet
                )
                shares, codes = compute_sheet_shares(rings, len(crossing), sheet, cover.legend)
                areas[crossing] += shares * weight[:, None]
                unlisted |= codes
    known = areas.sum(axis=1)
    if (known > 1.001).any():
        k = int(np.argmax(known))
        x, y = project(corners[k].mean(axis=0), crs, LONLAT)
        raise LandCoverError(f"{cover.name}: several of its sheets cover longitude {x:.4f}, latitude {y:.4f}")
    fraction = np.divide(areas, known[:, None], out=np.zeros_like(areas), where=known[:, None] > 0)
    return Shares(fraction, np.minimum(known, 1.0), unlisted)


def compute_bounding_boxes(corners: Floats, crs: str) -> Floats:
    """West, south, east and north bounds of footprints, with a margin: (n, 4), degrees."""
    bounds = compute_bounds(project_rings(corners, crs, LONLAT, 1e-3)) if len(corners) else np.zeros((0, 4))
    margin = 0.01 * np.maximum(bounds[:, 2] - bounds[:, 0], bounds[:, 3] - bounds[:, 1])[:, None]
    return np.asarray(bounds + margin * np.array([-1, -1, 1, 1]))


def shift_boxes(boxes: Floats, lon_shift: float) -> npt.NDArray[np.object_]:
    """Polygons of bounding boxes that are shifted in longitude, degrees."""
    west, south, east, north = boxes.T
    return np.asarray(shapely.box(west + lon_shift, south, east + lon_shift, north))


def project_to_sheet(corners: Floats, crs: str, sheet: Sheet, lon_shift: float) -> Rings:
    """Project footprints to a sheet's CRS. lon_shift: degrees to add to the longitudes if that CRS is geographic."""
    points = project_rings(corners, crs, sheet.crs)
    n, m = points.shape[:2]
    points = points.reshape(-1, 2)
    if is_geographic(sheet.crs):
        points = points + np.array([lon_shift, 0.0])
    return Rings(points, np.arange(n + 1) * m, np.arange(n))


def clip_to_extent(outlines: Floats, sheet: Sheet) -> tuple[Rings, Floats]:
    """Clip footprints to a sheet's nominal extent, and project them to the sheet's CRS.

    outlines: (n, m, 2) longitude and latitude. Also returns the share of each footprint's area in the extent, (n,).
    """
    assert sheet.extent is not None
    full = np.asarray(shapely.polygons(outlines))
    step = np.sqrt(shapely.area(full)) / 64
    full = shapely.segmentize(full, step)
    # Segmentized again: the edges that the extent adds, such as parallels, are curved in the sheet's CRS as well.
    clipped = shapely.segmentize(shapely.intersection(full, shapely.box(*sheet.extent)), step)
    area_share = shapely.area(to_equal_area(clipped)) / shapely.area(to_equal_area(full))
    parts, owners = shapely.get_parts(clipped, return_index=True)
    has_area = shapely.area(parts) > 0  # a footprint that only touches the extent gives points, lines or nothing
    exteriors = shapely.get_exterior_ring(parts[has_area])
    points, ring = shapely.get_coordinates(exteriors, return_index=True)
    offsets = np.searchsorted(ring, np.arange(len(exteriors) + 1))
    return Rings(project(points, LONLAT, sheet.crs), offsets, owners[has_area]), area_share


def compute_sheet_shares(rings: Rings, footprints: int, sheet: Sheet, legend: Legend) -> tuple[Floats, frozenset[int]]:
    """Area share of each class in footprints: (footprint, class), and the codes that the legend does not list.

    Raises LandCoverError that names the sheet if it cannot be read.
    """
    if len(rings.owners) == 0:
        return np.zeros((footprints, len(legend.classes))), frozenset()
    a, _, left, _, e, top = sheet.transform
    points = (rings.points - [left, top]) / [a, e]
    c0, r0 = (int(low) for low in np.floor(points.min(axis=0)))
    c1, r1 = (int(high) + 1 for high in np.floor(points.max(axis=0)))
    if (c1 - c0) * (r1 - r0) > LARGEST_WINDOW and footprints > 1:
        half = footprints // 2
        shares1, unlisted1 = compute_sheet_shares(rings.select(0, half), half, sheet, legend)
        shares2, unlisted2 = compute_sheet_shares(rings.select(half, footprints), footprints - half, sheet, legend)
        return np.concatenate([shares1, shares2]), unlisted1 | unlisted2
    col, row = (np.clip(np.array(ends), 0, size) for ends, size in (((c0, c1), sheet.width), ((r0, r1), sheet.height)))
    cells, codes = read_cells(sheet, Window(col[0], row[0], col[1] - col[0], row[1] - row[0]))
    weights = np.ones(r1 - r0)
    if is_geographic(sheet.crs):  # the area of a cell is proportional to the cosine of the latitude of its centre
        latitude = top + e * (np.arange(r0, r1) + 0.5)
        weights = np.cos(np.deg2rad(np.clip(latitude, -90.0, 90.0)))
    areas = sum_code_areas(
        points - [c0, r0], rings.offsets, rings.owners, footprints, cells, col[0] - c0, row[0] - r0, c1 - c0, weights
    )
    total = areas.sum(axis=1)
    shares = np.divide(areas, total[:, None], out=np.zeros_like(areas), where=total[:, None] > 0)
    present = np.flatnonzero((shares[:, : len(codes)] > ROUNDING).any(axis=0))
    return shares[:, present] @ legend.shares(codes[present]), legend.unlisted(codes[present]) - {sheet.nodata}
