"""Draw the figure of docs/landcover.md: `python -m benchmarks.figure [FILE.png]`.

It shows footprints over the real WorldCover tile of Sao Tome, in GEOKR_REAL_DATA/landcover, and their labels.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import rasterio
from matplotlib.colors import ListedColormap
from matplotlib.patches import Polygon
from rasterio.windows import from_bounds

from benchmarks.real_data import MISSING, WORLDCOVER, has_files, real_folder
from geokr.landcover.discovery import find_landcover
from geokr.landcover.outlines import LONLAT, project_rings
from geokr.landcover.shares import compute_class_shares

UTM = "EPSG:32632"
VIEW = 6.655, 0.225, 6.775, 0.345
"""West, south, east, north, degrees: the north-east of the island, with town, airport and coast."""
SIDE, STEP, ROTATION = 2_000.0, 3_200.0, np.deg2rad(20)
"""Side of a footprint and distance of neighbouring footprints, m, and their rotation, rad."""


def main(argv: list[str]) -> int:
    """Write the figure. Returns the exit status, which is MISSING without the WorldCover tile."""
    out = Path(argv[0] if argv else "docs/images/labels.png")
    folder = real_folder("landcover")
    if not has_files("figure", folder, [WORLDCOVER]):
        return MISSING
    path = folder / WORLDCOVER
    (cover,) = find_landcover([path])
    classes, colours = cover.legend.classes, cover.legend.colours
    with rasterio.open(path) as file:
        cells = file.read(1, window=from_bounds(*VIEW, file.transform))
    shares = cover.legend.shares(np.arange(256))
    classified = np.where(shares.any(axis=1), shares.argmax(axis=1), len(classes))[cells]

    centre = np.array([245_600.0, 32_200.0])
    grid = np.stack(np.meshgrid(np.arange(-1, 2), np.arange(1, -2, -1)), axis=-1).reshape(-1, 1, 2) * STEP
    rotation = np.array([[np.cos(ROTATION), np.sin(ROTATION)], [-np.sin(ROTATION), np.cos(ROTATION)]])
    square = np.array([(-1, 1), (1, 1), (1, -1), (-1, -1)]) * SIDE / 2
    corners = (grid + square) @ rotation + centre
    labels = compute_class_shares(corners, UTM, cover)
    outlines = project_rings(corners, UTM, LONLAT)

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2), width_ratios=(1, 1.15), layout="constrained")
    west, south, east, north = VIEW
    left.imshow(
        classified, ListedColormap([*colours, "#ffffff"]), vmin=0, vmax=len(classes), extent=(west, east, south, north)
    )
    for k, outline in enumerate(outlines):
        left.add_patch(Polygon(outline, fill=False, linewidth=1.4))
        left.text(*outline.mean(axis=0), str(k + 1), ha="center", va="center", fontsize=9, fontweight="bold")
    left.set(xlabel="longitude", ylabel="latitude")
    left.tick_params(labelsize=7)
    start = np.zeros(len(corners))
    areas = labels.fraction * labels.known[:, None]
    for name, colour, area in zip(classes, colours, areas.T, strict=True):
        if area.any():
            right.barh(np.arange(1, 10), area, left=start, color=colour, edgecolor="#555555", linewidth=0.3, label=name)
            start += area
    right.set(xlim=(0, 1), xlabel="share of the footprint; what is missing to 1 is unknown", yticks=range(1, 10))
    right.invert_yaxis()
    right.tick_params(labelsize=8)
    right.legend(fontsize=7, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=80, pil_kwargs={"optimize": True})
    print(f"{out}: {out.stat().st_size / 1024:.0f} kB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
