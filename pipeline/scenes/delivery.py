"""One delivery read: its images' headers and metadata become scenes.

Whatever is wrong with a delivery ends in a Refusal, a sentence that names file and fault.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import PurePosixPath

import numpy as np

from geokr.storage import inputs
from pipeline.geometry.sensor import Georeferenced, SensorModel
from pipeline.scenes import archive, discovery, gaofen, stac
from pipeline.scenes.archive import IMAGES
from pipeline.scenes.discovery import Delivery
from pipeline.scenes.footprint import flat_terrain, image_footprint, measure_gsd
from pipeline.scenes.raster import Header, read_header
from pipeline.scenes.scene import Image, Imagery, Scene, SceneError

KINDS = {"mss": "multispectral", "pan": "panchromatic"}

Files = Mapping[str, bytes | None]
"""Name -> content, None for images."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that looked like a scene and cannot be used."""

    scene: str
    """The scene's name, or the archive's."""
    reason: str
    """One word."""
    detail: str
    """One sentence that names file and fault."""


def refuse(scene: str, reason: str, detail: str) -> Refusal:
    """A refusal whose texts fit into a line, whatever names the files have."""
    scene, detail = (
        "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in " ".join(text.split()))
        for text in (scene, detail)
    )
    return Refusal(scene, reason, detail)


BANDS = ("red", "green", "blue", "nir")


def read_delivery(delivery: Delivery, imagery: Imagery = "mss", bands: Sequence[str] = BANDS) -> list[Scene | Refusal]:
    """The scenes of a delivery, read from its metadata and its images' headers; never raises for bad input.

    bands: common names of those that are taken of a STAC item, as far as it has them.
    """
    name, found = PurePosixPath(delivery.path).name, list[Scene | Refusal]()
    if delivery.fault:
        return [refuse(name, "unreadable", delivery.fault)]
    if delivery.item:
        item = json.loads(delivery.item)
        try:
            return [stac.read_item(item, delivery.path, delivery.files[0], imagery, bands)]
        except (ValueError, OSError) as error:
            detail = str(error) if isinstance(error, SceneError) else f"{delivery.path}: {error}"
            return [refuse(item["id"], "unusable", detail if delivery.path in detail else f"{delivery.path}: {detail}")]
    try:
        if delivery.archive:
            held = archive.read_contents(delivery.path)
            files = held.files
            found += [refuse(name, "unsafe", fault) for fault in held.faults]
        else:
            files = folder_files(delivery.files)
    except SceneError as error:
        return [refuse(name, "unreadable", str(error))]
    except OSError as error:
        return [refuse(name, "unreadable", f"{delivery.path}: cannot be read: {error}")]
    products = discovery.group_products(files)
    if not products:
        return [*found, refuse(name, "no_image", f"{delivery.path}: the archive holds no TIFF")]
    for product in products:
        try:
            found.append(read_product({name: files[name] for name in product}, delivery, imagery))
        except ValueError as error:  # a SceneError, or a value of the file that no scene can have
            detail = str(error) if isinstance(error, SceneError) else f"{product[0]}: {error}"
            # Members of an archive are named alone.
            where = f"{delivery.path}: " if delivery.archive and delivery.path not in detail else ""
            found.append(refuse(discovery.scene_name(product[0]), "unusable", where + detail))
    return found


def folder_files(names: Iterable[str]) -> dict[str, bytes | None]:
    """Images and metadata files of a folder: path -> content, None for images. Metadata of megabytes are none."""
    files: dict[str, bytes | None] = {}
    for name in names:
        if name.lower().endswith(IMAGES):
            files[name] = None
        elif (size := inputs.stat(name).size) <= archive.MAX_METADATA:
            (files[name],) = inputs.read_ranges(name, [(0, size)])
    return files


def read_product(files: Files, delivery: Delivery, imagery: Imagery) -> Scene:
    """The scene of one product's files. Raises SceneError with a sentence that names file and fault."""
    images = [name for name, content in files.items() if content is None]
    if not archive.is_utf8(images[0]):
        raise SceneError(
            f"{archive.printable_name(images[0])}: the name is not UTF-8 text; rename the file or its folder"
        )
    try:
        parts = {name: gaofen.parse_name(PurePosixPath(name).stem) for name in images}
    except gaofen.GaofenError:
        (image,) = images
        return read_georeferenced(image, delivery, imagery)
    taken, sharp = choose_images(parts, imagery)
    shots = [read_gaofen_image(name, parts[name], files, delivery) for name in (taken, *filter(None, [sharp]))]
    first, pan = shots[0], shots[1].image if sharp else None
    if pan is not None and not pan.gsd < first.image.gsd:
        raise SceneError(f"{sharp}: its pixels are {pan.gsd:g} m, no finer than the {first.image.gsd:g} m of {taken}")
    read = tuple(dict.fromkeys(name for shot in shots for name in shot.files))
    return Scene(
        id=parts[taken].scene,
        satellite=parts[taken].satellite,
        sensor=parts[taken].sensor,
        level=parts[taken].level,
        acquired=gaofen.acquisition_time(first.fields),
        gsd=(pan or first.image).gsd,
        images=(first.image,),
        pan=pan,
        delivery=delivery.path,
        bytes=image_bytes(delivery, (taken, *filter(None, [sharp]))),
        files=local_files((delivery.path,) if delivery.archive else read),
        metadata_digest=sha256(files[name] or b"" for name in read if files[name] is not None),
        footprint=image_footprint(first.image, flat_terrain(first.image.model)),
        metadata=first.fields,
    )


def image_bytes(delivery: Delivery, images: Iterable[str]) -> int:
    """Bytes of images, or of the archive that holds them; without images whose server need not tell: HTTP's."""
    names = [delivery.path] if delivery.archive else [name for name in images if not name.lower().startswith("http")]
    return sum(inputs.stat(name).size for name in names)


def local_files(names: Iterable[str]) -> tuple[str, ...]:
    """Those that are files of this machine."""
    return tuple(name for name in names if not inputs.is_remote(name))


def choose_images(parts: Mapping[str, gaofen.Name], imagery: Imagery) -> tuple[str, str | None]:
    """The image of a product that is tiled, and the one that sharpens it, if so. Raises SceneError where it is not."""
    wanted = {"mss": ("mss",), "pan": ("pan",), "pansharpened": ("mss", "pan")}[imagery]
    chosen: list[str] = []
    for kind in wanted:
        found = [name for name, part in parts.items() if part.kind == kind]
        if len(found) != 1:
            many = f"{len(found)} {KINDS[kind]} images" if found else f"no {KINDS[kind]} image"
            raise SceneError(f"{', '.join(parts)}: {many}, but --imagery {imagery} needs one")
        chosen += found
    return chosen[0], chosen[1] if len(chosen) > 1 else None


@dataclass(frozen=True, slots=True)
class GaofenImage:
    """One Gaofen image and what its metadata say."""

    image: Image
    fields: dict[str, str]
    files: tuple[str, ...]


def open_header(name: str, delivery: Delivery) -> tuple[str, Header]:
    """What GDAL opens, and what it says. Raises SceneError where it is no image of whole numbers."""
    path = archive.member_path(delivery.path, name) if delivery.archive else stac.asset_path(name, name)
    return path, read_header(path)


def read_gaofen_image(name: str, parts: gaofen.Name, files: Files, delivery: Delivery) -> GaofenImage:
    """A Gaofen image with its XML, and its RPB or RPC text unless it lies on a map already."""
    image, header = open_header(name, delivery)
    beside = {other.lower(): other for other in files}
    own_xml, rpb, rpc, shared_xml = (beside.get(other.lower()) for other in discovery.metadata_names(name))
    xml, camera = own_xml or shared_xml, rpb or rpc
    if xml is None:
        raise SceneError(f"{image}: there is no product XML beside it")
    try:
        fields = gaofen.parse_xml(files[xml] or b"")
        gsd = gaofen.ground_distance(parts, fields)
        gaofen.check_name(parts, fields)
    except gaofen.GaofenError as error:
        raise SceneError(f"{xml}: {error}") from error
    for key, size in (("WidthInPixels", header.width), ("HeightInPixels", header.height)):
        if fields.get(key, "").isdecimal() and int(fields[key]) != size:
            raise SceneError(f"{xml}: {key} is {fields[key]}, but {image} has {size}")
    model: SensorModel
    if header.crs is not None:
        model, camera = Georeferenced(header.crs.to_wkt(), tuple(header.transform)[:6]), None
    elif camera is None:
        raise SceneError(f"{image}: there is no RPB beside it, and the image has no georeference")
    else:
        text = (files[camera] or b"").decode("ascii", errors="replace")
        try:
            model = gaofen.parse_rpb(text) if camera == rpb else gaofen.parse_rpc(text)
        except gaofen.GaofenError as error:
            raise SceneError(f"{camera}: {error}") from error
    if parts.kind == "pan" and header.count != 1:
        raise SceneError(f"{image}: a panchromatic image of {header.count} bands, expected one")
    found = header.image(image, gaofen.band_names(parts, fields, header.count), gsd, model)
    ground = image_footprint(found, flat_terrain(model))
    centre = ground.centroid
    away = np.hypot((centre.x - parts.lon + 180) % 360 - 180, centre.y - parts.lat)
    if away > 3:
        where = f"{centre.x:.1f} E {centre.y:.1f} N"
        raise SceneError(
            f"{camera or image}: it places the image at {where}, {away:.0f} degrees from where its name says"
        )
    if said := gaofen.corner_centre(fields):  # corners lie kilometres off; those of the next scene, a scene's length
        east = ((said[0] - centre.x + 180) % 360 - 180) * np.cos(np.radians(centre.y))
        if np.hypot(east, said[1] - centre.y) > 0.5 * np.sqrt(ground.area * np.cos(np.radians(centre.y))):
            where = f"{said[0]:.2f} E {said[1]:.2f} N, but the image lies at {centre.x:.2f} E {centre.y:.2f} N"
            raise SceneError(f"{xml}: its corners are those of a scene at {where}: the XML of another scene")
    metres = measure_gsd(found)
    if not metres / 3 < gsd < metres * 3:  # an oblique view stretches pixels, but not by that
        raise SceneError(f"{xml}: ImageGSD is {gsd:g} m, but the image's pixels are {metres:g} m on the ground")
    return GaofenImage(found, fields, tuple(sorted(filter(None, [name, xml, camera]))))


def read_georeferenced(name: str, delivery: Delivery, imagery: Imagery) -> Scene:
    """Any image that lies on a map."""
    path, header = open_header(name, delivery)
    if header.crs is None:
        raise SceneError(f"{path}: no georeference, and its name is not that of a Gaofen image")
    names = tuple(header.descriptions[k - 1].strip().lower().replace(" ", "_") for k in header.indexes)
    if not all(names) or len(set(names)) != len(names):
        names = tuple(f"band_{k}" for k in range(1, header.count + 1))
    if imagery != "mss" and (imagery == "pansharpened" or names != ("pan",)):
        raise SceneError(f"{path}: no panchromatic image, but --imagery {imagery} needs one")
    image = header.image(path, names, 1.0, Georeferenced(header.crs.to_wkt(), tuple(header.transform)[:6]))
    footprint = image_footprint(image, flat_terrain(image.model))
    gsd = measure_gsd(image)
    return Scene(
        id=PurePosixPath(name).stem,
        satellite="",
        sensor="",
        level="L2A",
        acquired=parse_tiff_time(header.tags.get("TIFFTAG_DATETIME", "")),
        gsd=gsd,
        images=(replace(image, gsd=gsd),),
        pan=None,
        delivery=delivery.path,
        bytes=image_bytes(delivery, (name,)),
        files=local_files((delivery.path,) if delivery.archive else (name,)),
        metadata_digest=sha256((repr(header).encode(),)),
        footprint=footprint,
        metadata=header.tags,
    )


def parse_tiff_time(text: str) -> datetime | None:
    """The time in a TIFF's own tag, taken as UTC."""
    try:
        return datetime.strptime(text, "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        return None


def sha256(contents: Iterable[bytes]) -> str:
    """SHA-256 of files one after the other."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return digest.hexdigest()
