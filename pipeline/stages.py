"""The stages of a build: each finds what is left to do, streams it, and says what came of it."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from itertools import starmap
from pathlib import Path
from typing import Any

from geokr import files, index, store
from geokr.landcover import LandCover
from geokr.shares import near
from pipeline import quarantine, stac
from pipeline.catalog import CATALOG, CatalogJob, Entry, read_and_survey, read_catalog, unchanged, write_catalog
from pipeline.config import BuildConfig, ConfigError
from pipeline.delivery import Refusal, refuse
from pipeline.finding import Delivery, deliveries
from pipeline.grid import TileGrid, peak_bytes, scene_grid
from pipeline.labels import LabelJob, build_labels, outline
from pipeline.pansharpen import equal_weights
from pipeline.radiometry import CALIBRATION, Radiometry, stretched
from pipeline.rows import RowJob, SceneRows, assemble, footprints, scene_rows
from pipeline.run import Batch, Client, stream
from pipeline.scene import Scene
from pipeline.terrain import fingerprint, vertical
from pipeline.tiles import TileJob, build_tiles
from pipeline.watch import Progress, note

log = logging.getLogger(__name__)

LARGEST_INT32 = 2**31 - 1
"""Stands in deliveries for a product number that did not fit."""
SOFTWARE = ("rasterio", "pyproj", "opencv-python-headless", "numba", "zarr", "numpy")
"""Packages whose versions go into the provenance: what the bytes depend on."""
INDEX_COLUMNS = {"tile", "scene", "place", "row", "col", "satellite", "sensor", "acquired", "gsd"}
INDEX_COLUMNS |= {"known", "cloud", "agreement", "year_gap", "split", "geometry"}
"""Columns of the index beside the classes'."""


def catalog(config: BuildConfig, client: Client | None) -> list[Entry]:
    """Find and survey all scenes; write scenes.parquet. What was surveyed before and has not changed is kept.

    Raises FileNotFoundError for a directory that is not there, ConfigError where no scene is found.
    """
    out = config.out
    dem = None if config.dem is None else str(Path(config.dem).absolute())
    software = {name: version(name) for name in SOFTWARE}
    geoid = None if config.geoid is None else str(Path(config.geoid).absolute())
    table = config.coefficients or str(CALIBRATION)
    provenance = json.dumps(
        {
            "dem": dem,
            "geoid": geoid,
            "fingerprints": [path and fingerprint(path) for path in (dem, geoid)],
            "stretch": config.stretch,
            "radiometry": config.radiometry,
            "coefficients": digest(table) if config.radiometry == "toa" else None,
            "weights": config.pansharpen_weights,
            "imagery": config.imagery,
            "bands": config.bands,
            "software": software,
        }
    )
    tell_heights(dem, geoid)
    found_there = list(deliveries(config.scenes))
    digests = {here.path: stac.digest(json.loads(here.item)) for here in found_there if here.item}
    known = unchanged(store.join(out, CATALOG), provenance, digests)
    # What refused a part of a delivery before must be found again, so such a one is read again.
    faults = [entry["detail"] for entry in quarantine.read(out) if entry["stage"] == "catalog"]
    results: list[tuple[str, Entry | Refusal]] = []
    changed: list[Delivery] = []
    for delivery in found_there:
        if delivery.path in known and not any(delivery.path in fault for fault in faults):
            results += [(delivery.path, entry) for entry in known[delivery.path]]
        else:
            changed.append(delivery)
    if not changed and not results:
        raise ConfigError(f"{', '.join(config.scenes)}: no TIFF and no archive is in there, and no STAC item")
    given = (
        dem, config.stretch, config.imagery, geoid, config.radiometry, config.coefficients, config.pansharpen_weights,
        config.bands,
    )  # fmt: skip
    batches = (Batch(f"catalog-{Path(d.path).name}", [CatalogJob(d, *given)]) for d in changed)
    with Progress(out, "catalog", len(changed), "delivery") as progress:
        for job, found in stream(read_and_survey, batches, client):
            path = job.delivery.path
            if isinstance(found, Exception):
                found = [refuse(Path(path).name, type(found).__name__, f"{path}: {found}")]
            progress.add(1, sum(isinstance(item, Entry) for item in found) > 0)
            results += [(path, item) for item in found]
    entries, refused = once_each(results)
    for entry in entries:
        tell_ground(entry)
    refuse_mixture(config, entries)
    here = {entry.scene.id for entry in entries}
    for scene in store.scenes(store.join(config.out, store.TILES)):
        if scene not in here:
            detail = f"{store.join(config.out, store.TILES, scene)} holds tiles of a scene that is not there any more"
            refused.append({"scene": scene, "reason": "gone", "detail": f"{detail}; they are left out of the index"})
    finish("catalog", config, refused)
    if not entries:
        raise ConfigError(f"none of the scenes can be used; {store.join(out, quarantine.FILE)} says why")
    write_catalog(store.join(out, CATALOG), entries, provenance)
    return read_catalog(store.join(out, CATALOG))


def tell_heights(dem: str | None, geoid: str | None) -> None:
    """Say aloud what a DEM's heights are taken to be above, unless that is certain."""
    if dem is None:
        return
    said = vertical(dem)
    if geoid is None and said != "ellipsoid":
        above = f"says that its heights are above {said}" if said else "does not say what its heights are above"
        log.warning("%s %s; they are taken as above the ellipsoid, unless --geoid names a grid", dem, above)
    if geoid is not None and said == "ellipsoid":
        raise ConfigError(f"{dem}: its heights are above the ellipsoid already, so that no geoid must be added")


def once_each(results: list[tuple[str, Entry | Refusal]]) -> tuple[list[Entry], list[dict[str, Any]]]:
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
        key = product_of(scene) or (item.pixels, scene.footprint.wkb, scene.bands, scene.acquired)
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


def product_of(scene: Scene) -> tuple[str, ...] | None:
    """What tells a delivered product from all others; None where its metadata do not say."""
    number = scene.metadata.get("ProductID", "")
    if not scene.satellite or not number.isdecimal() or int(number) in (0, LARGEST_INT32):
        return None
    return (scene.satellite, scene.sensor, number, *scene.bands)


def refuse_mixture(config: BuildConfig, entries: list[Entry]) -> None:
    """Raise StoreError where a scene was built from other input or with other settings than now.

    It says what changed and how to go on; nothing has been overwritten by then.
    """
    root = store.join(config.out, store.TILES)
    built = store.built(root, [entry.scene.id for entry in entries])
    for entry in entries:
        grid, there = grid_of(entry, config), built.get(entry.scene.id)
        if grid is not None and there is not None:
            store.same(root, entry.scene.id, there.attributes, attributes(entry, grid, config))


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
    elif entry.dem_holes:
        log.warning("%s: %d cells of the DEM hold no height; they were interpolated", scene.id, entry.dem_holes)
    if terrain.dem is not None and entry.dem_coverage < 1:
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
        "source": {
            "name": Path(scene.images[0].path).name,
            "bytes": scene.bytes,
            "sha256_of_metadata": scene.checksum,
            "sha256_of_every_20th_pixel": entry.pixels,
        },
        "stretch": [entry.stretch.low, entry.stretch.high],
        "radiometry": stored(entry).attributes(),
        "resampling": config.resampling,
        **grounds(entry),
        "rules": asdict(config.rules),
    } | (
        {}
        if scene.pan is None
        else {"pansharpened": {"method": "weighted Brovey", "weights": weights_of(entry, config)}}
    )


def stored(entry: Entry) -> Radiometry:
    """What is stored of a scene's pixels."""
    return entry.radiometry or stretched(entry.stretch, len(entry.scene.bands))


def weights_of(entry: Entry, config: BuildConfig) -> list[float]:
    """Of the bands in pansharpening."""
    return list(config.pansharpen_weights or equal_weights(len(entry.scene.bands)))


def grounds(entry: Entry) -> dict[str, Any]:
    """Where a scene's heights come from."""
    terrain = entry.terrain
    return {
        "dem": None if terrain.dem is None else Path(terrain.dem).name,
        "dem_fingerprint": None if terrain.dem is None else fingerprint(terrain.dem),
        "dem_coverage": entry.dem_coverage,
        "dem_holes_interpolated": entry.dem_holes,
        "geoid": None if terrain.geoid is None else Path(terrain.geoid).name,
        "geoid_fingerprint": None if terrain.geoid is None else fingerprint(terrain.geoid),
        "ground_height": terrain.height,
    }


def tiles(config: BuildConfig, entries: list[Entry], client: Client | None) -> None:
    """Build every block that is not built yet.

    Raises StoreError where a scene was built from other input or with other settings before.
    """
    root = store.join(config.out, store.TILES)
    refused: list[dict[str, Any]] = []
    built = store.built(root, [entry.scene.id for entry in entries])
    left: list[tuple[Entry, Unbuilt]] = []
    for entry in entries:
        scene, grid = entry.scene, grid_of(entry, config)
        if grid is None:
            detail = f"{scene.images[0].path}: no tile of {config.tile} px at {scene.gsd:g} m fits into the scene"
            refused.append({"scene": scene.id, "reason": "too_small", "detail": detail})
            continue
        unbuilt = Unbuilt(grid, built.get(scene.id))
        unbuilt.check(root, scene.id, attributes(entry, grid, config))
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
                attributes=attributes(entry, grid, config),
            )
            job = partial(tile_job, config, root, entry, grid)
            yield Batch(f"tiles-{scene.id}", starmap(job, unbuilt), promised_bytes(scene, grid, config))

    failures = Failures()
    tally = Tally(config, "tiles", {entry.scene.id: unbuilt.tiles for entry, unbuilt in left})
    with Progress(config.out, "tiles", tally.total, "tile") as progress:
        for job, report in stream(build_tiles, batches(), client):
            if isinstance(report, Exception):
                failures.add(job.scene.id, (job.i, job.j), report)
                tally.add(job.scene.id, size(job), failed=1)
                progress.add(size(job), 0)
            else:
                tally.add(job.scene.id, report.tiles, accepted=report.accepted)
                progress.add(report.tiles, report.accepted)
    gather(root, built, bool(left))
    finish("tiles", config, refused + failures.entries())


def tile_job(config: BuildConfig, root: str, entry: Entry, grid: TileGrid, i: int, j: int) -> TileJob:
    """What building block (i, j) of a scene takes. root: the tile store."""
    how = entry.radiometry, config.resampling, config.pansharpen_weights
    return TileJob(root, entry.scene, entry.terrain, entry.stretch, config.rules, grid, i, j, *how)


def gather(root: str, built: Mapping[str, store.Built], changed: bool) -> None:
    """Gather a store's metadata where it has changed, or where an earlier run ended before it did.

    built: what was there before.
    """
    if changed or (built and not built.keys() <= store.consolidated(root).keys()):
        store.consolidate(root)


class Unbuilt:
    """The blocks of a scene that a store does not hold yet, row by row."""

    def __init__(self, grid: TileGrid, there: store.Built | None) -> None:
        self.grid, self.there = grid, there
        rows, cols = grid.blocks
        self.done = there.blocks if there is not None else frozenset()
        sizes = (tile_count(grid, i, j) for i, j in self.done if i < rows and j < cols)
        self.tiles = grid.rows * grid.cols - sum(sizes)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rows, cols = self.grid.blocks
        return ((i, j) for i in range(rows) for j in range(cols) if (i, j) not in self.done)

    def check(self, root: str, scene: str, wanted: dict[str, Any]) -> None:
        """Raise StoreError where what is there was built from other input or with other settings."""
        if self.there is not None:
            store.same(root, scene, self.there.attributes, wanted)


class Failures:
    """Jobs that failed, as one quarantine entry for each scene and reason."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], dict[tuple[int, int], str]] = {}

    def add(self, scene: str, block: tuple[int, int], error: Exception) -> None:
        self.found.setdefault((scene, type(error).__name__), {})[block] = str(error) or repr(error)

    def entries(self) -> list[dict[str, Any]]:
        """The sentence of each is that of its first block, whatever the order in which they failed."""
        return [
            {
                "scene": scene,
                "reason": reason,
                "detail": self.sentence(scene, blocks),
                "blocks": sorted(map(list, blocks)),
            }
            for (scene, reason), blocks in sorted(self.found.items())
        ]

    @staticmethod
    def sentence(scene: str, blocks: dict[tuple[int, int], str]) -> str:
        first = blocks[min(blocks)]
        return first if scene in first else f"{scene}: {first}"


class Tally:
    """Counts of the scenes that are at work; each goes to the log when it is done."""

    def __init__(self, config: BuildConfig, stage: str, left: dict[str, int]) -> None:
        """left: scene -> tiles that are to be built."""
        self.config, self.stage, self.left = config, stage, dict(left)
        self.total = sum(left.values())
        self.counts: dict[str, Counter[str]] = {}

    def add(self, scene: str, tiles: int, **counts: int) -> None:
        found = self.counts.setdefault(scene, Counter())
        found.update(tiles=tiles, **counts)
        self.left[scene] -= tiles
        if not self.left[scene]:
            note(self.config.out, "scene", stage=self.stage, scene=scene, **self.counts.pop(scene))


def promised_bytes(scene: Scene, grid: TileGrid, config: BuildConfig) -> int:
    """Peak memory of building one block of a scene, bytes, beside the libraries."""
    itemsize = 1 if scene.dtype == "uint8" else 2
    deep = 2 if config.radiometry == "toa" else itemsize if config.radiometry == "dn" else 1
    sizes = (grid.block, grid.tile, grid.stride, len(scene.bands), itemsize)
    return peak_bytes(*sizes, pan=scene.pan is not None, stored=deep)


def tile_count(grid: TileGrid, i: int, j: int) -> int:
    """Tiles of a block."""
    return min(grid.block, grid.rows - i * grid.block) * min(grid.block, grid.cols - j * grid.block)


def size(job: TileJob | LabelJob) -> int:
    """Tiles of a job's block."""
    return tile_count(job.grid, job.i, job.j)


def finish(stage: str, config: BuildConfig, refused: Collection[dict[str, Any]]) -> None:
    """Say and record what a stage refused."""
    for refusal in refused:
        log.warning("refused: %s", refusal["detail"])
        note(config.out, "refused", stage=stage, **refusal)
    quarantine.replace(config.out, stage, [*refused])


def labels(config: BuildConfig, covers: list[LandCover], entries: list[Entry], client: Client | None) -> None:
    """Label every block that is not labelled yet, with every product.

    Raises StoreError where a scene was labelled with other settings or sheets before, ConfigError where a product
    covers none of the scenes.
    """
    refuse_idle(config, covers, entries)
    failures = Failures()
    unlisted: set[int] = set()
    for cover in covers:
        root = store.join(config.out, store.label_store(cover.name))
        built = store.built(root, [entry.scene.id for entry in entries])
        left: list[tuple[Entry, Unbuilt, LandCover, dict[str, Any]]] = []
        for entry in entries:
            scene, grid = entry.scene, grid_of(entry, config)
            if grid is None:
                continue
            here = near(outline(grid), str(grid.geobox.crs), cover)
            if not here.sheets:
                log.warning("%s: %s has no land cover there; its tiles stay without a label", scene.id, cover.name)
            wanted = {
                **placement(grid),
                "product": cover.name,
                "taxonomy": cover.legend.taxonomy,
                "sheets": {Path(sheet.path).name: Path(sheet.path).stat().st_size for sheet in here.sheets},
                "classes": list(cover.legend.classes),
            }
            unbuilt = Unbuilt(grid, built.get(scene.id))
            unbuilt.check(root, scene.id, wanted)
            if unbuilt.tiles:
                left.append((entry, unbuilt, here, wanted))

        def batches(
            root: str = root, left: list[tuple[Entry, Unbuilt, LandCover, dict[str, Any]]] = left
        ) -> Iterator[Batch[LabelJob]]:
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
                yield Batch(f"labels-{here.name}-{scene.id}", starmap(job, unbuilt))

        tally = Tally(config, f"labels {cover.name}", {entry.scene.id: unbuilt.tiles for entry, unbuilt, *_ in left})
        with Progress(config.out, f"labels {cover.name}", tally.total, "tile") as progress:
            for job, report in stream(build_labels, batches(), client):
                progress.add(size(job))
                if isinstance(report, Exception):
                    failures.add(job.scene, (job.i, job.j), report)
                    tally.add(job.scene, size(job), failed=1)
                else:
                    unlisted |= report.unlisted
                    tally.add(job.scene, report.tiles, labelled=report.labelled)
        gather(root, built, bool(left))
    if unlisted:
        log.warning("codes %s of the land cover are not in its legend; their area counts as unknown", sorted(unlisted))
    finish("labels", config, failures.entries())


def refuse_idle(config: BuildConfig, covers: list[LandCover], entries: list[Entry]) -> None:
    """Raise ConfigError where none of a product's sheets touches any of the scenes."""
    grids = [grid for entry in entries if (grid := grid_of(entry, config)) is not None]
    for cover in covers:
        if grids and not any(near(outline(grid), str(grid.geobox.crs), cover).sheets for grid in grids):
            sheets = f"{cover.sheets[0].path} and {len(cover.sheets) - 1} more"
            raise ConfigError(f"{cover.name}: none of its sheets, {sheets}, covers any of the scenes")


def label_set(config: BuildConfig, covers: list[LandCover]) -> str:
    """The label set of the index: the one asked for, or the only one there is."""
    names = [cover.name for cover in covers]
    for cover in covers:
        if clash := INDEX_COLUMNS & set(cover.legend.classes):
            raise ConfigError(f"{cover.legend.taxonomy}: no class may be named {min(clash)}, as a column of the index")
    if config.min_agreement is not None and len(names) == 1:
        raise ConfigError(f"min_agreement is set, but {names[0]} is the only label set: none to compare it with")
    if config.labels is None and len(names) == 1:
        return names[0]
    if config.labels is None:
        raise ConfigError(f"the land cover holds {', '.join(names)}; say with --labels which one the index is to use")
    if config.labels not in names:
        raise ConfigError(f"labels is {config.labels}, but the land cover holds {', '.join(names)}")
    return config.labels


def row_job(config: BuildConfig, scene: Scene, grid: TileGrid, name: str, covers: list[LandCover]) -> RowJob:
    """What listing a scene takes. name: the label set of the index, which is compared with those of other covers."""
    others = tuple(cover.name for cover in covers if cover.name != name)
    return RowJob(config.out, scene, grid, name, config.min_known, others, config.min_agreement, config.max_year_gap)


def make_index(
    config: BuildConfig, covers: list[LandCover], entries: list[Entry], client: Client | None
) -> dict[str, Any]:
    """List the accepted, labelled tiles with their splits; write index.parquet and dataset.json. Returns the latter."""
    out = config.out
    name = label_set(config, covers)
    legend = next(cover.legend for cover in covers if cover.name == name)
    grids = [(entry.scene, grid) for entry in entries if (grid := grid_of(entry, config)) is not None]
    batches = (Batch(f"index-{scene.id}", [row_job(config, scene, grid, name, covers)]) for scene, grid in grids)
    found: list[tuple[str, SceneRows]] = []
    refused: list[dict[str, Any]] = []
    with Progress(out, "index", len(grids), "scene") as progress:
        for job, rows in stream(scene_rows, batches, client):
            progress.add(1)
            if isinstance(rows, Exception):
                detail = str(rows) or repr(rows)
                refused.append({"scene": job.scene.id, "reason": type(rows).__name__, "detail": detail})
            else:
                found.append((job.scene.id, rows))
    finish("index", config, refused)
    if not found:
        raise ConfigError(f"no scene was built to the end; {store.join(out, quarantine.FILE)} says why")
    found.sort(key=lambda item: item[0])
    table = assemble([rows for _, rows in found], config.split)
    incomplete = {scene: rows.missing for scene, rows in found if rows.missing}
    index.write_index(out, table.columns, footprints(table.corners))
    summary = {
        "schema": store.SCHEMA,
        "classes": list(legend.classes),
        "colours": list(legend.colours),
        "taxonomy": legend.taxonomy,
        "labels": name,
        "label_sets": [cover.name for cover in covers],
        "counts": {
            "scenes": len(found),
            "incomplete": len(incomplete),
            "quarantined": len(quarantine.read(out)),
            **table.counts(),
        },
        "incomplete": incomplete,
        "class_shares": table.class_shares(legend.classes),
        "settings": config.model_dump(mode="json", exclude={"out"}),
        "sha256": {file: digest(store.join(out, file)) for file in (CATALOG, index.INDEX)},
    }
    quarantine.write_whole(store.join(out, index.DATASET), json.dumps(summary, indent=2) + "\n")
    return summary


def digest(path: str) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(files.read(path)).hexdigest()
