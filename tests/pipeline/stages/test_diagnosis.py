"""Why an index has few tiles or none, and what to change."""

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from affine import Affine

from geokr.dataset.splits import choose_cell, propose_cell, split_by_place
from pipeline.build_levir_kr import main
from pipeline.catalog.table import QUANTILES, Entry
from pipeline.config import IndexConfig, SplitConfig, TilesConfig
from pipeline.geometry.sensor import Georeferenced
from pipeline.geometry.terrain import Terrain
from pipeline.imaging.quality import Rules
from pipeline.imaging.radiometry import Stretch
from pipeline.scenes.scene import Image, Scene
from pipeline.stages.diagnosis import explain_labels, explain_losses, explain_splits
from tests.deliveries import image_of, scene_of, surveyed, tiff

EAST, NORTH = 5e5, 2.7e6
MODEL = Georeferenced("EPSG:32648", (10, 0, EAST, 0, -10, NORTH))


def entry(name: str, valid: float = 1.0, quantiles: tuple[float, ...] = (), high: float = 1000) -> Entry:
    image = Image(f"/{name}.tif", ("red",), 9, 9, "uint16", None, 10.0, MODEL)
    box = shapely.box(105, 24, 105.1, 24.1)
    scene = Scene(name, "", "", "L2A", None, 10.0, (image,), None, image.path, (), 0, "", box, {})
    base = Entry(scene, Terrain(None, 0.0), Stretch(0, high), 0.0)
    return replace(base, valid_share=valid, quantiles=quantiles)


def losses(statuses: dict[str, dict[str, int]], *entries: Entry, **rules: Any) -> list[str]:
    return [*explain_losses(entries, statuses, TilesConfig(rules=Rules(**rules)))]


def test_scattered_pixels_without_data_name_the_share_that_would_be_enough() -> None:
    (said,) = losses({"a": {"accepted": 0, "void": 15}}, entry("a", valid=0.98))
    assert said.startswith("15 of 15 tiles of a are void: 98 % of the sampled pixels have data")
    assert "build.tiles.rules.void_share (0)" in said
    assert "0.04 would accept" in said


@pytest.mark.parametrize(
    ("valid", "part"), [(1.0, "choose a smaller build.grid.tile"), (0.03, "only 3 % of the sampled pixels have data")]
)
def test_void_has_other_causes(valid: float, part: str) -> None:
    (said,) = losses({"a": {"accepted": 0, "void": 15}}, entry("a", valid))
    assert part in said


def test_a_stretch_that_clouds_ruled_is_named_with_one_that_works() -> None:
    clouds = (80, 100, 110, 120, 130, 140, 150, 160, 2000, 4000, 4500)  # at the percentiles QUANTILES
    (said,) = losses({"a": {"accepted": 0, "dark": 9}}, entry("a", quantiles=clouds, high=4500))
    assert "0 to 4500" in said
    assert "build.survey.stretch: [1, 90] would end it at 160" in said
    # What is dark after any stretch is not helped by another one.
    dark = (0, 0, 1, 2, 10, 50, 100, 200, 500, 900, 1000)
    (said,) = losses({"a": {"accepted": 0, "dark": 9}}, entry("a", quantiles=dark))
    assert "raise the one or lower the other" in said
    assert "stretch: [" not in said


def test_each_other_rule_names_its_setting() -> None:
    for status, setting in {
        "flat": "rules.flat_range (0.05)", "cloud": "rules.cloud_share (0.5)", "missing_lines": "0 turns this rule off",
    }.items():  # fmt: skip
        (said,) = losses({"a": {"accepted": 0, status: 9}}, entry("a"))
        assert setting in said
    assert losses({"a": {"accepted": 0, "not_built": 9}}, entry("a")) == []  # the quarantine says why


def test_scenes_that_lost_tiles_for_one_reason_are_said_at_once_and_the_others_not() -> None:
    statuses = {name: {"accepted": 0, "void": 10, "dark": 1} for name in "abc"} | {"d": {"accepted": 5, "void": 50}}
    said = losses(statuses | {"e": {"accepted": 0, "cloud": 7}}, *map(entry, "abcde"))
    assert [line.partition(":")[0] for line in said] == [
        "30 of 33 tiles of 3 scenes, such as a are void",
        "7 of 7 tiles of e are cloud",
    ]


def test_labels_that_are_lacking_name_their_setting() -> None:
    config = IndexConfig(max_year_gap=2)
    counts = {"unknown": 9, "unfit": 0, "index": 0}
    assert "build.index.min_known (0.5)" in next(explain_labels(counts, config))
    counts = {"unknown": 0, "unfit": 9, "index": 1}
    assert "9 of 10 accepted tiles are left out by build.index.max_year_gap (2)" in next(explain_labels(counts, config))
    assert not [*explain_labels({"unknown": 1, "unfit": 1, "index": 9}, config)]


def corners(side: float, n: int = 8) -> np.ndarray[Any, Any]:
    """n x n tiles of a side in degrees, near the equator."""
    west, south = np.meshgrid(np.arange(n) * side, np.arange(n) * side)
    box = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * side
    origins = np.stack([west.ravel() + 10.0, south.ravel() + 1.0], axis=-1)
    return origins[:, None] + box


@pytest.mark.parametrize("side", [0.7, 0.1, 0.005])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_cell_that_is_proposed_gives_each_split_a_tile(side: float, seed: int) -> None:
    tiles, split = corners(side), SplitConfig(seed=seed)
    proposal = propose_cell(tiles, split.shares, 25_000, seed)
    assert proposal is not None
    cell, counts = proposal
    found = split_by_place(tiles, split.shares, cell, seed)
    assert counts == {name: int((found == name).sum()) for name in split.shares}
    assert all(counts.values())
    assert cell >= side * 111_000 * 0.5


def test_tiles_larger_than_a_cell_are_told_a_larger_one_and_small_ones_a_smaller() -> None:
    split = SplitConfig()
    for side, larger in ((0.7, True), (0.005, False)):
        (said,) = explain_splits(lambda side=side: corners(side), 64, {"train": 0, "val": 0}, split, 25_000)
        proposed = float(said.partition("build.index.split.cell: ")[2].partition(" ")[0])
        assert (proposed > 25_000) is larger
        assert said.startswith("split train and val has no tile: none of 64 lies in its cells of 25000 m")


def test_splits_that_need_nothing_get_no_advice_and_one_tile_cannot_be_helped() -> None:
    split = SplitConfig(shares={"train": 1.0, "val": 0.0})
    assert not [*explain_splits(lambda: corners(0.1), 64, {"train": 5, "val": 0}, split, 25_000)]
    assert not [*explain_splits(lambda: corners(0.1)[:0], 0, {"train": 0, "val": 0}, SplitConfig(), 25_000)]
    (said,) = explain_splits(lambda: corners(0.1)[:1], 1, {"train": 1, "val": 0}, SplitConfig(), 25_000)
    assert said.endswith("no other size of cells changes that: the tiles are too few or too close to each other")


def test_cells_follow_the_size_of_the_tiles() -> None:
    assert [choose_cell(tiles) for tiles in ((), [640.0], [8_000.0, 10.0], [8_400.0], [78_000.0])] == [
        25_000, 25_000, 25_000, 50_000, 400_000,
    ]  # fmt: skip


def test_a_survey_measures_what_the_explanations_need(tmp_path: Path) -> None:
    pixels = np.full((2, 400, 400), 100, np.uint16)
    pixels[:, :, 300:] = 900
    pixels[:, :80] = 0
    found = surveyed(scene_of(image_of(tmp_path / "a.tif", pixels, MODEL, 10.0, nodata=0)))
    assert found.valid_share == pytest.approx(0.8)
    assert dict(zip(QUANTILES, found.quantiles, strict=True))[50] == 100
    assert found.quantiles[-1] == 900


@pytest.fixture
def world(tmp_path: Path) -> list[str]:
    """Arguments of a build of one scene, in which 2 % of the pixels have no data."""
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(40, 220, (2, 30, 30)), np.ones((1, 4, 4))).astype(np.uint8)
    pixels[:, rng.random(pixels.shape[1:]) < 0.02] = 255
    transform = Affine(10, 0, EAST, 0, -10, NORTH)
    (tmp_path / "speckled.tif").write_bytes(tiff(pixels, crs="EPSG:32648", transform=transform, nodata=255))
    sheet = tiff(np.full((1, 60, 60), 10, np.uint8), crs="EPSG:32648", transform=Affine(90, 0, 498e3, 0, -90, 2.702e6))
    (tmp_path / "n48_20_2020lc030.tif").write_bytes(sheet)
    return ["--scenes", str(tmp_path / "speckled.tif"), "--landcover", str(tmp_path / "n48_20_2020lc030.tif"),
            "--out", str(tmp_path / "out"), "--tile", "32", "--stride", "24", "--workers", "1"]  # fmt: skip


def test_an_index_without_tiles_has_a_reason_and_an_exit_status_of_its_own(
    world: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*world, "--dry-run"]) == 0
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trial ")]
    assert "tiles of speckled are void: " in said
    assert "build.tiles.rules.void_share (0)" in said
    with caplog.at_level(logging.WARNING):
        assert main([*world, "--strict"]) == 4
    assert re.search(r"tiles of speckled are void: 9\d(\.\d)? % of the sampled pixels have data", caplog.text)
    assert "build.tiles.rules.void_share (0)" in caplog.text
    assert "no tile in any split" in capsys.readouterr().err
    summary = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert summary["counts"]["index"] == 0
    assert summary["settings"]["index"]["split"]["cell"] == 25_000
