"""The blocks of a stage: which are missing, which failed, and how many of each scene are done."""

import logging
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

from geokr.dataset import contents, store
from pipeline.catalog import quarantine
from pipeline.config import BuildConfig
from pipeline.geometry.grid import TileGrid
from pipeline.runtime.progress import Progress, log_event
from pipeline.runtime.stream import Client, JobBatch, stream

log = logging.getLogger(__name__)

Scene = TypeVar("Scene")
CREATED_AHEAD = 16
"""Scenes that are created at once, ahead of the one whose blocks come next. A bucket takes three requests in a row for
each, and 1.2 hours for 27,800 scenes one by one, at 50 ms a request."""


class UnbuiltBlocks:
    """The blocks of a scene that are not in the store yet, row by row."""

    def __init__(self, grid: TileGrid, stored: contents.SceneContents | None) -> None:
        self.grid, self.stored = grid, stored
        rows, cols = grid.blocks
        self.done = stored.blocks if stored is not None else frozenset()
        sizes = (tile_count(grid, i, j) for i, j in self.done if i < rows and j < cols)
        self.tiles = grid.rows * grid.cols - sum(sizes)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rows, cols = self.grid.blocks
        return ((i, j) for i in range(rows) for j in range(cols) if (i, j) not in self.done)

    def check(self, root: str, scene: str, attributes: dict[str, Any]) -> None:
        """Raise StoreError if the existing blocks were built from other input or with other settings."""
        if self.stored is not None:
            store.require_same(root, scene, self.stored.attributes, attributes)


def create_ahead(create: Callable[[Scene], object], scenes: Iterable[Scene]) -> Generator[Scene, None, None]:
    """Yield scenes in their order, each once it is created; those that follow are created meanwhile, on threads.

    The first is created alone, since the store is created with it. Raises what `create` raises, when the turn of that
    scene comes.
    """
    left = iter(scenes)
    with ThreadPoolExecutor(CREATED_AHEAD, "create") as threads:
        started = deque((scene, threads.submit(create, scene)) for scene in islice(left, 1))
        while started:
            scene, created = started.popleft()
            created.result()
            more = islice(left, CREATED_AHEAD - len(started))
            started.extend((following, threads.submit(create, following)) for following in more)
            yield scene


class Failures:
    """Jobs that failed, as one quarantine entry for each scene and reason."""

    def __init__(self) -> None:
        self.errors: dict[tuple[str, str], dict[tuple[int, int], str]] = {}

    def add(self, scene: str, block: tuple[int, int], error: Exception) -> None:
        self.errors.setdefault((scene, type(error).__name__), {})[block] = str(error) or repr(error)

    def entries(self) -> list[dict[str, Any]]:
        """The quarantine entries. The detail is that of the first block, whatever the order in which blocks failed."""
        return [
            {
                "scene": scene,
                "reason": reason,
                "detail": self.describe(scene, blocks),
                "blocks": sorted(map(list, blocks)),
            }
            for (scene, reason), blocks in sorted(self.errors.items())
        ]

    @staticmethod
    def describe(scene: str, blocks: dict[tuple[int, int], str]) -> str:
        first = blocks[min(blocks)]
        return first if scene in first else f"{scene}: {first}"


class Tally:
    """Counts of the scenes in progress; a scene is logged when it is done."""

    def __init__(self, config: BuildConfig, stage: str, left: Mapping[str, int]) -> None:
        """left: scene -> number of tiles to build."""
        self.config, self.stage, self.tiles_left = config, stage, dict(left)
        self.total = sum(left.values())
        self.counts: dict[str, Counter[str]] = {}

    def add(self, scene: str, tiles: int, **counts: int) -> None:
        scene_counts = self.counts.setdefault(scene, Counter())
        scene_counts.update(tiles=tiles, **counts)
        self.tiles_left[scene] -= tiles
        if not self.tiles_left[scene]:
            log_event(self.config.out, "scene", stage=self.stage, scene=scene, **self.counts.pop(scene))


def run_blocks(
    config: BuildConfig,
    stage: str,
    build: Callable[[Any], Any],
    batches: Iterable[JobBatch[Any]],
    left: Mapping[str, int],
    client: Client | None,
    failures: Failures,
    passed_field: str,
) -> Generator[Any, None, None]:
    """Stream the blocks of a stage, and yield the report of each block that was built; errors go to `failures`.

    left: scene -> number of tiles to build. passed_field: the field of a report that counts the tiles that passed.
    """
    tally = Tally(config, stage, left)
    with Progress(config.out, stage, tally.total, "tile", passed_field, client) as progress:
        for job, report in stream(build, batches, client):
            tiles = tile_count(job.grid, job.i, job.j)
            if isinstance(report, Exception):
                failures.add(job.scene, (job.i, job.j), report)
                counts = {"failed": 1}
            else:
                counts = {passed_field: getattr(report, passed_field)}
                yield report
            tally.add(job.scene, tiles, **counts)
            progress.add(tiles, counts.get(passed_field, 0))


def tile_count(grid: TileGrid, i: int, j: int) -> int:
    """Number of tiles in a block."""
    return min(grid.block, grid.rows - i * grid.block) * min(grid.block, grid.cols - j * grid.block)


def consolidate_if_changed(root: str, built: Mapping[str, contents.SceneContents], changed: bool) -> None:
    """Consolidate the metadata of a store if it has changed, or if an earlier run ended before it did so.

    built: the scenes that were in the store before.
    """
    if not changed and not built:
        return
    if not changed:
        scenes = len(contents.list_scenes(root))
        consolidated = contents.read_consolidated(root).keys()
        changed = not (built.keys() <= consolidated if scenes <= store.CONSOLIDATED else not consolidated)
    if changed:
        store.consolidate(root)


def record_refusals(stage: str, config: BuildConfig, refused: Collection[dict[str, Any]]) -> None:
    """Log what a stage refused, and record it in the quarantine."""
    for refusal in refused:
        log.warning("refused: %s", refusal["detail"])
        log_event(config.out, "refused", stage=stage, **refusal)
    quarantine.replace(config.out, stage, [*refused])
