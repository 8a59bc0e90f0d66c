"""A downstream task with known truth: `python -m pipeline.sample.chips WORLD OUT` writes images and labels.csv.

Each image shows 512 m of the sample world, and its label is the class that covers most of it today: not on the map that
pre-training learns from, which is outdated. All places are beyond the scenes, further than a parcel is wide.
"""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine

from geokr.landcover.legend import KNOWLEDGE, read_legend
from geokr.storage import inputs
from pipeline.imaging.radiometry import percentile_stretch, radiometry_from_stretch
from pipeline.sample.files import SHOTS, Box, make_view, surrounding_box
from pipeline.sample.world import BANDS, CENTRE, CRS, World

TABLE = "labels.csv"
"""Columns: file, label, split."""
SIZE, GSD, FINE = 64, 8.0, 2
"""Side of a chip, px; side of a pixel, m; points a pixel along each side, of which it is the mean."""
REACH = 15_000.0
"""Distance from the world's centre to the outermost chips along each axis, m."""
CELL = 5
"""Chips along the side of a cell. All chips of a cell are in one split; the last row and column stay empty, so that
chips of different splits do not touch."""
MAJORITY = 0.5
"""Least share of the class that gives the label. Other chips are left out: nobody could say what they show."""
LEAST = 10
"""A class with fewer chips in a split is left out."""


@dataclass(frozen=True, slots=True)
class Place:
    """The ground of a chip."""

    left: float
    top: float
    """Easting and northing of the upper left corner, m."""
    split: str
    """train or test."""

    def points(self, fine: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Eastings and northings (y, x) of `fine` x `fine` points in each pixel, m."""
        offset = (np.arange(SIZE * fine) + 0.5) * GSD / fine
        east, north = np.meshgrid(self.left + offset, self.top - offset)
        return east, north


def list_places(scenes: Box, reach: float = REACH) -> list[Place]:
    """The places of chips beyond the scenes, by row. Every third cell along each diagonal of cells is for testing."""
    side = SIZE * GSD
    count = int(2 * reach // side)
    left, bottom, right, top = scenes
    places = []
    for row, col in np.ndindex(count, count):
        x, y = CENTRE[0] - reach + side * col, CENTRE[1] + reach - side * row
        beyond = x + side <= left or x >= right or y <= bottom or y - side >= top
        if beyond and row % CELL != CELL - 1 and col % CELL != CELL - 1:
            split = "test" if (row // CELL + col // CELL) % 3 == 0 else "train"
            places.append(Place(x, y, split))
    return places


def find_classes(world: World, places: Sequence[Place]) -> tuple[list[str], npt.NDArray[np.float64]]:
    """Names of the classes, and the share of each in each place today: (place, class)."""
    legend = read_legend(KNOWLEDGE / "products" / "globeland30.toml")
    code_shares = legend.shares(np.arange(256))
    counts = [np.bincount(world.cover(*place.points(1)).ravel(), minlength=256) for place in places]
    return list(legend.classes), np.array(counts) @ code_shares / SIZE**2


def render_chips(world: World, places: Sequence[Place]) -> npt.NDArray[np.uint8]:
    """Images of places, (place, band, y, x), by a clear view that is no scene's, stretched as a scene is."""
    view = make_view(world, replace(SHOTS[0], haze=0.4, product=SHOTS[0].product + 1))
    numbers = np.empty((len(places), SIZE, SIZE, len(BANDS)), np.uint16)
    for chip, place in zip(numbers, places, strict=True):
        fine = view(*place.points(FINE), np.zeros(()))  # what is seen from straight above does not depend on the height
        chip[:] = np.rint(np.moveaxis(fine.reshape(len(BANDS), SIZE, FINE, SIZE, FINE).mean(axis=(2, 4)), 0, -1))
    stretch = percentile_stretch(np.moveaxis(numbers, -1, 0), np.ones(numbers.shape[:-1], bool))
    return np.moveaxis(radiometry_from_stretch(stretch, len(BANDS)).apply(numbers), -1, 1)


def write_chips(world: World, places: Sequence[Place], out: Path) -> int:
    """Write a GeoTIFF for each place with a clear class, and the table of labels. Returns the number of chips."""
    classes, shares = find_classes(world, places)
    largest = shares.argmax(axis=1)
    chosen = shares.max(axis=1) >= MAJORITY
    split = np.array([place.split for place in places])
    for name in ("train", "test"):
        counts = np.bincount(largest[chosen & (split == name)], minlength=len(classes))
        chosen &= np.isin(largest, np.flatnonzero(counts >= LEAST))
    numbers = np.flatnonzero(chosen).tolist()
    members = [places[i] for i in numbers]
    out.mkdir(parents=True, exist_ok=True)
    rows = [("file", "label", "split")]
    for i, place, pixels in zip(numbers, members, render_chips(world, members), strict=True):
        rows.append((f"{i:04d}.tif", classes[largest[i]], place.split))
        write_chip(out / rows[-1][0], pixels, place)
    with (out / TABLE).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return len(members)


def write_chip(path: Path, pixels: npt.NDArray[np.uint8], place: Place) -> None:
    """Write (band, y, x) pixels with the names of their bands."""
    count, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=pixels.dtype, crs=CRS,
        transform=Affine(GSD, 0, place.left, 0, -GSD, place.top),
    ) as image:  # fmt: skip
        image.write(pixels)
        image.descriptions = BANDS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.sample.chips", description=__doc__)
    parser.add_argument("world", metavar="WORLD", type=inputs.local_path, help="written by geokr sample")
    parser.add_argument("out", metavar="OUT", type=inputs.local_path, help="folder for the chips")
    options = parser.parse_args(argv)
    try:
        truth = json.loads((options.world / "truth.json").read_text(encoding="utf-8"))
        world = World.from_seed(truth["seed"], truth["outdated"])
        print(f"{options.out}: {write_chips(world, list_places(surrounding_box(SHOTS)), options.out)} chips")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
