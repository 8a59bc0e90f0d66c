"""Objective `softcon`: views of tiles have features as similar as the tiles' labels are.

After SoftCon (Wang, Albrecht & Zhu 2024), whose labels are lists of the classes in a tile. Here they are exact shares.
No code of its training is published. The loss here is ours: that of `simclr` with the similarity of labels, scaled to
a sum of 1, where `simclr` has 1 for the other view of the tile and 0 for all other tiles. For labels of one class each,
it is the supervised contrastive loss (Khosla et al. 2020).
"""

from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812

from geokr.pretraining.objectives.objective import FIRST_VIEW, SECOND_VIEW, Part
from geokr.pretraining.objectives.projected import with_probe
from geokr.pretraining.objectives.simclr import SimCLR, compare_views
from geokr.pretraining.processes import gather_features


class SoftCon(SimCLR):
    """Cross-entropy of the similarity of labels and of views, by cosine and by exp(cosine / temperature)."""

    measures: ClassVar[tuple[str, ...]] = ("kl", "contrast")
    formula: ClassVar[str] = "cross-entropy of the cosines of labels and of two views, temperature {temperature:g}"
    task: ClassVar[str] = (
        "have features for a place that are as similar to those of others as its shares of land-cover classes are to "
        "theirs. The shares come from a land-cover map."
    )

    def losses(self, part: Part) -> torch.Tensor:
        views = torch.cat([part.view(FIRST_VIEW), part.view(SECOND_VIEW)])
        with part.precision():
            logits, _, projected = part.student(views)
        first, second = F.normalize(projected.float(), dim=1).chunk(2)
        contrast = soft_contrast(first, second, part.target, part.weight > 0, self.temperature)
        return with_probe(contrast, logits.chunk(2)[0], part.target)


def soft_contrast(
    first: torch.Tensor, second: torch.Tensor, label: torch.Tensor, present: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Cross-entropy of each tile of this process: (n,), mean over its two views.

    first, second: (n, d), projected views of length 1. label: (n, class) shares. present: (n,), false for tiles that
    others are not compared with.
    """
    similarity, _ = compare_views(first, second, present, temperature)  # (2 n, 2 N)
    direction = F.normalize(label, dim=1)
    alike = (direction @ gather_features(direction).T).repeat(2, 2)
    alike = alike.masked_fill(similarity.isneginf(), 0.0)
    alike = alike / alike.sum(dim=1, keepdim=True).clamp_min(1e-9)  # an empty tile has no label
    log_share = torch.log_softmax(similarity, dim=1).masked_fill(similarity.isneginf(), 0.0)
    return -(alike * log_share).sum(dim=1).view(2, -1).mean(dim=0)
