"""An encoder is loaded by its path alone, and takes pixels as they are stored."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file

from geokr import export, train
from geokr.encoder import Encoder, load_encoder, resize, to_unit, unit_scale
from geokr.pretraining.checkpoint import LAST, load

BANDS = ("nir", "red", "green", "blue")


@pytest.fixture(scope="module")
def run(coloured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    settings = ["model=test_resnet", "image_size=32", "batch=32", "steps=3", f"bands={','.join(BANDS)}", "loggers=[]"]
    assert train.main(["--data", str(coloured), "--out", str(run), *settings]) == 0
    return run


def pixels(bands: int = 4, side: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (3, bands, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_run_and_its_export_are_one_encoder(run: Path, tmp_path: Path) -> None:
    assert export.main([str(run), "--out", str(tmp_path / "export")]) == 0
    encoder, checkpoint = load_encoder(run), load(run / LAST)
    assert (encoder.bands, encoder.size) == (BANDS, 32)
    assert encoder.mean.flatten().tolist() == pytest.approx(checkpoint.mean)
    network = timm.create_model("test_resnet", num_classes=0, in_chans=4)
    network.load_state_dict(load_file(run / "encoder.safetensors"))
    mean, std = (torch.tensor(values)[:, None, None] for values in (checkpoint.mean, checkpoint.std))
    wanted = network.eval()((pixels().float() / 255 - mean) / std)
    assert torch.allclose(encoder(pixels()), wanted, atol=1e-5)
    folder = tmp_path / "export"
    for path in (folder, folder / "encoder.safetensors"):
        assert torch.allclose(load_encoder(path)(pixels()), wanted, atol=1e-5), path
    assert torch.allclose(load_encoder(str(run))(pixels()), wanted, atol=1e-5)


def test_bands_are_found_by_name(run: Path) -> None:
    encoder, image = load_encoder(run), pixels(5)
    given = ("blue", "swir16", "green", "red", "nir")
    assert torch.equal(encoder(image, bands=given), encoder(image[:, [4, 3, 2, 0]]))
    with pytest.raises(ValueError, match=r"needs nir, red, green, blue; nir, green missing in \('red', 'blue'\)"):
        encoder(image[:, :2], bands=("red", "blue"))
    with pytest.raises(ValueError, match=r"expected \(n, 4, y, x\) pixels, got \(3, 5, 32, 32\)"):
        encoder(image)


def test_images_of_another_size_are_resized_and_of_another_type_refused(run: Path) -> None:
    encoder = load_encoder(run)
    large = pixels(side=70)
    image = resize(large.float() / 255, 32)
    assert torch.allclose(encoder(large), encoder.network((image - encoder.mean) / encoder.std), atol=1e-5)
    for wrong, what in (
        (large.float(), r"Tensor of torch\.float32"),
        (large.to(torch.uint16), r"Tensor of torch\.uint16"),
        (large.numpy(), "ndarray of uint8"),
    ):
        with pytest.raises(
            ValueError, match=f"the encoder takes a tensor of uint8 pixels, like its training tiles, got {what}"
        ):
            encoder(wrong)


def test_stored_pixels_are_scaled_band_by_band_and_clipped() -> None:
    stored = torch.arange(0, 65536, 257).to(torch.uint16).reshape(1, 2, 16, 8)
    low, high = [100.0, 0.0], [20000.0, 65535.0]
    found = to_unit(stored, *unit_scale(low, high))
    for band in range(2):
        expected = (stored[0, band].double() - low[band]) / (high[band] - low[band])
        assert torch.allclose(found[0, band].double(), expected.clamp(0, 1), atol=1e-6)
    assert float(found[:, 0].min()) == 0 < float(stored.double().max()) / 20000 - 1  # both ends are clipped
    assert float(found[:, 0].max()) == 1


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_torchvisions_is_loaded_by_timms_name(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(3)
    theirs = torchvision.models.resnet18()
    path = tmp_path / f"resnet18{suffix}"
    (torch.save if suffix == ".pth" else lambda state, file: save_file(state, file))(theirs.state_dict(), path)
    encoder = load_encoder(path, model="resnet18.tv_in1k")
    assert (encoder.bands, encoder.size) == (("red", "green", "blue"), 224)
    assert encoder.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    image = pixels(3, 224)
    theirs.fc = torch.nn.Identity()
    with torch.no_grad():
        wanted = theirs.eval()((image.float() / 255 - encoder.mean) / encoder.std)
        assert torch.allclose(encoder(image), wanted, atol=1e-5)


def test_what_cannot_be_loaded_is_named(tmp_path: Path, run: Path) -> None:
    foreign = tmp_path / "foreign.pth"
    torch.save(torchvision.models.resnet18().state_dict(), foreign)
    text = tmp_path / "text.safetensors"
    text.write_text("no weights")
    for path, model, sentence in (
        (foreign, None, "foreign.pth: the file does not name the network of its weights; pass timm's name as `model`"),
        (foreign, "resnet99", "timm has no model resnet99; did you mean"),
        (foreign, "resnet34", "foreign.pth: not weights of this model"),
        (text, "resnet18", "text.safetensors: not a file of weights"),
        (tmp_path, None, "encoder.safetensors: no such file of weights"),
        (tmp_path / "none.pth", "resnet18", "none.pth: no such file of weights"),
    ):
        with pytest.raises(ValueError, match=r".") as caught:
            load_encoder(path, model)
        assert sentence in str(caught.value)
        assert "\n" not in str(caught.value)


def test_it_moves_and_is_saved_as_any_module(run: Path) -> None:
    encoder = load_encoder(run)
    assert not encoder.training
    copy = Encoder(timm.create_model("test_resnet", num_classes=0, in_chans=4), BANDS, [0.0] * 4, [1.0] * 4, 32)
    copy.load_state_dict(encoder.state_dict())
    assert torch.equal(copy.eval()(pixels()), encoder(pixels()))


NUMBERS = {"pixel_type": "uint8", "low": "[0]", "high": "[255]", "mean": "[0]", "std": "[1]"}


@pytest.mark.parametrize(
    "header",
    [
        {"model": "test_resnet"},
        {"model": "test_resnet", "image_size": "32", "bands": "3", **NUMBERS},
        {"model": "test_resnet", "image_size": "32", "bands": "x", **NUMBERS},
        {"model": "test_resnet", "image_size": "32", "bands": '["a", "b"]', **NUMBERS},
        {"format": "pt"},
    ],
)
def test_a_header_of_another_project_says_nothing(tmp_path: Path, header: dict[str, str]) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), path, header)
    with pytest.raises(ValueError, match=r"weights\.safetensors: the file does not name the network"):
        load_encoder(path)
    assert load_encoder(path, "test_resnet").bands == ("red", "green", "blue")
    with pytest.raises(ValueError, match=r"timm cannot create test_resnet\.bogus"):
        load_encoder(path, "test_resnet.bogus")
