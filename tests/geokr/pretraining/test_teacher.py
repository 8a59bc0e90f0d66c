"""The teacher is the average that it claims to be, statistics of batch normalisation included or not."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from geokr.pretraining.config import REFERENCE
from geokr.pretraining.objectives.mean_teacher import ema_decay, ema_update
from geokr.pretraining.objectives.reference import update_steps


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    for _ in range(seed + 1):
        model(torch.randn(8, 3, 9, 9))
    return model


def test_weights_and_statistics_are_averaged_and_counters_copied() -> None:
    teacher, student = network(0), network(3)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    its = {name: value.clone() for name, value in student.state_dict().items()}
    ema_update(teacher, student, 0.75, buffers=True)
    for name, value in teacher.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, 0.75 * before[name] + 0.25 * its[name], atol=1e-7), name
    assert not torch.equal(teacher.state_dict()["1.running_var"], before["1.running_var"])
    assert teacher.state_dict()["1.num_batches_tracked"] == its["1.num_batches_tracked"] == 4
    assert all(torch.equal(value, its[name]) for name, value in student.state_dict().items())


def test_the_reference_leaves_statistics_alone() -> None:
    teacher, student = network(0), network(3)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    ema_update(teacher, student, 0.5, buffers=False)
    now = teacher.state_dict()
    assert torch.equal(now["1.running_mean"], before["1.running_mean"])
    assert not torch.equal(now["0.weight"], before["0.weight"])


def average(values: Sequence[float], horizon: float) -> float:
    """What the teacher's weight is after the student's weight took these values, the first one at the start."""
    teacher, student = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    teacher.weight.data.fill_(values[0])
    for step, value in enumerate(values[1:], start=1):
        student.weight.data.fill_(value)
        ema_update(teacher, student, ema_decay(step, horizon), buffers=True)
    return teacher.weight.item()


def test_the_teacher_lies_between_the_student_and_the_mean_of_all_students() -> None:
    values = [5.0, 1.0, -2.0, 7.0, 0.5]
    for count in range(2, 6):
        assert average(values[:count], 0.0) == pytest.approx(values[count - 1])
        assert average(values[:count], 1.0) == pytest.approx(sum(values[:count]) / count, rel=1e-6)


@pytest.mark.parametrize("steps", [200, 2000])
@pytest.mark.parametrize("horizon", [0.05, 0.1, 0.5])
def test_the_teacher_is_as_far_behind_in_a_long_run_as_in_a_short_one(steps: int, horizon: float) -> None:
    """A student that moves evenly from 0 to 1 is met at 1 / (1 + horizon), and the start is forgotten."""
    assert average([step / steps for step in range(steps + 1)], horizon) == pytest.approx(1 / (1 + horizon), abs=0.01)
    assert average([1.0] + [0.0] * steps, horizon) < 0.003


def as_published(periods: list[int], batch: int, total: int) -> set[int]:
    """The published loop, step by step: which steps update the teacher."""
    waiting, fired = list(periods), set()
    period = int(waiting[0] / batch * 16)
    for step in range(1, total + 1):
        if step % period == 1:
            fired.add(step)
            if waiting:
                period = int(waiting.pop(0) / batch * 16)
    return fired


@settings(max_examples=30, deadline=None)
@given(
    periods=st.lists(st.integers(2, 60), min_size=1, max_size=4, unique=True).map(sorted),
    batch=st.sampled_from([4, 8, 16, 20]),
    total=st.integers(0, 700),
)
def test_updates_of_the_reference_are_the_published_ones(periods: list[int], batch: int, total: int) -> None:
    if int(periods[0] / batch * 16) > 1:  # a period of one step never comes: `step % 1` is not 1
        assert update_steps(periods, batch, total) == as_published(periods, batch, total)


def test_updates_of_the_reference_preset() -> None:
    updates = sorted(update_steps(REFERENCE.ema_periods, REFERENCE.batch, 200_000))
    assert updates == [1, 1001, 21001, 41001, 61001, 122001, 183001]
