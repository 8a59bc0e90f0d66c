"""Why a tile is rejected. Pure functions.

The rules and their thresholds are those of the published GeoKR code, judged on the mean of the bands.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from geokr.store import TILE_STATUS

ACCEPTED, VOID, DARK, FLAT, CLOUD = (TILE_STATUS.index(name) for name in ("accepted", "void", "dark", "flat", "cloud"))


@dataclass(frozen=True, slots=True)
class Rules:
    """Thresholds on the 8-bit mean of a tile's bands."""

    dark_level: int = 20
    """A pixel below it is dark."""
    dark_share: float = 0.1
    """A tile with more dark pixels than this share, or none that is not, is `dark`."""
    flat_range: float = 0.05
    """A tile whose 1 to 99 % range is less than this share of 255 is `flat`."""
    cloud_level: int = 230
    """A pixel above it is bright."""
    cloud_share: float = 0.5
    """A tile with more bright pixels than this share is `cloud`."""


def judge(grey: npt.NDArray[np.uint8], rules: Rules) -> int:
    """Status code of a tile without void, from the (y, x) uint8 mean of its bands."""
    histogram = np.bincount(grey.ravel(), minlength=256)
    below = np.cumsum(histogram)  # below[v]: pixels with a value <= v
    pixels = int(below[-1])
    dark = below[rules.dark_level - 1]
    if dark == pixels or dark > rules.dark_share * pixels:
        return DARK
    first, last = percentile(below, 1.0), percentile(below, 99.0)
    if last - first < rules.flat_range * 255:
        return FLAT
    if pixels - below[rules.cloud_level] > rules.cloud_share * pixels:
        return CLOUD
    return ACCEPTED


def percentile(below: npt.NDArray[np.int64], percent: float) -> float:
    """A percentile from a cumulative histogram of integers, interpolated as `numpy.percentile` does."""
    place = (int(below[-1]) - 1) * percent / 100.0
    lower, upper = np.searchsorted(below, [np.floor(place), np.ceil(place)], side="right")
    return float(lower + (upper - lower) * (place - np.floor(place)))
