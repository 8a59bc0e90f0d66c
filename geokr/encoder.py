"""The network that is pre-trained: an encoder of timm's, and one linear layer to the classes."""

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.models import load_state_dict
from torch import nn

RGB = ("red", "green", "blue")
"""Bands of the weights that others publish."""


def build_encoder(name: str, bands: int, image_size: int, weights: bool = False) -> nn.Module:
    """timm's model `name` without its classifier: (n, band, y, x) -> (n, feature). weights: download timm's own.

    Raises ValueError where timm has no such model.
    """
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(f"timm has no model {name}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
    try:
        settings: dict[str, Any] = {"num_classes": 0, "in_chans": bands}
        fixed = timm.get_pretrained_cfg(name)
        if fixed is not None and fixed.fixed_input_size and fixed.input_size[-1] != image_size:
            settings["img_size"] = image_size
        return timm.create_model(name, pretrained=weights, **settings)
    except RuntimeError as error:  # a tag that does not exist, or a model without weights
        raise ValueError(f"timm cannot make {name}: {error}") from error


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The weights in a .safetensors or .pth file, and the bands of their first layer.

    Those are in the header of a file that this project wrote; any other is taken to be for red, green and blue.
    Raises ValueError naming the file where it holds something else.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file of weights (pretrained may be true, false, auto or a path)")
    try:
        weights = load_state_dict(str(path))  # unpickles tensors only
        header: dict[str, str] = {}
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
        return weights, tuple(json.loads(header["bands"])) if "bands" in header else RGB
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a file of weights: {str(error).splitlines()[0]}") from error
    except Exception as error:  # pickle's own errors have no common family
        raise ValueError(f"{path}: not a file of weights alone: {type(error).__name__}") from error


def fit(
    encoder: nn.Module, given: Mapping[str, torch.Tensor], its_bands: Sequence[str], bands: Sequence[str], source: str
) -> None:
    """Give an encoder weights with timm's or torchvision's names, whatever classifier they come with.

    its_bands: those that the first layer of `given` looks at; they are matched with `bands` by name.
    Raises ValueError naming `source` where weights are missing, left over or of another shape.
    """
    wanted = encoder.state_dict()
    known: dict[str, Any] = getattr(encoder, "pretrained_cfg", {})
    dropped = {f"{name}.{part}" for name in _names(known.get("classifier")) for part in ("weight", "bias")}
    weights = {name: value for name, value in given.items() if name not in dropped}
    weights = {timms_name(name, wanted): value for name, value in weights.items()}
    weights = {name: value for name, value in weights.items() if name}
    for name, value in weights.items():
        if name in {f"{first}.weight" for first in _names(known.get("first_conv"))} and value.ndim == 4:
            if value.shape[1] == len(its_bands):
                weights[name] = adapt_bands(value, its_bands, bands)
        elif name in wanted and value.ndim == 2 and wanted[name].ndim == 4 and value.numel() == wanted[name].numel():
            weights[name] = value.reshape(wanted[name].shape)  # a linear layer that timm writes as a convolution
    wrong = [f"{name} is missing" for name in sorted(wanted.keys() - weights.keys())]
    wrong += [f"{name} is left over" for name in sorted(weights.keys() - wanted.keys())]
    wrong += [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(wanted[name].shape)}"
        for name in wanted.keys() & weights.keys()
        if weights[name].shape != wanted[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{source}: not weights of this model: {', '.join(wrong[:3])}{more}")
    encoder.load_state_dict(weights)


VGG = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": ""}
"""torchvision's names of VGG's last layers -> timm's; the last one is the classifier."""


def timms_name(name: str, wanted: Mapping[str, torch.Tensor]) -> str:
    """timm's name of a weight that torchvision calls `name`; the same for all but VGG's last layers; "" for none."""
    layer, _, part = name.rpartition(".")
    if layer not in VGG or "pre_logits.fc1.weight" not in wanted:
        return name
    return f"{VGG[layer]}.{part}" if VGG[layer] else ""


def torchvisions(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An encoder's weights as torchvision names and shapes them. Differs from timm's for VGG's last layers alone."""
    named = {ours: theirs for theirs, ours in VGG.items() if ours}
    result = {}
    for name, value in weights.items():
        layer, _, part = name.rpartition(".")
        its = named.get(layer)
        result[f"{its}.{part}" if its else name] = value.flatten(1) if its and value.ndim == 4 else value
    return result


def adapt_bands(weight: torch.Tensor, given: Sequence[str], wanted: Sequence[str]) -> torch.Tensor:
    """A first convolution for other bands: (out, len(wanted), y, x) from (out, len(given), y, x).

    A band keeps its own weights; one that `given` lacks starts from the mean of all. All are scaled by
    len(given) / len(wanted), lest the layer's output grow with the number of bands.
    """
    mean = weight.mean(dim=1)
    parts = [weight[:, given.index(band)] if band in given else mean for band in wanted]
    return torch.stack(parts, dim=1) * (len(given) / len(wanted))


def _names(entry: Any) -> tuple[str, ...]:
    """timm gives one name, several or none."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)
