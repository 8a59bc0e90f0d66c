"""Objective `geco`: the label is corrected by matrices that are learnt together with the network.

After Geographical Supervision Correction (Li, Chen & Shi, TGRS 2022), of which no code is published. Published are the
idea, a correction matrix updated together with the network, and the prior that labels change little. Ours are the form
of the matrix, one for each number of years between map and image, the start near the identity, and the penalty. Its
second prior, that land cover is aggregated in space, is left out. With `consistency`, the mean teacher is added.
"""

import copy
import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from geokr.pretraining.classifier import Classifier
from geokr.pretraining.config import TrainConfig
from geokr.pretraining.metrics import divergence
from geokr.pretraining.objectives.mean_teacher import MeanTeacher, mean_teacher_losses, ramp_up
from geokr.pretraining.objectives.objective import FIRST_VIEW, SECOND_VIEW, Part

YEARS = 10
"""Longest time between map and image with a matrix of its own, in years, in either direction."""
KEPT = 0.95
"""Share of a class that stays what it is, at the start."""


class Correction(nn.Module):
    """Corrected labels A' = A T, and a penalty on the change: (n, class), (n,).

    T[i, j] is the share of ground on the map as class i that is class j; its rows sum to 1. A tile's matrix is that of
    its year gap. Tiles of an unknown gap have one, too.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        # In a softmax over k classes, one that is larger by this has the share KEPT.
        start = math.log(KEPT * (classes - 1) / (1 - KEPT)) * torch.eye(classes)
        self.logits = nn.Parameter(start.repeat(2 * YEARS + 2, 1, 1))

    def no_weight_decay(self) -> set[str]:
        return {"logits"}  # which would pull the matrices towards equal shares

    def forward(self, label: torch.Tensor, year_gap: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """label: (n, class) shares. year_gap: (n,) years from image to map, NaN if unknown.

        The penalty is -log of the share that stays what it is, mean over the ground of the tile.
        """
        number = year_gap.round().clamp(-YEARS, YEARS) + YEARS
        number = torch.where(year_gap.isnan(), torch.full_like(number, 2 * YEARS + 1), number).long()
        log_matrix = torch.log_softmax(self.logits.float(), dim=2)[number]  # (n, class, class)
        corrected = (label[:, :, None] * log_matrix.exp()).sum(dim=1)  # no matrix product, which autocast would round
        return corrected, -(label * log_matrix.diagonal(dim1=1, dim2=2)).sum(dim=1)


class Corrected(Classifier):
    """Class logits and features of images, and with labels, the corrected labels and the penalty."""

    def __init__(self, student: Classifier) -> None:
        nn.Module.__init__(self)
        self.encoder, self.head = student.encoder, student.head
        self.correction = Correction(student.head.out_features).to(student.head.weight.device)

    def forward(  # type: ignore[override]
        self, image: torch.Tensor, label: torch.Tensor | None = None, year_gap: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        output = super().forward(image)
        return output if label is None or year_gap is None else (*output, *self.correction(label, year_gap))


class GeCo(MeanTeacher):
    """KL(A T || p) + correction * penalty on T + consistency * KL(p || q)."""

    measures: ClassVar[tuple[str, ...]] = ("kl", "disagreement", "change")
    formula: ClassVar[str] = "KL(A T || p) + {correction:g} (-log T_ii) + {consistency:g} KL(p || q)"
    uses_year_gap: ClassVar[bool] = True

    def __init__(self, student: Classifier, config: TrainConfig, total: int) -> None:
        self.config = config
        self.teacher = copy.deepcopy(student).requires_grad_(False).eval()
        self.corrected = Corrected(student)
        self.student = student  # what the teacher follows: encoder and head
        self.networks: Mapping[str, nn.Module] = {"student": self.corrected, "teacher": self.teacher}
        self.memory: Mapping[str, torch.Tensor] = {}

    def losses(self, part: Part) -> torch.Tensor:
        with part.precision():
            p, _, corrected, penalty = part.student(part.view(FIRST_VIEW), part.target, part.year_gap)
        with torch.no_grad(), part.precision():
            q, _ = self.teacher(part.view(SECOND_VIEW))
        weight = self.config.consistency * ramp_up(part.step, self.config.ramp_up * part.total)
        loss, _, disagreement = mean_teacher_losses(p.float(), q.float(), corrected, weight).T
        kl = divergence(part.target, p.float())
        change = (corrected - part.target).abs().sum(dim=1) / 2
        return torch.stack([loss + self.config.correction * penalty, kl, disagreement, change], dim=1)
