"""Does training wait for tiles? Steps with batches from shards, beside steps with one batch that stays on the device.

The same learner takes both kinds in turn. On a GPU: ResNet-50 at 256 px in bf16, and what share of the GPU's dense
bf16 peak its multiplications are (counted by torch for a forward pass; a step is three of them for the student and
one for the teacher). On a processor: a small network.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.tiles import dataset
from geokr.loading.loader import Batch, TileLoader
from geokr.loading.selection import Selection
from geokr.pretraining.config import TrainConfig, configure
from geokr.pretraining.learner import Learner, create_learner, gather_facts, train_step
from geokr.pretraining.processes import Process, process_group

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
"""Part of a GPU's name -> dense bf16 peak, TFLOP/s, of its maker's data sheet; the first that fits."""

GPU = ["model=resnet50", "image_size=256", "batch=256", "prefetch=8", "steps=1000000"]
PROCESSOR = ["model=resnet10t", "image_size=64", "batch=32", "steps=1000000"]


def main(argv: list[str]) -> int:
    """The command. Exit status 1 on a GPU where more than 3 % of the time is spent waiting for tiles."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks step", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=0, help="steps a round (30 on a GPU, otherwise 4)")
    parser.add_argument("--keep", type=Path, help="folder for the data set, otherwise temporary")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="training settings to try")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary, process_group() as place:
        source, pixels = dataset(options.keep or Path(temporary))
        gpu = place.device.type == "cuda"
        config = configure(pairs=[*(GPU if gpu else PROCESSOR), *options.settings])
        learner = learner_of(source, config, place)
        shards = endless(learner.training)
        host = next(shards)
        held = Batch(*(getattr(host, name).to(place.device) for name in ("image", "share", "known", "weight")))
        steps = options.steps or (30 if gpu else 4)
        rate(learner, iter([held] * 10), steps=10 if gpu else 1)  # cudnn's choice of kernels, compilation
        real, constant = [], []
        for _ in range(options.rounds):
            real.append(rate(learner, shards, steps))
            constant.append(rate(learner, iter([held] * steps), steps))
        ratio = statistics.median(a / b for a, b in zip(real, constant, strict=True))
        name = torch.cuda.get_device_name(place.device) if gpu else "processor"
        print(
            f"case=step-{config.model}-{config.image_size} ours={statistics.median(real):.1f} "
            f"peer={statistics.median(constant):.1f} unit=tiles/s ratio={ratio:.3f} "
            f"device={name.replace(' ', '-')} pixels={pixels}"
        )
        if gpu:
            print(share_of_peak(learner, name, statistics.median(real)))
        return 1 if gpu and ratio < 0.97 else 0


def learner_of(source: Path, config: TrainConfig, place: Process) -> Learner:
    """A learner before its first step; the training tiles serve as held-out ones, which nothing here looks at."""
    training = TileLoader(source, Selection("train"), bands=config.bands, batch=config.batch, prefetch=config.prefetch)
    return create_learner(config, place, training, training, gather_facts(training, training))


def endless(training: TileLoader) -> Iterator[Batch]:
    for epoch in count():
        yield from training.epoch(epoch)


def rate(learner: Learner, batches: Iterator[Batch], steps: int) -> float:
    """Tiles a second over some steps."""
    began = time.perf_counter()
    for _ in range(steps):
        learner.step = 0  # the same point of every schedule, and no window of losses that fills up
        train_step(learner, next(batches))
    if learner.process.device.type == "cuda":
        torch.cuda.synchronize()
    return steps * learner.config.batch / (time.perf_counter() - began)


def share_of_peak(learner: Learner, name: str, tiles: float) -> str:
    """A line on what part of the GPU's dense bf16 peak the multiplications of that many tiles a second are."""
    config, device = learner.config, learner.process.device
    image = torch.zeros(1, len(config.bands), config.image_size, config.image_size, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        learner.student(image)
    passes = 2 + len(learner.objective.networks)
    work = passes * counter.get_total_flops() * tiles / 1e12  # TFLOP/s
    peak = next((peak for part, peak in PEAK.items() if part in name), None)
    if peak is None:
        return f"case=step-share-of-peak ours={work:.0f} unit=TFLOP/s peak=unknown device={name.replace(' ', '-')}"
    return (
        f"case=step-share-of-peak ours={work:.0f} peer={peak} unit=TFLOP/s ratio={work / peak:.3f} "
        f"device={name.replace(' ', '-')}"
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
