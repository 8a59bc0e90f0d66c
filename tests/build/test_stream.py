"""Work is streamed: bounded, fair, within memory, and no job takes the others down with it."""

import logging
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE
from typing import Any

import cv2
import pytest
import rasterio
from dask.distributed import KilledWorker, LocalCluster, Worker, get_worker
from distributed import nanny
from distributed.utils import sync

from geokr.dataset.layout import StoreError, StoreWriteError
from pipeline.runtime import stream as module
from pipeline.runtime import worker
from pipeline.runtime.cluster import ClusterError, open_cluster
from pipeline.runtime.signals import block_interrupts, report_stop, stop_on_signals
from pipeline.runtime.stream import (
    OPEN_BATCHES,
    ROUND,
    TASKS_PER_THREAD,
    Client,
    JobBatch,
    LostWorkersError,
    Workers,
    draw_jobs,
    stream,
)
from pipeline.runtime.worker import KILLED, LIBRARIES, MemoryBudget, attempt
from pipeline.scenes.scene import SceneError

MB = 1_000_000


def beside(memory: int) -> int:
    """Memory limit of a worker that has room for this beside its libraries, bytes."""
    return math.ceil((LIBRARIES + memory) / KILLED)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with open_cluster(workers=2, dashboard="127.0.0.1:0") as client:
        yield client


def double(n: int) -> int:
    return 2 * n


class Kept(logging.StreamHandler[Any]):
    """A handler that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.mark.parametrize("place", ["here", "elsewhere"])
def test_a_cluster_silences_dask_and_nothing_else(place: str) -> None:
    """A handler may serve Dask's loggers and ours: pytest's own do, and those of many programs."""
    ours, dask, handler = logging.getLogger("pipeline"), logging.getLogger("distributed"), Kept()
    loggers = [logging.getLogger(name) for name in (None, "pipeline", *logging.Logger.manager.loggerDict)]
    ours.addHandler(handler)
    dask.addHandler(handler)
    with ExitStack() as stack:
        stack.callback(ours.removeHandler, handler)
        stack.callback(dask.removeHandler, handler)
        other = None
        if place == "elsewhere":
            other = stack.enter_context(
                LocalCluster(n_workers=1, dashboard_address=":0", host="127.0.0.1", silence_logs=False)
            )
        levels, filters = {logger.name: logger.level for logger in loggers}, [*warnings.filters]
        handler.messages.clear()
        with open_cluster(workers=1, scheduler=other and other.scheduler_address, dashboard="127.0.0.1:0") as client:
            assert client.submit(double, 4).result() == 8
            logging.getLogger("distributed.nanny").error("of Dask")
            logging.getLogger("pipeline.stages").warning("ours")
            assert handler.messages == ["ours"]
        assert {logger.name: logger.level for logger in loggers} == levels
        assert handler.level == logging.NOTSET
        assert [*warnings.filters] == filters


def deadly(n: int) -> int:
    if n == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.02)
    return n


def paced(job: tuple[str, int, str]) -> None:
    """A slow job goes on until 25 fast ones have ended, or until another slow one runs beside it."""
    kind, _, log = job
    with open(log, "a") as file:
        file.write(f"{kind}\n")
    while kind == "slow":
        lines = Path(log).read_text().splitlines()
        if lines.count("fast ended") >= 25 or lines.count("slow") - lines.count("slow ended") > 1:
            break
        time.sleep(0.005)
    with open(log, "a") as file:
        file.write(f"{kind} ended\n")


def peak(job: tuple[str, int]) -> None:
    """Note when this job begins and ends: not before so many have begun, and a while later, in which more would."""
    path, together = job
    with open(path, "a") as file:
        file.write("+")
    while Path(path).read_text().count("+") < together:
        time.sleep(0.005)
    time.sleep(0.05)
    with open(path, "a") as file:
        file.write("-")


def test_no_more_jobs_are_drawn_than_there_is_room_for(client: Client) -> None:
    drawn: list[int] = []

    def jobs() -> Iterator[int]:
        for n in range(200):
            drawn.append(n)
            yield n

    for ended, (job, result) in enumerate(stream(double, [JobBatch("count", jobs())], client), start=1):
        assert result == 2 * job
        assert len(drawn) <= ended + TASKS_PER_THREAD * 2
    assert len(drawn) == 200


def test_a_job_that_kills_its_worker_is_refused_by_itself(client: Client) -> None:
    """Its neighbours' workers die with it, and they are done all the same."""
    results = dict(stream(deadly, [JobBatch("deadly", range(12))], client))
    assert isinstance(results.pop(3), LostWorkersError)
    assert results == {n: n for n in range(12) if n != 3}


def close_nanny(client: Client, name: str) -> None:
    """What Dask does when a worker cannot be started anew."""
    client.sync(client.cluster.workers[name].close)


def held(log: str) -> None:
    """Go on until the worker is ended."""
    Path(log).touch()
    threading.Event().wait()


def until(log: Path) -> None:
    while not log.exists():
        time.sleep(0.01)


def stream_without_workers(log: Path) -> None:
    """Close the nanny of one of two workers, then that of the other while its jobs run."""
    with open_cluster(workers=2, dashboard="127.0.0.1:0") as client:
        close_nanny(client, "build-0")
        assert dict(stream(double, [JobBatch("count", range(9))], client)) == {n: 2 * n for n in range(9)}
        closing = threading.Thread(target=lambda: (until(log), close_nanny(client, "build-1")))
        closing.start()
        try:
            list(stream(held, [JobBatch("held", [str(log)] * 9)], client))
        finally:
            closing.join()


def test_a_build_ends_when_no_worker_is_left_nor_will_come(tmp_path: Path) -> None:
    """It would wait for ever; while a worker is left, the build goes on."""
    with pytest.raises(ClusterError, match="the workers died, and did not start anew; give them more memory"):
        stream_without_workers(tmp_path / "log")


class DyingWorker(Worker):
    """Dies while it starts, as one that is killed for its memory."""

    def __init__(self, *args: Any, **options: Any) -> None:
        os._exit(1)


def stream_where_workers_die() -> None:
    with open_cluster(workers=1, dashboard="127.0.0.1:0") as client:
        nanny: Any = client.cluster.workers["build-0"]
        nanny.process.Worker = DyingWorker
        os.kill(nanny.pid, signal.SIGKILL)
        list(stream(double, [JobBatch("count", range(9))], client))


def test_a_worker_that_dies_while_it_starts_is_not_started_for_ever() -> None:
    with pytest.raises(ClusterError, match="the workers died, and did not start anew"):
        stream_where_workers_die()


def test_workers_that_die_as_a_cluster_starts_are_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nanny, "Worker", DyingWorker)
    with (
        pytest.raises(ClusterError, match="cannot start 1 workers: a worker died while it started"),
        open_cluster(workers=1, dashboard="127.0.0.1:0"),
    ):
        pass


def test_a_slow_batch_does_not_hold_up_fast_ones(client: Client, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    batches = [JobBatch("slow", [("slow", n, log) for n in range(4)])]
    batches += [JobBatch(f"fast {k}", [("fast", n, log) for n in range(6)]) for k in range(8)]
    order = [job[0] for job, _ in stream(paced, batches, client)]
    third = [n for n, name in enumerate(order) if name == "slow"][2]
    assert third > 20  # in the order of the batches it would be the third: both workers would be kept by slow ones


def test_a_worker_takes_up_no_more_than_its_memory(tmp_path: Path) -> None:
    """Four threads, and room for two jobs beside the libraries."""
    log = tmp_path / "log"
    limit = beside(250 * MB)
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=4, memory_limit=limit, dashboard_address=":0", host="127.0.0.1"
        ) as elsewhere,
        Client(elsewhere) as client,
    ):
        jobs = [(str(log), 2)] * 12
        assert all(result is None for _, result in stream(peak, [JobBatch("peak", jobs, 100_000_000)], client))
        ((_, refused),) = stream(peak, [JobBatch("large", jobs[:1], 300_000_000)], client)
        free = [(str(tmp_path / "free"), 4)] * 12
        assert all(result is None for _, result in stream(peak, [JobBatch("free", free)], client))
    assert most_at_once(log.read_text()) == 2
    assert most_at_once((tmp_path / "free").read_text()) == 4
    assert isinstance(refused, MemoryError)
    assert "takes up to 300 MB" in str(refused)


HELD: list[bytearray] = []


def hold(share: float) -> tuple[int, str]:
    """Have this process hold a share of its worker's memory from now on, and Dask look at it."""
    limit = worker.worker_memory()
    assert limit is not None
    held = int(next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line).split()[1])
    HELD.append(bytearray(b"x") * max(0, int(limit * share) - held * 1024))
    here = get_worker()
    sync(here.loop, here.memory_manager.memory_monitor, here)
    return os.getpid(), here.status.name


def test_a_worker_whose_memory_is_nearly_full_goes_on() -> None:
    """Dask would pause it until it had less, which is never."""
    with open_cluster(workers=1, dashboard="127.0.0.1:0", memory=1_000_000_000) as client:
        ((_, first),) = stream(hold, [JobBatch("hold", [0.87])], client)
        assert first[1] == "running"
        ((_, second),) = stream(hold, [JobBatch("hold", [0.0])], client)
        assert second == first  # nor was it ended


def most_at_once(log: str) -> int:
    at_work = most = 0
    for sign in log:
        at_work += 1 if sign == "+" else -1
        most = max(most, at_work)
    return most


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> MemoryBudget:
    """Room for 100 bytes beside the libraries."""
    monkeypatch.setattr(worker, "worker_memory", lambda: beside(100))
    return MemoryBudget()


def test_jobs_in_one_process_wait_for_memory(little_room: MemoryBudget) -> None:
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with little_room.reserve(60):
            held.set()
            release.wait()

    first = threading.Thread(target=hold)
    first.start()
    held.wait()
    second = threading.Thread(target=lambda: little_room.reserve(60).__enter__())
    second.start()
    second.join(0.2)
    assert second.is_alive()
    release.set()
    second.join()


def test_a_job_gives_its_memory_back_however_it_ends(little_room: MemoryBudget) -> None:
    for memory in (60, 100):
        with suppress(SceneError), little_room.reserve(memory):
            assert little_room.reserved == memory
            raise SceneError
        assert little_room.reserved == 0


def test_a_job_too_large_for_its_worker_is_not_held_up_for_ever(little_room: MemoryBudget) -> None:
    with little_room.reserve(1000):
        pass


# --- without a cluster


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("error", [*(kind("x") for kind in (SceneError, StoreError, OSError, MemoryError))])
def test_what_its_input_caused_is_a_jobs_result(error: Exception) -> None:
    cv2.setNumThreads(2)
    assert attempt(fail, error) is error
    assert cv2.getNumThreads() == 1  # the workers are the parallelism


@pytest.mark.parametrize("error", [StoreWriteError("full"), KeyError("a fault of the program")])
def test_a_fault_of_the_store_or_of_the_program_is_raised(error: Exception) -> None:
    with pytest.raises(type(error)):
        attempt(fail, error)


@pytest.mark.parametrize("busy", "012")
def test_the_next_job_is_of_the_batch_that_has_the_fewest_in_flight(busy: str) -> None:
    flying: Counter[str] = Counter()
    jobs = draw_jobs([JobBatch(name, [name] * 3) for name in "012"], flying)
    for name in "012":
        assert next(jobs)[1] == name
        flying[name] = 2
    flying[busy] = 1
    assert next(jobs)[1] == busy
    flying[busy] += 2
    assert next(jobs)[1] == min({*"012"} - {busy})
    left = Counter(dict.fromkeys("012", 2)) - Counter([busy, min({*"012"} - {busy})])
    assert Counter(job for _, job in jobs) == left


def test_batches_are_opened_as_they_are_needed() -> None:
    """The first job waits for the first batch alone; later no more are open than may be."""
    opened: list[int] = []

    def batches() -> Iterator[JobBatch[int]]:
        for n in range(3 * OPEN_BATCHES):
            opened.append(n)
            yield JobBatch(f"{n}", [n] * 2)

    flying: Counter[str] = Counter()
    most = 0
    for done, (batch, job) in enumerate(draw_jobs(batches(), flying)):
        assert batch.name == f"{job}"
        assert done or opened == [0]
        flying[batch.name] += 1
        most = max(most, len(opened) - sum(flying[f"{n}"] == 2 for n in opened))
    assert most == OPEN_BATCHES
    assert opened == [*range(3 * OPEN_BATCHES)]
    assert set(flying.values()) == {2}


# --- a cluster that is played: jobs end one by one, in the order in which they were submitted, as the test wants


@dataclass
class Ending:
    """A future that has ended, if only for a moment."""

    key: Any
    end: Callable[[], Any]
    states: tuple[str, ...] = ()
    """What it is each time that it ends, until it has finished."""
    slow: bool = False
    ended: int = 0
    outcome: tuple[Any, Exception | None] | None = None

    @property
    def status(self) -> str:
        return [*self.states, "finished"][self.ended - 1]

    def result(self) -> Any:
        assert self.status == "finished"
        if self.outcome is None:
            try:
                self.outcome = self.end(), None
            except Exception as error:
                self.outcome = None, error
        value, error = self.outcome
        return value if error is None else fail(error)


@dataclass
class Played:
    """A client, and what it has in flight."""

    workers: list[tuple[int, int | None]]
    """Threads and memory limit of each, bytes."""
    ends: Callable[[Any, int], Any] = lambda job, _: job
    """A job's end from the job and how often it was tried before."""
    states: tuple[str, ...] = ()
    flying: list[Ending] = field(default_factory=list)
    keys: list[Any] = field(default_factory=list)
    tries: Counter[Any] = field(default_factory=Counter)
    most: int = 0
    slow: Any = None
    """Jobs that end when nothing else is left."""
    at_once: int = 1
    """How many jobs end at once."""
    ready: int = 0
    """How many of them have ended, but were not asked for."""
    rounds: list[int] = field(default_factory=list)
    """How many jobs were submitted at once."""

    asked: list[int] = field(default_factory=list)
    """How many workers the scheduler was asked for each time, -1 for all."""

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        self.asked.append(n_workers)
        told = self.workers if n_workers < 0 else self.workers[:n_workers]
        return {
            "n_workers": len(self.workers),
            "total_threads": sum(n for n, _ in self.workers),
            "total_memory": sum(limit or 0 for _, limit in self.workers),
            "workers": {k: {"nthreads": n, "memory_limit": limit} for k, (n, limit) in enumerate(told)},
        }

    def map(self, _call: Any, packed: list[bytes], *, key: list[Any], pure: bool) -> list[Ending]:
        assert not pure
        self.keys += key
        self.rounds.append(len(key))
        return [self.task(*task) for task in zip(key, packed, strict=True)]

    def task(self, key: Any, packed: bytes) -> Ending:
        _, (_, job, _) = pickle.loads(packed)
        before = self.tries[job]
        self.tries[job] += 1
        return Ending(key, lambda: self.ends(job, before), self.states, job == self.slow)

    def gather(self, futures: list[Ending]) -> list[Any]:
        return [future.result() for future in futures]

    def has_ready(self) -> bool:
        return self.ready > 0 and bool(self.flying)

    def update(self, futures: list[Ending]) -> None:
        for future in futures:
            self.add(future)

    def add(self, future: Ending) -> None:
        self.flying.append(future)
        self.most = max(self.most, len(self.flying))

    def __next__(self) -> Ending:
        self.ready = (self.ready or self.at_once) - 1
        future = self.flying.pop(min(range(len(self.flying)), key=lambda k: self.flying[k].slow))
        future.ended += 1
        return future

    def stream(self, monkeypatch: pytest.MonkeyPatch, *batches: JobBatch[Any]) -> list[tuple[Any, Any]]:
        with monkeypatch.context() as patch:
            patch.setattr(module, "as_completed", lambda: self)
            client: Any = self
            return list(stream(double, batches, client))


def told(*workers: tuple[int, int | None]) -> Workers:
    client: Any = Played([*workers])
    return Workers(client)


def test_there_is_room_for_as_many_jobs_as_threads_and_memory_allow() -> None:
    workers = told((4, beside(250 * MB)), (1, None), (2, beside(900 * MB)))
    assert [workers.count_slots(memory * MB) for memory in (0, 50, 100, 125, 126, 500, 901)] == [7, 7, 5, 5, 4, 3, 3]
    assert told().count_slots(100) == 1
    assert told(*[(1, None)] * 7).count_slots(0) == 7


def test_a_job_is_too_large_if_no_worker_holds_it_beside_its_libraries() -> None:
    two = told((1, beside(0)), (1, beside(300 * MB)))
    assert two.memory_error(300 * MB) is None
    assert "takes up to 301 MB in addition to the 377 MB of the libraries, and no worker has more than 677 MB" in str(
        two.memory_error(301 * MB)
    )
    assert (
        told().memory_error(10**15) is told((1, None), (1, beside(0))).memory_error(10**15) is None
    )  # nobody sets a limit
    assert isinstance(told((1, beside(0) - 1)).memory_error(0), MemoryError)


def test_workers_that_come_later_are_counted() -> None:
    client: Any = Played([(1, None)])
    workers = Workers(client)
    assert workers.count_slots(0) == 1
    client.workers.append((3, None))
    assert workers.count_slots(0) == 1  # asked for a moment ago
    workers.queried_at -= 2
    assert workers.count_slots(0) == 4
    client.workers[0] = (2, 10 * MB)
    workers.queried_at -= 2
    assert workers.count_slots(0) == 5


def test_workers_are_listed_only_if_their_totals_change() -> None:
    """A thousand workers are 0.7 MB, each second."""
    client: Any = Played([(1, None)] * 1000)
    workers = Workers(client)
    for _ in range(5):
        assert workers.count_slots(0) == 1000
        workers.queried_at -= 2
    assert client.asked == [0, -1, 0, 0, 0, 0]


def test_a_report_without_its_workers_is_asked_for_again() -> None:
    client: Any = Played([(3, None)])
    whole = client.scheduler_info

    def totals(n_workers: int) -> dict[str, Any]:
        return dict(whole(0))

    workers = Workers(client)
    client.scheduler_info = totals
    assert workers.capacities() == []
    client.scheduler_info = whole
    assert workers.capacities() == [(3, 0)]


NOBODY = {"n_workers": 0, "total_threads": 0, "total_memory": 0, "workers": {}}


@pytest.mark.parametrize("answer", [{}, NOBODY, CancelledError(), OSError("no route")])
def test_a_scheduler_that_answers_no_more_is_told_in_a_sentence(answer: Any) -> None:
    client: Any = Played([])

    def info(n_workers: int) -> Any:
        return fail(answer) if isinstance(answer, BaseException) else answer

    client.scheduler_info = info
    if answer == NOBODY:  # answers, and waits for workers
        assert Workers(client).capacities() == []
        return
    with pytest.raises(ClusterError, match="the scheduler was lost; run the same command again to resume"):
        Workers(client).capacities()


@pytest.mark.parametrize("memories", [(0, 100 * MB), (100 * MB, 0), (1, 100 * MB, 1)])
def test_no_more_is_in_flight_than_memory_has_room_for(
    monkeypatch: pytest.MonkeyPatch, memories: tuple[int, ...]
) -> None:
    """Room for two of the largest jobs, whichever comes first, and five threads."""
    played = Played([(5, beside(250 * MB))])
    batches = [JobBatch(f"{k}", [(k, n) for n in range(40)], memory) for k, memory in enumerate(memories)]
    large = memories.index(100 * MB)
    found = played.stream(monkeypatch, *(batches[large : large + 1] + batches))
    assert Counter(job for job, _ in found) == Counter(
        job for batch in [batches[large], *batches] for job in batch.jobs
    )
    assert played.most == TASKS_PER_THREAD * 2


@pytest.mark.parametrize(("at_once", "room"), [(1, 5), (2, 5), (5, 5), (99, 5), (200, 100)])
def test_jobs_that_end_together_are_replaced_together(monkeypatch: pytest.MonkeyPatch, at_once: int, room: int) -> None:
    """One after the other is not asked for: a message for each would keep the scheduler busy."""
    played = Played([(room, None)], at_once=at_once)
    batches = [JobBatch(f"{k}", [(k, n) for n in range(300)]) for k in range(3)]
    found = played.stream(monkeypatch, *batches)
    assert Counter(job for job, _ in found) == Counter(job for batch in batches for job in batch.jobs)
    assert all(job == result for job, result in found)
    assert played.most == TASKS_PER_THREAD * room
    assert max(played.rounds) == min(ROUND, room)
    assert len(played.rounds) <= 3 + 900 / min(at_once, ROUND, room) + TASKS_PER_THREAD * room / min(ROUND, room)


def test_others_go_on_while_a_slow_batch_fills_its_places(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played([(2, None)], slow="slow")
    batches = [JobBatch(name, [name] * 20) for name in ("slow", "a", "b", "c")]
    order = [job for job, _ in played.stream(monkeypatch, *batches)]
    assert order[60:] == ["slow"] * 20
    assert played.most == TASKS_PER_THREAD * 2


def test_what_died_with_others_is_tried_again_alone_and_last(monkeypatch: pytest.MonkeyPatch) -> None:
    alone: list[int] = []

    def ends(job: int, before: int) -> int:
        if before:
            alone.append(len(played.flying))
        if job == 7 or (job % 3 == 0 and not before):
            raise KilledWorker("job", None, 2)
        return job

    played = Played([(3, None)], ends)
    found = played.stream(monkeypatch, JobBatch("deadly", range(20)))
    assert {job: result for job, result in found if job != 7} == {n: n for n in range(20) if n != 7}
    assert isinstance(dict(found)[7], LostWorkersError)
    assert len(found) == 20
    assert [job for job, _ in found[-8:]] == [0, 3, 6, 7, 9, 12, 15, 18]
    assert alone == [0] * 8
    assert max(played.tries.values()) == 2


def test_a_key_is_never_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same run or by another, or a failure would be handed out again; and it is text."""

    def ends(job: int, before: int) -> int:
        return job if before else fail(KilledWorker("job", None, 2))  # type: ignore[func-returns-value]

    played = Played([(2, None)], ends)
    for _ in range(2):
        played.tries.clear()
        played.stream(monkeypatch, JobBatch("a \udcff file", [1, 1, 2]), JobBatch("other", [1]))
    assert len(played.keys) == len(set(played.keys)) == 2 * (4 + 2)
    for name, *_ in played.keys:
        name.encode()


@pytest.mark.parametrize("states", [("lost",), ("pending", "lost", "pending")])
def test_a_result_that_was_lost_with_its_worker_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, states: tuple[str, ...]
) -> None:
    played = Played([(2, None)], states=states)
    assert sorted(played.stream(monkeypatch, JobBatch("count", range(9)))) == [(n, n) for n in range(9)]
    assert set(played.tries.values()) == {1}


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (StoreWriteError("full"), StoreWriteError),
        (CancelledError(), ClusterError),
        (OSError("connection reset"), ClusterError),
    ],
)
def test_what_no_other_job_would_survive_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, error: Exception, wanted: type[Exception]
) -> None:
    with pytest.raises(wanted):
        Played([(2, None)], lambda job, _: fail(error)).stream(monkeypatch, JobBatch("count", range(9)))


def test_a_fault_of_the_program_is_of_its_own_job(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played([(2, None)], lambda job, _: 1 // (job - 4))
    found = dict(played.stream(monkeypatch, JobBatch("count", range(9))))
    assert isinstance(found.pop(4), ZeroDivisionError)
    assert found == {n: 1 // (n - 4) for n in range(9) if n != 4}


# --- what is said, and what stops it


def unreadable(path: str) -> None:
    try:
        rasterio.open(path)
    except rasterio.RasterioIOError as error:
        raise SceneError(f"{path}: not an image") from error


def test_what_refuses_a_job_arrives_as_it_was_said(client: Client) -> None:
    ((_, error),) = stream(unreadable, [JobBatch("x", ["/no/such.tif"])], client)
    assert isinstance(error, SceneError)
    assert str(error) == "/no/such.tif: not an image"


def interrupted_at_start() -> Iterator[bytes]:
    """What a process says that is started as workers are, and interrupted; then the interrupt itself."""
    child = [sys.executable, "-c", "import time; print(flush=True); time.sleep(0.5); print('spared')"]
    with block_interrupts(), subprocess.Popen(child, stdout=PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for pid in (process.pid, os.getpid()):  # as a terminal sends it
            os.kill(pid, signal.SIGINT)
        yield process.stdout.read()


def test_ctrl_c_while_workers_start_spares_them_and_is_not_lost() -> None:
    said = interrupted_at_start()
    assert next(said) == b"spared\n"
    with pytest.raises(KeyboardInterrupt):
        next(said)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_what_a_cluster_or_a_closing_terminal_sends_is_as_ctrl_c(sent: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt) as raised, stop_on_signals():
        signal.raise_signal(sent)
    assert report_stop(raised.value) == 128 + sent
    assert signal.getsignal(sent) == signal.SIG_DFL


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_arrives_in_a_finalizer_stops_all_the_same(sent: signal.Signals) -> None:
    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(sent)  # Python drops the exception

    def finalize() -> None:
        Finalized()
        time.sleep(60)  # cut short by the signal that is sent again

    with pytest.raises(KeyboardInterrupt) as raised, stop_on_signals():
        finalize()
    assert report_stop(raised.value) == 128 + sent


def test_other_errors_in_finalizers_are_reported_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: seen.append(dropped.exc_value))

    class Finalized:
        def __del__(self) -> None:
            raise OSError

    with stop_on_signals():
        Finalized()
    assert isinstance(seen[0], OSError)
