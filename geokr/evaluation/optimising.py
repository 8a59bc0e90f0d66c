"""How all networks of an evaluation are trained: AdamW with a warm-up and half a cosine."""

import math
from collections.abc import Iterable

import torch
from torch import nn

WARM_UP = 0.1
"""Share of the steps over which the learning rate rises."""


class Optimiser:
    """The optimiser of a network for a number of steps."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, steps: int, clip: float = math.inf
    ) -> None:
        """lr: the highest learning rate. clip: largest norm of a gradient, to which larger ones are scaled down.

        Parameters without a gradient are not trained.
        """
        self.trained, self.clip = [parameter for parameter in parameters if parameter.requires_grad], clip
        self.optimiser = torch.optim.AdamW(self.trained, lr=lr, weight_decay=weight_decay)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: scale_rate(step, steps))

    def step(self, loss: torch.Tensor) -> None:
        """Change the parameters by the gradient of a loss."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if math.isfinite(self.clip):
            nn.utils.clip_grad_norm_(self.trained, self.clip)
        self.optimiser.step()
        self.schedule.step()


def scale_rate(step: int, steps: int) -> float:
    """Share of the learning rate at a step, counted from 0: a linear rise, then half a cosine down to 0."""
    rise = WARM_UP * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))
