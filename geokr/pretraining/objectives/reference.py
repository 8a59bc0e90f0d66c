"""Objective `reference`: exactly the loss and the teacher of the paper's published code.

Its teacher averages only the weights, not the batch-norm statistics, at steps that become less frequent, and predicts
in training mode. Both networks see the same view, which is not normalised, and their heads have different initial
weights.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import nn

from geokr.pretraining.classifier import Classifier
from geokr.pretraining.config import TrainConfig
from geokr.pretraining.metrics import disagreement, divergence
from geokr.pretraining.objectives.mean_teacher import ema_update, ramp_up
from geokr.pretraining.objectives.objective import FIRST_VIEW, PREDICT_SHARES, Part


class Reference:
    """Means over classes of -A log p and of -p log q."""

    measures: ClassVar[tuple[str, ...]] = ("kl", "disagreement")
    formula: ClassVar[str] = "mean over classes of -A log p - {consistency:g} p log q"
    task: ClassVar[str] = PREDICT_SHARES
    passes: ClassVar[float] = 4
    takes_pairs: ClassVar[bool] = False
    takes_parts: ClassVar[bool] = True
    uses_year_gap: ClassVar[bool] = False
    normalises: ClassVar[bool] = False
    exported: ClassVar[str] = "teacher"

    def __init__(self, student: Classifier, config: TrainConfig, total: int) -> None:
        self.config, self.student = config, student
        self.teacher = copy.deepcopy(student).requires_grad_(False).train()
        self.teacher.head.reset_parameters()
        self.networks: Mapping[str, nn.Module] = {"student": student, "teacher": self.teacher}
        self.memory: Mapping[str, torch.Tensor] = {}
        self.updates = update_steps(config.ema_periods, config.batch, total)

    def losses(self, part: Part) -> torch.Tensor:
        image = part.view(FIRST_VIEW)
        with part.precision():
            p, _ = part.student(image)  # (n, k) logits
        with torch.no_grad(), part.precision():
            q, _ = self.teacher(image)  # (n, k) logits
        weight = self.config.consistency * ramp_up(part.step, self.config.ramp_up * part.total)
        return reference_losses(p.float(), q.float(), part.target, weight)

    def update(self, step: int) -> None:
        if step in self.updates:
            ema_update(self.teacher, self.student, self.config.ema_decay, buffers=False)


def reference_losses(
    student: torch.Tensor, teacher: torch.Tensor, target: torch.Tensor, consistency: float
) -> torch.Tensor:
    """The loss of the paper's published code, KL(A || p) and KL(p || q) of each tile: (n, 3).

    student, teacher: (n, class) logits.

    The loss is the mean over classes of -A log p plus `consistency` times that of -p log q. These means are the
    cross-entropies of a tile divided by the number of classes. They differ from the paper's KL: the first term also
    contains the entropy of A, which has no gradient. The second also contains the entropy of p, whose gradient rewards
    a confident student.
    """
    label_terms = -target * torch.log_softmax(student, dim=1)
    teacher_terms = -torch.softmax(student, dim=1) * torch.log_softmax(teacher.detach(), dim=1)
    loss = label_terms.mean(dim=1) + consistency * teacher_terms.mean(dim=1)
    return torch.stack([loss, divergence(target, student), disagreement(student, teacher)], dim=1)


def update_steps(periods: Sequence[int], batch: int, total: int) -> frozenset[int]:
    """The steps, counted from 1, at which the published code updates its teacher in a run of `total` steps.

    It waits for `step % period == 1`, then continues with the next period. The first period is used twice, the last
    one until the end. periods: in steps of 16 tiles; with `batch` tiles, each has 16 / batch times as many steps.
    """
    lengths = [max(1, int(period / batch * 16)) for period in periods]
    updates, step = set(), 1
    while step <= total:
        updates.add(step)
        period = lengths.pop(0) if len(lengths) > 1 else lengths[0]
        step = ((step - 1) // period + 1) * period + 1
    return frozenset(updates)
