"""Writing and reading the tile index (GeoParquet) and the summary of a data set."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geokr.dataset.layout import DATASET, INDEX, SCHEMA
from geokr.storage import files


def write_index(dataset: str | Path, columns: Mapping[str, npt.NDArray[Any]], footprints: Any) -> None:
    """Write `index.parquet`: one row per tile, footprints as the geometry column, EPSG:4326.

    columns: name -> (n,) values; dtype object means text or None. footprints: (n,) shapely polygons in longitude and
    latitude, degrees.
    """
    import geopandas  # not at the top, because training reads the index without them
    import pandas

    texts = {name: pandas.array(values, dtype="string") for name, values in columns.items() if values.dtype == object}
    # Without a dtype, a column without rows, or with None only, would have no type.
    frame = geopandas.GeoDataFrame({**columns, **texts}, geometry=footprints, crs="EPSG:4326")
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, compression="zstd", schema_version="1.1.0")
    files.write(files.join(dataset, INDEX), buffer.getbuffer())


def read_index(dataset: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the index as an Arrow table, by default all columns except geometry.

    Raises ValueError naming the requested columns that do not exist.
    """
    path = files.join(dataset, INDEX)
    source = pa.BufferReader(files.read(path)) if files.in_bucket(path) else path
    available = [name for name in pq.read_schema(source).names if name != "geometry"]
    if missing := [name for name in columns or () if name not in (*available, "geometry")]:
        raise ValueError(f"{path} has no column {', '.join(missing)}, only {', '.join(available)}")
    return pq.read_table(source, columns=available if columns is None else list(columns))


def read_extent(dataset: str | Path) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Read the extent of the tiles: (west, south, east, north), degrees, and first and last acquisition, ISO 8601.

    Either is empty if the index does not contain it.
    """
    schema = pq.read_schema(f"{dataset}/{INDEX}")
    geometry = json.loads((schema.metadata or {}).get(b"geo", b"{}")).get("columns", {}).get("geometry", {})
    acquired: tuple[str, ...] = ()
    if "acquired" in schema.names:
        span = pc.min_max(read_index(dataset, ["acquired"])["acquired"]).as_py()
        acquired = tuple(moment.isoformat() for moment in span.values() if moment is not None)
    return tuple(geometry.get("bbox", ())), acquired


def read_summary(dataset: str | Path) -> dict[str, Any]:
    """Read `dataset.json`: schema version, classes, counts and settings.

    Raises ValueError if `dataset` is not a finished data set, or has another schema version.
    """
    path = files.join(dataset, DATASET)
    if not files.exists(path):
        raise ValueError(f"{path}: no such file; is {dataset} a finished data set?")
    summary: dict[str, Any] = json.loads(files.read(path))
    if summary.get("schema") != SCHEMA:
        raise ValueError(f"{path}: schema {summary.get('schema')}, but this program reads {SCHEMA}; build it again")
    return summary
