"""Prove a data set, a line a check: `python -m pipeline.verify DATASET [--fast | --full] [--sample N]`.

Nothing is believed that can be read again: shards against their checksums, the index against the stores, splits by
the ground that their tiles cover. `--fast` reads metadata, statuses and the index; otherwise the labels are read too,
and of each shard one tile, or with `--full` all. `--sample N` draws N tiles and computes them anew from their source.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from geokr.dataset.layout import DATASET
from geokr.storage import files, rasters
from pipeline.verify import checks, index_checks
from pipeline.verify.dataset import DataSet, shorten

SHOWN = 20
"""Faults of a check that are printed; the rest are counted."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status: 0 where all is right, 1 where anything is not, 2 without a data set."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.verify", description=__doc__)
    parser.add_argument("dataset", metavar="DATASET", help="a finished data set: a directory, or s3://...")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--fast", action="store_true", help="metadata, statuses and the index alone")
    how.add_argument("--full", action="store_true", help="every tile of every shard, not one of each")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="compute N tiles anew and compare")
    options = parser.parse_args(argv)
    if not files.exists(files.join(options.dataset, DATASET)):
        print(f"error: {options.dataset}: no {DATASET}; is it a data set that was built to the end?", file=sys.stderr)
        return 2
    wrong = 0
    rasters.fingerprint.cache_clear()  # of an earlier run in this process
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        data = DataSet(options.dataset, threads)
        todo: list[tuple[str, Callable[[], list[str]]]] = [
            ("schema", lambda: checks.check_schema(data)),
            ("metadata", lambda: checks.check_metadata(data)),
            ("provenance", lambda: checks.check_provenance(data)),
            ("statuses", lambda: checks.check_statuses(data)),
            ("shards", lambda: checks.check_shards(data, 0 if options.fast else None if options.full else 1)),
            ("index", lambda: index_checks.check_index(data, not options.fast)),
            ("splits", lambda: index_checks.check_splits(data)),
        ]
        if not options.fast:
            todo.insert(5, ("labels", lambda: checks.check_labels(data)))
        if options.sample:
            todo.append(("sample", lambda: checks.check_sample(data, options.sample)))
        for name, check in todo:
            try:
                faults = check()
            except Exception as error:  # whatever a damaged file does
                faults = [f"cannot be checked: {shorten(error)}"]
            wrong += bool(faults)
            print("\n".join(lines(name, faults)), flush=True)
    return 1 if wrong else 0


def lines(name: str, faults: list[str]) -> list[str]:
    """A check's line, naming its first fault, and a line for each of the next ones."""
    if not faults:
        return [f"ok    {name}"]
    more = [f"      {fault}" for fault in faults[1:SHOWN]]
    rest = [f"      and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
    return [f"FAIL  {name}: {faults[0]}", *more, *rest]


if __name__ == "__main__":
    raise SystemExit(main())
