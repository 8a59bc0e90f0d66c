"""The stage `catalog`: find and survey all scenes, and refuse what would make a mixture of what is there."""

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
from pipeline.tasks.survey import CatalogJob, read_and_survey

log = logging.getLogger(__name__)

PARTIAL = "scenes.partial.parquet"
"""Entries of a catalog in the making, which an interrupted run goes on from; gone when the catalog is whole."""
EVERY = 60.0
"""They are written so often, s."""
LARGEST_INT32 = 2**31 - 1
"""Stands in deliveries for a product number that did not fit."""
SOFTWARE = ("rasterio", "pyproj", "opencv-python-headless", "numba", "zarr", "numpy")
"""Packages whose versions go into the provenance: what the bytes depend on."""


def run(config: BuildConfig, client: Client | None) -> list[Entry]:
    """Find and survey all scenes; write scenes.parquet. What was surveyed before and has not changed is kept.

    Raises FileNotFoundError for a directory that is not there, ConfigError where no scene is found or the DEM covers
    none of them.
    """
    path, partial = files.join(config.out, CATALOG), files.join(config.out, PARTIAL)
    heights = {name: path and inputs.make_absolute(path) for name, path in config.survey if name in ("dem", "geoid")}
    survey = config.survey.model_copy(update=heights)  # a worker may have another working directory
    report_heights(survey)
    made_with = provenance(survey)
    found_there = list(find_deliveries(survey.scenes))
    if not found_there:
        raise ConfigError(f"{', '.join(survey.scenes)}: no TIFF and no archive is in there, and no STAC item")
    digests = {here.path: here.source_version for here in found_there if here.source_version}
    digests |= {here.path: stac.item_digest(json.loads(here.item)) for here in found_there if here.item}
    begun = reusable_entries(partial, made_with, digests)
    known = begun | reusable_entries(path, made_with, digests)
    # What refused a part of a delivery before must be found again, so such a one is read again.
    faults = [entry["detail"] for entry in quarantine.read(config.out) if entry["stage"] == "catalog"]
    results: list[tuple[str, Entry | Refusal]] = []
    changed: list[Delivery] = []
    for delivery in found_there:
        if delivery.path in known and not any(delivery.path in fault for fault in faults):
            results += [(delivery.path, entry) for entry in known[delivery.path]]
        else:
            changed.append(delivery)

    def keep() -> None:
        write_catalog(partial, [item for _, item in results if isinstance(item, Entry)], made_with)

    batches = (JobBatch(f"catalog-{Path(d.path).name}", [CatalogJob(d, survey)]) for d in changed)
    kept = time.monotonic()
    with Progress(config.out, "catalog", len(changed), "delivery") as progress:
        try:
            for job, found in stream(read_and_survey, batches, client):
                where = job.delivery.path
                if isinstance(found, Exception):
                    found = [refuse(Path(where).name, type(found).__name__, f"{where}: {found}")]
                progress.add(1, sum(isinstance(item, Entry) for item in found) > 0)
                results += [(where, item) for item in found]
                if time.monotonic() > kept + EVERY:
                    keep()
                    kept = time.monotonic()
        except (KeyboardInterrupt, ClusterError):
            keep()
            raise
    entries, refused = remove_duplicates(results)
    for entry in entries:
        report_ground(entry)
    on_dem = [entry for entry in entries if entry.terrain.dem is not None]
    if on_dem and not any(entry.dem_coverage for entry in on_dem):
        raise ConfigError(
            f"{survey.dem}: it covers none of the scenes that need heights; leave it out for a flat ground"
        )
    check_unchanged(config, entries)
    here = {entry.scene.id for entry in entries}
    for scene in contents.list_scenes(files.join(config.out, layout.TILES)):
        if scene not in here:
            detail = f"{files.join(config.out, layout.TILES, scene)} holds tiles of a scene that is not there any more"
            refused.append({"scene": scene, "reason": "gone", "detail": f"{detail}; they are left out of the index"})
    record_refusals("catalog", config, refused)
    if not entries:
        raise ConfigError(f"none of the scenes can be used; {files.join(config.out, quarantine.FILE)} says why")
    entries.sort(key=lambda entry: entry.scene.id)
    if changed or begun or count_entries(path) != len(entries):  # otherwise they are all that it holds
        write_catalog(path, entries, made_with)
        entries = read_catalog(path)  # as all later runs will have them
    files.remove(partial)
    return entries


def provenance(config: SurveyConfig) -> str:
    """JSON of what an entry of the catalog depends on besides its files: the settings, their files, and software."""
    table = config.coefficients or str(CALIBRATION)
    return json.dumps(
        {
            "survey": config.model_dump(mode="json", exclude={"scenes"}),
            "fingerprints": [path and fingerprint(path) for path in (config.dem, config.geoid)],
            "coefficients": files.sha256(table) if config.radiometry == "toa" else None,
            "software": {name: version(name) for name in SOFTWARE},
        }
    )


def report_heights(config: SurveyConfig) -> None:
    """Say aloud what a DEM's heights are taken to be above, unless that is certain."""
    if config.dem is None:
        return
    said = vertical_datum(config.dem)
    if config.geoid is None and said != "ellipsoid":
        above = f"says that its heights are above {said}" if said else "does not say what its heights are above"
        log.warning("%s %s; they are taken as above the ellipsoid, unless --geoid names a grid", config.dem, above)
    if config.geoid is not None and said == "ellipsoid":
        raise ConfigError(f"{config.dem}: its heights are above the ellipsoid already, so that no geoid must be added")


def remove_duplicates(results: list[tuple[str, Entry | Refusal]]) -> tuple[list[Entry], list[dict[str, Any]]]:
    """Each scene once, and what is refused, from what was found under each path: the first in the paths' order stays.

    Two are the same scene if they have the same product number and bands or, where the metadata hold no such number,
    the same pixels in the same place, whatever their files are called. Two scenes of one name cannot both be stored.
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
            detail = f"{path}: the scene is there already, from {twin.images[0].path}"
            refused.append({"scene": scene.id, "reason": "duplicate", "detail": detail})
        elif twin := first.get(scene.id):
            detail = f"{path}: another scene has the same name, {scene.id}: {twin.images[0].path}; rename one of them"
            refused.append({"scene": scene.id, "reason": "same_name", "detail": detail})
        else:
            entries.append(item)
            first |= {key: scene, scene.id: scene}
    return entries, refused


def product_key(scene: Scene) -> tuple[str, ...] | None:
    """What tells a delivered product from all others; None where its metadata do not say."""
    number = scene.metadata.get("ProductID", "")
    if not scene.satellite or not number.isdecimal() or int(number) in (0, LARGEST_INT32):
        return None
    return (scene.satellite, scene.sensor, number, *scene.bands)


def check_unchanged(config: BuildConfig, entries: list[Entry]) -> None:
    """Raise StoreError where a scene was built from other input or with other settings than now.

    It says what changed and how to go on; nothing has been overwritten by then.
    """
    root = files.join(config.out, layout.TILES)
    built = contents.scene_contents(root, [entry.scene.id for entry in entries])
    for entry in entries:
        grid, there = tile_grid(entry, config.grid), built.get(entry.scene.id)
        if grid is not None and there is not None:
            store.require_same(root, entry.scene.id, there.attributes, tile_attributes(entry, grid, config.tiles))


def report_ground(entry: Entry) -> None:
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
    elif entry.dem_holes:
        log.warning("%s: %d cells of the DEM hold no height; they were interpolated", scene.id, entry.dem_holes)
    if terrain.dem is not None and entry.dem_coverage < 1:
        log.warning(
            "%s: the DEM covers %.0f %% of the outline; the rest is taken as flat at %.0f m",
            scene.id,
            100 * entry.dem_coverage,
            terrain.height,
        )
