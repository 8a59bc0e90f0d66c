"""Read and write the catalog of scenes, scenes.parquet, and find entries of an earlier catalog that are still valid."""

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import geopandas
import pyarrow.parquet as pq

from geokr.settings import ConfigError
from geokr.storage import files
from pipeline.catalog import stac_items
from pipeline.geometry.terrain import Terrain
from pipeline.imaging.radiometry import Radiometry, Stretch, radiometry_from_json
from pipeline.scenes.scene import Scene, image_from_json

CATALOG = "scenes.parquet"
QUANTILES = (1, 10, 25, 50, 75, 80, 85, 90, 95, 98, 99)
"""Percentiles of the sampled pixels that the catalog has, which explain a scene whose tiles are all dark."""


COLUMNS = {"pan_weights", "pixel_digest", "source_version", "quality", "valid_share", "quantiles"}
"""Columns that a catalog of another version lacks."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the catalog: a scene and the results of its survey."""

    scene: Scene
    terrain: Terrain
    stretch: Stretch
    dem_coverage: float
    """Fraction of the footprint's outline that the DEM covers; 0 without a DEM."""
    dem_holes: int = 0
    """Number of void cells in the DEM window of the scene, which were interpolated."""
    radiometry: Radiometry | None = None
    """Conversion of the pixels to the values that are stored; None if stretched pixels are stored."""
    pan_weights: tuple[float, ...] = ()
    """Weight of each band in pansharpening; empty without pansharpening."""
    pixel_digest: str = ""
    """SHA-256 of the pixels that the survey read. It distinguishes a replaced image from one that was only touched."""
    valid_share: float = 1.0
    """Share of the sampled pixels that have data."""
    quantiles: tuple[float, ...] = ()
    """The percentiles QUANTILES of the mean of the bands, over the sampled pixels with data; digital numbers."""
    source_version: str = ""
    """Version of the delivery's files on a server: see `discovery.Delivery.source_version`."""


def write_catalog(path: str | Path, entries: Iterable[Entry], provenance: str) -> None:
    """Write scenes.parquet: one row per scene, sorted by id; GeoParquet with the footprints as geometry, EPSG:4326.

    The file is also stac-geoparquet: each row is a STAC item, and all other columns are its properties.

    provenance: JSON of what an entry depends on besides its files: settings and software.
    """
    rows = []
    for entry in sorted(entries, key=lambda entry: entry.scene.id):
        scene = entry.scene
        row = stac_items.geoparquet_columns(scene)
        row |= {
            name: getattr(scene, name) for name in Scene.__slots__ if name not in ("acquired", "footprint", "metadata")
        }
        rows.append(
            row
            | {
                "files": list(scene.files),
                "images": json.dumps([image.to_json() for image in scene.images]),
                "pan": None if scene.pan is None else json.dumps(scene.pan.to_json()),
                "quality": None if scene.quality is None else json.dumps(scene.quality.to_json()),
                "metadata": json.dumps(dict(scene.metadata), ensure_ascii=False),
                "dem": entry.terrain.dem,
                "dem_coverage": entry.dem_coverage,
                "geoid": entry.terrain.geoid,
                "dem_holes": entry.dem_holes,
                "ground_height": entry.terrain.height,
                "stretch_low": entry.stretch.low,
                "stretch_high": entry.stretch.high,
                "radiometry": None if entry.radiometry is None else json.dumps(entry.radiometry.to_json()),
                "pan_weights": list(entry.pan_weights),
                "pixel_digest": entry.pixel_digest,
                "valid_share": entry.valid_share,
                "quantiles": list(entry.quantiles),
                "source_version": entry.source_version,
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


def reusable_entries(
    path: str | Path, provenance: str, digests: Mapping[str, str] | None = None
) -> dict[str, list[Entry]]:
    """Entries of an earlier catalog that are still valid: path of the delivery -> its entries.

    An entry with local files is valid if all of them are older than the catalog. One without is valid if its digest is
    unchanged. The result is empty if there is no catalog, or if it was made with other settings or software.

    digests: path of the delivery -> version of its files on a server, or digest of its STAC item.
    """
    if not files.exists(path):
        return {}
    written, rows = files.modified_time(path), read_rows(path)
    if set(rows.get("provenance", ())) != {provenance}:
        return {}
    reusable: dict[str, list[Entry]] = {}
    for entry in to_entries(rows):
        local_files = [Path(file) for file in entry.scene.files]
        digest = entry.source_version or entry.scene.metadata_digest
        same_remote = not local_files and (digests or {}).get(entry.scene.delivery) == digest
        if same_remote or (local_files and all(file.is_file() and last_change(file) < written for file in local_files)):
            reusable.setdefault(entry.scene.delivery, []).append(entry)
    return reusable


def last_change(file: Path) -> float:
    """Time of the last change to a file or its inode, s since the epoch.

    A file that is unpacked keeps its old mtime, but has a new ctime.
    """
    stat = file.stat()
    return max(stat.st_mtime, stat.st_ctime)


def read_rows(path: str | Path) -> geopandas.GeoDataFrame:
    """Read scenes.parquet as a table."""
    return geopandas.read_parquet(io.BytesIO(files.read(path)))


def count_entries(path: str | Path) -> int:
    """Count the entries of scenes.parquet from its Parquet metadata."""
    return int(pq.read_metadata(io.BytesIO(files.read(path))).num_rows)


def read_catalog(path: str | Path) -> list[Entry]:
    """Read the entries of scenes.parquet in the order of its rows."""
    return to_entries(read_rows(path))


def to_entries(rows: geopandas.GeoDataFrame) -> list[Entry]:
    """Convert the rows of a table to entries in the same order. Raises ConfigError if columns are missing."""
    if len(rows) and (missing := COLUMNS - {*rows.columns}):
        raise ConfigError(f"{CATALOG} of another version: it lacks {', '.join(sorted(missing))}; run the stage catalog")
    entries = []
    for row in rows.to_dict("records"):
        fields = {name: row[name] for name in Scene.__slots__ if name in row}
        fields |= {
            "acquired": None if row["datetime"] is None or row["datetime"] != row["datetime"] else row["datetime"],
            "files": tuple(row["files"]),
            "images": tuple(image_from_json(image) for image in json.loads(row["images"])),
            "pan": image_from_json(json.loads(row["pan"])) if isinstance(row["pan"], str) else None,
            "quality": image_from_json(json.loads(row["quality"])) if isinstance(row["quality"], str) else None,
            "metadata": json.loads(row["metadata"]),
            "footprint": row["geometry"],
        }
        if fields["acquired"] is not None:
            fields["acquired"] = fields["acquired"].to_pydatetime()
        dem, geoid = (row[name] if isinstance(row[name], str) else None for name in ("dem", "geoid"))
        stretch = Stretch(row["stretch_low"], row["stretch_high"])
        radiometry = radiometry_from_json(json.loads(row["radiometry"])) if isinstance(row["radiometry"], str) else None
        terrain = Terrain(dem, row["ground_height"], geoid)
        dem_quality = row["dem_coverage"], int(row["dem_holes"])
        weights, quantiles = (tuple(map(float, row[name])) for name in ("pan_weights", "quantiles"))
        entry = Entry(Scene(**fields), terrain, stretch, *dem_quality, radiometry, weights)
        texts = {name: row[name] for name in ("pixel_digest", "source_version")}
        entries.append(replace(entry, valid_share=row["valid_share"], quantiles=quantiles, **texts))
    return entries
