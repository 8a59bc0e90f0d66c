"""What a build would do, and all that it would refuse, without writing anything."""

import time
from collections.abc import Iterator

import numpy as np

from geokr.crs import transformer
from geokr.dataset.splits import choose_cell, split_by_place
from geokr.landcover.gaps import find_gaps
from geokr.landcover.products import load_products
from geokr.landcover.sheets import LandCover
from geokr.settings import ConfigError
from pipeline.catalog.account import summarise
from pipeline.catalog.table import Entry
from pipeline.config import BuildConfig
from pipeline.geometry.grid import TileGrid
from pipeline.plan import check_coverage, projected_bytes, tile_grid
from pipeline.runtime.cluster import count_cores, count_threads
from pipeline.runtime.stream import Client
from pipeline.runtime.worker import LIBRARIES
from pipeline.stages import catalog, labels
from pipeline.stages.diagnosis import SAMPLE, explain_losses, explain_splits
from pipeline.stages.estimate import describe_estimate, try_blocks

REFUSED = "refused"
"""The word that begins a line about something that would be refused."""


def describe_build(config: BuildConfig, covers: list[LandCover], client: Client | None = None) -> Iterator[str]:
    """Yield lines: what is refused, scenes with their grids, land cover, bytes and memory, splits, inputs, an estimate.

    Everything that the stage catalog decides is decided as in a build, with the same reads of the images.
    Raises ConfigError or StoreError where a build would stop.
    """
    began = time.monotonic()
    found = catalog.examine(config, client, covers, write=False)
    workers = count_cores() if client is None else count_threads(client)
    survey = (time.monotonic() - began) / (workers if client is None else 1)
    yield from (f"{REFUSED}   {refusal['detail']}" for refusal in found.refused)
    grids: list[tuple[Entry, TileGrid]] = []
    total_tiles, memory, total_pixels = 0, 0, 0
    for entry in found.entries:
        scene, grid = entry.scene, tile_grid(entry, config.grid)
        if grid is None:
            yield f"{REFUSED}   {scene.id}: no tile of {config.grid.tile} px at {scene.gsd:g} m fits into the scene"
            continue
        grids.append((entry, grid))
        rows, cols = grid.blocks
        tiles = grid.rows * grid.cols
        pixels = tiles * len(scene.bands) * grid.tile**2
        total_tiles, total_pixels = total_tiles + tiles, total_pixels + pixels
        memory = max(memory, projected_bytes(scene, grid, config.survey.radiometry))
        first = scene.images[0]
        yield (
            f"scene     {scene.id}: {first.width} x {first.height} px, {scene.gsd:g} m, "
            f"{grid.geobox.crs}, {grid.rows} x {grid.cols} tiles in {rows * cols} blocks, at most {pixels / 1e6:.0f} MB"
        )
    products = {product.name: product for product in reversed(load_products(config.labels.legends))}
    for cover in covers:
        yield f"landcover {cover.name}: {len(cover.sheets)} sheets, classes {', '.join(cover.legend.classes)}"
        product = products[cover.name.removesuffix(f"_{cover.year}")]
        gaps, _ = find_gaps(product, cover.year, cover.sheets, {e.scene.id: e.scene.footprint for e in found.entries})
        for gap in gaps:
            sheet = f"lacks {gap.sheet}, unless it is open sea" if gap.sheet else "does not cover all"
            yield f"landcover {cover.name}: {sheet}, for {len(gap.scenes)} scenes, such as {gap.scenes[0]}"
    yield (
        f"in total  {len(found.entries)} scenes, {total_tiles} tiles, at most {total_pixels / 1e6:.0f} MB of pixels "
        f"before compression, peak memory of a worker {memory / 1e6:.0f} MB plus {LIBRARIES / 1e6:.0f} MB for its "
        "libraries"
    )
    if grids:
        yield from describe_splits(config, grids)
    yield from summarise(found.account)
    if not grids:
        raise ConfigError("none of the scenes can be used; the lines above say why")
    check_coverage(config, covers, found.entries)
    for cover in covers:
        labels.find_unlabelled(config, cover, found.entries)
    trials = try_blocks(config, covers, grids)
    yield describe_estimate(trials, total_tiles, survey, workers, memory + LIBRARIES, config.out)
    of_scenes = {trial.entry.scene.id: trial.statuses for trial in trials}
    for sentence in explain_losses([trial.entry for trial in trials], of_scenes, config.tiles):
        yield f"trial     {sentence}"


def describe_splits(config: BuildConfig, grids: list[tuple[Entry, TileGrid]]) -> Iterator[str]:
    """How many places for tiles each split has, and what to change if one has none."""
    split = config.index.split
    cell = split.cell or choose_cell(grid.tile * entry.scene.gsd for entry, grid in grids)
    counts, tiles = dict.fromkeys(split.shares, 0), 0
    for _, grid in grids:
        splits = split_by_place(footprints(grid), split.shares, cell, split.seed)
        tiles += len(splits)
        for name in counts:
            counts[name] += int((splits == name).sum())
    listed = ", ".join(f"{count} {name}" for name, count in counts.items())
    yield f"splits    of all tiles, {listed}, {tiles - sum(counts.values())} between two splits"

    def sample_corners() -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return np.concatenate([footprints(grid)[:: -(-tiles // SAMPLE)] for _, grid in grids])

    yield from (f"splits    {sentence}" for sentence in explain_splits(sample_corners, tiles, counts, split, cell))


def footprints(grid: TileGrid) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """The corners of all tiles of a grid: (n, 4, 2), longitude and latitude in degrees."""
    corners = grid.corners(slice(0, grid.rows), slice(0, grid.cols)).reshape(-1, 4, 2)
    lon, lat = transformer(str(grid.geobox.crs), "EPSG:4326").transform(corners[..., 0], corners[..., 1])
    return np.stack([lon, lat], axis=-1)
