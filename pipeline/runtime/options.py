"""The options of commands that run on a cluster, and the cluster that they ask for."""

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from geokr.settings import ConfigError
from geokr.storage import inputs
from pipeline.runtime.cluster import open_cluster
from pipeline.runtime.stream import Client

WHAT_TO_LOOK_AT = (
    "  there: Task Stream, a row for each worker, whose gaps are waiting; Bytes Stored, each worker's memory, orange "
    "when it is nearly full"
)
"""What the dashboard shows."""


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """Add `--workers`, `--scheduler`, `--memory`, `--dashboard` and `--performance-report`."""
    execution = parser.add_mutually_exclusive_group()
    execution.add_argument("--workers", type=int, metavar="N", help="processes on this machine (one per core)")
    execution.add_argument("--scheduler", metavar="ADDRESS", help="a Dask scheduler, such as tcp://host:8786")
    add = parser.add_argument
    add(
        "--memory",
        type=parse_size,
        metavar="SIZE",
        help="memory of each worker on this machine, such as 2GiB (an equal share of the machine's)",
    )
    add(
        "--dashboard", default="127.0.0.1:8787", metavar="ADDRESS", help="where to serve Dask's dashboard (%(default)s)"
    )
    add("--performance-report", type=inputs.expand_home, metavar="FILE.html", help="write Dask's report of the run")


def parse_size(text: str) -> int:
    """Bytes from text such as `512MiB`, `2GiB`, `2GB` or a plain number."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B?)?", text, re.IGNORECASE)
    if match is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 2GiB")
    power = " KMGT".index((match[2] or " ").upper())
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def check_cluster_options(options: argparse.Namespace) -> None:
    """Raise ConfigError if an option cannot be followed, before anything is started."""
    if options.workers is not None and options.workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {options.workers}")
    if (report := options.performance_report) and not Path(report).absolute().parent.is_dir():
        raise ConfigError(f"--performance-report {report}: its directory does not exist")


@contextmanager
def open_chosen_cluster(options: argparse.Namespace) -> Iterator[Client]:
    """Yield a client of the cluster that the options ask for, and print where its dashboard is: see `open_cluster`."""
    chosen = (options.workers, options.scheduler, options.dashboard, options.memory, options.performance_report)
    with open_cluster(*chosen) as client:
        print(f"dashboard: {client.dashboard_link}\n{WHAT_TO_LOOK_AT}", file=sys.stderr)
        yield client
