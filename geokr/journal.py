"""What a run writes down while it goes: `log.jsonl`, the loss curves, and the formats of two log viewers."""

import csv
import io
import json
import logging
from pathlib import Path
from typing import Any

from geokr.checkpoint import replacing

LOG = "log.jsonl"
CURVES = {"train": "plots/train.csv", "val": "plots/val.csv"}

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
