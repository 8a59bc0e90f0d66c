"""One block of tiles, straight through: read the scene's window, compute, write the shard."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit
from odc.geo.geobox import GeoBox

from geokr.dataset import layout, store
from pipeline.catalog.table import Entry
from pipeline.config import TilesConfig
from pipeline.geometry.grid import Block, TileGrid
from pipeline.imaging.ortho import Ortho, orthorectify
from pipeline.imaging.pansharpen import brovey
from pipeline.imaging.quality import MISSING_LINES, VOID, Rules, judge
from pipeline.imaging.radiometry import from_stretch
from pipeline.scenes.raster import Pixels
from pipeline.scenes.scene import SceneError


@dataclass(frozen=True, slots=True)
class TileJob:
    """All that building one block of a scene takes."""

    root: str
    """The tile store."""
    entry: Entry
    """The scene, and what its survey decided."""
    config: TilesConfig
    grid: TileGrid
    i: int
    j: int
    """The block's row and column."""

    @property
    def scene(self) -> str:
        """Its name."""
        return self.entry.scene.id


@dataclass(frozen=True, slots=True)
class TileReport:
    """What became of a block."""

    tiles: int
    accepted: int
    lattice_step: int
    """Distance of the lattice's nodes, px."""
    lattice_error: float
    """Interpolation error found, px of the image."""


def build_tiles(job: TileJob) -> TileReport:
    """Build one block and write its shard, its figures and its statuses.

    Raises SceneError where the image cannot be read; nothing of the block is marked as done then.
    """
    block = job.grid.block_at(job.i, job.j)
    arrays, status, report = make_tiles(job)
    group = store.open_scene(job.root, job.scene, "r+")
    store.write_block(group, block.rows, block.cols, arrays, status)
    return report


def make_tiles(job: TileJob) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.uint8], TileReport]:
    """One block's arrays by their names in the store, and its status: orthorectify, sharpen, judge, cut.

    Images of rejected tiles mean nothing. Writes nothing. Raises SceneError where the image cannot be read.
    """
    block = job.grid.block_at(job.i, job.j)
    found = orthorectify_scene(block.geobox, job)
    judged = from_stretch(job.entry.stretch, found.pixels.shape[2])
    stored = judged.apply(found.pixels)
    grey = mean_of_bands(stored)
    radiometry = job.entry.radiometry
    if radiometry is not None and radiometry.kind != "percentile":
        stored = radiometry.apply(found.pixels)
    images, status, cloud = cut_tiles(stored, grey, found.valid, found.missing, block, job.grid, job.config.rules)
    error = np.full(status.shape, found.lattice.error, np.float32)
    accepted = int((status == layout.ACCEPTED).sum())
    report = TileReport(status.size, accepted, found.lattice.step, found.lattice.error)
    return {"image": images, "cloud": cloud, "lattice_error": error}, status, report


def orthorectify_scene(geobox: GeoBox, job: TileJob) -> Ortho:
    """A grid's pixels from all images of a scene, band after band, sharpened where it has a panchromatic one.

    Valid where all of them are. The lattice is the one of those with the largest error.
    """
    entry, config = job.entry, job.config
    scene, level = entry.scene, config.rules.missing_level
    found = [orthorectify(geobox, image, entry.terrain, config.resampling, level) for image in scene]
    colour = found[: len(scene.images)]
    pixels = colour[0].pixels if len(colour) == 1 else np.concatenate([part.pixels for part in colour], axis=2)
    if scene.pan is not None:
        try:
            brovey(pixels, found[-1].pixels[..., 0], entry.pan_weights)
        except ValueError as error:
            raise SceneError(f"{scene.pan.path}: {error}") from error
    masks = [part.missing for part in found if part.missing is not None]
    return Ortho(
        pixels,
        found[0].valid if len(found) == 1 else np.logical_and.reduce([part.valid for part in found]),
        np.logical_or.reduce(masks) if masks else None,
        max((part.lattice for part in found), key=lambda lattice: lattice.error),
    )


def cut_tiles(
    pixels: Pixels,
    grey: npt.NDArray[np.uint8],
    valid: npt.NDArray[np.bool_],
    missing: npt.NDArray[np.bool_] | None,
    block: Block,
    grid: TileGrid,
    rules: Rules,
) -> tuple[Pixels, npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Tiles of a block, why some are rejected, and how bright they are.

    pixels: (y, x, band), what is stored; grey: (y, x) uint8, what is judged; valid, missing: (y, x). Returns image
    (row, col, band, y, x), a view of the pixels, which are 0 from now on where they are not valid and may lie in an
    accepted tile; status (row, col) uint8; and cloud (row, col) float32, the share of bright pixels, NaN where the
    tile was not looked at.
    """
    rows, cols = block.rows.stop - block.rows.start, block.cols.stop - block.cols.start
    status = np.full((rows, cols), VOID, np.uint8)
    cloud = np.full((rows, cols), np.nan, np.float32)
    if rules.void_share and not valid.all():
        pixels[~valid] = 0
    for r in range(rows):
        for c in range(cols):
            top, left = r * grid.stride, c * grid.stride
            here = np.s_[top : top + grid.tile, left : left + grid.tile]
            full = bool(valid[here].all())
            if not full and (~valid[here]).mean() > min(rules.void_share, 1 - 1e-9):
                continue
            if missing is not None and missing[here].any():
                status[r, c] = MISSING_LINES
                continue
            status[r, c], cloud[r, c] = judge(grey[here], rules, None if full else valid[here])
    windows = np.lib.stride_tricks.sliding_window_view(np.moveaxis(pixels, -1, 0), (grid.tile, grid.tile), axis=(1, 2))
    return np.moveaxis(windows[:, :: grid.stride, :: grid.stride], 0, 2), status, cloud


def mean_of_bands(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(y, x) uint8 mean of (y, x, band) uint8, rounded to the nearest, halves to even."""
    planes = np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
    found = np.empty(planes.shape[1:], np.uint8)
    mean_planes(planes.reshape(len(planes), -1), found.reshape(-1))
    return found


TWO_TO_23 = np.float32(2**23)


@njit(cache=True, nogil=True)
def mean_planes(planes: npt.NDArray[np.uint8], found: npt.NDArray[np.uint8]) -> None:  # pragma: no cover
    """The means of (band, pixel)."""
    bands = np.float32(len(planes))
    for start in range(0, len(found), 4096):  # which stay in the processor's cache
        into = found[start : start + 4096]
        total = np.zeros(len(into), np.uint32)
        for plane in planes:
            part = plane[start : start + 4096]
            for k in range(len(into)):
                total[k] += part[k]
        for k in range(len(into)):  # a sum beyond 2 ** 23 has no fraction, so a quotient, exact if a half, is rounded
            into[k] = np.uint8(np.float32(total[k]) / bands + TWO_TO_23 - TWO_TO_23)
