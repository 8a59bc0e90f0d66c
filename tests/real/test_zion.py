"""A Landsat 8 scene of Zion with NLCD 2011, 64 px tiles every 32 px."""

from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio

from geokr.dataset import contents, layout, store
from geokr.landcover.discovery import find_landcover
from pipeline.build_levir_kr import main


@pytest.fixture(scope="module")
def built(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("zion") / "dataset"
    scenes, cover = real / "zion" / "zion_landsat8.tif", real / "zion" / "zion_nlcd2011.tif"
    arguments = ["--scenes", str(scenes), "--landcover", str(cover), "--tile", "64", "--stride", "32"]
    assert main([*arguments, "--out", str(out), "--workers", "2", "--strict"]) == 0
    return out


def test_every_accepted_tile_has_a_label(built: Path) -> None:
    tiles = store.open_scene(str(built / layout.TILES), "zion_landsat8")
    labels = store.open_scene(str(built / layout.label_store("nlcd_2011")), "zion_landsat8")
    accepted = contents.read_status(tiles) == layout.ACCEPTED
    index = geopandas.read_parquet(built / "index.parquet")
    assert len(index) == accepted.sum() > 1000
    known, fraction = np.asarray(labels["known"][:])[accepted], np.asarray(labels["fraction"][:])[accepted]
    assert known.min() > 0.98  # the map ends some pixels before the image does
    assert np.allclose(fraction.sum(axis=1), 1, atol=1e-6)
    assert tiles.attrs["bands"] == ["blue", "green", "red", "nir"]


def test_tiles_together_hold_the_shares_of_the_map(built: Path, real: Path) -> None:
    """The mean over all tiles of the grid, weighed by nothing: within 3 % of the counted cells of the whole map."""
    labels = store.open_scene(str(built / layout.label_store("nlcd_2011")), "zion_landsat8")
    mean = np.asarray(labels["fraction"][:]).mean(axis=(0, 1))
    legend = find_landcover([real / "zion" / "zion_nlcd2011.tif"])[0].legend
    with rasterio.open(real / "zion" / "zion_nlcd2011.tif") as source:
        codes, counts = np.unique(source.read(1), return_counts=True)
    counted = (legend.shares(codes) * counts[:, None]).sum(axis=0)
    assert np.abs(mean - counted / counted.sum()).max() < 0.03
