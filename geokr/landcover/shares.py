"""Class shares of footprints: exact areas of intersection with the cells of a land-cover product."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import shapely
from rasterio.windows import Window

from geokr.crs import is_geographic
from geokr.landcover.coverage import code_areas
from geokr.landcover.legend import Legend
from geokr.landcover.outlines import LONLAT, Floats, project, project_rings, ring_bounds, to_equal_area
from geokr.landcover.products import LandCoverError
from geokr.landcover.sheets import LandCover, Sheet, read_cells

LARGEST_WINDOW = 2**26
"""Cells that are read at once; a single footprint may need more."""


DOUBT = 1e-9
"""A share of a footprint that rounding alone can give to a code."""


@dataclass(frozen=True, slots=True)
class Shares:
    """What a product says about footprints."""

    fraction: Floats
    """(n, class) float64: area share of each class within the known part; sums to 1, or all 0 where known is 0."""
    known: Floats
    """(n,) float64: share of the footprint's area that is covered with a class of the legend."""
    unlisted: frozenset[int]
    """Codes met in the pixels that the legend does not mention; their area counts as unknown."""


@dataclass(frozen=True, slots=True)
class Rings:
    """Footprints in the CRS of a sheet, as rings of points."""

    points: Floats
    """(m, 2) float64."""
    offsets: npt.NDArray[np.int64]
    """(ring + 1,): ring k is points[offsets[k]:offsets[k + 1]]."""
    owners: npt.NDArray[np.int64]
    """(ring,): the footprint that a ring is a part of, rising."""

    def of(self, first: int, last: int) -> "Rings":
        """The rings of the footprints first..last - 1, counted from `first` on."""
        a, b = np.searchsorted(self.owners, [first, last])
        begin, end = self.offsets[a], self.offsets[b]
        return Rings(self.points[begin:end], self.offsets[a : b + 1] - begin, self.owners[a:b] - first)


def select_sheets(corners: Floats, crs: str, cover: LandCover) -> LandCover:
    """A product with those of its sheets alone that may touch any of the footprints: see `class_shares`."""
    boxes = bounding_boxes(corners, crs)
    outlines = np.array([sheet.outline for sheet in cover.sheets], dtype=object)[:, None]
    touched = np.zeros(len(cover.sheets), bool)
    for turn in (-360.0, 0.0, 360.0):
        touched |= shapely.intersects(outlines, shift_boxes(boxes, turn)).any(axis=1)
    return replace(cover, sheets=tuple(cover.sheets[k] for k in np.flatnonzero(touched)))


def class_shares(corners: Floats, crs: str, cover: LandCover) -> Shares:
    """Class shares of quadrilateral footprints, as areas of intersection.

    corners: (n, 4, 2) float64 in `crs`, in order around the footprint; its edges are straight there. A sheet
    counts within its nominal extent alone. Areas within a sheet are measured in the plane of its CRS; on a
    geographic one, as the part of each cell in that plane times the cell's area on the sphere. The parts of a
    footprint in several nominal extents weigh by their areas on the sphere.
    Raises LandCoverError naming a sheet that cannot be read, or a product whose sheets cover a place twice.
    """
    areas = np.zeros((len(corners), len(cover.legend.classes)))
    unlisted: frozenset[int] = frozenset()
    boxes = bounding_boxes(corners, crs)
    for turn in (-360.0, 0.0, 360.0):  # at the antimeridian, a place has two longitudes
        here = shift_boxes(boxes, turn)
        for sheet in cover.sheets:
            touching = np.flatnonzero(shapely.intersects(here, sheet.outline))
            if len(touching) == 0:
                continue
            leaving = np.zeros(len(touching), bool)
            if sheet.extent is not None:
                leaving = ~shapely.contains_properly(shapely.box(*sheet.extent), here[touching])
            within, across = touching[~leaving], touching[leaving]
            if len(within):
                parts = project_to_sheet(corners[within], crs, sheet, turn)
                shares, codes = sheet_shares(parts, len(within), sheet, cover.legend)
                areas[within] += shares
                unlisted |= codes
            if len(across):
                parts, weight = clip_to_extent(
                    project_rings(corners[across], crs, LONLAT) + np.array([turn, 0.0]), sheet
                )
                shares, codes = sheet_shares(parts, len(across), sheet, cover.legend)
                areas[across] += shares * weight[:, None]
                unlisted |= codes
    known = areas.sum(axis=1)
    if (known > 1.001).any():
        k = int(np.argmax(known))
        x, y = project(corners[k].mean(axis=0), crs, LONLAT)
        raise LandCoverError(f"{cover.name}: several of its sheets cover longitude {x:.4f}, latitude {y:.4f}")
    fraction = np.divide(areas, known[:, None], out=np.zeros_like(areas), where=known[:, None] > 0)
    return Shares(fraction, np.minimum(known, 1.0), unlisted)


def bounding_boxes(corners: Floats, crs: str) -> Floats:
    """West, south, east and north of footprints, with a margin: (n, 4), degrees."""
    around = ring_bounds(project_rings(corners, crs, LONLAT, 1e-3)) if len(corners) else np.zeros((0, 4))
    margin = 0.01 * np.maximum(around[:, 2] - around[:, 0], around[:, 3] - around[:, 1])[:, None]
    return np.asarray(around + margin * np.array([-1, -1, 1, 1]))


def shift_boxes(boxes: Floats, turn: float) -> npt.NDArray[np.object_]:
    """Boxes moved by a turn of longitude, as polygons."""
    west, south, east, north = boxes.T
    return np.asarray(shapely.box(west + turn, south, east + turn, north))


def project_to_sheet(corners: Floats, crs: str, sheet: Sheet, turn: float) -> Rings:
    """Footprints in a sheet's CRS. turn: which of a place's longitudes is meant, for a geographic CRS."""
    points = project_rings(corners, crs, sheet.crs)
    n, m = points.shape[:2]
    points = points.reshape(-1, 2)
    if is_geographic(sheet.crs):
        points = points + np.array([turn, 0.0])
    return Rings(points, np.arange(n + 1) * m, np.arange(n))


def clip_to_extent(outlines: Floats, sheet: Sheet) -> tuple[Rings, Floats]:
    """Footprints (n, m, 2), longitude and latitude, cut to a sheet's nominal extent; in its CRS.

    Returns with them the share of each footprint's area that is left, (n,).
    """
    assert sheet.extent is not None
    whole = np.asarray(shapely.polygons(outlines))
    step = np.sqrt(shapely.area(whole)) / 64
    whole = shapely.segmentize(whole, step)
    cut = shapely.segmentize(shapely.intersection(whole, shapely.box(*sheet.extent)), step)  # a parallel bends, too
    left = shapely.area(to_equal_area(cut)) / shapely.area(to_equal_area(whole))
    parts, owners = shapely.get_parts(cut, return_index=True)
    areal = shapely.area(parts) > 0  # one that only touches leaves points, lines or nothing
    outer = shapely.get_exterior_ring(parts[areal])
    points, ring = shapely.get_coordinates(outer, return_index=True)
    first = np.searchsorted(ring, np.arange(len(outer) + 1))
    return Rings(project(points, LONLAT, sheet.crs), first, owners[areal]), left


def sheet_shares(parts: Rings, footprints: int, sheet: Sheet, legend: Legend) -> tuple[Floats, frozenset[int]]:
    """Area share of each class in footprints: (footprint, class), and the codes that the legend does not mention.

    Raises LandCoverError naming the sheet where it cannot be read.
    """
    if len(parts.owners) == 0:
        return np.zeros((footprints, len(legend.classes))), frozenset()
    a, _, left, _, e, top = sheet.transform
    points = (parts.points - [left, top]) / [a, e]
    c0, r0 = (int(low) for low in np.floor(points.min(axis=0)))
    c1, r1 = (int(high) + 1 for high in np.floor(points.max(axis=0)))
    if (c1 - c0) * (r1 - r0) > LARGEST_WINDOW and footprints > 1:
        half = footprints // 2
        one, some = sheet_shares(parts.of(0, half), half, sheet, legend)
        two, others = sheet_shares(parts.of(half, footprints), footprints - half, sheet, legend)
        return np.concatenate([one, two]), some | others
    col, row = (np.clip(np.array(at), 0, most) for at, most in (((c0, c1), sheet.width), ((r0, r1), sheet.height)))
    cells, codes = read_cells(sheet, Window(col[0], row[0], col[1] - col[0], row[1] - row[0]))
    weights = np.ones(r1 - r0)
    if is_geographic(sheet.crs):  # cells of one row are equal; the area of a row goes with the cosine of its middle
        middle = top + e * (np.arange(r0, r1) + 0.5)
        weights = np.cos(np.deg2rad(np.clip(middle, -90.0, 90.0)))
    areas = code_areas(
        points - [c0, r0], parts.offsets, parts.owners, footprints, cells, col[0] - c0, row[0] - r0, c1 - c0, weights
    )
    total = areas.sum(axis=1)
    shares = np.divide(areas, total[:, None], out=np.zeros_like(areas), where=total[:, None] > 0)
    met = np.flatnonzero((shares[:, : len(codes)] > DOUBT).any(axis=0))
    return shares[:, met] @ legend.shares(codes[met]), legend.unlisted(codes[met]) - {sheet.nodata}
