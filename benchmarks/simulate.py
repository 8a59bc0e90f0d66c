"""The scheduler of a large build: how many blocks a second it feeds to workers, measured by jobs that do nothing.

A real scheduler and a few worker processes with many threads, which stand for as many workers, run real jobs of made
scenes through the real stream. Scheduler and client are busy in processes of their own, so the busier of the two says
how many blocks there are a second at most.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count, islice, product
from pathlib import Path

import psutil

from benchmarks.made_scenes import make_config, make_entry
from benchmarks.process import most_memory
from pipeline.plan import tile_grid
from pipeline.runtime.call import pack
from pipeline.runtime.cluster import open_cluster
from pipeline.runtime.signals import stop_on_signals
from pipeline.runtime.stream import JobBatch, stream
from pipeline.tasks.tiles import TileJob, TileReport

PATIENCE = {
    f"DASK_DISTRIBUTED__{name}": "3600s"
    for name in ("SCHEDULER__WORKER_TTL", "COMM__TIMEOUTS__CONNECT", "COMM__TIMEOUTS__TCP")
}
"""Settings of Dask: on a machine with fewer cores than processes, no one is lost who is only slow."""
IMPORTABLE = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])}
"""Environment in which a process finds the benchmarks, which are not installed, wherever it starts."""
NOTHING = TileReport(0, 0, 0.0)


def report_nothing(job: TileJob) -> TileReport:
    """The report of a block that was not built."""
    return NOTHING


def make_batches(blocks: int) -> Iterator[JobBatch[TileJob]]:
    """The jobs of the stage `tiles` for so many blocks of made scenes."""
    config = make_config(Path("/made"))
    for number in count():
        entry = make_entry(number)
        grid = tile_grid(entry, config.grid)
        assert grid is not None
        rows, cols = grid.blocks
        places = list(islice(product(range(rows), range(cols)), blocks))
        yield JobBatch(
            f"tiles-{entry.scene.id}", (TileJob("/made/tiles.zarr", entry, config.tiles, grid, i, j) for i, j in places)
        )
        blocks -= len(places)
        if not blocks:
            return


@contextmanager
def running(module: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """One of Dask's commands in a process of its own, which ends with the context."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"distributed.cli.{module}", "--no-dashboard", *options],
        env=os.environ | PATIENCE | IMPORTABLE | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def simulate(blocks: int, processes: int, threads: int) -> dict[str, float]:
    """Run a build of so many blocks that do nothing, in processes of their own.

    Returns seconds of the `scheduler`'s and the `client`'s processor, elapsed `seconds`, the peaks of memory
    `scheduler_memory`, `client_memory` and that of the client's `libraries`, and the size of a `job`, bytes.
    """
    with stop_on_signals(), tempfile.TemporaryDirectory(prefix="geokr-simulate-") as folder, ExitStack() as stack:
        place = Path(folder, "scheduler.json")
        here = ("--host", "127.0.0.1")
        scheduler = stack.enter_context(running("dask_scheduler", *here, "--port", "0", "--scheduler-file", str(place)))
        worker = (*here, "--scheduler-file", str(place), "--nthreads", str(threads), "--local-directory", folder)
        for _ in range(processes):
            stack.enter_context(
                running("dask_worker", *worker, "--no-nanny", "--memory-limit", "0", "--preload", "benchmarks.simulate")
            )
        while not place.exists():
            if scheduler.poll() is not None:
                raise RuntimeError("the scheduler did not start")
            time.sleep(0.1)
        client = [sys.executable, "-m", __name__, str(place), str(scheduler.pid), str(blocks), str(processes)]
        done = subprocess.run(
            client, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | PATIENCE | IMPORTABLE
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_client(place: Path, scheduler: psutil.Process, blocks: int, processes: int) -> dict[str, float]:
    """The client of a simulation: see `simulate`."""
    address = json.loads(place.read_text())["address"]
    with open_cluster(scheduler=address) as client:
        client.wait_for_workers(processes)
        for _ in stream(report_nothing, make_batches(min(blocks, 1000)), client):
            pass  # imports are done
        libraries, began, cpu, of_scheduler = (
            most_memory(),
            time.perf_counter(),
            time.process_time(),
            scheduler.cpu_times(),
        )
        ended = sum(report == NOTHING for _, report in stream(report_nothing, make_batches(blocks), client))
        if ended != blocks:
            raise RuntimeError(f"{ended} of {blocks} blocks ended")
        now = scheduler.cpu_times()
        batch = next(make_batches(1))
        return {
            "scheduler": now.user + now.system - of_scheduler.user - of_scheduler.system,
            "client": time.process_time() - cpu,
            "seconds": time.perf_counter() - began,
            "scheduler_memory": most_memory(scheduler.pid),
            "client_memory": most_memory(),
            "libraries": libraries,
            "job": len(pack(report_nothing, next(iter(batch.jobs)))),
        }


def format_simulation(found: dict[str, float], blocks: int, workers: int) -> str:
    """A line of what `simulate` found, and of how many blocks a second there are at most."""
    scheduler, client = found["scheduler"] / blocks, found["client"] / blocks
    most = 1 / max(scheduler, client)
    return (
        f"case=scale-simulate blocks={blocks} workers={workers} seconds={found['seconds']:.1f} "
        f"scheduler={1e3 * scheduler:.2f}ms/block client={1e3 * client:.2f}ms/block job={found['job']:.0f}B "
        f"scheduler_memory={found['scheduler_memory'] / 2**20:.0f}MiB "
        f"client_memory={found['client_memory'] / 2**20:.0f}MiB libraries={found['libraries'] / 2**20:.0f}MiB "
        f"most={most:.0f}blocks/s"
    )


def main(argv: list[str]) -> int:
    """Run a client of `simulate`, and print what it found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("place", type=Path)
    for number in ("scheduler", "blocks", "processes"):
        parser.add_argument(number, type=int)
    options = parser.parse_args(argv)
    print(json.dumps(run_client(options.place, psutil.Process(options.scheduler), options.blocks, options.processes)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
