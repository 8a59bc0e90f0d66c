"""Scenes are created ahead of the blocks that go into them."""

from collections.abc import Iterator

import pytest

from geokr.dataset.layout import StoreWriteError
from pipeline.stages.blocks import CREATED_AHEAD, create_ahead


def test_a_scene_is_yielded_once_it_is_created_while_those_after_it_are_created() -> None:
    taken: list[int] = []
    created: list[int] = []

    def scenes() -> Iterator[int]:
        for scene in range(3 * CREATED_AHEAD):
            taken.append(scene)
            yield scene

    for number, scene in enumerate(create_ahead(created.append, scenes())):
        assert scene == number
        assert scene in created
        # No more of them are open than can be created at once, and the next ones are under way.
        assert len(taken) == min(number + 1 + CREATED_AHEAD, 3 * CREATED_AHEAD)
    assert sorted(created) == [*range(3 * CREATED_AHEAD)]


def test_a_scene_that_cannot_be_created_ends_the_stage_when_its_turn_comes() -> None:
    def create(scene: int) -> None:
        if scene == 3:
            raise StoreWriteError("3: cannot be written")

    scenes = create_ahead(create, range(10))
    assert [next(scenes), next(scenes), next(scenes)] == [0, 1, 2]
    with pytest.raises(StoreWriteError, match="3: cannot be written"):
        next(scenes)


def test_the_first_scene_is_created_before_any_other() -> None:
    taken: list[int] = []

    def scenes() -> Iterator[int]:
        for scene in range(3):
            taken.append(scene)
            yield scene

    created: list[list[int]] = []
    assert [*create_ahead(lambda _: created.append([*taken]), scenes())] == [0, 1, 2]
    assert created[0] == [0]


def test_nothing_is_created_of_no_scene() -> None:
    assert [*create_ahead(pytest.fail, [])] == []
