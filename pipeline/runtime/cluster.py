"""A Dask cluster: started on this machine, or joined at the address of its scheduler."""

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Literal

import dask
from dask.distributed import Client as Client
from dask.distributed import (
    LocalCluster,
    Nanny,
    Status,
    WorkerPlugin,
    performance_report,
)
from distributed.system import MEMORY_LIMIT

from pipeline.runtime.signals import block_interrupts
from pipeline.runtime.worker import KILLED, LIBRARIES, configure_libraries, usable_memory

log = logging.getLogger(__name__)

ALLOWED_DEATHS = 1
"""How many workers may die while they run a task. One more, and the task is suspected of killing them."""
STARTS = 3
"""How often a worker is started in a row that dies before it runs. Then there is one worker less."""

DASK_LOGGERS = ("distributed", "distributed.client", "distributed.gc", "bokeh")
"""Loggers of Dask and of its dashboard that have a level of their own. They log pages; ClusterError has one line."""


class ClusterError(RuntimeError):
    """The cluster cannot be started, its scheduler cannot be reached, or all of its local workers died."""


@contextmanager
def silence_dask() -> Iterator[None]:
    """Silence Dask in this process while the context is active, by the levels of its loggers.

    Dask's own `silence_logs` changes the level of the handlers instead, which other loggers may share: what a build
    says would be lost too.
    """
    levels = {logger: logger.level for logger in map(logging.getLogger, DASK_LOGGERS)}
    try:
        for logger in levels:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


class BoundedNanny(Nanny):
    """The parent of a worker process, which starts one anew that died, but not for ever.

    A worker that dies while it starts runs no job that could be blamed, so Dask would start it again without end. What
    it logs is silenced: its handlers are its own, see `silence_dask`.
    """

    _cluster: Callable[[], "NamedCluster | None"] | None = None
    """Set by Dask once the worker was started for the first time."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.silence_logs = logging.CRITICAL  # passed on to the worker process
        self.starts = 0
        """Attempts to start the worker since it last ran."""

    async def instantiate(self) -> Status:
        if self.starts == STARTS:
            await self.close(reason="worker-does-not-start")
            return Status.failed
        self.starts += 1
        status = await super().instantiate()
        if status == Status.running:
            self.starts = 0
        return status

    async def close(  # type: ignore[override]
        self, timeout: float = 5, reason: str = "nanny-close"
    ) -> Literal["OK"]:
        await super().close(timeout, reason)
        if self._cluster is not None and (cluster := self._cluster()) is not None:
            await cluster.end_without_workers()
        return "OK"


class NamedCluster(LocalCluster):
    """Worker processes on this machine, named `build-<number>`."""

    lost = False
    """Whether no worker is left, nor any nanny that would start one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]

    def _new_worker_name(self, worker_number: int) -> str:
        return f"build-{worker_number}"

    async def start_workers(self) -> None:
        """Wait for the workers that `scale` asked for. Raises RuntimeError if one of them does not run."""
        await self
        if any(nanny.status != Status.running for nanny in self.workers.values()):
            raise RuntimeError("a worker died while it started")

    async def end_without_workers(self) -> None:
        """End the scheduler if no worker is left, so that nobody waits for a result any longer."""
        gone = (Status.closing, Status.closed, Status.failed)
        if self.status == Status.running and all(nanny.status in gone for nanny in self.workers.values()):
            self.lost = True
            self.shutdown_scheduler = False  # when the cluster is closed, which would call it for 30 s
            if self.scheduler is not None:
                await self.scheduler.close()


class WorkerSetup(WorkerPlugin):
    """Configure every worker of a cluster for a build, also those that join later.

    Pausing is switched off. Dask pauses a worker at 80 % of its memory until its usage drops. Here, each job stays
    within its promised peak, so the total is known. The memory of the libraries never shrinks, so a paused worker
    would stay paused, and the build would hang without a message.
    """

    name = "geokr"

    def setup(self, worker: Any) -> None:
        configure_libraries()
        self.pause = worker.memory_manager.memory_pause_fraction
        worker.memory_manager.memory_pause_fraction = False
        if worker.status == Status.paused:
            worker.status = Status.running

    def teardown(self, worker: Any) -> None:
        worker.memory_manager.memory_pause_fraction = self.pause


@contextmanager
def set_up_workers(client: Client) -> Iterator[None]:
    """Configure all workers of an external cluster while the context is active.

    Raises ClusterError if the scheduler is lost.
    """
    with require_scheduler():
        client.register_plugin(WorkerSetup())
    try:
        yield
    finally:
        if client.status == "running":  # otherwise the scheduler no longer exists
            client.unregister_worker_plugin(WorkerSetup.name)


@contextmanager
def open_cluster(
    workers: int | None = None,
    scheduler: str | None = None,
    dashboard: str = "127.0.0.1:8787",
    memory: int | None = None,
    report: str | None = None,
) -> Iterator[Client]:
    """Yield a Dask client, connected to the scheduler at an address or to a new cluster of local processes.

    workers: number of local processes, by default one per core. memory: limit of one local worker, bytes; by default
    the memory of the machine, or of the container that this runs in, is divided equally. dashboard: address where a
    local cluster serves its dashboard. report: file for Dask's performance report. Raises ClusterError with a
    one-sentence message if the scheduler does not answer, or if local workers cannot be started, at first or anew.
    """
    cluster = join_cluster(scheduler) if scheduler else start_cluster(workers, dashboard, memory)
    with silence_dask(), cluster as client, write_report(report):
        yield client


@contextmanager
def join_cluster(scheduler: str) -> Iterator[Client]:
    """Yield a client of the scheduler at an address: see `open_cluster`."""
    try:
        client = Client(scheduler, timeout="10s")
    except (OSError, ValueError) as error:
        raise ClusterError(f"{scheduler}: no Dask scheduler answers at this address: {error}") from error
    with client, set_up_workers(client):
        if not count_threads(client):
            log.warning("%s: no worker has joined the scheduler yet; the build is waiting for one", scheduler)
        yield client


@contextmanager
def start_cluster(workers: int | None, dashboard: str, memory: int | None) -> Iterator[Client]:
    """Yield a client of a new cluster on this machine: see `open_cluster`."""
    if memory is not None and usable_memory(memory) < 0:  # Dask would kill and restart such workers forever
        required = LIBRARIES / KILLED / 1e6
        raise ClusterError(
            f"a worker with {memory / 1e6:.0f} MB has too little memory for its libraries; give at least "
            f"{required:.0f} MB"
        )
    n = workers or count_cores()
    with (
        tempfile.TemporaryDirectory(prefix="geokr-", ignore_cleanup_errors=True) as scratch,
        ExitStack() as resources,
    ):
        # A nanny starts a worker anew that died. Dask would close it after 15 s, which a busy machine may take.
        resources.enter_context(dask.config.set({"distributed.deploy.lost-worker-timeout": "365 days"}))
        with block_interrupts():
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Port .* is already in use", UserWarning)  # it takes another then
                    local: Any = NamedCluster(
                        n_workers=0,
                        threads_per_worker=1,
                        memory_limit=memory or int(MEMORY_LIMIT) // n,
                        host="127.0.0.1",
                        dashboard_address=dashboard,
                        local_directory=scratch,
                        env={"GEOKR_SCRATCH": os.environ.get("GEOKR_SCRATCH", f"{scratch}/unpacked")},
                        worker_class=BoundedNanny,
                        silence_logs=False,
                        scheduler_kwargs={"allowed_failures": ALLOWED_DEATHS},
                    )
            except RuntimeError as error:
                raise ClusterError(f"cannot start workers with their dashboard at {dashboard}: {error}") from error
            resources.enter_context(local)
            local.scale(n)
            try:
                local.sync(local.start_workers)
            except RuntimeError as error:
                raise ClusterError(f"cannot start {n} workers: {error}") from error
            client = resources.enter_context(Client(local))
            client.register_plugin(WorkerSetup())
        try:
            yield client
        except Exception as error:
            if local.lost:
                raise ClusterError(
                    "the workers died, and did not start anew; give them more memory with --memory, or start fewer "
                    "with --workers"
                ) from error
            raise


def count_cores() -> int:
    """Number of cores that this process may use: by default, so many workers are started."""
    return len(os.sched_getaffinity(0))


def memory_per_worker() -> int:
    """Memory of one local worker without `--memory` and `--workers`, bytes."""
    return int(MEMORY_LIMIT) // count_cores()


def write_report(report: str | None) -> "performance_report | nullcontext[None]":
    """A context that writes Dask's performance report of its duration to a file; one that does nothing for None."""
    return nullcontext() if report is None else performance_report(filename=report)


def scheduler_error(error: BaseException) -> ClusterError:
    """The error for a scheduler that no longer answers."""
    return ClusterError(f"the scheduler was lost; run the same command again to resume ({error})")


@contextmanager
def require_scheduler() -> Iterator[None]:
    """Raise ClusterError if the scheduler does not answer while the context is active."""
    try:
        yield
    except (CancelledError, OSError) as error:
        raise scheduler_error(error) from error


def count_threads(client: Client) -> int:
    """Total number of threads of all workers. Raises ClusterError if the scheduler is lost."""
    with require_scheduler():
        return sum(client.nthreads().values())
