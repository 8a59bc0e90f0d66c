"""What a run writes down while it goes: `log.jsonl`, curves and pictures, and the formats of two log viewers."""

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geokr.storage.files import replacing

LOG = "log.jsonl"
CURVES = {"train": "plots/train.csv", "val": "plots/val.csv"}
CONFUSION = "plots/confusion.png"
HAS_MATPLOTLIB = find_spec("matplotlib") is not None
"""Whether the picture of confusion can be drawn: a machine that only trains may lack it."""

log = logging.getLogger(__name__)


class Journal:
    """The log of a run that has done `start` steps; what an earlier process logged after them is dropped."""

    def __init__(self, run: Path, loggers: tuple[str, ...], start: int) -> None:
        self.run = run
        path = run / LOG
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self._rows: list[dict[str, Any]] = []
        for line in lines:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the last line of a process that was killed
                continue
            if row["step"] <= start:
                self._rows.append(row)
        with replacing(path) as file:
            file.writelines(json.dumps(row).encode() + b"\n" for row in self._rows)
        self._file = path.open("a", encoding="utf-8")
        self._tensorboard = _tensorboard(run, start) if "tensorboard" in loggers else None
        self._dvclive = _dvclive(run) if "dvclive" in loggers else None

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Log numbers of a step, counted from 1. `kl` is what the loss curves show."""
        row = {"step": step, "split": split, **{name: round(value, 6) for name, value in values.items()}}
        self._rows.append(row)
        print(json.dumps(row), file=self._file, flush=True)
        for name, value in values.items():
            if self._tensorboard is not None:
                self._tensorboard.add_scalar(f"{split}/{name}", value, step)
            if self._dvclive is not None:
                self._dvclive.step = step
                self._dvclive.log_metric(f"{split}/{name}", value)
        if self._dvclive is not None:
            self._dvclive.sync()

    def write_classes(
        self,
        step: int,
        error: Mapping[str, float],
        confusion: Sequence[Sequence[float]],
        classes: Sequence[str],
        shares: Mapping[str, torch.Tensor],
    ) -> None:
        """Log what a validation gives of each class: see Validation. The picture of confusion is a file, too."""
        for name, value in error.items():
            if self._tensorboard is not None:
                self._tensorboard.add_scalar(f"mae/{name}", value, step)
            if self._dvclive is not None:
                self._dvclive.log_metric(f"mae/{name}", value)
        if self._tensorboard is not None:
            for kind, values in shares.items():
                for k, name in enumerate(classes):
                    self._tensorboard.add_histogram(f"{kind}/{name}", values[:, k], step)
        if not HAS_MATPLOTLIB:
            return
        figure = confusion_figure(confusion, classes)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=80)
        with replacing(self.run / CONFUSION) as file:
            file.write(picture.getbuffer())
        if self._dvclive is not None:
            self._dvclive.log_image("confusion.png", figure)
        if self._tensorboard is not None:
            self._tensorboard.add_figure("confusion", figure, step)

    @property
    def has_images(self) -> bool:
        return self._tensorboard is not None

    def write_views(self, step: int, views: torch.Tensor, bands: Sequence[str]) -> None:
        """Show views of tiles: (2 n, band, y, x) float in 0..1, the student's n and then the teacher's n.

        In true colour, or in grey of the first band where a colour is missing.
        """
        if self._tensorboard is None:
            return
        colours = ("red", "green", "blue")
        chosen = [bands.index(name) for name in colours] if set(colours) <= set(bands) else [0, 0, 0]
        rows = [torch.cat(list(half), dim=2) for half in views[:, chosen].chunk(2)]  # 2 of (3, y, n x)
        self._tensorboard.add_image("views of student and teacher", torch.cat(rows, dim=1), step)

    def write_curves(self) -> None:
        """Write the loss curves, a CSV each: columns step and loss, here KL(A || p) in nats for either split."""
        for split, path in CURVES.items():
            text = io.StringIO()
            table = csv.writer(text, lineterminator="\n")
            table.writerow(["step", "loss"])
            table.writerows({row["step"]: row["kl"] for row in self._rows if row["split"] == split}.items())
            with replacing(self.run / path) as file:
                file.write(text.getvalue().encode())

    def close(self) -> None:
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._dvclive is not None:
            self._dvclive.end()


def confusion_figure(confusion: Sequence[Sequence[float]], classes: Sequence[str]) -> Any:
    """A confusion matrix, [true][predicted], as a matplotlib figure: a row for each true class, in per cent of its sum.

    Behind the columns stands what each class has of all that is true, and below the rows of all that is predicted. A
    class that is nowhere has an empty row.
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
    shown[n] = np.nan  # sums are numbers without a colour
    axes.imshow(shown, cmap="Blues", vmin=0, vmax=100)
    for row, column in np.argwhere(table >= 0.5):
        value, dark = table[row, column], shown[row, column] > 50
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", color="white" if dark else "black", fontsize=8)
    axes.set_xticks(range(n + 1), [*classes, "all true"], rotation=90)
    axes.set_yticks(range(n + 1), [*classes, "all predicted"])
    axes.set_xlabel("predicted, %")
    axes.set_ylabel("true")
    return figure


def _tensorboard(run: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.warning("tensorboard is not installed: its log is not written")
        return None
    return SummaryWriter(str(run / "tensorboard"), purge_step=start + 1 if start else None)


def _dvclive(run: Path) -> Any:
    try:
        from dvclive.live import Live
    except ImportError:
        log.warning("dvclive is not installed: its log is not written")
        return None
    # Numbers alone: no experiment of DVC's is begun, and the project's dvc.yaml is left as it is.
    return Live(str(run / "dvclive"), resume=True, report=None, save_dvc_exp=False, dvcyaml=None)
