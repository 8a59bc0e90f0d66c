"""Predictions as maps for a GIS: GeoTIFFs, a scene each, and one GeoParquet table of all tiles."""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
from rasterio.crs import CRS
from rasterio.transform import Affine

from geokr.crs import footprint_polygons, transformer
from geokr.prediction.tiles import ScenePrediction, SceneTiles

TABLE = "tiles.parquet"
NO_CLASS = 255
"""Value of the map of classes where no tile was accepted."""


def write_maps(folder: Path, prediction: ScenePrediction, classes: Sequence[str], colours: Mapping[str, str]) -> None:
    """Write `SCENE_shares.tif` and `SCENE_class.tif`: GeoTIFFs with one pixel per tile.

    A pixel is as wide as the stride and lies in the middle of its tile. The first has a float32 band for each class,
    and with a map to compare with, `disagreement`, in 0..1; NaN where no tile was accepted. The second has the number
    of the largest class as uint8, NO_CLASS where no tile was accepted, with the classes' colours and names.
    colours: class -> #rrggbb.
    """
    tiles = prediction.tiles
    names = [*classes, *(["disagreement"] if tiles.label is not None else [])]
    values = np.full((len(names), *tiles.shape), np.nan, np.float32)
    values[: len(classes), tiles.row, tiles.col] = prediction.share.T
    if tiles.label is not None:
        values[-1, tiles.row, tiles.col] = prediction.disagreement()
    _write(folder / f"{tiles.name}_shares.tif", values, tiles, np.nan, names)
    largest = np.full((1, *tiles.shape), NO_CLASS, np.uint8)
    largest[0, tiles.row, tiles.col] = prediction.share.argmax(axis=1)
    palette = {k: tuple(bytes.fromhex(colours[name][1:])) for k, name in enumerate(classes) if name in colours}
    named = {f"class_{k}": name for k, name in enumerate(classes)}
    _write(folder / f"{tiles.name}_class.tif", largest, tiles, NO_CLASS, ["class"], palette, named)


def _write(
    path: Path,
    values: npt.NDArray[Any],
    tiles: SceneTiles,
    nodata: float,
    names: Sequence[str],
    palette: Mapping[int, tuple[int, ...]] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    partial = path.with_name(f".{path.name}.partial")
    profile = {
        "driver": "GTiff",
        "dtype": values.dtype,
        "count": len(values),
        "height": values.shape[1],
        "width": values.shape[2],
        "crs": CRS.from_user_input(tiles.attributes["proj:code"]),
        "transform": pixel_transform(tiles),
        "nodata": nodata,
        "compress": "deflate",
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
    }
    with rasterio.open(partial, "w", **profile) as file:
        file.write(values)
        file.descriptions = tuple(names)
        if palette:
            file.write_colormap(1, dict(palette))
        file.update_tags(**(tags or {}))
    partial.replace(path)


def pixel_transform(tiles: SceneTiles) -> Affine:
    """The transform of a raster with one pixel per tile: stride wide, its middle in the middle of the tile."""
    transform, stride = Affine(*tiles.attributes["spatial:transform"]), tiles.attributes["stride"]
    margin = (tiles.attributes["tile"] - stride) / 2
    return transform * Affine.translation(margin, margin) * Affine.scale(stride)


@contextmanager
def open_table(folder: Path, classes: Sequence[str]) -> Iterator[Callable[[ScenePrediction], None]]:
    """Yield a function that adds a scene to `tiles.parquet`, which is there once the context ends without an error.

    It is GeoParquet with a row for each tile and its footprint in EPSG:4326. Columns: scene, row, col, the predicted
    share of each class, the map's as `<class>_map`, and `disagreement`; the last are NaN without a map.
    """
    partial = folder / f".{TABLE}.partial"
    with ExitStack() as stack:
        writers: list[pq.ParquetWriter] = []

        def add(prediction: ScenePrediction) -> None:
            content = io.BytesIO()
            make_frame(prediction, classes).to_parquet(content, index=False, schema_version="1.1.0")
            table = pq.read_table(content)
            if not writers:
                schema = describe_all(table.schema)
                writers.append(stack.enter_context(pq.ParquetWriter(partial, schema, compression="zstd")))
            writers[0].write_table(table.replace_schema_metadata(writers[0].schema.metadata))

        try:
            yield add
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    if writers:
        partial.replace(folder / TABLE)


def describe_all(schema: pa.Schema) -> pa.Schema:
    """The schema of a table of all scenes from that of one: without its bounds and kinds of geometries."""
    geo = json.loads(schema.metadata[b"geo"])
    geo["columns"]["geometry"].pop("bbox", None)
    geo["columns"]["geometry"]["geometry_types"] = []  # any
    return schema.with_metadata({**schema.metadata, b"geo": json.dumps(geo)})


def make_frame(prediction: ScenePrediction, classes: Sequence[str]) -> geopandas.GeoDataFrame:
    """The rows of a scene: see `open_table`."""
    tiles = prediction.tiles
    label = np.full_like(prediction.share, np.nan) if tiles.label is None else tiles.label
    columns: dict[str, Any] = {"scene": tiles.name, "row": tiles.row, "col": tiles.col}
    columns |= {name: prediction.share[:, k] for k, name in enumerate(classes)}
    columns |= {f"{name}_map": label[:, k] for k, name in enumerate(classes)}
    columns["disagreement"] = prediction.disagreement()
    corners = tiles.corners()
    lon, lat = transformer(tiles.attributes["proj:code"], "EPSG:4326").transform(corners[..., 0], corners[..., 1])
    footprints = footprint_polygons(np.stack([lon, lat], axis=-1))
    return geopandas.GeoDataFrame(columns, geometry=footprints, crs="EPSG:4326")
