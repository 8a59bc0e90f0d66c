"""Read a delivery: turn its image headers and metadata into scenes.

Every fault of a delivery becomes a Refusal with one sentence that names the file and the fault.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import PurePosixPath

import numpy as np
from affine import Affine

from geokr.storage import inputs, rasters
from pipeline.geometry.sensor import Georeferenced, SensorModel
from pipeline.scenes import archive, dimap, discovery, gaofen, roles, stac, vrt
from pipeline.scenes.band_files import Files, Reader, read_scene
from pipeline.scenes.band_names import name_bands
from pipeline.scenes.discovery import Delivery
from pipeline.scenes.footprint import image_footprint, make_flat_terrain, measure_gsd
from pipeline.scenes.georeference import read_georeference
from pipeline.scenes.image_files import CONTAINERS, RAW, find_images, metadata_files, strip_suffix
from pipeline.scenes.layers import read_layers
from pipeline.scenes.pam import parse_pam
from pipeline.scenes.products import find_reader, make_readers
from pipeline.scenes.raster import Alpha, Header, read_header
from pipeline.scenes.scene import CloudMask, Image, Imagery, NoImageryError, Scene, SceneError
from pipeline.scenes.vendors import VendorMetadata, read_vendor

KINDS = {"mss": "multispectral", "pan": "panchromatic"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A scene or archive that cannot be used."""

    scene: str
    """Name of the scene or of the archive."""
    reason: str
    """One word, such as `unreadable` or `unusable`."""
    detail: str
    """One sentence that names the file and the fault."""


class NoImagery(Refusal):
    """An image that is no fault of a delivery, but holds something else than a scene; `reason` says what."""

    __slots__ = ()


def refuse(scene: str, reason: str, detail: str, kind: type[Refusal] = Refusal) -> Refusal:
    """Make a Refusal whose texts are one printable line each, whatever characters the file names contain."""
    scene, detail = (
        "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in " ".join(text.split()))
        for text in (scene, detail)
    )
    return kind(scene, reason, detail)


BANDS = ("red", "green", "blue", "nir")


def read_delivery(
    delivery: Delivery,
    imagery: Imagery = "mss",
    bands: Sequence[str] = BANDS,
    alpha: Alpha = "auto",
    band_names: Sequence[str] = (),
    mask: CloudMask = "none",
    band_files: str = "",
) -> list[Scene | Refusal]:
    """Read the scenes of a delivery from its metadata and image headers. Never raises for bad input.

    bands: bands to read from a STAC item, or from a product whose bands are files of their own: see `choose_bands`.
    alpha: see `Alpha`. band_names: see `name_bands`. mask: see `CloudMask`. band_files: see `make_readers`.
    """
    name, results, others = PurePosixPath(delivery.path).name, list[Scene | Refusal](), ""
    if delivery.fault:
        return [refuse(name, "unreadable", delivery.fault)]
    if delivery.item:
        item = json.loads(delivery.item)
        try:
            return [stac.read_item(item, delivery.path, delivery.files[0], imagery, bands, alpha, mask)]
        except (ValueError, OSError) as error:
            detail = str(error) if isinstance(error, SceneError) else f"{delivery.path}: {error}"
            return [refuse(item["id"], "unusable", detail if delivery.path in detail else f"{delivery.path}: {detail}")]
    try:
        if delivery.archive:
            contents = archive.read_contents(delivery.path)
            files, others = contents.files, roles.describe_members(contents.others)
            results += [refuse(name, "unsafe", fault) for fault in contents.faults]
        else:
            files = folder_files(delivery.files)
    except SceneError as error:
        return [refuse(name, "unreadable", str(error))]
    except OSError as error:
        return [refuse(name, "unreadable", f"{delivery.path}: cannot be read: {error}")]
    readers = make_readers(band_files)
    products = discovery.group_products(files, readers)
    if not products:
        if any(file.lower().endswith(".hdr") for file in files):
            others += "; an ENVI image is read in a folder, not in an archive"
        return [*results, refuse(name, "no_image", f"{delivery.path}: the archive contains no TIFF{others}")]
    for product in products:
        try:
            product_files = {name: files[name] for name in product}
            scene = read_product(product_files, delivery, imagery, bands, alpha, band_names, mask, readers)
            if delivery.part_of and len(scene.bands) == 1:
                raise SceneError(f"{product[0]}: a band of {delivery.part_of}, which cannot be used")
            results.append(scene)
        except ValueError as error:  # a SceneError, or a field of the file with an impossible value
            detail = str(error) if isinstance(error, SceneError) else f"{product[0]}: {error}"
            # A message about a member of an archive names the member only.
            prefix = f"{delivery.path}: " if delivery.archive and delivery.path not in detail else ""
            role, kind = (error.role, NoImagery) if isinstance(error, NoImageryError) else ("unusable", Refusal)
            results.append(refuse(discovery.group_name(product, readers), role, prefix + detail, kind))
    return results


def folder_files(names: Iterable[str]) -> dict[str, bytes | None]:
    """Read the metadata files of a folder: path -> content; None for others, and for those above MAX_METADATA."""
    files: dict[str, bytes | None] = {}
    for name in names:
        files[name] = None
        if name.lower().endswith(archive.TEXTS) and (size := inputs.stat(name).size) <= archive.MAX_METADATA:
            (files[name],) = inputs.read_ranges(name, [(0, size)])
    return files


def read_product(
    files: Files,
    delivery: Delivery,
    imagery: Imagery,
    bands: Sequence[str],
    alpha: Alpha,
    band_names: Sequence[str],
    mask: CloudMask,
    readers: Sequence[Reader],
) -> Scene:
    """Build the scene of one product. Raises SceneError with a sentence that names the file and the fault."""
    images = find_images(files)
    if not archive.is_utf8(images[0]):
        raise SceneError(
            f"{archive.printable_name(images[0])}: the name is not UTF-8 text; rename the file or its folder"
        )
    if (reader := find_reader(files, readers)) is not None:
        scene = read_scene(reader.describe(files), lambda name: locate(name, delivery), imagery, bands, alpha, mask)
        return replace(
            scene,
            delivery=delivery.path,
            bytes=image_bytes(delivery, [rasters.from_gdal_path(image.path) for image in scene]),
            files=local_files((delivery.path,) if delivery.archive else files),
        )
    if images[0].lower().endswith(CONTAINERS):
        scene = read_layers(images[0], imagery, bands)
        return replace(
            scene, delivery=delivery.path, bytes=image_bytes(delivery, images), files=local_files([images[0]])
        )
    if vrt.is_vrt(images[0]):
        return read_georeferenced(images[0], files, delivery, imagery, alpha, band_names)
    try:
        parts = {name: gaofen.parse_name(PurePosixPath(name).stem) for name in images}
    except gaofen.GaofenError:
        (image,) = images
        return read_georeferenced(image, files, delivery, imagery, alpha, band_names)
    main_name, pan_name = choose_images(parts, imagery)
    products = [
        read_gaofen_image(name, parts[name], files, delivery, alpha) for name in (main_name, *filter(None, [pan_name]))
    ]
    first, pan = products[0], products[1].image if pan_name else None
    if pan is not None and not pan.gsd < first.image.gsd:
        raise SceneError(
            f"{pan_name}: its pixels are {pan.gsd:g} m, no finer than the {first.image.gsd:g} m of {main_name}"
        )
    files_read = tuple(dict.fromkeys(name for product in products for name in product.files))
    return Scene(
        id=parts[main_name].scene,
        satellite=parts[main_name].satellite,
        sensor=parts[main_name].sensor,
        level=parts[main_name].level,
        acquired=gaofen.read_acquisition_time(first.fields),
        gsd=(pan or first.image).gsd,
        images=(first.image,),
        pan=pan,
        delivery=delivery.path,
        bytes=image_bytes(delivery, (main_name, *filter(None, [pan_name]))),
        files=local_files((delivery.path,) if delivery.archive else files_read),
        metadata_digest=hash_contents(files[name] or b"" for name in files_read if files[name] is not None),
        footprint=image_footprint(first.image, make_flat_terrain(first.image.model)),
        metadata=first.fields,
    )


def image_bytes(delivery: Delivery, images: Iterable[str]) -> int:
    """Size of the images or of the archive that contains them, bytes.

    Images on HTTP servers are not counted: such a server need not report a size.
    """
    names = [delivery.path] if delivery.archive else [name for name in images if not name.lower().startswith("http")]
    return sum(inputs.stat(name).size for name in names)


def local_files(names: Iterable[str]) -> tuple[str, ...]:
    """The names of files on this machine, without those on servers."""
    return tuple(name for name in names if not inputs.is_remote(name))


def choose_images(parts: Mapping[str, gaofen.Name], imagery: Imagery) -> tuple[str, str | None]:
    """Choose the image of a product to tile and, if any, the one that sharpens it.

    Raises SceneError unless the product has exactly one image of each kind that `imagery` needs.
    """
    kinds = {"mss": ("mss",), "pan": ("pan",), "pansharpened": ("mss", "pan")}[imagery]
    chosen: list[str] = []
    for kind in kinds:
        images = [name for name, part in parts.items() if part.kind == kind]
        if len(images) != 1:
            count = f"{len(images)} {KINDS[kind]} images" if images else f"no {KINDS[kind]} image"
            raise SceneError(f"{', '.join(parts)}: {count}, but --imagery {imagery} needs one")
        chosen += images
    return chosen[0], chosen[1] if len(chosen) > 1 else None


@dataclass(frozen=True, slots=True)
class GaofenImage:
    """A Gaofen image with its metadata."""

    image: Image
    fields: dict[str, str]
    """Fields of the product XML: see `gaofen.parse_xml`."""
    files: tuple[str, ...]
    """Names of the image, its XML and its RPB or RPC text, sorted."""


def locate(name: str, delivery: Delivery) -> str:
    """The path that GDAL opens for a file of a delivery. Raises SceneError: see `stac.asset_path`."""
    return archive.member_path(delivery.path, name) if delivery.archive else stac.asset_path(name, name)


def open_header(
    name: str, files: Files, delivery: Delivery, alpha: Alpha, any_origin: bool = False
) -> tuple[str, Header]:
    """The path that GDAL opens for an image, and the image's header. Raises SceneError: see `read_header`."""
    path = locate(name, delivery)
    beside = find_beside(name, files)
    mask, sidecar = beside.get("mask"), files[beside["aux"]] if "aux" in beside else None
    if mask not in (None, name + archive.MASK):
        raise SceneError(f"{mask}: the mask of {name} is read under the name {name}{archive.MASK}; rename it")
    try:
        return path, read_header(path, alpha, has_mask=mask is not None, sidecar=sidecar, any_origin=any_origin)
    except SceneError as error:
        if path.startswith("/vsi") and PurePosixPath(name).suffix.lower() in RAW and "header" in beside:
            where = "not in an archive; unpack it" if delivery.archive else "not on a server; download it"
            raise SceneError(f"{name}: an ENVI image is read in a folder, {where}") from error
        raise


def read_gaofen_image(name: str, parts: gaofen.Name, files: Files, delivery: Delivery, alpha: Alpha) -> GaofenImage:
    """Read a Gaofen image with its XML and, unless it is georeferenced, its RPB or RPC text.

    Raises SceneError if a file is missing or broken, or if the files are of different scenes.
    """
    path, header = open_header(name, files, delivery, alpha)
    beside = find_beside(name, files)
    xml = beside.get("xml") or beside.get("shared xml")
    if xml is None:
        return read_gaofen_map(name, path, header, parts, files)
    try:
        fields = gaofen.parse_xml(archive.require_text(xml, files))
        gsd = gaofen.read_gsd(parts, fields)
        gaofen.check_name(parts, fields)
    except gaofen.GaofenError as error:
        raise SceneError(f"{xml}: {error}") from error
    for key, size in (("WidthInPixels", header.width), ("HeightInPixels", header.height)):
        if fields.get(key, "").isdecimal() and int(fields[key]) != size:
            raise SceneError(f"{xml}: {key} is {fields[key]}, but {path} has {size}")
    model, placed_by = find_model(name, header, files)
    if model is None:
        raise SceneError(f"{path}: there is no RPB next to it, and the image has no georeference")
    if parts.kind == "pan" and header.count != 1:
        raise SceneError(f"{path}: the panchromatic image has {header.count} bands, expected one")
    image = header.image(path, gaofen.read_band_names(parts, fields, header.count), gsd, model)
    footprint = image_footprint(image, make_flat_terrain(model))
    centre = footprint.centroid
    distance = np.hypot((centre.x - parts.lon + 180) % 360 - 180, centre.y - parts.lat)
    if distance > 3:
        position = f"{centre.x:.1f} E {centre.y:.1f} N"
        raise SceneError(
            f"{(*placed_by, path)[0]}: it places the image at {position}, {distance:.0f} degrees from the centre in "
            "its name"
        )
    # Corners in the XML are kilometres off; those of a neighbouring scene are off by the length of a scene.
    if xml_centre := gaofen.read_corner_centre(fields):
        east = ((xml_centre[0] - centre.x + 180) % 360 - 180) * np.cos(np.radians(centre.y))
        if np.hypot(east, xml_centre[1] - centre.y) > 0.5 * np.sqrt(footprint.area * np.cos(np.radians(centre.y))):
            xml_position = f"{xml_centre[0]:.2f} E {xml_centre[1]:.2f} N"
            position = f"{xml_position}, but the image is at {centre.x:.2f} E {centre.y:.2f} N"
            raise SceneError(f"{xml}: its corners are those of a scene at {position}: the XML of another scene")
    pixel_size = measure_gsd(image)
    if not pixel_size / 3 < gsd < pixel_size * 3:  # an oblique view stretches pixels, but less than this
        raise SceneError(f"{xml}: ImageGSD is {gsd:g} m, but the image's pixels are {pixel_size:g} m on the ground")
    others = [beside[kind] for kind in ("mask", "aux") if kind in beside]
    return GaofenImage(image, fields, tuple(sorted({name, xml, *placed_by, *others})))


def read_gaofen_map(name: str, path: str, header: Header, parts: gaofen.Name, files: Files) -> GaofenImage:
    """Read an image under a Gaofen name that lies on a map and has no XML. Raises SceneError if it is on none."""
    model, placed_by = find_model(name, header, files)
    if not isinstance(model, Georeferenced):
        raise SceneError(f"{path}: there is no product XML next to it")
    names = describe_bands(header, ())
    if any(band.startswith("band_") for band in names):
        names = gaofen.read_band_names(parts, {}, header.count)
    image = header.image(path, names, 1.0, model)
    image_footprint(image, make_flat_terrain(model))  # refuses a georeference that is none
    return GaofenImage(replace(image, gsd=measure_gsd(image)), {}, tuple(sorted({name, *placed_by})))


def read_camera(image: str, beside: Mapping[str, str], files: Files) -> tuple[SensorModel, tuple[str, ...]]:
    """The camera in the file beside an image, and the files that say it. Raises SceneError naming one at fault.

    beside: see `find_beside`.
    """
    name = beside["camera"]
    content = archive.require_text(name, files)
    if not name.lower().endswith(".xml"):
        return parse_camera(name, content), (name,)
    product = beside.get("vendor")
    model = dimap.shift_to_tile(
        dimap.parse_camera(name, content), image, (product and (product, archive.require_text(product, files))) or None
    )
    return model, (name, *filter(None, [product]))


def parse_camera(name: str, content: bytes) -> SensorModel:
    """The camera in an RPB or RPC text. Raises SceneError naming the file if it cannot be used."""
    try:
        return gaofen.parse_camera(name, content)
    except gaofen.GaofenError as error:
        raise SceneError(f"{name}: {error}") from error


def find_beside(name: str, files: Files) -> dict[str, str]:
    """Kind of file -> the name of the one that an image has beside it: see `image_files.metadata_files`."""
    by_lower_name = {file.lower(): file for file in files}
    found = {
        kind: next((by_lower_name[file.lower()] for file in candidates if file.lower() in by_lower_name), None)
        for kind, candidates in metadata_files(name).items()
    }
    return {kind: file for kind, file in found.items() if file is not None}


def find_model(name: str, header: Header, files: Files) -> tuple[SensorModel | None, tuple[str, ...]]:
    """Where the pixels of an image lie, and the files beside it that say so; no model if nothing does.

    A georeference goes before a camera, since it is that of an image on a map. What the image says of it goes before
    what files beside it say, and a camera beside the image before one in its tags. Raises SceneError naming a file
    that cannot be used, or an image with a transform and no CRS.
    """
    if header.crs is not None:
        return Georeferenced(header.crs.to_wkt(), tuple(header.transform)[:6]), ()
    beside = find_beside(name, files)
    crs, transform, used = read_georeference(beside, files)
    if header.stated_crs is not None:
        crs = header.stated_crs.to_wkt()
    if header.transform != Affine.identity():
        transform = header.transform
    if crs is not None and transform is not None:
        return Georeferenced(crs, tuple(transform)[:6]), used
    if "camera" in beside:
        return read_camera(name, beside, files)
    if header.camera is None and "aux" in beside and (rpc := parse_pam(files[beside["aux"]]).rpc):
        return parse_camera(beside["aux"], rpc.encode()), (beside["aux"],)
    if header.camera is None and transform is not None:
        placed_by = f"{used[0]} says" if used else "the image says"
        prj = PurePosixPath(strip_suffix(name)).name
        raise SceneError(
            f"{name}: {placed_by} where its pixels lie, but not in which coordinate system; write its WKT to {prj}.prj"
        )
    return header.camera, ()


def describe_bands(header: Header, own: Sequence[str]) -> tuple[str, ...]:
    """Names of the bands with measurements of an image: see `name_bands`."""
    descriptions, colours = ([texts[k - 1] for k in header.indexes] for texts in (header.descriptions, header.colours))
    return name_bands(descriptions, colours, own)


def read_georeferenced(
    name: str, files: Files, delivery: Delivery, imagery: Imagery, alpha: Alpha, band_names: Sequence[str]
) -> Scene:
    """Build the scene of an image of any origin that is on a map or has an RPC.

    Raises SceneError if it has neither, or lacks the image that `imagery` needs, and NoImageryError if it
    holds something else than measurements.
    """
    path, header = open_header(name, files, delivery, alpha, any_origin=True)
    model, placed_by = find_model(name, header, files)
    if model is None and header.gcps:
        raise SceneError(
            f"{path}: it has {header.gcps} ground control points, but is on no map; "
            f"`gdalwarp -t_srs EPSG:4326 '{name}' OUT.tif` puts it on one"
        )
    if model is None:
        lacks = "no georeference and no RPC, and its name is not that of a Gaofen image"
        raise SceneError(f"{path}: {lacks}; {roles.nearest_form(name)}")
    vendor, described_by = describe_by_vendor(name, files, header.count)
    names = describe_bands(header, band_names)
    mosaic = vrt.read_mosaic(name) if vrt.is_vrt(name) else None
    if mosaic and len(shown := mosaic.name_bands()) == header.count and any(band.startswith("band_") for band in names):
        names = shown
    if len(vendor.bands) == header.count and any(band.startswith("band_") for band in names):
        names = vendor.bands
    if imagery != "mss" and (imagery == "pansharpened" or names != ("pan",)):
        raise SceneError(f"{path}: no panchromatic image, but --imagery {imagery} needs one")
    images = header.images(path, names, 1.0, model)
    footprint = image_footprint(images[0], make_flat_terrain(model))
    gsd = measure_gsd(images[0])
    return Scene(
        id=PurePosixPath(name).stem,
        satellite=vendor.satellite,
        sensor=vendor.sensor,
        level="L2A" if isinstance(model, Georeferenced) else "L1A",
        acquired=vendor.acquired or parse_tiff_time(header.tags.get("TIFFTAG_DATETIME", "")),
        gsd=gsd,
        images=tuple(replace(image, gsd=gsd) for image in images),
        pan=None,
        delivery=delivery.path,
        bytes=image_bytes(delivery, (name, *(mosaic.sources if mosaic else ()))),
        files=local_files((delivery.path,) if delivery.archive else (*files, *(mosaic.sources if mosaic else ()))),
        metadata_digest=hash_contents((repr(header).encode(), *(files[f] or b"" for f in (*placed_by, *described_by)))),
        footprint=footprint,
        metadata=header.tags | dict(vendor.fields),
    )


def describe_by_vendor(name: str, files: Files, count: int) -> tuple[VendorMetadata, tuple[str, ...]]:
    """What the vendor's metadata beside an image say, and the file that says it; nothing if there is none."""
    beside = find_beside(name, files)
    for file in (beside[kind] for kind in ("vendor", "xml") if kind in beside):
        if (vendor := read_vendor(file, files[file] or b"", count)) is not None:
            return vendor, (file,)
    return VendorMetadata(), ()


def parse_tiff_time(text: str) -> datetime | None:
    """Parse the time in TIFFTAG_DATETIME, which is taken as UTC; None if it is not in the TIFF format."""
    try:
        return datetime.strptime(text, "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        return None


def hash_contents(contents: Iterable[bytes]) -> str:
    """SHA-256 of the concatenated contents of files, as hexadecimal digits."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return digest.hexdigest()
