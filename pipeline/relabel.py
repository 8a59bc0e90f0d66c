"""Label a data set that is built already with another product or year, and write its index anew. No pixel is read.

python -m pipeline.relabel --data DATASET --landcover DIR...
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
from geokr.storage import files, rasters
from pipeline.catalog.table import CATALOG, read_catalog
from pipeline.config import BuildConfig, LabelsConfig
from pipeline.report.summary import summary_table
from pipeline.runtime.cluster import ClusterError, cluster
from pipeline.runtime.signals import report_stop, stop_on_signals
from pipeline.stages import index, labels


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.relabel",
        description="Label a data set that is built with another land-cover product or year. No pixel is touched.",
        epilog="Exit status: 0 done; 2 a setting or path is at fault; 130 stopped by Ctrl-C, 143 by SIGTERM.",
    )
    add = parser.add_argument
    add("--data", required=True, metavar="DATASET", help="a data set that was built to the end")
    add("--landcover", required=True, nargs="+", metavar="DIR", help="directories (or files, or URLs) with its sheets")
    add("--legend", nargs="+", default=[], metavar="FILE", help="descriptions of your own products")
    add("--label-set", metavar="NAME", help="label set of the index from now on: the new one, or the one it has")
    add("--workers", type=int, metavar="N", help="processes on this machine (one a core)")
    options = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    logging.getLogger("rasterio").setLevel(logging.WARNING)
    try:
        print("\n".join(relabel(options)))
    except (ConfigError, ClusterError, LandCoverError, layout.StoreError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        return report_stop(interrupt)
    return 0


def relabel(options: argparse.Namespace) -> list[str]:
    """Add label sets to a built data set, and write its index anew. Returns lines that say what it holds now."""
    summary = read_summary(options.data)
    settings = {**summary["settings"], "out": options.data}
    before = LabelsConfig.model_validate(settings["labels"])
    settings["labels"] = {
        "landcover": [*dict.fromkeys([*before.landcover, *options.landcover])],
        "legends": [*dict.fromkeys([*before.legends, *options.legend])],
        "taxonomy": before.taxonomy,
    }
    settings["index"] = settings["index"] | {"label_set": options.label_set or summary["label_set"]}
    config = BuildConfig.model_validate(settings)
    rasters.fingerprint.cache_clear()  # of an earlier run in this process
    covers = find_landcover(options.landcover, config.labels.legends, config.labels.taxonomy)
    if config.index.label_set not in (known := [summary["label_set"], *(cover.name for cover in covers)]):
        raise ConfigError(f"label_set is {config.index.label_set}, expected one of {', '.join(known)}")
    # Of the sets that are there, only their names and the classes of the index's own one are asked for.
    legend = Legend("", summary["taxonomy"], tuple(summary["classes"]), tuple(summary["colours"]), {}, frozenset())
    there = [LandCover(name, 0, legend, ()) for name in summary["label_sets"]]
    every = sorted({cover.name: cover for cover in [*there, *covers]}.values(), key=lambda cover: cover.name)
    index.choose_label_set(config.index, every)
    entries = read_catalog(files.join(options.data, CATALOG))
    with files.lock_directory(options.data, "builds"), stop_on_signals(), cluster(options.workers) as client:
        labels.run(config, covers, entries, client)
        return summary_table(index.run(config, every, entries, client))


if __name__ == "__main__":
    raise SystemExit(main())
