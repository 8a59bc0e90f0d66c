"""Validation of a run: predictions for its held-out tiles, and their metrics."""

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
    """Results of a validation on the held-out tiles."""

    numbers: dict[str, float]
    """Means over tiles. kl: KL(A || p), nats. kl_of_mean: the same with the mean label of the training tiles instead of
    p, which a network must beat. top1: share of tiles with the right largest class. mae: |A - p|, mean over classes.
    knn_top1, knn_mae: the same for the prediction from the most similar training tiles, by the encoder's features
    only."""
    error: dict[str, float]
    """Class -> mean of |A - p| over tiles."""
    confusion: list[list[float]]
    """Mean share of a tile that belongs to one class and was predicted as another: [true][predicted], sums to 1."""
    shares: dict[str, torch.Tensor]
    """label, predicted: (n, class), for the tiles of this process."""


@torch.no_grad()
def validate(learner: Learner) -> Validation:
    """Validate the teacher, or the student if there is no teacher."""
    config, process, facts = learner.config, learner.process, learner.facts
    # One tile with equal shares is added to the training tiles. Otherwise a class that they lack makes the KL infinite.
    mean = torch.tensor(facts.mean_label, dtype=torch.float64, device=process.device)
    mean = (mean * facts.training_tiles + 1.0 / len(mean)) / (facts.training_tiles + 1)
    model = learner.evaluated
    was_training = model.training
    model.eval()

    labelled = None
    if config.probe:
        size = config.batch // process.world
        sample = (
            pad_batch(batch, size) for batch in islice(learner.training.epoch(0), -(-config.probe // config.batch))
        )
        parts = zip(*((features, fraction) for _, features, fraction in predict(learner, sample)), strict=True)
        labelled = [gather(torch.cat(part), process) for part in parts]  # (m, feature), (m, class)
    batch_sums, labels, predicted = [], [], []
    for logits, features, fraction in predict(learner, iter(learner.held_out)):
        sums = scores(logits, fraction, mean)
        if labelled is not None:
            shares = neighbours(features, labelled[0], labelled[1]).double()
            sums["knn_top1"] = (shares.argmax(dim=1) == fraction.argmax(dim=1)).double().sum()
            sums["knn_mae"] = (shares - fraction).abs().mean(dim=1).sum()
        batch_sums.append(sums)
        labels.append(fraction.cpu())
        predicted.append(torch.softmax(logits, dim=1).cpu())
    model.train(was_training)

    total = {
        name: sum_over_ranks(torch.stack([sums[name] for sums in batch_sums]).sum(dim=0), process)
        for name in batch_sums[0]
    }
    tiles = total.pop("tiles")
    error, confusion = total.pop("error") / tiles, total.pop("confusion") / tiles
    numbers = {name: float(value / tiles) for name, value in total.items()} | {"mae": float(error.mean())}
    return Validation(
        numbers,
        dict(zip(facts.classes, error.tolist(), strict=True)),
        confusion.tolist(),
        {"label": torch.cat(labels), "predicted": torch.cat(predicted)},
    )


def predict(learner: Learner, batches: Iterator[Batch]) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Run the validated network on unaugmented tiles: logits, features and labels of each batch.

    If weights are sharded, all processes must take part in each batch. A process without further batches computes an
    empty tile and returns results for no tiles.
    """
    device, config = learner.process.device, learner.config
    model = learner.evaluated
    while max_over_ranks(int((batch := next(batches, None)) is not None), learner.process):
        pixels = torch.zeros(1, len(config.bands), 1, 1, dtype=torch.uint8) if batch is None else batch.image
        image = resize(learner.to_unit(pixels.to(device, non_blocking=True)), config.image_size)
        with learner.precision():
            logits, features = model(learner.normalise(image))
        fraction = logits.new_zeros(0, logits.shape[1]) if batch is None else batch.fraction.to(device)
        yield logits[: len(fraction)].float(), features[: len(fraction)].float(), fraction.float()
