"""Verify a data set, one line per check: `geokr verify DATASET [--fast | --full] [--scenes N] [--sample N]`.

Whatever can be checked against stored data is checked: shards against their checksums, the index against the stores,
splits by the ground that their tiles cover. `--fast` reads metadata, statuses and the index. By default, the labels and
one tile of each shard are read too; with `--full`, every tile. `--scenes N` draws about N scenes and checks those and
their parts of the index. `--sample N` draws N tiles and computes them again from their source.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from geokr.dataset.layout import DATASET
from geokr.storage import files, inputs, rasters
from pipeline.verify import checks, index_checks
from pipeline.verify.dataset import DataSet, shorten

SHOWN = 20
"""Faults that are printed per check; further ones are only counted."""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="geokr verify", description=__doc__)
    parser.add_argument(
        "dataset", type=inputs.expand_home, metavar="DATASET", help="a finished data set: a directory, or s3://..."
    )
    depth = parser.add_mutually_exclusive_group()
    depth.add_argument("--fast", action="store_true", help="check only metadata, statuses and the index")
    depth.add_argument("--full", action="store_true", help="read every tile of every shard, not one per shard")
    parser.add_argument("--scenes", type=int, metavar="N", help="check about N scenes, drawn at random, not all")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="compute N tiles again and compare")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit status: 0 if all checks pass, 1 if any fails, 2 if there is no data set."""
    options = make_parser().parse_args(argv)
    if not files.exists(files.join(options.dataset, DATASET)):
        print(f"error: {options.dataset}: there is no {DATASET}; is this a completely built data set?", file=sys.stderr)
        return 2
    failed = 0
    rasters.fingerprint.cache_clear()  # entries of an earlier run in this process
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        data = DataSet(options.dataset, threads, options.scenes)
        tasks: list[tuple[str, Callable[[], list[str]]]] = [
            ("schema", lambda: checks.check_schema(data)),
            ("metadata", lambda: checks.check_metadata(data)),
            ("provenance", lambda: checks.check_provenance(data)),
            ("statuses", lambda: checks.check_statuses(data)),
            ("shards", lambda: checks.check_shards(data, 0 if options.fast else None if options.full else 1)),
            ("index", lambda: index_checks.check_index(data, not options.fast)),
            ("splits", lambda: index_checks.check_splits(data)),
        ]
        if not options.fast:
            tasks.insert(5, ("labels", lambda: checks.check_labels(data)))
        if options.sample:
            tasks.append(("sample", lambda: checks.check_sample(data, options.sample)))
        for name, check in tasks:
            data.progress = tqdm(desc=name, unit=" scenes", leave=False, disable=None)  # on a terminal only
            try:
                faults = check()
            except Exception as error:  # a damaged file can cause any error
                faults = [f"cannot be checked: {shorten(error)}"]
            data.progress.close()
            failed += bool(faults)
            print("\n".join(lines(name, faults)), flush=True)
        if options.scenes is not None:
            print(f"      {len(data.scenes)} of {data.summary['counts']['scenes']} scenes were checked")
    return 1 if failed else 0


def lines(name: str, faults: list[str]) -> list[str]:
    """The line of a check, with its first fault, followed by a line for each further fault."""
    if not faults:
        return [f"ok    {name}"]
    more = [f"      {fault}" for fault in faults[1:SHOWN]]
    remainder = [f"      and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
    return [f"FAIL  {name}: {faults[0]}", *more, *remainder]


if __name__ == "__main__":
    raise SystemExit(main())
