"""The network that is pre-trained: an encoder and a linear layer for the classes."""

import logging
from collections.abc import Sequence

import torch
from torch import nn

from geokr.dataset.layout import RGB
from geokr.encoder import build_encoder
from geokr.pretraining.config import TrainConfig
from geokr.pretraining.processes import Process, broadcast_value
from geokr.storage.inputs import local_path
from geokr.weights import apply_weights, read_weights

RANDOM = "random weights"
"""Description of the start of an encoder without weights."""

log = logging.getLogger(__name__)


class Classifier(nn.Module):
    """Class logits and features of images: (n, band, y, x) float -> (n, class), (n, feature) float.

    The softmax of the logits is the distribution p.
    """

    def __init__(self, encoder: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(features, classes)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features: torch.Tensor = self.encoder(image)
        return self.head(features), features


def build_classifier(
    name: str,
    bands: Sequence[str],
    classes: int,
    image_size: int,
    pretrained: bool | str,
    drop_path: float = 0.0,
) -> tuple[Classifier, str]:
    """Build a network, and describe the weights that its encoder starts from. pretrained, drop_path: see TrainConfig.

    Draws from torch's global generator. Raises ValueError if the weights are not available or do not fit.
    """
    encoder, start = build_encoder(name, len(bands), image_size, drop_path=drop_path), RANDOM
    if pretrained in (True, "auto"):
        try:
            source = build_encoder(name, len(RGB), image_size, weights=True)
        except Exception as error:  # without a network, each download client of timm raises its own type of error
            reason = f"timm's weights for {name} are not available ({str(error).splitlines()[0]})"
            if pretrained is True:
                raise ValueError(f"{reason}; set pretrained to a file with weights, or to false") from error
            log.warning("%s; the encoder starts at random", reason)
        else:
            start = f"timm's weights for {name}"
            apply_weights(encoder, source.state_dict(), RGB, bands, start)
    elif isinstance(pretrained, str):
        apply_weights(encoder, *read_weights(local_path(pretrained)), bands, pretrained)
        start = pretrained
    return Classifier(encoder, _output_width(encoder, name, len(bands), image_size), classes), start


def build_student(
    config: TrainConfig, classes: int, pretrained: bool | str, process: Process
) -> tuple[Classifier, str]:
    """Build the student, and describe the weights that its encoder starts from. Only rank 0 has these weights yet.

    Whether weights are available is then decided once. Raises ValueError on all processes if rank 0 cannot load them.
    """
    outcome: str | ValueError
    try:
        student, outcome = build_classifier(
            config.model, config.bands, classes, config.image_size, pretrained if process.rank == 0 else False,
            config.drop_path,
        )  # fmt: skip
    except ValueError as error:
        outcome = error
    outcome = broadcast_value(outcome, process)
    if isinstance(outcome, ValueError):
        raise outcome
    return student, outcome


def recompute_activations(encoder: nn.Module, name: str) -> None:
    """Make an encoder compute its activations again for the gradient. Raises ValueError if it has no way to."""
    try:
        encoder.set_grad_checkpointing()  # type: ignore[operator]
    except (AssertionError, AttributeError) as error:
        raise ValueError(f"{name} cannot compute its activations again: set recompute to false") from error


@torch.no_grad()
def _output_width(encoder: nn.Module, name: str, bands: int, image_size: int) -> int:
    """Number of features that the encoder returns for an image, determined by running it."""
    encoder.eval()
    try:
        shape = encoder(torch.zeros(1, bands, image_size, image_size)).shape
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"{name} does not take images of {image_size} px: {error}") from error
    encoder.train()
    if len(shape) != 2:
        raise ValueError(f"{name} returns features of shape {tuple(shape[1:])} for an image, expected a vector")
    return int(shape[1])
