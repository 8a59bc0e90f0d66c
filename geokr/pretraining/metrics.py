"""Divergences between distributions, and metrics of predictions. Pure functions of tensors.

A: label distribution, p: output of a network, q: output of its teacher; all (n, class), rows sum to 1.
"""

import torch
import torch.nn.functional as F  # noqa: N812


def divergence(target: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(A || p) of each tile: (n,), in nats, with 0 log 0 = 0. target: A. logits: logits of p."""
    return (torch.xlogy(target, target) - target * torch.log_softmax(logits, dim=1)).sum(dim=1)


def disagreement(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(p || q) of each tile: (n,), in nats. Both arguments are logits. The teacher gets no gradient."""
    log_p, log_q = torch.log_softmax(student, dim=1), torch.log_softmax(teacher.detach(), dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def scores(logits: torch.Tensor, target: torch.Tensor, baseline: torch.Tensor) -> dict[str, torch.Tensor]:
    """Metrics as sums over tiles, float64.

    logits, target: (n, class). baseline: (class,), one distribution for all tiles. Values of shape () are kl:
    KL(A || p); kl_of_mean: KL(A || baseline); top1: number of tiles with the right largest class; tiles: n. Others are
    error: |A - p| of each class, (class,); confusion: see `confusion`, (class, class).
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
    """Confusion matrix of class shares: (true class, predicted class), sums over tiles.

    true, predicted: (n, class) shares, rows sum to 1. The smaller of the true and the predicted share of a class counts
    as correct. The remaining true shares are distributed over the remaining predicted shares in proportion. Rows
    therefore sum to the true shares and columns to the predicted shares. Equal shares give a diagonal matrix, which a
    product of the two would not (the operator MIN-PROD of Pontius & Cheuk 2006).
    """
    agreed = torch.minimum(true, predicted)
    missed, added = true - agreed, predicted - agreed
    amount = missed.sum(dim=1).clamp_min(torch.finfo(true.dtype).tiny)
    return torch.diag(agreed.sum(dim=0)) + (missed / amount[:, None]).T @ added


def neighbours(features: torch.Tensor, labelled: torch.Tensor, shares: torch.Tensor, count: int = 20) -> torch.Tensor:
    """Predict the shares of each tile from its nearest neighbours: (n, class), rows sum to 1.

    features: (n, d). labelled: (m, d), features of tiles with known `shares`, (m, class). The prediction is the mean
    over the `count` labelled tiles with the largest cosine similarity c, weighted by exp(c / 0.07) (Wu et al. 2018).
    """
    similarity = F.normalize(features.float(), dim=1) @ F.normalize(labelled.float(), dim=1).T  # (n, m)
    cosine, nearest = similarity.topk(min(count, len(labelled)), dim=1)
    weight = torch.softmax(cosine / 0.07, dim=1)
    return torch.einsum("nk,nkc->nc", weight, shares.float()[nearest])
