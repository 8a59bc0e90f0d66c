"""Gaofen deliveries: file names, product XML and RPB files. Text in, value out.

What the real files look like is written down in docs/gaofen.md; the traps that the code avoids are noted here.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from xml.etree.ElementTree import ParseError

import defusedxml.ElementTree
from defusedxml import DefusedXmlException

from pipeline.geometry.sensor import RPC

NAME = re.compile(
    r"(?P<satellite>GF\d[A-D]?|ZY3(?:0[1-3])?)_(?P<sensor>[A-Z]+\d?)_"
    r"(?P<ew>[EW])(?P<lon>\d{1,3}(?:\.\d+)?)_(?P<ns>[NS])(?P<lat>\d{1,2}(?:\.\d+)?)_"
    r"(?P<date>\d{8})_(?P<level>L\d[A-Z])(?P<product>\d+)(?:-(?P<part>[A-Z]+\d?|\d))?",
    re.ASCII,
)
"""The name of a delivery or, with `part`, of one image in it."""

BEIJING = timezone(timedelta(hours=8))

PMS_BANDS = {"1": "blue", "2": "green", "3": "red", "4": "nir", "5": "pan"}
GF6_WFV_BANDS = {
    "1": "blue", "2": "green", "3": "red", "4": "nir",
    "5": "red_edge_1", "6": "red_edge_2", "7": "coastal", "8": "yellow",
}  # fmt: skip
"""Number in the XML's `Bands` -> name. GF-6 WFV is the one sensor of the family with eight."""

GSD = {
    ("GF1", "PMS"): 8.0, ("GF1", "WFV"): 16.0, ("GF1B", "PMS"): 8.0, ("GF1C", "PMS"): 8.0, ("GF1D", "PMS"): 8.0,
    ("GF2", "PMS"): 3.24, ("GF6", "PMS"): 8.0, ("GF6", "WFV"): 16.0, ("GF7", "DLC"): 2.6,
}  # fmt: skip
"""Multispectral ground sampling distance, m, where the XML leaves `ImageGSD` empty; panchromatic is a quarter."""


class GaofenError(ValueError):
    """A name, XML or RPB that cannot be read: a sentence without the file's name, which the caller knows."""


@dataclass(frozen=True, slots=True)
class Name:
    """What a file name says."""

    satellite: str
    sensor: str
    lon: float
    lat: float
    """Rounded centre of the scene, degrees, east and north positive."""
    date: str
    """Day of acquisition, `YYYYMMDD`."""
    level: str
    product: str
    """Number of the product; 2147483647 stands for any number too large for 32 bits."""
    part: str
    """`MSS1`, `PAN1`, `MUX`, `PAN`, or a digit for GF-6 WFV; empty for the images without suffix."""
    scene: str
    """The name without the camera's suffix: what all images of one moment share. GF-6 WFV's parts are apart."""

    @property
    def kind(self) -> str:
        """`mss`, `pan`, or `other` for the second look of a stereo pair."""
        camera = self.part if self.part and not self.part.isdecimal() else self.sensor
        if camera in ("FWDPAN", "FWDMUX", "FWD", "BWD"):
            return "other"
        return "pan" if camera.startswith(("PAN", "BWDPAN", "NAD")) else "mss"


def parse_name(stem: str) -> Name:
    """The parts of a file name without its suffix. Raises GaofenError where it is not a Gaofen name."""
    found = NAME.fullmatch(stem)
    if not found:
        raise GaofenError("not the name of a Gaofen image")
    part = found.groupdict()
    return Name(
        satellite=part["satellite"],
        sensor=part["sensor"],
        lon=float(part["lon"]) * (1 if part["ew"] == "E" else -1),
        lat=float(part["lat"]) * (1 if part["ns"] == "N" else -1),
        date=part["date"],
        level=part["level"],
        product=part["product"],
        part=part["part"] or "",
        scene=stem if not part["part"] or part["part"].isdecimal() else stem.rpartition("-")[0],
    )


_CHINESE = re.compile(rb"""\s*<\?xml[^>]{0,80}?encoding\s*=\s*["'](?:gb2312|gbk|gb18030)["'][^>]{0,80}\?>""", re.I)


def parse_xml(text: bytes) -> dict[str, str]:
    """Every element of a product XML that holds text, by its tag; a tag used twice gets `_2`, `_3` ...

    GB2312 and its successors are read where the file declares one. Raises GaofenError for an empty file, broken
    XML, entities or a document type.
    """
    if not text.strip():
        raise GaofenError("the file is empty")
    declared = _CHINESE.match(text)
    try:
        if declared is not None:  # which the parser does not know; the other two are parts of the last
            text = text[declared.end() :].decode("gb18030").encode()
        root = defusedxml.ElementTree.fromstring(text, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise GaofenError(f"not a product XML: {error}") from error
    fields: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for element in root.iter():
        value = (element.text or "").strip()
        if not value:
            continue
        key = tag = str(element.tag)
        while key in fields:
            seen[tag] += 1
            key = f"{tag}_{seen[tag] + 1}"
        fields[key] = value
    if not fields:
        raise GaofenError("the XML holds no values")
    return fields


def check_name(name: Name, fields: Mapping[str, str]) -> None:
    """Raises GaofenError where an XML is of another satellite, sensor, day or place than a name says.

    What is missing or written in a way of its own proves nothing.
    """
    satellite = fields.get("SatelliteID", "").upper().replace("-", "")
    if re.fullmatch(r"GF\d[A-D]?", satellite) and satellite != name.satellite:
        raise GaofenError(f"SatelliteID is {satellite}, but the image is of {name.satellite}: the XML of another scene")
    sensor = fields.get("SensorID", "").upper()
    if all(re.fullmatch(r"(PMS|WFV)\d?", value) for value in (sensor, name.sensor)) and sensor != name.sensor:
        raise GaofenError(f"SensorID is {sensor}, but the image is of {name.sensor}: the XML of another scene")
    time = acquisition_time(fields)
    try:
        day = datetime.strptime(name.date, "%Y%m%d").replace(tzinfo=UTC)
    except ValueError:
        return
    # Names are dated in UTC or in Beijing time.
    if time is not None and not timedelta(days=-1) < time - day < timedelta(days=2):
        raise GaofenError(f"its time is {time:%Y-%m-%d}, but the image is of {day:%Y-%m-%d}: the XML of another scene")


def corner_centre(fields: Mapping[str, str]) -> tuple[float, float] | None:
    """Mean longitude and latitude of the corners that an XML names; None where it does not name all four."""
    corners = [f"{side}{end}" for side in ("Top", "Bottom") for end in ("Left", "Right")]
    try:
        lon = [float(fields[f"{corner}Longitude"]) for corner in corners]
        lat = [float(fields[f"{corner}Latitude"]) for corner in corners]
    except (KeyError, ValueError):
        return None
    return lon[0] + sum((x - lon[0] + 180.0) % 360.0 - 180.0 for x in lon) / 4, sum(lat) / 4


def acquisition_time(fields: Mapping[str, str]) -> datetime | None:
    """Time of acquisition, UTC, or None where the XML has none that can be read.

    Start, centre and end are Beijing time while ReceiveTime is UTC: one scene changes its date.
    """
    for key, zone in (("CenterTime", BEIJING), ("StartTime", BEIJING), ("ReceiveTime", UTC)):
        try:
            time = datetime.fromisoformat(fields[key])
            return (time if time.tzinfo else time.replace(tzinfo=zone)).astimezone(UTC)
        except (KeyError, ValueError, OverflowError):
            continue
    return None


def ground_distance(name: Name, fields: Mapping[str, str]) -> float:
    """Ground sampling distance, m: the XML's, otherwise the sensor's. Raises GaofenError where neither is known."""
    try:
        value = float(fields["ImageGSD"])
        if 0.1 <= value <= 10_000:
            return value
    except (KeyError, ValueError):
        pass
    value = GSD.get((name.satellite, name.sensor.rstrip("0123456789")), 0.0)
    if not value:
        raise GaofenError(f"ImageGSD is missing, and the GSD of {name.satellite} {name.sensor} is not known")
    return value / 4 if name.kind == "pan" else value


def band_names(name: Name, fields: Mapping[str, str], count: int) -> tuple[str, ...]:
    """Names of the `count` bands in the file's order, from the XML's list of numbers or the usual order."""
    table = GF6_WFV_BANDS if (name.satellite, name.sensor) == ("GF6", "WFV") else PMS_BANDS
    numbers = [number.strip() for number in fields.get("Bands", "").split(",")]
    if len(numbers) == count and all(number in table for number in numbers) and len(set(numbers)) == count:
        return tuple(table[number] for number in numbers)
    if name.kind == "pan" and count == 1:
        return ("pan",)
    if count == 4:
        return ("blue", "green", "red", "nir")
    return tuple(f"band_{k}" for k in range(1, count + 1))


# A key starts where a word does: tried at each of its letters, a file of one long word would take hours.
_RPB_NUMBER = re.compile(r"(?<!\w)(?P<key>\w+)\s*=\s*(?P<value>[^\s;(]+)\s*;?")
_RPB_LIST = re.compile(r"(?<!\w)(?P<key>\w+)\s*=\s*\((?P<values>[^()]*)\)")


def parse_rpb(text: str) -> RPC:
    """The camera in an RPB file. Some files lack the semicolons; the ids in them are placeholders.

    Raises GaofenError naming the field at fault.
    """
    if not text.strip():
        raise GaofenError("the file is empty")
    lists = {match["key"]: match["values"] for match in _RPB_LIST.finditer(text)}
    numbers = {match["key"]: match["value"] for match in _RPB_NUMBER.finditer(text)}

    def number(key: str) -> float:
        if key not in numbers:
            raise GaofenError(f"{key} is missing")
        try:
            return float(numbers[key])
        except ValueError as error:
            raise GaofenError(f"{key} is {numbers[key][:40]!r}, expected a number") from error

    def coefficients(key: str) -> tuple[float, ...]:
        if key not in lists:
            raise GaofenError(f"{key} is missing")
        try:
            values = tuple(float(value) for value in lists[key].replace(",", " ").split())
        except ValueError as error:
            raise GaofenError(f"{key} holds something that is not a number") from error
        if len(values) != 20:
            raise GaofenError(f"{key} has {len(values)} coefficients, expected 20")
        return values

    return make_rpc(*map(number, RPB_NUMBERS), *map(coefficients, RPB_LISTS))


RPB_NUMBERS = (
    "lineOffset", "sampOffset", "latOffset", "longOffset", "heightOffset",
    "lineScale", "sampScale", "latScale", "longScale", "heightScale",
)  # fmt: skip
RPB_LISTS = ("lineNumCoef", "lineDenCoef", "sampNumCoef", "sampDenCoef")
RPC_NUMBERS = (
    "LINE_OFF", "SAMP_OFF", "LAT_OFF", "LONG_OFF", "HEIGHT_OFF",
    "LINE_SCALE", "SAMP_SCALE", "LAT_SCALE", "LONG_SCALE", "HEIGHT_SCALE",
)  # fmt: skip
RPC_LISTS = ("LINE_NUM_COEFF", "LINE_DEN_COEFF", "SAMP_NUM_COEFF", "SAMP_DEN_COEFF")
"""What the two forms call the fields of RPC, in its order."""


def make_rpc(*fields: Any) -> RPC:
    """A camera from its fields in order. Raises GaofenError where they are none."""
    try:
        return RPC(*fields)
    except ValueError as error:
        raise GaofenError(str(error)) from error


_RPC_LINE = re.compile(r"\s*(?P<key>[A-Z]\w*)\s*[:=]\s*(?P<value>\S+)", re.ASCII)


def parse_rpc(text: str) -> RPC:
    """The camera in an RPC text file: a line each of `LINE_OFF: 3454.0 pixels` ... `SAMP_DEN_COEFF_20: 0.0`.

    Raises GaofenError naming the field at fault.
    """
    if not text.strip():
        raise GaofenError("the file is empty")
    found = {match["key"]: match["value"] for line in text.splitlines() if (match := _RPC_LINE.match(line))}

    def number(key: str) -> float:
        if key not in found:
            raise GaofenError(f"{key} is missing")
        try:
            return float(found[key])
        except ValueError as error:
            raise GaofenError(f"{key} is {found[key][:40]!r}, expected a number") from error

    lists = (tuple(number(f"{key}_{k}") for k in range(1, 21)) for key in RPC_LISTS)
    return make_rpc(*map(number, RPC_NUMBERS), *lists)
