"""Build one block of tiles: read the window of the scene, compute, write the shard."""

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
from pipeline.imaging.clouds import find_clouds
from pipeline.imaging.ortho import Ortho, orthorectify
from pipeline.imaging.pansharpen import sharpen_brovey
from pipeline.imaging.quality import MISSING_LINES, VOID, Rules, judge
from pipeline.imaging.radiometry import radiometry_from_stretch
from pipeline.scenes.raster import Pixels
from pipeline.scenes.scene import SceneError


@dataclass(frozen=True, slots=True)
class TileJob:
    """The input for building one block of a scene."""

    root: str
    """The tile store."""
    entry: Entry
    """The scene, with the results of its survey."""
    config: TilesConfig
    grid: TileGrid
    i: int
    j: int
    """Row and column of the block."""

    @property
    def scene(self) -> str:
        """The name of the scene."""
        return self.entry.scene.id


@dataclass(frozen=True, slots=True)
class TileReport:
    """The result for one block."""

    tiles: int
    accepted: int
    lattice_error: float
    """Interpolation error measured, px of the image."""


def build_tiles(job: TileJob) -> TileReport:
    """Build one block; write its shard, its per-tile values and its statuses.

    Raises SceneError if the image cannot be read; then no tile of the block is marked as built.
    """
    block = job.grid.block_at(job.i, job.j)
    arrays, status, report = make_tiles(job)
    store.write_block(job.root, job.scene, block.rows, block.cols, arrays, status)
    return report


def make_tiles(job: TileJob) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.uint8], TileReport]:
    """Orthorectify, sharpen, judge and cut one block, without writing it.

    Returns the arrays by their names in the store, the status (row, col) uint8, and the report. The image of a
    rejected tile has no meaning. Raises SceneError if the image cannot be read.
    """
    block = job.grid.block_at(job.i, job.j)
    ortho = orthorectify_scene(block.geobox, job)
    stretched = radiometry_from_stretch(job.entry.stretch, ortho.pixels.shape[2])
    stored = stretched.apply(ortho.pixels, job.entry.scene.numbers)
    grey = mean_of_bands(stored)
    radiometry = job.entry.radiometry
    if radiometry is not None and radiometry.kind != "percentile":
        stored = radiometry.apply(ortho.pixels, job.entry.scene.numbers)
    clouds = orthorectify_clouds(block.geobox, job.entry)
    images, status, cloud = cut_tiles(
        stored, grey, ortho.valid, ortho.missing, block, job.grid, job.config.rules, clouds
    )
    error = np.full(status.shape, ortho.lattice.error, np.float32)
    accepted = int((status == layout.ACCEPTED).sum())
    report = TileReport(status.size, accepted, ortho.lattice.error)
    return {"image": images, "cloud": cloud, "lattice_error": error}, status, report


def orthorectify_scene(geobox: GeoBox, job: TileJob) -> Ortho:
    """Orthorectify all images of a scene to a grid: the bands of all images, pansharpened if there is a pan image.

    A pixel is valid where all images are valid. The lattice is the one with the largest error.
    """
    entry, config = job.entry, job.config
    scene, level = entry.scene, config.rules.missing_level
    orthos = [orthorectify(geobox, image, entry.terrain, config.resampling, level) for image in scene]
    colour = orthos[: len(scene.images)]
    pixels = colour[0].pixels if len(colour) == 1 else np.concatenate([part.pixels for part in colour], axis=2)
    if scene.pan is not None:
        try:
            sharpen_brovey(pixels, orthos[-1].pixels[..., 0], entry.pan_weights)
        except ValueError as error:
            raise SceneError(f"{scene.pan.path}: {error}") from error
    masks = [part.missing for part in orthos if part.missing is not None]
    return Ortho(
        pixels,
        orthos[0].valid if len(orthos) == 1 else np.logical_and.reduce([part.valid for part in orthos]),
        np.logical_or.reduce(masks) if masks else None,
        max((part.lattice for part in orthos), key=lambda lattice: lattice.error),
    )


def orthorectify_clouds(geobox: GeoBox, entry: Entry) -> npt.NDArray[np.bool_] | None:
    """The clouds that a scene's quality band sees in a grid, (y, x); None without a quality band."""
    if entry.scene.quality is None:
        return None
    ortho = orthorectify(geobox, entry.scene.quality, entry.terrain, "nearest")
    return ortho.valid & find_clouds(entry.scene.quality.bands[0], ortho.pixels).any(axis=-1)


def cut_tiles(
    pixels: Pixels,
    grey: npt.NDArray[np.uint8],
    valid: npt.NDArray[np.bool_],
    missing: npt.NDArray[np.bool_] | None,
    block: Block,
    grid: TileGrid,
    rules: Rules,
    clouds: npt.NDArray[np.bool_] | None = None,
) -> tuple[Pixels, npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Cut a block into tiles and judge them.

    pixels: (y, x, band), as they are stored. grey: (y, x) uint8, on which tiles are judged. valid, missing, clouds:
    (y, x) masks; missing is True where a pixel depends on a line that the image lacks, clouds where a quality band sees
    a cloud. If accepted tiles may contain void pixels, invalid pixels are set to 0 in place. Returns image (row, col,
    band, y, x), a view of the pixels; status (row, col) uint8; and cloud (row, col) float32, the share of pixels that
    are cloud, NaN for tiles that were not judged.
    """
    rows, cols = block.rows.stop - block.rows.start, block.cols.stop - block.cols.start
    status = np.full((rows, cols), VOID, np.uint8)
    cloud = np.full((rows, cols), np.nan, np.float32)
    if rules.void_share and not valid.all():
        pixels[~valid] = 0
    for r in range(rows):
        for c in range(cols):
            top, left = r * grid.stride, c * grid.stride
            window = np.s_[top : top + grid.tile, left : left + grid.tile]
            full = bool(valid[window].all())
            if not full and (~valid[window]).mean() > min(rules.void_share, 1 - 1e-9):
                continue
            if missing is not None and missing[window].any():
                status[r, c] = MISSING_LINES
                continue
            status[r, c], cloud[r, c] = judge(
                grey[window], rules, None if full else valid[window], None if clouds is None else clouds[window]
            )
    tile_views = np.lib.stride_tricks.sliding_window_view(
        np.moveaxis(pixels, -1, 0), (grid.tile, grid.tile), axis=(1, 2)
    )
    return np.moveaxis(tile_views[:, :: grid.stride, :: grid.stride], 0, 2), status, cloud


def mean_of_bands(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Mean over the bands: (y, x, band) uint8 -> (y, x) uint8, rounded to nearest, halves to even."""
    planes = np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
    mean = np.empty(planes.shape[1:], np.uint8)
    mean_planes(planes.reshape(len(planes), -1), mean.reshape(-1))
    return mean


TWO_TO_23 = np.float32(2**23)


@njit(cache=True, nogil=True)
def mean_planes(planes: npt.NDArray[np.uint8], mean: npt.NDArray[np.uint8]) -> None:  # pragma: no cover
    """Write the mean over the bands of planes (band, pixel) into mean (pixel)."""
    bands = np.float32(len(planes))
    for start in range(0, len(mean), 4096):  # chunks that stay in the processor's cache
        chunk = mean[start : start + 4096]
        total = np.zeros(len(chunk), np.uint32)
        for plane in planes:
            values = plane[start : start + 4096]
            for k in range(len(chunk)):
                total[k] += values[k]
        # Float32 numbers from 2 ** 23 on have no fraction, so the sum rounds the quotient. A quotient that is a half is
        # exact, and goes to even.
        for k in range(len(chunk)):
            chunk[k] = np.uint8(np.float32(total[k]) / bands + TWO_TO_23 - TWO_TO_23)
