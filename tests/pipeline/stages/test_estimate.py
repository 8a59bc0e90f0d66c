"""What a dry run says of disk, time and memory, from blocks that it has built."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from geokr.storage.inputs import InputError
from pipeline.stages import estimate
from pipeline.stages.estimate import Trial, describe_estimate, format_size, try_blocks
from tests.settings import build_config


def test_an_estimate_is_what_the_tiles_that_were_tried_took_times_all_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry: Any = None
    trials = [
        Trial(entry, {"accepted": 48, "void": 16}, 6_000_000, 2.0),
        Trial(entry, {"accepted": 12, "dark": 24}, 2_000_000, 3.0),
    ]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=50e6))
    out = str(tmp_path / "not" / "yet")
    assert describe_estimate(trials, 1000, 10.0, 5, 400_000_000, out) == (
        "estimate  80 MB on disk, of which only 50 MB are free; 20 s on 5 workers, with at most 2 GB of memory; "
        "from 2 blocks built for trial, 100 tiles, of which 60% were accepted"
    )
    assert ", where 50 MB are free; " in describe_estimate(trials, 100, 10.0, 5, 400_000_000, out)
    assert "estimate  80 MB on disk; " in describe_estimate(trials, 1000, 10.0, 5, 400_000_000, "s3://bucket/dataset")
    assert "no block could be built" in describe_estimate([], 1000, 10.0, 5, 400_000_000, out)


@pytest.mark.parametrize(
    ("size", "said"),
    [(0, "0 MB"), (812e6, "812 MB"), (1.234e9, "1.23 GB"), (76e9, "76 GB"), (1.4e12, "1.4 TB"), (2.5e15, "2.5e+03 TB")],
)
def test_sizes_have_three_digits(size: float, said: str) -> None:
    assert format_size(size) == said


def test_scenes_from_all_over_the_list_are_tried_and_the_first_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []

    def build(root: str, config: Any, covers: Any, entry: Any, grid: Any) -> Trial:
        tried.append(entry)
        if entry == 4:
            raise InputError("it cannot be read")
        return Trial(entry, {"accepted": 1}, 0, 1.0)

    monkeypatch.setattr(estimate, "build_block", build)
    grids: Any = [(number, None) for number in range(9)]
    assert [trial.entry for trial in try_blocks(build_config(), [], grids)] == [1, 7]
    assert tried == [1, 1, 4, 7]
    tried.clear()
    assert [trial.entry for trial in try_blocks(build_config(), [], grids[:1])] == [0]
    assert try_blocks(build_config(), [], grids[4:5]) == []
