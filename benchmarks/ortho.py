"""Orthorectification of full-size scenes against GDAL's warp: speed, distance between the results, and memory.

A GF-2 scene of 7300 x 6908 px, 4 bands of 16 bits, is made over rough ground in cells of one arc second. Its camera is
that of a real delivery if GEOKR_REAL_DATA/gaofen/originals contains its RPB files (source=real), otherwise a made one
(source=made). Both sides read the scene from its file and fill the same grid on one core, in turn: ours block by block,
GDAL in one call. The bands are zigzags along the image's columns and rows, so that the distance between the two results
is known in pixels. Then a separate process builds a panchromatic scene of 29200 x 27620 px into a tile store and
reports its peak memory.
"""

import argparse
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

from benchmarks.archive import gf2_camera
from benchmarks.process import most_memory
from benchmarks.real_data import real_folder
from geokr.dataset import store
from pipeline.catalog.table import Entry
from pipeline.config import TilesConfig
from pipeline.geometry.grid import TileGrid, make_scene_grid
from pipeline.geometry.terrain import Terrain
from pipeline.imaging.ortho import orthorectify
from pipeline.imaging.radiometry import Stretch
from pipeline.runtime.worker import configure_libraries
from pipeline.sample.camera import fit_rpc
from pipeline.sample.level1a import rpb_text
from pipeline.scenes.footprint import image_footprint
from pipeline.scenes.gaofen import parse_rpb
from pipeline.scenes.scene import Image, Scene
from pipeline.tasks.tiles import TileJob, build_tiles

STEM = "GF2_PMS1_W91.0_N17.6_20200510_L1A0004793969"
"""Name of the real delivery."""
MSS, PAN = (7300, 6908, 4, 3.24), (29200, 27620, 1, 0.81)
"""Width, height, bands, GSD in m."""
PERIOD, STEEP = 2048, 60
"""Length of a zigzag, px, and its slope, grey values per pixel."""
ROUGH = 6000.0
"""Height range of the ground, m: a mean slope of some 22 degrees."""
LIMIT = 1 << 30
"""Highest peak memory for a panchromatic scene, bytes."""


def zigzag(pixel: npt.NDArray[np.int64]) -> npt.NDArray[np.uint16]:
    """Grey values that rise and fall with the pixel's column or row."""
    return (100 + STEEP * np.abs(pixel % PERIOD - PERIOD // 2)).astype(np.uint16)


def rpb_name(part: str) -> str:
    """Name of an RPB file of the delivery. part: MSS1 or PAN1."""
    return f"{STEM}-{part}.rpb"


def write_rpbs(folder: Path) -> None:
    """Write RPB files like those of the delivery, with the rational polynomials of a made camera."""
    folder.mkdir()
    for part, (width, height, _, gsd) in (("MSS1", MSS), ("PAN1", PAN)):
        rpc = fit_rpc(gf2_camera(width, height, gsd), -300.0, ROUGH + 300.0)
        (folder / rpb_name(part)).write_text(rpb_text(rpc), encoding="ascii")


def make_scene(folder: Path, rpb: Path, size: tuple[int, int, int, float]) -> Image:
    """Write an uncompressed TIFF in strips, as delivered. Its bands are zigzags along columns and rows by turns."""
    width, height, bands, _ = size
    path = folder / f"{rpb.stem}.tiff"
    shutil.copyfile(rpb, folder / rpb.name)
    by_column, by_row = zigzag(np.arange(width)), zigzag(np.arange(height))
    profile: dict[str, Any] = {"driver": "GTiff", "width": width, "height": height, "count": bands, "dtype": "uint16"}
    with open_quietly(path, "w", **profile) as file:
        for top in range(0, height, 512):
            rows = min(512, height - top)
            strip = np.empty((bands, rows, width), np.uint16)
            strip[0::2], strip[1::2] = by_column, by_row[top : top + rows, None]
            file.write(strip, window=((top, top + rows), (0, width)))
    return described(folder, rpb, size)


def described(folder: Path, rpb: Path, size: tuple[int, int, int, float]) -> Image:
    """The image that `make_scene` wrote."""
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
    """Write rough ground under an image: a field of random phases with a mountain-like spectrum. Returns its path."""
    rng = np.random.default_rng(1)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    frequency[0, 0] = np.inf
    heights = np.fft.ifft2(np.fft.fft2(rng.normal(size=(side, side))) * frequency**-1.9).real
    heights = (heights - heights.min()) / np.ptp(heights) * ROUGH
    slope = np.degrees(np.arctan(np.hypot(*np.gradient(heights, 30.0)))).mean()
    cell, centre = 1 / 3600, footprint(image, Terrain(None, 0.0)).centroid
    transform = Affine(cell, 0, centre.x - side / 2 * cell, 0, -cell, centre.y + side / 2 * cell)
    profile: dict[str, Any] = {"driver": "GTiff", "width": side, "height": side, "count": 1, "dtype": "float32"}
    with rasterio.open(path, "w", crs="EPSG:4326", transform=transform, **profile) as file:
        file.write(heights.astype(np.float32), 1)
    print(f"ground of {side} x {side} cells with a mean slope of {slope:.0f} degrees", file=sys.stderr)
    return str(path)


def footprint(image: Image, terrain: Terrain) -> shapely.Polygon:
    return image_footprint(image, terrain)


@dataclass(frozen=True, slots=True)
class Found:
    """The result of one side."""

    pixels: npt.NDArray[np.uint16]
    """(band, y, x)."""
    seconds: float
    """CPU time, which other processes on the machine do not lengthen."""


def ours(image: Image, grid: TileGrid, terrain: Terrain) -> tuple[Found, float]:
    """Orthorectify block by block. Returns the result and the largest lattice error of a block, px."""
    pixels = np.zeros((len(image.bands), *grid.geobox.shape), np.uint16)
    seconds = error = 0.0
    for block in grid:
        began = time.process_time()
        ortho = orthorectify(block.geobox, image, terrain)
        seconds += time.process_time() - began
        y, x = block.rows.start * grid.stride, block.cols.start * grid.stride
        height, width = ortho.valid.shape
        filled = np.where(ortho.valid[..., None], ortho.pixels, 0)
        pixels[:, y : y + height, x : x + width] = np.moveaxis(filled, -1, 0)
        error = max(error, ortho.lattice.error)
    return Found(pixels, seconds), error


def gdals(image: Image, grid: TileGrid, terrain: Terrain) -> Found:
    """Warp with GDAL. XSCALE and YSCALE limit the kernel to two pixels; otherwise it grows, slows down and shifts."""
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
    """The 99.9th percentile of the distance, px, and the share of pixels that both results have among all pixels.

    Pixels within two of a fold of the zigzag or of the image's border do not count: their distance is ambiguous.
    """
    top = zigzag(np.array([0]))[0]
    counts = np.zeros(100_000, np.int64)
    for y in range(0, first.shape[1], 512):
        one, two = (result[:2, y : y + 512].astype(np.float32) for result in (first, second))
        clear = np.logical_and.reduce([(band > 100 + 2 * STEEP) & (band < top - 2 * STEEP) for band in (*one, *two)])
        distance = np.hypot(*(one - two))[clear] / STEEP
        counts += np.bincount(np.minimum(distance * 1000, 99_999).astype(np.int64), minlength=len(counts))
    both = np.count_nonzero((first[0] > 0) & (second[0] > 0))
    either = np.count_nonzero(first[0] | second[0])
    return float(np.searchsorted(np.cumsum(counts), 0.999 * counts.sum()) + 1) / 1000, both / either


def multispectral(folder: Path, rpb: Path, source: str, rounds: int) -> bool:
    """Run the case against GDAL. Returns whether the results are equal and ours is 20 times as fast."""
    image = make_scene(folder, rpb, MSS)
    terrain = Terrain(make_dem(folder / "dem.tif", image), 0.0)
    grid = make_scene_grid(footprint(image, terrain), image.gsd, 256, 200, 16)
    assert grid is not None
    warm_up, error = ours(image, grid, terrain)  # compiles, and fills the page cache
    warped = gdals(image, grid, terrain)
    distance, share = apart(warm_up.pixels, warped.pixels)
    our_seconds, gdal_seconds = [], [warped.seconds]
    for n in range(rounds):
        our_seconds += [ours(image, grid, terrain)[0].seconds for _ in range(3)]
        gdal_seconds += [gdals(image, grid, terrain).seconds] if n else []
    size = grid.geobox.shape[0] * grid.geobox.shape[1] / 1e6
    our_rate, gdal_rate = size / statistics.median(our_seconds), size / statistics.median(gdal_seconds)
    equal = distance <= 0.1 and share > 0.995
    print(
        f"case=ortho-gf2-mss ours={our_rate:.1f} peer={gdal_rate:.2f} unit=Mpx/s ratio={our_rate / gdal_rate:.1f} "
        f"equal={'yes' if equal else 'no'} apart_p99.9={distance:.3f}px lattice_error={error:.4f}px "
        f"peer_is=gdal-{rasterio.__gdal_version__} scene={image.width}x{image.height}x4 "
        f"grid={grid.geobox.shape[1]}x{grid.geobox.shape[0]} source={source}",
        flush=True,
    )
    return equal and our_rate / gdal_rate >= 20


def panchromatic(folder: Path, rpb: Path, source: str) -> bool:
    """Run the memory case, in this process. Returns whether its peak memory is below LIMIT."""
    image, terrain = described(folder, rpb, PAN), Terrain(str(folder / "dem.tif"), 0.0)
    outline = footprint(image, terrain)
    grid = make_scene_grid(outline, image.gsd, 256, 200, 16)
    assert grid is not None
    scene = Scene(
        STEM, "GF2", "PMS1", "L1A", None, image.gsd, (image,), None, image.path, (), 0, "", outline, {}
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
        f"built_at={size / seconds:.1f}Mpx/s lattice_error={max(report.lattice_error for report in reports):.4f}px "
        f"source={source}",
        flush=True,
    )
    return peak < LIMIT


def main(argv: list[str]) -> int:
    """Run the command. The exit status is 1 if a result misses its target."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks ortho", description=__doc__)
    default = real_folder("gaofen") / "originals"
    parser.add_argument("--originals", type=Path, default=default, help="folder of the delivery's own RPB files")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each side (%(default)s)")
    parser.add_argument("--only", choices=("mss", "pan"), help="run only this case")
    # For the process of the memory case: the folder of its scene, and where the camera comes from.
    parser.add_argument("--made", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--source", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    configure_libraries()
    if options.made is not None:
        return 0 if panchromatic(options.made, options.originals / rpb_name("PAN1"), options.source) else 1
    passed = True
    with tempfile.TemporaryDirectory(prefix="geokr-") as temporary:
        folder, originals, source = Path(temporary), options.originals, "real"
        if not all((originals / rpb_name(part)).is_file() for part in ("MSS1", "PAN1")):
            originals, source = folder / "originals", "made"
            write_rpbs(originals)
        if options.only != "pan":
            passed = multispectral(folder, originals / rpb_name("MSS1"), source, options.rounds)
        if options.only != "mss":  # in a separate process, whose memory is that of the work alone
            image = make_scene(folder, originals / rpb_name("PAN1"), PAN)
            make_dem(folder / "dem.tif", image)
            # `python -m benchmarks ortho` would also import what the other benchmarks need.
            command = [sys.executable, "-m", "benchmarks.ortho", "--made", str(folder), "--source", source]
            passed &= subprocess.run([*command, "--originals", str(originals)], check=False).returncode == 0
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
