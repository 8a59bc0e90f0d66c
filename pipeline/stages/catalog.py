"""The stage `catalog`: find and survey all scenes, and refuse input that would mix with differently built tiles."""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from geokr.dataset import contents, layout, store
from geokr.landcover.sheets import LandCover
from geokr.settings import ConfigError
from geokr.storage import files, inputs
from geokr.storage.rasters import fingerprint
from pipeline.catalog import quarantine
from pipeline.catalog.account import Given, summarise, take_account, write_account
from pipeline.catalog.table import CATALOG, Entry, count_entries, read_catalog, reusable_entries, write_catalog
from pipeline.config import BuildConfig, SurveyConfig
from pipeline.geometry.terrain import GEOIDS, find_unit_conflict, vertical_datum
from pipeline.imaging.calibration import CALIBRATION
from pipeline.plan import known_inputs, leave_out_known, tile_attributes, tile_grid
from pipeline.runtime.cluster import ClusterError
from pipeline.runtime.progress import Progress
from pipeline.runtime.stream import Client, JobBatch, stream
from pipeline.scenes import stac
from pipeline.scenes.delivery import NoImagery, Refusal, refuse
from pipeline.scenes.discovery import Delivery, Inventory, find_alternatives, take_inventory
from pipeline.scenes.products import find_reader, make_readers
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


@dataclass(frozen=True, slots=True)
class Findings:
    """What a survey of the inputs found."""

    entries: list[Entry]
    """Sorted by the id of the scene."""
    refused: list[dict[str, Any]]
    """Entries of the quarantine, without the stage."""
    account: list[Given]
    made_with: str
    """See `provenance`."""
    changed: bool
    """Whether scenes.parquet lacks any of the entries."""


def run(config: BuildConfig, client: Client | None, covers: Sequence[LandCover] = ()) -> list[Entry]:
    """Find and survey all scenes; write scenes.parquet and the account of the inputs, inputs.jsonl.

    Entries of deliveries that have not changed are reused. covers: the land cover, whose files are not scenes.
    Raises ConfigError and other errors: see `examine`.
    """
    path = files.join(config.out, CATALOG)
    found = examine(config, client, covers)
    write_account(config.out, found.account)
    record_refusals("catalog", config, found.refused)
    if not found.entries:
        report_unused(found.account)
        raise ConfigError(
            f"none of the scenes can be used; see {files.join(config.out, quarantine.FILE)} for the reasons"
        )
    entries = found.entries
    if found.changed or count_entries(path) != len(entries):  # otherwise the file has the same entries
        write_catalog(path, entries, found.made_with)
        entries = read_catalog(path)  # so that they equal those of all later runs
    files.remove(files.join(config.out, PARTIAL))
    return entries


def examine(
    config: BuildConfig, client: Client | None, covers: Sequence[LandCover] = (), write: bool = True
) -> Findings:
    """Find and survey all scenes, and compare them with what is built.

    covers: see `run`. write: whether progress and the entries of an interrupted survey are written into the data set.
    Raises FileNotFoundError for a directory that does not exist, ConfigError if no scene is found or if the DEM covers
    none of them, and StoreError if a scene was built from other input or with other settings before.
    """
    elevation = {"dem": config.survey.dem, "geoid": config.survey.geoid}
    absolute = {name: raster and inputs.make_absolute(raster) for name, raster in elevation.items()}
    survey = config.survey.model_copy(update=absolute)  # a worker may have another working directory
    report_heights(survey)
    known = known_inputs(config, covers)
    inventory = leave_out_known(take_inventory(survey.scenes, make_readers(survey.band_files)), known)
    if not inventory.deliveries:
        report_unused(take_account(inventory, {}, known))
        raise ConfigError(f"{', '.join(survey.scenes)}: no TIFF, archive or STAC item found")
    surveyed = Survey(config, survey, inventory, write)
    surveyed.add([delivery for delivery in inventory.deliveries if not delivery.items], client)
    used = [path for path, item in surveyed.results if isinstance(item, Entry)]
    surveyed.add(find_alternatives(inventory, used), client)
    entries, outcomes = remove_duplicates(surveyed.results)
    entries.sort(key=lambda entry: entry.scene.id)
    for entry in entries:
        report_ground(entry)
    if survey.mask == "qa" and (bare := [entry.scene.id for entry in entries if entry.scene.quality is None]):
        more = f" and {len(bare) - 1} more scenes" if len(bare) > 1 else ""
        log.warning("%s%s: there is no quality band, so clouds are known by their brightness only", bare[0], more)
    report_missing_bands(config.survey, inventory, entries)
    if undated := [entry.scene.id for entry in entries if entry.scene.acquired is None]:
        more = f" and {len(undated) - 1} more scenes" if len(undated) > 1 else ""
        log.info("%s%s: nothing says when it was taken, so the years to the map are unknown", undated[0], more)
    on_dem = [entry for entry in entries if entry.terrain.dem is not None]
    if on_dem and not any(entry.dem_coverage for entry in on_dem):
        raise ConfigError(
            f"{survey.dem}: the DEM covers none of the scenes that need heights; leave it out for flat ground"
        )
    check_unchanged(config, entries)
    refused = [asdict(item) for item in list_refusals(outcomes)]
    catalogued = {entry.scene.id for entry in entries}
    for scene in contents.list_scenes(files.join(config.out, layout.TILES)):
        if scene not in catalogued:
            detail = f"{files.join(config.out, layout.TILES, scene)} has tiles of a scene that is no longer an input"
            refused.append({"scene": scene, "reason": "gone", "detail": f"{detail}; they are left out of the index"})
    account = take_account(inventory, outcomes, known)
    return Findings(entries, refused, account, surveyed.made_with, surveyed.changed)


class Survey:
    """The survey of deliveries. Those that have not changed since an earlier run are not read again."""

    def __init__(self, config: BuildConfig, survey: SurveyConfig, inventory: Inventory, write: bool) -> None:
        """write: whether progress and the entries of an interrupted survey are written into the data set."""
        self.config, self.survey, self.write = config, survey, write
        self.made_with = provenance(survey)
        self.partial = files.join(config.out, PARTIAL)
        versions = {d.path: d.source_version for d in inventory.deliveries if d.source_version}
        versions |= {d.path: stac.item_digest(json.loads(d.item)) for d in inventory.deliveries if d.item}
        of_interrupted = reusable_entries(self.partial, self.made_with, versions)
        self.reusable = of_interrupted | reusable_entries(files.join(config.out, CATALOG), self.made_with, versions)
        self.changed = bool(of_interrupted)
        """Whether scenes.parquet lacks any of the entries."""
        # A delivery of which a part was refused before is read again, so that its faults are reported again.
        self.faults = [entry["detail"] for entry in quarantine.read(config.out) if entry["stage"] == "catalog"]
        self.results: list[tuple[str, Entry | Refusal]] = []
        """Path of a delivery, and an entry or refusal of it."""

    def add(self, deliveries: Sequence[Delivery], client: Client | None) -> None:
        """Survey deliveries."""
        pending: list[Delivery] = []
        for delivery in deliveries:
            path = delivery.path
            if path in self.reusable and not any(path in fault for fault in self.faults):
                self.results += [(path, entry) for entry in self.reusable[path]]
            else:
                pending.append(delivery)
        if not deliveries:
            return
        self.changed |= bool(pending)
        batches = (JobBatch(f"catalog-{Path(d.path).name}", [SurveyJob(d, self.survey)]) for d in pending)
        last_written = time.monotonic()
        out = self.config.out if self.write else None
        with Progress(out, "catalog", len(pending), "delivery", client=client) as progress:
            try:
                for job, scenes in stream(read_and_survey, batches, client):
                    source = job.delivery.path
                    if isinstance(scenes, Exception):
                        scenes = [refuse(Path(source).name, type(scenes).__name__, f"{source}: {scenes}")]
                    progress.add(1, sum(isinstance(item, Entry) for item in scenes) > 0)
                    self.results += [(source, item) for item in scenes]
                    if self.write and time.monotonic() > last_written + WRITE_INTERVAL:
                        self.write_partial()
                        last_written = time.monotonic()
            except (KeyboardInterrupt, ClusterError):
                if self.write:
                    self.write_partial()
                raise

    def write_partial(self) -> None:
        """Write the entries so far, for a run that resumes this one."""
        write_catalog(self.partial, [item for _, item in self.results if isinstance(item, Entry)], self.made_with)


def list_refusals(outcomes: Mapping[str, Sequence[Scene | Refusal]]) -> Iterator[Refusal]:
    """What was refused, without images that are no imagery and are therefore not at fault."""
    for items in outcomes.values():
        yield from (item for item in items if isinstance(item, Refusal) and not isinstance(item, NoImagery))


def report_unused(lines: Sequence[Given]) -> None:
    """Warn of what the inputs are, if there is no scene among them."""
    for line in summarise(lines):
        log.warning("%s", line)


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
    """Warn if it is uncertain what the heights of the DEM refer to, or what their unit is.

    Raises ConfigError if a geoid would be added to heights that are ellipsoidal already.
    """
    if config.dem is None:
        return
    datum = vertical_datum(config.dem)
    if config.geoid is None and datum != "ellipsoid":
        reference = f"has heights above {datum}" if datum else "does not state what its heights refer to"
        model = next((name for name in GEOIDS if name in (datum or "").lower()), "")
        log.warning(
            "%s %s; they are used as heights above the ellipsoid unless %s is given",
            config.dem, reference, f"--geoid {model}".strip(),
        )  # fmt: skip
    for path in filter(None, (config.dem, config.geoid)):
        if conflict := find_unit_conflict(path):
            log.warning("%s: %s", path, conflict)
    if config.geoid is not None and datum == "ellipsoid":
        raise ConfigError(f"{config.dem}: the heights are above the ellipsoid already; leave out the geoid")


def report_missing_bands(config: SurveyConfig, inventory: Inventory, entries: Sequence[Entry]) -> None:
    """Warn of scenes that lack bands of the setting `bands`, for deliveries from which they are chosen."""
    if config.imagery != "mss":
        return
    wanted = [band.partition("=")[0] for band in config.bands]
    readers = make_readers(config.band_files)
    chosen = {d.path for d in inventory.deliveries if d.item or find_reader(d.files, readers) is not None}
    lacking: dict[tuple[str, ...], list[Scene]] = {}
    for entry in entries:
        if entry.scene.delivery in chosen and (missing := [name for name in wanted if name not in entry.scene.bands]):
            lacking.setdefault(tuple(missing), []).append(entry.scene)
    for names, scenes in lacking.items():
        more = f" and {len(scenes) - 1} more" if len(scenes) > 1 else ""
        bands = ", ".join(scenes[0].bands)
        log.warning("%s%s: no band %s; the tiles have %s", scenes[0].id, more, ", ".join(names), bands)


def remove_duplicates(
    results: list[tuple[str, Entry | Refusal]],
) -> tuple[list[Entry], dict[str, list[Scene | Refusal]]]:
    """The entries without duplicates, and path of a delivery -> its scenes and refusals, those of duplicates included.

    Of several deliveries of a scene, the first in the order of their paths is kept. Two are the same scene if they have
    the same product number and bands or, if the metadata have no product number, the same pixels in the same location,
    whatever their file names. Two different scenes with the same name cannot both be stored: the second is refused.
    """
    entries: list[Entry] = []
    outcomes: dict[str, list[Scene | Refusal]] = {}
    first: dict[object, Scene] = {}
    for path, item in sorted(results, key=lambda result: result[0]):
        outcome = outcomes.setdefault(path, [])
        if isinstance(item, Refusal):
            outcome.append(item)
            continue
        scene = item.scene
        key = product_key(scene) or (item.pixel_digest, scene.footprint.wkb, scene.bands, scene.acquired)
        if twin := first.get(key):
            detail = f"{path}: the scene was already found in {twin.images[0].path}"
            outcome.append(Refusal(scene.id, "duplicate", detail))
        elif twin := first.get(scene.id):
            detail = f"{path}: another scene has the same name, {scene.id}: {twin.images[0].path}; rename one of them"
            outcome.append(Refusal(scene.id, "same_name", detail))
        else:
            entries.append(item)
            outcome.append(scene)
            first |= {key: scene, scene.id: scene}
    return entries, outcomes


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
