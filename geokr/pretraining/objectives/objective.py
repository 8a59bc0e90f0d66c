"""The interface between an objective and the run that minimises it."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from geokr.pretraining.classifier import Classifier
from geokr.pretraining.config import TrainConfig

FIRST_VIEW, SECOND_VIEW = range(2)
"""Random streams: the two views of a tile are drawn independently."""
PREDICT_SHARES = (
    "predict which share of the ground in an image belongs to each land-cover class. The labels come from a land-cover "
    "map of the same place."
)
"""`task` of the objectives that predict labels."""
SIMILAR_VIEWS = "have similar features for two views of a place, without labels."
"""`task` of the objectives that compare views."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a step's tiles, as passed to an objective."""

    student: Callable[..., Any]
    """The student as a training step calls it: wrapped in DistributedDataParallel if there are several processes. All
    trained parameters must be used in its `forward`."""
    view: Callable[[int], torch.Tensor]
    """Computes the view of a random stream: (n, band, size, size) float, normalised. If pairs are read, `SECOND_VIEW`
    shows the other date of the place."""
    uniform: Callable[[int], torch.Tensor]
    """Draws numbers in 0..1 for each tile: (n, count) float32. They depend on the seed, the step and the position of
    the tile in the step only, not on the number of processes or parts."""
    precision: Callable[[], AbstractContextManager[Any]]
    """Returns the autocast context that networks compute in."""
    target: torch.Tensor
    """Labels: (n, class) float32, rows sum to 1. If parts are read, labels of what the first view shows."""
    weight: torch.Tensor
    """(n,) float32: weights of the tiles. A weight of 0 also marks the empty tiles that fill up a batch: another tile
    must not be compared with them."""
    year_gap: torch.Tensor
    """(n,) float32: year of the map minus year of the image; NaN if unknown, or if the objective does not use it."""
    step: int
    """Number of steps done before this one."""
    total: int
    """Number of steps of the run."""
    parts: torch.Tensor
    """(n, part, class) float32: area of each class in each part of the tile, row by row; what is missing to a sum of 1
    is unknown. One part, the tile, if no parts are read."""
    overlap: Callable[[int, int, int], torch.Tensor]
    """Takes a random stream, and the height and width of a feature map. Computes the share of the view's area in each
    part and place: (n, part, height * width), see `measure_overlap`."""


class Objective(Protocol):
    """Networks, their losses, and their update after a step.

    Each objective has a file in this folder, and `objectives.choose` looks it up by name. It is created from the
    student, whose encoder the run pre-trains, the settings and the number of steps. It may put this encoder and this
    head into a network of its own with more parts to train, on the same device. Initial weights are drawn from torch's
    global generator.
    """

    measures: ClassVar[tuple[str, ...]]
    """Names of what `losses` returns in addition to the loss. The first is `kl`, KL(A || p) in nats, for the curves."""
    formula: ClassVar[str]
    """Formula of the loss for the model card, with settings in braces."""
    task: ClassVar[str]
    """What the encoder learns to do, for the model card: ends the sentence "It was pre-trained by GeoKR to"."""
    passes: ClassVar[float]
    """Computation for a tile in forward passes of the encoder: a gradient counts two."""
    takes_pairs: ClassVar[bool]
    """Whether it can use two dates of a place as the two views."""
    takes_parts: ClassVar[bool]
    """Whether a step may be computed in parts (`accumulate`). Not if a tile is compared with the others of its step."""
    uses_year_gap: ClassVar[bool]
    """Whether the loader must read the years between map and image."""
    normalises: ClassVar[bool]
    """Whether the input of the networks is normalised; otherwise the input is pixels in 0..1."""
    exported: ClassVar[str]
    """Name of the network that is validated and whose encoder is exported."""
    networks: Mapping[str, nn.Module]
    """Networks by name. The first is `student`, which the optimiser updates: a Classifier, whose `forward` may return
    more after logits and features. After a step, the batch-norm statistics of networks in training mode are averaged
    over processes."""
    memory: Mapping[str, torch.Tensor]
    """State that a checkpoint must contain in addition to the networks, such as a queue of features: tensors that are
    changed in place. They are never averaged. They must be equal on all processes, so new values must be gathered from
    all processes first."""

    def __init__(self, student: Classifier, config: TrainConfig, total: int) -> None: ...

    def losses(self, part: Part) -> torch.Tensor:
        """Compute loss and measures of each tile: (n, 1 + measures) float32. Only the student gets gradients."""

    def update(self, step: int) -> None:
        """Update the objective after an optimiser step, counted from 1."""
