"""The stage `tiles`: build every missing block of pixels."""

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from itertools import starmap
from typing import Any

from geokr.dataset import contents, layout, store
from geokr.storage import files
from pipeline.catalog.table import Entry
from pipeline.config import BuildConfig, TilesConfig
from pipeline.geometry.grid import TileGrid
from pipeline.plan import projected_bytes, stored_radiometry, tile_attributes, tile_grid
from pipeline.runtime.stream import Client, JobBatch
from pipeline.stages.blocks import (
    Failures,
    UnbuiltBlocks,
    consolidate_if_changed,
    create_ahead,
    record_refusals,
    run_blocks,
)
from pipeline.tasks.tiles import TileJob, build_tiles


def create_scene(root: str, entry: Entry, grid: TileGrid, config: TilesConfig) -> None:
    """Create the arrays of a scene in a store of tiles, or check those that are there: see `store.create_tiles`."""
    store.create_tiles(
        root,
        entry.scene.id,
        shape=(grid.rows, grid.cols),
        bands=len(entry.scene.bands),
        tile=grid.tile,
        block=grid.block,
        dtype=stored_radiometry(entry).dtype,
        attributes=tile_attributes(entry, grid, config),
    )


def run(config: BuildConfig, entries: list[Entry], client: Client | None) -> None:
    """Build every block that is not built yet.

    Raises StoreError if a scene was built from other input or with other settings before.
    """
    root = files.join(config.out, layout.TILES)
    refused: list[dict[str, Any]] = []
    built = contents.read_scene_contents(root, [entry.scene.id for entry in entries])
    pending: list[tuple[Entry, UnbuiltBlocks]] = []
    for entry in entries:
        scene, grid = entry.scene, tile_grid(entry, config.grid)
        if grid is None:
            detail = f"{scene.images[0].path}: no tile of {config.grid.tile} px at {scene.gsd:g} m fits into the scene"
            refused.append({"scene": scene.id, "reason": "too_small", "detail": detail})
            continue
        unbuilt = UnbuiltBlocks(grid, built.get(scene.id))
        unbuilt.check(root, scene.id, tile_attributes(entry, grid, config.tiles))
        if unbuilt.tiles:
            pending.append((entry, unbuilt))

    def create(scene: tuple[Entry, UnbuiltBlocks]) -> None:
        create_scene(root, scene[0], scene[1].grid, config.tiles)

    def batches() -> Iterator[JobBatch[TileJob]]:
        for entry, unbuilt in create_ahead(create, pending):
            scene, grid = entry.scene, unbuilt.grid
            job = partial(TileJob, root, entry, config.tiles, grid)
            yield JobBatch(
                f"tiles-{scene.id}", starmap(job, unbuilt), projected_bytes(scene, grid, stored_radiometry(entry).kind)
            )

    failures = Failures()
    sizes = {entry.scene.id: unbuilt.tiles for entry, unbuilt in pending}
    with closing(run_blocks(config, "tiles", build_tiles, batches(), sizes, client, failures, "accepted")) as reports:
        for _ in reports:
            pass  # the result of each block is in the store and in the log
    consolidate_if_changed(root, built, bool(pending))
    record_refusals("tiles", config, refused + failures.entries())
