"""Training learns, stops anywhere and goes on as if it had not, and is the same however many share it."""

import copy
import csv
import io
import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partialmethod
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

from geokr import train
from geokr.loading.loader import Batch, TileLoader
from geokr.loading.selection import Selection
from geokr.pretraining import console, validation
from geokr.pretraining import learner as learner_module
from geokr.pretraining.checkpoint import BEST, LAST, VERSION, load
from geokr.pretraining.config import TrainConfig, configure
from geokr.pretraining.facts import gather_facts
from geokr.pretraining.journal import Journal, confusion_figure
from geokr.pretraining.learner import Learner, create_learner, train_step
from geokr.pretraining.objectives.objective import FIRST_VIEW, SECOND_VIEW
from geokr.pretraining.processes import Process
from geokr.pretraining.validation import Validation, validate
from tests.queue_objective import LENGTH, Queue
from tests.ranks import start_ranks, wait_for_ranks

ALONE = Process(0, 1, torch.device("cpu"))
SMALL = ["model=test_resnet", "image_size=32", "batch=32", "loggers=[]", "bands=red,green,blue"]
REPOSITORY = Path(__file__).parents[3]


def command(dataset: Path, run: Path, *settings: str) -> int:
    return train.main(["--data", str(dataset), "--out", str(run), *SMALL, *settings])


def same(one: Any, other: Any) -> bool:
    """Whether two nested states are equal, tensors to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def same_state(one: Path, other: Path) -> bool:
    first, second = load(one), load(other)
    names = ("step", "networks", "exported", "memory", "optimiser", "scaler", "window", "best", "mean", "std")
    return all(same(getattr(first, name), getattr(second, name)) for name in names)


@pytest.mark.parametrize("objective", ["geokr", "supervised"])
def test_a_short_run_learns_what_colour_tells(coloured: Path, tmp_path: Path, objective: str) -> None:
    run = tmp_path / "run"
    settings = ["steps=60", "lr=3e-3", "validate_every=20", f"objective={objective}"]
    assert command(coloured, run, *settings) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["val_kl"] < 0.3 * metrics["val_kl_mean_baseline"]
    assert metrics["val_top1"] > 0.8
    assert metrics["val_mae"] < 0.15
    assert (metrics["steps"], metrics["tiles"], metrics["val_tiles"]) == (60, 192, 64)
    assert metrics["best_val_kl"] <= metrics["val_kl"]
    assert load(run / BEST).step == metrics["best_step"]
    for split, steps in (("val", ["20", "40", "60"]), ("train", ["10", "20", "30", "40", "50", "60"])):
        assert [row["step"] for row in csv.DictReader((run / f"plots/{split}.csv").open())] == steps
    assert ("teacher" in load(run / LAST).networks) == (objective != "supervised")


def test_the_best_step_is_kept_though_others_follow(
    coloured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([0.5, 0.2, 0.9])
    judge = train.validate
    others = {"kl_of_mean": 1.0, "top1": 1.0, "mae": 0.0}
    monkeypatch.setattr(
        train, "validate", lambda learner: replace(judge(learner), numbers={"kl": next(found), **others})
    )
    assert command(coloured, tmp_path, "steps=3", "validate_every=1") == 0
    assert (load(tmp_path / BEST).step, load(tmp_path / LAST).step) == (2, 3)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["best_step"], metrics["best_val_kl"], metrics["val_kl"]) == (2, 0.2, 0.9)


@pytest.mark.parametrize("preset", ["geokr", "reference"])
def test_stopping_at_any_step_changes_nothing(
    coloured: Path, tmp_path: Path, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["--preset", preset, "steps=13", "validate_every=4", "classes=bare,forest,water", "pretrained=false"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert command(coloured, whole, *settings) == 0

    stops = iter([(1, signal.SIGINT), (5, signal.SIGTERM), (6, signal.SIGINT)])
    at, number = next(stops)

    def interrupted(learner, batch) -> None:
        train_step(learner, batch)
        if learner.step == at:
            signal.raise_signal(number)

    monkeypatch.setattr(train, "train_step", interrupted)
    for following in [*stops, (0, signal.SIGINT)]:
        assert command(coloured, parts, *settings) == 128 + number
        assert load(parts / LAST).step == at
        assert not (parts / "metrics.json").exists()
        at, number = following
    assert command(coloured, parts, *settings) == 0

    assert same_state(whole / LAST, parts / LAST)
    assert same_state(whole / BEST, parts / BEST)
    for name in ("encoder.safetensors", "metrics.json", "plots/train.csv", "plots/val.csv"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name


def test_a_kill_between_checkpoints_loses_only_the_steps_since(
    coloured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["steps=24", "checkpoint_minutes=5", "validate_every=100"]
    assert command(coloured, tmp_path / "whole", *settings) == 0
    steps = []

    def killed(learner, batch) -> None:
        if learner.step == 13:
            raise KeyboardInterrupt
        train_step(learner, batch)
        steps.append(learner.step)

    run = tmp_path / "run"
    monkeypatch.setattr(train, "train_step", killed)
    a_minute_each = SimpleNamespace(monotonic=lambda: 60.0 * len(steps), perf_counter=time.perf_counter)
    monkeypatch.setattr(train, "time", a_minute_each)
    with pytest.raises(KeyboardInterrupt):
        command(coloured, run, *settings)
    monkeypatch.undo()
    assert load(run / LAST).step == 10
    with (run / "log.jsonl").open("a") as file:
        file.write('{"step": 17, "split": "train", "kl": 9}\n{"step": 2')  # what a checkpoint did not see
    assert command(coloured, run, *settings) == 0
    assert same_state(tmp_path / "whole" / LAST, run / LAST)
    for name in ("plots/train.csv", "plots/val.csv"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_batch_is_no_larger_than_the_training_split(
    coloured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A small set trains, stops and goes on with the default batch; too few tiles for a step are refused."""
    settings = ["where=row<1", "batch=256", "steps=3", "probe=0"]  # 24 training tiles, 8 held out

    def interrupted(learner, batch) -> None:
        train_step(learner, batch)
        if learner.step == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", interrupted)
        assert command(coloured, tmp_path / "run", *settings, "accumulate=8") == 128 + signal.SIGINT
    assert "batch is 24 instead of 256: there are 24 training tiles\n" in capsys.readouterr().err
    assert command(coloured, tmp_path / "run", *settings, "accumulate=8") == 0
    assert load(tmp_path / "run" / LAST).config["batch"] == 24
    assert command(coloured, tmp_path / "more", *settings, "accumulate=32") == 2
    assert "split train has 24 tiles, too few for a batch of 32" in capsys.readouterr().err
    config = configure("geokr", None, [*SMALL, *settings, "batch=40"])
    training, held_out = train.make_loaders(str(coloured), config, Process(1, 5, torch.device("cpu")))
    assert (training.batch, held_out.batch, len(training)) == (4, 4, 1)  # 20 of 24 tiles, 4 on each of 5 processes


def test_a_tile_that_cannot_be_read_at_a_restart_is_no_change_of_the_run(
    coloured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, run = tmp_path / "dataset", tmp_path / "run"
    shutil.copytree(coloured, dataset)

    def interrupted(learner, batch) -> None:
        train_step(learner, batch)
        signal.raise_signal(signal.SIGINT)

    settings = ["on_error=skip", "steps=2", "probe=0"]
    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", interrupted)
        assert command(dataset, run, *settings) == 128 + signal.SIGINT
    before = load(run / LAST)
    (dataset / "tiles.zarr/east/image/c/0/0/0/0/0").unlink()
    assert command(dataset, run, *settings) == 0
    after = load(run / LAST)
    assert (after.mean, after.std, after.facts) == (before.mean, before.std, before.facts)


@pytest.mark.parametrize("lost", ["metrics.json", "encoder.safetensors", "plots/val.csv"])
def test_a_run_without_one_of_its_results_repeats_the_end(coloured: Path, tmp_path: Path, lost: str) -> None:
    assert command(coloured, tmp_path, "steps=2") == 0
    before = (tmp_path / lost).read_bytes()
    (tmp_path / lost).unlink()
    assert command(coloured, tmp_path, "steps=2") == 0
    assert (tmp_path / lost).read_bytes() == before


def test_a_finished_run_says_so(coloured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(coloured, tmp_path, "steps=2") == 0
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    capsys.readouterr()
    assert command(coloured, tmp_path, "steps=2", "prefetch=1") == 0
    assert capsys.readouterr().err == f"{tmp_path}: finished after 2 steps; delete it to start again\n"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written


def grey(build, root: Path, level: int, tiles: int = 16) -> Path:
    """Tiles without any contrast."""
    image = np.full((4, tiles, 4, 32, 32), level, np.uint8)
    share = np.full((4, tiles, 3), 1 / 3, np.float32)
    return build(root, {"only": image}, {"only": share}, split=lambda scene, row, col: "train" if col else "val")


def test_what_does_not_fit_is_refused_in_one_sentence(
    build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, dataset = tmp_path / "run", grey(build, tmp_path / "dataset", 90)
    assert command(dataset, run, "steps=1") == 0
    capsys.readouterr()

    def refused(dataset: Path, *settings: str) -> str:
        assert command(dataset, run, *settings) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        return message.removeprefix("error: ")

    other = f"{run}/last.pt belongs to a run with other settings or tiles"
    ways = f"restore these, choose another --out, delete {run}, or add --restart-if-changed\n"
    assert refused(dataset, "steps=1", "lr=0.5") == f"{other} (lr 0.001, now 0.5): {ways}"
    more = grey(build, tmp_path / "more", 90, tiles=17)
    assert refused(more, "steps=1") == f"{other} (other training tiles): {ways}"
    brighter = grey(build, tmp_path / "brighter", 91)
    assert refused(brighter, "steps=1") == f"{other} (other mean pixel): {ways}"
    assert "there is no setting stepz; steps?" in refused(dataset, "stepz=1")
    assert "device cuda:99 cannot be used" in refused(dataset, "steps=1", "device=cuda:99")
    assert f"{tmp_path}/nowhere/dataset.json: no such file" in refused(tmp_path / "nowhere", "steps=1")


def test_a_run_of_other_settings_is_moved_aside_if_asked(coloured: Path, tmp_path: Path) -> None:
    run, fresh = tmp_path / "run", tmp_path / "fresh"
    for seed in (2, 3, 4):
        assert command(coloured, run, "steps=2", f"seed={seed}", "--restart-if-changed") == 0
    seeds = [load(path / LAST).config["seed"] for path in (run, tmp_path / "run.1", tmp_path / "run.2")]
    assert seeds == [4, 2, 3]
    assert command(coloured, fresh, "steps=2", "seed=4") == 0
    assert same_state(run / LAST, fresh / LAST)
    assert command(coloured, run, "steps=2", "seed=4", "--restart-if-changed") == 0  # the same: not moved
    assert not (tmp_path / "run.3").exists()


@pytest.mark.parametrize(
    ("settings", "loss", "at"), [(["optimiser=sgd", "lr=1e30"], "nan", "2"), (["highest_loss=0.5"], "", "1")]
)
def test_a_loss_that_explodes_stops_the_run_and_leaves_the_tiles(
    coloured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: list[str], loss: str, at: str
) -> None:
    settings = ["steps=40", "warm_up=0", *settings]
    assert command(coloured, tmp_path, *settings) == 2
    (path,) = (tmp_path / "diverged").iterdir()
    found = re.search(
        r"the loss is (\S+) at step (\d+), its tiles are in (\S+): try a lower lr", capsys.readouterr().err
    )
    assert found is not None
    assert found[2] == at
    assert found[3] == str(path) == str(tmp_path / f"diverged/step{found[2]}-rank0.safetensors")
    assert found[1] == loss or float(found[1]) > 0.5
    step = int(found[2]) - 1
    batch = list(TileLoader(coloured, Selection("train", min_known=0.5), batch=32).epoch(step // 6))[step % 6]
    kept = load_file(path)
    assert torch.equal(kept["image"], batch.image)
    assert torch.equal(kept["fraction"], batch.fraction)
    assert not (tmp_path / LAST).exists()  # the first one would have been of weights that are no numbers


def by_a_step(dataset: Path, *settings: str, weight: torch.Tensor | None = None) -> Learner:
    """A learner of layer normalisation, whose answer for a tile depends on that tile alone, after a few steps."""
    config = configure("geokr", None, [*SMALL, "model=test_vit", "steps=4", "warm_up=0", *settings])
    training = TileLoader(dataset, Selection("train"), batch=32)
    held_out = TileLoader(dataset, Selection("val"), batch=32, shuffle=False)
    learner = create_learner(config, ALONE, training, held_out, gather_facts(training, held_out))
    for batch in islice(training, 3):
        train_step(learner, batch if weight is None else replace(batch, weight=weight))
    return learner


def losses_of(learner: Learner, batch: Batch) -> torch.Tensor:
    """Loss and measures of each tile, such as KL(A || p) and KL(p || q)."""
    return learner.objective.losses(learner.part(batch, 0))


def test_a_line_of_the_log_is_of_the_steps_since_the_last(coloured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, written = by_a_step(coloured), []
    learner.recent_losses[:3] = torch.tensor([[1, 2, 3], [2, 4, 6], [6, 9, 12]])
    journal: Any = SimpleNamespace(write=lambda *line: written.append(line))
    bar = SimpleNamespace(set_postfix_str=lambda *_, **__: None)
    monkeypatch.setattr(train.time, "perf_counter", lambda: 110.0)
    train.log_losses(learner, journal, bar, train.Clock(started=100.0, wait_seconds=2.5, tiles=320))
    ((step, split, values),) = written
    assert (step, split, learner.logged_steps) == (3, "train", 3)
    losses = {"loss": 3.0, "kl": 5.0, "disagreement": 7.0}
    assert values == {**losses, "lr": values["lr"], "tiles_per_s": 32.0, "waiting": 0.25}


@pytest.mark.parametrize("step", [0, 4, 6, 11])
def test_steps_go_through_epoch_after_epoch(coloured: Path, step: int) -> None:
    loader = TileLoader(coloured, Selection("train"), batch=32, seed=1)
    wanted = [batch.fraction for epoch in range(3) for batch in loader.epoch(epoch)]
    found = [batch.fraction for batch in islice(train.iterate_batches(loader, step, 18), 18 - step)]
    assert len(wanted) == 18
    assert all(torch.equal(*pair) for pair in zip(found, wanted[step:], strict=True))
    assert not torch.equal(wanted[0], wanted[6])


def test_the_second_signal_ends_the_process_as_ever() -> None:
    before = signal.getsignal(signal.SIGINT)
    with console.catch_signals() as caught:
        signal.raise_signal(signal.SIGINT)
        assert caught == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def far(one: Learner, other: Learner) -> float:
    """The largest difference between the students' weights."""
    pairs = zip(one.student.parameters(), other.student.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.parametrize("objective", ["geokr", "supervised"])
def test_parts_of_a_step_are_the_step(coloured: Path, objective: str) -> None:
    settings = ["optimiser=sgd", "lr=0.05", f"objective={objective}"]
    weight = torch.linspace(0.1, 3, 32)
    whole = by_a_step(coloured, *settings, weight=weight)
    parts = by_a_step(coloured, *settings, "accumulate=4", weight=weight)
    assert far(whole, parts) < 1e-5
    assert torch.allclose(whole.recent_losses, parts.recent_losses, atol=1e-6)
    assert far(whole, by_a_step(coloured, *settings)) > 1e-3  # weights matter


def test_tiles_without_weight_are_not_learnt_from(coloured: Path) -> None:
    """The step is that of the tiles with weight alone, whatever the others say."""
    weight = (torch.arange(32) % 2).float()
    settings = ["optimiser=sgd", "lr=0.05", "objective=supervised"]
    one, other = (by_a_step(coloured, *settings, weight=factor * weight) for factor in (1, 7))
    assert far(one, other) < 1e-6  # their size does not count
    assert far(one, by_a_step(coloured, *settings, weight=1 - weight)) > 1e-3


def test_a_batch_that_lacks_tiles_is_a_step_of_those_that_are_there(coloured: Path) -> None:
    learners = [by_a_step(coloured, "optimiser=sgd", "lr=0.05", "accumulate=2") for _ in range(2)]
    batch = next(iter(learners[0].training))
    short = replace(batch, image=batch.image[:20], fraction=batch.fraction[:20], weight=batch.weight[:20])
    train_step(learners[0], replace(batch, weight=(torch.arange(32) < 20).float()))
    train_step(learners[1], replace(short, known=batch.known[:20]))
    assert far(*learners) < 1e-6
    nothing = {name: getattr(batch, name)[:0] for name in ("image", "fraction", "known", "weight")}
    before = learners[1].step
    train_step(learners[1], replace(batch, **nothing))
    assert learners[1].step == before + 1
    assert all(bool(parameter.isfinite().all()) for parameter in learners[1].student.parameters())


def test_tiles_are_filtered_and_weighted_by_columns(build, tmp_path: Path) -> None:
    """Tiles of one scene are left out; others count as much as their label covers, which here is what tells them."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (4, 20, 4, 32, 32), dtype=np.uint8)
    share = np.zeros((4, 20, 3), np.float32)
    share[:, ::2, 0] = share[:, 1::2, 1] = 1
    dataset = build(
        tmp_path / "dataset",
        {"one": image, "other": image},
        {"one": share, "other": share},
        split=lambda scene, row, col: "val" if row == 3 else "train",
        known=lambda scene, row, col: 1.0 if col % 2 == 0 else 0.01,
    )
    settings = ["where=scene=one", "weight=known", "min_known=0", "steps=30", "batch=20", "lr=1e-3"]
    assert command(dataset, tmp_path / "run", *settings) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert (metrics["tiles"], metrics["val_tiles"]) == (60, 20)
    # Pixels say nothing: the best answer is the weighted mean label, 0.99 of the first class, which is half wrong.
    assert metrics["val_kl"] > 1.0 > metrics["val_kl_mean_baseline"]


def test_the_last_of_a_setting_counts_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def note(data: list[str], run: Path, config: TrainConfig, *_: object) -> int:
        found.append((data, config.batch, config.image_size))
        return 0

    monkeypatch.setattr(train, "train", note)
    for line in (
        "batch=1 --data a b batch=2 --out run image_size=32",
        "--data a b batch=1 image_size=32 --out run batch=2",
        "--out run image_size=32 batch=1 --data a b batch=2",
        "--out run image_size=16 --data a b image_size=64 batch=1 --preset geokr batch=2 image_size=32",
    ):
        assert train.main([*line.split(), "device=cpu"]) == 0
    assert found == [(["a", "b"], 2, 32)] * 4


def test_how_tiles_are_drawn_is_a_setting(coloured: Path) -> None:
    """Training's tiles are those of a loader with the same options; held-out tiles keep their order."""
    options: dict[str, Any] = {"balance": 0.5, "shuffle_buffer": 64, "seed": 3, "on_error": "skip"}
    config = configure("geokr", None, [*SMALL, "min_known=0.75", *(f"{n}={v}" for n, v in options.items())])
    training, held_out = train.make_loaders(str(coloured), config, ALONE)
    alike = TileLoader(coloured, Selection("train", min_known=0.75), batch=32, **options)
    assert (training.tiles, held_out.tiles) == (alike.tiles, int((held_out.selected.known >= 0.75).sum()))
    assert training.tiles < 192
    for number in range(2):
        assert all(
            torch.equal(one.image, other.image)
            for one, other in zip(training.epoch(number), alike.epoch(number), strict=True)
        )
    without = TileLoader(coloured, Selection("train", min_known=0.5), batch=32, seed=3)
    assert not torch.equal(next(iter(training)).fraction, next(iter(without)).fraction)
    assert (held_out.shuffle, held_out.shuffle_buffer) == (False, 0)
    assert held_out.on_error == training.on_error == "skip"


def test_tiles_that_cannot_be_read_are_skipped_and_counted_if_asked(
    coloured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = unreadable(coloured, tmp_path / "dataset")
    steps = ["steps=12"]
    assert command(dataset, tmp_path / "stops", *steps) != 0
    assert "east/image/c/0/0/0/0/0: tile" in capsys.readouterr().err
    assert command(dataset, tmp_path / "run", "on_error=skip", *steps) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    skipped = [line["skipped"] for line in lines if "skipped" in line]
    assert skipped == sorted(skipped)
    assert skipped[-1] >= 2 * 64  # two epochs; what statistics and the probe leave out counts, too
    curve = csv.DictReader((tmp_path / "run/plots/val.csv").open())
    assert [row["step"] for row in curve] == ["6", "12"]  # unless told otherwise, once an epoch


def test_of_a_pair_the_teacher_sees_the_other_date(build, tmp_path: Path) -> None:
    """Both dates of a place bear one label; the teacher's answer is another where its date looks otherwise."""
    rng = np.random.default_rng(0)
    image = {name: rng.integers(0, 256, (4, 8, 4, 32, 32)).astype(np.uint8) for name in ("spring", "autumn")}
    share = dict.fromkeys(image, rng.dirichlet([0.5] * 3, (4, 8)).astype(np.float32))
    more = {
        "place": np.array([f"p{k}" for k in range(32)] * 2, object),
        "acquired": np.array(["2020-04-01"] * 32 + ["2020-10-01"] * 32, "datetime64[us]"),
    }
    dataset = build(tmp_path / "dates", image, share, more=more)
    config = configure("geokr", None, [*SMALL, "batch=16", "pairs=true", "steps=4"])
    training = TileLoader(dataset, Selection("train", pairs=True), batch=16)
    learner = create_learner(config, ALONE, training, training, gather_facts(training, training))
    batch = next(iter(training))
    assert batch.pair is not None
    same_date, other_date = (losses_of(learner, replace(batch, pair=seen)) for seen in (batch.image, batch.pair))
    assert torch.equal(same_date[:, 1], other_date[:, 1])  # the student's
    assert not torch.allclose(same_date[:, 2], other_date[:, 2])
    train_step(learner, batch)
    alone = create_learner(config, ALONE, training, training, gather_facts(training, training))
    train_step(alone, replace(batch, pair=None))
    assert learner.recent_losses[0, 2] != alone.recent_losses[0, 2]
    train_step(
        learner,
        replace(batch, **{name: getattr(batch, name)[:5] for name in ("image", "fraction", "known", "weight", "pair")}),
    )


@pytest.mark.parametrize("settings", [["objective=supervised"], ["shuffle_buffer=64"]])
def test_pairs_need_two_views_and_a_permutation(coloured: Path, settings: list[str]) -> None:
    with pytest.raises(ValueError, match=r"pairs (need an objective with two views|cannot be read with a shuffle)"):
        train.make_loaders(str(coloured), configure("geokr", None, ["pairs=true", *settings]), ALONE)


def test_what_an_objective_remembers_survives_a_stop(
    coloured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue of features is in the checkpoint, and the run goes on with it to the bit."""
    monkeypatch.setattr(learner_module, "choose", lambda name: Queue)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert command(coloured, whole, "steps=9") == 0

    def interrupted(learner, batch) -> None:
        train_step(learner, batch)
        if learner.step == 4:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train, "train_step", interrupted)
    assert command(coloured, parts, "steps=9") == 128 + signal.SIGINT
    assert command(coloured, parts, "steps=9") == 0
    assert same_state(whole / LAST, parts / LAST)
    queue = load(parts / LAST).memory["queue"]
    assert len(queue.unique(dim=0)) == len(queue)  # of steps before the stop and after it
    logged = [json.loads(line) for line in (parts / "log.jsonl").read_text().splitlines()]
    assert logged[0]["distance"] > 0


def test_each_step_has_views_of_its_own(coloured: Path) -> None:
    learner = by_a_step(coloured)
    image = next(iter(learner.training)).image
    found = {}
    for seed in (0, 1):
        learner.config = learner.config.model_copy(update={"seed": seed})
        for learner.step, stream in itertools.product((0, 1, 2), (FIRST_VIEW, SECOND_VIEW)):
            found[seed, learner.step, stream] = learner.view(image, None, stream)
            assert torch.equal(learner.view(image, None, stream), found[seed, learner.step, stream])
    assert not any(torch.equal(*pair) for pair in itertools.combinations(found.values(), 2))
    pixels = learner.normalise(learner.to_unit(image))
    assert float(pixels.mean((0, 2, 3)).abs().max()) < 0.3  # as much as a batch is off the data set
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx([1.0] * 3, abs=0.3)


@pytest.mark.parametrize(("step", "share"), [(0, 0.0067379), (10, 0.2865048), (19, 0.9875778), (20, 1.0), (39, 1.0)])
def test_the_consistency_rises_over_a_part_of_the_run(coloured: Path, step: int, share: float) -> None:
    """exp(-5 (1 - t) ^ 2) of it, t being 1 after half of 40 steps."""
    learner = by_a_step(coloured, "steps=40", "ramp_up=0.5", "consistency=3")
    learner.step = step
    batch = next(iter(learner.training))
    loss, kl, disagreement = losses_of(learner, batch).T
    assert torch.allclose(loss, kl + 3 * share * disagreement, atol=1e-6)
    assert float(disagreement.detach().max()) > 1e-3


def test_biases_and_normalisation_do_not_decay(coloured: Path) -> None:
    """A step of tiles without weight has no gradient: what is left of it is the decay."""
    settings = ["objective=supervised", "lr=0.1", "weight_decay=0.5", "warm_up=0", "steps=9"]
    config = configure("geokr", None, [*SMALL, *settings])
    training, held_out = (
        TileLoader(coloured, Selection("train"), batch=32),
        TileLoader(coloured, Selection("val"), batch=32, shuffle=False),
    )
    learner = create_learner(config, ALONE, training, held_out, gather_facts(training, held_out))
    before = [parameter.detach().clone() for parameter in learner.student.parameters()]
    train_step(learner, replace(next(iter(training)), weight=torch.zeros(32)))
    for now, then in zip(learner.student.parameters(), before, strict=True):
        assert torch.allclose(now, then * (0.95 if then.ndim > 1 else 1.0), rtol=1e-5, atol=0)


def test_what_a_network_drops_is_a_function_of_seed_and_step(coloured: Path) -> None:
    learners = [by_a_step(coloured, "optimiser=sgd", "lr=0.05") for _ in range(3)]
    for number, learner in enumerate(learners):
        for module in learner.student.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.5 if number else 0.0
        torch.manual_seed(number)
        torch.rand(number)
        train_step(learner, next(iter(learner.training)))
    assert far(learners[1], learners[2]) == 0
    assert far(learners[0], learners[1]) > 1e-4  # it does drop


@pytest.mark.parametrize("amp", ["fp32", "fp16"])
def test_a_long_gradient_is_shortened(coloured: Path, amp: str) -> None:
    """That of the loss, not of the loss as it is scaled for half precision."""
    settings = ["optimiser=sgd", "lr=1", "weight_decay=0", "objective=supervised", "steps=1", f"amp={amp}"]
    start = by_a_step(coloured, *settings, weight=torch.ones(32))
    assert start.config.clip == 0
    config = configure("geokr", None, [*SMALL, "model=test_vit", *settings, "warm_up=0", "clip=0.01"])
    training, held_out = (
        TileLoader(coloured, Selection("train"), batch=32),
        TileLoader(coloured, Selection("val"), batch=32, shuffle=False),
    )
    learner = create_learner(config, ALONE, training, held_out, gather_facts(training, held_out))
    before = [parameter.detach().clone() for parameter in learner.student.parameters()]
    train_step(learner, next(iter(training)))
    moved = [now - then for now, then in zip(learner.student.parameters(), before, strict=True)]
    assert float(torch.cat([part.flatten() for part in moved]).norm()) == pytest.approx(0.01, rel=1e-3)


def test_activations_computed_again_change_nothing(coloured: Path) -> None:
    """Batch statistics neither, though a block then runs twice."""
    settings = ["model=test_resnet", "optimiser=sgd", "lr=0.01"]
    kept, again = by_a_step(coloured, *settings), by_a_step(coloured, *settings, "recompute=true")
    calls = []
    again.student.encoder.layer2[0].register_forward_pre_hook(lambda *_: calls.append(1))
    train_step(again, next(iter(again.training)))
    train_step(kept, next(iter(kept.training)))
    assert len(calls) == 2
    for network in ("student", "teacher"):
        states = [learner.objective.networks[network].state_dict() for learner in (kept, again)]
        for name, value in states[0].items():
            assert torch.allclose(value, states[1][name], atol=1e-6), name


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        (["amp=bf16"], 3e-2),
        (["amp=fp16"], 3e-2),
        (["channels_last=false"], 1e-4),
        (["compile=true"], 1e-4),
    ],
)
def test_other_ways_to_compute_come_to_the_same(
    coloured: Path, settings: list[str], tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As torch.compile does, but without generating code, which takes minutes.
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="aot_eager"))
    common = ["model=test_resnet", "optimiser=sgd", "lr=0.01"]
    plain, other = by_a_step(coloured, *common), by_a_step(coloured, *common, *settings)
    assert far(plain, other) < tolerance
    assert torch.allclose(plain.recent_losses[:3], other.recent_losses[:3], atol=tolerance)
    if "amp=fp16" in settings:
        assert other.scaler.get_scale() > 1
    if settings[0].startswith("amp"):
        assert far(plain, other) > 0


def test_a_step_that_overflows_in_half_precision_is_left_out_and_scaled_down(coloured: Path) -> None:
    learner = by_a_step(coloured, "amp=fp16")
    learner.scaler.load_state_dict({**learner.scaler.state_dict(), "scale": 2.0**100})
    before = [parameter.detach().clone() for parameter in learner.student.parameters()]
    train_step(learner, next(iter(learner.training)))
    assert all(torch.equal(*pair) for pair in zip(before, learner.student.parameters(), strict=True))
    assert learner.scaler.get_scale() == 2.0**99


@pytest.mark.parametrize("settings", [["amp=fp16"], ["optimiser=lamb"], ["accumulate=2", "recompute=true"]])
def test_stopping_and_going_on_holds_for_all_of_the_state(
    coloured: Path, tmp_path: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["steps=9", "probe=0", *settings]
    assert command(coloured, tmp_path / "whole", *settings) == 0

    def interrupted(learner, batch) -> None:
        train_step(learner, batch)
        if learner.step == 5:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(train, "train_step", interrupted)
    assert command(coloured, tmp_path / "parts", *settings) == 128 + signal.SIGTERM
    assert bool(load(tmp_path / "parts" / LAST).scaler) == ("amp=fp16" in settings)
    monkeypatch.undo()
    assert command(coloured, tmp_path / "parts", *settings) == 0
    assert same_state(tmp_path / "whole" / LAST, tmp_path / "parts" / LAST)


@pytest.fixture(scope="module")
def trained(coloured: Path) -> tuple[Learner, Validation, Validation]:
    """A learner after a short run of default settings, and its validation before and after."""
    config = configure("geokr", None, [*SMALL, "steps=60", "lr=3e-3"])
    training, held_out = (
        TileLoader(coloured, Selection("train"), batch=32),
        TileLoader(coloured, Selection("val"), batch=32, shuffle=False),
    )
    learner = create_learner(config, ALONE, training, held_out, gather_facts(training, held_out))
    first = validate(learner)
    for epoch in range(10):
        for batch in training.epoch(epoch):
            train_step(learner, batch)
            learner.logged_steps = learner.step
    return learner, first, validate(learner)


def create(config: TrainConfig, training: TileLoader, held_out: TileLoader) -> Learner:
    return create_learner(config, ALONE, training, held_out, gather_facts(training, held_out))


def held_out_kl(learner: Learner, network: torch.nn.Module) -> float:
    """KL(A || p) of a network over the held-out tiles, which are as large as its input."""
    parts = []
    with torch.no_grad():
        for batch in learner.held_out:
            logits, _ = network(learner.normalise(learner.to_unit(batch.image)))
            p = torch.softmax(logits.double(), dim=1)
            parts.append((torch.special.xlogy(batch.fraction, batch.fraction) - batch.fraction * p.log()).sum(1))
    return float(torch.cat(parts).mean())


def test_the_teacher_is_no_worse_than_its_student_however_short_the_run(
    trained: tuple[Learner, Validation, Validation],
) -> None:
    learner, _, last = trained
    student, teacher = (held_out_kl(learner, copy.deepcopy(n).eval()) for n in learner.objective.networks.values())
    assert teacher < 1.1 * student
    assert last.numbers["student_kl"] == pytest.approx(student, rel=1e-4)


def test_validation_judges_features_and_classes_too(trained: tuple[Learner, Validation, Validation]) -> None:
    learner, first, last = trained
    training, held_out = learner.training, learner.held_out
    assert last.numbers["knn_top1"] > 0.8
    assert last.numbers["knn_mae"] < first.numbers["knn_mae"]
    assert np.sum(last.confusion) == pytest.approx(1)
    assert np.sum(last.confusion, axis=1) == pytest.approx(held_out.fraction.mean(0), abs=1e-6)
    assert np.trace(last.confusion) > np.trace(first.confusion)
    assert list(last.error) == list(training.classes)
    assert np.mean(list(last.error.values())) == pytest.approx(last.numbers["mae"])
    mean = (training.fraction.sum(0) + 1 / 3) / (len(training.fraction) + 1)  # one tile of equal shares is added
    kl = torch.nn.functional.kl_div(torch.from_numpy(mean).log(), last.shares["label"], reduction="none").sum(1).mean()
    assert last.numbers["kl_of_mean"] == pytest.approx(float(kl), abs=1e-5)
    assert torch.equal(last.shares["label"], torch.from_numpy(held_out.fraction))


@pytest.mark.parametrize("objective", ["geokr", "reference", "supervised"])
def test_validation_is_of_the_teacher_in_evaluation_mode_and_changes_nothing(coloured: Path, objective: str) -> None:
    learner = by_a_step(coloured, "model=test_resnet", "amp=fp32", "ema_horizon=1", f"objective={objective}")
    networks = [*learner.objective.networks.values()]
    before = [copy.deepcopy(network.state_dict()) for network in networks]
    modes = [network.training for network in networks]
    numbers = validate(learner).numbers
    found = numbers["kl"]
    assert [network.training for network in networks] == modes
    assert all(same(network.state_dict(), state) for network, state in zip(networks, before, strict=True))
    kl = []
    with torch.no_grad():
        for network in networks:
            network.eval()
            kl.append(held_out_kl(learner, network))
    assert found == pytest.approx(kl[-1], rel=1e-4)  # networks ends with the teacher, where there is one
    assert numbers.get("student_kl", found) == pytest.approx(kl[0], rel=1e-4)
    assert len(kl) == 1 or found != pytest.approx(kl[0], rel=1e-3)


@pytest.mark.parametrize("student", [0.25, 0.75])
def test_a_teacher_that_is_worse_than_its_student_is_told_at_the_end(
    coloured: Path, tmp_path: Path, student: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = {"kl": 0.5, "student_kl": student, "kl_of_mean": 1.0, "top1": 1.0, "mae": 0.0}
    judge = train.validate
    monkeypatch.setattr(train, "validate", lambda learner: replace(judge(learner), numbers=numbers))
    assert command(coloured, tmp_path, "steps=1", "probe=0") == 0
    told = "is worse than the student: held-out KL 0.5000 and 0.2500 nats" in capsys.readouterr().err
    assert told == (student < 0.5)
    assert json.loads((tmp_path / "metrics.json").read_text())["val_student_kl"] == student
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["student_kl"] for row in logged if row["split"] == "val"] == [student]


def unreadable(dataset: Path, copy: Path) -> Path:
    """A copy of the coloured tiles of which the first shard, 64 of 192 training tiles, is missing."""
    shutil.copytree(dataset, copy)
    (copy / "tiles.zarr/east/image/c/0/0/0/0/0").unlink()
    return copy


@pytest.mark.parametrize("settings", [[], ["shuffle_buffer=32"]])
def test_neighbours_are_readable_tiles_from_the_whole_split(
    coloured: Path, tmp_path: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure("geokr", None, [*SMALL, "on_error=skip", "probe=96", *settings])
    learner = create(config, *train.make_loaders(str(unreadable(coloured, tmp_path / "dataset")), config, ALONE))
    banks = []

    def note(features: torch.Tensor, labelled: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        banks.append((labelled, shares))
        return shares[:1].expand(len(features), -1)

    monkeypatch.setattr(validation, "neighbours", note)
    validate(learner)
    features, shares = banks[0]
    assert torch.allclose(shares.sum(1), torch.ones(len(shares)), atol=1e-5)
    training = learner.training
    drawn = training._draw_sample(96)
    readable = [
        k
        for k in drawn
        if not (training.selected.scenes[training.selected.scene[k]] == "east" and training.selected.col[k] < 8)
    ]
    assert len(shares) == len(features) == len(readable) < 96
    assert sorted(map(tuple, shares.tolist())) == sorted(map(tuple, training.selected.fraction[readable].tolist()))
    assert len(set(training.selected.scene[drawn])) == 2  # not the tiles of the shards that an epoch reads first


def test_validation_computes_batches_of_one_shape(coloured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled network has a graph for each shape. 64 held-out tiles are no multiple of 24; nor are 192, or 100."""
    config = configure("geokr", None, [*SMALL, "batch=24", "probe=100"])
    learner = create(config, *train.make_loaders(str(coloured), config, ALONE))
    shapes = set()
    for network in learner.objective.networks.values():
        network.register_forward_pre_hook(lambda _, images: shapes.add(tuple(images[0].shape)))
    found = validate(learner)
    assert shapes == {(24, 3, 32, 32)}
    assert len(found.shares["label"]) == len(found.shares["predicted"]) == 64
    assert found.numbers["kl"] == pytest.approx(held_out_kl(learner, learner.evaluated), rel=1e-4)


def test_the_teacher_of_each_preset(coloured: Path) -> None:
    """Ours: averaged with statistics, in evaluation mode. The published one: weights alone, training mode, own head."""
    for preset in ("geokr", "reference"):
        config = configure(preset, None, [*SMALL, "classes=[]", "pretrained=false", "steps=40"])
        training = TileLoader(coloured, Selection("train"), batch=32)
        held_out = TileLoader(coloured, Selection("val"), batch=32, shuffle=False)
        learner = create_learner(config, ALONE, training, held_out, gather_facts(training, held_out))
        student, teacher = learner.objective.networks.values()
        assert teacher is not None
        assert teacher.training == (preset == "reference")
        assert torch.equal(student.head.weight, teacher.head.weight) == (preset == "geokr")
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        seen: dict[torch.nn.Module, torch.Tensor] = {}

        def note(network: torch.nn.Module, images: Any, seen: dict[torch.nn.Module, torch.Tensor] = seen) -> None:
            seen[network] = images[0]

        hooks = [network.register_forward_pre_hook(note) for network in (student, teacher)]
        train_step(learner, next(iter(training)))
        assert torch.equal(seen[student], seen[teacher]) == (preset == "reference")
        assert (0 <= float(seen[student].min()) < float(seen[student].max()) <= 1) == (preset == "reference")
        for hook in hooks:
            hook.remove()
        buffer, weight = "encoder.conv1.1.running_mean", "encoder.conv1.0.weight"
        now, its = teacher.state_dict(), student.state_dict()
        keep = 1 / 11 if preset == "geokr" else 0.95
        assert torch.allclose(now[weight], keep * before[weight] + (1 - keep) * its[weight], atol=1e-7)
        averaged = keep * before[buffer] + (1 - keep) * its[buffer]
        assert torch.allclose(now[buffer], averaged, atol=1e-6) == (preset == "geokr")
        if preset == "reference":
            # It saw the student's very view with weights like the student's: so are its statistics.
            assert torch.allclose(now[buffer], its[buffer], atol=1e-6)
            weights = teacher.state_dict()[weight].clone()
            train_step(learner, next(iter(training)))
            assert torch.equal(teacher.state_dict()[weight], weights)  # not one of the listed steps
        assert all(parameter.grad is None for parameter in teacher.parameters())


RANK = """
import signal
import sys
from pathlib import Path
import torch
from geokr import train
from geokr.pretraining import learner as learner_module
from geokr.pretraining.config import configure
from geokr.pretraining.processes import process_group, unsharded
from tests.queue_objective import Queue

data, out, *settings = sys.argv[1:]
learners, begin, learn = [], train.create_learner, train.train_step
train.create_learner = lambda *arguments: learners.append(begin(*arguments)) or learners[-1]

def stopped(learner, batch):
    learn(learner, batch)
    if learner.step == 5 and process.rank == 1:
        signal.raise_signal(signal.SIGTERM)

def run(name, *more):
    return train.train(data, Path(out) / name, configure(overrides=[*settings, *more]), process)

with process_group("cpu") as process:
    assert run("copied", "model=test_vit") == 0
    assert run("batch-norm", "model=test_resnet") == 0
    assert run("shared", "model=test_vit", "shard=true") == 0
    train.train_step = stopped
    assert run("stopped", "model=test_vit", "shard=true", "steps=14") == 128 + signal.SIGTERM
    train.train_step = learn
    stopped_at = learners[-1].step
    assert run("stopped", "model=test_vit", "shard=false", "steps=14") == 0
    assert run("not-stopped", "model=test_vit", "steps=14") == 0
    learner_module.choose = train.choose = lambda name: Queue
    assert run("queue", "model=test_vit") == 0
    held = [unsharded(n.state_dict()) for learner in learners for n in learner.objective.networks.values()]
    held.append(learners[-1].objective.memory)
torch.save([stopped_at, held], Path(out) / f"rank{process.rank}.pt")
"""


def test_two_processes_do_the_work_of_one(coloured: Path, tmp_path: Path) -> None:
    settings = ["image_size=32", "batch=32", "steps=8", "loggers=[]", "optimiser=adamw", "lr=1e-3", "clip=0.5"]
    settings += ["accumulate=2", "weight_decay=0.1", "weight=known"]
    alone = tmp_path / "alone"
    ranks = start_ranks(RANK, coloured, tmp_path, *settings)
    assert train.main(["--data", str(coloured), "--out", str(alone), "model=test_vit", *settings]) == 0
    wait_for_ranks(ranks)

    # With layer normalisation a tile's output depends on that tile alone: only rounding differs, whether each process
    # holds all weights or a part of them. Adam divides by the gradient's size, which makes much of rounding.
    one = load(alone / LAST)
    for run in ("copied", "shared"):
        other = load(tmp_path / run / LAST)
        for name, value in one.networks["student"].items():
            assert torch.allclose(value, other.networks["student"][name], atol=2e-4), (run, name)
        assert other.optimiser["state"].keys() == one.optimiser["state"].keys()
        metrics = [json.loads((path / "metrics.json").read_text()) for path in (alone, tmp_path / run)]
        assert metrics[0].pop("val_mae_of") == pytest.approx(metrics[1].pop("val_mae_of"), abs=1e-3)
        assert metrics[0] == pytest.approx(metrics[1], abs=1e-3)
        curves = [csv.DictReader((path / "plots/train.csv").open()) for path in (alone, tmp_path / run)]
        ours, its = ([float(row["loss"]) for row in curve] for curve in curves)
        assert ours == pytest.approx(its, abs=1e-3)

    # A signal to one process stops all, at the next step at which they talk. What was shared out goes on in copies.
    ended = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert [at for at, _ in ended] == [10, 10]
    stopped, not_stopped = load(tmp_path / "stopped" / LAST), load(tmp_path / "not-stopped" / LAST)
    for name, value in stopped.networks["student"].items():
        assert torch.allclose(value, not_stopped.networks["student"][name], atol=2e-4), name
    # With batch normalisation each sees its own tiles' statistics, but both end with the same networks.
    assert same(*ended)

    # What an objective remembers is the same on both, and no average: each process put its own mean into it.
    queue = load(tmp_path / "queue" / LAST).memory["queue"]
    held = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)[1][-1]["queue"] for rank in range(2)]
    assert torch.equal(held[0], queue)
    assert torch.equal(held[1], queue)
    assert len(queue.unique(dim=0)) == LENGTH


ONLY_TORCH = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.split(".")[0] in {absent} else find(name, *rest)
from geokr.train import main
sys.exit(main(sys.argv[1:]))
"""


def test_training_needs_torch_timm_and_tensorstore_alone(coloured: Path, tmp_path: Path) -> None:
    absent = {"zarr", "typer", "geopandas", "rasterio", "shapely", "dask", "pandas", "pipeline"}
    absent |= {"matplotlib", "tensorboard", "dvclive", "odc", "cv2", "xarray", "pyproj", "exactextract"}
    code = ONLY_TORCH.replace("{absent}", repr(absent))
    settings = ["model=test_resnet", "image_size=32", "batch=16", "steps=2", "loggers=tensorboard,dvclive"]
    line = [sys.executable, "-c", code, "--data", str(coloured), "--out", str(tmp_path), *settings]
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("tensorboard is not installed: its log is not written") == 1
    assert done.stderr.count("dvclive is not installed: its log is not written") == 1
    assert (tmp_path / "metrics.json").exists()


def test_logs_for_viewers(coloured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(coloured, tmp_path, "steps=4", "validate_every=2", "loggers=tensorboard,dvclive") == 0
    assert re.search(r"loss \d\.\d+, \d+ tiles/s, \d+% waiting for data", capsys.readouterr().err)
    seen = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0, "histograms": 0}).Reload()
    tags = seen.Tags()
    assert set(tags["images"]) == {"confusion", "views of student and teacher"}
    kinds = {f"{kind}/{name}" for kind in ("label", "predicted") for name in ("water", "forest", "bare")}
    assert set(tags["histograms"]) == kinds
    assert {"val/knn_top1", "mae/water", "train/waiting"} <= set(tags["scalars"])
    assert [event.step for event in seen.Images("confusion")] == [2, 4]
    views = Image.open(io.BytesIO(seen.Images("views of student and teacher")[0].encoded_image_string))
    assert views.size == (8 * 32, 2 * 32)
    label = seen.Histograms("label/water")[0].histogram_value
    assert (label.num, label.min >= 0, label.max <= 1) == (64, True, True)
    share = TileLoader(coloured, Selection("val"), batch=32, shuffle=False).fraction
    for k, name in enumerate(("water", "forest", "bare")):
        label = seen.Histograms(f"label/{name}")[0].histogram_value
        assert label.sum == pytest.approx(float(share[:, k].sum()), rel=1e-5)
    for path in (tmp_path / "plots/confusion.png", tmp_path / "dvclive/plots/images/confusion.png"):
        assert Image.open(path).size[0] > 3 * 40
    curve = (tmp_path / "dvclive/plots/metrics/val/kl.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in curve] == ["step", "2", "4"]


def test_the_picture_of_confusion_says_where_shares_went() -> None:
    """Two classes: the first half taken for the second, the second right, and a third that is nowhere."""
    figure = confusion_figure([[0.2, 0.2, 0.0], [0.0, 0.6, 0.0], [0.0, 0.0, 0.0]], ["water", "forest", "bare"])
    (axes,) = figure.axes
    colours = axes.images[0].get_array().filled(-1)
    assert colours[:3, :3].tolist() == [[50, 50, 0], [0, 100, 0], [0, 0, 0]]
    assert (colours[3] == -1).all()
    assert (colours[:, 3] == -1).all()
    said = {text.get_position(): text.get_text() for text in axes.texts}
    assert {(x, y): text for (x, y), text in said.items() if 3 in (x, y)} == {
        (3, 0): "40", (3, 1): "60", (0, 3): "20", (1, 3): "80",
    }  # fmt: skip
    assert {(x, y): text for (x, y), text in said.items() if 3 not in (x, y)} == {
        (0, 0): "50", (1, 0): "50", (1, 1): "100",
    }  # fmt: skip
    assert [label.get_text() for label in axes.get_yticklabels()] == ["water", "forest", "bare", "all predicted"]


def test_views_are_shown_in_true_colour(tmp_path: Path) -> None:
    journal = Journal(tmp_path, TrainConfig(loggers=("tensorboard",)), 0)
    views = torch.zeros(4, 4, 6, 6)  # nir, red, green, blue: all red but the teacher's second, which is blue
    views[:, 0] = 0.5
    views[:3, 1] = views[3:, 3] = 1
    journal.write_views(1, views, ("nir", "red", "green", "blue"))
    journal.close()
    (event,) = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Images("views of student and teacher")
    picture = Image.open(io.BytesIO(event.encoded_image_string))
    found = [picture.getpixel(place) for place in ((3, 3), (9, 3), (3, 9), (9, 9))]
    assert found == [(255, 0, 0)] * 3 + [(0, 0, 255)]
    config = TrainConfig(loggers=("tensorboard",))
    journal = Journal(tmp_path / "grey", config, 0)  # without a blue band, the first in grey
    journal.write_views(1, views[:, :3], ("nir", "red", "green"))
    journal.close()
    (event,) = EventAccumulator(str(tmp_path / "grey/tensorboard")).Reload().Images("views of student and teacher")
    picture = Image.open(io.BytesIO(event.encoded_image_string))
    assert {picture.getpixel(place) for place in ((3, 3), (9, 3), (3, 9), (9, 9))} == {(127, 127, 127)}


def test_a_log_goes_on_from_the_step_of_the_checkpoint(tmp_path: Path) -> None:
    """What an earlier process wrote after it is gone from all of them."""
    for start, steps, factor in ((0, (1, 2, 3), 1.0), (2, (3, 4), 10.0)):
        journal = Journal(tmp_path, TrainConfig(loggers=("tensorboard",)), start)
        for step in steps:
            journal.write(step, "train", {"kl": factor * step})
        journal.close()
    wanted = [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/kl")
    assert [(event.step, event.value) for event in events] == wanted
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(row["step"], row["kl"]) for row in rows] == wanted


def test_batch_norm_over_processes_needs_gpus(coloured: Path) -> None:
    config = configure("geokr", None, [*SMALL, "sync_batch_norm=true"])
    training, held_out = (
        TileLoader(coloured, Selection("train"), batch=32),
        TileLoader(coloured, Selection("val"), batch=32, shuffle=False),
    )
    facts = gather_facts(training, held_out)
    with pytest.raises(ValueError, match="sync_batch_norm needs GPUs"):
        create_learner(config, Process(0, 2, torch.device("cpu")), training, held_out, facts)
    create_learner(config, ALONE, training, held_out, facts)


def test_without_a_terminal_progress_is_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    with tqdm(total=2, file=console.LineWriter(), mininterval=0) as bar:
        bar.update()
        bar.update()
    said = capsys.readouterr().err
    assert "\r" not in said
    assert [line.split("%")[0] for line in said.splitlines()] == ["0", "50", "100", "100"]


def test_memory_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    used = console.format_memory(torch.device("cpu"))
    assert 0.1 < float(used.removesuffix(" GiB")) < 100  # this process has torch in it
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 3 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 << 30))
    assert console.format_memory(torch.device("cuda", 0)) == "3.0 of 80.0 GiB"


def test_a_checkpoint_of_another_version_is_moved_aside_if_asked(coloured: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    torch.save({"version": VERSION - 2}, run / LAST)
    assert command(coloured, run, "steps=2") == 2
    assert command(coloured, run, "steps=2", "--restart-if-changed") == 0
    assert load(run / LAST).step == 2
    assert (tmp_path / "run.1" / LAST).exists()


def test_a_set_without_red_green_and_blue_is_trained_on_its_own_bands(
    build: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = {"only": np.random.default_rng(0).integers(0, 256, (8, 8, 2, 32, 32)).astype(np.uint8)}
    share = {"only": np.full((8, 8, 3), 1 / 3, np.float32)}
    bands = {"only": ["nir", "swir16"]}
    dataset = build(tmp_path / "two", pixels, share, bands=bands, split=lambda s, r, c: "val" if c == 7 else "train")
    assert command(dataset, tmp_path / "run", "bands=[]", "steps=2") == 0
    assert "bands are nir, swir16: no scene has red, green and blue" in capsys.readouterr().err
    assert load(tmp_path / "run" / LAST).config["bands"] == ("nir", "swir16")
    assert command(dataset, tmp_path / "run", "bands=[]", "steps=3") == 0  # the same run, made longer
