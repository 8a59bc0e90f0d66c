"""Encoders: timm's networks without a classifier, with weights of a run, of an export, of timm or of torchvision.

encoder = load_encoder("runs/a")
features = encoder(pixels, bands=("blue", "green", "red", "nir"))  # (n, band, y, x) uint8 -> (n, feature)
"""

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors import SafetensorError, safe_open
from timm.models import load_state_dict
from torch import nn

RGB = ("red", "green", "blue")
"""Bands of the weights that others publish."""


ENCODER = "encoder.safetensors"
"""Name of an encoder's file in a run and in an export."""


class Encoder(nn.Module):
    """Features of pixels as they are stored: it knows its bands, their mean and spread, and its size."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, network: nn.Module, bands: Sequence[str], mean: Sequence[float], std: Sequence[float], size: int
    ) -> None:
        """network: (n, band, size, size) float -> (n, feature). mean, std: of each band, pixels in 0..1."""
        super().__init__()
        self.network = network
        self.bands = tuple(bands)
        """Bands that the network looks at, in its order."""
        self.size = size
        """Side of the images that it was trained on, px."""
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, pixels: torch.Tensor, bands: Sequence[str] | None = None) -> torch.Tensor:
        """(n, feature) float32 of (n, band, y, x) uint8 pixels, which are resized to the encoder's size.

        bands: names of the bands of `pixels`, in their order; the encoder's own unless given. Others than those that
        it looks at are passed over. Raises ValueError where one is missing, or for pixels of another type.
        """
        if pixels.dtype != torch.uint8:
            raise ValueError(f"an encoder takes uint8 pixels, got {pixels.dtype}")
        given = self.bands if bands is None else tuple(bands)
        if missing := [name for name in self.bands if name not in given]:
            raise ValueError(f"the encoder looks at {', '.join(self.bands)}; {', '.join(missing)} missing in {given}")
        if pixels.ndim != 4 or pixels.shape[1] != len(given):
            raise ValueError(f"expected (n, {len(given)}, y, x) pixels, got {tuple(pixels.shape)}")
        if given != self.bands:
            pixels = pixels[:, [given.index(name) for name in self.bands]]
        features: torch.Tensor = self.network((resize(pixels, self.size) - self.mean) / self.std)
        return features


def load_encoder(path: str | Path, model: str | None = None) -> Encoder:
    """The encoder of a run or of an export, or of a file of weights, in evaluation mode.

    path: a folder that holds encoder.safetensors, or a .safetensors or .pth file. model: timm's name of the network,
    for a file that this project did not write; such a file is taken to be for red, green and blue, with timm's mean,
    spread and size. Raises ValueError naming the file where it cannot be used.
    """
    file = Path(path) / ENCODER if Path(path).is_dir() else Path(path)
    weights, header = read_file(file)
    if "model" in header:
        bands, mean, std = (json.loads(header[name]) for name in ("bands", "mean", "std"))
        name, size = header["model"], int(header["image_size"])
    elif model is None:
        raise ValueError(f"{file}: it does not say what network its weights are of; name timm's model")
    else:
        name, bands = model, RGB
        known = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
        if known is None:
            raise ValueError(f"{model}: timm knows no mean, spread and size of its input")
        mean, std, size = known.mean, known.std, known.input_size[-1]
    network = build_encoder(name, len(bands), size)
    apply_weights(network, weights, bands, bands, str(file))
    return Encoder(network, bands, mean, std, size).eval()


def resize(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """Whole tiles at another size: (n, band, size, size) float32 in 0..1, from (n, band, y, x) uint8."""
    image = pixels.float() / 255
    if image.shape[-2:] == (size, size):
        return image
    return F.interpolate(image, size=(size, size), mode="bilinear", antialias=True)


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
    weights, header = read_file(path)
    return weights, tuple(json.loads(header["bands"])) if "bands" in header else RGB


def read_file(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The weights in a .safetensors or .pth file, and its header, empty where it has none. Raises as `read_weights`."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file of weights")
    try:
        weights = load_state_dict(str(path))  # unpickles tensors only
        header: dict[str, str] = {}
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
        return weights, header
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a file of weights: {str(error).splitlines()[0]}") from error
    except Exception as error:  # pickle's own errors have no common family
        raise ValueError(f"{path}: not a file of weights alone: {type(error).__name__}") from error


def apply_weights(
    encoder: nn.Module, given: Mapping[str, torch.Tensor], its_bands: Sequence[str], bands: Sequence[str], source: str
) -> None:
    """Give an encoder weights with timm's or torchvision's names, whatever classifier they come with.

    its_bands: those that the first layer of `given` looks at; they are matched with `bands` by name.
    Raises ValueError naming `source` where weights are missing, left over or of another shape.
    """
    wanted = encoder.state_dict()
    known: dict[str, Any] = getattr(encoder, "pretrained_cfg", {})
    dropped = {f"{name}.{part}" for name in _as_tuple(known.get("classifier")) for part in ("weight", "bias")}
    weights = {name: value for name, value in given.items() if name not in dropped}
    weights = {to_timm_name(name, wanted): value for name, value in weights.items()}
    weights = {name: value for name, value in weights.items() if name}
    for name, value in weights.items():
        if name in {f"{first}.weight" for first in _as_tuple(known.get("first_conv"))} and value.ndim == 4:
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


def to_timm_name(name: str, wanted: Mapping[str, torch.Tensor]) -> str:
    """timm's name of a weight that torchvision calls `name`; the same for all but VGG's last layers; "" for none."""
    layer, _, part = name.rpartition(".")
    if layer not in VGG or "pre_logits.fc1.weight" not in wanted:
        return name
    return f"{VGG[layer]}.{part}" if VGG[layer] else ""


def to_torchvision(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
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


def _as_tuple(entry: Any) -> tuple[str, ...]:
    """timm gives one name, several or none."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)
