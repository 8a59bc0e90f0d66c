"""Work as a stream: the same functions on a Dask cluster or in a plain loop. The only importer of Dask."""

import ctypes
import logging
import os
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any, Generic, TypeVar

import cv2
import zarr
from dask.distributed import Client as Client
from dask.distributed import (
    Future,
    KilledWorker,
    LocalCluster,
    Status,
    WorkerPlugin,
    as_completed,
    get_worker,
    performance_report,
)
from numcodecs import blosc

from geokr.landcover import LandCoverError
from geokr.store import StoreError, StoreWriteError
from pipeline.scene import SceneError
from pipeline.signals import deaf_to_interrupts

log = logging.getLogger(__name__)

Job = TypeVar("Job")
Result = TypeVar("Result")

BAD_INPUT = (SceneError, LandCoverError, StoreError, OSError, MemoryError)
"""What a task may end in without stopping the others."""

AHEAD = 3
"""Tasks in flight a thread: enough that none waits, few enough that the scheduler's memory does not grow."""
OPEN = 2 * AHEAD
"""Batches drawn from at once. A slow one then holds no more than half of the threads while others have work."""
LIBRARIES = 360 << 20
"""What a worker's libraries take, and what it keeps between blocks, bytes."""
KILLED = 0.95
"""Share of its memory beyond which Dask ends a worker, as it comes."""
DEATHS = 1
"""A task that was at work in more dying workers than this is a suspect."""


class ClusterError(RuntimeError):
    """No scheduler answers."""


class LostWorkersError(RuntimeError):
    """A job that killed each worker it was given to."""


@dataclass(frozen=True, slots=True)
class Batch(Generic[Job]):
    """Jobs that belong together, such as the blocks of a scene."""

    name: str
    """`<stage>-<scene>`: what the dashboard groups by."""
    jobs: Iterable[Job]
    """Drawn one by one as places fall free."""
    memory: int = 0
    """Promised peak of one job, bytes, beside the libraries."""


class Local(LocalCluster):
    """Worker processes on this machine, named for what they do."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]

    def _new_worker_name(self, worker_number: int) -> str:
        return f"build-{worker_number}"


class Settled(WorkerPlugin):
    """Has every worker of a cluster, whenever it comes, do as a build's should.

    Dask pauses a worker at 80 % of its memory until it has less. A job holds to what was promised of it, so that the
    sum is known, and what the libraries hold never becomes less: the build would wait for ever, without a word.
    """

    name = "geokr"

    def setup(self, worker: Any) -> None:
        settle()
        self.pause = worker.memory_manager.memory_pause_fraction
        worker.memory_manager.memory_pause_fraction = False
        if worker.status == Status.paused:
            worker.status = Status.running

    def teardown(self, worker: Any) -> None:
        worker.memory_manager.memory_pause_fraction = self.pause


@contextmanager
def settled(client: Client) -> Iterator[None]:
    """All workers of somebody's cluster are settled meanwhile. Raises ClusterError where the scheduler is lost."""
    with scheduler_there():
        client.register_plugin(Settled())
    try:
        yield
    finally:
        if client.status == "running":  # otherwise the scheduler is gone
            client.unregister_worker_plugin(Settled.name)


@contextmanager
def cluster(
    workers: int | None = None,
    scheduler: str | None = None,
    dashboard: str = "127.0.0.1:8787",
    memory: int | None = None,
    report: str | None = None,
) -> Iterator[Client]:
    """A Dask client: of the scheduler at an address, otherwise of a cluster of processes on this machine.

    workers: processes, one for each core unless given. memory: of a worker, bytes; unless given, that of the
    machine is shared out. dashboard: where a local cluster serves it. report: a file for Dask's performance report.
    Raises ClusterError with a sentence where the scheduler does not answer.
    """
    if scheduler is not None:
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # pages, of what ClusterError says in a line
        try:
            client = Client(scheduler, timeout="10s")
        except (OSError, ValueError) as error:
            raise ClusterError(f"{scheduler}: no Dask scheduler answers there: {error}") from error
        with client, settled(client), measured(report):
            if not threads(client):
                log.warning("%s: no worker has joined it yet; the build waits for one", scheduler)
            yield client
        return
    if memory is not None and room(memory) < 0:  # workers would be ended and started again for ever
        least = LIBRARIES / KILLED / 1e6
        raise ClusterError(f"a worker of {memory / 1e6:.0f} MB has no room for its libraries: {least:.0f} MB")
    n = workers or len(os.sched_getaffinity(0))
    warnings.filterwarnings("ignore", "Port .* is already in use", UserWarning)  # the dashboard has another, then
    with (
        tempfile.TemporaryDirectory(prefix="geokr-", ignore_cleanup_errors=True) as scratch,
        ExitStack() as started,
    ):
        with deaf_to_interrupts():
            logging.getLogger("distributed.deploy").setLevel(logging.CRITICAL)  # as above
            try:
                local: Any = Local(
                    n_workers=0,
                    threads_per_worker=1,
                    memory_limit=memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // n,
                    host="127.0.0.1",
                    dashboard_address=dashboard,
                    local_directory=scratch,
                    env={"GEOKR_SCRATCH": os.environ.get("GEOKR_SCRATCH", f"{scratch}/unpacked")},
                    silence_logs=logging.CRITICAL,
                    scheduler_kwargs={"allowed_failures": DEATHS},
                )
            except RuntimeError as error:
                raise ClusterError(
                    f"no workers can be started, with their dashboard at {dashboard}: {error}"
                ) from error
            started.enter_context(local)
            local.scale(n)
            client = started.enter_context(Client(local))
            client.register_plugin(Settled())
            client.wait_for_workers(n)
        with measured(report):
            yield client


def measured(report: str | None) -> "performance_report | nullcontext[None]":
    """Dask's own report of what happens meanwhile, written to a file at the end; nothing without one."""
    return nullcontext() if report is None else performance_report(filename=report)


def settle() -> None:
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


def room(limit: float) -> float:
    """Bytes for jobs in a worker with a memory limit, bytes: beside its libraries, and before Dask ends it."""
    return limit * KILLED - LIBRARIES


class Room:
    """Memory of this process that jobs have promised not to exceed."""

    def __init__(self) -> None:
        self.taken = 0
        self.changed = threading.Condition()

    @contextmanager
    def hold(self, memory: int) -> Iterator[None]:
        """Wait until a job's memory is free beside that of the others, and hold it meanwhile."""
        limit = worker_memory()
        with self.changed:
            self.changed.wait_for(lambda: not self.taken or limit is None or self.taken + memory <= room(limit))
            self.taken += memory
        try:
            yield
        finally:
            with self.changed:
                self.taken -= memory
                self.changed.notify_all()


ROOM = Room()


def worker_memory() -> int | None:
    """Limit of the worker that this runs on, bytes; None where there is none."""
    try:
        limit = get_worker().memory_manager.memory_limit
    except ValueError:  # a plain loop
        return None
    return None if limit is None else int(limit)


def attempt(function: Callable[[Job], Result], job: Job, memory: int = 0) -> Result | Exception:
    """A job's result, or the error that its input caused. A fault of the program or of the store is raised."""
    settle()
    with ROOM.hold(memory):
        try:
            return function(job)
        except StoreWriteError:  # a full disk, say: no other job would fare better
            raise
        except BAD_INPUT as error:
            # Without what caused it: errors of rasterio's cannot be read again where they are sent to.
            error.__cause__ = error.__context__ = None
            return error.with_traceback(None)


def lost(error: BaseException) -> ClusterError:
    """The sentence for a scheduler that answers no more."""
    return ClusterError(f"the scheduler was lost; the same command goes on from here ({error})")


@contextmanager
def scheduler_there() -> Iterator[None]:
    """Raises ClusterError where the scheduler does not answer meanwhile."""
    try:
        yield
    except (CancelledError, OSError) as error:
        raise lost(error) from error


def threads(client: Client) -> int:
    """Of all workers. Raises ClusterError."""
    with scheduler_there():
        return sum(client.nthreads().values())


class Workers:
    """What the workers of a cluster have room for; asked for at most once a second, since they come and go."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.asked = -1.0
        self.found: list[tuple[int, int]] = []
        """Threads and memory limit of each, bytes; 0 for none."""

    def all(self) -> list[tuple[int, int]]:
        if (now := time.monotonic()) > self.asked + 1.0:
            with scheduler_there():
                said = self.client.scheduler_info(n_workers=-1)
            if "workers" not in said:
                raise lost(ConnectionError("it says nothing of its workers"))
            workers = said["workers"].values()
            self.asked, self.found = now, [(worker["nthreads"], worker["memory_limit"] or 0) for worker in workers]
        return self.found

    def places(self, memory: int) -> int:
        """Jobs of a promised peak, bytes, that there is room for at once: at least one."""
        fits = [
            min(threads, max(1, int(room(limit) / memory))) if limit and memory else threads
            for threads, limit in self.all()
        ]
        return max(1, sum(fits))

    def too_small(self, memory: int) -> MemoryError | None:
        """The sentence for a job that no worker has the memory for."""
        limits = [limit for _, limit in self.all()]
        if not limits or 0 in limits or memory <= room(max(limits)):
            return None
        return MemoryError(
            f"a block of it takes up to {memory / 1e6:.0f} MB beside the {LIBRARIES / 1e6:.0f} MB of the libraries, "
            f"and no worker has more than {max(limits) * KILLED / 1e6:.0f} MB; give a smaller block or larger workers"
        )


def drawn(batches: Iterable[Batch[Job]], flying: Counter[str]) -> Iterator[tuple[Batch[Job], Job]]:
    """Jobs one by one, each of that one of the open batches which has the fewest in flight by then."""
    waiting = iter(batches)
    opened: list[tuple[Batch[Job], Iterator[Job]]] = []
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
    function: Callable[[Job], Result], batches: Iterable[Batch[Job]], client: Client | None
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
    running: dict[Any, tuple[Batch[Job], Job]] = {}
    flying: Counter[str] = Counter()
    numbers, run = count(), os.urandom(4).hex()
    completed = as_completed()

    def submit(batch: Batch[Job], job: Job) -> None:
        # A file's name may be no UTF-8; a key must be, or the scheduler hangs up. It is new each time, since a run
        # that goes on after a failure must not be handed the failure again.
        key = (batch.name.encode(errors="replace").decode(), next(numbers), run)
        future = client.submit(attempt, function, job, batch.memory, key=key, pure=False)
        running[key] = batch, job
        flying[batch.name] += 1
        completed.add(future)

    def ended() -> tuple[Batch[Job], Job, Result | Exception]:
        future = next(completed)
        while future.status in ("pending", "lost"):  # its result died with the worker that held it, and is made anew
            completed.add(future)
            future = next(completed)
        batch, job = running.pop(future.key)
        flying[batch.name] -= 1
        return batch, job, outcome(future)

    jobs = drawn(batches, flying)
    suspects: list[tuple[Batch[Job], Job]] = []
    memory = 0  # of the largest job yet
    while True:
        while len(running) < AHEAD * workers.places(memory) and (following := next(jobs, None)) is not None:
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


def outcome(future: "Future[Any]") -> Any:
    """The result of a task that ended, or its error. Raises what should stop the others too."""
    try:
        return future.result()
    except KilledWorker:
        return LostWorkersError("it killed each worker that it was given to: out of memory, or a fault of a library")
    except StoreWriteError:
        raise
    except (CancelledError, OSError) as error:  # those of a job itself come as results
        raise lost(error) from error
    except Exception as error:
        return error
