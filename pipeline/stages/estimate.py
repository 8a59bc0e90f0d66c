"""What a build will take: blocks are built for trial in a folder that is then deleted; the rest is arithmetic."""

import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from geokr.dataset import contents, store
from geokr.dataset.layout import TILE_STATUS
from geokr.landcover.shares import select_sheets
from geokr.landcover.sheets import LandCover
from geokr.storage import files
from pipeline.catalog.table import Entry
from pipeline.config import BuildConfig
from pipeline.geometry.grid import TileGrid
from pipeline.plan import parts_per_side, placement_attributes
from pipeline.runtime.progress import format_duration
from pipeline.runtime.worker import BAD_INPUT
from pipeline.stages.tiles import create_scene
from pipeline.tasks.labels import LabelJob, build_labels
from pipeline.tasks.tiles import TileJob, build_tiles

TRIED = 3
"""Largest number of scenes of which a block is built."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What one block took."""

    entry: Entry
    statuses: dict[str, int]
    """Status -> number of tiles of the block."""
    bytes: int
    """Size of tiles and labels on disk."""
    seconds: float
    """Time of one process for tiles and labels."""

    @property
    def tiles(self) -> int:
        return sum(self.statuses.values())


def build_block(root: str, config: BuildConfig, covers: Sequence[LandCover], entry: Entry, grid: TileGrid) -> Trial:
    """Build the block in the middle of a scene, and label it, in stores under an empty folder.

    Raises an error of BAD_INPUT if the scene or a sheet cannot be read.
    """
    scene = entry.scene
    i, j = (count // 2 for count in grid.blocks)
    tiles = f"{root}/tiles"
    create_scene(tiles, entry, grid, config.tiles)
    jobs = []
    for cover in covers:
        local_cover = select_sheets(grid.outline, str(grid.geobox.crs), cover)
        labels, parts = f"{root}/{cover.name}", parts_per_side(grid, local_cover, config.labels.grid)
        store.create_labels(
            labels,
            scene.id,
            shape=(grid.rows, grid.cols),
            classes=local_cover.legend.classes,
            grid=parts,
            block=grid.block,
            attributes=placement_attributes(grid),
        )
        jobs.append(LabelJob(labels, scene.id, local_cover, parts, grid, i, j))
    empty = folder_size(root)
    began = time.perf_counter()
    build_tiles(TileJob(tiles, entry, config.tiles, grid, i, j))
    for job in jobs:
        build_labels(job)
    seconds = time.perf_counter() - began
    size = folder_size(root) - empty
    statuses = dict(contents.count_statuses(contents.read_status(store.open_scene(tiles, scene.id)), TILE_STATUS))
    return Trial(entry, statuses | {"not_built": 0}, size, seconds)


def folder_size(folder: str) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def try_blocks(
    config: BuildConfig, covers: Sequence[LandCover], grids: Sequence[tuple[Entry, TileGrid]]
) -> list[Trial]:
    """Build a block of each of up to TRIED scenes, evenly spaced in the list; a scene that cannot be read has none."""
    step = max(1, len(grids) // TRIED)
    chosen = [*grids[step // 2 :: step]][:TRIED]
    trials: list[Trial] = []
    for number, (entry, grid) in enumerate([chosen[0], *chosen]):
        with tempfile.TemporaryDirectory(prefix="geokr-", ignore_cleanup_errors=True) as root, suppress(*BAD_INPUT):
            trial = build_block(root, config, covers, entry, grid)
            trials += [trial] if number else []  # the first had to wait for what a process does once, as compiling
    return trials


def describe_estimate(trials: Sequence[Trial], tiles: int, survey: float, workers: int, memory: int, out: str) -> str:
    """A line about disk, time and memory of a whole build.

    tiles: how many there will be. survey: time for the survey of all scenes, s. memory: peak of a worker, bytes.
    out: the data set, whose disk must have space.
    """
    tried = sum(trial.tiles for trial in trials)
    if not tried:
        return "estimate  none: no block could be built for trial"
    share = tiles / tried
    size = share * sum(trial.bytes for trial in trials)
    seconds = survey + share * sum(trial.seconds for trial in trials) / workers
    accepted = sum(trial.statuses.get("accepted", 0) for trial in trials) / tried
    space = ""
    if not files.in_bucket(out):
        folder = Path(out).absolute()
        free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
        space = f", {'of which only' if size > free else 'where'} {format_size(free)} are free"
    return (
        f"estimate  {format_size(size)} on disk{space}; {format_duration(seconds)} on {workers} workers, with at most "
        f"{format_size(workers * memory)} of memory; from {len(trials)} blocks built for trial, {tried} tiles, of "
        f"which {accepted:.0%} were accepted"
    )


def format_size(size: float) -> str:
    """Bytes as text: `812 MB`, `1.4 TB`."""
    for name, unit in (("MB", 1e6), ("GB", 1e9)):
        if size < 1000 * unit:
            return f"{size / unit:.3g} {name}"
    return f"{size / 1e12:.3g} TB"
