"""A stored data set, whose parts are read when they are first needed."""

import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox
from tqdm import tqdm

from geokr.dataset import contents, layout, store
from geokr.dataset.index import list_facts, list_parts
from geokr.dataset.layout import DATASET
from geokr.storage import files
from pipeline.catalog import quarantine
from pipeline.catalog.table import CATALOG, Entry, read_catalog
from pipeline.config import BuildConfig
from pipeline.geometry.grid import TileGrid

MOST_FAULTS = 100
"""Faults of a scene that a check lists: one wrong setting may make a fault of each tile."""


@dataclass(frozen=True)
class StoredScene:
    """The groups of one scene in the stores of a data set."""

    name: str
    tiles: zarr.Group
    label_store: str
    """The store of the label set of the index."""

    @cached_property
    def labels(self) -> zarr.Group:
        return store.open_scene(self.label_store, self.name)

    @cached_property
    def grid(self) -> TileGrid:
        """The tile grid, from the attributes of the group."""
        attributes: Any = self.tiles.attrs
        rows, cols = self.status.shape
        shape = tuple((n - 1) * attributes["stride"] + attributes["tile"] for n in (rows, cols))
        geobox = GeoBox(shape, Affine(*attributes["spatial:transform"]), attributes["proj:code"])
        return TileGrid(geobox, attributes["tile"], attributes["stride"], self.block)

    @cached_property
    def block(self) -> int:
        """Side length of a block, tiles."""
        return int(self.tiles["status"].chunks[0])  # type: ignore[union-attr]

    @cached_property
    def status(self) -> npt.NDArray[np.uint8]:
        return contents.read_status(self.tiles)

    def blocks(self) -> Iterator[tuple[int, int, tuple[slice, slice]]]:
        """Row and column of each block, and the slices of its tiles."""
        rows, cols = self.tiles["status"].shape  # type: ignore[union-attr]
        for i, r in enumerate(range(0, rows, self.block)):
            for j, c in enumerate(range(0, cols, self.block)):
                yield i, j, (slice(r, min(r + self.block, rows)), slice(c, min(c + self.block, cols)))

    def describe_tile(self, row: int, col: int) -> str:
        """Name the scene, block and tile, for a message."""
        return f"{self.name} block ({row // self.block}, {col // self.block}): tile ({row}, {col})"


class DataSet:
    """A data set, whose parts are read when a check first needs them.

    number: about how many scenes are checked, drawn at random, those of whole parts of the index; None for all.
    """

    def __init__(self, root: str, threads: ThreadPoolExecutor, number: int | None = None) -> None:
        self.root, self.threads, self.number = root, threads, number
        self.progress = tqdm(disable=True)
        """Counts the scenes of the check that is running."""

    @cached_property
    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads(files.read(files.join(self.root, DATASET)))
        return summary

    @cached_property
    def config(self) -> BuildConfig:
        return BuildConfig.model_validate({**self.summary["settings"], "out": self.root})

    @cached_property
    def entries(self) -> dict[str, Entry]:
        return {entry.scene.id: entry for entry in read_catalog(files.join(self.root, CATALOG))}

    @cached_property
    def parts(self) -> list[str]:
        """Paths of the parts of the index that are checked, in order; the same ones each time."""
        paths = list_parts(self.root)
        if self.number is None:
            return paths
        count = min(len(paths), math.ceil(len(paths) * self.number / max(1, self.summary["counts"]["scenes"])))
        return [paths[k] for k in sorted(np.random.default_rng(0).choice(len(paths), count, replace=False))]

    @cached_property
    def reports(self) -> list[dict[str, Any]]:
        """What the build noted in each of these parts: see `PartReport`."""
        return [facts["report"] for path, facts in list_facts(self.root) if path in {*self.parts}]

    def index_parts(self, columns: list[str] | None = None) -> Iterator[geopandas.GeoDataFrame]:
        """Read the parts of the index that are checked one by one, by default all columns."""
        for path in self.parts:
            yield geopandas.read_parquet(io.BytesIO(files.read(path)), columns=columns)

    @cached_property
    def tiles(self) -> str:
        return files.join(self.root, layout.TILES)

    @cached_property
    def labels(self) -> str:
        return files.join(self.root, layout.label_store(self.summary["label_set"]))

    @property
    def label_sets(self) -> list[str]:
        """All label stores."""
        return [files.join(self.root, layout.label_store(name)) for name in self.summary["label_sets"]]

    @cached_property
    def scenes(self) -> list[StoredScene]:
        """The scenes that are checked, by name: of those in the stores, all that are still inputs of the build."""
        removed = {entry["scene"] for entry in self.refused if entry["reason"] == "gone"}
        names = [name for name in contents.list_scenes(self.tiles) if name not in removed]
        if self.number is not None:
            drawn = {name for report in self.reports for name in report["scenes"]}
            names = [name for name in names if name in drawn]
        return [StoredScene(name, store.open_scene(self.tiles, name), self.labels) for name in names]

    @cached_property
    def by_name(self) -> dict[str, StoredScene]:
        return {scene.name: scene for scene in self.scenes}

    @cached_property
    def refused(self) -> list[dict[str, Any]]:
        return quarantine.read(self.root)

    @cached_property
    def failed(self) -> set[tuple[str, int, int]]:
        """Scene, row and column of each block that could not be built, according to the quarantine."""
        return {(entry["scene"], i, j) for entry in self.refused for i, j in entry.get("blocks", ())}

    def check_scenes(self, check: Callable[[StoredScene], Iterable[str]], names: Set[str] | None = None) -> list[str]:
        """Run a check on the named scenes, or all, in parallel; returns their faults, in the order of the scenes."""
        scenes = self.scenes if names is None else [self.by_name[name] for name in sorted(names & self.by_name.keys())]
        found = []
        for faults in self.threads.map(lambda scene: list_faults(check, scene), scenes):
            found += faults
            self.progress.update()
        return found


def list_faults(check: Callable[[StoredScene], Iterable[str]], scene: StoredScene) -> list[str]:
    """The faults of one scene, up to MOST_FAULTS. An unreadable scene is a fault too."""
    try:
        faults = list(islice(check(scene), MOST_FAULTS + 1))
        return [*faults[:MOST_FAULTS], f"{scene.name}: and more"] if len(faults) > MOST_FAULTS else faults
    except Exception as error:  # a changed byte can cause any error in a reader
        return [f"{scene.name}: cannot be checked: {shorten(error)}"]


def shorten(error: Exception) -> str:
    """The first line of an error message, without the details that a library appends in brackets."""
    return (str(error) or type(error).__name__).splitlines()[0].split(" [")[0]
