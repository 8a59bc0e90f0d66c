"""From digital numbers to 8 bits."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.radiometry import Stretch, percentile_stretch

LEVELS = st.floats(-70_000, 70_000)
LEVEL_PAIRS = st.tuples(LEVELS, st.floats(0.01, 100_000)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(levels=LEVEL_PAIRS, dtype=st.sampled_from([np.uint8, np.uint16]))
@settings(max_examples=30)
def test_the_table_equals_arithmetic_on_every_digital_number(
    levels: tuple[float, float], dtype: type[np.unsignedinteger]
) -> None:
    low, high = levels
    every = np.arange(np.iinfo(dtype).max + 1).astype(dtype).reshape(2, -1)
    found = Stretch(low, high).apply(every)
    wanted = np.clip((every.astype(np.float64) - low) / (high - low) * 255, 0, 255)
    assert found.shape == every.shape
    assert found.dtype == np.uint8
    assert np.abs(found - wanted).max() <= 0.5 + 1e-6
    assert np.array_equal(found, Stretch(low, high).apply(every.astype(np.float64)))
    assert (np.diff(found.ravel().astype(int)) >= 0).all()


def test_the_ends_become_0_and_255_and_what_lies_beyond_is_cut() -> None:
    stretch = Stretch(200.0, 1220.0)
    pixels = np.array([[0, 199, 200, 202, 203], [710, 1217, 1220, 1221, 65535]], np.uint16)
    assert stretch.apply(pixels).tolist() == [[0, 0, 0, 0, 1], [128, 254, 255, 255, 255]]
    assert stretch.apply(np.array([np.nan, -np.inf, np.inf])).tolist() == [0, 0, 255]


@pytest.mark.parametrize(("low", "high"), [(5, 5), (6, 5), (float("nan"), 5), (5, float("nan"))])
def test_a_stretch_without_width_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match=f"a stretch needs high > low, got {low} .. {high}"):
        Stretch(low, high)


@given(
    sample=hnp.arrays(np.uint16, (3, 9, 14), elements=st.integers(0, 2000)),
    valid=hnp.arrays(np.bool_, (9, 14), elements=st.booleans()),
    low=st.floats(0, 40),
    high=st.floats(60, 100),
)
@settings(max_examples=60)
def test_the_stretch_is_numpys_percentiles_of_what_counts(
    sample: npt.NDArray[np.uint16], valid: npt.NDArray[np.bool_], low: float, high: float
) -> None:
    sample[:, :2] = 0  # padding: 0 in every band
    counted = [int(v) for k in np.ndindex(9, 14) if valid[k] and sample[:, *k].any() for v in sample[:, *k]]
    bottom, top = np.percentile(counted, [low, high]) if counted else (0.0, 0.0)
    if top > bottom:
        assert percentile_stretch(sample, valid, low, high) == Stretch(bottom, top)
    else:
        with pytest.raises(ValueError, match=r"the image (has one value|holds no data)"):
            percentile_stretch(sample, valid, low, high)


def test_a_zero_in_one_band_of_several_counts() -> None:
    sample = np.array([[[0, 0, 0]], [[0, 10, 20]]], np.uint8)
    assert percentile_stretch(sample, np.ones((1, 3), np.bool_), 0, 100) == Stretch(0.0, 20.0)


@pytest.mark.parametrize(
    ("value", "valid", "sentence"),
    [
        (0, True, "the image holds no data"),
        (7, False, "the image holds no data"),
        (7, True, "the image has one value, 7, from its 1 to its 99 % percentile"),
    ],
)
def test_an_image_without_contrast_is_refused(value: int, valid: bool, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        percentile_stretch(np.full((4, 5, 6), value, np.uint16), np.full((5, 6), valid))
