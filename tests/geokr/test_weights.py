"""Weights of other projects are found by the names of the encoder, whatever stands before and beside them."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from geokr.encoder import load_encoder
from geokr.weights import SENTINEL2, apply_weights, read_weights

Weights = dict[str, torch.Tensor]


def trained(bands: int = 3, seed: int = 1) -> Weights:
    """Weights of a small network without a classifier, none of them as it is made."""
    draw = torch.Generator().manual_seed(seed)
    network = timm.create_model("test_resnet", num_classes=0, in_chans=bands)
    return {
        name: torch.rand(value.shape, generator=draw).to(value.dtype) for name, value in network.state_dict().items()
    }


def under(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: value for name, value in weights.items()}


def head(prefix: str) -> Weights:
    """The two layers that contrastive training puts on an encoder."""
    layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    return under(prefix, layers.state_dict())


OTHER = trained(seed=2)
CHECKPOINTS: dict[str, Any] = {
    "plain": trained(),
    "classifier": trained() | {"fc.weight": torch.zeros(9, 9), "fc.bias": torch.zeros(9)},
    "compiled": under("_orig_mod.", trained()),
    "torchgeo": {"state_dict": under("backbone.", trained()) | head("head.")},
    "softcon": under("module.encoder_q.", trained()) | head("module.encoder_q.fc."),
    "moco": {
        "epoch": 800,
        "arch": "resnet50",
        "state_dict": under("module.encoder_q.", trained())
        | head("module.encoder_q.fc.")
        | under("module.encoder_k.", OTHER)
        | {"module.queue": torch.zeros(4, 9)},
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.03}]},
    },
    "dino": {
        "student": under("module.backbone.", OTHER) | head("module.head.mlp."),
        "teacher": under("backbone.", trained()) | head("head.mlp."),
        "args": Namespace(arch="resnet50", lr=0.1),
    },
    "timm": {"state_dict": OTHER, "state_dict_ema": trained(), "version": 2},
    "segmentation": {"state_dict": under("model.encoder.", trained()) | {"model.decoder.conv.weight": torch.zeros(3)}},
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_the_encoder_in_a_checkpoint_is_found_by_its_names(kind: str, tmp_path: Path) -> None:
    torch.save(CHECKPOINTS[kind], tmp_path / "checkpoint.pth.tar")
    network = load_encoder(tmp_path / "checkpoint.pth.tar", "test_resnet").network
    assert all(torch.equal(value, trained()[name]) for name, value in network.state_dict().items())


def test_a_prefix_is_found_in_safetensors_too(tmp_path: Path) -> None:
    save_file(under("encoder.", trained()), tmp_path / "weights.safetensors")
    network = load_encoder(tmp_path / "weights.safetensors", "test_resnet").network
    assert all(torch.equal(value, trained()[name]) for name, value in network.state_dict().items())


def test_weights_of_old_versions_of_torch_lack_a_counter(tmp_path: Path) -> None:
    old = {name: value for name, value in trained().items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(trained())
    torch.save(old, tmp_path / "old.pth")
    torch.save(trained(), tmp_path / "new.pth")
    image = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    old_encoder, new_encoder = (load_encoder(tmp_path / f"{age}.pth", "test_resnet") for age in ("old", "new"))
    assert torch.equal(old_encoder(image), new_encoder(image))


def test_thirteen_bands_are_those_of_sentinel_2(tmp_path: Path) -> None:
    torch.save({"state_dict": under("module.encoder_q.", trained(13))}, tmp_path / "softcon.pth")
    first = trained(13)["conv1.0.weight"]
    bands = ("nir", "red", "pan")
    encoder = timm.create_model("test_resnet", num_classes=0, in_chans=3)
    apply_weights(encoder, *read_weights(tmp_path / "softcon.pth"), bands, "softcon.pth")
    wanted = torch.stack([first[:, SENTINEL2.index("nir")], first[:, SENTINEL2.index("red")], first.mean(1)], 1)
    assert torch.allclose(encoder.state_dict()["conv1.0.weight"], wanted * (13 / 3))
    with pytest.raises(
        ValueError, match=r"softcon.pth: not weights of this model: conv1.0.weight is \(\d+, 13, 3, 3\)"
    ):
        load_encoder(tmp_path / "softcon.pth", "test_resnet")


@pytest.mark.parametrize(
    ("checkpoint", "sentence"),
    [
        (
            under("left.", trained()) | under("right.", OTHER),
            "several networks fit, left. and right.; save",
        ),
        (under("a.", trained() | {"layer1.9.conv1.weight": torch.zeros(1)}), "layer1.9.conv1.weight is unexpected"),
        (under("a.", {**trained(), "layer1.0.bn1.weight": torch.zeros(1)}), "layer1.0.bn1.weight is (1,), expected ("),
        (under("a.", dict(list(trained().items())[:-2])), "not weights of this model: layer4"),
        ({"epoch": 3, "layer1": [1, 2]}, "not a file of weights: it has no tensor with a name"),
        ({"state_dict": trained(), "model": nn.Linear(2, 2)}, "torch.nn.modules.linear.Linear, which could run code"),
    ],
)
def test_what_is_not_one_encoder_is_refused(checkpoint: Any, sentence: str, tmp_path: Path) -> None:
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match=r".") as caught:
        load_encoder(tmp_path / "checkpoint.pth", "test_resnet")
    assert "checkpoint.pth: " in str(caught.value)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
