"""Why a tile is rejected. Pure functions.

Void, dark, flat and cloud are the rules of the published GeoKR code with its thresholds, judged on the mean of the
bands; missing lines are this project's own.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

from geokr.dataset.layout import TILE_STATUS

ACCEPTED, VOID, DARK, FLAT, CLOUD, MISSING_LINES = (
    TILE_STATUS.index(name) for name in ("accepted", "void", "dark", "flat", "cloud", "missing_lines")
)
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, slots=True)
class Rules:
    """Thresholds: of the 8-bit mean of a tile's bands, whatever is stored of it, and of the lines of a raw image."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    void_share: Share = 0.0
    """A tile with more pixels outside the image or without data than this share is `void`."""
    dark_level: Annotated[int, Field(ge=1, le=255)] = 20
    """A pixel below it is dark."""
    dark_share: Share = 0.1
    """A tile with more dark pixels than this share, or none that is not, is `dark`."""
    flat_range: Share = 0.05
    """A tile whose 1 to 99 % range is less than this share of 255 is `flat`."""
    cloud_level: Annotated[int, Field(ge=0, le=254)] = 230
    """A pixel above it is bright."""
    cloud_share: Share = 0.5
    """A tile with more bright pixels than this share is `cloud`."""
    missing_level: Share = 0.2
    """Lines of a raw image whose mean is below this share of that of the lines beside them are missing; 0: none is."""


def judge(grey: npt.NDArray[np.uint8], rules: Rules, valid: npt.NDArray[np.bool_] | None = None) -> tuple[int, float]:
    """Status code of a tile, and the share of its pixels that are bright, from the mean of its bands.

    grey: (y, x). valid: (y, x), False where a pixel does not count; all of them do unless given.
    """
    histogram = cv2.calcHist([grey], [0], None if valid is None else valid.astype(np.uint8), [256], [0, 256])
    below = np.cumsum(histogram.ravel().astype(np.int64))  # below[v]: pixels with a value <= v
    pixels = int(below[-1])
    dark = below[rules.dark_level - 1]
    bright = float(pixels - below[rules.cloud_level]) / pixels
    if dark == pixels or dark > rules.dark_share * pixels:
        return DARK, bright
    first, last = histogram_percentile(below, 1.0), histogram_percentile(below, 99.0)
    if last - first < rules.flat_range * 255:
        return FLAT, bright
    if pixels - below[rules.cloud_level] > rules.cloud_share * pixels:
        return CLOUD, bright
    return ACCEPTED, bright


def histogram_percentile(below: npt.NDArray[np.int64], percent: float) -> float:
    """A percentile from a cumulative histogram of integers, interpolated as `numpy.percentile` does."""
    place = (int(below[-1]) - 1) * percent / 100.0
    lower, upper = np.searchsorted(below, [np.floor(place), np.ceil(place)], side="right")
    return float(lower + (upper - lower) * (place - np.floor(place)))


def find_missing_lines(pixels: npt.NDArray[Any], share: float) -> npt.NDArray[np.bool_]:
    """Which lines of a raw image are missing: (row,) from (row, col, band), by the means of 64 columns or more.

    A run of lines is missing that begins or ends with a fall to less than `share` of the line beside it, and in
    which no line rises above that. Ground does not do so across a whole image from one line to the next.
    """
    missing = np.zeros(len(pixels), np.bool_)
    if share == 0:
        return missing
    level = pixels[:, :: max(1, pixels.shape[1] // 64)].mean(axis=(1, 2), dtype=np.float64)
    falls = np.flatnonzero(level[1:] < share * level[:-1]) + 1
    rises = np.flatnonzero(level[:-1] < share * level[1:]) + 1
    for first in falls:  # to the next line that is bright again, or the end
        dim = level[first:] < share * level[first - 1]
        missing[first : first + (len(dim) if dim.all() else int(dim.argmin()))] = True
    for last in rises:
        dim = level[:last][::-1] < share * level[last]
        missing[last - (len(dim) if dim.all() else int(dim.argmin())) : last] = True
    return missing
