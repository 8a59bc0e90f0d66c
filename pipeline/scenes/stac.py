"""STAC items as scenes: which assets hold the bands that are wanted, and where they lie.

Read from plain JSON, of STAC 0.9 to 1.1, since what a scene takes of an item is little and what is wrong with it
must end in a sentence. Items are found by their own file, in an ItemCollection, or by the links of a Collection.
"""

import hashlib
import json
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

from geokr.storage import files, rasters
from geokr.storage.inputs import is_remote
from pipeline.geometry.sensor import Georeferenced
from pipeline.scenes.footprint import flat_terrain, image_footprint, measure_gsd
from pipeline.scenes.raster import read_header
from pipeline.scenes.scene import Image, Imagery, Scene, SceneError

Json = dict[str, Any]

DOCUMENTS = (".json", ".geojson")
MAX_DOCUMENT = 256 << 20
"""A STAC document of more bytes than this is none."""
MAX_LINKS = 1_000_000
"""A collection that leads to more documents than this is not followed."""
ALSO = {"nir": ("nir08",), "nir08": ("nir",)}
"""Common names that stand for a band where it has none of its own: Landsat's near infrared is `nir08`."""
NOT_DATA = {"visual", "overview", "thumbnail", "metadata"}
"""Roles of assets that hold no measurements."""


@dataclass(frozen=True, slots=True)
class ItemSource:
    """A STAC item, or why there is none."""

    href: str
    """Of the item, or of the document that holds it with the item's id behind a `#`."""
    document: str
    """The document that it was read from."""
    item: Json
    """With absolute hrefs of its assets; empty where there is a fault."""
    fault: str = ""


def fetch(href: str) -> bytes:
    """The bytes of a document, local or remote. Raises OSError, and SceneError for one of too many bytes."""
    if files.in_bucket(href):
        content = files.read(href)
    elif is_remote(href):
        with urllib.request.urlopen(href, timeout=60) as answer:
            content = bytes(answer.read(MAX_DOCUMENT + 1))
    else:
        with Path(href).open("rb") as file:
            content = file.read(MAX_DOCUMENT + 1)
    if len(content) > MAX_DOCUMENT:
        raise SceneError(f"{href}: more than {MAX_DOCUMENT} bytes, which no STAC document has")
    return content


def resolve_href(href: str, base: str) -> str:
    """An href as it is meant in the document at `base`: a URL, or an absolute path of this machine."""
    if is_remote(href) or (is_remote(base) and ":" in href.partition("/")[0]):
        return href
    if href.lower().startswith("file://"):
        return unquote(urlsplit(href).path)
    if is_remote(base):
        if base.lower().startswith("s3://"):
            bucket, _, key = base.removeprefix("s3://").partition("/")
            return f"s3://{bucket}/{posixpath.normpath(posixpath.join(posixpath.dirname(key), href)).lstrip('/')}"
        return urljoin(base, href)
    return os.path.normpath(Path(base).parent / href)


def walk_items(href: str, followed: set[str] | None = None) -> Iterator[ItemSource]:
    """The items of a STAC document: itself, those that it holds, or those that it links to, each once.

    What cannot be read on the way comes as a fault.
    """
    followed = {href} if followed is None else followed
    try:
        value = json.loads(fetch(href))
        if not isinstance(value, dict):
            raise SceneError(f"{href}: the JSON is no object")
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
            raise SceneError(f"{href}: no STAC Item, ItemCollection or Collection")
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
    """The items that a JSON file of a folder holds, if it is a STAC document; links are not followed.

    A folder holds other JSON too, which is none of ours, and the items that its collections link to.
    """
    try:
        value = json.loads(fetch(name))
    except (OSError, ValueError, RecursionError):
        return
    features = (
        value.get("features") if isinstance(value, dict) and value.get("type") == "FeatureCollection" else [value]
    )
    if isinstance(features, list):
        for feature in features:
            if isinstance(feature, dict) and feature.get("type") == "Feature" and "stac_version" in feature:
                yield to_source(feature, name, inside=feature is not value)


def to_source(value: Any, document: str, inside: bool) -> ItemSource:
    """An item with absolute hrefs."""
    name = value.get("id") if isinstance(value, dict) else None
    if not isinstance(name, str) or not isinstance(value.get("assets"), dict):
        return ItemSource(document, document, {}, f"{document}: an item without id or assets")
    assets = {
        key: asset | {"href": resolve_href(asset["href"], document)}
        for key, asset in value["assets"].items()
        if isinstance(asset, dict) and isinstance(asset.get("href"), str)
    }
    said = value.get("properties")
    kept = {
        "id": name,
        "bbox": value.get("bbox"),
        "properties": said if isinstance(said, dict) else {},
        "assets": assets,
    }
    return ItemSource(f"{document}#{name}" if inside else document, document, kept)


def read_item(item: Json, href: str, document: str, imagery: Imagery, wanted: Sequence[str]) -> Scene:
    """The scene of an item with absolute hrefs.

    wanted: common names of the bands to take. Raises SceneError with a sentence that names the item and the fault.
    """
    said = item["properties"]
    names = ("pan",) if imagery == "pan" else tuple(wanted)
    images = select_images(item, said, names, href)
    pan = None
    if imagery == "pansharpened":
        (pan,) = select_images(item, said, ("pan",), href)
    first = images[0]
    if len(types := {image.dtype for image in images}) > 1:
        raise SceneError(f"{href}: the pixels of its bands are of two types, {' and '.join(sorted(types))}")
    footprint = image_footprint(first, flat_terrain(first.model))
    bbox = item.get("bbox")
    if isinstance(bbox, list) and len(bbox) in (4, 6) and all(isinstance(v, int | float) for v in bbox):
        box = shapely.box(bbox[0], bbox[1], bbox[len(bbox) // 2], bbox[len(bbox) // 2 + 1])
        if bbox[0] <= bbox[len(bbox) // 2] and not box.intersects(footprint):
            raise SceneError(f"{href}: its bbox is {bbox}, but {first.path} lies elsewhere")
    paths = [image.path for image in (*images, *filter(None, [pan]))]
    local = [path for path in paths if not path.startswith("/vsi")]
    return Scene(
        id=item["id"],
        satellite=to_text(said.get("platform")),
        sensor=to_text(said.get("instruments")),
        level="L2A",
        acquired=parse_time(said.get("datetime") or said.get("start_datetime")),
        gsd=min(image.gsd for image in (*images, *filter(None, [pan]))),
        images=images,
        pan=pan,
        delivery=href,
        files=(*([] if is_remote(document) else [document]), *local) if len(local) == len(paths) else (),
        bytes=sum(Path(path).stat().st_size for path in local),
        metadata_digest=item_digest(item),
        footprint=footprint,
        metadata={key: to_text(value) for key, value in said.items() if value is not None},
    )


def item_digest(item: Json) -> str:
    """SHA-256 of an item."""
    return hashlib.sha256(json.dumps(item, sort_keys=True).encode()).hexdigest()


def to_text(value: Any) -> str:
    """A property as text: a list's parts behind one another, anything else that is no text as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "+".join(value)
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def parse_time(value: Any) -> datetime | None:
    """A time of RFC 3339, UTC."""
    try:
        found = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def asset_bands(asset: Json) -> list[Json]:
    """What an asset says of each of its bands, in the file's order, whatever the version of STAC."""
    common = {key: value for key, value in asset.items() if key in ("nodata", "raster:scale", "raster:offset")}
    lists = [asset.get(key) for key in ("bands", "eo:bands", "raster:bands")]
    several = [part for part in lists if isinstance(part, list)]
    merged: list[Json] = [dict(common) for _ in range(max(map(len, several), default=0))]
    for part in several:
        for band, value in zip(merged, part, strict=False):
            band |= value if isinstance(value, dict) else {}
    return merged


def common_name(band: Json) -> str:
    return to_text(band.get("eo:common_name") or band.get("common_name"))


def select_images(item: Json, said: Json, wanted: Sequence[str], href: str) -> tuple[Image, ...]:
    """The images that hold the wanted bands, in their order, as far as there are any.

    An asset that holds one band alone goes before one that holds several, such as a true-colour picture.
    Raises SceneError where none is there.
    """
    held: dict[str, list[tuple[int, str, int]]] = {}
    for key, asset in item["assets"].items():
        roles = asset.get("roles")
        if isinstance(roles, list) and NOT_DATA & {role for role in roles if isinstance(role, str)}:
            continue
        if "tiff" not in to_text(asset.get("type") or "tiff") and not asset["href"].lower().endswith((".tif", ".tiff")):
            continue
        bands = asset_bands(asset)
        for index, band in enumerate(bands):
            held.setdefault(common_name(band), []).append((len(bands), key, index))
    chosen: dict[str, list[tuple[str, int]]] = {}
    for name in wanted:
        there = next((held[also] for also in (name, *ALSO.get(name, ())) if also in held), None)
        if there is not None:
            _, key, index = min(there, key=lambda part: part[0])
            chosen.setdefault(key, []).append((name, index))
    if not chosen:
        raise SceneError(
            f"{href}: none of its assets holds {' or '.join(wanted)}; they are {', '.join(item['assets'])}"
        )
    return tuple(asset_image(key, item["assets"][key], parts, said, href) for key, parts in chosen.items())


def asset_image(key: str, asset: Json, parts: Sequence[tuple[str, int]], said: Mapping[str, Any], href: str) -> Image:
    """The image of an asset's bands: names and places in the file, from 0."""
    path = asset_path(asset["href"], href)
    found = read_header(path)
    if found.crs is None:
        raise SceneError(f"{href}: its asset {key} has no georeference")
    bands = asset_bands(asset)
    if len(bands) != found.count:
        raise SceneError(f"{href}: its asset {key} is said to have {len(bands)} bands, but has {found.count}")
    model = Georeferenced(found.crs.to_wkt(), tuple(found.transform)[:6])
    whole = found.image(path, tuple(f"band_{k}" for k in found.indexes), 1.0, model)
    scales, offsets = [], []
    for _, index in parts:
        scale, offset = (bands[index].get(k, bands[index].get(f"raster:{k}")) for k in ("scale", "offset"))
        scales.append(finite_number(scale, 1.0))
        offsets.append(finite_number(offset, 0.0))
    if any(said.get(f"{prefix}:boa_offset_applied") is True for prefix in ("earthsearch", "sentinel")):
        offsets = [0.0] * len(offsets)  # the offset is in the pixels already, although it is stated
    if not any(scales[k] != 1.0 or offsets[k] != 0.0 for k in range(len(parts))):
        scales, offsets = [], []  # nothing is said of them
    stated = finite_number(bands[parts[0][1]].get("nodata"), None)
    return replace(
        whole,
        bands=tuple(name for name, _ in parts),
        indexes=tuple(found.indexes[index] for _, index in parts),
        gsd=measure_gsd(whole),
        nodata=stated if whole.nodata is None else whole.nodata,
        scales=tuple(scales),
        offsets=tuple(offsets),
    )


def finite_number(value: Any, otherwise: Any) -> Any:
    """A value that is a finite number, as float."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if good else otherwise


def asset_path(href: str, item: str) -> str:
    """What GDAL opens for an asset's address. Raises SceneError for one that leads into GDAL's own systems."""
    if not is_remote(href) and (not href.startswith("/") or href.startswith("/vsi")):
        raise SceneError(f"{item}: {href} is no address of an image")
    return rasters.gdal_path(href)
