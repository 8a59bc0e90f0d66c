"""Objective `geokr`: the label, and consistency with a mean teacher.

The teacher is a moving average of the student (Tarvainen & Valpola 2017). Ours averages batch-norm statistics along
with the weights, since both belong to the same network, and predicts in evaluation mode: its answer for a tile then
depends on that tile alone, it is the answer of the network that is exported, and it costs no statistics of its own.
"""

import copy
import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from geokr.pretraining.classifier import Classifier
from geokr.pretraining.config import TrainConfig
from geokr.pretraining.metrics import disagreement, divergence
from geokr.pretraining.objectives.objective import FIRST_VIEW, SECOND_VIEW, Part


class MeanTeacher:
    """KL(A || p) + consistency * KL(p || q), where q is the teacher's answer for another view."""

    measures: ClassVar[tuple[str, ...]] = ("kl", "disagreement")
    formula: ClassVar[str] = "KL(A || p) + {consistency:g} KL(p || q)"
    takes_pairs: ClassVar[bool] = True
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
        ema_update(self.teacher, self.student, ema_decay(step, self.config.ema), buffers=True)


def mean_teacher_losses(
    student: torch.Tensor, teacher: torch.Tensor, target: torch.Tensor, consistency: float
) -> torch.Tensor:
    """KL(A || p) + consistency * KL(p || q), KL(A || p) and KL(p || q) of each tile: (n, 3).

    student, teacher: (n, class) logits.
    """
    kl, disagree = divergence(target, student), disagreement(student, teacher)
    return torch.stack([kl + consistency * disagree, kl, disagree], dim=1)


def ramp_up(step: int, length: float) -> float:
    """Weight of the consistency relative to its full value, rising to 1 over `length` steps.

    exp(-5 (1 - t)^2) (Laine & Aila 2017; Tarvainen & Valpola 2017).
    """
    if step >= length:
        return 1.0
    return math.exp(-5.0 * (1.0 - step / length) ** 2)


def ema_decay(step: int, limit: float) -> float:
    """The share of itself that the teacher keeps after optimiser step `step`, counted from 1.

    min(1 - 1 / (step + 1), limit): early on an even mean of all students so far, which forgets the random start.
    """
    return min(1.0 - 1.0 / (step + 1), limit)


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, keep: float, *, buffers: bool) -> None:
    """Move the teacher towards the student: theta_t = keep * theta_t + (1 - keep) * theta_s.

    buffers: floating-point ones are averaged too, and the others copied; without it they are left alone.
    """
    pairs = list(zip(teacher.parameters(), student.parameters(), strict=True))
    if buffers:
        for mine, its in zip(teacher.buffers(), student.buffers(), strict=True):
            if mine.is_floating_point():
                pairs.append((mine, its))  # type: ignore[arg-type]
            else:
                mine.copy_(its)
    torch._foreach_lerp_([local_tensor(mine) for mine, _ in pairs], [local_tensor(its) for _, its in pairs], 1.0 - keep)


def local_tensor(value: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor; both networks are shared out alike."""
    return value.to_local() if isinstance(value, DTensor) else value
