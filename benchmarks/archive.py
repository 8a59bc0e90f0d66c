"""Made archives for benchmarks: scenes of 7300 x 6908 px with four 16-bit bands over rough ground; many small ones."""

import warnings
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import cv2
import numpy as np
import rasterio
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning

from pipeline.sample.camera import Camera, fit_rpc
from pipeline.sample.files import SHOTS, place_camera, surrounding_box, write_dem, write_sheets
from pipeline.sample.level1a import Shot, find_height_range, rpb_text, xml_text
from pipeline.sample.world import World

WIDTH, HEIGHT = 7300, 6908
"""Size of a GF-2 multispectral image, px."""
GSD = 3.24
"""Ground sampling distance of a GF-2 multispectral image, m."""


def gf2_camera(width: int = WIDTH, height: int = HEIGHT, gsd: float = GSD) -> Camera:
    """A camera at GF-2's altitude, rolled by 14 degrees, that looks at the centre of the sample world."""
    return place_camera(0, 0, 631_000, 193, 14, 1, gsd, f"{width}x{height}")


def shots(count: int, width: int = WIDTH, height: int = HEIGHT) -> list[Shot]:
    """Deliveries of one place, one day apart."""
    first = replace(SHOTS[0], camera=gf2_camera(width, height))
    return [
        replace(first, acquired=first.acquired + timedelta(days=k), product=first.product + k) for k in range(count)
    ]


def write_archive(directory: Path, count: int, width: int = WIDTH, height: int = HEIGHT) -> None:
    """Write `scenes/`, `dem.tif` and `landcover/`.

    The pixels are 10-bit smooth noise of several sizes plus sensor noise: as hard to compress as real pixels, and
    made in seconds. All scenes share the first one's image by hard links.
    """
    world, deliveries = World.from_seed(0), shots(count, width, height)
    box = surrounding_box(deliveries)
    write_dem(directory / "dem.tif", world, box)
    write_sheets(directory / "landcover", world, box)
    rng = np.random.default_rng(0)
    pixels = np.empty((height, width, 4), np.uint16)
    for band in range(4):
        ground = np.full((height, width), 400 + 60 * band, np.float32)
        for cell, sigma in ((700, 90), (120, 60), (24, 40), (6, 20)):
            noise = rng.normal(0, sigma, (height // cell + 3, width // cell + 3)).astype(np.float32)
            ground += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        ground += rng.normal(0, 4, ground.shape).astype(np.float32)
        pixels[..., band] = np.clip(ground, 1, 1023)
    first: Path | None = None
    for shot in deliveries:
        folder = directory / "scenes" / shot.name
        folder.mkdir(parents=True, exist_ok=True)
        low, high = find_height_range(shot.camera, world.height)
        rpc = fit_rpc(shot.camera, low - 300, high + 300)
        (folder / f"{shot.image}.rpb").write_text(rpb_text(rpc), encoding="ascii")
        (folder / f"{shot.image}.xml").write_text(xml_text(shot), encoding="utf-8")
        image = folder / f"{shot.image}.tiff"
        if first is not None:
            image.hardlink_to(first)
            continue
        first = image
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(
                image, "w", driver="GTiff", width=width, height=height, count=4, dtype="uint16", interleave="pixel"
            ) as target:
                target.write(np.moveaxis(pixels, -1, 0))


def write_many(directory: Path, count: int) -> None:
    """Write `scenes/`, small GeoTIFFs of noise with room for nine tiles of 32 px each, and `landcover/`."""
    write_sheets(directory / "landcover", World.from_seed(0), surrounding_box(SHOTS[:1]))
    camera = SHOTS[0].camera
    rng = np.random.default_rng(0)
    (directory / "scenes").mkdir(parents=True)
    for k in range(count):
        transform = Affine(8, 0, camera.east // 8 * 8 + 8 * (k % 30), 0, -8, camera.north // 8 * 8 - 8 * (k // 30))
        with rasterio.open(
            directory / "scenes" / f"scene{k:04d}.tif", "w", driver="GTiff", width=100, height=100, count=3,
            dtype="uint8", crs=camera.crs, transform=transform,
        ) as target:  # fmt: skip
            target.write(rng.integers(20, 220, (3, 100, 100), dtype=np.uint8))
