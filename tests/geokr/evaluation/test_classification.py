"""Scene classification tells good encoders from bad ones, and nothing from nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from geokr.evaluation.backbones import EncoderSource, find_source
from geokr.evaluation.classification import Classification, ClassificationSettings, f1_of_classes, features_of, turn
from geokr.evaluation.examples import Examples
from geokr.evaluation.partition import draw_labels, draw_splits
from geokr.evaluation.results import compare
from geokr.evaluation.task import Job, Outcome, score
from geokr.storage.inputs import InputError

MODEL, SIZE = "test_resnet", 32
SETTINGS = ClassificationSettings(size=SIZE, lr=(1e-3,), epochs=1, least_steps=25, batch=16)
TASK = Classification()


@pytest.fixture(scope="session")
def examples(textures: Path) -> Examples:
    return TASK.read(textures, SETTINGS)


def job(examples: Examples, source: EncoderSource, mode: str, labels: float = 1.0, seed: int = 0) -> Job:
    splits = draw_splits(examples, 0.15, 0.4, 0)
    train, val = (draw_labels(splits[name], examples.stratum, labels, seed) for name in ("train", "val"))
    return Job(examples, source, mode, train, val, splits["test"], seed, SETTINGS)


def shuffled(examples: Examples) -> Examples:
    return replace(examples, stratum=np.random.default_rng(3).permutation(examples.stratum))


def run(examples: Examples, source: EncoderSource, mode: str, labels: float = 1.0, seed: int = 0) -> Outcome:
    return TASK.run(job(examples, source, mode, labels, seed))


@pytest.mark.parametrize("mode", ["knn", "linear", "finetune"])
def test_an_encoder_trained_on_the_task_beats_scratch_with_few_labels(
    examples: Examples, trained: Path, mode: str
) -> None:
    scratch = run(examples, find_source("scratch", MODEL), mode, 0.1)
    good = run(examples, find_source(str(trained)), mode, 0.1)
    assert good.metrics["accuracy"] > 0.9
    assert good.metrics["accuracy"] > scratch.metrics["accuracy"] + 0.1
    difference = compare([good.parts], [scratch.parts], TASK.prepare, "accuracy", draws=200)
    assert difference.low > 0


@pytest.mark.parametrize("mode", ["knn", "linear", "finetune"])
def test_shuffled_labels_give_chance(examples: Examples, trained: Path, mode: str) -> None:
    accuracy = run(shuffled(examples), find_source(str(trained)), mode).metrics["accuracy"]
    assert abs(accuracy - 1 / 3) < 0.23  # 48 test images: 3.3 standard deviations


@pytest.mark.parametrize("mode", ["linear", "finetune"])
def test_the_same_encoder_twice_differs_by_nothing(examples: Examples, trained: Path, mode: str) -> None:
    """Also under another name, and for two seeds: nothing but the encoder's weights decides."""
    source = find_source(str(trained))
    twin = replace(source, name="twin")
    one, two = ([run(examples, its, mode, 0.2, seed).parts for seed in (0, 1)] for its in (source, twin))
    difference = compare(one, two, TASK.prepare, "accuracy", draws=50)
    assert (difference.mean, difference.low, difference.high) == (0, 0, 0)


def test_the_linear_probe_is_scikit_learns(examples: Examples, trained: Path) -> None:
    its = job(examples, find_source(str(trained)), "linear", 0.3)
    outcome = TASK.run(its)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=outcome.chosen["C"], max_iter=5000, tol=1e-8))
    features = features_of(its).astype(np.float64)
    probe.fit(features[its.train], examples.stratum[its.train])
    accuracy = probe.score(features[its.test], examples.stratum[its.test])
    assert outcome.metrics["accuracy"] == pytest.approx(accuracy, abs=1e-3)


def test_scores_of_parts_are_the_metrics(examples: Examples, trained: Path) -> None:
    outcome = run(examples, find_source(str(trained)), "knn")
    scores = score(TASK.prepare, outcome.parts)
    assert scores == {name: outcome.metrics[name] for name in scores}
    assert {"f1/coarse", "f1/fine", "f1/plain"} <= outcome.metrics.keys()


def test_f1_by_hand() -> None:
    parts = np.array([[0, 0], [0, 1], [1, 1], [1, 1]])
    np.testing.assert_allclose(f1_of_classes(parts, 3), [2 / 3, 4 / 5, np.nan])


def test_turns_are_the_eight_symmetries_of_a_square() -> None:
    import torch

    image = torch.arange(9).reshape(1, 3, 3)
    assert len({tuple(turn(image, way).flatten().tolist()) for way in range(8)}) == 8


def test_a_class_that_training_lacks_is_refused(examples: Examples, trained: Path) -> None:
    whole = job(examples, find_source(str(trained)), "knn")
    without = replace(whole, train=whole.train[examples.stratum[whole.train] != 1])
    with pytest.raises(InputError, match=r"fine_\d+\.png: the class fine is in the .* split, but in no training image"):
        TASK.run(without)
