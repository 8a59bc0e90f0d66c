"""Labelled sets of images, which are read one by one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
PixelArray = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True, eq=False)  # one set is itself alone: what is computed of it is cached
class Examples:
    """A labelled set of n images. Pixels and labels are read when they are asked for; the value can be pickled."""

    names: tuple[str, ...]
    """Unique name of each image: its path relative to the folder of the set."""
    bands: tuple[str, ...]
    """Names of the bands of each image, in the order of its pixels."""
    classes: tuple[str, ...]
    stratum: IntArray
    """(n,) what a drawn split or subset balances: the class; the most frequent class of a mask; and so on."""
    group: IntArray
    """(n,) images of one group, such as copies or a sequence, stay in one split; `arange(n)` if there are none."""
    split: dict[str, IntArray]
    """Positions of the images in the splits that came with the data, by SPLITS; empty if none came."""
    scale: float
    """Digital number that means 1.0, by which pixels are divided: 255 for 8 bits."""
    image: Callable[[int], PixelArray]
    """Position -> pixels, (band, y, x). Raises InputError naming a file that cannot be read."""
    target: Callable[[int], Any]
    """Position -> label: the number of a class; (y, x) uint8 mask; or boxes (m, 4) float32 as left, top, right,
    bottom in px, with their classes (m,) int64."""

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            raise ValueError("names of images must be unique")
        if not len(self.names) == len(self.stratum) == len(self.group):
            raise ValueError(f"{len(self.names)} names, {len(self.stratum)} strata, {len(self.group)} groups")

    def __len__(self) -> int:
        return len(self.names)
