"""The catalog of scenes: what a survey of each decided, and scenes.parquet, which holds it."""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import geopandas
import numpy as np
import numpy.typing as npt
import shapely
from rasterio.windows import Window

from geokr import files
from pipeline import items
from pipeline.delivery import BANDS, Refusal, read_delivery, refuse
from pipeline.finding import Delivery
from pipeline.footprint import flat_terrain, outline
from pipeline.pansharpen import brovey, equal_weights
from pipeline.radiometry import (
    CALIBRATION,
    Kind,
    Radiometry,
    RadiometryError,
    Stretch,
    as_they_are,
    percentile_stretch,
    radiometry_from_json,
    read_coefficients,
    reflectance,
    scaled,
    solar_zenith,
    stretched_per_band,
    sun,
)
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
    dem_holes: int = 0
    """Cells without a height in the DEM's window of the scene, which were interpolated."""
    radiometry: Radiometry | None = None
    """What is stored of the scene's pixels; the stretched ones where it is None."""
    pixels: str = ""
    """SHA-256 of the pixels that the survey read: what tells a replaced image from one that was only touched."""


@dataclass(frozen=True, slots=True)
class CatalogJob:
    """One delivery to read and survey."""

    delivery: Delivery
    dem: str | None
    stretch: tuple[float, float]
    imagery: Imagery = "mss"
    geoid: str | None = None
    radiometry: Kind = "percentile"
    coefficients: str | None = None
    """A table of calibration; None for the one that is built in."""
    weights: tuple[float, ...] | None = None
    """Of the bands in pansharpening; equal unless given."""
    bands: tuple[str, ...] = BANDS


def read_and_survey(job: CatalogJob) -> list[Entry | Refusal]:
    """The scenes of one delivery, surveyed; what cannot be used is a Refusal."""
    found: list[Entry | Refusal] = []
    for scene in read_delivery(job.delivery, job.imagery, job.bands):
        if isinstance(scene, Refusal):
            found.append(scene)
            continue
        try:
            found.append(survey(scene, job))
        except SceneError as error:
            found.append(refuse(scene.id, "unusable", str(error)))
    return found


def survey(scene: Scene, job: CatalogJob) -> Entry:
    """Decide a scene's ground and what becomes of its pixels: reads every 20th of them.

    Raises SceneError naming file and fault.
    """
    first = scene.images[0]
    terrain = flat_terrain(first.model)
    if not isinstance(first.model, Georeferenced):
        terrain = replace(terrain, dem=job.dem, geoid=job.geoid)
    footprint = outline(first, terrain)
    outlined = shapely.get_coordinates(footprint.exterior).T
    shape = (max(1, first.height // SURVEY_STEP), max(1, first.width // SURVEY_STEP))
    samples, valid = [], np.ones(shape, np.bool_)
    for image in scene.images:
        found, known = decimated(image, shape)
        samples.append(found)
        valid &= True if known is None else known
    sample = np.concatenate(samples)
    scene = replace(scene, footprint=footprint)
    try:
        if scene.pan is not None:
            detail, _ = decimated(scene.pan, shape)
            sharpened = np.ascontiguousarray(np.moveaxis(sample, 0, -1))
            brovey(sharpened, detail[0], job.weights or equal_weights(len(sample)))
            sample = np.moveaxis(sharpened, -1, 0)
        stretch = percentile_stretch(sample, valid, *job.stretch)
        radiometry = decide(scene, job, sample, valid)
    except ValueError as error:
        raise SceneError(f"{first.path}: {error}") from error
    digest = hashlib.sha256()
    for found in samples:
        digest.update(found.tobytes())
    heights = terrain.coverage(*outlined), terrain.holes(*outlined)
    return Entry(scene, terrain, stretch, *heights, radiometry, digest.hexdigest())


def decide(scene: Scene, job: CatalogJob, sample: Pixels, valid: npt.NDArray[np.bool_]) -> Radiometry | None:
    """What is stored of a scene's pixels. Raises ValueError where it cannot be what was asked for."""
    match job.radiometry:
        case "percentile":
            return None
        case "percentile-per-band":
            return stretched_per_band(sample, valid, *job.stretch, scene.bands)
        case "dn":
            return as_they_are(scene.dtype, len(scene.bands))
        case "toa":
            return top_of_atmosphere(scene, job.coefficients or CALIBRATION)


def top_of_atmosphere(scene: Scene, table: str | Path) -> Radiometry:
    """Reflectance from a scene's own scales or from a table. Raises RadiometryError where neither has the numbers."""
    scales = [scale for image in scene.images for scale in image.scales]
    if len(scales) == len(scene.bands):
        offsets = [offset for image in scene.images for offset in (image.offsets or (0.0,) * len(image.bands))]
        return scaled(scales, offsets)
    if scene.acquired is None:
        raise RadiometryError("reflectance needs the time at which the image was taken, and it is not known")
    known, found = read_coefficients(table), {}
    for band in scene.bands:
        key = (scene.satellite, scene.sensor, scene.acquired.year, band)
        if key not in known:
            said = " ".join(map(str, key))
            raise RadiometryError(f"{Path(table).name} has no coefficients of {said}; give a table that has")
        found[band] = known[key]
    centre = scene.footprint.centroid
    zenith = solar_zenith(scene.metadata, scene.acquired, centre.x, centre.y)
    return reflectance(found, zenith, sun(scene.acquired, centre.x, centre.y)[1])


def decimated(image: Image, shape: tuple[int, int]) -> tuple[Pixels, Valid]:
    """Every so-maniest pixel of an image and its validity. Raises SceneError where it cannot be read to its end."""
    try:
        sample, valid = read(image, shape=shape)
        # The decimated read skips lines; the last one must be there too.
        read(image, Window(0, image.height - 1, image.width, 1))
    except SceneError as error:
        raise SceneError(str(error).replace("cannot be read", "cannot be read to its end", 1)) from error
    return sample, valid


def write_catalog(path: str | Path, entries: Iterable[Entry], provenance: str) -> None:
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
                "geoid": entry.terrain.geoid,
                "dem_holes": entry.dem_holes,
                "ground_height": entry.terrain.height,
                "stretch_low": entry.stretch.low,
                "stretch_high": entry.stretch.high,
                "radiometry": None if entry.radiometry is None else json.dumps(entry.radiometry.to_json()),
                "pixels": entry.pixels,
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


def unchanged(path: str | Path, provenance: str, digests: Mapping[str, str] | None = None) -> dict[str, list[Entry]]:
    """Entries of an earlier catalog by the delivery's path, as far as its files are older than the catalog.

    digests: delivery's path -> digest of the STAC item there; what has no file on this machine is known by it.
    None where there is no catalog, or one of other settings or software.
    """
    if not files.exists(path) or set(rows_of(path).get("provenance", ())) != {provenance}:
        return {}
    written = files.modified(path)
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


def rows_of(path: str | Path) -> geopandas.GeoDataFrame:
    """scenes.parquet as a table."""
    return geopandas.read_parquet(io.BytesIO(files.read(path)))


def read_catalog(path: str | Path) -> list[Entry]:
    """The entries of scenes.parquet, in its order."""
    entries = []
    for row in rows_of(path).to_dict("records"):
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
        dem, geoid = (row[name] if isinstance(row[name], str) else None for name in ("dem", "geoid"))
        stretch = Stretch(row["stretch_low"], row["stretch_high"])
        stored = radiometry_from_json(json.loads(row["radiometry"])) if isinstance(row["radiometry"], str) else None
        terrain = Terrain(dem, row["ground_height"], geoid)
        ground = row["dem_coverage"], int(row["dem_holes"])
        entries.append(Entry(Scene(**fields), terrain, stretch, *ground, stored, row["pixels"]))
    return entries
