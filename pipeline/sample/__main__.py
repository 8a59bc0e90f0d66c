"""`geokr sample DIR`"""

import argparse
import sys
from collections.abc import Sequence

from geokr.storage import inputs
from pipeline.sample.files import write_world


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="geokr sample",
        description="Write a small synthetic world with known truth: six Gaofen L1A deliveries of one place, a 30 m "
        "DEM and two GlobeLand30 sheets that meet inside the scenes, all in the formats of real files, and truth.json, "
        "which records what they were made from. The same seed gives the same bytes.",
    )
    parser.add_argument(
        "directory", metavar="DIR", type=inputs.local_path, help="output folder; created if it does not exist"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the world (0)")
    parser.add_argument(
        "--outdated",
        type=float,
        default=0.08,
        help="share of parcels whose land cover has changed since it was mapped (0.08)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = make_parser().parse_args(argv)
    try:
        if options.seed < 0:
            raise ValueError(f"--seed must not be negative, got {options.seed}")
        write_world(options.directory, options.seed, options.outdated, say=lambda name: print(options.directory / name))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
