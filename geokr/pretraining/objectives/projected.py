"""The network of objectives that learn without labels, and what they have in common."""

import math
from itertools import pairwise

import torch
from torch import nn

from geokr.pretraining.classifier import Classifier
from geokr.pretraining.metrics import divergence


class Projected(Classifier):
    """Class logits, features and projected features: (n, band, y, x) -> (n, class), (n, feature), (n, projected).

    The head for the classes is a linear probe: it learns from the labels, but no gradient of its goes on to the
    encoder. A run without labels thus has the same curves and validation as one with labels. (Only `clip` counts it in:
    its gradient is part of a step's norm.)
    """

    def __init__(self, student: Classifier, projector: nn.Module) -> None:
        """student: provides encoder and head. projector: put on its device."""
        nn.Module.__init__(self)
        self.encoder, self.head = student.encoder, student.head
        self.projector = projector.to(student.head.weight.device)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # type: ignore[override]
        features: torch.Tensor = self.encoder(image)
        return self.head(features.detach()), features, self.projector(features)


def make_mlp(*widths: int, batch_norm: bool, last_batch_norm: bool = False) -> nn.Sequential:
    """Linear layers of these widths, each but the last followed by batch normalisation, if wanted, and ReLU.

    last_batch_norm: whether the last layer is also normalised. A layer has no bias before batch normalisation, which
    would remove it again.
    """
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise(widths)):
        last = number == len(widths) - 2
        normalised = last_batch_norm if last else batch_norm
        layers.append(nn.Linear(before, after, bias=not normalised))
        if normalised:
            layers.append(nn.BatchNorm1d(after))
        if not last:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def with_probe(loss: torch.Tensor, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Loss and measures of an objective without labels: the loss plus the probe's KL, that KL, and the loss: (n, 3)."""
    kl = divergence(target, logits.float())
    return torch.stack([loss + kl, kl, loss], dim=1)


def rising_momentum(step: int, total: int, start: float) -> float:
    """The share of its own weights that a momentum network keeps after step `step`, counted from 1.

    It rises from `start` to 1 over the run by half a cosine (Grill et al. 2020).
    """
    return 1.0 - (1.0 - start) * (math.cos(math.pi * step / total) + 1.0) / 2.0
