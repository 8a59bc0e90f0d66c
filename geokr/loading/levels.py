"""The levels of stored pixels: the range of each band, and mean and spread in 0..1 within it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PERCENTILES = (0.1, 99.9)
"""Percentiles of a band's 16-bit pixels that become 0 and 1. They keep clouds and glints from using up the range."""


@dataclass(frozen=True, slots=True)
class PixelLevels:
    """Statistics of a sample of pixels; lists have one number per band."""

    dtype: str
    """Type of the stored pixels: uint8 or uint16."""
    low: list[float]
    """Stored pixel that becomes 0; lower ones are clipped. 0 for uint8."""
    high: list[float]
    """Stored pixel that becomes 1; higher ones are clipped. 255 for uint8."""
    mean: list[float]
    """Mean of the pixels in 0..1."""
    std: list[float]
    """Standard deviation of the pixels in 0..1."""


def measure_levels(counts: npt.NDArray[np.int64], dtype: str) -> PixelLevels:
    """Compute the levels from histograms. counts: (band, level), number of pixels of each stored level."""
    top = counts.shape[1] - 1
    weight = counts / counts.sum(axis=1, keepdims=True)
    if dtype == "uint8":
        low, high = np.zeros(len(counts)), np.full(len(counts), 255.0)
    else:
        share = np.cumsum(weight, axis=1)
        low, high = (np.array([np.searchsorted(row, p / 100) for row in share], dtype=np.float64) for p in PERCENTILES)
        low = np.minimum(low, top - 1)
        high = np.maximum(np.minimum(high, top), low + 1)  # for a band of one level
    level = np.clip((np.arange(top + 1) - low[:, None]) / (high - low)[:, None], 0, 1)
    mean = (weight * level).sum(axis=1)
    variance = (weight * level**2).sum(axis=1) - mean**2
    # Avoids division by 0 for a band without contrast. Half a grey level is the noise of 8-bit pixels.
    std = np.maximum(np.sqrt(np.maximum(variance, 0)), 0.5 / 255)
    return PixelLevels(dtype, low.tolist(), high.tolist(), mean.tolist(), std.tolist())
