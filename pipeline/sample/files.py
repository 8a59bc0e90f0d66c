"""The sample world as files: deliveries in the Gaofen format, a DEM, land-cover sheets and the truth about them.

The same seed gives the same bytes. The world does not imitate the real landscape at 104.4 E, 25 N, but every file has
the format of a real one.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine

from geokr.crs import transformer
from pipeline.geometry.sensor import Floats
from pipeline.sample.camera import Camera, Pixels
from pipeline.sample.level1a import Shot, find_height_range, write_delivery
from pipeline.sample.world import CENTRE, CRS, World, noise

MARGIN = 3000.0
"""Distance by which the DEM and the sheets extend beyond the scenes, and the sheets across 25 N, m."""
SHEET_CORNER = (178_529.912, 2_206_747.510)
"""A pixel corner of a real GlobeLand30 sheet in this zone, m: real sheets are not aligned to round numbers."""
HAZE = np.array([60.0, 40.0, 25.0, 10.0])
"""Digital numbers that full haze adds to each band."""
CLOUD = 640.0
"""Digital number of a cloud, the same in all bands."""


def place_camera(
    east: float, north: float, altitude: float, heading: float, roll: float, pitch: float, gsd: float, size: str
) -> Camera:
    """Return a camera whose image is centred at an offset (east, north), m, from the world's centre.

    size: `<width>x<height>`, px.
    """
    width, height = map(int, size.split("x"))
    return Camera(CRS, CENTRE[0] + east, CENTRE[1] + north, 1500, altitude, heading, roll, pitch, gsd, width, height)


SHOTS = (
    Shot(
        "GF2", "PMS1", "MSS1", datetime(2020, 4, 12, 3, 58, 21, tzinfo=UTC), 4745104,
        place_camera(-3600, 700, 631_000, 193, 14, 1, 8, "1000x1150"), archive=False, haze=0.3, clouds=0,
    ),
    Shot(
        "GF1", "PMS2", "MSS2", datetime(2020, 9, 5, 4, 5, 47, tzinfo=UTC), 5046512,
        place_camera(3400, -900, 645_000, 188, -18, 0, 8, "1040x1120"), archive=True, haze=0.6, clouds=0,
    ),
    Shot(
        "GF1", "WFV2", "", datetime(2020, 11, 20, 4, 21, 3, tzinfo=UTC), 5210977,
        place_camera(200, -300, 645_000, 347, 11, -1, 16, "860x740"), archive=True, haze=0.9, clouds=0,
    ),
    Shot(
        "GF6", "PMS", "MUX", datetime(2020, 6, 30, 3, 36, 12, tzinfo=UTC), 1120012345,
        place_camera(-3100, 1500, 645_000, 196, -21, -2, 8, "980x1180"), archive=False, haze=0.5, clouds=0,
    ),
    Shot(
        "GF1C", "PMS", "MUX", datetime(2020, 2, 17, 4, 10, 55, tzinfo=UTC), 1021398065,
        place_camera(3900, 400, 645_000, 349, -24, 2, 8, "1020x1140"), archive=True, haze=0.7, clouds=0.14,
    ),
    Shot(
        "GF1", "PMS1", "MSS1", datetime(2020, 12, 8, 4, 1, 38, tzinfo=UTC), 5268841,
        place_camera(500, -1900, 645_000, 186, -10, 1, 8, "960x1100"), archive=False, haze=0.4, clouds=0,
    ),
)  # fmt: skip
"""The sample's scenes: two pairs, each of one place at two dates from opposite sides, and two that overlap both."""


def make_view(world: World, shot: Shot) -> Pixels:
    """Return the function of what a delivery's camera sees: 10-bit digital numbers, 1 .. 1023, in four bands."""
    c, sun = shot.camera, shot.sun
    gain = 1000.0 * (1.0 - 0.15 * shot.haze)
    salt = 1000 + shot.product % 1000

    def thickness(e: Floats, n: Floats) -> Floats:
        return noise(e, n, 1900.0, world.seed, salt) + 0.3 * noise(e, n, 450.0, world.seed, salt + 1)

    col, row = np.meshgrid(np.linspace(0, c.width, 120), np.linspace(0, c.height, 120))
    threshold = float(np.quantile(thickness(*c.locate(col, row, np.array(c.up))), 1.0 - shot.clouds))

    def pixels(e: Floats, n: Floats, height: Floats) -> Floats:
        number = gain * world.reflectance(e, n, sun)
        number += (shot.haze * HAZE).reshape(-1, *[1] * np.ndim(e))
        if shot.clouds:
            opaque = np.clip((thickness(e, n) - threshold) / 0.08 + 0.5, 0.0, 1.0)
            number += opaque * (CLOUD - number)
        return np.clip(number, 1.0, 1023.0)

    return pixels


Box = tuple[float, float, float, float]
"""Left, bottom, right and top in `CRS`, m."""


def surrounding_box(shots: Sequence[Shot]) -> Box:
    """The bounding box of the deliveries' images, extended by `MARGIN`."""
    corners = []
    for shot in shots:
        c = shot.camera
        col, row = np.array([0.0, c.width, c.width, 0.0]), np.array([0.0, 0.0, c.height, c.height])
        corners.append(np.stack(c.locate(col, row, np.array(c.up)), axis=-1))
    points = np.concatenate(corners)
    (left, bottom), (right, top) = points.min(axis=0) - MARGIN, points.max(axis=0) + MARGIN
    return float(left), float(bottom), float(right), float(top)


def write_dem(path: Path, world: World, box: Box) -> None:
    """Write the ground heights above the ellipsoid at the centres of one arc-second cells: float32, EPSG:4326."""
    left, bottom, right, top = box
    x, y = np.array([left, right, right, left]), np.array([bottom, bottom, top, top])
    lon, lat = transformer(CRS, "EPSG:4326").transform(x, y)
    west, east = int(np.floor(lon.min() * 3600)), int(np.ceil(lon.max() * 3600))
    south, north = int(np.floor(lat.min() * 3600)), int(np.ceil(lat.max() * 3600))
    lons, lats = (np.arange(west, east) + 0.5) / 3600, (np.arange(north, south, -1) - 0.5) / 3600
    e, n = transformer("EPSG:4326", CRS).transform(*np.meshgrid(lons, lats))
    transform = Affine(1 / 3600, 0, west / 3600, 0, -1 / 3600, north / 3600)
    write_raster(path, world.height(e, n).astype(np.float32), "EPSG:4326", transform, predictor=3)


def write_sheets(directory: Path, world: World, box: Box) -> list[Path]:
    """Write land cover in the GlobeLand30 format: a sheet on each side of 25 N, each extending `MARGIN` across it.

    uint8, 30 m, no nodata tag, cropped to `box`. A pixel has the value of `World.mapped` at its centre.
    """
    left, bottom, right, top = box
    middle = CENTRE[1]
    paths = []
    for sheet, low, high in ((20, bottom, min(top, middle + MARGIN)), (25, max(bottom, middle - MARGIN), top)):
        if low >= high:
            continue
        (c0, c1), (r0, r1) = (
            (int(np.floor((start - origin) / 30)), int(np.ceil((stop - origin) / 30)))
            for start, stop, origin in ((left, right, SHEET_CORNER[0]), (low, high, SHEET_CORNER[1]))
        )
        transform = Affine(30, 0, SHEET_CORNER[0] + 30 * c0, 0, -30, SHEET_CORNER[1] + 30 * r1)
        x = transform.c + 30 * (np.arange(c1 - c0) + 0.5)
        y = transform.f - 30 * (np.arange(r1 - r0) + 0.5)
        path = directory / f"n48_{sheet}_2020lc030.tif"
        e, n = np.meshgrid(x, y)
        write_raster(path, world.mapped(e, n, sheet), CRS, transform)
        paths.append(path)
    return paths


def write_raster(path: Path, values: npt.NDArray[Any], crs: str, transform: Affine, **options: Any) -> None:
    """Write a GeoTIFF with one band."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=1, dtype=values.dtype, crs=crs,
        transform=transform, compress="deflate", tiled=True, blockxsize=256, blockysize=256, **options,
    ) as target:  # fmt: skip
        target.write(values, 1)


def write_world(
    directory: Path,
    seed: int = 0,
    outdated: float = 0.08,
    shots: Sequence[Shot] = SHOTS,
    say: Callable[[str], None] = lambda line: None,
) -> World:
    """Write the world of a seed as files: `dem.tif`, `landcover/`, `scenes/` and, at the end, `truth.json`.

    say: called with the name of each file after it is written. The truth contains the parameters of the `World` and of
    each `Camera`.
    """
    world = World.from_seed(seed, outdated)
    truth = directory / "truth.json"
    directory.mkdir(parents=True, exist_ok=True)
    truth.unlink(missing_ok=True)
    box = surrounding_box(shots)
    write_dem(directory / "dem.tif", world, box)
    say("dem.tif")
    for path in write_sheets(directory / "landcover", world, box):
        say(path.relative_to(directory).as_posix())
    scenes = []
    for shot in shots:
        path = write_delivery(directory / "scenes", shot, world.height, make_view(world, shot))
        say(path.relative_to(directory).as_posix())
        values = asdict(shot) | {"acquired": shot.acquired.isoformat()}
        heights = find_height_range(shot.camera, world.height)
        scenes.append({"id": shot.name, "file": path.relative_to(directory).as_posix(), "relief": heights, **values})
    text = json.dumps({"seed": seed, "outdated": outdated, "world": asdict(world), "scenes": scenes}, indent=1)
    truth.write_text(text + "\n", encoding="utf-8")
    say(truth.name)
    return world
