"""One block of labels, straight through: tile footprints, their class shares, the store.

    python -m pipeline.labels --data DATASET --landcover DIR...

labels a data set that is built already with another product or year, and writes its index anew. No pixel is read.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from geokr import store
from geokr.index import read_summary
from geokr.landcover import LandCover, LandCoverError, find
from geokr.legend import Legend
from geokr.shares import class_shares
from pipeline.grid import TileGrid
from pipeline.sensor import Floats


@dataclass(frozen=True, slots=True)
class LabelJob:
    """All that labelling one block of a scene takes."""

    root: str
    """The label store."""
    scene: str
    cover: LandCover
    """The product, with the sheets that may touch the scene."""
    grid: TileGrid
    i: int
    j: int


@dataclass(frozen=True, slots=True)
class LabelReport:
    """What became of a block."""

    tiles: int
    labelled: int
    """Tiles of which anything is known."""
    unlisted: frozenset[int]
    """Codes in the land cover that its legend does not mention."""


def outline(grid: TileGrid) -> Floats:
    """Corners of a whole grid: (1, 4, 2) float64, m."""
    left, bottom, right, top = grid.geobox.boundingbox
    return np.array([[(left, top), (right, top), (right, bottom), (left, bottom)]])


LABELLED, UNKNOWN = (store.LABEL_STATUS.index(name) for name in ("labelled", "unknown"))


def build_labels(job: LabelJob) -> LabelReport:
    """Label one block. Every tile of the grid is labelled, whether its pixels were accepted or not.

    Raises LandCoverError where a sheet cannot be read; nothing of the block is marked as done then.
    """
    block = job.grid.at(job.i, job.j)
    fraction, known, unlisted = label(job)
    status = np.where(known > 0, LABELLED, UNKNOWN).astype(np.uint8)
    group = store.open_scene(job.root, job.scene, "r+")
    store.write_block(group, block.rows, block.cols, {"fraction": fraction, "known": known}, status)
    return LabelReport(status.size, int((status == LABELLED).sum()), unlisted)


def label(job: LabelJob) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], frozenset[int]]:
    """One block's fraction (row, col, class), known (row, col), and codes that the legend does not mention.

    Raises LandCoverError where a sheet cannot be read.
    """
    block = job.grid.at(job.i, job.j)
    corners = job.grid.corners(block.rows, block.cols)  # (row, col, 4, 2)
    shape = corners.shape[:2]
    shares = class_shares(corners.reshape(-1, 4, 2), str(job.grid.geobox.crs), job.cover)
    fraction = shares.fraction.astype(np.float32).reshape(*shape, -1)
    return fraction, shares.known.astype(np.float32).reshape(shape), shares.unlisted


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    from pipeline.config import ConfigError
    from pipeline.run import ClusterError

    parser = argparse.ArgumentParser(
        prog="python -m pipeline.labels",
        description="Label a data set that is built with another land-cover product or year. No pixel is touched.",
        epilog="Exit status: 0 done; 2 a setting or path is at fault; 130 stopped by Ctrl-C.",
    )
    add = parser.add_argument
    add("--data", required=True, metavar="DATASET", help="a data set that was built to the end")
    add("--landcover", required=True, nargs="+", metavar="DIR", help="directories (or files) with its sheets")
    add("--legend", nargs="+", default=[], metavar="FILE", help="descriptions of your own products")
    add("--labels", metavar="NAME", help="label set of the index from now on: the new one, or the one it has")
    add("--workers", type=int, metavar="N", help="processes on this machine (one a core)")
    options = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        print("\n".join(label_anew(options)))
    except (ConfigError, ClusterError, LandCoverError, store.StoreError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def label_anew(options: argparse.Namespace) -> list[str]:
    """Add label sets to a built data set, and write its index anew. Returns lines that say what it holds now."""
    from pipeline import stages  # it imports this module for its jobs
    from pipeline.catalog import CATALOG, read_catalog
    from pipeline.config import ConfigError, read_config
    from pipeline.report import summary_table
    from pipeline.run import cluster

    summary = read_summary(options.data)
    before = summary["settings"]
    settings = {
        **before,
        "out": options.data,
        "landcover": [*dict.fromkeys([*before["landcover"], *options.landcover])],
        "legends": [*dict.fromkeys([*before["legends"], *options.legend])],
        "labels": options.labels or summary["labels"],
    }
    config = read_config(None, settings)
    covers = find(options.landcover, config.legends, config.taxonomy)
    if config.labels not in (known := [summary["labels"], *(cover.name for cover in covers)]):
        raise ConfigError(f"labels is {config.labels}, expected one of {', '.join(known)}")
    # Of the sets that are there, only their names and the classes of the index's own one are asked for.
    legend = Legend("", summary["taxonomy"], tuple(summary["classes"]), tuple(summary["colours"]), {}, frozenset())
    there = [LandCover(name, 0, legend, ()) for name in summary["label_sets"]]
    every = sorted({cover.name: cover for cover in [*there, *covers]}.values(), key=lambda cover: cover.name)
    stages.label_set(config, every)
    entries = read_catalog(Path(options.data) / CATALOG)
    with cluster(options.workers) as client:
        stages.labels(config, covers, entries, client)
        return summary_table(stages.make_index(config, every, entries, client))


if __name__ == "__main__":
    raise SystemExit(main())
