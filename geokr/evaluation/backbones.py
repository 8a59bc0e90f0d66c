"""Encoders under evaluation: each keeps its own bands, normalisation and input size."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from geokr.dataset.layout import RGB
from geokr.encoder import ENCODER, build_encoder, find_defaults, require_model, to_unit, unit_scale
from geokr.settings import ConfigError
from geokr.weights import apply_weights, read_file

SCRATCH, IMAGENET = "scratch", "imagenet"
DEFAULT_MODEL = "resnet50"


@dataclass(frozen=True, slots=True)
class EncoderSource:
    """Where an encoder comes from, and the input that it expects."""

    name: str
    """As it was asked for: `scratch`, `imagenet`, a run, an export or a file."""
    model: str
    """timm's name of the network."""
    bands: tuple[str, ...]
    mean: tuple[float, ...]
    """Of each band, pixels in 0..1."""
    std: tuple[float, ...]
    levels: tuple[tuple[float, ...], tuple[float, ...]] | None
    """Pixels of each band that become 0 and 1, of an encoder of 16 bits; None for one of 8 bits."""
    size: int
    """Side of the images that it was trained with, px."""
    weights: Path | Literal["random", "timm"]
    """A file; random weights from the job's seed; or timm's own weights, which are downloaded."""
    digest: str
    """Tells encoders with other weights apart: start of the file's SHA-256, or what `weights` says."""


def find_source(name: str, model: str | None = None, imagenet: Path | None = None) -> EncoderSource:
    """Find out what an encoder is. Raises ValueError naming it if it cannot be used.

    name: `scratch`, `imagenet`, the folder of a run or an export, or a file of weights. model: timm's name of the
    network of `scratch`, `imagenet` and files that do not name theirs. imagenet: local file with ImageNet weights.
    """
    if name == SCRATCH:
        return _describe(name, model or DEFAULT_MODEL, "random", "random")
    if name == IMAGENET and imagenet is None:
        return _describe(name, model or DEFAULT_MODEL, "timm", "timm")
    file = Path(name) if name != IMAGENET or imagenet is None else imagenet
    file = file / ENCODER if file.is_dir() else file
    weights, header = read_file(file)
    del weights
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()[:16]
    if header is None:
        if model is None:
            raise ConfigError(f"{file}: the file does not name the network of its weights; add model=NAME, as in timm")
        return _describe(name, model, file, digest)
    levels = (header.low, header.high) if header.pixel_type == "uint16" else None
    statistics = (header.mean, header.std, levels)
    return EncoderSource(name, header.model, header.bands, *statistics, header.image_size, file, digest)


def _describe(name: str, model: str, weights: Path | Literal["random", "timm"], digest: str) -> EncoderSource:
    """An encoder for red, green and blue, with timm's mean, standard deviation and size for the model."""
    require_model(model)
    defaults = find_defaults(model)
    if defaults is None:
        raise ConfigError(f"{model}: timm has no mean, standard deviation and size for its input")
    return EncoderSource(name, model, RGB, defaults.mean, defaults.std, None, defaults.input_size[-1], weights, digest)


def build_network(source: EncoderSource, seed: int, size: int = 0) -> nn.Module:
    """Build the encoder with its weights: (n, band, size, size) normalised float -> (n, feature).

    seed: of random weights. size: side of the images, px; 0: the source's own. For another size, timm interpolates the
    positions that a network of a fixed size has learnt. Raises ConfigError if it cannot.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        try:
            network = build_encoder(source.model, len(source.bands), source.size, weights=source.weights == "timm")
        except OSError as error:  # of the download
            raise ConfigError(
                f"{source.name}: timm's weights of {source.model} cannot be downloaded; name a file, such as "
                f"imagenet=FILE: {str(error).splitlines()[0]}"
            ) from error
    if isinstance(source.weights, Path):
        weights, header = read_file(source.weights)
        bands = RGB if header is None else header.bands
        apply_weights(network, weights, bands, source.bands, str(source.weights))
    defaults = find_defaults(source.model)
    if size not in (0, source.size) and defaults is not None and defaults.fixed_input_size:
        resize: Any = getattr(network, "set_input_size", None)
        if resize is None:
            raise ConfigError(f"{source.name}: {source.model} takes images of {source.size} px only; set size to that")
        resize(img_size=(size, size))
    return network


class Pyramid(nn.Module):
    """Feature maps of an encoder at several scales, from the finest to the coarsest."""

    def __init__(self, network: nn.Module, levels: Sequence[int]) -> None:
        """network: of build_network. levels: positions in timm's list of its feature maps."""
        super().__init__()
        self.network = network
        self.levels = list(levels)
        info: list[dict[str, int]] = list(network.feature_info)  # type: ignore[arg-type]
        self.channels = tuple(info[i]["num_chs"] for i in self.levels)
        self.strides = tuple(info[i]["reduction"] for i in self.levels)
        """Size of a cell of each map, px of the image."""

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """(n, band, y, x) normalised float -> (n, channel, y / stride, x / stride) of each level."""
        maps: list[torch.Tensor] = self.network.forward_intermediates(  # type: ignore[operator]
            image, indices=self.levels, intermediates_only=True, output_fmt="NCHW"
        )
        return maps


def build_pyramid(source: EncoderSource, seed: int, size: int = 0, finest: int = 4) -> Pyramid:
    """Build the encoder as a pyramid: its coarsest feature map of each stride from `finest`, px, on.

    Raises ConfigError if the network gives no feature maps. A plain transformer has one stride, and so one level.
    """
    network = build_network(source, seed, size)
    maps: Any = getattr(network, "feature_info", None)
    if not maps or not hasattr(network, "forward_intermediates"):
        raise ConfigError(f"{source.model}: timm gives no feature maps of this network; choose another model")
    last = {info["reduction"]: i for i, info in enumerate(maps) if info["reduction"] >= finest}
    return Pyramid(network, list(last.values()))


def select_bands(source: EncoderSource, bands: Sequence[str]) -> list[int]:
    """Positions of an encoder's bands among those of the data. Raises ConfigError if the data lack one."""
    if missing := [name for name in source.bands if name not in bands]:
        raise ConfigError(
            f"{source.name}: the encoder needs {', '.join(source.bands)}, but the data have {', '.join(bands)}: "
            f"{', '.join(missing)} missing"
        )
    return [list(bands).index(name) for name in source.bands]


def normalise(pixels: torch.Tensor, source: EncoderSource, scale: float) -> torch.Tensor:
    """Normalise pixels for an encoder: (..., band, y, x) float32, of uint8 or uint16 in the encoder's bands.

    scale: digital number that means 1.0. An encoder of 16 bits has levels of its own for pixels of 16 bits, which must
    be numbers of the same kind as those of its training tiles; they are clipped as in training.
    """
    mean = torch.tensor(source.mean, device=pixels.device)[:, None, None]
    std = torch.tensor(source.std, device=pixels.device)[:, None, None]
    if source.levels is None or pixels.dtype == torch.uint8:
        return (pixels.float() / scale - mean) / std
    gain, offset = (values.to(pixels.device) for values in unit_scale(*source.levels))
    return (to_unit(pixels, gain, offset) - mean) / std


def choose_device(name: str) -> torch.device:
    """Choose the device of a setting: a name of torch's, or `auto` for the GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)
