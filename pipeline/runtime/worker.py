"""What happens in a worker: its libraries set, its memory promised, a job tried."""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TypeVar

import cv2
import zarr
from dask.distributed import Client as Client
from dask.distributed import (
    get_worker,
)
from numcodecs import blosc

from geokr.dataset.layout import StoreError, StoreWriteError
from geokr.storage.inputs import InputError

Job = TypeVar("Job")
Result = TypeVar("Result")
BAD_INPUT = (InputError, StoreError, OSError, MemoryError)
"""What a task may end in without stopping the others."""
LIBRARIES = 360 << 20
"""What a worker's libraries take, and what it keeps between blocks, bytes."""
KILLED = 0.95
"""Share of its memory beyond which Dask ends a worker, as it comes."""


def configure_libraries() -> None:
    """Have the libraries of this process do as a worker's should."""
    cv2.setNumThreads(1)  # the workers are the parallelism
    blosc.use_threads = False
    zarr.config.set({"async.concurrency": 4, "threading.max_workers": 2})
    keep_memory()


@cache
def keep_memory() -> None:
    """Have the C library keep arrays of up to 32 MiB for the next block, instead of giving each back at once.

    The kernel zeroes and maps what it is asked for page after page; Dask has it asked for all. Larger arrays are
    given back all the same: kept, they would leave holes. Does nothing where the C library is not glibc.
    """
    trim, mmap = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(trim, 256 << 20)
        mallopt(mmap, 32 << 20)  # the most that older versions take


def usable_memory(limit: float) -> float:
    """Bytes for jobs in a worker with a memory limit, bytes: beside its libraries, and before Dask ends it."""
    return limit * KILLED - LIBRARIES


class MemoryBudget:
    """Memory of this process that jobs have promised not to exceed."""

    def __init__(self) -> None:
        self.reserved = 0
        self.changed = threading.Condition()

    @contextmanager
    def reserve(self, memory: int) -> Iterator[None]:
        """Wait until a job's memory is free beside that of the others, and hold it meanwhile."""
        limit = worker_memory()
        with self.changed:
            self.changed.wait_for(
                lambda: not self.reserved or limit is None or self.reserved + memory <= usable_memory(limit)
            )
            self.reserved += memory
        try:
            yield
        finally:
            with self.changed:
                self.reserved -= memory
                self.changed.notify_all()


BUDGET = MemoryBudget()


def worker_memory() -> int | None:
    """Limit of the worker that this runs on, bytes; None where there is none."""
    try:
        limit = get_worker().memory_manager.memory_limit
    except ValueError:  # a plain loop
        return None
    return None if limit is None else int(limit)


def attempt(function: Callable[[Job], Result], job: Job, memory: int = 0) -> Result | Exception:
    """A job's result, or the error that its input caused. A fault of the program or of the store is raised."""
    configure_libraries()
    with BUDGET.reserve(memory):
        try:
            return function(job)
        except StoreWriteError:  # a full disk, say: no other job would fare better
            raise
        except BAD_INPUT as error:
            # Without what caused it: errors of rasterio's cannot be read again where they are sent to.
            error.__cause__ = error.__context__ = None
            return error.with_traceback(None)
