"""Clouds of quality bands: which values are one, and what they make of a tile."""

import numpy as np
import pytest

from pipeline.imaging.clouds import find_clouds
from pipeline.imaging.quality import ACCEPTED, CLOUD, FLAT, Rules, judge

GREY = np.tile(np.arange(60, 160, dtype=np.uint8), (40, 1))
"""A tile that is accepted without clouds."""


@pytest.mark.parametrize(
    ("band", "clear", "cloudy"),
    [
        # Clear land and water, fill, a shadow and snow in the first list; in the second, cloud, cirrus and its border.
        ("QA_PIXEL", [21824, 21952, 1, 23888, 30048], [22280, 54596, 21826]),
        ("SCL", [0, 1, 2, 3, 4, 5, 6, 7, 11], [8, 9, 10]),
        ("Fmask", [64, 128, 8, 16], [66, 65]),
        ("oa_fmask", [0, 1, 3, 4, 5], [2]),
    ],
)
def test_clouds_have_values_of_their_own(band: str, clear: list[int], cloudy: list[int]) -> None:
    found = find_clouds(band, np.array([clear + cloudy], np.uint16))
    assert found.tolist() == [[False] * len(clear) + [True] * len(cloudy)]


@pytest.mark.parametrize(("columns", "verdict"), [(0, ACCEPTED), (50, ACCEPTED), (51, CLOUD), (100, CLOUD)])
def test_a_tile_is_cloud_by_its_quality_band(columns: int, verdict: int) -> None:
    clouds = np.zeros(GREY.shape, np.bool_)
    clouds[:, :columns] = True
    assert judge(GREY, Rules(), None, clouds) == (verdict, columns / 100)


def test_bright_and_known_clouds_add_up() -> None:
    """A pixel that is both counts once, and one without data does not count."""
    grey, clouds, valid = GREY.copy(), np.zeros(GREY.shape, np.bool_), np.ones(GREY.shape, np.bool_)
    grey[:, :30], clouds[:, 20:40], valid[:, 50:] = 255, True, False
    assert judge(grey, Rules(), None, clouds) == (ACCEPTED, 0.4)
    assert judge(grey, Rules(), valid, clouds) == (CLOUD, 0.8)


def test_a_known_cloud_is_no_flat_ground() -> None:
    white = np.full((9, 9), 255, np.uint8)
    assert judge(white, Rules())[0] == FLAT
    assert judge(white, Rules(), None, np.ones((9, 9), np.bool_)) == (CLOUD, 1.0)
