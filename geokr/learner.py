"""Student, teacher and optimiser: how they begin, what a step does to them, how they are judged and kept."""

import copy
import dataclasses
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from geokr.augment import augment, plain, seed_of
from geokr.checkpoint import Checkpoint
from geokr.config import TrainConfig
from geokr.loader import Batch, TileLoader
from geokr.models import Classifier, build
from geokr.objectives import disagreement, divergence, geokr_loss, ramp_up, reference_loss, scores
from geokr.processes import Place, average_buffers, over_ranks
from geokr.teacher import average, keep_at, reference_updates

STUDENT_VIEW, TEACHER_VIEW, DROPOUT, INITIAL = range(4)
"""Streams of random numbers: every draw is a function of the seed, the step and one of these."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a run knows of its tiles. A checkpoint keeps it, so that a run does not go on with other tiles."""

    training_tiles: int
    held_out_tiles: int
    classes: tuple[str, ...]
    """In the order of the head's outputs."""
    mean_label: tuple[float, ...]
    """Mean share of each class over the training tiles."""
    mean_pixel: tuple[float, ...]
    """Of each band, over a sample of the training tiles, in 0..1."""
    spread: tuple[float, ...]
    """Standard deviation about it."""


def facts_of(training: TileLoader, held_out: TileLoader) -> Facts:
    mean, spread = training.statistics()
    label = training.share.mean(axis=0, dtype="float64").tolist()
    return Facts(training.tiles, held_out.tiles, training.classes, tuple(label), tuple(mean), tuple(spread))


@dataclass(slots=True)
class Learner:
    """All that a step changes, and what it needs to know."""

    config: TrainConfig
    place: Place
    training: TileLoader
    held_out: TileLoader
    facts: Facts
    student: Classifier
    parallel: nn.Module
    """The student, or the student inside DistributedDataParallel: what a training step calls."""
    teacher: Classifier | None
    optimiser: torch.optim.Optimizer
    mean: list[float]
    """Of each band, pixels in 0..1: what the input is normalised with."""
    std: list[float]
    start: str
    """Where the encoder started."""
    window: torch.Tensor
    """(4,) float64: sums of loss, KL(A || p), KL(p || q) and 1 over the steps since the last line of the log."""
    total: int
    """Steps that the run has."""
    updates: frozenset[int]
    """For objective reference: the steps, counted from 1, after which the teacher is updated."""
    step: int = 0
    """Steps done."""
    best: dict[str, float] | None = None
    """The validation with the lowest KL so far: {"step": ..., "kl": ...}."""

    def precision(self) -> torch.autocast:
        device = self.place.device.type
        auto = self.config.amp == "auto" and device == "cuda" and torch.cuda.is_bf16_supported()
        return torch.autocast(device, torch.bfloat16, enabled=auto or self.config.amp == "bf16")

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, band, y, x) float: pixels in 0..1 less the mean, over the standard deviation of their band."""
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        layout = torch.channels_last if pixels.is_cuda else torch.contiguous_format
        return ((pixels - mean) / std).contiguous(memory_format=layout)

    def view(self, image: torch.Tensor, stream: int) -> torch.Tensor:
        """One of the step's random views of the tiles, normalised: (n, band, size, size), from uint8."""
        seed = seed_of(self.config.seed, self.step, stream)
        part = (self.place.rank, self.place.world)
        return self.normalised(augment(image, self.config.bands, self.config, seed, part))


def begin(
    config: TrainConfig,
    place: Place,
    training: TileLoader,
    held_out: TileLoader,
    facts: Facts,
    last: Checkpoint | None = None,
) -> Learner:
    """A learner before its first step, or where a checkpoint left it.

    Raises ValueError where the weights to start from cannot be had.
    """
    torch.manual_seed(seed_of(config.seed, 0, INITIAL))
    pretrained = config.pretrained if last is None else False  # the checkpoint's weights come in their stead
    student, start = build(config.model, len(config.bands), len(training.classes), config.image_size, pretrained)
    student.to(place.device)
    if place.device.type == "cuda":
        student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parallel: nn.Module = student
    if place.world > 1:
        # Batch-norm statistics are averaged after each step, not taken from rank 0.
        parallel = DistributedDataParallel(student, broadcast_buffers=False)
    teacher = None
    if config.objective != "supervised":
        teacher = copy.deepcopy(student).requires_grad_(False)
        if config.objective == "reference":
            teacher.head.reset_parameters()  # as published: both encoders start from ImageNet, the heads at random
        teacher.train(config.objective == "reference")
    if config.compile:
        student.compile()
    mean, std = list(facts.mean_pixel), list(facts.spread)
    if config.objective == "reference":  # the published code does not normalise
        mean, std = [0.0] * len(config.bands), [1.0] * len(config.bands)
    total = config.length(len(training))
    learner = Learner(
        config=config,
        place=place,
        training=training,
        held_out=held_out,
        facts=facts,
        student=student,
        parallel=parallel,
        teacher=teacher,
        optimiser=optimiser(student, config),
        mean=mean,
        std=std,
        start=start,
        window=torch.zeros(4, dtype=torch.float64, device=place.device),
        total=total,
        updates=reference_updates(config.ema_periods, config.batch, total) if config.ema_periods else frozenset(),
    )
    if last is not None:
        _restore(learner, last)
    return learner


def optimiser(student: Classifier, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of the student's parameters; biases and normalisation layers do not decay."""
    weights = [parameter for parameter in student.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in student.parameters() if parameter.ndim <= 1]
    groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    match config.optimiser:
        case "adam":
            return torch.optim.Adam(groups, lr=config.lr)
        case "sgd":
            return torch.optim.SGD(groups, lr=config.lr, momentum=0.9)
        case _:
            return torch.optim.AdamW(groups, lr=config.lr)


def learn(learner: Learner, batch: Batch) -> None:
    """One step: the student by its gradient, then the teacher by its average."""
    config, place, step, teacher = learner.config, learner.place, learner.step, learner.teacher
    published = config.objective == "reference"
    torch.manual_seed(seed_of(config.seed, step, DROPOUT, place.rank))  # for networks that drop at random
    for group in learner.optimiser.param_groups:
        group["lr"] = config.learning_rate(step, learner.total, len(learner.training))
    image = batch.image.to(place.device, non_blocking=True)  # (n, band, y, x) uint8
    target = batch.share.to(place.device, non_blocking=True)  # (n, k)

    seen = learner.view(image, STUDENT_VIEW)  # (n, band, size, size)
    with learner.precision():
        p = learner.parallel(seen)  # (n, k) logits
    p = p.float()
    loss = kl = divergence(target, p).mean()
    apart = torch.zeros_like(loss)
    if teacher is not None:
        with torch.no_grad(), learner.precision():
            q = teacher(seen if published else learner.view(image, TEACHER_VIEW))  # (n, k) logits
        q = q.float()
        weight = config.consistency * ramp_up(step, config.ramp_up * learner.total)
        loss = (reference_loss if published else geokr_loss)(p, q, target, weight)
        apart = disagreement(p, q).mean()

    learner.optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    learner.optimiser.step()
    average_buffers([model for model in (learner.student, teacher) if model is not None and model.training], place)
    if teacher is not None and not published:
        average(teacher, learner.student, keep_at(step + 1, config.ema), buffers=True)
    elif teacher is not None and step + 1 in learner.updates:
        average(teacher, learner.student, config.ema, buffers=False)
    learner.window += torch.stack([loss, kl, apart, torch.ones_like(loss)]).detach()
    learner.step += 1


@torch.no_grad()
def validate(learner: Learner) -> dict[str, float]:
    """Means over the held-out tiles, of the teacher, or of the student where there is none.

    kl: KL(A || p), nats. kl_of_mean: the same for the training tiles' mean label in the place of p, which a
    network must beat. top1: share of tiles whose largest class is right. mae: |A - p|, mean over classes.
    """
    model = learner.student if learner.teacher is None else learner.teacher
    device = learner.place.device
    # One tile of equal shares is added to the training tiles, lest a class that they lack makes KL infinite.
    tiles = learner.facts.training_tiles
    mean = torch.tensor(learner.facts.mean_label, dtype=torch.float64, device=device)
    mean = (mean * tiles + 1.0 / len(mean)) / (tiles + 1)
    before = model.training
    model.eval()
    sums = torch.zeros(5, dtype=torch.float64, device=device)
    for batch in learner.held_out:
        image = plain(batch.image.to(device, non_blocking=True), learner.config.image_size)
        with learner.precision():
            logits = model(learner.normalised(image))
        sums += scores(logits, batch.share.to(device), mean)
    model.train(before)
    *totals, count = over_ranks(sums, learner.place).tolist()
    return {name: total / count for name, total in zip(("kl", "kl_of_mean", "top1", "mae"), totals, strict=True)}


def snapshot(learner: Learner) -> Checkpoint:
    """The state to go on from."""
    return Checkpoint(
        step=learner.step,
        total=learner.total,
        config=dataclasses.asdict(learner.config),
        dataset=learner.training.dataset,
        facts=dataclasses.asdict(learner.facts),
        mean=learner.mean,
        std=learner.std,
        start=learner.start,
        student=learner.student.state_dict(),
        teacher=None if learner.teacher is None else learner.teacher.state_dict(),
        optimiser=learner.optimiser.state_dict(),
        window=learner.window,
        best=learner.best,
    )


def _restore(learner: Learner, last: Checkpoint) -> None:
    learner.student.load_state_dict(last.student)
    if learner.teacher is not None and last.teacher is not None:
        learner.teacher.load_state_dict(last.teacher)
    learner.optimiser.load_state_dict(last.optimiser)
    learner.window.copy_(last.window)
    learner.step, learner.start, learner.best = last.step, last.start, last.best
