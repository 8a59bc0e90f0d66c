"""A pushbroom camera in closed form, the RPC fitted to it, and the images that it takes of the sample world."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from geokr.crs import transformer
from pipeline.geometry.sensor import RPC, Floats, rpc_terms

Surface = Callable[[Floats, Floats], Floats]
"""Height of the ground, m, at eastings and northings."""
Pixels = Callable[[Floats, Floats, Floats], Floats]
"""What is seen at eastings, northings and heights: (band, ...)."""


@dataclass(frozen=True, slots=True)
class Camera:
    """A line of detectors on a platform that flies straight and level over the plane of a UTM zone.

    Image coordinates are those of `geometry.sensor`: (0, 0) at the outer corner of the first pixel. Lines follow each
    other along the flight; columns run to its left, so that seen from above the image is not mirrored.
    """

    crs: str
    """The UTM zone whose plane the platform flies over."""
    east: float
    north: float
    up: float
    """The point that the centre of the image shows: easting, northing and height above the ellipsoid, m."""
    altitude: float
    """Of the platform, above the ellipsoid, m."""
    heading: float
    """Direction of flight, degrees clockwise from grid north."""
    roll: float
    """Tilt of the view to the left of the flight, degrees."""
    pitch: float
    """Tilt of the view forward, degrees."""
    gsd: float
    """Ground sampling distance at the centre, m."""
    width: int
    height: int
    """Size of the image, px."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"an image of {self.width} x {self.height} px is empty")
        if not self.gsd > 0:
            raise ValueError(f"the ground sampling distance must be positive, got {self.gsd} m")
        if not self.altitude > self.up:
            raise ValueError(f"the platform at {self.altitude} m must be above the ground at {self.up} m")
        if not (abs(self.roll) <= 45 and abs(self.pitch) <= 45):
            raise ValueError(f"roll and pitch must be within 45 degrees, got {self.roll} and {self.pitch}")

    @property
    def focal(self) -> float:
        """Focal length, px."""
        return float((self.altitude - self.up) / (self.gsd * np.cos(np.radians(self.roll)) ** 2))

    def project(self, e: Floats, n: Floats, height: Floats) -> tuple[Floats, Floats]:
        """Ground, as easting, northing and height, to image: (col, row) float64."""
        sin, cos = np.sin(np.radians(self.heading)), np.cos(np.radians(self.heading))
        roll, pitch = np.tan(np.radians(self.roll)), np.tan(np.radians(self.pitch))
        below = self.altitude - height
        # From the platform, at the moment of the central line; it flies to the right of what it looks at on its left.
        left = (n - self.north) * sin - (e - self.east) * cos + (self.altitude - self.up) * roll
        forward = (e - self.east) * sin + (n - self.north) * cos + (self.altitude - self.up) * pitch
        # focal * tan(atan(left / below) - roll)
        col = self.width / 2 + self.focal * (left - below * roll) / (below + left * roll)
        return col, self.height / 2 + (forward - below * pitch) / self.gsd

    def locate(self, col: Floats, row: Floats, height: Floats) -> tuple[Floats, Floats]:
        """Image to ground at known heights: (easting, northing) float64, the inverse of `project`."""
        sin, cos = np.sin(np.radians(self.heading)), np.cos(np.radians(self.heading))
        roll, pitch = np.tan(np.radians(self.roll)), np.tan(np.radians(self.pitch))
        below = self.altitude - height
        angle = (col - self.width / 2) / self.focal
        left = below * (roll + angle) / (1.0 - roll * angle) - (self.altitude - self.up) * roll
        forward = (row - self.height / 2) * self.gsd + below * pitch - (self.altitude - self.up) * pitch
        return self.east + forward * sin - left * cos, self.north + forward * cos + left * sin

    def image(self, lon: Floats, lat: Floats, height: Floats) -> tuple[Floats, Floats]:
        """Ground to image: (col, row) float64 of the inputs' common shape."""
        lon, lat, height = np.broadcast_arrays(lon, lat, height)
        e, n = transformer("EPSG:4326", self.crs).transform(lon, lat)
        return self.project(e, n, height)

    def ground(self, col: Floats, row: Floats, height: Floats) -> tuple[Floats, Floats]:
        """Image to ground at known heights: (lon, lat) float64."""
        e, n = self.locate(*np.broadcast_arrays(col, row, height))
        lon, lat = transformer(self.crs, "EPSG:4326").transform(e, n)
        return lon, lat

    def meet(self, col: Floats, row: Floats, surface: Surface) -> tuple[Floats, Floats, Floats]:
        """Where the view through each pixel meets the ground: (easting, northing, height), to 1e-6 m.

        The height is the fixed point of `surface` where the view passes it, found by the secant method.
        Raises ValueError where it is not found, as on ground steeper than the view.
        """
        col, row = np.broadcast_arrays(np.asarray(col, float), np.asarray(row, float))
        before = np.full(col.shape, self.up)
        misfit = surface(*self.locate(col, row, before)) - before
        height = before + misfit
        for _ in range(30):
            e, n = self.locate(col, row, height)
            found = surface(e, n)
            last, misfit = misfit, found - height
            if np.abs(misfit).max(initial=0.0) < 1e-7:
                return e, n, height
            change = last - misfit
            step = np.divide(misfit * (height - before), change, out=np.zeros_like(height), where=change != 0)
            before, height = height, height + step
        raise ValueError("the view does not meet the ground: is it steeper than the view?")


def render(camera: Camera, surface: Surface, pixels: Pixels, supersample: int = 2) -> Floats:
    """The image that a camera takes: (band, row, col) float64, each pixel the mean of what it sees.

    supersample: samples a side of a pixel; 1 takes the ground at the pixel's centre. The samples are placed by the
    slope of the ground's coordinates from pixel to pixel, so that their mean lies at the centre.
    """
    if supersample < 1:
        raise ValueError(f"supersample must be at least 1, got {supersample}")
    offsets = (np.arange(supersample) + 0.5) / supersample - 0.5
    strips = []
    for top in range(0, camera.height, 32):  # a strip's arrays stay in the processor's cache
        bottom = min(top + 32, camera.height)
        # One pixel more on each side, for the slopes.
        col, row = np.meshgrid(np.arange(-1, camera.width + 1) + 0.5, np.arange(top - 1, bottom + 1) + 0.5)
        place = np.stack(camera.meet(col, row, surface))
        centre = place[:, 1:-1, 1:-1]
        across = (place[:, 1:-1, 2:] - place[:, 1:-1, :-2]) / 2
        along = (place[:, 2:, 1:-1] - place[:, :-2, 1:-1]) / 2
        samples = [pixels(*(centre + u * across + v * along)) for v in offsets for u in offsets]
        strips.append(np.mean(samples, axis=0))
    return np.concatenate(strips, axis=1)


def fit_rpc(camera: Camera, low: float, high: float) -> RPC:
    """The rational polynomials that come nearest to a camera over its image and heights of `low` to `high` m.

    They are fitted on a regular lattice of longitude, latitude and height that reaches a tenth beyond the image.
    """
    if not high > low:
        raise ValueError(f"heights need high > low, got {low} .. {high} m")
    col = np.array([-0.1, 1.1, 1.1, -0.1])[:, None] * camera.width
    row = np.array([-0.1, -0.1, 1.1, 1.1])[:, None] * camera.height
    lon, lat = camera.ground(col, row, np.array([[low, high]]))
    lon_off, lat_off, height_off = (lon.min() + lon.max()) / 2, (lat.min() + lat.max()) / 2, (low + high) / 2
    lon_scale, lat_scale, height_scale = np.ptp(lon) / 2, np.ptp(lat) / 2, (high - low) / 2
    x, y, z = (v.ravel() for v in np.meshgrid(*(np.linspace(-1, 1, k) for k in (13, 13, 7))))
    col, row = camera.image(lon_off + x * lon_scale, lat_off + y * lat_scale, height_off + z * height_scale)
    # Half the image and the tenth beyond it; the first pixel's centre is at 0 to an RPC.
    samp_off, line_off = camera.width / 2 - 0.5, camera.height / 2 - 0.5
    samp_scale, line_scale = camera.width * 0.6, camera.height * 0.6
    terms = rpc_terms(x, y, z)
    samp_num, samp_den = fit_ratio(terms, (col - 0.5 - samp_off) / samp_scale)
    line_num, line_den = fit_ratio(terms, (row - 0.5 - line_off) / line_scale)
    return RPC(
        line_off=line_off,
        samp_off=samp_off,
        lat_off=float(lat_off),
        lon_off=float(lon_off),
        height_off=height_off,
        line_scale=line_scale,
        samp_scale=samp_scale,
        lat_scale=float(lat_scale),
        lon_scale=float(lon_scale),
        height_scale=height_scale,
        line_num=line_num,
        line_den=line_den,
        samp_num=samp_num,
        samp_den=samp_den,
    )


def fit_ratio(terms: Floats, value: Floats) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Coefficients of the ratio of two cubics, numerator and denominator, that comes nearest to `value`.

    Least squares of num - value * den with den[0] = 1, each row divided by the denominator found before; a ridge
    keeps coefficients that the lattice does not determine near 0 (Tao and Hu 2001, A Comprehensive Study of the
    Rational Function Model, PE&RS 67:1347-1357).
    """
    design = np.concatenate([terms, -value[:, None] * terms[:, 1:]], axis=1)
    weight = np.ones_like(value)
    for _ in range(3):
        a, b = design * weight[:, None], value * weight
        # einsum adds up in one order whatever the number of threads, which a BLAS does not promise.
        normal = np.einsum("ki,kj->ij", a, a) + 1e-9 * np.eye(a.shape[1])
        found = np.linalg.solve(normal, np.einsum("ki,k->i", a, b))
        weight = 1.0 / (1.0 + np.einsum("ki,i->k", terms[:, 1:], found[20:]))
    return tuple(map(float, found[:20])), (1.0, *map(float, found[20:]))
