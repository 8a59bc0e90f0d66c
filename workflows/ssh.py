"""Workers on machines reached by SSH: `python workflows/ssh.py HOST...`, on the first of them.

Starts a scheduler on the first host and workers on all hosts, and prints the scheduler's address for the build. Ctrl-C
ends them. Each host must have the project and Python at the same paths, see the same files, and accept this user
without a password.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from dask.distributed import SSHCluster


def arguments() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(prog="python workflows/ssh.py", description=__doc__)
    add = parser.add_argument
    add("hosts", nargs="+", metavar="HOST")
    add(
        "--workers",
        type=int,
        default=os.cpu_count(),
        metavar="N",
        help="processes per host (number of cores of this one)",
    )
    add("--port", type=int, default=8786, help="port of the scheduler (8786)")
    add("--python", default=sys.executable, help="Python interpreter on the hosts (the one running this script)")
    return parser


def cluster(options: argparse.Namespace, **connect: Any) -> Any:
    """Scheduler and workers. connect: arguments of `asyncssh.connect` besides the host."""
    return SSHCluster(
        [options.hosts[0], *options.hosts],
        connect_options=connect,
        remote_python=options.python,
        # Scheduler and workers are open to the other hosts; the dashboards are not.
        worker_options={"nthreads": 1, "n_workers": options.workers, "dashboard_address": "127.0.0.1:0"},
        scheduler_options={
            "host": options.hosts[0],
            "port": options.port,
            "dashboard_address": "127.0.0.1:8787",
        },
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command until it is stopped."""
    with cluster(arguments().parse_args(argv)) as machines:
        print(f"scheduler: {machines.scheduler_address}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
