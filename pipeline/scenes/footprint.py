"""Footprint and ground sampling distance of an image, from its sensor model."""

import math

import numpy as np
import shapely
from affine import Affine
from pyproj import Proj
from pyproj.exceptions import ProjError

from geokr.crs import parse
from pipeline.geometry.sensor import Floats, Georeferenced, SensorModel
from pipeline.geometry.terrain import Terrain
from pipeline.scenes.scene import Image, SceneError

MAX_EXTENT = 20.0
"""An image that spans more degrees of a great circle than this, about 2,200 km, is refused."""


def make_flat_terrain(model: SensorModel) -> Terrain:
    """The ground to assume without a DEM: flat, at the height offset of the RPC or at 0 m for a georeferenced image."""
    return Terrain(None, 0.0 if isinstance(model, Georeferenced) else model.height_off)


def image_footprint(image: Image, terrain: Terrain) -> shapely.Polygon:
    """Outline of an image on the ground, 16 points per side, longitude and latitude in degrees.

    It is computed with the sensor model, because the corners in the XML are up to kilometres off.
    Longitudes are continuous across the antimeridian, so they may lie outside -180 to 180.
    Raises SceneError if the model maps the border to no valid outline.
    """
    t, model = np.arange(16) / 16.0, image.model
    col = np.concatenate([t, np.ones(16), 1 - t, np.zeros(16)]) * image.width
    row = np.concatenate([np.zeros(16), t, np.ones(16), 1 - t]) * image.height
    try:
        heights = np.full(col.shape, terrain.height)
        lon, lat = model.ground(col, row, heights)
        for _ in range(0 if terrain.dem is None else 5):  # the height depends on the position and vice versa
            heights = terrain.heights(lon, lat)
            lon, lat = model.ground(col, row, heights)
    except ProjError as error:
        raise SceneError(
            f"{image.path}: its coordinate system cannot be converted to longitude and latitude: {error}"
        ) from error
    except ValueError as error:
        raise SceneError(f"{image.path}: {error}") from error
    if not (np.isfinite(lon).all() and np.isfinite(lat).all() and np.abs(lat).max() <= 90):
        raise SceneError(f"{image.path}: its georeference leads to coordinates that are not on Earth")
    if abs(np.sum((np.diff(lon, append=lon[0]) + 180.0) % 360.0 - 180.0)) > 180.0:
        raise SceneError(f"{image.path}: it contains a pole, so it has no outline in longitude and latitude")
    lon = lon[0] + (lon - lon[0] + 180.0) % 360.0 - 180.0  # continuous across the antimeridian
    lon -= 360.0 * np.rint((lon.min() + lon.max()) / 720.0)  # its centre lies within -180 to 180
    if max(np.ptp(lon) * np.cos(np.radians(lat.mean())), np.ptp(lat)) > MAX_EXTENT:
        raise SceneError(
            f"{image.path}: it spans {np.ptp(lon):.0f} x {np.ptp(lat):.0f} degrees, too much for a UTM zone"
        )
    footprint = shapely.Polygon(np.column_stack([lon, lat]))
    if not footprint.is_valid or footprint.area == 0:
        raise SceneError(f"{image.path}: its outline on the ground intersects itself or is empty")
    return footprint


def measure_gsd(image: Image) -> float:
    """Ground sampling distance, m: the side of a square with the area of the centre pixel on the ground.

    For a map projection in metres with a scale error below 0.2 %, it is the pixel size on the map. So neighbouring
    scenes of 10 m have 10 m, and not 10.004 m or 9.997 m.
    """
    col, row = np.array([0.0, 1.0, 0.0]) + image.width // 2, np.array([0.0, 0.0, 1.0]) + image.height // 2
    lon, lat = image.model.ground(col, row, np.full(3, make_flat_terrain(image.model).height))
    x, y = to_tangent_plane(lon, lat)
    area = abs((x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0]))
    if isinstance(image.model, Georeferenced):
        crs, map_size = parse(image.model.crs), math.sqrt(abs(Affine(*image.model.transform).determinant))
        in_metres = crs.is_projected and all(axis.unit_conversion_factor == 1 for axis in crs.axis_info)
        if in_metres and abs(math.sqrt(area) / map_size - 1) < 0.002:
            return round(map_size, 3)
    # Rounded to 1 mm, so that a reprojected pixel of 30 m does not become a grid of 29.9999997 m.
    return round(float(np.sqrt(area)), 3)


def to_tangent_plane(lon: Floats, lat: Floats) -> tuple[Floats, Floats]:
    """Project longitude and latitude to metres east and north of the first point (Lambert azimuthal equal-area)."""
    # A transformer would take 20 ms to create, a hundred times as long.
    x, y = Proj(f"+proj=laea +lon_0={lon[0]} +lat_0={lat[0]} +datum=WGS84")(lon, lat)
    return x, y
