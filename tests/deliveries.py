"""Small scenes for tests whose pixel values are their own coordinates, and Gaofen deliveries of them.

The camera is linear in longitude, latitude and height, so the place of a pixel follows from one line of arithmetic.
"""

import io
import tarfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.shutil
import shapely
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from pipeline.catalog.table import Entry
from pipeline.config import SurveyConfig, TilesConfig
from pipeline.geometry.grid import TileGrid
from pipeline.geometry.sensor import RPC, Georeferenced, SensorModel
from pipeline.geometry.terrain import Terrain
from pipeline.imaging.quality import Rules
from pipeline.imaging.radiometry import Radiometry, Stretch
from pipeline.scenes.discovery import Delivery
from pipeline.scenes.scene import Image, Scene
from pipeline.tasks.survey import SurveyJob, survey
from pipeline.tasks.tiles import TileJob

LON, LAT, GROUND = 105.3, 24.8, 500.0
"""Centre of the images, degrees, and its height, m."""
WIDTH, HEIGHT, GSD = 90, 70, 8.0
NAME = "GF1_PMS1_E105.3_N24.8_20200523_L1A0001234567"
STEM = f"{NAME}-MSS1"


def camera(
    width: int = WIDTH,
    height: int = HEIGHT,
    *,
    lon: float = LON,
    lat: float = LAT,
    gsd: float = GSD,
    heading: float = 20.0,
    lean: tuple[float, float] = (0.0, 0.0),
) -> RPC:
    """A linear camera, rotated by `heading` degrees. lean: shift of a point per metre of height, columns and rows."""
    sin, cos = np.sin(np.radians(heading)), np.cos(np.radians(heading))
    east, north = 111_320.0 * np.cos(np.radians(lat)) / gsd, 111_000.0 / gsd  # px per degree
    lon_scale, lat_scale, height_scale = float(width / east), height / north, 1000.0
    samp_scale, line_scale = width / 2, height / 2
    samp = np.array([0, cos * east * lon_scale, sin * north * lat_scale, lean[0] * height_scale]) / samp_scale
    line = np.array([0, sin * east * lon_scale, -cos * north * lat_scale, lean[1] * height_scale]) / line_scale
    rest = (0.0,) * 16
    return RPC(
        line_off=height / 2 - 0.5,
        samp_off=width / 2 - 0.5,
        lat_off=lat,
        lon_off=lon,
        height_off=GROUND,
        line_scale=line_scale,
        samp_scale=samp_scale,
        lat_scale=lat_scale,
        lon_scale=lon_scale,
        height_scale=height_scale,
        line_num=(*map(float, line), *rest),
        line_den=(1.0, *(0.0,) * 19),
        samp_num=(*map(float, samp), *rest),
        samp_den=(1.0, *(0.0,) * 19),
    )


def coordinates(width: int = WIDTH, height: int = HEIGHT, bands: int = 4, scale: int = 1) -> npt.NDArray[np.uint16]:
    """Pixels (band, row, col): 100 + scale x column in the first and third band, 100 + scale x row in the others."""
    row, col = np.mgrid[:height, :width]
    return np.stack([100 + scale * (row if k % 2 else col) for k in range(bands)]).astype(np.uint16)


def tiff(pixels: npt.NDArray[Any], **profile: Any) -> bytes:
    """The bytes of a TIFF of (band, row, col) pixels."""
    bands, height, width = pixels.shape
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        shape = {"count": bands, "height": height, "width": width, "dtype": pixels.dtype.name}
        with memory.open(driver="GTiff", **shape, **profile) as target:
            target.write(pixels)
        return bytes(memory.read())


def jp2(pixels: npt.NDArray[Any], block: int = 1024, **profile: Any) -> bytes:
    """The bytes of a lossless JPEG 2000 of (band, row, col) pixels, in tiles as Sentinel-2 has them."""
    options = {"QUALITY": 100, "REVERSIBLE": "YES", "BLOCKXSIZE": block, "BLOCKYSIZE": block}
    with warnings.catch_warnings(), MemoryFile(tiff(pixels, **profile)) as source, MemoryFile(ext=".jp2") as target:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        # Opened for writing, rasterio would drop BLOCKXSIZE: the tiles would be as wide as the image.
        rasterio.shutil.copy(source.name, target.name, driver="JP2OpenJPEG", **options)
        return bytes(target.read())


def rpb(rpc: RPC, semicolon: str = ";") -> str:
    """The text of an RPB file."""
    numbers = {
        "lineOffset": rpc.line_off, "sampOffset": rpc.samp_off, "latOffset": rpc.lat_off, "longOffset": rpc.lon_off,
        "heightOffset": rpc.height_off, "lineScale": rpc.line_scale, "sampScale": rpc.samp_scale,
        "latScale": rpc.lat_scale, "longScale": rpc.lon_scale, "heightScale": rpc.height_scale,
    }  # fmt: skip
    lists = {
        "lineNumCoef": rpc.line_num, "lineDenCoef": rpc.line_den,
        "sampNumCoef": rpc.samp_num, "sampDenCoef": rpc.samp_den,
    }  # fmt: skip
    lines = [f'satId = "XXX"{semicolon}', f'bandId = "XXX"{semicolon}', "BEGIN_GROUP = IMAGE"]
    lines += [f"\t{key} = {float(value)!r}{semicolon}" for key, value in numbers.items()]
    for key, values in lists.items():
        lines += [f"\t{key} = (", ",\n".join(f"\t\t\t{float(value)!r}" for value in values) + f"){semicolon}"]
    return "\n".join([*lines, "END_GROUP = IMAGE", f"END{semicolon}", ""])


def xml(fields: Mapping[str, object]) -> str:
    """The text of a product XML. A field that is None becomes an empty element."""
    lines = [f"  <{tag} />" if value is None else f"  <{tag}>{value}</{tag}>" for tag, value in fields.items()]
    return "\n".join(['<?xml version="1.0" encoding="UTF-8" ?>', "<ProductMetaData>", *lines, "</ProductMetaData>"])


def fields(width: int = WIDTH, height: int = HEIGHT) -> dict[str, object]:
    """Fields of the XML of an image."""
    return {
        "SatelliteID": "GF1", "SensorID": "PMS1", "ReceiveTime": "2020-05-22 21:02:53", "ProductID": 12889847001,
        "ProductQuality": None, "Bands": "1,2,3,4", "CenterTime": "2020-05-23 05:03:08", "ImageGSD": f"{GSD:g}",
        "WidthInPixels": width, "HeightInPixels": height, "CloudPercent": 101, "MapProjection": None,
    }  # fmt: skip


def members(stem: str = STEM, rpc: RPC | None = None) -> dict[str, bytes]:
    """The files of a valid delivery, by name. Its product number is the one in the name."""
    product = {"ProductID": f"1288{stem.partition('L1A')[2][:10]}"} if "L1A" in stem else {}
    return {
        f"{stem}.tiff": tiff(coordinates()),
        f"{stem}.rpb": rpb(rpc or camera()).encode(),
        f"{stem}.xml": xml(fields() | product).encode(),
    }


def rpc_text(rpc: RPC) -> str:
    """The text of an RPC text file, with units after some of its numbers."""
    numbers = {
        "LINE_OFF": rpc.line_off, "SAMP_OFF": rpc.samp_off, "LAT_OFF": rpc.lat_off, "LONG_OFF": rpc.lon_off,
        "HEIGHT_OFF": rpc.height_off, "LINE_SCALE": rpc.line_scale, "SAMP_SCALE": rpc.samp_scale,
        "LAT_SCALE": rpc.lat_scale, "LONG_SCALE": rpc.lon_scale, "HEIGHT_SCALE": rpc.height_scale,
    }  # fmt: skip
    lists = {
        "LINE_NUM_COEFF": rpc.line_num, "LINE_DEN_COEFF": rpc.line_den,
        "SAMP_NUM_COEFF": rpc.samp_num, "SAMP_DEN_COEFF": rpc.samp_den,
    }  # fmt: skip
    lines = [f"{key}: {value!r} {'pixels' if 'LINE' in key else 'degrees'}" for key, value in numbers.items()]
    lines += [f"{key}_{k}: {value!r}" for key, values in lists.items() for k, value in enumerate(values, 1)]
    return "\n".join([*lines, ""])


def pair(name: str, mss: str, pan: str) -> dict[str, bytes]:
    """The files of a delivery with a multispectral image and a panchromatic one with a quarter of its pixel size."""
    satellite, sensor = name.split("_")[:2]
    said = fields() | {"SatelliteID": satellite, "SensorID": sensor}
    sharp = fields(4 * WIDTH, 4 * HEIGHT) | {"Bands": "5", "ImageGSD": f"{GSD / 4:g}"}
    return {
        f"{name}-{mss}.tiff": tiff(coordinates()),
        f"{name}-{mss}.rpb": rpb(camera()).encode(),
        f"{name}-{mss}.xml": xml(said).encode(),
        f"{name}-{pan}.tiff": tiff(coordinates(4 * WIDTH, 4 * HEIGHT, 1)),
        f"{name}-{pan}.rpb": rpb(camera(4 * WIDTH, 4 * HEIGHT, gsd=GSD / 4)).encode(),
        f"{name}-{pan}.xml": xml(said | sharp | {"SatelliteID": satellite, "SensorID": sensor}).encode(),
    }


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_archive(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write a tar, gzipped if its name ends in `gz`."""
    with tarfile.open(path, "w:gz" if path.name.lower().endswith("gz") else "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def write_zip(path: Path, files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def image_of(
    path: Path, pixels: npt.NDArray[Any], model: SensorModel, gsd: float = GSD, nodata: float | None = None
) -> Image:
    """Write (band, row, col) pixels as a TIFF, and describe it as an image."""
    bands, height, width = pixels.shape
    profile: dict[str, Any] = {"nodata": nodata}
    if isinstance(model, Georeferenced):
        profile |= {"crs": rasterio.CRS.from_user_input(model.crs), "transform": Affine(*model.transform)}
    path.write_bytes(tiff(pixels, **profile))
    names = tuple(f"band_{k + 1}" for k in range(bands))
    return Image(str(path), names, width, height, pixels.dtype.name, nodata, gsd, model)


def scene_of(*images: Image) -> Scene:
    """A scene of these images, made without a catalog."""
    first = images[0]
    return Scene(
        id=Path(first.path).stem,
        satellite="GF1",
        sensor="PMS1",
        level="L1A",
        acquired=None,
        gsd=first.gsd,
        images=images,
        pan=None,
        delivery=first.path,
        files=tuple(image.path for image in images),
        bytes=sum(Path(image.path).stat().st_size for image in images),
        metadata_digest="",
        footprint=shapely.box(LON - 0.1, LAT - 0.1, LON + 0.1, LAT + 0.1),
        metadata={},
    )


def write_dem(path: Path, heights: npt.NDArray[Any], transform: Affine, crs: str, nodata: float | None = None) -> str:
    """Write a DEM of (row, col) heights. Returns its path."""
    path.write_bytes(tiff(heights[None], transform=transform, crs=crs, nodata=nodata))
    return str(path)


def survey_config(**settings: Any) -> SurveyConfig:
    return SurveyConfig(scenes=["none"], **settings)


def surveyed(scene: Scene, dem: str | None = None, low: float = 1.0, high: float = 99.0, **settings: Any) -> Entry:
    """The catalog entry of a scene after a survey."""
    return survey(scene, survey_config(dem=dem, stretch=(low, high), **settings))


def catalog_job(delivery: Delivery) -> SurveyJob:
    return SurveyJob(delivery, survey_config())


def tile_job(
    root: str,
    scene: Scene,
    terrain: Terrain,
    stretch: Stretch,
    grid: TileGrid,
    *,
    rules: Rules | None = None,
    radiometry: Radiometry | None = None,
    weights: tuple[float, ...] = (),
) -> TileJob:
    """The job of the first block of a scene, without a survey."""
    entry = Entry(scene, terrain, stretch, 0.0, 0, radiometry, weights)
    return TileJob(root, entry, TilesConfig(rules=rules or Rules()), grid, 0, 0)
