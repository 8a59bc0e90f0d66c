"""What a user sees of a run on the terminal, and the signals that stop it."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from geokr.pretraining.learner import Learner
from geokr.pretraining.processes import Process


class LineWriter:
    """A file for a progress bar that nobody watches: what the bar would draw over itself, a line each."""

    def write(self, text: str) -> None:
        if line := text.strip():
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Each line is out already."""


def progress_bar(learner: Learner) -> Any:
    """A progress bar in steps; a line every half minute where nobody watches."""
    terminal = sys.stderr.isatty()
    interval = 0.1 if terminal else 30.0  # s
    return tqdm(
        file=sys.stderr if terminal else LineWriter(),
        total=learner.total,
        initial=learner.step,
        unit="step",
        mininterval=interval,
        maxinterval=max(10.0, interval),
        disable=learner.process.rank > 0,
    )


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """A list to which Ctrl-C and SIGTERM add themselves; the second one ends the process as ever."""
    caught: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: object) -> None:
        caught.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def print_once(process: Process, line: str) -> None:
    if process.rank == 0:
        print(line, file=sys.stderr, flush=True)
