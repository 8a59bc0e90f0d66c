"""What a run minimises, and how its result is scored. Pure functions of tensors.

A: label distribution, p: student's output, q: teacher's output; all (n, class), rows sum to 1.
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


def geokr_loss(student: torch.Tensor, teacher: torch.Tensor, target: torch.Tensor, weight: float) -> torch.Tensor:
    """KL(A || p) + weight * KL(p || q), mean over tiles: scalar. student, teacher: (n, class) logits."""
    return divergence(target, student).mean() + weight * disagreement(student, teacher).mean()


def reference_loss(student: torch.Tensor, teacher: torch.Tensor, target: torch.Tensor, weight: float) -> torch.Tensor:
    """The loss of the paper's published code: scalar. student, teacher: (n, class) logits.

    Means over tiles and classes of -A log p and of -p log q: cross-entropies, as many times smaller than
    those of a tile as there are classes. Less than the paper's KL by the entropy of A, which has no gradient,
    and more by the entropy of p, which has one: it rewards a student that is sure.
    """
    classes = -target * torch.log_softmax(student, dim=1)
    consistency = -torch.softmax(student, dim=1) * torch.log_softmax(teacher.detach(), dim=1)
    return classes.mean() + weight * consistency.mean()


def scores(logits: torch.Tensor, target: torch.Tensor, baseline: torch.Tensor) -> torch.Tensor:
    """Sums over tiles, (5,) float64: KL(A || p), KL(A || baseline), most frequent class right, |A - p|, tiles.

    logits, target: (n, class). baseline: (class,), one distribution for all tiles. |A - p| is the mean over classes.
    """
    logits, target = logits.double(), target.double()
    return torch.stack(
        [
            divergence(target, logits).sum(),
            divergence(target, baseline.double().log().expand_as(target)).sum(),
            (logits.argmax(dim=1) == target.argmax(dim=1)).double().sum(),
            (torch.softmax(logits, dim=1) - target).abs().mean(dim=1).sum(),
            torch.tensor(len(target), dtype=torch.float64, device=logits.device),
        ]
    )
