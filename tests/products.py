"""Landsat and Sentinel-2 products with the files, names and fields of real ones, and pixels that know their place.

A pixel of a red or blue band is 2000 + 20 x column, one of a green or near-infrared band 2000 + 20 x row, counted from
the corner of the product in pixels of its finest bands. Quality bands are clear unless they are given.
"""

import json
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine

from tests.deliveries import tiff

LANDSAT = "LC08_L2SP_190060_20210601_20210608_02_T1"
SIDE = 90
"""Size of the reflective bands, px."""
CLEAR = 21824
"""QA_PIXEL of clear land in Landsat 8."""


def ramp(band: str, cols: int, rows: int, step: int = 1) -> npt.NDArray[np.uint16]:
    """A band's pixels (1, row, col) of `step` finest pixels each: see above."""
    row, col = np.mgrid[:rows, :cols]
    along = row if band in ("green", "nir") else col
    return (2000 + 20 * (along * step + (step - 1) / 2)).astype(np.uint16)[None]


def landsat_contents(product: str) -> dict[str, str]:
    """Suffix of each image of a product -> its common name, or `qa`, or `other`."""
    satellite, level = int(product[3]), product[5:7]
    oli = ("coastal", "blue", "green", "red", "nir", "swir16", "swir22")
    tm = ("blue", "green", "red", "nir", "swir16", "", "swir22")
    names = oli if satellite > 7 else tm
    bands = {f"B{k}": name for k, name in enumerate(names, 1) if name}
    if level == "L2":
        thermal = "ST_B10" if satellite > 7 else "ST_B6"
        other = (
            "ST_TRAD",
            "ST_URAD",
            "ST_DRAD",
            "ST_ATRAN",
            "ST_EMIS",
            "ST_EMSD",
            "ST_CDIST",
            "ST_QA",
            "SR_QA_AEROSOL",
        )
        contents = {f"SR_{key}": name for key, name in bands.items()} | {thermal: "thermal"}
    else:
        if satellite > 7:
            bands |= {"B8": "pan", "B9": "cirrus", "B10": "lwir11", "B11": "lwir12"}
        elif satellite == 7:
            bands |= {"B8": "pan", "B6_VCID_1": "lwir", "B6_VCID_2": "lwir_high_gain"}
        else:
            bands |= {"B6": "lwir"}
        contents, other = bands, ("VAA", "VZA", "SAA", "SZA")
    return contents | {"QA_PIXEL": "qa", "QA_RADSAT": "other"} | dict.fromkeys(other, "other")


def landsat_mtl(product: str) -> dict[str, dict[str, str]]:
    """The groups of an MTL: those that a scene depends on, in the order and with the fields of real ones."""
    satellite, level = int(product[3]), product[5:7]
    contents = landsat_contents(product)
    numbers = [
        suffix.rpartition("_B")[2].removeprefix("B") for suffix in contents if suffix[:4] not in ("ST_B", "QA_P")
    ]
    numbers = [number for number in numbers if number.isdecimal() and int(number) < 10]
    groups = {
        "PRODUCT_CONTENTS": {
            "ORIGIN": "Image courtesy of the U.S. Geological Survey", "LANDSAT_PRODUCT_ID": product,
            "PROCESSING_LEVEL": product[5:9], "COLLECTION_NUMBER": "02", "COLLECTION_CATEGORY": "T1",
            **{f"FILE_NAME_BAND_{n}": f"{product}_{'SR_' if level == 'L2' else ''}B{n}.TIF" for n in numbers},
        },
        "IMAGE_ATTRIBUTES": {
            "SPACECRAFT_ID": f"LANDSAT_{satellite}", "SENSOR_ID": "OLI_TIRS" if satellite > 7 else "TM",
            "WRS_PATH": "190", "WRS_ROW": "60", "DATE_ACQUIRED": "2021-06-01",
            "SCENE_CENTER_TIME": "09:46:12.1944860Z", "CLOUD_COVER": "1.55", "SUN_AZIMUTH": "42.91405951",
            "SUN_ELEVATION": "30.0", "EARTH_SUN_DISTANCE": "1.0140327",
        },
        "PROJECTION_ATTRIBUTES": {"MAP_PROJECTION": "UTM", "UTM_ZONE": "32", "ORIENTATION": "NORTH_UP"},
    }  # fmt: skip
    if level == "L2":
        groups["LEVEL2_SURFACE_REFLECTANCE_PARAMETERS"] = parameters("REFLECTANCE", numbers, "2.75e-05", "-0.2")
        thermal = ["ST_B10" if satellite > 7 else "ST_B6"]
        groups["LEVEL2_SURFACE_TEMPERATURE_PARAMETERS"] = parameters("TEMPERATURE", thermal, "0.00341802", "149.0")
        groups["LEVEL1_PROCESSING_RECORD"] = {"LANDSAT_PRODUCT_ID": product.replace("L2SP", "L1TP")}
    groups["LEVEL1_RADIOMETRIC_RESCALING"] = parameters("REFLECTANCE", numbers, "2.0000E-05", "-0.100000")
    return groups


def parameters(kind: str, bands: list[str], scale: str, offset: str) -> dict[str, str]:
    return {f"{kind}_MULT_BAND_{n}": scale for n in bands} | {f"{kind}_ADD_BAND_{n}": offset for n in bands}


def mtl_text(groups: dict[str, dict[str, str]]) -> str:
    """An MTL as text. Values other than numbers are in quotes, as real ones are."""
    lines = ["GROUP = LANDSAT_METADATA_FILE"]
    for group, fields in groups.items():
        quoted = {
            key: value if value[:1] in "-0123456789" and "Z" not in value else f'"{value}"'
            for key, value in fields.items()
        }
        lines += [
            f"  GROUP = {group}",
            *(f"    {key} = {value}" for key, value in quoted.items()),
            f"  END_GROUP = {group}",
        ]
    return "\n".join([*lines, "END_GROUP = LANDSAT_METADATA_FILE", "END", ""])


def mtl_xml(groups: dict[str, dict[str, str]]) -> str:
    parts = (
        f"<{group}>{''.join(f'<{key}>{value}</{key}>' for key, value in fields.items())}</{group}>"
        for group, fields in groups.items()
    )
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<LANDSAT_METADATA_FILE>{"".join(parts)}</LANDSAT_METADATA_FILE>'


def mtl_json(groups: dict[str, dict[str, str]]) -> str:
    return json.dumps({"LANDSAT_METADATA_FILE": groups})


def landsat(
    product: str = LANDSAT, side: int = SIDE, origin: tuple[float, float] = (353_685.0, 31_815.0), qa: Any = None
) -> dict[str, bytes]:
    """The files of a product: name -> content. Pixel centres are at multiples of 30 m, as in real ones."""
    files: dict[str, bytes] = {}
    for suffix, name in landsat_contents(product).items():
        size, gsd = (2 * side, 15) if name == "pan" else (side, 30)
        place = {"crs": "EPSG:32632", "transform": Affine(gsd, 0, origin[0], 0, -gsd, origin[1])}
        if name == "qa":
            pixels = np.full((1, size, size), CLEAR, np.uint16) if qa is None else qa[None].astype(np.uint16)
        elif name == "other":
            pixels = np.zeros((1, size, size), np.int16)
        else:
            pixels = ramp(name, size, size)
        files[f"{product}_{suffix}.TIF"] = tiff(pixels, compress="deflate", **place)
    groups = landsat_mtl(product)
    item = {"type": "Feature", "stac_version": "1.0.0", "id": f"{product}_SR", "properties": {}}
    asset = {"href": f"https://landsatlook.usgs.gov/data/{product}_SR_B4.TIF", "eo:bands": [{"common_name": "red"}]}
    return files | {
        f"{product}_MTL.txt": mtl_text(groups).encode(),
        f"{product}_MTL.xml": mtl_xml(groups).encode(),
        f"{product}_MTL.json": mtl_json(groups).encode(),
        f"{product}_ANG.txt": b"GROUP = FILE_HEADER\nEND_GROUP = FILE_HEADER\nEND\n",
        f"{product}_SR_stac.json": json.dumps(item | {"assets": {"red": asset}}).encode(),
        f"{product}_thumb_small.jpeg": b"\xff\xd8\xff\xe0",
    }
