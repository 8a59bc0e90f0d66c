"""Where an image lies, as text files beside it say: world files, `.prj`, and GDAL's `.aux.xml`."""

from collections.abc import Mapping

from affine import Affine
from defusedxml import DefusedXmlException, ElementTree
from pyproj import CRS
from pyproj.exceptions import CRSError

from pipeline.scenes.scene import SceneError


def parse_world_file(name: str, content: bytes) -> Affine:
    """The transform from pixel corners, of the six numbers of a world file, which place the centre of the first pixel.

    Raises SceneError naming the file.
    """
    try:
        a, d, b, e, c, f = (float(number.replace(",", ".")) for number in content.decode("ascii").split())
    except ValueError as error:
        raise SceneError(f"{name}: it should contain six numbers") from error
    transform = Affine(a, b, c, d, e, f)
    if transform.is_degenerate:
        raise SceneError(f"{name}: its six numbers are no transform")
    return transform @ Affine.translation(-0.5, -0.5)


def parse_prj(name: str, content: bytes) -> str:
    """The CRS of a `.prj` file, as WKT. Raises SceneError naming the file."""
    try:
        return str(CRS.from_user_input(content.decode("utf-8-sig").strip()).to_wkt())
    except (UnicodeDecodeError, CRSError) as error:
        raise SceneError(f"{name}: not the text of a coordinate system") from error


def parse_aux(content: bytes) -> tuple[str | None, Affine | None]:
    """The CRS, as WKT, and the transform in GDAL's `.aux.xml`; None for what it does not say in a usable way."""
    crs, transform = None, None
    try:
        root = ElementTree.fromstring(content)
        if text := root.findtext("SRS"):
            crs = str(CRS.from_user_input(text).to_wkt())
        if text := root.findtext("GeoTransform"):
            transform = Affine.from_gdal(*map(float, text.split(",")))
    except (ElementTree.ParseError, DefusedXmlException, CRSError, ValueError, TypeError):
        pass
    return crs, transform


def read_georeference(
    beside: Mapping[str, str], files: Mapping[str, bytes | None]
) -> tuple[str | None, Affine | None, tuple[str, ...]]:
    """CRS, as WKT, and transform that files beside an image state, None for what they do not, and the files used.

    beside: kind -> name of the files beside the image: see `image_files.metadata_files`. Raises SceneError naming a
    file that cannot be used.
    """
    used = []
    crs, transform = parse_aux(files[beside["aux"]] or b"") if "aux" in beside else (None, None)
    if crs or transform:
        used.append(beside["aux"])
    if transform is None and "world" in beside:
        transform = parse_world_file(beside["world"], files[beside["world"]] or b"")
        used.append(beside["world"])
    if crs is None and "prj" in beside:
        crs = parse_prj(beside["prj"], files[beside["prj"]] or b"")
        used.append(beside["prj"])
    return crs, transform, tuple(used)
