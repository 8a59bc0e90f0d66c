"""Pansharpening against GDAL's, and against the formula pixel by pixel."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from pipeline.geometry.grid import TileGrid
from pipeline.geometry.terrain import Terrain
from pipeline.imaging.ortho import orthorectify
from pipeline.imaging.pansharpen import equal_weights, sharpen_brovey
from pipeline.imaging.quality import Rules
from pipeline.imaging.radiometry import Stretch
from pipeline.tasks.tiles import orthorectify_scene
from tests.deliveries import GROUND, GSD, HEIGHT, LAT, LON, WIDTH, camera, image_of, scene_of, tiff, tile_job

PLACED = {"crs": "EPSG:32648", "transform": Affine(1, 0, 5e5, 0, -1, 2e6)}


def gdals(folder: Path, colour: npt.NDArray[Any], pan: npt.NDArray[Any], weights: tuple[float, ...]) -> Any:
    """(y, x, band) of GDAL's weighted Brovey, both images on one grid."""
    (folder / "pan.tif").write_bytes(tiff(pan[None], **PLACED))
    (folder / "colour.tif").write_bytes(tiff(np.moveaxis(colour, -1, 0), **PLACED))
    bands = "".join(
        f"<SpectralBand dstBand='{k}'><SourceFilename relativeToVRT='1'>colour.tif</SourceFilename>"
        f"<SourceBand>{k}</SourceBand></SpectralBand>"
        for k in range(1, colour.shape[2] + 1)
    )
    (folder / "sharp.vrt").write_text(
        "<VRTDataset subClass='VRTPansharpenedDataset'><PansharpeningOptions><Algorithm>WeightedBrovey</Algorithm>"
        f"<AlgorithmOptions><Weights>{','.join(map(str, weights))}</Weights></AlgorithmOptions>"
        "<PanchroBand><SourceFilename relativeToVRT='1'>pan.tif</SourceFilename><SourceBand>1</SourceBand>"
        f"</PanchroBand>{bands}</PansharpeningOptions></VRTDataset>"
    )
    with rasterio.open(folder / "sharp.vrt") as file:
        return np.moveaxis(file.read(), 0, -1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    "weights", [(0.25, 0.25, 0.25, 0.25), (0.1, 0.2, 0.3, 0.4), (0.5, 0.7), (0.0, 1.0, 0.0), (1.0,)]
)
def test_pixels_are_those_of_gdal(tmp_path: Path, dtype: type[np.unsignedinteger], weights: tuple[float, ...]) -> None:
    rng = np.random.default_rng(len(weights))
    most = np.iinfo(dtype).max
    colour = rng.integers(0, most // 2, (60, 70, len(weights))).astype(dtype)
    pan = rng.integers(0, most, (60, 70)).astype(dtype)
    colour[5:8], pan[20:22] = 0, 0
    theirs = gdals(tmp_path, colour, pan, weights)
    ours = colour.copy()
    sharpen_brovey(ours, pan, weights)
    assert ours.dtype == dtype
    assert np.abs(ours.astype(int) - theirs).max() <= 1  # a half rounded either way
    assert (ours == theirs).mean() > 0.999
    assert not ours[5:8].any()
    assert (ours == most).any() or len(weights) == 1  # and held within the type


@given(
    colour=hnp.arrays(np.uint16, (4, 5, 3), elements=st.integers(0, 65535)),
    pan=hnp.arrays(np.uint16, (4, 5), elements=st.integers(0, 65535)),
    weights=st.tuples(*[st.floats(0.01, 2)] * 3),
)
@settings(max_examples=50)
def test_each_pixel_is_the_formula(colour: Any, pan: Any, weights: tuple[float, ...]) -> None:
    found = colour.copy()
    sharpen_brovey(found, pan, weights)
    for place in np.ndindex(4, 5):
        total = sum(w * int(v) for w, v in zip(weights, colour[place], strict=True))
        for k in range(3):
            wanted = min(int(colour[place][k]) * int(pan[place]) / total, 65535) if total else 0
            assert abs(int(found[place][k]) - wanted) <= 0.5 + 1e-6


def test_the_weighted_sum_of_the_bands_becomes_the_panchromatic_image() -> None:
    rng = np.random.default_rng(3)
    colour = rng.integers(200, 800, (40, 30, 4)).astype(np.uint16)
    pan = rng.integers(200, 800, (40, 30)).astype(np.uint16)
    before = colour / colour.sum(axis=2, keepdims=True)
    sharpen_brovey(colour, pan, equal_weights(4))
    assert np.abs(colour.mean(axis=2) - pan).max() <= 0.5
    assert np.abs(colour / colour.sum(axis=2, keepdims=True) - before).max() < 3e-3  # and the colours stay


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ((0.5, 0.5), "2 weights for 3 bands"),
        ((0.5, -0.1, 0.6), "weights must not be negative"),
        ((0.0, 0.0, 0.0), "must not all be 0"),
    ],
)
def test_weights_that_make_no_sense_are_refused(weights: tuple[float, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        sharpen_brovey(np.ones((2, 2, 3), np.uint8), np.ones((2, 2), np.uint8), weights)


def test_images_of_two_grids_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the panchromatic image has shape \(2, 3\), the colour image \(2, 2\)"):
        sharpen_brovey(np.ones((2, 2, 3), np.uint8), np.ones((2, 3), np.uint8), equal_weights(3))


def test_a_scenes_pixels_are_as_good_as_the_worst_of_its_images(tmp_path: Path) -> None:
    """Void where one of them has no data, lost where one lacks the line, bands in the order of the images."""
    rng = np.random.default_rng(4)
    images = []
    for name, size, bands, gone in (("first", 1, 1, 20), ("second", 1, 2, 30), ("pan", 4, 1, 160)):
        pixels = rng.integers(300, 500, (bands, size * HEIGHT, size * WIDTH)).astype(np.uint16)
        pixels[:, gone : gone + 2 * size] = 0
        pixels[-1, 10 + gone : 14 + gone, 10 + gone : 30 + gone] = 999
        model = camera(size * WIDTH, size * HEIGHT, gsd=GSD / size)
        images.append(image_of(tmp_path / f"{name}.tif", pixels, model, GSD / size, nodata=999))
    x, y = Transformer.from_crs(4326, 32648, always_xy=True).transform(LON, LAT)
    box = GeoBox((200, 250), Affine(2, 0, x - 250, 0, -2, y + 200), "EPSG:32648")
    scene = replace(scene_of(*images[:2]), pan=images[2])
    weights = (0.2, 0.3, 0.5)
    rules, flat, grid = Rules(), Terrain(None, GROUND), TileGrid(box, 200, 50, 2)
    found = orthorectify_scene(box, tile_job("", scene, flat, Stretch(0, 255), grid, weights=weights))
    each = [orthorectify(box, image, flat, missing_level=rules.missing_level) for image in images]
    assert len({part.valid.tobytes() for part in each}) == 3
    assert np.array_equal(found.valid, each[0].valid & each[1].valid & each[2].valid)
    masks = [part.missing for part in each]
    assert found.missing is not None
    assert all(mask is not None and mask.any() for mask in masks)
    assert np.array_equal(found.missing, np.logical_or.reduce(masks))
    assert found.lattice.error == max(part.lattice.error for part in each)
    colour = np.concatenate([part.pixels for part in each[:2]], axis=2)
    sharpen_brovey(colour, each[2].pixels[..., 0], weights)
    assert np.array_equal(found.pixels[found.valid], colour[found.valid])
