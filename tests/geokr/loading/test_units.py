"""Scenes that are stored in unlike steps, in one batch."""

from pathlib import Path

import numpy as np
import pytest

from geokr.loading.loader import TileLoader
from geokr.loading.map_style import TileDataset
from geokr.loading.selection import Selection
from geokr.loading.units import PixelUnits, find_common_units, read_units
from tests.geokr.conftest import some_shares

PLAIN = {"kind": "dn"}
BELOW_ZERO = {"kind": "dn", "scale_factor": 1.0, "add_offset": -3000.0}
REFLECTANCE = {"kind": "toa", "scale_factor": 1e-4, "add_offset": 0.0}


def digital_numbers(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-2900, 20000, (2, 3, 4, 8, 8))


@pytest.fixture
def unlike(build, tmp_path: Path) -> Path:
    """Two scenes whose pixels are the same kind of number, one of them stored above a base; and a held-out one."""
    numbers = {"a": digital_numbers(0).clip(1), "b": digital_numbers(1), "c": digital_numbers(2).clip(1)}
    pixels = {name: (values + 3000 * (name == "b")).astype(np.uint16) for name, values in numbers.items()}
    pixels["a"][0, 0, :, 0] = pixels["b"][0, 0, :, 0] = 0  # no data
    return build(
        tmp_path / "unlike",
        pixels,
        {name: some_shares(2, 3) for name in pixels},
        split=lambda scene, row, col: "val" if scene == "c" else "train",
        radiometry={"a": PLAIN, "b": BELOW_ZERO, "c": PLAIN},
    )


def test_scenes_with_and_without_negative_numbers_are_read_in_the_same_units(unlike: Path) -> None:
    loader = TileLoader(unlike, Selection("train"), bands=("blue", "green", "red", "nir"), batch=12, shuffle=False)
    assert loader.units == PixelUnits("digital numbers", 1.0, -3000.0)
    (batch,) = loader
    expected = np.stack([digital_numbers(0).clip(1), digital_numbers(1)]) + 3000
    expected[:, 0, 0, :, 0] = 0
    assert np.array_equal(batch.image.numpy(), expected.reshape(12, 4, 8, 8))
    first = TileDataset(unlike, Selection("train"), bands=loader.bands)[0]["image"]
    assert np.array_equal(first, batch.image[0])
    held_out = TileLoader(unlike, Selection("val"), bands=loader.bands, units=loader.units, batch=6, shuffle=False)
    assert np.array_equal(next(iter(held_out)).image.numpy(), digital_numbers(2).clip(1).reshape(6, 4, 8, 8) + 3000)
    shards = TileLoader(unlike, Selection("train"), bands=loader.bands, batch=12, shuffle_buffer=4)
    assert np.array_equal(np.sort(next(iter(shards)).image.numpy(), axis=0), np.sort(batch.image.numpy(), axis=0))


def test_numbers_and_reflectance_are_not_mixed(build, tmp_path: Path) -> None:
    pixels = {name: np.ones((2, 3, 4, 8, 8), np.uint16) for name in "ab"}
    share = {name: some_shares(2, 3) for name in "ab"}
    dataset = build(tmp_path / "mixed", pixels, share, radiometry={"a": PLAIN, "b": REFLECTANCE})
    with pytest.raises(ValueError, match=r"zarr/b: pixels are reflectance, expected digital numbers; .*radiometry toa"):
        TileLoader(dataset, Selection("train"), batch=1)
    wanted = read_units({"radiometry": REFLECTANCE}, "uint16")
    with pytest.raises(ValueError, match="zarr/a: pixels are digital numbers, expected reflectance"):
        TileLoader(dataset, Selection("train", where=("scene=a",)), units=wanted, batch=1)


def test_pixels_of_coarser_steps_are_rounded_and_clipped_and_no_data_stays() -> None:
    fine = PixelUnits("reflectance", 1e-4, -0.1)
    coarse = PixelUnits("reflectance", 2.75e-4, -0.2)
    assert find_common_units([coarse, fine]) == PixelUnits("reflectance", 1e-4, -0.2)
    table = fine.table(coarse)
    assert table[[0, 1, 364, 1000, 65535]].tolist() == [0, 1, 1, 1750, 65535]
    given = np.arange(400, 20000)
    assert np.abs(table[given] * 1e-4 - 0.1 - (given * 2.75e-4 - 0.2)).max() <= 0.5e-4 + 1e-9
    assert np.array_equal(fine.table(fine), np.arange(65536))


def test_8_bit_scenes_keep_their_own_stretches() -> None:
    stretched = read_units({"radiometry": {"kind": "percentile"}}, "uint8")
    assert stretched == read_units({}, "uint8")
    assert stretched.quantity == "stretched pixels"
