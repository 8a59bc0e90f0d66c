"""Build a pre-training data set: scenes and land-cover maps in, sharded tiles, labels and an index out.

    python -m pipeline.build_levir_kr --scenes DIR... --landcover DIR... --out DATASET

A run that was stopped, by Ctrl-C or worse, goes on where it was when the same command is given again.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from geokr.landcover import LandCover, LandCoverError, find
from geokr.store import StoreError
from pipeline import quarantine, stages
from pipeline.catalog import CATALOG, Entry, read_catalog
from pipeline.config import BuildConfig, ConfigError, read_config
from pipeline.delivery import Refusal, read_delivery
from pipeline.finding import deliveries
from pipeline.footprint import flat_terrain
from pipeline.grid import peak_bytes
from pipeline.items import write_static
from pipeline.radiometry import Stretch
from pipeline.report import LOG, summary_table
from pipeline.run import ClusterError, cluster
from pipeline.stac import is_remote

STAGES = ("catalog", "tiles", "labels", "index")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.build_levir_kr",
        description="Turn satellite scenes and land-cover maps into tiles with label distributions, in sharded Zarr.",
        epilog="Settings come from --params and, over it, from the command line. A stopped run is resumed by the "
        "same command. Exit status: 0 done; 2 a setting or path is at fault; 3 with --strict, something was "
        "refused; 130 stopped by Ctrl-C.",
    )
    add = parser.add_argument
    add("--scenes", nargs="+", metavar="PLACE", help="folders, archives, GeoTIFFs and STAC documents, or URLs of such")
    add("--landcover", nargs="+", metavar="DIR", help="directories (or files) with land-cover sheets")
    add("--imagery", choices=("mss", "pan", "pansharpened"), help="which images of a delivery are tiled (mss)")
    add("--dem", metavar="FILE", help="heights above the ellipsoid; without it the ground is taken as flat")
    add("--out", metavar="DATASET", help="directory of the data set")
    add("--stac", metavar="DIR", help="write the scenes as a static STAC catalog too")
    add("--params", metavar="FILE.yaml", help="settings, in a section `build`")
    add("--tile", type=int, metavar="PX", help="side of a tile (256)")
    add("--stride", type=int, metavar="PX", help="distance of neighbouring tiles (200)")
    add("--labels", metavar="NAME", help="label set of the index, <product>_<year>, where there are several")
    add("--only", choices=STAGES, help="run this stage alone")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, metavar="N", help="processes on this machine (one a core)")
    where.add_argument("--scheduler", metavar="ADDRESS", help="a Dask scheduler, such as tcp://host:8786")
    add("--dry-run", action="store_true", help="print scenes, grids, blocks, bytes and memory; touch nothing")
    add("--strict", action="store_true", help="exit with 3 if anything was refused")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    options = arguments().parse_args(argv)
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    given = {
        key: getattr(options, key)
        for key in ("scenes", "imagery", "landcover", "dem", "out", "tile", "stride", "labels")
    }
    try:
        config = read_config(options.params, {key: value for key, value in given.items() if value is not None})
        if options.workers is not None and options.workers < 1:
            raise ConfigError(f"--workers must be at least 1, got {options.workers}")
        covers = check_inputs(config)
        if options.dry_run:
            print("\n".join(plan(config, covers)))
            return 0
        Path(config.out).mkdir(parents=True, exist_ok=True)
        with logging_redirect_tqdm():
            build(config, covers, options)
    except (ConfigError, ClusterError, LandCoverError, StoreError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    refused = quarantine.read(Path(config.out))
    if refused:
        print(f"{len(refused)} refused: see {Path(config.out) / quarantine.FILE}", file=sys.stderr)
    return 3 if refused and options.strict else 0


def check_inputs(config: BuildConfig) -> list[LandCover]:
    """The land cover; raises a sentence about any path or label set that is not there, before any work."""
    for path in (*config.scenes, *config.landcover, *([config.dem] if config.dem else [])):
        if not is_remote(path) and not Path(path).exists():
            raise ConfigError(f"{path}: no such file or directory")
    if config.imagery == "pansharpened":
        raise ConfigError("imagery: pansharpened scenes can be cataloged, but not be tiled yet")
    covers = find(config.landcover)
    stages.label_set(config, covers)
    return covers


def build(config: BuildConfig, covers: list[LandCover], options: argparse.Namespace) -> None:
    """Run the stages on one cluster, or the one that was asked for, and note each in the data set's log."""
    out = Path(config.out)
    entries: list[Entry] | None = None
    with cluster(options.workers, options.scheduler) as client:
        print(f"dashboard: {client.dashboard_link}", file=sys.stderr)
        for stage in (options.only,) if options.only else STAGES:
            began = time.monotonic()
            if stage == "catalog":
                entries = stages.catalog(config, client)
                if options.stac:
                    write_static(Path(options.stac), [entry.scene for entry in entries])
            elif entries is None:
                entries = earlier_catalog(out)
            match stage:
                case "tiles":
                    stages.tiles(config, entries, client)
                case "labels":
                    stages.labels(config, covers, entries, client)
                case "index":
                    print("\n".join(summary_table(stages.make_index(config, covers, entries, client))))
            line = {
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "stage": stage,
                "seconds": round(time.monotonic() - began, 1),
                "threads": sum(client.nthreads().values()),
                "dashboard": client.dashboard_link,
            }
            with (out / LOG).open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")


def earlier_catalog(out: Path) -> list[Entry]:
    """The entries that an earlier run of the first stage wrote."""
    if not (out / CATALOG).is_file():
        raise ConfigError(f"{out / CATALOG}: no such file; run the stage catalog first")
    return read_catalog(out / CATALOG)


def plan(config: BuildConfig, covers: list[LandCover]) -> list[str]:
    """What a build would do, from headers alone: scenes, grids, blocks, bytes and peak memory, a line each."""
    lines, total, memory, most = [], 0, 0, 0
    found: dict[str, Entry] = {}
    for delivery in deliveries(config.scenes):
        for scene in read_delivery(delivery, config.imagery, config.bands):
            if isinstance(scene, Refusal):
                lines.append(f"refused   {scene.detail}")
            elif scene.id not in found:
                found[scene.id] = Entry(scene, flat_terrain(scene.images[0].model), Stretch(0, 1), 0.0)
    for name, entry in sorted(found.items()):
        grid = stages.grid_of(entry, config)
        if grid is None:
            lines.append(f"too small {name}: no tile of {config.tile} px at {entry.scene.gsd:g} m fits into it")
            continue
        rows, cols = grid.blocks
        tiles = grid.rows * grid.cols
        size = tiles * len(entry.scene.bands) * grid.tile**2
        total, most = total + tiles, most + size
        first = entry.scene.images[0]
        itemsize = 1 if entry.scene.dtype == "uint8" else 2
        memory = max(memory, peak_bytes(grid.block, grid.tile, grid.stride, len(entry.scene.bands), itemsize))
        lines.append(
            f"scene     {name}: {first.width} x {first.height} px, {entry.scene.gsd:g} m, "
            f"{grid.geobox.crs}, {grid.rows} x {grid.cols} tiles in {rows * cols} blocks, at most {size / 1e6:.0f} MB"
        )
    for cover in covers:
        lines.append(f"landcover {cover.name}: {len(cover.sheets)} sheets, classes {', '.join(cover.legend.classes)}")
    lines.append(
        f"in all    {len(found)} scenes, {total} tiles, at most {most / 1e6:.0f} MB of pixels before compression, "
        f"peak memory of a worker {memory / 1e6:.0f} MB beside the 300 MB of its libraries"
    )
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
