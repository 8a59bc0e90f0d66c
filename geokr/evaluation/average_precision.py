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


def score_matches(parts: npt.NDArray[np.float32]) -> dict[str, float]:
    """`ap` and `ap50` of images by their statistics, rows of count_matches. An image may occur several times.

    They are those of `measure`.
    """
    rows = parts.reshape(-1, 3)
    objects, rows = rows[rows[:, 0] == OBJECTS], rows[np.isfinite(rows[:, 0])]
    precision = []
    for number in np.unique(objects[:, 1]):
        total = objects[objects[:, 1] == number, 2].sum()
        own = rows[rows[:, 1] == number]
        matched = own[np.argsort(-own[:, 0], kind="stable"), 2].astype(np.int64)
        places = np.flatnonzero(matched)  # precision is highest at these
        hits = (matched[places] >> np.arange(len(OVERLAPS))[:, None]) & 1  # (overlap, place)
        precision.append([_average_precision(places[hit == 1], total) for hit in hits])
    return _name_metrics(np.array(precision, np.float64).reshape(-1, len(OVERLAPS)).T)


def _average_precision(places: IntArray, objects: float) -> float:
    """Mean precision over RECALLS, from the places of matched detections among all, best first, counted from 0.

    Not a number without objects.
    """
    if not objects:
        return float("nan")
    right = np.arange(1, len(places) + 1)
    precision = np.maximum.accumulate((right / (places + 1))[::-1])[::-1]
    place = np.searchsorted(right / objects, RECALLS)
    return float(np.append(precision, 0.0)[place].mean())
