"""Landsat and Sentinel-2 products with the files, names and fields of real ones, and pixels that know their place.

A pixel of a red or blue band is 2000 + 20 x column, one of a green or near-infrared band 2000 + 20 x row, counted from
the corner of the product in pixels of its finest bands. Quality bands are clear unless they are given.
"""

import json
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine

from tests.deliveries import jp2, tiff

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


L2A = "S2A_MSIL2A_20221005T094041_N0400_R036_T32NLF_20221005T142454"
L1C = "S2B_MSIL1C_20210908T094029_N0301_R036_T32NLF_20210908T120248"
S2_SIDE = 120
"""Size of the 10 m bands, px."""
NATIVE = {"B02": 10, "B03": 10, "B04": 10, "B08": 10, "B01": 60, "B09": 60, "B10": 60}
"""Resolution of the bands that do not have 20 m, m."""
COLOURS = {"B02": "blue", "B03": "green", "B04": "red", "B08": "nir"}


def safe_images(product: str) -> dict[str, tuple[str, int]]:
    """Path of each image below the granule's IMG_DATA, without suffix -> what it holds, and its resolution, m."""
    sensing, tile = product.split("_")[2], product.split("_")[5]
    bands = [f"B{k:02d}" for k in range(1, 13)] + ["B8A"]
    if "L1C" in product:
        return {f"{tile}_{sensing}_{name}": (name, NATIVE.get(name, 20)) for name in bands} | {
            f"{tile}_{sensing}_TCI": ("TCI", 10)
        }
    found: dict[str, tuple[str, int]] = {}
    for gsd in (10, 20, 60):
        names = [name for name in bands if name not in ("B08", "B10") and NATIVE.get(name, 20) <= max(gsd, 10)]
        names += ["TCI", "AOT", "WVP"] + (["B08"] if gsd == 10 else ["SCL"])
        found |= {f"R{gsd}m/{tile}_{sensing}_{name}_{gsd}m": (name, gsd) for name in names}
    return found


def product_xml(product: str, offset: int | None) -> str:
    """The product's XML: general information of the PSD 14 schema."""
    level, sensing = product[7:10], product.split("_")[2]
    time = f"{sensing[:4]}-{sensing[4:6]}-{sensing[6:11]}:{sensing[11:13]}:{sensing[13:]}.024Z"
    boa = level == "L2A"
    quantification = '<QUANTIFICATION_VALUE unit="none">10000</QUANTIFICATION_VALUE>'
    if boa:
        quantification = (
            '<QUANTIFICATION_VALUES_LIST><BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE>'
            '<AOT_QUANTIFICATION_VALUE unit="none">1000.0</AOT_QUANTIFICATION_VALUE></QUANTIFICATION_VALUES_LIST>'
        )
    tag, group = (
        ("BOA_ADD_OFFSET", "BOA_ADD_OFFSET_VALUES_LIST") if boa else ("RADIO_ADD_OFFSET", "Radiometric_Offset_List")
    )
    offsets = "".join(f'<{tag} band_id="{k}">{offset}</{tag}>' for k in range(13))
    bands = "".join(
        f'<Spectral_Information bandId="{k}" physicalBand="{name}"><Spectral_Response><VALUES>0.1 1 0.1</VALUES>'
        "</Spectral_Response></Spectral_Information>"
        for k, name in enumerate(("B1", "B2"))
    )
    return f"""<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<n1:Level-{level[1:]}_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-{level[1:]}.xsd">
<n1:General_Info><Product_Info>
<PRODUCT_START_TIME>{time}</PRODUCT_START_TIME><PRODUCT_STOP_TIME>{time}</PRODUCT_STOP_TIME>
<PRODUCT_URI>{product}.SAFE</PRODUCT_URI><PROCESSING_LEVEL>Level-{level[1:]}</PROCESSING_LEVEL>
<PROCESSING_BASELINE>{product[28:30]}.{product[30:32]}</PROCESSING_BASELINE>
<Datatake datatakeIdentifier="G"><SPACECRAFT_NAME>Sentinel-{product[1:3]}</SPACECRAFT_NAME></Datatake>
</Product_Info><Product_Image_Characteristics>
<Special_Values><SPECIAL_VALUE_TEXT>NODATA</SPECIAL_VALUE_TEXT><SPECIAL_VALUE_INDEX>0</SPECIAL_VALUE_INDEX></Special_Values>
{quantification}{"" if offset is None else f"<{group}>{offsets}</{group}>"}
<Spectral_Information_List>{bands}</Spectral_Information_List>
</Product_Image_Characteristics></n1:General_Info>
<n1:Quality_Indicators_Info><Cloud_Coverage_Assessment>2.75</Cloud_Coverage_Assessment></n1:Quality_Indicators_Info>
</n1:Level-{level[1:]}_User_Product>
"""


def granule_xml(product: str, side: int, origin: tuple[float, float]) -> str:
    """The granule's XML: its place and the angles of the sun."""
    sizes = "".join(
        f'<Size resolution="{g}"><NROWS>{side * 10 // g}</NROWS><NCOLS>{side * 10 // g}</NCOLS></Size>'
        f'<Geoposition resolution="{g}"><ULX>{origin[0]:.0f}</ULX><ULY>{origin[1]:.0f}</ULY><XDIM>{g}</XDIM>'
        f"<YDIM>-{g}</YDIM></Geoposition>"
        for g in (10, 20, 60)
    )
    level = product[7:10]
    return f"""<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<n1:Level-{level[1:]}_Tile_ID xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/S2_PDI_Level-{level[1:]}_Tile_Metadata.xsd">
<n1:General_Info><TILE_ID>S2A_OPER_MSI_{level}_TL</TILE_ID><SENSING_TIME>2022-10-05T09:49:38.123456Z</SENSING_TIME>
</n1:General_Info><n1:Geometric_Info><Tile_Geocoding><HORIZONTAL_CS_NAME>WGS84 / UTM zone 32N</HORIZONTAL_CS_NAME>
<HORIZONTAL_CS_CODE>EPSG:32632</HORIZONTAL_CS_CODE>{sizes}</Tile_Geocoding>
<Tile_Angles><Mean_Sun_Angle><ZENITH_ANGLE unit="deg">25.5</ZENITH_ANGLE>
<AZIMUTH_ANGLE unit="deg">101.25</AZIMUTH_ANGLE></Mean_Sun_Angle>
<Mean_Viewing_Incidence_Angle bandId="0"><ZENITH_ANGLE unit="deg">4.1</ZENITH_ANGLE>
</Mean_Viewing_Incidence_Angle></Tile_Angles></n1:Geometric_Info></n1:Level-{level[1:]}_Tile_ID>
"""


Ring = list[tuple[float, float]]


def cloud_mask(*clouds: tuple[str, list[Ring]]) -> bytes:
    """The cloud mask of a level 1C product before baseline 04.00.

    clouds: type, and the outline followed by the holes as corners (x, y) in UTM zone 32 N. Without any, the file has no
    CRS either.
    """
    bounds = (
        '<gml:boundedBy><gml:Envelope srsName="urn:ogc:def:crs:EPSG:8.7:32632"><gml:lowerCorner>0 0</gml:lowerCorner>'
        "<gml:upperCorner>1 1</gml:upperCorner></gml:Envelope></gml:boundedBy>"
    )
    features = ""
    for kind, rings in clouds:
        texts = [" ".join(f"{x:.0f} {y:.0f}" for x, y in (*ring, ring[0])) for ring in rings]
        sides = "".join(
            f'<gml:{side}><gml:LinearRing><gml:posList srsDimension="2">{text}</gml:posList></gml:LinearRing>'
            f"</gml:{side}>"
            for side, text in zip(("exterior", *["interior"] * len(texts)), texts, strict=False)
        )
        features += (
            f'<eop:MaskFeature gml:id="a"><eop:maskType codeSpace="urn:gs2:S2PDGS:maskType">{kind}</eop:maskType>'
            f"<eop:extentOf><gml:Polygon>{sides}</gml:Polygon></eop:extentOf></eop:MaskFeature>"
        )
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<eop:Mask xmlns:eop="http://www.opengis.net/eop/2.0" xmlns:gml="http://www.opengis.net/gml/3.2" gml:id="M">
<gml:name>MSK_CLOUDS pixels mask from data-strip</gml:name>{bounds if clouds else ""}
<eop:maskMembers>{features}</eop:maskMembers></eop:Mask>""".encode()


def safe(
    product: str = L2A,
    side: int = S2_SIDE,
    origin: tuple[float, float] = (354_600.0, 31_500.0),
    offset: int | None = -1000,
    scl: Any = None,
) -> dict[str, bytes]:
    """The files of a SAFE folder: path -> content. offset: of every band; None leaves the list out, as before 04.00.

    scl: pixels (row, col) of the scene classification at 20 m; bare soil by default.
    """
    root = f"{product}.SAFE"
    granule = f"{root}/GRANULE/{product[7:10]}_{product.split('_')[5]}_A038058_20221005T094938"
    files: dict[str, bytes] = {}
    for path, (name, gsd) in safe_images(product).items():
        size, place = (
            side * 10 // gsd,
            {"crs": "EPSG:32632", "transform": Affine(gsd, 0, origin[0], 0, -gsd, origin[1])},
        )
        pixels: npt.NDArray[Any] = ramp(COLOURS.get(name, name), size, size, gsd // 10)
        if name == "SCL":
            pixels = np.full((1, size, size), 5, np.uint8) if scl is None or gsd != 20 else scl[None].astype(np.uint8)
        elif name == "TCI":
            pixels = np.repeat(pixels // 64, 3, axis=0).astype(np.uint8)
        files[f"{granule}/IMG_DATA/{path}.jp2"] = jp2(pixels, block=64, **place)
    mask = jp2(np.zeros((1, 2, 2), np.uint8))
    if offset is not None:
        size, place = side // 6, {"crs": "EPSG:32632", "transform": Affine(60, 0, origin[0], 0, -60, origin[1])}
        classes = np.zeros((3, size, size), np.uint8)  # opaque clouds, cirrus, snow
        classes[0, :, 0] = classes[1, 0] = classes[2, -1, -1] = 1
        files[f"{granule}/QI_DATA/MSK_CLASSI_B00.jp2"] = jp2(classes, block=64, **place)
    else:
        files[f"{granule}/QI_DATA/MSK_CLOUDS_B00.gml"] = cloud_mask()
    names = ("MSK_CLDPRB_20m", "MSK_DETFOO_B02", "MSK_QUALIT_B02", "T32NLF_20221005T094041_PVI")
    files |= {f"{granule}/QI_DATA/{name}.jp2": mask for name in names}
    return files | {
        f"{root}/MTD_MSI{product[7:10]}.xml": product_xml(product, offset).encode(),
        f"{root}/manifest.safe": b"<xfdu/>",
        f"{root}/INSPIRE.xml": b"<gmd/>",
        f"{root}/{product}-ql.jpg": b"\xff\xd8\xff\xe0",
        f"{root}/DATASTRIP/DS_ATOS_20221005T142454/MTD_DS.xml": b"<n1/>",
        f"{root}/HTML/UserProduct_index.html": b"<html/>",
        f"{root}/rep_info/S2_User_Product_Level-2A_Metadata.xsd": b"<xs/>",
        f"{granule}/MTD_TL.xml": granule_xml(product, side, origin).encode(),
        f"{granule}/AUX_DATA/AUX_ECMWFT": b"GRIB",
        f"{granule}/QI_DATA/GENERAL_QUALITY.xml": b"<Earth_Explorer_File/>",
    }
