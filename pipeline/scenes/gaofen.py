"""Parse the file names, product XML, RPB and RPC text files of Gaofen deliveries.

docs/gaofen.md describes the real files. Comments here note the pitfalls that the code avoids.
"""

import codecs
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
from pipeline.scenes.archive import can_decode

NAME = re.compile(
    r"(?P<satellite>GF\d[A-D]?|ZY3(?:0[1-3])?|ZY1[EF]|ZY02C|HJ\d[A-F]|CB04A?)_(?P<sensor>[A-Z]+\d?)_"
    r"(?P<ew>[EW])(?P<lon>\d{1,3}(?:\.\d+)?)_(?P<ns>[NS])(?P<lat>\d{1,2}(?:\.\d+)?)_"
    r"(?P<date>\d{8})_(?P<level>L\d[A-Z])(?P<product>\d+)(?:-(?P<part>[A-Z]+\d?|\d))?",
    re.ASCII,
)
"""The name of a delivery or, with `part`, of one image of it."""

BEIJING = timezone(timedelta(hours=8))

PMS_BANDS = {"1": "blue", "2": "green", "3": "red", "4": "nir", "5": "pan"}
GF6_WFV_BANDS = {
    "1": "blue", "2": "green", "3": "red", "4": "nir",
    "5": "red_edge_1", "6": "red_edge_2", "7": "coastal", "8": "yellow",
}  # fmt: skip
"""Number in the `Bands` field of the XML -> band name. GF-6 WFV is the only sensor of the family with eight bands."""

GSD = {
    ("GF1", "PMS"): 8.0, ("GF1", "WFV"): 16.0, ("GF1B", "PMS"): 8.0, ("GF1C", "PMS"): 8.0, ("GF1D", "PMS"): 8.0,
    ("GF2", "PMS"): 3.24, ("GF6", "PMS"): 8.0, ("GF6", "WFV"): 16.0, ("GF7", "DLC"): 2.6,
}  # fmt: skip
"""Satellite and sensor -> multispectral ground sampling distance, m, for an XML without `ImageGSD`.

The panchromatic one is a quarter of it.
"""


class GaofenError(ValueError):
    """A file name, XML, RPB or RPC text that cannot be parsed: one sentence, to which callers add the file."""


@dataclass(frozen=True, slots=True)
class Name:
    """The parts of a Gaofen file name."""

    satellite: str
    sensor: str
    lon: float
    lat: float
    """Rounded centre of the scene, degrees, east and north positive."""
    date: str
    """Day of acquisition, `YYYYMMDD`."""
    level: str
    product: str
    """Product number; 2147483647 stands for any number that exceeds 32 bits."""
    part: str
    """`MSS1`, `PAN1`, `MUX`, `PAN`, or a digit for GF-6 WFV; empty for a name without suffix."""
    scene: str
    """The name without the camera's suffix, shared by all images of a scene. A part of a GF-6 WFV is its own scene."""

    @property
    def kind(self) -> str:
        """`mss`, `pan`, or `other` for the second view of a stereo pair."""
        camera = self.part if self.part and not self.part.isdecimal() else self.sensor
        if camera in ("FWDPAN", "FWDMUX", "FWD", "BWD"):
            return "other"
        return "pan" if camera.startswith(("PAN", "BWDPAN", "NAD")) else "mss"


def parse_name(stem: str) -> Name:
    """Parse a file name without its file extension. Raises GaofenError if it is not a Gaofen name."""
    match = NAME.fullmatch(stem)
    if not match:
        raise GaofenError("not the name of a Gaofen image")
    part = match.groupdict()
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


_DECLARATION = re.compile(rb"""\s*<\?xml(?:[^>]{0,80}?encoding\s*=\s*["']([\w-]{1,20})["'])?[^>]{0,80}\?>""", re.I)
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
CHINESE, UNICODE = (b"gb2312", b"gbk", b"gb18030"), (b"", b"utf-8", b"utf8")
"""Encodings that an XML may declare, in lower case: those that GB18030 includes; UTF-8, which none means too."""


def parse_xml(text: bytes) -> dict[str, str]:
    """Read a product XML: tag -> text of each element with text. Repeated tags get `_2`, `_3` ... appended.

    GB2312, GBK and GB18030 are supported if the file declares them, or declares UTF-8 or nothing and is not UTF-8.
    Raises GaofenError for an empty file, broken XML, entities or a document type declaration.
    """
    if not text.strip():
        raise GaofenError("the file is empty")
    declaration = _DECLARATION.match(text)
    declared = declaration[1].lower() if declaration and declaration[1] else b""
    try:
        # The parser does not know these encodings. Some files declare UTF-8 and are not.
        if declared in CHINESE or (declared in UNICODE and not (text.startswith(UTF16) or can_decode(text, "utf-8"))):
            text = text[declaration.end() if declaration else 0 :].decode("gb18030").encode()
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
        raise GaofenError("the XML contains no values")
    return fields


def check_name(name: Name, fields: Mapping[str, str]) -> None:
    """Raise GaofenError if an XML is of another satellite, sensor or day than a file name.

    Fields that are missing or have an unusual format are not checked.
    """
    satellite = fields.get("SatelliteID", "").upper().replace("-", "")
    if re.fullmatch(r"GF\d[A-D]?", satellite) and satellite != name.satellite:
        raise GaofenError(f"SatelliteID is {satellite}, but the image is of {name.satellite}: the XML of another scene")
    sensor = fields.get("SensorID", "").upper()
    if all(re.fullmatch(r"(PMS|WFV)\d?", value) for value in (sensor, name.sensor)) and sensor != name.sensor:
        raise GaofenError(f"SensorID is {sensor}, but the image is of {name.sensor}: the XML of another scene")
    time = read_acquisition_time(fields)
    try:
        day = datetime.strptime(name.date, "%Y%m%d").replace(tzinfo=UTC)
    except ValueError:
        return
    # The date in a name is in UTC or in Beijing time.
    if time is not None and not timedelta(days=-1) < time - day < timedelta(days=2):
        raise GaofenError(f"its time is {time:%Y-%m-%d}, but the image is of {day:%Y-%m-%d}: the XML of another scene")


def read_corner_centre(fields: Mapping[str, str]) -> tuple[float, float] | None:
    """Mean longitude and latitude of the four corners in an XML, degrees; None if one of them is missing."""
    corners = [f"{side}{end}" for side in ("Top", "Bottom") for end in ("Left", "Right")]
    try:
        lon = [float(fields[f"{corner}Longitude"]) for corner in corners]
        lat = [float(fields[f"{corner}Latitude"]) for corner in corners]
    except (KeyError, ValueError):
        return None
    return lon[0] + sum((x - lon[0] + 180.0) % 360.0 - 180.0 for x in lon) / 4, sum(lat) / 4


def read_acquisition_time(fields: Mapping[str, str]) -> datetime | None:
    """Time of acquisition, UTC; None if the XML has none that can be parsed.

    CenterTime and StartTime are in Beijing time, ReceiveTime is in UTC. The two zones can give different dates.
    """
    for key, zone in (("CenterTime", BEIJING), ("StartTime", BEIJING), ("ReceiveTime", UTC)):
        try:
            time = datetime.fromisoformat(fields[key])
            return (time if time.tzinfo else time.replace(tzinfo=zone)).astimezone(UTC)
        except (KeyError, ValueError, OverflowError):
            continue
    return None


def read_gsd(name: Name, fields: Mapping[str, str]) -> float:
    """Ground sampling distance, m, from the XML or else of the sensor. Raises GaofenError if neither is known."""
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


def read_band_names(name: Name, fields: Mapping[str, str], count: int) -> tuple[str, ...]:
    """Names of the `count` bands in the order of the file, from the `Bands` field of the XML or the usual order."""
    table = GF6_WFV_BANDS if (name.satellite, name.sensor) == ("GF6", "WFV") else PMS_BANDS
    numbers = [number.strip() for number in fields.get("Bands", "").split(",")]
    if len(numbers) == count and all(number in table for number in numbers) and len(set(numbers)) == count:
        return tuple(table[number] for number in numbers)
    if name.kind == "pan" and count == 1:
        return ("pan",)
    if count == 4:
        return ("blue", "green", "red", "nir")
    return tuple(f"band_{k}" for k in range(1, count + 1))


# A key starts at the start of a word. If each letter were tried, a file of one long word would take hours.
_RPB_NUMBER = re.compile(r"(?<!\w)(?P<key>\w+)\s*=\s*(?P<value>[^\s;(]+)\s*;?")
_RPB_LIST = re.compile(r"(?<!\w)(?P<key>\w+)\s*=\s*\((?P<values>[^()]*)\)")


def parse_rpb(text: str) -> RPC:
    """Parse the RPC in an RPB file. Some files lack the semicolons; the ids in a file are placeholders and ignored.

    Raises GaofenError naming the field at fault.
    """
    if not text.strip():
        raise GaofenError("the file is empty")
    lists = {match["key"]: match["values"] for match in _RPB_LIST.finditer(text)}
    numbers = {match["key"]: match["value"] for match in _RPB_NUMBER.finditer(text)}

    def number(key: str) -> float:
        if key not in numbers:
            raise GaofenError(f"{key} is missing")
        return to_number(key, numbers[key])

    def coefficients(key: str) -> tuple[float, ...]:
        if key not in lists:
            raise GaofenError(f"{key} is missing")
        try:
            values = tuple(to_number(key, value) for value in lists[key].replace(",", " ").split())
        except GaofenError as error:
            raise GaofenError(f"{key} contains a value that is not a number") from error
        if len(values) != 20:
            raise GaofenError(f"{key} has {len(values)} coefficients, expected 20")
        return values

    return make_rpc(*map(number, RPB_NUMBERS), *map(coefficients, RPB_LISTS))


def parse_camera(name: str, content: bytes) -> RPC:
    """Parse an RPB or RPC text file in any encoding; `.rpc` files may be either. Raises GaofenError naming a field."""
    if content.startswith(UTF16):
        text = content.decode("utf-16", errors="replace")
    elif b"\0" in content[:2]:  # UTF-16 without the mark that says so
        text = content.decode("utf-16-be" if content[:1] == b"\0" else "utf-16-le", errors="replace")
    else:
        text = content.decode("utf-8-sig", errors="replace")
    return parse_rpb(text) if name.lower().endswith(".rpb") or RPB_NUMBERS[0] in text else parse_rpc(text)


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
"""Names of the fields of RPC in RPB files and in RPC text files, in the order of the class."""


def make_rpc(*fields: Any) -> RPC:
    """Make an RPC from its fields in order. Raises GaofenError if they are invalid."""
    try:
        return RPC(*fields)
    except ValueError as error:
        raise GaofenError(str(error)) from error


_RPC_KEY = re.compile(rf"({'|'.join((*RPC_NUMBERS, *RPC_LISTS))})(?:_0*(\d{{1,2}}))?", re.ASCII)
_BETWEEN = re.compile(r"[\s:=;()]+")
"""What separates the words of an RPC text file."""


def parse_rpc(text: str) -> RPC:
    """Parse an RPC text file, on one line or many: `LINE_OFF: 3454.0 pixels` ... `SAMP_DEN_COEFF_20: 0.0`.

    Names may be in small letters, without a colon, and their numbers may have leading zeros; coefficients may also be a
    list after one name. Raises GaofenError naming the field at fault.
    """
    if not text.strip():
        raise GaofenError("the file is empty")
    values: dict[str, list[str]] = {}
    field: list[str] = []
    for word in _BETWEEN.split(text):
        if key := _RPC_KEY.fullmatch(word.upper()):
            field = values[f"{key[1]}_{key[2]}" if key[2] else key[1]] = []
        elif word and len(field) < 20:
            field.append(word)

    def number(key: str) -> float:
        if not values.get(key):
            raise GaofenError(f"{key} is missing")
        return to_number(key, values[key][0].rstrip(","))

    def coefficients(key: str) -> tuple[float, ...]:
        if key not in values:
            return tuple(number(f"{key}_{k}") for k in range(1, 21))
        listed = [*filter(None, ",".join(values[key]).split(","))]
        if len(listed) != 20:
            raise GaofenError(f"{key} has {len(listed)} coefficients, expected 20")
        return tuple(to_number(key, value) for value in listed)

    return make_rpc(*map(number, RPC_NUMBERS), *map(coefficients, RPC_LISTS))


def to_number(key: str, text: str) -> float:
    """The number of a field; its exponent may follow a D, as Fortran writes it. Raises GaofenError naming the field."""
    try:
        return float(_FORTRAN.sub("e", text))
    except ValueError as error:
        raise GaofenError(f"{key} is {text[:40]!r}, expected a number") from error


_FORTRAN = re.compile(r"(?<=[\d.])[dD](?=[-+]?\d)", re.ASCII)
