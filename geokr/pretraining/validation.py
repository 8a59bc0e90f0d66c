"""How a run is judged: the predictions for its held-out tiles, and what they are worth."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch

from geokr.encoder import resize
from geokr.loading.loader import Batch
from geokr.pretraining.learner import Learner, pad_batch
from geokr.pretraining.metrics import neighbours, scores
from geokr.pretraining.processes import gather, max_over_ranks, sum_over_ranks


@dataclass(frozen=True, slots=True)
class Validation:
    """What validation found on the held-out tiles."""

    numbers: dict[str, float]
    """Means over tiles. kl: KL(A || p), nats. kl_of_mean: the same for the training tiles' mean label in the place of
    p, which a network must beat. top1: share of tiles whose largest class is right. mae: |A - p|, mean over classes.
    knn_top1, knn_mae: the same of what the most alike training tiles say, by the encoder's features alone."""
    error: dict[str, float]
    """Class -> mean of |A - p|."""
    confusion: list[list[float]]
    """Mean share of a tile that is of one class and was predicted as another: [true][predicted], sums to 1."""
    shares: dict[str, torch.Tensor]
    """label, predicted: (n, class), of this process's tiles."""


@torch.no_grad()
def validate(learner: Learner) -> Validation:
    """Judge the teacher, or the student where there is none."""
    config, process, facts = learner.config, learner.process, learner.facts
    # One tile of equal shares is added to the training tiles, lest a class that they lack makes KL infinite.
    mean = torch.tensor(facts.mean_label, dtype=torch.float64, device=process.device)
    mean = (mean * facts.training_tiles + 1.0 / len(mean)) / (facts.training_tiles + 1)
    model = learner.evaluated
    before = model.training
    model.eval()

    known = None
    if config.probe:
        size = config.batch // process.world
        sample = (pad_batch(some, size) for some in islice(learner.training.epoch(0), -(-config.probe // config.batch)))
        parts = zip(*((features, fraction) for _, features, fraction in predict(learner, sample)), strict=True)
        known = [gather(torch.cat(part), process) for part in parts]  # (m, feature), (m, class)
    found, labels, predicted = [], [], []
    for logits, features, fraction in predict(learner, iter(learner.held_out)):
        sums = scores(logits, fraction, mean)
        if known is not None:
            alike = neighbours(features, known[0], known[1]).double()
            sums["knn_top1"] = (alike.argmax(dim=1) == fraction.argmax(dim=1)).double().sum()
            sums["knn_mae"] = (alike - fraction).abs().mean(dim=1).sum()
        found.append(sums)
        labels.append(fraction.cpu())
        predicted.append(torch.softmax(logits, dim=1).cpu())
    model.train(before)

    total = {name: sum_over_ranks(torch.stack([sums[name] for sums in found]).sum(dim=0), process) for name in found[0]}
    tiles = total.pop("tiles")
    error, confused = total.pop("error") / tiles, total.pop("confusion") / tiles
    numbers = {name: float(value / tiles) for name, value in total.items()} | {"mae": float(error.mean())}
    return Validation(
        numbers,
        dict(zip(facts.classes, error.tolist(), strict=True)),
        confused.tolist(),
        {"label": torch.cat(labels), "predicted": torch.cat(predicted)},
    )


def predict(learner: Learner, batches: Iterator[Batch]) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """What the judged network says of tiles as they are: logits, features and labels of each batch.

    With shared-out weights all processes must take part in each batch: one that has run out computes an empty tile,
    and gives results of no tiles.
    """
    device, config = learner.process.device, learner.config
    model = learner.evaluated
    while max_over_ranks(int((batch := next(batches, None)) is not None), learner.process):
        pixels = torch.zeros(1, len(config.bands), 1, 1, dtype=torch.uint8) if batch is None else batch.image
        image = resize(pixels.to(device, non_blocking=True), config.image_size)
        with learner.precision():
            logits, features = model(learner.normalise(image))
        fraction = logits.new_zeros(0, logits.shape[1]) if batch is None else batch.fraction.to(device)
        yield logits[: len(fraction)].float(), features[: len(fraction)].float(), fraction.float()
