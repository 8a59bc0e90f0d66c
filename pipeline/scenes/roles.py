"""What a file is that is no image of a scene: by its name, and by what the header of an image says."""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

from pyproj import CRS
from rasterio.enums import ColorInterp

from geokr.landcover.products import Product, load_products

Role = str
"""`preview`, `mask`, `elevation`, `land cover`, `metadata` ...: a word for what a file holds."""

START, END = r"(?:^|[^a-z0-9])", r"(?=[^a-z0-9]|\d*$)"
"""A word begins after, and ends before, anything but a letter or digit. Digits may close a name: `srtm30`."""
PREVIEW = re.compile(
    f"{START}(?:browse|thumb|thumbnail|preview|quicklook|quick_look|ql|pvi|overview){END}", re.IGNORECASE
)
"""Names of pictures that show a scene in little."""
SINGLE_BAND = {
    "mask": (
        r"mask|[a-z]+mask|udm2?|qa|qa\d+|bqa|qa_?(?:pixel|radsat|aerosol)|pixel_qa|radsat_qa|aerosol_qa|scl|"
        r"msk_[a-z]+|cldprb|snwprb|clouds?|shadows?|cfmask|fmask|validity|datamask|quality"
    ),
    "elevation": (
        r"dem|dsm|dtm|mdt|srtm(?:gl\d)?|astgtm(?:v\d+)?|gdem|alos_?world3d|aw3d\w*|gmted\d*|etopo\d*|gebco|hgt|"
        r"elevation|heights?|geoid|egm(?:96|2008|08)|slope|aspect|hillshade"
    ),
    "land cover": r"land_?cover|land_?use|lulc|lccs|lc100",
}  # fmt: skip
"""Role -> words in the names of images of one band that have no measurements of radiance."""
WORDS = {role: re.compile(f"{START}(?:{words}){END}", re.IGNORECASE) for role, words in SINGLE_BAND.items()}
ANY_BANDS = re.compile(f"{START}udm2?{END}", re.IGNORECASE)
"""Names of masks that may have several bands: Planet's usable data masks."""
METRES_AND_FEET = ("m", "metre", "metres", "meter", "meters", "ft", "foot", "feet", "us survey foot", "dm", "cm")
"""Units of a band with heights, in lower case."""

SUFFIXES = {
    "metadata": (".xml", ".txt", ".met", ".mtl", ".imd", ".rpb", ".rpc", ".json", ".geojson", ".yaml", ".yml", ".csv",
                 ".html", ".htm", ".til", ".att", ".eph", ".ini", ".log", ".md", ".hdr", ".safe", ".xsd", ".dim"),
    "document": (".pdf", ".doc", ".docx", ".xls", ".xlsx", ".rtf", ".ppt", ".pptx"),
    "picture": (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".svg"),
    "georeference": (".tfw", ".tifw", ".tiffw", ".jgw", ".pgw", ".wld", ".prj", ".aux", ".gcp"),
    "overviews": (".ovr", ".rrd"),
    "mask": (".msk",),
    "checksum": (".md5", ".sha1", ".sha256", ".sig", ".asc"),
    "vectors": (".shp", ".shx", ".dbf", ".sbn", ".sbx", ".cpg", ".qix", ".kml", ".kmz", ".gpkg", ".gml", ".parquet"),
    "program": (".py", ".sh", ".bat", ".exe", ".ipynb", ".qgz", ".qgs", ".mxd", ".style", ".qml", ".lyr"),
    "model": (".pt", ".pth", ".ckpt", ".safetensors", ".onnx"),
    "archive": (".rar", ".7z", ".bz2", ".xz", ".gz", ".z", ".zst", ".iso"),
}  # fmt: skip
"""Role -> suffixes of files that hold no pixels of a scene, in lower case."""
HINTS = {
    "archive": "unpack it, or pack its files as .tar.gz, .tar or .zip",
    ".dat": "pixels alone; it is read in a folder, if its ENVI header, .hdr, lies beside it",
    ".vrt": "a mosaic; it is read in a folder, not in an archive",
    ".nc": "NetCDF; it is read in a folder, not in an archive",
    ".h5": "HDF5; it is read in a folder, not in an archive",
    ".hdf": "a container; convert the layer to be used: `gdalinfo FILE` lists them for `gdal_translate -of COG`",
    ".hgt": "heights; give it as --dem",
    ".ntf": "a raster of another format; convert it with `gdal_translate -of COG`",
}  # fmt: skip
"""Role or suffix -> what to do with such a file so that it is used."""


@lru_cache(maxsize=1)
def shipped_products() -> list[Product]:
    """The land-cover products whose names of sheets are known."""
    return load_products()


def find_sheet_product(name: str) -> str:
    """The product of which an image has the name of a sheet; empty if it has none's."""
    file = PurePosixPath(name).name
    return next((product.name for product in shipped_products() if product.match(file)), "")


def no_imagery(name: str, file: Any) -> tuple[Role, str] | None:
    """Why an open image holds no measurements of a scene: a role, and a clause for a sentence. None if it may.

    name: its path. file: an open rasterio dataset. The name alone decides only where one band, or a kind of mask that
    is known to have more, agrees with it.
    """
    stem = PurePosixPath(name).stem
    one_band = file.count == 1
    if PREVIEW.search(stem):
        return "preview", "its name is that of a picture that shows a scene in little"
    if ANY_BANDS.search(stem):
        return "mask", "its name is that of a mask"
    if file.tags(1, ns="IMAGE_STRUCTURE").get("NBITS") == "1":
        return "mask", "its pixels have one bit"
    if not one_band:
        return None
    if product := find_sheet_product(name):
        return "land cover", f"its name is that of a sheet of {product}; give it with --landcover"
    if file.colorinterp[0] == ColorInterp.palette:
        return "classes", "its pixels are indices into a table of colours, not measurements"
    for role, words in WORDS.items():
        if word := words.search(stem):
            return role, f"its name says {word[0].strip('-_. ')!r}, and it has one band"
    if has_heights(file):
        return "elevation", "its values are heights; give it as --dem"
    return None


def has_heights(file: Any) -> bool:
    """Whether the band of an open image is said to hold heights, by its unit or its vertical reference system."""
    unit = (file.units[0] or "").strip().lower()
    if unit in METRES_AND_FEET:
        return True
    return file.crs is not None and len(CRS.from_user_input(file.crs).axis_info) == 3


TILE = re.compile(r"_R\d+C\d+(?:[-_].*)?$", re.IGNORECASE)
"""Names of tiles of Maxar and Airbus: `21JUN01-M1BS_R1C2-012345_P001`, `IMG_PHR1A_R1C2`."""
SERIES = re.compile(r"(?:gf|zy|hj|cb|sv|bj)-?\d", re.IGNORECASE)
"""Beginnings of the names of Chinese satellites."""
NAME_PARTS = (
    ("the sensor, such as PMS1", r"[A-Z]+\d*"),
    ("the longitude, such as E69.4", r"[EW]\d+(\.\d+)?"),
    ("the latitude, such as N33.3", r"[NS]\d+(\.\d+)?"),
    ("the date, such as 20220624", r"\d{8}"),
    ("the level and number, such as L1A0006547030", r"L\d[A-Z]?\d+"),
)
"""What follows the satellite in the name of a Gaofen image, separated by `_`: in words, and as a pattern."""


def nearest_form(name: str) -> str:
    """What an image without georeference lacks for the forms that it comes nearest to, for a sentence."""
    stem = PurePosixPath(name).stem
    if TILE.search(stem):
        return (
            "it is a tile of a larger image, as its name says, whose RPC is that of the whole; join the tiles: "
            "`gdal_translate PRODUCT.TIL whole.tif`, or of DIM_PRODUCT.XML"
        )
    if SERIES.match(stem):
        parts = re.sub(r"-(?:(?:mss|pan|mux|pms)\d*|\d)$", "", stem, flags=re.IGNORECASE).split("_")[1:]
        for k, (words, pattern) in enumerate(NAME_PARTS):
            if k >= len(parts) or not re.fullmatch(pattern, parts[k], re.IGNORECASE):
                found = f"has {parts[k]!r}" if k < len(parts) else "ends"
                return f"a Gaofen image has {words}, as part {k + 2} of its name, where this one {found}"
    return (
        "a GeoTIFF needs a CRS and a transform (`gdal_translate -a_srs EPSG:32648 -a_ullr WEST NORTH EAST SOUTH`), "
        "a raw image a name such as GF1_PMS1_E69.4_N33.3_20220624_L1A0006547030-MSS1.tiff, with .xml and .rpb"
    )


def describe_members(names: Sequence[str]) -> str:
    """What an archive without images contains, for the end of a sentence; empty for an empty one."""
    if not names:
        return ""
    role, reason = next(
        ((role, reason) for name in names for role, reason in [describe_file(name)] if reason), describe_file(names[0])
    )
    example = next(name for name in names if describe_file(name) == (role, reason))
    more = f"{len(names)} other files, such as " if len(names) > 1 else ""
    return f", but {more}{example}" + (f" ({reason})" if reason else "")


def describe_file(name: str) -> tuple[Role, str]:
    """What a file is that no scene or map was read from: a role and, if it helps, what to do; by its name alone."""
    path = PurePosixPath(name)
    lower, suffix = path.name.lower(), path.suffix.lower()
    if lower.startswith(".") or lower in ("thumbs.db", "desktop.ini") or lower.endswith(("~", ".partial", ".part")):
        return "hidden", "a hidden or unfinished file"
    if suffix in SUFFIXES["picture"]:
        return "preview", "a picture without georeference"
    for role, suffixes in SUFFIXES.items():
        if suffix in suffixes:
            return role, HINTS.get(role, "")
    if suffix in HINTS:
        return "other format", HINTS[suffix]
    return "unknown", ""
