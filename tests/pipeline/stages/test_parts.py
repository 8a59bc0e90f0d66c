"""The parts of an index stay the same where scenes are added."""

import json
import logging
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.stages.index import PART_SCENES, PART_TILES, group_scenes, report_changes


def scenes(names: list[str], side: int) -> list[Any]:
    grid = SimpleNamespace(rows=side, cols=side)
    return [SimpleNamespace(scene=SimpleNamespace(id=name), grid=grid) for name in sorted(names)]


@pytest.mark.parametrize("side", [8, 100, 300])
def test_parts_are_bounded_and_most_stay_when_a_scene_is_added(side: int) -> None:
    names = [f"scene-{k:04d}" for k in range(600)]
    before = [tuple(job.scene.id for job in group) for group in group_scenes(scenes(names, side))]
    assert [name for group in before for name in group] == names
    for group in before:
        assert len(group) <= PART_SCENES
        assert len(group) == 1 or len(group) * side**2 <= PART_TILES
    mean = len(names) / len(before)
    assert mean == 1 if side == 300 else mean * side**2 > PART_TILES / 8 or mean > PART_SCENES / 8
    rng, changed = random.Random(1), []
    for _ in range(20):
        more = [*names, f"scene-{rng.randrange(600):04d}a"]
        after = {tuple(job.scene.id for job in group) for group in group_scenes(scenes(more, side))}
        changed.append(sum(group not in after for group in before))
    assert max(changed) <= len(before) / 4
    assert sum(changed) / len(changed) <= 2


def test_splits_that_change_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """For example because a scene with larger tiles came, and the size of cells follows the largest ones."""
    split = {"shares": {"train": 0.75, "val": 0.25}, "cell": 25000.0, "seed": 0}
    summary = {"label_set": "a_2020", "label_sets": ["a_2020"], "settings": {"index": {"split": split}}}
    (tmp_path / "dataset.json").write_text(json.dumps(summary))
    with caplog.at_level(logging.WARNING):
        report_changes(str(tmp_path), "a_2020", ["a_2020"], split)
        assert not caplog.text
        report_changes(str(tmp_path), "a_2020", ["a_2020"], split | {"cell": 50000.0})
    assert "places are in other splits than before (cell 25000.0, now 50000.0)" in caplog.text
