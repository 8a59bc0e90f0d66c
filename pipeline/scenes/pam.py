"""What GDAL's `.aux.xml` beside an image says of it. GDAL reads it before what the image itself says."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

from affine import Affine
from defusedxml import DefusedXmlException, ElementTree
from pyproj import CRS
from pyproj.exceptions import CRSError


@dataclass(frozen=True, slots=True)
class BandNotes:
    """What is said of a band; None or empty for what is not."""

    nodata: float | None = None
    scale: float | None = None
    offset: float | None = None
    description: str = ""
    colour: str = ""
    """Colour interpretation under rasterio's name, such as `alpha`."""


@dataclass(frozen=True, slots=True)
class Pam:
    """What is said of an image; None or empty for what is not, or not in a usable way."""

    crs: str | None = None
    """WKT."""
    transform: Affine | None = None
    """From pixel corners to units of the CRS."""
    bands: Mapping[int, BandNotes] = field(default_factory=dict)
    """Number of a band, counted from 1 -> what is said of it."""
    rpc: str = ""
    """The RPC in the form of an RPC text file."""


def parse_pam(content: bytes | None) -> Pam:
    """Read an `.aux.xml`; empty if there is none or it is no XML."""
    try:
        root = ElementTree.fromstring(content or b"")
    except (ElementTree.ParseError, DefusedXmlException, ValueError, LookupError):
        return Pam()
    bands = {k: read_band(element) for k, element in enumerate_bands(root)}
    rpc = "\n".join(f"{item.get('key')}: {item.text}" for item in root.iterfind("Metadata[@domain='RPC']/MDI"))
    return Pam(read_crs(root), read_transform(root), bands, rpc)


def enumerate_bands(root: Element) -> list[tuple[int, Element]]:
    """Number and element of each band."""
    elements = [(element.get("band", ""), element) for element in root.iterfind("PAMRasterBand")]
    return [(int(number), element) for number, element in elements if number.isdecimal()]


def read_band(element: Element) -> BandNotes:
    """What the element of a band says."""
    return BandNotes(
        read_number(element, "NoDataValue"),
        read_number(element, "Scale"),
        read_number(element, "Offset"),
        element.findtext("Description") or "",
        (element.findtext("ColorInterp") or "").lower(),
    )


def read_number(element: Element, name: str) -> float | None:
    """The number in an element; None if there is none."""
    try:
        return float(element.findtext(name) or "")
    except ValueError:
        return None


def read_crs(root: Element) -> str | None:
    """The CRS, as WKT."""
    try:
        text = root.findtext("SRS")
        return str(CRS.from_user_input(text).to_wkt()) if text else None
    except CRSError:
        return None


def read_transform(root: Element) -> Affine | None:
    """The transform from pixel corners."""
    try:
        text = root.findtext("GeoTransform")
        return Affine.from_gdal(*map(float, text.split(","))) if text else None
    except (TypeError, ValueError):
        return None
