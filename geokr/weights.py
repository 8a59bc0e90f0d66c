"""Weights: read from files of this and other projects, and brought to timm's names and an encoder's bands."""

import argparse
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from geokr.dataset.layout import RGB

SENTINEL2 = (
    *("coastal", "blue", "green", "red", "rededge071", "rededge075", "rededge078"),
    *("nir", "nir08", "nir09", "cirrus", "swir16", "swir22"),
)
"""Bands of Sentinel-2 in the order of its product, B01 to B12 with B8A after B08: the order of published weights."""


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], tuple[str, ...] | None]:
    """Read the weights in a .safetensors or .pth file, and the bands of their first layer.

    The bands are in the header of a file that this project wrote; None for any other file. Raises ValueError naming
    the file if it does not exist or does not contain weights.
    """
    weights, header = read_file(path)
    return weights, None if header is None else header.bands


class Header(BaseModel):
    """What a file that this project wrote records about its encoder; lists are JSON there."""

    model_config = ConfigDict(protected_namespaces=(), frozen=True)

    model: str
    """timm's name of the network."""
    image_size: int
    bands: tuple[str, ...]
    pixel_type: Literal["uint8", "uint16"]
    low: tuple[float, ...]
    """Pixels of each band that become 0, before mean and std; those that become 1 are `high`."""
    high: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @field_validator("bands", "low", "high", "mean", "std", mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        return json.loads(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_lengths(self) -> "Header":
        if not 0 < len(self.bands) == len(self.low) == len(self.high) == len(self.mean) == len(self.std):
            raise ValueError("bands, low, high, mean and std differ in length")
        return self


def format_file(weights: Mapping[str, torch.Tensor], header: Header, more: Mapping[str, str] | None = None) -> bytes:
    """Format an encoder's weights, with timm's names, as a .safetensors file. more: entries added to its header."""
    entries = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in header.model_dump(mode="json").items()
    }
    contiguous = {name: value.contiguous() for name, value in weights.items()}
    return _sort_header(to_safetensors(contiguous, entries | dict(more or {})))


def _sort_header(content: bytes) -> bytes:
    """Sort the header of a safetensors file, since the library writes the metadata in random order.

    The file starts with the length of the header, 8 bytes, little-endian, followed by the header as JSON. Offsets of
    tensors are relative to the end of the header.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # keeps tensors aligned
    return len(header).to_bytes(8, "little") + header + content[end:]


def read_file(path: Path) -> tuple[dict[str, torch.Tensor], Header | None]:
    """Read the weights in a .safetensors or .pth file, and its header; None if another project wrote the file.

    Nested names are joined by dots; whatever is no tensor is left out. No code in the file is run. Raises like
    `read_weights`.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file of weights")
    header: Header | None = None
    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
            with safe_open(path, "pt") as file, suppress(ValidationError):
                header = Header.model_validate(file.metadata() or {})
        else:
            with safe_globals([argparse.Namespace]):  # the settings in many checkpoints; plain values
                weights = dict(flatten(torch.load(path, map_location="cpu", weights_only=True)))
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a file of weights: {str(error).splitlines()[0]}") from error
    except Exception as error:  # pickle's own errors have no common base class
        raise ValueError(f"{path}: not a file of weights: {_describe_objects(path, error)}") from error
    if not weights:
        raise ValueError(f"{path}: not a file of weights: it has no tensor with a name")
    return weights, header


def flatten(checkpoint: Any, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Iterate over the tensors in nested dictionaries, with their names joined by dots."""
    if isinstance(checkpoint, torch.Tensor) and prefix:
        yield prefix, checkpoint
    elif isinstance(checkpoint, Mapping):
        for name, value in checkpoint.items():
            yield from flatten(value, f"{prefix}.{name}" if prefix else str(name))


def _describe_objects(path: Path, error: Exception) -> str:
    """Say which objects in a .pth file could run code when they are read."""
    try:
        names = sorted(get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a pickle that cannot be read at all
        names = []
    if not names:
        return type(error).__name__
    return f"it contains {', '.join(names[:3])}, which could run code; save the tensors of its state_dict() alone"


def apply_weights(
    encoder: nn.Module,
    source_weights: Mapping[str, torch.Tensor],
    source_bands: Sequence[str] | None,
    bands: Sequence[str],
    source: str,
) -> None:
    """Load weights with timm's or torchvision's names into an encoder; weights of a classifier or head are ignored.

    The names may have a prefix, see `select_network`. source_bands: input bands of the first layer of
    `source_weights`; if None, red, green and blue for a layer of three bands, and SENTINEL2 for one of thirteen. They
    are matched by name with `bands`, the input bands of the encoder. Raises ValueError naming `source` if weights are
    missing, unexpected or of another shape.
    """
    expected = encoder.state_dict()
    defaults: dict[str, Any] = getattr(encoder, "pretrained_cfg", {})
    dropped = {f"{name}.{part}" for name in _as_tuple(defaults.get("classifier")) for part in ("weight", "bias")}
    weights = select_network(source_weights, expected, dropped, source)
    for name, value in weights.items():
        if name in {f"{first}.weight" for first in _as_tuple(defaults.get("first_conv"))} and value.ndim == 4:
            names = source_bands or (SENTINEL2 if value.shape[1] == len(SENTINEL2) else RGB)
            if value.shape[1] == len(names):
                weights[name] = adapt_bands(value, names, bands)
    counters = {name: value for name, value in expected.items() if name.endswith(".num_batches_tracked")}
    weights = counters | weights  # torch before 0.4.1 did not write them, and evaluation does not read them
    problems = [f"{name} is missing" for name in sorted(expected.keys() - weights.keys())]
    problems += [f"{name} is unexpected" for name in sorted(weights.keys() - expected.keys())]
    problems += [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in expected.keys() & weights.keys()
        if weights[name].shape != expected[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"{source}: not weights of this model: {', '.join(problems[:3])}{more}")
    encoder.load_state_dict(weights)


AVERAGED = ("state_dict_ema", "model_ema", "teacher", "encoder_q")
"""Parts of a checkpoint that are preferred to another network of the same names: averages as in timm and DINO, and the
network that MoCo trains, which its authors evaluate."""


def select_network(
    source_weights: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    dropped: Collection[str],
    source: str,
) -> dict[str, torch.Tensor]:
    """Select the weights under the prefix that all names of an encoder have, by timm's names.

    Such prefixes are `backbone.`, `module.encoder_q.` or `state_dict.model.`. Below it, weights in `dropped`, and
    modules that the encoder lacks, such as a projection head, are left out. The result may still differ from
    `expected`: without such a prefix, it has the names under the prefix that the most names have. Raises ValueError
    naming `source` if several networks fit and none is in AVERAGED.
    """
    first = next(iter(expected))
    prefixes = {name.removesuffix(first) for name in source_weights if f".{name}".endswith(f".{first}")} or {""}
    networks = {
        prefix: {name.removeprefix(prefix): value for name, value in source_weights.items() if name.startswith(prefix)}
        for prefix in sorted(prefixes)
    }
    shared = {prefix: len(expected.keys() & names.keys()) for prefix, names in networks.items()}
    best = [prefix for prefix, count in shared.items() if count == max(shared.values())]
    for part in AVERAGED:
        best = [prefix for prefix in best if part in prefix.split(".")] or best
    if len(best) > 1:
        raise ValueError(f"{source}: several networks fit, {' and '.join(best)}; save the weights of one alone")
    modules = {name.partition(".")[0] for name in expected}
    return {
        name: value
        for name, value in networks[best[0]].items()
        if name not in dropped and name.partition(".")[0] in modules
    }


def adapt_bands(weight: torch.Tensor, source_bands: Sequence[str], bands: Sequence[str]) -> torch.Tensor:
    """Adapt a first convolution to other bands: (out, len(bands), y, x) from (out, len(source_bands), y, x).

    A band of `source_bands` keeps its weights; any other band starts from the mean over all. All weights are scaled by
    len(source_bands) / len(bands), so that the layer's output does not grow with the number of bands.
    """
    mean = weight.mean(dim=1)
    parts = [weight[:, source_bands.index(band)] if band in source_bands else mean for band in bands]
    return torch.stack(parts, dim=1) * (len(source_bands) / len(bands))


def _as_tuple(entry: Any) -> tuple[str, ...]:
    """Convert an entry of timm's configuration, which is one name, several names or None, to a tuple."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)
