"""Work as a stream: the same functions on a Dask cluster or in a plain loop. The only importer of Dask."""

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import cv2
import zarr
from dask.distributed import Client as Client
from dask.distributed import LocalCluster, as_completed

from geokr.landcover import LandCoverError
from geokr.store import StoreError, StoreWriteError
from pipeline.scene import SceneError

Job = TypeVar("Job")
Result = TypeVar("Result")

BAD_INPUT = (SceneError, LandCoverError, StoreError, OSError)
"""What a task may end in without stopping the others."""

AHEAD = 3
"""Tasks in flight a thread: enough that none waits, few enough that the scheduler's memory does not grow."""


class ClusterError(RuntimeError):
    """No scheduler answers."""


@contextmanager
def cluster(workers: int | None = None, scheduler: str | None = None) -> Iterator[Client]:
    """A Dask client: of the scheduler at an address, otherwise of a cluster of processes on this machine.

    workers: processes, one for each core unless given. The dashboard of a local cluster is bound to localhost.
    Raises ClusterError with a sentence where the scheduler does not answer.
    """
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout="10s")
        except (OSError, ValueError) as error:
            raise ClusterError(f"{scheduler}: no Dask scheduler answers there: {error}") from error
        with client:
            yield client
        return
    with tempfile.TemporaryDirectory(prefix="geokr-", ignore_cleanup_errors=True) as scratch:
        with deaf_to_interrupts():
            local = LocalCluster(
                n_workers=workers or len(os.sched_getaffinity(0)),
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:8787",
                local_directory=scratch,
                env={"GEOKR_SCRATCH": os.environ.get("GEOKR_SCRATCH", f"{scratch}/unpacked")},
                silence_logs=logging.CRITICAL,
            )
        with local, Client(local) as client:
            yield client


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes started meanwhile ignore Ctrl-C: a terminal sends it to all, and stopping is the client's business."""
    if threading.current_thread() is not threading.main_thread():  # only there may signals be handled
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def single_threaded() -> None:
    """Hold the libraries of this process to one thread each: the workers are the parallelism."""
    cv2.setNumThreads(1)
    zarr.config.set({"async.concurrency": 4, "threading.max_workers": 2})


def attempt(function: Callable[[Job], Result], job: Job) -> Result | Exception:
    """A job's result, or the error that its input caused. A fault of the program or of the store is raised."""
    single_threaded()
    try:
        return function(job)
    except StoreWriteError:  # a full disk, say: no other job would fare better
        raise
    except BAD_INPUT as error:
        return error


def stream(
    function: Callable[[Job], Result], jobs: Iterable[tuple[str, Job]], client: Client | None
) -> Iterator[tuple[Job, Result | Exception]]:
    """Run a function over named jobs, and yield each job with its result or error as it ends, in any order.

    jobs: (name, job); the name is what the dashboard shows. A bounded number is in flight, and jobs are drawn
    as places fall free. Without a client it is a plain loop, in order.
    """
    if client is None:
        for _, job in jobs:
            yield job, attempt(function, job)
        return
    waiting = iter(jobs)
    running = {}

    def submit(name: str, job: Job) -> object:
        # A file's name may be no UTF-8; a key must be, or the scheduler hangs up.
        key = f"{name.encode(errors='replace').decode()}-{os.urandom(4).hex()}"
        # Not pure: a run that goes on after a failure must not be handed the failure again.
        future = client.submit(attempt, function, job, key=key, pure=False)
        running[future.key] = job
        return future

    limit = max(1, AHEAD * sum(client.nthreads().values()))
    completed = as_completed([submit(name, job) for name, job in islice(waiting, limit)])
    for future in completed:
        job = running.pop(future.key)
        error = future.exception() if future.status == "error" else None
        if isinstance(error, StoreWriteError):
            raise error
        yield job, error if isinstance(error, Exception) else future.result()
        for name, following in islice(waiting, 1):
            completed.add(submit(name, following))
