"""Label an existing data set with another product, year, taxonomy or grid, and write its index again.

No pixel is read.

geokr label --data DATASET --landcover DIR...
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from geokr.dataset import layout
from geokr.dataset.index import read_summary
from geokr.landcover.discovery import find_landcover
from geokr.landcover.legend import Legend
from geokr.landcover.products import LandCoverError
from geokr.landcover.sheets import LandCover
from geokr.settings import ConfigError
from geokr.storage import files, inputs, rasters
from pipeline.catalog.table import CATALOG, read_catalog
from pipeline.config import BuildConfig, LabelsConfig
from pipeline.report.summary import summary_table
from pipeline.runtime.cluster import ClusterError
from pipeline.runtime.options import add_cluster_options, check_cluster_options, open_chosen_cluster
from pipeline.runtime.signals import report_stop, stop_on_signals
from pipeline.stages import index, labels


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="geokr label",
        description="Label a data set with another land-cover product, year, taxonomy or grid. No pixel is read.",
        epilog="Exit status: 0 done; 2 a setting or path is invalid; 130 stopped by Ctrl-C, 143 by SIGTERM.",
    )
    add = parser.add_argument
    add("--data", type=inputs.expand_home, required=True, metavar="DATASET", help="a completely built data set")
    add(
        "--landcover",
        required=True,
        nargs="+",
        type=inputs.expand_home,
        metavar="DIR",
        help="directories, files or URLs with the sheets of the product",
    )
    add(
        "--legend",
        nargs="+",
        type=inputs.expand_home,
        default=[],
        metavar="FILE",
        help="descriptions of your own land-cover products",
    )
    add(
        "--taxonomy",
        type=inputs.expand_home,
        metavar="NAME",
        help="classes of all label sets: globeland30, paper, own, or a file (default: those of the data set)",
    )
    add("--label-set", metavar="NAME", help="label set that the index uses: a new one, or its current one (default)")
    add(
        "--grid",
        type=int,
        choices=layout.GRIDS,
        help="largest number of parts along a side of a tile with shares of their own (default: that of the data set)",
    )
    add_cluster_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit status."""
    options = make_parser().parse_args(argv)
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    logging.getLogger("rasterio").setLevel(logging.ERROR)
    try:
        check_cluster_options(options)
        print("\n".join(relabel(options)))
    except (ConfigError, ClusterError, LandCoverError, layout.StoreError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        return report_stop(interrupt)
    return 0


def relabel(options: argparse.Namespace) -> list[str]:
    """Add label sets to a built data set, and write its index again. Returns the lines of its new summary."""
    summary = read_summary(options.data)
    settings = {**summary["settings"], "out": options.data}
    old_labels = LabelsConfig.model_validate(settings["labels"])
    settings["labels"] = {
        "landcover": [*dict.fromkeys([*old_labels.landcover, *options.landcover])],
        "legends": [*dict.fromkeys([*old_labels.legends, *options.legend])],
        "taxonomy": options.taxonomy or old_labels.taxonomy,
        "grid": options.grid or old_labels.grid,
    }
    settings["index"] = settings["index"] | {"label_set": options.label_set or summary["label_set"]}
    config = BuildConfig.model_validate(settings)
    rasters.fingerprint.cache_clear()  # entries of an earlier run in this process
    covers = find_landcover(options.landcover, config.labels.legends, config.labels.taxonomy)
    others = {*summary["label_sets"]} - {cover.name for cover in covers}
    if others and config.labels.taxonomy != old_labels.taxonomy:
        raise ConfigError(
            f"--taxonomy {config.labels.taxonomy}: all label sets of a data set have one taxonomy, now "
            f"{old_labels.taxonomy}; give the land cover of {', '.join(sorted(others))}, too"
        )
    label_sets = dict.fromkeys([summary["label_set"], *(cover.name for cover in covers)])
    if config.index.label_set not in label_sets:
        raise ConfigError(f"label_set is {config.index.label_set}, expected one of {', '.join(label_sets)}")
    # Of the existing label sets, only their names and the classes of the one in the index are needed.
    legend = Legend("", summary["taxonomy"], tuple(summary["classes"]), tuple(summary["colours"]), {}, frozenset())
    existing = [LandCover(name, 0, legend, ()) for name in summary["label_sets"]]
    all_covers = sorted({cover.name: cover for cover in [*existing, *covers]}.values(), key=lambda cover: cover.name)
    index.choose_label_set(config.index, all_covers)
    entries = read_catalog(files.join(options.data, CATALOG))
    with files.lock_directory(options.data, "builds"), stop_on_signals(), open_chosen_cluster(options) as client:
        labels.run(config, covers, entries, client, replace=True)
        summary = index.run(config, all_covers, entries, client)
        from pipeline.report.readme import write_readme  # draws, and matplotlib takes half a second to import

        write_readme(options.data, summary, entries)
        return summary_table(summary)


if __name__ == "__main__":
    raise SystemExit(main())
