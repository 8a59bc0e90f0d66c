"""Does training wait for tiles? Steps on batches from shards, against steps on one batch that stays on the device.

The same learner takes both kinds of steps in turn. On a GPU it is a ResNet-50 at 256 px in bf16, and the benchmark also
prints its multiplications as a share of the GPU's dense bf16 peak. Torch counts them for a forward pass; a step is
three such passes for the student and one for the teacher. On a CPU it is a small network. On any machine it prints
kernels, bytes and blocking copies of a step and of a view as a GPU would compute them: see `benchmarks.counting`.
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

from benchmarks.counting import count_step, count_view
from benchmarks.tiles import dataset
from geokr.loading.device import device_batches
from geokr.loading.loader import Batch, TileLoader
from geokr.loading.selection import Selection
from geokr.pretraining.config import TrainConfig, configure
from geokr.pretraining.facts import gather_facts
from geokr.pretraining.learner import Learner, create_learner, train_step
from geokr.pretraining.processes import Process, process_group
from geokr.pretraining.throughput import count_flops, find_peak

GPU = ["bands=red,green,blue", "model=resnet50", "image_size=256", "batch=256", "prefetch=8", "steps=1000000"]
PROCESSOR = ["bands=red,green,blue", "model=resnet10t", "image_size=64", "batch=32", "steps=1000000"]


def main(argv: list[str]) -> int:
    """Run the command. The exit status is 1 on a GPU if more than 3 % of the time is spent waiting for tiles."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks step", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each kind of step (%(default)s)")
    parser.add_argument("--steps", type=int, default=0, help="steps per round (30 on a GPU, otherwise 4)")
    parser.add_argument("--keep", type=Path, help="folder for the data set (a temporary one)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="training settings to try")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary, process_group() as process:
        source, pixels = dataset(options.keep or Path(temporary))
        gpu = process.device.type == "cuda"
        config = configure(overrides=[*(GPU if gpu else PROCESSOR), *options.settings])
        learner = learner_of(source, config, process)
        shards = device_batches(endless(learner.training), process.device)
        resident = next(shards)
        steps = options.steps or (30 if gpu else 4)
        rate(learner, iter([resident] * 10), steps=10 if gpu else 1)  # cudnn chooses kernels, code is compiled
        real, constant = [], []
        for _ in range(options.rounds):
            real.append(rate(learner, shards, steps))
            constant.append(rate(learner, iter([resident] * steps), steps))
        ratio = statistics.median(a / b for a, b in zip(real, constant, strict=True))
        name = torch.cuda.get_device_name(process.device) if gpu else "processor"
        print(
            f"case=step-{config.model}-{config.image_size} ours={statistics.median(real):.1f} "
            f"peer={statistics.median(constant):.1f} unit=tiles/s ratio={ratio:.3f} "
            f"device={name.replace(' ', '-')} pixels={pixels}"
        )
        print_counts(source, options.settings)
        if gpu:
            print(share_of_peak(learner, name, statistics.median(real)))
        return 1 if gpu and ratio < 0.97 else 0


def print_counts(source: Path, settings: list[str]) -> None:
    """Print what a GPU would do in a step of the large network, counted without one."""
    config = configure(overrides=[*GPU, "amp=fp32", *settings])  # autocast needs a real GPU
    learner = learner_of(source, config, Process(0, 1, torch.device("cpu")))
    batch = next(learner.training.epoch(0))
    step = count_step(learner, batch)
    side = batch.image.shape[-1]
    for size in sorted({224, config.image_size}):
        view = count_view(config.model_copy(update={"image_size": size}), config.batch, side)
        print(
            f"case=step-view-{side}-to-{size} kernels={len(view.kernels)} moved={view.moved_bytes / 1e9:.2f} unit=GB "
            f"tiles={config.batch} bands={len(config.bands)}"
        )
    print(
        f"case=step-counts-{config.model}-{config.image_size} blocking_copies={len(step.blocking)} "
        f"kernels={len(step.kernels)} moved={step.moved_bytes / 1e9:.2f} unit=GB without=backward"
    )


def learner_of(source: Path, config: TrainConfig, process: Process) -> Learner:
    """Create a learner before its first step. The training tiles also serve as held-out tiles, which are not used."""
    training = TileLoader(source, Selection("train"), bands=config.bands, batch=config.batch, prefetch=config.prefetch)
    return create_learner(config, process, training, training, gather_facts(training, training))


def endless(training: TileLoader) -> Iterator[Batch]:
    for epoch in count():
        yield from training.epoch(epoch)


def rate(learner: Learner, batches: Iterator[Batch], steps: int) -> float:
    """Tiles per second over some steps."""
    began = time.perf_counter()
    for _ in range(steps):
        learner.step = 0  # the same point of every schedule, and the window of losses never fills up
        train_step(learner, next(batches))
    if learner.process.device.type == "cuda":
        torch.cuda.synchronize()
    return steps * learner.config.batch / (time.perf_counter() - began)


def share_of_peak(learner: Learner, name: str, tiles: float) -> str:
    """A line with the multiplications at that many tiles per second, as a share of the GPU's dense bf16 peak."""
    work, peak = count_flops(learner) * tiles / 1e12, find_peak(name)  # TFLOP/s
    if peak is None:
        return f"case=step-share-of-peak ours={work:.0f} unit=TFLOP/s peak=unknown device={name.replace(' ', '-')}"
    return (
        f"case=step-share-of-peak ours={work:.0f} peer={peak} unit=TFLOP/s ratio={work / peak:.3f} "
        f"device={name.replace(' ', '-')}"
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
