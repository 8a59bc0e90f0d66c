"""Scene classification: nearest neighbours and a linear probe on frozen features, and fine-tuning."""

import warnings
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import BeforeValidator, Field
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from geokr.evaluation.backbones import EncoderSource, build_network, choose_device, normalise, select_bands
from geokr.evaluation.examples import Examples, IntArray
from geokr.evaluation.folders import read_labelled_folder
from geokr.evaluation.optimising import Optimiser
from geokr.evaluation.task import Job, Outcome, Scorer, Settings, score
from geokr.settings import split_numbers
from geokr.storage.inputs import InputError

FloatArray = npt.NDArray[np.float32]


class ClassificationSettings(Settings):
    """Settings of scene classification."""

    size: Annotated[int, Field(ge=0, strict=True)] = 0
    """Side of the images that an encoder sees, px. 0: the size that each encoder was trained with."""
    neighbours: Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(split_numbers)] = (1, 5, 20)
    """Numbers of neighbours of which k-NN chooses one on the validation images."""
    regularisation: Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(split_numbers)] = (
        0.001,
        0.01,
        0.1,
        1.0,
        10.0,
    )
    """Inverse strengths C of which the linear probe chooses one on the validation images."""
    epochs: Annotated[int, Field(ge=1, strict=True)] = 30
    """Passes of fine-tuning over the labelled images."""
    least_steps: Annotated[int, Field(ge=1, strict=True)] = 100
    """Steps of fine-tuning at least, for few labels."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05


class Classification:
    """The task: one class an image. A part of the outcome is the true and the predicted class of a test image."""

    name = "classification"
    modes: tuple[str, ...] = ("knn", "linear", "finetune")
    primary = "accuracy"
    settings: type[Settings] = ClassificationSettings

    def read(self, folder: Path, settings: ClassificationSettings) -> Examples:
        return read_labelled_folder(folder, settings)

    def run(self, job: Job) -> Outcome:
        classes = job.examples.stratum
        for part, positions in (("validation", job.val), ("test", job.test)):
            if lacking := sorted(set(classes[positions].tolist()) - set(classes[job.train].tolist())):
                raise InputError(
                    f"{job.examples.names[positions[classes[positions] == lacking[0]][0]]}: the class "
                    f"{job.examples.classes[lacking[0]]} is in the {part} split, but in no training image"
                )
        match job.mode:
            case "knn":
                predicted, chosen = classify_by_neighbours(job)
            case "linear":
                predicted, chosen = classify_by_probe(job)
            case _:
                predicted, chosen = classify_by_finetuning(job)
        parts = np.stack([classes[job.test], predicted], axis=1)
        metrics = score(self.prepare, parts) | score_classes(parts, job.examples.classes)
        return Outcome(metrics, parts, {"true": classes[job.test], "predicted": predicted}, chosen)

    def prepare(self, parts: npt.NDArray[Any]) -> Scorer:
        """accuracy: share of images with the right class. f1: mean over the classes that occur in a draw."""
        return lambda counts: score_predictions(parts.repeat(counts, axis=0))


def score_predictions(parts: npt.NDArray[Any]) -> dict[str, float]:
    """Metrics of predictions: (image, 2) true and predicted class."""
    f1 = [value for value in f1_of_classes(parts, int(parts.max()) + 1) if np.isfinite(value)]
    return {"accuracy": float((parts[:, 0] == parts[:, 1]).mean()), "f1": float(np.mean(f1))}


def f1_of_classes(parts: npt.NDArray[Any], count: int) -> npt.NDArray[np.float64]:
    """F1 of each class, 2 tp / (2 tp + fp + fn): (count,); not a number for one neither present nor predicted."""
    hits = np.bincount(parts[parts[:, 0] == parts[:, 1], 0], minlength=count)
    total = np.bincount(parts[:, 0], minlength=count) + np.bincount(parts[:, 1], minlength=count)
    with np.errstate(invalid="ignore"):
        result: npt.NDArray[np.float64] = 2 * hits / total
    return result


def score_classes(parts: npt.NDArray[Any], classes: tuple[str, ...]) -> dict[str, float]:
    """F1 of each class by name: `f1/NAME`."""
    return {f"f1/{name}": float(v) for name, v in zip(classes, f1_of_classes(parts, len(classes)), strict=True)}


@lru_cache(maxsize=1)
def load_pixels(examples: Examples, bands: tuple[int, ...], size: int) -> torch.Tensor:
    """Read all images of a set: (n, band, size, size), uint8 or uint16, resized as a whole."""

    def load(i: int) -> torch.Tensor:
        pixels = examples.image(i)
        if 0 in pixels.shape:
            raise InputError(f"{examples.names[i]}: the image is empty")
        image = torch.from_numpy(pixels[list(bands)])
        if image.shape[-2:] == (size, size):
            return image
        resized = F.interpolate(image[None].float(), size=(size, size), mode="bilinear", antialias=True)[0]
        return resized.round().to(image.dtype)

    return torch.stack([load(i) for i in range(len(examples))])


@lru_cache(maxsize=1)
def compute_features(
    examples: Examples, source: EncoderSource, seed: int, size: int, batch: int, device: str
) -> FloatArray:
    """Features of all images by the frozen encoder: (n, feature). seed: of random weights; 0 for others."""
    network = build_network(source, seed, size).eval().to(choose_device(device))
    pixels = load_pixels(examples, tuple(select_bands(source, examples.bands)), size)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(pixels), batch):
            part = pixels[start : start + batch].to(choose_device(device))
            parts.append(network(normalise(part, source, examples.scale)).float().cpu())
    return torch.cat(parts).numpy()


def features_of(job: Job) -> FloatArray:
    """Features of all images for a job; computed once for all jobs with the same encoder, one after the other."""
    settings = job.settings
    seed = job.seed if job.source.weights == "random" else 0
    size = settings.size or job.source.size
    return compute_features(job.examples, job.source, seed, size, settings.batch, settings.device)


def classify_by_neighbours(job: Job) -> tuple[IntArray, dict[str, float]]:
    """Predict by a majority of the nearest labelled images, by cosine; the similarity decides a draw."""
    features, classes = features_of(job), job.examples.stratum
    features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)

    def predict(positions: IntArray, neighbours: int) -> IntArray:
        similarity = features[positions] @ features[job.train].T
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :neighbours]
        votes = np.zeros((len(positions), len(job.examples.classes)))
        rows = np.arange(len(positions))[:, None]
        np.add.at(votes, (rows, classes[job.train][nearest]), 1 + 1e-3 * np.take_along_axis(similarity, nearest, 1))
        winner: IntArray = votes.argmax(axis=1)
        return winner

    choices = [k for k in job.settings.neighbours if k <= len(job.train)] or [1]
    best = max(choices, key=lambda k: ((predict(job.val, k) == classes[job.val]).mean(), -k))
    return predict(job.test, best), {"neighbours": float(best)}


def classify_by_probe(job: Job) -> tuple[IntArray, dict[str, float]]:
    """Predict by logistic regression on standardised features, by scikit-learn."""
    features, classes = features_of(job).astype(np.float64), job.examples.stratum
    scaler = StandardScaler().fit(features[job.train])
    train, val, test = (scaler.transform(features[positions]) for positions in (job.train, job.val, job.test))
    best: tuple[float, float, Any] = (-1.0, 0.0, None)
    for strength in sorted(job.settings.regularisation):
        with warnings.catch_warnings():
            # With one label a class, scikit-learn asks whether the classes might be real numbers.
            warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
            probe = LogisticRegression(C=strength, max_iter=2000).fit(train, classes[job.train])
        accuracy = float(probe.score(val, classes[job.val]))
        if accuracy > best[0]:  # of equals, the strongest regularisation
            best = accuracy, strength, probe
    return best[2].predict(test), {"C": best[1]}


def classify_by_finetuning(job: Job) -> tuple[IntArray, dict[str, float]]:
    """Predict by the whole network, trained once at each learning rate; validation chooses among them."""
    best: tuple[tuple[float, float], float, IntArray | None] = ((-1.0, 0.0), 0.0, None)
    classes = torch.from_numpy(job.examples.stratum)
    for lr in job.settings.lr:
        network = finetune(job, lr)
        val = predict_scores(network, job, job.val)
        accuracy = float((val.argmax(1) == classes[job.val]).float().mean())
        rank = (accuracy, -float(F.cross_entropy(val, classes[job.val])))
        if best[2] is None or rank > best[0]:
            best = rank, lr, predict_scores(network, job, job.test).argmax(1).numpy()
    assert best[2] is not None  # the settings have at least one learning rate
    return best[2], {"lr": best[1]}


def job_pixels(job: Job) -> torch.Tensor:
    bands = tuple(select_bands(job.source, job.examples.bands))
    return load_pixels(job.examples, bands, job.settings.size or job.source.size)


def finetune(job: Job, lr: float) -> nn.Module:
    """Train the encoder and a linear layer, which starts from zeros for every encoder: (n, band, y, x) -> (n, class).

    AdamW with a warm-up and half a cosine. Views are mirrored and turned by right angles. Order and views depend on
    the job's seed and images alone.
    """
    settings, device = job.settings, choose_device(job.settings.device)
    network = build_network(job.source, job.seed, settings.size)
    head = nn.Linear(count_features(network, job), len(job.examples.classes))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    model = nn.Sequential(network, head).train().to(device)
    batch = min(settings.batch, len(job.train))
    steps = max(settings.least_steps, settings.epochs * len(job.train) // batch)
    optimiser = Optimiser(model.parameters(), lr, settings.weight_decay, steps)
    pixels, classes = job_pixels(job), torch.from_numpy(job.examples.stratum)
    random = np.random.default_rng([job.seed, len(job.train)])
    order = np.concatenate([random.permutation(job.train) for _ in range(steps * batch // len(job.train) + 1)])
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(job.seed)  # of dropout
        for step in range(steps):
            positions = order[step * batch : (step + 1) * batch]
            turned = [turn(pixels[i], int(random.integers(8))) for i in positions]
            image = normalise(torch.stack(turned).to(device), job.source, job.examples.scale)
            loss = F.cross_entropy(model(image), classes[positions].to(device))
            optimiser.step(loss)
    return model.eval()


@torch.no_grad()
def count_features(network: nn.Module, job: Job) -> int:
    """Number of features of an encoder."""
    size = job.settings.size or job.source.size
    return int(network.eval()(torch.zeros(1, len(job.source.bands), size, size)).shape[1])


def turn(image: torch.Tensor, way: int) -> torch.Tensor:
    """One of the eight ways to mirror and turn a square. way: 0..7."""
    turned = torch.rot90(image, way % 4, (-2, -1))
    return turned.flip(-1) if way >= 4 else turned


@torch.inference_mode()
def predict_scores(network: nn.Module, job: Job, positions: IntArray) -> torch.Tensor:
    """(position, class) float32 on the CPU."""
    pixels, device, batch = job_pixels(job), choose_device(job.settings.device), job.settings.batch
    parts = [pixels[positions[start : start + batch]].to(device) for start in range(0, len(positions), batch)]
    return torch.cat([network(normalise(part, job.source, job.examples.scale)).float().cpu() for part in parts])
