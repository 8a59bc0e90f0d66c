"""Objective `simclr`: two views of a tile have similar features, and views of different tiles do not.

Chen et al. 2020. The loss compares all tiles of a step, over all processes.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from geokr.pretraining.classifier import Classifier
from geokr.pretraining.config import TrainConfig
from geokr.pretraining.objectives.objective import FIRST_VIEW, SECOND_VIEW, SIMILAR_VIEWS, Part
from geokr.pretraining.objectives.projected import Projected, make_mlp, with_probe
from geokr.pretraining.processes import gather_features, own_rows

WIDTH = 128
"""Width of the projected features."""


class SimCLR:
    """-log of the share of the other view of the tile among all other views, by exp(cosine / temperature)."""

    measures: ClassVar[tuple[str, ...]] = ("kl", "contrast")
    formula: ClassVar[str] = "NT-Xent of two views, temperature {temperature:g}"
    task: ClassVar[str] = SIMILAR_VIEWS
    passes: ClassVar[float] = 6
    takes_pairs: ClassVar[bool] = True
    takes_parts: ClassVar[bool] = False
    uses_year_gap: ClassVar[bool] = False
    normalises: ClassVar[bool] = True
    exported: ClassVar[str] = "student"

    def __init__(self, student: Classifier, config: TrainConfig, total: int) -> None:
        self.temperature = config.temperature
        features = student.head.in_features
        projector = make_mlp(features, features, WIDTH, batch_norm=True, last_batch_norm=True)
        self.networks: Mapping[str, nn.Module] = {"student": Projected(student, projector)}
        self.memory: Mapping[str, torch.Tensor] = {}

    def losses(self, part: Part) -> torch.Tensor:
        views = torch.cat([part.view(FIRST_VIEW), part.view(SECOND_VIEW)])
        with part.precision():
            logits, _, projected = part.student(views)  # (2 n, ...), one pass for both, as published
        first, second = F.normalize(projected.float(), dim=1).chunk(2)
        contrast = nt_xent(first, second, part.weight > 0, self.temperature)
        return with_probe(contrast, logits.chunk(2)[0], part.target)

    def update(self, step: int) -> None:
        """Do nothing: only the student changes."""


def nt_xent(first: torch.Tensor, second: torch.Tensor, present: torch.Tensor, temperature: float) -> torch.Tensor:
    """The normalised temperature-scaled cross-entropy of each tile of this process: (n,), mean over its two views.

    Arguments as of `compare_views`.
    """
    similarity, other = compare_views(first, second, present, temperature)
    return F.cross_entropy(similarity, other, reduction="none").view(2, -1).mean(dim=0)


def compare_views(
    first: torch.Tensor, second: torch.Tensor, present: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare the views of this process's tiles, first then second, with those of all processes.

    first, second: (n, d), projected views of length 1. present: (n,), false for empty tiles, with which no other tile
    is compared. Returns cosines divided by the temperature, (2 n, 2 N), -inf for what is not compared, such as a view
    with itself; and the column of the other view of the tile, (2 n,).
    """
    everything = torch.cat([gather_features(first), gather_features(second)])  # (2 N, d)
    absent = ~gather_features(present).repeat(2)
    own = own_rows(first)  # (n,): where this process's tiles are among all N
    total = len(everything) // 2
    itself, other = torch.cat([own, own + total]), torch.cat([own + total, own])
    hidden = absent.repeat(len(itself), 1).scatter_(1, other[:, None], False).scatter_(1, itself[:, None], True)
    similarity = torch.cat([first, second]) @ everything.T / temperature
    return similarity.masked_fill(hidden, -torch.inf), other
