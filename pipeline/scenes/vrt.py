"""Virtual rasters, `.vrt`: the files that they show, and the same raster written anew of what is known to be harmless.

GDAL would open whatever file, address or program a VRT names. So it is given only what is understood here: rectangles
of TIFF and JPEG 2000 files on this machine, side by side or a band a file, as `gdalbuildvrt` writes them.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element, ParseError, SubElement, tostring

import defusedxml.ElementTree
from defusedxml import DefusedXmlException

from geokr.storage import inputs
from pipeline.scenes.scene import SceneError
from pipeline.scenes.sensor_bands import find_sensor, to_common_name

SUFFIX = ".vrt"
SOURCES = (".tif", ".tiff", ".jp2")
"""Suffixes of the files that a VRT may show."""
SIGNATURES = (
    b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51",
)  # fmt: skip
"""First bytes of TIFF, BigTIFF and JPEG 2000. GDAL goes by the content of a file, whatever its name."""
BESIDE = (".msk", ".ovr")
"""Suffixes of files that GDAL reads with a source."""
MAX_BYTES = 64 << 20
"""A VRT with more bytes than this is refused."""
WRITE_OUT = "write its pixels out with `gdal_translate -of COG`"

DATASET = ("SRS", "GeoTransform", "Metadata", "VRTRasterBand", "MaskBand")
BAND = (
    "NoDataValue", "HideNoDataValue", "ColorInterp", "Description", "Scale", "Offset", "UnitType", "ColorTable",
    "Metadata", "SimpleSource", "ComplexSource",
)  # fmt: skip
SOURCE = (
    "SourceFilename", "SourceBand", "SourceProperties", "SrcRect", "DstRect", "NODATA", "UseMaskBand", "ScaleOffset",
    "ScaleRatio", "LUT", "ColorTableComponent", "Exponent", "SrcMin", "SrcMax", "DstMin", "DstMax", "Clamp",
)  # fmt: skip
"""Elements of the raster, of a band and of a source that are kept."""
NO_MATTER = (
    "GCPList", "OverviewList", "BlockXSize", "BlockYSize", "Histograms", "CategoryNames", "Overview",
)  # fmt: skip
"""Elements that are left out: no pixel depends on them."""
DOMAINS = (None, "", "RPC", "IMAGE_STRUCTURE")
"""Domains of the metadata that are kept."""


@dataclass(frozen=True, slots=True)
class Mosaic:
    """What a VRT shows."""

    bands: tuple[tuple[str, ...], ...]
    """Absolute paths of the files that each band shows."""
    xml: str
    """The raster written anew, with absolute paths: what GDAL opens."""

    @property
    def sources(self) -> tuple[str, ...]:
        """All files, each once."""
        return tuple(dict.fromkeys(file for files in self.bands for file in files))

    @property
    def stacked(self) -> bool:
        """Whether it has several bands and each has files of its own, so that the files alone are no scenes."""
        return len(self.bands) > 1 and sum(len({*files}) for files in self.bands) == len(self.sources)

    def name_bands(self) -> tuple[str, ...]:
        """Names of the bands by what differs in the names of their files; empty if that does not tell them apart."""
        stems = [PurePosixPath(files[0]).stem for files in self.bands if files]
        if not self.stacked or len(stems) < len(self.bands):
            return ()
        words = [re.split(r"[\s_.-]+", stem) for stem in stems]
        if len({*map(len, words)}) > 1:
            return ()
        columns = [column for column in zip(*words, strict=True) if len({*column}) == len(stems)]
        sensor = find_sensor(stems)
        return tuple(to_common_name(word, sensor) for word in columns[0]) if len(columns) == 1 else ()


def is_vrt(path: str) -> bool:
    """Whether a path is that of a VRT, by its suffix."""
    return path.lower().endswith(SUFFIX)


def read_mosaic(path: str) -> Mosaic:
    """Read a VRT. Raises SceneError, which names it and its fault, if it shows anything but local files."""
    if inputs.is_remote(path) or path.startswith("/vsi"):
        raise SceneError(f"{path}: a VRT is read from a folder only, not from a server or an archive")
    try:
        state = os.stat(path)
        return parse_mosaic(path, state.st_mtime_ns, state.st_size)
    except OSError as error:
        raise SceneError(f"{path}: cannot be read: {error}") from error


@lru_cache(maxsize=64)
def parse_mosaic(path: str, _written: int, size: int) -> Mosaic:
    """Read a VRT that was written at a time and has a size, bytes: see `read_mosaic`."""
    if size > MAX_BYTES:
        raise SceneError(f"{path}: {size} bytes, too many for a VRT")
    try:
        root = defusedxml.ElementTree.fromstring(Path(path).read_bytes(), forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise SceneError(f"{path}: not the XML of a VRT: {error}") from error
    if root.tag != "VRTDataset":
        raise SceneError(f"{path}: not the XML of a VRT: it begins with {str(root.tag)[:80]}")
    refuse_computed(path, root)
    copy = Element("VRTDataset", {key: root.get(key, "") for key in ("rasterXSize", "rasterYSize")})
    bands: list[tuple[str, ...]] = []
    for child in keep(path, root, DATASET):
        match child.tag:
            case "VRTRasterBand":
                bands.append(copy_band(path, child, copy))
            case "MaskBand":
                mask = SubElement(copy, "MaskBand")
                for band in child:
                    copy_band(path, band, mask)
            case "Metadata" if child.get("domain") not in DOMAINS:
                pass
            case _:
                copy.append(child)
    mosaic = Mosaic(tuple(bands), "")
    for file in mosaic.sources:
        check_source(path, file)
    add_mask(copy)
    return Mosaic(mosaic.bands, tostring(copy, encoding="unicode"))


def refuse_computed(path: str, element: Element) -> None:
    """Raise SceneError for a raster or band of another class than that of `gdalbuildvrt`."""
    kind = element.get("subClass", "VRTSourcedRasterBand")
    if kind != "VRTSourcedRasterBand":
        raise SceneError(f"{path}: it is computed from other images ({kind[:80]}); {WRITE_OUT}")


def keep(path: str, parent: Element, known: Sequence[str]) -> list[Element]:
    """The children that matter. Raises SceneError for one that is not known."""
    for child in parent:
        if child.tag not in (*known, *NO_MATTER):
            raise SceneError(f"{path}: it contains {str(child.tag)[:80]}, which is not followed; {WRITE_OUT}")
    return [child for child in parent if child.tag in known]


def copy_band(path: str, band: Element, parent: Element) -> tuple[str, ...]:
    """Copy a band to a raster, or to its mask. Returns the files that it shows."""
    refuse_computed(path, band)
    copy = SubElement(
        parent, "VRTRasterBand", {key: band.get(key, "") for key in ("dataType", "band") if band.get(key)}
    )
    files = []
    for child in keep(path, band, BAND):
        if child.tag.endswith("Source"):
            parts = keep(path, child, SOURCE)
            source = SubElement(copy, child.tag, {key: value for key, value in child.items() if key == "resampling"})
            files.append(resolve(path, next((part for part in parts if part.tag == "SourceFilename"), Element(""))))
            SubElement(source, "SourceFilename", {"relativeToVRT": "0"}).text = files[-1]
            source.extend([part for part in parts if part.tag != "SourceFilename"])
        elif child.tag != "Metadata" or child.get("domain") in DOMAINS:
            copy.append(child)
    return tuple(files)


def resolve(path: str, source: Element) -> str:
    """The absolute path of a source. Raises SceneError if it is no file that a VRT may show."""
    name = source.text or ""
    if is_vrt(name):
        raise SceneError(f"{path}: its source {name[:200]} is a VRT itself; {WRITE_OUT}")
    file = os.path.normpath(Path(path).parent / name) if source.get("relativeToVRT") == "1" else name
    plain = file.startswith("/") and not file.startswith("/vsi") and file.lower().endswith(SOURCES)
    if not plain or inputs.is_remote(name):
        raise SceneError(f"{path}: its source {name[:200]} is no TIFF or JPEG 2000 file on this machine; {WRITE_OUT}")
    return file


def check_source(path: str, file: str) -> None:
    """Raise SceneError if a source, or what GDAL reads beside it, does not exist or is no image by its content."""
    if not Path(file).is_file():
        raise SceneError(f"{path}: its source {file} does not exist")
    for name in (file, *(file + suffix for suffix in BESIDE if Path(file + suffix).is_file())):
        with Path(name).open("rb") as content:
            if not content.read(8).startswith(SIGNATURES):
                raise SceneError(f"{path}: its source {name} is no TIFF or JPEG 2000 file by its content")


def add_mask(raster: Element) -> None:
    """Where no source of the first band has data there is none: without a mask, GDAL would read 0 there."""
    bands = raster.findall("VRTRasterBand")
    told = raster.find("MaskBand") is not None or any(band.find("NoDataValue") is not None for band in bands)
    if not bands or told or any(band.findtext("ColorInterp") == "Alpha" for band in bands):
        return
    mask = SubElement(SubElement(raster, "MaskBand"), "VRTRasterBand", {"dataType": "Byte"})
    for source in bands[0]:
        if source.tag.endswith("Source"):
            copy = SubElement(mask, "SimpleSource")
            copy.extend([part for part in source if part.tag in ("SourceFilename", "SrcRect", "DstRect")])
            SubElement(copy, "SourceBand").text = f"mask,{source.findtext('SourceBand', '1')}"
