"""What runs inside a worker: library settings, memory reservation and the call of a job."""

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
"""Errors with which a task may end without stopping the others."""
LIBRARIES = 360 << 20
"""Memory of a worker's libraries and of what it keeps between blocks, bytes."""
KILLED = 0.95
"""Share of its memory limit above which Dask kills a worker, by default."""


def configure_libraries() -> None:
    """Configure the libraries of this process for a worker."""
    cv2.setNumThreads(1)  # the workers are the parallelism
    blosc.use_threads = False
    zarr.config.set({"async.concurrency": 4, "threading.max_workers": 2})
    keep_memory()


@cache
def keep_memory() -> None:
    """Make the C library keep the memory of arrays of up to 32 MiB for the next block, instead of returning it at once.

    The kernel zeroes and maps requested memory page by page, and under Dask every array is requested from it. Larger
    arrays are still returned, because keeping them would leave holes. Does nothing if the C library is not glibc.
    """
    trim, mmap = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(trim, 256 << 20)
        mallopt(mmap, 32 << 20)  # the largest value that older versions accept


def usable_memory(limit: float) -> float:
    """Memory for jobs, bytes, in a worker with this limit, bytes: what its libraries leave before Dask kills it."""
    return limit * KILLED - LIBRARIES


class MemoryBudget:
    """The memory of this process that running jobs have reserved, bytes."""

    def __init__(self) -> None:
        self.reserved = 0
        self.changed = threading.Condition()

    @contextmanager
    def reserve(self, memory: int) -> Iterator[None]:
        """Wait until a job's memory is free next to that of the other jobs; reserve it while the context is active."""
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
    """Memory limit of the worker that runs this, bytes; None outside a worker or without a limit."""
    try:
        limit = get_worker().memory_manager.memory_limit
    except ValueError:  # a plain loop
        return None
    return None if limit is None else int(limit)


def attempt(function: Callable[[Job], Result], job: Job, memory: int = 0) -> Result | Exception:
    """The result of a job, or the error that its input caused. Faults of the program or of writing are raised."""
    configure_libraries()
    with BUDGET.reserve(memory):
        try:
            return function(job)
        except StoreWriteError:  # for example a full disk: every other job would fail too
            raise
        except BAD_INPUT as error:
            # Without its cause: errors of rasterio cannot be unpickled by the receiver.
            error.__cause__ = error.__context__ = None
            return error.with_traceback(None)
