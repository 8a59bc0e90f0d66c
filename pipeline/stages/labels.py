"""The stage `labels`: label every missing block with every product."""

import logging
from collections.abc import Iterator
from contextlib import closing
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
from pipeline.plan import check_coverage, parts_per_side, placement_attributes, tile_grid
from pipeline.runtime.stream import Client, JobBatch
from pipeline.stages.blocks import (
    Failures,
    UnbuiltBlocks,
    consolidate_if_changed,
    create_ahead,
    record_refusals,
    run_blocks,
)
from pipeline.tasks.labels import LabelJob, build_labels

log = logging.getLogger(__name__)

REPLACED = ("grid", "taxonomy", "classes")
"""Attributes of a scene's labels that may change if they are replaced."""
Pending = tuple[Entry, UnbuiltBlocks, LandCover, dict[str, Any]]
"""A scene, its blocks without labels, the sheets at its place, and the attributes of its group."""


def run(
    config: BuildConfig,
    covers: list[LandCover],
    entries: list[Entry],
    client: Client | None,
    *,
    replace: bool = False,
) -> None:
    """Label every block that is not labelled yet, with every product.

    replace: label scenes again whose labels have other parts or classes, or no parts.
    Raises StoreError if a scene was labelled with other settings or sheets before, ConfigError if a product covers
    none of the scenes.
    """
    check_coverage(config, covers, entries)
    failures = Failures()
    unlisted: set[int] = set()
    for cover in covers:
        root = files.join(config.out, layout.label_store(cover.name))
        built, pending = find_unlabelled(config, cover, entries, replace=replace)

        def batches(root: str = root, pending: list[Pending] = pending) -> Iterator[JobBatch[LabelJob]]:
            for entry, unbuilt, local_cover, attributes in create_ahead(partial(create_scene, root), pending):
                scene, grid = entry.scene, unbuilt.grid
                job = partial(LabelJob, root, scene.id, local_cover, attributes["grid"], grid)
                yield JobBatch(f"labels-{local_cover.name}-{scene.id}", starmap(job, unbuilt))

        sizes = {entry.scene.id: unbuilt.tiles for entry, unbuilt, *_ in pending}
        stage = f"labels {cover.name}"
        with closing(
            run_blocks(config, stage, build_labels, batches(), sizes, client, failures, "labelled")
        ) as reports:
            for report in reports:
                unlisted |= report.unlisted
        consolidate_if_changed(root, built, bool(pending))
    if unlisted:
        log.warning(
            "the land cover has codes %s, which its legend does not list; their area counts as unknown",
            sorted(unlisted),
        )
    record_refusals("labels", config, failures.entries())


def create_scene(root: str, pending: Pending) -> None:
    """Create the arrays of a scene in a store of labels, or check those that are there: see `store.create_labels`."""
    entry, unbuilt, cover, attributes = pending
    store.create_labels(
        root,
        entry.scene.id,
        shape=(unbuilt.grid.rows, unbuilt.grid.cols),
        classes=cover.legend.classes,
        grid=attributes["grid"],
        block=unbuilt.grid.block,
        attributes=attributes,
    )


def find_unlabelled(
    config: BuildConfig, cover: LandCover, entries: list[Entry], *, replace: bool = False
) -> tuple[dict[str, contents.SceneContents], list[Pending]]:
    """The scenes that are in a product's store, and what is left to label.

    Raises StoreError if a scene was labelled with other settings or sheets before.
    """
    root = files.join(config.out, layout.label_store(cover.name))
    built = contents.read_scene_contents(root, [entry.scene.id for entry in entries])
    pending: list[Pending] = []
    grids = [(entry, grid) for entry in entries if (grid := tile_grid(entry, config.grid)) is not None]
    local_covers = [select_sheets(grid.outline, str(grid.geobox.crs), cover) for _, grid in grids]
    fingerprints = rasters.fingerprints(
        {sheet.path: sheet.source for local_cover in local_covers for sheet in local_cover.sheets}
    )
    for (entry, grid), local_cover in zip(grids, local_covers, strict=True):
        scene = entry.scene
        if not local_cover.sheets:
            log.warning("%s: %s does not cover this scene; its tiles stay without a label", scene.id, cover.name)
        parts = parts_per_side(grid, local_cover, config.labels.grid)
        attributes = {
            **placement_attributes(grid),
            "grid": parts,
            "product": cover.name,
            "taxonomy": cover.legend.taxonomy,
            "sheets": {PurePath(sheet.path).name: fingerprints[sheet.path] for sheet in local_cover.sheets},
            "classes": list(cover.legend.classes),
        }
        stored = built.get(scene.id)
        if replace and stored is not None:
            wanted = stored.attributes | {name: attributes[name] for name in REPLACED}
            if wanted != stored.attributes:
                store.require_same(root, scene.id, wanted, attributes)
                store.discard_scene(root, scene.id)
                stored = None
        unbuilt = UnbuiltBlocks(grid, stored)
        unbuilt.check(root, scene.id, attributes)
        if unbuilt.tiles:
            pending.append((entry, unbuilt, local_cover, attributes))
    return built, pending
