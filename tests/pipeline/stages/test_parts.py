"""The parts of an index stay the same where scenes are added."""

import random
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.stages.index import PART_SCENES, PART_TILES, group_scenes


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
