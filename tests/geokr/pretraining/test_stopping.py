"""A run that stops says whether it can go on, a copy of its state is a copy, and a finished run can be made longer."""

import csv
import json
import signal
from itertools import islice
from pathlib import Path

import pytest
import torch

from geokr import train
from geokr.pretraining import checkpoint
from geokr.pretraining.checkpoint import LAST, Checkpoint, load
from geokr.pretraining.config import configure
from geokr.pretraining.facts import gather_facts
from geokr.pretraining.learner import create_learner, make_checkpoint, train_step
from geokr.pretraining.processes import Process

SMALL = ["model=test_resnet", "image_size=32", "batch=32", "loggers=[]", "probe=0", "bands=red,green,blue"]


def command(dataset: Path, run: Path, *settings: str) -> int:
    return train.main(["--data", str(dataset), "--out", str(run), *SMALL, *settings])


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(learner, batch) -> None:
        train_step(learner, batch)
        if learner.step == step:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(train, "train_step", interrupted)


def test_a_run_that_was_stopped_leaves_a_file_until_it_goes_on(
    coloured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        assert command(coloured, tmp_path, "steps=4") == 143
        assert mark.exists()
    assert command(coloured, tmp_path, "steps=4", "lr=0.5") == 2
    assert not mark.exists()  # it would be refused again
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        assert command(coloured, tmp_path, "steps=4") == 143
        assert mark.exists()
    assert command(coloured, tmp_path, "steps=4") == 0
    assert not mark.exists()


def test_a_signal_during_preparation_stops_the_run_before_its_first_step(
    coloured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return create_learner(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train, "create_learner", interrupted)
        assert command(coloured, tmp_path, "steps=2") == 143
    assert [path.name for path in tmp_path.iterdir()] == ["stopped"]
    assert command(coloured, tmp_path, "steps=2") == 0


def test_a_copy_of_the_state_does_not_change_with_the_next_step(coloured: Path) -> None:
    process = Process(0, 1, torch.device("cpu"))
    config = configure(overrides=[*SMALL, "steps=9"])
    training, held_out = train.make_loaders(str(coloured), config, process)
    learner = create_learner(config, process, training, held_out, gather_facts(training, held_out))
    batches = list(islice(training, 2))
    train_step(learner, batches[0])
    state = make_checkpoint(learner)
    tensors = [value for network in state.networks.values() for value in network.values()]
    tensors += [value for entries in state.optimiser["state"].values() for value in entries.values()]
    before = [value.clone() for value in [*tensors, state.window]]
    train_step(learner, batches[1])
    assert all(torch.equal(*pair) for pair in zip(before, [*tensors, state.window], strict=True))


def test_a_checkpoint_that_cannot_be_written_ends_the_run(
    coloured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(path: Path, state: Checkpoint) -> None:
        raise OSError(f"{path}: no space left on the device")

    monkeypatch.setattr(checkpoint, "save", fail)
    assert command(coloured, tmp_path, "steps=3", "validate_every=1") == 2
    assert f"error: {tmp_path / LAST}: no space left on the device" in capsys.readouterr().err.replace("best", "last")
    assert not (tmp_path / "metrics.json").exists()


def test_a_finished_run_is_made_longer(
    coloured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its schedule is that of a run of the new length, and a stop on the way changes nothing."""
    runs = [tmp_path / name for name in ("one", "other")]
    for run in runs:
        assert command(coloured, run, "steps=10") == 0
    capsys.readouterr()
    assert command(coloured, runs[0], "steps=20") == 0
    config = configure(overrides=["steps=20"])
    rate = config.learning_rate(10, 20, 6)
    assert rate > 1e-4
    said = (
        f"{runs[0]}: a finished run of 10 steps is made longer; its schedules are now those of a run of 20 steps, so "
    )
    assert f"{said}the learning rate goes on at {rate:.3g}\n" in capsys.readouterr().err

    with monkeypatch.context() as patch:
        stop_at(13, patch)
        assert command(coloured, runs[1], "steps=20") == 143
    assert not (runs[1] / "metrics.json").exists()  # it is no longer finished
    assert command(coloured, runs[1], "steps=20") == 0
    states = [load(run / LAST) for run in runs]
    for name, value in states[0].networks["student"].items():
        assert torch.equal(value, states[1].networks["student"][name]), name
    for run in runs:
        assert json.loads((run / "metrics.json").read_text())["steps"] == 20
        rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        rates = {row["step"]: row["lr"] for row in rows if row["split"] == "train"}
        assert rates[10] == pytest.approx(configure(overrides=["steps=10"]).learning_rate(9, 10, 6), abs=1e-6)
        assert rates[20] == pytest.approx(config.learning_rate(19, 20, 6), abs=1e-6)
        steps = [int(row["step"]) for row in csv.DictReader((run / "plots/train.csv").open())]
        assert steps == sorted(set(steps))


def test_a_run_is_made_neither_shorter_nor_longer_before_its_end(
    coloured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        stop_at(1, patch)
        assert command(coloured, tmp_path, "steps=2") == 143
    for finished, steps in ((False, 3), (True, 1)):
        if finished:
            assert command(coloured, tmp_path, "steps=2") == 0
        capsys.readouterr()
        assert command(coloured, tmp_path, f"steps={steps}") == 2
        assert f"(steps 2, now {steps})" in capsys.readouterr().err
