"""Pansharpening against GDAL's, and against the formula pixel by pixel."""

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

from pipeline.pansharpen import brovey, equal_weights
from tests.deliveries import tiff

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
    brovey(ours, pan, weights)
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
    brovey(found, pan, weights)
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
    brovey(colour, pan, equal_weights(4))
    assert np.abs(colour.mean(axis=2) - pan).max() <= 0.5
    assert np.abs(colour / colour.sum(axis=2, keepdims=True) - before).max() < 3e-3  # and the colours stay


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ((0.5, 0.5), "2 weights for 3 bands"),
        ((0.5, -0.1, 0.6), "weights must not be negative"),
        ((0.0, 0.0, 0.0), "not all be 0"),
    ],
)
def test_weights_that_make_no_sense_are_refused(weights: tuple[float, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        brovey(np.ones((2, 2, 3), np.uint8), np.ones((2, 2), np.uint8), weights)


def test_images_of_two_grids_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) panchromatic pixels for \(2, 2\) of colour"):
        brovey(np.ones((2, 2, 3), np.uint8), np.ones((2, 3), np.uint8), equal_weights(3))
