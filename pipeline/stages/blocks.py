"""Blocks as the stages count them: which are left, which failed, how far each scene is."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from geokr.dataset import contents, store
from pipeline.catalog import quarantine
from pipeline.config import BuildConfig
from pipeline.geometry.grid import TileGrid
from pipeline.runtime.progress import Progress, log_event
from pipeline.runtime.stream import Client, JobBatch, stream

log = logging.getLogger(__name__)


class MissingBlocks:
    """The blocks of a scene that a store does not hold yet, row by row."""

    def __init__(self, grid: TileGrid, there: contents.SceneContents | None) -> None:
        self.grid, self.there = grid, there
        rows, cols = grid.blocks
        self.done = there.blocks if there is not None else frozenset()
        sizes = (tile_count(grid, i, j) for i, j in self.done if i < rows and j < cols)
        self.tiles = grid.rows * grid.cols - sum(sizes)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rows, cols = self.grid.blocks
        return ((i, j) for i in range(rows) for j in range(cols) if (i, j) not in self.done)

    def check(self, root: str, scene: str, wanted: dict[str, Any]) -> None:
        """Raise StoreError where what is there was built from other input or with other settings."""
        if self.there is not None:
            store.require_same(root, scene, self.there.attributes, wanted)


class Failures:
    """Jobs that failed, as one quarantine entry for each scene and reason."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], dict[tuple[int, int], str]] = {}

    def add(self, scene: str, block: tuple[int, int], error: Exception) -> None:
        self.found.setdefault((scene, type(error).__name__), {})[block] = str(error) or repr(error)

    def entries(self) -> list[dict[str, Any]]:
        """The sentence of each is that of its first block, whatever the order in which they failed."""
        return [
            {
                "scene": scene,
                "reason": reason,
                "detail": self.sentence(scene, blocks),
                "blocks": sorted(map(list, blocks)),
            }
            for (scene, reason), blocks in sorted(self.found.items())
        ]

    @staticmethod
    def sentence(scene: str, blocks: dict[tuple[int, int], str]) -> str:
        first = blocks[min(blocks)]
        return first if scene in first else f"{scene}: {first}"


class Tally:
    """Counts of the scenes that are at work; each goes to the log when it is done."""

    def __init__(self, config: BuildConfig, stage: str, left: Mapping[str, int]) -> None:
        """left: scene -> tiles that are to be built."""
        self.config, self.stage, self.left = config, stage, dict(left)
        self.total = sum(left.values())
        self.counts: dict[str, Counter[str]] = {}

    def add(self, scene: str, tiles: int, **counts: int) -> None:
        found = self.counts.setdefault(scene, Counter())
        found.update(tiles=tiles, **counts)
        self.left[scene] -= tiles
        if not self.left[scene]:
            log_event(self.config.out, "scene", stage=self.stage, scene=scene, **self.counts.pop(scene))


def run_blocks(
    config: BuildConfig,
    stage: str,
    build: Callable[[Any], Any],
    batches: Iterable[JobBatch[Any]],
    left: Mapping[str, int],
    client: Client | None,
    failures: Failures,
    good: str,
) -> Iterator[Any]:
    """Stream the blocks of a stage, and yield the report of each that was built; the others go to `failures`.

    left: scene -> tiles that are to be built. good: the field of a report that counts its good tiles.
    """
    tally = Tally(config, stage, left)
    with Progress(config.out, stage, tally.total, "tile", good) as progress:
        for job, report in stream(build, batches, client):
            tiles = tile_count(job.grid, job.i, job.j)
            if isinstance(report, Exception):
                failures.add(job.scene, (job.i, job.j), report)
                counts = {"failed": 1}
            else:
                counts = {good: getattr(report, good)}
                yield report
            tally.add(job.scene, tiles, **counts)
            progress.add(tiles, counts.get(good, 0))


def tile_count(grid: TileGrid, i: int, j: int) -> int:
    """Tiles of a block."""
    return min(grid.block, grid.rows - i * grid.block) * min(grid.block, grid.cols - j * grid.block)


def consolidate_if_changed(root: str, built: Mapping[str, contents.SceneContents], changed: bool) -> None:
    """Gather a store's metadata where it has changed, or where an earlier run ended before it did.

    built: what was there before.
    """
    if changed or (built and not built.keys() <= contents.read_consolidated(root).keys()):
        store.consolidate(root)


def record_refusals(stage: str, config: BuildConfig, refused: Collection[dict[str, Any]]) -> None:
    """Say and record what a stage refused."""
    for refusal in refused:
        log.warning("refused: %s", refusal["detail"])
        log_event(config.out, "refused", stage=stage, **refusal)
    quarantine.replace(config.out, stage, [*refused])
