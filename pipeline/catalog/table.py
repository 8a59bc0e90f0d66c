"""The catalog of scenes, scenes.parquet: what it holds, and what of an earlier one is still true."""

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import geopandas
import pyarrow.parquet as pq

from geokr.storage import files
from pipeline.catalog import stac_items
from pipeline.geometry.terrain import Terrain
from pipeline.imaging.radiometry import Radiometry, Stretch, radiometry_from_json
from pipeline.scenes.scene import Scene, image_from_json

CATALOG = "scenes.parquet"


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
    pan_weights: tuple[float, ...] = ()
    """Weight of each band in pansharpening; empty where there is none."""
    pixel_digest: str = ""
    """SHA-256 of the pixels that the survey read: it tells a replaced image from one that was only touched."""
    source_version: str = ""
    """What the delivery's files on a server were known by: see `discovery.Delivery`."""


def write_catalog(path: str | Path, entries: Iterable[Entry], provenance: str) -> None:
    """scenes.parquet: one row a scene, sorted by id; GeoParquet with the footprints as geometry, EPSG:4326.

    It is stac-geoparquet too: each row is a STAC item, whose properties are all other columns.

    provenance: JSON, what besides its files an entry depends on: settings and software.
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
    """Entries of an earlier catalog by the delivery's path, as far as its files are older than the catalog.

    digests: delivery's path -> state of its files on a server, or digest of the STAC item there; what has no file on
    this machine is known by it.
    None where there is no catalog, or one of other settings or software.
    """
    if not files.exists(path):
        return {}
    written, rows = files.modified_time(path), read_rows(path)
    if set(rows.get("provenance", ())) != {provenance}:
        return {}
    known: dict[str, list[Entry]] = {}
    for entry in to_entries(rows):
        read_from = [Path(file) for file in entry.scene.files]
        known_by = entry.source_version or entry.scene.metadata_digest
        same_there = not read_from and (digests or {}).get(entry.scene.delivery) == known_by
        if same_there or (read_from and all(file.is_file() and last_change(file) < written for file in read_from)):
            known.setdefault(entry.scene.delivery, []).append(entry)
    return known


def last_change(file: Path) -> float:
    """When a file was written or put in its place, s since the epoch; unpacking keeps the first, not the second."""
    found = file.stat()
    return max(found.st_mtime, found.st_ctime)


def read_rows(path: str | Path) -> geopandas.GeoDataFrame:
    """scenes.parquet as a table."""
    return geopandas.read_parquet(io.BytesIO(files.read(path)))


def count_entries(path: str | Path) -> int:
    """How many entries scenes.parquet has."""
    return int(pq.read_metadata(io.BytesIO(files.read(path))).num_rows)


def read_catalog(path: str | Path) -> list[Entry]:
    """The entries of scenes.parquet, in its order."""
    return to_entries(read_rows(path))


def to_entries(rows: geopandas.GeoDataFrame) -> list[Entry]:
    """The entries of a table, in its order."""
    entries = []
    for row in rows.to_dict("records"):
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
        known_by = row["pixel_digest"], row["source_version"]
        weights = tuple(map(float, row["pan_weights"]))
        entries.append(Entry(Scene(**fields), terrain, stretch, *ground, stored, weights, *known_by))
    return entries
