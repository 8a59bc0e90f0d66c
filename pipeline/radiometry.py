"""From digital numbers to stored pixels. Pure functions."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Stretch:
    """A linear stretch of digital numbers to 8 bits: `low` becomes 0, `high` 255, what lies beyond is cut."""

    low: float
    high: float
    """Digital numbers; high > low."""

    def __post_init__(self) -> None:
        if not self.high > self.low:
            raise ValueError(f"a stretch needs high > low, got {self.low} .. {self.high}")

    def apply(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Stretched pixels, uint8, of the input's shape, rounded to the nearest."""
        if pixels.dtype.kind == "u" and pixels.dtype.itemsize <= 2:
            every = np.arange(2 ** (8 * pixels.dtype.itemsize), dtype=np.float64)
            return np.asarray(self._exact(every)[pixels])  # a table of 65,536 entries beats arithmetic per pixel
        return self._exact(pixels.astype(np.float64))

    def _exact(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
        scaled = (values - self.low) * (255.0 / (self.high - self.low))
        return np.clip(np.rint(np.nan_to_num(scaled)), 0, 255).astype(np.uint8)


def percentile_stretch(
    sample: npt.NDArray[Any], valid: npt.NDArray[np.bool_], low: float = 1.0, high: float = 99.0
) -> Stretch:
    """One stretch for a whole scene, from percentiles over all its bands together, as the GeoKR authors made it.

    sample: (band, ...), a decimated read of the scene. valid: (...), False where a pixel has no data; pixels
    that are 0 in every band do not count either, since deliveries pad with them.
    Raises ValueError where nothing is left or all of it has one value.
    """
    counted = sample[:, valid & (sample != 0).any(axis=0)]
    if counted.size == 0:
        raise ValueError("the image holds no data")
    bottom, top = np.percentile(counted, [low, high])
    if not top > bottom:
        raise ValueError(f"the image has one value, {bottom:g}, from its {low:g} to its {high:g} % percentile")
    return Stretch(float(bottom), float(top))
