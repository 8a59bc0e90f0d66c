"""Objective `parts`: the label of what a view shows, and the labels of the tile's parts, both with a mean teacher.

A 1 x 1 convolution on the last feature map predicts class shares at each place of a view. They are averaged over each
part of the tile that the view shows, so that a prediction and an exact label belong to the same ground whatever the
crop, and so do the predictions of the student and of the teacher, which see different views.
"""

import math
from typing import Any, ClassVar

import torch
from torch import nn

from geokr.pretraining.classifier import Classifier
from geokr.pretraining.config import TrainConfig
from geokr.pretraining.objectives.mean_teacher import MeanTeacher, mean_teacher_losses, ramp_up
from geokr.pretraining.objectives.objective import FIRST_VIEW, SECOND_VIEW, Part
from geokr.pretraining.overlap import pool

SMALLEST = 1e-6
"""Smallest share of which a logarithm is taken."""


class PartClassifier(Classifier):
    """Class logits, features, and class logits of each place of the last feature map.

    (n, band, y, x) -> (n, class), (n, feature), (n, class, places down, places across).
    """

    def __init__(self, student: Classifier, bands: int, image_size: int) -> None:
        """student: provides encoder and head. Raises ValueError if the encoder's last values do not lie on a grid."""
        nn.Module.__init__(self)
        self.encoder, self.head = student.encoder, student.head
        weight = self.head.weight
        mode = self.encoder.training
        with torch.no_grad():
            image = weight.new_zeros(1, bands, image_size, image_size)
            values = to_map(self.encoder, self.encoder.eval().forward_features(image))  # type: ignore[operator]
        self.encoder.train(mode)
        self.part_head = nn.Conv2d(values.shape[1], self.head.out_features, 1).to(weight.device)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # type: ignore[override]
        values = self.encoder.forward_features(image)  # type: ignore[operator]
        features: torch.Tensor = self.encoder.forward_head(values)  # type: ignore[operator]
        return self.head(features), features, self.part_head(to_map(self.encoder, values))


def to_map(encoder: Any, values: torch.Tensor) -> torch.Tensor:
    """Arrange what timm's `forward_features` returns as a map: (n, channel, y, x).

    Convolutional networks return maps, some with the channels last; plain transformers return tokens, prefix tokens
    first. Raises ValueError if the tokens do not lie on a square grid.
    """
    if values.ndim == 4:
        channels = encoder.num_features
        is_last = values.shape[-1] == channels and values.shape[1] != channels
        return values.permute(0, 3, 1, 2) if is_last else values
    prefix = getattr(encoder, "num_prefix_tokens", 0)
    side = math.isqrt(max(values.shape[1] - prefix, 0)) if values.ndim == 3 else 0
    if side == 0 or side * side != values.shape[1] - prefix:
        raise ValueError(f"the encoder's last values, {tuple(values.shape[1:])}, do not lie on a grid of the image")
    return values[:, prefix:].transpose(1, 2).reshape(len(values), values.shape[2], side, side)


class Parts(MeanTeacher):
    """The loss of the mean teacher, plus part_weight times the same for the parts of the tile."""

    measures: ClassVar[tuple[str, ...]] = ("kl", "disagreement", "part_kl", "part_disagreement")
    formula: ClassVar[str] = (
        "KL(A || p) + {consistency:g} KL(p || q) "
        "+ {part_weight:g} mean over parts of (known KL(A_c || p_c) + {consistency:g} KL(p_c || q_c))"
    )

    def __init__(self, student: Classifier, config: TrainConfig, total: int) -> None:
        super().__init__(PartClassifier(student, len(config.bands), config.image_size), config, total)

    def losses(self, part: Part) -> torch.Tensor:
        with part.precision():
            p, _, p_map = part.student(part.view(FIRST_VIEW))  # (n, k), (n, k, y, x) logits
        with torch.no_grad(), part.precision():
            q, _, q_map = self.teacher(part.view(SECOND_VIEW))
        overlaps = [part.overlap(view, *p_map.shape[-2:]) for view in (FIRST_VIEW, SECOND_VIEW)]
        weight = self.config.consistency * ramp_up(part.step, self.config.ramp_up * part.total)
        whole = mean_teacher_losses(p.float(), q.float(), part.target, weight)  # (n, 3)
        parts = part_losses(p_map.float(), q_map.float(), part.parts, *overlaps)  # (n, 2)
        loss = whole[:, 0] + self.config.part_weight * (parts[:, 0] + weight * parts[:, 1])
        return torch.cat([loss[:, None], whole[:, 1:], parts], dim=1)


def part_losses(
    student: torch.Tensor, teacher: torch.Tensor, parts: torch.Tensor, first: torch.Tensor, second: torch.Tensor
) -> torch.Tensor:
    """Means over the parts of a tile of known * KL(A_c || p_c) and of KL(p_c || q_c): (n, 2).

    student, teacher: (n, class, y, x) logits for two views. parts: (n, part, class), area of each class in each part.
    first, second: overlap of each view with the parts, see `measure_overlap`. A part weighs as much as the student's
    view shows of it; in the second mean, as much as the view of it that is the smaller.
    """
    p, shown = pool(torch.softmax(student, dim=1), first)
    q, seen = pool(torch.softmax(teacher.detach(), dim=1), second)
    log_p, log_q = p.clamp_min(SMALLEST).log(), q.clamp_min(SMALLEST).log()
    known = parts.sum(dim=2)
    label = parts / known[..., None].clamp_min(SMALLEST)
    kl = (torch.xlogy(label, label) - label * log_p).sum(dim=2)
    disagree = (p * (log_p - log_q)).sum(dim=2)
    return torch.stack([(shown * known * kl).sum(dim=1), (torch.minimum(shown, seen) * disagree).sum(dim=1)], dim=1)
