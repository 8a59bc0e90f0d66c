"""L1A deliveries in the Gaofen format, for the sample world: names, product XML, RPB, TIFF and archive.

They are read by `pipeline.scenes.gaofen` and `pipeline.scenes.delivery`.
"""

import gzip
import io
import tarfile
import warnings
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from pipeline.geometry.sensor import RPC, Floats
from pipeline.sample.camera import Camera, Pixels, Surface, fit_rpc, render
from pipeline.sample.world import Sun
from pipeline.scenes.gaofen import BEIJING


@dataclass(frozen=True, slots=True)
class Shot:
    """One L1A delivery: the parts of its name, its camera, and the sky during the exposure."""

    satellite: str
    sensor: str
    part: str
    """Last part of the image's name, such as `MSS1`; empty for wide-field images."""
    acquired: datetime
    """Centre of the exposure, UTC, in whole seconds."""
    product: int
    camera: Camera
    archive: bool
    """Whether it is delivered as a `.tar.gz` instead of a folder."""
    haze: float
    """0 is clear, 1 is hazy."""
    clouds: float
    """Share of the image under clouds."""

    def __post_init__(self) -> None:
        if self.acquired.utcoffset() != timedelta(0):
            raise ValueError(f"acquired must be in UTC, got {self.acquired}")
        if not 0 <= self.clouds < 1:
            raise ValueError(f"clouds must be a share in 0..1, got {self.clouds}")

    @property
    def place(self) -> tuple[float, float]:
        """Longitude and latitude of the image's centre, degrees."""
        c = self.camera
        lon, lat = c.ground(np.array(c.width / 2), np.array(c.height / 2), np.array(c.up))
        return float(lon), float(lat)

    @property
    def name(self) -> str:
        """Name of the folder or archive, without its suffix."""
        lon, lat = self.place
        where = f"{'EW'[lon < 0]}{abs(lon):.1f}_{'NS'[lat < 0]}{abs(lat):.1f}"
        return f"{self.satellite}_{self.sensor}_{where}_{self.acquired:%Y%m%d}_L1A{self.product:010d}"

    @property
    def image(self) -> str:
        """Name of the image, without its suffix."""
        return f"{self.name}-{self.part}" if self.part else self.name

    @property
    def sun(self) -> Sun:
        """Azimuth and zenith angle of the Sun, degrees; accurate to about 3 degrees, without the equation of time."""
        lon, lat = self.place
        day, phi = self.acquired.timetuple().tm_yday, np.radians(lat)
        declination = -np.radians(23.44) * np.cos(2 * np.pi * (day + 10) / 365.25)
        midnight = self.acquired.replace(hour=0, minute=0, second=0)
        hours = (self.acquired - midnight) / timedelta(hours=1)
        angle = np.radians(15.0 * (hours - 12.0) + lon)
        up = np.sin(phi) * np.sin(declination) + np.cos(phi) * np.cos(declination) * np.cos(angle)
        north = np.cos(phi) * np.sin(declination) - np.sin(phi) * np.cos(declination) * np.cos(angle)
        east = -np.cos(declination) * np.sin(angle)
        return float(np.degrees(np.arctan2(east, north)) % 360), float(np.degrees(np.arccos(up)))


def rpb_text(rpc: RPC) -> str:
    """Return the text of an RPB file as in the deliveries, with placeholders for the ids."""
    lines = ['satId = "XXX";', 'bandId = "XXX";', 'SpecId = "XXX";', "BEGIN_GROUP = IMAGE"]
    lines += ["\terrBias =   1.0;", "\terrRand =    0.0;"]
    numbers = {
        "lineOffset": rpc.line_off, "sampOffset": rpc.samp_off,
        "latOffset": rpc.lat_off, "longOffset": rpc.lon_off, "heightOffset": rpc.height_off,
        "lineScale": rpc.line_scale, "sampScale": rpc.samp_scale,
        "latScale": rpc.lat_scale, "longScale": rpc.lon_scale, "heightScale": rpc.height_scale,
    }  # fmt: skip
    lines += [f"\t{key} = {value:20.15f};" for key, value in numbers.items()]
    coefficients = {
        "lineNumCoef": rpc.line_num, "lineDenCoef": rpc.line_den,
        "sampNumCoef": rpc.samp_num, "sampDenCoef": rpc.samp_den,
    }  # fmt: skip
    for key, values in coefficients.items():
        lines.append(f"\t{key} = (")
        lines += [f"\t\t\t{value:+.15E}{',' if k < 19 else ');'}" for k, value in enumerate(values)]
    return "\n".join([*lines, "END_GROUP = IMAGE", "END;", ""])


def xml_text(shot: Shot) -> str:
    """Return the product XML: the 66 fields of deliveries until 2022, in their order, many of them empty."""
    c, (azimuth, zenith) = shot.camera, shot.sun
    local = shot.acquired.astimezone(BEIJING)  # start, centre and end are in Beijing time, ReceiveTime in UTC
    half = timedelta(seconds=round(c.height * c.gsd / 7000 / 2 + 0.5))
    stamp = "%Y-%m-%d %H:%M:%S"
    # In real XML, the lower corners lie some hundred metres beyond those of the RPC.
    lower_row = c.height + 500 / c.gsd
    col, row = np.array([0.0, c.width, c.width, 0.0]), np.array([0.0, 0.0, lower_row, lower_row])
    lon, lat = c.ground(col, row, np.array(c.up))
    fields: dict[str, Any] = {
        "SatelliteID": shot.satellite, "SensorID": shot.sensor,
        "ReceiveTime": shot.acquired.strftime(stamp), "OrbitID": 30000 + shot.product % 9973,
        "ProduceType": "STANDARD", "SceneID": 7000000 + shot.product % 999983, "ProductID": shot.product,
        "ProductLevel": "LEVEL1A", "ProductQuality": None, "ProductQualityReport": None, "ProductFormat": "GEOTIFF",
        "ProduceTime": (local + timedelta(hours=20)).strftime(stamp), "Bands": "1,2,3,4",
        "ScenePath": 19, "SceneRow": 115, "SatPath": 21, "SatRow": 115, "SceneCount": 1, "SceneShift": 1,
        "StartTime": (local - half).strftime(stamp), "EndTime": (local + half).strftime(stamp),
        "CenterTime": local.strftime(stamp),
        "ImageGSD": f"{c.gsd:g}", "WidthInPixels": c.width, "HeightInPixels": c.height,
        "WidthInMeters": None, "HeightInMeters": None, "CloudPercent": round(100 * shot.clouds),
        "QualityInfo": "", "PixelBits": "", "ValidPixelBits": "", "RollViewingAngle": 0, "PitchViewingAngle": 0,
        "RollSatelliteAngle": f"{c.roll:g}", "PitchSatelliteAngle": f"{c.pitch:g}", "YawSatelliteAngle": 0,
        "SolarAzimuth": f"{azimuth:.3f}", "SolarZenith": f"{zenith:.3f}",
        "SatelliteAzimuth": f"{(c.heading + (90 if c.roll > 0 else -90)) % 360:g}",
        "SatelliteZenith": f"{90 - abs(c.roll):g}",  # an elevation, despite its name
        "GainMode": "G2,G1,G1,G2", "IntegrationTime": f"{c.gsd / 7000:.6g}", "IntegrationLevel": "S5,S4,S5,S3",
        "MapProjection": None, "EarthEllipsoid": "WGS84", "ZoneNo": None, "ResamplingKernel": None,
        "HeightMode": None, "MtfCorrection": "LAB", "RelativeCorrectionData": "",
    }  # fmt: skip
    corners = ("TopLeft", "TopRight", "BottomRight", "BottomLeft")
    for k, corner in enumerate(corners):
        fields |= {f"{corner}Latitude": f"{lat[k]:.6g}", f"{corner}Longitude": f"{lon[k]:.6g}"}
    fields |= {f"{corner}Map{axis}": None for corner in corners for axis in "XY"}
    lines = [f"    <{tag} />" if value is None else f"    <{tag}>{value}</{tag}>" for tag, value in fields.items()]
    head = '<?xml version="1.0" encoding="UTF-8" ?>\n<ProductMetaData>\n'
    return head + "\n".join(lines) + "\n</ProductMetaData>\n"


def tiff_bytes(image: Floats) -> bytes:
    """Return a plain 16-bit TIFF, uncompressed and without georeferencing. Values are rounded to the nearest integer.

    image: (band, row, col). Raises ValueError if a value does not fit into 16 bits.
    """
    low, high = np.min(image), np.max(image)
    if not (low >= 0 and high < 65535.5):
        raise ValueError(f"pixel values must be in 0..65535, got {low} .. {high}")
    bands, height, width = image.shape
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(
            driver="GTiff", width=width, height=height, count=bands, dtype="uint16", interleave="pixel"
        ) as target:
            target.write(np.rint(image).astype(np.uint16))
        return bytes(memory.read())


def archive_bytes(files: dict[str, bytes]) -> bytes:
    """Return a `.tar.gz` of files at its top level, without time stamps, owners or its own name, for equal bytes."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0, compresslevel=1) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def find_height_range(camera: Camera, surface: Surface) -> tuple[float, float]:
    """Lowest and highest ground in an image, m above the ellipsoid."""
    col, row = np.meshgrid(np.linspace(0, camera.width, 60), np.linspace(0, camera.height, 60))
    height = camera.meet(col, row, surface)[2]
    return float(height.min()), float(height.max())


def write_delivery(directory: Path, shot: Shot, surface: Surface, pixels: Pixels, supersample: int = 2) -> Path:
    """Render the image of `pixels` on `surface`, write the delivery and return the path of its folder or archive.

    surface: function of easting and northing; pixels: function of easting, northing and height; both in the CRS of the
    delivery's camera. The RPC is valid from 300 m below to 300 m above the heights in the image.
    """
    low, high = find_height_range(shot.camera, surface)
    files = {
        f"{shot.image}.tiff": tiff_bytes(render(shot.camera, surface, pixels, supersample)),
        f"{shot.image}.rpb": rpb_text(fit_rpc(shot.camera, low - 300, high + 300)).encode(),
        f"{shot.image}.xml": xml_text(shot).encode(),
        "order.xml": b'<?xml version="1.0" encoding="UTF-8" ?>\n<Order>\n    <Count>1</Count>\n</Order>\n',
    }
    if shot.archive:
        path = directory / f"{shot.name}.tar.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(archive_bytes(files))
        return path
    path = directory / shot.name
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path
