"""The logs of a run: `log.jsonl`, loss curves and images, and those that other programs show."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geokr.pretraining.config import TrainConfig
from geokr.pretraining.loggers import TensorBoard, open_loggers
from geokr.storage.files import replace_file

LOG = "log.jsonl"
CURVES = {"train": "plots/train.csv", "val": "plots/val.csv"}
CONFUSION = "plots/confusion.png"
HAS_MATPLOTLIB = find_spec("matplotlib") is not None
"""Whether the confusion matrix can be plotted. Machines used only for training may lack matplotlib."""


class Journal:
    """The log of a run that has done `start` steps. Entries of an earlier process after these steps are dropped."""

    def __init__(self, run: Path, config: TrainConfig, start: int) -> None:
        self.run = run
        path = run / LOG
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self._rows: list[dict[str, Any]] = []
        for line in lines:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the incomplete last line of a process that was killed
                continue
            if row["step"] <= start:
                self._rows.append(row)
        with replace_file(path) as file:
            file.writelines(json.dumps(row).encode() + b"\n" for row in self._rows)
        self._file = path.open("a", encoding="utf-8")
        self._loggers = open_loggers(run, config.loggers, config.model_dump(), start)
        self._tensorboard = next((logger for logger in self._loggers if isinstance(logger, TensorBoard)), None)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Log the values of a step, counted from 1. The loss curves show `kl`."""
        row = {"step": step, "split": split, **{name: round(value, 6) for name, value in values.items()}}
        self._rows.append(row)
        print(json.dumps(row), file=self._file, flush=True)
        for logger in self._loggers:
            logger.write(step, {f"{split}/{name}": value for name, value in values.items()})

    def write_classes(
        self,
        step: int,
        error: Mapping[str, float],
        confusion: Sequence[Sequence[float]],
        classes: Sequence[str],
        shares: Mapping[str, torch.Tensor],
    ) -> None:
        """Log the results of a validation for each class, and save a plot of the confusion matrix: see Validation."""
        for logger in self._loggers:
            logger.write(step, {f"mae/{name}": value for name, value in error.items()})
        if self._tensorboard is not None:
            for kind, values in shares.items():
                self._tensorboard.write_histograms(step, kind, classes, values)
        if not HAS_MATPLOTLIB:
            return
        figure = confusion_figure(confusion, classes)
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=80)
        with replace_file(self.run / CONFUSION) as file:
            file.write(image.getbuffer())
        for logger in self._loggers:
            logger.write_figure(step, "confusion", figure)

    @property
    def has_images(self) -> bool:
        return self._tensorboard is not None

    def write_views(self, step: int, views: torch.Tensor, bands: Sequence[str]) -> None:
        """Log views of tiles: (2 n, band, y, x) float in 0..1, n of the student followed by n of the teacher.

        In true colour, or with the first band in grey if red, green or blue is missing.
        """
        if self._tensorboard is None:
            return
        colours = ("red", "green", "blue")
        shown = [bands.index(name) for name in colours] if set(colours) <= set(bands) else [0, 0, 0]
        rows = [torch.cat(list(half), dim=2) for half in views[:, shown].chunk(2)]  # 2 of (3, y, n x)
        self._tensorboard.write_image(step, "views of student and teacher", torch.cat(rows, dim=1))

    def write_curves(self) -> None:
        """Write one CSV per loss curve with the columns step and loss, which is KL(A || p) in nats for both splits."""
        for split, path in CURVES.items():
            text = io.StringIO()
            table = csv.writer(text, lineterminator="\n")
            table.writerow(["step", "loss"])
            table.writerows({row["step"]: row["kl"] for row in self._rows if row["split"] == split}.items())
            with replace_file(self.run / path) as file:
                file.write(text.getvalue().encode())

    def close(self) -> None:
        self._file.close()
        for logger in self._loggers:
            logger.close()


def confusion_figure(confusion: Sequence[Sequence[float]], classes: Sequence[str]) -> Any:
    """Plot a confusion matrix, [true][predicted], with matplotlib: one row per true class, in per cent of the row sum.

    The last column has the share of each class in all true shares, the last row its share in all predicted shares. A
    class that does not occur has an empty row.
    """
    from matplotlib.figure import Figure

    amounts, n = np.asarray(confusion, dtype=float), len(classes)
    total = max(float(amounts.sum()), 1e-12)
    true, predicted = amounts.sum(axis=1), amounts.sum(axis=0)
    table = np.full((n + 1, n + 1), np.nan)
    table[:n, :n] = 100 * np.divide(amounts, true[:, None], out=np.zeros_like(amounts), where=true[:, None] > 0)
    table[:n, n], table[n, :n] = 100 * true / total, 100 * predicted / total
    figure = Figure(figsize=(1.5 + 0.55 * n, 1.5 + 0.55 * n), layout="constrained")
    axes = figure.subplots()
    shown = np.where(np.arange(n + 1) < n, table, np.nan)
    shown[n] = np.nan  # the sums are printed without a colour
    axes.imshow(shown, cmap="Blues", vmin=0, vmax=100)
    for row, column in np.argwhere(table >= 0.5):
        value, dark = table[row, column], shown[row, column] > 50
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", color="white" if dark else "black", fontsize=8)
    axes.set_xticks(range(n + 1), [*classes, "all in the map"], rotation=90)
    axes.set_yticks(range(n + 1), [*classes, "all predicted"])
    axes.set_xlabel("predicted, %")
    axes.set_ylabel("in the map")
    return figure
