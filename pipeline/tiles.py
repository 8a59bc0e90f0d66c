"""One block of tiles, straight through: read the scene's window, compute, write the shard."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from geokr import store
from pipeline.grid import Block, TileGrid
from pipeline.ortho import Lattice, orthorectify
from pipeline.quality import VOID, Rules, judge
from pipeline.radiometry import Stretch
from pipeline.raster import Pixels
from pipeline.scene import Scene
from pipeline.terrain import Terrain


@dataclass(frozen=True, slots=True)
class TileJob:
    """All that building one block of a scene takes."""

    root: str
    """The tile store."""
    scene: Scene
    terrain: Terrain
    stretch: Stretch
    rules: Rules
    grid: TileGrid
    i: int
    j: int
    """The block's row and column."""


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
    """Build one block: orthorectify, stretch, cut, judge, and write its shard and statuses.

    Raises SceneError where the image cannot be read; nothing of the block is marked as done then.
    """
    block = job.grid.at(job.i, job.j)
    pixels, valid, meshes = orthorectify_all(block.geobox, job.scene, job.terrain)
    images, status = cut(job.stretch.apply(pixels), valid, block, job.grid, job.rules)
    group = store.open_scene(job.root, job.scene.id, "r+")
    store.write_block(group, block.rows, block.cols, {"image": images}, status)
    return TileReport(
        status.size,
        int((status == store.ACCEPTED).sum()),
        min(mesh.step for mesh in meshes),
        max(mesh.error for mesh in meshes),
    )


def orthorectify_all(
    geobox: GeoBox, scene: Scene, terrain: Terrain
) -> tuple[Pixels, npt.NDArray[np.bool_], list[Lattice]]:
    """A grid's pixels from all images of a scene: (y, x, band), (y, x) valid in all of them, their lattices."""
    pixels, valid, meshes = zip(*(orthorectify(geobox, image, terrain) for image in scene.images), strict=True)
    if len(pixels) == 1:
        return pixels[0], valid[0], [*meshes]
    return np.concatenate(pixels, axis=2), np.logical_and.reduce(valid), [*meshes]


def cut(
    pixels: Pixels, valid: npt.NDArray[np.bool_], block: Block, grid: TileGrid, rules: Rules
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Tiles of a block, and why some are rejected.

    pixels: (y, x, band) uint8; valid: (y, x). Returns image (row, col, band, y, x) uint8, 0 throughout in
    rejected tiles, and status (row, col) uint8. A tile with one pixel that is not valid is `void`.
    """
    rows, cols = block.rows.stop - block.rows.start, block.cols.stop - block.cols.start
    bands = pixels.shape[2]
    images = np.zeros((rows, cols, bands, grid.tile, grid.tile), np.uint8)
    status = np.full((rows, cols), VOID, np.uint8)
    grey = mean_of_bands(pixels)
    for r in range(rows):
        for c in range(cols):
            y, x = (
                slice(r * grid.stride, r * grid.stride + grid.tile),
                slice(c * grid.stride, c * grid.stride + grid.tile),
            )
            if not valid[y, x].all():
                continue
            status[r, c] = judge(grey[y, x], rules)
            if status[r, c] == store.ACCEPTED:
                images[r, c] = pixels[y, x].transpose(2, 0, 1)
    return images, status


def mean_of_bands(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(y, x) uint8 mean of (y, x, band) uint8, rounded to the nearest."""
    bands = pixels.shape[2]
    if bands == 1:
        return pixels[..., 0]
    weights = np.full((1, bands), 1.0 / bands)
    return np.asarray(cv2.transform(pixels, weights)) if bands <= 4 else np.rint(pixels.mean(axis=2)).astype(np.uint8)
