"""Writing and reading the tile index (GeoParquet, in parts) and the summary of a data set."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geokr.dataset.layout import DATASET, INDEX, SCHEMA, UNFINISHED_INDEX
from geokr.storage import files

PART = re.compile(r"part-(\d{5,})-of-(\d{5,})\.parquet")
FOOTER = 1 << 18
"""Bytes at the end of a part that are read for its facts; more if they do not suffice."""
ROW_GROUP = 8192
"""Rows of a row group, which has the range of each column in the file's footer: a reader skips it by those."""
BOX = ("xmin", "ymin", "xmax", "ymax")
"""Fields of the column `bbox`, the covering of GeoParquet 1.1."""
FACTS = b"geokr"
"""Key of the facts about a part in the metadata of its file."""


def part_name(number: int, parts: int) -> str:
    """Name of a part of an index. It contains the number of parts, so that a reader notices that one is missing."""
    return f"part-{number:05d}-of-{parts:05d}.parquet"


def make_part(columns: Mapping[str, npt.NDArray[Any]], footprints: Any, facts: Any = None) -> bytes:
    """The bytes of a part: one row per tile, footprints as the geometry column with their bounds, EPSG:4326.

    columns: name -> (n,) values; dtype object means text or None. footprints: (n,) shapely polygons in longitude and
    latitude, degrees. facts: JSON that `read_facts` returns.
    """
    import shapely  # not at the top, because training reads the index without them
    from pyproj import CRS

    polygons = np.asarray(footprints, dtype=object)
    bounds = shapely.bounds(polygons).reshape(-1, 4)
    geometry: dict[str, Any] = {
        "encoding": "WKB",
        "crs": CRS.from_epsg(4326).to_json_dict(),
        "geometry_types": sorted({polygon.geom_type for polygon in polygons}),
        "covering": {"bbox": {field: ["bbox", field] for field in BOX}},
    }
    if len(polygons):
        geometry["bbox"] = [*bounds[:, :2].min(axis=0).tolist(), *bounds[:, 2:].max(axis=0).tolist()]
    # Text has its type even in a column of None only, and in one without rows.
    arrays = {name: pa.array(v, pa.string() if v.dtype == object else None) for name, v in columns.items()}
    arrays["geometry"] = pa.array(shapely.to_wkb(polygons), pa.binary())
    arrays["bbox"] = pa.StructArray.from_arrays([pa.array(side) for side in bounds.T], names=list(BOX))
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
    table = pa.table(arrays).replace_schema_metadata({b"geo": json.dumps(geo), FACTS: json.dumps(facts)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=ROW_GROUP, compression="zstd")
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def write_part(dataset: str | Path, number: int, parts: int, content: bytes) -> str:
    """Write a part of an index that is not complete yet. Returns its SHA-256."""
    files.write(files.join(dataset, UNFINISHED_INDEX, part_name(number, parts)), content)
    return hashlib.sha256(content).hexdigest()


def read_unfinished(dataset: str | Path, number: int, parts: int) -> bytes | None:
    """A part that an interrupted run wrote, or None if there is none."""
    path = files.join(dataset, UNFINISHED_INDEX, part_name(number, parts))
    return files.read(path) if files.exists(path) else None


def read_facts(content: bytes) -> Any:
    """The facts in a part, from all its bytes or from its end: see `make_part`. None if there are none."""
    return json.loads((pq.read_metadata(pa.BufferReader(content)).metadata or {}).get(FACTS, b"null"))


def list_facts(dataset: str | Path) -> Iterator[tuple[str, Any]]:
    """Path and facts of each part of the index; none if there is no index, or if parts are missing."""
    try:
        paths = list_parts(dataset)
    except ValueError:
        return
    for path in paths:
        end = files.read_end(path, FOOTER)
        if len(end) == FOOTER and int.from_bytes(end[-8:-4], "little") + 8 > FOOTER:  # the length of the footer
            end = files.read(path)
        yield path, read_facts(end)


def publish(dataset: str | Path, parts: int) -> None:
    """Replace the index by the parts that have been written, all of them: see `files.replace_directory`."""
    unfinished = files.join(dataset, UNFINISHED_INDEX)
    for name in {*files.list_names(unfinished)} - {part_name(number, parts) for number in range(parts)}:
        files.remove(files.join(unfinished, name))  # of a run with other scenes
    files.replace_directory(unfinished, files.join(dataset, INDEX))


def write_index(dataset: str | Path, columns: Mapping[str, npt.NDArray[Any]], footprints: Any) -> None:
    """Write an index of one part. Arguments: see `make_part`."""
    write_part(dataset, 0, 1, make_part(columns, footprints))
    publish(dataset, 1)


def list_parts(dataset: str | Path) -> list[str]:
    """Paths of the parts of the index, in order. Raises ValueError naming the index if one is missing."""
    root = files.join(dataset, INDEX)
    names = [name for name in files.list_names(root) if PART.fullmatch(name)]
    parts = max((int(name.rpartition("-")[2].removesuffix(".parquet")) for name in names), default=0)
    if not names or names != [part_name(number, parts) for number in range(parts)]:
        raise ValueError(f"{root}: {len(names)} parts, expected {parts or 'at least one'}; build the index again")
    return [files.join(root, name) for name in names]


def _open_part(path: str) -> Any:
    """A part as pyarrow reads it: in a bucket, once and whole."""
    return pa.BufferReader(files.read(path)) if files.in_bucket(path) else path


def read_parts(
    dataset: str | Path, columns: Sequence[str] | None = None, parts: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Read the index as Arrow tables, one per part, by default all parts and all columns except the footprints.

    parts: paths of those to read. Raises ValueError naming the requested columns that do not exist.
    """
    for path in list_parts(dataset) if parts is None else parts:
        yield read_part(path, columns)


def read_part(path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a part of the index, by default all columns except the footprints. Raises ValueError like `read_parts`."""
    with pq.ParquetFile(_open_part(path)) as part:
        names = part.schema_arrow.names
        available = [name for name in names if name not in ("geometry", "bbox")]
        if missing := [name for name in columns or () if name not in names]:
            index = path.rpartition("/")[0]
            raise ValueError(f"{index} has no column {', '.join(missing)}, only {', '.join(available)}")
        return part.read(available if columns is None else [*columns])


def read_index(dataset: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the index as one Arrow table, like `read_parts`. It takes memory in proportion to the tiles."""
    return pa.concat_tables(read_parts(dataset, columns))


def combine_digests(digests: Iterable[str]) -> str:
    """The SHA-256 of an index, from those of its parts in order."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def read_extent(dataset: str | Path) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Read the extent of the tiles: (west, south, east, north), degrees, and first and last acquisition, ISO 8601.

    Either is empty if the index does not contain it.
    """
    boxes, moments = [], []
    for path in list_parts(dataset):
        source = _open_part(path)
        schema = pq.read_schema(source)
        geometry = json.loads((schema.metadata or {}).get(b"geo", b"{}")).get("columns", {}).get("geometry", {})
        boxes += [geometry["bbox"]] if "bbox" in geometry else []
        if "acquired" in schema.names:
            span = pc.min_max(pq.read_table(source, columns=["acquired"], partitioning=None)["acquired"]).as_py()
            moments += [moment for moment in span.values() if moment is not None]
    low, high = (list(map(function, zip(*boxes, strict=True))) for function in (min, max))
    acquired = (min(moments).isoformat(), max(moments).isoformat()) if moments else ()
    return (*low[:2], *high[2:]), acquired


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
