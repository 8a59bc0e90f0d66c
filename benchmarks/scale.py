"""What still grows with the tiles: index, choice of tiles, first batch, verification and report of large data sets.

python -m benchmarks scale --tiles 1.43e6 14.3e6

The stores of a data set are made of one scene of 100 x 100 tiles of 8 px: each further scene has its own metadata and
place, and links to the arrays of the first. Each step runs in a process of its own, on its real code, in a plain loop.
Printed are its seconds, those of the processor, its peak memory with the libraries, and the size of the largest `page`
of the report. `slope` is that memory's growth per tile from one size to the next. `batch` is a run's first batch with
the choice of tiles, `shards` the same with a `shuffle_buffer`. `verify` is `geokr verify --fast`,
`sampled` the same with `--scenes 300`.

`simulate` streams --blocks blocks that do nothing to --workers threads through a real scheduler, and prints what a
block costs scheduler and client (`benchmarks/simulate.py`). `bucket` builds small scenes from an S3 bucket into it, and
prints the requests that a scene and a block add (`benchmarks/bucket.py`).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import bucket, simulate
from benchmarks.made_scenes import SIDE, TILE, make_config, make_entry
from benchmarks.process import most_memory
from geokr.dataset import layout, store
from geokr.dataset.index import read_summary
from geokr.landcover.legend import Legend
from geokr.landcover.sheets import LandCover
from geokr.loading.loader import TileLoader
from geokr.loading.selection import Selection, share_tiles
from pipeline.catalog.table import CATALOG, read_catalog, write_catalog
from pipeline.plan import placement_attributes, tile_attributes, tile_grid
from pipeline.report.site import write_site
from pipeline.report.summary import summary_table
from pipeline.runtime.worker import configure_libraries
from pipeline.stages import index
from pipeline.verify.__main__ import main as verify

CLASSES = tuple(f"class_{k}" for k in range(10))
LABEL_SET = "globeland30_2020"
ALONE = ("simulate", "bucket")
"""Steps that need no data set of a size."""
LIMIT = 16 << 30
"""Memory that no step may exceed, bytes."""
BATCH = 256
BUFFER = 4096


def make_covers() -> list[LandCover]:
    return [LandCover(LABEL_SET, 0, Legend("", "made", CLASSES, ("#000000",) * len(CLASSES), {}, frozenset()), ())]


def write_stores(root: Path, scenes: int) -> None:
    """Write the catalog and the stores of a data set without an index."""
    config, rng = make_config(root), np.random.default_rng(0)
    entries = [make_entry(number) for number in range(scenes)]
    root.mkdir(parents=True)
    write_catalog(root / CATALOG, entries, "{}")
    entries = read_catalog(root / CATALOG)
    tiles, labels = (str(root / name) for name in (layout.TILES, layout.label_store(LABEL_SET)))
    shape, whole = (SIDE, SIDE), (slice(0, SIDE), slice(0, SIDE))
    status = np.where(rng.random(shape) < 0.02, 2, layout.ACCEPTED).astype(np.uint8)
    image = rng.integers(1, 255, (*shape, 3, TILE, TILE), dtype=np.uint8)
    image[status != layout.ACCEPTED] = 0
    fraction = rng.dirichlet([0.3] * len(CLASSES), shape).astype(np.float32)
    fraction /= fraction.sum(axis=-1, keepdims=True)
    first = entries[0].scene.id
    store.create_tiles(tiles, first, shape=shape, bands=3, tile=TILE, block=SIDE, dtype="uint8", attributes={})
    cloud, error = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    store.write_block(tiles, first, *whole, {"image": image, "cloud": cloud, "lattice_error": error}, status)
    store.create_labels(labels, first, shape=shape, classes=CLASSES, grid=1, block=SIDE, attributes={})
    parts = np.zeros((*shape, 1, 1, len(CLASSES)), np.uint8)
    store.write_block(labels, first, *whole,
        {"fraction": fraction, "fraction_grid": parts, "known": np.ones(shape, np.float32)}, np.ones(shape, np.uint8),
    )  # fmt: skip
    for entry in entries:
        grid = tile_grid(entry, config.grid)
        assert grid is not None
        assert min(grid.rows, grid.cols) >= SIDE
        placement = placement_attributes(grid)
        link_scene(tiles, first, entry.scene.id, tile_attributes(entry, grid, config.tiles))
        link_scene(labels, first, entry.scene.id, {
            **placement, "grid": 1, "product": LABEL_SET, "taxonomy": "made", "sheets": {}, "classes": list(CLASSES)
        })  # fmt: skip
    for root_of in (tiles, labels):
        store.consolidate(root_of)


def link_scene(root: str, first: str, name: str, attributes: dict[str, Any]) -> None:
    """Make a scene of a store with the arrays of the first one and attributes of its own."""
    source, target = Path(root, first), Path(root, name)
    document = json.loads((source / "zarr.json").read_text()) | {"attributes": attributes}
    target.mkdir(exist_ok=True)
    (target / "zarr.json").write_text(json.dumps(document))
    if name != first:
        for array in source.iterdir():
            if array.is_dir():
                (target / array.name).symlink_to(array.resolve(), target_is_directory=True)


def write_index(root: Path) -> None:
    index.run(make_config(root), make_covers(), read_catalog(root / CATALOG), None)


def choose(root: Path) -> None:
    share_tiles(root, Selection("train"))


def read_batch(root: Path) -> None:
    next(TileLoader(root, Selection("train"), batch=BATCH, prefetch=0).epoch(0))


def read_shards(root: Path) -> None:
    next(TileLoader(root, Selection("train"), batch=BATCH, prefetch=0, shuffle_buffer=BUFFER).epoch(0))


def verify_fast(root: Path, *options: str) -> None:
    if verify([str(root), "--fast", *options]):
        raise RuntimeError(f"{root} is not sound")


def verify_some(root: Path) -> None:
    verify_fast(root, "--scenes", "300")


def report(root: Path) -> None:
    summary_table(read_summary(root))


def write_pages(root: Path) -> None:
    write_site(str(root), None, None, root.parent / "pages")


def measure(step: str, root: Path) -> dict[str, float]:
    """Run a step in a process of its own.

    Returns `seconds` and `cpu`, both without imports, and the peak of `memory` and that of `libraries` alone, bytes.
    """
    command = [sys.executable, "-m", "benchmarks", "scale", "--step", step, "--root", str(root)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    values: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return values


STEPS: dict[str, Callable[[Path], None]] = {
    "index": write_index, "choose": choose, "batch": read_batch, "shards": read_shards,
    "verify": verify_fast, "sampled": verify_some, "report": report, "html": write_pages,
}  # fmt: skip


def main(argv: list[str]) -> int:
    """Run the command. The exit status is 1 if a step takes more than LIMIT."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiles", type=float, nargs="+", default=[1.43e6], help="sizes (%(default)s)")
    parser.add_argument(
        "--steps", nargs="+", choices=(*STEPS, *ALONE), default=[*STEPS], help="steps to run; others need the index"
    )
    parser.add_argument("--blocks", type=int, default=100_000, help="blocks that `simulate` streams (%(default)s)")
    parser.add_argument("--workers", type=int, default=1000, help="threads of its workers (%(default)s)")
    parser.add_argument("--processes", type=int, default=4, help="processes of its workers (%(default)s)")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.step:
        configure_libraries()
        began, cpu, libraries = time.perf_counter(), time.process_time(), most_memory()
        STEPS[options.step](options.root)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        print(json.dumps({"seconds": seconds, "cpu": cpu, "memory": most_memory(), "libraries": libraries}))
        return 0
    if "simulate" in options.steps:
        found = simulate.simulate(options.blocks, options.processes, max(1, options.workers // options.processes))
        print(simulate.format_simulation(found, options.blocks, options.workers), flush=True)
    if "bucket" in options.steps:
        print(bucket.format_requests(*bucket.measure()), flush=True)
    steps = [step for step in options.steps if step not in ALONE]
    memory: dict[str, tuple[int, float]] = {}
    within = True
    for tiles in options.tiles if steps else []:
        scenes = max(1, round(tiles / SIDE**2))
        with tempfile.TemporaryDirectory(prefix="geokr-scale-") as folder:
            root = Path(folder, "dataset")
            write_stores(root, scenes)
            for step in steps:
                found = measure(step, root)
                pages = [path.stat().st_size for path in root.parent.glob("pages/*")]
                before = memory.get(step, (0, 0.0))
                slope = (found["memory"] - before[1]) / (scenes * SIDE**2 - before[0])
                print(
                    f"case=scale-{step} tiles={scenes * SIDE**2} scenes={scenes} seconds={found['seconds']:.2f} "
                    f"cpu={found['cpu']:.2f}s "
                    f"memory={found['memory'] / 2**20:.0f}MiB libraries={found['libraries'] / 2**20:.0f}MiB "
                    + (f"page={max(pages) / 2**20:.1f}MiB " if pages else "")
                    + (f"slope={slope:.1f}B/tile" if before[0] else "slope=none"),
                    flush=True,
                )
                memory[step] = scenes * SIDE**2, found["memory"]
                within &= found["memory"] <= LIMIT
    return 0 if within else 1
