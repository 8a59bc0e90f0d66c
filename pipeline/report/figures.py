"""Pictures of a data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geokr.dataset import layout, store
from geokr.dataset.index import read_index, read_summary
from geokr.dataset.layout import RGB
from geokr.storage import files


def draw_tiles(dataset: str | Path, path: Path, tiles: int = 6) -> None:
    """Draw tiles, each above a bar chart of its largest class shares, and write the figure to a file.

    The tiles rotate through the classes, most frequent dominant class first; within a class, the most mixed tile comes
    first. The image is in true colour if the scene has red, green and blue bands, otherwise it shows its first, middle
    and last band.
    """
    from matplotlib.figure import Figure  # takes half a second, so only if a picture is wanted

    summary = read_summary(dataset)
    classes, colours = summary["classes"], summary["colours"]
    index = read_index(dataset, ["scene", "row", "col", *classes]).to_pandas()
    shares = index[classes].to_numpy(dtype=float)
    chosen = choose_tiles(shares, tiles)
    figure = Figure(figsize=(2.1 * len(chosen), 3.6), layout="constrained")
    axes = figure.subplots(2, len(chosen), height_ratios=[2.1, 1.2], squeeze=False)
    for image_axes, bar_axes, k in zip(axes[0], axes[1], chosen, strict=True):
        tile = index.iloc[int(k)]
        group = store.open_scene(files.join(dataset, layout.TILES), tile["scene"])
        pixels = np.asarray(group["image"][int(tile["row"]), int(tile["col"])])  # type: ignore[index]
        image_axes.imshow(to_rgb(pixels, list(group.attrs["bands"])))  # type: ignore[arg-type]
        image_axes.set_axis_off()
        order = [c for c in np.argsort(-shares[k], kind="stable")[:3] if shares[k][c] > 0][::-1]
        bar_axes.barh([classes[c] for c in order], 100 * shares[k][order], color=[colours[c] for c in order], ec="0.4")
        bar_axes.set_xlim(0, 100)
        bar_axes.tick_params(labelsize=7, length=0)
        bar_axes.spines[["top", "right"]].set_visible(False)
        bar_axes.set_xlabel("% of the tile", fontsize=7)
    figure.savefig(path, dpi=110)


def choose_tiles(shares: npt.NDArray[np.float64], tiles: int) -> npt.NDArray[np.intp]:
    """Choose tiles, which rotate through the classes as in `draw_tiles`. shares: (tile, class)."""
    mixed = -(shares * np.log(np.maximum(shares, 1e-12))).sum(axis=1)
    dominant = shares.argmax(axis=1)
    common = np.argsort(-np.bincount(dominant, minlength=shares.shape[1]), kind="stable")
    ranks = np.empty(len(shares), dtype=int)  # number of tiles of the same class that are more mixed
    for k in common:
        of_class = np.flatnonzero(dominant == k)
        ranks[of_class[np.argsort(-mixed[of_class], kind="stable")]] = np.arange(len(of_class))
    return np.lexsort([np.argsort(common)[dominant], ranks])[:tiles]


def choose_rgb(bands: Sequence[str]) -> list[int]:
    """Numbers of the bands to show: red, green and blue if there are all three, otherwise first, middle and last."""
    if set(RGB) <= set(bands):
        return [bands.index(name) for name in RGB]
    return [0, len(bands) // 2, len(bands) - 1]


def find_limits(pixels: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The 1 % and 99 % percentiles of each band: (band, ...) -> (2, band)."""
    return np.asarray(np.percentile(pixels.reshape(len(pixels), -1), [1, 99], axis=1))


def to_rgb(
    pixels: npt.NDArray[Any],
    bands: Sequence[str],
    limits: npt.NDArray[np.float64] | None = None,
    gamma: float = 1.0,
) -> npt.NDArray[np.uint8]:
    """(band, y, x) -> (y, x, 3) uint8. limits: see `find_limits`; those of the pixels themselves by default.

    gamma: exponent of the brightness; below 1, ground beside snow or cloud is not black.
    """
    chosen = choose_rgb(bands)
    low, high = (find_limits(pixels) if limits is None else limits)[:, chosen]
    image = np.moveaxis(pixels[chosen].astype(float), 0, -1)
    return np.asarray((255 * np.clip((image - low) / np.maximum(high - low, 1), 0, 1) ** gamma).astype(np.uint8))
