"""The catalog of scenes: what a survey of each decided, and scenes.parquet, which holds it."""

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import geopandas
import numpy as np
import shapely
from rasterio.windows import Window

from geokr import files
from pipeline import items
from pipeline.delivery import BANDS, Refusal, read_delivery, refuse
from pipeline.finding import Delivery
from pipeline.footprint import flat_terrain, outline
from pipeline.radiometry import Stretch, percentile_stretch
from pipeline.raster import Pixels, Valid, read
from pipeline.scene import Image, Imagery, Scene, SceneError, image_from_json
from pipeline.sensor import Georeferenced
from pipeline.terrain import Terrain

CATALOG = "scenes.parquet"
SURVEY_STEP = 20
"""The stretch is decided on every 20th pixel of every 20th line, as the GeoKR authors did."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the catalog: a scene, and what its survey decided."""

    scene: Scene
    terrain: Terrain
    stretch: Stretch
    dem_coverage: float
    """Share of the footprint's outline that the DEM covers; 0 without one."""


@dataclass(frozen=True, slots=True)
class CatalogJob:
    """One delivery to read and survey."""

    delivery: Delivery
    dem: str | None
    stretch: tuple[float, float]
    imagery: Imagery = "mss"
    bands: tuple[str, ...] = BANDS


def read_and_survey(job: CatalogJob) -> list[Entry | Refusal]:
    """The scenes of one delivery, surveyed; what cannot be used is a Refusal."""
    found: list[Entry | Refusal] = []
    for scene in read_delivery(job.delivery, job.imagery, job.bands):
        if isinstance(scene, Refusal):
            found.append(scene)
            continue
        try:
            found.append(survey(scene, job.dem, *job.stretch))
        except SceneError as error:
            found.append(refuse(scene.id, "unusable", str(error)))
    return found


def survey(scene: Scene, dem: str | None, low: float, high: float) -> Entry:
    """Decide a scene's stretch and ground: reads every 20th pixel. Raises SceneError naming file and fault."""
    first = scene.images[0]
    terrain = replace(flat_terrain(first.model), dem=None if isinstance(first.model, Georeferenced) else dem)
    footprint = outline(first, terrain)
    coverage = terrain.coverage(*shapely.get_coordinates(footprint.exterior).T)
    shape = (max(1, first.height // SURVEY_STEP), max(1, first.width // SURVEY_STEP))
    samples, valid = [], np.ones(shape, np.bool_)
    for image in scene.images:
        sample, known = decimated(image, shape)
        samples.append(sample)
        valid &= True if known is None else known
    if scene.pan is not None:
        decimated(scene.pan, shape)  # it must be there to its end
    try:
        stretch = percentile_stretch(np.concatenate(samples), valid, low, high)
    except ValueError as error:
        raise SceneError(f"{first.path}: {error}") from error
    return Entry(replace(scene, footprint=footprint), terrain, stretch, coverage)


def decimated(image: Image, shape: tuple[int, int]) -> tuple[Pixels, Valid]:
    """Every so-maniest pixel of an image and its validity. Raises SceneError where it cannot be read to its end."""
    try:
        sample, valid = read(image, shape=shape)
        # The decimated read skips lines; the last one must be there too.
        read(image, Window(0, image.height - 1, image.width, 1))
    except SceneError as error:
        raise SceneError(str(error).replace("cannot be read", "cannot be read to its end", 1)) from error
    return sample, valid


def write_catalog(path: Path, entries: Iterable[Entry], provenance: str) -> None:
    """scenes.parquet: one row a scene, sorted by id; GeoParquet with the footprints as geometry, EPSG:4326.

    It is stac-geoparquet too: each row is a STAC item, whose properties are all other columns.

    provenance: JSON, what besides its files an entry depends on: settings and software.
    """
    rows = []
    for entry in sorted(entries, key=lambda entry: entry.scene.id):
        scene = entry.scene
        row = items.columns(scene)
        row |= {
            name: getattr(scene, name) for name in Scene.__slots__ if name not in ("acquired", "footprint", "metadata")
        }
        rows.append(
            row
            | {
                "files": list(scene.files),
                "images": json.dumps([image.to_json() for image in scene.images]),
                "pan": None if scene.pan is None else json.dumps(scene.pan.to_json()),
                "metadata": json.dumps(dict(scene.metadata), ensure_ascii=False),
                "dem": entry.terrain.dem,
                "dem_coverage": entry.dem_coverage,
                "ground_height": entry.terrain.height,
                "stretch_low": entry.stretch.low,
                "stretch_high": entry.stretch.high,
                "provenance": provenance,
                "geometry": scene.footprint,
            }
        )
    columns = [*rows[0]] if rows else ["id", "geometry"]
    frame = geopandas.GeoDataFrame(rows, columns=columns, geometry="geometry", crs="EPSG:4326")
    if rows:
        for name in ("datetime", "start_datetime", "end_datetime"):
            frame[name] = frame[name].astype("datetime64[us, UTC]")
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, compression="zstd", schema_version="1.1.0", write_covering_bbox=True)
    files.write(path, buffer.getbuffer())


def unchanged(path: Path, provenance: str, digests: Mapping[str, str] | None = None) -> dict[str, list[Entry]]:
    """Entries of an earlier catalog by the delivery's path, as far as its files are older than the catalog.

    digests: delivery's path -> digest of the STAC item there; what has no file on this machine is known by it.
    None where there is no catalog, or one of other settings or software.
    """
    if not path.is_file() or set(geopandas.read_parquet(path).get("provenance", ())) != {provenance}:
        return {}
    written = path.stat().st_mtime
    known: dict[str, list[Entry]] = {}
    for entry in read_catalog(path):
        read_from = [Path(file) for file in entry.scene.files]
        same_item = not read_from and (digests or {}).get(entry.scene.delivery) == entry.scene.checksum
        if same_item or (read_from and all(file.is_file() and last_change(file) < written for file in read_from)):
            known.setdefault(entry.scene.delivery, []).append(entry)
    return known


def last_change(file: Path) -> float:
    """When a file was written or put in its place, s since the epoch; unpacking keeps the first, not the second."""
    found = file.stat()
    return max(found.st_mtime, found.st_ctime)


def read_catalog(path: Path) -> list[Entry]:
    """The entries of scenes.parquet, in its order."""
    entries = []
    for row in geopandas.read_parquet(path).to_dict("records"):
        fields = {name: row[name] for name in Scene.__slots__ if name in row}
        fields |= {
            "acquired": None if row["datetime"] is None or row["datetime"] != row["datetime"] else row["datetime"],
            "files": tuple(row["files"]),
            "images": tuple(image_from_json(image) for image in json.loads(row["images"])),
            "pan": image_from_json(json.loads(row["pan"])) if isinstance(row["pan"], str) else None,
            "metadata": json.loads(row["metadata"]),
            "footprint": row["geometry"],
        }
        if fields["acquired"] is not None:
            fields["acquired"] = fields["acquired"].to_pydatetime()
        terrain = Terrain(row["dem"] if isinstance(row["dem"], str) else None, row["ground_height"])
        stretch = Stretch(row["stretch_low"], row["stretch_high"])
        entries.append(Entry(Scene(**fields), terrain, stretch, row["dem_coverage"]))
    return entries
