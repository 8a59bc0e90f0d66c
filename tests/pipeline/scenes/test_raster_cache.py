"""GDAL keeps the blocks that it has decoded: a decimated read touches each of them many times."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio._env import get_gdal_config

from pipeline.geometry.terrain import open_heights
from pipeline.scenes.raster import open_image


@pytest.mark.parametrize("opened", [open_image, open_heights])
def test_a_row_of_blocks_fits_into_the_cache(
    tmp_path: Path, opened: Callable[[str], AbstractContextManager[Any]]
) -> None:
    path, place = tmp_path / "a.tif", {"crs": "EPSG:32632", "transform": Affine(10, 0, 3e5, 0, -10, 3e6)}
    with rasterio.open(path, "w", driver="GTiff", width=64, height=64, count=1, dtype="uint8", **place) as file:
        file.write(np.zeros((1, 64, 64), np.uint8))
    with opened(str(path)):
        assert get_gdal_config("GDAL_CACHEMAX") >= 30_000 * 256 * 4 * 2  # px, lines, bands, bytes
