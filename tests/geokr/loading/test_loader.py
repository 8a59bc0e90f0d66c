"""The loader gives every tile's own pixels and label, in an order that depends on seed and epoch alone."""

import itertools
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorstore as ts
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geokr.dataset import layout, store
from geokr.dataset.index import list_parts, part_name, read_index
from geokr.loading import loader as loader_module
from geokr.loading import pixels, selection, shared
from geokr.loading.loader import Batch, TileLoader
from geokr.loading.map_style import TileDataset
from geokr.loading.selection import Selection, share_tiles
from tests.geokr.conftest import some_shares

ALL_BANDS = ("blue", "green", "red", "nir")


def addresses(batch: Batch) -> list[tuple[int, int, int]]:
    """Scene, row and column of each tile, read from its pixels. For bands in the order of the store."""
    return [tuple(tile.tolist()) for tile in batch.image[:, :3, 0, 0]]


def test_a_tile_comes_with_its_own_pixels_and_label(addressed: Path) -> None:
    loader = TileLoader(addressed, Selection("train"), bands=ALL_BANDS, batch=8)
    rows = read_index(addressed).to_pylist()
    scenes = ("alpha", "beta", "gamma")
    labels = {(scenes.index(row["scene"]), row["row"], row["col"]): row for row in rows}
    seen = 0
    for batch in loader:
        assert batch.image.shape == (8, 4, 8, 8)
        assert batch.image.dtype == torch.uint8
        assert (batch.image == batch.image[:, :, :1, :1]).all()
        assert (batch.image[:, 3] == 200).all()
        for address, share, known in zip(addresses(batch), batch.fraction, batch.known, strict=True):
            row = labels[address]
            assert share.tolist() == pytest.approx([row["water"], row["forest"], row["bare"]], abs=1e-6)
            assert known == row["known"]
            seen += 1
    assert seen == 56  # of 57: the last does not fill a batch


@pytest.mark.parametrize("order", [order for n in (1, 2, 3, 4) for order in permutations(range(4), n)])
def test_bands_come_by_name_in_the_order_asked_for(addressed: Path, order: tuple[int, ...]) -> None:
    first = next(iter(TileLoader(addressed, Selection("train"), bands=[ALL_BANDS[i] for i in order], batch=4)))
    whole = next(iter(TileLoader(addressed, Selection("train"), bands=ALL_BANDS, batch=4)))
    assert torch.equal(first.image, whole.image[:, list(order)])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 5), epoch=st.integers(0, 3), batch=st.integers(1, 9), world=st.integers(1, 4))
def test_ranks_share_out_the_tiles_of_each_step(addressed: Path, seed: int, epoch: int, batch: int, world: int) -> None:
    alone = TileLoader(addressed, Selection("train"), bands=ALL_BANDS, batch=batch * world, seed=seed)
    ranks = [
        TileLoader(addressed, Selection("train"), bands=ALL_BANDS, batch=batch, seed=seed, rank=rank, world=world)
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
    loader = TileLoader(addressed, Selection("train"), batch=4, seed=3)
    orders = [loader.order(epoch) for epoch in range(4)]
    assert all((np.sort(order) == np.arange(57)).all() for order in orders)
    assert len({order.tobytes() for order in orders}) == 4
    assert (TileLoader(addressed, Selection("train"), batch=16, seed=3, rank=1, world=2).order(2) == orders[2]).all()
    assert (TileLoader(addressed, Selection("train"), batch=4, seed=4).order(0) != orders[0]).any()


def test_starting_late_gives_the_rest(addressed: Path) -> None:
    loader = TileLoader(addressed, Selection("train"), bands=ALL_BANDS, batch=5, seed=1)
    whole = [addresses(batch) for batch in loader.epoch(2)]
    assert [addresses(batch) for batch in loader.epoch(2, start=7)] == whole[7:]


def test_starting_late_does_not_read_what_came_before(addressed: Path) -> None:
    loader = TileLoader(addressed, Selection("train"), bands=ALL_BANDS, batch=1, seed=1)
    scene = next(loader.epoch(2, start=56)).image[0, 0, 0, 0]
    for number, name in enumerate(("alpha", "beta", "gamma")):
        if number != scene:
            shutil.rmtree(addressed / "tiles.zarr" / name / "image/c")
    fresh = TileLoader(addressed, Selection("train"), bands=ALL_BANDS, batch=1, seed=1)
    assert len(list(fresh.epoch(2, start=56))) == 1
    with pytest.raises(ValueError, match="cannot be read"):
        list(fresh.epoch(2))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_reads_every_tile_once(addressed: Path, world: int) -> None:
    seen = []
    for rank in range(world):
        loader = TileLoader(
            addressed, Selection("train"), bands=ALL_BANDS, batch=7, shuffle=False, rank=rank, world=world
        )
        batches = list(loader)
        assert len(batches) == len(loader)
        seen += [address for batch in batches for address in addresses(batch)]
    assert len(seen) == len(set(seen)) == 57


def test_a_missing_shard_raises_and_names_scene_and_tile(addressed: Path) -> None:
    shard = addressed / "tiles.zarr/alpha/image/c/1/0/0/0/0"
    shard.unlink()
    loader = TileLoader(addressed, Selection("train"), batch=57, shuffle=False)
    with pytest.raises(ValueError, match=r"tiles\.zarr/alpha/image/c/1/0/0/0/0: tile \(4, 0\) cannot be read"):
        next(iter(loader))


def test_an_accepted_tile_without_pixels_raises(build, tmp_path: Path) -> None:
    image = np.ones((2, 3, 4, 8, 8), np.uint8)
    dataset = build(tmp_path / "hole", {"only": image}, {"only": np.full((2, 3, 3), 1 / 3, np.float32)})
    status = np.ones((2, 3), np.uint8)
    status[1, 2] = 2  # left out of the shard, while the index goes on listing it
    store.write_block(f"{dataset}/{layout.TILES}", "only", slice(0, 2), slice(0, 3), {"image": image}, status)
    with pytest.raises(ValueError, match=r"only/image/c/0/0/0/0/0: tile \(1, 2\) cannot be read"):
        list(TileLoader(dataset, Selection("train"), batch=2, shuffle=False))


def test_a_tile_outside_its_scene_raises(build, tmp_path: Path) -> None:
    share = np.full((2, 3, 3), 1 / 3, np.float32)
    dataset = build(tmp_path / "small", {"only": np.ones((2, 3, 4, 8, 8), np.uint8)}, {"only": share})
    larger = build(tmp_path / "large", {"only": np.ones((3, 3, 4, 8, 8), np.uint8)}, {"only": share[[0, 1, 1]]})
    shutil.copytree(larger / "index.parquet", dataset / "index.parquet", dirs_exist_ok=True)
    with pytest.raises(ValueError, match=r"zarr/only: the index lists tile \(2, 0\), outside its \[2, 3\] rows"):
        TileLoader(dataset, Selection("train"), batch=3, shuffle=False)


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
        loader = TileLoader(dataset, Selection("train"), batch=4)
    assert loader.scenes_left_out == ("grey",)
    assert "1 scenes of split train lack a band of red, green, blue" in caplog.text
    assert loader.tiles == 4
    assert (next(iter(loader)).image == 2).all()
    with pytest.raises(
        ValueError, match="no scene with these tiles has bands coastal; they have blue, green, red, nir; pan"
    ):
        TileLoader(dataset, Selection("train"), bands=("coastal",), batch=1)


@pytest.mark.parametrize(
    ("bands", "chosen"),
    [
        ([["red", "green", "blue", "nir"], ["pan"]], ("red", "green", "blue")),  # those that have them
        ([["nir", "swir16", "red"], ["nir", "swir16", "red"]], ("nir", "swir16", "red")),
        ([["nir", "swir16", "red"], ["red", "yellow", "nir"]], ("nir", "red")),  # those that all have
        ([["band_1"], ["band_1"]], ("band_1",)),
    ],
)
def test_a_set_without_red_green_and_blue_is_read_by_its_own_bands(
    build, tmp_path: Path, bands: list[list[str]], chosen: tuple[str, ...]
) -> None:
    names = {f"scene{i}": its for i, its in enumerate(bands)}
    pixels = {  # each band is filled with its place among all names
        scene: np.broadcast_to(
            np.array([sum(map(ord, name)) % 251 for name in its], np.uint8)[:, None, None], (2, 2, len(its), 8, 8)
        ).copy()
        for scene, its in names.items()
    }
    share = {scene: np.full((2, 2, 3), 1 / 3, np.float32) for scene in names}
    dataset = build(tmp_path / "own", pixels, share, bands=names)
    loader = TileLoader(dataset, Selection("train"), batch=4)
    assert loader.bands == TileDataset(dataset, Selection("train")).bands == chosen
    assert {*next(iter(loader)).image[0, :, 0, 0].tolist()} == {sum(map(ord, name)) % 251 for name in chosen}


def test_scenes_without_a_common_band_are_told_apart(build, tmp_path: Path) -> None:
    image, share = np.ones((2, 2, 1, 8, 8), np.uint8), np.full((2, 2, 3), 1 / 3, np.float32)
    scenes = {"a": image, "b": image}
    dataset = build(tmp_path / "two", scenes, dict.fromkeys(scenes, share), bands={"a": ["pan"], "b": ["nir"]})
    with pytest.raises(
        ValueError, match="no scene with these tiles has bands red, green, blue; they have nir; pan; ch"
    ):
        TileLoader(dataset, Selection("train"), batch=1)


def test_shares_are_renormalised_over_the_classes_kept(build, tmp_path: Path) -> None:
    share = np.array([[[0.5, 0.25, 0.25], [0.0, 0.0, 1.0], [0.0, 0.4, 0.6]]], np.float32)
    dataset = build(tmp_path / "three", {"only": coordinates_of(1, 3)}, {"only": share})
    loader = TileLoader(
        dataset, Selection("train", classes=("forest", "water")), bands=ALL_BANDS, batch=9, shuffle=False
    )
    batch = next(iter(loader))
    assert [address[2] for address in addresses(batch)] == [0, 2]  # all bare: left out, never an all-zero target
    assert batch.fraction.tolist() == [pytest.approx([1 / 3, 2 / 3]), pytest.approx([1.0, 0.0])]
    with pytest.raises(ValueError, match="has no class tundra, only water, forest, bare"):
        TileLoader(dataset, Selection("train", classes=("tundra",)), batch=1)


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
    assert TileLoader(dataset, Selection("train", min_known=0.5), batch=1).selected.known.tolist() == [0.5, 0.75, 1.0]
    with pytest.raises(ValueError, match="no tile of split test with known >= 0"):
        TileLoader(dataset, Selection("test"), batch=1)
    with pytest.raises(ValueError, match="split train has 5 tiles, too few for a batch of 6"):
        TileLoader(dataset, Selection("train"), batch=3, world=2)


def test_a_scene_that_the_store_does_not_have(addressed: Path) -> None:
    shutil.rmtree(addressed / "tiles.zarr/beta")
    with pytest.raises(ValueError, match=r"tiles\.zarr/beta: the index lists tiles of this scene"):
        TileLoader(addressed, Selection("train"), batch=4)


def test_statistics_are_those_of_the_pixels(build, tmp_path: Path) -> None:
    image = np.random.default_rng(5).integers(0, 256, (3, 5, 4, 8, 8), dtype=np.uint8)
    dataset = build(tmp_path / "noise", {"only": image}, {"only": np.full((3, 5, 3), 1 / 3, np.float32)})
    levels = TileLoader(dataset, Selection("train"), bands=("red", "nir"), batch=4).measure_levels()
    assert (levels.dtype, levels.low, levels.high) == ("uint8", [0, 0], [255, 255])
    values = image[:, :, [2, 3]] / 255
    assert levels.mean == pytest.approx(values.mean(axis=(0, 1, 3, 4)).tolist(), rel=1e-12)
    assert levels.std == pytest.approx(values.std(axis=(0, 1, 3, 4)).tolist(), rel=1e-9)
    one = TileLoader(dataset, Selection("train"), batch=4).measure_levels(tiles=6)
    other = TileLoader(dataset, Selection("train"), batch=2, rank=1, world=2).measure_levels(tiles=6)
    assert one == other
    assert (
        TileLoader(dataset, Selection("train"), batch=4, seed=1).measure_levels(tiles=6) != one
    )  # any tiles, not the first


def test_levels_of_16_bits_are_percentiles(build, tmp_path: Path) -> None:
    """One pixel in 5,000 is a glint: it is clipped instead of making everything else dark."""
    image = np.random.default_rng(5).integers(1000, 3001, (4, 5, 4, 16, 16)).astype(np.uint16)
    image[:, :, 1] += 5000
    image[0, 0, :, 0, 0] = 65535
    dataset = build(tmp_path / "deep", {"only": image}, {"only": some_shares(4, 5)})
    loader = TileLoader(dataset, Selection("train"), bands=("blue", "green"), batch=4, shuffle=False)
    read = np.concatenate([batch.image.numpy() for batch in loader])
    assert read.dtype == np.uint16
    assert np.array_equal(read, image[:, :, :2].reshape(-1, 2, 16, 16))
    levels = loader.measure_levels()
    assert levels.dtype == "uint16"
    assert levels.low == pytest.approx([1000, 6000], abs=5)
    assert levels.high == pytest.approx([3000, 8000], abs=5)
    assert levels.mean == pytest.approx([0.5, 0.5], abs=0.01)
    assert levels.std == pytest.approx([12**-0.5, 12**-0.5], abs=0.01)
    assert TileDataset(dataset, Selection("train"), bands=("blue",))[0]["image"].dtype == torch.uint16


def test_scenes_of_two_kinds_are_refused(build, tmp_path: Path) -> None:
    image = np.ones((1, 2, 4, 8, 8), np.uint16)
    dataset = build(tmp_path / "two", {"a": image, "b": image.astype(np.uint8)}, dict.fromkeys("ab", some_shares(1, 2)))
    with pytest.raises(ValueError, match=r"zarr/b: tiles are \(8, 8\) px of uint8, expected \(8, 8\) px of uint16"):
        TileLoader(dataset, Selection("train"), batch=1)
    assert TileLoader(dataset, Selection("train", where=("scene=b",)), batch=1).tiles == 2


# --- in the background, and from many scenes


def test_batches_are_prepared_in_a_thread_of_their_own(addressed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()
    request = pixels.TileReader.request

    def note_thread(*arguments: Any) -> pixels.PendingRead:
        threads.add(threading.current_thread())
        return request(*arguments)

    monkeypatch.setattr(pixels.TileReader, "request", note_thread)
    for buffer in (0, 20):
        assert len(list(TileLoader(addressed, Selection("train"), batch=4, shuffle_buffer=buffer))) == 14
    assert len(threads) == 2
    assert threading.current_thread() not in threads


def test_an_epoch_that_is_left_ends_its_thread(addressed: Path) -> None:
    before = threading.enumerate()
    for buffer in (0, 20):
        loader = TileLoader(addressed, Selection("train"), batch=4, shuffle_buffer=buffer, prefetch=1)
        for taken in (1, 5, 14):
            epoch = loader.epoch(0)
            for _ in range(taken):
                next(epoch)
            epoch.close()
            assert threading.enumerate() == before
        list(loader)
        assert threading.enumerate() == before


def test_an_error_comes_after_the_batches_before_it(addressed: Path) -> None:
    (addressed / "tiles.zarr/gamma/image/c/1/0/0/0/0").unlink()  # its last tiles
    epoch = TileLoader(addressed, Selection("train"), batch=5, shuffle=False).epoch(0)
    taken = []
    with pytest.raises(ValueError, match=r"gamma/image/c/1/0/0/0/0: tile \(4, 0\) cannot be read"):
        taken.extend(epoch)
    assert len(taken) == 10  # of 51 tiles, the last of which fills no batch alone
    assert all(thread.name != "tiles" for thread in threading.enumerate())


def test_a_process_may_end_within_an_epoch(addressed: Path) -> None:
    code = f"""
from geokr.loading.loader import TileLoader
from geokr.loading.selection import Selection
epoch = TileLoader({str(addressed)!r}, Selection("train"), batch=1, prefetch=2).epoch(0)
print(len(next(epoch).image))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_a_batch_takes_as_many_calls_from_many_scenes_as_from_one(build, tmp_path: Path) -> None:
    calls = {}
    for scenes in (1, 12):
        side = 12 // scenes
        images = {f"s{number}": coordinates_of(side, 4) for number in range(scenes)}
        shares = {name: some_shares(side, 4) for name in images}
        dataset = build(tmp_path / f"of{scenes}", images, shares)
        loader = TileLoader(dataset, Selection("train"), bands=ALL_BANDS, batch=48)
        events: list[str] = []
        for module in (sys, threading):
            module.setprofile(lambda frame, event, argument, to=events: to.append(event))
        try:
            (batch,) = loader
        finally:
            for module in (sys, threading):
                module.setprofile(None)
        assert len(batch.image) == 48
        calls[scenes] = sum(event in ("call", "c_call") for event in events)
    assert calls[12] < 1.1 * calls[1]


def test_pixels_do_not_evict_the_indexes_of_shards(build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 32 KiB of memory for indexes, and 1 MiB of pixels, each tile is one read."""
    monkeypatch.setattr(pixels, "INDEX_CACHE", 2**15)
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 4, 32, 32), dtype=np.uint8)
    dataset = build(tmp_path / "large", {"only": image}, {"only": some_shares(16, 16)})
    loader = TileLoader(dataset, Selection("train"), bands=ALL_BANDS, batch=1)
    assert len(list(loader.epoch(0))) == 256
    before = reads()["batch_read"]
    assert len(list(loader.epoch(1))) == 256
    assert reads()["batch_read"] - before == 256


def test_ranks_share_the_cores_of_their_machine(
    addressed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # arrays that wait for the other ranks
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    contexts = []
    monkeypatch.setattr(ts, "Context", lambda spec, make=ts.Context: contexts.append(spec) or make(spec))
    for ranks, threads in ((None, 64), ("8", 8), ("100", 1)):
        if ranks is not None:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        TileLoader(addressed, Selection("train"), batch=4)
        for pool in ("data_copy_concurrency", "file_io_concurrency"):
            assert contexts[-1][pool] == {"limit": threads}
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "none")
    with pytest.raises(ValueError, match=r"LOCAL_WORLD_SIZE must be the number .* got 'none'"):
        TileLoader(addressed, Selection("train"), batch=4)


# --- many tiles


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_many_tiles_are_ordered_without_arrays(
    addressed: Path, monkeypatch: pytest.MonkeyPatch, balance: float
) -> None:
    """Two ranks read what one does; an epoch has each tile once, or as often as balance says; it can be resumed."""
    monkeypatch.setattr(loader_module, "LARGE", 10)

    def steps(rank: int, world: int, **start: int) -> list[list[tuple[int, int, int]]]:
        options: dict[str, Any] = {"bands": ALL_BANDS, "batch": 8 // world, "seed": 4, "balance": balance}
        loader = TileLoader(addressed, Selection("train"), rank=rank, world=world, **options)
        assert loader.tiles == 57
        return [addresses(batch) for batch in loader.epoch(start.pop("epoch", 0), **start)]

    whole = steps(0, 1)
    assert len(whole) == 7
    assert [sorted(a + b) for a, b in zip(steps(0, 2), steps(1, 2), strict=True)] == [sorted(step) for step in whole]
    assert steps(0, 1, start=3) == whole[3:]
    assert steps(0, 1, epoch=1) != whole
    seen = [address for step in whole for address in step]
    assert (len(set(seen)) == len(seen)) is (balance == 0)


def test_many_tiles_in_order_and_as_a_sample(addressed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = TileLoader(addressed, Selection("train"), bands=ALL_BANDS, batch=8, shuffle=False)
    wanted = [addresses(batch) for batch in few]
    monkeypatch.setattr(loader_module, "LARGE", 10)
    many = TileLoader(addressed, Selection("train"), bands=ALL_BANDS, batch=8, shuffle=False)
    assert [addresses(batch) for batch in many] == wanted
    sample = [address for batch in many.sample(20) for address in addresses(batch)]
    assert len(sample) == len(set(sample)) == 20


def test_processes_of_a_machine_have_the_tiles_in_memory_once(
    addressed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one maps what the first one wrote; nothing is left in the temporary directory."""
    alone = share_tiles(addressed, Selection("train", where=["gsd <= 16"]))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(shared, "_calls", iter([0, 0]))  # two processes, each with its first call
    first = share_tiles(addressed, Selection("train", where=["gsd <= 16"]))
    assert len(list(scratch.iterdir())) == 1
    monkeypatch.setattr(selection, "select_tiles", None)
    second = share_tiles(addressed, Selection("train", where=["gsd <= 16"]))
    assert not list(scratch.iterdir())
    for classes, tiles in (first, second):
        assert classes == alone[0]
        assert tiles.scenes == alone[1].scenes
        assert tiles.arrays().keys() == alone[1].arrays().keys()
        for name, values in tiles.arrays().items():
            assert np.array_equal(values, getattr(alone[1], name))
            assert not values.flags.writeable


@pytest.mark.parametrize("options", [{}, {"shuffle_buffer": 20}, {"shuffle_buffer": 20, "balance": 0.5}])
def test_processes_share_what_is_left_of_tiles_whose_bands_differ(
    build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    image, share = np.ones((4, 5, 4, 8, 8), np.uint8), some_shares(4, 5)
    dataset = build(
        tmp_path / "mixed",
        {"full": image, "grey": image[:, :, :1], "other": image},
        dict.fromkeys(("full", "grey", "other"), share),
        bands={"grey": ["pan"]},
    )
    alone = TileLoader(dataset, Selection("train"), batch=4, **options)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    ranks = []
    for _ in range(2):
        monkeypatch.setattr(shared, "_calls", itertools.count())  # two processes, one after the other
        ranks.append(TileLoader(dataset, Selection("train"), batch=4, **options))
    assert not list(scratch.iterdir())
    for loader in ranks:
        assert loader.scenes_left_out == ("grey",)
        assert not any(values.flags.owndata or values.flags.writeable for values in loader.selected.arrays().values())
        assert [batch.fraction.tolist() for batch in loader] == [batch.fraction.tolist() for batch in alone]


def test_the_tiles_of_several_parts_are_those_of_one(addressed: Path) -> None:
    """Also if no tile of a part is chosen."""
    wanted = share_tiles(addressed, Selection("train", where=["scene != alpha"]))
    (part,) = list_parts(addressed)
    whole = pq.read_table(part)
    Path(part).unlink()
    cuts = [0, 20, 41, whole.num_rows]
    for number, (first, last) in enumerate(pairwise(cuts)):
        pq.write_table(whole.slice(first, last - first), Path(part).with_name(part_name(number, 3)))
    found = share_tiles(addressed, Selection("train", where=["scene != alpha"]))
    assert found[0] == wanted[0]
    assert found[1].scenes == wanted[1].scenes == ("beta", "gamma")
    for name, values in wanted[1].arrays().items():
        assert np.array_equal(getattr(found[1], name), values)


def test_shared_tiles_that_others_may_have_written_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    (tmp_path / f"geokr-{os.getuid()}-theirs").mkdir()
    (tmp_path / f"geokr-{os.getuid()}-theirs").chmod(0o777)
    with pytest.raises(OSError, match="set TMPDIR to a directory of your own"):
        shared.share_arrays(lambda: (None, {}), "theirs")


SHARE = """
import sys
import numpy
from geokr.loading import shared

print(shared.share_arrays(lambda: (sys.argv[1], {"tiles": numpy.zeros(1)}))[0])
"""


def test_tiles_of_a_run_that_was_killed_are_not_those_of_the_next(tmp_path: Path) -> None:
    """The parent's number may be the same, as in a container, and torchrun starts processes again that have failed."""
    environment = os.environ | {"LOCAL_WORLD_SIZE": "2", "TMPDIR": str(tmp_path)}

    def start(header: str, restarts: str) -> str:
        command = [sys.executable, "-c", SHARE, header]
        variables = environment | {"TORCHELASTIC_RESTART_COUNT": restarts}
        return subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout.strip()

    assert start("first", "0") == "first"  # and its sibling never comes
    assert start("second", "1") == start("not asked", "1") == "second"


def test_the_name_of_a_run_is_that_of_the_start_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = shared.name_run()
    assert shared.name_run() == mine
    read = Path.read_text

    def began_later(path: Path, **options: Any) -> str:
        text = read(path, **options)
        if path.name != "stat":
            return text
        name, _, values = text.rpartition(")")
        fields = values.split()
        fields[19] = str(int(fields[19]) + 1)
        return f"{name}) {' '.join(fields)}"

    monkeypatch.setattr(Path, "read_text", began_later)
    assert shared.name_run() != mine


def test_an_index_with_other_tiles_than_the_summary_counts_is_refused(addressed: Path) -> None:
    """For example one that is being replaced in a bucket."""
    path = addressed / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"counts": {"index": 1}}))
    with pytest.raises(
        ValueError, match=r"index\.parquet: \d+ tiles, but dataset\.json counts 1; build the index again"
    ):
        TileLoader(addressed, Selection("train"), batch=4)


# --- shard after shard


def reads() -> dict[str, int]:
    """What tensorstore has read from files in this process."""
    found = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/")
    values = {metric["name"].rpartition("/")[2]: metric["values"][0] for metric in found}
    return {name: values.get(name, {}).get("value", 0) for name in ("batch_read", "bytes_read")}


def test_each_shard_is_read_once_an_epoch(addressed: Path) -> None:
    shards = [path for path in (addressed / "tiles.zarr").glob("*/image/c/*/*/0/0/0") if path.is_file()]
    assert len(shards) == 4 + 1 + 2
    counted = {}
    for buffer in (0, 20):
        loader = TileLoader(addressed, Selection("train"), bands=ALL_BANDS, batch=3, shuffle_buffer=buffer, seed=1)
        before = reads()
        assert len(list(loader.epoch(1))) == 19
        counted[buffer] = {name: value - before[name] for name, value in reads().items()}
    # At most one read of a shard's index and one of its tiles; of the bytes none twice.
    assert counted[20]["batch_read"] <= 2 * len(shards)
    assert counted[20]["bytes_read"] <= sum(path.stat().st_size for path in shards)
    assert counted[0]["batch_read"] > 3 * len(shards)
    # With the least buffer, one shard is over before the next begins.
    loader = TileLoader(addressed, Selection("train"), bands=ALL_BANDS, batch=3, shuffle_buffer=1, seed=1)
    order = [(scene, row // 4, col // 4) for batch in loader for scene, row, col in addresses(batch)]
    assert 1 + sum(one != other for one, other in pairwise(order)) == len(set(order)) == len(shards)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 5), batch=st.integers(1, 7), world=st.integers(1, 4), buffer=st.integers(1, 60))
def test_ranks_share_out_the_shards(addressed: Path, seed: int, batch: int, world: int, buffer: int) -> None:
    seen: list[tuple[int, int, int]] = []
    for rank in range(world):
        loader = TileLoader(
            addressed,
            Selection("train"),
            bands=ALL_BANDS,
            batch=batch,
            seed=seed,
            rank=rank,
            world=world,
            shuffle_buffer=buffer,
        )
        whole = list(loader.epoch(3))
        assert len(whole) == len(loader) == 57 // (batch * world)
        rows = {tuple(row): share for row, share in zip(places(loader), loader.fraction.tolist(), strict=True)}
        for part in whole:
            assert [rows[address] for address in addresses(part)] == part.fraction.tolist()
            seen += addresses(part)
        start = len(loader) // 2
        rest = list(loader.epoch(3, start=start))
        assert [addresses(part) for part in rest] == [addresses(part) for part in whole[start:]]
    assert len(seen) == len(set(seen)) == 57 // (batch * world) * batch * world


def places(loader: TileLoader) -> list[list[int]]:
    scenes = [("alpha", "beta", "gamma").index(name) for name in loader.selected.scenes]
    return np.stack(
        [np.array(scenes)[loader.selected.scene], loader.selected.row, loader.selected.col], axis=1
    ).tolist()


def test_resuming_shard_after_shard_does_not_read_what_came_before(addressed: Path) -> None:
    loader = TileLoader(addressed, Selection("train"), bands=ALL_BANDS, batch=1, shuffle_buffer=1, seed=1)
    last = addresses(list(loader.epoch(0))[-1])[0][0]
    for number, name in enumerate(("alpha", "beta", "gamma")):
        if number != last:
            shutil.rmtree(addressed / "tiles.zarr" / name / "image/c")
    fresh = TileLoader(addressed, Selection("train"), bands=ALL_BANDS, batch=1, shuffle_buffer=1, seed=1)
    assert len(list(fresh.epoch(0, start=56))) == 1
    with pytest.raises(ValueError, match="cannot be read"):
        list(fresh.epoch(0))


def test_orders_with_a_buffer_differ_by_epoch_and_seed_alone(addressed: Path) -> None:
    loader = TileLoader(addressed, Selection("train"), bands=ALL_BANDS, batch=4, shuffle_buffer=16, seed=3)
    again = TileLoader(addressed, Selection("train"), bands=ALL_BANDS, batch=4, shuffle_buffer=16, seed=3)
    other = TileLoader(addressed, Selection("train"), bands=ALL_BANDS, batch=4, shuffle_buffer=16, seed=4)
    orders = [[addresses(batch) for batch in loader.epoch(epoch)] for epoch in range(3)]
    assert orders == [[addresses(batch) for batch in again.epoch(epoch)] for epoch in range(3)]
    assert len({str(order) for order in [*orders, [addresses(batch) for batch in other]]}) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shuffle_buffer": 9, "shuffle": False}, "a shuffle_buffer is for shuffled tiles without pairs"),
        ({"balance": 0.5, "shuffle": False}, "balanced and mixed tiles are drawn at random"),
        ({"balance": 1.5}, "balance must be in 0..1, got 1.5"),
        ({"on_error": "ignore"}, "on_error must be raise or skip, got ignore"),
    ],
)
def test_what_does_not_go_together_is_refused(addressed: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TileLoader(addressed, Selection("train"), batch=4, **options)


def test_pairs_need_places_and_dates(addressed: Path) -> None:
    with pytest.raises(ValueError, match="has no column place, acquired"):
        TileLoader(addressed, Selection("train", pairs=True), batch=4)


# --- balance and pairs


@pytest.mark.parametrize("buffer", [0, 40])
def test_balanced_classes_come_with_equal_mass(build, tmp_path: Path, buffer: int) -> None:
    share = np.zeros((6, 10, 3), np.float32)
    share[..., 0] = 1
    share[1, :6], share[2, :3] = [0, 1, 0], [0, 0, 1]
    dataset = build(tmp_path / "few", {"only": coordinates_of(6, 10)}, {"only": share})
    mass = {}
    for balance in (0.0, 1.0):
        loader = TileLoader(dataset, Selection("train"), batch=4, balance=balance, shuffle_buffer=buffer, seed=5)
        parts = [list(loader.epoch(epoch)) for epoch in range(2)]
        mass[balance] = torch.cat([part.fraction for part in parts[0]]).sum(dim=0).tolist()
        assert [part.fraction.tolist() for part in loader.epoch(1, start=6)] == [
            p.fraction.tolist() for p in parts[1][6:]
        ]
    assert mass[0.0] == [51, 6, 3]
    assert mass[1.0] == pytest.approx([20, 20, 20], abs=2)  # a tile comes n or n + 1 times


def test_each_epoch_is_a_draw_of_its_own(build, tmp_path: Path) -> None:
    """Which tiles come, and which date goes with them."""
    share = np.zeros((6, 10, 3), np.float32)
    share[..., 0], share[0, :4] = 1, [0, 0.5, 0.5]
    dataset = build(tmp_path / "few", {"only": coordinates_of(6, 10)}, {"only": share})
    loader = TileLoader(dataset, Selection("train"), batch=4, balance=1.0, seed=5)
    drawn = [np.sort(loader.order(epoch)).tolist() for epoch in range(3)]
    assert drawn[0] != drawn[1] != drawn[2]
    assert drawn == [np.sort(loader.order(epoch)).tolist() for epoch in range(3)]
    pairs = TileLoader(
        dated(build, tmp_path / "dated"), Selection("train", pairs=True), bands=ALL_BANDS, batch=9, seed=1
    )
    partners = []
    for epoch in range(6):
        (batch,) = pairs.epoch(epoch)
        assert batch.pair is not None
        partners.append(sorted(zip(addresses(batch), batch.pair[:, 0, 0, 0].tolist(), strict=True)))
    assert len({str(its) for its in partners}) > 2  # of eight ways


def dated(build: Callable[..., Path], root: Path) -> Path:
    """Three scenes of one place at two dates and twice on one day; place is the column, pixels tell the scene."""
    scenes = {"first": (0, "2019-05-01T03:00"), "second": (1, "2020-06-01"), "same_day": (2, "2019-05-01T23:00")}
    pixels, share = {}, {}
    for name, (number, _) in scenes.items():
        pixels[name] = np.full((1, 4, 4, 8, 8), 200, np.uint8)
        pixels[name][:, :, 0] = number
        pixels[name][:, :, 2] = np.arange(4)[None, :, None, None]
        share[name] = some_shares(1, 4, seed=number)
    place = [f"p{col}" for col in range(4)] * 3
    place[0] = place[4] = None  # the first column has a place in the third scene alone
    acquired = np.repeat([np.datetime64(when, "us") for _, when in scenes.values()], 4)
    more = {"place": np.array(place, object), "acquired": acquired}
    return build(root, pixels, share, more=more)


def test_pairs_are_of_one_place_at_two_dates(build, tmp_path: Path) -> None:
    dataset = dated(build, tmp_path / "dated")
    loader = TileLoader(dataset, Selection("train", pairs=True), bands=ALL_BANDS, batch=3, seed=1)
    assert loader.tiles == 9
    assert np.array_equal(loader.fraction, loader.selected.fraction[np.sort(loader.order(0))])
    seen = set()
    for epoch in range(6):
        whole = list(loader.epoch(epoch))
        assert len(whole) == 3
        for batch in whole:
            assert batch.pair is not None
            for one, other in zip(batch.image[:, :3, 0, 0].tolist(), batch.pair[:, :3, 0, 0].tolist(), strict=True):
                assert one[2] == other[2]
                seen.add((one[0], other[0]))
        rest = list(loader.epoch(epoch, start=2))
        assert torch.equal(rest[0].pair, whole[2].pair)
    assert seen == {(0, 1), (1, 0), (1, 2), (2, 1)}  # never the first with the third, which are of one day
    assert next(iter(TileLoader(dataset, Selection("train"), batch=3))).pair is None
    with pytest.raises(ValueError, match="has no place of two dates"):
        TileLoader(dataset, Selection("train", pairs=True, where=("scene!=second",)), batch=1)


# --- what cannot be read


@pytest.mark.parametrize("buffer", [0, 30])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "noise"])
def test_a_damaged_shard_is_named_or_skipped_and_counted(
    addressed: Path, damage: str, buffer: int, caplog: pytest.LogCaptureFixture
) -> None:
    shard = addressed / "tiles.zarr/alpha/image/c/1/0/0/0/0"  # row 4, columns 0 to 3: four tiles
    content = shard.read_bytes()
    match damage:
        case "missing":
            shard.unlink()
        case "empty":
            shard.write_bytes(b"")
        case "cut":
            shard.write_bytes(content[: len(content) // 2])
        case "noise":
            shard.write_bytes(np.random.default_rng(0).bytes(len(content)))
    options: dict[str, Any] = {"bands": ALL_BANDS, "batch": 19, "shuffle_buffer": buffer}
    with pytest.raises(ValueError, match=r"alpha/image/c/1/0/0/0/0: tile \(4, [0-3]\) cannot be read"):
        list(TileLoader(addressed, Selection("train"), **options))
    loader = TileLoader(addressed, Selection("train"), on_error="skip", **options)
    with caplog.at_level(logging.WARNING):
        batches = list(loader)
    assert loader.skipped == 4
    assert sum(len(batch.image) for batch in batches) == 53
    assert len({address for batch in batches for address in addresses(batch)}) == 53
    assert all(len(batch.image) == len(batch.fraction) == len(batch.known) == len(batch.weight) for batch in batches)
    assert not any(address[:2] == (0, 4) and address[2] < 4 for batch in batches for address in addresses(batch))
    rows = {tuple(row): share for row, share in zip(places(loader), loader.fraction.tolist(), strict=True)}
    assert all(
        rows[a] == s for batch in batches for a, s in zip(addresses(batch), batch.fraction.tolist(), strict=True)
    )
    assert caplog.text.count("alpha/image/c/1/0/0/0/0: tiles cannot be read, left out") == 1


def test_a_batch_of_nothing_is_an_error(addressed: Path) -> None:
    shutil.rmtree(addressed / "tiles.zarr/alpha/image/c")
    loader = TileLoader(addressed, Selection("train"), batch=2, shuffle=False, on_error="skip")
    with pytest.raises(ValueError, match=r"no tile of a batch can be read: .*alpha/image/c/0/0/0/0/0"):
        list(loader)


# --- as a data set of PyTorch


def test_a_plain_data_loader_reads_the_same(addressed: Path) -> None:
    dataset = TileDataset(addressed, Selection("train"), bands=ALL_BANDS)
    assert len(dataset) == 57
    whole = next(iter(TileLoader(addressed, Selection("train"), bands=ALL_BANDS, batch=57, shuffle=False)))
    seen = []
    for sample in torch.utils.data.DataLoader(dataset, batch_size=10, shuffle=True):
        assert set(sample) == {"image", "fraction", "known", "weight"}
        for image, share in zip(sample["image"], sample["fraction"], strict=True):
            (at,) = [i for i in range(57) if torch.equal(whole.image[i], image)]
            assert torch.equal(whole.fraction[at], share)
            seen.append(at)
    assert sorted(seen) == list(range(57))
    assert torch.equal(dataset[5]["image"], whole.image[5])
    (addressed / "tiles.zarr/alpha/image/c/1/0/0/0/0").unlink()
    with pytest.raises(ValueError, match=r"alpha/image/c/1/0/0/0/0: tile"):
        TileDataset(addressed, Selection("train")).__getitems__(range(57))


def test_spawned_workers_read_and_forked_ones_refuse(addressed: Path) -> None:
    dataset = TileDataset(addressed, Selection("train"), bands=ALL_BANDS)
    expected = torch.stack([dataset[i]["image"] for i in range(57)])
    spawned = torch.utils.data.DataLoader(dataset, batch_size=20, num_workers=1, multiprocessing_context="spawn")
    assert torch.equal(torch.cat([sample["image"] for sample in spawned]), expected)
    forked = torch.utils.data.DataLoader(dataset, batch_size=20, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(RuntimeError, match=r"tensorstore does not survive that; use\s+num_workers=0"):
        next(iter(forked))
