"""The stages of a build: each finds what is left to do, streams it, and says what came of it."""

import hashlib
import json
import logging
import sys
from collections.abc import Collection
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import shapely
from tqdm import tqdm

from geokr import index, store
from geokr.landcover import LandCover
from pipeline import quarantine, stac
from pipeline.catalog import CATALOG, CatalogJob, Entry, read_and_survey, read_catalog, unchanged, write_catalog
from pipeline.config import BuildConfig, ConfigError
from pipeline.delivery import Refusal, refuse
from pipeline.finding import deliveries
from pipeline.grid import TileGrid, scene_grid
from pipeline.labels import LabelJob, build_labels
from pipeline.quality import Rules
from pipeline.rows import RowJob, SceneRows, assemble, footprints, scene_rows
from pipeline.run import Client, stream
from pipeline.tiles import TileJob, build_tiles

log = logging.getLogger(__name__)

SOFTWARE = ("rasterio", "pyproj", "opencv-python-headless", "exactextract", "zarr", "numpy")
"""Packages whose versions go into the provenance: what the bytes depend on."""


def progress(name: str, total: int | None, unit: str) -> "tqdm[Any]":
    """A bar on a terminal; without one, a line a minute."""
    terminal = sys.stderr.isatty()
    return tqdm(total=total, desc=name, unit=unit, mininterval=0.5 if terminal else 60.0, smoothing=0.05)


def catalog(config: BuildConfig, client: Client | None) -> list[Entry]:
    """Find and survey all scenes; write scenes.parquet. What was surveyed before and has not changed is kept.

    Raises FileNotFoundError for a directory that is not there, ConfigError where no scene is found.
    """
    out = Path(config.out)
    dem = None if config.dem is None else str(Path(config.dem).absolute())
    software = {name: version(name) for name in SOFTWARE}
    provenance = json.dumps(
        {"dem": dem, "stretch": config.stretch, "imagery": config.imagery, "bands": config.bands, "software": software}
    )
    found_there = list(deliveries(config.scenes))
    items = {here.path: stac.digest(json.loads(here.item)) for here in found_there if here.item}
    known = unchanged(out / CATALOG, provenance, items)
    # What refused a part of a delivery before must be found again, so such a one is read again.
    faults = [entry["detail"] for entry in quarantine.read(out) if entry["stage"] == "catalog"]
    results: list[tuple[str, Entry | Refusal]] = []
    jobs = []
    for delivery in found_there:
        if delivery.path in known and not any(delivery.path in fault for fault in faults):
            results += [(delivery.path, entry) for entry in known[delivery.path]]
        else:
            jobs.append(
                (f"catalog-{Path(delivery.path).name}", CatalogJob(delivery, dem, config.stretch, config.imagery))
            )
    if not jobs and not results:
        raise ConfigError(f"{', '.join(config.scenes)}: no TIFF and no archive is in there, and no STAC item")
    with progress("catalog", len(jobs), "delivery") as bar:
        for job, found in stream(read_and_survey, jobs, client):
            bar.update()
            path = job.delivery.path
            if isinstance(found, Exception):
                found = [refuse(Path(path).name, type(found).__name__, f"{path}: {found}")]
            results += [(path, item) for item in found]
    entries: dict[str, Entry] = {}
    refused: list[dict[str, str]] = []
    for path, item in sorted(results, key=lambda result: result[0]):
        if isinstance(item, Refusal):
            refused.append(asdict(item))
        elif item.scene.id in entries:
            first = entries[item.scene.id].scene.images[0].path
            detail = f"{path}: the scene is there already, from {first}"
            refused.append({"scene": item.scene.id, "reason": "duplicate", "detail": detail})
        else:
            entries[item.scene.id] = item
    for entry in entries.values():
        tell_ground(entry)
    finish("catalog", config, refused)
    if not entries:
        raise ConfigError(f"none of the scenes can be used; {out / quarantine.FILE} says why")
    write_catalog(out / CATALOG, entries.values(), provenance)
    return read_catalog(out / CATALOG)


def tell_ground(entry: Entry) -> None:
    """Say aloud where a scene's heights come from, if not from a DEM that covers it."""
    scene, terrain = entry.scene, entry.terrain
    if scene.level != "L1A":
        return
    if terrain.dem is None:
        log.warning(
            "%s: no DEM: the ground is taken as flat at %.0f m above the ellipsoid; relief will shift pixels",
            scene.id,
            terrain.height,
        )
    elif entry.dem_coverage < 1:
        log.warning(
            "%s: the DEM covers %.0f %% of the outline; the rest is taken as flat at %.0f m",
            scene.id,
            100 * entry.dem_coverage,
            terrain.height,
        )


def grid_of(entry: Entry, config: BuildConfig) -> TileGrid | None:
    """A scene's tile grid, None where no tile fits into it."""
    return scene_grid(entry.scene.footprint, entry.scene.gsd, config.tile, config.stride, config.block)


def placement(grid: TileGrid) -> dict[str, Any]:
    """What places the tiles of a scene's group, by the names of the disk contract."""
    return {
        "proj:code": str(grid.geobox.crs),
        "spatial:transform": list(grid.geobox.transform)[:6],
        "tile": grid.tile,
        "stride": grid.stride,
    }


def attributes(entry: Entry, grid: TileGrid, config: BuildConfig) -> dict[str, Any]:
    """What a scene's group says of itself: all that places its tiles, and all that their pixels depend on."""
    scene = entry.scene
    return {
        **placement(grid),
        "block": grid.block,
        "bands": list(scene.bands),
        "gsd": scene.gsd,
        "acquired": None if scene.acquired is None else scene.acquired.isoformat(),
        "satellite": scene.satellite,
        "sensor": scene.sensor,
        "source": {"name": Path(scene.images[0].path).name, "bytes": scene.bytes, "sha256_of_metadata": scene.checksum},
        "stretch": [entry.stretch.low, entry.stretch.high],
        "dem": None if entry.terrain.dem is None else Path(entry.terrain.dem).name,
        "ground_height": entry.terrain.height,
        "rules": config.rules.model_dump(),
    }


def tiles(config: BuildConfig, entries: list[Entry], client: Client | None) -> None:
    """Build every block that is not built yet.

    Raises StoreError where a scene was built with other settings before.
    """
    root = store.join(config.out, store.TILES)
    rules = Rules(**config.rules.model_dump())
    refused: dict[str, dict[str, str]] = {}
    jobs: list[TileJob] = []
    for entry in entries:
        scene, grid = entry.scene, grid_of(entry, config)
        if grid is None:
            detail = f"{scene.images[0].path}: no tile of {config.tile} px at {scene.gsd:g} m fits into the scene"
            refused[scene.id] = {"scene": scene.id, "reason": "too_small", "detail": detail}
            continue
        store.create_tiles(
            root,
            scene.id,
            shape=(grid.rows, grid.cols),
            bands=len(scene.bands),
            tile=grid.tile,
            block=grid.block,
            dtype="uint8",
            attributes=attributes(entry, grid, config),
        )
        jobs += [
            TileJob(root, scene, entry.terrain, entry.stretch, rules, grid, i, j)
            for i, j in missing(root, scene.id, grid)
        ]
    store.consolidate(root)
    named = ((f"tiles-{job.scene.id}-{job.i}-{job.j}", job) for job in jobs)
    with progress("tiles", sum(size(job) for job in jobs), "tile") as bar:
        accepted = done = 0
        for job, report in stream(build_tiles, named, client):
            bar.update(size(job))
            if isinstance(report, Exception):
                refused[job.scene.id] = failure(job.scene.id, report)
                continue
            done, accepted = done + report.tiles, accepted + report.accepted
            bar.set_postfix(accepted=f"{100 * accepted / done:.0f}%", refresh=False)
    finish("tiles", config, refused.values())


def missing(root: str, scene: str, grid: TileGrid) -> list[tuple[int, int]]:
    """Blocks of a scene that are not built, row by row."""
    status = store.status(store.open_scene(root, scene))
    rows, cols = grid.blocks
    return [(i, j) for i in range(rows) for j in range(cols) if not status[i * grid.block, j * grid.block]]


def size(job: TileJob | LabelJob) -> int:
    """Tiles of a job's block."""
    block = job.grid.at(job.i, job.j)
    return int(block.rows.stop - block.rows.start) * int(block.cols.stop - block.cols.start)


def failure(scene: str, error: Exception) -> dict[str, str]:
    """A quarantine entry for a scene whose block failed."""
    return {"scene": scene, "reason": type(error).__name__, "detail": str(error) or repr(error)}


def finish(stage: str, config: BuildConfig, refused: Collection[dict[str, str]]) -> None:
    """Say and record what a stage refused."""
    for refusal in refused:
        log.warning("refused: %s", refusal["detail"])
    quarantine.replace(Path(config.out), stage, [*refused])


def labels(config: BuildConfig, covers: list[LandCover], entries: list[Entry], client: Client | None) -> None:
    """Label every block that is not labelled yet, with every product.

    Raises StoreError where a scene was labelled with other settings or sheets before.
    """
    refused: dict[str, dict[str, str]] = {}
    unlisted: set[int] = set()
    jobs: list[LabelJob] = []
    for cover in covers:
        root = store.join(config.out, store.label_store(cover.name))
        for entry in entries:
            scene, grid = entry.scene, grid_of(entry, config)
            if grid is None:
                continue
            sheets = tuple(s for s in cover.sheets if shapely.intersects(s.outline, scene.footprint.buffer(0.05)))
            if not sheets:
                log.warning("%s: %s has no land cover there; its tiles stay without a label", scene.id, cover.name)
            store.create_labels(
                root,
                scene.id,
                shape=(grid.rows, grid.cols),
                classes=cover.legend.classes,
                block=grid.block,
                attributes={
                    **placement(grid),
                    "product": cover.name,
                    "sheets": {Path(sheet.path).name: Path(sheet.path).stat().st_size for sheet in sheets},
                },
            )
            here = replace(cover, sheets=sheets)
            jobs += [LabelJob(root, scene.id, here, grid, i, j) for i, j in missing(root, scene.id, grid)]
        store.consolidate(root)
    named = ((f"labels-{job.cover.name}-{job.scene}-{job.i}-{job.j}", job) for job in jobs)
    with progress("labels", sum(size(job) for job in jobs), "tile") as bar:
        for job, report in stream(build_labels, named, client):
            bar.update(size(job))
            if isinstance(report, Exception):
                refused[job.scene] = failure(job.scene, report)
            else:
                unlisted |= report.unlisted
    if unlisted:
        log.warning("codes %s of the land cover are not in its legend; their area counts as unknown", sorted(unlisted))
    finish("labels", config, refused.values())


def label_set(config: BuildConfig, covers: list[LandCover]) -> str:
    """The label set of the index: the one asked for, or the only one there is."""
    names = [cover.name for cover in covers]
    if config.labels is None and len(names) == 1:
        return names[0]
    if config.labels is None:
        raise ConfigError(f"the land cover holds {', '.join(names)}; say with --labels which one the index is to use")
    if config.labels not in names:
        raise ConfigError(f"labels is {config.labels}, but the land cover holds {', '.join(names)}")
    return config.labels


def make_index(
    config: BuildConfig, covers: list[LandCover], entries: list[Entry], client: Client | None
) -> dict[str, Any]:
    """List the accepted, labelled tiles with their splits; write index.parquet and dataset.json. Returns the latter."""
    out = Path(config.out)
    name = label_set(config, covers)
    legend = next(cover.legend for cover in covers if cover.name == name)
    jobs = []
    for entry in entries:
        grid = grid_of(entry, config)
        if grid is not None:
            job = RowJob(config.out, entry.scene, grid, name, config.min_known)
            jobs.append((f"index-{entry.scene.id}", job))
    found: list[tuple[str, SceneRows]] = []
    refused: dict[str, dict[str, str]] = {}
    with progress("index", len(jobs), "scene") as bar:
        for job, rows in stream(scene_rows, jobs, client):
            bar.update()
            if isinstance(rows, Exception):
                refused[job.scene.id] = failure(job.scene.id, rows)
            else:
                found.append((job.scene.id, rows))
    finish("index", config, refused.values())
    if not found:
        raise ConfigError(f"no scene was built to the end; {out / quarantine.FILE} says why")
    table = assemble([rows for _, rows in sorted(found, key=lambda item: item[0])], config.split)
    index.write_index(out, table.columns, footprints(table.corners))
    summary = {
        "schema": store.SCHEMA,
        "classes": list(legend.classes),
        "colours": list(legend.colours),
        "labels": name,
        "label_sets": [cover.name for cover in covers],
        "counts": {"scenes": len(found), "quarantined": len(quarantine.read(out)), **table.counts()},
        "class_shares": table.class_shares(legend.classes),
        "settings": config.model_dump(mode="json", exclude={"out"}),
        "sha256": {file: digest(out / file) for file in (CATALOG, index.INDEX)},
    }
    quarantine.write_whole(out / index.DATASET, json.dumps(summary, indent=2) + "\n")
    return summary


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
