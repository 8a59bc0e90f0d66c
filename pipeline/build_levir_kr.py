"""Build a pre-training data set: scenes and land-cover maps in, sharded tiles, labels and an index out.

    geokr build --scenes DIR... --landcover DIR... --out DATASET

A run that was stopped, by Ctrl-C or otherwise, resumes where it was when the same command is run again.
"""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

from tqdm.contrib.logging import logging_redirect_tqdm

from geokr.dataset.layout import StoreError
from geokr.landcover.discovery import find_landcover, split_location
from geokr.landcover.products import LandCoverError
from geokr.landcover.sheets import LandCover
from geokr.settings import ConfigError
from geokr.storage import files, inputs, rasters
from pipeline.catalog import quarantine
from pipeline.catalog.account import read_account, summarise
from pipeline.catalog.stac_items import write_static_catalog
from pipeline.catalog.table import CATALOG, Entry, read_catalog
from pipeline.config import OPTIONS, BuildConfig, read_config
from pipeline.imaging.calibration import read_coefficients
from pipeline.imaging.ortho import Resampling
from pipeline.imaging.radiometry import Kind, RadiometryError
from pipeline.plan import check_coverage
from pipeline.report.summary import summary_table
from pipeline.runtime.cluster import ClusterError, count_threads
from pipeline.runtime.options import add_cluster_options, check_cluster_options, open_chosen_cluster
from pipeline.runtime.progress import count_stages, log_event
from pipeline.runtime.signals import report_stop, stop_on_signals
from pipeline.scenes.raster import Alpha
from pipeline.scenes.scene import CloudMask, Imagery
from pipeline.stages import catalog, index, labels, tiles
from pipeline.stages.dry_run import REFUSED, describe_build

STAGES = ("catalog", "tiles", "labels", "index")


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="geokr build",
        description="Turn satellite scenes and land-cover maps into tiles with label distributions, in sharded Zarr.",
        epilog="Settings come from --params; options of the command line override them. The same command resumes a "
        "stopped run. Exit status: 0 done; 2 a setting or path is invalid; 3 with --strict, something was refused; "
        "4 no tile is in any split; 130 stopped by Ctrl-C, 143 by SIGTERM.",
    )
    add = parser.add_argument
    add("--scenes", nargs="+", metavar="PLACE", help="folders, archives, GeoTIFFs and STAC documents, or their URLs")
    add(
        "--landcover",
        nargs="+",
        metavar="DIR",
        help="directories, files or URLs with land-cover sheets; PRODUCT_YEAR=PATH for any name",
    )
    add("--legend", nargs="+", dest="legends", metavar="FILE", help="descriptions of your own land-cover products")
    add("--taxonomy", metavar="NAME", help="classes of the labels: globeland30, paper, own or a file (globeland30)")
    add("--imagery", choices=get_args(Imagery), help="which images of a delivery are tiled (mss)")
    add("--band-names", metavar="NAME,...", help="names of the bands of images with as many bands (those in the file)")
    add(
        "--band-files", metavar="PATTERN", help="images of one scene with a file a band: a regular expression of their "
        "names with the group (?P<band>...)",
    )  # fmt: skip
    add("--alpha", choices=get_args(Alpha), help="what a band declared as alpha is: a mask or a measurement (auto)")
    add("--mask", choices=get_args(CloudMask), help="count the clouds of a scene's quality band as clouds: qa (none)")
    add(
        "--dem",
        metavar="FILE",
        help="file or URL of heights above the ellipsoid; without it, the ground is assumed flat",
    )
    add(
        "--geoid",
        metavar="FILE",
        help="heights of the geoid above the ellipsoid, for a DEM with heights above the geoid; or egm96 or egm2008",
    )
    add("--resampling", choices=get_args(Resampling), help="how images are resampled (bilinear)")
    add(
        "--radiometry",
        choices=get_args(Kind),
        help="how pixels are stored: stretched to 8 bits, as reflectance, or as digital numbers (percentile)",
    )
    add(
        "--coefficients", metavar="FILE.csv", help="calibration table for --radiometry toa, instead of the built-in one"
    )
    add("--out", metavar="DATASET", help="directory of the data set, or s3://bucket/prefix")
    add("--stac", type=inputs.expand_home, metavar="DIR", help="also write the scenes as a static STAC catalog")
    add(
        "--params",
        type=inputs.expand_home,
        metavar="FILE.yaml",
        help="parameter file with the settings, in its section `build`",
    )
    add("--tile", type=int, metavar="PX", help="side length of a tile (256)")
    add("--stride", type=int, metavar="PX", help="distance between neighbouring tiles (200)")
    add("--label-set", metavar="NAME", help="label set of the index, <product>_<year>, needed if there are several")
    add("--only", choices=STAGES, help="run only this stage")
    add_cluster_options(parser)
    add("--dry-run", action="store_true", help="print what a build would do and refuse; write nothing")
    add("--strict", action="store_true", help="exit with status 3 if anything was refused")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit status."""
    options = make_parser().parse_args(argv)
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    logging.getLogger("rasterio").setLevel(logging.ERROR)  # GDAL's failures are raised as errors that name the file
    overrides = {name: value for name, value in vars(options).items() if name in OPTIONS and value is not None}
    try:
        config = read_config(options.params, overrides)
        check_cluster_options(options)
        covers = check_inputs(config, options.only)
        if options.dry_run:
            return print_plan(config, covers, options)
        with files.lock_directory(config.out, "builds"), logging_redirect_tqdm(), stop_on_signals():
            summary = build(config, covers, options)
    except (ConfigError, ClusterError, LandCoverError, StoreError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        return report_stop(interrupt)
    refused = quarantine.read(config.out)
    if refused:
        print(f"{len(refused)} refused; see {files.join(config.out, quarantine.FILE)}", file=sys.stderr)
    if summary is not None and not any(summary["counts"]["splits"].values()):
        print("error: the index has no tile in any split; the warnings above say why", file=sys.stderr)
        return 4
    return 3 if refused and options.strict else 0


def print_plan(config: BuildConfig, covers: list[LandCover], options: argparse.Namespace) -> int:
    """Print what a build would do and refuse. Returns the exit status. A cluster is only used if it is asked for."""
    cluster = options.workers is not None or options.scheduler is not None
    refused = False
    with open_chosen_cluster(options) if cluster else nullcontext() as client:
        for line in describe_build(config, covers, client):
            print(line)
            refused |= line.startswith(REFUSED)
    return 3 if refused and options.strict else 0


def check_inputs(config: BuildConfig, only: str | None = None) -> list[LandCover]:
    """Check all paths and the label set before any work starts. Returns the land cover.

    only: the stage to run, if not all. The first two do not need land cover.

    Raises ConfigError, LandCoverError or OSError with one sentence about the path or setting.
    """
    rasters.fingerprint.cache_clear()  # entries of an earlier run in this process
    survey, heights = config.survey, [*filter(None, (config.survey.dem, config.survey.geoid))]
    landcover = [split_location(location)[0] for location in config.labels.landcover]
    for path in (*survey.scenes, *landcover, *heights, *filter(None, [survey.coefficients])):
        if not inputs.is_remote(path) and not Path(path).exists():
            raise ConfigError(f"{path}: no such file or directory")
    for path in heights:
        inputs.stat(path)
    if survey.coefficients is not None:
        try:
            read_coefficients(survey.coefficients)
        except RadiometryError as error:
            raise ConfigError(str(error)) from error
    if not config.labels.landcover:
        if only in STAGES[:2]:
            return []
        raise ConfigError("labels.landcover is missing; give it as --landcover or in a parameter file")
    covers = find_landcover(config.labels.landcover, config.labels.legends, config.labels.taxonomy)
    index.choose_label_set(config.index, covers)
    return covers


def build(config: BuildConfig, covers: list[LandCover], options: argparse.Namespace) -> dict[str, Any] | None:
    """Run all stages, or only the one in --only, on one cluster. Each stage is recorded in the log of the data set.

    Returns the content of dataset.json if the stage index was run.
    """
    out = config.out
    entries: list[Entry] | None = None
    summary: dict[str, Any] | None = None
    stages = (options.only,) if options.only else STAGES
    with open_chosen_cluster(options) as client, count_stages(len(stages)) as count_stage:
        log_event(out, "run", stages=stages, settings=config.model_dump(mode="json"))
        for stage in stages:
            began = time.monotonic()
            if stage == "catalog":
                entries = catalog.run(config, client, covers)
                if options.stac:
                    write_static_catalog(Path(options.stac), [entry.scene for entry in entries])
                check_coverage(config, covers, entries)  # before the stage tiles, which takes longest
            elif entries is None:
                entries = load_catalog(out)
            match stage:
                case "tiles":
                    tiles.run(config, entries, client)
                case "labels":
                    labels.run(config, covers, entries, client)
                case "index":
                    summary = index.run(config, covers, entries, client)
                    describe(out, summary, entries)
                    print("\n".join(summary_table(summary)))
                    print("\n".join(summarise(read_account(out))))
            log_event(
                out,
                "stage",
                stage=stage,
                seconds=round(time.monotonic() - began, 1),
                threads=count_threads(client),
                dashboard=client.dashboard_link,
            )
            count_stage()
    return summary


def describe(out: str, summary: dict[str, Any], entries: list[Entry]) -> None:
    """Write README.md, croissant.json and collection.json beside a finished index."""
    from pipeline.report.readme import write_readme  # draws, and matplotlib takes half a second to import

    write_readme(out, summary, entries)


def load_catalog(out: str) -> list[Entry]:
    """The entries that an earlier run of the stage catalog wrote. Raises ConfigError if there are none."""
    path = files.join(out, CATALOG)
    if not files.exists(path):
        raise ConfigError(f"{path}: no such file; run the stage catalog first")
    return read_catalog(path)


if __name__ == "__main__":
    raise SystemExit(main())
