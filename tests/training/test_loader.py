"""The loader gives every tile's own pixels and label, in an order that depends on seed and epoch alone."""

import logging
import shutil
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geokr.index import read_index
from geokr.loader import Batch, TileLoader

ALL_BANDS = ("blue", "green", "red", "nir")


def addresses(batch: Batch) -> list[tuple[int, int, int]]:
    """Scene, row and column of each tile, read from its pixels. For bands in the order of the store."""
    return [tuple(tile.tolist()) for tile in batch.image[:, :3, 0, 0]]


def test_a_tile_comes_with_its_own_pixels_and_label(addressed: Path) -> None:
    loader = TileLoader(addressed, "train", bands=ALL_BANDS, batch=8)
    rows = read_index(addressed).to_pylist()
    scenes = ("alpha", "beta", "gamma")
    labels = {(scenes.index(row["scene"]), row["row"], row["col"]): row for row in rows}
    seen = 0
    for batch in loader:
        assert batch.image.shape == (8, 4, 8, 8)
        assert batch.image.dtype == torch.uint8
        assert (batch.image == batch.image[:, :, :1, :1]).all()
        assert (batch.image[:, 3] == 200).all()
        for address, share, known in zip(addresses(batch), batch.share, batch.known, strict=True):
            row = labels[address]
            assert share.tolist() == pytest.approx([row["water"], row["forest"], row["bare"]], abs=1e-6)
            assert known == row["known"]
            seen += 1
    assert seen == 56  # of 57: the last does not fill a batch


@pytest.mark.parametrize("order", [order for n in (1, 2, 3, 4) for order in permutations(range(4), n)])
def test_bands_come_by_name_in_the_order_asked_for(addressed: Path, order: tuple[int, ...]) -> None:
    first = next(iter(TileLoader(addressed, "train", bands=[ALL_BANDS[i] for i in order], batch=4)))
    whole = next(iter(TileLoader(addressed, "train", bands=ALL_BANDS, batch=4)))
    assert torch.equal(first.image, whole.image[:, list(order)])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 5), epoch=st.integers(0, 3), batch=st.integers(1, 9), world=st.integers(1, 4))
def test_ranks_share_out_the_tiles_of_each_step(addressed: Path, seed: int, epoch: int, batch: int, world: int) -> None:
    alone = TileLoader(addressed, "train", bands=ALL_BANDS, batch=batch * world, seed=seed)
    ranks = [
        TileLoader(addressed, "train", bands=ALL_BANDS, batch=batch, seed=seed, rank=rank, world=world)
        for rank in range(world)
    ]
    assert {len(loader) for loader in ranks} == {len(alone)} == {57 // (batch * world)}
    seen: list[tuple[int, int, int]] = []
    for parts in zip(alone.epoch(epoch), *(loader.epoch(epoch) for loader in ranks), strict=True):
        together = [address for part in parts[1:] for address in addresses(part)]
        assert together == addresses(parts[0])
        seen += together
    assert len(set(seen)) == len(seen) == len(alone) * batch * world


def test_the_order_is_a_new_permutation_each_epoch(addressed: Path) -> None:
    loader = TileLoader(addressed, "train", batch=4, seed=3)
    orders = [loader.order(epoch) for epoch in range(4)]
    assert all((np.sort(order) == np.arange(57)).all() for order in orders)
    assert len({order.tobytes() for order in orders}) == 4
    assert (TileLoader(addressed, "train", batch=16, seed=3, rank=1, world=2).order(2) == orders[2]).all()
    assert (TileLoader(addressed, "train", batch=4, seed=4).order(0) != orders[0]).any()


def test_starting_late_gives_the_rest(addressed: Path) -> None:
    loader = TileLoader(addressed, "train", bands=ALL_BANDS, batch=5, seed=1)
    whole = [addresses(batch) for batch in loader.epoch(2)]
    assert [addresses(batch) for batch in loader.epoch(2, start=7)] == whole[7:]


def test_starting_late_does_not_read_what_came_before(addressed: Path) -> None:
    loader = TileLoader(addressed, "train", bands=ALL_BANDS, batch=1, seed=1)
    scene = next(loader.epoch(2, start=56)).image[0, 0, 0, 0]
    for number, name in enumerate(("alpha", "beta", "gamma")):
        if number != scene:
            shutil.rmtree(addressed / "tiles.zarr" / name / "image/c")
    fresh = TileLoader(addressed, "train", bands=ALL_BANDS, batch=1, seed=1)
    assert len(list(fresh.epoch(2, start=56))) == 1
    with pytest.raises(ValueError, match="cannot be read"):
        list(fresh.epoch(2))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_reads_every_tile_once(addressed: Path, world: int) -> None:
    seen = []
    for rank in range(world):
        loader = TileLoader(addressed, "train", bands=ALL_BANDS, batch=7, shuffle=False, rank=rank, world=world)
        batches = list(loader)
        assert len(batches) == len(loader)
        seen += [address for batch in batches for address in addresses(batch)]
    assert len(seen) == len(set(seen)) == 57


def test_a_missing_shard_raises_and_names_scene_and_tile(addressed: Path) -> None:
    shard = addressed / "tiles.zarr/alpha/image/c/1/0/0/0/0"
    shard.unlink()
    loader = TileLoader(addressed, "train", batch=57, shuffle=False)
    with pytest.raises(ValueError, match=r"tiles\.zarr/alpha: tile \(4, 0\) cannot be read"):
        next(iter(loader))


def test_an_accepted_tile_without_pixels_raises(build, tmp_path: Path) -> None:
    image = np.ones((2, 3, 4, 8, 8), np.uint8)
    image[1, 2] = 0  # the fill value: left out of the shard
    dataset = build(tmp_path / "hole", {"only": image}, {"only": np.full((2, 3, 3), 1 / 3, np.float32)})
    with pytest.raises(ValueError, match=r"only: tile \(1, 2\) cannot be read"):
        list(TileLoader(dataset, "train", batch=2, shuffle=False))


def test_a_tile_outside_its_scene_raises(build, tmp_path: Path) -> None:
    share = np.full((2, 3, 3), 1 / 3, np.float32)
    dataset = build(tmp_path / "small", {"only": np.ones((2, 3, 4, 8, 8), np.uint8)}, {"only": share})
    larger = build(tmp_path / "large", {"only": np.ones((3, 3, 4, 8, 8), np.uint8)}, {"only": share[[0, 1, 1]]})
    shutil.copy(larger / "index.parquet", dataset / "index.parquet")
    with pytest.raises(ValueError, match=r"only: tile \(2, 0\) cannot be read"):
        list(TileLoader(dataset, "train", batch=3, shuffle=False))


def test_scenes_that_lack_a_band_are_left_out_and_counted(
    build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image, share = np.ones((2, 2, 4, 8, 8), np.uint8), np.full((2, 2, 3), 1 / 3, np.float32)
    dataset = build(
        tmp_path / "mixed",
        {"grey": image[:, :, :1], "full": image * 2},
        {"grey": share, "full": share},
        bands={"grey": ["pan"]},
    )
    with caplog.at_level(logging.WARNING):
        loader = TileLoader(dataset, "train", batch=4)
    assert loader.scenes_left_out == ("grey",)
    assert "1 scenes lack a band of red, green, blue" in caplog.text
    assert loader.tiles == 4
    assert (next(iter(loader)).image == 2).all()
    with pytest.raises(
        ValueError, match="no scene of split train has bands coastal; they have blue, green, red, nir; pan"
    ):
        TileLoader(dataset, "train", bands=("coastal",), batch=1)


def test_shares_are_renormalised_over_the_classes_kept(build, tmp_path: Path) -> None:
    share = np.array([[[0.5, 0.25, 0.25], [0.0, 0.0, 1.0], [0.0, 0.4, 0.6]]], np.float32)
    dataset = build(tmp_path / "three", {"only": coordinates_of(1, 3)}, {"only": share})
    loader = TileLoader(dataset, "train", bands=ALL_BANDS, batch=9, classes=("forest", "water"), shuffle=False)
    batch = next(iter(loader))
    assert [address[2] for address in addresses(batch)] == [0, 2]  # all bare: left out, never an all-zero target
    assert batch.share.tolist() == [pytest.approx([1 / 3, 2 / 3]), pytest.approx([1.0, 0.0])]
    with pytest.raises(ValueError, match="has no class tundra, only water, forest, bare"):
        TileLoader(dataset, "train", batch=1, classes=("tundra",))


def coordinates_of(rows: int, cols: int) -> np.ndarray:
    image = np.full((rows, cols, 4, 8, 8), 200, np.uint8)
    image[:, :, 2] = np.arange(cols)[None, :, None, None]
    return image


def test_little_known_tiles_are_left_out(build, tmp_path: Path) -> None:
    dataset = build(
        tmp_path / "known",
        {"only": np.ones((1, 5, 4, 8, 8), np.uint8)},
        {"only": np.full((1, 5, 3), 1 / 3, np.float32)},
        known=lambda scene, row, col: col / 4,
    )
    assert TileLoader(dataset, "train", batch=1, min_known=0.5).chosen.known.tolist() == [0.5, 0.75, 1.0]
    with pytest.raises(ValueError, match="no tile of split test with known >= 0"):
        TileLoader(dataset, "test", batch=1)
    with pytest.raises(ValueError, match="split train has 5 tiles, too few for a batch of 6"):
        TileLoader(dataset, "train", batch=3, world=2)


def test_a_scene_that_the_store_does_not_have(addressed: Path) -> None:
    shutil.rmtree(addressed / "tiles.zarr/beta")
    with pytest.raises(ValueError, match=r"tiles\.zarr/beta: the index lists tiles of this scene"):
        TileLoader(addressed, "train", batch=4)


def test_statistics_are_those_of_the_pixels(build, tmp_path: Path) -> None:
    image = np.random.default_rng(5).integers(0, 256, (3, 5, 4, 8, 8), dtype=np.uint8)
    dataset = build(tmp_path / "noise", {"only": image}, {"only": np.full((3, 5, 3), 1 / 3, np.float32)})
    mean, std = TileLoader(dataset, "train", bands=("red", "nir"), batch=4).statistics()
    values = image[:, :, [2, 3]] / 255
    assert mean == pytest.approx(values.mean(axis=(0, 1, 3, 4)).tolist(), rel=1e-12)
    assert std == pytest.approx(values.std(axis=(0, 1, 3, 4)).tolist(), rel=1e-9)
    one = TileLoader(dataset, "train", batch=4).statistics(tiles=6)
    other = TileLoader(dataset, "train", batch=2, rank=1, world=2).statistics(tiles=6)
    assert one == other
