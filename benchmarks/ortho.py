"""Orthorectification of full-size scenes against GDAL's warp: how fast, how far apart, and in how much memory.

A GF-2 scene of 7300 x 6908 px, 4 bands of 16 bits, is made with the camera of a real delivery over rough ground in
cells of one arc second. Both sides read it from its file and fill the same grid, on one core, block after block or
however the side sees fit, the two in turn. The bands are zigzags along the image's columns and rows, so that the
distance between the two results is known in pixels. Then a panchromatic scene of 29200 x 27620 px is built into a
tile store, and the process says how much memory it has taken at most.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from affine import Affine
from rasterio.warp import Resampling, reproject

from benchmarks.process import most_memory
from geokr.dataset import store
from pipeline.catalog.table import Entry
from pipeline.config import TilesConfig
from pipeline.geometry.grid import TileGrid, make_scene_grid
from pipeline.geometry.terrain import Terrain
from pipeline.imaging.ortho import orthorectify
from pipeline.imaging.radiometry import Stretch
from pipeline.runtime.worker import configure_libraries
from pipeline.scenes.footprint import image_footprint
from pipeline.scenes.gaofen import parse_rpb
from pipeline.scenes.scene import Image, Scene
from pipeline.tasks.tiles import TileJob, build_tiles

STEM = "GF2_PMS1_W91.0_N17.6_20200510_L1A0004793969"
MSS, PAN = (7300, 6908, 4, 3.24), (29200, 27620, 1, 0.81)
"""Width, height, bands, GSD in m."""
PERIOD, STEEP = 2048, 60
"""A zigzag's length, px, and its slope, grey values a pixel."""
ROUGH = 6000.0
"""Heights of the ground from its lowest to its highest place, m: slopes of some 22 degrees in the mean."""
LIMIT = 1 << 30


def zigzag(places: npt.NDArray[np.int64]) -> npt.NDArray[np.uint16]:
    return (100 + STEEP * np.abs(places % PERIOD - PERIOD // 2)).astype(np.uint16)


def make_scene(folder: Path, rpb: Path, size: tuple[int, int, int, float]) -> Image:
    """An uncompressed TIFF in strips, as delivered, whose bands go up and down along columns and rows in turn."""
    width, height, bands, _ = size
    path = folder / f"{rpb.stem}.tiff"
    shutil.copyfile(rpb, folder / rpb.name)
    along, down = zigzag(np.arange(width)), zigzag(np.arange(height))
    profile: dict[str, Any] = {"driver": "GTiff", "width": width, "height": height, "count": bands, "dtype": "uint16"}
    with open_quietly(path, "w", **profile) as file:
        for top in range(0, height, 512):
            rows = min(512, height - top)
            part = np.empty((bands, rows, width), np.uint16)
            part[0::2], part[1::2] = along, down[top : top + rows, None]
            file.write(part, window=((top, top + rows), (0, width)))
    return described(folder, rpb, size)


def described(folder: Path, rpb: Path, size: tuple[int, int, int, float]) -> Image:
    """The image of a scene that was made."""
    width, height, bands, gsd = size
    names = ("blue", "green", "red", "nir") if bands == 4 else ("pan",)
    return Image(
        str(folder / f"{rpb.stem}.tiff"), names, width, height, "uint16", None, gsd, parse_rpb(rpb.read_text())
    )


def open_quietly(path: Path, *arguments: str, **profile: Any) -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        return rasterio.open(path, *arguments, **profile)


def make_dem(path: Path, image: Image, side: int = 1600) -> str:
    """Rough ground under an image: a field of random phases whose spectrum falls as that of mountains does."""
    rng = np.random.default_rng(1)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    frequency[0, 0] = np.inf
    heights = np.fft.ifft2(np.fft.fft2(rng.normal(size=(side, side))) * frequency**-1.9).real
    heights = (heights - heights.min()) / np.ptp(heights) * ROUGH
    slope = np.degrees(np.arctan(np.hypot(*np.gradient(heights, 30.0)))).mean()
    cell, centre = 1 / 3600, footprint(image, Terrain(None, 0.0)).centroid
    placed = Affine(cell, 0, centre.x - side / 2 * cell, 0, -cell, centre.y + side / 2 * cell)
    profile: dict[str, Any] = {"driver": "GTiff", "width": side, "height": side, "count": 1, "dtype": "float32"}
    with rasterio.open(path, "w", crs="EPSG:4326", transform=placed, **profile) as file:
        file.write(heights.astype(np.float32), 1)
    print(f"ground of {side} x {side} cells, slopes of {slope:.0f} degrees in the mean", file=sys.stderr)
    return str(path)


def footprint(image: Image, terrain: Terrain) -> shapely.Polygon:
    return image_footprint(image, terrain)


@dataclass(frozen=True, slots=True)
class Found:
    """One side's result."""

    pixels: npt.NDArray[np.uint16]
    """(band, y, x)."""
    seconds: float
    """Of a processor: a machine that does other things meanwhile is no slower in them."""


def ours(image: Image, grid: TileGrid, terrain: Terrain) -> tuple[Found, float]:
    """Block after block; also the largest error of their lattices, px."""
    pixels = np.zeros((len(image.bands), *grid.geobox.shape), np.uint16)
    seconds = error = 0.0
    for block in grid:
        began = time.process_time()
        part = orthorectify(block.geobox, image, terrain)
        seconds += time.process_time() - began
        y, x = block.rows.start * grid.stride, block.cols.start * grid.stride
        found = np.where(part.valid[..., None], part.pixels, 0)
        pixels[:, y : y + part.valid.shape[0], x : x + part.valid.shape[1]] = np.moveaxis(found, -1, 0)
        error = max(error, part.lattice.error)
    return Found(pixels, seconds), error


def gdals(image: Image, grid: TileGrid, terrain: Terrain) -> Found:
    """XSCALE and YSCALE hold the kernel to two pixels either way: left to itself it grows, slows down and strays."""
    with open_quietly(Path(image.path)) as file:
        pixels = np.zeros((len(image.bands), *grid.geobox.shape), np.uint16)
        began = time.process_time()
        reproject(
            rasterio.band(file, [*range(1, file.count + 1)]), pixels, rpcs=file.rpcs, src_crs="EPSG:4326",
            dst_transform=grid.geobox.transform, dst_crs=str(grid.geobox.crs), resampling=Resampling.bilinear,
            tolerance=0, num_threads=1, warp_mem_limit=512, RPC_DEM=terrain.dem, XSCALE="1", YSCALE="1",
        )  # fmt: skip
        return Found(pixels, time.process_time() - began)


def apart(first: npt.NDArray[np.uint16], second: npt.NDArray[np.uint16]) -> tuple[float, float]:
    """Distance, px, that 99.9 % of the pixels do not exceed, and the share of pixels that both sides have.

    Left out are pixels two from a fold of the zigzag or from the image's border, where a distance cannot be told.
    """
    top = zigzag(np.array([0]))[0]
    counts = np.zeros(100_000, np.int64)
    for y in range(0, first.shape[1], 512):
        one, two = (side[:2, y : y + 512].astype(np.float32) for side in (first, second))
        told = np.logical_and.reduce([(band > 100 + 2 * STEEP) & (band < top - 2 * STEEP) for band in (*one, *two)])
        distance = np.hypot(*(one - two))[told] / STEEP
        counts += np.bincount(np.minimum(distance * 1000, 99_999).astype(np.int64), minlength=len(counts))
    both = np.count_nonzero((first[0] > 0) & (second[0] > 0))
    either = np.count_nonzero(first[0] | second[0])
    return float(np.searchsorted(np.cumsum(counts), 0.999 * counts.sum()) + 1) / 1000, both / either


def multispectral(folder: Path, rpb: Path, rounds: int) -> bool:
    """The case against GDAL. Whether it is as fast and as near as it is to be."""
    image = make_scene(folder, rpb, MSS)
    terrain = Terrain(make_dem(folder / "dem.tif", image), 0.0)
    grid = make_scene_grid(footprint(image, terrain), image.gsd, 256, 200, 16)
    assert grid is not None
    warm, error = ours(image, grid, terrain)  # compiles, and fills the system's cache of files
    theirs = gdals(image, grid, terrain)
    distance, share = apart(warm.pixels, theirs.pixels)
    mine, others = [], [theirs.seconds]
    for n in range(rounds):
        mine += [ours(image, grid, terrain)[0].seconds for _ in range(3)]
        others += [gdals(image, grid, terrain).seconds] if n else []
    size = grid.geobox.shape[0] * grid.geobox.shape[1] / 1e6
    fast, slow = size / statistics.median(mine), size / statistics.median(others)
    equal = distance <= 0.1 and share > 0.995
    print(
        f"case=ortho-gf2-mss ours={fast:.1f} peer={slow:.2f} unit=Mpx/s ratio={fast / slow:.1f} "
        f"equal={'yes' if equal else 'no'} apart_p99.9={distance:.3f}px lattice_error={error:.4f}px "
        f"peer_is=gdal-{rasterio.__gdal_version__} scene={image.width}x{image.height}x4 "
        f"grid={grid.geobox.shape[1]}x{grid.geobox.shape[0]}",
        flush=True,
    )
    return equal and fast / slow >= 20


def panchromatic(folder: Path, rpb: Path) -> bool:
    """The case of memory, in this process. Whether it stays below LIMIT."""
    image, terrain = described(folder, rpb, PAN), Terrain(str(folder / "dem.tif"), 0.0)
    outlined = footprint(image, terrain)
    grid = make_scene_grid(outlined, image.gsd, 256, 200, 16)
    assert grid is not None
    scene = Scene(
        STEM, "GF2", "PMS1", "L1A", None, image.gsd, (image,), None, image.path, (), 0, "", outlined, {}
    )  # fmt: skip
    root = str(folder / "tiles.zarr")
    sizes: dict[str, Any] = {"bands": 1, "tile": grid.tile, "block": grid.block, "dtype": "uint8"}
    store.create_tiles(root, scene.id, shape=(grid.rows, grid.cols), attributes={}, **sizes)
    began = time.process_time()
    rows, cols = grid.blocks
    entry = Entry(scene, terrain, Stretch(0, 65535), 1.0)
    reports = [build_tiles(TileJob(root, entry, TilesConfig(), grid, i, j)) for i in range(rows) for j in range(cols)]
    seconds = time.process_time() - began
    peak = most_memory()
    size = grid.geobox.shape[0] * grid.geobox.shape[1] / 1e6
    print(
        f"case=ortho-gf2-pan-memory ours={peak / 2**20:.0f} peer={LIMIT >> 20} unit=MiB ratio={peak / LIMIT:.2f} "
        f"scene={image.width}x{image.height} blocks={rows * cols} "
        f"tiles={sum(report.tiles for report in reports)} accepted={sum(report.accepted for report in reports)} "
        f"built_at={size / seconds:.1f}Mpx/s lattice_error={max(report.lattice_error for report in reports):.4f}px",
        flush=True,
    )
    return peak < LIMIT


def main(argv: list[str]) -> int:
    """The command. Exit status 1 where a figure is not what it is to be."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks ortho", description=__doc__)
    default = Path(os.environ.get("GEOKR_REAL_DATA", "data")) / "gaofen" / "originals"
    parser.add_argument("--originals", type=Path, default=default, help="folder of the delivery's own RPB files")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each side (3)")
    parser.add_argument("--only", choices=("mss", "pan"), help="one case alone")
    parser.add_argument("--made", type=Path, help=argparse.SUPPRESS)  # where this command has made the case of memory
    options = parser.parse_args(argv)
    configure_libraries()
    if options.made is not None:
        return 0 if panchromatic(options.made, options.originals / f"{STEM}-PAN1.rpb") else 1
    good = True
    with tempfile.TemporaryDirectory(prefix="geokr-") as temporary:
        folder = Path(temporary)
        if options.only != "pan":
            good = multispectral(folder, options.originals / f"{STEM}-MSS1.rpb", options.rounds)
        if options.only != "mss":  # in a process of its own, whose memory is that of the work alone
            made = make_scene(folder, options.originals / f"{STEM}-PAN1.rpb", PAN)
            make_dem(folder / "dem.tif", made)
            # By its own name: `benchmarks` would import what the other benchmarks need, too.
            command = [sys.executable, "-m", "benchmarks.ortho", "--made", str(folder)]
            good &= subprocess.run([*command, "--originals", str(options.originals)], check=False).returncode == 0
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
