"""Scenes that are made up, for measurements of large data sets: their pixels are never read."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import shapely

from pipeline.catalog.table import Entry
from pipeline.config import BuildConfig
from pipeline.geometry.sensor import Georeferenced
from pipeline.geometry.terrain import Terrain
from pipeline.imaging.radiometry import Stretch
from pipeline.scenes.scene import Image, Scene

SIDE, TILE, GSD = 100, 8, 100.0
"""Rows and columns of tiles of a scene, side of a tile, px, and ground sampling distance, m."""


def make_entry(number: int) -> Entry:
    """A scene of SIDE x SIDE tiles, on a grid of places between 60 degrees south and north, dates on top of it."""
    places = 360 * 100
    lon, lat = number % 360 - 179.5, (number // 360) % 100 * 1.2 - 60
    half = (SIDE + 2) * TILE * GSD / 2 / 111_000  # room for all tiles wherever the lattice begins
    height, width = half, half / np.cos(np.radians(lat))
    footprint = shapely.box(lon - width, lat - height, lon + width, lat + height)
    model = Georeferenced("EPSG:4326", (1e-3, 0.0, lon, 0.0, -1e-3, lat))
    image = Image(f"/scene-{number:06d}.tif", ("blue", "green", "red"), 900, 900, "uint8", None, GSD, model)
    acquired = datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=number // places)
    return Entry(
        Scene(
            id=f"scene-{number:06d}", satellite="MADE", sensor="", level="L2A", acquired=acquired, gsd=GSD,
            images=(image,), pan=None, delivery=image.path, files=(), bytes=1, metadata_digest="0" * 64,
            footprint=footprint, metadata={},
        ),
        Terrain(None, 0.0, None), Stretch(0, 255), 0.0,
    )  # fmt: skip


def make_config(root: Path) -> BuildConfig:
    grid = {"tile": TILE, "stride": TILE, "block": 16}
    return BuildConfig.model_validate(
        {"out": str(root), "survey": {"scenes": ["/"]}, "labels": {"landcover": ["/"]}, "grid": grid}
    )
