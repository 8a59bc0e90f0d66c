"""Pictures of an evaluation, as PNG: label-efficiency curves, confusion matrices, galleries of predictions."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from geokr.evaluation.examples import Examples
from geokr.evaluation.report.tables import Comparison

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's colours, which colour-blind readers tell apart too."""
MARKERS = "osD^vP*"
LEAST_SCORE = 0.5
"""Detections with a lower score are not drawn."""


def draw_curves(table: Comparison) -> bytes:
    """Draw the metric over the number of labelled images, with bars of one standard deviation over the seeds."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for k, encoder in enumerate(table.encoders):
        rows = [table.rows[encoder, share] for share in table.shares if (encoder, share) in table.rows]
        images, mean, std = (np.array([getattr(row, name) for row in rows]) for name in ("images", "mean", "std"))
        colour = COLOURS[k % len(COLOURS)]
        near = images * 1.02 ** (k - (len(table.encoders) - 1) / 2)  # so that bars do not hide each other
        marker = MARKERS[k % len(MARKERS)]
        axes.errorbar(near, mean, std, color=colour, marker=marker, capsize=3, elinewidth=1, label=_plain(encoder))
    axes.set_xscale("log")
    axes.set_xlim(table.images[0] / 1.3, table.images[-1] * 1.3)
    axes.set_xticks(table.images, [str(count) for count in table.images])
    axes.minorticks_off()
    axes.set_xlabel("labelled training images")
    axes.set_ylabel(_plain(table.metric))
    axes.grid(alpha=0.3)
    axes.legend()
    return to_png(figure)


def draw_confusion(
    confusion: npt.NDArray[Any], classes: Sequence[str], sides: tuple[str, str] = ("true", "predicted")
) -> bytes:
    """Draw a matrix of counts or amounts (class, predicted class) as % of each row. sides: names of row and column."""
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1e-12)
    side = 2.2 + 0.42 * len(classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [_plain(name) for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel(sides[1])
    axes.set_ylabel(sides[0])
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005 and len(names) <= 15:
            colour = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=colour)
    return to_png(figure)


def draw_gallery(
    task: str,
    examples: Examples,
    positions: Sequence[int],
    sides: Sequence[tuple[str, Sequence[Any]]],
) -> bytes:
    """Draw images with their truth and with the predictions of some encoders, a row an image.

    positions: of the images in `examples`. sides: name of an encoder, and its prediction for each of these images: a
    class; a (y, x) mask; or corners (m, 4), classes (m,) and scores (m,).
    """
    columns = len(sides) + (1 if task == "classification" else 2)
    images = [to_rgb(examples.image(position), examples.bands) for position in positions]
    heights = [0.2 + 2.3 * min(2.0, image.shape[0] / image.shape[1]) for image in images]
    figure = Figure(figsize=(2.3 * columns, 0.4 + sum(heights)), layout="constrained")
    grid = figure.subplots(len(positions), columns, squeeze=False, height_ratios=heights)
    for row, (position, image) in enumerate(zip(positions, images, strict=True)):
        target = examples.target(position)
        truth = [("truth", target)] if task != "classification" else []
        panels = [("image", None), *truth, *((name, predictions[row]) for name, predictions in sides)]
        for axes, (name, label) in zip(grid[row], panels, strict=True):
            axes.set_axis_off()
            axes.imshow(image)
            title = _plain(name)
            if task == "classification":
                title = _title_of_class(title, label, target, axes, examples.classes)
            elif label is not None and task == "segmentation":
                _draw_mask(axes, label, len(examples.classes))
            elif label is not None:
                _draw_boxes(axes, *label)
            axes.set_title(title if row == 0 or task == "classification" else "", fontsize=8)
    if task != "classification":
        colours = [
            Patch(color=COLOURS[k % len(COLOURS)], label=_plain(name)) for k, name in enumerate(examples.classes)
        ]
        figure.legend(handles=colours, loc="outside lower center", ncols=min(len(colours), 4), fontsize=8)
    return to_png(figure)


def _title_of_class(name: str, label: int | None, target: int, axes: Axes, classes: Sequence[str]) -> str:
    """Frame an image green if its class is right and red if not. Returns the title with the class."""
    if label is None:
        return f"true: {_plain(classes[target])}"
    height, width = axes.images[0].get_size()
    colour = COLOURS[2] if label == target else COLOURS[1]
    axes.add_patch(_rectangle(0, 0, width - 1, height - 1, colour, 5))
    return f"{name}\n{'right' if label == target else 'wrong'}: {_plain(classes[label])}"


def _draw_mask(axes: Axes, mask: npt.NDArray[Any], classes: int) -> None:
    """Cover an image with the classes of a mask; numbers beyond the classes have none."""
    colours = np.array([[int(colour[k : k + 2], 16) for k in (1, 3, 5)] for colour in COLOURS], np.uint8)
    alpha = np.where(mask < classes, 255, 0).astype(np.uint8)
    axes.imshow(np.dstack([colours[mask % len(COLOURS)], alpha]))


def _draw_boxes(axes: Axes, corners: Any, classes: Any, scores: Any = None) -> None:
    for k, (left, top, right, bottom) in enumerate(np.asarray(corners)):
        if scores is None or scores[k] >= LEAST_SCORE:
            axes.add_patch(
                _rectangle(left, top, right - left, bottom - top, COLOURS[int(classes[k]) % len(COLOURS)], 1.2)
            )


def _rectangle(left: float, top: float, width: float, height: float, colour: str, line: float) -> Any:
    return Rectangle((left, top), width, height, fill=False, edgecolor=colour, linewidth=line)


def to_rgb(pixels: npt.NDArray[Any], bands: Sequence[str]) -> npt.NDArray[np.uint8]:
    """(band, y, x) -> (y, x, 3) uint8: true colour if possible, 8 bits as they are, others between percentiles."""
    names = ("red", "green", "blue")
    chosen = [bands.index(name) for name in names] if set(names) <= set(bands) else [0, len(bands) // 2, len(bands) - 1]
    image = np.moveaxis(pixels[chosen], 0, -1)
    if image.dtype == np.uint8:
        return image
    low, high = np.percentile(image, [1, 99])
    scaled: npt.NDArray[np.uint8] = ((image - low) / max(high - low, 1) * 255).clip(0, 255).astype(np.uint8)
    return scaled


def _plain(text: str) -> str:
    """Keep a name from being read as a formula."""
    return text.replace("$", r"\$")


def to_png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    return content.getvalue()
