"""Sensor models: from a point on the ground to its place in an image, and back.

Image coordinates are (col, row) in pixels with (0, 0) at the outer corner of the first pixel, so the
centre of the first pixel is (0.5, 0.5), as in an affine geotransform. Ground coordinates are WGS84
longitude and latitude in degrees and ellipsoidal height in metres.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine

from geokr.crs import longitude_period, transformer

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RPC:
    """A rational polynomial camera in the RPC00B form: ratios of cubics in normalised ground coordinates.

    Coefficients are in the order of RPC00B (NIMA, The Compendium of Controlled Extensions for NITF, STDI-0002).
    """

    line_off: float
    samp_off: float
    """Line and sample offsets, px. Line 0, sample 0 is the centre of the first pixel."""
    lat_off: float
    lon_off: float
    """Latitude and longitude offsets, degrees."""
    height_off: float
    """Height offset, m above the ellipsoid."""
    line_scale: float
    samp_scale: float
    lat_scale: float
    lon_scale: float
    height_scale: float
    line_num: tuple[float, ...]
    line_den: tuple[float, ...]
    samp_num: tuple[float, ...]
    samp_den: tuple[float, ...]
    """20 coefficients each."""

    def __post_init__(self) -> None:
        for name in ("line_num", "line_den", "samp_num", "samp_den"):
            values = getattr(self, name)
            if len(values) != 20:
                raise ValueError(f"{name} has {len(values)} coefficients, expected 20")
            if not np.all(np.isfinite(values)):
                raise ValueError(f"{name} holds a value that is not a finite number")
        for name in ("line_den", "samp_den"):
            if not any(getattr(self, name)):
                raise ValueError(f"{name} is all zeros")
        for name in ("line_off", "samp_off", "lat_off", "lon_off", "height_off"):
            if not np.isfinite(getattr(self, name)):
                raise ValueError(f"{name} is not a finite number")
        for name in ("line_scale", "samp_scale", "lat_scale", "lon_scale", "height_scale"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}")
        if not (abs(self.lat_off) <= 90 and abs(self.lon_off) <= 360):
            raise ValueError(f"latitude {self.lat_off}, longitude {self.lon_off} is not a place on Earth")

    def image(self, lon: Floats, lat: Floats, height: Floats) -> tuple[Floats, Floats]:
        """Ground to image: (col, row) float64 of the inputs' common shape, not finite where the model is undefined."""
        lon, lat, height = np.broadcast_arrays(lon, lat, height)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            x = ((lon - self.lon_off + 180.0) % 360.0 - 180.0) / self.lon_scale
            terms = rpc_terms(x, (lat - self.lat_off) / self.lat_scale, (height - self.height_off) / self.height_scale)
            samp = (terms @ np.array(self.samp_num)) / (terms @ np.array(self.samp_den))
            line = (terms @ np.array(self.line_num)) / (terms @ np.array(self.line_den))
            return samp * self.samp_scale + self.samp_off + 0.5, line * self.line_scale + self.line_off + 0.5

    def ground(self, col: Floats, row: Floats, height: Floats) -> tuple[Floats, Floats]:
        """Image to ground at known heights: (lon, lat) float64, by Newton's method to 1e-9 of the scene's size.

        Raises ValueError if the iteration does not converge.
        """
        col, row, height = np.broadcast_arrays(col, row, height)
        lon, lat = np.full(col.shape, self.lon_off), np.full(col.shape, self.lat_off)
        step_lon, step_lat = self.lon_scale * 1e-4, self.lat_scale * 1e-4
        for _ in range(20):
            c0, r0 = self.image(lon, lat, height)
            c1, r1 = self.image(lon + step_lon, lat, height)
            c2, r2 = self.image(lon, lat + step_lat, height)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                a, b, c, d = c1 - c0, c2 - c0, r1 - r0, r2 - r0
                determinant = a * d - b * c
                move_lon = (d * (col - c0) - b * (row - r0)) / determinant
                move_lat = (a * (row - r0) - c * (col - c0)) / determinant
                lon, lat = lon + move_lon * step_lon, lat + move_lat * step_lat
            if max(np.abs(move_lon).max(), np.abs(move_lat).max()) < 1e-5:
                return lon, lat
        raise ValueError("the RPC has no ground point for a pixel of the image")

    def to_json(self) -> dict[str, Any]:
        return {"kind": "rpc", **{name: getattr(self, name) for name in self.__slots__}}


def rpc_terms(x: Floats, y: Floats, z: Floats) -> Floats:
    """The 20 monomials of RPC00B in normalised longitude x, latitude y and height z: (..., 20) float64."""
    xx, yy, zz, xy = x * x, y * y, z * z, x * y
    terms = (
        np.ones_like(x), x, y, z, xy, x * z, y * z, xx, yy, zz,
        xy * z, x * xx, x * yy, x * zz, xx * y, y * yy, y * zz, xx * z, yy * z, z * zz,
    )  # fmt: skip
    return np.stack(terms, axis=-1)


@dataclass(frozen=True, slots=True)
class Georeferenced:
    """The model of an image that is already georeferenced: an affine transform in a CRS. Heights have no effect."""

    crs: str
    """A CRS in any form that pyproj reads, such as an EPSG code or WKT."""
    transform: tuple[float, float, float, float, float, float]
    """From image coordinates (col, row) to CRS units: a, b, c, d, e, f in row-major order."""

    def __post_init__(self) -> None:
        if Affine(*self.transform).determinant == 0:
            raise ValueError(f"the transform {self.transform} has no inverse")

    def image(self, lon: Floats, lat: Floats, height: Floats) -> tuple[Floats, Floats]:
        """Ground to image: (col, row) float64, not finite outside the domain of the CRS.

        Where longitudes repeat, it is the position less than half a period from the first pixel, since an image may
        continue past 180 degrees or count from 0 to 360.
        """
        x, y = transformer("EPSG:4326", self.crs).transform(lon, lat)
        inverse, period = ~Affine(*self.transform), longitude_period(self.crs)
        with np.errstate(invalid="ignore"):
            if period:
                x = x - period * np.rint((x - self.transform[2]) / period)
            return inverse.a * x + inverse.b * y + inverse.c, inverse.d * x + inverse.e * y + inverse.f

    def ground(self, col: Floats, row: Floats, height: Floats) -> tuple[Floats, Floats]:
        """Image to ground: (lon, lat) float64."""
        a, b, c, d, e, f = self.transform
        lon, lat = transformer(self.crs, "EPSG:4326").transform(a * col + b * row + c, d * col + e * row + f)
        return lon, lat

    def to_json(self) -> dict[str, Any]:
        return {"kind": "georeferenced", "crs": self.crs, "transform": self.transform}


SensorModel = RPC | Georeferenced


def model_from_json(value: dict[str, Any]) -> SensorModel:
    """Restore the sensor model that `to_json` describes."""
    parts: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in value.items()}
    match parts.pop("kind"):
        case "rpc":
            return RPC(**parts)
        case "georeferenced":
            return Georeferenced(**parts)
        case kind:
            raise ValueError(f"unknown sensor model {kind!r}")
