"""Workers as SLURM jobs: `python workflows/slurm.py --jobs 40 --interface ib0 [--queue cpu]`, on a login node.

Starts a scheduler here, submits the jobs, and prints the address to build with; Ctrl-C ends both. Jobs that reach
their time limit are submitted again. What is not an option here is read from Dask's configuration (jobqueue.yaml).
"""

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence

from dask_jobqueue import SLURMCluster


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python workflows/slurm.py", description=__doc__)
    add = parser.add_argument
    add("--jobs", type=int, default=1, metavar="N", help="jobs, each one worker process (1)")
    add("--interface", help="network that scheduler and workers share; unless given, they bind to localhost")
    add("--queue", help="partition")
    add("--account", help="what is charged")
    add("--walltime", default="04:00:00", help="time limit of a job (04:00:00)")
    add("--memory", default="3GiB", help="of a job (3GiB); a dry run of the build prints what it takes")
    add("--directive", action="append", default=[], metavar="OPTION", help="one more line of #SBATCH, repeatable")
    add("--setup", action="append", default=[], metavar="COMMAND", help="run before the worker, such as module load")
    add("--print", action="store_true", help="print the job's script and end")
    return parser


def cluster(options: argparse.Namespace) -> SLURMCluster:
    """A scheduler in this process, and what it takes to submit a worker."""
    return SLURMCluster(
        cores=1,
        processes=1,
        memory=options.memory,
        queue=options.queue,
        account=options.account,
        walltime=options.walltime,
        interface=options.interface,
        job_name="geokr",
        job_extra_directives=options.directive,
        job_script_prologue=options.setup,
        python=shlex.quote(sys.executable),
        # A worker ends with its job's time, and by itself when the scheduler is gone.
        worker_extra_args=[
            *("--death-timeout", "120", "--dashboard-address", "127.0.0.1:0"),
            *(() if options.interface else ("--host", "127.0.0.1")),
        ],
        scheduler_options={
            "dashboard_address": "127.0.0.1:8787",
            **({} if options.interface else {"host": "127.0.0.1"}),
        },
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command: until it is stopped."""
    options = arguments().parse_args(argv)
    with cluster(options) as jobs:
        if options.print:
            print(jobs.job_script())
            return
        jobs.adapt(minimum_jobs=options.jobs, maximum_jobs=options.jobs)  # brings lost ones back
        print(f"scheduler: {jobs.scheduler_address}\ndashboard: {jobs.dashboard_link}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
