"""Objective `moco`: a view of a tile has similar features to another view of it, and not to tiles of earlier steps.

MoCo v2 (He et al. 2020, Chen et al. 2020): a momentum network gives the features that are compared with, and a queue of
them replaces the large batch. Here the momentum network averages the batch-norm statistics, too, and predicts in
evaluation mode (Cai et al. 2021). Its features of a tile then depend on that tile only, so that no tiles have to be
shuffled between processes to keep batch normalisation from telling which belong together.
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
from geokr.pretraining.processes import gather_features

WIDTH = 128
"""Width of the projected features."""


class MoCo:
    """-log of the share of the other view of the tile among it and the queue, by exp(cosine / temperature)."""

    measures: ClassVar[tuple[str, ...]] = ("kl", "contrast")
    formula: ClassVar[str] = "InfoNCE with a queue of {queue}, temperature {temperature:g}"
    task: ClassVar[str] = SIMILAR_VIEWS
    passes: ClassVar[float] = 4
    takes_pairs: ClassVar[bool] = True
    takes_parts: ClassVar[bool] = True
    uses_year_gap: ClassVar[bool] = False
    normalises: ClassVar[bool] = True
    exported: ClassVar[str] = "student"

    def __init__(self, student: Classifier, config: TrainConfig, total: int) -> None:
        self.config, self.total = config, total
        features = student.head.in_features
        self.student = Projected(student, make_mlp(features, features, WIDTH, batch_norm=False))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        self.networks: Mapping[str, nn.Module] = {"student": self.student, "teacher": self.teacher}
        device = student.head.weight.device
        self.queue = torch.zeros(config.queue, WIDTH, device=device)
        self.filled = torch.zeros(config.queue, dtype=torch.bool, device=device)
        self.memory: Mapping[str, torch.Tensor] = {"queue": self.queue, "filled": self.filled}
        self.step_keys: list[tuple[torch.Tensor, torch.Tensor]] = []

    def losses(self, part: Part) -> torch.Tensor:
        with part.precision():
            logits, _, query = part.student(part.view(FIRST_VIEW))
        with torch.no_grad(), part.precision():
            _, _, key = self.teacher(part.view(SECOND_VIEW))
        query, key = (F.normalize(features.float(), dim=1) for features in (query, key))  # (n, d)
        self.step_keys.append((key, part.weight > 0))
        return with_probe(info_nce(query, key, self.queue, self.filled, self.config.temperature), logits, part.target)

    def update(self, step: int) -> None:
        ema_update(self.teacher, self.student, rising_momentum(step, self.total, self.config.momentum), buffers=True)
        for values, memory in zip(zip(*self.step_keys, strict=True), (self.queue, self.filled), strict=True):
            newest = gather_features(torch.cat(values))
            memory.copy_(torch.cat([newest, memory])[: len(memory)])
        self.step_keys.clear()


def info_nce(
    query: torch.Tensor, key: torch.Tensor, queue: torch.Tensor, filled: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Cross-entropy of finding the key of each query among it and the queue: (n,).

    query, key: (n, d), and queue: (m, d), features of length 1. filled: (m,), false where the queue holds no feature.
    """
    positive = (query * key).sum(dim=1, keepdim=True)  # (n, 1)
    negative = (query @ queue.T).masked_fill(~filled, -torch.inf)  # (n, m)
    logits = torch.cat([positive, negative], dim=1) / temperature
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64), reduction="none")
