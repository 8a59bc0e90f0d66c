"""Convert scenes to STAC items, for the columns of the catalog's GeoParquet and for a static STAC catalog."""

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pystac
import shapely
import shapely.geometry

from geokr.crs import cut_at_antimeridian, parse
from geokr.storage import rasters
from pipeline.geometry.sensor import Georeferenced
from pipeline.scenes.raster import LAYER
from pipeline.scenes.scene import Image, Scene
from pipeline.scenes.stac import OWN, SOFTWARE

EXTENSIONS = tuple(
    f"https://stac-extensions.github.io/{name}/schema.json"
    for name in ("eo/v1.1.0", "file/v2.1.0", "processing/v1.2.0", "projection/v2.0.0", "view/v1.0.0")
)
SINCE, UNTIL = datetime(1957, 10, 4, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
"""Time range for a scene of unknown date, because STAC requires one. It starts at the launch of the first satellite."""
COMMON_NAMES = {
    "blue", "green", "red", "nir", "pan", "coastal", "yellow", "nir08", "nir09", "cirrus", "swir16", "swir22",
    "rededge", "rededge071", "rededge075", "rededge078", "lwir", "lwir11", "lwir12", "green05",
}  # fmt: skip
"""Common names of the eo extension."""
COMMON_NAME_OF = {"red_edge_1": "rededge071", "red_edge_2": "rededge075"}
"""Band name of this project -> common name of the eo extension, where they differ."""


def to_item(scene: Scene) -> pystac.Item:
    """Convert a scene to a STAC item with the eo, file, processing, projection and view extensions."""
    outline = cut_at_antimeridian(scene.footprint)
    item = pystac.Item(
        id=scene.id,
        geometry=shapely.geometry.mapping(outline),
        bbox=bounding_box(outline),
        datetime=scene.acquired,
        properties={SOFTWARE: {OWN: own_version()}, **item_properties(scene)},
        start_datetime=SINCE if scene.acquired is None else None,
        end_datetime=UNTIL if scene.acquired is None else None,
        stac_extensions=[*EXTENSIONS],
    )
    for key, image in images_by_key(scene):
        item.add_asset(key, to_asset(image, scene))
    return item


def item_properties(scene: Scene) -> dict[str, Any]:
    """Properties from the metadata: platform, instrument, cloud cover, sun and view angles in degrees.

    Properties that are missing, not a number or out of range are left out.
    """
    properties: dict[str, Any] = {"gsd": scene.gsd}
    if scene.satellite:
        properties["platform"] = scene.satellite
    if scene.sensor:
        properties["instruments"] = [scene.sensor]
    fields = {
        key: parse_number(scene.metadata.get(key)) for key in ("CloudPercent", "SolarAzimuth", "SatelliteAzimuth")
    }
    zenith, view = (parse_number(scene.metadata.get(key)) for key in ("SolarZenith", "SatelliteZenith"))
    angles = {
        "eo:cloud_cover": fields["CloudPercent"],
        "view:sun_azimuth": fields["SolarAzimuth"],
        "view:sun_elevation": None if zenith is None else 90.0 - zenith,
        "view:azimuth": fields["SatelliteAzimuth"],
        # The field SatelliteZenith of Gaofen is the elevation of the satellite above the horizon.
        "view:incidence_angle": None if view is None else min(view, 90.0 - view),
    }
    limits = {"eo:cloud_cover": (0, 100), "view:sun_elevation": (-90, 90), "view:incidence_angle": (0, 90)}
    for key, value in angles.items():
        from_item = parse_number(scene.metadata.get(key))  # set if the scene was read from a STAC item
        value = value if from_item is None else from_item
        low, high = limits.get(key, (0, 360))
        if value is not None and low <= value <= high:  # CloudPercent can be 101
            properties[key] = round(value, 6)
    return properties


def parse_number(text: str | None) -> float | None:
    """Parse a number; None if the text is not one."""
    try:
        return float(text or "")
    except ValueError:
        return None


def images_by_key(scene: Scene) -> list[tuple[str, Image]]:
    """The images of a scene with the keys of their assets."""
    keyed = [("-".join(image.bands) if len(scene.images) > 1 else "image", image) for image in scene.images]
    return keyed if scene.pan is None else [*keyed, ("pan", scene.pan)]


def to_asset(image: Image, scene: Scene) -> pystac.Asset:
    """Convert an image to an asset with its address, size, bands, scale and georeference."""
    fields: dict[str, Any] = {
        "gsd": image.gsd,
        "proj:shape": [image.height, image.width],
        "eo:bands": [to_band(name) for name in image.bands],
        "data_type": image.dtype,
    }
    if image.nodata is not None:
        fields["nodata"] = image.nodata
    if image.scales:
        fields["raster:bands"] = [
            {"scale": scale, "offset": offset} for scale, offset in zip(image.scales, image.offsets, strict=True)
        ]
    if isinstance(image.model, Georeferenced):
        crs = parse(image.model.crs)
        code = crs.to_authority()
        fields |= {"proj:code": ":".join(code)} if code else {"proj:code": None, "proj:wkt2": crs.to_wkt()}
        fields["proj:transform"] = [*image.model.transform]
    href = public_address(image.path)
    if not href.startswith(("http", "s3:")) and Path(href).is_file():
        fields["file:size"] = Path(href).stat().st_size
    if href != image.path and href == scene.delivery:
        fields["geokr:member"] = image.path  # the GDAL path into the archive
    archived = href.lower().endswith((".tar", ".gz", ".tgz", ".zip"))
    image_type = pystac.MediaType.JPEG2000 if href.lower().endswith((".jp2", ".j2k")) else pystac.MediaType.GEOTIFF
    kind = "application/octet-stream" if archived else image_type
    return pystac.Asset(href, media_type=kind, roles=["data"], extra_fields=fields)


def to_band(name: str) -> dict[str, str]:
    """Convert a band name to a band object of the eo extension."""
    common = COMMON_NAME_OF.get(name, name)
    return {"name": name} | ({"common_name": common} if common in COMMON_NAMES else {})


def public_address(path: str) -> str:
    """Convert a GDAL path to one for other software: a member becomes its archive, a variable its file, a
    remote file its URL."""
    if path.startswith(("/vsitar/", "/vsizip/")):
        return path.partition("{")[2].partition("}/")[0]
    if layer := LAYER.fullmatch(path):
        return layer["file"]
    return rasters.from_gdal_path(path)


def bounding_box(outline: shapely.Geometry) -> list[float]:
    """The bounding box [west, south, east, north], degrees.

    West is greater than east if the outline crosses the antimeridian (RFC 7946, 5.2).
    """
    if isinstance(outline, shapely.MultiPolygon):
        west = min(part.bounds[0] for part in outline.geoms if part.bounds[0] > 0)
        east = max(part.bounds[2] for part in outline.geoms if part.bounds[2] < 0)
        return [west, outline.bounds[1], east, outline.bounds[3]]
    return [*outline.bounds]


def geoparquet_columns(scene: Scene) -> dict[str, Any]:
    """The columns that stac-geoparquet requires of a row in addition to the id and the geometry."""
    value = to_item(scene).to_dict(include_self_link=False, transform_hrefs=False)
    return {
        "type": "Feature",
        "stac_version": value["stac_version"],
        "stac_extensions": value["stac_extensions"],
        "links": [],
        # All rows share one structure, in which missing fields become null, and null is no valid nodata value.
        "assets": {key: {k: v for k, v in parts.items() if k != "nodata"} for key, parts in value["assets"].items()},
        "datetime": scene.acquired,
        "start_datetime": scene.acquired or SINCE,  # no null in the column, because an item must not have one
        "end_datetime": scene.acquired or UNTIL,
        "platform": "unknown",
        "instruments": ["unknown"],
        SOFTWARE: {OWN: own_version()},
        **item_properties(scene),
    }


@cache
def own_version() -> str:
    """The version of this program; looking it up takes milliseconds."""
    return version(OWN)


def write_static_catalog(directory: Path, scenes: Iterable[Scene]) -> None:
    """Write a static STAC catalog with one folder per item. Other files in the directory are kept."""
    catalog = pystac.Catalog("scenes", "Scenes of a data set", title="Scenes")
    catalog.add_items([to_item(scene) for scene in sorted(scenes, key=lambda scene: scene.id)])
    catalog.normalize_and_save(str(directory.absolute()), pystac.CatalogType.SELF_CONTAINED)
