"""The stage `catalog`: find and survey all scenes, and refuse input that would mix with differently built tiles."""

import json
import logging
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from geokr.dataset import contents, layout, store
from geokr.settings import ConfigError
from geokr.storage import files, inputs
from geokr.storage.rasters import fingerprint
from pipeline.catalog import quarantine
from pipeline.catalog.table import CATALOG, Entry, count_entries, read_catalog, reusable_entries, write_catalog
from pipeline.config import BuildConfig, SurveyConfig
from pipeline.geometry.terrain import vertical_datum
from pipeline.imaging.calibration import CALIBRATION
from pipeline.plan import tile_attributes, tile_grid
from pipeline.runtime.cluster import ClusterError
from pipeline.runtime.progress import Progress
from pipeline.runtime.stream import Client, JobBatch, stream
from pipeline.scenes import stac
from pipeline.scenes.delivery import Refusal, refuse
from pipeline.scenes.discovery import Delivery, find_deliveries
from pipeline.scenes.scene import Scene
from pipeline.stages.blocks import record_refusals
from pipeline.tasks.survey import SurveyJob, read_and_survey

log = logging.getLogger(__name__)

PARTIAL = "scenes.partial.parquet"
"""Entries of an unfinished catalog, from which an interrupted run resumes. Deleted when the catalog is complete."""
WRITE_INTERVAL = 60.0
"""Interval at which the entries surveyed so far are written, s."""
LARGEST_INT32 = 2**31 - 1
"""The product number that deliveries contain if the real one exceeds 32 bits."""
SOFTWARE = ("rasterio", "pyproj", "opencv-python-headless", "numba", "zarr", "numpy")
"""Packages whose versions are part of the provenance, because the stored bytes depend on them."""


def run(config: BuildConfig, client: Client | None) -> list[Entry]:
    """Find and survey all scenes; write scenes.parquet. Entries of deliveries that have not changed are reused.

    Raises FileNotFoundError for a directory that does not exist, ConfigError if no scene is found or usable or if the
    DEM covers none of them, and StoreError if a scene was built from other input or with other settings before.
    """
    path, partial = files.join(config.out, CATALOG), files.join(config.out, PARTIAL)
    elevation = {"dem": config.survey.dem, "geoid": config.survey.geoid}
    absolute = {name: raster and inputs.make_absolute(raster) for name, raster in elevation.items()}
    survey = config.survey.model_copy(update=absolute)  # a worker may have another working directory
    report_heights(survey)
    made_with = provenance(survey)
    deliveries = list(find_deliveries(survey.scenes))
    if not deliveries:
        raise ConfigError(f"{', '.join(survey.scenes)}: no TIFF, archive or STAC item found")
    digests = {delivery.path: delivery.source_version for delivery in deliveries if delivery.source_version}
    digests |= {delivery.path: stac.item_digest(json.loads(delivery.item)) for delivery in deliveries if delivery.item}
    partial_entries = reusable_entries(partial, made_with, digests)
    reusable = partial_entries | reusable_entries(path, made_with, digests)
    # A delivery of which a part was refused before is read again, so that its faults are reported again.
    faults = [entry["detail"] for entry in quarantine.read(config.out) if entry["stage"] == "catalog"]
    results: list[tuple[str, Entry | Refusal]] = []
    changed: list[Delivery] = []
    for delivery in deliveries:
        if delivery.path in reusable and not any(delivery.path in fault for fault in faults):
            results += [(delivery.path, entry) for entry in reusable[delivery.path]]
        else:
            changed.append(delivery)

    def write_partial() -> None:
        write_catalog(partial, [item for _, item in results if isinstance(item, Entry)], made_with)

    batches = (JobBatch(f"catalog-{Path(d.path).name}", [SurveyJob(d, survey)]) for d in changed)
    last_written = time.monotonic()
    with Progress(config.out, "catalog", len(changed), "delivery") as progress:
        try:
            for job, scenes in stream(read_and_survey, batches, client):
                source = job.delivery.path
                if isinstance(scenes, Exception):
                    scenes = [refuse(Path(source).name, type(scenes).__name__, f"{source}: {scenes}")]
                progress.add(1, sum(isinstance(item, Entry) for item in scenes) > 0)
                results += [(source, item) for item in scenes]
                if time.monotonic() > last_written + WRITE_INTERVAL:
                    write_partial()
                    last_written = time.monotonic()
        except (KeyboardInterrupt, ClusterError):
            write_partial()
            raise
    entries, refused = remove_duplicates(results)
    for entry in entries:
        report_ground(entry)
    on_dem = [entry for entry in entries if entry.terrain.dem is not None]
    if on_dem and not any(entry.dem_coverage for entry in on_dem):
        raise ConfigError(
            f"{survey.dem}: the DEM covers none of the scenes that need heights; leave it out for flat ground"
        )
    check_unchanged(config, entries)
    catalogued = {entry.scene.id for entry in entries}
    for scene in contents.list_scenes(files.join(config.out, layout.TILES)):
        if scene not in catalogued:
            detail = f"{files.join(config.out, layout.TILES, scene)} has tiles of a scene that is no longer an input"
            refused.append({"scene": scene, "reason": "gone", "detail": f"{detail}; they are left out of the index"})
    record_refusals("catalog", config, refused)
    if not entries:
        raise ConfigError(
            f"none of the scenes can be used; see {files.join(config.out, quarantine.FILE)} for the reasons"
        )
    entries.sort(key=lambda entry: entry.scene.id)
    if changed or partial_entries or count_entries(path) != len(entries):  # otherwise the file has the same entries
        write_catalog(path, entries, made_with)
        entries = read_catalog(path)  # so that they equal those of all later runs
    files.remove(partial)
    return entries


def provenance(config: SurveyConfig) -> str:
    """JSON of what a catalog entry depends on besides its delivery: settings, the files they name, package versions."""
    table = config.coefficients or str(CALIBRATION)
    return json.dumps(
        {
            "survey": config.model_dump(mode="json", exclude={"scenes", "coefficients"}),
            "fingerprints": [path and fingerprint(path) for path in (config.dem, config.geoid)],
            "coefficients": files.sha256(table) if config.radiometry == "toa" else None,
            "software": {name: version(name) for name in SOFTWARE},
        }
    )


def report_heights(config: SurveyConfig) -> None:
    """Warn if it is uncertain what the heights of the DEM refer to.

    Raises ConfigError if a geoid would be added to heights that are ellipsoidal already.
    """
    if config.dem is None:
        return
    datum = vertical_datum(config.dem)
    if config.geoid is None and datum != "ellipsoid":
        reference = f"has heights above {datum}" if datum else "does not state what its heights refer to"
        log.warning(
            "%s %s; they are used as heights above the ellipsoid unless --geoid is given", config.dem, reference
        )
    if config.geoid is not None and datum == "ellipsoid":
        raise ConfigError(f"{config.dem}: the heights are above the ellipsoid already; leave out the geoid")


def remove_duplicates(results: list[tuple[str, Entry | Refusal]]) -> tuple[list[Entry], list[dict[str, Any]]]:
    """Split results, (path, entry or refusal) each, into entries without duplicates and the refused items.

    Of several deliveries of a scene, the first in the order of their paths is kept. Two are the same scene if they have
    the same product number and bands or, if the metadata have no product number, the same pixels in the same location,
    whatever their file names. Two different scenes with the same name cannot both be stored: the second is refused.
    """
    entries: list[Entry] = []
    refused: list[dict[str, Any]] = []
    first: dict[object, Scene] = {}
    for path, item in sorted(results, key=lambda result: result[0]):
        if isinstance(item, Refusal):
            refused.append(asdict(item))
            continue
        scene = item.scene
        key = product_key(scene) or (item.pixel_digest, scene.footprint.wkb, scene.bands, scene.acquired)
        if twin := first.get(key):
            detail = f"{path}: the scene was already found in {twin.images[0].path}"
            refused.append({"scene": scene.id, "reason": "duplicate", "detail": detail})
        elif twin := first.get(scene.id):
            detail = f"{path}: another scene has the same name, {scene.id}: {twin.images[0].path}; rename one of them"
            refused.append({"scene": scene.id, "reason": "same_name", "detail": detail})
        else:
            entries.append(item)
            first |= {key: scene, scene.id: scene}
    return entries, refused


def product_key(scene: Scene) -> tuple[str, ...] | None:
    """The key that identifies a delivered product; None if its metadata have no usable product number."""
    number = scene.metadata.get("ProductID", "")
    if not scene.satellite or not number.isdecimal() or int(number) in (0, LARGEST_INT32):
        return None
    return (scene.satellite, scene.sensor, number, *scene.bands)


def check_unchanged(config: BuildConfig, entries: list[Entry]) -> None:
    """Raise StoreError if a scene was built from other input or with other settings than the current ones.

    The message says what changed and how to continue. Nothing has been overwritten at that point.
    """
    root = files.join(config.out, layout.TILES)
    built = contents.read_scene_contents(root, [entry.scene.id for entry in entries])
    for entry in entries:
        grid, stored = tile_grid(entry, config.grid), built.get(entry.scene.id)
        if grid is not None and stored is not None:
            store.require_same(root, entry.scene.id, stored.attributes, tile_attributes(entry, grid, config.tiles))


def report_ground(entry: Entry) -> None:
    """Warn if the heights of an L1A scene do not all come from a DEM."""
    scene, terrain = entry.scene, entry.terrain
    if scene.level != "L1A":
        return
    if terrain.dem is None:
        log.warning(
            "%s: no DEM: the ground is assumed flat at %.0f m above the ellipsoid; relief will shift pixels",
            scene.id,
            terrain.height,
        )
    elif entry.dem_holes:
        log.warning("%s: %d cells of the DEM have no height; they were interpolated", scene.id, entry.dem_holes)
    if terrain.dem is not None and entry.dem_coverage < 1:
        log.warning(
            "%s: the DEM covers %.0f %% of the footprint; the rest is assumed flat at %.0f m",
            scene.id,
            100 * entry.dem_coverage,
            terrain.height,
        )
