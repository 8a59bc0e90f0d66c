"""The mean teacher: a moving average of the student (Tarvainen & Valpola 2017).

Ours averages batch-norm statistics along with the weights, since both belong to the same network, and
predicts in evaluation mode: its answer for a tile then depends on that tile alone, it is the answer of
the network that is exported, and it costs no statistics of its own. The published code's averages
weights alone and predicts in training mode.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def keep_at(step: int, limit: float) -> float:
    """The share of itself that the teacher keeps after optimiser step `step`, counted from 1.

    min(1 - 1 / (step + 1), limit): early on an even mean of all students so far, which forgets the random start.
    """
    return min(1.0 - 1.0 / (step + 1), limit)


def reference_updates(periods: Sequence[int], batch: int, total: int) -> frozenset[int]:
    """At which steps, counted from 1, the published code updates its teacher in a run of `total` steps.

    It waits for `step % period == 1`, then takes the next period; the first one serves twice, the last for
    ever. periods: in steps of 16 tiles, so that at `batch` tiles each lasts 16 / batch times as many steps.
    """
    lengths = [max(1, int(period / batch * 16)) for period in periods]
    updates, step = set(), 1
    while step <= total:
        updates.add(step)
        period = lengths.pop(0) if len(lengths) > 1 else lengths[0]
        step = ((step - 1) // period + 1) * period + 1
    return frozenset(updates)


@torch.no_grad()
def average(teacher: nn.Module, student: nn.Module, keep: float, *, buffers: bool) -> None:
    """Move the teacher towards the student: theta_t = keep * theta_t + (1 - keep) * theta_s.

    buffers: floating-point ones are averaged too, and the others copied; without it they are left alone.
    """
    pairs = list(zip(teacher.parameters(), student.parameters(), strict=True))
    if buffers:
        for mine, its in zip(teacher.buffers(), student.buffers(), strict=True):
            if mine.is_floating_point():
                pairs.append((mine, its))  # type: ignore[arg-type]
            else:
                mine.copy_(its)
    torch._foreach_lerp_([own(mine) for mine, _ in pairs], [own(its) for _, its in pairs], 1.0 - keep)


def own(value: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor; both networks are shared out alike."""
    return value.to_local() if isinstance(value, DTensor) else value
