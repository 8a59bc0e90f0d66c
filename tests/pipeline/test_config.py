"""Settings of a build: what is wrong with one is said in a sentence that names the file and the key."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.config import LARGEST_BLOCK, BuildConfig, ConfigError, read_config
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
    assert (config.tile, config.stride, config.block, config.stretch) == (256, 200, 16, (1.0, 99.0))
    assert config.split.shares == {"train": 0.9, "val": 0.1}
    assert config.dem is None


def test_a_file_gives_settings_and_the_command_line_goes_over_them(tmp_path: Path) -> None:
    path = params(
        tmp_path,
        "train: {lr: 1}\nbuild:\n  scenes: [a, b]\n  landcover: [m]\n  out: here\n  tile: 64\n  stride: 48\n"
        "  stretch: [2, 98]\n  rules: {dark_level: 5}\n  split: {shares: {train: 0.5, test: 0.5}, cell: 1000}\n",
    )
    config = read_config(path, {"tile": 128, "out": "there"})
    assert (config.scenes, config.out, config.tile, config.stride) == (["a", "b"], "there", 128, 48)
    assert config.stretch == (2.0, 98.0)
    assert config.rules == Rules(dark_level=5)
    assert config.split.shares == {"train": 0.5, "test": 0.5}
    assert read_config(path, {}).tile == 64


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("build: {strid: 48}", "strid is not a setting of a build"),
        ("build: {rules: {darkness: 1}}", "rules.darkness is not a setting of a build"),
        ("build: {split: {sed: 1}}", "split.sed is not a setting of a build"),
        ("build: {tile: wide}", "tile: Input should be a valid integer"),
        ("build: {tile: 64.5}", "tile: Input should be a valid integer"),
        ("build: {tile: 7}", "tile: Input should be greater than or equal to 8"),
        ("build: {stride: 0}", "stride: Input should be greater than or equal to 1"),
        ("build: {stride: 300}", "stride must be in 1..256 px (the tile), got 300"),
        ("build: {tile: 2048, stride: 2048}", "16 x 16 tiles make a block of 32768 px, more than 16384"),
        ("build: {dem: [a]}", "dem: Input should be a valid string"),
        ("build: {stretch: [99, 1]}", "the stretch must run from a lower to a higher percentile, got (99.0, 1.0)"),
        ("build: {stretch: [1]}", "stretch.1: Field required"),
        ("build: {stretch: [1, 101]}", "stretch.1: Input should be less than or equal to 100"),
        ("build: {rules: {dark_share: 1.5}}", "rules.dark_share: Input should be less than or equal to 1"),
        ("build: {min_known: .nan}", "min_known: Input should be"),
        ("build: {split: {shares: {train: 0.9, val: 0.2}}}", "split: the shares of the splits must sum to 1"),
        ("build: {split: {shares: {}}}", "split: the shares of the splits must sum to 1"),
        ("build: {split: {cell: 0}}", "split.cell: Input should be greater than 0"),
        ("build: {split: {seed: -1}}", "split.seed: Input should be greater than or equal to 0"),
        ("build: {rules: 5}", "rules: Input should be a dictionary"),
        ("", "there is no section `build`"),
        ("train: {}", "there is no section `build`"),
        ("build: 5", "there is no section `build`"),
        ("build:", "there is no section `build`"),
        ("[1, 2]", "there is no section `build`"),
        ("build: {tile: [}", "cannot be read as YAML: while parsing"),
        ("build:\n\ttile: 5", "cannot be read as YAML: while scanning"),
        ("!!python/object:os.system {}", "cannot be read as YAML: could not determine a constructor"),
    ],
)
def test_a_setting_at_fault_is_named_with_its_file(tmp_path: Path, text: str, sentence: str) -> None:
    assert refused(params(tmp_path, text)).startswith(sentence)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "gone.yaml").startswith("no such file")
    assert "Is a directory" in refused(tmp_path)
    binary = tmp_path / "params.yaml"
    binary.write_bytes(b"\xff\xfe\x00build")
    assert refused(binary).startswith("cannot be read as YAML")


@pytest.mark.parametrize("key", NEEDED)
def test_what_is_missing_is_asked_for(tmp_path: Path, key: str) -> None:
    given = {name: value for name, value in NEEDED.items() if name != key}
    for path in (None, params(tmp_path, "build: {}")):
        assert refused(path, given) == f"{key} is missing; give it as --{key} or in a parameter file"


def test_a_file_is_not_blamed_for_the_command_line(tmp_path: Path) -> None:
    path = params(tmp_path, "build: {tile: 64, stride: 48}")
    with pytest.raises(ConfigError, match=r"^tile: Input should be greater"):
        read_config(path, NEEDED | {"tile": 0})
    assert refused(path, NEEDED | {"out": "there", "stride": 65}) == "stride must be in 1..64 px (the tile), got 65"


def test_nothing_to_read_is_refused() -> None:
    assert refused(None, NEEDED | {"scenes": []}).startswith("scenes: List should have at least 1 item")


@given(tile=st.integers(8, 4096), stride=st.integers(1, 5000), block=st.integers(1, 256))
@settings(max_examples=100)
def test_sizes_are_accepted_exactly_where_a_block_can_be_built(tile: int, stride: int, block: int) -> None:
    possible = stride <= tile and (block - 1) * stride + tile <= LARGEST_BLOCK
    try:
        config = BuildConfig(**NEEDED, tile=tile, stride=stride, block=block)
    except ValidationError:
        assert not possible
    else:
        assert possible
        assert (config.tile, config.stride, config.block) == (tile, stride, block)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        read_config(None, NEEDED).tile = 5
