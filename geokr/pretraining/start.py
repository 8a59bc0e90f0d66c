"""What a run keeps of the encoder that it started from: settings against forgetting more than is learnt."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from geokr.pretraining.classifier import RANDOM
from geokr.pretraining.config import TrainConfig
from geokr.pretraining.processes import local_tensor

START = "start"
"""Name of the starting encoder among the networks of a run."""
LEARN_SHARES = frozenset({"geokr", "supervised", "parts", "geco"})
"""Objectives that keep what the start knows unless the settings say otherwise: they learn class shares, and it is no
published formula of theirs to start anew."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of the start, where the settings leave it open: measured in docs/training.md."""

    distil: float
    statistics: bool


def choose_kept(config: TrainConfig, start: str) -> Kept:
    """Decide what is kept. start: description of the weights that the encoder started from."""
    by_default = start != RANDOM and config.objective in LEARN_SHARES
    return Kept(
        distil=float(by_default) if config.distil is None else config.distil,
        statistics=by_default if config.start_statistics is None else config.start_statistics,
    )


def copy_start(student: nn.Module, config: TrainConfig, kept: Kept) -> dict[str, nn.Module]:
    """Copy the student's encoder before its first step, if a setting needs it, as the network `start`."""
    if not (config.start_pull or kept.distil or config.interpolate):
        return {}
    return {START: copy.deepcopy(student.get_submodule("encoder")).requires_grad_(False).eval()}


def fix_statistics(network: nn.Module) -> None:
    """Let the encoder's batch normalisation use the statistics that it has, in training, too, and not change them."""
    for module in network.get_submodule("encoder").modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def pull_to_start(optimiser: torch.optim.Optimizer, encoder: nn.Module, start: nn.Module, strength: float) -> None:
    """After each step of the optimiser, move the encoder's weights towards those of the start.

    w = w + rate * strength * (w_start - w): a penalty on the squared distance from the start (L2-SP, Li, Grandvalet &
    Davoine 2018), decoupled from the gradient as AdamW does it with weight decay.
    """
    starts = dict(zip(encoder.parameters(), start.parameters(), strict=True))

    @torch.no_grad()
    def pull(optimiser: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimiser.param_groups:
            weights = [weight for weight in group["params"] if weight in starts]
            if weights:
                ends = [local_tensor(starts[weight]) for weight in weights]
                share = min(1.0, float(group["lr"]) * strength)
                torch._foreach_lerp_([local_tensor(weight) for weight in weights], ends, share)

    optimiser.register_step_post_hook(pull)


class Watched:
    """A student whose calls are recorded, to compare its features with those of the start for the same views."""

    def __init__(self, student: Callable[..., Any]) -> None:
        self.student = student
        self.calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, image: torch.Tensor, *arguments: Any) -> Any:
        outputs = self.student(image, *arguments)
        self.calls.append((image, outputs[1]))
        return outputs

    def distance(self, start: nn.Module) -> torch.Tensor:
        """1 - cosine of the features of student and start for each tile, mean over its views: (n,).

        Gradients go to the student only. The objective may pass all first views and then all second ones at once.
        """
        parts = []
        for image, features in self.calls:
            with torch.no_grad():
                before = start(image)
            parts.append(1.0 - F.cosine_similarity(features.float(), before.float(), dim=1))
        return torch.cat(parts)


def interpolate(start: Mapping[str, torch.Tensor], end: Mapping[str, torch.Tensor], share: float) -> dict[str, Any]:
    """Weights and statistics between two states of a network: `share` of the end, and the rest of the start.

    What is no floating-point number is that of the end.
    """
    return {
        name: torch.lerp(start[name].to(value), value, share) if value.is_floating_point() else value
        for name, value in end.items()
    }
