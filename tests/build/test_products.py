"""Landsat and Sentinel-2 as delivered, from the archive to labelled tiles."""

from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from geokr.dataset import contents, layout, store
from geokr.dataset.index import read_index
from pipeline.build_levir_kr import main
from tests import products
from tests.deliveries import tiff, write_archive, write_zip

ORIGIN, SAFE_ORIGIN = (353_685.0, 31_815.0), (354_600.0, 31_500.0)
"""Upper left corners of a Landsat and a Sentinel-2 product, m. A Landsat pixel has its centre at a multiple of 30 m."""
CLOUD = 40
"""Side of a cloud in the upper left corner of each product, px of its bands."""
BORDER = 353_685.0 + 1500.0
"""Easting at which the land cover changes from cultivated land to forest, m."""


@pytest.fixture(scope="module")
def landcover(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sheet of GlobeLand30 that is cultivated land in the west and forest in the east."""
    folder = tmp_path_factory.mktemp("maps")
    classes = np.full((1, 400, 400), 20, np.uint8)
    left = BORDER - 30 * 200
    classes[..., :200] = 10
    sheet = tiff(classes, crs="EPSG:32632", transform=Affine(30, 0, left, 0, -30, ORIGIN[1] + 6000))
    (folder / "n32_00_2020lc030.tif").write_bytes(sheet)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, landcover: Path) -> Path:
    folder = tmp_path_factory.mktemp("products")
    qa, scl = np.full((90, 90), products.CLEAR), np.full((60, 60), 5)
    qa[:CLOUD, :CLOUD], scl[: CLOUD // 2, : CLOUD // 2] = 22280, 9
    write_archive(folder / f"{products.LANDSAT}.tar", products.landsat(origin=ORIGIN, qa=qa))
    write_zip(folder / f"{products.L2A}.zip", products.safe(origin=SAFE_ORIGIN, scl=scl))
    arguments = ["--scenes", str(folder), "--landcover", str(landcover), "--out", str(folder / "out")]
    more = ["--tile", "16", "--stride", "12", "--radiometry", "dn", "--mask", "qa", "--workers", "1", "--strict"]
    assert main([*arguments, *more]) == 0
    return folder / "out"


@pytest.mark.parametrize(
    ("scene", "origin", "gsd"), [(products.LANDSAT, ORIGIN, 30.0), (products.L2A, SAFE_ORIGIN, 10.0)]
)
def test_labelled_tiles_lie_where_they_belong(built: Path, scene: str, origin: tuple[float, float], gsd: float) -> None:
    """Each pixel is its own place in the product, and the labels change where the land cover does."""
    group = store.open_scene(str(built / layout.TILES), scene)
    attributes = group.attrs
    assert (attributes["bands"], attributes["gsd"]) == (["red", "green", "blue", "nir"], gsd)
    index, classes = read_index(built).to_pandas(), ["cultivated", "forest"]
    tiles = index[index["scene"] == scene]
    transform, stride, size = attributes["spatial:transform"], attributes["stride"], attributes["tile"]
    offset, worst = (np.arange(size) + 0.5) * gsd, 0.0
    for _, tile in tiles.iterrows():
        pixels = np.asarray(group["image"][tile["row"], tile["col"]]).astype(float)
        west = transform[2] + tile["col"] * stride * gsd
        east, north = west + offset[None, :], transform[5] - tile["row"] * stride * gsd - offset[:, None]
        for k in (0, 2):  # red and blue know their column, green and near infrared their row
            column = (pixels[k] - 2000) / 20 + 0.5
            line = (pixels[k + 1] - 2000) / 20 + 0.5
            away = [origin[0] + column * gsd - east, origin[1] - line * gsd - north]
            worst = max(worst, *(float(np.abs(distance).max()) / gsd for distance in away))
        share = np.clip((BORDER - west) / (size * gsd), 0, 1)
        assert tile[classes].to_numpy(float) == pytest.approx([share, 1 - share], abs=1e-5)
    print(f"{scene}: {len(tiles)} tiles, farthest pixel {worst:.4f} px from where it belongs")
    assert len(tiles) > 10
    assert tiles["forest"].between(0.01, 0.99).any()
    assert worst < 0.1


@pytest.mark.parametrize(
    ("scene", "origin", "gsd"), [(products.LANDSAT, ORIGIN, 30.0), (products.L2A, SAFE_ORIGIN, 10.0)]
)
def test_tiles_under_a_cloud_of_the_quality_band_are_cloud(
    built: Path, scene: str, origin: tuple[float, float], gsd: float
) -> None:
    """The share of the pixels whose centre lies under the cloud, and the status that follows from it."""
    group = store.open_scene(str(built / layout.TILES), scene)
    status, cloud = contents.read_status(group), np.asarray(group["cloud"])
    transform, stride, size = (group.attrs[name] for name in ("spatial:transform", "stride", "tile"))
    rejected = 0
    for row, col in np.argwhere(~np.isnan(cloud)):
        east = transform[2] + (col * stride + np.arange(size) + 0.5) * gsd - origin[0]
        south = origin[1] - transform[5] + (row * stride + np.arange(size) + 0.5) * gsd
        share = np.outer(south < CLOUD * gsd, east < CLOUD * gsd).mean()
        if share:
            assert cloud[row, col] == pytest.approx(share)
            assert (layout.TILE_STATUS[status[row, col]] == "cloud") == (share > 0.5)
        rejected += share > 0.5
    assert rejected > 3
