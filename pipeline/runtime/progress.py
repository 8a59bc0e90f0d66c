"""The progress of a running build: bars or a line per minute for the user, and a log of JSON lines."""

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dask.distributed import Client
from tqdm import tqdm

from geokr.storage import files

log = logging.getLogger(__name__)

LOG_FILE = "build.jsonl"
"""One JSON object per line: `time`, `event` and the values of the event. Each run appends to it."""
INTERVAL = 60.0
"""Interval, s, of the progress events in the log and, without a terminal, of the progress lines."""
REFRESH = 2.0
"""Interval, s, at which the memory on a bar is asked for again."""


def log_event(dataset: str | Path, event: str, **facts: Any) -> None:
    """Append a line to the log of the data set."""
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts}
    files.append(f"{dataset}/{LOG_FILE}", json.dumps(line))


@contextmanager
def count_stages(total: int) -> Iterator[Callable[[], object]]:
    """Yield a function that counts a stage as done, on a bar above those of the stages if there is a terminal."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    form = "{desc}: {n_fmt} of {total_fmt} stages |{bar}| {elapsed}"
    with tqdm(total=total, desc="build", bar_format=form) as bar:
        yield bar.update


def worker_memory(client: Client) -> tuple[int, int]:
    """Memory that the workers of a cluster use, and that they may use, bytes; 0 for what is not known."""
    workers = client.scheduler_info()["workers"].values()
    return sum(w["metrics"].get("memory", 0) for w in workers), sum(w["memory_limit"] or 0 for w in workers)


class Progress:
    """The progress of a stage: a bar on a terminal, otherwise a line per minute; a line when the stage is done."""

    def __init__(
        self,
        dataset: str | Path | None,
        stage: str,
        total: int,
        unit: str,
        good: str = "accepted",
        client: Client | None = None,
    ) -> None:
        """dataset: where progress is logged, if anywhere. total: units left to do.

        good: the word for a unit that passes, in a stage that judges its units. client: whose workers' memory is shown.
        """
        self.dataset, self.stage, self.total, self.unit, self.good = dataset, stage, total, unit, good
        self.client = client
        self.units = f"{unit.removesuffix('y')}ies" if unit.endswith("y") else f"{unit}s"
        self.done = self.passed = self.judged = 0
        self.memory = 0, 0
        """Bytes that the workers use, and may use."""
        self.began = self.logged = time.monotonic()
        self.ended = threading.Event()
        terminal = sys.stderr.isatty()
        self.bar = (
            tqdm(total=total, desc=stage, unit=f" {self.units}", smoothing=0.05, leave=False) if terminal else None
        )
        self.ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Self:
        self.ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()
        self.ticker.join(timeout=10)  # it may wait for a scheduler that no longer answers
        if self.bar is not None:
            self.bar.close()
        if kind is None:
            log.info(self.format_line())

    def add(self, units: int, passed: int | None = None) -> None:
        """Count units that are done. passed: how many of them passed, in a stage that judges its units."""
        self.done += units
        if passed is not None:
            self.judged, self.passed = self.judged + units, self.passed + passed
        if self.bar is not None:
            self.bar.set_postfix_str(", ".join(self._describe()), refresh=False)
            self.bar.update(units)

    def collect_facts(self) -> dict[str, Any]:
        """Numbers for the log: done, total, unit, seconds, units per second; if known, share that passed and bytes."""
        seconds = time.monotonic() - self.began
        counts = {"done": self.done, "total": self.total, "unit": self.unit, "seconds": round(seconds, 1)}
        rate = {"per_second": round(self.done / max(seconds, 1e-9), 1)}
        judged = {self.good: round(self.passed / self.judged, 4)} if self.judged else {}
        return counts | rate | judged | ({"memory": self.memory[0]} if self.memory[0] else {})

    def format_line(self) -> str:
        """A line: `tiles: 1,024 of 5,120 tiles, 20 %, 212 tiles/s, 71 % accepted, 1.9 of 8.0 GiB, 19 s left`."""
        seconds = time.monotonic() - self.began
        rate = self.done / max(seconds, 1e-9)
        parts = [f"{self.stage}: {self.done:,} of {self.total:,} {self.units}"]
        if self.total:
            speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
            parts += [f"{100 * self.done / self.total:.0f} %", f"{speed} {self.units}/s"]
        parts += self._describe()
        if self.done < self.total:
            parts.append(
                f"{format_duration((self.total - self.done) / rate)} left" if self.done else "time left unknown"
            )
        else:
            parts.append(f"took {format_duration(seconds)}")
        return ", ".join(parts)

    def _describe(self) -> Iterator[str]:
        """What is known besides counts and times: the share that passed, the memory of the workers."""
        if self.judged:
            yield f"{100 * self.passed / self.judged:.0f} % {self.good}"
        used, limit = (size / 2**30 for size in self.memory)
        if used:
            yield f"{used:.1f} of {limit:.1f} GiB" if limit else f"{used:.1f} GiB"

    def _tick(self) -> None:
        while not self.ended.wait(INTERVAL if self.bar is None else REFRESH):
            self.refresh()

    def refresh(self) -> None:
        """Ask for the memory, and show it; every INTERVAL, write the log and, without a terminal, a line."""
        if self.client is not None:
            with suppress(OSError, RuntimeError, CancelledError):  # the stage itself says so if the scheduler is lost
                self.memory = worker_memory(self.client)
        if self.bar is not None:
            self.bar.set_postfix_str(", ".join(self._describe()))
        if time.monotonic() < self.logged + INTERVAL:
            return
        self.logged = time.monotonic()
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
