"""Average precision is COCO's, and that of any images follows from the statistics of each."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geokr.evaluation.average_precision import Detections, MatchScorer, count_matches, measure
from geokr.evaluation.box_formats import Boxes

Row = tuple[float, ...]
OBJECT = (0, 0, 10, 10)


def boxes(*rows: Row) -> Boxes:
    """Objects from rows of left, top, right, bottom and class, which is 0 if it is left out."""
    table = np.array([(*row, 0)[:5] for row in rows], np.float32).reshape(-1, 5)
    return Boxes(table[:, :4], table[:, 4].astype(np.int64))


def detections(*rows: Row) -> Detections:
    """Detections from rows of score, left, top, right, bottom and class, which is 0 if it is left out."""
    its = boxes(*(row[1:] for row in rows))
    return Detections(its.corners, its.classes, np.array([row[0] for row in rows], np.float32))


@pytest.mark.parametrize(
    ("found", "objects", "ap", "ap50"),
    [
        ([(0.9, *OBJECT)], [OBJECT], 1, 1),
        ([(0.9, 0, 0, 10, 6.2)], [OBJECT], 3 / 10, 1),  # at 0.5, 0.55 and 0.6
        ([(0.9, 20, 20, 30, 30), (0.8, *OBJECT)], [OBJECT], 1 / 2, 1 / 2),  # a false one comes first
        ([(0.8, 20, 20, 30, 30), (0.9, *OBJECT)], [OBJECT], 1, 1),  # it comes last
        ([(0.9, *OBJECT), (0.8, *OBJECT)], [OBJECT, (20, 20, 30, 30)], 51 / 101, 51 / 101),  # an object counts once
        ([(0.9, 4, 0, 14, 10), (0.8, *OBJECT)], [OBJECT], 1 / 2, 1 / 2),  # 6 / 14 is too little
        ([], [OBJECT], 0, 0),
        ([(0.9, *OBJECT)], [], math.nan, math.nan),
    ],
)
def test_small_cases_are_as_computed_by_hand(found: list[Row], objects: list[Row], ap: float, ap50: float) -> None:
    measured = measure([detections(*found)], [boxes(*objects)], ["car"])
    assert measured == pytest.approx({"ap": ap, "ap50": ap50, "ap car": ap}, nan_ok=True)
    parts = count_matches([detections(*found)], [boxes(*objects)], 1)
    assert MatchScorer(parts)(np.ones(1, np.int64)) == pytest.approx({"ap": ap, "ap50": ap50}, nan_ok=True)


def test_a_class_without_objects_is_in_no_mean() -> None:
    found = [detections((0.9, *OBJECT, 0), (0.8, *OBJECT, 1), (0.7, 0, 0, 10, 6.2, 2))]
    measured = measure(found, [boxes((*OBJECT, 0), (*OBJECT, 2))], ["car", "bus", "boat"])
    assert math.isnan(measured["ap bus"])
    assert (measured["ap"], measured["ap car"], measured["ap boat"]) == pytest.approx((0.65, 1, 0.3))


def test_every_detection_of_a_crowded_image_counts() -> None:
    many = [(20 * (k % 30), 20 * (k // 30), 20 * (k % 30) + 10, 20 * (k // 30) + 10) for k in range(400)]
    assert measure([detections(*((0.5, *row) for row in many))], [boxes(*many)], ["tree"])["ap"] == 1


corner = st.integers(0, 12)
box = st.tuples(corner, corner, st.integers(1, 8), st.integers(1, 8), st.integers(0, 1)).map(
    lambda row: (row[0], row[1], row[0] + row[2], row[1] + row[3], row[4])
)
scored = st.tuples(st.sampled_from([0.125, 0.25, 0.5, 0.75]), box).map(lambda row: (row[0], *row[1]))
image = st.tuples(st.lists(scored, max_size=8), st.lists(box, max_size=6))


@given(st.lists(image, min_size=1, max_size=4), st.lists(st.integers(0, 3), min_size=1, max_size=6), st.booleans())
@settings(max_examples=50)
def test_the_statistics_of_any_images_give_what_coco_measures_of_them(
    images: list[tuple[list[Row], list[Row]]], numbers: list[int], several: bool
) -> None:
    """Of an image that is drawn several times, COCO puts detections of equal scores in the order of the copies."""
    drawn = sorted(number % len(images) for number in numbers)
    if several:
        offset = itertools.count()
        images = [([(score + next(offset) / 1024, *box) for score, *box in rows], its) for rows, its in images]
    else:
        drawn = sorted({*drawn})
    found = [detections(*rows) for rows, _ in images]
    objects = [boxes(*rows) for _, rows in images]
    parts = count_matches(found, objects, 2)
    measured = measure([found[i] for i in drawn], [objects[i] for i in drawn], ["a", "b"])
    assert MatchScorer(parts)(np.bincount(drawn, minlength=len(images))) == pytest.approx(
        {"ap": measured["ap"], "ap50": measured["ap50"]}, nan_ok=True, abs=1e-9
    )
