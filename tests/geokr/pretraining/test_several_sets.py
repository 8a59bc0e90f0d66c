"""A run on several data sets: it learns from all, resumes bit for bit, and knows which they were."""

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from geokr import train
from geokr.pretraining.card import format_model_card, list_licences
from geokr.pretraining.checkpoint import LAST, load
from geokr.pretraining.facts import join_extents
from geokr.pretraining.learner import train_step
from tests.geokr.conftest import COLOURS

SETTINGS = ["model=test_resnet", "image_size=32", "batch=24", "loggers=[]", "bands=red,green,blue", "probe=64"]
SETTINGS += ["validate_every=6"]


@pytest.fixture(scope="module")
def two(build, coloured: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Tiles of 32 px in two classes each, and tiles of 48 px in one class each; 36 of those are for training."""
    rng = np.random.default_rng(3)
    kind = rng.integers(0, 3, (6, 8))
    noise = rng.normal(0, 12, (6, 8, 4, 48, 48))
    pixels = (COLOURS[kind][..., None, None] + noise).clip(0, 255).astype(np.uint8)
    share = np.eye(3, dtype=np.float32)[kind]
    root = tmp_path_factory.mktemp("plain") / "plain"
    build(root, {"east": pixels}, {"east": share}, split=lambda s, row, col: "val" if col > 5 else "train")
    return [str(coloured), str(root)]


def command(data: list[str], run: Path, *settings: str) -> int:
    return train.main(["--data", *data, *SETTINGS, "--out", str(run), *settings])


def test_stopping_changes_nothing_and_other_data_sets_are_refused(
    two: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Settings may stand between --data and --out."""
    settings = ["steps=13", "mixture=1,1"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert command(two, whole, *settings) == 0

    def interrupted(learner, batch) -> None:
        train_step(learner, batch)
        if learner.step == 7:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", interrupted)
        assert command(two, parts, *settings) == 128 + signal.SIGTERM
    capsys.readouterr()
    for data, said in ((two[::-1], "(other tiles by dataset"), (two[:1], "other training tiles")):
        assert command(data, parts, *settings[: len(data)]) == 2
        assert said in capsys.readouterr().err
    assert command(two, parts, *settings) == 0
    for name in ("encoder.safetensors", "metrics.json", "plots/train.csv", "plots/val.csv"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name
    last = load(parts / LAST)
    assert last.datasets == tuple(two)
    assert last.facts["tiles_by_dataset"] == (192, 36)
    assert last.facts["held_out_tiles"] == json.loads((parts / "metrics.json").read_text())["val_tiles"] == 64 + 12
    card = format_model_card(last, 8, {})
    assert f"the data sets `{Path(two[0]).name}` (192), `plain` (36), labelled with `made_2020`" in card


def test_a_run_learns_from_all(two: list[str], tmp_path: Path) -> None:
    assert command(two, tmp_path / "run", "steps=60", "lr=3e-3") == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["val_kl"] < 0.3 * metrics["val_kl_mean_baseline"]


def test_splits_that_differ_are_told(build, two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels, share = np.full((4, 8, 4, 32, 32), 9, np.uint8), np.full((4, 8, 3), 1 / 3, np.float32)
    for name, seed in (("one", 0), ("other", 1)):
        build(tmp_path / name, {"a": pixels}, {"a": share}, split=lambda s, row, col: "val" if col > 5 else "train")
        path = tmp_path / name / "dataset.json"
        summary = json.loads(path.read_text()) | {"settings": {"index": {"split": {"seed": seed}}}}
        path.write_text(json.dumps(summary))
    data = [str(tmp_path / name) for name in ("one", "other")]
    assert command(data, tmp_path / "run", "steps=1", "probe=0") == 0
    sentence = f"{data[0]} and {data[1]} divide places into splits differently"
    assert sentence in capsys.readouterr().err
    copy = str(shutil.copytree(data[0], tmp_path / "copy"))
    assert command([data[0], copy], tmp_path / "same", "steps=1", "probe=0") == 0
    assert "divide places" not in capsys.readouterr().err


def test_unlike_classes_are_an_error_of_the_command(
    build, two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = build(
        tmp_path / "other",
        {"a": np.full((4, 8, 4, 32, 32), 9, np.uint8)},
        {"a": np.full((4, 8, 3), 1 / 3, np.float32)},
        classes=("water", "forest", "tundra"),
    )
    assert command([two[0], str(other)], tmp_path / "run") == 2
    assert "choose classes=water,forest, which all have, or label both" in capsys.readouterr().err


def test_a_checkpoint_of_one_data_set_from_before_is_read(two: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert command(two[:1], run, "steps=2", "probe=0") == 0
    last = load(run / LAST)
    state = {field.name: getattr(last, field.name) for field in dataclasses.fields(last)}
    state["dataset"] = state.pop("datasets")[0]
    del state["facts"]["tiles_by_dataset"], state["config"]["mixture"]
    torch.save({"version": 7, **state}, run / LAST)
    assert load(run / LAST).datasets == (two[0],)
    assert command(two[:1], run, "steps=3", "probe=0") == 0


def test_what_is_known_of_each_is_joined() -> None:
    assert join_extents([((1, 2, 3, 4), ("2020", "2021")), ((), ()), ((0, 3, 2, 9), ("2019", "2019"))]) == (
        (0, 2, 3, 9),
        ("2019", "2021"),
    )
    assert join_extents([((), ())]) == ((), ())
    both = list_licences("worldcover_2020+made_2021")
    assert "WorldCover" in both[0]
    assert both[1].startswith("Land cover: made_2021: not stated")
