"""What an objective is to the run that minimises it."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from geokr.pretraining.classifier import Classifier
from geokr.pretraining.config import TrainConfig

FIRST_VIEW, SECOND_VIEW = range(2)
"""Streams of random numbers: two views of a tile are drawn independently."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a step's tiles, as an objective sees it."""

    student: nn.Module
    """The objective's student as a step calls it: inside DistributedDataParallel where there are several processes."""
    view: Callable[[int], torch.Tensor]
    """The view of a stream: (n, band, size, size) float, normalised. Of `SECOND_VIEW` it shows the other date of a
    place where pairs are read."""
    precision: Callable[[], AbstractContextManager[Any]]
    """The context that networks compute in."""
    target: torch.Tensor
    """(n, class) float32, rows sum to 1: the label."""
    step: int
    """Steps done before this one."""
    total: int
    """Steps that the run has."""


class Objective(Protocol):
    """Networks, their losses, and what becomes of them after a step.

    A file in this folder holds one, and `objectives.choose` names it. It is made from the student, whose encoder a
    run pre-trains, the settings and the number of steps; its own draws come from torch's global generator.
    """

    measures: ClassVar[tuple[str, ...]]
    """What `losses` gives beside the loss. The first is `kl`, KL(A || p) in nats, which the curves show."""
    formula: ClassVar[str]
    """The loss, for the model card; settings in braces."""
    takes_pairs: ClassVar[bool]
    """Whether two dates of a place can be its two views."""
    normalises: ClassVar[bool]
    """Whether the networks' input is normalised; otherwise pixels in 0..1 go in as they are."""
    exported: ClassVar[str]
    """Name of the network that is validated, and whose encoder is exported."""
    networks: Mapping[str, nn.Module]
    """By name. The first is `student`, which the optimiser moves. Batch-norm statistics of those in training mode are
    averaged over processes after a step."""
    memory: Mapping[str, torch.Tensor]
    """What a checkpoint must hold beside the networks, such as a queue of features: tensors that are changed in place.
    They are never averaged. All processes must hold the same: what one of them adds, it gathers from all."""

    def __init__(self, student: Classifier, config: TrainConfig, total: int) -> None: ...

    def losses(self, part: Part) -> torch.Tensor:
        """The loss of each tile, and the measures: (n, 1 + measures) float32. Gradients reach the student alone."""

    def update(self, step: int) -> None:
        """What changes after an optimiser's step, counted from 1."""
