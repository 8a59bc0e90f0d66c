"""The chips of the sample world: labels are its truth, places are beyond its scenes, pixels are its ground."""

import csv
from pathlib import Path

import numpy as np
import pytest
import rasterio

from geokr.evaluation.folders import read_labelled_folder
from geokr.evaluation.task import Settings
from pipeline.sample.chips import CELL, GSD, LEAST, SIZE, TABLE, Place, find_classes, list_places, main, write_chips
from pipeline.sample.files import MARGIN, SHOTS, surrounding_box
from pipeline.sample.world import BANDS, CENTRE, World

WORLD = World.from_seed(3, 0.5)
SIDE = SIZE * GSD
NAMES = {10: "cultivated_land", 20: "forest", 30: "grassland", 40: "shrubland", 50: "wetland", 60: "water_bodies"}
NAMES |= {80: "artificial_surfaces", 90: "bare_land", 100: "permanent_snow_and_ice"}
"""GlobeLand30's classes, by code."""


@pytest.fixture(scope="module")
def places() -> list[Place]:
    return list_places(surrounding_box(SHOTS))


@pytest.fixture(scope="module")
def chips(places: list[Place], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chips of a world of which half has changed since it was mapped."""
    folder = tmp_path_factory.mktemp("chips")
    assert write_chips(WORLD, places, folder) > 300
    return folder


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / TABLE).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_label_is_the_class_that_covers_most_of_the_chip_today(chips: Path) -> None:
    rows, outdated = table(chips)[::4], 0
    for row in rows:
        with rasterio.open(chips / row["file"]) as image:
            left, bottom, right, top = image.bounds
        e, n = np.meshgrid(np.arange(left + 2, right, 4.0), np.arange(bottom + 2, top, 4.0))
        today, mapped = (np.bincount(codes.ravel()) for codes in (WORLD.cover(e, n), WORLD.mapped(e, n)))
        assert NAMES[int(today.argmax())] == row["label"]
        assert today.max() > 0.49 * e.size
        outdated += mapped.argmax() != today.argmax()
    assert outdated > len(rows) / 4


def test_chips_lie_beyond_the_scenes_and_those_of_different_splits_do_not_touch(places: list[Place]) -> None:
    left, bottom, right, top = surrounding_box(SHOTS)
    for place in places:
        x = max(left - (place.left + SIDE), place.left - right)
        y = max(bottom - place.top, (place.top - SIDE) - top)
        assert max(x, y) >= 0  # and the box is MARGIN wider than the scenes, further than a parcel is wide
        assert max(abs(place.left + SIDE / 2 - CENTRE[0]), abs(place.top - SIDE / 2 - CENTRE[1])) < 15_000
    corner = {name: np.array([(p.left, p.top) for p in places if p.split == name]) for name in ("train", "test")}
    apart = np.abs(corner["train"][:, None] - corner["test"][None]).max(axis=-1)
    assert apart.min() == 2 * SIDE
    assert 0.25 < len(corner["test"]) / len(places) < 0.42
    assert MARGIN > 1500
    assert CELL > 1


def test_the_evaluation_reads_the_chips_with_their_bands_and_split(chips: Path) -> None:
    examples = read_labelled_folder(chips, Settings())
    assert examples.bands == BANDS
    assert examples.image(0).shape == (len(BANDS), SIZE, SIZE)
    assert examples.image(0).dtype == np.uint8
    assert set(examples.split) == {"train", "test"}
    for positions in examples.split.values():
        assert np.bincount(examples.stratum[positions], minlength=len(examples.classes)).min() >= LEAST


def test_a_chip_shows_its_ground(chips: Path) -> None:
    """Digital numbers follow the reflectance of today's ground."""
    for row in table(chips)[:5]:
        with rasterio.open(chips / row["file"]) as image:
            pixels, (left, _, _, top) = image.read().astype(float), image.bounds
        e, n = Place(left, top, "train").points(4)
        seen = WORLD.reflectance(e, n, SHOTS[0].sun).reshape(4, SIZE, 4, SIZE, 4).mean(axis=(2, 4))
        dark = (pixels > 0) & (pixels < 255)
        assert np.corrcoef(pixels[dark], seen[dark])[0, 1] > 0.98


def test_chips_are_those_of_the_world_in_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), str(tmp_path / "chips")]) == 2
    assert "truth.json" in capsys.readouterr().err


def test_shares_of_a_place_add_up_to_one(places: list[Place]) -> None:
    _, shares = find_classes(WORLD, places[:5])
    np.testing.assert_allclose(shares.sum(axis=1), 1)
