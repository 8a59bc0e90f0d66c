"""Settings of a build: what is wrong with one is said in a sentence that names the file and the key."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from geokr.settings import ConfigError
from pipeline.build_levir_kr import check_inputs
from pipeline.config import LARGEST_BLOCK, GridConfig, read_config
from pipeline.imaging.quality import Rules

NEEDED: dict[str, Any] = {"scenes": ["scenes"], "landcover": ["maps"], "out": "dataset"}


def params(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text)
    return path


def refused(path: Path | None, overrides: dict[str, Any] = NEEDED) -> str:
    with pytest.raises(ConfigError) as caught:
        read_config(path, overrides)
    sentence = str(caught.value)
    assert len(sentence.splitlines()) == 1
    if path is not None:
        assert sentence.startswith(f"{path}: ")
    return sentence.removeprefix(f"{path}: ")


def test_the_paths_alone_are_enough() -> None:
    config = read_config(None, NEEDED)
    grid, survey = config.grid, config.survey
    assert (grid.tile, grid.stride, grid.block, survey.stretch) == (256, 200, 16, (1.0, 99.0))
    assert config.index.split.shares == {"train": 0.9, "val": 0.1}
    assert survey.dem is None


def test_a_file_gives_settings_and_the_command_line_goes_over_them(tmp_path: Path) -> None:
    path = params(
        tmp_path,
        "train: {lr: 1}\nbuild:\n  out: here\n  survey: {scenes: [a, b], stretch: [2, 98]}\n"
        "  labels: {landcover: [m]}\n"
        "  grid: {tile: 64, stride: 48}\n  tiles: {rules: {dark_level: 5}}\n"
        "  index: {split: {shares: {train: 0.5, test: 0.5}, cell: 1000}}\n",
    )
    config = read_config(path, {"tile": 128, "out": "there"})
    assert (config.survey.scenes, config.out, config.grid.tile, config.grid.stride) == (["a", "b"], "there", 128, 48)
    assert config.survey.stretch == (2.0, 98.0)
    assert config.tiles.rules == Rules(dark_level=5)
    assert config.index.split.shares == {"train": 0.5, "test": 0.5}
    assert read_config(path, {}).grid.tile == 64


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("build: {strid: 48}", "strid is not a setting of a build; stride?"),
        ("build: {stride: 48}", "stride is not a setting of a build; grid.stride?"),
        ("build: {grid: {strid: 48}}", "grid.strid is not a setting of a build; stride?"),
        ("build: {grid: {scenes: [a]}}", "grid.scenes is not a setting of a build; survey.scenes?"),
        ("build: {tiles: {rules: {darkness: 1}}}", "tiles.rules.darkness is not a setting of a build"),
        ("build: {index: {split: {sed: 1}}}", "index.split.sed is not a setting of a build"),
        ("build: {grid: {tile: wide}}", "grid.tile: Input should be a valid integer"),
        ("build: {grid: {tile: 64.5}}", "grid.tile: Input should be a valid integer"),
        ("build: {grid: {tile: true}}", "grid.tile: Input should not be true or false"),
        ("build: {index: {min_agreement: true}}", "index.min_agreement: Input should not be true or false"),
        ("build: {survey: {stretch: [false, 99]}}", "survey.stretch: Input should not be true or false"),
        ("build: {grid: {tile: 7}}", "grid.tile: Input should be greater than or equal to 8"),
        ("build: {grid: {stride: 0}}", "grid.stride: Input should be greater than or equal to 1"),
        ("build: {grid: {stride: 300}}", "grid: stride must be in 1..256 px (the tile), got 300"),
        ("build: {grid: {tile: 2048, stride: 2048}}", "grid: 16 x 16 tiles make a block of 32768 px, more than 16384"),
        ("build: {survey: {dem: [a]}}", "survey.dem: Input should be a valid string"),
        ("build: {survey: {stretch: [99, 1]}}", "survey: the stretch must run from a lower to a higher percentile"),
        ("build: {survey: {stretch: [1]}}", "survey.stretch.1: Field required"),
        ("build: {survey: {stretch: [1, 101]}}", "survey.stretch.1: Input should be less than or equal to 100"),
        ("build: {survey: {geoid: a}}", "survey: a geoid can only be used together with a DEM"),
        (
            "build: {tiles: {rules: {dark_share: 1.5}}}",
            "tiles.rules.dark_share: Input should be less than or equal",
        ),
        ("build: {index: {min_known: .nan}}", "index.min_known: Input should be"),
        ("build: {index: {split: {shares: {train: 0.9, val: 0.2}}}}", "index.split: the shares of the splits must sum"),
        ("build: {index: {split: {shares: {}}}}", "index.split: the shares of the splits must sum to 1"),
        ("build: {index: {split: {cell: 0}}}", "index.split.cell: Input should be greater than 0"),
        ("build: {index: {split: {seed: -1}}}", "index.split.seed: Input should be greater than or equal to 0"),
        ("build: {tiles: {rules: 5}}", "tiles.rules: Input should be a dictionary"),
        ("build: {tiles: 5}", "tiles: Input should be a valid dictionary"),
        ("build: {survey: 5}", "survey: Input should be a valid dictionary"),
        ("", "there is no section `build`"),
        ("train: {}", "there is no section `build`"),
        ("build: 5", "there is no section `build`"),
        ("[1, 2]", "there is no section `build`"),
        ("build: {tile: [}", "cannot be read as YAML: while parsing"),
        ("build:\n\ttile: 5", "cannot be read as YAML: while scanning"),
        ("!!python/object:os.system {}", "cannot be read as YAML: could not determine a constructor"),
    ],
)
def test_a_setting_at_fault_is_named_with_its_file(tmp_path: Path, text: str, sentence: str) -> None:
    assert refused(params(tmp_path, text)).startswith(sentence)


def test_a_geoid_without_its_grid_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.geometry.terrain.GEOIDS", {"egm96": ("none.tif",)})
    sentence = refused(params(tmp_path, "build: {survey: {scenes: [a], dem: a, geoid: egm96}}"))
    assert "survey.geoid: " in sentence
    assert "egm96: none of PROJ's folders" in sentence


@pytest.mark.parametrize("text", ["build:", "build:\n  grid:\n  tiles:\n  survey:\n  labels:\n  index:\n"])
def test_a_section_without_a_line_is_empty(tmp_path: Path, text: str) -> None:
    assert read_config(params(tmp_path, text), NEEDED) == read_config(None, NEEDED)
    assert read_config(params(tmp_path, text), NEEDED | {"tile": 64, "stride": 48}).grid.tile == 64


def test_settings_without_their_groups_are_named_with_them(tmp_path: Path) -> None:
    said = refused(params(tmp_path, "build: {scenes: [a], landcover: [b], out: c, tile: 64}"), {})
    assert said == "scenes is not a setting of a build; survey.scenes?"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "gone.yaml").startswith("no such file")
    assert "Is a directory" in refused(tmp_path)
    binary = tmp_path / "params.yaml"
    binary.write_bytes(b"\xff\xfe\x00build")
    assert refused(binary).startswith("cannot be read as YAML")


@pytest.mark.parametrize("key", ["scenes", "out"])
def test_what_is_missing_is_asked_for(tmp_path: Path, key: str) -> None:
    given = {name: value for name, value in NEEDED.items() if name != key}
    for path in (None, params(tmp_path, "build: {}")):
        where = {"scenes": "survey.scenes", "out": "out"}[key]
        assert refused(path, given) == f"{where} is missing; give it as --{key} or in a parameter file"


def test_labels_need_land_cover_and_tiles_do_not(tmp_path: Path) -> None:
    config = read_config(None, {"scenes": [str(tmp_path)], "out": str(tmp_path / "out")})
    assert check_inputs(config, "catalog") == check_inputs(config, "tiles") == []
    for only in (None, "labels", "index"):
        with pytest.raises(ConfigError, match=r"^labels\.landcover is missing; give it as --landcover or in"):
            check_inputs(config, only)


def test_a_file_is_not_blamed_for_the_command_line(tmp_path: Path) -> None:
    path = params(tmp_path, "build: {grid: {tile: 64, stride: 48}}")
    with pytest.raises(ConfigError, match=r"^grid\.tile: Input should be greater"):
        read_config(path, NEEDED | {"tile": 0})
    assert (
        refused(path, NEEDED | {"out": "there", "stride": 65}) == "grid: stride must be in 1..64 px (the tile), got 65"
    )


def test_nothing_to_read_is_refused() -> None:
    assert refused(None, NEEDED | {"scenes": []}).startswith("survey.scenes: List should have at least 1 item")


@given(tile=st.integers(8, 4096), stride=st.integers(1, 5000), block=st.integers(1, 256))
@settings(max_examples=100)
def test_sizes_are_accepted_exactly_where_a_block_can_be_built(tile: int, stride: int, block: int) -> None:
    possible = stride <= tile and (block - 1) * stride + tile <= LARGEST_BLOCK
    try:
        config = GridConfig(tile=tile, stride=stride, block=block)
    except ValidationError:
        assert not possible
    else:
        assert possible
        assert (config.tile, config.stride, config.block) == (tile, stride, block)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        read_config(None, NEEDED).grid.tile = 5


def test_the_home_directory_may_be_written_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = str(tmp_path / "me")
    monkeypatch.setenv("HOME", home)
    text = """
build:
  out: ~/out
  survey: {scenes: [~/scenes, "s3://bucket/~"], dem: ~/dem.tif, geoid: ~/geoid.tif, radiometry: toa, coefficients: ~/c}
  labels: {landcover: [~/maps], legends: [~/legend], taxonomy: ~/taxonomy.toml}
"""
    config = read_config(params(tmp_path, text), {})
    assert config.out == f"{home}/out"
    assert config.survey.scenes == [f"{home}/scenes", "s3://bucket/~"]
    assert (config.survey.dem, config.survey.geoid) == (f"{home}/dem.tif", f"{home}/geoid.tif")
    assert config.survey.coefficients == f"{home}/c"
    assert config.labels.landcover + config.labels.legends == [f"{home}/maps", f"{home}/legend"]
    assert config.labels.taxonomy == f"{home}/taxonomy.toml"
