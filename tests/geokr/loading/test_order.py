"""Orders are functions of seed and epoch; balance and companions keep the laws that their names promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geokr.loading import order
from geokr.loading.order import (
    DRAW,
    class_probabilities,
    draw_lazily,
    draw_permutation,
    draw_tiles,
    find_companions,
    make_generator,
)


def expected_mass(share: np.ndarray, balance: float) -> np.ndarray:
    mass = class_probabilities(share.astype(np.float32), balance) @ share
    return mass / mass.sum()


def test_without_balance_every_tile_has_the_same_chance() -> None:
    share = np.random.default_rng(0).dirichlet([0.3] * 4, 50)
    assert class_probabilities(share.astype(np.float32), 0.0) == pytest.approx(np.full(50, 1 / 50), rel=1e-5)


def test_balanced_classes_have_the_same_expected_mass() -> None:
    share = np.eye(4)[np.random.default_rng(1).choice(4, 400, p=[0.8, 0.1, 0.07, 0.03])]
    assert expected_mass(share, 1.0) == pytest.approx(np.full(4, 0.25), abs=1e-6)
    mass = share.mean(axis=0) ** 0.5
    assert expected_mass(share, 0.5) == pytest.approx(mass / mass.sum(), abs=1e-6)


def test_no_other_way_to_draw_tiles_for_classes_balances_mixed_tiles_better() -> None:
    rng = np.random.default_rng(1)
    share = rng.dirichlet([4.0, 1.0, 0.2, 0.05], 2000)
    of_class = share / share.sum(axis=0)  # chance of a tile, drawn for a class

    def distance(mass: np.ndarray) -> float:
        return float(-np.log(4 * mass).mean())  # KL of equal shares from it

    ours = distance(expected_mass(share, 1.0))
    assert ours < 0.5 * distance(share.mean(axis=0))
    assert all(ours < distance((of_class @ c) @ share) + 1e-6 for c in rng.dirichlet([0.3] * 4, 1000))


def test_a_class_that_does_not_occur_is_not_waited_for() -> None:
    share = np.array([[1.0, 0, 0], [1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]])
    assert expected_mass(share, 1.0) == pytest.approx([0.5, 0.5, 0])


def test_what_cannot_be_balanced_comes_as_near_as_can_be() -> None:
    share = np.array([[0.9, 0.1], [0.8, 0.2], [0.99, 0.01]])  # the first class is at least 4/5 of any tile
    first, second = expected_mass(share, 1.0)
    natural = share.mean(axis=0)
    assert 0.8 <= first < natural[0]
    assert second > natural[1]


@given(seed=st.integers(0, 50), tiles=st.integers(1, 60))
def test_a_draw_holds_each_tile_as_often_as_its_chance_says(seed: int, tiles: int) -> None:
    rng = np.random.default_rng(seed)
    chance = rng.dirichlet([0.3] * tiles)
    drawn = draw_tiles(chance, rng)
    times = np.bincount(drawn, minlength=tiles)
    assert len(drawn) == tiles
    assert (np.abs(times - chance * tiles) < 1 + 1e-9).all()


@pytest.mark.parametrize("times", [[0.2, 0.2, 2.6], [0.3, 0.3, 0.3, 0.3, 0.8, 4.0]])
def test_over_many_draws_each_tile_comes_as_often_as_its_chance(times: list[float]) -> None:
    """And any two of them together now and then, neighbours too."""
    n = len(times)
    found = np.stack(
        [np.bincount(draw_tiles(np.array(times) / n, make_generator(0, k, DRAW)), minlength=n) for k in range(3000)]
    )
    assert found.mean(axis=0) == pytest.approx(times, abs=0.04)
    assert n == 3 or ((found.T @ found) > 0).all()


@given(length=st.integers(1, 3000), seed=st.integers(0, 2**32))
def test_a_computed_permutation_holds_each_position_once(length: int, seed: int) -> None:
    permutation = draw_permutation(length, np.random.default_rng(seed))
    whole = permutation(np.arange(length))
    assert np.array_equal(np.sort(whole), np.arange(length))
    assert np.array_equal(permutation(np.arange(length // 3, length)), whole[length // 3 :])


@pytest.mark.parametrize("length", [64, 100])
def test_computed_permutations_lead_anywhere_with_equal_chance(length: int) -> None:
    """Where a position goes, and the distance to where its neighbour goes: chi-squared over 6,000 keys."""
    rng = np.random.default_rng(3)
    found = np.stack([draw_permutation(length, rng)(np.arange(2)) for _ in range(6000)])
    for values, cells in ((found[:, 0], length), ((found[:, 1] - found[:, 0]) % length - 1, length - 1)):
        counts = np.bincount(values, minlength=cells)
        assert len(counts) == cells
        chi_squared = ((counts - 6000 / cells) ** 2).sum() / (6000 / cells)
        assert abs(chi_squared - (cells - 1)) < 4 * np.sqrt(2 * (cells - 1))


def test_a_permutation_of_more_tiles_than_fit_into_32_bits_stays_within_them() -> None:
    length = 3 * 10**10
    permutation = draw_permutation(length, np.random.default_rng(0))
    found = permutation(np.arange(length - 100_000, length))
    assert len(np.unique(found)) == 100_000
    assert found.min() >= 0
    assert found.max() < length
    assert found.mean() == pytest.approx(length / 2, rel=0.01)


@given(seed=st.integers(0, 50), tiles=st.integers(1, 60))
def test_a_lazy_draw_holds_each_tile_as_often_as_its_chance_says(seed: int, tiles: int) -> None:
    rng = np.random.default_rng(seed)
    chance = rng.dirichlet([0.3] * tiles)
    times = np.bincount(draw_lazily(np.cumsum(chance), rng)(np.arange(tiles)), minlength=tiles)
    assert times.sum() == tiles == len(times)
    assert (np.abs(times - chance * tiles) < 1 + 1e-9).all()


def test_labels_in_pieces_give_the_same_chances(monkeypatch: pytest.MonkeyPatch) -> None:
    share = np.random.default_rng(2).dirichlet([0.3] * 5, 1000).astype(np.float32)
    share[:, 3] = 0
    whole = class_probabilities(share, 0.7)
    monkeypatch.setattr(order, "PIECE", 64)
    assert class_probabilities(share, 0.7) == pytest.approx(whole, rel=1e-9)


def test_streams_of_random_numbers_are_unlike() -> None:
    drawn = [
        make_generator(seed, epoch, stream).random() for seed in range(3) for epoch in range(3) for stream in range(3)
    ]
    assert len(set(drawn)) == 27


@given(
    seed=st.integers(0, 30),
    rows=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=25),
)
def test_a_companion_is_of_the_same_place_and_another_date(seed: int, rows: list[tuple[int, int]]) -> None:
    place, date = np.array(rows).T
    found = find_companions(place, date)
    partner = found.draw_partners(np.arange(len(rows)), seed)
    for i in range(len(rows)):
        others = [j for j in range(len(rows)) if place[j] == place[i] and date[j] != date[i]]
        assert found.others[i] == len(others)
        assert partner[i] in (others or [i])


def test_every_companion_is_drawn_some_time() -> None:
    place, date = np.zeros(5, np.int64), np.array([3, 1, 1, 2, 3])
    found = find_companions(place, date)
    drawn = np.stack([found.draw_partners(np.arange(5), key) for key in range(600)])
    assert (found.draw_partners(np.array([3, 1]), 7) == drawn[7, [3, 1]]).all()  # whatever is asked for with it
    assert [set(column.tolist()) for column in drawn.T] == [{1, 2, 3}, {0, 3, 4}, {0, 3, 4}, {0, 1, 2, 4}, {1, 2, 3}]
    counts = np.stack([np.bincount(column, minlength=5) for column in drawn.T])
    assert counts[counts > 0] == pytest.approx(np.repeat([200, 150, 200], [9, 4, 3]), abs=60)  # each as often
    # What one tile draws says nothing of what the next one does.
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 4])[0, 1]) < 0.15
