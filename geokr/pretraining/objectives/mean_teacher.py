"""Objective `geokr`: the label, and consistency with a mean teacher.

The teacher is a moving average of the student (Tarvainen & Valpola 2017). This one averages the batch-norm statistics
together with the weights, since both belong to the same network, and predicts in evaluation mode. Its prediction for a
tile then depends on that tile only, it is the prediction of the exported network, and the teacher needs no batch
statistics of its own.
"""

import copy
import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from geokr.pretraining.classifier import Classifier
from geokr.pretraining.config import TrainConfig
from geokr.pretraining.metrics import disagreement, divergence
from geokr.pretraining.objectives.objective import FIRST_VIEW, PREDICT_SHARES, SECOND_VIEW, Part
from geokr.pretraining.processes import local_tensor


class MeanTeacher:
    """KL(A || p) + consistency * KL(p || q), where q is the teacher's prediction for another view."""

    measures: ClassVar[tuple[str, ...]] = ("kl", "disagreement")
    formula: ClassVar[str] = "KL(A || p) + {consistency:g} KL(p || q)"
    task: ClassVar[str] = PREDICT_SHARES
    passes: ClassVar[float] = 4
    takes_pairs: ClassVar[bool] = True
    takes_parts: ClassVar[bool] = True
    uses_year_gap: ClassVar[bool] = False
    normalises: ClassVar[bool] = True
    exported: ClassVar[str] = "teacher"

    def __init__(self, student: Classifier, config: TrainConfig, total: int) -> None:
        self.config, self.student = config, student
        self.teacher = copy.deepcopy(student).requires_grad_(False).eval()
        self.networks: Mapping[str, nn.Module] = {"student": student, "teacher": self.teacher}
        self.memory: Mapping[str, torch.Tensor] = {}

    def losses(self, part: Part) -> torch.Tensor:
        with part.precision():
            p, _ = part.student(part.view(FIRST_VIEW))  # (n, k) logits
        with torch.no_grad(), part.precision():
            q, _ = self.teacher(part.view(SECOND_VIEW))  # (n, k) logits
        weight = self.config.consistency * ramp_up(part.step, self.config.ramp_up * part.total)
        return mean_teacher_losses(p.float(), q.float(), part.target, weight)

    def update(self, step: int) -> None:
        ema_update(self.teacher, self.student, ema_decay(step, self.config.ema_horizon), buffers=True)


def mean_teacher_losses(
    student: torch.Tensor, teacher: torch.Tensor, target: torch.Tensor, consistency: float
) -> torch.Tensor:
    """KL(A || p) + consistency * KL(p || q), KL(A || p) and KL(p || q) of each tile: (n, 3).

    student, teacher: (n, class) logits.
    """
    kl, disagree = divergence(target, student), disagreement(student, teacher)
    return torch.stack([kl + consistency * disagree, kl, disagree], dim=1)


def ramp_up(step: int, length: float) -> float:
    """The weight of the consistency relative to its full value, which rises to 1 over `length` steps.

    exp(-5 (1 - t)^2) (Laine & Aila 2017; Tarvainen & Valpola 2017).
    """
    if step >= length:
        return 1.0
    return math.exp(-5.0 * (1.0 - step / length) ** 2)


def ema_decay(step: int, horizon: float) -> float:
    """The share of its own weights that the teacher keeps after optimiser step `step`, counted from 1.

    1 - 1 / (1 + horizon * step). The teacher averages over about `horizon` of the steps so far, so that it forgets the
    start and earlier students at the pace at which the run goes on: weights of the student of step s are proportional
    to s^(1 / horizon - 1), a power function (Karras et al. 2024). A constant decay forgets the start only after a fixed
    number of steps, which a short run does not have.
    """
    return 1.0 - 1.0 / (1.0 + horizon * step)


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, keep: float, *, buffers: bool) -> None:
    """Move the teacher towards the student: theta_t = keep * theta_t + (1 - keep) * theta_s.

    buffers: if true, floating-point buffers are averaged too and all other buffers are copied; otherwise the teacher's
    buffers do not change.
    """
    pairs = list(zip(teacher.parameters(), student.parameters(), strict=True))
    if buffers:
        for average, current in zip(teacher.buffers(), student.buffers(), strict=True):
            if average.is_floating_point():
                pairs.append((average, current))  # type: ignore[arg-type]
            else:
                average.copy_(current)
    averages, currents = (
        [local_tensor(average) for average, _ in pairs],
        [local_tensor(current) for _, current in pairs],
    )
    torch._foreach_lerp_(averages, currents, 1.0 - keep)
