"""Which share of a GPU's peak a run reaches, and a trace of a few of its steps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch.profiler import profile, schedule
from torch.utils.flop_counter import FlopCounterMode

from geokr.pretraining.classifier import build_classifier
from geokr.pretraining.learner import Learner
from geokr.pretraining.processes import Process

PROFILE = "profile"
"""Directory of a run with a trace of each process."""
BEFORE, WARM_UP, TRACED = 10, 2, 5
"""Steps before a trace, steps for which the profiler runs without keeping anything, and steps in the trace."""

PEAK = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "A10G": 70,
    "L40S": 362,
    "L4": 121,
    "RTX 4090": 165,
    "RTX 3090": 71,
}
"""Part of a GPU's name -> dense bf16 peak from its data sheet, TFLOP/s. The first entry that matches counts."""


def peak_share(learner: Learner, tiles_per_s: float) -> float | None:
    """Share of the GPUs' dense bf16 peak that a run reaches; None on a device whose peak is not known."""
    device = learner.process.device
    peak = find_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if peak is None:
        return None
    return count_flops(learner) * tiles_per_s / learner.process.world / (peak * 1e12)


def find_peak(device: str) -> int | None:
    """Dense bf16 peak of a GPU, TFLOP/s, by its name."""
    return next((peak for part, peak in PEAK.items() if part in device), None)


def count_flops(learner: Learner) -> int:
    """Floating-point operations of a step for one tile.

    Those of a forward pass as often as the objective says; what it puts on top of the encoder does not count.
    """
    config = learner.config
    forward = _count_forward(config.model, config.bands, len(learner.facts.classes), config.image_size)
    return round(learner.objective.passes * forward)


@cache
def _count_forward(model: str, bands: tuple[str, ...], classes: int, image_size: int) -> int:
    """Floating-point operations of a forward pass for one tile, counted by torch on a network without weights."""
    with torch.device("meta"), torch.no_grad():
        network, _ = build_classifier(model, bands, classes, image_size, False)
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, len(bands), image_size, image_size))
    return int(counter.get_total_flops())


@contextmanager
def trace_steps(run: Path, process: Process) -> Iterator[Callable[[], None]]:
    """Trace a few steps of a run for chrome://tracing or Perfetto. Call the result after each step."""

    def export(profiler: profile) -> None:
        path = run / PROFILE / f"rank{process.rank}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(path))

    steps = schedule(wait=BEFORE, warmup=WARM_UP, active=TRACED, repeat=1)
    with profile(schedule=steps, on_trace_ready=export) as profiler:
        yield profiler.step
