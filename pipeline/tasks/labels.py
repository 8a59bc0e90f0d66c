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
    grid: TileGrid
    i: int
    j: int
    """Row and column of the block."""


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
    fraction, known, unlisted = compute_labels(job)
    status = np.where(known > 0, LABELLED, UNKNOWN).astype(np.uint8)
    group = store.open_scene(job.root, job.scene, "r+")
    store.write_block(group, block.rows, block.cols, {"fraction": fraction, "known": known}, status)
    return LabelReport(status.size, int((status == LABELLED).sum()), unlisted)


def compute_labels(job: LabelJob) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], frozenset[int]]:
    """The labels of one block: fraction (row, col, class), known (row, col), and codes that the legend does not list.

    Raises LandCoverError if a sheet cannot be read.
    """
    block = job.grid.block_at(job.i, job.j)
    corners = job.grid.corners(block.rows, block.cols)  # (row, col, 4, 2)
    shape = corners.shape[:2]
    shares = compute_class_shares(corners.reshape(-1, 4, 2), str(job.grid.geobox.crs), job.cover)
    fraction = shares.fraction.astype(np.float32).reshape(*shape, -1)
    return fraction, shares.known.astype(np.float32).reshape(shape), shares.unlisted
