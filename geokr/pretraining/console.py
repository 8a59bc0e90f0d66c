"""Terminal output of a run, and the signals that stop it."""

import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm

from geokr.pretraining.learner import Learner
from geokr.pretraining.processes import Process


class LineWriter:
    """A file-like object for a progress bar without a terminal: prints each state of the bar as a line of its own."""

    def write(self, text: str) -> None:
        if line := text.strip():
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Do nothing: each line has been flushed already."""


def progress_bar(learner: Learner) -> Any:
    """A progress bar that counts steps. Without a terminal, it prints a line every half minute."""
    terminal = sys.stderr.isatty()
    interval = 0.1 if terminal else 30.0  # s
    return tqdm(
        file=sys.stderr if terminal else LineWriter(),
        total=learner.total,
        initial=learner.step,
        desc="train",
        unit=" steps",
        mininterval=interval,
        maxinterval=max(10.0, interval),
        disable=learner.process.rank > 0,
    )


def format_memory(device: torch.device) -> str:
    """The largest memory that this process has used so far: that of tensors on a GPU, or all on a processor."""
    if device.type == "cuda":
        limit = torch.cuda.get_device_properties(device).total_memory
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} of {limit / 2**30:.1f} GiB"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"  # Linux counts it in KiB


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM in a list while the context is active; a second signal ends the process as usual."""
    caught: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def record(number: int, _: object) -> None:
        caught.append(number)
        signal.signal(number, handlers[signal.Signals(number)])

    for number in handlers:
        signal.signal(number, record)
    try:
        yield caught
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def print_once(process: Process, line: str) -> None:
    if process.rank == 0:
        print(line, file=sys.stderr, flush=True)
