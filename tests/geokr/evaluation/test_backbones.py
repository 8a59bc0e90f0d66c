"""An encoder under evaluation keeps its weights, bands, normalisation and size."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from geokr.encoder import build_encoder, load_encoder
from geokr.evaluation.backbones import build_network, build_pyramid, find_source, normalise, select_bands
from geokr.settings import ConfigError

BANDS = ("nir", "green")


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """An encoder of two bands, as a run writes it."""
    torch.manual_seed(1)
    header = {"model": "test_resnet", "image_size": "64", "bands": json.dumps(BANDS), "mean": "[0.5, 0.25]"}
    header |= {"pixel_type": "uint8", "low": "[0, 0]", "high": "[255, 255]"}
    weights = build_encoder("test_resnet", 2, 64).state_dict()
    save_file(weights, tmp_path / "encoder.safetensors", header | {"std": "[0.5, 0.125]"})
    return tmp_path


def test_a_run_says_everything_about_its_encoder(exported: Path) -> None:
    source = find_source(str(exported))
    assert (source.model, source.bands, source.size) == ("test_resnet", BANDS, 64)
    assert (source.mean, source.std) == ((0.5, 0.25), (0.5, 0.125))
    assert find_source(str(exported / "encoder.safetensors")).digest == source.digest


def test_features_are_those_of_the_loaded_encoder(exported: Path) -> None:
    source = find_source(str(exported))
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    bands = ("green", "blue", "nir")
    chosen = pixels[:, select_bands(source, bands)]
    with torch.no_grad():
        features = build_network(source, 0).eval()(normalise(chosen, source, 255.0))
        torch.testing.assert_close(features, load_encoder(exported)(pixels, bands))
        deep = normalise(chosen.to(torch.uint16) * 100, source, 25500.0)
        torch.testing.assert_close(build_network(source, 0).eval()(deep), features)


def test_an_encoder_of_16_bits_has_levels_of_its_own(exported: Path) -> None:
    """Whatever `scale` the other encoders need; pixels beyond the levels are clipped, as in training."""
    weights = build_encoder("test_resnet", 2, 64).state_dict()
    header = {"model": "test_resnet", "image_size": "64", "bands": json.dumps(BANDS), "pixel_type": "uint16"}
    numbers = {"low": "[100, 2000]", "high": "[1100, 4000]", "mean": "[0.5, 0.25]", "std": "[0.5, 0.125]"}
    save_file(weights, exported / "encoder.safetensors", header | numbers)
    source = find_source(str(exported))
    pixels = torch.randint(0, 5000, (2, 2, 64, 64)).to(torch.uint16)
    network = build_network(source, 0).eval()
    with torch.no_grad():
        torch.testing.assert_close(network(normalise(pixels, source, 10000.0)), load_encoder(exported)(pixels))
    eight = torch.randint(0, 256, (2, 2, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (source.mean, source.std))
    torch.testing.assert_close(normalise(eight, source, 255.0), (eight / 255 - mean) / std)


def test_the_pyramid_has_the_maps_of_timms_own_features(exported: Path) -> None:
    source = find_source(str(exported))
    pyramid = build_pyramid(source, 0).eval()
    assert pyramid.strides == (4, 8, 16, 32)
    peer = timm.create_model("test_resnet", features_only=True, in_chans=2, out_indices=(1, 2, 3, 4)).eval()
    peer.load_state_dict(build_network(source, 0).state_dict(), strict=False)
    image = torch.randn(2, 2, 96, 64)
    with torch.no_grad():
        for ours, theirs, channels in zip(pyramid(image), peer(image), pyramid.channels, strict=True):
            assert ours.shape[1] == channels
            torch.testing.assert_close(ours, theirs)


def test_a_plain_transformer_has_one_level() -> None:
    assert build_pyramid(find_source("scratch", "test_vit"), 0).strides == (16,)


def test_random_weights_are_a_function_of_the_seed() -> None:
    source = find_source("scratch", "test_resnet")
    before = torch.get_rng_state()
    one, same, other = (build_network(source, seed).state_dict()["conv1.0.weight"] for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_file_of_imagenet_weights_replaces_the_download(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.manual_seed(2)
    network = timm.create_model("test_resnet")  # with its classifier, as such files are
    torch.save(network.state_dict(), file)
    source = find_source("imagenet", "test_resnet", file)
    assert source.name == "imagenet"
    weights = build_network(source, 0).state_dict()
    assert all(torch.equal(weights[name], network.state_dict()[name]) for name in weights)


@pytest.mark.parametrize(
    ("name", "model", "sentence"),
    [
        ("none/here", None, "none/here: no such file of weights"),
        ("scratch", "resnet5", "timm has no model resnet5; did you mean"),
    ],
)
def test_an_encoder_that_cannot_be_used_is_refused(name: str, model: str | None, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        find_source(name, model)


def test_a_file_without_a_name_of_its_network_needs_one(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"w\.pth: the file does not name the network.*model=NAME"):
        find_source(str(tmp_path / "w.pth"))


def test_data_without_an_encoders_bands_are_refused(exported: Path) -> None:
    with pytest.raises(ConfigError, match="the encoder needs nir, green, but the data have red, green, blue: nir mis"):
        select_bands(find_source(str(exported)), ("red", "green", "blue"))


@pytest.mark.parametrize("size", [64, 160])
def test_a_network_of_a_fixed_size_takes_its_weights_to_another_size(tmp_path: Path, size: int) -> None:
    scratch = find_source("scratch", "test_vit")
    network = build_network(scratch, 3)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    resized = build_network(find_source(str(tmp_path / "w.safetensors"), "test_vit"), 0, size)
    assert resized(torch.zeros(1, 3, size, size)).shape == (1, 64)
    weights, wanted = resized.state_dict(), network.state_dict()
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted if size == 160 or name != "pos_embed")
