"""Names of bands: those that sensors and collections use, and the common names that STAC gives to the same bands."""

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

Place = TypeVar("Place", bound=Hashable)

SENTINEL_2 = {
    "b1": "coastal", "b2": "blue", "b3": "green", "b4": "red", "b5": "rededge071", "b6": "rededge075",
    "b7": "rededge078", "b8": "nir", "b8a": "nir08", "b9": "nir09", "b10": "cirrus", "b11": "swir16", "b12": "swir22",
    "swir_2": "swir16", "swir_3": "swir22",
}  # fmt: skip
OLI = {
    "b1": "coastal", "b2": "blue", "b3": "green", "b4": "red", "b5": "nir08", "b6": "swir16", "b7": "swir22",
    "b8": "pan", "b9": "cirrus", "b10": "lwir11", "b11": "lwir12", "swir_1": "swir16", "swir_2": "swir22",
}  # fmt: skip
TM = {
    "b1": "blue", "b2": "green", "b3": "red", "b4": "nir08", "b5": "swir16", "b6": "lwir", "b6_vcid_1": "lwir",
    "b6_vcid_2": "lwir_high_gain", "b7": "swir22", "b8": "pan", "swir_1": "swir16", "swir_2": "swir22",
}  # fmt: skip
"""Thematic Mapper of Landsat 4 and 5, and Enhanced Thematic Mapper of Landsat 7."""
MSS = {"b1": "green", "b2": "red", "b3": "nir08", "b4": "nir09"}
"""Multispectral Scanner of Landsat 4 and 5."""
LANDSAT = {"4": TM, "5": TM, "7": TM, "8": OLI, "9": OLI}
"""Bands of the main sensor of each Landsat."""
VARIANTS = {
    "coastal_aerosol": "coastal", "red_edge_1": "rededge071", "red_edge_2": "rededge075", "red_edge_3": "rededge078",
    "rededge1": "rededge071", "rededge2": "rededge075", "rededge3": "rededge078", "nir_1": "nir", "nir_2": "nir08",
    "panchromatic": "pan",
}  # fmt: skip
"""Other spellings of common names."""
ALIASES = {"nir": ("nir08",), "nir08": ("nir",)}
"""Common name -> names that are accepted instead if no band has it: Landsat's near infrared is `nir08`."""

_PREFIX = re.compile(r"^(nbart?_|sr_|st_|oli_|tirs_|etm_|tm_|mss_)")
_SUFFIX = re.compile(r"(-jp2|_\d0m)$")
_NUMBER = re.compile(r"^(?:b|band_?)0?(\d{1,2}a?(?:_vcid_\d)?)$")
_SENTINEL_2 = re.compile(r"sentinel-?s?-?2|\bs2[a-d]?_|\bhls[.s]?s30|hls2-s30|ga_s2")
_LANDSAT_OLI = re.compile(r"\bhls[.l]?l30|hls2-l30")
_LANDSAT = re.compile(r"landsat[-_ ]?([4-9])|\bl[ceotm]0?([4-9])\d?_|ga_ls([4-9])")


def find_sensor(texts: Iterable[str]) -> Mapping[str, str]:
    """The bands of the sensor that the id, collection, platform and instruments of an item name; empty if unknown."""
    text = " ".join(texts).lower()
    if _SENTINEL_2.search(text):
        return SENTINEL_2
    if _LANDSAT_OLI.search(text):
        return OLI
    match = _LANDSAT.search(text)
    if match is None:
        return {}
    return MSS if re.search(r"\bmss\b|\blm0?[45]", text) else LANDSAT.get(match[1] or match[2] or match[3], {})


def to_common_name(name: str, sensor: Mapping[str, str]) -> str:
    """The common name of a band that is called `B04`, `nbart_red`, `blue-jp2`, `SR_B4` ...; the name if it has none."""
    plain = _SUFFIX.sub("", _PREFIX.sub("", name.lower().replace(" ", "_")))
    if number := _NUMBER.match(plain):
        plain = f"b{number[1]}"
    return sensor.get(plain) or VARIANTS.get(plain, plain)


def choose_bands(
    wanted: Sequence[str], bands: Mapping[Place, Sequence[str]], sensor: Mapping[str, str]
) -> dict[str, list[Place]]:
    """Find the bands that are wanted: name of a band -> the bands that can be it, one or more.

    wanted: common names, names that the product itself uses, or `NAME=PRODUCT'S NAME`, in which case NAME is the name
    of the band. bands: band -> its common name, empty if none is stated, and the names that the product uses. A common
    name that is stated comes before one that is known. Bands that are not found are left out.
    """
    stated: dict[str, list[Place]] = {}
    own: dict[str, list[Place]] = {}
    known: dict[str, list[Place]] = {}
    for band, (common_name, *names) in bands.items():
        stated.setdefault(common_name, []).append(band)
        for name in {name.lower() for name in names}:
            own.setdefault(name, []).append(band)
        for name in {to_common_name(name, sensor) for name in names}:
            known.setdefault(name, []).append(band)

    def find(name: str) -> list[Place]:
        for alias in (name, *ALIASES.get(name, ())):
            found = stated.get(alias) or own.get(alias.lower()) or known.get(to_common_name(alias, sensor))
            if found:
                return found
        return []

    chosen = {}
    for entry in wanted:
        name, _, product_name = entry.partition("=")
        chosen[name] = own.get(product_name.lower()) or find(name)
    return {name: candidates for name, candidates in chosen.items() if candidates}
