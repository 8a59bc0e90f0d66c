"""Thirteen bands in 16 bits: from images by the command to a data set, a run, an export and features."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from safetensors import safe_open

from geokr.encoder import ENCODER, load_encoder
from geokr.export import main as export
from geokr.loading.loader import TileLoader
from geokr.loading.selection import Selection
from geokr.pretraining.checkpoint import LAST, load
from geokr.train import main as train
from pipeline.build_levir_kr import main as build

BANDS = ("coastal", "blue", "green", "red", "re1", "re2", "re3", "nir", "nir08", "wv", "cirrus", "swir16", "swir22")
CODES = (10, 20, 60)
"""Cultivated land, forest and water in GlobeLand30."""
SIDE = 576
"""Side of the image, px of 10 m."""


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of one image like Sentinel-2's, in which each class has its spectrum; built by the command."""
    folder = tmp_path_factory.mktemp("deep")
    rng = np.random.default_rng(4)
    coarse = rng.integers(0, 3, (SIDE // 24, SIDE // 24))
    kind = np.kron(coarse, np.ones((24, 24), np.int64))  # fields of 240 m, eight pixels of the map
    spectra = rng.integers(400, 5000, (3, len(BANDS)))
    image = spectra[kind].transpose(2, 0, 1) + rng.normal(0, 150, (len(BANDS), SIDE, SIDE))
    left, top = 600_000, 2_650_000
    write(folder / "scenes/S2A_20200705.tif", image.clip(1, 65535).astype(np.uint16), Affine(10, 0, left, 0, -10, top))
    sheet = np.array(CODES, np.uint8)[kind[::3, ::3]][None]
    write(folder / "landcover/n48_20_2020lc030.tif", sheet, Affine(30, 0, left, 0, -30, top))
    params = folder / "params.yaml"
    params.write_text("build: {grid: {block: 8}, index: {split: {cell: 1000, shares: {train: 0.7, val: 0.3}}}}\n")
    inputs = ["--scenes", f"{folder}/scenes", "--landcover", f"{folder}/landcover", "--params", str(params)]
    options = ["--radiometry", "dn", "--tile", "32", "--stride", "32", "--workers", "1"]
    assert build([*inputs, *options, "--out", str(folder / "dataset")]) == 0
    return folder / "dataset"


def write(path: Path, image: np.ndarray, transform: Affine) -> None:
    path.parent.mkdir(exist_ok=True)
    shape = {"count": len(image), "height": image.shape[1], "width": image.shape[2], "dtype": image.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32648", transform=transform, **shape) as file:
        file.write(image)
        if len(image) > 1:
            file.descriptions = BANDS


def test_thirteen_bands_in_16_bits_are_trained_exported_and_loaded(
    deep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "encoder"
    settings = ["model=test_resnet", "image_size=32", "batch=16", "epochs=8", "lr=0.01", "amp=fp32"]
    settings += ["device=cpu", "loggers=[]"]
    assert train(["--data", str(deep), "--out", str(run), f"bands={','.join(BANDS)}", *settings]) == 0
    assert export([str(run), "--out", str(out)]) == 0
    result = next(line for line in capsys.readouterr().err.splitlines() if "held-out KL" in line)
    print(result.replace(str(tmp_path), "."))
    kl, baseline = (float(part.split()[0]) for part in result.split("KL ")[1].split("nats, "))
    assert kl < baseline / 2

    held_out = next(iter(TileLoader(deep, Selection("val"), bands=BANDS, batch=16, shuffle=False)))
    assert held_out.image.dtype == torch.uint16
    checkpoint, encoder = load(run / LAST), load_encoder(out)
    with safe_open(out / ENCODER, "pt") as file:
        assert file.metadata()["pixel_type"] == "uint16"
    low, high = (torch.tensor(checkpoint.facts[name])[:, None, None] for name in ("low_pixel", "high_pixel"))
    mean, std = (torch.tensor(values)[:, None, None] for values in (checkpoint.mean, checkpoint.std))
    unit = ((held_out.image.float() - low) / (high - low)).clamp(0, 1)
    with torch.no_grad():
        expected = encoder.network((unit - mean) / std)
        torch.testing.assert_close(encoder(held_out.image), expected, rtol=1e-4, atol=1e-5)
        order = list(reversed(range(len(BANDS))))
        other = encoder(held_out.image[:, order], [BANDS[i] for i in order])
        torch.testing.assert_close(other, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(load_encoder(run)(held_out.image), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="takes a tensor of uint16 pixels"):
        encoder(held_out.image.to(torch.uint8))
    card = (out / "README.md").read_text()
    assert "of uint16\npixels (digital numbers)" in card
    assert f"| swir22 | {checkpoint.facts['low_pixel'][12]:g} | {checkpoint.facts['high_pixel'][12]:g} |" in card
