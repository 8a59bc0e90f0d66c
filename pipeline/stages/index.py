"""The stage `index`: the accepted, labelled tiles of all scenes, their splits, and the data set's summary."""

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from geokr.dataset import index, layout
from geokr.dataset.layout import StoreError
from geokr.dataset.splits import choose_cell
from geokr.landcover.sheets import LandCover
from geokr.settings import ConfigError, list_differences
from geokr.storage import files
from pipeline.catalog import quarantine
from pipeline.catalog.table import CATALOG, Entry
from pipeline.config import BuildConfig, IndexConfig
from pipeline.geometry.sensor import Floats
from pipeline.plan import tile_grid
from pipeline.runtime.progress import Progress
from pipeline.runtime.stream import Client, JobBatch, stream
from pipeline.stages.blocks import record_refusals
from pipeline.stages.diagnosis import SAMPLE, explain_labels, explain_losses, explain_splits
from pipeline.tasks.rows import PartJob, PartReport, RowJob, write_part

log = logging.getLogger(__name__)

INDEX_COLUMNS = {"tile", "scene", "place", "row", "col", "satellite", "sensor", "acquired", "gsd"}
INDEX_COLUMNS |= {"known", "cloud", "agreement", "year_gap", "split", "geometry", "bbox"}
"""Columns of the index in addition to those of the classes."""
PART_TILES, PART_SCENES = 1 << 16, 64
"""Most tiles, accepted or not, and most scenes of a part of the index. A scene with more tiles is a part of its own."""


def run(config: BuildConfig, covers: list[LandCover], entries: list[Entry], client: Client | None) -> dict[str, Any]:
    """List the accepted, labelled tiles with their splits; write the index, part by part, and dataset.json.

    Warns if a scene has few tiles or none in it, or a split has none, with the reason and the setting to change.
    Returns the content of dataset.json. Raises ConfigError if no scene has rows.
    """
    out, split = config.out, config.index.split
    name = choose_label_set(config.index, covers)
    legend = next(cover.legend for cover in covers if cover.name == name)
    other_sets = tuple(cover.name for cover in covers if cover.name != name)
    grids = sorted(
        ((entry.scene, grid) for entry in entries if (grid := tile_grid(entry, config.grid)) is not None),
        key=lambda item: item[0].id,
    )
    if not grids:
        raise ConfigError(f"no scene was built completely; see {files.join(out, quarantine.FILE)} for the reasons")
    cell = split.cell or choose_cell(grid.tile * scene.gsd for scene, grid in grids)
    groups = list(group_scenes(RowJob(out, scene, grid, name, other_sets, config.index) for scene, grid in grids))
    published = {facts["job"]: path for path, facts in index.list_facts(out) if facts}
    jobs = (PartJob(k, len(groups), group, legend.classes, split, cell) for k, group in enumerate(groups))
    jobs = (replace(job, published=published.get(job.fingerprint())) for job in jobs)
    reports: list[PartReport | None] = [None] * len(groups)
    with Progress(out, "index", len(grids), "scene", client=client) as progress:
        for job, report in stream(write_part, [JobBatch("index", jobs)], client):
            if isinstance(report, Exception):
                raise StoreError(f"part {job.number} of the index cannot be written: {str(report) or repr(report)}")
            progress.add(len(job.scenes))
            reports[job.number] = report
    parts = [report for report in reports if report is not None]
    record_refusals("index", config, [refusal for part in parts for refusal in part.refused])
    scenes = {scene: counts for part in parts for scene, counts in part.scenes.items()}
    if not scenes:
        raise ConfigError(f"no scene was built completely; see {files.join(out, quarantine.FILE)} for the reasons")
    index.publish(out, len(parts))
    counts = count_tiles(parts, tuple(split.shares))
    for sentence in (
        *explain_losses(entries, {scene: values["statuses"] for scene, values in scenes.items()}, config.tiles),
        *explain_labels(counts, config.index),
        *explain_splits(partial(sample_corners, out, counts["index"]), counts["index"], counts["splits"], split, cell),
    ):
        log.warning("%s", sentence)
    incomplete = {scene: values["missing"] for scene, values in scenes.items() if values["missing"]}
    settings = config.model_dump(mode="json", exclude={"out"})
    settings["index"]["split"]["cell"] = cell
    report_changes(out, name, [cover.name for cover in covers], settings["index"]["split"])
    summary = {
        "schema": layout.SCHEMA,
        "classes": list(legend.classes),
        "colours": list(legend.colours),
        "taxonomy": legend.taxonomy,
        "label_set": name,
        "label_sets": [cover.name for cover in covers],
        "counts": {
            "scenes": len(scenes),
            "incomplete": len(incomplete),
            "quarantined": len(quarantine.read(out)),
            **counts,
        },
        "incomplete": incomplete,
        "class_shares": mean_shares(parts, counts["splits"], legend.classes),
        "settings": settings,
        "sha256": {
            CATALOG: files.sha256(files.join(out, CATALOG)),
            layout.INDEX: index.combine_digests(part.digest for part in parts),
        },
    }
    files.write_text(files.join(out, layout.DATASET), json.dumps(summary, indent=2) + "\n")
    return summary


def group_scenes(jobs: Iterable[RowJob]) -> Iterator[tuple[RowJob, ...]]:
    """Divide scenes into runs of up to PART_SCENES with up to PART_TILES tiles together, or one with more.

    A run also ends after scenes whose names say so, at half of these sizes on average: where a scene is added, the runs
    before it and those some way behind it stay the same, so that their parts of the index do.
    """
    group: list[RowJob] = []
    tiles = 0
    for job in jobs:
        size = job.grid.rows * job.grid.cols
        if group and (len(group) == PART_SCENES or tiles + size > PART_TILES):
            yield tuple(group)
            group, tiles = [], 0
        group.append(job)
        tiles += size
        name = hashlib.blake2b(job.scene.id.encode(errors="backslashreplace"), digest_size=8).digest()
        if int.from_bytes(name) / 2**64 < max(2 * size / PART_TILES, 2 / PART_SCENES):
            yield tuple(group)
            group, tiles = [], 0
    if group:
        yield tuple(group)


def count_tiles(parts: Sequence[PartReport], splits: Sequence[str]) -> dict[str, Any]:
    """Numbers of tiles, as in `counts` of dataset.json."""
    scenes = [counts for part in parts for counts in part.scenes.values()]
    rows = sum(part.rows for part in parts)
    by_split = {name: sum(part.splits[name] for part in parts) for name in splits}
    return {
        "tiles": {status: sum(counts["statuses"][status] for counts in scenes) for status in layout.TILE_STATUS},
        "unknown": sum(counts["unknown"] for counts in scenes),
        "unfit": sum(counts["unfit"] for counts in scenes),
        "index": rows,
        "splits": by_split,
        "between_splits": rows - sum(by_split.values()),
    }


def mean_shares(
    parts: Sequence[PartReport], splits: Mapping[str, int], classes: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Split -> class -> mean share, for each split that has a tile. splits: split -> number of tiles."""
    return {
        name: {c: round(math.fsum(part.shares[name][k] for part in parts) / count, 6) for k, c in enumerate(classes)}
        for name, count in splits.items()
        if count
    }


def sample_corners(dataset: str, tiles: int) -> Floats:
    """Corners of the bounds of up to SAMPLE tiles of the index, evenly spaced: (n, 4, 2), degrees."""
    step = -(-tiles // SAMPLE)
    boxes, first = [], 0
    for part in index.read_parts(dataset, ["bbox"]):
        rows = part["bbox"].combine_chunks().take(np.arange(first, part.num_rows, step))
        first = (first - part.num_rows) % step
        boxes.append(np.stack([rows.field(side).to_numpy() for side in index.BOX], axis=1))
    west, south, east, north = np.concatenate(boxes).T
    return np.stack([west, north, east, north, east, south, west, south], axis=1).reshape(-1, 4, 2)


def report_changes(out: str, name: str, names: list[str], split: Mapping[str, Any]) -> None:
    """Warn if an existing data set loses label sets from its index, or if that changes its label set or its splits."""
    path = files.join(out, layout.DATASET)
    if not files.exists(path):
        return
    old_summary = json.loads(files.read(path))
    dropped = sorted({*old_summary["label_sets"]} - {*names})
    if dropped:
        log.warning("%s: their land cover is no longer among the inputs; the index leaves them out", ", ".join(dropped))
    if old_summary["label_set"] != name:
        log.warning("the index changes from label set %s to %s", old_summary["label_set"], name)
    old_split = old_summary.get("settings", {}).get("index", {}).get("split", split)
    if changed := list_differences(old_split, split):
        log.warning(
            "places are in other splits than before (%s): what a run was trained on may now be held out; to keep the "
            "splits, restore build.index.split",
            "; ".join(changed),
        )


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
