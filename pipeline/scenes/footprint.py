"""Where an image lies on the ground, from its sensor model."""

import math

import numpy as np
import shapely
from affine import Affine
from pyproj import CRS
from pyproj.exceptions import ProjError

from geokr.crs import transformer
from pipeline.geometry.sensor import Floats, Georeferenced, SensorModel
from pipeline.geometry.terrain import Terrain
from pipeline.scenes.scene import Image, SceneError

WIDEST = 20.0
"""An image of more degrees of a great circle than this, some 2,200 km, is no scene."""


def flat_terrain(model: SensorModel) -> Terrain:
    """The ground where nothing else is known: at the height about which an RPC was fitted."""
    return Terrain(None, 0.0 if isinstance(model, Georeferenced) else model.height_off)


def image_footprint(image: Image, terrain: Terrain) -> shapely.Polygon:
    """Where an image lies on the ground: its border, 16 points a side, longitude and latitude in degrees.

    From the sensor model, not from the corners in the XML, which lie up to kilometres off.
    Raises SceneError where the model has no ground for it.
    """
    t, model = np.arange(16) / 16.0, image.model
    col = np.concatenate([t, np.ones(16), 1 - t, np.zeros(16)]) * image.width
    row = np.concatenate([np.zeros(16), t, np.ones(16), 1 - t]) * image.height
    try:
        heights = np.full(col.shape, terrain.height)
        lon, lat = model.ground(col, row, heights)
        for _ in range(0 if terrain.dem is None else 5):  # the height depends on the place, the place on the height
            heights = terrain.heights(lon, lat)
            lon, lat = model.ground(col, row, heights)
    except ProjError as error:
        raise SceneError(
            f"{image.path}: its coordinate system does not lead to longitude and latitude: {error}"
        ) from error
    except ValueError as error:
        raise SceneError(f"{image.path}: {error}") from error
    if not (np.isfinite(lon).all() and np.isfinite(lat).all() and np.abs(lat).max() <= 90):
        raise SceneError(f"{image.path}: its georeference leads to no place on Earth")
    if abs(np.sum((np.diff(lon, append=lon[0]) + 180.0) % 360.0 - 180.0)) > 180.0:
        raise SceneError(f"{image.path}: it holds a pole, round which no outline in longitude and latitude goes")
    lon = lon[0] + (lon - lon[0] + 180.0) % 360.0 - 180.0  # in one piece where it crosses the antimeridian
    if max(np.ptp(lon) * np.cos(np.radians(lat.mean())), np.ptp(lat)) > WIDEST:
        raise SceneError(
            f"{image.path}: it spans {np.ptp(lon):.0f} x {np.ptp(lat):.0f} degrees, too much for a UTM zone"
        )
    footprint = shapely.Polygon(np.column_stack([lon, lat]))
    if not footprint.is_valid or footprint.area == 0:
        raise SceneError(f"{image.path}: its outline on the ground crosses itself or is empty")
    return footprint


def measure_gsd(image: Image) -> float:
    """Side of a square with the area of the middle pixel on the ground, m.

    On a map in metres, and nearly true to scale there, it is the side of the pixel on the map: neighbouring scenes
    of 10 m have 10 m, and not 10.004 m or 9.997 m each.
    """
    col, row = np.array([0.0, 1.0, 0.0]) + image.width // 2, np.array([0.0, 0.0, 1.0]) + image.height // 2
    lon, lat = image.model.ground(col, row, np.full(3, flat_terrain(image.model).height))
    x, y = to_tangent_plane(lon, lat)
    area = abs((x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0]))
    if isinstance(image.model, Georeferenced):
        crs, on_map = CRS.from_user_input(image.model.crs), math.sqrt(abs(Affine(*image.model.transform).determinant))
        metres = crs.is_projected and all(axis.unit_conversion_factor == 1 for axis in crs.axis_info)
        if metres and abs(math.sqrt(area) / on_map - 1) < 0.002:
            return round(on_map, 3)
    # To the millimetre: a reprojected pixel of 30 m must not become a grid of 29.9999997 m.
    return round(float(np.sqrt(area)), 3)


def to_tangent_plane(lon: Floats, lat: Floats) -> tuple[Floats, Floats]:
    """Metres east and north of the first point, on its tangent plane."""
    crs = f"+proj=laea +lon_0={lon[0]} +lat_0={lat[0]} +datum=WGS84"
    x, y = transformer("EPSG:4326", crs).transform(lon, lat)
    return x, y
