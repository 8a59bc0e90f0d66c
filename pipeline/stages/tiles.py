"""The stage `tiles`: every block of pixels that is not built yet."""

from collections.abc import Iterator
from functools import partial
from itertools import starmap
from typing import Any

from geokr.dataset import contents, layout, store
from geokr.storage import files
from pipeline.catalog.table import Entry
from pipeline.config import BuildConfig
from pipeline.plan import attributes, grid_of, promised_bytes, stored
from pipeline.runtime.progress import Progress
from pipeline.runtime.stream import Batch, Client, stream
from pipeline.stages.blocks import Failures, Tally, Unbuilt, finish, gather, tile_count
from pipeline.tasks.tiles import TileJob, build_tiles


def run(config: BuildConfig, entries: list[Entry], client: Client | None) -> None:
    """Build every block that is not built yet.

    Raises StoreError where a scene was built from other input or with other settings before.
    """
    root = files.join(config.out, layout.TILES)
    refused: list[dict[str, Any]] = []
    built = contents.built(root, [entry.scene.id for entry in entries])
    left: list[tuple[Entry, Unbuilt]] = []
    for entry in entries:
        scene, grid = entry.scene, grid_of(entry, config.grid)
        if grid is None:
            detail = f"{scene.images[0].path}: no tile of {config.grid.tile} px at {scene.gsd:g} m fits into the scene"
            refused.append({"scene": scene.id, "reason": "too_small", "detail": detail})
            continue
        unbuilt = Unbuilt(grid, built.get(scene.id))
        unbuilt.check(root, scene.id, attributes(entry, grid, config.tiles))
        if unbuilt.tiles:
            left.append((entry, unbuilt))

    def batches() -> Iterator[Batch[TileJob]]:
        for entry, unbuilt in left:
            scene, grid = entry.scene, unbuilt.grid
            store.create_tiles(
                root,
                scene.id,
                shape=(grid.rows, grid.cols),
                bands=len(scene.bands),
                tile=grid.tile,
                block=grid.block,
                dtype=stored(entry).dtype,
                attributes=attributes(entry, grid, config.tiles),
            )
            job = partial(TileJob, root, entry, config.tiles, grid)
            yield Batch(f"tiles-{scene.id}", starmap(job, unbuilt), promised_bytes(scene, grid, stored(entry).kind))

    failures = Failures()
    tally = Tally(config, "tiles", {entry.scene.id: unbuilt.tiles for entry, unbuilt in left})
    with Progress(config.out, "tiles", tally.total, "tile") as progress:
        for job, report in stream(build_tiles, batches(), client):
            if isinstance(report, Exception):
                failures.add(job.entry.scene.id, (job.i, job.j), report)
                tally.add(job.entry.scene.id, tile_count(job.grid, job.i, job.j), failed=1)
                progress.add(tile_count(job.grid, job.i, job.j), 0)
            else:
                tally.add(job.entry.scene.id, report.tiles, accepted=report.accepted)
                progress.add(report.tiles, report.accepted)
    gather(root, built, bool(left))
    finish("tiles", config, refused + failures.entries())
