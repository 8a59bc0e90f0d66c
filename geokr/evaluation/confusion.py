"""Confusion matrices of pixels, and the metrics of segmentation that they give."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from geokr.evaluation.examples import IntArray
from geokr.evaluation.mask_classes import IGNORE

FloatArray = npt.NDArray[np.float64]


def count_confusion(target: npt.NDArray[np.uint8], predicted: npt.NDArray[np.uint8], classes: int) -> IntArray:
    """Count the pixels of each class that are predicted as each class: (class, predicted) int64.

    target, predicted: (y, x) numbers of classes; pixels whose target is IGNORE are not counted.
    """
    known = target != IGNORE
    cells = target[known].astype(np.int64) * classes + predicted[known]
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes).astype(np.int64)


def score_confusion(confusion: IntArray) -> dict[str, float]:
    """Metrics of a confusion matrix: mean IoU, mean F1 and overall accuracy.

    confusion: (class, predicted). Means are over the classes that occur, in truth or in prediction. A metric is not a
    number if there is no pixel.
    """
    total = confusion.sum()
    return {
        "miou": _mean(intersection_over_union(confusion)),
        "f1": _mean(f1_scores(confusion)),
        "accuracy": float(np.trace(confusion) / total) if total else float("nan"),
    }


def score_classes(confusion: IntArray, classes: Sequence[str]) -> dict[str, float]:
    """IoU and F1 of each class, as `iou/NAME` and `f1/NAME`; not a number for one that does not occur."""
    scores = {"iou": intersection_over_union(confusion), "f1": f1_scores(confusion)}
    return {f"{key}/{name}": float(values[k]) for key, values in scores.items() for k, name in enumerate(classes)}


def intersection_over_union(confusion: IntArray) -> FloatArray:
    """IoU of each class, tp / (tp + fp + fn): (class,) float64; not a number if it does not occur."""
    hits = np.diag(confusion)
    return _divide(hits, confusion.sum(axis=0) + confusion.sum(axis=1) - hits)


def f1_scores(confusion: IntArray) -> FloatArray:
    """F1 of each class, 2 tp / (2 tp + fp + fn): (class,) float64; not a number if it does not occur."""
    return _divide(2 * np.diag(confusion), confusion.sum(axis=0) + confusion.sum(axis=1))


def _divide(part: IntArray, whole: IntArray) -> FloatArray:
    ratio: FloatArray = np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
    return ratio


def _mean(values: FloatArray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
