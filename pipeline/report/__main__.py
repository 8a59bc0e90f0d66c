"""Report the results of a build and of a training run: a short table, and a picture of tiles with their labels."""

import argparse
import json
import sys
from collections.abc import Sequence

from geokr.dataset.index import read_summary
from geokr.storage import inputs
from pipeline.report.figures import draw_tiles
from pipeline.report.summary import dashboard_line, run_table, summary_table


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="geokr report", description=__doc__)
    parser.add_argument("dataset", type=inputs.expand_home, help="a finished data set: a directory, or s3://...")
    parser.add_argument("run", type=inputs.local_path, nargs="?", help="a finished training run")
    parser.add_argument(
        "--picture", type=inputs.local_path, metavar="FILE.png", help="draw tiles with their class shares"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit status."""
    options = make_parser().parse_args(argv)
    try:
        lines = summary_table(read_summary(options.dataset))
        if options.run is not None:
            metrics = options.run / "metrics.json"
            if not metrics.is_file():
                raise ValueError(f"{metrics}: no such file; is {options.run} a finished training run?")
            lines += run_table(json.loads(metrics.read_text(encoding="utf-8")), options.run)
        lines += dashboard_line(options.dataset)
        if options.picture is not None:
            if not options.picture.parent.is_dir():
                raise ValueError(f"{options.picture}: its directory does not exist")
            draw_tiles(options.dataset, options.picture)
            lines.append(f"{'picture':<18}{options.picture}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
