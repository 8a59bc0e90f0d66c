"""A draft of a product's description, from the names and colours that a raster of classes carries."""

import re
import tempfile
from pathlib import Path, PurePosixPath

import numpy as np
import rasterio.shutil
from defusedxml import ElementTree
from rasterio.errors import RasterioIOError
from rasterio.windows import Window

from geokr.landcover.products import LandCoverError
from geokr.storage import rasters

SAMPLES = 16
"""Number of windows in which codes are looked for that have no name."""
SIDE = 1024
"""Side of such a window, px."""
MAX_CODES = 1000
"""A raster with more codes than this holds measurements, not classes."""
TEXT_TYPE = "2"
"""Type of the columns with text in GDAL's attribute tables."""


NAME_USAGE, VALUE_USAGES = "2", ("3", "5")
"""Usages of columns of GDAL's attribute tables: names, and values (lowest, or lowest and highest)."""
VALUE_NAMES, TEXT_NAMES = ("value", "code", "id"), ("class_name", "class_names", "classname", "label", "legend", "name")
"""Names of such columns without a usage, in lower case."""


def draft_description(path: str) -> list[str]:
    """Lines of a TOML file for `--legend` that describes a raster of classes; their meaning is left to be filled in.

    Codes are those that the raster names, and those in a sample of its cells. Raises LandCoverError if it cannot be
    read, or has no whole numbers or too many different ones.
    """
    try:
        with rasters.open_raster(path) as raster:
            if np.dtype(raster.dtypes[0]).kind not in "iu":
                raise LandCoverError(f"{path}: its cells are of type {raster.dtypes[0]}, expected integers")
            side = (min(SIDE, raster.height), min(SIDE, raster.width))
            steps = int(SAMPLES**0.5)
            codes = {
                int(code)
                for row in np.linspace(0, raster.height - side[0], steps).astype(int)
                for col in np.linspace(0, raster.width - side[1], steps).astype(int)
                for code in np.unique(raster.read(1, window=Window(col, row, side[1], side[0])))
            }
            nodata = raster.nodata
            colours = raster.colormap(1) if raster.colorinterp[0].name == "palette" else {}
        names = read_category_names(path)
    except RasterioIOError as error:
        raise LandCoverError(f"{path}: not a raster that can be read: {' '.join(str(error).split())}") from error
    if len(codes) > MAX_CODES:
        raise LandCoverError(f"{path}: a sample of its cells has {len(codes)} values, too many for classes")
    name = PurePosixPath(path).name
    stem = re.sub(r"[^a-z0-9]+", "_", PurePosixPath(path).stem.lower()).strip("_") or "mine"
    year = re.search(r"(?<!\d)(19[5-9]\d|20\d\d)(?!\d)", name)
    lines = [
        "# A draft. Fill in `to` of each code: a class of the taxonomy, shares of several, or ignore.",
        "# cultivated forest grassland shrubland wetland water tundra artificial bare snow_ice",
        f'name = "{stem}"',
        "codes = [",
    ]
    for code in sorted(codes | names.keys()):
        text = names.get(code, "").replace("\\", " ").replace('"', "'")
        to = "ignore" if code == nodata else ""
        colour = f"  # #{bytes(colours[code][:3]).hex()}" if code in colours else ""
        lines.append(f'  {{ code = {code}, name = "{text or code}", to = "{to}" }},{colour}')
    lines += ["]", "", "[[sheets]]", f"name = '^{re.escape(name)}$'"]
    lines += [f"year = {year[1] if year else 0}" + ("" if year else "  # fill in"), 'extent = "bounds"']
    return lines


def read_category_names(path: str) -> dict[int, str]:
    """Code -> name, as any format stores them for GDAL; empty if the raster names none."""
    with tempfile.TemporaryDirectory() as folder:
        mosaic = f"{folder}/names.vrt"  # GDAL writes there what it knows of the raster, whatever its format
        rasterio.shutil.copy(rasters.gdal_path(path), mosaic, driver="VRT")
        root = ElementTree.fromstring(Path(mosaic).read_bytes())
    band = root.find("VRTRasterBand[@band='1']")
    categories = band.findall("CategoryNames/Category")
    names = {code: name for code, category in enumerate(categories) if (name := (category.text or "").strip())}
    table = band.find("GDALRasterAttributeTable")
    if table is None:
        return names
    fields = [((field.findtext("Name") or "").lower(), field.findtext("Usage")) for field in table.findall("FieldDefn")]
    value = next((k for k, (name, usage) in enumerate(fields) if usage in VALUE_USAGES or name in VALUE_NAMES), None)
    text = next((k for k, (name, usage) in enumerate(fields) if usage == NAME_USAGE or name in TEXT_NAMES), None)
    if text is None:  # any text is better than none
        types = [field.findtext("Type") for field in table.findall("FieldDefn")]
        text = types.index(TEXT_TYPE) if TEXT_TYPE in types else None
    if text is None:
        return names
    for number, row in enumerate(table.findall("Row")):
        cells = [(cell.text or "").strip() for cell in row.findall("F")]
        if cells[text]:
            names[number if value is None else int(float(cells[value]))] = cells[text]
    return names
