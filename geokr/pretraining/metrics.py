"""How far two distributions lie apart, and how a prediction is scored. Pure functions of tensors.

A: label distribution, p: a network's output, q: its teacher's; all (n, class), rows sum to 1.
"""

import torch
import torch.nn.functional as F  # noqa: N812


def divergence(target: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(A || p) of each tile: (n,), in nats. target: A, where 0 log 0 = 0. logits: those of p."""
    return (torch.xlogy(target, target) - target * torch.log_softmax(logits, dim=1)).sum(dim=1)


def disagreement(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(p || q) of each tile: (n,), in nats. Both arguments are logits; no gradient reaches the teacher."""
    log_p, log_q = torch.log_softmax(student, dim=1), torch.log_softmax(teacher.detach(), dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def scores(logits: torch.Tensor, target: torch.Tensor, baseline: torch.Tensor) -> dict[str, torch.Tensor]:
    """Sums over tiles, float64. logits, target: (n, class). baseline: (class,), one distribution for all tiles.

    kl: KL(A || p). kl_of_mean: KL(A || baseline). top1: tiles whose largest class is right. tiles: n; all of
    shape (). error: |A - p| of each class, (class,). confusion: see `confusion`, (class, class).
    """
    logits, target = logits.double(), target.double()
    predicted = torch.softmax(logits, dim=1)
    return {
        "kl": divergence(target, logits).sum(),
        "kl_of_mean": divergence(target, baseline.double().log().expand_as(target)).sum(),
        "top1": (logits.argmax(dim=1) == target.argmax(dim=1)).double().sum(),
        "tiles": torch.tensor(float(len(target)), dtype=torch.float64, device=logits.device),
        "error": (predicted - target).abs().sum(dim=0),
        "confusion": confusion(target, predicted),
    }


def confusion(true: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """Which class's share was taken for which: (true class, predicted class), sums over tiles.

    true, predicted: (n, class) shares, rows sum to 1. What both have of a class agrees; what is left of the true
    shares is dealt out to what is left of the predicted ones in proportion. So rows sum to the true shares,
    columns to the predicted ones, and shares that agree leave nothing beside the diagonal, which a product of
    the two would (the operator MIN-PROD of Pontius & Cheuk 2006).
    """
    both = torch.minimum(true, predicted)
    missed, added = true - both, predicted - both
    amount = missed.sum(dim=1).clamp_min(torch.finfo(true.dtype).tiny)
    return torch.diag(both.sum(dim=0)) + (missed / amount[:, None]).T @ added


def neighbours(features: torch.Tensor, known: torch.Tensor, shares: torch.Tensor, count: int = 20) -> torch.Tensor:
    """What the most alike of known tiles say of each tile: (n, class), rows sum to 1.

    features: (n, d); known: (m, d), features of tiles with `shares`, (m, class). The mean of the `count` tiles with
    the largest cosine c, weighted by exp(c / 0.07) (Wu et al. 2018).
    """
    alike = F.normalize(features.float(), dim=1) @ F.normalize(known.float(), dim=1).T  # (n, m)
    cosine, which = alike.topk(min(count, len(known)), dim=1)
    weight = torch.softmax(cosine / 0.07, dim=1)
    return torch.einsum("nk,nkc->nc", weight, shares.float()[which])
