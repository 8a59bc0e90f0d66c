"""Work as a stream: the same functions on a Dask cluster or in a plain loop. The only importer of Dask."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from itertools import count
from typing import Any, Generic

from dask.distributed import Client as Client
from dask.distributed import (
    Future,
    KilledWorker,
    as_completed,
)

from geokr.dataset.layout import StoreWriteError
from pipeline.runtime.cluster import require_scheduler, scheduler_lost
from pipeline.runtime.worker import KILLED, LIBRARIES, Job, Result, attempt, usable_memory

AHEAD = 3
"""Tasks in flight a thread: enough that none waits, few enough that the scheduler's memory does not grow."""
OPEN = 2 * AHEAD
"""Batches drawn from at once. A slow one then holds no more than half of the threads while others have work."""


class LostWorkersError(RuntimeError):
    """A job that killed each worker it was given to."""


@dataclass(frozen=True, slots=True)
class JobBatch(Generic[Job]):
    """Jobs that belong together, such as the blocks of a scene."""

    name: str
    """`<stage>-<scene>`: what the dashboard groups by."""
    jobs: Iterable[Job]
    """Drawn one by one as places fall free."""
    memory: int = 0
    """Promised peak of one job, bytes, beside the libraries."""


class Workers:
    """What the workers of a cluster have room for; asked for at most once a second, since they come and go."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.asked = -1.0
        self.found: list[tuple[int, int]] = []
        """Threads and memory limit of each, bytes; 0 for none."""

    def capacities(self) -> list[tuple[int, int]]:
        if (now := time.monotonic()) > self.asked + 1.0:
            with require_scheduler():
                said = self.client.scheduler_info(n_workers=-1)
            if "workers" not in said:
                raise scheduler_lost(ConnectionError("it says nothing of its workers"))
            workers = said["workers"].values()
            self.asked, self.found = now, [(worker["nthreads"], worker["memory_limit"] or 0) for worker in workers]
        return self.found

    def slots(self, memory: int) -> int:
        """Jobs of a promised peak, bytes, that there is room for at once: at least one."""
        fits = [
            min(threads, max(1, int(usable_memory(limit) / memory))) if limit and memory else threads
            for threads, limit in self.capacities()
        ]
        return max(1, sum(fits))

    def too_small(self, memory: int) -> MemoryError | None:
        """The sentence for a job that no worker has the memory for."""
        limits = [limit for _, limit in self.capacities()]
        if not limits or 0 in limits or memory <= usable_memory(max(limits)):
            return None
        return MemoryError(
            f"a block of it takes up to {memory / 1e6:.0f} MB beside the {LIBRARIES / 1e6:.0f} MB of the libraries, "
            f"and no worker has more than {max(limits) * KILLED / 1e6:.0f} MB; give a smaller block or larger workers"
        )


def draw_jobs(batches: Iterable[JobBatch[Job]], flying: Counter[str]) -> Iterator[tuple[JobBatch[Job], Job]]:
    """Jobs one by one, each of that one of the open batches which has the fewest in flight by then."""
    waiting = iter(batches)
    opened: list[tuple[JobBatch[Job], Iterator[Job]]] = []
    while True:
        # One at a time: to open a batch may take a while, in which jobs of the first could be at work.
        if len(opened) < OPEN and (batch := next(waiting, None)) is not None:
            opened.append((batch, iter(batch.jobs)))
        if not opened:
            return
        least = min(opened, key=lambda batch: flying[batch[0].name])
        for job in least[1]:
            yield least[0], job
            break
        else:
            opened.remove(least)


def stream(
    function: Callable[[Job], Result], batches: Iterable[JobBatch[Job]], client: Client | None
) -> Iterator[tuple[Job, Result | Exception]]:
    """Run a function over jobs, and yield each job with its result or error as it ends, in any order.

    Batches and their jobs are drawn as places fall free: a bounded number is in flight, as many as the workers'
    memory has room for. A job whose worker died is tried again, at last alone; one that kills its worker even then
    ends in a LostWorkersError. Without a client it is a plain loop, in order.
    Raises ClusterError where the scheduler is lost, StoreWriteError where a result cannot be written.
    """
    if client is None:
        for batch in batches:
            for job in batch.jobs:
                yield job, attempt(function, job, batch.memory)
        return
    workers = Workers(client)
    running: dict[Any, tuple[JobBatch[Job], Job]] = {}
    flying: Counter[str] = Counter()
    numbers, run = count(), os.urandom(4).hex()
    completed = as_completed()

    def submit(batch: JobBatch[Job], job: Job) -> None:
        # A file's name may be no UTF-8; a key must be, or the scheduler hangs up. It is new each time, since a run
        # that goes on after a failure must not be handed the failure again.
        key = (batch.name.encode(errors="replace").decode(), next(numbers), run)
        future = client.submit(attempt, function, job, batch.memory, key=key, pure=False)
        running[key] = batch, job
        flying[batch.name] += 1
        completed.add(future)

    def ended() -> tuple[JobBatch[Job], Job, Result | Exception]:
        future = next(completed)
        while future.status in ("pending", "lost"):  # its result died with the worker that held it, and is made anew
            completed.add(future)
            future = next(completed)
        batch, job = running.pop(future.key)
        flying[batch.name] -= 1
        return batch, job, task_result(future)

    jobs = draw_jobs(batches, flying)
    suspects: list[tuple[JobBatch[Job], Job]] = []
    memory = 0  # of the largest job yet
    while True:
        while len(running) < AHEAD * workers.slots(memory) and (following := next(jobs, None)) is not None:
            batch, job = following
            if refusal := workers.too_small(batch.memory):
                yield job, refusal
                continue
            memory = max(memory, batch.memory)
            submit(batch, job)
        if not running:
            break
        batch, job, result = ended()
        if isinstance(result, LostWorkersError):  # or only the neighbour of one: what died was the worker of both
            suspects.append((batch, job))
        else:
            yield job, result
    for batch, job in suspects:
        submit(batch, job)
        yield ended()[1:]


def task_result(future: "Future[Any]") -> Any:
    """The result of a task that ended, or its error. Raises what should stop the others too."""
    try:
        return future.result()
    except KilledWorker:
        return LostWorkersError("it killed each worker that it was given to: out of memory, or a fault of a library")
    except StoreWriteError:
        raise
    except (CancelledError, OSError) as error:  # those of a job itself come as results
        raise scheduler_lost(error) from error
    except Exception as error:
        return error
