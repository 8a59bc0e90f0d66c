"""Which files are images, by their names and those of the files beside them, and what may lie beside an image."""

import re
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath

from pipeline.scenes import dimap, vrt
from pipeline.scenes.archive import IMAGES, MASK, METADATA, PICTURES

CONTAINERS = (".nc", ".nc4", ".h5", ".hdf5", ".he5")
"""Suffixes of NetCDF and HDF5, whose variables may be images."""
RAW = ("", ".dat", ".img", ".bin", ".raw", ".bsq", ".bil", ".bip", ".envi")
"""Suffixes of files of pixels alone, which are images if a header `.hdr` lies beside them."""


def find_images(names: Iterable[str]) -> list[str]:
    """The files that are images, in the given order."""
    names = [*names]
    beside = {name.lower() for name in names}
    return [name for name in names if is_image(name, beside)]


def is_hidden(name: str) -> bool:
    """Whether a file is hidden. macOS writes `._a.tif` beside `a.tif` on other systems' disks and into archives."""
    return name.rpartition("/")[2].startswith(".")


def is_image(name: str, beside: Collection[str]) -> bool:
    """Whether a file is an image. beside: names of the files in its folder, in lower case."""
    if is_hidden(name):
        return False
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in (*IMAGES, *CONTAINERS, vrt.SUFFIX):
        return True
    if suffix in PICTURES:
        return any(world.lower() in beside for world in world_files(name))
    return suffix in RAW and any(header.lower() in beside for header in header_files(name))


def strip_suffix(name: str) -> str:
    """A path without its suffix; pathlib would turn `s3://` into `s3:/`."""
    return name.removesuffix(PurePosixPath(name).suffix)


def world_files(image: str) -> list[str]:
    """Possible names of the file with the six numbers of an image's transform: `a.tfw`, `a.tifw`, `a.wld`."""
    stem, suffix = strip_suffix(image), PurePosixPath(image).suffix
    return [*([f"{stem}{suffix[:2]}{suffix[-1]}w", f"{image}w"] if suffix else []), f"{stem}.wld"]


def header_files(image: str) -> list[str]:
    """Possible names of the header of an image without one: `a.hdr`, `a.dat.hdr`."""
    return [*dict.fromkeys((f"{strip_suffix(image)}.hdr", f"{image}.hdr"))]


def metadata_files(image: str) -> dict[str, list[str]]:
    """Kind of file beside an image -> its possible names. Case may differ.

    The shared XML belongs to all images of a delivery if they have none of their own: GF-6 WFV. `mask` and `aux` are
    GDAL's.
    """
    stem = strip_suffix(image)
    product_xml, *cameras = METADATA
    return {
        "xml": [stem + product_xml],
        "camera": [*(name + end for name in (stem, image) for end in cameras), *dimap.camera_files(stem)],
        "shared xml": [f"{stem.rpartition('-')[0]}.xml"],
        "mask": [image + MASK],
        "aux": [f"{image}.aux.xml"],
        "world": world_files(image),
        "prj": [f"{stem}.prj"],
        "header": header_files(image),
        "vendor": vendor_files(stem),
    }


def vendor_files(stem: str) -> list[str]:
    """Possible names of the metadata of an image, given its path without suffix: DIMAP, IMD and Planet's."""
    name = stem.rpartition("/")[2]
    folder = stem[: len(stem) - len(name)]
    dimap = re.sub(r"_R\d+C\d+$", "", f"DIM_{name[4:]}", flags=re.IGNORECASE)
    item = re.sub(r"_(?:3[AB]|1B)_.*$", "", name, flags=re.IGNORECASE)
    analytic = re.sub(r"_(?:SR|clip|file_format)(?:_.*)?$", "", name, flags=re.IGNORECASE)
    planet = [f"{folder}{part}_metadata{suffix}" for suffix in (".xml", ".json") for part in (name, analytic, item)]
    return [*([f"{folder}{dimap}.xml"] if name.upper().startswith("IMG_") else []), f"{stem}.imd", *planet]
