"""Cameras of DIMAP, the form in which Airbus delivers Pleiades, SPOT 6 and 7, and Pleiades Neo as raw images."""

import re
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
from defusedxml import DefusedXmlException

from pipeline.geometry.sensor import RPC
from pipeline.scenes.gaofen import RPC_LISTS, RPC_NUMBERS
from pipeline.scenes.scene import SceneError

TILE = re.compile(r"_R(\d+)C(\d+)$", re.IGNORECASE)
"""End of the name of a tile of an image: row and column, counted from 1."""
MODELS = {"Inverse_Model": 1.0, "GroundtoImage_Values": 0.5}
"""Element with the coefficients from ground to image -> image coordinates of the centre of the first pixel, px: those
of DIMAP 2, and of DIMAP 3 for Pleiades Neo."""


def camera_files(stem: str) -> list[str]:
    """Possible names of the camera of an image `IMG_..._R1C1`, given its path without suffix.

    The images of Pleiades Neo are in two files, of three bands each, which may share a camera.
    """
    folder, _, name = stem.rpartition("/")
    if not name.upper().startswith("IMG_"):
        return []
    product = TILE.sub("", name[4:])
    names = dict.fromkeys((product, re.sub(r"_(?:RGB|NED|P)$", "", product, flags=re.IGNORECASE)))
    return [f"{folder}/RPC_{name}.xml" if folder else f"RPC_{name}.xml" for name in names]


def parse_camera(name: str, content: bytes) -> RPC:
    """The camera in an `RPC_*.XML`. Raises SceneError naming the file and the field at fault."""
    root = parse_document(name, content)
    for model, first_pixel in MODELS.items():
        coefficients, validity = root.find(f".//{model}"), root.find(".//RFM_Validity")
        if coefficients is not None and validity is not None:
            line, samp, *others = (read_number(name, validity, field) for field in RPC_NUMBERS)
            lists = (tuple(read_number(name, coefficients, f"{key}_{k}") for k in range(1, 21)) for key in RPC_LISTS)
            fields: list[Any] = [line - first_pixel, samp - first_pixel, *others, *lists]
            try:
                return RPC(*fields)
            except ValueError as error:
                raise SceneError(f"{name}: {error}") from error
    raise SceneError(f"{name}: it has no model from ground to image")


def parse_document(name: str, content: bytes) -> Element:
    """The root of an XML. Raises SceneError naming the file if it is none."""
    try:
        root: Element = defusedxml.ElementTree.fromstring(content, forbid_dtd=True)
        return root
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise SceneError(f"{name}: not an XML: {error}") from error


def read_number(name: str, parent: Element, field: str) -> float:
    """The number in a field. Raises SceneError naming the file and the field if there is none."""
    text = parent.findtext(field)
    if text is None:
        raise SceneError(f"{name}: {field} is missing")
    try:
        return float(text)
    except ValueError as error:
        raise SceneError(f"{name}: {field} is {text[:40]!r}, expected a number") from error


def shift_to_tile(rpc: RPC, image: str, product: tuple[str, bytes] | None) -> RPC:
    """The camera of a tile, given that of the whole image.

    image: name of the tile; of an image that is none, the camera is returned as it is. product: name and content of the
    `DIM_*.XML` beside it, which has the size of the tiles; None if there is none. Raises SceneError if the size is not
    known.
    """
    tile = TILE.search(PurePosixPath(image).stem)
    row, col = (int(number) - 1 for number in tile.groups()) if tile else (0, 0)
    if (row, col) == (0, 0):
        return rpc
    size = None if product is None else parse_document(*product).find(".//NTILES_SIZE")
    rows, cols = (0, 0) if size is None else (to_size(size.get(name)) for name in ("nrows", "ncols"))
    if not (rows and cols):
        lacking = "there is no DIM_*.XML beside it with" if product is None else f"{product[0]} does not say"
        raise SceneError(f"{image}: a tile of a larger image, and {lacking} the size of the tiles")
    return replace(rpc, line_off=rpc.line_off - row * rows, samp_off=rpc.samp_off - col * cols)


def to_size(text: str | None) -> int:
    """A number of pixels; 0 if it is none."""
    return int(text) if text and text.isdecimal() else 0
