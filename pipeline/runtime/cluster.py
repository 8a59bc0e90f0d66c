"""A Dask cluster, started here or joined, and what it has room for."""

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from dask.distributed import Client as Client
from dask.distributed import (
    LocalCluster,
    Status,
    WorkerPlugin,
    performance_report,
)

from pipeline.runtime.signals import block_interrupts
from pipeline.runtime.worker import KILLED, LIBRARIES, configure_libraries, usable_memory

log = logging.getLogger(__name__)

DEATHS = 1
"""A task that was at work in more dying workers than this is a suspect."""


class ClusterError(RuntimeError):
    """No scheduler answers."""


class NamedCluster(LocalCluster):
    """Worker processes on this machine, named for what they do."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]

    def _new_worker_name(self, worker_number: int) -> str:
        return f"build-{worker_number}"


class WorkerSetup(WorkerPlugin):
    """Has every worker of a cluster, whenever it comes, do as a build's should.

    Dask pauses a worker at 80 % of its memory until it has less. A job holds to what was promised of it, so that the
    sum is known, and what the libraries hold never becomes less: the build would wait for ever, without a word.
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
    """All workers of somebody's cluster are settled meanwhile. Raises ClusterError where the scheduler is lost."""
    with require_scheduler():
        client.register_plugin(WorkerSetup())
    try:
        yield
    finally:
        if client.status == "running":  # otherwise the scheduler is gone
            client.unregister_worker_plugin(WorkerSetup.name)


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
        with client, set_up_workers(client), write_report(report):
            if not count_threads(client):
                log.warning("%s: no worker has joined it yet; the build waits for one", scheduler)
            yield client
        return
    if memory is not None and usable_memory(memory) < 0:  # workers would be ended and started again for ever
        least = LIBRARIES / KILLED / 1e6
        raise ClusterError(f"a worker of {memory / 1e6:.0f} MB has no room for its libraries: {least:.0f} MB")
    n = workers or len(os.sched_getaffinity(0))
    warnings.filterwarnings("ignore", "Port .* is already in use", UserWarning)  # the dashboard has another, then
    with (
        tempfile.TemporaryDirectory(prefix="geokr-", ignore_cleanup_errors=True) as scratch,
        ExitStack() as started,
    ):
        with block_interrupts():
            logging.getLogger("distributed.deploy").setLevel(logging.CRITICAL)  # as above
            try:
                local: Any = NamedCluster(
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
            client.register_plugin(WorkerSetup())
            client.wait_for_workers(n)
        with write_report(report):
            yield client


def write_report(report: str | None) -> "performance_report | nullcontext[None]":
    """Dask's own report of what happens meanwhile, written to a file at the end; nothing without one."""
    return nullcontext() if report is None else performance_report(filename=report)


def scheduler_lost(error: BaseException) -> ClusterError:
    """The sentence for a scheduler that answers no more."""
    return ClusterError(f"the scheduler was lost; the same command goes on from here ({error})")


@contextmanager
def require_scheduler() -> Iterator[None]:
    """Raises ClusterError where the scheduler does not answer meanwhile."""
    try:
        yield
    except (CancelledError, OSError) as error:
        raise scheduler_lost(error) from error


def count_threads(client: Client) -> int:
    """Of all workers. Raises ClusterError."""
    with require_scheduler():
        return sum(client.nthreads().values())
