"""Clouds as polygons: the cloud masks of Sentinel-2 level 1C before baseline 04.00, which are GML.

They are read like an image that lies exactly on a band of the scene, with the type of cloud as the value of a pixel.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from defusedxml import DefusedXmlException
from pyproj.exceptions import ProjError
from rasterio.features import rasterize
from rasterio.windows import Window
from shapely.errors import ShapelyError

from geokr.crs import transformer
from geokr.storage import inputs
from pipeline.geometry.sensor import Georeferenced
from pipeline.scenes import scratch
from pipeline.scenes.archive import ARCHIVE_ERRORS
from pipeline.scenes.scene import Image, SceneError

CLOUD_TYPES = {"OPAQUE": 1, "CIRRUS": 2}
"""Type of a cloud in the file -> value of its pixels. 0 is clear."""
MAX_BYTES = 64 << 20
"""A file with more bytes is refused: real ones have some megabytes at most."""

GML = "{http://www.opengis.net/gml/3.2}"
EOP = "{http://www.opengis.net/eop/2.0}"


def rasterize_clouds(image: Image, window: Window, shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The types of clouds, see CLOUD_TYPES, in a window of an image: (row, col) of `shape`, 0 where it is clear.

    A pixel has the cloud at its centre. Raises SceneError naming the file if it cannot be read.
    """
    if not isinstance(image.model, Georeferenced):
        raise ValueError(f"{image.path}: clouds lie on a map, but the image does not")
    try:
        state = inputs.stat(scratch.containing_file(image.path))
    except OSError as error:
        raise SceneError(f"{image.path}: cannot be read: {error}") from error
    clouds = read_clouds(image.path, image.model.crs, state)
    if not clouds:
        return np.zeros(shape, np.uint8)
    pixel = Affine.scale(window.width / shape[1], window.height / shape[0])
    transform = Affine(*image.model.transform) @ Affine.translation(window.col_off, window.row_off) @ pixel
    pixels: npt.NDArray[np.uint8] = rasterize(clouds, shape, transform=transform, dtype="uint8")
    return pixels


@lru_cache(maxsize=8)  # the blocks of a scene need the same polygons
def read_clouds(path: str, crs: str, _state: inputs.Stat) -> Sequence[tuple[shapely.Polygon, int]]:
    """The clouds in a file: polygons in a CRS, with the value of their type. Empty if there are none.

    Raises SceneError naming the file if it cannot be read, is broken, or has entities.
    """
    clouds = []
    try:
        root: Element = defusedxml.ElementTree.fromstring(read_content(path), forbid_dtd=True)
        if root.tag != f"{EOP}Mask":
            raise ValueError(f"its root is {str(root.tag).rpartition('}')[2]}, expected Mask")
        stated = next((name for element in root.iter() if (name := element.get("srsName"))), crs)
        for feature in root.iter(f"{EOP}MaskFeature"):
            kind = (feature.findtext(f"{EOP}maskType") or "").strip().upper()
            if kind not in CLOUD_TYPES:
                raise ValueError(f"it has a mask of type {kind!r}, expected {' or '.join(CLOUD_TYPES)}")
            for element in feature.iter(f"{GML}Polygon"):
                outline = shapely.transform(
                    parse_polygon(element), transformer(stated, crs).transform, interleaved=False
                )
                clouds.append((outline, CLOUD_TYPES[kind]))
    except SceneError:
        raise
    except (ParseError, DefusedXmlException, ProjError, ShapelyError, ValueError, LookupError) as error:
        raise SceneError(f"{path}: not the cloud mask of a Sentinel-2 product: {error}") from error
    return clouds


def parse_polygon(element: Element) -> shapely.Polygon:
    """A polygon with its holes. Raises ValueError."""
    rings = {
        side: [parse_ring(ring) for ring in element.iterfind(f"{GML}{side}/{GML}LinearRing")]
        for side in ("exterior", "interior")
    }
    if len(rings["exterior"]) != 1:
        raise ValueError("a polygon has no outline")
    return shapely.Polygon(rings["exterior"][0], rings["interior"])


def parse_ring(ring: Element) -> npt.NDArray[np.float64]:
    """The corners of a ring: (corner, 2) float64, x and y. Raises ValueError."""
    positions = ring.find(f"{GML}posList")
    if positions is None:
        raise ValueError("a polygon has no positions")
    numbers = [float(text) for text in (positions.text or "").split()]
    dimension = int(positions.get("srsDimension", "2"))
    if dimension not in (2, 3) or len(numbers) % dimension or len(numbers) < 3 * dimension:
        raise ValueError(f"a polygon of {len(numbers)} coordinates of dimension {dimension} is none")
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a coordinate is no finite number")
    return np.array(numbers).reshape(-1, dimension)[:, :2]


def read_content(path: str) -> bytes:
    """The content of a file at any address, or of a member of an archive. Raises SceneError naming it."""
    try:
        with scratch.open_content(path) as (source, size):
            if size > MAX_BYTES:
                raise SceneError(f"{path}: {size} bytes are too many for a cloud mask")
            return source.read(MAX_BYTES)
    except SceneError:
        raise
    except ARCHIVE_ERRORS as error:
        raise SceneError(f"{path}: cannot be read: {error or type(error).__name__}") from error
