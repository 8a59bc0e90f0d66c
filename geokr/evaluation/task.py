"""What a downstream task is: it reads a labelled set, and trains and tests one encoder on it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, Field

from geokr.evaluation.backbones import EncoderSource
from geokr.evaluation.examples import Examples, IntArray
from geokr.settings import Names, Strict, split_numbers
from geokr.storage.inputs import Address

WITHOUT_EFFECT = frozenset({"device", "workers", "model", "imagenet", "protocol"})
"""Settings that say how a cell is computed, or which encoder it is about, which the cell says itself."""

Scorer = Callable[[IntArray], dict[str, float]]
"""From how often each test image is drawn, (test,), to metrics by name."""
Prepare = Callable[[npt.NDArray[Any]], Scorer]
Mode = Literal["knn", "linear", "finetune"]
"""knn: nearest neighbours of the frozen encoder's features. linear: a linear layer on the frozen encoder. finetune: the
whole network is trained."""


class Settings(Strict):
    """Settings that all tasks share. A task adds its own."""

    bands: Names = ()
    """Names of the bands of the images; by default those in the files, or red, green, blue and near infrared."""
    scale: Annotated[float, Field(ge=0)] = 0.0
    """Digital number that means 1.0. 0: 255 for images of 8 bits; for 16 bits it must be given, such as 10000."""
    val: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the images for validation, if the data come without a split for it."""
    test: Annotated[float, Field(gt=0, lt=1)] = 0.4
    """Share of the images for testing, if the data come without a split for it."""
    split_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the split. It is the same for all encoders, label shares and seeds of the evaluation."""
    lr: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1), BeforeValidator(split_numbers)] = (
        1e-4,
        3e-4,
        1e-3,
    )
    """Learning rates of which fine-tuning chooses one on the validation images: the same for every encoder."""
    batch: Annotated[int, Field(ge=1, strict=True)] = 32
    """Images a step, and images at once through a frozen encoder."""
    device: str = "auto"
    """auto: the GPU if there is one. Otherwise a device name of torch, such as cuda:1."""
    workers: Annotated[int, Field(ge=1, strict=True)] = 1
    """Cells that are computed at once, each by a process."""
    model: str = ""
    """timm's name of the network of `scratch`, `imagenet` and files that do not name theirs; by default that of the
    first other encoder, or resnet50."""
    imagenet: Address = ""
    """File of ImageNet weights, with the names of timm or torchvision; by default timm's own, which are downloaded."""
    protocol: Literal["own", "paper"] = "own"
    """paper: what is known of the paper's protocol as defaults, see PAPER in geokr/evaluation/protocols.py."""


@dataclass(frozen=True, slots=True)
class Job:
    """One cell of the evaluation: an encoder, trained on some of the labels and tested.

    Random draws may depend on `seed` and `train`, never on the encoder, so that encoders are compared on the same
    images, in the same order, with the same start of the head.
    """

    examples: Examples
    source: EncoderSource
    mode: str
    train: IntArray
    """Positions of the labelled training images: a subset of the training split."""
    val: IntArray
    """Positions of the images on which settings are chosen."""
    test: IntArray
    seed: int
    settings: Any
    """The task's own Settings."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job."""

    metrics: dict[str, float]
    """Name -> value on the test images; not a number if it is not defined."""
    parts: npt.NDArray[Any]
    """(test, ...) statistics of each test image, which give the metrics: see `Task.prepare`."""
    predictions: dict[str, npt.NDArray[Any]]
    """Arrays for pictures and confusion matrices, in the order of the test images; they are saved as .npz."""
    chosen: dict[str, float]
    """What was chosen on the validation images, such as the learning rate."""


class Task(Protocol):
    """A downstream task."""

    name: str
    modes: tuple[str, ...]
    """Modes that the task knows, in the order of the tables."""
    primary: str
    """Name of the metric that choices and comparisons use; higher is better."""
    settings: type[Settings]

    def read(self, folder: Path, settings: Any) -> Examples:
        """Read the labelled set in a folder. Raises InputError naming the file that does not fit."""
        ...

    def run(self, job: Job) -> Outcome:
        """Train and test one encoder."""
        ...

    def prepare(self, parts: npt.NDArray[Any]) -> Scorer:
        """A function that gives the metrics of draws from some test images. parts: rows of `Outcome.parts`."""
        ...


def score(prepare: Prepare, parts: npt.NDArray[Any]) -> dict[str, float]:
    """Metrics of some test images, each counted once."""
    return prepare(parts)(np.ones(len(parts), np.int64))
