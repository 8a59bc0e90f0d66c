"""Stream jobs through a function, on a Dask cluster or in a plain loop."""

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
from pipeline.runtime.call import call, pack
from pipeline.runtime.cluster import require_scheduler, scheduler_error
from pipeline.runtime.worker import KILLED, LIBRARIES, Job, Result, attempt, usable_memory

TASKS_PER_THREAD = 3
"""Tasks in flight per thread: enough that no thread waits, few enough that the scheduler's memory does not grow."""
ROUND = 64
"""Most jobs that are submitted at once, and results fetched at once: what a message costs is shared, and none waits
long for the others."""
OPEN_BATCHES = 2 * TASKS_PER_THREAD
"""Batches that are open at once. A slow batch then occupies at most half of the threads while others have jobs."""


class LostWorkersError(RuntimeError):
    """A job killed every worker that ran it."""


@dataclass(frozen=True, slots=True)
class JobBatch(Generic[Job]):
    """Jobs that belong together, for example the blocks of a scene."""

    name: str
    """`<stage>-<scene>`, by which the dashboard groups tasks."""
    jobs: Iterable[Job]
    """Consumed one by one, as workers become free."""
    memory: int = 0
    """Promised peak memory of one job, bytes, in addition to the libraries."""


class Workers:
    """The capacity of a cluster's workers, which come and go: the scheduler is queried at most once per second.

    Only its totals are asked for, and the workers one by one if those have changed: of a thousand workers the scheduler
    would send 0.7 MB.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.queried_at = -1.0
        self.totals: tuple[int, int, int] | None = None
        """Workers, threads and memory, bytes, as last reported."""
        self.reported: list[tuple[int, int]] = []
        """Threads and memory limit (bytes, 0 if unlimited) of each worker, as last reported."""
        self.slots: dict[int, int] = {}
        """Promised peak -> how many such jobs fit into the workers that were reported."""

    def capacities(self) -> list[tuple[int, int]]:
        if (now := time.monotonic()) > self.queried_at + 1.0:
            self.queried_at = now
            if self.ask(0)[0] != self.totals:
                totals, workers = self.ask(-1)
                if len(workers) == totals[0]:  # otherwise Dask's own query of the totals came between
                    self.totals, self.slots = totals, {}
                    self.reported = [(worker["nthreads"], worker["memory_limit"] or 0) for worker in workers]
                else:
                    self.queried_at = -1.0
        return self.reported

    def ask(self, most: int) -> tuple[tuple[int, int, int], list[dict[str, Any]]]:
        """The totals of all workers, and up to so many of them, -1 for all, as the scheduler reports them."""
        with require_scheduler():
            info = self.client.scheduler_info(n_workers=most)
        if "workers" not in info:
            raise scheduler_error(ConnectionError("it does not report its workers"))
        return (info["n_workers"], info["total_threads"], info["total_memory"]), [*info["workers"].values()]

    def count_slots(self, memory: int) -> int:
        """How many jobs with this promised peak, bytes, fit into the workers' memory at once: at least one."""
        capacities = self.capacities()
        if memory not in self.slots:
            jobs_per_worker = [
                min(threads, max(1, int(usable_memory(limit) / memory))) if limit and memory else threads
                for threads, limit in capacities
            ]
            self.slots[memory] = max(1, sum(jobs_per_worker))
        return self.slots[memory]

    def memory_error(self, memory: int) -> MemoryError | None:
        """The error for a job that no worker has enough memory for, otherwise None."""
        limits = [limit for _, limit in self.capacities()]
        if not limits or 0 in limits or memory <= usable_memory(max(limits)):
            return None
        return MemoryError(
            f"a block takes up to {memory / 1e6:.0f} MB in addition to the {LIBRARIES / 1e6:.0f} MB of the libraries, "
            f"and no worker has more than {max(limits) * KILLED / 1e6:.0f} MB; use smaller blocks or larger workers"
        )


def draw_jobs(batches: Iterable[JobBatch[Job]], in_flight: Counter[str]) -> Iterator[tuple[JobBatch[Job], Job]]:
    """Yield jobs one by one, each from the open batch that has the fewest jobs in flight at that moment.

    in_flight: batch name -> jobs in flight, which the caller keeps up to date.
    """
    unopened = iter(batches)
    opened: list[tuple[JobBatch[Job], Iterator[Job]]] = []
    while True:
        # One batch at a time: opening a batch may take a while, and jobs of the first batch can already run.
        if len(opened) < OPEN_BATCHES and (batch := next(unopened, None)) is not None:
            opened.append((batch, iter(batch.jobs)))
        if not opened:
            return
        least_busy = min(opened, key=lambda batch: in_flight[batch[0].name])
        for job in least_busy[1]:
            yield least_busy[0], job
            break
        else:
            opened.remove(least_busy)


def stream(
    function: Callable[[Job], Result], batches: Iterable[JobBatch[Job]], client: Client | None
) -> Iterator[tuple[Job, Result | Exception]]:
    """Run a function over jobs, and yield each job with its result or error when it ends, in any order.

    Batches and their jobs are consumed as workers become free. The number of jobs in flight is bounded by the memory of
    the workers. A job whose worker died is tried again, the last time alone. If it kills its worker even then, its
    result is a LostWorkersError. Without a client, the jobs run in a plain loop, in order.
    Raises ClusterError if the scheduler is lost, StoreWriteError if a result cannot be written.
    """
    if client is None:
        for batch in batches:
            for job in batch.jobs:
                yield job, attempt(function, job, batch.memory)
        return
    workers = Workers(client)
    running: dict[Any, tuple[JobBatch[Job], Job]] = {}
    in_flight: Counter[str] = Counter()
    numbers, run_id = count(), os.urandom(4).hex()
    completed = as_completed()

    def submit(drawn: list[tuple[JobBatch[Job], Job]]) -> None:
        # A file name may not be valid UTF-8, but a key must be, or the scheduler drops the connection. Every key is
        # new, because a run that is resumed after a failure must not get the failed result again.
        keys = [(batch.name.encode(errors="replace").decode(), next(numbers), run_id) for batch, _ in drawn]
        packed = [pack(attempt, function, job, batch.memory) for batch, job in drawn]
        running.update(zip(keys, drawn, strict=True))
        completed.update(client.map(call, packed, key=keys, pure=False))

    def next_ended() -> list[tuple[JobBatch[Job], Job, Result | Exception]]:
        ended: list[Future[Any]] = []
        while not ended or (len(ended) < ROUND and completed.has_ready()):
            future = next(completed)
            if future.status in ("pending", "lost"):  # its result died with its worker, and is computed again
                completed.add(future)
            else:
                ended.append(future)
        results = read_results(client, ended)
        of_jobs = [running.pop(future.key) for future in ended]
        in_flight.subtract(batch.name for batch, _ in of_jobs)
        return [(batch, job, result) for (batch, job), result in zip(of_jobs, results, strict=True)]

    jobs = draw_jobs(batches, in_flight)
    suspects: list[tuple[JobBatch[Job], Job]] = []
    memory = 0  # the largest promised peak so far, bytes
    while True:
        drawn: list[tuple[JobBatch[Job], Job]] = []
        while (
            len(drawn) < min(ROUND, slots := workers.count_slots(memory))
            and len(running) + len(drawn) < TASKS_PER_THREAD * slots
            and (next_job := next(jobs, None)) is not None
        ):
            batch, job = next_job
            if refusal := workers.memory_error(batch.memory):
                yield job, refusal
                continue
            memory = max(memory, batch.memory)
            in_flight[batch.name] += 1
            drawn.append(next_job)
        if drawn:
            submit(drawn)
            if len(running) < TASKS_PER_THREAD * slots:
                continue
        if not running:
            break
        for batch, job, result in next_ended():
            if isinstance(result, LostWorkersError):  # or an innocent job that ran in the worker of such a job
                suspects.append((batch, job))
            else:
                yield job, result
    for suspect in suspects:
        in_flight[suspect[0].name] += 1
        submit([suspect])
        ((_, job, result),) = next_ended()
        yield job, result


def read_results(client: Client, futures: list["Future[Any]"]) -> list[Any]:
    """The results of tasks that ended, or their errors: see `read_result`."""
    if all(future.status == "finished" for future in futures):
        try:
            return list(client.gather(futures))
        except Exception:  # of one of them, or its worker died since
            pass
    return [read_result(future) for future in futures]


def read_result(future: "Future[Any]") -> Any:
    """The result of a task that ended, or its error. Raises errors that should stop the other tasks too."""
    try:
        return future.result()
    except KilledWorker:
        return LostWorkersError("the job killed every worker that ran it: out of memory, or a fault of a library")
    except StoreWriteError:
        raise
    except (CancelledError, OSError) as error:  # errors of the job itself come as results
        raise scheduler_error(error) from error
    except Exception as error:
        return error
