"""The logs of other programs hold what log.jsonl holds, and a resumed run is the same one to them."""

import json
from pathlib import Path
from typing import Any

import pytest

from geokr import train
from geokr.pretraining import loggers
from geokr.pretraining.loggers import open_loggers

SMALL = ["model=test_resnet", "image_size=32", "batch=32", "probe=0", "steps=20"]


def test_mlflow_has_the_run_once_with_its_settings_and_figures(
    coloured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/store")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    line = ["--data", str(coloured), "--out", str(tmp_path / "run"), *SMALL, "loggers=mlflow"]
    assert train.main([*line, "steps=10"]) == 0
    assert train.main(line) == 0  # the finished run is made longer: the same run to MLflow
    client = MlflowClient()
    experiment = client.get_experiment_by_name("geokr")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["model"] == "test_resnet"
    rows = [json.loads(text) for text in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    ours = {row["step"]: row["kl"] for row in rows if row["split"] == "train"}
    theirs = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "train/kl")}
    assert theirs == pytest.approx(ours, abs=1e-6)
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["confusion.png"]


class FakeWandb:
    """What the program asks of wandb, whose own process takes seconds to start."""

    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.ended = 0

    def init(self, **settings: Any) -> "FakeWandb":
        self.begun.append(settings)
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.ended += 1

    def Image(self, figure: Any) -> Any:  # noqa: N802
        return figure


def test_wandb_is_told_everything_under_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for start in (0, 10):
        (logger,) = open_loggers(tmp_path / "run", ["wandb"], {"lr": 0.1}, start)
        logger.write(start + 1, {"train/kl": 0.5})
        logger.close()
    first, second = fake.begun
    assert first == second  # the same id: it goes on
    assert (first["project"], first["name"], first["config"], first["resume"]) == ("geokr", "run", {"lr": 0.1}, "allow")
    assert fake.logged == [(1, {"train/kl": 0.5}), (11, {"train/kl": 0.5})]
    assert fake.ended == 2


def test_wandb_itself_writes_a_run_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (logger,) = open_loggers(tmp_path, ["wandb"], {"lr": 0.1}, 0)
    logger.write(1, {"train/kl": 0.5})
    logger.close()
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert (tmp_path / "wandb/id").read_text() in file.name
    assert file.stat().st_size > 0


def test_a_log_without_its_package_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*arguments: Any) -> Any:
        raise ImportError("no module")

    monkeypatch.setattr(loggers, "MlFlow", missing)
    assert open_loggers(tmp_path, ["mlflow"], {}, 0) == []
    assert caplog.messages == ["mlflow is not installed: its log is not written"]
