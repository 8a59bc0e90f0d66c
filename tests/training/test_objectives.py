"""The losses are the formulas they claim to be."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geokr.objectives import disagreement, divergence, geokr_loss, ramp_up, reference_loss, scores


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def case(seed: int, tiles: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Student's logits, teacher's logits, and labels of which some are 0 or 1."""
    rng = np.random.default_rng(seed)
    target = rng.dirichlet([0.3] * classes, tiles)
    target[target < 0.05] = 0
    return rng.normal(0, 3, (tiles, classes)), rng.normal(0, 3, (tiles, classes)), target / target.sum(1, keepdims=True)


cases = given(seed=st.integers(0, 10**6), tiles=st.integers(1, 7), classes=st.integers(2, 11))


@settings(max_examples=40, deadline=None)
@cases
def test_reference_loss_is_the_published_formula(seed: int, tiles: int, classes: int) -> None:
    student, teacher, target = case(seed, tiles, classes)
    p, q = softmax(student), softmax(teacher)
    class_term = consistency = 0.0
    for i in range(tiles):
        for k in range(classes):
            class_term += -target[i, k] * math.log(p[i, k])
            consistency += -p[i, k] * math.log(q[i, k])
    for weight in (1.0, 0.25):
        expected = (class_term + weight * consistency) / (tiles * classes)
        assert float(reference_loss(*map(torch.tensor, (student, teacher, target)), weight)) == pytest.approx(
            expected, abs=1e-6
        )


@settings(max_examples=40, deadline=None)
@cases
def test_geokr_loss_is_two_divergences(seed: int, tiles: int, classes: int) -> None:
    student, teacher, target = case(seed, tiles, classes)
    p, q = softmax(student), softmax(teacher)
    first = sum(a * math.log(a / b) for a, b in zip(target.ravel(), p.ravel(), strict=True) if a > 0) / tiles
    second = sum(a * math.log(a / b) for a, b in zip(p.ravel(), q.ravel(), strict=True)) / tiles
    found = float(geokr_loss(*map(torch.tensor, (student, teacher, target)), 0.5))
    assert found == pytest.approx(first + 0.5 * second, abs=1e-9)


@settings(max_examples=20, deadline=None)
@cases
def test_divergences_are_zero_where_the_two_agree_and_positive_elsewhere(seed: int, tiles: int, classes: int) -> None:
    student, teacher, _ = (torch.tensor(values) for values in case(seed, tiles, classes))
    assert disagreement(student, student).abs().max() < 1e-12
    assert divergence(torch.softmax(student, 1), student).abs().max() < 1e-12
    assert (disagreement(student, teacher) > 0).all()
    assert torch.allclose(disagreement(student, teacher), divergence(torch.softmax(student, 1), teacher))


@pytest.mark.parametrize("loss", [geokr_loss, reference_loss])
def test_gradients_go_to_the_student_alone(loss) -> None:
    student, teacher, target = (torch.tensor(values) for values in case(1, 5, 4))
    student.requires_grad_(True)
    teacher.requires_grad_(True)
    loss(student, teacher, target, 1.0).backward()
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda logits: loss(logits, teacher, target, 0.7), student)


def test_the_reference_is_smaller_by_the_number_of_classes() -> None:
    """The published class term is a cross-entropy, divided by the classes: the gradient of ours is that much larger."""
    student, teacher, target = (torch.tensor(values) for values in case(2, 6, 8))
    gradients = []
    for loss in (geokr_loss, reference_loss):
        student = student.detach().requires_grad_(True)
        loss(student, teacher, target, 0.0).backward()
        gradients.append(student.grad)
    assert torch.allclose(gradients[0], 8 * gradients[1])


def test_ramp_up_rises_from_near_nothing_to_one() -> None:
    values = [ramp_up(step, 10) for step in range(12)]
    assert values[0] == pytest.approx(math.exp(-5))
    assert values[5] == pytest.approx(math.exp(-1.25))
    assert values == sorted(values)
    assert values[10:] == [1.0, 1.0]
    assert ramp_up(0, 0) == 1.0


def test_scores_are_sums_over_tiles() -> None:
    target = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    logits = torch.tensor([[0.5, 0.25], [0.75, 0.25]]).log()
    kl, baseline, top1, error, tiles = scores(logits, target, torch.tensor([0.5, 0.5])).tolist()
    normal = torch.softmax(logits, 1).tolist()
    assert normal[0] == pytest.approx([2 / 3, 1 / 3])
    assert kl == pytest.approx(math.log(1.5) + 0.25 * math.log(0.25 / 0.75) + 0.75 * math.log(0.75 / 0.25), abs=1e-6)
    assert baseline == pytest.approx(math.log(2) + math.log(2) - 0.562335, abs=1e-5)
    assert (top1, tiles) == (1.0, 2.0)
    assert error == pytest.approx(1 / 3 + 0.5, abs=1e-6)
