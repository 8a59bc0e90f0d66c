"""Label one block: tile footprints, their class shares, the store."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from geokr.dataset import layout, store
from geokr.landcover.shares import compute_class_shares
from geokr.landcover.sheets import LandCover
from pipeline.geometry.grid import TileGrid

LABELLED, UNKNOWN = (layout.LABEL_STATUS.index(name) for name in ("labelled", "unknown"))


@dataclass(frozen=True, slots=True)
class LabelJob:
    """The input for labelling one block of a scene."""

    root: str
    """The label store."""
    scene: str
    cover: LandCover
    """The product, reduced to the sheets that may touch the scene."""
    parts: int
    """Number of parts along a side of a tile."""
    grid: TileGrid
    i: int
    j: int
    """Row and column of the block."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of one block, as they are stored: see `store.create_labels`."""

    fraction: npt.NDArray[np.float32]
    """(row, col, class)"""
    fraction_grid: npt.NDArray[np.uint8]
    """(row, col, part row, part column, class)"""
    known: npt.NDArray[np.float32]
    """(row, col)"""
    unlisted: frozenset[int]
    """Codes of the land cover that its legend does not list."""


@dataclass(frozen=True, slots=True)
class LabelReport:
    """The result for one block."""

    tiles: int
    labelled: int
    """Number of tiles with a known class anywhere in them."""
    unlisted: frozenset[int]
    """Codes of the land cover that its legend does not list."""


def build_labels(job: LabelJob) -> LabelReport:
    """Label one block and write it. Every tile of the grid is labelled, whether its pixels were accepted or not.

    Raises LandCoverError if a sheet cannot be read; then no tile of the block is marked as built.
    """
    block = job.grid.block_at(job.i, job.j)
    labels = compute_labels(job)
    status = np.where(labels.known > 0, LABELLED, UNKNOWN).astype(np.uint8)
    arrays = {name: getattr(labels, name) for name in ("fraction", "fraction_grid", "known")}
    store.write_block(job.root, job.scene, block.rows, block.cols, arrays, status)
    return LabelReport(status.size, int((status == LABELLED).sum()), labels.unlisted)


def compute_labels(job: LabelJob) -> Labels:
    """Compute the labels of one block. Raises LandCoverError if a sheet cannot be read."""
    block = job.grid.block_at(job.i, job.j)
    corners = job.grid.corners(block.rows, block.cols)  # (row, col, 4, 2)
    shape = corners.shape[:2]
    shares = compute_class_shares(corners.reshape(-1, 4, 2), str(job.grid.geobox.crs), job.cover, job.parts)
    return Labels(
        shares.fraction.astype(np.float32).reshape(*shape, -1),
        round_areas(shares.parts).reshape(*shape, *shares.parts.shape[1:]),
        shares.known.astype(np.float32).reshape(shape),
        shares.unlisted,
    )


def round_areas(parts: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Round areas of classes in parts, (..., class) relative to a part, to whole numbers of 1 / WHOLE_PART of a part.

    The sums over the classes are rounded, and an area is the difference of two of them: it is less than one unit off,
    and the areas of a part that is known throughout sum to WHOLE_PART.
    """
    sums = np.rint(np.minimum(np.cumsum(parts, axis=-1), 1.0) * layout.WHOLE_PART)
    units: npt.NDArray[np.uint8] = np.diff(sums, axis=-1, prepend=0.0).astype(np.uint8)
    return units
