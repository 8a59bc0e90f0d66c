"""Training learns, stops anywhere and goes on as if it had not, and is the same however many share it."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geokr import train
from geokr.checkpoint import BEST, LAST, load
from geokr.config import configure
from geokr.learner import begin, facts_of, learn
from geokr.loader import TileLoader
from geokr.processes import Place

ALONE = Place(0, 1, torch.device("cpu"))
SMALL = ["model=test_resnet", "image_size=32", "batch=32", "loggers=[]"]
REPOSITORY = Path(__file__).parents[2]


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
    names = ("step", "student", "teacher", "optimiser", "window", "best", "mean", "std")
    return all(same(getattr(first, name), getattr(second, name)) for name in names)


@pytest.mark.parametrize("objective", ["geokr", "supervised"])
def test_a_short_run_learns_what_colour_tells(coloured: Path, tmp_path: Path, objective: str) -> None:
    run = tmp_path / "run"
    settings = ["steps=60", "lr=3e-3", "ema=0.9", "validate_every=20", f"objective={objective}"]
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
    assert (load(run / LAST).teacher is None) == (objective == "supervised")


def test_the_best_step_is_kept_though_others_follow(
    coloured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([0.5, 0.2, 0.9])
    others = {"kl_of_mean": 1.0, "top1": 1.0, "mae": 0.0}
    monkeypatch.setattr(train, "validate", lambda learner: {"kl": next(found), **others})
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
        learn(learner, batch)
        if learner.step == at:
            signal.raise_signal(number)

    monkeypatch.setattr(train, "learn", interrupted)
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
    settings = ["steps=24", "checkpoint_every=5", "validate_every=100"]
    assert command(coloured, tmp_path / "whole", *settings) == 0

    def killed(learner, batch) -> None:
        if learner.step == 13:
            raise KeyboardInterrupt
        learn(learner, batch)

    run = tmp_path / "run"
    monkeypatch.setattr(train, "learn", killed)
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
    assert capsys.readouterr().err == f"{tmp_path}: finished after 2 steps; delete it to begin again\n"
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
        return message.removeprefix("geokr.train: ")

    other = f"{run}/last.pt is of a run with other settings or tiles"
    ways = f"go back to those, give another --out, delete {run}, or add --restart-if-changed\n"
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
    for steps in (2, 3, 4):
        assert command(coloured, run, f"steps={steps}", "--restart-if-changed") == 0
    assert [load(path / LAST).total for path in (run, tmp_path / "run.1", tmp_path / "run.2")] == [4, 2, 3]
    assert command(coloured, fresh, "steps=4") == 0
    assert same_state(run / LAST, fresh / LAST)
    assert command(coloured, run, "steps=4", "--restart-if-changed") == 0  # the same: not moved
    assert not (tmp_path / "run.3").exists()


def test_a_loss_that_is_no_number_stops_the_run(
    coloured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(coloured, tmp_path, "steps=40", "optimiser=sgd", "lr=1e30", "warm_up=0") == 2
    assert "the loss is nan at step 6: try a lower lr" in capsys.readouterr().err


def test_the_teacher_of_each_preset(coloured: Path) -> None:
    """Ours: averaged with statistics, in evaluation mode. The published one: weights alone, training mode, own head."""
    for preset in ("geokr", "reference"):
        config = configure(preset, None, [*SMALL, "classes=[]", "pretrained=false", "steps=40"])
        training = TileLoader(coloured, "train", batch=32)
        held_out = TileLoader(coloured, "val", batch=32, shuffle=False)
        learner = begin(config, ALONE, training, held_out, facts_of(training, held_out))
        student, teacher = learner.student, learner.teacher
        assert teacher is not None
        assert teacher.training == (preset == "reference")
        assert torch.equal(student.head.weight, teacher.head.weight) == (preset == "geokr")
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        seen: dict[torch.nn.Module, torch.Tensor] = {}

        def note(network: torch.nn.Module, images: Any, seen: dict[torch.nn.Module, torch.Tensor] = seen) -> None:
            seen[network] = images[0]

        hooks = [network.register_forward_pre_hook(note) for network in (student, teacher)]
        learn(learner, next(iter(training)))
        assert torch.equal(seen[student], seen[teacher]) == (preset == "reference")
        for hook in hooks:
            hook.remove()
        buffer, weight = "encoder.conv1.1.running_mean", "encoder.conv1.0.weight"
        now, its = teacher.state_dict(), student.state_dict()
        keep = 0.5 if preset == "geokr" else 0.95
        assert torch.allclose(now[weight], keep * before[weight] + (1 - keep) * its[weight], atol=1e-7)
        averaged = keep * before[buffer] + (1 - keep) * its[buffer]
        assert torch.allclose(now[buffer], averaged, atol=1e-6) == (preset == "geokr")
        if preset == "reference":
            # It saw the student's very view with weights like the student's: so are its statistics.
            assert torch.allclose(now[buffer], its[buffer], atol=1e-6)
            weights = teacher.state_dict()[weight].clone()
            learn(learner, next(iter(training)))
            assert torch.equal(teacher.state_dict()[weight], weights)  # not one of the listed steps
        assert all(parameter.grad is None for parameter in teacher.parameters())


RANK = """
import sys
from pathlib import Path
import torch
from geokr import train
from geokr.config import configure
from geokr.processes import taking_place

data, out, *settings = sys.argv[1:]
learners, begin = [], train.begin
train.begin = lambda *arguments: learners.append(begin(*arguments)) or learners[-1]
with taking_place("cpu") as place:
    for model in ("test_vit", "test_resnet"):
        assert train.train(data, Path(out) / model, configure(pairs=[f"model={model}", *settings]), place) == 0
held = [network.state_dict() for learner in learners for network in (learner.student, learner.teacher)]
torch.save(held, Path(out) / f"rank{place.rank}.pt")
"""


def test_two_processes_do_the_work_of_one(coloured: Path, tmp_path: Path) -> None:
    settings = ["image_size=32", "batch=32", "steps=8", "loggers=[]", "optimiser=sgd"]
    alone = tmp_path / "alone"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    line = [sys.executable, "-c", RANK, str(coloured), str(tmp_path), *settings]
    ranks = [subprocess.Popen(line, env={**common, "RANK": str(rank)}, cwd=REPOSITORY) for rank in range(2)]
    assert train.main(["--data", str(coloured), "--out", str(alone), "model=test_vit", *settings]) == 0
    assert [rank.wait(60) for rank in ranks] == [0, 0]
    # With layer normalisation a tile's output depends on that tile alone: only rounding differs.
    one, two = load(alone / LAST), load(tmp_path / "test_vit" / LAST)
    for name, value in one.student.items():
        assert torch.allclose(value, two.student[name], atol=1e-5), name
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (alone, tmp_path / "test_vit")]
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-4)
    # With batch normalisation each sees its own tiles' statistics, but both end with the same networks.
    assert same(*(torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)))


ONLY_TORCH = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.split(".")[0] in {absent} else find(name, *rest)
from geokr.train import main
sys.exit(main(sys.argv[1:]))
"""


def test_training_needs_torch_timm_and_tensorstore_alone(coloured: Path, tmp_path: Path) -> None:
    absent = {"zarr", "pydantic", "typer", "geopandas", "rasterio", "shapely", "dask", "pandas", "pipeline"}
    absent |= {"tensorboard", "dvclive", "odc", "cv2", "xarray", "pyproj", "exactextract"}
    code = ONLY_TORCH.replace("{absent}", repr(absent))
    settings = ["model=test_resnet", "image_size=32", "batch=16", "steps=2", "loggers=tensorboard,dvclive"]
    line = [sys.executable, "-c", code, "--data", str(coloured), "--out", str(tmp_path), *settings]
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("tensorboard is not installed: its log is not written") == 1
    assert done.stderr.count("dvclive is not installed: its log is not written") == 1
    assert (tmp_path / "metrics.json").exists()


def test_logs_for_viewers(coloured: Path, tmp_path: Path) -> None:
    assert command(coloured, tmp_path, "steps=4", "validate_every=2", "loggers=tensorboard,dvclive") == 0
    assert list((tmp_path / "tensorboard").glob("events.*"))
    curve = (tmp_path / "dvclive/plots/metrics/val/kl.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in curve] == ["step", "2", "4"]
