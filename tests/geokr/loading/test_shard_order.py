"""Tiles come shard by shard, shuffled, in an order that is computed piece by piece."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geokr.loading.shard_order import Drawn, ShardOrder, Shards, group_by_shard, join


def make_shards(sizes: list[int], seed: int) -> Shards:
    """Shards of these sizes, with tiles anywhere in the index."""
    tiles = np.random.default_rng(seed).permutation(sum(sizes))
    edges = np.cumsum([0, *sizes])
    return Shards(np.concatenate([np.sort(part) for part in np.split(tiles, edges[1:-1])]), edges)


def collect(order: ShardOrder, start: int = 0) -> Drawn:
    return join(*order.parts(start))


SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@given(
    seed=st.integers(0, 50), sizes=SIZES, buffer=st.integers(1, 30), world=st.integers(1, 4), piece=st.integers(1, 60)
)
def test_shards_follow_one_another_within_the_buffer(
    seed: int, sizes: list[int], buffer: int, world: int, piece: int
) -> None:
    shards = make_shards(sizes, seed)
    shard_of = np.empty(sum(sizes), np.int64)
    shard_of[shards.tiles] = np.repeat(np.arange(len(sizes)), sizes)
    length = sum(sizes) // world
    if not length:
        return
    orders = [ShardOrder(shards, buffer, length, seed, 3, rank, piece=piece) for rank in range(world)]
    parts = [collect(order) for order in orders]
    assert [len(part.tiles) for part in parts] == [length] * world
    seen = np.concatenate([part.tiles for part in parts])
    assert len(np.unique(seen)) == len(seen)
    owners = sum(len(np.unique(shard_of[part.tiles])) for part in parts)
    assert owners <= len(sizes) + world - 1
    for order, part in zip(orders, parts, strict=True):
        # Between the first and the last tile of a shard lie at most the buffer, what it began with, and its own.
        for number in np.unique(part.shard):
            at = np.flatnonzero(part.shard == number)
            assert at[-1] - at[0] <= buffer + 2 * max(sizes)
            assert np.flatnonzero(part.last & (part.shard == number)).tolist() == [at[-1]]
            assert len(np.unique(shard_of[part.tiles[at]])) == 1
            assert np.sort(part.tiles[at]).tolist() == order.draw(number).tolist()


@given(
    seed=st.integers(0, 20), sizes=SIZES, buffer=st.integers(1, 30), piece=st.integers(1, 30), size=st.integers(1, 9)
)
def test_an_order_begins_anywhere(seed: int, sizes: list[int], buffer: int, piece: int, size: int) -> None:
    shards, length = make_shards(sizes, seed), sum(sizes)
    order = ShardOrder(shards, buffer, length, seed, 0, piece=piece)
    whole = collect(order)
    batches = [*order.batches(size)]
    assert [len(batch.tiles) for batch in batches] == [size] * (length // size)
    assert not batches or join(*batches).tiles.tolist() == whole.tiles[: length // size * size].tolist()
    for start in range(length):
        rest = collect(order, start)
        assert [column.tolist() for column in rest] == [column[start:].tolist() for column in whole]
        assert len([*order.batches(size, start)]) == (length - start) // size
    assert [*order.parts(length)] == []


@given(seed=st.integers(0, 50), sizes=SIZES, world=st.integers(1, 3), piece=st.integers(1, 30))
def test_a_tile_is_drawn_as_often_as_its_chance_says(seed: int, sizes: list[int], world: int, piece: int) -> None:
    shards, tiles = make_shards(sizes, seed), sum(sizes)
    chance = np.random.default_rng(seed).dirichlet([0.3] * tiles)
    length = tiles // world
    if not length:
        return
    orders = [
        ShardOrder(shards, 5, length, seed, 0, rank, np.cumsum(chance[shards.tiles]), piece) for rank in range(world)
    ]
    times = np.bincount(np.concatenate([collect(order).tiles for order in orders]), minlength=tiles)
    assert times.sum() == length * world
    assert (times < chance * tiles + 1 + 1e-9).all()
    if length * world == tiles:
        assert (np.abs(times - chance * tiles) < 1 + 1e-9).all()


def test_a_large_buffer_mixes_all_shards() -> None:
    shards = make_shards([50] * 20, 0)
    assert len(set(collect(ShardOrder(shards, 100_000, 1000, 0, 0)).shard[:50])) > 10
    assert len(set(collect(ShardOrder(shards, 1, 1000, 0, 0)).shard[:50])) == 1


def test_any_shard_may_come_first_and_any_tile_be_left_out() -> None:
    shards = make_shards([4, 5, 2], 0)
    shard_of = np.empty(11, np.int64)
    shard_of[shards.tiles] = np.repeat(np.arange(3), [4, 5, 2])
    orders = [collect(ShardOrder(shards, 1, 10, seed, 0)).tiles for seed in range(300)]
    assert {shard_of[order[0]] for order in orders} == {0, 1, 2}
    left_out = np.bincount([(set(range(11)) - set(order.tolist())).pop() for order in orders], minlength=11)
    assert left_out.min() > 0.3 * left_out.mean()


def test_orders_differ_by_seed_epoch_and_rank() -> None:
    shards = make_shards([20] * 4, 0)
    found = {
        tuple(collect(ShardOrder(shards, 1000, 40, seed, epoch, rank)).shard.tolist())
        for seed in range(2)
        for epoch in range(2)
        for rank in range(2)
    }
    assert len(found) == 8


@given(
    seed=st.integers(0, 50),
    scenes=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=5),
    piece=st.integers(1, 60),
)
def test_tiles_are_grouped_by_shard(seed: int, scenes: list[tuple[int, int]], piece: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [(scene, r, c) for scene, (h, w) in enumerate(scenes) for r in range(h) for c in range(w)]
    kept = [row for row in rows if rng.random() < 0.8] or rows[:1]
    scene, row, col = np.array(kept).T
    shards = group_by_shard(scene.astype(np.int32), lambda at: np.stack([row[at], col[at]], axis=1) // 3, piece)
    groups: dict[tuple[int, int, int], list[int]] = {}
    for position, (number, r, c) in enumerate(kept):
        groups.setdefault((number, r // 3, c // 3), []).append(position)
    assert [part.tolist() for part in np.split(shards.tiles, shards.edges[1:-1])] == [*map(groups.get, sorted(groups))]
    assert shards.edges[-1] == len(kept)


@pytest.mark.parametrize("start", [-1, 10, 11])
def test_nothing_comes_from_outside_an_order(start: int) -> None:
    assert [*ShardOrder(make_shards([4, 6], 0), 3, 10, 0, 0).parts(start)] == []


def test_each_epoch_is_a_draw_of_its_own() -> None:
    shards = make_shards([5] * 4, 0)
    chance = np.random.default_rng(0).dirichlet([1.0] * 20)
    edges = np.cumsum(chance[shards.tiles])
    times = np.zeros(20)
    for epoch in range(300):
        times += np.bincount(collect(ShardOrder(shards, 1, 20, 0, epoch, chances=edges)).tiles, minlength=20)
    assert times / 300 == pytest.approx(chance * 20, abs=0.15)


def test_chances_whose_sum_was_rounded_up_draw_no_more_than_there_are() -> None:
    shards = make_shards([2, 2, 2], 0)
    for epoch in range(50):
        order = ShardOrder(shards, 1, 6, 0, epoch, chances=np.array([0.6, 1.2, 1.2, 1.2, 1.2, 1.2]))
        times = np.bincount(collect(order).tiles, minlength=6)[shards.tiles]
        assert times.tolist() in ([3, 3, 0, 0, 0, 0], [4, 2, 0, 0, 0, 0])
