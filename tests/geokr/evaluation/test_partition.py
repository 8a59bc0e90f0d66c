"""Splits and label subsets: balanced, nested, whole groups, and functions of the seed alone."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geokr.evaluation.examples import Examples
from geokr.evaluation.partition import draw_labels, draw_splits

seeds = st.integers(0, 2**31)


def examples(stratum: np.ndarray, group: np.ndarray | None = None, **split: Any) -> Examples:
    count = len(stratum)
    return Examples(
        tuple(f"{i}.png" for i in range(count)), ("red",), ("a", "b", "c"), stratum,
        np.arange(count) if group is None else group, {name: np.array(part) for name, part in split.items()},
        255.0, lambda i: np.zeros((1, 2, 2), np.uint8), lambda i: int(stratum[i]),
    )  # fmt: skip


@given(seeds, st.integers(20, 90))
def test_drawn_splits_are_disjoint_whole_and_balanced(seed: int, count: int) -> None:
    data = examples(np.random.default_rng(seed).permutation(np.arange(count) % 3))
    splits = draw_splits(data, val=0.1, test=0.4, seed=seed)
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(count))
    for value in range(3):
        members = (data.stratum == value).sum()
        assert abs((data.stratum[splits["test"]] == value).sum() - 0.4 * members) <= 0.5
        assert abs((data.stratum[splits["val"]] == value).sum() - 0.1 * members) <= 0.5


@given(seeds)
def test_a_group_stays_in_one_split(seed: int) -> None:
    random = np.random.default_rng(seed)
    group = random.integers(0, 25, 100)
    data = examples(group % 3, group)
    splits = draw_splits(data, val=0.2, test=0.3, seed=seed)
    owners = [set(group[part].tolist()) for part in splits.values()]
    assert not owners[0] & owners[1]
    assert not (owners[0] | owners[1]) & owners[2]


def test_given_splits_are_kept_and_validation_is_drawn_from_training_images() -> None:
    stratum = np.arange(60) % 3
    splits = draw_splits(examples(stratum, train=range(30), test=range(40, 60)), 0.2, 0.4, 0)
    assert splits["test"].tolist() == list(range(40, 60))
    assert sorted([*splits["train"].tolist(), *splits["val"].tolist()]) == list(range(30))
    assert len(splits["val"]) == 6
    whole = draw_splits(examples(stratum, train=range(30), val=range(30, 40), test=range(40, 60)), 0.2, 0.4, 0)
    assert [len(part) for part in whole.values()] == [30, 10, 20]


def test_a_set_too_small_for_its_splits_is_refused() -> None:
    with pytest.raises(ValueError, match="no image is left for val: 3 images are too few"):
        draw_splits(examples(np.arange(3)), 0.1, 0.4, 0)


@given(seeds, st.lists(st.floats(0.001, 1), min_size=2, max_size=5))
def test_label_subsets_are_nested_stratified_and_paired_by_seed(seed: int, shares: list[float]) -> None:
    stratum = np.random.default_rng(seed).integers(0, 4, 80)
    positions = np.sort(np.random.default_rng(seed + 1).permutation(80)[:60])
    subsets = [draw_labels(positions, stratum, share, seed) for share in sorted(shares)]
    for smaller, larger in itertools.pairwise(subsets):
        assert set(smaller.tolist()) <= set(larger.tolist())
    for share, subset in zip(sorted(shares), subsets, strict=True):
        for value in np.unique(stratum[positions]):
            members = (stratum[positions] == value).sum()
            assert (stratum[subset] == value).sum() == max(1, round(share * members))
        assert (draw_labels(positions, stratum, share, seed) == subset).all()
    assert (draw_labels(positions, stratum, 1.0, seed) == positions).all()


def test_seeds_draw_different_labels() -> None:
    stratum = np.zeros(100, np.int64)
    one, two = (draw_labels(np.arange(100), stratum, 0.1, seed) for seed in (0, 1))
    assert set(one.tolist()) != set(two.tolist())
