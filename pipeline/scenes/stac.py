"""Read STAC items as scenes: find the items, and the assets that contain the requested bands.

Items of STAC 0.9 to 1.1 are read as plain JSON: a scene needs few of their fields, and every fault must become one
sentence. Items are found in files of their own, in an ItemCollection, or by the links of a Collection or Catalog.
"""

import hashlib
import json
import math
import os
import posixpath
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import shapely
from pyproj import CRS
from pyproj.exceptions import CRSError

from geokr.storage import files, rasters
from geokr.storage.inputs import is_remote
from pipeline.geometry.sensor import Georeferenced
from pipeline.scenes.archive import IMAGES
from pipeline.scenes.footprint import image_footprint, make_flat_terrain, measure_gsd
from pipeline.scenes.raster import Alpha, Header, read_beside, read_header
from pipeline.scenes.scene import CloudMask, Image, Imagery, Scene, SceneError
from pipeline.scenes.sensor_bands import choose_bands, find_sensor, to_common_name

Json = dict[str, Any]

DOCUMENTS = (".json", ".geojson")
MAX_DOCUMENT = 256 << 20
"""A STAC document with more bytes than this is refused."""
MAX_LINKS = 1_000_000
"""Documents that are read by following the links of a collection; further links are ignored."""
IMAGE_TYPES = ("tiff", "jp2")
"""Parts of the media types of images that can be read."""
QUALITY_BANDS = {"qa_pixel": "QA_PIXEL", "scl": "SCL", "fmask": "Fmask", "oa_fmask": "oa_fmask"}
"""Key of the asset of a quality band, in lower case -> its name in `clouds.find_clouds`."""
MAX_DISTANCE = 1.0
"""Largest distance of an image from the bbox of its item, degrees. A bbox may be rough; an image lies where it says."""
SOFTWARE = "processing:software"
"""Property of an item with the names and versions of the software that made it."""
OWN = "geokr"
"""The name of this program there."""
NOT_DATA = {"visual", "overview", "thumbnail", "metadata"}
"""Roles of assets without measurements."""


@dataclass(frozen=True, slots=True)
class ItemSource:
    """A STAC item, or the fault that prevented reading it."""

    href: str
    """Address of the item, or of the document that contains it with `#` and the id of the item appended."""
    document: str
    """Address of the document that the item was read from."""
    item: Json
    """The item with absolute hrefs of its assets; empty if there is a fault."""
    fault: str = ""


def fetch(href: str) -> bytes:
    """Read a local or remote document. Raises OSError, and SceneError if it is larger than MAX_DOCUMENT."""
    if files.in_bucket(href):
        content = files.read(href)
    elif is_remote(href):
        with urllib.request.urlopen(href, timeout=60) as response:
            content = bytes(response.read(MAX_DOCUMENT + 1))
    else:
        with Path(href).open("rb") as file:
            content = file.read(MAX_DOCUMENT + 1)
    if len(content) > MAX_DOCUMENT:
        raise SceneError(f"{href}: more than {MAX_DOCUMENT} bytes, too many for a STAC document")
    return content


def resolve_href(href: str, base: str) -> str:
    """Resolve an href in the document at `base` to a URL or an absolute local path."""
    if is_remote(href) or (is_remote(base) and ":" in href.partition("/")[0]):
        return href
    if href.lower().startswith("file:"):
        return unquote(urlsplit(href).path)
    if is_remote(base):
        if base.lower().startswith("s3://"):
            bucket, _, key = base.removeprefix("s3://").partition("/")
            return f"s3://{bucket}/{posixpath.normpath(posixpath.join(posixpath.dirname(key), href)).lstrip('/')}"
        return urljoin(base, href)
    # An href is a URL: a space is `%20`, and a query may follow; some programs write names of files as they are.
    written, decoded, plain = (
        os.path.normpath(Path(base).parent / name) for name in (href, unquote(href), unquote(strip_query(href)))
    )
    return next((path for path in (written, decoded, plain) if os.path.exists(path)), decoded)


def strip_query(href: str) -> str:
    """An href without the query that follows the name of its file."""
    return href.partition("?")[0]


def walk_items(href: str, followed: set[str] | None = None) -> Iterator[ItemSource]:
    """Yield the items of a STAC document: itself, those it contains, or those it links to. Each document is read once.

    A document that cannot be read is yielded as a fault.
    """
    followed = {href} if followed is None else followed
    try:
        value = json.loads(fetch(href))
        if not isinstance(value, dict):
            raise SceneError(f"{href}: the JSON is not an object")
        kind = value.get("type")
        if kind == "FeatureCollection":
            features = value.get("features")
            if not isinstance(features, list):
                raise SceneError(f"{href}: the collection has no list of features")
            for feature in features:
                yield to_source(feature, href, inside=True)
            return
        if kind == "Feature":
            yield to_source(value, href, inside=False)
            return
        if kind not in ("Collection", "Catalog") and "stac_version" not in value:
            raise SceneError(f"{href}: not a STAC Item, ItemCollection, Collection or Catalog")
        links = value.get("links")
        for link in links if isinstance(links, list) else []:
            if not isinstance(link, dict) or link.get("rel") not in ("item", "child", "items", "next"):
                continue
            target = resolve_href(str(link.get("href")), href)
            if target not in followed and len(followed) < MAX_LINKS:
                followed.add(target)
                yield from walk_items(target, followed)
    except SceneError as error:
        yield ItemSource(href, href, {}, str(error))
    except (OSError, ValueError, RecursionError, ImportError) as error:
        yield ItemSource(href, href, {}, f"{href}: cannot be read as STAC: {error}")


def items_in_file(name: str) -> Iterator[ItemSource]:
    """Yield the items that a JSON file contains if it is a STAC document. Links are not followed.

    A folder also contains other JSON files, which are ignored, and the items that its collections link to. A file that
    cannot be read, or that says it is STAC but is not complete, is yielded as a fault.
    """
    content = b""
    try:
        content = fetch(name)
        value = json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        if b'"stac_version"' in content or isinstance(error, OSError):
            yield ItemSource(name, name, {}, f"{name}: cannot be read as STAC: {error}")
        return
    features = (
        value.get("features") if isinstance(value, dict) and value.get("type") == "FeatureCollection" else [value]
    )
    if isinstance(features, list):
        for feature in features:
            if isinstance(feature, dict) and feature.get("type") == "Feature" and "stac_version" in feature:
                yield to_source(feature, name, inside=feature is not value)


def to_source(value: Any, document: str, inside: bool) -> ItemSource:
    """Make an ItemSource with absolute hrefs from the JSON of an item.

    inside: whether the document is a collection that contains the item.
    """
    name = value.get("id") if isinstance(value, dict) else None
    if not isinstance(name, str) or not isinstance(value.get("assets"), dict):
        return ItemSource(document, document, {}, f"{document}: an item without id or assets")
    assets = {
        key: asset | {"href": resolve_href(asset["href"], document)}
        for key, asset in value["assets"].items()
        if isinstance(asset, dict) and isinstance(asset.get("href"), str)
    }
    properties = value.get("properties")
    item = {
        "id": name,
        "collection": to_text(value.get("collection")),
        "bbox": value.get("bbox"),
        "properties": properties if isinstance(properties, dict) else {},
        "assets": assets,
    }
    return ItemSource(f"{document}#{name}" if inside else document, document, item)


def is_own(item: Json) -> bool:
    """Whether this program wrote an item."""
    software = item.get("properties", {}).get(SOFTWARE)
    return isinstance(software, dict) and OWN in software


def hrefs(source: ItemSource) -> list[str]:
    """The addresses of an item's assets."""
    return [asset["href"] for asset in source.item.get("assets", {}).values()]


def read_item(
    item: Json,
    href: str,
    document: str,
    imagery: Imagery,
    bands: Sequence[str],
    alpha: Alpha = "auto",
    mask: CloudMask = "none",
) -> Scene:
    """Read the scene of an item with absolute hrefs.

    bands: common names of the bands to read. Raises SceneError with a sentence that names the item and the fault.
    """
    properties = item["properties"]
    names = ("pan",) if imagery == "pan" else tuple(bands)
    images = select_images(item, properties, names, href, alpha)
    pan = None
    if imagery == "pansharpened":
        (pan,) = select_images(item, properties, ("pan",), href, alpha)
    first = images[0]
    if len(types := {image.read_type for image in images}) > 1:
        raise SceneError(f"{href}: the pixels of its bands are of different types, {' and '.join(sorted(types))}")
    footprint = image_footprint(first, make_flat_terrain(first.model))
    bbox = item.get("bbox")
    if isinstance(bbox, list) and len(bbox) in (4, 6) and all(isinstance(v, int | float) for v in bbox):
        west, south, east, north = bbox[0], bbox[1], bbox[len(bbox) // 2], bbox[len(bbox) // 2 + 1]
        # Longitudes of 0 to 360 mean the same places.
        boxes = [shapely.box(west + turn, south, east + turn, north) for turn in (-360, 0, 360)]
        if west <= east and min(box.distance(footprint) for box in boxes) > MAX_DISTANCE:
            raise SceneError(f"{href}: its bbox is {bbox}, but {first.path} is outside of it")
    paths = [image.path for image in (*images, *filter(None, [pan]))]
    local = [path for path in paths if not path.startswith("/vsi")]
    return Scene(
        id=item["id"],
        satellite=to_text(properties.get("platform")),
        sensor=to_text(properties.get("instruments")),
        level="L2A",
        acquired=parse_time(properties.get("datetime") or properties.get("start_datetime")),
        gsd=min(image.gsd for image in (*images, *filter(None, [pan]))),
        images=images,
        pan=pan,
        delivery=href,
        files=(*([] if is_remote(document) else [document]), *local) if len(local) == len(paths) else (),
        bytes=sum(Path(path).stat().st_size for path in local),
        metadata_digest=item_digest(item),
        footprint=footprint,
        metadata={key: to_text(value) for key, value in properties.items() if value is not None},
        quality=read_quality(item, properties, href) if mask == "qa" else None,
    )


def read_quality(item: Json, properties: Json, href: str) -> Image | None:
    """The quality band of an item; None if it has none that is known. Raises SceneError: see `asset_image`."""
    found = [
        (is_jpeg2000(asset), finite_number(asset.get("gsd"), math.inf), key, QUALITY_BANDS[name])
        for key, asset in item["assets"].items()
        if (name := to_common_name(key, {})) in QUALITY_BANDS and is_data(asset)
    ]
    if not found:
        return None
    _, _, key, name = min(found)
    image = asset_image(key, item["assets"][key], [(name, 0)], properties, href, "band")
    return replace(image, nodata=None, scales=(), offsets=())


def item_digest(item: Json) -> str:
    """SHA-256 of an item's JSON, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(item, sort_keys=True).encode()).hexdigest()


def to_text(value: Any) -> str:
    """Convert a property to text: a list of strings joined by `+`, None as empty text, other values as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "+".join(value)
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def parse_time(value: Any) -> datetime | None:
    """Parse an RFC 3339 time to UTC; None if it is not one. A time without zone is taken as UTC."""
    try:
        time = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)


def asset_bands(asset: Json) -> list[Json]:
    """The fields of each band of an asset in the order of the file, merged from all STAC versions' lists of bands.

    An asset that lists no bands is taken as one band, of which nothing is said.
    """
    common = {key: value for key, value in asset.items() if key in ("nodata", "raster:scale", "raster:offset")}
    lists = [asset.get(key) for key in ("bands", "eo:bands", "raster:bands")]
    band_lists = [fields for fields in lists if isinstance(fields, list)]
    merged: list[Json] = [dict(common) for _ in range(max(map(len, band_lists), default=0) or 1)]
    for fields in band_lists:
        for band, value in zip(merged, fields, strict=False):
            band |= value if isinstance(value, dict) else {}
    return merged


def is_data(asset: Json) -> bool:
    """Whether an asset is an image with measurements, as far as its roles, its type and its name tell."""
    roles = asset.get("roles")
    if isinstance(roles, list) and NOT_DATA & {role for role in roles if isinstance(role, str)}:
        return False
    kind = to_text(asset.get("type"))
    return not kind or any(part in kind for part in IMAGE_TYPES) or strip_query(asset["href"]).lower().endswith(IMAGES)


def select_images(item: Json, properties: Json, names: Sequence[str], href: str, alpha: Alpha) -> tuple[Image, ...]:
    """Select the images with the named bands, in the order of the names. Bands that the item lacks are left out.

    Of several assets with a band, one with that band alone is preferred, since others may be pictures, then a TIFF, the
    finest pixels, and reflectance that is corrected for terrain. Raises SceneError if the item has none of the bands.
    """
    names_of: dict[tuple[str, int], tuple[str, ...]] = {}
    rank: dict[tuple[str, int], tuple[Any, ...]] = {}
    for key, asset in item["assets"].items():
        bands = asset_bands(asset) if is_data(asset) else []
        for index, band in enumerate(bands):
            common_name = to_text(band.get("eo:common_name") or band.get("common_name"))
            own_names = [to_text(band.get("name")), key if len(bands) == 1 else ""]
            names_of[key, index] = (common_name, *filter(None, own_names))
            gsd = min(finite_number(fields.get("gsd"), math.inf) for fields in (asset, band))
            rank[key, index] = (len(bands), is_jpeg2000(asset), gsd, key.startswith("nbar_"))
    traits = (properties.get(name) for name in ("platform", "constellation", "instruments"))
    sensor = find_sensor([item["id"], item["collection"], *map(to_text, traits)])
    chosen: dict[str, list[tuple[str, int]]] = {}
    for name, candidates in choose_bands(names, names_of, sensor).items():
        key, index = min(candidates, key=rank.__getitem__)
        chosen.setdefault(key, []).append((name, index))
    if not item["assets"]:
        raise SceneError(f"{href}: it has no assets")
    if not chosen:
        raise SceneError(
            f"{href}: none of its assets contains {' or '.join(names)}; the assets are {', '.join(item['assets'])}; "
            "name them in the setting bands, such as red=ASSET"
        )
    return tuple(
        asset_image(key, item["assets"][key], selected, properties, href, alpha) for key, selected in chosen.items()
    )


def is_jpeg2000(asset: Json) -> bool:
    """Whether an asset is JPEG 2000, the form in which Sentinel-2 is delivered."""
    return "jp2" in to_text(asset.get("type")) or strip_query(asset["href"]).lower().endswith(".jp2")


def asset_image(
    key: str, asset: Json, parts: Sequence[tuple[str, int]], properties: Mapping[str, Any], href: str, alpha: Alpha
) -> Image:
    """Make the image of some bands of an asset. Raises SceneError if the file contradicts the item.

    parts: name and index of each band, counted from 0 in the file.
    """
    path, bands = asset_path(asset["href"], href), asset_bands(asset)
    beside = read_beside(path)
    header = read_header(path, alpha, **beside)
    if alpha == "auto" and header.alpha and header.count < len(bands) == len(header.dtypes):
        header = read_header(path, "band", **beside)  # the item counts the band as one
    model = find_place(header, {**properties, **asset})
    if model is None:
        raise SceneError(f"{href}: its asset {key} has no georeference, and the item does not say it (proj:transform)")
    if len(bands) != header.count:
        raise SceneError(f"{href}: its asset {key} should have {len(bands)} bands, but has {header.count}")
    full = header.image(path, tuple(f"band_{k}" for k in header.indexes), 1.0, model)
    scales, offsets = [], []
    for _, index in parts:
        scale, offset = (bands[index].get(k, bands[index].get(f"raster:{k}")) for k in ("scale", "offset"))
        scales.append(finite_number(scale, 1.0))
        offsets.append(finite_number(offset, 0.0))
    applied = any(properties.get(f"{prefix}:boa_offset_applied") is True for prefix in ("earthsearch", "sentinel"))
    if applied and not is_jpeg2000(asset):  # a JPEG 2000 is as it was delivered
        offsets = [0.0] * len(offsets)  # the item still states the offset, but the pixels include it
    if not any(scales[k] != 1.0 or offsets[k] != 0.0 for k in range(len(parts))):
        scales, offsets = [], []  # none are stated
    nodata = parse_nodata(bands[parts[0][1]].get("nodata"))
    return replace(
        full,
        bands=tuple(name for name, _ in parts),
        indexes=tuple(header.indexes[index] for _, index in parts),
        gsd=measure_gsd(full),
        nodata=nodata if full.nodata is None else header.nodatas[parts[0][1]],
        scales=tuple(scales),
        offsets=tuple(offsets),
    )


def find_place(header: Header, fields: Mapping[str, Any]) -> Georeferenced | None:
    """Where the pixels of an asset lie: as its file says, or else as its item does; None if neither does.

    fields: those of the asset and of the item's properties, of the projection extension 1 or 2.
    """
    if header.crs is not None:
        return Georeferenced(header.crs.to_wkt(), tuple(header.transform)[:6])
    names = ("proj:code", "proj:wkt2", "proj:projjson", "proj:epsg")
    crs = next((fields[name] for name in names if fields.get(name)), None)
    shape, numbers = fields.get("proj:shape"), fields.get("proj:transform")
    if (
        shape not in (None, [header.height, header.width])
        or not isinstance(numbers, list)
        or len(numbers) not in (6, 9)
    ):
        return None
    a, b, c, d, e, f = (finite_number(number, math.nan) for number in numbers[:6])
    try:
        return Georeferenced(CRS.from_user_input(crs).to_wkt(), (a, b, c, d, e, f))
    except (CRSError, ValueError):
        return None


def parse_nodata(value: Any) -> float | None:
    """A nodata value, which some items write as text; None for what is no finite number."""
    try:
        number: float | None = finite_number(float(value) if isinstance(value, str) else value, None)
    except ValueError:
        return None
    return number


def finite_number(value: Any, default: Any) -> Any:
    """A finite number as float; the default for any other value."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if is_number else default


def asset_path(href: str, item: str) -> str:
    """The path that GDAL opens for an asset's href. Raises SceneError for one in a virtual file system of GDAL."""
    if not is_remote(href) and (not href.startswith("/") or href.startswith("/vsi")):
        raise SceneError(f"{item}: {href} is not an address of an image")
    return rasters.gdal_path(href)
