"""Rejected tiles, which the data set does not store: made again from their scene, with the figures that decided."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from geokr.dataset.layout import TILE_STATUS
from pipeline.catalog.table import Entry
from pipeline.config import BuildConfig
from pipeline.imaging.quality import Rules
from pipeline.imaging.radiometry import radiometry_from_stretch
from pipeline.plan import tile_grid
from pipeline.tasks.tiles import TileJob, mean_of_bands, orthorectify_clouds, orthorectify_scene


@dataclass(frozen=True, slots=True)
class Rejected:
    """A rejected tile."""

    pixels: npt.NDArray[np.uint8]
    """(band, y, x), stretched to 8 bits."""
    valid: npt.NDArray[np.bool_]
    """(y, x), False where there are no data."""
    figure: str
    """What was measured, and the limit."""


def make_again(dataset: str, entry: Entry, config: BuildConfig, row: int, col: int, status: int) -> Rejected:
    """Make a rejected tile again. Raises SceneError or OSError if its image cannot be read now."""
    grid = tile_grid(entry, config.grid)
    assert grid is not None  # it has a tile
    grid = replace(grid, block=1)
    job = TileJob(dataset, entry, config.tiles, grid, row, col)
    geobox = grid.block_at(row, col).geobox
    ortho = orthorectify_scene(geobox, job)
    stretch = radiometry_from_stretch(entry.stretch, ortho.pixels.shape[2])
    pixels = stretch.apply(ortho.pixels, entry.scene.numbers)
    grey = mean_of_bands(pixels)
    clouds = orthorectify_clouds(geobox, entry)
    figure = explain(TILE_STATUS[status], grey, ortho.valid, ortho.missing, clouds, config.tiles.rules)
    return Rejected(np.moveaxis(pixels, -1, 0), ortho.valid, figure)


def explain(
    status: str,
    grey: npt.NDArray[np.uint8],
    valid: npt.NDArray[np.bool_],
    missing: npt.NDArray[np.bool_] | None,
    clouds: npt.NDArray[Any] | None,
    rules: Rules,
) -> str:
    """The figure that decided a status, and its limit. Arguments (y, x): as those of `cut_tiles`."""
    judged = grey[valid]
    match status:
        case "void":
            return f"{(~valid).mean():.2%} of the pixels have no data; allowed {rules.void_share:.0%}"
        case "missing_lines":
            share = 0.0 if missing is None else missing.mean()
            return f"{share:.2%} of the pixels depend on a missing line; allowed 0"
        case "dark":
            share = (judged < rules.dark_level).mean()
            return f"{share:.2%} of the pixels are below {rules.dark_level}; allowed {rules.dark_share:.0%}"
        case "flat":
            low, high = np.percentile(judged, [1, 99])
            return f"grey levels {low:.0f} to {high:.0f}; needs a range of {rules.flat_range * 255:.0f}"
        case _:
            bright = grey > rules.cloud_level
            share = (bright if clouds is None else bright | clouds)[valid].mean()
            return f"{share:.2%} of the pixels are above {rules.cloud_level} or cloud; allowed {rules.cloud_share:.0%}"
