"""Names of the bands of an image that no metadata file describes."""

import re
from collections.abc import Sequence

COLOURS = {
    "red": "red", "green": "green", "blue": "blue", "pan": "pan", "coastal": "coastal", "rededge": "red_edge",
    "nir": "nir",
}  # fmt: skip
"""Colour interpretation of GDAL -> name of the band."""
SYNONYMS = {
    "near_infrared": "nir", "near-infrared": "nir", "nearinfrared": "nir", "infrared": "nir", "panchromatic": "pan",
}  # fmt: skip
"""What people write in descriptions -> name of the band."""

NUMBERED = re.compile(r"(band|layer|channel)_?\d+")
"""Descriptions that drivers write of their own accord: `Band 1` of ENVI, `Layer_1` of ERDAS."""


def name_bands(descriptions: Sequence[str], colours: Sequence[str], own: Sequence[str] = ()) -> tuple[str, ...]:
    """Name the bands of an image, in the order of the file.

    descriptions, colours: description and colour interpretation of each band in the file, empty where it has none. own:
    names that the user gives to the bands of all images with as many bands. Without these, the names are the
    descriptions, if all bands have different ones; otherwise the colours, and `band_1` ... for bands without a colour.
    """
    if len(own) == len(descriptions):
        return tuple(own)
    described = [text.strip().lower().replace(" ", "_") for text in descriptions]
    described = ["" if NUMBERED.fullmatch(text) else SYNONYMS.get(text, text) for text in described]
    if all(described) and len(set(described)) == len(described):
        return tuple(described)
    coloured = [COLOURS.get(colour, "") for colour in colours]
    repeated = len(set(filter(None, coloured))) < len([*filter(None, coloured)])
    return tuple(f"band_{k}" if repeated or not name else name for k, name in enumerate(coloured, 1))
