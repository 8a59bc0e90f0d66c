"""What stored pixels stand for, so that scenes stored in unlike steps can be in one batch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

STRETCHED = "stretched pixels"
"""Quantity of 8-bit pixels: each scene has a stretch of its own, which training takes as it is."""
TOP = 2**16 - 1


@dataclass(frozen=True, slots=True)
class PixelUnits:
    """The quantity that a stored pixel stands for is pixel * scale_factor + add_offset. 0 means no data."""

    quantity: str
    """reflectance, digital numbers or stretched pixels."""
    scale_factor: float
    add_offset: float

    def table(self, other: "PixelUnits") -> npt.NDArray[np.uint16]:
        """Pixels in these units for each 16-bit pixel in other units of the quantity: (65536,) uint16.

        Rounded to the nearest step; what lies beyond the range becomes its end. No data stays 0, and no other pixel
        becomes 0.
        """
        values = np.arange(TOP + 1) * other.scale_factor + other.add_offset
        pixels: npt.NDArray[np.uint16] = (
            np.rint((values - self.add_offset) / self.scale_factor).clip(1, TOP).astype("u2")
        )
        pixels[0] = 0
        return pixels


def read_units(attributes: Mapping[str, Any], dtype: str) -> PixelUnits:
    """The units of a scene. attributes: of its group in tiles.zarr. dtype: of its pixels, uint8 or uint16."""
    if dtype == "uint8":
        return PixelUnits(STRETCHED, 1.0, 0.0)
    radiometry = attributes.get("radiometry", {})
    quantity = "reflectance" if radiometry.get("kind") == "toa" else "digital numbers"
    return PixelUnits(quantity, float(radiometry.get("scale_factor", 1)), float(radiometry.get("add_offset", 0)))


def find_common_units(units: Iterable[PixelUnits]) -> PixelUnits:
    """The units of one quantity in which no pixel of the given ones is below 0, with the finest of their steps."""
    given = list(units)
    return PixelUnits(given[0].quantity, min(one.scale_factor for one in given), min(one.add_offset for one in given))
