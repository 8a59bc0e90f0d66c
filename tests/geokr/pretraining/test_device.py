"""A step on a GPU, counted on fake CUDA tensors: nothing makes the host wait, and views take few passes over pixels."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.counting import CUDA, Counter, count_step, count_view
from geokr.loading.device import device_batches, send_batch
from geokr.loading.loader import TileLoader
from geokr.loading.selection import Selection
from geokr.pretraining.config import PRESETS, configure
from geokr.pretraining.facts import gather_facts
from geokr.pretraining.learner import Learner, create_learner, train_step
from geokr.pretraining.processes import Process


def learner_on(device: str, dataset: Path, *settings: str) -> Learner:
    config = configure(
        "geokr", None, ["bands=red,green,blue", "model=test_resnet", "image_size=16", "batch=8", "amp=fp32", *settings]
    )
    training = TileLoader(dataset, Selection("train"), bands=config.bands, batch=config.batch)
    process = Process(0, 1, torch.device(device))
    return create_learner(config, process, training, training, gather_facts(training, training))


@pytest.mark.parametrize(
    "settings",
    [
        ["bands=[red,green,blue]"],
        ["bands=[blue,green,red,nir]", "accumulate=2", "clip=1"],
        ["objective=reference", "optimiser=adam", "rotate=10", "aspect_ratio=1.5"],
    ],
    ids=["rgb", "nir", "reference"],
)
def test_a_step_never_makes_the_host_wait(coloured: Path, settings: list[str]) -> None:
    learner = learner_on("cpu", coloured, *settings)
    batch = next(iter(learner.training))
    counter = count_step(learner, replace(batch, pair=batch.image.clone()))
    assert counter.blocking == []
    assert len(counter.kernels) > 100  # of a step with networks
    if torch.cuda.is_available():
        learner = learner_on("cuda", coloured, *settings)
        on_device = send_batch(batch, torch.device("cuda"))
        train_step(learner, on_device)  # libraries set themselves up
        torch.cuda.set_sync_debug_mode("error")
        try:
            train_step(learner, on_device)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_what_makes_the_host_wait_is_counted() -> None:
    pinned, pageable = torch.ones(3), torch.ones(3)
    counter = Counter()
    counter.pinned = [pinned]
    values = counter.on_device(pinned)
    with counter:
        pinned.to(CUDA, non_blocking=True)
        values.copy_(pinned, non_blocking=True)
        pageable.pin_memory().to(CUDA, non_blocking=True)
        assert counter.blocking == []
        pinned.to(CUDA)
        pageable.to(CUDA, non_blocking=True)
        values.copy_(pageable, non_blocking=True)
        values.new_tensor([1.0, 2.0])
        values.cpu()
        float(values.sum())
    copies = ["aten::_to_copy"] * 2 + ["aten::copy_"] + ["aten::_to_copy"] * 2
    assert counter.blocking == [*copies, "aten::_local_scalar_dense"]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_view_takes_few_passes_over_the_pixels(preset: str) -> None:
    """256 tiles of 256 px to 224 px. In one pass each: to float, reduce, positions, sample, mean, colours, clip.

    A blur, which the presets without labels have, takes some more in either direction.
    """
    config = PRESETS[preset].model_copy(update={"image_size": 224, "bands": ("red", "green", "blue")})
    counter = count_view(config, tiles=256, side=256)
    assert counter.blocking == []
    assert len(counter.kernels) < (22 if config.blur else 12)
    assert counter.moved_bytes < (4e9 if config.blur else 2e9)


def test_batches_of_a_device_are_those_of_the_loader(coloured: Path) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = TileLoader(coloured, Selection("train"), batch=32)
    for host, sent in itertools.zip_longest(training.epoch(1, 2), device_batches(training.epoch(1, 2), device)):
        assert sent.image.device.type == device.type
        assert torch.equal(sent.image.cpu(), host.image)
        assert torch.equal(sent.fraction.cpu(), host.fraction)
        assert torch.equal(sent.weight.cpu(), host.weight)
