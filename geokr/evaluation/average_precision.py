"""Average precision of detections, as COCO defines it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from faster_coco_eval import COCO, COCOeval_faster

from geokr.evaluation.box_formats import Boxes
from geokr.evaluation.examples import IntArray

FloatArray = npt.NDArray[np.float64]
OVERLAPS = np.linspace(0.5, 0.95, 10)
"""Intersections over unions from which a detection counts as found. Their mean is AP, the first is AP50."""
RECALLS = np.linspace(0, 1, 101)
"""Recalls at which the precision is averaged."""
OBJECTS, NOTHING = np.float32(np.inf), np.float32(-np.inf)
"""In place of a score in the statistics of an image: a number of objects, and an empty row."""


@dataclass(frozen=True, slots=True)
class Detections:
    """What a detector found in one image."""

    corners: npt.NDArray[np.float32]
    """(m, 4): left, top, right, bottom, px."""
    classes: IntArray
    """(m,) numbers of classes."""
    scores: npt.NDArray[np.float32]
    """(m,) 0..1."""


def measure(detections: Sequence[Detections], objects: Sequence[Boxes], classes: Sequence[str]) -> dict[str, float]:
    """Measure detections, by image, against the objects of these images, with faster-coco-eval.

    Returns `ap`, the mean over OVERLAPS and classes, `ap50`, and `ap CLASS` of each class, 0..1; not a number for a
    class without objects, which no mean contains. All detections count, however many an image has.
    """
    most = max([1, *(len(found.scores) for found in detections)])
    truth, found = COCO(_to_coco(objects, classes)), _list_detections(detections)
    precision = np.full((len(OVERLAPS), len(RECALLS), len(classes)), -1.0)
    if found and any(len(its.classes) for its in objects):
        evaluation = COCOeval_faster(truth, truth.loadRes(found), "bbox", print_function=logging.debug)
        evaluation.params.maxDets = [most]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
        precision = evaluation.eval["precision"][:, :, :, 0, 0]  # (overlap, recall, class)
    present = np.bincount(np.concatenate([its.classes for its in objects]), minlength=len(classes)) > 0
    precision = np.where(present, np.maximum(precision, 0), np.nan)
    return _name_metrics(precision.mean(axis=1)) | {
        f"ap {name}": float(value) for name, value in zip(classes, precision.mean(axis=(0, 1)), strict=True)
    }


def _name_metrics(precision: FloatArray) -> dict[str, float]:
    """AP and AP50 of (overlap, class) average precisions, not a number for classes without objects."""
    known = precision[:, ~np.isnan(precision[0])]
    if not known.size:
        return {"ap": float("nan"), "ap50": float("nan")}
    return {"ap": float(known.mean()), "ap50": float(known[0].mean())}


def _to_coco(objects: Sequence[Boxes], classes: Sequence[str]) -> dict[str, Any]:
    boxes = [
        (image, box, number)
        for image, its in enumerate(objects)
        for box, number in zip(_to_sizes(its.corners), its.classes.tolist(), strict=True)
    ]
    return {
        "images": [{"id": image} for image in range(len(objects))],
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes)],
        "annotations": [
            {"id": k, "image_id": image, "category_id": number, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for k, (image, box, number) in enumerate(boxes, start=1)
        ],
    }


def _list_detections(detections: Sequence[Detections]) -> list[dict[str, Any]]:
    return [
        {"image_id": image, "category_id": number, "bbox": box, "score": score}
        for image, found in enumerate(detections)
        for box, number, score in zip(
            _to_sizes(found.corners), found.classes.tolist(), found.scores.tolist(), strict=True
        )
    ]


def _to_sizes(corners: npt.NDArray[np.float32]) -> list[list[float]]:
    """Left, top, width and height of boxes."""
    exact = corners.astype(np.float64)
    rows: list[list[float]] = np.hstack([exact[:, :2], exact[:, 2:] - exact[:, :2]]).tolist()
    return rows


def count_matches(detections: Sequence[Detections], objects: Sequence[Boxes], classes: int) -> npt.NDArray[np.float32]:
    """Statistics of each image, of which any images together give AP: (image, row, 3) float32.

    A row is a detection: score, class, and the sum of 2^k over the OVERLAPS k at which it is matched with an object. Or
    it is OBJECTS, class, and the number of objects of the class. Images have as many rows as the longest, others of
    them NOTHING.
    """
    tables = []
    for found, its in zip(detections, objects, strict=True):
        rows = [(OBJECTS, number, np.sum(its.classes == number)) for number in range(classes)]
        for number in range(classes):
            order = np.flatnonzero(found.classes == number)
            order = order[np.argsort(-found.scores[order], kind="stable")]
            matched = _match(found.corners[order], its.corners[its.classes == number])
            powers = 2 ** np.arange(len(OVERLAPS)) @ matched
            rows += zip(found.scores[order], [number] * len(order), powers, strict=True)
        tables.append(np.array(rows, np.float32))
    parts = np.full((len(tables), max(map(len, tables), default=0), 3), [NOTHING, 0, 0], np.float32)
    for part, table in zip(parts, tables, strict=True):
        part[: len(table)] = table
    return parts


def _match(found: npt.NDArray[np.float32], objects: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Match detections, best first, with objects of their class: (overlap, detection) whether it is matched.

    At each overlap, a detection takes the free object that it overlaps most; of equal ones, the last.
    """
    matched = np.zeros((len(OVERLAPS), len(found)), np.bool_)
    if not len(objects) or not len(found):
        return matched
    overlaps = intersection_over_union(found, objects)
    free = np.ones((len(OVERLAPS), len(objects)), np.bool_)
    levels = np.arange(len(OVERLAPS))
    for k, row in enumerate(overlaps):
        if row.max() < OVERLAPS[0]:
            continue
        candidates = np.where(free, row, -1)
        best = len(objects) - 1 - candidates[:, ::-1].argmax(axis=1)
        hit = candidates[levels, best] >= OVERLAPS
        matched[:, k] = hit
        free[levels[hit], best[hit]] = False
    return matched


def intersection_over_union(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> FloatArray:
    """Intersection over union of boxes: (a, b) from corners (a, 4) and (b, 4)."""
    one, other = first.astype(np.float64)[:, None], second.astype(np.float64)[None]
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    both: FloatArray = sides.clip(min=0).prod(axis=-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(axis=-1) for box in (one, other)]
    union = areas[0] + areas[1] - both
    ratio: FloatArray = np.divide(both, union, out=np.zeros_like(both), where=union > 0)
    return ratio


class MatchScorer:
    """`ap` and `ap50` of draws from images, by their statistics: those that `measure` gives.

    Everything is sorted once. A draw then only counts, since the copies of an image's detection follow one another: the
    precision is highest at the last of them.
    """

    def __init__(self, parts: npt.NDArray[np.float32]) -> None:
        """parts: (image, row, 3) of count_matches."""
        image = np.repeat(np.arange(len(parts)), parts.shape[1])
        score, classes, value = parts.reshape(-1, 3).T
        self.objects: list[tuple[IntArray, FloatArray]] = []
        """For each class: the images that have it in their statistics, and how many objects each has."""
        self.found: list[tuple[IntArray, IntArray, npt.NDArray[np.bool_]]] = []
        """For each class, best first: the image of each detection, the places of those that are matched at any overlap,
        and (overlap, matched) at which."""
        for number in np.unique(classes[score == OBJECTS]):
            of_class = classes == number
            counted = of_class & (score == OBJECTS)
            self.objects.append((image[counted], value[counted].astype(np.float64)))
            own = np.flatnonzero(of_class & np.isfinite(score))
            own = own[np.argsort(-score[own], kind="stable")]
            levels = value[own].astype(np.int64)
            matched = np.flatnonzero(levels)
            hits = (levels[matched] >> np.arange(len(OVERLAPS))[:, None]) & 1
            self.found.append((image[own], matched, hits.astype(np.bool_)))

    def __call__(self, counts: IntArray) -> dict[str, float]:
        """counts: (image,) how often each is drawn."""
        precision = [
            _average_precision(counts[image], matched, hits, float(counts[having] @ objects))
            for (having, objects), (image, matched, hits) in zip(self.objects, self.found, strict=True)
        ]
        return _name_metrics(np.array(precision, np.float64).reshape(-1, len(OVERLAPS)).T)


def _average_precision(
    times: IntArray, matched: IntArray, hits: npt.NDArray[np.bool_], objects: float
) -> npt.NDArray[np.float64]:
    """Mean precision over RECALLS at each overlap: (overlap,). Not a number without objects.

    times: how often each detection counts, best first. matched, hits: see `MatchScorer.found`.
    """
    if not objects:
        return np.full(len(OVERLAPS), np.nan)
    right = np.cumsum(hits * times[matched], axis=1)
    precision = np.divide(
        right, np.cumsum(times)[matched], out=np.zeros(right.shape), where=(times[matched] > 0) & (right > 0)
    )
    highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    means = []
    for its_recall, its_highest in zip(right / objects, highest, strict=True):
        place = np.searchsorted(its_recall, RECALLS)
        means.append(np.append(its_highest, 0.0)[place].mean())
    return np.array(means)
