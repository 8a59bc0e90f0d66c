"""Metrics of segmentation are those of scikit-learn, and images without a class say nothing about it."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, jaccard_score

from geokr.evaluation.confusion import count_confusion, score_classes, score_confusion
from geokr.evaluation.mask_classes import IGNORE


def draw(classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    target = random.integers(0, classes, (30, 40)).astype(np.uint8)
    predicted = np.where(random.random((30, 40)) < 0.6, target, random.integers(0, classes, (30, 40)))
    return np.where(random.random((30, 40)) < 0.1, IGNORE, target).astype(np.uint8), predicted.astype(np.uint8)


def test_metrics_are_those_of_scikit_learn() -> None:
    target, predicted = draw(4)
    confusion = count_confusion(target, predicted, 4)
    known = target != IGNORE
    truth, guess = target[known], predicted[known]
    assert confusion.sum() == known.sum()
    assert score_confusion(confusion) == pytest.approx(
        {
            "miou": jaccard_score(truth, guess, average="macro"),
            "f1": f1_score(truth, guess, average="macro"),
            "accuracy": accuracy_score(truth, guess),
        }
    )
    each = score_classes(confusion, "abcd")
    assert [each[f"iou/{name}"] for name in "abcd"] == pytest.approx(jaccard_score(truth, guess, average=None))
    assert [each[f"f1/{name}"] for name in "abcd"] == pytest.approx(f1_score(truth, guess, average=None))


def test_rows_are_the_truth_and_columns_the_prediction() -> None:
    confusion = count_confusion(np.array([[0, 0, 1]], np.uint8), np.array([[0, 2, 2]], np.uint8), 3)
    assert confusion.tolist() == [[1, 0, 1], [0, 0, 1], [0, 0, 0]]


def test_images_add_up() -> None:
    pairs = [draw(3, seed) for seed in range(3)]
    together = count_confusion(*(np.concatenate(part) for part in zip(*pairs, strict=True)), 3)
    assert sum(count_confusion(*pair, 3) for pair in pairs).tolist() == together.tolist()


def test_a_class_that_does_not_occur_has_no_metric() -> None:
    confusion = np.array([[8, 2, 0], [0, 10, 0], [0, 0, 0]])
    each = score_classes(confusion, ("clear", "cloud", "snow"))
    assert np.isnan(each["iou/snow"])
    assert np.isnan(each["f1/snow"])
    assert score_confusion(confusion)["miou"] == pytest.approx((8 / 10 + 10 / 12) / 2)
    assert all(np.isnan(value) for value in score_confusion(np.zeros((3, 3), np.int64)).values())


def test_a_class_that_is_only_predicted_counts_as_wrong() -> None:
    assert score_confusion(np.array([[9, 1], [0, 0]]))["miou"] == pytest.approx(0.45)
