"""Work is streamed: bounded, fair, within memory, and no job takes the others down with it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import pytest
import rasterio
from dask.distributed import LocalCluster

from pipeline import run
from pipeline.run import AHEAD, Batch, Client, LostWorkersError, cluster, deaf_to_interrupts, stoppable, stopped, stream
from pipeline.scene import SceneError


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with cluster(workers=2, dashboard="127.0.0.1:0") as client:
        yield client


def double(n: int) -> int:
    return 2 * n


def deadly(n: int) -> int:
    if n == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.02)
    return n


def slow(job: tuple[str, int]) -> float:
    time.sleep(0.8 if job[0] == "slow" else 0.01)
    return time.time()


def peak(job: tuple[str, float]) -> None:
    """Note when this job begins and ends."""
    path, seconds = job
    with open(path, "a") as file:
        file.write("+")
    time.sleep(seconds)
    with open(path, "a") as file:
        file.write("-")


def test_no_more_jobs_are_drawn_than_there_is_room_for(client: Client) -> None:
    drawn: list[int] = []

    def jobs() -> Iterator[int]:
        for n in range(200):
            drawn.append(n)
            yield n

    for ended, (job, result) in enumerate(stream(double, [Batch("count", jobs())], client), start=1):
        assert result == 2 * job
        assert len(drawn) <= ended + AHEAD * 2
    assert len(drawn) == 200


def test_a_job_that_kills_its_worker_is_refused_by_itself(client: Client) -> None:
    """Its neighbours' workers die with it, and they are done all the same."""
    results = dict(stream(deadly, [Batch("deadly", range(12))], client))
    assert isinstance(results.pop(3), LostWorkersError)
    assert results == {n: n for n in range(12) if n != 3}


def test_a_slow_batch_does_not_hold_up_fast_ones(client: Client) -> None:
    batches = [Batch("slow", [("slow", n) for n in range(4)])]
    batches += [Batch(f"fast {k}", [(f"fast {k}", n) for n in range(6)]) for k in range(8)]
    order = [job[0] for job, _ in stream(slow, batches, client)]
    third = [n for n, name in enumerate(order) if name == "slow"][2]
    assert third > 20  # in the order of the batches it would be the third: both workers would be kept by slow ones


def test_a_worker_takes_up_no_more_than_its_memory(tmp_path: Path) -> None:
    """Four threads, and room for two jobs beside the libraries."""
    log = tmp_path / "log"
    limit = int((run.LIBRARIES + 250_000_000) / run.KILLED)
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=4, memory_limit=limit, dashboard_address=":0", host="127.0.0.1"
        ) as elsewhere,
        Client(elsewhere) as client,
    ):
        jobs = [(str(log), 0.05)] * 12
        assert all(result is None for _, result in stream(peak, [Batch("peak", jobs, 100_000_000)], client))
        ((_, refused),) = stream(peak, [Batch("large", jobs[:1], 300_000_000)], client)
        free = [(str(tmp_path / "free"), 0.2)] * 12
        assert all(result is None for _, result in stream(peak, [Batch("free", free)], client))
    assert most_at_once(log.read_text()) == 2
    assert most_at_once((tmp_path / "free").read_text()) == 4
    assert isinstance(refused, MemoryError)
    assert "takes up to 300 MB" in str(refused)


HELD: list[bytearray] = []


def hold(share: float) -> int:
    """Have this process hold a share of its worker's memory from now on."""
    limit = run.worker_memory()
    assert limit is not None
    held = int(next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line).split()[1])
    HELD.append(bytearray(b"x") * max(0, int(limit * share) - held * 1024))
    time.sleep(1.0)  # Dask looks at a worker's memory ten times a second
    return os.getpid()


def test_a_worker_whose_memory_is_nearly_full_goes_on() -> None:
    """Dask would pause it until it had less, which is never."""
    ended: list[tuple[float, object]] = []
    with cluster(workers=1, dashboard="127.0.0.1:0", memory=1_000_000_000) as client:
        work = threading.Thread(target=lambda: ended.extend(stream(hold, [Batch("hold", [0.87, 0.0])], client)))
        work.start()
        work.join(60)
        assert [job for job, _ in ended] == [0.87, 0.0]
        assert len({pid for _, pid in ended}) == 1  # nor was it ended


def most_at_once(log: str) -> int:
    at_work = most = 0
    for sign in log:
        at_work += 1 if sign == "+" else -1
        most = max(most, at_work)
    return most


def test_jobs_in_one_process_wait_for_memory() -> None:
    room, held, release = run.Room(), threading.Event(), threading.Event()
    run_limit = run.worker_memory
    try:
        run.worker_memory = lambda: (run.LIBRARIES + 100) / run.KILLED

        def hold() -> None:
            with room.hold(60):
                held.set()
                release.wait()

        first = threading.Thread(target=hold)
        first.start()
        held.wait()
        second = threading.Thread(target=lambda: room.hold(60).__enter__())
        second.start()
        second.join(0.2)
        assert second.is_alive()
        release.set()
        second.join(5)
        assert not second.is_alive()
    finally:
        run.worker_memory = run_limit
        release.set()


def unreadable(path: str) -> None:
    try:
        rasterio.open(path)
    except rasterio.RasterioIOError as error:
        raise SceneError(f"{path}: not an image") from error


def test_what_refuses_a_job_arrives_as_it_was_said(client: Client) -> None:
    ((_, error),) = stream(unreadable, [Batch("x", ["/no/such.tif"])], client)
    assert isinstance(error, SceneError)
    assert str(error) == "/no/such.tif: not an image"


def interrupted_at_start() -> Iterator[bytes]:
    """What a process says that is started as workers are, and interrupted; then the interrupt itself."""
    child = [sys.executable, "-c", "import time; print(flush=True); time.sleep(0.5); print('spared')"]
    with deaf_to_interrupts(), subprocess.Popen(child, stdout=PIPE) as process:
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
    with pytest.raises(KeyboardInterrupt) as raised, stoppable():
        signal.raise_signal(sent)
    assert stopped(raised.value) == 128 + sent
    assert signal.getsignal(sent) == signal.SIG_DFL
