"""How fast a build is, against GDAL's warp with one file per tile, and how it scales: one line per case.

plain      a full build on one core, against the plain way on the same scene: GDAL's warp with RPC and DEM to a GeoTIFF,
           then a GeoTIFF chip and a JSON label for each accepted tile, with classes counted by pixel centres.
workers    two worker processes on two cores against one on one, client and scheduler included, on one archive.
scenes     time and a worker's peak memory for 1, 4 and 16 scenes; the peer is the time of one scene times their number.
size       a worker's peak memory for a full-size scene; the peer is a scene of a quarter of the pixels.
resume     the stages on a finished build of 1,000 scenes of nine blocks: seconds in a plain loop until it is clear that
           nothing is left to do, and seconds to write the index again; the peer is the 2 s that are allowed.
scheduler  empty blocks, as many as 1,430,000 tiles make: seconds, and peak memory of the scheduler's process.
chips      small real scenes (pretrain/bluemarble_z8): processor time for each over all stages, and the part of it that
           is there without a tile (`fixed`), from the scenes and from their centres; the peer is the plain way.

Scenes have 7300 x 6908 px in four bands of 16 bits. Each measurement runs in separate processes.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import Resampling
from rasterio.warp import reproject, transform_bounds
from rasterio.windows import from_bounds

from benchmarks.archive import HEIGHT, WIDTH, shots, write_archive, write_many
from benchmarks.chaos import digests
from benchmarks.process import most_memory, one_core
from benchmarks.real_data import MCD12C1, has_files, real_folder
from geokr.dataset import contents, layout, store
from geokr.landcover.discovery import find_landcover
from geokr.landcover.legend import Legend
from pipeline.catalog.table import read_catalog
from pipeline.config import BuildConfig
from pipeline.imaging.quality import Rules, judge
from pipeline.plan import tile_grid
from pipeline.runtime.cluster import open_cluster
from pipeline.runtime.stream import JobBatch, stream
from pipeline.runtime.worker import configure_libraries
from pipeline.stages import catalog, index, labels, tiles

TILES = 1_430_000
"""Number of tiles in Levir-KR."""
CASES = ("plain", "workers", "scenes", "size", "resume", "scheduler", "chips")
ALLOWED = 2.0
"""Allowed time to find that nothing is left to do for 1,000 scenes, s."""
NEAR = 2
"""Largest difference of a pixel that counts as equal, grey levels: GDAL widens its kernel a little."""
ALIKE = 0.02
"""Largest mean difference of a class share that counts as equal: pixel centres against exact areas."""


def config_of(archive: Path, out: Path, **settings: Any) -> BuildConfig:
    """The configuration for an archive. settings: the group `grid`, and further values of the group `survey`."""
    survey = {"scenes": [str(archive / "scenes")], "dem": str(archive / "dem.tif")} | settings.get("survey", {})
    labels = {"landcover": [str(archive / "landcover")]}
    return BuildConfig.model_validate({"out": str(out), **settings, "survey": survey, "labels": labels})


def small_tiles(archive: Path, out: Path) -> BuildConfig:
    """The configuration for the scenes of `write_many`: a block is one tile, so that a scene has nine blocks."""
    return config_of(archive, out, survey={"dem": None}, grid={"tile": 32, "stride": 24, "block": 1})


def ours(archive: Path, out: Path, workers: int) -> dict[str, Any]:
    """Build with one core per worker; with 0 workers in a plain loop, on one core.

    Returns seconds, the number of tiles, and the highest peak memory of a worker, bytes.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: max(workers, 1)])
    config = config_of(archive, out)
    out.mkdir(parents=True)
    covers = find_landcover(config.labels.landcover)

    def build(client: Any) -> float:
        began = time.perf_counter()
        entries = catalog.run(config, client)
        tiles.run(config, entries, client)
        labels.run(config, covers, entries, client)
        index.run(config, covers, entries, client)
        return time.perf_counter() - began

    if workers == 0:
        configure_libraries()
        seconds, memory = build(None), most_memory()
    else:
        with open_cluster(workers, dashboard="127.0.0.1:0") as client:
            seconds, memory = build(client), max(client.run(most_memory).values())
    grids = [grid for entry in read_catalog(out / "scenes.parquet") if (grid := tile_grid(entry, config.grid))]
    return {"seconds": seconds, "tiles": sum(grid.rows * grid.cols for grid in grids), "memory": memory}


def chips(archive: Path, out: Path, tile: int, warm: int) -> dict[str, Any]:
    """Build small georeferenced scenes in a plain loop. Returns processor time, s, apart for each stage, and `tiles`.

    The first build, of `warm` scenes, is not measured: it loads libraries and compiled code.
    """
    one_core()
    grid = {"tile": tile, "stride": tile}
    covers = find_landcover([archive / "landcover"])
    times: dict[str, float] = {}
    for scenes, place in ((f"warm-{warm}", f"{out}-warm"), ("scenes", str(out))):
        # Without a stretch, which would multiply what rounding makes of pixels of 8 bits, here and in the plain way.
        survey = {"scenes": [str(archive / scenes)], "radiometry": "dn"}
        values = {"out": place, "survey": survey, "labels": {"landcover": [str(archive / "landcover")]}, "grid": grid}
        config = BuildConfig.model_validate(values)
        Path(place).mkdir(parents=True)
        began = time.process_time()
        entries = catalog.run(config, None)
        marks = [("catalog", time.process_time())]
        tiles.run(config, entries, None)
        marks.append(("tiles", time.process_time()))
        labels.run(config, covers, entries, None)
        marks.append(("labels", time.process_time()))
        counts = index.run(config, covers, entries, None)["counts"]
        marks.append(("index", time.process_time()))
        for name, mark in marks:
            times[name], began = mark - began, mark
    return {"cpu": times, "tiles": sum(counts["tiles"].values())}


def many(archive: Path, out: Path) -> dict[str, Any]:
    """Build the scenes of `write_many` on all cores. Returns the number of blocks built."""
    config, covers = small_tiles(archive, out), find_landcover([archive / "landcover"])
    out.mkdir(parents=True)
    with open_cluster(dashboard="127.0.0.1:0") as client:
        entries = catalog.run(config, client)
        tiles.run(config, entries, client)
        labels.run(config, covers, entries, client)
        index.run(config, covers, entries, client)
    return {"blocks": len(list((out / layout.TILES).glob("*/status/c/*/*")))}


def again(archive: Path, out: Path) -> dict[str, Any]:
    """Run the stages on the output of `many`. Returns seconds until nothing is left to do, and seconds of the index."""
    config, covers = small_tiles(archive, out), find_landcover([archive / "landcover"])
    began = time.perf_counter()
    entries = catalog.run(config, None)
    tiles.run(config, entries, None)
    labels.run(config, covers, entries, None)
    checked = time.perf_counter()
    index.run(config, covers, entries, None)
    return {"seconds": checked - began, "index": time.perf_counter() - checked}


def plain(archive: Path, out: Path, **grid_settings: int) -> dict[str, Any]:
    """Make the same tiles the plain way, on one core. Grid and stretch come from the data set `ours` next to `out`."""
    one_core()
    entries = read_catalog(out.parent / "ours" / "scenes.parquet")
    config = config_of(archive, out, grid=grid_settings)
    rules = Rules()
    sheets = sorted((archive / "landcover").glob("*.tif"))
    began, cpu, tiles = time.perf_counter(), time.process_time(), 0
    for entry in entries:
        scene, grid = entry.scene, tile_grid(entry, config.grid)
        assert grid is not None
        folder = out / scene.id
        folder.mkdir(parents=True)
        box = grid.geobox
        profile = {
            "driver": "GTiff", "width": box.shape[1], "height": box.shape[0], "count": len(scene.bands),
            "crs": str(box.crs), "transform": box.transform,
        }  # fmt: skip
        with (
            rasterio.open(scene.images[0].path) as source,
            rasterio.open(folder / "warped.tif", "w", dtype="uint16", BIGTIFF="IF_SAFER", **profile) as target,
        ):
            for band in range(1, len(scene.bands) + 1):
                reproject(
                    rasterio.band(source, band), rasterio.band(target, band), rpcs=source.rpcs,
                    resampling=Resampling.bilinear, RPC_DEM=str(archive / "dem.tif"),
                )  # fmt: skip
        low, high = entry.stretch.low, entry.stretch.high
        chip = profile | {"width": grid.tile, "height": grid.tile, "dtype": "uint8"}
        with rasterio.open(folder / "warped.tif") as warped:
            for r in range(grid.rows):
                for c in range(grid.cols):
                    tiles += 1
                    window = rasterio.windows.Window(c * grid.stride, r * grid.stride, grid.tile, grid.tile)
                    pixels = warped.read(window=window)
                    if (pixels == 0).all(axis=0).any():
                        continue
                    grey = np.clip(np.rint((pixels - low) * (255.0 / (high - low))), 0, 255).astype(np.uint8)
                    if judge(np.rint(grey.mean(axis=0)).astype(np.uint8), rules)[0] != layout.ACCEPTED:
                        continue
                    stored = grey if entry.radiometry is None else pixels.astype(np.uint8)
                    transform = warped.window_transform(window)
                    with rasterio.open(folder / f"{r}_{c}.tif", "w", **chip | {"transform": transform}) as target:
                        target.write(stored)
                    bounds = rasterio.windows.bounds(window, warped.transform)
                    (folder / f"{r}_{c}.json").write_text(json.dumps(counted(sheets, bounds, str(box.crs))))
    return {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu, "tiles": tiles}


def counted(sheets: list[Path], bounds: tuple[float, ...], crs: str) -> dict[str, float]:
    """Shares of codes, by pixel centres, in the first sheet that contains a tile's centre."""
    for path in sheets:
        with rasterio.open(path) as sheet:
            left, bottom, right, top = transform_bounds(crs, sheet.crs, *bounds)
            x, y = (left + right) / 2, (bottom + top) / 2
            if not (sheet.bounds.left <= x <= sheet.bounds.right and sheet.bounds.bottom <= y <= sheet.bounds.top):
                continue
            codes = sheet.read(1, window=from_bounds(left, bottom, right, top, sheet.transform), boundless=False)
        values, counts = np.unique(codes, return_counts=True)
        return {str(code): float(n / codes.size) for code, n in zip(values.tolist(), counts.tolist(), strict=True)}
    return {}


def compare(built: Path, plain_way: Path, legend: Legend, label_set: str = "globeland30_2020") -> dict[str, float]:
    """Agreement of the two: share of tiles that both accept, share of pixels within NEAR, mean difference of shares."""
    both = either = 0
    equal_pixels: list[float] = []
    differences: list[npt.NDArray[np.float64]] = []
    for folder in sorted(path for path in plain_way.iterdir() if path.is_dir()):
        tiles = store.open_scene(str(built / layout.TILES), folder.name)
        labels = store.open_scene(str(built / layout.label_store(label_set)), folder.name)
        accepted = contents.read_status(tiles) == layout.ACCEPTED
        chips = {tuple(map(int, path.stem.split("_"))) for path in folder.glob("*_*.tif")}
        positions = set(zip(*(index.tolist() for index in np.nonzero(accepted)), strict=True))
        both, either = both + len(chips & positions), either + len(chips | positions)
        fraction = np.asarray(labels["fraction"][:])  # type: ignore[index]
        for r, c in sorted(chips & positions)[:: max(1, len(chips) // 100)]:
            with rasterio.open(folder / f"{r}_{c}.tif") as chip:
                plain_pixels = chip.read().astype(int)
            pixels = np.asarray(tiles["image"][r, c]).astype(int)  # type: ignore[index]
            equal_pixels.append(float((np.abs(pixels - plain_pixels) <= NEAR).mean()))
            code_shares = json.loads((folder / f"{r}_{c}.json").read_text())
            shares = np.array(list(code_shares.values())) @ legend.shares([int(code) for code in code_shares])
            differences.append(np.abs(fraction[r, c] - shares))
    return {
        "tiles": both / either,
        "pixels": statistics.mean(equal_pixels),
        "labels": float(np.mean(differences)),
    }


def nothing(_: object) -> None:
    """A block that takes no time."""


def blocks(side: int = 16) -> dict[str, Any]:
    """Stream empty blocks over two workers. Returns seconds, blocks, and the peak memory of this process, bytes."""
    per_scene = 16  # a scene of 4 x 4 blocks, 4,096 tiles
    scenes = math.ceil(TILES / side**2 / per_scene)
    with open_cluster(2, dashboard="127.0.0.1:0") as client:
        began = time.perf_counter()
        batches = (JobBatch(f"tiles-scene{k}", range(per_scene)) for k in range(scenes))
        done = sum(1 for _ in stream(nothing, batches, client))
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "blocks": done, "memory": most_memory()}


def measured(function: str, *arguments: object, **options: int) -> dict[str, Any]:
    """Call a function of this module in a separate process. Returns its result; raises RuntimeError if it fails."""
    code = (
        "import json, benchmarks.build as b; from pathlib import Path; "
        f"print(json.dumps(b.{function}(*{arguments!r}, **{options!r})))"
    )
    code = code.replace("PosixPath", "Path")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GDAL_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def remove(path: Path) -> None:
    subprocess.run(["rm", "-rf", str(path)], check=True)


def case_plain(scratch: Path, size: tuple[int, int], rounds: int) -> bool:
    archive = scratch / "archive"
    write_archive(archive, 1, *size)
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(rounds):
        for name in times:
            remove(scratch / name)
        built = measured("ours", archive, scratch / "ours", 0)
        times["ours"].append(built["seconds"])
        times["plain"].append(measured("plain", archive, scratch / "plain")["seconds"])
    (cover,) = find_landcover([archive / "landcover"])
    agreement = compare(scratch / "ours", scratch / "plain", cover.legend)
    remove(scratch / "ours")
    remove(scratch / "plain")
    equal = agreement["tiles"] > 0.98 and agreement["pixels"] > 0.98 and agreement["labels"] < ALIKE
    our_rate, peer_rate = (built["tiles"] / statistics.median(times[name]) for name in ("ours", "plain"))
    print(
        f"case=build-plain ours={our_rate:.1f} peer={peer_rate:.1f} unit=tiles/s/core "
        f"ratio={our_rate / peer_rate:.2f} equal={'yes' if equal else 'no'} tiles={built['tiles']} rounds={rounds} "
        f"same_tiles={agreement['tiles']:.4f} "
        f"pixels_within_{NEAR}={agreement['pixels']:.4f} share_difference={agreement['labels']:.4f} "
        f"memory={built['memory'] / 2**20:.0f}MiB",
        flush=True,
    )
    return equal


def case_workers(scratch: Path, size: tuple[int, int], rounds: int) -> bool:
    archive = scratch / "archive"
    write_archive(archive, 16, *size)  # many, since starting a worker costs half a second
    times: dict[int, list[float]] = {1: [], 2: []}
    equal = True
    for _ in range(rounds):
        for workers in times:
            built = measured("ours", archive, scratch / f"by{workers}", workers)
            times[workers].append(built["seconds"])
            if workers == 1:
                first = digests(scratch / "by1")
            equal = equal and digests(scratch / f"by{workers}") == first
            remove(scratch / f"by{workers}")
    two, one = (built["tiles"] / statistics.median(times[workers]) for workers in (2, 1))
    print(
        f"case=build-workers ours={two:.1f} peer={one:.1f} unit=tiles/s ratio={two / one:.2f} "
        f"equal={'yes' if equal else 'no'} tiles={built['tiles']} rounds={rounds}",
        flush=True,
    )
    return equal


def case_scenes(scratch: Path, size: tuple[int, int], _: int) -> bool:
    """Results are equal if the first scene's files are those of its build alone."""
    first, all_equal = f"{layout.TILES}/{shots(1, *size)[0].name}", True
    alone: tuple[float, dict[str, str]] | None = None
    for count in (1, 4, 16):
        remove(scratch / "archive")
        write_archive(scratch / "archive", count, *size)
        built = measured("ours", scratch / "archive", scratch / "grown", 2)
        files = {name: digest for name, digest in digests(scratch / "grown").items() if name.startswith(first)}
        remove(scratch / "grown")
        alone = alone or (built["seconds"], files)
        equal = bool(files) and files == alone[1]
        all_equal = all_equal and equal
        print(
            f"case=build-scenes-{count} ours={built['seconds']:.1f} peer={alone[0] * count:.1f} unit=s "
            f"ratio={alone[0] * count / built['seconds']:.2f} equal={'yes' if equal else 'no'} "
            f"tiles={built['tiles']} worker={built['memory'] / 2**20:.0f}MiB",
            flush=True,
        )
    return all_equal


def case_size(scratch: Path, size: tuple[int, int], _: int) -> bool:
    memory = []
    for divisor in (2, 1):
        remove(scratch / "archive")
        write_archive(scratch / "archive", 1, size[0] // divisor, size[1] // divisor)
        built = measured("ours", scratch / "archive", scratch / "sized", 1)
        remove(scratch / "sized")
        memory.append(built["memory"] / 2**20)
    quarter, full = memory
    print(
        f"case=build-size ours={full:.0f} peer={quarter:.0f} unit=MiB ratio={full / quarter:.2f} "
        f"size={size[0]}x{size[1]}",
        flush=True,
    )
    return True


def case_resume(scratch: Path, _: tuple[int, int], rounds: int) -> bool:
    archive, out = scratch / "archive", scratch / "many"
    write_many(archive, 1000)
    built = measured("many", archive, out)
    before = digests(out)
    runs = [measured("again", archive, out) for _ in range(rounds)]
    equal = digests(out) == before
    seconds, indexed = (statistics.median(run[key] for run in runs) for key in ("seconds", "index"))
    print(
        f"case=build-resume ours={seconds:.2f} peer={ALLOWED:.0f} unit=s ratio={ALLOWED / seconds:.2f} "
        f"equal={'yes' if equal else 'no'} scenes=1000 blocks={built['blocks']} index={indexed:.1f}s rounds={rounds}",
        flush=True,
    )
    return equal


def case_scheduler(_: Path, __: tuple[int, int], ___: int) -> bool:
    streamed = measured("blocks")
    print(
        f"case=build-scheduler ours={streamed['seconds']:.1f} peer=120 unit=s ratio={120 / streamed['seconds']:.1f} "
        f"blocks={streamed['blocks']} memory={streamed['memory'] / 2**20:.0f}MiB",
        flush=True,
    )
    return bool(streamed["blocks"] * 256 >= TILES)


def case_chips(scratch: Path, _: tuple[int, int], __: int, tile: int = 128) -> bool:
    """All scenes of the set; their centres have a quarter of the area, and a line through both gives the fixed part."""
    source, landcover = real_folder("pretrain/bluemarble_z8/scenes"), real_folder("landcover")
    found = sorted(source.glob("*.tif"))
    if not has_files("build --case chips", landcover, [MCD12C1]) or not found:
        print(f"build --case chips did not run: it needs scenes in {source}", file=sys.stderr)
        return True
    times: dict[str, dict[str, float]] = {"ours": {}, "plain": {}}
    tiles: dict[str, float] = {}
    stages = ""
    for kind in ("centres", "whole"):
        archive = scratch / kind
        (archive / "landcover").mkdir(parents=True)
        (archive / "landcover" / MCD12C1).symlink_to((landcover / MCD12C1).resolve())
        for path in found:
            cut_scene(path, archive / "scenes", 1.0 if kind == "whole" else 0.5)
        for path in found[:2]:
            cut_scene(path, archive / "warm-2", 1.0)
        built = measured("chips", archive, archive / "ours", tile, 2)
        plainly = measured("plain", archive, archive / "plain", tile=tile, stride=tile)
        tiles[kind] = built["tiles"] / len(found)
        times["ours"][kind] = 1e3 * sum(built["cpu"].values()) / len(found)
        times["plain"][kind] = 1e3 * plainly["cpu"] / len(found)
        stages = " ".join(f"{name}={1e3 * cpu / len(found):.1f}" for name, cpu in built["cpu"].items())
    (cover,) = find_landcover([scratch / "whole/landcover"])
    agreement = compare(scratch / "whole/ours", scratch / "whole/plain", cover.legend, cover.name)
    equal = agreement["tiles"] > 0.98 and agreement["pixels"] > 0.98 and agreement["labels"] < ALIKE
    fixed = {
        name: cpu["centres"] - tiles["centres"] * (cpu["whole"] - cpu["centres"]) / (tiles["whole"] - tiles["centres"])
        for name, cpu in times.items()
    }
    ours_whole, plain_whole = times["ours"]["whole"], times["plain"]["whole"]
    print(
        f"case=build-chips ours={ours_whole:.1f} peer={plain_whole:.1f} unit=ms/scene/core "
        f"ratio={plain_whole / ours_whole:.2f} equal={'yes' if equal else 'no'} scenes={len(found)} "
        f"tiles={tiles['whole']:.0f}/scene {stages} fixed={fixed['ours']:.1f} fixed_peer={fixed['plain']:.1f} "
        f"same_tiles={agreement['tiles']:.4f} pixels_within_{NEAR}={agreement['pixels']:.4f} "
        f"share_difference={agreement['labels']:.4f}",
        flush=True,
    )
    return equal


def cut_scene(path: Path, folder: Path, share: float) -> None:
    """Copy the middle of an image: this share of its width and of its height. All of it is copied byte for byte."""
    folder.mkdir(exist_ok=True)
    if share == 1:
        (folder / path.name).write_bytes(path.read_bytes())
        return
    with rasterio.open(path) as source:
        width, height = (int(size * share) for size in source.shape[::-1])
        window = rasterio.windows.Window((source.width - width) // 2, (source.height - height) // 2, width, height)
        profile = source.profile | {"width": width, "height": height, "transform": source.window_transform(window)}
        pixels = source.read(window=window)
    with rasterio.open(folder / path.name, "w", **profile) as target:
        target.write(pixels)


def main(argv: list[str]) -> int:
    """Run the command. The exit status is 1 if results that should be equal are not."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks build", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=CASES, help="run only this case")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="measurements per case (%(default)s)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(WIDTH, HEIGHT), metavar="PX", help="width and height of a scene"
    )
    options = parser.parse_args(argv)
    run: dict[str, Callable[[Path, tuple[int, int], int], bool]] = {
        "plain": case_plain, "workers": case_workers, "scenes": case_scenes, "size": case_size,
        "resume": case_resume, "scheduler": case_scheduler, "chips": case_chips,
    }  # fmt: skip
    passed = True
    for name in [options.case] if options.case else CASES:
        with tempfile.TemporaryDirectory(prefix="geokr-build-") as scratch:
            passed &= run[name](Path(scratch), tuple(options.size), options.rounds)
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
