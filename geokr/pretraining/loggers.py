"""The logs that other programs show: TensorBoard, DVCLive, Weights & Biases and MLflow.

Each is an optional package, which is imported when its log is asked for.
"""

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from geokr.storage.files import write_text

PROJECT = "geokr"
"""Name of the project or experiment in which a server lists the runs."""

log = logging.getLogger(__name__)


class Logger(Protocol):
    """A log of a run in the format of another program."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of a step by their names, such as `train/kl`."""

    def write_figure(self, step: int, name: str, figure: Any) -> None:
        """Log a figure of matplotlib."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Files in RUN/tensorboard. It alone also shows histograms and images."""

    def __init__(self, run: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1 if start else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def write_figure(self, step: int, name: str, figure: Any) -> None:
        self.writer.add_figure(name, figure, step)

    def write_histograms(self, step: int, kind: str, names: Sequence[str], values: torch.Tensor) -> None:
        """Log the distribution of each column of (n, len(names)) values."""
        for k, name in enumerate(names):
            self.writer.add_histogram(f"{kind}/{name}", values[:, k], step)

    def write_image(self, step: int, name: str, image: torch.Tensor) -> None:
        """Log an image, (3, y, x) float in 0..1."""
        self.writer.add_image(name, image, step)

    def close(self) -> None:
        self.writer.close()


class DvcLive:
    """Files in RUN/dvclive: numbers only. No DVC experiment is started, and the project's dvc.yaml stays unchanged."""

    def __init__(self, run: Path) -> None:
        from dvclive.live import Live

        self.live: Any = Live(str(run / "dvclive"), resume=True, report=None, save_dvc_exp=False, dvcyaml=None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.live.step = step
        for name, value in values.items():
            self.live.log_metric(name, value)
        self.live.sync()

    def write_figure(self, step: int, name: str, figure: Any) -> None:
        self.live.log_image(f"{name}.png", figure)

    def close(self) -> None:
        self.live.end()


class WeightsAndBiases:
    """A run of Weights & Biases, whose own variables decide where it goes: WANDB_MODE=offline writes to RUN/wandb."""

    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        import wandb

        self.wandb = wandb
        identity = _identity(run / "wandb" / "id", lambda: secrets.token_hex(4))
        self.run = wandb.init(
            project=PROJECT, name=run.name, dir=str(run), config=dict(settings), id=identity, resume="allow"
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def write_figure(self, step: int, name: str, figure: Any) -> None:
        self.run.log({name: self.wandb.Image(figure)}, step=step)

    def close(self) -> None:
        self.run.finish()


class MlFlow:
    """A run of MLflow at the server or store that MLFLOW_TRACKING_URI names."""

    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient()

        def begin() -> str:
            experiment = self.client.get_experiment_by_name(PROJECT)
            number = self.client.create_experiment(PROJECT) if experiment is None else experiment.experiment_id
            identity = str(self.client.create_run(number, run_name=run.name).info.run_id)
            for name, value in settings.items():
                self.client.log_param(identity, name, value)
            return identity

        self.identity = _identity(run / "mlflow" / "id", begin)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.client.log_metric(self.identity, name, value, step=step)

    def write_figure(self, step: int, name: str, figure: Any) -> None:
        self.client.log_figure(self.identity, figure, f"{name}.png")

    def close(self) -> None:
        self.client.set_terminated(self.identity)


def _identity(path: Path, begin: Callable[[], str]) -> str:
    """The name by which a server knows the run, kept in the run's folder, so that a resumed run is the same one."""
    if not path.exists():
        write_text(path, begin())
    return path.read_text(encoding="utf-8").strip()


def open_logger(name: str, run: Path, settings: Mapping[str, Any], start: int) -> Logger:
    """Open a log by its name: see TrainConfig. Raises ImportError if its package is missing."""
    match name:
        case "tensorboard":
            return TensorBoard(run, start)
        case "dvclive":
            return DvcLive(run)
        case "wandb":
            return WeightsAndBiases(run, settings)
        case "mlflow":
            return MlFlow(run, settings)
        case _:
            raise ValueError(f"there is no logger {name}")


def open_loggers(run: Path, names: Sequence[str], settings: Mapping[str, Any], start: int) -> list[Logger]:
    """Open the logs of a run that has done `start` steps. One whose package is missing is left out, with a warning."""
    loggers: list[Logger] = []
    for name in names:
        try:
            loggers.append(open_logger(name, run, settings, start))
        except ImportError:
            log.warning("%s is not installed: its log is not written", name)
    return loggers
