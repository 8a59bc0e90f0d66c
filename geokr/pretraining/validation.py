"""Validation of a run: predictions for its held-out tiles, and their metrics."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from geokr.encoder import resize
from geokr.loading.loader import Batch
from geokr.pretraining.learner import Learner, pad_batch
from geokr.pretraining.metrics import divergence, neighbours, scores
from geokr.pretraining.processes import gather, max_over_ranks, sum_over_ranks


@dataclass(frozen=True, slots=True)
class Validation:
    """Results of a validation on the held-out tiles."""

    numbers: dict[str, float]
    """Means over tiles. kl: KL(A || p), nats. student_kl: the same of the student, if a teacher is validated.
    kl_of_mean: the same with the mean label of the training tiles instead of p, which a network must beat. top1: share
    of tiles with the right largest class. mae: |A - p|, mean over classes. knn_top1, knn_mae: the same for the
    prediction from the most similar of `probe` training tiles, by the encoder's features only."""
    error: dict[str, float]
    """Class -> mean of |A - p| over tiles."""
    confusion: list[list[float]]
    """Mean share of a tile that belongs to one class and was predicted as another: [true][predicted], sums to 1."""
    shares: dict[str, torch.Tensor]
    """label, predicted: (n, class), for the tiles of this process."""


@torch.no_grad()
def validate(learner: Learner) -> Validation:
    """Validate the teacher, or the student if there is no teacher. Of a teacher's student, only the KL is computed."""
    config, process, facts = learner.config, learner.process, learner.facts
    # One tile with equal shares is added to the training tiles. Otherwise a class that they lack makes the KL infinite.
    mean = torch.tensor(facts.mean_label, dtype=torch.float64, device=process.device)
    mean = (mean * facts.training_tiles + 1.0 / len(mean)) / (facts.training_tiles + 1)
    networks = [learner.evaluated, *([] if learner.evaluated is learner.student else [learner.student])]
    modes = {module: module.training for network in networks for module in network.modules()}
    for network in networks:
        network.eval()

    labelled = None
    if config.probe:
        sample = learner.training.sample(config.probe)
        parts = zip(*((f, fraction) for [(_, f)], fraction in predict(learner, networks[:1], sample)), strict=True)
        labelled = [gather(torch.cat(part), process) for part in parts]  # (m, feature), (m, class)
    batch_sums, labels, predicted = [], [], []
    for [(logits, features), *others], fraction in predict(learner, networks, iter(learner.held_out)):
        sums = scores(logits, fraction, mean)
        for student_logits, _ in others:
            sums["student_kl"] = divergence(fraction.double(), student_logits.double()).sum()
        if labelled is not None:
            shares = neighbours(features, labelled[0], labelled[1]).double()
            sums["knn_top1"] = (shares.argmax(dim=1) == fraction.argmax(dim=1)).double().sum()
            sums["knn_mae"] = (shares - fraction).abs().mean(dim=1).sum()
        batch_sums.append(sums)
        labels.append(fraction.cpu())
        predicted.append(torch.softmax(logits, dim=1).cpu())
    for module, mode in modes.items():
        module.training = mode

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


def predict(
    learner: Learner, networks: Sequence[nn.Module], batches: Iterator[Batch]
) -> Iterator[tuple[list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]]:
    """Run networks on unaugmented tiles: for each batch, logits and features of each network, and the labels.

    All batches are computed with the same number of tiles, so that a compiled network has one graph: short ones are
    filled up with empty tiles, whose results are dropped. If weights are sharded, all processes must take part in each
    batch. A process without further batches returns results for no tiles.
    """
    device, config = learner.process.device, learner.config
    size = learner.training.batch
    while max_over_ranks(int((batch := next(batches, None)) is not None), learner.process):
        empty = torch.zeros(size, len(config.bands), 1, 1, dtype=getattr(torch, learner.facts.pixel_type))
        pixels = empty if batch is None else pad_batch(batch, size).image
        tiles = 0 if batch is None else len(batch.image)
        image = learner.normalise(
            resize(learner.to_unit(pixels.to(device, non_blocking=True)), config.image_size)
        )  # (size, band, y, x)
        with learner.precision():
            outputs = [network(image) for network in networks]
        fraction = (
            torch.zeros(0, len(learner.facts.classes), device=device) if batch is None else batch.fraction.to(device)
        )
        yield [(output[0][:tiles].float(), output[1][:tiles].float()) for output in outputs], fraction.float()
