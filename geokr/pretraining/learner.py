"""Student, teacher and optimiser: how they begin, what a step does to them, how they are judged and kept."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.norm_act import convert_sync_batchnorm
from timm.optim.lamb import Lamb
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from geokr.dataset.index import read_extent, read_summary
from geokr.loading.loader import Batch, TileLoader
from geokr.pretraining.augment import augment, derive_seed
from geokr.pretraining.checkpoint import Checkpoint
from geokr.pretraining.classifier import Classifier, build
from geokr.pretraining.config import TrainConfig
from geokr.pretraining.objectives import choose
from geokr.pretraining.objectives.objective import SECOND_VIEW, Objective, Part
from geokr.pretraining.processes import (
    Process,
    average_buffers,
    shard_model,
    sharded_like,
    sum_over_ranks,
    sync_gradients,
    unsharded,
)

DROPOUT, INITIAL = 2, 3
"""Streams of random numbers beside those of the views: every draw is a function of seed, step and stream."""
LOG_EVERY = 10
"""Steps between lines of the log. Each makes the host wait for the device."""


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What a run knows of its tiles. A checkpoint keeps it, so that a run does not go on with other tiles."""

    training_tiles: int
    held_out_tiles: int
    classes: tuple[str, ...]
    """In the order of the head's outputs."""
    mean_label: tuple[float, ...]
    """Mean share of each class over the training tiles."""
    mean_pixel: tuple[float, ...]
    """Of each band, over a sample of the training tiles, in 0..1."""
    std_pixel: tuple[float, ...]
    """Standard deviation about it."""
    labels: str
    """Name of the label set: product and year."""
    bounds: tuple[float, ...]
    """West, south, east and north of the data set, degrees; empty where the index does not say."""
    acquired: tuple[str, ...]
    """When its first and its last tile were taken, ISO 8601 in UTC; empty where the index does not say."""


def gather_facts(training: TileLoader, held_out: TileLoader) -> DataFacts:
    mean, std = training.statistics()
    bounds, acquired = read_extent(training.dataset)
    return DataFacts(
        training_tiles=training.tiles,
        held_out_tiles=held_out.tiles,
        classes=training.classes,
        mean_label=tuple(training.fraction.mean(axis=0, dtype="float64").tolist()),
        mean_pixel=tuple(mean),
        std_pixel=tuple(std),
        labels=str(read_summary(training.dataset)["label_set"]),
        bounds=bounds,
        acquired=acquired,
    )


@dataclass(slots=True)
class Learner:
    """All that a step changes, and what it needs to know."""

    config: TrainConfig
    process: Process
    training: TileLoader
    held_out: TileLoader
    facts: DataFacts
    objective: Objective
    parallel: nn.Module
    """The student as a training step calls it: inside DistributedDataParallel where there are several processes."""
    optimiser: torch.optim.Optimizer
    mean: list[float]
    """Of each band, pixels in 0..1: what the input is normalised with."""
    std: list[float]
    start: str
    """Where the encoder started."""
    scaler: GradScaler
    """Of the loss, for fp16; otherwise it does nothing."""
    dtype: torch.dtype
    """What the networks compute in."""
    window: torch.Tensor
    """(LOG_EVERY, 1 + measures) float64: the loss and the objective's measures of each step since the last line of
    the log."""
    total: int
    """Steps that the run has."""
    step: int = 0
    """Steps done."""
    noted: int = 0
    """Of them, those that the log has."""
    best: dict[str, float] | None = None
    """The validation with the lowest KL so far: {"step": ..., "kl": ...}."""

    def precision(self) -> torch.autocast:
        return torch.autocast(self.process.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, band, y, x) float: pixels in 0..1 less the mean, over the standard deviation of their band."""
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        return ((pixels - mean) / std).contiguous(memory_format=layout)

    def view(self, image: torch.Tensor, stream: int, part: int = 0) -> torch.Tensor:
        """One of the step's random views of a part of this process's tiles: (n, band, size, size), from uint8."""
        seed = derive_seed(self.config.seed, self.step, stream)
        parts = self.config.accumulate
        which = (self.process.rank * parts + part, self.process.world * parts)
        return augment(image, self.config.bands, self.config, seed, which)

    def part(self, image: torch.Tensor, pair: torch.Tensor, target: torch.Tensor, number: int) -> Part:
        """A part of the step's tiles as the objective sees it.

        image, and pair, which second views show: (n, band, y, x) uint8; target: (n, class).
        """

        def view(stream: int) -> torch.Tensor:
            return self.normalise(self.view(pair if stream == SECOND_VIEW else image, stream, number))

        return Part(self.parallel, view, self.precision, target, self.step, self.total)

    @property
    def student(self) -> nn.Module:
        return self.objective.networks["student"]

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and exported."""
        return self.objective.networks[self.objective.exported]


def create_learner(
    config: TrainConfig,
    process: Process,
    training: TileLoader,
    held_out: TileLoader,
    facts: DataFacts,
    last: Checkpoint | None = None,
) -> Learner:
    """A learner before its first step, or where a checkpoint left it.

    Raises ValueError where the weights to start from cannot be had.
    """
    torch.manual_seed(derive_seed(config.seed, 0, INITIAL))
    pretrained = config.pretrained if last is None else False  # the checkpoint's weights come in their stead
    student, start = build(config.model, config.bands, len(training.classes), config.image_size, pretrained)
    if config.sync_batch_norm and process.world > 1:
        if process.device.type != "cuda":
            raise ValueError("sync_batch_norm needs GPUs: set it to false")
        student = convert_sync_batchnorm(student)  # type: ignore[no-untyped-call]
    if config.recompute:
        student.encoder.set_grad_checkpointing()  # type: ignore[operator]
    student.to(process.device)
    if config.channels_last and not config.shard:  # weights that are shared out must lie as they are counted
        student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    total = config.length(len(training))
    objective = choose(config.objective)(student, config, total)
    networks = [*objective.networks.values()]
    if config.compile:
        for network in networks:
            network.compile()
    parallel: nn.Module = student
    if config.shard and process.world > 1:
        for network in networks:
            shard_model(network, process)
    elif process.world > 1:
        # Batch-norm statistics are averaged after each step, not taken from rank 0.
        parallel = DistributedDataParallel(student, broadcast_buffers=False)
    bands = len(config.bands)
    mean, std = (
        (list(facts.mean_pixel), list(facts.std_pixel)) if objective.normalises else ([0.0] * bands, [1.0] * bands)
    )
    dtype = compute_dtype(config.amp, process.device)
    learner = Learner(
        config=config,
        process=process,
        training=training,
        held_out=held_out,
        facts=facts,
        objective=objective,
        parallel=parallel,
        optimiser=make_optimiser(student, config),
        mean=mean,
        std=std,
        start=start,
        scaler=GradScaler(process.device.type, enabled=dtype == torch.float16),
        dtype=dtype,
        window=torch.zeros(LOG_EVERY, 1 + len(objective.measures), dtype=torch.float64, device=process.device),
        total=total,
    )
    if last is not None:
        _restore(learner, last)
    return learner


def compute_dtype(amp: str, device: torch.device) -> torch.dtype:
    """What the networks compute in. amp: see TrainConfig."""
    if amp == "auto":
        amp = "fp32" if device.type != "cuda" else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[amp]


def make_optimiser(student: Classifier, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of the student's parameters; biases and normalisation layers do not decay."""
    weights = [parameter for parameter in student.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in student.parameters() if parameter.ndim <= 1]
    groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    match config.optimiser:
        case "adam":
            return torch.optim.Adam(groups, lr=config.lr)
        case "sgd":
            return torch.optim.SGD(groups, lr=config.lr, momentum=0.9)
        case "lamb":
            return Lamb(groups, lr=config.lr, weight_decay=config.weight_decay)
        case _:
            return torch.optim.AdamW(groups, lr=config.lr)


def train_step(learner: Learner, batch: Batch) -> None:
    """One step: the student by its gradient, then whatever its objective changes after it."""
    config, process, step = learner.config, learner.process, learner.step
    torch.manual_seed(derive_seed(config.seed, step, DROPOUT, process.rank))  # for networks that drop at random
    for group in learner.optimiser.param_groups:
        group["lr"] = config.learning_rate(step, learner.total, len(learner.training))
    batch = pad_batch(batch, config.batch // process.world)
    image = batch.image.to(process.device, non_blocking=True)  # (n, band, y, x) uint8
    pair = image if batch.pair is None else batch.pair.to(process.device, non_blocking=True)
    target = batch.fraction.to(process.device, non_blocking=True)  # (n, k)
    weight = batch.weight.to(process.device, non_blocking=True)  # (n,)
    total = sum_over_ranks(weight.sum(), process).clamp_min(1e-9)
    weight = weight * (process.world / total)  # processes' gradients are averaged

    learner.optimiser.zero_grad(set_to_none=True)
    sums = torch.zeros_like(learner.window[0])
    parts = [values.chunk(config.accumulate) for values in (image, pair, target, weight)]
    for number, (pixels, others, shares, worth) in enumerate(zip(*parts, strict=True)):
        sync_gradients(learner.parallel, number == config.accumulate - 1)
        losses = learner.objective.losses(learner.part(pixels, others, shares, number))  # (n, 1 + measures)
        means = (losses * worth[:, None]).sum(dim=0)  # weighted, over the tiles of all parts and processes
        with preserve_buffers(learner.student, config.recompute):
            learner.scaler.scale(means[0]).backward()
        sums += means.detach()
    if config.clip:
        learner.scaler.unscale_(learner.optimiser)
        torch.nn.utils.clip_grad_norm_(learner.student.parameters(), config.clip)
    learner.scaler.step(learner.optimiser)
    learner.scaler.update()

    average_buffers([network for network in learner.objective.networks.values() if network.training], process)
    learner.objective.update(step + 1)
    learner.window[step - learner.noted] = sums
    learner.step += 1


def pad_batch(batch: Batch, tiles: int) -> Batch:
    """A batch from which broken tiles were left out, with empty ones of no weight in their stead.

    All processes then compute as much, which those that wait for each other rely on.
    """
    missing = tiles - len(batch.image)
    if not missing:
        return batch
    names = ("image", "fraction", "known", "weight", *(("pair",) if batch.pair is not None else ()))
    padded = {name: getattr(batch, name) for name in names}
    padded = {
        name: torch.cat([values, values.new_zeros(missing, *values.shape[1:])]) for name, values in padded.items()
    }
    return dataclasses.replace(batch, **padded)


@contextmanager
def preserve_buffers(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Undo what happens to a model's buffers: a backward pass that computes activations again, batch statistics too,
    would have batch normalisation count each batch twice."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()] if wanted else []
    yield
    for buffer, value in before:
        buffer.copy_(value)


def snapshot(learner: Learner) -> Checkpoint:
    """The state to go on from. Where weights are shared out, all processes must call it."""
    return Checkpoint(
        step=learner.step,
        total=learner.total,
        config=learner.config.model_dump(),
        dataset=learner.training.dataset,
        facts=dataclasses.asdict(learner.facts),
        mean=learner.mean,
        std=learner.std,
        start=learner.start,
        networks={name: unsharded(network.state_dict()) for name, network in learner.objective.networks.items()},
        exported=learner.objective.exported,
        memory={name: value.cpu().clone() for name, value in learner.objective.memory.items()},
        optimiser=unsharded(learner.optimiser.state_dict()),
        scaler=learner.scaler.state_dict(),
        window=learner.window[: learner.step - learner.noted].clone(),
        best=learner.best,
    )


def _restore(learner: Learner, last: Checkpoint) -> None:
    for name, network in learner.objective.networks.items():
        patterns = network.state_dict()
        network.load_state_dict({key: sharded_like(value, patterns[key]) for key, value in last.networks[name].items()})
    for name, tensor in learner.objective.memory.items():
        tensor.copy_(last.memory[name])
    parameters = [parameter for group in learner.optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {
        number: {
            name: sharded_like(value, parameters[number])
            if isinstance(value, torch.Tensor) and value.shape == parameters[number].shape
            else value
            for name, value in entries.items()
        }
        for number, entries in last.optimiser["state"].items()
    }
    learner.optimiser.load_state_dict({**last.optimiser, "state": state})
    learner.scaler.load_state_dict(last.scaler)
    learner.window[: len(last.window)] = last.window
    learner.step, learner.noted = last.step, last.step - len(last.window)
    learner.start, learner.best = last.start, last.best
