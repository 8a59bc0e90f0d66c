"""A pushbroom camera in closed form, the fit of an RPC to it, and the images it takes of the sample world."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from geokr.crs import transformer
from pipeline.geometry.sensor import RPC, Floats, rpc_terms

Surface = Callable[[Floats, Floats], Floats]
"""Height of the ground, m, at eastings and northings."""
Pixels = Callable[[Floats, Floats, Floats], Floats]
"""Pixel values at eastings, northings and heights: (band, ...)."""


@dataclass(frozen=True, slots=True)
class Camera:
    """A line of detectors on a platform that flies straight and level over the plane of a UTM zone.

    Image coordinates are those of `geometry.sensor`: (0, 0) at the outer corner of the first pixel. Rows run along the
    flight direction and columns to its left, so that the image is not mirrored when seen from above.
    """

    crs: str
    """CRS of the UTM zone."""
    east: float
    north: float
    up: float
    """The point at the centre of the image: easting, northing and height above the ellipsoid, m."""
    altitude: float
    """Height of the platform above the ellipsoid, m."""
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
        """Ground (easting, northing, height) to image: (col, row) float64."""
        sin, cos = np.sin(np.radians(self.heading)), np.cos(np.radians(self.heading))
        roll, pitch = np.tan(np.radians(self.roll)), np.tan(np.radians(self.pitch))
        depth = self.altitude - height
        # Offsets from the platform at the time of the central line. It flies right of a scene viewed on its left.
        left = (n - self.north) * sin - (e - self.east) * cos + (self.altitude - self.up) * roll
        forward = (e - self.east) * sin + (n - self.north) * cos + (self.altitude - self.up) * pitch
        # focal * tan(atan(left / depth) - roll)
        col = self.width / 2 + self.focal * (left - depth * roll) / (depth + left * roll)
        return col, self.height / 2 + (forward - depth * pitch) / self.gsd

    def locate(self, col: Floats, row: Floats, height: Floats) -> tuple[Floats, Floats]:
        """Image to ground at known heights: (easting, northing) float64, the inverse of `project`."""
        sin, cos = np.sin(np.radians(self.heading)), np.cos(np.radians(self.heading))
        roll, pitch = np.tan(np.radians(self.roll)), np.tan(np.radians(self.pitch))
        depth = self.altitude - height
        angle = (col - self.width / 2) / self.focal
        left = depth * (roll + angle) / (1.0 - roll * angle) - (self.altitude - self.up) * roll
        forward = (row - self.height / 2) * self.gsd + depth * pitch - (self.altitude - self.up) * pitch
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
        """Intersect the view through each pixel with the ground: (easting, northing, height), to 1e-6 m.

        The height is the fixed point of `surface` along the line of sight, found by the secant method.
        Raises ValueError if the iteration does not converge, for example on ground steeper than the view.
        """
        col, row = np.broadcast_arrays(np.asarray(col, float), np.asarray(row, float))
        previous = np.full(col.shape, self.up)
        misfit = surface(*self.locate(col, row, previous)) - previous
        height = previous + misfit
        for _ in range(30):
            e, n = self.locate(col, row, height)
            ground_height = surface(e, n)
            last_misfit, misfit = misfit, ground_height - height
            if np.abs(misfit).max(initial=0.0) < 1e-7:
                return e, n, height
            misfit_change = last_misfit - misfit
            step = np.divide(
                misfit * (height - previous), misfit_change, out=np.zeros_like(height), where=misfit_change != 0
            )
            previous, height = height, height + step
        raise ValueError("the view does not meet the ground: is the ground steeper than the view?")


def render(camera: Camera, surface: Surface, pixels: Pixels, supersample: int = 2) -> Floats:
    """Render the image that a camera takes: (band, row, col) float64, each pixel the mean over its samples.

    supersample: samples per side of a pixel; 1 samples the ground at the pixel's centre. The samples are placed by the
    gradient of the ground coordinates from pixel to pixel, so that their mean lies at the centre.
    """
    if supersample < 1:
        raise ValueError(f"supersample must be at least 1, got {supersample}")
    offsets = (np.arange(supersample) + 0.5) / supersample - 0.5
    strips = []
    for top in range(0, camera.height, 32):  # a strip's arrays stay in the processor's cache
        bottom = min(top + 32, camera.height)
        # One more pixel on each side, for the slopes.
        col, row = np.meshgrid(np.arange(-1, camera.width + 1) + 0.5, np.arange(top - 1, bottom + 1) + 0.5)
        points = np.stack(camera.meet(col, row, surface))
        centre = points[:, 1:-1, 1:-1]
        col_slope = (points[:, 1:-1, 2:] - points[:, 1:-1, :-2]) / 2
        row_slope = (points[:, 2:, 1:-1] - points[:, :-2, 1:-1]) / 2
        samples = [pixels(*(centre + u * col_slope + v * row_slope)) for v in offsets for u in offsets]
        strips.append(np.mean(samples, axis=0))
    return np.concatenate(strips, axis=1)


def fit_rpc(camera: Camera, low: float, high: float) -> RPC:
    """Fit an RPC to a camera over its image and heights of `low` to `high` m.

    The fit uses a regular lattice of longitude, latitude and height that extends a tenth beyond the image.
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
    # Scales: half the image and a tenth beyond it. Offsets: an RPC has 0 at the centre of the first pixel.
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
    """Fit the ratio of two cubics to `value`: coefficients of the numerator and the denominator.

    Least squares of num - value * den with den[0] = 1, each row divided by the denominator of the previous iteration. A
    ridge keeps coefficients that the lattice does not determine near 0 (Tao and Hu 2001, A Comprehensive Study of the
    Rational Function Model, PE&RS 67:1347-1357).
    """
    design = np.concatenate([terms, -value[:, None] * terms[:, 1:]], axis=1)
    weight = np.ones_like(value)
    for _ in range(3):
        a, b = design * weight[:, None], value * weight
        # einsum sums in a fixed order for any number of threads, which a BLAS does not guarantee.
        normal = np.einsum("ki,kj->ij", a, a) + 1e-9 * np.eye(a.shape[1])
        solution = np.linalg.solve(normal, np.einsum("ki,k->i", a, b))
        weight = 1.0 / (1.0 + np.einsum("ki,i->k", terms[:, 1:], solution[20:]))
    return tuple(map(float, solution[:20])), (1.0, *map(float, solution[20:]))
