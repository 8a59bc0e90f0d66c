"""What a run minimises, and how its result is scored. Pure functions of tensors.

A: label distribution, p: student's output, q: teacher's output; all (n, class), rows sum to 1. Losses are
those of each tile: a step minimises their mean, weighted by what each tile's label is worth.
"""

import math

import torch


def divergence(target: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(A || p) of each tile: (n,), in nats. target: A, where 0 log 0 = 0. logits: those of p."""
    return (torch.xlogy(target, target) - target * torch.log_softmax(logits, dim=1)).sum(dim=1)


def disagreement(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(p || q) of each tile: (n,), in nats. Both arguments are logits; no gradient reaches the teacher."""
    log_p, log_q = torch.log_softmax(student, dim=1), torch.log_softmax(teacher.detach(), dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def ramp_up(step: int, length: float) -> float:
    """Weight of the consistency relative to its full value, rising to 1 over `length` steps.

    exp(-5 (1 - t)^2) (Laine & Aila 2017; Tarvainen & Valpola 2017).
    """
    if step >= length:
        return 1.0
    return math.exp(-5.0 * (1.0 - step / length) ** 2)


def geokr_loss(student: torch.Tensor, teacher: torch.Tensor, target: torch.Tensor, consistency: float) -> torch.Tensor:
    """KL(A || p) + consistency * KL(p || q) of each tile: (n,). student, teacher: (n, class) logits."""
    return divergence(target, student) + consistency * disagreement(student, teacher)


def reference_loss(
    student: torch.Tensor, teacher: torch.Tensor, target: torch.Tensor, consistency: float
) -> torch.Tensor:
    """The loss of the paper's published code for each tile: (n,). student, teacher: (n, class) logits.

    Means over classes of -A log p and of -p log q: cross-entropies, as many times smaller than those of a tile
    as there are classes. Less than the paper's KL by the entropy of A, which has no gradient, and more by the
    entropy of p, which has one: it rewards a student that is sure.
    """
    classes = -target * torch.log_softmax(student, dim=1)
    others = -torch.softmax(student, dim=1) * torch.log_softmax(teacher.detach(), dim=1)
    return classes.mean(dim=1) + consistency * others.mean(dim=1)
