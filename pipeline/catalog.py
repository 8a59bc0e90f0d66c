"""Find scenes of every kind, read what is known about them, and list them in scenes.parquet."""

import hashlib
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import geopandas
import numpy as np
import shapely
from rasterio.errors import RasterioIOError

from pipeline import gaofen
from pipeline.ortho import open_image
from pipeline.radiometry import Stretch, percentile_stretch
from pipeline.scene import Scene, SceneError
from pipeline.sensor import Floats, Georeferenced, SensorModel, model_from_json, transformer
from pipeline.terrain import Terrain

CATALOG = "scenes.parquet"
SUFFIXES = (".tif", ".tiff")
ARCHIVES = (".tar.gz", ".tgz", ".tar")
MAX_MEMBERS = 10_000
"""An archive with more members than this is no delivery."""
MAX_METADATA = 4 << 20
"""An XML or RPB with more bytes than this is none."""
SURVEY_STEP = 20
"""The stretch is decided on every 20th pixel of every 20th line, as the GeoKR authors did."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the catalog: a scene, and what its survey decided."""

    scene: Scene
    terrain: Terrain
    stretch: Stretch
    dem_coverage: float
    """Share of the footprint's outline that the DEM covers; 0 without one."""


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
    """Images and archives under directories, in the order of their paths; files may be named too.

    Raises FileNotFoundError for a path that does not exist.
    """
    for path in sorted(Path(path) for path in paths):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or directory")
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
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
        except SceneError as error:
            found.append(Refusal(PurePosixPath(name).stem, "unusable", str(error)))
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
                file.width, file.height, file.count, file.dtypes, file.crs, file.transform, file.nodata,
                tuple(description or "" for description in file.descriptions), file.tags(),
            )  # fmt: skip
    except RasterioIOError as error:
        raise SceneError(f"{image}: not an image that can be opened: {error}") from error
    if len(set(header.dtypes)) != 1 or header.dtypes[0] not in ("uint8", "uint16"):
        raise SceneError(f"{image}: pixels are {sorted(set(header.dtypes))}, expected uint8 or uint16")
    metadata = tuple(files[other] or b"" for other in (xml, rpb) if other)
    common: dict[str, Any] = {
        "id": path.stem,
        "image": image,
        "delivery": delivery.path,
        "files": () if delivery.archive else tuple(sorted(filter(None, [name, xml, rpb]))),
        "bytes": Path(delivery.path).stat().st_size,
        "width": header.width,
        "height": header.height,
        "dtype": header.dtypes[0],
        "nodata": header.nodata,
    }
    try:
        parts = gaofen.parse_name(path.stem)
    except gaofen.GaofenError:
        if header.crs is None:
            raise SceneError(f"{image}: no georeference, and its name is not that of a Gaofen image") from None
        return georeferenced(header, common)
    return gaofen_scene(parts, header, common, xml, rpb, metadata, files)


@dataclass(frozen=True, slots=True)
class Header:
    """What an image's header says."""

    width: int
    height: int
    count: int
    dtypes: tuple[str, ...]
    crs: Any
    transform: Any
    nodata: float | None
    descriptions: tuple[str, ...]
    tags: dict[str, str]


def gaofen_scene(
    parts: gaofen.Name,
    header: Header,
    common: dict[str, Any],
    xml: str | None,
    rpb: str | None,
    metadata: tuple[bytes, ...],
    files: dict[str, bytes | None],
) -> Scene:
    """A Gaofen image with its XML, and its RPB unless it lies on a map already."""
    image = common["image"]
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
        bands=gaofen.bands(parts, fields, header.count),
        checksum=checksum(metadata),
        model=model,
        footprint=outline(model, header.width, header.height, flat_terrain(model), image),
        metadata=fields,
        **common,
    )
    centre = scene.footprint.centroid
    away = np.hypot((centre.x - parts.lon + 180) % 360 - 180, centre.y - parts.lat)
    if away > 3:
        where = f"{centre.x:.1f} E {centre.y:.1f} N"
        raise SceneError(f"{rpb or image}: it places the image at {where}, {away:.0f} degrees from where its name says")
    return scene


def georeferenced(header: Header, common: dict[str, Any]) -> Scene:
    """Any image that lies on a map."""
    image = common["image"]
    model = Georeferenced(header.crs.to_wkt(), tuple(header.transform)[:6])
    footprint = outline(model, header.width, header.height, flat_terrain(model), image)
    names = tuple(text.strip().lower().replace(" ", "_") for text in header.descriptions)
    if not all(names) or len(set(names)) != len(names):
        names = tuple(f"band_{k}" for k in range(1, header.count + 1))
    return Scene(
        satellite="",
        sensor="",
        level="L2A",
        acquired=tagged_time(header.tags.get("TIFFTAG_DATETIME", "")),
        gsd=ground_distance(model, header.width, header.height),
        bands=names,
        checksum=checksum((repr(header).encode(),)),
        model=model,
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
    except ValueError as error:
        raise SceneError(f"{image}: {error}") from error
    if not (np.isfinite(lon).all() and np.isfinite(lat).all() and np.abs(lat).max() <= 90):
        raise SceneError(f"{image}: its georeference leads to no place on Earth")
    footprint = shapely.Polygon(np.column_stack([lon, lat]))
    if not footprint.is_valid or footprint.area == 0:
        raise SceneError(f"{image}: its outline on the ground crosses itself or is empty")
    return footprint


def ground_distance(model: Georeferenced, width: int, height: int) -> float:
    """Side of a square with the area of the middle pixel on the ground, m."""
    col, row = np.array([0.0, 1.0, 0.0]) + width // 2, np.array([0.0, 0.0, 1.0]) + height // 2
    lon, lat = model.ground(col, row, np.zeros(3))
    x, y = plane(lon, lat)
    area = abs((x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0]))
    # To the millimetre: a reprojected pixel of 30 m must not become a grid of 29.9999997 m.
    return round(float(np.sqrt(area)), 3)


def plane(lon: Floats, lat: Floats) -> tuple[Floats, Floats]:
    """Metres east and north of the first point, on its tangent plane."""
    crs = f"+proj=laea +lon_0={lon[0]} +lat_0={lat[0]} +datum=WGS84"
    x, y = transformer("EPSG:4326", crs).transform(lon, lat)
    return x, y


def survey(scene: Scene, dem: str | None, low: float, high: float) -> Entry:
    """Decide a scene's stretch and ground: reads every 20th pixel. Raises SceneError naming file and fault."""
    terrain = replace(flat_terrain(scene.model), dem=None if isinstance(scene.model, Georeferenced) else dem)
    footprint = outline(scene.model, scene.width, scene.height, terrain, scene.image)
    coverage = terrain.coverage(*shapely.get_coordinates(footprint.exterior).T)
    shape = (len(scene.bands), max(1, scene.height // SURVEY_STEP), max(1, scene.width // SURVEY_STEP))
    try:
        with open_image(scene.image) as file:
            sample = file.read(out_shape=shape)
            # The decimated read skips lines; the last one must be there too.
            file.read(window=((scene.height - 1, scene.height), (0, scene.width)))
    except RasterioIOError as error:
        raise SceneError(f"{scene.image}: cannot be read to its end: {error}") from error
    valid = np.ones(shape[1:], np.bool_) if scene.nodata is None else (sample != scene.nodata).all(axis=0)
    try:
        stretch = percentile_stretch(sample, valid, low, high)
    except ValueError as error:
        raise SceneError(f"{scene.image}: {error}") from error
    return Entry(replace(scene, footprint=footprint), terrain, stretch, coverage)


def write_catalog(path: Path, entries: Iterable[Entry], provenance: str) -> None:
    """scenes.parquet: one row a scene, sorted by id; GeoParquet with the footprints as geometry, EPSG:4326.

    provenance: JSON, what besides its files an entry depends on: settings and software.
    """
    rows = []
    for entry in sorted(entries, key=lambda entry: entry.scene.id):
        scene = entry.scene
        row = {name: getattr(scene, name) for name in Scene.__slots__ if name not in ("model", "footprint", "metadata")}
        rows.append(
            row
            | {
                "bands": list(scene.bands),
                "files": list(scene.files),
                "model": json.dumps(scene.model.to_json()),
                "metadata": json.dumps(dict(scene.metadata), ensure_ascii=False),
                "dem": entry.terrain.dem,
                "dem_coverage": entry.dem_coverage,
                "ground_height": entry.terrain.height,
                "stretch_low": entry.stretch.low,
                "stretch_high": entry.stretch.high,
                "provenance": provenance,
                "geometry": scene.footprint,
            }
        )
    columns = [*rows[0]] if rows else ["id", "geometry"]
    frame = geopandas.GeoDataFrame(rows, columns=columns, geometry="geometry", crs="EPSG:4326")
    if rows:
        frame["acquired"] = frame["acquired"].astype("datetime64[us, UTC]")
        frame["nodata"] = frame["nodata"].astype("float64")
    temporary = path.with_name(path.name + ".new")
    frame.to_parquet(temporary, index=False, compression="zstd", schema_version="1.1.0")
    temporary.replace(path)


def unchanged(path: Path, provenance: str) -> dict[str, list[Entry]]:
    """Entries of an earlier catalog by the delivery's path, as far as its files are older than the catalog.

    None where there is no catalog, or one of other settings or software.
    """
    if not path.is_file() or set(geopandas.read_parquet(path)["provenance"]) != {provenance}:
        return {}
    written = path.stat().st_mtime
    known: dict[str, list[Entry]] = {}
    for entry in read_catalog(path):
        files = [Path(file) for file in (entry.scene.delivery, *entry.scene.files) if not file.startswith("/vsi")]
        if all(file.is_file() and file.stat().st_mtime < written for file in files):
            known.setdefault(entry.scene.delivery, []).append(entry)
    return known


def read_catalog(path: Path) -> list[Entry]:
    """The entries of scenes.parquet, in its order."""
    entries = []
    for row in geopandas.read_parquet(path).to_dict("records"):
        fields = {name: row[name] for name in Scene.__slots__ if name in row}
        fields |= {
            "acquired": None if row["acquired"] is None or row["acquired"] != row["acquired"] else row["acquired"],
            "nodata": None if np.isnan(row["nodata"]) else row["nodata"],
            "bands": tuple(row["bands"]),
            "files": tuple(row["files"]),
            "model": model_from_json(json.loads(row["model"])),
            "metadata": json.loads(row["metadata"]),
            "footprint": row["geometry"],
        }
        if fields["acquired"] is not None:
            fields["acquired"] = fields["acquired"].to_pydatetime()
        terrain = Terrain(row["dem"] if isinstance(row["dem"], str) else None, row["ground_height"])
        stretch = Stretch(row["stretch_low"], row["stretch_high"])
        entries.append(Entry(Scene(**fields), terrain, stretch, row["dem_coverage"]))
    return entries
