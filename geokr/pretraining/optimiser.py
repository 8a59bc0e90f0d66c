"""The optimiser of the student: which weights decay, and which share of the learning rate each layer has."""

from typing import Any

import torch
from timm.optim._param_groups import param_groups_layer_decay, param_groups_weight_decay
from timm.optim.lamb import Lamb
from torch import nn

from geokr.pretraining.config import TrainConfig


def make_optimiser(student: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Create the optimiser of the student's parameters."""
    groups = group_parameters(student, config)
    match config.optimiser:
        case "adam":
            return torch.optim.Adam(groups, lr=config.lr)
        case "sgd":
            return torch.optim.SGD(groups, lr=config.lr, momentum=0.9)
        case "lamb":
            # By default, it scales down gradients longer than 1 itself. `clip` decides about that.
            return Lamb(groups, lr=config.lr, max_grad_norm=None)
        case _:
            return torch.optim.AdamW(groups, lr=config.lr)


def group_parameters(student: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Group the student's parameters by weight decay and by share of the learning rate, `lr_scale`.

    Biases, normalisation layers and the parameters that timm names for the network (such as position embeddings) do not
    decay. Below a `layer_decay` of 1, each layer, as timm divides the network, has that share of the learning rate of
    the layer above it. The uppermost are the linear layer for the classes and what else the objective trains. With
    `start_pull`, the encoder decays towards its start instead of 0. `encoder` says whether a group is the encoder's.
    """
    parts = dict(student.named_children())
    encoder = parts.pop("encoder")
    names = _exempt_names(encoder)
    above = nn.ModuleDict(parts)
    exempt = [f"{name}.{own}" for name, part in parts.items() for own in _exempt_names(part)]
    head = param_groups_weight_decay(above, config.weight_decay, no_weight_decay_list=exempt)
    decay = 0.0 if config.start_pull else config.weight_decay
    if config.layer_decay == 1:
        groups = param_groups_weight_decay(encoder, decay, no_weight_decay_list=names)
    else:
        groups = param_groups_layer_decay(encoder, decay, no_weight_decay_list=names, layer_decay=config.layer_decay)
        for group in groups:
            group["lr_scale"] *= config.layer_decay  # timm counts from the last layer of the encoder
    return [{**group, "encoder": part is groups} for part in (groups, head) for group in part]


def _exempt_names(part: nn.Module) -> set[str]:
    return set(part.no_weight_decay()) if hasattr(part, "no_weight_decay") else set()  # type: ignore[operator]


def set_learning_rate(optimiser: torch.optim.Optimizer, encoder_rate: float, head_rate: float) -> None:
    """Set the learning rate of each group: its share of that of the encoder, or that of what is on top of it."""
    for group in optimiser.param_groups:
        group["lr"] = (encoder_rate if group["encoder"] else head_rate) * group.get("lr_scale", 1.0)
