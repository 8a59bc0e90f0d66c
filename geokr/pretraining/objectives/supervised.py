"""Objective `supervised`: only the label, without a teacher."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from geokr.pretraining.classifier import Classifier
from geokr.pretraining.config import TrainConfig
from geokr.pretraining.metrics import divergence
from geokr.pretraining.objectives.objective import FIRST_VIEW, PREDICT_SHARES, Part


class Supervised:
    """KL(A || p)."""

    measures: ClassVar[tuple[str, ...]] = ("kl",)
    formula: ClassVar[str] = "KL(A || p)"
    task: ClassVar[str] = PREDICT_SHARES
    passes: ClassVar[float] = 3
    takes_pairs: ClassVar[bool] = False
    takes_parts: ClassVar[bool] = True
    uses_year_gap: ClassVar[bool] = False
    normalises: ClassVar[bool] = True
    exported: ClassVar[str] = "student"

    def __init__(self, student: Classifier, config: TrainConfig, total: int) -> None:
        self.networks: Mapping[str, nn.Module] = {"student": student}
        self.memory: Mapping[str, torch.Tensor] = {}

    def losses(self, part: Part) -> torch.Tensor:
        with part.precision():
            logits, _ = part.student(part.view(FIRST_VIEW))  # (n, k)
        kl = divergence(part.target, logits.float())
        return torch.stack([kl, kl], dim=1)

    def update(self, step: int) -> None:
        """Do nothing: only the student changes."""
