"""Outlines of scenes, as far as they are known without a camera: of data sets, documents and images on a map."""

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import shapely
from affine import Affine
from pyarrow import ArrowException
from pyproj.exceptions import ProjError
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

from geokr.landcover.outlines import LONLAT, project_rings
from geokr.landcover.products import LandCoverError, Product
from geokr.storage import files, inputs, rasters

CATALOG = "scenes.parquet"
"""The table of scenes in a data set."""
DOCUMENTS = (".json", ".geojson")
IMAGES = (".tif", ".tiff", ".jp2", ".img", ".vrt", ".nc", ".dat")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")


def read_outlines(places: Iterable[str], products: Sequence[Product]) -> tuple[dict[str, shapely.Polygon], list[str]]:
    """Name -> outline, longitude and latitude, of all scenes at places; and the images and archives without one.

    places: data sets, tables of scenes, GeoJSON documents (such as STAC items and collections of them), images on a
    map, and directories with these. Sheets of products are left out. Raises LandCoverError if a place does not exist,
    or a document or table that was given cannot be read.
    """
    outlines: dict[str, shapely.Polygon] = {}
    unplaced: list[str] = []
    for place in places:
        if (table := find_table(place)) is not None:
            outlines |= read_table(table)
            continue
        if not inputs.is_remote(place) and not Path(place).exists():
            raise LandCoverError(f"{place}: no such file or directory")
        folder = not inputs.is_remote(place) and Path(place).is_dir()
        for path in map(str, inputs.list_folder(Path(place))) if folder else [place]:
            name = PurePosixPath(path).name.lower()
            if name.endswith(DOCUMENTS):
                outlines |= read_document(path, strict=not folder)
            elif name.endswith(ARCHIVES):
                unplaced.append(path)
            elif name.endswith(IMAGES) and not any(product.match(PurePosixPath(path).name) for product in products):
                outline = read_image_outline(path)
                if outline is None:
                    unplaced.append(path)
                else:
                    outlines[path] = outline
    return outlines, unplaced


def find_table(place: str) -> str | None:
    """The table of scenes that a place is, or that lies in it; None if there is none."""
    if place.lower().endswith(".parquet"):
        return place
    table = files.join(place, CATALOG)
    return table if not place.lower().startswith("http") and files.exists(table) else None


def read_table(path: str) -> dict[str, shapely.Polygon]:
    """The outlines in a table of scenes. Raises LandCoverError if it cannot be read."""
    try:
        table = parquet.read_table(BytesIO(files.read(path)), columns=["id", "geometry"])
        return dict(zip(table["id"].to_pylist(), shapely.from_wkb(table["geometry"].to_pylist()), strict=True))
    except (OSError, ArrowException, KeyError, shapely.errors.ShapelyError) as error:
        raise LandCoverError(f"{path}: not a table of scenes: {error}") from error


def read_document(path: str, *, strict: bool) -> dict[str, shapely.Polygon]:
    """The outlines in a GeoJSON document: of a feature, a collection of features, or a geometry.

    strict: whether a document without any is an error, LandCoverError; otherwise it has no outlines.
    """
    try:
        content = json.loads(inputs.read_ranges(path, [(0, inputs.stat(path).size)])[0])
        return dict(find_geometries(content, path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, shapely.errors.ShapelyError) as error:
        if strict:
            raise LandCoverError(f"{path}: not GeoJSON with outlines: {error}") from error
        return {}


def find_geometries(content: Any, path: str) -> Iterator[tuple[str, shapely.Polygon]]:
    """Name and outline of each feature. Raises ValueError if the content has none."""
    match content:
        case {"type": "FeatureCollection", "features": [*features]}:
            for k, feature in enumerate(features, 1):
                yield from find_geometries(feature, f"{path}#{k}")
        case {"type": "Feature", "geometry": {"type": "Polygon" | "MultiPolygon"} as geometry}:
            yield str(content.get("id", path)), shapely.from_geojson(json.dumps(geometry))
        case {"type": "Feature", "geometry": geometry}:
            kind = f"a {geometry.get('type')}, which has" if isinstance(geometry, dict) else "a feature of"
            raise ValueError(f"{content.get('id', path)} is {kind} no area; give its outline")
        case {"type": "Polygon" | "MultiPolygon"}:
            yield path, shapely.from_geojson(json.dumps(content))
        case _:
            raise ValueError("its type is no Feature, FeatureCollection, Polygon or MultiPolygon")


def read_image_outline(path: str) -> shapely.Polygon | None:
    """The outline of an image on a map; None if it cannot be opened or is on none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasters.open_raster(path) as image:
                if image.crs is None or image.transform == Affine.identity():
                    return None
                cols, rows = np.array([0, 1, 1, 0]) * image.width, np.array([0, 0, 1, 1]) * image.height
                corners = np.stack(image.transform * (cols, rows), axis=-1)[None].astype(np.float64)
                return shapely.Polygon(project_rings(corners, image.crs.to_wkt(), LONLAT, 1e-5)[0])
    except (RasterioIOError, ProjError, ValueError):
        return None
