"""Does a scene lie where it belongs? Its shift against a georeferenced image of the place.

    python -m pipeline.geocheck SCENE --reference IMAGE [--dem FILE] [--picture arrows.png]

Both are brought onto one grid, and on chips all over it the shift is found by phase correlation.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from geokr.crs import transformer
from geokr.storage.inputs import InputError
from pipeline.geometry.grid import area_centre, choose_crs
from pipeline.geometry.sensor import RPC, Floats
from pipeline.geometry.terrain import Terrain
from pipeline.imaging.ortho import orthorectify
from pipeline.scenes.delivery import Refusal, read_delivery
from pipeline.scenes.discovery import find_deliveries
from pipeline.scenes.footprint import flat_terrain, image_footprint
from pipeline.scenes.scene import Image, Scene, SceneError

COARSE = 0.1
"""Frequency at which the weight in a phase correlation has fallen to 0.6, cycles a pixel."""
PEAK = 0.25
"""Least height of a correlation's peak that is believed, of 1 for equal chips; of noise in 64 px it is some 0.2."""


@dataclass(frozen=True, slots=True)
class Shifts:
    """What was found."""

    crs: str
    gsd: float
    """Side of a pixel of the common grid, m."""
    places: Floats
    """(n, 2) float64: centres of the chips, m east and north in the CRS."""
    moved: Floats
    """(n, 2) float64: how far the scene lies off the reference there, m east and north."""
    chips: int
    """How many were looked at."""

    def lines(self) -> list[str]:
        """The result for a person."""
        if len(self.moved) == 0:
            return [f"none of {self.chips} chips agrees with the reference well enough to tell a shift"]
        east, north = np.median(self.moved, axis=0)
        length = np.hypot(*self.moved.T)
        middle, most = np.median(length), np.percentile(length, 90)
        return [
            f"{len(self.moved)} of {self.chips} chips, {self.gsd:g} m a pixel, {self.crs}",
            f"median shift  {east:+.2f} m east, {north:+.2f} m north",
            f"length        median {middle:.2f} m ({middle / self.gsd:.2f} px), "
            f"90 % {most:.2f} m ({most / self.gsd:.2f} px)",
        ]


def read_one_scene(path: str) -> Scene:
    """The scene under a path. Raises SceneError with a sentence where there is none that can be used, or several."""
    found = [scene for delivery in find_deliveries([path]) for scene in read_delivery(delivery, "mss")]
    scenes = [scene for scene in found if not isinstance(scene, Refusal)]
    if len(scenes) == 1:
        return scenes[0]
    refused = [scene.detail for scene in found if isinstance(scene, Refusal)]
    if scenes:
        raise SceneError(f"{path}: holds {len(scenes)} scenes; name one of them")
    raise SceneError(refused[0] if refused else f"{path}: no image is in there")


def measure_shifts(scene: Scene, reference: Scene, terrain: Terrain, chip: int = 256, across: int = 12) -> Shifts:
    """Measure a scene's shift on at most across x across chips of `chip` px, evenly over what both show.

    The common grid has the coarser of the two pixel sizes. Raises SceneError where the two do not overlap.
    """
    image, other = scene.images[0], reference.images[0]
    mine, theirs = image_footprint(image, terrain), image_footprint(other, flat_terrain(other.model))
    crs, gsd = choose_crs(*area_centre(mine)), max(image.gsd, other.gsd)
    common = shapely.intersection(project_footprint(mine, crs), project_footprint(theirs, crs))
    if common.is_empty:
        raise SceneError(f"{other.path}: the reference shows no part of {scene.id}")
    left, bottom, right, top = common.bounds
    side = chip * gsd
    x = np.unique(np.linspace(left, max(left, right - side), across))
    y = np.unique(np.linspace(bottom + side, max(bottom + side, top), across))
    places, moved, looked = [], [], 0
    for corner_y in y:
        for corner_x in x:
            geobox = GeoBox((chip, chip), Affine(gsd, 0, corner_x, 0, -gsd, corner_y), crs)
            first, second = read_grey_chip(geobox, other, image, terrain), read_grey_chip(geobox, image, other, terrain)
            if first is None or second is None:
                continue
            looked += 1
            found = correlate(first, second)
            if found is not None:
                places.append((corner_x + side / 2, corner_y - side / 2))
                moved.append((found[0] * gsd, -found[1] * gsd))
    return Shifts(crs, gsd, np.reshape(places, (-1, 2)), np.reshape(moved, (-1, 2)), looked)


def project_footprint(footprint: shapely.Polygon, crs: str) -> shapely.Polygon:
    """A footprint in metres."""
    ring = shapely.get_coordinates(footprint.exterior)
    return shapely.Polygon(np.column_stack(transformer("EPSG:4326", crs).transform(ring[:, 0], ring[:, 1])))


def read_grey_chip(geobox: GeoBox, image: Image, other: Image, terrain: Terrain) -> npt.NDArray[np.float32] | None:
    """A chip of an image in one band, (y, x) float32; None where it does not cover the chip or is all alike.

    The mean of the bands that the other image has too, or of all where they share none.
    """
    ground = terrain if isinstance(image.model, RPC) else flat_terrain(image.model)
    found = orthorectify(geobox, image, ground)
    if not found.valid.all():
        return None
    shared = [k for k, band in enumerate(image.bands) if band in other.bands]
    mean = found.pixels[..., shared or slice(None)].astype(np.float32).mean(axis=2)
    return None if mean.std() == 0 else mean - mean.mean()


def correlate(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> tuple[float, float] | None:
    """How far (right, down) the second chip's picture lies off the first's, px; None where that cannot be told.

    Phase correlation of the coarse half of the spectrum alone: what is finer than some four pixels differs by how
    the two images were resampled. Weighed by a Gaussian, its peak is one, and three points each way give its place.
    """
    window = cv2.createHanningWindow((first.shape[1], first.shape[0]), cv2.CV_32F)
    spectra = [np.fft.fft2(chip * window) for chip in (first, second)]
    cross = spectra[1] * np.conj(spectra[0])
    weight = np.exp(-(np.add.outer(*(np.fft.fftfreq(n) ** 2 for n in first.shape)) / (2 * COARSE**2)))
    surface = np.fft.ifft2(cross / np.maximum(np.abs(cross), 1e-12) * weight).real / weight.mean()
    rows, cols = surface.shape
    row, col = np.unravel_index(int(surface.argmax()), surface.shape)
    down, right = (place - n if place > n // 2 else place for place, n in ((int(row), rows), (int(col), cols)))
    if surface[row, col] < PEAK or max(abs(down), abs(right)) > min(rows, cols) / 4:
        return None  # too little is alike, or too little is shared
    beside = [(surface[(row - 1) % rows, col], surface[(row + 1) % rows, col])]
    beside += [(surface[row, (col - 1) % cols], surface[row, (col + 1) % cols])]
    moves = []
    for before, after in beside:
        a, b, c = np.log(np.maximum([before, surface[row, col], after], 1e-6))
        moves.append(float(0.5 * (a - c) / (a - 2 * b + c)))
    return right + moves[1], down + moves[0]


def draw_arrows(found: Shifts, path: Path) -> None:
    """Draw an arrow a chip, so long that the median is a tenth of the scene."""
    from matplotlib.figure import Figure  # half a second that only a picture is worth

    figure = Figure(figsize=(7, 7), layout="constrained")
    axes = figure.subplots()
    length = np.hypot(*found.moved.T)
    unit = max(float(np.median(length)), 1e-6)
    span = float(np.ptp(found.places, axis=0).max()) or found.gsd
    arrows = axes.quiver(
        *found.places.T, *found.moved.T, length, angles="xy", scale_units="xy", scale=10 * unit / span, cmap="viridis"
    )
    axes.quiverkey(arrows, 0.9, 1.02, unit, f"{unit:.2f} m", labelpos="E")
    figure.colorbar(arrows, ax=axes, label="shift, m", shrink=0.7)
    axes.set_aspect("equal")
    axes.margins(0.15)
    axes.set_xlabel(f"m east, {found.crs}")
    axes.set_ylabel("m north")
    axes.set_title(found.lines()[1], fontsize=10)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status: 1 where no shift could be told."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.geocheck", description=__doc__)
    parser.add_argument("scene", help="a delivery or an image")
    parser.add_argument("--reference", required=True, metavar="IMAGE", help="a georeferenced image of the place")
    parser.add_argument("--dem", metavar="FILE", help="heights; without it the ground is taken as flat")
    parser.add_argument("--geoid", metavar="FILE", help="the geoid's heights, where the DEM's are above the geoid")
    parser.add_argument("--chip", type=int, default=256, metavar="PX", help="side of a chip (256)")
    parser.add_argument("--across", type=int, default=12, metavar="N", help="chips a side of the scene (12)")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="draw an arrow a chip")
    options = parser.parse_args(argv)
    try:
        scene, reference = read_one_scene(options.scene), read_one_scene(options.reference)
        if isinstance(reference.images[0].model, RPC):
            raise SceneError(f"{options.reference}: the reference must lie on a map")
        terrain = replace(flat_terrain(scene.images[0].model), dem=options.dem, geoid=options.geoid)
        if options.chip < 32 or options.across < 1:
            raise SceneError(f"chips must be at least 32 px and one, got {options.chip} px and {options.across}")
        found = measure_shifts(scene, reference, terrain, options.chip, options.across)
        print("\n".join(found.lines()))
        if options.picture is not None and len(found.moved):
            draw_arrows(found, options.picture)
            print(f"picture       {options.picture}")
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if len(found.moved) else 1


if __name__ == "__main__":
    raise SystemExit(main())
