"""Check the geolocation of a scene: measure its shift against a georeferenced image of the same place.

    geokr check SCENE --reference IMAGE [--dem FILE] [--picture arrows.png]

Both images are resampled onto one grid, and the shift is measured by phase correlation on chips spread over it.
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
from geokr.storage import inputs
from geokr.storage.inputs import InputError
from pipeline.geometry.grid import choose_crs, find_area_centre
from pipeline.geometry.sensor import RPC, Floats
from pipeline.geometry.terrain import Terrain, find_geoid
from pipeline.imaging.ortho import orthorectify
from pipeline.scenes.delivery import Refusal, read_delivery
from pipeline.scenes.discovery import find_deliveries
from pipeline.scenes.footprint import image_footprint, make_flat_terrain
from pipeline.scenes.scene import Image, Scene, SceneError

COARSE = 0.1
"""Frequency at which the weight in a phase correlation has fallen to 0.6, cycles per pixel."""
PEAK = 0.25
"""Minimum height of a correlation peak to be accepted. Equal chips have 1; noise on 64 px has some 0.2."""


@dataclass(frozen=True, slots=True)
class Shifts:
    """The measured shifts of a scene."""

    crs: str
    gsd: float
    """Side of a pixel of the common grid, m."""
    places: Floats
    """(n, 2) float64: centres of the chips with a measured shift, m east and north in the CRS."""
    moved: Floats
    """(n, 2) float64: shift of the scene against the reference in each of them, m east and north."""
    chips: int
    """Number of chips that were compared."""

    def lines(self) -> list[str]:
        """The result as lines of text for a user."""
        if len(self.moved) == 0:
            return [f"none of {self.chips} chips agrees with the reference well enough to measure a shift"]
        east, north = np.median(self.moved, axis=0)
        length = np.hypot(*self.moved.T)
        median, p90 = np.median(length), np.percentile(length, 90)
        return [
            f"{len(self.moved)} of {self.chips} chips, {self.gsd:g} m a pixel, {self.crs}",
            f"median shift  {east:+.2f} m east, {north:+.2f} m north",
            f"length        median {median:.2f} m ({median / self.gsd:.2f} px), "
            f"90 % {p90:.2f} m ({p90 / self.gsd:.2f} px)",
        ]


def read_one_scene(path: str) -> Scene:
    """Return the only scene under a path. Raises SceneError if there is no usable scene, or more than one."""
    results = [scene for delivery in find_deliveries([path]) for scene in read_delivery(delivery, "mss")]
    scenes = [scene for scene in results if not isinstance(scene, Refusal)]
    if len(scenes) == 1:
        return scenes[0]
    refused = [scene.detail for scene in results if isinstance(scene, Refusal)]
    if scenes:
        raise SceneError(f"{path}: contains {len(scenes)} scenes; name one of them")
    raise SceneError(refused[0] if refused else f"{path}: contains no image")


def measure_shifts(scene: Scene, reference: Scene, terrain: Terrain, chip: int = 256, across: int = 12) -> Shifts:
    """Measure a scene's shift on at most across x across chips of `chip` px, spread evenly over the common area.

    The common grid has the coarser of the two pixel sizes. Raises SceneError if the two images do not overlap.
    """
    image, ref_image = scene.images[0], reference.images[0]
    footprint, ref_footprint = (
        image_footprint(image, terrain),
        image_footprint(ref_image, make_flat_terrain(ref_image.model)),
    )
    crs, gsd = choose_crs(*find_area_centre(footprint)), max(image.gsd, ref_image.gsd)
    overlap = shapely.intersection(project_footprint(footprint, crs), project_footprint(ref_footprint, crs))
    if overlap.is_empty:
        raise SceneError(f"{ref_image.path}: the reference does not overlap {scene.id}")
    left, bottom, right, top = overlap.bounds
    side = chip * gsd
    x = np.unique(np.linspace(left, max(left, right - side), across))
    y = np.unique(np.linspace(bottom + side, max(bottom + side, top), across))
    centres, offsets, count = [], [], 0
    for corner_y in y:
        for corner_x in x:
            geobox = GeoBox((chip, chip), Affine(gsd, 0, corner_x, 0, -gsd, corner_y), crs)
            ref_chip = read_grey_chip(geobox, ref_image, image, terrain)
            scene_chip = read_grey_chip(geobox, image, ref_image, terrain)
            if ref_chip is None or scene_chip is None:
                continue
            count += 1
            shift = measure_shift(ref_chip, scene_chip)
            if shift is not None:
                centres.append((corner_x + side / 2, corner_y - side / 2))
                offsets.append((shift[0] * gsd, -shift[1] * gsd))
    return Shifts(crs, gsd, np.reshape(centres, (-1, 2)), np.reshape(offsets, (-1, 2)), count)


def project_footprint(footprint: shapely.Polygon, crs: str) -> shapely.Polygon:
    """Project a footprint from longitude and latitude to a CRS in metres."""
    ring = shapely.get_coordinates(footprint.exterior)
    return shapely.Polygon(np.column_stack(transformer("EPSG:4326", crs).transform(ring[:, 0], ring[:, 1])))


def read_grey_chip(geobox: GeoBox, image: Image, other: Image, terrain: Terrain) -> npt.NDArray[np.float32] | None:
    """Read a grey chip of an image, (y, x) float32 with mean 0; None if the image does not cover it or is constant.

    Grey is the mean of the bands that both images have, or of all bands if they have none in common.
    """
    ground = terrain if isinstance(image.model, RPC) else make_flat_terrain(image.model)
    ortho = orthorectify(geobox, image, ground)
    if not ortho.valid.all():
        return None
    common_bands = [k for k, band in enumerate(image.bands) if band in other.bands]
    mean = ortho.pixels[..., common_bands or slice(None)].astype(np.float32).mean(axis=2)
    return None if mean.std() == 0 else mean - mean.mean()


def measure_shift(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> tuple[float, float] | None:
    """Shift (right, down) of the second chip against the first, px; None if it cannot be measured.

    Phase correlation of the coarse half of the spectrum only: detail finer than some four pixels depends on how the two
    images were resampled. With Gaussian weights the peak is a Gaussian, so three points along each axis locate it.
    """
    window = cv2.createHanningWindow((first.shape[1], first.shape[0]), cv2.CV_32F)
    spectra = [np.fft.fft2(chip * window) for chip in (first, second)]
    cross = spectra[1] * np.conj(spectra[0])
    weight = np.exp(-(np.add.outer(*(np.fft.fftfreq(n) ** 2 for n in first.shape)) / (2 * COARSE**2)))
    surface = np.fft.ifft2(cross / np.maximum(np.abs(cross), 1e-12) * weight).real / weight.mean()
    rows, cols = surface.shape
    row, col = np.unravel_index(int(surface.argmax()), surface.shape)
    down, right = (index - n if index > n // 2 else index for index, n in ((int(row), rows), (int(col), cols)))
    if surface[row, col] < PEAK or max(abs(down), abs(right)) > min(rows, cols) / 4:
        return None  # the chips agree too little, or overlap too little
    neighbours = [(surface[(row - 1) % rows, col], surface[(row + 1) % rows, col])]
    neighbours += [(surface[row, (col - 1) % cols], surface[row, (col + 1) % cols])]
    subpixel = []
    for lower, upper in neighbours:
        a, b, c = np.log(np.maximum([lower, surface[row, col], upper], 1e-6))
        subpixel.append(float(0.5 * (a - c) / (a - 2 * b + c)))
    return right + subpixel[1], down + subpixel[0]


def draw_arrows(shifts: Shifts, path: Path) -> None:
    """Draw one arrow per chip, scaled so that the median length is a tenth of the scene."""
    from matplotlib.figure import Figure  # takes half a second, needed only for a picture

    figure = Figure(figsize=(7, 7), layout="constrained")
    axes = figure.subplots()
    length = np.hypot(*shifts.moved.T)
    unit = max(float(np.median(length)), 1e-6)
    span = float(np.ptp(shifts.places, axis=0).max()) or shifts.gsd
    arrows = axes.quiver(
        *shifts.places.T, *shifts.moved.T, length, angles="xy", scale_units="xy", scale=10 * unit / span, cmap="viridis"
    )
    axes.quiverkey(arrows, 0.9, 1.02, unit, f"{unit:.2f} m", labelpos="E")
    figure.colorbar(arrows, ax=axes, label="shift, m", shrink=0.7)
    axes.set_aspect("equal")
    axes.margins(0.15)
    axes.set_xlabel(f"m east, {shifts.crs}")
    axes.set_ylabel("m north")
    axes.set_title(shifts.lines()[1], fontsize=10)
    figure.savefig(path, dpi=110)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="geokr check", description=__doc__)
    parser.add_argument("scene", type=inputs.expand_home, help="a delivery or an image")
    parser.add_argument(
        "--reference",
        required=True,
        type=inputs.expand_home,
        metavar="IMAGE",
        help="a georeferenced image of the same place",
    )
    parser.add_argument(
        "--dem", type=inputs.expand_home, metavar="FILE", help="elevation model; without it, the ground is assumed flat"
    )
    parser.add_argument(
        "--geoid",
        type=inputs.expand_home,
        metavar="FILE",
        help="geoid heights, if the DEM's heights are above the geoid: a file, egm96 or egm2008",
    )
    parser.add_argument("--chip", type=int, default=256, metavar="PX", help="side of a chip, px (256)")
    parser.add_argument("--across", type=int, default=12, metavar="N", help="number of chips along each axis (12)")
    parser.add_argument(
        "--picture", type=inputs.local_path, metavar="FILE.png", help="draw one arrow per chip to this file"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 1 if no shift could be measured, 2 on an error."""
    options = make_parser().parse_args(argv)
    try:
        scene, reference = read_one_scene(options.scene), read_one_scene(options.reference)
        if isinstance(reference.images[0].model, RPC):
            raise SceneError(f"{options.reference}: the reference must be georeferenced")
        geoid = None if options.geoid is None else find_geoid(options.geoid)
        terrain = replace(make_flat_terrain(scene.images[0].model), dem=options.dem, geoid=geoid)
        if options.chip < 32 or options.across < 1:
            raise SceneError(
                f"--chip must be at least 32 px and --across at least 1, got {options.chip} px and {options.across}"
            )
        shifts = measure_shifts(scene, reference, terrain, options.chip, options.across)
        print("\n".join(shifts.lines()))
        if options.picture is not None and len(shifts.moved):
            draw_arrows(shifts, options.picture)
            print(f"picture       {options.picture}")
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if len(shifts.moved) else 1


if __name__ == "__main__":
    raise SystemExit(main())
