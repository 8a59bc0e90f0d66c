"""Which tiles are shown, and their pixels as colours."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from geokr.dataset.layout import RGB


def choose_tiles(shares: npt.NDArray[np.float64], tiles: int) -> npt.NDArray[np.intp]:
    """Choose tiles: they rotate through the classes, most frequent dominant class first, most mixed tile first.

    shares: (tile, class).
    """
    mixed = -(shares * np.log(np.maximum(shares, 1e-12))).sum(axis=1)
    dominant = shares.argmax(axis=1)
    common = np.argsort(-np.bincount(dominant, minlength=shares.shape[1]), kind="stable")
    ranks = np.empty(len(shares), dtype=int)  # number of tiles of the same class that are more mixed
    for k in common:
        of_class = np.flatnonzero(dominant == k)
        ranks[of_class[np.argsort(-mixed[of_class], kind="stable")]] = np.arange(len(of_class))
    return np.lexsort([np.argsort(common)[dominant], ranks])[:tiles]


def choose_rgb(bands: Sequence[str]) -> list[int]:
    """Numbers of the bands to show: red, green and blue if there are all three, otherwise first, middle and last."""
    if set(RGB) <= set(bands):
        return [bands.index(name) for name in RGB]
    return [0, len(bands) // 2, len(bands) - 1]


def find_limits(pixels: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The 1 % and 99 % percentiles of each band: (band, ...) -> (2, band)."""
    return np.asarray(np.percentile(pixels.reshape(len(pixels), -1), [1, 99], axis=1))


def to_rgb(
    pixels: npt.NDArray[Any],
    bands: Sequence[str],
    limits: npt.NDArray[np.float64] | None = None,
    gamma: float = 1.0,
) -> npt.NDArray[np.uint8]:
    """(band, y, x) -> (y, x, 3) uint8. limits: see `find_limits`; those of the pixels themselves by default.

    gamma: exponent of the brightness; below 1, ground beside snow or cloud is not black.
    """
    chosen = choose_rgb(bands)
    low, high = (find_limits(pixels) if limits is None else limits)[:, chosen]
    image = np.moveaxis(pixels[chosen].astype(float), 0, -1)
    return np.asarray((255 * np.clip((image - low) / np.maximum(high - low, 1), 0, 1) ** gamma).astype(np.uint8))
