"""One block of labels, straight through: tile footprints, their class shares, the store."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from geokr.dataset import layout, store
from geokr.landcover.shares import class_shares
from geokr.landcover.sheets import LandCover
from pipeline.geometry.grid import TileGrid

LABELLED, UNKNOWN = (layout.LABEL_STATUS.index(name) for name in ("labelled", "unknown"))


@dataclass(frozen=True, slots=True)
class LabelJob:
    """All that labelling one block of a scene takes."""

    root: str
    """The label store."""
    scene: str
    cover: LandCover
    """The product, with the sheets that may touch the scene."""
    grid: TileGrid
    i: int
    j: int


@dataclass(frozen=True, slots=True)
class LabelReport:
    """What became of a block."""

    tiles: int
    labelled: int
    """Tiles of which anything is known."""
    unlisted: frozenset[int]
    """Codes in the land cover that its legend does not mention."""


def build_labels(job: LabelJob) -> LabelReport:
    """Label one block. Every tile of the grid is labelled, whether its pixels were accepted or not.

    Raises LandCoverError where a sheet cannot be read; nothing of the block is marked as done then.
    """
    block = job.grid.block_at(job.i, job.j)
    fraction, known, unlisted = compute_labels(job)
    status = np.where(known > 0, LABELLED, UNKNOWN).astype(np.uint8)
    group = store.open_scene(job.root, job.scene, "r+")
    store.write_block(group, block.rows, block.cols, {"fraction": fraction, "known": known}, status)
    return LabelReport(status.size, int((status == LABELLED).sum()), unlisted)


def compute_labels(job: LabelJob) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], frozenset[int]]:
    """One block's fraction (row, col, class), known (row, col), and codes that the legend does not mention.

    Raises LandCoverError where a sheet cannot be read.
    """
    block = job.grid.block_at(job.i, job.j)
    corners = job.grid.corners(block.rows, block.cols)  # (row, col, 4, 2)
    shape = corners.shape[:2]
    shares = class_shares(corners.reshape(-1, 4, 2), str(job.grid.geobox.crs), job.cover)
    fraction = shares.fraction.astype(np.float32).reshape(*shape, -1)
    return fraction, shares.known.astype(np.float32).reshape(shape), shares.unlisted
