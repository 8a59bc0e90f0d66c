"""Semantic segmentation, of clouds and snow as well: a class for each pixel, from images and masks."""

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import BeforeValidator, Field, model_validator
from torch import nn

from geokr.evaluation.backbones import choose_device, normalise, select_bands
from geokr.evaluation.confusion import count_confusion, score_classes, score_confusion
from geokr.evaluation.examples import Examples, IntArray, PixelArray
from geokr.evaluation.mask_classes import IGNORE
from geokr.evaluation.masks import MaskSettings, read_masks
from geokr.evaluation.optimising import Optimiser
from geokr.evaluation.segmenters import LinearSegmenter, build_segmenter
from geokr.evaluation.task import Job, Outcome, Scorer, Settings, score
from geokr.evaluation.windows import draw_view, pad, predict_windows
from geokr.settings import split_numbers

CACHE_BYTES = 1 << 30
"""Training images and masks are kept in memory up to about this size."""


class SegmentationSettings(MaskSettings):
    """Settings of segmentation."""

    decoder: Literal["unet", "fpn", "upernet"] = "fpn"
    """Decoder of a fine-tuned network, as segmentation-models-pytorch has them. Plain transformers, whose maps have one
    scale, are under DPT."""
    window: Annotated[int, Field(ge=32, multiple_of=32, strict=True)] = 128
    """Side of the views to train on and of the windows to predict, px of the images: the same for every encoder."""
    overlap: Annotated[int, Field(ge=0, strict=True)] = 32
    """Of neighbouring windows in testing, px."""
    batch: Annotated[int, Field(ge=2, strict=True)] = 8
    """Views a step, and windows at once in testing."""
    steps: Annotated[int, Field(ge=1, strict=True)] = 200
    """Training steps, for any number of labels and each learning rate."""
    linear_lr: Annotated[
        tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1), BeforeValidator(split_numbers)
    ] = (1e-3, 1e-2)
    """Learning rates of which mode linear chooses one on the validation images: the same for every encoder."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01

    @model_validator(mode="after")
    def _check_overlap(self) -> "SegmentationSettings":
        if self.overlap >= self.window:
            raise ValueError(f"overlap={self.overlap} px must be less than window={self.window} px")
        return self


class Segmentation:
    """The task. A part of the outcome is the confusion matrix of a test image."""

    name = "segmentation"
    modes: tuple[str, ...] = ("linear", "finetune")
    """linear: a 1 x 1 convolution on the frozen encoder's maps of all scales. finetune: encoder and decoder."""
    primary = "miou"
    settings: type[Settings] = SegmentationSettings

    def read(self, folder: Path, settings: SegmentationSettings) -> Examples:
        return read_masks(folder, settings)

    def run(self, job: Job) -> Outcome:
        """Train a network with each learning rate, and test the best on the validation images.

        Raises ValueError if training diverges with every learning rate.
        """
        grid = job.settings.lr if job.mode == "finetune" else job.settings.linear_lr
        best, best_lr, best_score = None, 0.0, -1.0
        for lr in grid:
            network = train(job, lr)
            if network is None:
                continue
            reached = 0.0
            if len(grid) > 1:
                parts = count_all(job, job.val, predict_all(job, network, job.val))
                reached = float(np.nan_to_num(score_confusion(parts.sum(axis=0))["miou"]))
            if reached > best_score:
                best, best_lr, best_score = network, lr, reached
        if best is None:
            raise ValueError(f"{job.source.name}: training diverged with each lr of {grid}; add smaller ones")
        predictions = predict_all(job, best, job.test)
        parts = count_all(job, job.test, predictions)
        return Outcome(
            metrics=score(self.prepare, parts) | score_classes(parts.sum(axis=0), job.examples.classes),
            parts=parts,
            predictions=stack_masks(predictions),
            chosen={"lr": best_lr},
        )

    def prepare(self, parts: npt.NDArray[Any]) -> Scorer:
        """miou and f1: means over the classes that occur. accuracy: share of pixels with the right class."""
        return lambda counts: score_confusion(np.tensordot(counts, parts, axes=1))


def build(job: Job) -> nn.Module:
    """Build the network of a job: (n, band, window, window) normalised float -> (n, class, window, window) scores."""
    classes, settings = len(job.examples.classes), job.settings
    if job.mode == "linear":
        return LinearSegmenter(job.source, classes, job.seed, settings.window)
    return build_segmenter(job.source, settings.decoder, classes, job.seed, settings.window)


def train(job: Job, lr: float) -> nn.Module | None:
    """Train a network on views of the labelled images. None if the loss is no longer a number.

    AdamW with a warm-up and half a cosine; cross-entropy, averaged over the pixels of a step that have a class.
    """
    settings: SegmentationSettings = job.settings
    device = choose_device(settings.device)
    network = build(job).to(device).train()
    optimiser = Optimiser(network.parameters(), lr, settings.weight_decay, settings.steps)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(job.seed)  # for dropout
        for image, target in draw_batches(job):
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                scores = network(image.to(device))
            loss = mean_cross_entropy(scores.float(), target.to(device))
            if not torch.isfinite(loss):
                return None
            optimiser.step(loss)
    return network.eval()


def mean_cross_entropy(scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean over the pixels that have a class, 0 if none has. scores: (n, class, y, x). target: (n, y, x) int64."""
    total = F.cross_entropy(scores, target, ignore_index=IGNORE, reduction="sum")
    return total / (target != IGNORE).sum().clamp(min=1)


def draw_batches(job: Job) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Draw the batches of a training: (n, band, window, window) normalised float32, (n, window, window) int64.

    Each image comes once before one comes again. Order and views are a function of the job's seed and images alone.
    Where an image is smaller than the window, the rest is 0 and has no class.
    """
    settings: SegmentationSettings = job.settings
    read, bands = cache_examples(job.examples), select_bands(job.source, job.examples.bands)
    random = np.random.default_rng([job.seed, len(job.train)])
    rounds = math.ceil(settings.steps * settings.batch / len(job.train))
    order = np.concatenate([random.permutation(job.train) for _ in range(rounds)])
    for step in range(settings.steps):
        images, targets = [], []
        for i in order[step * settings.batch : (step + 1) * settings.batch].tolist():
            pixels, mask = read(i)
            view = draw_view((mask.shape[0], mask.shape[1]), settings.window, random)
            image = normalise(torch.from_numpy(view.cut(pixels[bands])), job.source, job.examples.scale)
            images.append(pad(image, settings.window, 0.0))
            targets.append(pad(torch.from_numpy(view.cut(mask).astype(np.int64)), settings.window, IGNORE))
        yield torch.stack(images), torch.stack(targets)


def cache_examples(examples: Examples) -> Callable[[int], tuple[PixelArray, npt.NDArray[np.uint8]]]:
    """A function that reads an image and its mask, and keeps those read last, up to CACHE_BYTES."""

    def read(i: int) -> tuple[PixelArray, npt.NDArray[np.uint8]]:
        return examples.image(i), examples.target(i)

    return lru_cache(max(1, CACHE_BYTES // sum(part.nbytes for part in read(0))))(read)


def predict_all(job: Job, network: nn.Module, positions: IntArray) -> list[npt.NDArray[np.uint8]]:
    """Predict the class of each pixel of some images, each in windows: (y, x) uint8 of each image."""
    settings: SegmentationSettings = job.settings
    device, bands = choose_device(settings.device), select_bands(job.source, job.examples.bands)
    result = []
    for i in positions.tolist():
        pixels = torch.from_numpy(job.examples.image(i)[bands]).to(device)
        image = normalise(pixels, job.source, job.examples.scale)
        classes = len(job.examples.classes)
        shares = predict_windows(network, image, classes, settings.window, settings.overlap, settings.batch)
        result.append(shares.argmax(dim=0).to(torch.uint8).cpu().numpy())
    return result


def count_all(job: Job, positions: IntArray, predictions: list[npt.NDArray[np.uint8]]) -> IntArray:
    """Confusion matrices of some images: (position, class, predicted) int64."""
    pairs = zip(positions.tolist(), predictions, strict=True)
    classes = len(job.examples.classes)
    return np.stack([count_confusion(job.examples.target(i), predicted, classes) for i, predicted in pairs])


def stack_masks(masks: list[npt.NDArray[np.uint8]]) -> dict[str, npt.NDArray[Any]]:
    """Stack masks of any sizes: `masks` (n, y, x) uint8, with IGNORE beyond a smaller one, and `shapes` (n, 2)."""
    shapes = np.array([mask.shape for mask in masks])
    stack = np.full((len(masks), *shapes.max(axis=0)), IGNORE, np.uint8)
    for k, mask in enumerate(masks):
        stack[k, : mask.shape[0], : mask.shape[1]] = mask
    return {"masks": stack, "shapes": shapes}
