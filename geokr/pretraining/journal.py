"""What a run writes down while it goes: `log.jsonl`, curves and pictures, and the formats of two log viewers."""

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from geokr.storage.files import replacing

LOG = "log.jsonl"
CURVES = {"train": "plots/train.csv", "val": "plots/val.csv"}
CONFUSION = "plots/confusion.png"

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

    def show(
        self,
        step: int,
        error: Mapping[str, float],
        confusion: Sequence[Sequence[float]],
        classes: Sequence[str],
        shares: Mapping[str, torch.Tensor],
    ) -> None:
        """What a validation found of each class: see Verdict. The picture of confusion is a file of its own, too."""
        picture = drawn(confusion, classes)
        with replacing(self.run / CONFUSION) as file:
            picture.save(file, format="png")
        for name, value in error.items():
            if self._tensorboard is not None:
                self._tensorboard.add_scalar(f"mae/{name}", value, step)
            if self._dvclive is not None:
                self._dvclive.log_metric(f"mae/{name}", value)
        if self._dvclive is not None:
            self._dvclive.log_image("confusion.png", picture)
        if self._tensorboard is not None:
            pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
            self._tensorboard.add_image("confusion", pixels.view(*picture.size[::-1], 3), step, dataformats="HWC")
            for kind, values in shares.items():
                for k, name in enumerate(classes):
                    self._tensorboard.add_histogram(f"{kind}/{name}", values[:, k], step)

    @property
    def shows_images(self) -> bool:
        return self._tensorboard is not None

    def show_views(self, step: int, views: torch.Tensor, bands: Sequence[str]) -> None:
        """Show views of tiles: (2 n, band, y, x) float in 0..1, the student's n and then the teacher's n.

        In true colour, or in grey of the first band where a colour is missing.
        """
        if self._tensorboard is None:
            return
        colours = ("red", "green", "blue")
        chosen = [bands.index(name) for name in colours] if set(colours) <= set(bands) else [0, 0, 0]
        rows = [torch.cat(list(half), dim=2) for half in views[:, chosen].chunk(2)]  # 2 of (3, y, n x)
        self._tensorboard.add_image("views of student and teacher", torch.cat(rows, dim=1), step)

    def draw(self) -> None:
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


CELL, LEFT, TOP = 44, 110, 110
"""Side of a cell of the picture of confusion, and the margins that hold names, px."""


def drawn(confusion: Sequence[Sequence[float]], classes: Sequence[str]) -> Any:
    """A picture of a confusion matrix, [true][predicted]: a row for each true class, its shares in per cent.

    The darker, the larger a part of the row's sum; a class that is nowhere has an empty row. Below and at the right,
    in grey, what each class has of all that is predicted, and of all that is true.
    """
    from PIL import Image, ImageDraw  # torchvision brings it

    n = len(classes)
    picture = Image.new("RGB", (LEFT + CELL * (n + 1) + 8, TOP + CELL * (n + 1) + 8), "white")
    pen = ImageDraw.Draw(picture)
    pen.text((4, 4), "true, down; predicted, across; %", fill="black")
    for k, (below, right) in enumerate(zip([*classes, "predicted"], [*classes, "true"], strict=True)):
        pen.text((4, TOP + CELL * k + CELL // 2 - 6), below, fill="black")
        name = Image.new("RGB", (TOP - 24, 14), "white")
        ImageDraw.Draw(name).text((0, 0), right, fill="black")
        picture.paste(name.rotate(90, expand=True), (LEFT + CELL * k + CELL // 2 - 7, 22))

    def fill(row: int, column: int, share: float, grey: bool) -> None:
        x, y, light = LEFT + CELL * column, TOP + CELL * row, round(255 * (1 - share))
        pen.rectangle((x, y, x + CELL - 2, y + CELL - 2), fill=(light, light, light if grey else 255))
        if share >= 0.005:
            at = (x + CELL // 2 - 8, y + CELL // 2 - 6)
            pen.text(at, f"{100 * share:.0f}", fill="white" if share > 0.5 else "black")

    true, predicted = [sum(row) for row in confusion], [sum(column) for column in zip(*confusion, strict=True)]
    for row, values in enumerate(confusion):
        for column, value in enumerate(values):
            fill(row, column, value / true[row] if true[row] > 0 else 0.0, grey=False)
        fill(row, n, true[row] / max(sum(true), 1e-12), grey=True)
        fill(n, row, predicted[row] / max(sum(true), 1e-12), grey=True)
    return picture


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
