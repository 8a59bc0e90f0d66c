"""The accepted tiles of a scene, with or without labels, and what a network predicts for them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geokr.dataset.contents import read_arrays, read_attributes
from geokr.dataset.layout import ACCEPTED, TILES, StoreError, label_store
from geokr.loading.selection import Tiles
from geokr.storage import files

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SceneTiles:
    """The accepted tiles of a scene, whether the index lists them or not. Arrays have one row per tile."""

    name: str
    attributes: dict[str, Any]
    """Of the scene's group in tiles.zarr: see docs/dataset.md."""
    shape: tuple[int, int]
    """Rows and columns of tiles in the scene, accepted or not."""
    row: npt.NDArray[np.int32]
    col: npt.NDArray[np.int32]
    label: Floats | None
    """(tile, class): shares in the map, NaN where it knows nothing; None without a map."""

    def corners(self) -> npt.NDArray[np.float64]:
        """Corners of the tiles: (tile, corner, xy), m, in the CRS `proj:code`, clockwise from the upper left."""
        side, (a, b, c, d, e, f) = self.attributes["tile"], self.attributes["spatial:transform"]
        x = self.col[:, None] * self.attributes["stride"] + np.array([0, side, side, 0])
        y = self.row[:, None] * self.attributes["stride"] + np.array([0, 0, side, side])
        return np.stack([a * x + b * y + c, d * x + e * y + f], axis=-1)


@dataclass(frozen=True, slots=True)
class ScenePrediction:
    """What a network predicts for the tiles of a scene."""

    tiles: SceneTiles
    share: Floats
    """(tile, class), rows sum to 1."""

    def disagreement(self) -> Floats:
        """How far each tile's prediction is from the map: (tile,) in 0..1, NaN where the map knows nothing.

        Half the sum of the absolute differences of the class shares: the share of the tile's area that has another
        class in the map, at least. 1 - this is the `agreement` of two maps in the index.
        """
        if self.tiles.label is None:
            return np.full(len(self.share), np.nan, np.float32)
        difference: Floats = np.abs(self.share - self.tiles.label).sum(axis=1) / 2
        return difference


def read_scene_tiles(
    dataset: str, name: str, attributes: dict[str, Any], classes: tuple[str, ...], label_set: str, optional: bool
) -> SceneTiles:
    """Read which tiles of a scene are accepted, and their shares in a label set.

    attributes: of the scene's group. label_set: `<product>_<year>`. optional: a data set without it has no labels.
    Raises StoreError naming the store if the scene or the labels are missing, or if the labels have other classes.
    """
    root, labels = files.join(dataset, TILES), files.join(dataset, label_store(label_set))
    (status,) = read_arrays(root, name, "status")
    row, col = np.nonzero(status == ACCEPTED)
    label: Floats | None = None
    if not optional or files.exists(files.join(labels, name, "zarr.json")):
        found = tuple(read_attributes(labels, name)["classes"])
        if found != classes:
            raise StoreError(f"{labels}/{name}: its classes are {', '.join(found)}, but the run's {', '.join(classes)}")
        fraction, known = read_arrays(labels, name, "fraction", "known")
        label = np.where(known[row, col, None] > 0, fraction[row, col], np.nan).astype(np.float32)
    return SceneTiles(name, attributes, status.shape, row.astype(np.int32), col.astype(np.int32), label)


def as_tiles(scene: SceneTiles) -> Tiles:
    """The tiles as a selection that the reader of pixels takes. They have no labels there."""
    ones = np.ones(len(scene.row), np.float32)
    return Tiles(
        scenes=(scene.name,),
        scene=np.zeros(len(scene.row), np.int32),
        row=scene.row,
        col=scene.col,
        fraction=ones[:, None],
        known=ones,
        weight=ones,
    )
