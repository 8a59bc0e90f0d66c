"""Landsat products as the USGS delivers them: a TIFF for each band, quality bands, and the metadata file MTL.

Names and fields are those of the Collection 2 data format control books (LSDS-1618, LSDS-1619, LSDS-1822). Level 1 and
2 of Landsat 4 to 9 are read, and older names of files that an MTL lists.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import PurePosixPath
from xml.etree.ElementTree import ParseError

import defusedxml.ElementTree
from defusedxml import DefusedXmlException

from pipeline.scenes.archive import IMAGES, require_text
from pipeline.scenes.band_files import Files, Product, to_number
from pipeline.scenes.scene import SceneError
from pipeline.scenes.sensor_bands import LANDSAT, MSS

NAME = re.compile(
    r"(?P<product>L(?P<sensor>[COTEM])0(?P<satellite>[4-9])_L(?P<level>[12])[A-Z]{2}_\d{6}_(?P<date>\d{8})_\d{8}_\d\d_"
    r"(?:T1|T2|RT))(?:_(?P<part>\w+))?\.\w+(?:\.\w+)*",
    re.ASCII | re.IGNORECASE,
)
"""The name of a file of a product, such as `LC08_L2SP_190060_20210601_20210608_02_T1_SR_B4.TIF`."""
MTL = re.compile(r"(?P<product>.+)_MTL\.(?:txt|xml|json)", re.IGNORECASE)
"""The name of a metadata file. Names of files from before the collections follow it: `LC8..._B4.TIF`."""
BAND = re.compile(r"(?:(?:SR|ST)_)?B\d{1,2}(?:_VCID_[12])?", re.IGNORECASE)
"""The end of the name of a band's file."""
QUALITY = "QA_PIXEL"
"""The end of the name of the quality band's file."""
SENSORS = {"C": "OLI_TIRS", "O": "OLI", "T": "TM", "E": "ETM", "M": "MSS"}
LEVEL_2_LACKS = frozenset({"pan", "cirrus", "lwir", "lwir11", "lwir12", "lwir_high_gain"})
"""Bands that level 2 does not have, or, the thermal ones, not always."""
LEVEL_2_SCALES = {"SR": (2.75e-05, -0.2), "ST": (0.00341802, 149.0)}
"""Scale and offset of reflectance and of temperature in kelvins in all products of level 2."""
PARAMETERS = {
    "1": ("LEVEL1_RADIOMETRIC_RESCALING", "RADIOMETRIC_RESCALING"),
    "2": ("LEVEL2_SURFACE_REFLECTANCE_PARAMETERS", "LEVEL2_SURFACE_TEMPERATURE_PARAMETERS"),
}
"""Level -> groups of an MTL with its scales. An MTL of level 2 has the group of level 1 too, with the same fields."""
STAC_PROPERTIES = {
    "CLOUD_COVER": "eo:cloud_cover", "SUN_AZIMUTH": "view:sun_azimuth", "SUN_ELEVATION": "view:sun_elevation",
}  # fmt: skip
"""Field of an MTL -> property of a STAC item with the same value."""
CONTENTS = ("PRODUCT_CONTENTS", "PRODUCT_METADATA", "METADATA_FILE_INFO")
"""Groups of an MTL about the product itself. Others repeat some fields for the product that it was made from."""


def find_products(names: Sequence[str]) -> dict[str, list[str]]:
    """Group the files of Landsat products: see `band_files.Reader`."""
    prefixes = {name[: -len(file)] + match["product"] for name, file, match in match_names(names, MTL)}
    products: dict[str, list[str]] = {}
    for name in names:
        file = name.rpartition("/")[2]
        match = NAME.fullmatch(file)
        path = name[: -len(file)] + match["product"] if match else find_prefix(name, prefixes)
        if path:
            products.setdefault(path, []).append(name)
    return {path: files for path, files in products.items() if any(is_band(file, path) for file in files)}


def find_folder(name: str) -> str:
    """Nothing: the files of a product lie side by side, see `band_files.Reader`."""
    return ""


def match_names(names: Sequence[str], pattern: re.Pattern[str]) -> Iterator[tuple[str, str, re.Match[str]]]:
    """The names whose last part matches a pattern, with that part and the match."""
    for name in names:
        file = name.rpartition("/")[2]
        if match := pattern.fullmatch(file):
            yield name, file, match


def find_prefix(name: str, prefixes: set[str]) -> str:
    """The prefix, up to one of the underscores of a file's name, that is among `prefixes`; empty if there is none."""
    folder = len(name) - len(name.rpartition("/")[2])
    ends = (k for k in range(folder + 1, len(name)) if name[k] == "_")
    return next((name[:k] for k in ends if name[:k] in prefixes), "")


def is_band(name: str, product: str) -> bool:
    """Whether a file of a product is the image of a band."""
    return name.lower().endswith(IMAGES) and BAND.fullmatch(part_of(name, product)) is not None


def part_of(name: str, product: str) -> str:
    """What a file of a product contains, by its name: `SR_B4`, `QA_PIXEL` ..."""
    return PurePosixPath(name[len(product) + 1 :]).stem


def describe(files: Files) -> Product:
    """Describe a Landsat product by its names and, if it has one, its MTL. Raises SceneError naming the file."""
    (path,) = find_products([*files])
    own = path.rpartition("/")[2]
    mtl = find_mtl(files)
    groups = parse_mtl(mtl, require_text(mtl, files)) if mtl else {}
    fields = {key: value for group in reversed(groups.values()) for key, value in group.items()}  # the first one counts
    contents = {key: value for group in reversed(CONTENTS) for key, value in groups.get(group, {}).items()}
    match = NAME.fullmatch(f"{own}.TIF")
    if match and contents.get("LANDSAT_PRODUCT_ID", own).upper() != own.upper():
        raise SceneError(f"{mtl}: it is the MTL of {contents['LANDSAT_PRODUCT_ID']}, but the images are of {own}")
    satellite = match["satellite"] if match else fields.get("SPACECRAFT_ID", "")[-1:]
    sensor = fields.get("SENSOR_ID") or (SENSORS[match["sensor"].upper()] if match else "")
    sensor_bands = MSS if sensor.startswith("MSS") else LANDSAT.get(satellite)
    if sensor_bands is None:
        raise SceneError(f"{mtl}: SPACECRAFT_ID is {fields.get('SPACECRAFT_ID')!r}, expected LANDSAT_4 to LANDSAT_9")
    level = match["level"] if match else "1"
    bands = {file: part_of(file, path) for file in files if is_band(file, path)}
    parameters = {key: value for group in PARAMETERS[level] for key, value in groups.get(group, {}).items()}
    return Product(
        id=own,
        satellite=f"LANDSAT_{satellite}",
        sensor=sensor,
        acquired=read_time(fields, match["date"] if match else ""),
        sensor_bands=sensor_bands,
        names={file: (part, re.sub(r"^S[RT]_", "", part, flags=re.IGNORECASE)) for file, part in bands.items()},
        lacking=LEVEL_2_LACKS if level == "2" else frozenset(),
        scales={
            file: scale
            for file, part in bands.items()
            if (scale := find_scale(part.upper(), level, parameters, fields))
        },
        quality=next(((file, QUALITY) for file in files if part_of(file, path).upper() == QUALITY), None),
        metadata=fields | {name: fields[key] for key, name in STAC_PROPERTIES.items() if key in fields},
        texts=(files[mtl] or b"",) if mtl else (),
    )


def find_mtl(files: Files) -> str:
    """The MTL among the files of a product, as text, XML or JSON in this order; empty if there is none.

    One with content goes before empty ones.
    """
    names = [name for name, _, _ in match_names([*files], MTL)]
    found = [name for name in names if files[name]] or names
    return max(found, key=lambda name: (name.lower().endswith(".txt"), name.lower().endswith(".xml")), default="")


def parse_mtl(name: str, content: bytes) -> dict[str, dict[str, str]]:
    """Parse an MTL in any of its three forms: group -> field -> value. Raises SceneError naming the file."""
    try:
        if name.lower().endswith(".xml"):
            root = defusedxml.ElementTree.fromstring(content, forbid_dtd=True)
            groups = {str(group.tag): {str(e.tag): e.text or "" for e in group} for group in root}
        elif name.lower().endswith(".json"):
            (outer,) = json.loads(content).values()
            groups = {group: {key: str(value) for key, value in fields.items()} for group, fields in outer.items()}
        else:
            groups = parse_odl(content.decode("utf-8", errors="replace"))
    except (
        ParseError,
        DefusedXmlException,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        RecursionError,
    ) as error:
        raise SceneError(f"{name}: not the MTL of a Landsat product: {error}") from error
    if not any(groups.values()):
        raise SceneError(f"{name}: the MTL contains no values")
    return groups


def parse_odl(text: str) -> dict[str, dict[str, str]]:
    """Parse the lines `GROUP = NAME`, `FIELD = VALUE` and `END_GROUP = NAME` of an MTL in the form of text."""
    groups: dict[str, dict[str, str]] = {}
    group = ""
    for line in text.splitlines():
        key, equals, value = (part.strip() for part in line.partition("="))
        if equals and key == "GROUP":
            group = value
        elif equals and key != "END_GROUP":
            groups.setdefault(group, {})[key] = value.strip('"')
    return groups


def read_time(fields: Mapping[str, str], day: str) -> datetime | None:
    """Time at the centre of the scene, UTC, or else the day in the name of the product, `YYYYMMDD`, at midnight.

    None if neither is known.
    """
    for text in (f"{fields.get('DATE_ACQUIRED')}T{fields.get('SCENE_CENTER_TIME')}", day):
        try:
            time = datetime.fromisoformat(text)
        except ValueError:
            continue
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    return None


def find_scale(
    part: str, level: str, parameters: Mapping[str, str], fields: Mapping[str, str]
) -> tuple[float, float] | None:
    """Scale and offset of a band such as `SR_B4`; None if they are not known.

    Level 1 states the reflectance without the angle of the sun: it is divided by the sine of the sun's elevation.
    """
    kind, _, band = part.rpartition("_") if part.startswith("S") else ("", "", part)
    key = f"REFLECTANCE_{{}}_BAND_{band[1:]}" if kind != "ST" else f"TEMPERATURE_{{}}_BAND_{part}"
    scale, offset = (to_number(parameters.get(key.format(name))) for name in ("MULT", "ADD"))
    if scale is None or offset is None:
        return LEVEL_2_SCALES.get(kind)
    if level == "2":
        return scale, offset
    elevation = to_number(fields.get("SUN_ELEVATION"))
    if elevation is None or not 0 < elevation <= 90:
        return None
    sine = math.sin(math.radians(elevation))
    return scale / sine, offset / sine
