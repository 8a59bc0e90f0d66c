"""A network that segments holds the very encoder that is compared."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from geokr.evaluation.backbones import EncoderSource, build_network, find_source
from geokr.evaluation.segmenters import LinearSegmenter, build_segmenter
from geokr.settings import ConfigError

MODELS = ("test_resnet", "test_convnext", "test_efficientnet")


def image(side: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def weights_of(source: EncoderSource, seed: int, path: Path) -> EncoderSource:
    """The source with its weights in a file, as those of another project are."""
    save_file(build_network(source, seed).state_dict(), path)
    return find_source(str(path), source.model)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("decoder", ["unet", "fpn", "upernet"])
def test_maps_under_a_decoder_are_those_of_timms_own_extractor(model: str, decoder: str, tmp_path: Path) -> None:
    source = weights_of(find_source("scratch", model), 5, tmp_path / "w.safetensors")
    segmenter = build_segmenter(source, decoder, 4, 0, 64).eval()
    network = build_network(source, 0)
    peer = timm.create_model(model, features_only=True).eval()
    own = network.state_dict() | {name.replace(".", "_", 1): value for name, value in network.state_dict().items()}
    peer.load_state_dict({name: own[name] for name in peer.state_dict()})
    with torch.no_grad():
        theirs = peer(image())
        ours = segmenter.encoder(image())[-len(theirs) :]
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert segmenter(image()).shape == (2, 4, 64, 64)


def test_a_plain_transformer_is_put_under_dpt_with_its_own_weights(tmp_path: Path) -> None:
    source = weights_of(find_source("scratch", "test_vit"), 5, tmp_path / "w.safetensors")
    segmenter = build_segmenter(source, "fpn", 3, 0, 64).eval()
    network = build_network(source, 0, 64).eval()
    with torch.no_grad():
        maps, _ = segmenter.encoder(image())
        wanted = network.forward_intermediates(image(), indices=segmenter.encoder._output_indices)[1]
        assert all(torch.equal(a, b) for a, b in zip(maps, wanted, strict=True))
        assert segmenter(image()).shape == (2, 3, 64, 64)


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_decoders_start_equal_for_every_encoder_of_a_model(model: str, tmp_path: Path) -> None:
    scratch = find_source("scratch", model)
    trained = weights_of(scratch, 7, tmp_path / "w.safetensors")
    before = torch.get_rng_state()
    one, same, reseeded = (
        build_segmenter(source, "fpn", 2, seed, 64) for source, seed in ((scratch, 0), (trained, 0), (trained, 1))
    )
    assert torch.equal(torch.get_rng_state(), before)
    first = one.decoder.state_dict() | one.segmentation_head.state_dict()
    again = same.decoder.state_dict() | same.segmentation_head.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = reseeded.decoder.state_dict()
    assert not all(torch.equal(first[name], other[name]) for name in other)
    pairs = zip(one.encoder.state_dict().values(), same.encoder.state_dict().values(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)


def test_a_network_whose_maps_do_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="crossvit_tiny_240: its feature maps cannot be put under fpn; choose"):
        build_segmenter(find_source("scratch", "crossvit_tiny_240"), "fpn", 2, 0, 240)


def test_the_linear_layer_trains_alone_and_is_one_convolution_of_all_maps() -> None:
    source = find_source("scratch", "test_resnet")
    network = LinearSegmenter(source, 3, 0, 64).train()
    before = {name: value.clone() for name, value in network.pyramid.state_dict().items()}
    for parameter in network.classify.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    network(image()).square().mean().backward()
    assert all(parameter.grad is None for parameter in network.pyramid.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.pyramid.state_dict().items())
    network.eval()
    with torch.no_grad():
        maps = [
            normalise(features) for normalise, features in zip(network.normalise, network.pyramid(image()), strict=True)
        ]
        full = [torch.nn.functional.interpolate(part, size=(64, 64), mode="bilinear") for part in maps]
        weight = torch.cat([layer.weight for layer in network.classify], dim=1)
        bias = sum(layer.bias for layer in network.classify)
        wanted = torch.nn.functional.conv2d(torch.cat(full, dim=1), weight, bias)
        torch.testing.assert_close(network(image()), wanted, atol=1e-4, rtol=1e-4)


def test_the_linear_layer_standardises_by_what_it_was_trained_on() -> None:
    network = LinearSegmenter(find_source("scratch", "test_resnet"), 2, 0, 64).train()
    batches = [image(), image() * 3 + 1]
    for batch in batches:
        network(batch)
    with torch.no_grad():
        means = [network.pyramid(batch)[0].mean(dim=(0, 2, 3)) for batch in batches]
    torch.testing.assert_close(network.normalise[0].running_mean, torch.stack(means).mean(dim=0))
    assert np.isfinite(network.eval()(image()).detach().numpy()).all()
