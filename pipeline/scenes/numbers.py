"""Pixels of any type as whole numbers of 16 bits, in which images are resampled and stored."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

LARGEST = 65535
EMPTY = 1e30
"""Real numbers beyond this are fill values, whether they are declared as such or not."""
NEGATIVE_SHARE = 0.01
"""Whole numbers are read as they are if no more than this share of them is negative. These are noise, and become 0."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """How the pixels of a file become whole numbers: pixel = number x step + base."""

    base: float = 0.0
    step: float = 1.0

    def __post_init__(self) -> None:
        if not (self.step > 0 and np.isfinite([self.base, self.step]).all()):
            raise ValueError(f"pixels cannot be counted from {self.base} in steps of {self.step}")

    def encode(self, pixels: npt.NDArray[Any], numbers: npt.NDArray[Any]) -> None:
        """Write the numbers of pixels (band, ...), rounded and limited to the type of the array, which is unsigned."""
        top = self.base + int(np.iinfo(numbers.dtype).max) * self.step
        for band, target in zip(pixels, numbers, strict=True):  # one band at a time, to save memory
            values = np.clip(np.nan_to_num(band.astype(np.float64)), self.base, top)
            target[...] = np.rint((values - self.base) / self.step)

    def decode(self, numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The pixels of numbers, float64; numbers that are pixels are returned as they are."""
        return numbers if self == AS_THEY_ARE else numbers * self.step + self.base


AS_THEY_ARE = Numbers()


def has_data(pixels: npt.NDArray[Any], nodata: float | None) -> npt.NDArray[np.bool_]:
    """Mask of the pixels that are not nodata, in the shape of the pixels. nodata: as the file declares it, or None."""
    valid = np.ones(pixels.shape, np.bool_)
    if pixels.dtype.kind == "f":
        valid &= np.abs(pixels) < EMPTY  # not if they are no numbers
        if nodata is not None:
            valid &= pixels != np.float64(nodata).astype(pixels.dtype)  # as the file stores it
    elif nodata is not None:
        valid &= pixels != nodata
    return valid


def choose_numbers(pixels: npt.NDArray[Any]) -> Numbers:
    """Choose the numbers for an image from a sample of its pixels that have data, (n,).

    Whole numbers from 0 to 65,535 are kept as they are, as are those from -32,768 to 32,767 above a base. Others are
    divided into 65,535 steps, from their 0.1 % to their 99.9 % percentile and as much again on both sides.
    """
    if pixels.size == 0:
        return AS_THEY_ARE
    low, high = (float(value) for value in np.percentile(pixels, [0.1, 99.9]))
    span = (high - low) or abs(high) or 1.0
    if pixels.dtype.kind in "iu":
        if (pixels < 0).mean() <= NEGATIVE_SHARE and pixels.max() <= LARGEST:
            return AS_THEY_ARE
        if pixels.min() >= -32768 and pixels.max() <= 32767:
            return Numbers(-32768.0)
    bottom, top = (0.0 if pixels.min() >= 0 else min(low - span, 0.0)), high + span
    step = (top - bottom) / LARGEST
    return Numbers(-math.ceil(-bottom / step) * step, step)  # so that 0 is one of the numbers
