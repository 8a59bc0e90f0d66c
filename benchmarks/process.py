"""The process of a measurement: limit the resources that it may use, and read its peak memory."""

import os
from pathlib import Path

from pipeline.runtime.worker import configure_libraries


def one_core() -> None:
    """Pin this process to one core, and limit the libraries to one thread."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    configure_libraries()


def most_memory(process: int | str = "self") -> int:
    """Peak resident memory of this process, or of that with an id, bytes.

    It comes from Linux's /proc, because `ru_maxrss` also counts the process that forked this one. Mapped pages of
    files count: for a scene that is read in place, those of the block being processed.
    """
    (line,) = (line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10
