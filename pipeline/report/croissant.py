"""A data set described for other programs: Croissant for its files and its index, and a STAC collection."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa
import pystac
import shapely
from pystac.extensions.datacube import DatacubeExtension, Dimension, Variable
from pystac.extensions.table import Column, TableExtension

from geokr.crs import cut_at_antimeridian
from geokr.dataset.index import BOX
from geokr.dataset.layout import DATASET, INDEX, TILES, label_store
from pipeline.catalog.stac_items import own_version
from pipeline.catalog.table import CATALOG, Entry

CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The context that the specification of Croissant 1.0 sets down."""
MEANINGS = {
    "tile": "name of the tile: scene, row and column",
    "scene": "id of the scene, as in scenes.parquet",
    "place": "the same for tiles of one location from several dates",
    "row": "row of the tile in its scene",
    "col": "column of the tile in its scene",
    "satellite": "satellite, as the scene's metadata name it",
    "sensor": "sensor, as the scene's metadata name it",
    "acquired": "when the image was taken, UTC",
    "gsd": "ground sample distance, m",
    "known": "share of the tile's area that the land cover covers with a class",
    "cloud": "share of pixels that are cloud",
    "agreement": "1 - half the sum of absolute differences of the shares, mean over the other label sets",
    "year_gap": "year of the map - year of the image",
    "split": "split, decided by location; none if the tile touches two",
    "geometry": "footprint, WKB, EPSG:4326",
    "bbox": f"bounds of the footprint, degrees: {', '.join(BOX)}",
}
"""Column of the index -> what it means. All others are shares of classes."""


def describe_column(name: str) -> str:
    """What a column of the index means, in one phrase."""
    return MEANINGS.get(name, f"share of {name} in the known area, 0 to 1")


def data_type(column: pa.DataType) -> str | None:
    """The type of a column as schema.org names it; None if it has no name for it."""
    if pa.types.is_timestamp(column):
        return "sc:DateTime"
    if pa.types.is_string(column):
        return "sc:Text"
    if pa.types.is_integer(column):
        return "sc:Integer"
    return "sc:Float" if pa.types.is_floating(column) else None


def make_croissant(
    summary: dict[str, Any], schema: pa.Schema, title: str, description: str, licences: Sequence[str]
) -> dict[str, Any]:
    """Describe a data set as Croissant 1.0. Addresses are relative to it, so that it can be moved as a whole.

    summary: content of dataset.json. schema: of the index. The columns `geometry` and `bbox` are
    not among the fields, because Croissant has no type for them.
    """

    def file_set(name: str, pattern: str, form: str, text: str) -> dict[str, Any]:
        kind = {"@type": "cr:FileSet", "@id": name, "name": name, "description": text}
        return {**kind, "encodingFormat": form, "includes": pattern}

    zarr, parquet = "application/vnd.zarr", "application/x-parquet"
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"tiles/{column.name}",
            "name": column.name,
            "description": describe_column(column.name),
            "dataType": kind,
            "source": {"fileSet": {"@id": "index"}, "extract": {"column": column.name}},
        }
        for column in schema
        if (kind := data_type(column.type)) is not None
    ]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": title,
        "description": description,
        "license": list(licences),
        "keywords": ["remote sensing", "land cover", "pre-training", *summary["classes"]],
        "version": f"{summary['schema']}.0.0",
        "distribution": [
            file_set("index", f"{INDEX}/*.parquet", parquet, "an accepted, labelled tile a row, GeoParquet 1.1"),
            file_set("image", f"{TILES}/**", zarr, "pixels: a group a scene, image (row, col, band, y, x)"),
            *(
                file_set(name, f"{label_store(name)}/**", zarr, "shares: a group a scene, fraction (row, col, class)")
                for name in summary["label_sets"]
            ),
            {
                "@type": "cr:FileObject",
                "@id": CATALOG,
                "name": CATALOG,
                "description": "a scene a row, stac-geoparquet",
                "contentUrl": CATALOG,
                "encodingFormat": parquet,
                "sha256": summary["sha256"][CATALOG],
            },
            # Without a checksum: its settings say where the inputs lie, and would be all that differs between copies.
            file_set(DATASET, DATASET, "application/json", "classes, counts, settings, checksums"),
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "tiles",
                "name": "tiles",
                "description": "The accepted, labelled tiles, with the share of each class.",
                "key": {"@id": "tiles/tile"},
                "field": fields,
            }
        ],
    }


def make_collection(
    summary: dict[str, Any], entries: Sequence[Entry], schema: pa.Schema, title: str, description: str
) -> dict[str, Any]:
    """Describe a data set as a STAC collection: its index by the table extension, its tiles by datacube.

    schema: of the index. The cube is that of a scene: of rows and columns, each scene has a number of its own.
    """
    scenes = [entry.scene for entry in entries]
    bounds = shapely.total_bounds([cut_at_antimeridian(scene.footprint) for scene in scenes]).tolist()
    times: list[datetime] = sorted(scene.acquired for scene in scenes if scene.acquired is not None)
    span: list[datetime | None] = [times[0], times[-1]] if times else [None, None]
    collection = pystac.Collection(
        f"geokr-{summary['label_set']}",
        description,
        pystac.Extent(pystac.SpatialExtent([bounds]), pystac.TemporalExtent([span])),
        title=title,
        license="other",
        extra_fields={"processing:software": {"geokr": own_version()}},
    )
    for name, form, text in (
        (INDEX, "application/vnd.apache.parquet", "index of the tiles"),
        (CATALOG, "application/vnd.apache.parquet", "scenes, as stac-geoparquet"),
        (TILES, "application/vnd.zarr; version=3", "pixels of the tiles"),
        *((label_store(s), "application/vnd.zarr; version=3", f"labels of {s}") for s in summary["label_sets"]),
    ):
        collection.add_asset(name, pystac.Asset(f"./{name}", title=text, media_type=form, roles=["data"]))
    table = TableExtension.ext(collection, add_if_missing=True)
    table.row_count = summary["counts"]["index"]
    table.primary_geometry = "geometry"
    table.columns = [
        Column({"name": column.name, "description": describe_column(column.name), "type": str(column.type)})
        for column in schema
    ]
    tile = summary["settings"]["grid"]["tile"]
    bands = [*dict.fromkeys(band for scene in scenes for band in scene.bands)]
    sides = {"row": [0, None], "col": [0, None], "y": [0, tile - 1], "x": [0, tile - 1]}
    dimensions: dict[str, Any] = {
        name: {"type": "tile" if name in ("row", "col") else "pixel", "extent": extent, "step": 1}
        for name, extent in sides.items()
    }
    dimensions["band"] = {"type": "bands", "values": bands}
    dimensions["class"] = {"type": "class", "values": summary["classes"]}
    cube = DatacubeExtension.ext(collection, add_if_missing=True)
    cube.dimensions = {name: Dimension.from_dict(dimensions[name]) for name in sorted(dimensions)}
    variables = {
        "image": (["row", "col", "band", "y", "x"], "pixels of a tile"),
        "status": (["row", "col"], "1 accepted, from 2 on why rejected"),
        "fraction": (["row", "col", "class"], "share of each class in the known area of a tile"),
        "known": (["row", "col"], "share of the tile's area that the land cover covers with a class"),
    }
    cube.variables = {
        name: Variable({"dimensions": names, "type": "data", "description": text})
        for name, (names, text) in variables.items()
    }
    return collection.to_dict(include_self_link=False, transform_hrefs=False)
