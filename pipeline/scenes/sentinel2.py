"""Sentinel-2 products as the Copernicus programme delivers them: SAFE folders, zipped or not, level 1C and 2A.

Names and fields are those of the Sentinel-2 Products Specification Document (S2-PDGS-TAS-DI-PSD), in the compact form
since 2016 and in the form before it, in which a product may have several granules. Each granule is a scene. Images that
were taken out of their SAFE folder are read by their names.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
from defusedxml import DefusedXmlException

from pipeline.scenes.archive import require_text
from pipeline.scenes.band_files import Files, Place, Product, to_number
from pipeline.scenes.scene import SceneError
from pipeline.scenes.sensor_bands import SENTINEL_2

IMAGE = re.compile(
    r"(?P<scene>.+)_(?P<part>B\d[\dA]|SCL|TCI|AOT|WVP|CLD|SNW|PVI)(?:_(?P<gsd>\d0)m)?\.(?:jp2|tiff?)", re.IGNORECASE
)
"""The name of an image, such as `T32TQM_20210601T101031_B02_10m.jp2`."""
LOOSE = re.compile(r"(?:L2A_|L1C_)?T\d\d[A-Z]{3}_(?P<time>\d{8}T\d{6})", re.IGNORECASE)
"""The part `scene` of the name of an image that is known by its name alone."""
PRODUCT_XML = re.compile(r"MTD_MSIL(?:1C|2A)\.xml|S2\w_(?:OPER|USER)_(?:PRD_)?MTD_SAFL(?:1C|2A)_.+\.xml", re.IGNORECASE)
GRANULE_XML = re.compile(r"MTD_TL\.xml|S2\w_(?:OPER|USER)_MTD_L(?:1C|2A)_TL_.+\.xml", re.IGNORECASE)
CLOUD_POLYGONS = re.compile(r"(?:S2\w_OPER_)?MSK_CLOUDS_(?:.+_)?B00(?:_MSIL1C)?\.gml", re.IGNORECASE)
"""The cloud mask of level 1C before baseline 04.00, in the compact form and the one before it."""
BAND_IDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
"""Bands in the order of `band_id` in a product's XML."""
QUANTIFICATION = ("BOA_QUANTIFICATION_VALUE", "L2A_BOA_QUANTIFICATION_VALUE", "QUANTIFICATION_VALUE")
OFFSETS = ("BOA_ADD_OFFSET", "RADIO_ADD_OFFSET")
"""Reflectance is (pixel + offset) / quantification. Products from before baseline 04.00 have no offsets."""
NATIVE = {"B2": "10", "B3": "10", "B4": "10", "B8": "10", "B1": "60", "B9": "60", "B10": "60"}
"""Resolution of the bands that do not have 20 m, m."""
LEVEL_2_LACKS = frozenset({"cirrus"})


def find_products(names: Sequence[str]) -> dict[str, list[str]]:
    """Group the files of Sentinel-2 products: see `band_files.Reader`. A SAFE folder has everything in it."""
    granules: dict[str, set[str]] = {}
    loose: dict[str, list[str]] = {}
    for name, folder, match in match_images(names):
        root, granule = split_path(folder)
        if granule and is_band(match) and "IMG_DATA" in folder:
            granules.setdefault(root, set()).add(granule)
        elif not granule and LOOSE.fullmatch(match["scene"]):
            loose.setdefault(loose_folder(folder) + match["scene"], []).append(name)
    products = {path: files for path, files in loose.items() if any(is_band(m) for _, _, m in match_images(files))}
    for name in names:
        folder, _, file = name.rpartition("/")
        safe = next((parent for parent in list_parents(folder) if parent in granules), None)
        if safe is not None:
            granule = split_path(folder)[1]
            for owner in [granule] if granule in granules[safe] else granules[safe]:
                products.setdefault(product_path(safe, owner, len(granules[safe])), []).append(name)
        elif PRODUCT_XML.fullmatch(file) or GRANULE_XML.fullmatch(file):
            beside = [path for path in products if path.rpartition("/")[0] == loose_folder(folder).rstrip("/")]
            if len(beside) == 1:
                products[beside[0]].append(name)
    return products


def find_folder(name: str) -> str:
    """The folder in which all files of a product lie, at any depth: see `band_files.Reader`."""
    folder, _, file = name.rpartition("/")
    root, granule = split_path(folder)
    if granule:
        return root
    return folder if PRODUCT_XML.fullmatch(file) or file.lower() == "manifest.safe" else ""


def match_images(names: Iterable[str]) -> Iterator[tuple[str, str, re.Match[str]]]:
    """The names of images, with their folder and the match."""
    for name in names:
        folder, _, file = name.rpartition("/")
        if match := IMAGE.fullmatch(file):
            yield name, folder, match


def is_band(match: re.Match[str]) -> bool:
    """Whether an image is a band of the sensor."""
    return match["part"][0] in "Bb"


def split_path(folder: str) -> tuple[str, str]:
    """The folder that contains `GRANULE`, and the granule's own below it; both empty outside of granules."""
    parts = folder.split("/")
    if "GRANULE" not in parts[:-1]:
        return "", ""
    k = parts.index("GRANULE")
    return "/".join(parts[:k]), parts[k + 1]


def list_parents(folder: str) -> Iterator[str]:
    """A folder and all folders above it, the empty one last."""
    while folder:
        yield folder
        folder = folder.rpartition("/")[0]
    yield ""


def loose_folder(folder: str) -> str:
    """The folder, with a slash, that contains a product outside of a SAFE folder: without `R10m`, `R20m` or `R60m`."""
    parent, _, last = folder.rpartition("/")
    folder = parent if re.fullmatch(r"R\d0m", last, re.IGNORECASE) else folder
    return f"{folder}/" if folder else ""


def product_path(root: str, granule: str, granules: int) -> str:
    """The path that stands for a granule: its SAFE folder's, without the suffix, or its own if there may be several."""
    if granules == 1 and root and not granule.upper().startswith("S2"):
        return re.sub(r"\.safe$", "", root, flags=re.IGNORECASE)
    return "/".join(filter(None, [root, "GRANULE", granule]))


def describe(files: Files) -> Product:
    """Describe a Sentinel-2 product by its names and, if it has them, its XMLs. Raises SceneError naming the file."""
    (path,) = find_products([*files])
    own = path.rpartition("/")[2]
    bands = [
        (name, match) for name, folder, match in match_images(files)
        if is_band(match) and ("IMG_DATA" in folder or not split_path(folder)[1])
    ]  # fmt: skip
    bands.sort(key=lambda band: (int(band[1]["gsd"] or 0), band[0]))  # the finest first
    product_xml, granule_xml = (find_file(files, pattern) for pattern in (PRODUCT_XML, GRANULE_XML))
    product = parse_xml(product_xml, files) if product_xml else None
    granule = parse_xml(granule_xml, files) if granule_xml else None
    fields = {key: text for root in (product, granule) if root is not None for key, text in unique_texts(root).items()}
    level_2 = "2A" in (product_xml or granule_xml).upper() or "MSIL2A" in own.upper() or any(m["gsd"] for _, m in bands)
    scales = {} if product is None else read_scales(product_xml, product)
    classes = [
        (int(match["gsd"] or 0), name) for name, _, match in match_images(files) if match["part"].upper() == "SCL"
    ]
    masks = sorted(name for name in files if name.rpartition("/")[2].upper() == "MSK_CLASSI_B00.JP2")
    clouds = sorted(name for name in files if CLOUD_POLYGONS.fullmatch(name.rpartition("/")[2]))
    quality = [(file, "SCL") for _, file in sorted(classes)]  # the best first
    quality += [*((file, "MSK_CLASSI") for file in masks), *((file, "MSK_CLOUDS") for file in clouds)]
    match = LOOSE.search(bands[0][1]["scene"])
    satellite = re.match(r"S2[A-D](?=_)", own)
    return Product(
        id=own,
        satellite=fields.get("SPACECRAFT_NAME") or (f"Sentinel-{satellite[0][1:]}" if satellite else "Sentinel-2"),
        sensor="MSI",
        acquired=read_time(
            fields.get("SENSING_TIME"), fields.get("PRODUCT_START_TIME"), match["time"] if match else None
        ),
        sensor_bands=SENTINEL_2,
        names={name: (match["part"], f"{match['part']}_{match['gsd']}m") for name, match in leave_out_coarse(bands)},
        lacking=LEVEL_2_LACKS if level_2 else frozenset(),
        scales={name: scales[key] for name, match in bands if (key := band_key(match)) in scales},
        places={} if granule is None else read_places(granule_xml, granule, bands),
        quality=quality[0] if quality else None,
        metadata=fields | stac_properties(fields, granule),
        texts=tuple(files[name] or b"" for name in (product_xml, granule_xml) if name),
    )


def find_file(files: Files, pattern: re.Pattern[str]) -> str:
    """The metadata file with a name that matches; empty if there is none."""
    found = (name for name in files if pattern.fullmatch(name.rpartition("/")[2]))
    return min(found, key=lambda name: (name.count("/"), name), default="")


def parse_xml(name: str, files: Files) -> Element:
    """Parse a metadata file. Raises SceneError naming it if it is empty, too large or broken, or has entities."""
    content = require_text(name, files)
    if not content.strip():
        raise SceneError(f"{name}: the file is empty")
    try:
        root: Element = defusedxml.ElementTree.fromstring(content, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise SceneError(f"{name}: not the XML of a Sentinel-2 product: {error}") from error
    return root


def unique_texts(root: Element) -> dict[str, str]:
    """Tag -> text of each tag that occurs once in a document. Those of bands and grids occur many times."""
    texts: dict[str, list[str]] = {}
    for element in root.iter():
        if text := (element.text or "").strip():
            texts.setdefault(str(element.tag).rpartition("}")[2], []).append(text)
    return {tag: values[0] for tag, values in texts.items() if len(values) == 1}


def read_scales(name: str, root: Element) -> dict[str, tuple[float, float]]:
    """Band, as in BAND_IDS -> scale and offset. Empty if the XML does not state them.

    Raises SceneError naming the file if they are no numbers.
    """
    texts = unique_texts(root)
    quantification = next((texts[key] for key in QUANTIFICATION if key in texts), None)
    offsets = {element.get("band_id"): element.text for key in OFFSETS for element in root.iter(key)}
    baseline = re.match(r"\d\d", texts.get("PROCESSING_BASELINE", ""))
    if quantification is None or (not offsets and baseline and int(baseline[0]) >= 4):
        return {}
    try:
        scale = 1 / float(quantification)
        return {
            band: (scale, scale * float(offsets.get(str(k)) or 0))
            for k, band in enumerate(BAND_IDS)
            if not offsets or str(k) in offsets
        }
    except (ValueError, ZeroDivisionError) as error:
        raise SceneError(f"{name}: its quantification or offsets are no numbers: {error}") from error


def leave_out_coarse(bands: Sequence[tuple[str, re.Match[str]]]) -> Iterator[tuple[str, re.Match[str]]]:
    """The images of bands, without coarser ones of a band of 10 m that is not among those of the finest resolution.

    Otherwise a red band of 20 m would stand beside a green one of 10 m without a word.
    """
    finest = min(int(match["gsd"] or 0) for _, match in bands)
    complete = {band_key(match) for _, match in bands if int(match["gsd"] or 0) == finest}
    for name, match in bands:
        if band_key(match) in complete or NATIVE.get(band_key(match)) != "10":
            yield name, match


def band_key(match: re.Match[str]) -> str:
    """The name of a band in BAND_IDS."""
    part = match["part"].upper()
    return f"B{part[1:].lstrip('0')}"


def read_places(name: str, root: Element, bands: Iterable[tuple[str, re.Match[str]]]) -> dict[str, Place]:
    """File of a band -> where the granule's XML places it. Raises SceneError naming the XML if it has no numbers."""
    crs = root.findtext(".//HORIZONTAL_CS_CODE", "").strip()
    sizes, positions = (
        {element.get("resolution"): element for element in root.iter(tag)} for tag in ("Size", "Geoposition")
    )
    places = {}
    for file, match in bands:
        resolution = match["gsd"] or NATIVE.get(band_key(match), "20")
        size, position = sizes.get(resolution), positions.get(resolution)
        if not re.fullmatch(r"EPSG:\d{4,6}", crs) or size is None or position is None:
            continue
        try:
            width, height = (int(size.findtext(tag, "")) for tag in ("NCOLS", "NROWS"))
            x, y, dx, dy = (float(position.findtext(tag, "")) for tag in ("ULX", "ULY", "XDIM", "YDIM"))
        except ValueError as error:
            raise SceneError(f"{name}: the size or position at {resolution} m is no number: {error}") from error
        places[file] = Place(crs, (dx, 0.0, x, 0.0, dy, y), width, height)
    return places


def read_time(*texts: str | None) -> datetime | None:
    """The first of several times that can be parsed, UTC; None if there is none."""
    for text in texts:
        try:
            time = datetime.fromisoformat(text or "")
        except ValueError:
            continue
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    return None


def stac_properties(fields: Mapping[str, str], granule: Element | None) -> dict[str, str]:
    """Cloud cover and angles of the sun under the names of STAC's properties."""
    properties = {}
    if cover := fields.get("Cloud_Coverage_Assessment") or fields.get("CLOUDY_PIXEL_PERCENTAGE"):
        properties["eo:cloud_cover"] = cover
    sun = None if granule is None else granule.find(".//Mean_Sun_Angle")
    if sun is None:
        return properties
    zenith, azimuth = (to_number(sun.findtext(f"{name}_ANGLE")) for name in ("ZENITH", "AZIMUTH"))
    properties |= {} if zenith is None else {"view:sun_elevation": f"{90 - zenith:.9g}"}
    return properties | ({} if azimuth is None else {"view:sun_azimuth": f"{azimuth:.9g}"})
