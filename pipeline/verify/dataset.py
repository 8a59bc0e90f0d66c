"""A data set as it lies there: its parts, each read when it is first asked for."""

import io
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox

from geokr.dataset import contents, layout, store
from geokr.dataset.layout import DATASET, INDEX
from geokr.storage import files
from pipeline.catalog import quarantine
from pipeline.catalog.table import CATALOG, Entry, read_catalog
from pipeline.config import BuildConfig
from pipeline.geometry.grid import TileGrid


@dataclass(frozen=True)
class StoredScene:
    """A scene's groups in a data set."""

    name: str
    tiles: zarr.Group
    label_store: str
    """Of the label set of the index."""

    @cached_property
    def labels(self) -> zarr.Group:
        return store.open_scene(self.label_store, self.name)

    @cached_property
    def grid(self) -> TileGrid:
        """Where the tiles lie, by what the group says of itself."""
        said: Any = self.tiles.attrs
        rows, cols = self.status.shape
        shape = tuple((n - 1) * said["stride"] + said["tile"] for n in (rows, cols))
        geobox = GeoBox(shape, Affine(*said["spatial:transform"]), said["proj:code"])
        return TileGrid(geobox, said["tile"], said["stride"], self.block)

    @cached_property
    def block(self) -> int:
        """Side of a block, tiles."""
        return int(self.tiles["status"].chunks[0])  # type: ignore[union-attr]

    @cached_property
    def status(self) -> npt.NDArray[np.uint8]:
        return contents.read_status(self.tiles)

    def blocks(self) -> Iterator[tuple[int, int, tuple[slice, slice]]]:
        """Row and column of each block, and its tiles."""
        rows, cols = self.tiles["status"].shape  # type: ignore[union-attr]
        for i, r in enumerate(range(0, rows, self.block)):
            for j, c in enumerate(range(0, cols, self.block)):
                yield i, j, (slice(r, min(r + self.block, rows)), slice(c, min(c + self.block, cols)))

    def describe_tile(self, row: int, col: int) -> str:
        """A tile's place for a person."""
        return f"{self.name} block ({row // self.block}, {col // self.block}): tile ({row}, {col})"


class DataSet:
    """A data set, each part of it read when a check first asks for it."""

    def __init__(self, root: str, threads: ThreadPoolExecutor) -> None:
        self.root, self.threads = root, threads

    @cached_property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(files.read(files.join(self.root, DATASET)))
        return found

    @cached_property
    def config(self) -> BuildConfig:
        return BuildConfig.model_validate({**self.summary["settings"], "out": self.root})

    @cached_property
    def entries(self) -> dict[str, Entry]:
        return {entry.scene.id: entry for entry in read_catalog(files.join(self.root, CATALOG))}

    @cached_property
    def index(self) -> geopandas.GeoDataFrame:
        return geopandas.read_parquet(io.BytesIO(files.read(files.join(self.root, INDEX))))

    @cached_property
    def tiles(self) -> str:
        return files.join(self.root, layout.TILES)

    @cached_property
    def labels(self) -> str:
        return files.join(self.root, layout.label_store(self.summary["label_set"]))

    @property
    def label_sets(self) -> list[str]:
        """All stores of labels."""
        return [files.join(self.root, layout.label_store(name)) for name in self.summary["label_sets"]]

    @cached_property
    def scenes(self) -> list[StoredScene]:
        """Those in the stores, by name, but for scenes that the build was no more asked for."""
        gone = {entry["scene"] for entry in self.refused if entry["reason"] == "gone"}
        names = [name for name in contents.list_scenes(self.tiles) if name not in gone]
        return [StoredScene(name, store.open_scene(self.tiles, name), self.labels) for name in names]

    @cached_property
    def refused(self) -> list[dict[str, Any]]:
        return quarantine.read(self.root)

    @cached_property
    def failed(self) -> set[tuple[str, int, int]]:
        """Scene, row and column of the blocks of which the quarantine says that they could not be built."""
        return {(entry["scene"], i, j) for entry in self.refused for i, j in entry.get("blocks", ())}

    def each(self, check: Callable[[StoredScene], Iterable[str]]) -> list[str]:
        """Faults of all scenes, in their order."""
        return [
            fault for faults in self.threads.map(lambda scene: listed(check, scene), self.scenes) for fault in faults
        ]


def listed(check: Callable[[StoredScene], Iterable[str]], scene: StoredScene) -> list[str]:
    """A scene's faults; that it cannot be read is one."""
    try:
        return list(check(scene))
    except Exception as error:  # what a changed byte does to a reader is anybody's guess
        return [f"{scene.name}: cannot be checked: {shorten(error)}"]


def shorten(error: Exception) -> str:
    """The first line of an error, without what its library adds for its own authors."""
    return (str(error) or type(error).__name__).splitlines()[0].split(" [")[0]
