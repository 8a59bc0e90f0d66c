"""The stage `index`: the accepted, labelled tiles of all scenes, their splits, and the data set's summary."""

import json
import logging
from typing import Any

from geokr.crs import footprint_polygons
from geokr.dataset import index, layout
from geokr.dataset.splits import choose_cell
from geokr.landcover.sheets import LandCover
from geokr.settings import ConfigError
from geokr.storage import files
from pipeline.catalog import quarantine
from pipeline.catalog.table import CATALOG, Entry
from pipeline.config import BuildConfig, IndexConfig
from pipeline.plan import tile_grid
from pipeline.runtime.progress import Progress
from pipeline.runtime.stream import Client, JobBatch, stream
from pipeline.stages.blocks import record_refusals
from pipeline.stages.diagnosis import explain_labels, explain_losses, explain_splits
from pipeline.tasks.rows import RowJob, SceneRows, build_table, list_scene

log = logging.getLogger(__name__)

INDEX_COLUMNS = {"tile", "scene", "place", "row", "col", "satellite", "sensor", "acquired", "gsd"}
INDEX_COLUMNS |= {"known", "cloud", "agreement", "year_gap", "split", "geometry"}
"""Columns of the index in addition to those of the classes."""


def run(config: BuildConfig, covers: list[LandCover], entries: list[Entry], client: Client | None) -> dict[str, Any]:
    """List the accepted, labelled tiles with their splits; write index.parquet and dataset.json.

    Warns if a scene has few tiles or none in it, or a split has none, with the reason and the setting to change.
    Returns the content of dataset.json. Raises ConfigError if no scene has rows.
    """
    out = config.out
    name = choose_label_set(config.index, covers)
    legend = next(cover.legend for cover in covers if cover.name == name)
    other_sets = tuple(cover.name for cover in covers if cover.name != name)
    grids = [(entry.scene, grid) for entry in entries if (grid := tile_grid(entry, config.grid)) is not None]
    batches = (
        JobBatch(f"index-{scene.id}", [RowJob(out, scene, grid, name, other_sets, config.index)])
        for scene, grid in grids
    )
    parts: list[tuple[str, SceneRows]] = []
    refused: list[dict[str, Any]] = []
    with Progress(out, "index", len(grids), "scene", client=client) as progress:
        for job, rows in stream(list_scene, batches, client):
            progress.add(1)
            if isinstance(rows, Exception):
                detail = str(rows) or repr(rows)
                refused.append({"scene": job.scene.id, "reason": type(rows).__name__, "detail": detail})
            else:
                parts.append((job.scene.id, rows))
    record_refusals("index", config, refused)
    if not parts:
        raise ConfigError(f"no scene was built completely; see {files.join(out, quarantine.FILE)} for the reasons")
    parts.sort(key=lambda item: item[0])
    split = config.index.split
    cell = split.cell or choose_cell(grid.tile * scene.gsd for scene, grid in grids)
    table = build_table([rows for _, rows in parts], split, cell)
    counts = table.counts()
    statuses = {scene: rows.statuses for scene, rows in parts}
    for sentence in (
        *explain_losses(entries, statuses, config.tiles),
        *explain_labels(counts, config.index),
        *explain_splits(table.corners, counts["splits"], split, cell),
    ):
        log.warning("%s", sentence)
    report_changes(out, name, [cover.name for cover in covers])
    incomplete = {scene: rows.missing for scene, rows in parts if rows.missing}
    index.write_index(out, table.columns, footprint_polygons(table.corners))
    settings = config.model_dump(mode="json", exclude={"out"})
    settings["index"]["split"]["cell"] = cell
    summary = {
        "schema": layout.SCHEMA,
        "classes": list(legend.classes),
        "colours": list(legend.colours),
        "taxonomy": legend.taxonomy,
        "label_set": name,
        "label_sets": [cover.name for cover in covers],
        "counts": {
            "scenes": len(parts),
            "incomplete": len(incomplete),
            "quarantined": len(quarantine.read(out)),
            **counts,
        },
        "incomplete": incomplete,
        "class_shares": table.class_shares(legend.classes),
        "settings": settings,
        "sha256": {file: files.sha256(files.join(out, file)) for file in (CATALOG, layout.INDEX)},
    }
    files.write_text(files.join(out, layout.DATASET), json.dumps(summary, indent=2) + "\n")
    return summary


def report_changes(out: str, name: str, names: list[str]) -> None:
    """Warn if an existing data set loses label sets from its index, or if the index changes its label set."""
    path = files.join(out, layout.DATASET)
    if not files.exists(path):
        return
    old_summary = json.loads(files.read(path))
    dropped = sorted({*old_summary["label_sets"]} - {*names})
    if dropped:
        log.warning("%s: their land cover is no longer among the inputs; the index leaves them out", ", ".join(dropped))
    if old_summary["label_set"] != name:
        log.warning("the index changes from label set %s to %s", old_summary["label_set"], name)


def choose_label_set(config: IndexConfig, covers: list[LandCover]) -> str:
    """The name of the label set of the index: the one in the settings, or the only one.

    Raises ConfigError if the settings, the label sets and the class names do not fit together.
    """
    names = [cover.name for cover in covers]
    for cover in covers:
        if clash := INDEX_COLUMNS & set(cover.legend.classes):
            raise ConfigError(f"{cover.legend.taxonomy}: class {min(clash)} has the name of an index column")
    if config.min_agreement is not None and len(names) == 1:
        raise ConfigError(
            f"min_agreement is set, but {names[0]} is the only label set; it needs a second one to compare with"
        )
    if config.label_set is None and len(names) == 1:
        return names[0]
    if config.label_set is None:
        raise ConfigError(
            f"the land cover has the label sets {', '.join(names)}; choose one for the index with --label-set"
        )
    if config.label_set not in names:
        raise ConfigError(f"label_set is {config.label_set}, but the land cover has {', '.join(names)}")
    return config.label_set
