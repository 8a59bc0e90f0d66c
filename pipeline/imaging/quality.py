"""Rules that reject a tile. Pure functions.

The rules void, dark, flat and cloud, and their thresholds, are those of the published GeoKR code, applied to the mean
of the bands. The rule for missing lines is this project's own.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

from geokr.dataset.layout import TILE_STATUS
from geokr.settings import Share

ACCEPTED, VOID, DARK, FLAT, CLOUD, MISSING_LINES = (
    TILE_STATUS.index(name) for name in ("accepted", "void", "dark", "flat", "cloud", "missing_lines")
)


@dataclass(frozen=True, slots=True)
class Rules:
    """Thresholds for the 8-bit mean of a tile's bands, whatever radiometry is stored, and for lines of a raw image."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    void_share: Share = 0.0
    """A tile is `void` if more than this share of its pixels lies outside the image or has no data."""
    dark_level: Annotated[int, Field(ge=1, le=255)] = 20
    """A pixel below this value is dark."""
    dark_share: Share = 0.1
    """A tile is `dark` if more than this share of its pixels, or all of them, are dark."""
    flat_range: Share = 0.05
    """A tile is `flat` if the range from its 1 % to its 99 % percentile is less than this share of 255."""
    cloud_level: Annotated[int, Field(ge=0, le=254)] = 230
    """A pixel above this value is bright."""
    cloud_share: Share = 0.5
    """A tile is `cloud` if more than this share of its pixels is bright, or cloud in a quality band."""
    missing_level: Share = 0.2
    """A line of a raw image is missing if its mean is below this share of an adjacent line's mean; 0 turns it off."""


def judge(
    grey: npt.NDArray[np.uint8],
    rules: Rules,
    valid: npt.NDArray[np.bool_] | None = None,
    clouds: npt.NDArray[np.bool_] | None = None,
) -> tuple[int, float]:
    """Judge a tile by the mean of its bands: return its status code and the share of its pixels that are cloud.

    grey: (y, x). valid: (y, x), False where a pixel does not count; by default all pixels count. clouds: (y, x), True
    where a pixel is known to be cloud, whatever its brightness; by default, bright pixels are cloud.
    """
    if clouds is not None:
        cloudy = (clouds | (grey > rules.cloud_level))[... if valid is None else valid]
        share = float(cloudy.mean())
        if share > rules.cloud_share:
            return CLOUD, share
        return judge(grey, rules, valid)[0], share
    histogram = cv2.calcHist([grey], [0], None if valid is None else valid.astype(np.uint8), [256], [0, 256])
    cumulative = np.cumsum(histogram.ravel().astype(np.int64))  # cumulative[v]: number of pixels with a value <= v
    pixels = int(cumulative[-1])
    dark = cumulative[rules.dark_level - 1]
    bright = float(pixels - cumulative[rules.cloud_level]) / pixels
    if dark == pixels or dark > rules.dark_share * pixels:
        return DARK, bright
    low, high = histogram_percentile(cumulative, 1.0), histogram_percentile(cumulative, 99.0)
    if high - low < rules.flat_range * 255:
        return FLAT, bright
    if pixels - cumulative[rules.cloud_level] > rules.cloud_share * pixels:
        return CLOUD, bright
    return ACCEPTED, bright


def histogram_percentile(cumulative: npt.NDArray[np.int64], percent: float) -> float:
    """A percentile from a cumulative histogram of integers, interpolated as `numpy.percentile` does."""
    rank = (int(cumulative[-1]) - 1) * percent / 100.0
    lower, upper = np.searchsorted(cumulative, [np.floor(rank), np.ceil(rank)], side="right")
    return float(lower + (upper - lower) * (rank - np.floor(rank)))


def find_missing_lines(pixels: npt.NDArray[Any], share: float) -> npt.NDArray[np.bool_]:
    """Find the missing lines of a raw image: (row,) from (row, col, band), by line means over 64 columns or more.

    A run of lines is missing if it begins or ends with a fall to less than `share` of the adjacent line, and no line
    in it rises above that level. Ground does not change like this across a full image from one line to the next.
    """
    missing = np.zeros(len(pixels), np.bool_)
    if share == 0:
        return missing
    level = pixels[:, :: max(1, pixels.shape[1] // 64)].mean(axis=(1, 2), dtype=np.float64)
    falls = np.flatnonzero(level[1:] < share * level[:-1]) + 1
    rises = np.flatnonzero(level[:-1] < share * level[1:]) + 1
    for start in falls:  # up to the next bright line, or the end
        dim = level[start:] < share * level[start - 1]
        missing[start : start + (len(dim) if dim.all() else int(dim.argmin()))] = True
    for stop in rises:
        dim = level[:stop][::-1] < share * level[stop]
        missing[stop - (len(dim) if dim.all() else int(dim.argmin())) : stop] = True
    return missing
