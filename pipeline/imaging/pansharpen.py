"""Pansharpening: the colours of one image in the detail of another. Pure functions."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from numba import njit

from pipeline.scenes.raster import Pixels


def equal_weights(bands: int) -> tuple[float, ...]:
    """Each band counts alike, as GDAL's `gdal_pansharpen` has it unless told otherwise."""
    return (1.0 / bands,) * bands


def brovey(colour: Pixels, pan: Pixels, weights: Sequence[float]) -> None:
    """Weighted Brovey, in place: each band times the panchromatic value over the bands' weighted sum.

    colour: (y, x, band), pan: (y, x), of one grid and one unsigned type; the result is rounded and held within
    the type, and 0 where the weighted sum is. weights: one a band. Source of the formula: GDAL's documentation of
    `gdal_pansharpen`, after A. R. Gillespie, A. B. Kahle and R. E. Walker, 1987.
    """
    if pan.shape != colour.shape[:2]:
        raise ValueError(f"{pan.shape} panchromatic pixels for {colour.shape[:2]} of colour")
    if len(weights) != colour.shape[2]:
        raise ValueError(f"{len(weights)} weights for {colour.shape[2]} bands")
    if not (min(weights) >= 0 and sum(weights) > 0):
        raise ValueError(f"weights must not be negative, and not all be 0, got {[*weights]}")
    _brovey(colour, pan, np.array(weights, np.float64), float(np.iinfo(colour.dtype).max))


@njit(cache=True, nogil=True, error_model="numpy")
def _brovey(colour: Pixels, pan: Pixels, weights: npt.NDArray[np.float64], most: float) -> None:  # pragma: no cover
    rows, cols, bands = colour.shape
    for i in range(rows):
        for j in range(cols):
            total = 0.0
            for k in range(bands):
                total += weights[k] * colour[i, j, k]
            factor = pan[i, j] / total if total > 0 else 0.0
            for k in range(bands):
                colour[i, j, k] = int(min(colour[i, j, k] * factor + 0.5, most))
