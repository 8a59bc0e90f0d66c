"""Report the results of a build, of a training run and of an evaluation: a short table, pictures of tiles, and pages
with a map, the scenes, accepted and rejected tiles with their land cover, and what the network disagrees with."""

import argparse
import sys
from collections.abc import Sequence

from geokr.dataset.index import read_summary
from geokr.storage import inputs
from pipeline.report.summary import dashboard_line, read_metrics, run_table, summary_table


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="geokr report", description=__doc__)
    parser.add_argument("dataset", type=inputs.expand_home, help="a finished data set: a directory, or s3://...")
    parser.add_argument("run", type=inputs.local_path, nargs="?", help="a finished training run")
    parser.add_argument("evaluation", type=inputs.local_path, nargs="?", help="a finished evaluation")
    parser.add_argument("--html", type=inputs.local_path, metavar="FOLDER", help="write pages that need no network")
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
            lines += run_table(read_metrics(options.run), options.run)
        lines += dashboard_line(options.dataset)
        if options.picture is not None:
            if not options.picture.parent.is_dir():
                raise ValueError(f"{options.picture}: its directory does not exist")
            from pipeline.report.readme import draw_tiles

            options.picture.write_bytes(draw_tiles(options.dataset))
            lines.append(f"{'picture':<18}{options.picture}")
        if options.html is not None:
            from pipeline.report.site import write_site

            page = write_site(options.dataset, options.run, options.evaluation, options.html)
            lines.append(f"{'pages':<18}{page}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
