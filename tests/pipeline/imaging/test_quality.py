"""Why a tile is rejected: each rule on both sides of its threshold, and what cutting makes of the verdicts."""

import numpy as np
import numpy.typing as npt
import pytest
from affine import Affine
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from odc.geo.geobox import GeoBox

from pipeline.geometry.grid import TileGrid
from pipeline.imaging.quality import (
    ACCEPTED,
    CLOUD,
    DARK,
    FLAT,
    MISSING_LINES,
    VOID,
    Rules,
    find_missing_lines,
    histogram_percentile,
    judge,
)
from pipeline.tasks.tiles import cut_tiles, mean_of_bands

RULES = Rules()
Grey = npt.NDArray[np.uint8]


def tile(*counts: tuple[int, int], side: tuple[int, int] = (20, 50)) -> Grey:
    """A tile of so many pixels of each value, shuffled; the last value fills it."""
    values = np.full(side[0] * side[1], counts[-1][0], np.uint8)
    place = 0
    for value, count in counts[:-1]:
        values[place : place + count] = value
        place += count
    return np.random.default_rng(0).permutation(values).reshape(side)


BRIGHT_ENDS = ((200, 300), (100, 0))
"""Enough contrast, neither dark nor cloud."""


@pytest.mark.parametrize(
    ("grey", "verdict"),
    [
        # dark: more than a tenth of 1000 pixels below 20
        (tile((19, 100), *BRIGHT_ENDS), ACCEPTED),
        (tile((19, 101), *BRIGHT_ENDS), DARK),
        (tile((20, 900), *BRIGHT_ENDS), ACCEPTED),
        (tile((0, 101), *BRIGHT_ENDS), DARK),
        (tile((19, 1000), (19, 0)), DARK),
        # flat: a range from 1 to 99 % of less than 12.75
        (tile((100, 500), (112, 0)), FLAT),
        (tile((100, 500), (113, 0)), ACCEPTED),
        (tile((100, 5), (200, 5), (150, 0)), FLAT),  # fewer than 1 % at either end do not count
        (tile((100, 20), (200, 20), (150, 0)), ACCEPTED),
        # cloud: more than half above 230
        (tile((231, 500), (100, 0)), ACCEPTED),
        (tile((231, 501), (100, 0)), CLOUD),
        (tile((230, 999), (100, 0)), FLAT),
        (tile((230, 900), (100, 0)), ACCEPTED),
        # the first rule that holds
        (tile((0, 200), (255, 0)), DARK),
        (tile((240, 500), (250, 0)), FLAT),
    ],
)
def test_each_rule_on_both_sides_of_its_threshold(grey: Grey, verdict: int) -> None:
    assert judge(grey, RULES)[0] == verdict


def test_a_tile_all_below_the_dark_level_is_dark_whatever_share_is_allowed() -> None:
    """The published code's other clause: a maximum below the level."""
    grey = tile((3, 500), (19, 0))
    assert judge(grey, Rules(dark_share=1.0))[0] == DARK
    assert judge(tile((3, 999), (90, 0)), Rules(dark_share=1.0, flat_range=0.0))[0] == ACCEPTED


greys = hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 17)))
rules = st.builds(
    Rules,
    dark_level=st.integers(1, 255),
    dark_share=st.floats(0, 1),
    flat_range=st.floats(0, 1),
    cloud_level=st.integers(0, 254),
    cloud_share=st.floats(0, 1),
)


@given(grey=greys, rules=rules)
@example(grey=np.array([[19, 30]], np.uint8), rules=RULES)
@settings(max_examples=200)
def test_verdicts_are_the_published_rules_in_their_order(grey: Grey, rules: Rules) -> None:
    """As the GeoKR authors' code has them; `flat` as scikit-image's `is_low_contrast` defines it.

    What does not count is as if it were not there.
    """
    more = np.pad(grey, ((0, 0), (1, 2)), constant_values=255)
    assert judge(more, rules, np.pad(np.ones_like(grey, np.bool_), ((0, 0), (1, 2)))) == judge(grey, rules)
    low, high = np.percentile(grey, [1, 99])
    if grey.max() < rules.dark_level or (grey < rules.dark_level).sum() > rules.dark_share * grey.size:
        wanted = DARK
    elif (high - low) < rules.flat_range * 255:
        wanted = FLAT
    elif (grey > rules.cloud_level).sum() > rules.cloud_share * grey.size:
        wanted = CLOUD
    else:
        wanted = ACCEPTED
    assert judge(grey, rules) == (wanted, pytest.approx((grey > rules.cloud_level).mean()))


@given(grey=greys, percent=st.floats(0, 100))
@settings(max_examples=200)
def test_percentiles_of_a_histogram_are_numpys(grey: Grey, percent: float) -> None:
    below = np.cumsum(np.bincount(grey.ravel(), minlength=256))
    assert histogram_percentile(below, percent) == pytest.approx(np.percentile(grey, percent), abs=1e-9)


# --- cutting


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 5, 8])
def test_the_mean_of_the_bands_is_rounded_to_the_nearest(bands: int) -> None:
    pixels = np.random.default_rng(bands).integers(0, 256, (31, 17, bands), np.uint8)
    mean = pixels.astype(float).mean(axis=2)
    found = mean_of_bands(pixels)
    assert found.dtype == np.uint8
    assert np.abs(found - mean).max() <= 0.5


@given(data=st.data())
@settings(max_examples=40)
def test_a_block_is_cut_into_its_tiles(data: st.DataObject) -> None:
    """A pixel holds its own place, so a tile says where it was cut; each has its verdict."""
    side = data.draw(st.integers(4, 12))
    stride, bands = data.draw(st.integers(2, side)), data.draw(st.integers(1, 5))
    rows, cols = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    shape = ((rows - 1) * stride + side, (cols - 1) * stride + side)
    grid = TileGrid(GeoBox(shape, Affine(1, 0, 0, 0, -1, 0), "EPSG:32648"), side, stride, 5)
    y, x = np.mgrid[: shape[0], : shape[1]]
    pixels = np.stack([60 + (x * 3 + y * 2) * (k + 1) % 190 for k in range(bands)], axis=-1).astype(np.uint8)
    hole = data.draw(st.tuples(st.integers(0, shape[0] - 1), st.integers(0, shape[1] - 1)))
    dark = data.draw(st.integers(0, cols))  # columns of tiles, from the left
    pixels[:, : dark * stride] = 5
    valid = np.ones(shape, np.bool_)
    valid[hole] = False
    lost = data.draw(st.none() | st.tuples(st.integers(0, shape[0] - 1), st.integers(0, shape[1] - 1)))
    missing = None if lost is None else np.zeros(shape, np.bool_)
    if missing is not None and lost is not None:
        missing[lost] = True
    grey = mean_of_bands(pixels)
    stored = pixels if data.draw(st.booleans()) else pixels.astype(np.uint16) * 40
    images, status, cloud = cut_tiles(stored, grey, valid, missing, grid.block_at(0, 0), grid, RULES)
    assert images.shape == (rows, cols, bands, side, side)
    assert status.shape == cloud.shape == (rows, cols)
    assert images.dtype == stored.dtype
    assert (status.dtype, cloud.dtype) == (np.uint8, np.float32)
    for r, c in np.ndindex(rows, cols):
        top, left = r * stride, c * stride
        own = np.s_[top : top + side, left : left + side]

        def holds(place: tuple[int, int], top: int = top, left: int = left) -> bool:
            return top <= place[0] < top + side and left <= place[1] < left + side

        if holds(hole):
            assert status[r, c] == VOID
        elif lost is not None and holds(lost):
            assert status[r, c] == MISSING_LINES
        else:
            assert (status[r, c], cloud[r, c]) == (judge(grey[own], RULES)[0], np.float32(judge(grey[own], RULES)[1]))
        assert np.isnan(cloud[r, c]) == (status[r, c] in (VOID, MISSING_LINES))
        if status[r, c] == ACCEPTED:
            assert np.array_equal(images[r, c], np.moveaxis(stored[own], 2, 0))


@pytest.mark.parametrize(("share", "verdict"), [(0.0, VOID), (0.24, VOID), (0.25, ACCEPTED), (1.0, ACCEPTED)])
def test_how_much_void_a_tile_may_hold_is_a_setting(share: float, verdict: int) -> None:
    """What is void counts for nothing else, and is stored as 0."""
    side = 20
    grid = TileGrid(GeoBox((side, side), Affine(1, 0, 0, 0, -1, 0), "EPSG:32648"), side, side, 1)
    pixels = np.random.default_rng(1).integers(60, 200, (side, side, 3)).astype(np.uint8)
    pixels[:5] = 255
    valid = np.ones((side, side), np.bool_)
    valid[:5] = False
    images, status, cloud = cut_tiles(
        pixels, mean_of_bands(pixels), valid, None, grid.block_at(0, 0), grid, Rules(void_share=share)
    )
    assert status[0, 0] == verdict
    if verdict == ACCEPTED:
        assert cloud[0, 0] == 0
        assert not images[0, 0, :, :5].any()
        assert np.array_equal(images[0, 0, :, 5:], np.moveaxis(pixels[5:], 2, 0))


def test_a_tile_without_a_pixel_is_void_whatever_is_allowed() -> None:
    grid = TileGrid(GeoBox((8, 8), Affine(1, 0, 0, 0, -1, 0), "EPSG:32648"), 8, 8, 1)
    nothing = np.zeros((8, 8), np.bool_)
    pixels = np.full((8, 8, 3), 90, np.uint8)
    found = cut_tiles(pixels, pixels[..., 0], nothing, None, grid.block_at(0, 0), grid, Rules(void_share=1.0))
    assert found[1][0, 0] == VOID


# --- missing lines


@given(
    seed=st.integers(0, 99),
    first=st.integers(0, 78),
    lines=st.integers(1, 20),
    left=st.sampled_from([0, 3]),
    bands=st.sampled_from([1, 4]),
)
@settings(max_examples=60)
def test_missing_lines_are_found_wherever_they_are(seed: int, first: int, lines: int, left: int, bands: int) -> None:
    """Black, or with what a compression leaves of them; at the image's border, too."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(80, 250, (80, 400, bands)).astype(np.uint8)
    last = min(first + lines, 80)
    pixels[first:last] = rng.integers(0, left + 1, pixels[first:last].shape)
    wanted = np.zeros(80, np.bool_)
    wanted[first:last] = True
    assert np.array_equal(find_missing_lines(pixels, 0.2), wanted)


def test_two_runs_of_missing_lines_are_told_apart() -> None:
    pixels = np.full((60, 64, 2), 500, np.uint16)
    pixels[10:14], pixels[30:31] = 0, 3
    assert np.flatnonzero(find_missing_lines(pixels, 0.2)).tolist() == [10, 11, 12, 13, 30]
    assert not find_missing_lines(pixels, 0.0).any()


def test_dark_ground_is_not_missing() -> None:
    """A lake with a shore, clouds over the sea, an image that is black as a whole, a lone bright line."""
    row = np.arange(300)
    shore = 600 * np.clip((row - 100) / 60, 0.08, 1)
    sea = np.full(300, 60.0)
    sea[120:180] = 60 + 100 * np.sin((row[120:180] - 120) / 60 * np.pi)
    for level in (shore, sea, np.zeros(300), np.full(300, 2.0)):
        pixels = np.repeat(np.repeat(level[:, None, None], 64, 1), 3, 2).astype(np.uint16)
        assert not find_missing_lines(pixels, 0.2).any()
    left_half = np.full((50, 64, 1), 300, np.uint16)
    left_half[20:30, :40] = 0
    assert not find_missing_lines(left_half, 0.2).any()
