"""The process that a measurement runs in: what it may use, and what it has used."""

import os
from pathlib import Path

from pipeline.runtime.worker import configure_libraries


def one_core() -> None:
    """Hold this process to one core, and the libraries to one thread."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    configure_libraries()


def most_memory() -> int:
    """The most memory that this process has held, bytes; of Linux, since `ru_maxrss` counts what forked it, too.

    Pages of files that it has mapped count: of a scene that is read in place, those of the block at work.
    """
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10
