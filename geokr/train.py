"""Pre-train an encoder on data sets: `geokr train --data DATASET ... --out RUN [key=value ...]`.

The same command resumes a run that was stopped. `torchrun --nproc-per-node N -m geokr.train ...` distributes the work
over N processes. RUN contains last.pt and best.pt (checkpoints), log.jsonl, tensorboard/, plots/, encoder.safetensors
(for timm) and, written last, metrics.json. If the loss diverged, diverged/ contains the tiles of that step. The file
`stopped` says that a signal stopped the run and that the same command resumes it.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors

from geokr.dataset.index import read_summary
from geokr.dataset.layout import RGB
from geokr.encoder import ENCODER
from geokr.export import encoder_weights, export
from geokr.loading.device import device_batches
from geokr.loading.loader import Batch, TileLoader
from geokr.loading.selection import DataSets, Selection
from geokr.pretraining.checkpoint import LAST, Checkpoint, CheckpointWriter, save
from geokr.pretraining.config import PRESETS, TrainConfig, configure
from geokr.pretraining.console import catch_signals, format_memory, print_once, progress_bar
from geokr.pretraining.facts import DataFacts, gather_facts
from geokr.pretraining.journal import CURVES, Journal
from geokr.pretraining.learner import (
    LOG_EVERY,
    Learner,
    create_learner,
    load_weights,
    make_checkpoint,
    train_step,
)
from geokr.pretraining.objectives import choose
from geokr.pretraining.objectives.objective import FIRST_VIEW, SECOND_VIEW
from geokr.pretraining.processes import Process, barrier, broadcast_value, max_over_ranks, process_group, sum_over_ranks
from geokr.pretraining.resuming import find_checkpoint
from geokr.pretraining.throughput import peak_share, trace_steps
from geokr.pretraining.validation import Validation, validate
from geokr.storage import inputs
from geokr.storage.files import replace_file, write_text

METRICS = "metrics.json"
STOPPED = "stopped"
"""Exists in a run that a signal stopped and that the same command resumes: a job is queued again if it does."""
DIVERGED = "diverged"

RESULTS = (METRICS, ENCODER, *CURVES.values())
"""Files of a finished run. If one is missing after the last step, only the end of the run is repeated."""


def train(
    dataset: DataSets, run: Path, config: TrainConfig, process: Process, restart: bool = False, profile: bool = False
) -> int:
    """Pre-train until the end of the run or until a signal. Returns the exit status: 0, or 128 plus the signal.

    restart: if `run` contains a run with other settings or tiles, move it aside and start a new run. Raises ValueError
    with one sentence if the data set does not fit or, without `restart`, if an earlier run does not fit. profile: write
    a trace of some steps to RUN/profile.
    """
    with ExitStack() as stack:
        signals = stack.enter_context(catch_signals())  # from here on, since preparing a run takes minutes
        if process.rank == 0:
            (run / STOPPED).unlink(missing_ok=True)
        training, held_out = make_loaders(dataset, config, process)
        if not config.bands and training.bands != RGB:
            print_once(process, f"bands are {', '.join(training.bands)}: no scene has red, green and blue")
        if process.rank == 0:
            for sentence in compare_splits(training.datasets):
                print_once(process, sentence)
        if (size := training.batch * process.world) < config.batch:
            print_once(process, f"batch is {size} instead of {config.batch}: there are {training.tiles} training tiles")
        config = config.model_copy(update={"bands": training.bands, "batch": size})
        facts, epoch = broadcast_value(gather_facts(training, held_out), process), len(training)
        last = find_checkpoint(run, config, facts, config.length(epoch), process, restart)
        if last is not None and last.step == config.length(epoch) and all((run / name).exists() for name in RESULTS):
            print_once(process, f"{run}: finished after {last.total} steps; delete it to start again")
            return 0
        if last is not None:
            facts = DataFacts(**last.facts)
        learner = create_learner(config, process, training, held_out, facts, last)
        tell_start(learner, run, last)
        if stop_signal := max_over_ranks(signals[0] if signals else 0, process):
            return stop(learner, run, stop_signal)

        writer = stack.enter_context(CheckpointWriter(run, config.keep_checkpoints))
        journal = Journal(run, config, learner.step) if process.rank == 0 else None
        if journal is not None:
            stack.callback(journal.close)
        bar = stack.enter_context(progress_bar(learner))
        trace = stack.enter_context(trace_steps(run, process)) if profile else None
        stream = device_batches(iterate_batches(training, learner.step, learner.total), process.device)
        clock, saved = Clock(), time.monotonic()
        result = None
        while learner.step < learner.total:
            start = time.perf_counter()
            batch = next(stream)
            clock.wait_seconds += time.perf_counter() - start
            clock.tiles += config.batch
            train_step(learner, batch)
            bar.update()
            if trace is not None:
                trace()

            is_last, should_log = learner.step == learner.total, learner.step % LOG_EVERY == 0
            should_validate = is_last or learner.step % (config.validate_every or epoch) == 0
            stop_signal = due = 0
            # All processes must stop and save at the same step. They agree only at some steps, since each then waits.
            if should_log or process.world == 1:
                stop_signal = max_over_ranks(signals[0] if signals else 0, process)
                due = max_over_ranks(int(time.monotonic() - saved >= 60 * config.checkpoint_minutes), process)
                writer.check()
            should_save = should_validate or stop_signal or due
            if should_log or should_save:  # checks the losses before the state is saved
                raise_if_diverged(learner, run)
            if should_log or should_validate:
                log_losses(learner, journal, bar, clock)
            result = validate_and_log(learner, journal, batch) if should_validate else None
            if should_save:
                save_state(learner, writer)
                saved = time.monotonic()
            if stop_signal and not is_last:
                bar.close()
                writer.wait()
                return stop(learner, run, stop_signal)
            if should_log or should_validate:
                clock = Clock()
        if result is None:  # an earlier process ended after the last step but before this point
            result = validate_and_log(learner, journal)
            save_state(learner, writer)
        writer.wait()

    final = make_checkpoint(learner)
    tried = try_interpolations(learner, final)
    if process.rank == 0:
        if tried:
            final = replace(final, end_share=min(tried, key=lambda share: (tried[share], -share)))
            save(run / LAST, final)
        write_results(learner, final, run, result, tried)
    barrier(process)
    tell_result(learner, run, result)
    return 0


def tell_start(learner: Learner, run: Path, last: Checkpoint | None) -> None:
    """Print what the run is about to do. A finished run that is made longer is no longer finished."""
    training, held_out, config, process = learner.training, learner.held_out, learner.config, learner.process
    origin = f"from {learner.start}" if last is None else f"resuming after step {learner.step}"
    print_once(
        process,
        f"{training.tiles} training tiles, {held_out.tiles} held out; {config.model} on {process.device}, {origin}",
    )
    if last is not None and last.step == last.total < learner.total:
        rate = config.learning_rate(learner.step, learner.total, len(training))
        print_once(
            process,
            f"{run}: a finished run of {last.total} steps is made longer; its schedules are now those of a run of "
            f"{learner.total} steps, so the learning rate goes on at {rate:.3g}",
        )
        if process.rank == 0:
            (run / METRICS).unlink(missing_ok=True)


def tell_result(learner: Learner, run: Path, result: Validation) -> None:
    """Print the last validation, and whether the teacher ended worse than its student."""
    kl, baseline = result.numbers["kl"], f"{result.numbers['kl_of_mean']:.4f} for the mean label of the training tiles"
    print_once(
        learner.process, f"{run}: {learner.total} steps; held-out KL {kl:.4f} nats, {baseline}; see {run / ENCODER}"
    )
    student_kl = result.numbers.get("student_kl", kl)
    if kl > student_kl:
        print_once(
            learner.process,
            f"{run}: the teacher, whose encoder is exported, is worse than the student: held-out KL {kl:.4f} and "
            f"{student_kl:.4f} nats",
        )


def stop(learner: Learner, run: Path, stop_signal: int) -> int:
    """Mark a run whose state is saved as stopped. Returns the exit status."""
    if learner.process.rank == 0:
        write_text(run / STOPPED, f"{learner.step}\n")
    barrier(learner.process)  # torchrun ends all processes as soon as one exits
    print_once(learner.process, f"{run}: stopped after step {learner.step}; run the same command again to resume")
    return 128 + stop_signal


def make_loaders(dataset: DataSets, config: TrainConfig, process: Process) -> tuple[TileLoader, TileLoader]:
    """Create the loaders of the shuffled training tiles and of the held-out tiles in index order.

    If there are fewer training tiles than `batch`, their batches are as large as these tiles allow. Raises ValueError
    if there is not even a tile for each part of a step.
    """
    parts = process.world * config.accumulate
    if config.batch % parts:
        factors = f"the {process.world} processes" + (f" x {config.accumulate} parts" if config.accumulate > 1 else "")
        raise ValueError(f"batch must be a multiple of {factors}, got {config.batch}")
    if config.pairs and not choose(config.objective).takes_pairs:
        raise ValueError(f"pairs need an objective with two views of a tile; {config.objective} has one view")
    if config.accumulate > 1 and not choose(config.objective).takes_parts:
        raise ValueError(
            f"{config.objective} compares all tiles of a step, so that accumulate={config.accumulate} would be another "
            "method: set accumulate to 1"
        )
    common: dict[str, Any] = {
        "side": config.image_size,
        "rank": process.rank,
        "world": process.world,
        "prefetch": config.prefetch,
        "on_error": config.on_error,
    }
    for_validation = Selection("val", config.classes, config.min_known, config.where)
    chosen = choose(config.objective)
    options = {name: getattr(config, name) for name in ("weight", "pairs", "grid")}
    options |= {"year_gap": chosen.uses_year_gap, "gsd": config.coarsest > 0}
    for_training = replace(for_validation, split="train", **options)
    sampling = {name: getattr(config, name) for name in ("balance", "mixture", "shuffle_buffer", "seed")}
    training = TileLoader(dataset, for_training, bands=config.bands, batch=config.accumulate, **sampling, **common)
    training.batch = min(config.batch, training.tiles // parts * parts) // process.world
    return training, TileLoader(
        dataset,
        for_validation,
        bands=training.bands,
        units=training.units,
        batch=training.batch,
        shuffle=False,
        **common,
    )


def compare_splits(datasets: Sequence[str]) -> Iterator[str]:
    """Tell if a place may be trained on in one data set and held out in another, because their splits differ."""
    splits = [read_summary(dataset).get("settings", {}).get("index", {}).get("split") for dataset in datasets]
    for dataset, split in zip(datasets, splits, strict=True):
        if split != splits[0]:
            yield (
                f"{datasets[0]} and {dataset} divide places into splits differently, so that one may hold out what the "
                "other trains on: build both with the same build.index.split, unless they share no ground"
            )


def iterate_batches(training: TileLoader, step: int, total: int) -> Iterator[Batch]:
    """Iterate over the batches of the steps from `step` to `total`, epoch after epoch."""
    while step < total:
        epoch, start = divmod(step, len(training))
        for batch in training.epoch(epoch, start):
            yield batch
            step += 1


@dataclass(slots=True)
class Clock:
    """Time measurements since the last log line."""

    started: float = field(default_factory=time.perf_counter)
    wait_seconds: float = 0.0
    """Time spent waiting for tiles, s."""
    tiles: int = 0


def log_losses(learner: Learner, journal: Journal | None, bar: Any, clock: Clock) -> None:
    """Log mean losses since the last log line, tiles per second, and the shares of time waiting and of the peak."""
    rows = (
        sum_over_ranks(learner.recent_losses, learner.process)[: learner.step - learner.logged_steps]
        / learner.process.world
    )
    names = ("loss", *learner.objective.measures)
    losses = dict(zip(names, rows.mean(dim=0).tolist(), strict=True))
    learner.logged_steps = learner.step
    # Read after the sums, for which the host has waited until all steps were computed.
    elapsed = time.perf_counter() - clock.started
    speed, waiting = clock.tiles / elapsed, clock.wait_seconds / elapsed
    bar.set_postfix_str(
        f"loss {losses['loss']:.4f}, {speed:.0f} tiles/s, {waiting:.0%} waiting for data, "
        f"{format_memory(learner.process.device)}",
        refresh=False,
    )
    skipped = {}
    if learner.config.on_error == "skip":
        skipped["skipped"] = int(
            sum_over_ranks(learner.recent_losses.new_tensor(learner.training.skipped), learner.process)
        )
    share = peak_share(learner, speed)
    used = {} if share is None else {"peak_share": share}
    if journal is not None:
        rate = max(group["lr"] for group in learner.optimiser.param_groups)
        values = {**losses, "lr": rate, "tiles_per_s": speed, "waiting": waiting, **used, **skipped}
        journal.write(learner.step, "train", values)


def raise_if_diverged(learner: Learner, run: Path) -> None:
    """Raise ValueError if the loss of a step since the last log line was too high or not a number.

    The tiles of the step are saved next to the last checkpoint, in one file per process: image, fraction and weight.
    """
    rows = (
        sum_over_ranks(learner.recent_losses, learner.process)[: learner.step - learner.logged_steps, 0]
        / learner.process.world
    )
    diverged = [(i, loss) for i, loss in enumerate(rows.tolist()) if not loss <= learner.config.highest_loss]
    if not diverged:
        return
    step, loss = learner.logged_steps + diverged[0][0], diverged[0][1]
    batch = next(iterate_batches(learner.training, step, learner.total))  # the tiles are a function of the step
    path = run / DIVERGED / f"step{step + 1}-rank{learner.process.rank}.safetensors"
    tensors = {"image": batch.image, "fraction": batch.fraction, "weight": batch.weight}
    with replace_file(path) as file:
        file.write(to_safetensors(tensors, {"step": str(step + 1), "loss": str(loss)}))
    raise ValueError(f"the loss is {loss:g} at step {step + 1}, its tiles are in {path}: try a lower lr, or amp=fp32")


def validate_and_log(learner: Learner, journal: Journal | None, batch: Batch | None = None) -> Validation:
    """Validate, log the result, and note whether it is the best so far. batch: tiles whose views are logged."""
    result = validate(learner)
    if learner.best is None or result.numbers["kl"] < learner.best["kl"]:
        learner.best = {"step": learner.step, "kl": result.numbers["kl"]}
    if journal is not None:
        classes = learner.facts.classes
        journal.write(learner.step, "val", result.numbers)
        journal.write_classes(learner.step, result.error, result.confusion, classes, result.shares)
        if batch is not None and journal.has_images:
            gsd = None if batch.gsd is None else batch.gsd[:8]
            views = torch.cat([learner.view(batch.image[:8], gsd, stream) for stream in (FIRST_VIEW, SECOND_VIEW)])
            journal.write_views(learner.step, learner.to_pixels(views).cpu(), learner.config.bands)
        journal.write_curves()
    return result


def save_state(learner: Learner, writer: CheckpointWriter) -> None:
    """Begin to write the state on rank 0; also as the best one if it is. All processes must call this function."""
    if learner.process.rank == 0 or learner.config.shard:
        state = make_checkpoint(learner)
        if learner.process.rank == 0:
            writer.write(state, is_best=learner.best is not None and learner.best["step"] == learner.step)


def try_interpolations(learner: Learner, final: Checkpoint) -> dict[float, float]:
    """Validate encoders between start and end: share of the end -> error of the k-nearest-neighbour prediction.

    All processes must call this function. The network stays as it was.
    """
    network, errors = learner.evaluated.get_submodule("encoder"), {}
    for share in learner.config.interpolate:
        load_weights(network, encoder_weights(replace(final, end_share=share)))
        errors[share] = validate(learner).numbers["knn_mae"]
    if errors:
        load_weights(network, encoder_weights(final))
    return errors


def write_results(
    learner: Learner, final: Checkpoint, run: Path, result: Validation, tried: dict[float, float]
) -> None:
    """Write the encoder and then the metrics, which mark the run as finished. tried: see `try_interpolations`."""
    export(final, run / ENCODER)
    best = learner.best or {}
    metrics = {
        **{
            f"val_{'kl_mean_baseline' if name == 'kl_of_mean' else name}": round(value, 6)
            for name, value in result.numbers.items()
        },
        "val_mae_of": {name: round(value, 6) for name, value in result.error.items()},
        **({"knn_mae_of_end_share": tried, "end_share": final.end_share} if tried else {}),
        "best_val_kl": round(best["kl"], 6),
        "best_step": best["step"],
        "steps": learner.total,
        "tiles": learner.facts.training_tiles,
        "val_tiles": learner.facts.held_out_tiles,
    }
    with replace_file(run / METRICS) as file:
        file.write((json.dumps(metrics, indent=2) + "\n").encode())


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="geokr train",
        description="Pre-train an encoder on a data set. Run the same command again to resume a stopped run.",
        epilog="The settings are described in TrainConfig, in geokr/pretraining/config.py. Exit status: 0 done; 2 a "
        "setting, a path or the data set is invalid, or the loss diverged; 130 stopped by Ctrl-C, 143 by SIGTERM.",
    )
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        type=inputs.expand_home,
        metavar="DATASET",
        help="data sets with index.parquet and tiles.zarr; several are trained on as one",
    )
    parser.add_argument("--out", required=True, type=inputs.local_path, metavar="RUN", help="directory of the run")
    parser.add_argument("--preset", default="geokr", help=f"{' or '.join(PRESETS)} (default: geokr)")
    parser.add_argument(
        "--params",
        type=inputs.local_path,
        metavar="FILE.yaml",
        help="parameter file with settings in its section `train:`",
    )
    parser.add_argument(
        "--restart-if-changed",
        action="store_true",
        help="move a run with other settings or tiles aside and start again",
    )
    parser.add_argument(
        "--profile", action="store_true", help="write a trace of some steps, for chrome://tracing, to RUN/profile"
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings that override those of the file")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_intermixed_args(arguments)
    try:
        # A setting that directly follows --data is taken for one of its values.
        settings = {text for text in options.data if text.partition("=")[0] in TrainConfig.model_fields}
        data = [text for text in options.data if text not in settings]
        settings.update(options.settings)
        # In the order in which they were given, since the last one of a key counts.
        given = [text for text in (sys.argv[1:] if arguments is None else arguments) if text in settings]
        config = configure(options.preset, options.params, given)
        with process_group(config.device) as process:
            return train(data, options.out, config, process, options.restart_if_changed, options.profile)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
