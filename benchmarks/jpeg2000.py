"""Tiles of a Sentinel-2 scene in JPEG 2000 against the same pixels as COG, and against GDAL's own reading.

Four bands of 16 bits are written as Sentinel-2 has them, lossless JPEG 2000 in tiles of 1024 px, and as COG. The tiles
of both are made by the functions of a build, on all cores, up to the arrays that a build writes. GDAL reads the same
JPEG 2000 on one thread, each band once as a whole, and does nothing else with it.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.shutil
from affine import Affine

from pipeline.config import SurveyConfig, TilesConfig
from pipeline.geometry.grid import TileGrid, make_scene_grid
from pipeline.scenes.delivery import read_delivery
from pipeline.scenes.discovery import find_deliveries
from pipeline.scenes.scene import Scene
from pipeline.tasks.survey import survey
from pipeline.tasks.tiles import TileJob, make_tiles

STEM, BANDS = "T32TQM_20210601T101031", ("B04", "B03", "B02", "B08")
ORIGIN = (600_000.0, 4_900_020.0)
Tiles = npt.NDArray[Any]


def main(argv: list[str]) -> int:
    """Run the command. The exit status is 1 if the tiles differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks jpeg2000", description=__doc__)
    parser.add_argument("--side", type=int, default=3200, help="side of the scene, px (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each, of which the best counts")
    parser.add_argument("--dir", type=Path, help="where to write (the system's temporary folder)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        folder = Path(name)
        os.environ["GEOKR_SCRATCH"] = f"{name}/scratch"
        write_scene(folder, options.side)
        jobs = {kind: list_jobs(folder / kind) for kind in ("jp2", "tif")}
        return compare(folder, jobs, options.rounds)


def write_scene(folder: Path, side: int) -> None:
    """Write the bands twice: smooth ground with the noise of a sensor. All bands are the same, but for their place."""
    rng = np.random.default_rng(0)
    ground = cv2.GaussianBlur(rng.normal(0, 1, (side, side)).astype(np.float32), (0, 0), 4)
    ground = ground * 4000 + 2500 + rng.normal(0, 25, ground.shape)
    pixels = np.clip(ground, 1, 15_000).astype(np.uint16)
    place = {"crs": "EPSG:32632", "transform": Affine(10, 0, ORIGIN[0], 0, -10, ORIGIN[1])}
    profile = {"width": side, "height": side, "count": 1, "dtype": "uint16", **place}
    # Copied, since rasterio drops BLOCKXSIZE otherwise: the tiles would be as wide as the scene.
    jp2 = {"driver": "JP2OpenJPEG", "QUALITY": 100, "REVERSIBLE": "YES", "BLOCKXSIZE": 1024, "BLOCKYSIZE": 1024}
    cog = {"driver": "COG", "COMPRESS": "DEFLATE", "PREDICTOR": "YES", "OVERVIEWS": "NONE"}
    (folder / "jp2").mkdir()
    (folder / "tif").mkdir()
    for k, band in enumerate(BANDS):
        with rasterio.MemoryFile() as memory:
            with memory.open(driver="GTiff", **profile) as file:
                file.write(np.roll(pixels, 37 * k, axis=0), 1)
            for kind, form in (("jp2", jp2), ("tif", cog)):
                rasterio.shutil.copy(memory.name, band_file(folder, kind, band), **form)


def band_file(folder: Path, kind: str, band: str) -> Path:
    return folder / kind / f"{STEM}_{band}_10m.{kind}"


def list_jobs(folder: Path) -> list[TileJob]:
    """The jobs of a build with the scene in a folder, one a block."""
    (scene,) = (scene for delivery in find_deliveries([folder]) for scene in read_delivery(delivery))
    assert isinstance(scene, Scene), scene
    entry = survey(scene, SurveyConfig(scenes=[str(folder)], radiometry="dn"))
    grid = make_scene_grid(entry.scene.footprint, entry.scene.gsd, 256, 200, 8)
    assert grid is not None
    return [TileJob("", entry, TilesConfig(), grid, i, j) for i, j in np.ndindex(grid.blocks)]


def build(jobs: Sequence[TileJob], pool: ThreadPoolExecutor) -> tuple[Tiles, float]:
    """Make all blocks on all cores. Returns the tiles, (row, col, band, y, x), and the time that it took, s."""
    grid = jobs[0].grid
    shutil.rmtree(os.environ["GEOKR_SCRATCH"], ignore_errors=True)  # each time, all is decoded
    began = time.perf_counter()
    blocks = [*pool.map(make_tiles, jobs)]
    seconds = time.perf_counter() - began
    tiles = np.zeros((grid.rows, grid.cols, len(BANDS), grid.tile, grid.tile), np.uint16)
    for job, (arrays, status, _) in zip(jobs, blocks, strict=True):
        block = grid.block_at(job.i, job.j)
        tiles[block.rows, block.cols] = np.where((status == 1)[..., None, None, None], arrays["image"], 0)
    return tiles, seconds


def read_with_gdal(folder: Path, grid: TileGrid) -> tuple[Tiles, float]:
    """Read the bands on one thread, by GDAL alone, and cut the tiles. Returns them and the time of reading, s.

    Each band is read once, as a whole, so that nothing is decoded twice.
    """
    transform = grid.geobox.transform
    left, top = round((transform.c - ORIGIN[0]) / 10), round((ORIGIN[1] - transform.f) / 10)
    began = time.perf_counter()
    with rasterio.Env(GDAL_NUM_THREADS=1), ExitStack() as stack:
        files = [stack.enter_context(rasterio.open(band_file(folder, "jp2", band))) for band in BANDS]
        bands = np.stack([file.read(1) for file in files])
    seconds = time.perf_counter() - began
    tiles = np.zeros((grid.rows, grid.cols, len(BANDS), grid.tile, grid.tile), np.uint16)
    for row, col in np.ndindex(grid.rows, grid.cols):
        y, x = top + row * grid.stride, left + col * grid.stride
        if min(x, y) >= 0 and y + grid.tile <= bands.shape[1] and x + grid.tile <= bands.shape[2]:
            tiles[row, col] = bands[:, y : y + grid.tile, x : x + grid.tile]
    return tiles, seconds


def compare(folder: Path, jobs: dict[str, list[TileJob]], rounds: int) -> int:
    """Compare the tiles, then the times. Returns the exit status."""
    cores = len(os.sched_getaffinity(0))
    grid, seconds = jobs["jp2"][0].grid, {"jp2": np.inf, "tif": np.inf, "gdal": np.inf}
    cv2.setNumThreads(1)
    with ThreadPoolExecutor(cores) as pool:
        found = {kind: build(jobs[kind], pool)[0] for kind in ("jp2", "tif")}  # compiles, and fills the page cache
        found["gdal"], seconds["gdal"] = read_with_gdal(folder, grid)
        accepted = found["jp2"].any(axis=(2, 3, 4))
        same_as_cog = np.array_equal(found["jp2"], found["tif"])
        same_as_gdal = bool(accepted.any()) and np.array_equal(found["jp2"][accepted], found["gdal"][accepted])
        for _ in range(rounds):
            for kind in ("jp2", "tif"):
                seconds[kind] = min(seconds[kind], build(jobs[kind], pool)[1])
            seconds["gdal"] = min(seconds["gdal"], read_with_gdal(folder, grid)[1])
    tiles, speed = grid.rows * grid.cols, {}
    for kind, value in seconds.items():
        speed[kind] = tiles / value
    print(f"{tiles} tiles, {int(accepted.sum())} of them accepted, {cores} cores", file=sys.stderr)
    for case, peer, equal in (("jpeg2000-cog", "tif", same_as_cog), ("jpeg2000-gdal", "gdal", same_as_gdal)):
        ratio, same = speed["jp2"] / speed[peer], "yes" if equal else "no"
        print(f"case={case} ours={speed['jp2']:.4g} peer={speed[peer]:.4g} unit=tiles/s ratio={ratio:.3f} equal={same}")
    return 0 if same_as_cog and same_as_gdal else 1
