"""The network that is pre-trained: an encoder of timm's, and one linear layer to the classes."""

import logging
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.models import adapt_input_conv
from timm.models import load_state_dict as read_weights
from torch import nn

log = logging.getLogger(__name__)


class Classifier(nn.Module):
    """Class logits of images: (n, band, y, x) float -> (n, class) float. Softmax of them is the distribution p."""

    def __init__(self, encoder: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(features, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.encoder(image))
        return logits


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


def build(name: str, bands: int, classes: int, image_size: int, pretrained: bool | str) -> tuple[Classifier, str]:
    """A network, and a phrase that says where its encoder starts. pretrained: see TrainConfig.

    Draws from torch's global generator. Raises ValueError where the weights cannot be had or do not fit.
    """
    if pretrained in (True, "auto"):
        try:
            encoder, start = build_encoder(name, bands, image_size, weights=True), f"timm's weights for {name}"
        except Exception as error:  # each client of timm's raises a family of its own when there is no network
            reason = f"timm's weights for {name} cannot be had ({str(error).splitlines()[0]})"
            if pretrained is True:
                raise ValueError(f"{reason}; set pretrained to a file with weights, or to false") from error
            encoder, start = build_encoder(name, bands, image_size), "random weights"
            log.warning("%s; the encoder starts at random", reason)
    else:
        encoder, start = build_encoder(name, bands, image_size), "random weights"
        if isinstance(pretrained, str):
            load_weights(encoder, Path(pretrained), bands)
            start = pretrained
    return Classifier(encoder, _features(encoder, name, bands, image_size), classes), start


@torch.no_grad()
def _features(encoder: nn.Module, name: str, bands: int, image_size: int) -> int:
    """The encoder's width, found by trying it."""
    encoder.eval()
    try:
        shape = encoder(torch.zeros(1, bands, image_size, image_size)).shape
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"{name} does not take images of {image_size} px: {error}") from error
    encoder.train()
    if len(shape) != 2:
        raise ValueError(f"{name} gives features of shape {tuple(shape[1:])} for an image, expected one row of them")
    return int(shape[1])


def load_weights(encoder: nn.Module, path: Path, bands: int) -> None:
    """Load weights with timm's names from a .safetensors or .pth file, whatever classifier they come with.

    A first layer for three bands is adapted to others as timm does: repeated in turn and scaled.
    Raises ValueError naming the file where weights are missing, left over or of another shape.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file of weights (pretrained may be true, false, auto or a path)")
    try:
        weights = read_weights(str(path))  # unpickles tensors only
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a file of weights: {str(error).splitlines()[0]}") from error
    except Exception as error:  # pickle's own errors have no common family
        raise ValueError(f"{path}: not a file of weights alone: {type(error).__name__}") from error
    known: dict[str, Any] = getattr(encoder, "pretrained_cfg", {})
    for classifier in _names(known.get("classifier")):
        for part in ("weight", "bias"):
            weights.pop(f"{classifier}.{part}", None)
    for first in _names(known.get("first_conv")):
        weight = weights.get(f"{first}.weight")
        if weight is not None and weight.ndim == 4 and weight.shape[1] == 3 != bands:
            weights[f"{first}.weight"] = adapt_input_conv(bands, weight)
    wanted = encoder.state_dict()
    wrong = [f"{name} is missing" for name in sorted(wanted.keys() - weights.keys())]
    wrong += [f"{name} is left over" for name in sorted(weights.keys() - wanted.keys())]
    wrong += [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(wanted[name].shape)}"
        for name in wanted.keys() & weights.keys()
        if weights[name].shape != wanted[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{path}: not weights of this model: {', '.join(wrong[:3])}{more}")
    encoder.load_state_dict(weights)


def _names(entry: Any) -> tuple[str, ...]:
    """timm gives one name, several or none."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)
