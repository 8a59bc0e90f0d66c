"""Kill a worker, the scheduler or the client of a build at a random moment, resume it to the end, and compare.

Each round builds the sample world into an empty folder, on a cluster of a scheduler and two workers. It kills one of
the processes with SIGKILL, once or twice, and repeats the same command until it succeeds. Then it compares every file
of the data set with that of an undisturbed build; only the log `build.jsonl` may differ.
"""

import argparse
import hashlib
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from pipeline.runtime.progress import LOG_FILE
from pipeline.sample.files import SHOTS, write_world

PARAMS = """
build:
  grid: {tile: 64, stride: 48, block: 8}
  index: {split: {cell: 2500, shares: {train: 0.7, val: 0.3}}}
"""
VICTIMS = ("worker", "scheduler", "client")
PATIENCE = 300.0
"""A run that takes longer than this hangs, s."""


def digests(dataset: Path) -> dict[str, str]:
    """SHA-256 of every file of a data set except its log, by the path within the data set."""
    return {
        path.relative_to(dataset).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(dataset.rglob("*"))
        if path.is_file() and path.name != LOG_FILE
    }


def is_block(path: str) -> bool:
    """Whether a file marks a block as finished."""
    return "/status/c/" in path


def blocks(dataset: Path) -> int:
    """Count the finished blocks of tiles and labels."""
    return sum(1 for _ in dataset.glob("*.zarr/*/status/c/*/*")) + sum(
        1 for _ in dataset.glob("labels/*/*/status/c/*/*")
    )


@dataclass
class Cluster:
    """A Dask scheduler and two workers, as processes that can be killed."""

    scratch: Path
    port: int = 0
    scheduler: "subprocess.Popen[bytes] | None" = None
    workers: "list[subprocess.Popen[bytes]]" = field(default_factory=list)
    gone: "list[subprocess.Popen[bytes]]" = field(default_factory=list)
    """Workers that have lost their scheduler."""

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the processes that are not running."""
        if self.scheduler is None or self.scheduler.poll() is not None:
            with socket.socket() as unused:
                unused.bind(("127.0.0.1", 0))
                self.port = unused.getsockname()[1]
            self.scheduler = self.process("dask_scheduler", "--host", "127.0.0.1", "--port", str(self.port))
            # Workers without a scheduler exit by themselves, but may finish a block first.
            self.gone, self.workers = self.gone + self.workers, []
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        while len(self.workers) < 2:
            options = ("--no-nanny", "--nthreads", "1", "--host", "127.0.0.1", "--local-directory", str(self.scratch))
            self.workers.append(self.process("dask_worker", self.address, *options))

    def process(self, command: str, *arguments: str) -> "subprocess.Popen[bytes]":
        line = [sys.executable, "-m", f"distributed.cli.{command}", *arguments, "--no-dashboard"]
        return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        for process in [*self.gone, *self.workers, *filter(None, [self.scheduler])]:
            process.kill()
            process.wait()


@dataclass
class Chaos:
    """A world, the digests of the undisturbed data set, and counts of the runs and kills so far."""

    directory: Path
    draw: random.Random
    patience: float | None = PATIENCE
    """Duration after which a run is taken for one that hangs, s; None to wait for ever."""
    command: list[str] = field(default_factory=list)
    calm: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    """Duration of an undisturbed run on a running cluster."""
    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0

    def prepare(self, scenes: int) -> None:
        """Write a world of that many scenes and build it undisturbed. Raises RuntimeError if the build fails."""
        world = self.directory / "world"
        write_world(world, shots=SHOTS[:scenes])
        (self.directory / "params.yaml").write_text(PARAMS, encoding="utf-8")
        self.command = [
            sys.executable, "-m", "pipeline.build_levir_kr", "--scenes", str(world / "scenes"),
            "--landcover", str(world / "landcover"), "--dem", str(world / "dem.tif"),
            "--params", str(self.directory / "params.yaml"),
        ]  # fmt: skip
        with Cluster(self.directory) as cluster:
            began = time.monotonic()
            status = self.start(self.directory / "calm", cluster).wait(self.patience)
            self.seconds = time.monotonic() - began
        if status:
            raise RuntimeError(f"the undisturbed build ended with status {status}: {self.said()}")
        self.calm = digests(self.directory / "calm")

    def start(self, out: Path, cluster: Cluster) -> "subprocess.Popen[bytes]":
        command = [*self.command, "--out", str(out), "--scheduler", cluster.address]
        with (self.directory / "said").open("wb") as output:
            return subprocess.Popen(command, stdout=output, stderr=output)

    def comes_to(self, client: "subprocess.Popen[bytes]", out: Path, first: bool) -> bool:
        """Wait for a random moment of a run, in time or in finished blocks. Returns whether it is still running then.

        first: whether the run starts from an empty folder. A resumed run has less to do, but starts as slowly.
        """
        block_target = self.draw.randint(blocks(out), sum(map(is_block, self.calm)))
        delay = self.draw.uniform(0.15, 0.85) if first else self.draw.uniform(0.1, 0.5)
        deadline, by_time = time.monotonic() + delay * self.seconds, self.draw.random() < 0.5
        while client.poll() is None:
            if time.monotonic() > deadline if by_time else blocks(out) >= block_target:
                return True
            time.sleep(0.01)
        return False

    def said(self) -> str:
        """Output of the last run."""
        return (self.directory / "said").read_text(encoding="utf-8", errors="replace")

    def round(self, name: str, victims: Sequence[str], cluster: Cluster) -> list[str]:
        """Build once, with one kill in each run but the last. Returns the faults of the result, one line each."""
        out = self.directory / name
        for victim in [*victims, None]:
            cluster.start()
            self.runs += 1
            client = self.start(out, cluster)
            if victim is not None and self.comes_to(client, out, first=victim is victims[0]):
                process = {"client": client, "scheduler": cluster.scheduler}.get(victim)
                (process or self.draw.choice(cluster.workers)).kill()
                self.kills[victim] += 1
                if victim == "worker":
                    time.sleep(0.2)
                    cluster.start()
            try:
                status = client.wait(self.patience)
            except subprocess.TimeoutExpired:
                client.kill()
                return [f"{name}: the run hangs after {victim} was killed: {self.said()}"]
            expected = {"client": (-9, 0), "scheduler": (2, 0)}.get(victim or "", (0,))
            if status not in expected or "Traceback" in self.said():
                return [f"{name}: exit status {status} after {victim} was killed: {self.said()}"]
        built = digests(out)
        paths = sorted(path for path in built.keys() | self.calm.keys() if built.get(path) != self.calm.get(path))
        return [f"{name}: {path} differs after {', '.join(victims)} was killed" for path in paths]


def main(argv: list[str]) -> int:
    """Run the command. The exit status is 1 if a data set differs or a run failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="builds to disturb (%(default)s)")
    parser.add_argument("--scenes", type=int, default=3, metavar="N", help="scenes in the world (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments and the victims (%(default)s)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="geokr-chaos-") as temporary:
        chaos = Chaos(Path(temporary), random.Random(options.seed))
        chaos.prepare(options.scenes)
        began, clean_rounds = time.monotonic(), 0
        with Cluster(Path(temporary)) as cluster:
            for n in range(options.rounds):
                # Each kind of process is the first victim in every third round; half of the rounds have a second one.
                victims = [VICTIMS[n % 3], *chaos.draw.sample(VICTIMS, chaos.draw.randint(0, 1))]
                faults = chaos.round(f"round{n}", victims, cluster)
                clean_rounds += not faults
                for fault in faults:
                    print(fault, file=sys.stderr)
                subprocess.run(["rm", "-rf", str(Path(temporary) / f"round{n}")], check=True)
        seconds = time.monotonic() - began
    kills = " ".join(f"{victim}={chaos.kills[victim]}" for victim in VICTIMS)
    equal = "yes" if clean_rounds == options.rounds else "no"
    print(
        f"case=chaos ours={clean_rounds} peer={options.rounds} unit=rounds "
        f"ratio={clean_rounds / options.rounds:.3f} equal={equal} "
        f"files={len(chaos.calm)} kills={chaos.kills.total()} {kills} runs={chaos.runs} seconds={seconds:.0f}"
    )
    return 0 if clean_rounds == options.rounds else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
