"""The losses are the formulas they claim to be."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geokr.pretraining.metrics import confusion, disagreement, divergence, neighbours, scores
from geokr.pretraining.objectives.mean_teacher import mean_teacher_losses, ramp_up
from geokr.pretraining.objectives.reference import reference_losses


def geokr_loss(*arguments) -> torch.Tensor:
    return mean_teacher_losses(*arguments)[:, 0]


def reference_loss(*arguments) -> torch.Tensor:
    return reference_losses(*arguments)[:, 0]


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
        found = reference_loss(*map(torch.tensor, (student, teacher, target)), weight)
        assert found.shape == (tiles,)
        assert float(found.mean()) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=40, deadline=None)
@cases
def test_geokr_loss_is_two_divergences(seed: int, tiles: int, classes: int) -> None:
    student, teacher, target = case(seed, tiles, classes)
    p, q = softmax(student), softmax(teacher)
    found = geokr_loss(*map(torch.tensor, (student, teacher, target)), 0.5)
    for i in range(tiles):
        first = sum(a * math.log(a / b) for a, b in zip(target[i], p[i], strict=True) if a > 0)
        second = sum(a * math.log(a / b) for a, b in zip(p[i], q[i], strict=True))
        assert float(found[i]) == pytest.approx(first + 0.5 * second, abs=1e-9)
        for losses in (mean_teacher_losses, reference_losses):  # both are told beside the loss
            told = losses(*map(torch.tensor, (student, teacher, target)), 0.5)[i, 1:].tolist()
            assert told == pytest.approx([first, second], abs=1e-9)


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
    loss(student, teacher, target, 1.0).sum().backward()
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda logits: loss(logits, teacher, target, 0.7), student)


def test_the_reference_is_smaller_by_the_number_of_classes() -> None:
    """The published class term is a cross-entropy, divided by the classes: the gradient of ours is that much larger."""
    student, teacher, target = (torch.tensor(values) for values in case(2, 6, 8))
    gradients = []
    for loss in (geokr_loss, reference_loss):
        student = student.detach().requires_grad_(True)
        loss(student, teacher, target, 0.0).sum().backward()
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
    found = scores(logits, target, torch.tensor([0.2, 0.8]))
    normal = torch.softmax(logits, 1).tolist()
    assert normal[0] == pytest.approx([2 / 3, 1 / 3])
    expected = math.log(1.5) + 0.25 * math.log(0.25 / 0.75) + 0.75 * math.log(0.75 / 0.25)
    assert float(found["kl"]) == pytest.approx(expected, abs=1e-6)
    expected = math.log(1 / 0.2) + 0.25 * math.log(0.25 / 0.2) + 0.75 * math.log(0.75 / 0.8)
    assert float(found["kl_of_mean"]) == pytest.approx(expected, abs=1e-6)
    assert (float(found["top1"]), float(found["tiles"])) == (1.0, 2.0)
    assert found["error"].tolist() == pytest.approx([1 / 3 + 0.5] * 2, abs=1e-6)
    assert torch.allclose(found["confusion"].sum(1), target.double().sum(0))


def test_scores_of_no_tiles_are_nothing() -> None:
    found = scores(torch.zeros(0, 3), torch.zeros(0, 3), torch.full((3,), 1 / 3))
    assert all(float(value.sum()) == 0 for value in found.values())


def test_confusion_leaves_nothing_beside_the_diagonal_where_shares_agree() -> None:
    true = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.2, 0.8]], dtype=torch.float64)
    assert torch.allclose(confusion(true, true), torch.diag(true.sum(0)))


def test_confusion_says_what_was_taken_for_what() -> None:
    true = torch.tensor([[0.6, 0.4, 0.0]], dtype=torch.float64)
    predicted = torch.tensor([[0.1, 0.4, 0.5]], dtype=torch.float64)
    expected = torch.tensor([[0.1, 0.0, 0.5], [0.0, 0.4, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(confusion(true, predicted), expected)


@settings(max_examples=20, deadline=None)
@cases
def test_confusion_sums_to_both_kinds_of_shares(seed: int, tiles: int, classes: int) -> None:
    logits, _, true = (torch.tensor(values) for values in case(seed, tiles, classes))
    predicted = torch.softmax(logits, 1)
    found = confusion(true, predicted)
    assert torch.allclose(found.sum(1), true.sum(0))
    assert torch.allclose(found.sum(0), predicted.sum(0))
    assert (found >= 0).all()


def test_neighbours_are_the_most_alike_by_angle() -> None:
    known = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    shares = torch.eye(3)
    features = torch.tensor([[50.0, 1.0], [-0.1, 3.0]])  # length does not count
    assert torch.equal(neighbours(features, known, shares, count=1), shares[[0, 1]])
    both = neighbours(torch.tensor([[1.0, 1.0]]), known, shares, count=2)
    assert torch.allclose(both, torch.tensor([[0.5, 0.5, 0.0]]))
    near = neighbours(torch.tensor([[2.0, 1.0]]), known, shares, count=2)
    ratio = math.exp((2 - 1) / math.sqrt(5) / 0.07)
    assert float(near[0, 0] / near[0, 1]) == pytest.approx(ratio, rel=1e-4)
    assert torch.allclose(neighbours(features, known, shares).sum(1), torch.ones(2))
