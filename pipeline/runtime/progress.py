"""The progress of a running build: a bar or a line per minute for the user, and a log of JSON lines."""

import json
import logging
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from geokr.storage import files

log = logging.getLogger(__name__)

LOG_FILE = "build.jsonl"
"""One JSON object per line: `time`, `event` and the values of the event. Each run appends to it."""
INTERVAL = 60.0
"""Interval, s, of the progress events in the log and, without a terminal, of the progress lines."""


def log_event(dataset: str | Path, event: str, **facts: Any) -> None:
    """Append a line to the log of the data set."""
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts}
    files.append(f"{dataset}/{LOG_FILE}", json.dumps(line))


class Progress:
    """The progress of a stage: a bar on a terminal, otherwise a line per minute and one at the end of the stage."""

    def __init__(self, dataset: str | Path | None, stage: str, total: int, unit: str, good: str = "accepted") -> None:
        """dataset: where progress is logged, if anywhere. total: units left to do.

        good: the word for a unit that passes, in a stage that judges its units.
        """
        self.dataset, self.stage, self.total, self.unit, self.good = dataset, stage, total, unit, good
        self.done = self.passed = self.judged = 0
        self.began = time.monotonic()
        self.ended = threading.Event()
        terminal = sys.stderr.isatty()
        self.bar = tqdm(total=total, desc=stage, unit=unit, smoothing=0.05) if terminal else None
        self.ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Self:
        self.ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()
        self.ticker.join()
        if self.bar is not None:
            self.bar.close()
        elif kind is None:
            log.info(self.format_line())

    def add(self, units: int, passed: int | None = None) -> None:
        """Count units that are done. passed: how many of them passed, in a stage that judges its units."""
        self.done += units
        if passed is not None:
            self.judged, self.passed = self.judged + units, self.passed + passed
        if self.bar is not None:
            self.bar.update(units)
            if self.judged:
                self.bar.set_postfix({self.good: f"{100 * self.passed / self.judged:.0f}%"}, refresh=False)

    def collect_facts(self) -> dict[str, Any]:
        """Numbers for the log: done, total, unit, seconds, units per second and, if judged, the share that passed."""
        seconds = time.monotonic() - self.began
        counts = {"done": self.done, "total": self.total, "unit": self.unit, "seconds": round(seconds, 1)}
        rate = {"per_second": round(self.done / max(seconds, 1e-9), 1)}
        return counts | rate | ({self.good: round(self.passed / self.judged, 4)} if self.judged else {})

    def format_line(self) -> str:
        """One line of text: `tiles: 1,024 of 5,120 tiles, 20 %, 212 tiles/s, 71 % accepted, 19 s left`."""
        seconds = time.monotonic() - self.began
        rate = self.done / max(seconds, 1e-9)
        units = f"{self.unit.removesuffix('y')}ies" if self.unit.endswith("y") else f"{self.unit}s"
        parts = [f"{self.stage}: {self.done:,} of {self.total:,} {units}"]
        if self.total:
            parts += [f"{100 * self.done / self.total:.0f} %", f"{rate:,.0f} {units}/s"]
        if self.judged:
            parts.append(f"{100 * self.passed / self.judged:.0f} % {self.good}")
        if self.done < self.total:
            parts.append(
                f"{format_duration((self.total - self.done) / rate)} left" if self.done else "time left unknown"
            )
        else:
            parts.append(f"took {format_duration(seconds)}")
        return ", ".join(parts)

    def _tick(self) -> None:
        while not self.ended.wait(INTERVAL):
            if self.dataset is not None:
                log_event(self.dataset, "progress", stage=self.stage, **self.collect_facts())
            if self.bar is None:
                log.info(self.format_line())


def format_duration(seconds: float) -> str:
    """A duration as text: `42 s`, `17 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
