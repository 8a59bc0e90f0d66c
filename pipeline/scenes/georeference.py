"""Where an image lies, as text files beside it say: world files, `.prj`, and GDAL's `.aux.xml`."""

from collections.abc import Mapping

from affine import Affine
from pyproj import CRS
from pyproj.exceptions import CRSError

from pipeline.scenes.pam import parse_pam
from pipeline.scenes.scene import SceneError


def parse_world_file(name: str, content: bytes) -> Affine:
    """The transform from pixel corners, of the six numbers of a world file, which place the centre of the first pixel.

    Raises SceneError naming the file.
    """
    try:
        a, d, b, e, c, f = (float(number.replace(",", ".")) for number in content.decode("utf-8-sig").split())
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


def read_georeference(
    beside: Mapping[str, str], files: Mapping[str, bytes | None]
) -> tuple[str | None, Affine | None, tuple[str, ...]]:
    """CRS, as WKT, and transform that files beside an image state, None for what they do not, and the files used.

    beside: kind -> name of the files beside the image: see `image_files.metadata_files`. Raises SceneError naming a
    file that cannot be used.
    """
    used = []
    pam = parse_pam(files[beside["aux"]] if "aux" in beside else None)
    crs, transform = pam.crs, pam.transform
    if crs or transform:
        used.append(beside["aux"])
    if transform is None and "world" in beside:
        transform = parse_world_file(beside["world"], files[beside["world"]] or b"")
        used.append(beside["world"])
    if crs is None and "prj" in beside:
        crs = parse_prj(beside["prj"], files[beside["prj"]] or b"")
        used.append(beside["prj"])
    return crs, transform, tuple(used)
