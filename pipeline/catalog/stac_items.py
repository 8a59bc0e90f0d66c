"""Scenes as STAC items: columns of the catalog's GeoParquet, and a static STAC catalog for whoever browses them."""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pystac
import shapely
import shapely.geometry
from pyproj import CRS

from geokr.crs import cut_at_antimeridian
from geokr.storage import rasters
from pipeline.geometry.sensor import Georeferenced
from pipeline.scenes.scene import Image, Scene

EXTENSIONS = tuple(
    f"https://stac-extensions.github.io/{name}/schema.json"
    for name in ("eo/v1.1.0", "file/v2.1.0", "projection/v2.0.0", "view/v1.0.0")
)
SINCE, UNTIL = datetime(1957, 10, 4, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
"""The times between which a scene of unknown date was taken, as STAC wants some: from the first satellite on."""
COMMON_NAMES = {
    "blue", "green", "red", "nir", "pan", "coastal", "yellow", "nir08", "nir09", "cirrus", "swir16", "swir22",
    "rededge", "rededge071", "rededge075", "rededge078", "lwir", "lwir11", "lwir12", "green05",
}  # fmt: skip
OURS = {"red_edge_1": "rededge071", "red_edge_2": "rededge075"}
"""Names of the eo extension, and those that ours stand for."""


def to_item(scene: Scene) -> pystac.Item:
    """A scene as a STAC item with the eo, file, projection and view extensions."""
    outline = cut_at_antimeridian(scene.footprint)
    found = pystac.Item(
        id=scene.id,
        geometry=shapely.geometry.mapping(outline),
        bbox=bounding_box(outline),
        datetime=scene.acquired,
        properties=item_properties(scene),
        start_datetime=SINCE if scene.acquired is None else None,
        end_datetime=UNTIL if scene.acquired is None else None,
        stac_extensions=[*EXTENSIONS],
    )
    for key, image in images_by_key(scene):
        found.add_asset(key, to_asset(image, scene))
    return found


def item_properties(scene: Scene) -> dict[str, Any]:
    """What the metadata say of the view, the sun and the clouds, as far as they do; angles in degrees."""
    said: dict[str, Any] = {"gsd": scene.gsd}
    if scene.satellite:
        said["platform"] = scene.satellite
    if scene.sensor:
        said["instruments"] = [scene.sensor]
    stated = {
        key: parse_number(scene.metadata.get(key)) for key in ("CloudPercent", "SolarAzimuth", "SatelliteAzimuth")
    }
    zenith, view = (parse_number(scene.metadata.get(key)) for key in ("SolarZenith", "SatelliteZenith"))
    angles = {
        "eo:cloud_cover": stated["CloudPercent"],
        "view:sun_azimuth": stated["SolarAzimuth"],
        "view:sun_elevation": None if zenith is None else 90.0 - zenith,
        "view:azimuth": stated["SatelliteAzimuth"],
        # What Gaofen calls the satellite's zenith angle is its elevation above the horizon.
        "view:incidence_angle": None if view is None else min(view, 90.0 - view),
    }
    limits = {"eo:cloud_cover": (0, 100), "view:sun_elevation": (-90, 90), "view:incidence_angle": (0, 90)}
    for key, value in angles.items():
        stated_already = parse_number(scene.metadata.get(key))  # by a STAC item that it was read from
        value = value if stated_already is None else stated_already
        low, high = limits.get(key, (0, 360))
        if value is not None and low <= value <= high:  # CloudPercent can be 101
            said[key] = round(value, 6)
    return said


def parse_number(text: str | None) -> float | None:
    """A number, where a text is one."""
    try:
        return float(text or "")
    except ValueError:
        return None


def images_by_key(scene: Scene) -> list[tuple[str, Image]]:
    """A scene's images by the keys of their assets."""
    found = [("-".join(image.bands) if len(scene.images) > 1 else "image", image) for image in scene.images]
    return found if scene.pan is None else [*found, ("pan", scene.pan)]


def to_asset(image: Image, scene: Scene) -> pystac.Asset:
    """An image as an asset: where it lies, and how its bands are called."""
    said: dict[str, Any] = {
        "gsd": image.gsd,
        "proj:shape": [image.height, image.width],
        "eo:bands": [to_band(name) for name in image.bands],
        "data_type": image.dtype,
    }
    if image.nodata is not None:
        said["nodata"] = image.nodata
    if image.scales:
        said["raster:bands"] = [
            {"scale": scale, "offset": offset} for scale, offset in zip(image.scales, image.offsets, strict=True)
        ]
    if isinstance(image.model, Georeferenced):
        crs = CRS.from_user_input(image.model.crs)
        code = crs.to_authority()
        said |= {"proj:code": ":".join(code)} if code else {"proj:code": None, "proj:wkt2": crs.to_wkt()}
        said["proj:transform"] = [*image.model.transform]
    href = public_address(image.path)
    if not href.startswith(("http", "s3:")) and Path(href).is_file():
        said["file:size"] = Path(href).stat().st_size
    if href != image.path and href == scene.delivery:
        said["geokr:member"] = image.path  # what GDAL opens in the archive
    archived = href.lower().endswith((".tar", ".gz", ".tgz", ".zip"))
    kind = "application/octet-stream" if archived else pystac.MediaType.GEOTIFF
    return pystac.Asset(href, media_type=kind, roles=["data"], extra_fields=said)


def to_band(name: str) -> dict[str, str]:
    """A band by the names of the eo extension."""
    common = OURS.get(name, name)
    return {"name": name} | ({"common_name": common} if common in COMMON_NAMES else {})


def public_address(path: str) -> str:
    """Where an image is for others than GDAL: the archive of one in an archive, the URL of a remote one."""
    if path.startswith(("/vsitar/", "/vsizip/")):
        return path.partition("{")[2].partition("}/")[0]
    return rasters.from_gdal_path(path)


def bounding_box(outline: shapely.Geometry) -> list[float]:
    """A bounding box; west is greater than east where it crosses the antimeridian (RFC 7946, 5.2)."""
    if isinstance(outline, shapely.MultiPolygon):
        west = min(part.bounds[0] for part in outline.geoms if part.bounds[0] > 0)
        east = max(part.bounds[2] for part in outline.geoms if part.bounds[2] < 0)
        return [west, outline.bounds[1], east, outline.bounds[3]]
    return [*outline.bounds]


def geoparquet_columns(scene: Scene) -> dict[str, Any]:
    """What stac-geoparquet wants of a row beside the id and the geometry."""
    value = to_item(scene).to_dict(include_self_link=False, transform_hrefs=False)
    return {
        "type": "Feature",
        "stac_version": value["stac_version"],
        "stac_extensions": value["stac_extensions"],
        "links": [],
        # All rows share one structure, in which what is missing becomes null, as which no nodata value is valid.
        "assets": {key: {k: v for k, v in parts.items() if k != "nodata"} for key, parts in value["assets"].items()},
        "datetime": scene.acquired,
        "start_datetime": scene.acquired or SINCE,  # a column without holes, since no item may say null
        "end_datetime": scene.acquired or UNTIL,
        "platform": "unknown",
        "instruments": ["unknown"],
        **item_properties(scene),
    }


def write_static_catalog(directory: Path, scenes: Iterable[Scene]) -> None:
    """A static STAC catalog, whose items lie in a folder each. What else is in the directory stays."""
    catalog = pystac.Catalog("scenes", "Scenes of a data set", title="Scenes")
    catalog.add_items([to_item(scene) for scene in sorted(scenes, key=lambda scene: scene.id)])
    catalog.normalize_and_save(str(directory.absolute()), pystac.CatalogType.SELF_CONTAINED)
