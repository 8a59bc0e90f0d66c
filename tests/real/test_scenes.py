"""What real scenes show beside their tiles: missing lines, the Sun, two images of one moment."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from pipeline.geocheck import measure_shifts, read_one_scene
from pipeline.geometry.grid import TileGrid, make_scene_grid
from pipeline.imaging.calibration import find_solar_zenith, find_sun
from pipeline.imaging.ortho import orthorectify
from pipeline.imaging.pansharpen import equal_weights
from pipeline.imaging.quality import MISSING_LINES, Rules, find_missing_lines
from pipeline.imaging.radiometry import Stretch
from pipeline.scenes.delivery import read_delivery
from pipeline.scenes.discovery import find_deliveries
from pipeline.scenes.footprint import image_footprint, make_flat_terrain
from pipeline.scenes.scene import Imagery, Scene
from pipeline.tasks.tiles import make_tiles, orthorectify_scene
from tests.deliveries import tiff, tile_job

WFV = "GF1_WFV3_E89.0_N23.9_20200523_L1A0004819525"
GF2 = "GF2_PMS1_W91.0_N17.6_20200510_L1A0004793969"
GF1 = "GF1_PMS1_E69.4_N33.3_20220624_L1A0006547030"


def scene_in(folder: Path, imagery: Imagery = "mss") -> Scene:
    (found,) = [scene for delivery in find_deliveries([folder]) for scene in read_delivery(delivery, imagery)]
    assert isinstance(found, Scene)
    return found


def grid_of(scene: Scene, tile: int, stride: int, gsd: float | None = None) -> TileGrid:
    image = scene.images[0]
    grid = make_scene_grid(image_footprint(image, make_flat_terrain(image.model)), gsd or scene.gsd, tile, stride, 99)
    assert grid is not None
    return grid


def test_the_two_bands_of_missing_lines_are_found(real: Path) -> None:
    """By eye, 16 lines from 1116 and from 1269 on; the scene's clouds and rivers are none."""
    image = scene_in(real / "gaofen" / WFV).images[0]
    with rasterio.open(image.path) as file:
        found = find_missing_lines(np.moveaxis(file.read(), 0, -1), Rules().missing_level)
    assert np.flatnonzero(found).tolist() == [*range(1116, 1132), *range(1269, 1285)]
    for name in (GF1, GF2):
        for other in scene_in(real / "gaofen" / name).images:
            with rasterio.open(other.path) as file:
                assert not find_missing_lines(np.moveaxis(file.read(), 0, -1), Rules().missing_level).any()


def test_tiles_over_missing_lines_are_rejected_as_such(real: Path) -> None:
    scene = scene_in(real / "gaofen" / WFV)
    terrain, grid = make_flat_terrain(scene.images[0].model), grid_of(scene, 128, 128)
    job = tile_job("", scene, terrain, Stretch(0, 255), grid)
    _, status, _ = make_tiles(job)
    found = orthorectify(grid.geobox, scene.images[0], terrain)
    _, row = found.lattice.dense(found.valid.shape)
    lost = ((row > 1116) & (row < 1132)) | ((row > 1269) & (row < 1285))
    for r, c in np.ndindex(status.shape):
        here = np.s_[r * 128 : r * 128 + 128, c * 128 : c * 128 + 128]
        if found.valid[here].all():
            assert (status[r, c] == MISSING_LINES) == lost[here].any()
    assert (status == MISSING_LINES).sum() > 8


@pytest.mark.parametrize("name", [WFV, GF2, GF1])
def test_the_sun_stands_where_the_xml_says(real: Path, name: str) -> None:
    scene = scene_in(real / "gaofen" / name)
    assert scene.acquired is not None
    centre = scene.footprint.centroid
    computed, distance = find_sun(scene.acquired, centre.x, centre.y)
    assert computed == pytest.approx(float(scene.metadata["SolarZenith"]), abs=0.3)
    assert find_solar_zenith(scene.metadata, scene.acquired, centre.x, centre.y) == float(scene.metadata["SolarZenith"])
    assert 1.008 < distance < 1.018


def test_both_images_of_one_moment_lie_on_one_another(real: Path, tmp_path: Path) -> None:
    """The multispectral image through its camera, against a map made of the panchromatic one through its own."""
    pan = scene_in(real / "gaofen" / GF2, "pan")
    image = pan.images[0]
    box = grid_of(pan, 512, 512, 2 * image.gsd).geobox
    found = orthorectify(box, image, make_flat_terrain(image.model))
    pixels = np.moveaxis(np.where(found.valid[..., None], np.maximum(found.pixels, 1), 0), -1, 0)
    (tmp_path / "map.tif").write_bytes(tiff(pixels, crs=str(box.crs), transform=box.transform, nodata=0))
    mss = scene_in(real / "gaofen" / GF2)
    measured = measure_shifts(
        mss, read_one_scene(str(tmp_path / "map.tif")), make_flat_terrain(mss.images[0].model), 128, 6
    )
    print("\n".join(measured.lines()))
    assert len(measured.moved) > 15
    # The two cameras of the delivery are a pixel of these apart, all over the scene alike.
    assert np.median(np.hypot(*measured.moved.T)) < 1.1 * mss.gsd
    assert np.percentile(np.hypot(*(measured.moved - np.median(measured.moved, axis=0)).T), 90) < 0.5 * mss.gsd


def test_a_real_delivery_is_sharpened(real: Path) -> None:
    """The mean of the bands is the panchromatic image; the ratios of the bands are those of the colour image."""
    scene = scene_in(real / "gaofen" / GF2, "pansharpened")
    assert scene.pan is not None
    terrain = make_flat_terrain(scene.images[0].model)
    box = grid_of(scene, 512, 512).geobox[1200:1800, 1100:1800]
    grid = TileGrid(box, 600, 600, 1) if box.shape == (600, 600) else None
    weights = equal_weights(len(scene.bands))
    sharp = orthorectify_scene(box, tile_job("", scene, terrain, Stretch(0, 255), grid, weights=weights))  # type: ignore[arg-type]
    colour = orthorectify(box, scene.images[0], terrain).pixels.astype(float)
    pan = orthorectify(box, scene.pan, terrain).pixels[..., 0].astype(float)
    assert sharp.valid.mean() > 0.9
    free = sharp.valid & (sharp.pixels.max(axis=2) < 255) & (colour.min(axis=2) > 20)
    assert free.mean() > 0.5
    assert np.abs((sharp.pixels * np.array(weights)).sum(axis=2) - pan)[free].max() < 1.0
    ratio = colour / np.maximum(colour.sum(axis=2, keepdims=True), 1)
    assert np.abs(sharp.pixels / np.maximum(sharp.pixels.sum(axis=2, keepdims=True), 1) - ratio)[free].mean() < 0.02
