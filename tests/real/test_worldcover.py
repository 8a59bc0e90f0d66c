"""A whole WorldCover tile, as its makers deliver it: Sao Tome and Principe."""

from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

from geokr.landcover.discovery import find_landcover
from geokr.landcover.shares import compute_class_shares

NAME = "ESA_WorldCover_10m_2020_v100_N00E006_Map.tif"


def test_shares_of_a_footprint_on_cell_borders_are_those_of_the_counted_cells(real: Path) -> None:
    (cover,) = find_landcover([real / "landcover" / NAME])
    assert cover.name == "worldcover_2020"
    with rasterio.open(cover.sheets[0].path) as sheet:
        assert (sheet.width, sheet.height) == (36_000, 36_000)
        row, col = sheet.index(6.6, 0.2)
        cells = sheet.read(1, window=Window(col, row, 130, 110))
        transform = sheet.transform
    left, top = transform @ (col, row)
    right, bottom = transform @ (col + 130, row + 110)
    corners = np.array([[(left, top), (right, top), (right, bottom), (left, bottom)]])
    shares = compute_class_shares(corners, "EPSG:4326", cover)
    codes, counts = np.unique(cells, return_counts=True)
    assert len(codes) > 2
    wanted = (cover.legend.shares(codes.astype(np.int64)) * counts[:, None]).sum(axis=0) / cells.size
    assert np.abs(shares.fraction[0] * shares.known[0] - wanted).max() < 1e-6
