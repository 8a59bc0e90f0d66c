"""Reading the pixels of tiles from their shards.

tensorstore reads and decodes in its own threads, so no worker processes are needed. Its threads do not survive a fork:
a read in a forked process would wait forever.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from geokr.dataset.layout import RGB, TILES
from geokr.loading.order import Positions
from geokr.loading.selection import Tiles
from geokr.loading.shared import count_ranks
from geokr.loading.units import PixelUnits, find_common_units, read_units
from geokr.storage import files

INDEX_CACHE = 2**27
"""Size of the cache of shard indexes, bytes: 16 for each tile of a shard. Pixels are not cached, because tiles that are
read in random order do not return before they are evicted, and would evict the indexes."""

CHUNK = 1 << 20
"""Tiles that are checked at once."""

log = logging.getLogger(__name__)


class _Threads:
    """Whether tensorstore has started its threads in this process, and whether a fork has lost them."""

    started = False
    lost_in_fork = False


def _note_fork() -> None:
    _Threads.lost_in_fork = _Threads.started


os.register_at_fork(after_in_child=_note_fork)


def _check_threads() -> None:
    if _Threads.lost_in_fork:
        raise RuntimeError(
            "this process was forked from one that had read tiles, and tensorstore does not survive that; use "
            "num_workers=0 (tensorstore reads in its own threads) or multiprocessing_context='spawn'"
        )
    _Threads.started = True


@dataclass(frozen=True, slots=True)
class PendingRead:
    """A read of tiles into an array that is in progress."""

    positions: Positions
    target: npt.NDArray[Any]
    """(tile, band, y, x), complete once the future is done."""
    future: Any


class TileReader:
    """The opened images of the scenes that contain the selected tiles."""

    def __init__(self, root: str, tiles: Tiles, bands: Sequence[str], units: PixelUnits | None = None) -> None:
        """root: path or URL of the store. bands: bands to read, in this order; if empty, those of `choose_bands`.

        units: of the pixels that are read, whatever those of each scene are; by default the common ones of the scenes.
        Raises ValueError if no scene has all bands. Also raises it, naming the scene, if a scene is not in the
        store, if its image cannot be opened, or if its tiles differ in size, type or quantity from those of other
        scenes.
        """
        _check_threads()
        self.root = root
        threads = {"limit": read_threads()}
        context = ts.Context(
            {
                "cache_pool#indexes": {"total_bytes_limit": INDEX_CACHE},
                "cache_pool#pixels": {"total_bytes_limit": 0},
                "data_copy_concurrency": threads,
                "file_io_concurrency": threads,
            }
        )
        store = ts.KvStore.open(files.kvstore_spec(root), context=context).result()
        attributes = _read_attributes(store, root, tiles.scenes)
        available = {scene: tuple(values["bands"]) for scene, values in attributes.items()}
        self.bands = tuple(bands) or choose_bands([*available.values()])
        """Bands of the tiles, in this order."""
        self.scenes_without_bands = {s: names for s, names in available.items() if not {*self.bands} <= {*names}}
        """Scenes that lack one of `bands` -> the bands that they have."""
        if len(self.scenes_without_bands) == len(available):
            others = "; ".join(sorted({", ".join(names) for names in available.values()}))
            raise ValueError(
                f"{root}: no scene with these tiles has bands {', '.join(self.bands)}; they have {others}; choose "
                "among these with the setting bands"
            )
        for scene in self.scenes_without_bands:
            del attributes[scene]
        self._arrays = _open_scenes(store, context, root, attributes, self.bands)
        self.tiles = tiles.filter(np.array([name in self._arrays for name in tiles.scenes])[tiles.scene])
        """The tiles of the scenes that have all bands."""
        self.tile_shape: tuple[int, ...] = next(iter(self._arrays.values())).shape[2:]
        """Shape of a tile: (band, y, x)."""
        self.dtype: np.dtype[Any] = next(iter(self._arrays.values())).dtype.numpy_dtype
        """Type of the pixels: uint8 or uint16."""
        its_units = {name: read_units(attributes[name], self.dtype.name) for name in self._arrays}
        self.units = units or find_common_units(its_units.values())
        """What the pixels stand for, as they are read."""
        self._tables = _convert_units(root, its_units, self.units, tiles.scenes)
        sides, shapes = np.ones((2, len(tiles.scenes), 2), dtype=np.int64)
        for number, name in enumerate(tiles.scenes):
            if name in self._arrays:
                sides[number] = self._arrays[name].chunk_layout.write_chunk.shape[:2]
                shapes[number] = self._arrays[name].shape[:2]
        for start in range(0, len(self.tiles), CHUNK):
            chunk = slice(start, start + CHUNK)
            at, row, col = (values[chunk] for values in (self.tiles.scene, self.tiles.row, self.tiles.col))
            outside = (row < 0) | (col < 0) | (row >= shapes[at, 0]) | (col >= shapes[at, 1])
            if outside.any():
                first = int(outside.argmax())
                raise ValueError(
                    f"{root}/{tiles.scenes[at[first]]}: the index lists tile ({row[first]}, {col[first]}), "
                    f"outside its {shapes[at[first]].tolist()} rows and columns; build the index again"
                )
        self._sides = sides
        # One array of all scenes, one below the other: a batch is then one request, divided into scenes, shards and
        # chunks by tensorstore's own threads. A request for each scene would take 0.1 ms of Python.
        # All get the same number of columns, since tensorstore would divide each scene at the others' edges.
        first_row, width = np.cumsum(shapes[:, 0]) - shapes[:, 0], int(shapes[:, 1].max())
        self._first_row = first_row
        self._all = ts.overlay(
            [
                self._arrays[name][ts.d["col"].mark_bounds_implicit[True]][:, :width][
                    ts.d["row"].translate_by[int(row)]
                ]
                for name, row in zip(tiles.scenes, first_row, strict=True)
                if name in self._arrays
            ]
        )

    def shard_cells(self, positions: Positions) -> npt.NDArray[np.int64]:
        """(tile, 3): scene, and row and column of the tile's shard in the scene."""
        scene = self.tiles.scene[positions]
        cell = np.stack([self.tiles.row[positions], self.tiles.col[positions]], axis=1)
        return np.concatenate([scene[:, None], cell // self._sides[scene]], axis=1)

    def shard(self, position: int) -> str:
        """Path or URL of the shard that contains a tile."""
        ((scene, i, j),) = self.shard_cells(np.array([position]))
        return f"{self.root}/{self.tiles.scenes[scene]}/image/c/{i}/{j}/0/0/0"

    def request(self, positions: Positions, target: npt.NDArray[Any]) -> PendingRead:
        """Start reading tiles into an array (tile, band, y, x).

        tensorstore opens each shard once for all its tiles, and merges the reads of neighbouring tiles. A request for
        all tiles of a shard reads the shard in one piece.
        """
        _check_threads()
        row = self.tiles.row[positions] + self._first_row[self.tiles.scene[positions]]
        source = self._all.vindex[row, self.tiles.col[positions]]
        return PendingRead(positions, target, ts.array(target).write(source))

    def finish(self, read: PendingRead) -> dict[int, str]:
        """Wait for a read. Returns the tiles that cannot be read: row of the target -> error message."""
        errors: dict[int, str] = {}
        try:
            read.future.result()
        except Exception as error:  # tensorstore raises ValueError, IndexError, OSError and more
            errors = dict(self._retry(read))
            if not errors:
                log.warning("%s: a read failed but succeeded when repeated: %s", self.root, error)
        if self._tables:
            scene = self.tiles.scene[read.positions]
            for number in set(scene.tolist()) & self._tables.keys():
                rows = np.flatnonzero(scene == number)
                read.target[rows] = self._tables[number][read.target[rows]]
        return errors

    def _retry(self, read: PendingRead) -> Iterator[tuple[int, str]]:
        """Repeat a read tile by tile. Yields each row that cannot be read, with the error message."""
        scene, row, col = (values[read.positions] for values in (self.tiles.scene, self.tiles.row, self.tiles.col))
        cells = list(zip(row.tolist(), col.tolist(), strict=True))
        futures = [self._arrays[self.tiles.scenes[s]][cell].read() for s, cell in zip(scene, cells, strict=True)]
        for number, future in enumerate(futures):
            try:
                read.target[number] = future.result()
            except Exception as error:
                place, reason = self.shard(read.positions[number]), str(error).split(" [")[0]
                yield number, f"{place}: tile {cells[number]} cannot be read; build it again: {reason}"


def open_reader(
    dataset: str, split: str, tiles: Tiles, bands: Sequence[str], units: PixelUnits | None = None
) -> TileReader:
    reader = TileReader(f"{dataset}/{TILES}", tiles, bands, units)
    if reader.scenes_without_bands:
        log.warning(
            "%s: %d scenes of split %s lack a band of %s, left out",
            dataset,
            len(reader.scenes_without_bands),
            split,
            ", ".join(reader.bands),
        )
    return reader


def choose_bands(available: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The bands to read if none are named. available: the bands of each scene.

    They are red, green and blue or, if no scene has these, the bands that all scenes have, in the order of the first.
    """
    if any({*RGB} <= {*names} for names in available):
        return RGB
    common = set.intersection(*map(set, available))
    return tuple(name for name in available[0] if name in common) or RGB


def read_threads() -> int:
    """Number of threads that read and decode tiles: the cores of this process, shared among the ranks of its machine.

    The number of ranks is torchrun's LOCAL_WORLD_SIZE. Raises ValueError if that is not a positive number.
    """
    return max(1, len(os.sched_getaffinity(0)) // count_ranks())


def _read_attributes(store: Any, root: str, scenes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read the attributes of the scenes' groups. Raises ValueError naming a scene that is not in the store."""
    attributes = {}
    for scene, future in [(scene, store.read(f"{scene}/zarr.json")) for scene in scenes]:
        document = future.result()
        if document.state != "value":
            raise ValueError(f"{root}/{scene}: the index lists tiles of this scene, but the store does not have it")
        attributes[scene] = json.loads(document.value)["attributes"]
    return attributes


def _open_scenes(
    store: Any, context: Any, root: str, attributes: Mapping[str, dict[str, Any]], bands: tuple[str, ...]
) -> dict[str, Any]:
    """Open the images (row, col, band, y, x) of scenes, by their names, with `bands` in this order.

    attributes: scene -> attributes of its group. Raises ValueError naming the scene if its image cannot be opened, or
    if its tiles differ in size or type from the other scenes.
    """
    # A missing chunk must raise an error: filled with the fill value, it would be a black tile with a real label.
    spec = {
        "driver": "zarr3",
        "fill_missing_data_reads": False,
        "recheck_cached_data": False,
        "cache_pool": "cache_pool#pixels",
        "metadata_cache_pool": "cache_pool#indexes",
    }
    opening = {
        scene: ts.open({**spec, "kvstore": (store / f"{scene}/image/").spec().to_json()}, context=context, read=True)
        for scene in attributes
    }
    arrays: dict[str, Any] = {}
    expected: Any = None
    for scene, future in opening.items():
        try:
            array = future.result()
        except Exception as error:
            raise ValueError(f"{root}/{scene}: its image cannot be opened: {str(error).split(' [')[0]}") from error
        if array.dtype not in (ts.uint8, ts.uint16):
            raise ValueError(f"{root}/{scene}: tiles are {array.dtype.name}, but training reads uint8 and uint16")
        kind = f"{array.shape[3:]} px of {array.dtype.name}"
        expected = expected or kind
        if kind != expected:
            raise ValueError(
                f"{root}/{scene}: tiles are {kind}, expected {expected} as in the other scenes; "
                "choose scenes of one kind with conditions on the index"
            )
        available = attributes[scene]["bands"]
        arrays[scene] = _select_bands(array, [available.index(band) for band in bands])
    return arrays


def _convert_units(
    root: str, given: Mapping[str, PixelUnits], units: PixelUnits, scenes: Sequence[str]
) -> dict[int, npt.NDArray[np.uint16]]:
    """A table of pixels for each scene that is not in `units`: number of the scene -> pixel in `units` by its own.

    given: scene -> its units. Raises ValueError naming a scene whose pixels stand for something else.
    """
    tables: dict[int, npt.NDArray[np.uint16]] = {}
    shared: dict[PixelUnits, npt.NDArray[np.uint16]] = {}
    for number, name in enumerate(scenes):
        its_own = given.get(name, units)
        if its_own.quantity != units.quantity:
            raise ValueError(
                f"{root}/{name}: pixels are {its_own.quantity}, expected {units.quantity}; choose scenes of one kind "
                "with conditions on the index, or build all with radiometry toa"
            )
        if its_own != units:
            if its_own not in shared:
                shared[its_own] = units.table(its_own)
            tables[number] = shared[its_own]
    return tables


def _select_bands(array: Any, bands: list[int]) -> Any:
    """Select bands of an image by position. Evenly spaced bands become a slice: a list is 2.5 times as slow to copy."""
    step = bands[1] - bands[0] if len(bands) > 1 else 1
    if bands != [bands[0] + step * i for i in range(len(bands))]:
        return array[:, :, bands]
    end = bands[-1] + (1 if step > 0 else -1)  # in tensorstore, -1 is not the last index but the one before 0
    picked = array[:, :, bands[0] : end : step]
    return picked[ts.d["band"].translate_to[0]]
