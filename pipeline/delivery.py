"""Deliveries: the images and archives under a directory, and the scenes that they hold.

Whatever is wrong with a delivery ends in a Refusal, a sentence that names file and fault.
"""

import hashlib
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import shapely
from affine import Affine
from pyproj.exceptions import ProjError
from rasterio.errors import RasterioIOError

from geokr.crs import transformer
from pipeline import gaofen
from pipeline.ortho import open_image
from pipeline.scene import Image, Scene, SceneError
from pipeline.sensor import Floats, Georeferenced, SensorModel
from pipeline.terrain import Terrain

SUFFIXES = (".tif", ".tiff")
ARCHIVES = (".tar.gz", ".tgz", ".tar")
MAX_MEMBERS = 10_000
"""An archive with more members than this is no delivery."""
MAX_METADATA = 4 << 20
"""An XML or RPB with more bytes than this is none."""
WIDEST = 20.0
"""An image of more degrees of a great circle than this, some 2,200 km, is no scene."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that looked like a scene and cannot be used."""

    scene: str
    """The image's name, or the archive's."""
    reason: str
    """One word."""
    detail: str
    """One sentence that names file and fault."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One image and the metadata beside it, or an archive that holds such."""

    path: str
    """The image or the archive."""
    archive: bool


def deliveries(paths: Iterable[str | Path]) -> Iterator[Delivery]:
    """Images and archives under directories, in the order of their paths, each once; files may be named too.

    The paths are absolute: a worker elsewhere on a shared file system has another working directory.
    Raises FileNotFoundError for a path that does not exist.
    """
    seen: set[Path] = set()
    for path in sorted(Path(path).absolute() for path in paths):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or directory")
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            if file in seen:  # one of the paths leads into another
                continue
            seen.add(file)
            name = file.name.lower()
            if name.endswith(SUFFIXES):
                yield Delivery(str(file), archive=False)
            elif name.endswith(ARCHIVES):
                yield Delivery(str(file), archive=True)


def read_delivery(delivery: Delivery) -> list[Scene | Refusal]:
    """The scenes of a delivery, read from its metadata and the image's header; never raises for bad input."""
    try:
        files = archive_files(delivery.path) if delivery.archive else folder_files(Path(delivery.path))
    except (OSError, EOFError, tarfile.TarError, SceneError) as error:
        detail = str(error) if isinstance(error, SceneError) else f"{delivery.path}: cannot be unpacked: {error}"
        return [Refusal(Path(delivery.path).name, "unreadable", detail)]
    images = [name for name in files if name.lower().endswith(SUFFIXES)]
    if not images:
        return [Refusal(Path(delivery.path).name, "no_image", f"{delivery.path}: the archive holds no TIFF")]
    found: list[Scene | Refusal] = []
    for name in images:
        try:
            found.append(read_scene(name, files, delivery))
        except ValueError as error:  # a SceneError, or a value of the file that no scene can have
            detail = str(error) if isinstance(error, SceneError) else f"{name}: {error}"
            where = "" if delivery.path in detail else f"{delivery.path}: "  # members of an archive are named alone
            found.append(Refusal(PurePosixPath(name).stem, "unusable", where + detail))
    return found


def folder_files(image: Path) -> dict[str, bytes | None]:
    """An image and the metadata files beside it: path -> content, None for the image itself."""
    files: dict[str, bytes | None] = {str(image): None}
    stem = image.stem
    wanted = {f"{stem}.xml".lower(), f"{stem}.rpb".lower(), f"{stem.rpartition('-')[0]}.xml".lower()}
    for file in sorted(image.parent.iterdir()):
        if file.name.lower() in wanted and file.stat().st_size <= MAX_METADATA:
            files[str(file)] = file.read_bytes()
    return files


def archive_files(path: str) -> dict[str, bytes | None]:
    """The images and metadata files in an archive: member -> content, None for images. Nothing is unpacked to disk.

    Members that are no plain files, or whose names lead outside the archive, are passed over.
    """
    files: dict[str, bytes | None] = {}
    with tarfile.open(path, mode="r|*") as archive:
        for n, member in enumerate(archive):
            if n >= MAX_MEMBERS:
                raise SceneError(f"{path}: the archive has more than {MAX_MEMBERS} members, which no delivery has")
            name = member.name.removeprefix("./")
            if not member.isfile() or name.startswith("/") or ".." in PurePosixPath(name).parts:
                continue
            if name.lower().endswith(SUFFIXES):
                files[name] = None
            elif name.lower().endswith((".xml", ".rpb")) and member.size <= MAX_METADATA:
                content = archive.extractfile(member)
                files[name] = content.read() if content else b""
    return files


def read_scene(name: str, files: dict[str, bytes | None], delivery: Delivery) -> Scene:
    """One scene of a delivery. Raises SceneError with a sentence that names file and fault."""
    path = PurePosixPath(name)
    image = f"/vsitar/{Path(delivery.path).absolute()}/{name}" if delivery.archive else name
    beside = {str(PurePosixPath(other)).lower(): other for other in files}
    stem = str(path.with_suffix("")).lower()
    rpb = beside.get(f"{stem}.rpb")
    xml = beside.get(f"{stem}.xml") or beside.get(f"{stem.rpartition('-')[0]}.xml")
    try:
        with open_image(image) as file:
            header = Header(
                file.width, file.height, file.count, file.dtypes,
                # A CRS alone places nothing: without a transform, GDAL makes one up that does nothing.
                None if file.transform == Affine.identity() else file.crs,
                file.transform, file.nodata,
                tuple(description or "" for description in file.descriptions), file.tags(),
            )  # fmt: skip
    except RasterioIOError as error:
        raise SceneError(f"{image}: not an image that can be opened: {error}") from error
    if len(set(header.dtypes)) != 1 or header.dtypes[0] not in ("uint8", "uint16"):
        raise SceneError(f"{image}: pixels are {sorted(set(header.dtypes))}, expected uint8 or uint16")
    metadata = tuple(files[other] or b"" for other in (xml, rpb) if other)
    common: dict[str, Any] = {
        "id": path.stem,
        "delivery": delivery.path,
        "files": () if delivery.archive else tuple(sorted(filter(None, [name, xml, rpb]))),
        "bytes": Path(delivery.path).stat().st_size,
    }
    try:
        parts = gaofen.parse_name(path.stem)
    except gaofen.GaofenError:
        if header.crs is None:
            raise SceneError(f"{image}: no georeference, and its name is not that of a Gaofen image") from None
        return georeferenced(image, header, common)
    return gaofen_scene(image, parts, header, common, xml, rpb, metadata, files)


@dataclass(frozen=True, slots=True)
class Header:
    """What an image's header says."""

    width: int
    height: int
    count: int
    dtypes: tuple[str, ...]
    crs: Any
    """None where the image does not lie on a map."""
    transform: Any
    nodata: float | None
    descriptions: tuple[str, ...]
    tags: dict[str, str]

    def image(self, path: str, bands: tuple[str, ...], gsd: float, model: SensorModel) -> Image:
        """The image that the header is of."""
        return Image(path, bands, self.width, self.height, self.dtypes[0], self.nodata, gsd, model)


def gaofen_scene(
    image: str,
    parts: gaofen.Name,
    header: Header,
    common: dict[str, Any],
    xml: str | None,
    rpb: str | None,
    metadata: tuple[bytes, ...],
    files: dict[str, bytes | None],
) -> Scene:
    """A Gaofen image with its XML, and its RPB unless it lies on a map already."""
    if xml is None:
        raise SceneError(f"{image}: there is no product XML beside it")
    try:
        fields = gaofen.parse_xml(files[xml] or b"")
        gsd = gaofen.gsd(parts, fields)
    except gaofen.GaofenError as error:
        raise SceneError(f"{xml}: {error}") from error
    for key, size in (("WidthInPixels", header.width), ("HeightInPixels", header.height)):
        if fields.get(key, "").isdecimal() and int(fields[key]) != size:
            raise SceneError(f"{xml}: {key} is {fields[key]}, but {image} has {size}")
    model: SensorModel
    if header.crs is not None:
        model = Georeferenced(header.crs.to_wkt(), tuple(header.transform)[:6])
    elif rpb is None:
        raise SceneError(f"{image}: there is no RPB beside it, and the image has no georeference")
    else:
        try:
            model = gaofen.parse_rpb((files[rpb] or b"").decode("ascii", errors="replace"))
        except gaofen.GaofenError as error:
            raise SceneError(f"{rpb}: {error}") from error
    scene = Scene(
        satellite=parts.satellite,
        sensor=parts.sensor,
        level=parts.level,
        acquired=gaofen.acquired(fields),
        gsd=gsd,
        images=(header.image(image, gaofen.bands(parts, fields, header.count), gsd, model),),
        checksum=checksum(metadata),
        footprint=outline(model, header.width, header.height, flat_terrain(model), image),
        metadata=fields,
        **common,
    )
    centre = scene.footprint.centroid
    away = np.hypot((centre.x - parts.lon + 180) % 360 - 180, centre.y - parts.lat)
    if away > 3:
        where = f"{centre.x:.1f} E {centre.y:.1f} N"
        raise SceneError(f"{rpb or image}: it places the image at {where}, {away:.0f} degrees from where its name says")
    found = ground_distance(model, header.width, header.height)
    if not found / 3 < gsd < found * 3:  # an oblique view stretches pixels, but not by that
        raise SceneError(f"{xml}: ImageGSD is {gsd:g} m, but the image's pixels are {found:g} m on the ground")
    return scene


def georeferenced(image: str, header: Header, common: dict[str, Any]) -> Scene:
    """Any image that lies on a map."""
    model = Georeferenced(header.crs.to_wkt(), tuple(header.transform)[:6])
    footprint = outline(model, header.width, header.height, flat_terrain(model), image)
    names = tuple(text.strip().lower().replace(" ", "_") for text in header.descriptions)
    if not all(names) or len(set(names)) != len(names):
        names = tuple(f"band_{k}" for k in range(1, header.count + 1))
    gsd = ground_distance(model, header.width, header.height)
    return Scene(
        satellite="",
        sensor="",
        level="L2A",
        acquired=tagged_time(header.tags.get("TIFFTAG_DATETIME", "")),
        gsd=gsd,
        images=(header.image(image, names, gsd, model),),
        checksum=checksum((repr(header).encode(),)),
        footprint=footprint,
        metadata=header.tags,
        **common,
    )


def tagged_time(text: str) -> datetime | None:
    """The time in a TIFF's own tag, taken as UTC."""
    try:
        return datetime.strptime(text, "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        return None


def checksum(contents: Iterable[bytes]) -> str:
    """SHA-256 of files one after the other."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return digest.hexdigest()


def flat_terrain(model: SensorModel) -> Terrain:
    """The ground where nothing else is known: at the height about which an RPC was fitted."""
    return Terrain(None, 0.0 if isinstance(model, Georeferenced) else model.height_off)


def outline(model: SensorModel, width: int, height: int, terrain: Terrain, image: str) -> shapely.Polygon:
    """Where an image lies on the ground: its border, 16 points a side, longitude and latitude in degrees.

    From the sensor model, not from the corners in the XML, which lie up to kilometres off.
    Raises SceneError where the model has no ground for it.
    """
    t = np.arange(16) / 16.0
    col = np.concatenate([t, np.ones(16), 1 - t, np.zeros(16)]) * width
    row = np.concatenate([np.zeros(16), t, np.ones(16), 1 - t]) * height
    try:
        heights = np.full(col.shape, terrain.height)
        lon, lat = model.ground(col, row, heights)
        for _ in range(0 if terrain.dem is None else 5):  # the height depends on the place, the place on the height
            heights = terrain.heights(lon, lat)
            lon, lat = model.ground(col, row, heights)
    except ProjError as error:
        raise SceneError(f"{image}: its coordinate system does not lead to longitude and latitude: {error}") from error
    except ValueError as error:
        raise SceneError(f"{image}: {error}") from error
    if not (np.isfinite(lon).all() and np.isfinite(lat).all() and np.abs(lat).max() <= 90):
        raise SceneError(f"{image}: its georeference leads to no place on Earth")
    lon = lon[0] + (lon - lon[0] + 180.0) % 360.0 - 180.0  # in one piece where it crosses the antimeridian
    if max(np.ptp(lon) * np.cos(np.radians(lat.mean())), np.ptp(lat)) > WIDEST:
        raise SceneError(f"{image}: it spans {np.ptp(lon):.0f} x {np.ptp(lat):.0f} degrees, too much for a UTM zone")
    footprint = shapely.Polygon(np.column_stack([lon, lat]))
    if not footprint.is_valid or footprint.area == 0:
        raise SceneError(f"{image}: its outline on the ground crosses itself or is empty")
    return footprint


def ground_distance(model: SensorModel, width: int, height: int) -> float:
    """Side of a square with the area of the middle pixel on the ground, m."""
    col, row = np.array([0.0, 1.0, 0.0]) + width // 2, np.array([0.0, 0.0, 1.0]) + height // 2
    lon, lat = model.ground(col, row, np.full(3, flat_terrain(model).height))
    x, y = plane(lon, lat)
    area = abs((x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0]))
    # To the millimetre: a reprojected pixel of 30 m must not become a grid of 29.9999997 m.
    return round(float(np.sqrt(area)), 3)


def plane(lon: Floats, lat: Floats) -> tuple[Floats, Floats]:
    """Metres east and north of the first point, on its tangent plane."""
    crs = f"+proj=laea +lon_0={lon[0]} +lat_0={lat[0]} +datum=WGS84"
    x, y = transformer("EPSG:4326", crs).transform(lon, lat)
    return x, y
