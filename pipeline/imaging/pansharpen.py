"""Pansharpening: the colours of one image with the detail of another. Pure functions."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from numba import njit

from pipeline.scenes.raster import Pixels


def equal_weights(bands: int) -> tuple[float, ...]:
    """Return equal weights for all bands, the default of GDAL's `gdal_pansharpen`."""
    return (1.0 / bands,) * bands


def sharpen_brovey(colour: Pixels, pan: Pixels, weights: Sequence[float]) -> None:
    """Sharpen in place by weighted Brovey: each band times the panchromatic value over the weighted sum of the bands.

    colour: (y, x, band), pan: (y, x), on one grid and of one unsigned type. The result is rounded and clipped to the
    type, and 0 where the weighted sum is 0. weights: one per band. Source of the formula: GDAL's documentation of
    `gdal_pansharpen`, after A. R. Gillespie, A. B. Kahle and R. E. Walker, 1987.
    """
    if pan.shape != colour.shape[:2]:
        raise ValueError(f"the panchromatic image has shape {pan.shape}, the colour image {colour.shape[:2]}")
    if len(weights) != colour.shape[2]:
        raise ValueError(f"{len(weights)} weights for {colour.shape[2]} bands")
    if not (min(weights) >= 0 and sum(weights) > 0):
        raise ValueError(f"weights must not be negative and must not all be 0, got {[*weights]}")
    _sharpen_brovey(colour, pan, np.array(weights, np.float64), float(np.iinfo(colour.dtype).max))


@njit(cache=True, nogil=True, error_model="numpy")
def _sharpen_brovey(
    colour: Pixels, pan: Pixels, weights: npt.NDArray[np.float64], type_max: float
) -> None:  # pragma: no cover
    rows, cols, bands = colour.shape
    for i in range(rows):
        for j in range(cols):
            total = 0.0
            for k in range(bands):
                total += weights[k] * colour[i, j, k]
            factor = pan[i, j] / total if total > 0 else 0.0
            for k in range(bands):
                colour[i, j, k] = int(min(colour[i, j, k] * factor + 0.5, type_max))
