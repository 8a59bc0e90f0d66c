"""Read products whose bands are files of their own as scenes: what all of them have in common."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import PurePosixPath
from typing import Protocol

import numpy as np
from pyproj.exceptions import ProjError

from pipeline.geometry.sensor import Georeferenced
from pipeline.scenes.archive import CLOUDS
from pipeline.scenes.footprint import image_footprint, make_flat_terrain, measure_gsd
from pipeline.scenes.raster import Alpha, Header, read_beside, read_header
from pipeline.scenes.scene import CloudMask, Image, Imagery, Scene, SceneError
from pipeline.scenes.sensor_bands import ALIASES, choose_bands

NODATA = 0
"""Pixel value outside the swath in the products of Landsat and Sentinel-2."""
Files = Mapping[str, bytes | None]
"""File name -> content; None for images, and for files whose content tells nothing about a scene."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a metadata file places an image."""

    crs: str
    transform: tuple[float, float, float, float, float, float]
    """Pixel corners to map coordinates: see `Georeferenced`."""
    width: int
    height: int
    """Size, px."""


@dataclass(frozen=True, slots=True)
class Product:
    """What the names and metadata files of a product say about it."""

    id: str
    """Name of the scene."""
    satellite: str
    sensor: str
    acquired: datetime | None
    """UTC; None if unknown."""
    sensor_bands: Mapping[str, str]
    """Bands of the sensor: see `sensor_bands`."""
    names: Mapping[str, tuple[str, ...]]
    """File of a band -> the names of the band in the product. Of several files of one band, the best comes first."""
    lacking: frozenset[str] = frozenset()
    """Common names of bands that the sensor has, but products of this kind do not."""
    scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """File of a band -> scale and offset: pixel * scale + offset is the reflectance. Empty if unknown."""
    places: Mapping[str, Place] = field(default_factory=dict)
    """File of a band -> where the metadata place it, if they do. An image may be a part of what was delivered."""
    quality: tuple[str, str] | None = None
    """File of the quality band, and its name in `clouds.find_clouds`; None if the product has none."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """All fields of the metadata files: name -> text. Cloud cover and angles have the names of STAC's properties."""
    nodata: float | None = NODATA
    """Pixel value outside the swath, whether a file declares it or not; None if only files tell."""
    texts: tuple[bytes, ...] = ()
    """Contents of the metadata files that were read."""


class Reader(Protocol):
    """A module that reads one kind of product."""

    def find_products(self, names: Sequence[str]) -> dict[str, list[str]]:
        """Group file names: path of a product -> all its files, whatever they are. Other files are left out."""

    def find_folder(self, name: str) -> str:
        """The folder that contains all files of the product with this file; empty if they lie side by side."""

    def describe(self, files: Files) -> Product:
        """Describe the product with these files. Raises SceneError naming the file at fault."""


def read_scene(
    product: Product,
    locate: Callable[[str], str],
    imagery: Imagery,
    wanted: Sequence[str],
    alpha: Alpha,
    mask: CloudMask,
) -> Scene:
    """Read the scene of a product; the caller adds its delivery, files and bytes.

    locate: the path that GDAL opens for a file. wanted: see `choose_bands`. Raises SceneError naming the product or
    the file at fault, also if a band is missing that a complete product has.
    """
    names = ("pan",) if imagery == "pan" else tuple(wanted)
    images = tuple(read_band(file, name, product, locate, alpha) for name, file in select_files(product, names).items())
    pan = None
    if imagery == "pansharpened":
        (file,) = select_files(product, ("pan",)).values()
        pan = read_band(file, "pan", product, locate, alpha)
    if len(types := {image.read_type for image in images}) > 1:
        raise SceneError(f"{product.id}: the pixels of its bands are of different types, {' and '.join(sorted(types))}")
    return Scene(
        id=product.id,
        satellite=product.satellite,
        sensor=product.sensor,
        level="L2A",
        acquired=product.acquired,
        gsd=min(image.gsd for image in (*images, *filter(None, [pan]))),
        images=images,
        pan=pan,
        delivery="",
        files=(),
        bytes=0,
        metadata_digest=digest(product.texts, images),
        footprint=image_footprint(images[0], make_flat_terrain(images[0].model)),
        metadata=product.metadata,
        quality=read_quality(product, locate, images[0]) if mask == "qa" else None,
    )


QUALITY_BANDS = {"MSK_CLASSI": ("MSK_CLASSI", "MSK_CLASSI_CIRRUS", "")}
"""Quality image of several bands -> the names of those with clouds, empty for others: opaque clouds, cirrus, snow."""


def read_quality(product: Product, locate: Callable[[str], str], first: Image) -> Image | None:
    """The quality band of a product; None if it has none. Raises SceneError: see `read_band`.

    first: the image on which clouds lie that are given as polygons.
    """
    if product.quality is None:
        return None
    file, name = product.quality
    if file.lower().endswith(CLOUDS):
        return Image(locate(file), (name,), first.width, first.height, "uint8", None, first.gsd, first.model)
    names = QUALITY_BANDS.get(name, (name,))
    image = replace(read_band(file, name, product, locate, "band", len(names)), nodata=None, scales=(), offsets=())
    clouds = tuple(k for k, band in enumerate(names, 1) if band)
    return image if len(names) == 1 else replace(image, bands=tuple(filter(None, names)), indexes=clouds)


def digest(texts: Iterable[bytes], images: Iterable[Image]) -> str:
    """SHA-256 of metadata files and of what images' headers say, wherever the files are."""
    value = hashlib.sha256(b"".join(texts))
    for image in images:
        value.update(repr(replace(image, path=PurePosixPath(image.path).name)).encode())
    return value.hexdigest()


def select_files(product: Product, wanted: Sequence[str]) -> dict[str, str]:
    """Select the files of the wanted bands: band -> file. Bands that such products never have are left out.

    Raises SceneError if a file is missing, or if none of the bands is in the product.
    """
    found = choose_bands(wanted, {file: ("", *names) for file, names in product.names.items()}, product.sensor_bands)
    complete = {*product.sensor_bands.values()} - product.lacking
    missing = [name for name in wanted if name not in found and complete & {name, *ALIASES.get(name, ())}]
    if missing:
        raise SceneError(
            f"{product.id}: there is no file of band {' and '.join(missing)}; the bands are "
            f"{', '.join(sorted({names[0] for names in product.names.values()}))}; leave it out of the setting bands"
        )
    if not found:
        names = ", ".join(sorted({names[0] for names in product.names.values()}))
        raise SceneError(
            f"{product.id}: it has none of the bands {', '.join(wanted)}; its own are {names}, which the setting bands "
            f"can name, also as red={names.partition(', ')[0]}"
        )
    return {name: files[0] for name, files in found.items()}


def read_band(
    file: str, name: str, product: Product, locate: Callable[[str], str], alpha: Alpha, count: int = 1
) -> Image:
    """Read the header of a band's file. Raises SceneError unless it has `count` bands and lies on a map."""
    path = locate(file)
    header = read_header(path, alpha, **read_beside(path))
    if header.count != count:
        raise SceneError(
            f"{path}: it should have {'one band' if count == 1 else f'{count} bands'}, but has {header.count}"
        )
    try:
        names = (name,) if count == 1 else tuple(f"{name}_{k}" for k in range(1, count + 1))
        image = header.image(path, names, 1.0, find_place(path, header, product.places.get(file)))
        gsd = measure_gsd(image)
    except ProjError as error:
        raise SceneError(f"{path}: its coordinate system cannot be converted to longitude and latitude") from error
    scale = product.scales.get(file)
    return replace(
        image,
        gsd=gsd,
        nodata=product.nodata if image.nodata is None else image.nodata,
        scales=image.scales if scale is None else (scale[0],) * count,
        offsets=image.offsets if scale is None else (scale[1],) * count,
    )


def find_place(path: str, header: Header, place: Place | None) -> Georeferenced:
    """Where an image lies: as its own header says, or else as the metadata say.

    Raises SceneError if both place the whole image, a pixel or more apart, or if neither does.
    """
    whole = place is not None and (place.width, place.height) == (header.width, header.height)
    stated = Georeferenced(place.crs, place.transform) if place is not None and whole else None
    if header.crs is None:
        if stated is None:
            raise SceneError(f"{path}: it has no georeference")
        return stated
    own = Georeferenced(header.crs.to_wkt(), tuple(header.transform)[:6])
    if stated is not None:
        corners = np.array([0.0, header.width]), np.array([0.0, header.height])
        col, row = own.image(*stated.ground(*corners, np.zeros(2)), np.zeros(2))
        distance = float(np.hypot(col - corners[0], row - corners[1]).max())
        if not distance < 1:
            raise SceneError(f"{path}: it lies {distance:.1f} px from where the metadata beside it place it")
    return own


def to_number(text: str | None) -> float | None:
    """A finite number from text; None if it is none."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
