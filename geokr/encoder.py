"""Encoders: timm's networks without a classifier, with weights from a run, an export, timm or torchvision.

encoder = load_encoder("runs/a")
features = encoder(pixels, bands=("blue", "green", "red", "nir"))  # (n, band, y, x) uint8|uint16 -> (n, feature)
"""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from geokr.dataset.layout import RGB
from geokr.weights import apply_weights, read_file

ENCODER = "encoder.safetensors"
"""Name of the encoder file in a run and in an export."""


class Encoder(nn.Module):
    """A network for stored pixels, together with its bands, their normalisation and its image size."""

    mean: torch.Tensor
    std: torch.Tensor
    gain: torch.Tensor
    offset: torch.Tensor

    def __init__(
        self,
        network: nn.Module,
        bands: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        size: int,
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
        dtype: torch.dtype = torch.uint8,
    ) -> None:
        """network: (n, band, size, size) float -> (n, feature). mean, std: of each band, pixels in 0..1. size: px.

        low, high: stored pixels of each band that become 0 and 1; 0 and 255 by default. dtype: uint8 or uint16.
        """
        super().__init__()
        self.network = network
        self.bands = tuple(bands)
        """Input bands of the network, in its order."""
        self.size = size
        """Side of the images that it was trained with, px."""
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])
        self.dtype = dtype
        """Type of the stored pixels."""
        gain, offset = unit_scale(low or [0.0] * len(bands), high or [255.0] * len(bands))
        self.register_buffer("gain", gain)
        self.register_buffer("offset", offset)

    def forward(self, pixels: torch.Tensor, bands: Sequence[str] | None = None) -> torch.Tensor:
        """Compute features, (n, feature) float32, of (n, band, y, x) stored pixels, resized to the encoder's size.

        bands: names of the bands of `pixels`, in their order; by default, the encoder's bands. Bands that the encoder
        does not use are ignored. Raises ValueError if a band is missing, or for pixels of another type or shape.
        """
        if not isinstance(pixels, torch.Tensor) or pixels.dtype != self.dtype:
            got = f"{type(pixels).__name__} of {getattr(pixels, 'dtype', 'no type')}"
            expected = str(self.dtype).removeprefix("torch.")
            raise ValueError(f"the encoder takes a tensor of {expected} pixels, like its training tiles, got {got}")
        input_bands = self.bands if bands is None else tuple(bands)
        if missing := [name for name in self.bands if name not in input_bands]:
            raise ValueError(
                f"the encoder needs {', '.join(self.bands)}; {', '.join(missing)} missing in {input_bands}"
            )
        if pixels.ndim != 4 or pixels.shape[1] != len(input_bands):
            raise ValueError(f"expected (n, {len(input_bands)}, y, x) pixels, got {tuple(pixels.shape)}")
        if input_bands != self.bands:
            # As floats, because for uint16, torch has few operations on a GPU.
            pixels = pixels.float()[:, [input_bands.index(name) for name in self.bands]]
        image = resize(to_unit(pixels, self.gain, self.offset), self.size)
        features: torch.Tensor = self.network((image - self.mean) / self.std)
        return features


def load_encoder(path: str | Path, model: str | None = None) -> Encoder:
    """Load the encoder of a run, of an export or of a file of weights, in evaluation mode.

    path: a folder with encoder.safetensors, or a .safetensors or .pth file. model: timm's name of the network, for a
    file that this project did not write. Such a file is assumed to be for red, green and blue, with timm's mean,
    standard deviation and size. Raises ValueError naming the file if it cannot be used.
    """
    file = Path(path) / ENCODER if Path(path).is_dir() else Path(path)
    weights, header = read_file(file)
    levels: dict[str, Any] = {}
    if header is not None:
        name, bands, mean, std, size = header.model, header.bands, header.mean, header.std, header.image_size
        levels = {"low": header.low, "high": header.high, "dtype": getattr(torch, header.pixel_type)}
    elif model is None:
        raise ValueError(f"{file}: the file does not name the network of its weights; pass timm's name as `model`")
    else:
        require_model(model)
        name, bands, defaults = model, RGB, find_defaults(model)
        if defaults is None:
            raise ValueError(f"{model}: timm has no mean, standard deviation and size for its input")
        mean, std, size = defaults.mean, defaults.std, defaults.input_size[-1]
    network = build_encoder(name, len(bands), size)
    apply_weights(network, weights, bands, bands, str(file))
    return Encoder(network, bands, mean, std, size, **levels).eval()


def unit_scale(low: Sequence[float], high: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Gain and offset of each band, (band, 1, 1) float32, with which `to_unit` maps `low` to 0 and `high` to 1."""
    bottom, top = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (low, high))
    gain = 1 / (top - bottom)
    return gain.float(), (-bottom * gain).float()


def to_unit(pixels: torch.Tensor, gain: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Convert stored pixels to float32 in 0..1: gain * pixels + offset, in one pass.

    pixels: (n, band, y, x). gain, offset: (band, 1, 1) or (n, band, 1, 1) float32 on the same device. Results outside
    0..1 are clipped. For uint8 pixels, whose range is always 0..255, there are none.
    """
    unit = torch.addcmul(offset, pixels, gain)
    return unit if pixels.dtype == torch.uint8 else unit.clamp_(0.0, 1.0)


def resize(image: torch.Tensor, size: int) -> torch.Tensor:
    """Resize full tiles without aliasing: (n, band, size, size) float, from (n, band, y, x) float."""
    if image.shape[-2:] == (size, size):
        return image
    return F.interpolate(image, size=(size, size), mode="bilinear", antialias=True)


def build_encoder(name: str, bands: int, image_size: int, weights: bool = False, drop_path: float = 0.0) -> nn.Module:
    """Build timm's model `name` without its classifier: (n, band, y, x) -> (n, feature).

    VGG also lacks its two hidden layers, which have most of its parameters: features are the mean of its last map, as
    in the paper's published code. weights: download timm's weights. drop_path: probability of stochastic depth in
    training. Raises ValueError if timm has no such model, or if it has no stochastic depth.
    """
    settings = creation_settings(name, bands, image_size)
    if drop_path:
        settings["drop_path_rate"] = drop_path
    try:
        encoder = timm.create_model(name, pretrained=weights, **settings)
    except RuntimeError as error:  # a model without weights
        raise ValueError(f"timm cannot create {name}: {error}") from error
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        raise ValueError(f"{name} has no stochastic depth: set drop_path to 0") from error
    if is_vgg(name):
        encoder.pre_logits = nn.Identity()
    return encoder


def creation_settings(name: str, bands: int, image_size: int) -> dict[str, Any]:
    """What `timm.create_model` needs besides the name to build an encoder: see `build_encoder`.

    Networks of a fixed size, such as most transformers, need the size of the images. Raises ValueError if timm has no
    such model.
    """
    require_model(name)
    defaults = find_defaults(name)
    settings: dict[str, Any] = {"num_classes": 0, "in_chans": bands}
    if defaults is not None and defaults.fixed_input_size and defaults.input_size[-1] != image_size:
        settings["img_size"] = image_size
    return settings


def is_vgg(name: str) -> bool:
    """Whether timm's model `name` is a VGG, whose hidden layers an encoder lacks."""
    return timm.models.is_model_in_modules(name, ["vgg"])


def require_model(name: str) -> None:
    """Raise ValueError if timm has no model of this name, with suggestions."""
    if not timm.is_model(name):
        suggestions = get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(
            f"timm has no model {name}" + (f"; did you mean {' or '.join(suggestions)}?" if suggestions else "")
        )


def find_defaults(name: str) -> Any:
    """timm's description of the input of a model; None if it has none. Raises ValueError for an unknown tag."""
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ValueError(f"timm cannot create {name}: {error}") from error
