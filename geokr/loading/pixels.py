"""Reading the pixels of tiles from their shards.

tensorstore reads and decodes in its own threads, so no worker processes are needed. Its threads do not survive a fork:
a read in a forked process would wait forever.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts
import torch
import torch.nn.functional as F  # noqa: N812

from geokr.dataset.layout import RGB, TILES
from geokr.loading.order import Positions
from geokr.loading.selection import Tiles, keep_scenes
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
    """(tile, band, y, x), complete once `finish` has returned."""
    pieces: list[tuple[Any, npt.NDArray[Any], Any]]
    """Rows of the target of tiles of one size, the array (tile, band, y, x) that they are read into, and its future."""


class TileReader:
    """The opened images of the scenes that contain the selected tiles."""

    def __init__(
        self,
        root: str | Sequence[str],
        tiles: Tiles,
        bands: Sequence[str],
        units: PixelUnits | None = None,
        side: int = 0,
        keep: Callable[[Tiles, npt.NDArray[np.bool_]], Tiles] = keep_scenes,
    ) -> None:
        """root: path or URL of the store, or those of several data sets: see `Tiles.homes`.

        bands: bands to read, in this order; if empty, those of `choose_bands`.
        units: of the pixels that are read, whatever those of each scene are; by default the common ones of the scenes.
        side: side to which tiles are resized if those of one data set have another size than those of another, px.
        keep: leaves out the tiles of scenes that lack one of the bands.
        Raises ValueError if a store has no scene with all bands. Also raises it, naming the scene, if a scene is not in
        the store, if its image cannot be opened, or if its tiles differ in size, type or quantity from those of other
        scenes.
        """
        _check_threads()
        homes = tiles.homes or (0,) * len(tiles.scenes)
        self.roots = (root,) if isinstance(root, str) else tuple(root)
        self.addresses = [f"{self.roots[home]}/{name}" for home, name in zip(homes, tiles.scenes, strict=True)]
        """Path or URL of each scene."""
        threads = {"limit": read_threads()}
        context = ts.Context(
            {
                "cache_pool#indexes": {"total_bytes_limit": INDEX_CACHE},
                "cache_pool#pixels": {"total_bytes_limit": 0},
                "data_copy_concurrency": threads,
                "file_io_concurrency": threads,
            }
        )
        stores = [ts.KvStore.open(files.kvstore_spec(path), context=context).result() for path in self.roots]
        places = {number: (stores[homes[number]], name) for number, name in enumerate(tiles.scenes)}
        attributes = _read_attributes(places, self.addresses)
        available = {number: tuple(values["bands"]) for number, values in attributes.items()}
        self.bands = tuple(bands) or choose_bands([*available.values()])
        """Bands of the tiles, in this order."""
        self.scenes_without_bands = {n: names for n, names in available.items() if not {*self.bands} <= {*names}}
        """Scenes, by number, that lack one of `bands` -> the bands that they have."""
        for home, path in enumerate(self.roots):
            its_own = [number for number in available if homes[number] == home]
            if its_own and {*its_own} <= self.scenes_without_bands.keys():
                others = "; ".join(sorted({", ".join(available[number]) for number in its_own}))
                raise ValueError(
                    f"{path}: no scene with these tiles has bands {', '.join(self.bands)}; they have {others}; choose "
                    "among these with the setting bands"
                )
        for number in self.scenes_without_bands:
            del attributes[number], places[number]
        arrays = _open_scenes(places, context, self.addresses, attributes, self.bands)
        self._arrays = arrays
        self.tiles = keep(tiles, np.array([number in arrays for number in range(len(tiles.scenes))]))
        """The tiles of the scenes that have all bands."""
        sizes = _check_kinds(arrays, homes, self.addresses, bool(side))
        shape = next(iter(arrays.values())).shape[2:]
        self.tile_shape: tuple[int, ...] = (shape[0], side, side) if len(sizes) > 1 else shape
        """Shape of a tile: (band, y, x)."""
        self.dtype: np.dtype[Any] = next(iter(arrays.values())).dtype.numpy_dtype
        """Type of the pixels: uint8 or uint16."""
        its_units = {number: read_units(attributes[number], self.dtype.name) for number in arrays}
        self.units = units or find_common_units(its_units.values())
        """What the pixels stand for, as they are read."""
        self._tables = _convert_units(self.addresses, its_units, self.units)
        sides, shapes = np.ones((2, len(tiles.scenes), 2), dtype=np.int64)
        self._size = np.zeros(len(tiles.scenes), dtype=np.int64)
        for number, array in arrays.items():
            sides[number] = array.chunk_layout.write_chunk.shape[:2]
            shapes[number] = array.shape[:2]
            self._size[number] = array.shape[-1]
        for start in range(0, len(self.tiles), CHUNK):
            chunk = slice(start, start + CHUNK)
            at, row, col = (values[chunk] for values in (self.tiles.scene, self.tiles.row, self.tiles.col))
            outside = (row < 0) | (col < 0) | (row >= shapes[at, 0]) | (col >= shapes[at, 1])
            if outside.any():
                first = int(outside.argmax())
                raise ValueError(
                    f"{self.addresses[at[first]]}: the index lists tile ({row[first]}, {col[first]}), "
                    f"outside its {shapes[at[first]].tolist()} rows and columns; build the index again"
                )
        self._sides = sides
        # One array of all scenes, one below the other: a batch is then one request, divided into scenes, shards and
        # chunks by tensorstore's own threads. A request for each scene would take 0.1 ms of Python.
        # All get the same number of columns, since tensorstore would divide each scene at the others' edges.
        first_row, width = np.cumsum(shapes[:, 0]) - shapes[:, 0], int(shapes[:, 1].max())
        self._first_row = first_row
        self._all = {
            size: ts.overlay(
                [
                    array[ts.d["col"].mark_bounds_implicit[True]][:, :width][
                        ts.d["row"].translate_by[int(first_row[number])]
                    ]
                    for number, array in arrays.items()
                    if self._size[number] == size
                ]
            )
            for size in sizes
        }

    def ground_distance(self, positions: Positions) -> npt.NDArray[np.float32] | None:
        """Ground distance of the pixels that are read, m, of tiles whose own is known: (tile,); see `Tiles.gsd`."""
        if self.tiles.gsd is None:
            return None
        stored = self.tiles.gsd[positions]
        if len(self._all) == 1:
            return stored
        return (stored * (self._size[self.tiles.scene[positions]] / self.tile_shape[-1])).astype(np.float32)

    def shard_cells(self, positions: Positions) -> npt.NDArray[np.int64]:
        """(tile, 3): scene, and row and column of the tile's shard in the scene."""
        scene = self.tiles.scene[positions]
        cell = np.stack([self.tiles.row[positions], self.tiles.col[positions]], axis=1)
        return np.concatenate([scene[:, None], cell // self._sides[scene]], axis=1)

    def shard(self, position: int) -> str:
        """Path or URL of the shard that contains a tile."""
        ((scene, i, j),) = self.shard_cells(np.array([position]))
        return f"{self.addresses[scene]}/image/c/{i}/{j}/0/0/0"

    def request(self, positions: Positions, target: npt.NDArray[Any]) -> PendingRead:
        """Start reading tiles into an array (tile, band, y, x).

        tensorstore opens each shard once for all its tiles, and merges the reads of neighbouring tiles. A request for
        all tiles of a shard reads the shard in one piece.
        """
        _check_threads()
        scene, col = self.tiles.scene[positions], self.tiles.col[positions]
        row = self.tiles.row[positions] + self._first_row[scene]
        pieces = []
        for size, source in self._all.items():
            rows: Any = slice(None) if len(self._all) == 1 else np.flatnonzero(self._size[scene] == size)
            if len(self._all) > 1 and not len(rows):
                continue
            whole = len(self._all) == 1
            piece = target if whole else np.empty((len(rows), target.shape[1], size, size), target.dtype)
            pieces.append((rows, piece, ts.array(piece).write(source.vindex[row[rows], col[rows]])))
        return PendingRead(positions, target, pieces)

    def finish(self, read: PendingRead) -> dict[int, str]:
        """Wait for a read. Returns the tiles that cannot be read: row of the target -> error message."""
        errors: dict[int, str] = {}
        scene = self.tiles.scene[read.positions]
        for rows, piece, future in read.pieces:
            at = np.arange(len(read.positions))[rows]
            try:
                future.result()
            except Exception as error:  # tensorstore raises ValueError, IndexError, OSError and more
                wrong = dict(self._retry(read.positions[at], piece))
                errors |= {int(at[row]): message for row, message in wrong.items()}
                if not wrong:
                    log.warning("%s: a read failed but succeeded when repeated: %s", ", ".join(self.roots), error)
            if self._tables:
                for number in set(scene[at].tolist()) & self._tables.keys():
                    places = np.flatnonzero(scene[at] == number)
                    piece[places] = self._tables[number][piece[places]]
            if piece is not read.target:
                read.target[at] = resize_tiles(piece, self.tile_shape[-1])
        return errors

    def _retry(self, positions: Positions, target: npt.NDArray[Any]) -> Iterator[tuple[int, str]]:
        """Repeat a read tile by tile. Yields each row that cannot be read, with the error message."""
        scene, row, col = (values[positions] for values in (self.tiles.scene, self.tiles.row, self.tiles.col))
        cells = list(zip(row.tolist(), col.tolist(), strict=True))
        futures = [self._arrays[number][cell].read() for number, cell in zip(scene.tolist(), cells, strict=True)]
        for number, future in enumerate(futures):
            try:
                target[number] = future.result()
            except Exception as error:
                place, reason = self.shard(positions[number]), str(error).split(" [")[0]
                yield number, f"{place}: tile {cells[number]} cannot be read; build it again: {reason}"


def open_reader(
    dataset: str | Sequence[str],
    split: str,
    tiles: Tiles,
    bands: Sequence[str],
    units: PixelUnits | None = None,
    side: int = 0,
    keep: Callable[[Tiles, npt.NDArray[np.bool_]], Tiles] = keep_scenes,
) -> TileReader:
    """Open the tiles of a data set, or of several: see `TileReader`. Warns of scenes that lack a band."""
    datasets = [dataset] if isinstance(dataset, str) else dataset
    reader = TileReader([f"{path}/{TILES}" for path in datasets], tiles, bands, units, side, keep)
    if reader.scenes_without_bands:
        log.warning(
            "%s: %d scenes of split %s lack a band of %s, left out",
            ", ".join(datasets),
            len(reader.scenes_without_bands),
            split,
            ", ".join(reader.bands),
        )
    return reader


def resize_tiles(pixels: npt.NDArray[Any], side: int) -> npt.NDArray[Any]:
    """Resize tiles (tile, band, y, x) to (tile, band, side, side), without aliasing, rounded to pixels."""
    resized = F.interpolate(
        torch.from_numpy(pixels.astype(np.float32)), size=(side, side), mode="bilinear", antialias=True
    )
    return np.asarray(np.rint(resized.numpy()).clip(0, np.iinfo(pixels.dtype).max).astype(pixels.dtype))


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


def _read_attributes(places: Mapping[int, tuple[Any, str]], addresses: Sequence[str]) -> dict[int, dict[str, Any]]:
    """Read the attributes of the scenes' groups, by number.

    places: number -> key-value store and name of the scene in it. Raises ValueError naming a scene that is not there.
    """
    attributes = {}
    for number, future in [(number, store.read(f"{name}/zarr.json")) for number, (store, name) in places.items()]:
        document = future.result()
        if document.state != "value":
            raise ValueError(f"{addresses[number]}: the index lists tiles of this scene, but the store lacks it")
        attributes[number] = json.loads(document.value)["attributes"]
    return attributes


def _open_scenes(
    places: Mapping[int, tuple[Any, str]],
    context: Any,
    addresses: Sequence[str],
    attributes: Mapping[int, dict[str, Any]],
    bands: tuple[str, ...],
) -> dict[int, Any]:
    """Open the images (row, col, band, y, x) of scenes, by their numbers, with `bands` in this order.

    places: see `_read_attributes`. attributes: of each scene's group. Raises ValueError naming the scene if its image
    cannot be opened, or if its pixels cannot be trained on.
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
        number: ts.open({**spec, "kvstore": (store / f"{name}/image/").spec().to_json()}, context=context, read=True)
        for number, (store, name) in places.items()
    }
    arrays: dict[int, Any] = {}
    for number, future in opening.items():
        try:
            array = future.result()
        except Exception as error:
            reason = str(error).split(" [")[0]
            raise ValueError(f"{addresses[number]}: its image cannot be opened: {reason}") from error
        if array.dtype not in (ts.uint8, ts.uint16):
            raise ValueError(f"{addresses[number]}: tiles are {array.dtype.name}, but training reads uint8 and uint16")
        available = attributes[number]["bands"]
        arrays[number] = _select_bands(array, [available.index(band) for band in bands])
    return arrays


def _check_kinds(
    arrays: Mapping[int, Any], homes: Sequence[int], addresses: Sequence[str], resized: bool
) -> tuple[int, ...]:
    """The sizes of tiles that occur, px. resized: whether those of one data set may have another size than others.

    Raises ValueError naming a scene whose tiles differ in size or type from those of another.
    """
    first = next(iter(arrays))
    kinds: dict[int, tuple[int, ...]] = {}
    for number, array in arrays.items():
        home = homes[number] if resized else 0
        expected = kinds.setdefault(home, array.shape[3:])
        if array.dtype != arrays[first].dtype or array.shape[3:] != expected:
            raise ValueError(
                f"{addresses[number]}: tiles are {array.shape[3:]} px of {array.dtype.name}, expected {expected} px of "
                f"{arrays[first].dtype.name} as in the other scenes; choose scenes of one kind with conditions on the "
                "index"
            )
    return tuple(sorted({shape[0] for shape in kinds.values()}))


def _convert_units(
    addresses: Sequence[str], given: Mapping[int, PixelUnits], units: PixelUnits
) -> dict[int, npt.NDArray[np.uint16]]:
    """A table of pixels for each scene that is not in `units`: number of the scene -> pixel in `units` by its own.

    given: scene -> its units. Raises ValueError naming a scene whose pixels stand for something else.
    """
    tables: dict[int, npt.NDArray[np.uint16]] = {}
    shared: dict[PixelUnits, npt.NDArray[np.uint16]] = {}
    for number, its_own in given.items():
        if its_own.quantity != units.quantity:
            raise ValueError(
                f"{addresses[number]}: pixels are {its_own.quantity}, expected {units.quantity}; choose scenes of one "
                "kind with conditions on the index, or build all with radiometry toa"
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
