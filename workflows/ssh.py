"""Workers on machines that are reached by SSH: `python workflows/ssh.py HOST...`, on the first of them.

Starts a scheduler on the first host and workers on all, and prints the address to build with; Ctrl-C ends them. Each
host must have the project at the same path and python, see the same files, and let this user in without a question.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from dask.distributed import SSHCluster


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python workflows/ssh.py", description=__doc__)
    add = parser.add_argument
    add("hosts", nargs="+", metavar="HOST")
    add("--workers", type=int, default=os.cpu_count(), metavar="N", help="processes on each host (its cores)")
    add("--port", type=int, default=8786, help="of the scheduler (8786)")
    add("--python", default=sys.executable, help="on the hosts (the one that runs this)")
    return parser


def cluster(options: argparse.Namespace, **connect: Any) -> Any:
    """Scheduler and workers. connect: what `asyncssh.connect` is given beside the host."""
    return SSHCluster(
        [options.hosts[0], *options.hosts],
        connect_options=connect,
        remote_python=options.python,
        # Open to the other hosts, the dashboards are not.
        worker_options={"nthreads": 1, "n_workers": options.workers, "dashboard_address": "127.0.0.1:0"},
        scheduler_options={
            "host": options.hosts[0],
            "port": options.port,
            "dashboard_address": "127.0.0.1:8787",
        },
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command: until it is stopped."""
    with cluster(arguments().parse_args(argv)) as machines:
        print(f"scheduler: {machines.scheduler_address}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
