"""The learner: networks and optimiser of a run, their creation, a training step, and saving and restoring them."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from geokr.dataset.layout import WHOLE_PART
from geokr.encoder import to_unit, unit_scale
from geokr.loading.device import send
from geokr.loading.loader import Batch, TileLoader
from geokr.pretraining.augment import derive_seed, draw_maps, zoom_out
from geokr.pretraining.checkpoint import Checkpoint
from geokr.pretraining.classifier import build_student, recompute_activations
from geokr.pretraining.config import TrainConfig
from geokr.pretraining.facts import DataFacts
from geokr.pretraining.objectives import choose
from geokr.pretraining.objectives.objective import FIRST_VIEW, SECOND_VIEW, Objective, Part
from geokr.pretraining.optimiser import make_optimiser, set_learning_rate
from geokr.pretraining.overlap import label_views, measure_overlap
from geokr.pretraining.processes import (
    Process,
    average_buffers,
    broadcast,
    shard_model,
    sharded_like,
    sum_over_ranks,
    sync_gradients,
    unsharded,
)
from geokr.pretraining.render import InputFormat, make_input_format, normalise, render
from geokr.pretraining.start import START, Watched, choose_kept, copy_start, fix_statistics, pull_to_start

DROPOUT, INITIAL, UNIFORM = 2, 3, 4
"""Random streams in addition to those of the views. Each draw is a function of seed, step and stream."""
LOG_EVERY = 10
"""Steps between log lines. For each line, the host waits for the device."""


@dataclass(slots=True)
class Learner:
    """The state that a training step changes, and the settings and data that it needs."""

    config: TrainConfig
    process: Process
    training: TileLoader
    held_out: TileLoader
    facts: DataFacts
    objective: Objective
    networks: Mapping[str, nn.Module]
    """The networks of the objective and, if a setting needs it, the encoder that the run started from."""
    parallel: nn.Module
    """The student as a training step calls it: wrapped in DistributedDataParallel if there are several processes."""
    optimiser: torch.optim.Optimizer
    mean: list[float]
    """Mean of each band that the input is normalised with, for pixels in 0..1."""
    std: list[float]
    """Standard deviation of each band that the input is normalised with, for pixels in 0..1."""
    gain: torch.Tensor
    """(band, 1, 1) float32: maps stored pixels to 0..1, together with `offset`."""
    offset: torch.Tensor
    """(band, 1, 1) float32: what a stored pixel of 0 becomes."""
    form: InputFormat
    """Format of the networks' input."""
    start: str
    """Description of the weights that the encoder started from."""
    distil: float
    """Weight of the distance of features from those of the start in the loss."""
    scaler: GradScaler
    """Scaler of the loss for fp16; otherwise it does nothing."""
    dtype: torch.dtype
    """Data type that the networks compute in."""
    recent_losses: torch.Tensor
    """(LOG_EVERY, 1 + measures) float64: the loss and the objective's measures for each step since the last log
    line."""
    total: int
    """Number of steps of the run."""
    step: int = 0
    """Number of steps done."""
    logged_steps: int = 0
    """Number of steps that have been logged."""
    best: dict[str, float] | None = None
    """Step and result of the validation with the lowest KL so far: {"step": ..., "kl": ...}."""

    def precision(self) -> torch.autocast:
        return torch.autocast(self.process.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def to_unit(self, pixels: torch.Tensor) -> torch.Tensor:
        """Convert (n, band, y, x) stored pixels to float32 in 0..1."""
        return to_unit(pixels, self.gain, self.offset)

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalise (n, band, y, x) float pixels in 0..1 with the mean and the standard deviation of each band."""
        return normalise(pixels, self.form)

    def to_pixels(self, view: torch.Tensor) -> torch.Tensor:
        """Undo `normalise`: float32 in 0..1."""
        return view.float() * self.form.std + self.form.mean

    def view(self, image: torch.Tensor, gsd: torch.Tensor | None, stream: int, part: int = 0) -> torch.Tensor:
        """Compute a normalised random view of a part of this process's tiles in the step: (n, band, size, size).

        image: (n, band, y, x) stored pixels, on the device. gsd: see `Batch`.
        """
        return render(self.to_unit(image), self.draw_maps(image, gsd, stream, part), self.form)

    def draw_maps(self, image: torch.Tensor, gsd: torch.Tensor | None, stream: int, part: int = 0) -> torch.Tensor:
        """Draw the views of a part of this process's tiles in the step, see `augment.draw_maps`; on the device."""
        seed = derive_seed(self.config.seed, self.step, stream)
        maps = send(draw_maps(len(image), self.config, self.std, seed, self.index_and_count(part)), image.device)
        return maps if self.config.zoom == 1 else zoom_out(maps, self.config, gsd)

    def index_and_count(self, part: int) -> tuple[int, int]:
        """Index of a part of this process's tiles among the equal parts of the step's tiles, and their number."""
        parts = self.config.accumulate
        return self.process.rank * parts + part, self.process.world * parts

    def part(self, tiles: Batch, number: int) -> Part:
        """Describe part `number` of this process's tiles to the objective. tiles: on the device."""
        image, pair = tiles.image, tiles.image if tiles.pair is None else tiles.pair
        target, grid = tiles.fraction, 1 if tiles.parts is None else tiles.parts.shape[1]
        shares = target[:, None] if tiles.parts is None else tiles.parts.flatten(1, 2).float() / WHOLE_PART

        def view(stream: int) -> torch.Tensor:
            return self.view(pair if stream == SECOND_VIEW else image, tiles.gsd, stream, number)

        def uniform(count: int) -> torch.Tensor:
            index, parts = self.index_and_count(number)
            generator = torch.Generator().manual_seed(derive_seed(self.config.seed, self.step, UNIFORM))
            draws = torch.rand(len(image) * parts, count, generator=generator)
            return send(draws[index * len(image) : (index + 1) * len(image)], image.device)

        def overlap(stream: int, height: int, width: int) -> torch.Tensor:
            theta = self.draw_maps(image, tiles.gsd, stream, number)[:, :6].view(-1, 2, 3)
            return measure_overlap(theta, grid, height, width)

        if tiles.parts is not None:
            target = label_views(overlap(FIRST_VIEW, 1, 1), shares, target)
        return Part(
            student=self.parallel,
            view=view,
            uniform=uniform,
            precision=self.precision,
            target=target,
            weight=tiles.weight,
            year_gap=torch.full_like(tiles.weight, torch.nan) if tiles.year_gap is None else tiles.year_gap,
            step=self.step,
            total=self.total,
            parts=shares,
            overlap=overlap,
        )

    @property
    def student(self) -> nn.Module:
        return self.networks["student"]

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and exported."""
        return self.networks[self.objective.exported]


def create_learner(
    config: TrainConfig,
    process: Process,
    training: TileLoader,
    held_out: TileLoader,
    facts: DataFacts,
    last: Checkpoint | None = None,
) -> Learner:
    """Create a learner before its first step, or restore it from the checkpoint `last`.

    Raises ValueError if the weights to start from are not available.
    """
    if config.sync_batch_norm and process.world > 1 and process.device.type != "cuda":
        raise ValueError("sync_batch_norm needs GPUs: set it to false")
    torch.manual_seed(derive_seed(config.seed, 0, INITIAL))
    pretrained = config.pretrained if last is None else False  # the weights come from the checkpoint instead
    classifier, start = build_student(config, len(training.classes), pretrained, process)
    if config.recompute:
        recompute_activations(classifier.encoder, config.model)
    classifier.to(process.device)
    if config.channels_last and not config.shard:  # sharded weights must be contiguous
        classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    total = config.length(len(training))
    broadcast([classifier], process)  # before an objective copies it
    objective = choose(config.objective)(classifier, config, total)
    kept = choose_kept(config, start if last is None else last.start)
    named = {**objective.networks, **copy_start(objective.networks["student"], config, kept)}
    networks = [*named.values()]
    if config.sync_batch_norm and process.world > 1:
        for network in networks:
            convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    broadcast(networks, process)
    if config.compile:
        for network in networks:
            network.compile()
    parallel = student = objective.networks["student"]
    dtype = compute_dtype(config.amp, process.device)
    if config.shard and process.world > 1:
        for network in networks:
            shard_model(network, process, dtype)
    elif process.world > 1:
        # Batch-norm statistics are averaged after each step, not taken from rank 0.
        parallel = DistributedDataParallel(student, broadcast_buffers=False)
    bands = len(config.bands)
    mean, std = (
        (list(facts.mean_pixel), list(facts.std_pixel)) if objective.normalises else ([0.0] * bands, [1.0] * bands)
    )
    optimiser = make_optimiser(student, config)
    if config.start_pull:
        pull_to_start(optimiser, student.get_submodule("encoder"), named[START], config.start_pull)
    if kept.statistics:
        for network in objective.networks.values():
            fix_statistics(network)
    gain, offset = unit_scale(facts.low_pixel, facts.high_pixel)
    learner = Learner(
        config=config,
        process=process,
        training=training,
        held_out=held_out,
        facts=facts,
        objective=objective,
        networks=named,
        parallel=parallel,
        optimiser=optimiser,
        mean=mean,
        std=std,
        gain=gain.to(process.device),
        offset=offset.to(process.device),
        form=make_input_format(config.image_size, mean, std, dtype, process.device, config.channels_last, config.zoom),
        start=start,
        distil=kept.distil,
        scaler=GradScaler(process.device.type, enabled=dtype == torch.float16),
        dtype=dtype,
        recent_losses=torch.zeros(LOG_EVERY, 1 + len(objective.measures), dtype=torch.float64, device=process.device),
        total=total,
    )
    if last is not None:
        _restore(learner, last)
    return learner


def compute_dtype(amp: str, device: torch.device) -> torch.dtype:
    """The data type that the networks compute in. amp: see TrainConfig."""
    if amp == "auto":
        amp = "fp32" if device.type != "cuda" else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[amp]


def train_step(learner: Learner, batch: Batch) -> None:
    """Do one step: update the student with its gradient, then let the objective update its other networks.

    batch: on the device. The host never waits for it, except with fp16, where it must know whether the scaled gradient
    overflowed.
    """
    config, process, step = learner.config, learner.process, learner.step
    torch.manual_seed(derive_seed(config.seed, step, DROPOUT, process.rank))  # for networks with dropout
    set_learning_rate(learner.optimiser, *config.learning_rates(step, learner.total, len(learner.training)))
    batch = pad_batch(batch, config.batch // process.world)
    total = sum_over_ranks(batch.weight.sum(), process).clamp_min(1e-9)
    scale = process.world / total  # gradients are averaged over processes

    learner.optimiser.zero_grad(set_to_none=True)
    sums = torch.zeros_like(learner.recent_losses[0])
    for number, tiles in enumerate(split_batch(batch, config.accumulate)):
        sync_gradients(learner.parallel, number == config.accumulate - 1)
        losses = compute_losses(learner, tiles, number)  # (n, 1 + measures)
        weight = tiles.weight * scale
        means = (losses * weight[:, None]).sum(dim=0)  # weighted means over the tiles of all parts and processes
        with preserve_buffers(learner.student, config.recompute):
            learner.scaler.scale(means[0]).backward()  # type: ignore[no-untyped-call]
        sums += means.detach()
    if config.clip:
        learner.scaler.unscale_(learner.optimiser)
        torch.nn.utils.clip_grad_norm_(learner.student.parameters(), config.clip)
    learner.scaler.step(learner.optimiser)
    learner.scaler.update()

    average_buffers([network for network in learner.objective.networks.values() if network.training], process)
    learner.objective.update(step + 1)
    learner.recent_losses[step - learner.logged_steps] = sums
    learner.step += 1


def compute_losses(learner: Learner, tiles: Batch, number: int) -> torch.Tensor:
    """Loss and measures of each tile of part `number` of a step: (n, 1 + measures) float32."""
    part = learner.part(tiles, number)
    if not learner.distil:
        return learner.objective.losses(part)
    student = Watched(part.student)
    losses = learner.objective.losses(dataclasses.replace(part, student=student))
    with learner.precision():
        distance = student.distance(learner.networks[START]).view(-1, len(losses)).mean(dim=0)
    return torch.cat([losses[:, :1] + learner.distil * distance[:, None], losses[:, 1:]], dim=1)


def pad_batch(batch: Batch, tiles: int) -> Batch:
    """Fill up a batch from which unreadable tiles were left out, with empty tiles of weight 0.

    All processes then compute the same number of tiles, which is needed where they wait for each other.
    """
    if len(batch.image) == tiles:
        return batch
    padded = {}
    for name, values in batch.arrays().items():
        padded[name] = values.new_zeros(tiles, *values.shape[1:])
        padded[name][: len(values)] = values  # not torch.cat: for uint16, torch has few operations on a GPU
    return dataclasses.replace(batch, **padded)


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """Split a batch into equal parts."""
    arrays = {name: values.chunk(parts) for name, values in batch.arrays().items()}
    return [Batch(**dict(zip(arrays, part, strict=True))) for part in zip(*arrays.values(), strict=True)]


@contextmanager
def preserve_buffers(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Restore the buffers of a model when the context ends.

    A backward pass that computes activations again also updates the batch statistics again, so that batch
    normalisation would count each batch twice.
    """
    saved = [(buffer, buffer.clone()) for buffer in model.buffers()] if enabled else []
    yield
    for buffer, value in saved:
        buffer.copy_(value)


def make_checkpoint(learner: Learner) -> Checkpoint:
    """Copy the state to resume from to the host. If weights are sharded, all processes must call this function."""
    checkpoint = Checkpoint(
        step=learner.step,
        total=learner.total,
        config=learner.config.model_dump(),
        datasets=learner.training.datasets,
        facts=dataclasses.asdict(learner.facts),
        mean=learner.mean,
        std=learner.std,
        start=learner.start,
        networks={name: unsharded(network.state_dict()) for name, network in learner.networks.items()},
        exported=learner.objective.exported,
        end_share=1.0,
        memory=unsharded(dict(learner.objective.memory)),
        optimiser=unsharded(learner.optimiser.state_dict()),
        scaler=learner.scaler.state_dict(),
        window=unsharded(learner.recent_losses[: learner.step - learner.logged_steps]),
        best=learner.best,
    )
    if learner.process.device.type == "cuda":
        torch.cuda.synchronize()  # copies are complete
    return checkpoint


def load_weights(network: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Load full tensors into a network, which may be sharded."""
    current = network.state_dict()
    network.load_state_dict({name: sharded_like(value, current[name]) for name, value in weights.items()})


def _restore(learner: Learner, last: Checkpoint) -> None:
    for name, network in learner.networks.items():
        load_weights(network, last.networks[name])
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
    learner.recent_losses[: len(last.window)] = last.window
    learner.step, learner.logged_steps = last.step, last.step - len(last.window)
    learner.start, learner.best = last.start, last.best
