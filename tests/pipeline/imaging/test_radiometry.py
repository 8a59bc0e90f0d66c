"""From digital numbers to 8 bits."""

import itertools
import json
import math
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.imaging.calibration import Coefficients, find_solar_zenith, find_sun, read_coefficients, toa_radiometry
from pipeline.imaging.radiometry import (
    REFLECTANCE,
    Radiometry,
    RadiometryError,
    Stretch,
    identity_radiometry,
    percentile_stretch,
    radiometry_from_json,
    radiometry_from_scales,
    radiometry_from_stretch,
    stretch_per_band,
)
from pipeline.scenes.numbers import AS_THEY_ARE, Numbers

LEVELS = st.floats(-70_000, 70_000)
LEVEL_PAIRS = st.tuples(LEVELS, st.floats(0.01, 100_000)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(levels=LEVEL_PAIRS, dtype=st.sampled_from([np.uint8, np.uint16]))
@settings(max_examples=30)
def test_the_table_equals_arithmetic_on_every_digital_number(
    levels: tuple[float, float], dtype: type[np.unsignedinteger]
) -> None:
    low, high = levels
    every = np.arange(np.iinfo(dtype).max + 1).astype(dtype).reshape(2, -1, 1)
    found = radiometry_from_stretch(Stretch(low, high), 1).apply(every)
    wanted = np.clip((every.astype(np.float64) - low) / (high - low) * 255, 0, 255)
    assert found.shape == every.shape
    assert found.dtype == np.uint8
    assert np.abs(found - wanted).max() <= 0.5 + 1e-6
    assert (np.diff(found.ravel().astype(int)) >= 0).all()


def test_the_ends_become_0_and_255_and_what_lies_beyond_is_cut() -> None:
    stretch = radiometry_from_stretch(Stretch(200.0, 1220.0), 5)
    pixels = np.array([[0, 199, 200, 202, 203], [710, 1217, 1220, 1221, 65535]], np.uint16)
    assert stretch.apply(pixels).tolist() == [[0, 0, 0, 0, 1], [128, 254, 255, 255, 255]]


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
        (7, True, "the image has one value, 7, from its 1 % to its 99 % percentile"),
    ],
)
def test_an_image_without_contrast_is_refused(value: int, valid: bool, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        percentile_stretch(np.full((4, 5, 6), value, np.uint16), np.full((5, 6), valid))


# --- what is stored


def sample(bands: int = 4) -> npt.NDArray[np.uint16]:
    return np.random.default_rng(2).integers(1, 4096, (bands, 40, 30)).astype(np.uint16)


BANDS = ("blue", "green", "red", "nir")
EVERY = np.ones((40, 30), np.bool_)


def test_each_band_has_its_own_percentiles() -> None:
    values = sample()
    values[2] //= 7
    values[:, :3] = 0  # padding
    found = stretch_per_band(values, EVERY, 2.0, 98.0, BANDS)
    for k in range(4):
        low, high = np.percentile(values[k, 3:], [2, 98])
        assert (found.low[k], found.high[k]) == (low, high)
        stored = found.apply(np.moveaxis(values, 0, -1))[..., k]
        assert np.abs(stored - np.clip((values[k] - low) / (high - low) * 255, 0, 255)).max() <= 0.5 + 1e-6
    assert found.dtype == "uint8"
    assert found.attributes()["percentiles"] == [2.0, 98.0]
    part = EVERY.copy()
    part[20:] = False
    assert stretch_per_band(values, part, 2.0, 98.0, BANDS) == stretch_per_band(
        values[:, :20], part[:20], 2.0, 98.0, BANDS
    )


def test_a_band_of_one_value_is_refused_by_name() -> None:
    values = sample()
    values[1] = 77
    with pytest.raises(ValueError, match="band green has one value, 77"):
        stretch_per_band(values, EVERY, 1.0, 99.0, BANDS)
    with pytest.raises(ValueError, match="the image holds no data"):
        stretch_per_band(values * 0, EVERY, 1.0, 99.0, BANDS)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_digital_numbers_are_stored_as_they_are(dtype: str) -> None:
    every = np.arange(np.iinfo(dtype).max + 1).astype(dtype)[:, None]
    found = identity_radiometry(dtype, [AS_THEY_ARE])
    assert np.array_equal(found.apply(every), every)
    assert found.apply(every).dtype == dtype
    assert np.array_equal(found.digital_numbers(every), every)


def test_negative_digital_numbers_are_stored_above_their_base() -> None:
    pixels, meaning = np.array([[-300], [0], [12_000]]), Numbers(-32768.0)
    numbers = np.zeros(pixels.shape, np.uint16)
    meaning.encode(pixels, numbers)
    found = identity_radiometry("uint16", [meaning])
    stored, said = found.apply(numbers, [meaning]), found.attributes()
    assert np.array_equal(found.digital_numbers(stored), pixels)
    assert np.array_equal(stored * said["scale_factor"] + said["add_offset"], pixels)
    with pytest.raises(RadiometryError, match="radiometry dn stores whole numbers of 16 bits"):
        identity_radiometry("uint16", [Numbers(0.0, 1e-4)])
    with pytest.raises(RadiometryError, match="some of its bands have negative numbers"):
        identity_radiometry("uint16", [meaning, AS_THEY_ARE])


TABLE = read_coefficients()
GF2 = {band: TABLE["GF2", "PMS1", 2016, band] for band in BANDS}


def kinds() -> list[Radiometry]:
    values = sample()
    return [
        radiometry_from_stretch(percentile_stretch(values, EVERY), 4),
        stretch_per_band(values, EVERY, 1.0, 99.0, BANDS),
        toa_radiometry(GF2, 13.57, 1.0098),
        identity_radiometry("uint16", [AS_THEY_ARE] * 4),
    ]


@pytest.mark.parametrize("radiometry", kinds(), ids=lambda radiometry: radiometry.kind)
def test_stored_pixels_turn_back_into_digital_numbers(radiometry: Radiometry) -> None:
    """Within half a step of what is stored, from the group's attributes alone."""
    numbers = np.moveaxis(sample(), 0, -1)
    low, high = np.array(radiometry.low), np.array(radiometry.high)
    inside = (numbers > low) & (numbers < high)
    said = json.loads(json.dumps(radiometry.attributes()))
    top = np.iinfo(radiometry.dtype).max
    stored = radiometry.apply(numbers)
    for back in (
        radiometry.digital_numbers(stored),
        np.array(said["low"]) + stored * (np.array(said["high"]) - said["low"]) / top,
    ):
        assert (np.abs(back - numbers) <= (high - low) / top / 2 + 1e-6)[inside].all()
    if radiometry.kind in ("toa", "dn"):
        assert inside.all()
        assert np.array_equal(np.rint(radiometry.digital_numbers(stored)), numbers)
    assert radiometry_from_json(json.loads(json.dumps(radiometry.to_json()))) == radiometry


def test_radiometry_refuses_bands_it_has_no_numbers_for() -> None:
    with pytest.raises(ValueError, match="the pixels have 3 bands, but the radiometry has 4"):
        identity_radiometry("uint16", [AS_THEY_ARE] * 4).apply(np.zeros((2, 2, 3), np.uint16))


# --- reflectance


def test_reflectance_is_that_of_the_formula_written_out() -> None:
    """Pixel by pixel, from radiance in watts, by another way: the share of the Sun's light that comes back."""
    zenith, distance = 41.3, 0.9871
    bands = {"blue": Coefficients(0.1585, -0.8765, 1945), "nir": Coefficients(0.1897, -0.7233, 1081)}
    radiometry = toa_radiometry(bands, zenith, distance)
    numbers = np.random.default_rng(0).integers(20, 1024, (6, 5, 2)).astype(np.uint16)
    stored = radiometry.apply(numbers)
    said = radiometry.attributes()
    for (i, j), (k, c) in itertools.product(np.ndindex(6, 5), enumerate(bands.values())):
        radiance = c.gain * float(numbers[i, j, k]) + c.offset
        sunlight = c.irradiance / distance**2 * math.sin(math.radians(90 - zenith))  # on a level square metre
        share = max(0.0, radiance * math.pi / sunlight)  # of a surface that scatters evenly
        assert stored[i, j, k] * said["scale_factor"] + said["add_offset"] == pytest.approx(share, abs=0.5e-4 + 1e-9)
    assert stored.dtype == np.uint16
    assert (said["gain"], said["solar_zenith"], said["earth_sun_distance"]) == ([0.1585, 0.1897], zenith, distance)


def test_reflectance_without_a_sun_is_refused() -> None:
    with pytest.raises(RadiometryError, match=r"the Sun is 88\.0 degrees from the zenith"):
        toa_radiometry(GF2, 88.0, 1.0)


def test_reflectance_of_a_catalogs_scales() -> None:
    """Sentinel-2 and Landsat, whose files say how it follows from their numbers."""
    numbers = np.array([[[1000, 1000], [11_000, 65_535], [900, 7273]]], np.uint16)
    stored = radiometry_from_scales((1e-4, 2.75e-5), (-0.1, -0.2)).apply(numbers)
    wanted = np.clip(numbers * np.array([1e-4, 2.75e-5]) + [-0.1, -0.2], 0, None)
    assert np.abs(stored * REFLECTANCE - wanted).max() <= 0.5e-4 + 1e-9


def test_the_table_that_is_built_in_is_plausible_and_orders_bands_by_sunlight() -> None:
    assert len(TABLE) == 79
    assert {key[:2] for key in TABLE} == {(s, n) for s in ("GF1", "GF2") for n in ("PMS1", "PMS2")}
    for satellite, sensor, year, _ in TABLE:
        light = [TABLE[satellite, sensor, year, band].irradiance for band in BANDS]
        assert light == sorted(light, reverse=True)


HEADER = "satellite,sensor,year,band,gain,offset,irradiance\n"


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("GF1,WFV1,2013,blue,5.851,0.0039,1968", r"line 2: GF1 WFV1 2013 blue: a gain of 5.851 .* reciprocal\?"),
        ("GF2,PMS2,2015,pan,0,0,1364", "line 2: GF2 PMS2 2015 pan: the gain must be positive, got 0"),
        ("GF1,PMS1,2015,blue,0.211,0,1543", "the solar irradiance of band blue must be 1850 to 2050 W/m2/um, got 1543"),
        ("GF1,PMS1,2015,green,0.18,0,1543", "the solar irradiance of band green must be 1750 to 1950"),
        ("GF1,PMS1,2015,blue,-0.2,0,1945", "the gain must be positive"),
        ("GF1,PMS1,2015,blue,nan,0,1945", "a value is not a finite number"),
        ("GF1,PMS1,2015,blue,0.2,80,1945", "alone gives a reflectance of more than 0.1"),
        ("GF1,PMS1,x,blue,0.2,0,1945", "line 2: invalid literal"),
        ("GF1,PMS1,2015,blue,0.2", "line 2: "),
        ("GF1,PMS1,2015,blue,0.2,0,1945\nGF1,PMS1,2015,blue,0.2,0,1945", "line 3: GF1 PMS1 2015 blue is listed twice"),
    ],
)
def test_a_row_that_cannot_be_right_is_refused_by_line(tmp_path: Path, row: str, sentence: str) -> None:
    (tmp_path / "mine.csv").write_text(f"{HEADER}{row}\n")
    with pytest.raises(RadiometryError, match=sentence):
        read_coefficients(tmp_path / "mine.csv")


def test_a_table_without_a_column_or_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("satellite,sensor,year,band,gain,offset\n")
    with pytest.raises(RadiometryError, match=r"mine\.csv: there is no column irradiance"):
        read_coefficients(tmp_path / "mine.csv")
    with pytest.raises(RadiometryError, match=r"gone\.csv: cannot be read"):
        read_coefficients(tmp_path / "gone.csv")


@pytest.mark.parametrize(
    ("when", "distance"),
    [("2020-01-05 07:48", 0.9832436), ("2020-07-04 11:35", 1.0166943), ("2021-01-02 13:51", 0.9832571)],
)
def test_the_sun_is_as_far_as_the_almanac_says(when: str, distance: float) -> None:
    """At its nearest and its farthest."""
    moment = datetime.strptime(when, "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
    assert find_sun(moment, 0.0, 0.0)[1] == pytest.approx(distance, abs=2e-4)


@pytest.mark.parametrize(
    ("when", "lon", "lat", "zenith"),
    [
        # As the XML of real scenes have it, for their centre time in UTC.
        ("2022-06-24 05:39:09", 69.39, 33.30, 25.17),
        ("2020-05-23 05:03:08", 89.0, 23.9, 13.72),
        ("2020-05-10 17:03:20", -90.99, 17.60, 13.57),
        # Equinox: overhead on the equator at noon of the equation of time, on the horizon at the poles.
        ("2020-03-20 12:07:20", 0.0, 0.0, 0.1),
        ("2020-03-20 03:50:00", 0.0, 90.0, 90.0),
    ],
)
def test_the_sun_stands_where_real_metadata_say(when: str, lon: float, lat: float, zenith: float) -> None:
    moment = datetime.strptime(when, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    assert find_sun(moment, lon, lat)[0] == pytest.approx(zenith, abs=0.2)


def test_an_elevation_in_place_of_a_zenith_is_refused() -> None:
    moment, place = datetime(2020, 5, 10, 17, 3, 20, tzinfo=UTC), (-90.99, 17.60)
    assert find_solar_zenith({"SolarZenith": "13.5727"}, moment, *place) == 13.5727
    assert find_solar_zenith({"SunElevation": "76.4273"}, moment, *place) == pytest.approx(13.5727)
    assert find_solar_zenith({"SolarZenith": ""}, moment, *place) == pytest.approx(13.57, abs=0.1)
    with pytest.raises(RadiometryError, match=r"SolarZenith puts the Sun 76\.4 degrees .* it stood at 13\."):
        find_solar_zenith({"SolarZenith": "76.4273"}, moment, *place)


@pytest.mark.parametrize("name", ["SolarZenith", "SunZenith", "SolarElevation", "SunElevation", "SunAltitude"])
def test_each_name_of_the_suns_place_means_what_it_says(name: str) -> None:
    """To within three degrees, which no clock or corner of a scene is off."""
    moment, place = datetime(2020, 5, 10, 17, 3, 20, tzinfo=UTC), (-90.99, 17.60)
    there, _ = find_sun(moment, *place)
    for off in (-2.9, 2.9, -3.1, 3.1):
        said = {name: repr(there + off if "Zenith" in name else 90 - there - off)}
        if abs(off) < 3:
            assert find_solar_zenith(said, moment, *place) == pytest.approx(there + off)
            continue
        with pytest.raises(RadiometryError, match=f"{name} puts the Sun"):
            find_solar_zenith(said, moment, *place)
