"""The tile index (GeoParquet), and splits by place."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geokr.dataset.layout import DATASET, INDEX
from geokr.storage import files


def write_index(dataset: str | Path, columns: Mapping[str, npt.NDArray[Any]], footprints: Any) -> None:
    """Write `index.parquet`: one row a tile, footprints as the geometry column, EPSG:4326.

    columns: name -> (n,) values; object stands for text, or None. footprints: (n,) shapely polygons in longitude
    and latitude.
    """
    import geopandas  # training reads the index without them
    import pandas

    texts = {name: pandas.array(values, dtype="string") for name, values in columns.items() if values.dtype == object}
    # Without a dtype, a column of no rows, or of None alone, would have no type.
    frame = geopandas.GeoDataFrame({**columns, **texts}, geometry=footprints, crs="EPSG:4326")
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, compression="zstd", schema_version="1.1.0")
    files.write(files.join(dataset, INDEX), buffer.getbuffer())


def read_index(dataset: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The index as an Arrow table, without geometry unless asked for by name.

    Raises ValueError naming the columns that it does not have.
    """
    path = files.join(dataset, INDEX)
    source = pa.BufferReader(files.read(path)) if files.in_bucket(path) else path
    there = [name for name in pq.read_schema(source).names if name != "geometry"]
    if missing := [name for name in columns or () if name not in (*there, "geometry")]:
        raise ValueError(f"{path} has no column {', '.join(missing)}, only {', '.join(there)}")
    return pq.read_table(source, columns=there if columns is None else list(columns))


def read_extent(dataset: str | Path) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Where and when the tiles were taken: (west, south, east, north), degrees, and first and last moment, ISO 8601.

    Either is empty where the index does not say.
    """
    schema = pq.read_schema(f"{dataset}/{INDEX}")
    geometry = json.loads((schema.metadata or {}).get(b"geo", b"{}")).get("columns", {}).get("geometry", {})
    acquired: tuple[str, ...] = ()
    if "acquired" in schema.names:
        span = pc.min_max(read_index(dataset, ["acquired"])["acquired"]).as_py()
        acquired = tuple(moment.isoformat() for moment in span.values() if moment is not None)
    return tuple(geometry.get("bbox", ())), acquired


def read_summary(dataset: str | Path) -> dict[str, Any]:
    """`dataset.json`: schema version, classes, counts and settings.

    Raises ValueError where `dataset` is not a finished data set.
    """
    path = files.join(dataset, DATASET)
    if not files.exists(path):
        raise ValueError(f"{path}: no such file; is {dataset} a data set that was built to the end?")
    summary: dict[str, Any] = json.loads(files.read(path))
    return summary
