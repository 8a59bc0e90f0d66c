"""How fast are exact labels? Class shares of tiles, against exactextract and rasterstats, on one core.

Tiles of 256 px every 200 px in UTM are labelled in blocks of 16 x 16, over maps of 30 m and 10 m in the same UTM zone
and in longitude and latitude. Our time covers everything from corners to shares, including reading and reprojection.
exactextract gets the window of the block as an array and the outlines in the map's CRS; neither is timed, which is its
fastest way. Results are compared before times. rasterstats counts pixel centres: its error is the largest difference
of a share from ours. The same tiles are labelled with 8 x 8 parts each, against themselves without parts: the means of
the parts are compared before the times, which are of the computation alone.

Then a scene of 3,000 tiles over a WorldCover sheet of 36000 x 36000 px is labelled in a separate process, as a stage of
a build does it, labels written: with 8 x 8 parts and without, in turn, and the peak memory. The sheet is the real one
of Sao Tome if GEOKR_REAL_DATA/landcover contains it (source=real), otherwise a made one of the same size and place
(source=made).
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import geopandas
import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from affine import Affine
from exactextract import exact_extract
from exactextract.raster import NumPyRasterSource
from odc.geo.geobox import GeoBox
from pyproj import CRS
from rasterio.windows import Window
from rasterstats import zonal_stats

from benchmarks.process import most_memory
from benchmarks.real_data import WORLDCOVER, real_folder
from geokr.dataset import store
from geokr.landcover.discovery import find_landcover
from geokr.landcover.outlines import Floats, project, project_rings
from geokr.landcover.shares import Shares, compute_class_shares
from geokr.landcover.sheets import LandCover
from pipeline.geometry.grid import TileGrid
from pipeline.tasks.labels import LabelJob, build_labels

UTM = "EPSG:32648"
LONLAT = "EPSG:4326"
LEFT, TOP = 400_000.0, 2_700_000.0
CASES = (("2m-over-30m", 2.0, 30.0), ("2m-over-10m", 2.0, 10.0), ("16m-over-10m", 16.0, 10.0))
NLCD_CODES = (11, 21, 31, 41, 52, 71, 82, 90)
WORLDCOVER_CODES = (10, 20, 30, 40, 50, 60, 80, 90)
GRID = 8
"""Parts along a side of a tile."""
EQUAL = 2e-7
"""Largest accepted difference of a share: exactextract stores the covered part of a cell in single precision."""


def patches(side: int, seed: int, codes: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """A square map of patches some ten cells wide. A twentieth of the cells differ in class from their patch."""
    rng = np.random.default_rng(seed)
    cuts = [np.sort(rng.integers(0, side // 10 + 1, side)) for _ in range(2)]
    coarse = rng.choice(np.array(codes, np.uint8), (side // 10 + 1, side // 10 + 1))
    cells = coarse[np.ix_(*cuts)]
    stray = rng.random(cells.shape, np.float32) < 0.05
    cells[stray] = rng.choice(np.array(codes, np.uint8), int(stray.sum()))
    return cells


def write_map(folder: Path, corners: Floats, size: float, crs: str) -> LandCover:
    """Write a map in a CRS that covers corners (UTM). size: of a cell, m."""
    x, y = (project(corners, UTM, crs).reshape(-1, 2)[:, k] for k in range(2))
    unit = size if crs == UTM else size / 111_320.0
    side = int(max(np.ptp(x), np.ptp(y)) / unit) + 40
    transform = Affine(unit, 0, x.min() - 20.3 * unit, 0, -unit, y.max() + 20.6 * unit)
    path = folder / ("nlcd_2019.tif" if crs == UTM else "lonlat" / Path("nlcd_2019.tif"))
    path.parent.mkdir(exist_ok=True)
    profile = {"driver": "GTiff", "width": side, "height": side, "count": 1, "dtype": "uint8", "crs": crs}
    with rasterio.open(
        path, "w", **profile, transform=transform, tiled=True, blockxsize=512, blockysize=512, compress="deflate"
    ) as file:
        file.write(patches(side, 1, NLCD_CODES), 1)
    (cover,) = find_landcover([path])
    return cover


def by_exactextract(polygons: npt.NDArray[np.object_], cover: LandCover) -> Callable[[], Floats]:
    """A function that computes the same shares with exactextract, from a window and polygons in memory."""
    (sheet,) = cover.sheets
    left, lower, right, upper = shapely.total_bounds(polygons)
    a, _, x, _, e, y = sheet.transform
    c0, c1 = int((left - x) // a), int((right - x) // a) + 1
    r0, r1 = int((upper - y) // e), int((lower - y) // e) + 1
    with rasterio.open(sheet.path) as file:
        cells = file.read(1, window=Window(c0, r0, c1 - c0, r1 - r0))
    raster = NumPyRasterSource(cells, x + a * c0, y + e * r1, x + a * c1, y + e * r0, srs_wkt=CRS(sheet.crs).to_wkt())
    frame = geopandas.GeoDataFrame(geometry=polygons, crs=sheet.crs)
    weighted = "(coverage_weight=area_spherical_m2)" if sheet.crs == LONLAT else ""

    def run() -> Floats:
        table = exact_extract(raster, frame, ["unique", f"frac{weighted}"], output="pandas")
        row = np.repeat(np.arange(len(polygons)), [len(codes) for codes in table["unique"]])
        codes = np.concatenate(table["unique"].to_list()).astype(np.int64)
        shares = np.zeros((len(polygons), len(cover.legend.classes)))
        np.add.at(shares, row, cover.legend.shares(codes) * np.concatenate(table["frac"].to_list())[:, None])
        return shares

    return run


def by_rasterstats(polygons: npt.NDArray[np.object_], cover: LandCover) -> Floats:
    """Shares from rasterstats, which counts pixel centres."""
    shares = np.zeros((len(polygons), len(cover.legend.classes)))
    for k, counts in enumerate(zonal_stats(list(polygons), cover.sheets[0].path, categorical=True, nodata=255)):
        codes = np.array(list(counts), np.int64)
        weights = np.array(list(counts.values()), float)
        if len(codes):
            shares[k] = weights @ cover.legend.shares(codes) / weights.sum()
    return shares


def seconds(function: Callable[[], object]) -> float:
    """Mean seconds of one call over half a second: a busy machine then disturbs short calls as much as long ones."""
    began, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - began < 0.5:
        function()
        calls += 1
    return (time.perf_counter() - began) / calls


def parts_agree(whole: Shares, divided: Shares) -> bool:
    """Whether the mean of the parts is the share of the tile, with parts and without."""
    areas = whole.fraction * whole.known[:, None]
    return bool(
        np.abs(divided.parts.mean(axis=(1, 2)) - divided.fraction * divided.known[:, None]).max() <= 1e-12
        and np.abs(divided.parts.mean(axis=(1, 2)) - areas).max() <= 1e-9
    )


def compare(name: str, gsd: float, size: float, crs: str, folder: Path, rounds: int) -> bool:
    """Run one case and print its lines. Returns whether the results are equal."""
    side = 15 * 200 + 256
    grid = TileGrid(GeoBox((side, side), Affine(gsd, 0, LEFT, 0, -gsd, TOP), UTM), 256, 200, 16)
    corners = grid.corners(slice(0, 16), slice(0, 16)).reshape(-1, 4, 2)
    cover = write_map(folder, corners, size, crs)
    polygons = np.asarray(shapely.polygons(project_rings(corners, UTM, crs)))
    peer = by_exactextract(polygons, cover)
    shares = compute_class_shares(corners, UTM, cover)
    area = shares.fraction * shares.known[:, None]
    difference = float(np.abs(area - peer()).max())
    equal = "yes" if difference <= EQUAL else "NO"
    times: list[tuple[float, float]] = []
    while len(times) < rounds:
        times.append((seconds(lambda: compute_class_shares(corners, UTM, cover)), seconds(peer)))
    our_rate, peer_rate = (len(corners) / statistics.median(column) for column in zip(*times, strict=True))
    system = "utm" if crs == UTM else "lonlat"
    print(
        f"case=labels-{name}-{system} ours={our_rate:.0f} peer={peer_rate:.0f} unit=tiles/s "
        f"ratio={our_rate / peer_rate:.1f} equal={equal} apart={difference:.1e} against=exactextract",
        flush=True,
    )
    agree = parts_agree(shares, compute_class_shares(corners, UTM, cover, GRID))
    times = []
    while len(times) < rounds:
        divided = seconds(lambda: compute_class_shares(corners, UTM, cover, GRID))
        times.append((divided, seconds(lambda: compute_class_shares(corners, UTM, cover))))
    grid_rate, whole_rate = (len(corners) / statistics.median(column) for column in zip(*times, strict=True))
    print(
        f"case=labels-parts-{name}-{system} ours={grid_rate:.0f} peer={whole_rate:.0f} unit=tiles/s "
        f"ratio={grid_rate / whole_rate:.2f} equal={'yes' if agree else 'NO'} against=1x1",
        flush=True,
    )
    sample = slice(0, 16)
    counted: list[Floats] = []
    peer_rate = 16 / seconds(lambda: counted.append(by_rasterstats(polygons[sample], cover)))
    error = float(np.abs(counted[0] - area[sample]).max())
    print(
        f"case=labels-{name}-{system} ours={our_rate:.0f} peer={peer_rate:.0f} unit=tiles/s "
        f"ratio={our_rate / peer_rate:.0f} peer_error={error:.1e} against=rasterstats",
        flush=True,
    )
    return equal == "yes" and agree


@dataclass(frozen=True, slots=True)
class SheetRun:
    """Labelling of the scene over a whole sheet."""

    tiles: int
    labelled: int
    seconds: dict[int, list[float]]
    """Parts along a side of a tile -> seconds of each round."""
    before: float
    """Peak memory before the work, MB."""
    peak: float
    """Peak memory after the work, MB."""


def whole_sheet(path: str, out: str, rounds: int, answer: "multiprocessing.Queue[SheetRun]") -> None:
    """Label 50 x 60 tiles of 256 px, 1 m, around Sao Tome, block by block, with and without parts in turn."""
    (cover,) = find_landcover([path])
    warm_up = np.array([[(6.6, 0.2), (6.601, 0.2), (6.601, 0.201), (6.6, 0.201)]])
    compute_class_shares(warm_up, LONLAT, cover)
    shape = (49 * 200 + 256, 59 * 200 + 256)
    grid = TileGrid(GeoBox(shape, Affine(1, 0, 228_000, 0, -1, 33_000), "EPSG:32632"), 256, 200, 16)
    before = most_memory() / 2**20
    times: dict[int, list[float]] = {1: [], GRID: []}
    tiles, labelled = 0, 0
    for number in range(rounds):
        for parts, seconds_of in times.items():
            store.create_labels(
                out,
                f"scene-{parts}-{number}",
                shape=(50, 60),
                classes=cover.legend.classes,
                grid=parts,
                block=16,
                attributes={"product": cover.name},
            )
            began = time.perf_counter()
            reports = [
                build_labels(LabelJob(out, f"scene-{parts}-{number}", cover, parts, grid, i, j))
                for i in range(grid.blocks[0])
                for j in range(grid.blocks[1])
            ]
            seconds_of.append(time.perf_counter() - began)
            tiles, labelled = sum(r.tiles for r in reports), sum(r.labelled for r in reports)
    answer.put(SheetRun(tiles, labelled, times, before, most_memory() / 2**20))


def write_sheet(path: Path) -> Path:
    """Write a sheet with the size, place, cells and internal tiles of the WorldCover sheet of Sao Tome.

    Only the internal tiles that `whole_sheet` reads are stored, so that writing takes no time; the rest is nodata.
    """
    path.parent.mkdir(parents=True)
    profile = {"driver": "GTiff", "width": 36_000, "height": 36_000, "count": 1, "dtype": "uint8", "nodata": 0}
    with rasterio.open(
        path, "w", **profile, crs=LONLAT, transform=Affine(1 / 12_000, 0, 6, 0, -1 / 12_000, 3), tiled=True,
        blockxsize=1024, blockysize=1024, compress="deflate", SPARSE_OK=True,
    ) as file:  # fmt: skip
        file.write(patches(4 * 1024, 1, WORLDCOVER_CODES), 1, window=Window(6 * 1024, 31 * 1024, 4 * 1024, 4 * 1024))
    return path


def sao_tome(sheet: Path, folder: Path, rounds: int) -> bool:
    """Print the line of the WorldCover sheet, a made one if it is missing. Returns whether all tiles have labels."""
    source = "real" if sheet.is_file() else "made"
    path = sheet if source == "real" else write_sheet(folder / "worldcover" / WORLDCOVER)
    context = multiprocessing.get_context("spawn")
    answer: multiprocessing.Queue[SheetRun] = context.Queue()
    process = context.Process(target=whole_sheet, args=(str(path), str(folder / "labels.zarr"), rounds, answer))
    process.start()
    run = answer.get()
    process.join()
    divided, whole = (run.tiles / statistics.median(run.seconds[parts]) for parts in (GRID, 1))
    print(
        f"case=labels-worldcover-36000x36000 ours={divided:.0f} peer={whole:.0f} unit=tiles/s "
        f"ratio={divided / whole:.2f} tiles={run.tiles} labelled={run.labelled} peak_MB={run.peak:.0f} "
        f"of_which_before_MB={run.before:.0f} source={source} against=1x1"
    )
    return run.labelled == run.tiles


def main(argv: list[str]) -> int:
    """Run the command. The exit status is 1 if results differ or a tile gets no label."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks labels", description=__doc__)
    default = real_folder("landcover")
    parser.add_argument("--data", type=Path, default=default, help="folder of the WorldCover tile")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of a case (%(default)s)")
    options = parser.parse_args(argv)
    cores = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as temporary:
        os.sched_setaffinity(0, {min(cores)})
        try:
            passed = [compare(*case, crs, Path(temporary), options.rounds) for case in CASES for crs in (UTM, LONLAT)]
            passed.append(sao_tome(options.data / WORLDCOVER, Path(temporary), options.rounds))
        finally:
            os.sched_setaffinity(0, cores)
    return 0 if all(passed) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
