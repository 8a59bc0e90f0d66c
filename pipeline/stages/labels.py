"""The stage `labels`: every block that is not labelled yet, with every product."""

import logging
from collections.abc import Iterator
from functools import partial
from itertools import starmap
from pathlib import PurePath
from typing import Any

from geokr.dataset import contents, layout, store
from geokr.landcover.shares import select_sheets
from geokr.landcover.sheets import LandCover
from geokr.storage import files, rasters
from pipeline.catalog.table import Entry
from pipeline.config import BuildConfig
from pipeline.plan import check_coverage, placement_attributes, tile_grid
from pipeline.runtime.stream import Client, JobBatch
from pipeline.stages.blocks import Failures, MissingBlocks, consolidate_if_changed, record_refusals, run_blocks
from pipeline.tasks.labels import LabelJob, build_labels

log = logging.getLogger(__name__)


def run(config: BuildConfig, covers: list[LandCover], entries: list[Entry], client: Client | None) -> None:
    """Label every block that is not labelled yet, with every product.

    Raises StoreError where a scene was labelled with other settings or sheets before, ConfigError where a product
    covers none of the scenes.
    """
    check_coverage(config, covers, entries)
    failures = Failures()
    unlisted: set[int] = set()
    for cover in covers:
        root = files.join(config.out, layout.label_store(cover.name))
        built = contents.scene_contents(root, [entry.scene.id for entry in entries])
        left: list[tuple[Entry, MissingBlocks, LandCover, dict[str, Any]]] = []
        places = [(entry, grid) for entry in entries if (grid := tile_grid(entry, config.grid)) is not None]
        parts = [select_sheets(grid.outline, str(grid.geobox.crs), cover) for _, grid in places]
        prints = rasters.fingerprints({sheet.path: sheet.source for here in parts for sheet in here.sheets})
        for (entry, grid), here in zip(places, parts, strict=True):
            scene = entry.scene
            if not here.sheets:
                log.warning("%s: %s has no land cover there; its tiles stay without a label", scene.id, cover.name)
            wanted = {
                **placement_attributes(grid),
                "product": cover.name,
                "taxonomy": cover.legend.taxonomy,
                "sheets": {PurePath(sheet.path).name: prints[sheet.path] for sheet in here.sheets},
                "classes": list(cover.legend.classes),
            }
            unbuilt = MissingBlocks(grid, built.get(scene.id))
            unbuilt.check(root, scene.id, wanted)
            if unbuilt.tiles:
                left.append((entry, unbuilt, here, wanted))

        def batches(
            root: str = root, left: list[tuple[Entry, MissingBlocks, LandCover, dict[str, Any]]] = left
        ) -> Iterator[JobBatch[LabelJob]]:
            for entry, unbuilt, here, wanted in left:
                scene, grid = entry.scene, unbuilt.grid
                store.create_labels(
                    root,
                    scene.id,
                    shape=(grid.rows, grid.cols),
                    classes=here.legend.classes,
                    block=grid.block,
                    attributes=wanted,
                )
                job = partial(LabelJob, root, scene.id, here, grid)
                yield JobBatch(f"labels-{here.name}-{scene.id}", starmap(job, unbuilt))

        sizes = {entry.scene.id: unbuilt.tiles for entry, unbuilt, *_ in left}
        stage = f"labels {cover.name}"
        for report in run_blocks(config, stage, build_labels, batches(), sizes, client, failures, "labelled"):
            unlisted |= report.unlisted
        consolidate_if_changed(root, built, bool(left))
    if unlisted:
        log.warning("codes %s of the land cover are not in its legend; their area counts as unknown", sorted(unlisted))
    record_refusals("labels", config, failures.entries())
