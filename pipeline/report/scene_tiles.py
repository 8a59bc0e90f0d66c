"""The scenes of a data set as they are stored: which tiles were accepted, and pictures of scenes and tiles."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from geokr.dataset.contents import list_scenes, open_array, read_arrays, read_attributes
from geokr.dataset.layout import ACCEPTED, TILE_STATUS, TILES, StoreError, label_store
from geokr.evaluation.report.html import embed
from geokr.storage import files
from pipeline.report.figures import choose_rgb, find_limits, to_rgb

Bytes = npt.NDArray[np.uint8]
STATUS_COLOURS = dict(
    zip(TILE_STATUS, ("#ffffff", "#4c9f50", "#9a9a9a", "#333366", "#c9a227", "#e377c2", "#d62728"), strict=True)
)
"""Status -> #rrggbb."""
READ = 2**28
"""Bytes of pixels that are read for the picture of a scene, at most."""
SIDE = 360
"""Side of the picture of a scene, about, px."""
GAMMA = 0.6
"""Exponent of the brightness of accepted tiles."""
TRUE_COLOUR = "true colour"
SHOWN = 128
"""Side of the picture of a tile, at most, px."""


@dataclass(frozen=True)
class SceneTiles:
    """A scene in the store of tiles."""

    root: str
    """The data set."""
    name: str
    attributes: dict[str, Any]
    """Of its group in the store."""
    status: Bytes
    """(row, col), codes of TILE_STATUS."""

    @cached_property
    def image(self) -> Any:
        """The stored pixels, (row, col, band, y, x); see `open_array`."""
        return open_array(files.join(self.root, TILES), f"{self.name}/image").result()

    def counts(self) -> dict[str, int]:
        """Status -> number of tiles, without those that no tile has."""
        counted = np.bincount(self.status.ravel(), minlength=len(TILE_STATUS)).tolist()
        return {name: count for name, count in zip(TILE_STATUS, counted, strict=True) if count}

    @property
    def step(self) -> int:
        """Every how-many-th row and column of tiles is in the mosaic."""
        size = self.status.size * int(np.prod(self.image.shape[2:])) * self.image.dtype.numpy_dtype.itemsize
        return int(np.ceil(np.sqrt(size / READ)))

    @cached_property
    def mosaic(self) -> tuple[Bytes, npt.NDArray[np.float64]]:
        """The picture of the scene, (y, x, 3), and the percentiles of its bands.

        A rejected tile has the colour of its status. Of a large scene, only every second, third ... row and column of
        tiles is read, and each tile stands for those beside it.
        """
        step = self.step
        status = self.status[::step, ::step]
        side = int(np.clip(SIDE // max(status.shape), 2, self.attributes["stride"]))
        row, col = np.nonzero(status == ACCEPTED)
        palette = np.array([[*bytes.fromhex(colour[1:])] for colour in STATUS_COLOURS.values()], np.uint8)
        cells = np.repeat(np.repeat(palette[status][:, :, None, None], side, axis=2), side, axis=3)
        limits = np.array([[0.0] * len(self.attributes["bands"]), [255.0] * len(self.attributes["bands"])])
        if len(row):
            stride = self.attributes["stride"]
            parts = []
            for rows in np.array_split(np.arange(len(row)), -(-len(row) // 64)):  # some at once, to save memory
                tiles = self.image.vindex[row[rows] * step, col[rows] * step].read().result()
                parts += [_shrink(np.asarray(tile)[:, :stride, :stride], side) for tile in tiles]
            small = np.stack(parts)
            limits = find_limits(np.moveaxis(small, 1, 0))
            cells[row, col] = [to_rgb(tile, self.attributes["bands"], limits, GAMMA) for tile in small]
        return cells.transpose(0, 2, 1, 3, 4).reshape(status.shape[0] * side, status.shape[1] * side, 3), limits

    def picture(self) -> str:
        """The mosaic as a data: address."""
        return encode(self.mosaic[0])

    def tile(self, row: int, col: int) -> str:
        """An accepted tile as a data: address, with the contrast of the scene."""
        return self.show(np.asarray(self.image[row, col].read().result()))

    def show(self, pixels: npt.NDArray[Any]) -> str:
        """(band, y, x) pixels of the scene, as stored, as a data: address."""
        small = _shrink(pixels, SHOWN) if pixels.shape[1] > SHOWN else pixels
        return encode(to_rgb(small, self.attributes["bands"], self.mosaic[1], GAMMA))

    def show_levels(self, pixels: Bytes, valid: npt.NDArray[np.bool_]) -> str:
        """(band, y, x) pixels as the rules see them, 0 black and 255 white, grey where there are none."""
        bands = self.attributes["bands"]
        image = to_rgb(pixels, bands, np.array([[0.0], [255.0]]) * np.ones(len(bands)))
        image[~valid] = bytearray.fromhex(STATUS_COLOURS["void"][1:])
        side = min(SHOWN, len(image))
        return encode(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA))  # type: ignore[arg-type]

    def colours(self) -> str:
        """What is shown as red, green and blue."""
        bands = self.attributes["bands"]
        chosen = [bands[k] for k in choose_rgb(bands)]
        return TRUE_COLOUR if chosen == ["red", "green", "blue"] else f"{', '.join(chosen)} as red, green, blue"


def _shrink(pixels: npt.NDArray[Any], side: int) -> npt.NDArray[Any]:
    """Average (band, y, x) pixels down to side x side."""
    planes = [cv2.resize(plane, (side, side), interpolation=cv2.INTER_AREA) for plane in pixels]
    return np.stack(planes)


def encode(image: Bytes) -> str:
    """An image (y, x, 3) as a data: address of a JPEG."""
    done, content = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    assert done
    return embed(content.tobytes(), "jpeg")


def read_scenes(dataset: str, threads: ThreadPoolExecutor) -> dict[str, SceneTiles]:
    """The scenes in the store of tiles, by name. Raises StoreError naming one that cannot be read."""
    root = files.join(dataset, TILES)

    def read_scene(name: str) -> SceneTiles:
        (status,) = read_arrays(root, name, "status")
        return SceneTiles(dataset, name, read_attributes(root, name), status)

    return {scene.name: scene for scene in threads.map(read_scene, list_scenes(root))}


def read_map_parts(dataset: str, label_set: str, scene: str, cells: Sequence[tuple[int, int]]) -> Iterator[Bytes]:
    """The shares of the parts of some tiles of a scene, (part_row, part_col, class), as in `fraction_grid`."""
    root = files.join(dataset, label_store(label_set))
    try:
        parts = open_array(root, f"{scene}/fraction_grid").result()
        yield from (np.asarray(parts[row, col].read().result()) for row, col in cells)
    except ValueError as error:
        raise StoreError(f"{root}/{scene}: cannot be read: {str(error).split(' [')[0]}") from error


def paint_map(parts: Bytes, colours: Sequence[str]) -> Bytes:
    """The parts of a tile in the colour of their largest class, white where nothing is known: (row, col, 3)."""
    palette = np.array([[*bytes.fromhex(colour[1:])] for colour in (*colours, "#ffffff")], np.uint8)
    return palette[np.where(parts.any(axis=-1), parts.argmax(axis=-1), len(colours))]


def draw_map(parts: Bytes, colours: Sequence[str], side: int = SHOWN) -> str:
    """The parts of a tile as `paint_map` shows them, as a data: address."""
    image = cv2.resize(paint_map(parts, colours), (side, side), interpolation=cv2.INTER_NEAREST)
    done, content = cv2.imencode(".png", image[..., ::-1])
    assert done
    return embed(content.tobytes(), "png")
