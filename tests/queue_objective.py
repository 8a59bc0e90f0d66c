"""An objective with a memory: its loss depends on a queue of features, as in contrastive learning."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.distributed as dist

from geokr.pretraining.classifier import Classifier
from geokr.pretraining.config import TrainConfig
from geokr.pretraining.metrics import divergence
from geokr.pretraining.objectives.objective import FIRST_VIEW, Part
from geokr.pretraining.objectives.supervised import Supervised

LENGTH = 6


class Queue(Supervised):
    """KL(A || p) plus the distance from the queue's mean. Each step queues the mean logits of every process."""

    measures: ClassVar[tuple[str, ...]] = ("kl", "distance")

    def __init__(self, student: Classifier, config: TrainConfig, total: int) -> None:
        super().__init__(student, config, total)
        device = student.head.weight.device
        self.queue = torch.zeros(LENGTH, student.head.out_features, device=device)
        self.memory: Mapping[str, torch.Tensor] = {"queue": self.queue}
        self.mean = self.queue[0].clone()

    def losses(self, part: Part) -> torch.Tensor:
        with part.precision():
            logits, _ = part.student(part.view(FIRST_VIEW))
        self.mean = logits.detach().mean(dim=0)
        kl, distance = divergence(part.target, logits), (logits - self.queue.mean(dim=0)).square().sum(dim=1)
        return torch.stack([kl + 0.1 * distance, kl, distance], dim=1)

    def update(self, step: int) -> None:
        means = [self.mean]
        if dist.is_initialized():
            means = [torch.empty_like(self.mean) for _ in range(dist.get_world_size())]
            dist.all_gather(means, self.mean)
        self.queue.copy_(torch.cat([torch.stack(means), self.queue])[:LENGTH])
