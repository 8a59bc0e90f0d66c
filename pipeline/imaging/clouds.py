"""Clouds in the quality bands that come with Landsat and Sentinel-2 scenes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

BITS: Mapping[str, int] = {"QA_PIXEL": 0b1110, "Fmask": 0b0011, "MSK_CLASSI": 0b0001}
"""Quality band -> bits that mean cloud: in Landsat's, dilated cloud, cirrus and cloud; in HLS's, cirrus and cloud; in
each of the bands of Sentinel-2's level 1C, opaque cloud and cirrus."""
CLASSES: Mapping[str, tuple[int, ...]] = {"SCL": (8, 9, 10), "oa_fmask": (2,), "MSK_CLOUDS": (1, 2)}
"""Quality band -> classes that mean cloud: in Sentinel-2's, clouds of medium and high probability, and thin cirrus; in
the polygons of its level 1C, opaque clouds and cirrus."""


def find_clouds(band: str, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where a quality band sees a cloud, in the shape of its values. Shadows do not count: they hide no ground."""
    if band in BITS:
        return np.asarray(values & BITS[band] != 0)
    return np.isin(values, CLASSES[band])
