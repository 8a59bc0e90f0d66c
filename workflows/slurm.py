"""Workers as SLURM jobs: `python workflows/slurm.py --jobs 40 --interface ib0 [--queue cpu]`, on a login node.

Starts a scheduler on this machine, submits the jobs, and prints the scheduler's address for the build. Ctrl-C ends
scheduler and jobs. Jobs that reach their time limit are submitted again. All other settings are read from Dask's
configuration (jobqueue.yaml).
"""

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence

from dask_jobqueue import SLURMCluster


def arguments() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(prog="python workflows/slurm.py", description=__doc__)
    add = parser.add_argument
    add("--jobs", type=int, default=1, metavar="N", help="number of jobs, with one worker process each (1)")
    add("--interface", help="network interface that scheduler and workers share; without it, they bind to localhost")
    add("--queue", help="partition")
    add("--account", help="account that is charged")
    add("--walltime", default="04:00:00", help="time limit of a job (04:00:00)")
    add("--memory", default="3GiB", help="memory of a job (3GiB); a dry run of the build prints how much is needed")
    add("--directive", action="append", default=[], metavar="OPTION", help="an additional #SBATCH line; repeatable")
    add(
        "--setup",
        action="append",
        default=[],
        metavar="COMMAND",
        help="command to run before the worker, such as module load; repeatable",
    )
    add("--print", action="store_true", help="print the job script and exit")
    return parser


def cluster(options: argparse.Namespace) -> SLURMCluster:
    """A scheduler in this process, with the settings for submitting workers as jobs."""
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
        # A worker ends at its job's time limit, or by itself if the scheduler is gone.
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
    """Run the command until it is stopped."""
    parser = arguments()
    options = parser.parse_args(argv)
    try:
        jobs = cluster(options)
    except RuntimeError as error:  # such as an unknown network interface, or a port that is in use
        parser.error(str(error))
    with jobs:
        if options.print:
            print(jobs.job_script())
            return
        jobs.adapt(minimum_jobs=options.jobs, maximum_jobs=options.jobs)  # resubmits jobs that ended
        print(f"scheduler: {jobs.scheduler_address}\ndashboard: {jobs.dashboard_link}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
