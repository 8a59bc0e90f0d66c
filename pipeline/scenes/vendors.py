"""Time, sun and bands from the metadata that vendors deliver beside an image.

DIMAP of Airbus (Pleiades, SPOT, Pleiades Neo), IMD and XML of Maxar (WorldView, QuickBird, GeoEye), XML and JSON of
Planet. Fields are those of the vendors' product guides. What a file does not say, or not in the expected form, is left
unknown.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from xml.etree.ElementTree import ParseError

import defusedxml.ElementTree
from defusedxml import DefusedXmlException

from pipeline.scenes.band_files import to_number

DIMAP_BANDS = {
    "B": "blue", "G": "green", "R": "red", "NIR": "nir", "RE": "rededge", "DB": "coastal", "P": "pan", "PAN": "pan",
    "B0": "blue", "B1": "green", "B2": "red", "B3": "nir", "XS1": "green", "XS2": "red", "XS3": "nir", "SWIR": "swir16",
}  # fmt: skip
"""BAND_ID -> name of the band; those of Pleiades Neo, of Pleiades and SPOT 6, and of SPOT 5."""
MAXAR_BANDS = {
    "P": "pan", "C": "coastal", "B": "blue", "G": "green", "Y": "yellow", "R": "red", "RE": "rededge", "N": "nir",
    "N2": "nir09",
}  # fmt: skip
"""End of the name of a group BAND_ -> name of the band."""
PLANET_BANDS = {
    3: ("red", "green", "blue"),
    4: ("blue", "green", "red", "nir"),
    5: ("blue", "green", "red", "rededge", "nir"),
    8: ("coastal", "blue", "green_i", "green", "yellow", "red", "rededge", "nir"),
}
"""Number of bands -> their names in analytic products of PlanetScope and RapidEye."""


@dataclass(frozen=True, slots=True)
class VendorMetadata:
    """What a vendor says of an image."""

    satellite: str = ""
    sensor: str = ""
    acquired: datetime | None = None
    """UTC; None if unknown."""
    bands: tuple[str, ...] = ()
    """In the order of the file; empty if unknown."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Cloud cover, % of the image, and angles of the sun, degrees, under the names of STAC's properties."""


def read_vendor(name: str, content: bytes, count: int) -> VendorMetadata | None:
    """Read a vendor's metadata file; None if it is of no known form. count: number of bands of the image."""
    text = content.decode("utf-8-sig", errors="replace")
    if name.lower().endswith(".imd"):
        return read_imd(text)
    if name.lower().endswith(".json"):
        return read_planet_json(text, count)
    try:
        root = defusedxml.ElementTree.fromstring(content, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError):
        return None
    values: dict[str, str] = {}
    for element in root.iter():  # the first element of a name counts
        values.setdefault(element.tag.rpartition("}")[2].upper(), (element.text or "").strip())
    if root.tag == "Dimap_Document":
        return read_dimap(values, [element.text or "" for element in root.iter("BAND_ID")], count)
    if root.tag == "isd":
        bands = [element.tag for element in root.iter() if element.tag.startswith("BAND_")]
        return read_maxar(values, bands)
    if root.tag.endswith("}EarthObservation") and "planet" in root.tag.lower():
        return read_planet_xml(values, count)
    return None


def read_dimap(values: Mapping[str, str], band_ids: Sequence[str], count: int) -> VendorMetadata:
    """The metadata of a DIMAP document. values: name of an element in capitals -> text of the first one."""
    ids = [*dict.fromkeys(band_ids)]
    bands = tuple(DIMAP_BANDS.get(text.strip(), "") for text in ids)
    return VendorMetadata(
        f"{values.get('MISSION', '')}{values.get('MISSION_INDEX', '')}",
        f"{values.get('INSTRUMENT', '')}{values.get('INSTRUMENT_INDEX', '')}",
        parse_time(f"{values.get('IMAGING_DATE', '')}T{values.get('IMAGING_TIME', '')}"),
        bands if all(bands) and len(bands) == count else (),
        sun_and_clouds(values.get("SUN_ELEVATION"), values.get("SUN_AZIMUTH"), values.get("CLOUD_COVERAGE")),
    )


def read_imd(text: str) -> VendorMetadata:
    """The metadata of an IMD file: `key = value;` and `BEGIN_GROUP = BAND_B`."""
    pairs = re.findall(r"(?m)^\s*(\w+)\s*=\s*\"?([^\";\n]*)\"?;?\s*$", text)
    values = {key.upper(): value.strip() for key, value in reversed(pairs)}
    return read_maxar(values, [value for key, value in pairs if key == "BEGIN_GROUP" and value.startswith("BAND_")])


def read_maxar(values: Mapping[str, str], groups: Iterable[str]) -> VendorMetadata:
    """The metadata of Maxar's IMD or XML. values: field in capitals -> text. groups: names such as `BAND_N2`."""
    bands = tuple(MAXAR_BANDS.get(group.strip().removeprefix("BAND_"), "") for group in groups)
    clouds = to_number(values.get("CLOUDCOVER"))  # a share; -999 if it was not assessed
    return VendorMetadata(
        values.get("SATID", ""),
        "",
        parse_time(values.get("FIRSTLINETIME") or values.get("TLCTIME") or values.get("EARLIESTACQTIME") or ""),
        bands if all(bands) else (),
        sun_and_clouds(
            values.get("MEANSUNEL") or values.get("SUNEL"),
            values.get("MEANSUNAZ") or values.get("SUNAZ"),
            None if clouds is None or clouds < 0 else f"{100 * clouds:g}",
        ),
    )


def read_planet_xml(values: Mapping[str, str], count: int) -> VendorMetadata:
    """The metadata of Planet's XML. values: name of an element in capitals, without namespace -> text."""
    return VendorMetadata(
        values.get("SHORTNAME", ""),
        "",
        parse_time(values.get("ACQUISITIONDATETIME") or values.get("ACQUISITIONDATE") or ""),
        PLANET_BANDS.get(count, ()),
        sun_and_clouds(
            values.get("ILLUMINATIONELEVATIONANGLE"),
            values.get("ILLUMINATIONAZIMUTHANGLE"),
            values.get("CLOUDCOVERPERCENTAGE"),
        ),
    )


def read_planet_json(text: str, count: int) -> VendorMetadata | None:
    """The metadata of Planet's JSON, a feature with properties; None if it is none."""
    try:
        properties = json.loads(text)["properties"]
        values: dict[str, Any] = {key: properties.get(key) for key in ("acquired", "provider", "instrument")}
        values["clouds"] = None if (share := properties.get("cloud_cover")) is None else f"{100 * float(share):g}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(values["acquired"], str):
        return None
    return VendorMetadata(
        str(values["provider"] or ""),
        str(values["instrument"] or ""),
        parse_time(values["acquired"]),
        PLANET_BANDS.get(count, ()),
        sun_and_clouds(str(properties.get("sun_elevation")), str(properties.get("sun_azimuth")), values["clouds"]),
    )


def sun_and_clouds(elevation: str | None, azimuth: str | None, clouds: str | None) -> dict[str, str]:
    """Those of the fields that are numbers, under the names of STAC's properties."""
    found = {"view:sun_elevation": elevation, "view:sun_azimuth": azimuth, "eo:cloud_cover": clouds}
    return {name: text for name, text in found.items() if text is not None and to_number(text) is not None}


def parse_time(text: str) -> datetime | None:
    """The time of an ISO 8601 text, UTC unless it says otherwise; None if it is none."""
    try:
        time = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text.strip().rstrip("T")))
    except ValueError:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
