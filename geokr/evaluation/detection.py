"""Object detection: a detector of torchvision on the encoder, trained on windows of the images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import nn
from torchvision.ops import batched_nms, clip_boxes_to_image

from geokr.evaluation.average_precision import Detections, MatchScorer, count_matches, measure
from geokr.evaluation.backbones import build_pyramid, choose_device, normalise, select_bands
from geokr.evaluation.box_formats import Boxes
from geokr.evaluation.boxes import BoxSettings, read_boxes
from geokr.evaluation.detectors import MAX_OVERLAP, Detector, build_detector, first_class
from geokr.evaluation.examples import Examples
from geokr.evaluation.optimising import Optimiser
from geokr.evaluation.task import Job, Outcome, Scorer, Settings
from geokr.evaluation.windows import View, pad, place_windows
from geokr.storage.inputs import InputError

MIN_VISIBLE = 0.3
"""An object at the edge of a training window counts if at least this share of its area is inside."""
WEIGHT_DECAY = 0.01
MAX_GRADIENT = 10.0
"""Gradients of a larger norm are scaled down to it."""


class DetectionSettings(BoxSettings):
    """Settings of detection."""

    detector: Detector = "retinanet"
    """retinanet or fasterrcnn, as torchvision has them."""
    batch: Annotated[int, Field(ge=1, strict=True)] = 4
    """Windows a step."""
    steps: Annotated[int, Field(ge=1, strict=True)] = 500
    """Training steps, for any number of labels and each learning rate."""
    window: Annotated[int, Field(ge=32, multiple_of=32, strict=True)] = 256
    """Side of the square windows in which images are seen, in training and testing, px."""
    overlap: Annotated[int, Field(ge=0, strict=True)] = 64
    """Of neighbouring windows in testing, px. An object up to this size is seen whole in one of them."""
    channels: Annotated[int, Field(ge=8, strict=True)] = 64
    """Channels of the detector's feature maps. torchvision has 256."""
    anchor: Annotated[float, Field(ge=0)] = 0.0
    """Side of the smallest anchors, px. 0: a tenth of the training objects have a smaller one."""
    detections: Annotated[int, Field(ge=1, strict=True)] = 300
    """At most so many objects are found in a window."""

    @model_validator(mode="after")
    def _check_overlap(self) -> "DetectionSettings":
        if self.overlap >= self.window:
            raise ValueError(f"overlap={self.overlap} px must be less than window={self.window} px")
        return self


class Detection:
    """The task: boxes around objects. Metrics are AP, AP50 and AP of each class."""

    name = "detection"
    modes: tuple[str, ...] = ("linear", "finetune")
    """linear: the encoder is frozen, and the detector on its feature maps is trained."""
    primary = "ap"
    settings: type[Settings] = DetectionSettings

    def read(self, folder: Path, settings: DetectionSettings) -> Examples:
        return read_boxes(folder, settings)

    def run(self, job: Job) -> Outcome:
        """Train a detector with each learning rate, and test the best on the validation images.

        Raises InputError if the test images have a class that no training image has, and ValueError if training
        diverges with every learning rate.
        """
        settings: DetectionSettings = job.settings
        require_trained_classes(job)
        best, best_lr, best_score = None, 0.0, -1.0
        for lr in settings.lr:
            model = train_detector(job, lr)
            if model is None:
                continue
            score = 0.0
            if len(settings.lr) > 1:
                found, objects = detect_all(job, model, job.val)
                score = float(np.nan_to_num(measure(found, objects, job.examples.classes)["ap"]))
            if score > best_score:
                best, best_lr, best_score = model, lr, score
        if best is None:
            raise ValueError(f"{job.source.name}: training diverged with each lr of {settings.lr}; add smaller ones")
        found, objects = detect_all(job, best, job.test)
        return Outcome(
            metrics=measure(found, objects, job.examples.classes),
            parts=count_matches(found, objects, len(job.examples.classes)),
            predictions=flatten_detections(found),
            chosen={"lr": best_lr},
        )

    def prepare(self, parts: npt.NDArray[Any]) -> Scorer:
        return MatchScorer(parts)


@dataclass(frozen=True, slots=True)
class TrainingWindow:
    """A window of an image, mirrored and turned, with its objects."""

    image: torch.Tensor
    """(band, side, side) normalised float32; 0 beyond the image."""
    target: dict[str, torch.Tensor]
    """`boxes` (m, 4) float32 px, and `labels` (m,) int64, as torchvision's detectors expect."""


def train_detector(job: Job, lr: float) -> nn.Module | None:
    """Train a detector on the labelled images. None if the loss is no longer a number."""
    settings: DetectionSettings = job.settings
    device = choose_device(settings.device)
    boxes = [Boxes(*job.examples.target(i)) for i in job.train.tolist()]
    model = build_detector(
        settings.detector,
        build_pyramid(job.source, job.seed, settings.window),
        classes=len(job.examples.classes),
        channels=settings.channels,
        smallest=settings.anchor or find_smallest(boxes),
        detections=settings.detections,
        frozen=job.mode == "linear",
        seed=job.seed,
    ).to(device)
    model.train()
    optimiser = Optimiser(model.parameters(), lr, WEIGHT_DECAY, settings.steps, MAX_GRADIENT)
    for step in range(settings.steps):
        random = np.random.default_rng((job.seed, step))
        torch.manual_seed(int(random.integers(2**31)))  # Faster R-CNN draws among its proposals
        windows = [draw_training_window(job, boxes, random) for _ in range(settings.batch)]
        images = [window.image.to(device) for window in windows]
        targets = [{name: value.to(device) for name, value in window.target.items()} for window in windows]
        loss = sum(model(images, targets).values())
        if not torch.isfinite(loss):
            return None
        optimiser.step(loss)
    return model.eval()


def find_smallest(boxes: Sequence[Boxes]) -> float:
    """Side of the smallest anchors, px: a tenth of the objects have a smaller one, as a square of the same area."""
    sides = [(its.corners[:, 2:] - its.corners[:, :2]).prod(axis=1) ** 0.5 for its in boxes]
    every = np.concatenate(sides) if sides else np.empty(0)
    return max(2.0, float(np.quantile(every, 0.1))) if len(every) else 16.0


def draw_training_window(job: Job, boxes: Sequence[Boxes], random: np.random.Generator) -> TrainingWindow:
    """Draw an image and a window of it, around an object if the image has any, and one of the square's symmetries."""
    settings: DetectionSettings = job.settings
    drawn = int(random.integers(len(boxes)))
    pixels = job.examples.image(int(job.train[drawn]))[select_bands(job.source, job.examples.bands)]
    view = draw_view_of_object(pixels.shape[-2:], boxes[drawn].corners, settings.window, random)
    image = normalise(torch.from_numpy(view.cut(pixels)), job.source, job.examples.scale)
    corners, kept = cut_boxes(boxes[drawn].corners, view, pixels.shape[-2:])
    labels = torch.from_numpy(boxes[drawn].classes[kept]) + first_class(settings.detector)
    target = {"boxes": torch.from_numpy(corners), "labels": labels}
    return TrainingWindow(pad(image, settings.window, 0.0), target)


def draw_view_of_object(
    shape: tuple[int, ...], corners: npt.NDArray[np.float32], side: int, random: np.random.Generator
) -> View:
    """Draw a view of an image of `shape`, (y, x) px, that contains the middle of an object drawn among `corners`."""
    starts = [0, 0]
    middle = (corners[random.integers(len(corners))].reshape(2, 2).mean(axis=0)[::-1]) if len(corners) else None
    for axis, length in enumerate(shape[-2:]):
        low, high = 0, max(0, length - side)
        if middle is not None:
            low, high = max(low, int(middle[axis]) - side + 1), min(high, int(middle[axis]))
        starts[axis] = int(random.integers(min(low, high), high + 1))
    return View(starts[0], starts[1], side, bool(random.integers(2)), int(random.integers(4)))


def cut_boxes(
    corners: npt.NDArray[np.float32], view: View, shape: tuple[int, ...]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Cut boxes as a view cuts its image of `shape`: corners (k, 4) in the view, px, and (m,) which were kept."""
    height, width = (
        min(view.side, length - start) for length, start in zip(shape[-2:], (view.top, view.left), strict=True)
    )
    moved = corners - np.array([view.left, view.top] * 2, np.float32)
    inside = moved.clip(0, np.array([width, height] * 2, np.float32))
    area, visible = ((box[:, 2:] - box[:, :2]).prod(axis=1) for box in (moved, inside))
    kept = visible >= MIN_VISIBLE * area
    left, top, right, bottom = inside[kept].T
    if view.mirror:
        left, right = width - right, width - left
    for _ in range(view.turns):  # counter-clockwise: what was right is up
        left, top, right, bottom = top, width - right, bottom, width - left
        height, width = width, height
    return np.stack([left, top, right, bottom], axis=1), kept


def detect_all(job: Job, model: nn.Module, positions: npt.NDArray[np.int64]) -> tuple[list[Detections], list[Boxes]]:
    """Detect objects in some images. Returns detections and true objects of each."""
    settings: DetectionSettings = job.settings
    bands = select_bands(job.source, job.examples.bands)
    found = []
    for position in positions.tolist():
        pixels = torch.from_numpy(job.examples.image(position)[bands])
        found.append(detect(model, normalise(pixels, job.source, job.examples.scale), settings))
    return found, [Boxes(*job.examples.target(position)) for position in positions.tolist()]


@torch.no_grad()
def detect(model: nn.Module, image: torch.Tensor, settings: DetectionSettings) -> Detections:
    """Detect objects in an image of any size, (band, y, x) normalised float32, by overlapping windows.

    A detection counts in the window whose middle is nearest to its own, and so only once; objects that windows at the
    border of their parts find twice are joined as the detector joins its own.
    """
    device = next(model.parameters()).device
    height, width = image.shape[-2:]
    image = pad(image, settings.window, 0.0).to(device)
    rows, columns = (place_windows(length, settings.window, settings.overlap) for length in image.shape[-2:])
    places = [(row, column) for row in range(len(rows)) for column in range(len(columns))]
    corners, classes, scores = [], [], []
    for start in range(0, len(places), settings.batch):
        some = places[start : start + settings.batch]
        windows = [
            image[:, rows[row] : rows[row] + settings.window, columns[column] : columns[column] + settings.window]
            for row, column in some
        ]
        for (row, column), output in zip(some, model(windows), strict=True):
            boxes = output["boxes"] + torch.tensor([columns[column], rows[row]] * 2, device=device)
            middle = (boxes[:, :2] + boxes[:, 2:]) / 2
            own = _is_between(middle[:, 0], columns, column, settings.window)
            own &= _is_between(middle[:, 1], rows, row, settings.window)
            boxes = clip_boxes_to_image(boxes, (height, width))
            own &= (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
            corners.append(boxes[own])
            classes.append(output["labels"][own] - first_class(settings.detector))
            scores.append(output["scores"][own])
    all_corners, all_classes, all_scores = torch.cat(corners), torch.cat(classes), torch.cat(scores)
    kept = batched_nms(all_corners, all_scores, all_classes, MAX_OVERLAP)
    return Detections(*(part[kept].cpu().numpy() for part in (all_corners, all_classes, all_scores)))


def _is_between(middle: torch.Tensor, starts: Sequence[int], k: int, side: int) -> torch.Tensor:
    """Whether middles, px, lie in the part of an axis that belongs to window k: up to the middle of each overlap."""
    first = (starts[k - 1] + side + starts[k]) / 2 if k else -torch.inf
    last = (starts[k] + side + starts[k + 1]) / 2 if k + 1 < len(starts) else torch.inf
    return (middle >= first) & (middle < last)


def flatten_detections(found: Sequence[Detections]) -> dict[str, npt.NDArray[Any]]:
    """Detections of all images as arrays: `image` (m,) number of the test image, `corners`, `classes` and `scores`."""
    return {
        "image": np.repeat(np.arange(len(found)), [len(its.scores) for its in found]),
        "corners": np.concatenate([its.corners for its in found]),
        "classes": np.concatenate([its.classes for its in found]),
        "scores": np.concatenate([its.scores for its in found]),
    }


def require_trained_classes(job: Job) -> None:
    """Raise InputError naming a test image with a class that no image for training has, labelled in this job or not."""
    examples = job.examples
    others = np.setdiff1d(np.arange(len(examples)), np.concatenate([job.val, job.test]))
    trained = {number for i in examples.split.get("train", others) for number in examples.target(i)[1].tolist()}
    for position in job.test.tolist():
        if lacking := set(examples.target(position)[1].tolist()) - trained:
            raise InputError(
                f"{examples.names[position]}: {examples.classes[min(lacking)]} is in the test split, but in no "
                "training image; change the split, or leave the class out with classes="
            )
