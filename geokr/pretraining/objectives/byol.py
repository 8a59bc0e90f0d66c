"""Objective `byol`: the features of a view are predicted from those of the other, without comparing tiles.

Grill et al. 2020. A momentum network, the target, gives the features to predict. As published, it keeps batch-norm
statistics of its own, in training mode.
"""

import copy
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from geokr.pretraining.classifier import Classifier
from geokr.pretraining.config import TrainConfig
from geokr.pretraining.objectives.mean_teacher import ema_update
from geokr.pretraining.objectives.objective import FIRST_VIEW, SECOND_VIEW, SIMILAR_VIEWS, Part
from geokr.pretraining.objectives.projected import Projected, make_mlp, rising_momentum, with_probe

HIDDEN, WIDTH = 4096, 256
"""Widths of the hidden layer and of the projected features."""


class Predicting(Projected):
    """The student: what it projects is a prediction of the target's projected features of another view."""

    def __init__(self, student: Classifier, projector: nn.Module, predictor: nn.Module) -> None:
        super().__init__(student, projector)
        self.predictor = predictor.to(student.head.weight.device)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # type: ignore[override]
        logits, features, projected = super().forward(image)
        return logits, features, self.predictor(projected)


class BYOL:
    """2 - 2 cosine of the prediction and the target's features, for both orders of the two views."""

    measures: ClassVar[tuple[str, ...]] = ("kl", "distance")
    formula: ClassVar[str] = "2 - 2 cos of prediction and momentum features, for both orders of two views"
    task: ClassVar[str] = SIMILAR_VIEWS
    passes: ClassVar[float] = 8
    takes_pairs: ClassVar[bool] = True
    takes_parts: ClassVar[bool] = True
    uses_year_gap: ClassVar[bool] = False
    normalises: ClassVar[bool] = True
    exported: ClassVar[str] = "student"

    def __init__(self, student: Classifier, config: TrainConfig, total: int) -> None:
        self.momentum, self.total = config.momentum, total
        projector = make_mlp(student.head.in_features, HIDDEN, WIDTH, batch_norm=True)
        self.student = Predicting(student, projector, make_mlp(WIDTH, HIDDEN, WIDTH, batch_norm=True))
        self.target = Projected(copy.deepcopy(student), copy.deepcopy(projector)).requires_grad_(False).train()
        self.networks: Mapping[str, nn.Module] = {"student": self.student, "target": self.target}
        self.memory: Mapping[str, torch.Tensor] = {}

    def losses(self, part: Part) -> torch.Tensor:
        views = [part.view(FIRST_VIEW), part.view(SECOND_VIEW)]
        with part.precision():
            (logits, _, first), (_, _, second) = (part.student(view) for view in views)
        with torch.no_grad(), part.precision():
            (_, _, first_target), (_, _, second_target) = (self.target(view) for view in views)
        distance = squared_distance(first, second_target) + squared_distance(second, first_target)
        return with_probe(distance, logits, part.target)

    def update(self, step: int) -> None:
        keep = rising_momentum(step, self.total, self.momentum)
        for name in ("encoder", "projector"):
            ema_update(self.target.get_submodule(name), self.student.get_submodule(name), keep, buffers=False)


def squared_distance(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Squared distance of two features, both scaled to length 1: (n,), from two (n, d)."""
    return 2.0 - 2.0 * F.cosine_similarity(prediction.float(), target.float(), dim=1)
