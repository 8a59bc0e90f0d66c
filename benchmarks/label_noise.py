"""How much does the teacher gain where the map is out of date? Encoders trained on old labels, judged on true ones.

Writes sample worlds of which 40 % of the parcels have changed since they were first mapped, and labels their images
by maps of three ages: of today, and of the times since which 20 % and 40 % of the parcels have changed. Trains a small
encoder on each with the mean teacher (`geokr`) and without (`supervised`), and judges both, and random weights, on
held-out places by the true shares of today's land cover: KL divergence and top-1 of the network that is exported, and
top-1 of a linear classifier on its frozen features, fitted to true shares of the training places. A seed draws the
world as well as the weights.
"""

import argparse
import math
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F  # noqa: N812

from geokr import train
from geokr.dataset import store
from geokr.dataset.index import read_index, read_summary
from geokr.dataset.layout import DATASET, INDEX, TILES
from geokr.encoder import Encoder, build_encoder, load_encoder
from geokr.landcover.legend import KNOWLEDGE, read_legend
from geokr.loading.loader import TileLoader
from geokr.loading.selection import Selection
from geokr.pretraining.checkpoint import LAST, Checkpoint, load
from geokr.pretraining.metrics import divergence
from pipeline import build_levir_kr
from pipeline.sample.files import write_world
from pipeline.sample.world import World

CHANGED = 40
"""Per cent of the parcels that have changed since the oldest map."""
OUTDATED = (0, 20, 40)
"""Per cent of the parcels that have changed since each map."""
OBJECTIVES = ("supervised", "geokr")
PARAMS = """
build:
  grid: {tile: 64, stride: 48}
  index:
    split: {shares: {train: 0.6, val: 0.4}, cell: 2500, seed: 0}
train:
  model: test_resnet
  bands: [red, green, blue, nir]
  image_size: 32
  crop: 1.0
  batch: 64
  epochs: 90
  ema: 0.99
  probe: 0
  validate_every: 1000000
  loggers: []
"""


@dataclass(frozen=True, slots=True)
class Score:
    """On the held-out places, against the truth."""

    kl: float
    """KL(truth || prediction), nats; not a number for an encoder whose head was not trained."""
    top1: float
    """Share of tiles whose largest class is right; not a number for an encoder whose head was not trained."""
    probe: float
    """The same of a linear classifier on the features."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run."""

    folder: Path
    """Of the seed's data sets."""
    seed: int
    outdated: int
    """One of OUTDATED."""
    objective: str
    settings: tuple[str, ...]


def main(argv: list[str]) -> int:
    """The command. Exit status 1 where the teacher's features are worse than those without it on the oldest map."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks label-noise", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="worlds, and weights (0 1 2)")
    parser.add_argument("--keep", type=Path, help="folder for data sets and runs, otherwise temporary")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="training settings to try")
    options = parser.parse_args(argv)
    found: dict[tuple[str, int], list[Score]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        jobs = []
        for seed in options.seeds:
            folder = (options.keep or Path(temporary)) / f"seed{seed}"
            prepare(folder, seed)
            jobs += [Job(folder, seed, *case, tuple(options.settings)) for case in product(OUTDATED, OBJECTIVES)]
        # A network this small has no use for a second thread.
        with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
            for job, scores in zip(jobs, pool.map(trained_and_judged, jobs), strict=True):
                for name, score in scores.items():
                    found.setdefault((name, job.outdated if name == job.objective else 0), []).append(score)
    print(table(found))
    worst = max(OUTDATED)
    ours, peer = ([score.probe for score in found[name, worst]] for name in ("geokr", "supervised"))
    gains = [a - b for a, b in zip(ours, peer, strict=True)]
    print(
        f"case=label-noise-{worst}-probe ours={mean(ours):.4f} peer={mean(peer):.4f} unit=top1 "
        f"ratio={mean(ours) / mean(peer):.3f} gain={mean(gains):+.4f} spread={spread(gains):.4f} seeds={len(gains)}"
    )
    return 0 if mean(gains) >= 0 else 1


def trained_and_judged(job: Job) -> dict[str, Score]:
    """Scores of one run, and once a seed of random weights. Raises RuntimeError where training fails."""
    torch.set_num_threads(1)
    folder, run = job.folder, job.folder / f"{job.objective}-{job.outdated}"
    given = ["--data", str(folder / f"map-{job.outdated}"), "--out", str(run), f"seed={job.seed}"]
    given += ["--params", str(folder / "params.yaml"), f"objective={job.objective}", *job.settings]
    if train.main(given):
        raise RuntimeError(f"{run} could not be trained")
    checkpoint = load(run / LAST)
    scores = {job.objective: judge(run, checkpoint, folder)}
    if (job.outdated, job.objective) == (OUTDATED[0], OBJECTIVES[0]):
        scores["random weights"] = judge(run, checkpoint, folder, trained=False)
    return scores


def prepare(folder: Path, seed: int) -> None:
    """A sample world's data set under `folder`, labelled by the maps of each age; that of today is the truth."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(PARAMS, encoding="utf-8")
    if (folder / f"map-{OUTDATED[-1]}" / INDEX).exists():  # written last
        return
    write_world(folder / "world", seed, CHANGED / 100)
    world, dataset = folder / "world", folder / "dataset"
    given = [
        "--scenes",
        str(world / "scenes"),
        "--landcover",
        str(world / "landcover"),
        "--dem",
        str(world / "dem.tif"),
    ]
    given += ["--params", str(folder / "params.yaml"), "--out", str(dataset), "--strict"]
    if build_levir_kr.main(given):
        raise RuntimeError(f"{dataset} could not be built")
    index = pq.read_table(dataset / INDEX)
    for outdated in OUTDATED:
        # The world as it was when the last `outdated` per cent of the parcels had not changed yet.
        label = shares(dataset, World.from_seed(seed, (CHANGED - outdated) / 100))
        labelled = index
        for k, name in enumerate(read_summary(dataset)["classes"]):
            labelled = labelled.set_column(labelled.schema.get_field_index(name), name, pa.array(label[:, k]))
        copy = folder / f"map-{outdated}"
        copy.mkdir(exist_ok=True)
        (copy / DATASET).write_bytes((dataset / DATASET).read_bytes())
        (copy / TILES).unlink(missing_ok=True)
        (copy / TILES).symlink_to((dataset / TILES).resolve())
        pq.write_table(labelled, copy / INDEX)


def shares(dataset: Path, world: World) -> npt.NDArray[np.float32]:
    """Class shares of the tiles of the index by a world's land cover: (tile, class), from every second pixel."""
    legend = read_legend(KNOWLEDGE / "products" / "globeland30.toml")
    of_code = legend.shares(np.arange(256))
    rows = read_index(dataset, ["scene", "row", "col"])
    scene, row, col = (rows[name].to_numpy() for name in ("scene", "row", "col"))
    found = np.zeros((len(scene), len(legend.classes)), np.float32)
    for name in np.unique(scene):
        about = store.open_scene(str(dataset / TILES), str(name)).attrs
        transform: Sequence[float] = np.array(about["spatial:transform"], float).tolist()
        tile, stride = int(str(about["tile"])), int(str(about["stride"]))
        pixel = np.arange(1, tile, 2)  # corners between four pixels
        for some in np.array_split(np.flatnonzero(scene == name), 1 + (scene == name).sum() // 64):
            x = transform[2] + transform[0] * (stride * col[some, None, None] + pixel[None, None, :])
            y = transform[5] + transform[4] * (stride * row[some, None, None] + pixel[None, :, None])
            code = world.cover(*np.broadcast_arrays(x, y))
            found[some] = of_code[code].reshape(len(some), -1, len(legend.classes)).mean(axis=1)
    return found


def judge(run: Path, checkpoint: Checkpoint, folder: Path, trained: bool = True) -> Score:
    """The exported encoder of a run with its head, or an encoder of its kind with random weights, against the truth."""
    encoder = load_encoder(run)
    if not trained:
        torch.manual_seed(checkpoint.config["seed"])
        encoder.network = build_encoder(checkpoint.config["model"], len(encoder.bands), encoder.size).eval()
    known, known_truth = outputs(encoder, folder, "train")
    features, truth = outputs(encoder, folder, "val")
    probe = right(fitted(known, known_truth, features), truth)
    if not trained:
        return Score(math.nan, math.nan, probe)
    head = checkpoint.networks[checkpoint.exported]
    logits = F.linear(features, head["head.weight"], head["head.bias"])
    return Score(float(divergence(truth, logits).mean()), right(logits, truth), probe)


@torch.no_grad()
def outputs(encoder: Encoder, folder: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and true shares of a split's tiles."""
    loader = TileLoader(folder / f"map-{OUTDATED[0]}", Selection(split), bands=encoder.bands, batch=128, shuffle=False)
    return torch.cat([encoder(batch.image) for batch in loader]), torch.from_numpy(loader.fraction)


def fitted(known: torch.Tensor, shares: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Logits for `features` of a linear classifier fitted to `known` features with `shares`, all standardised."""
    centre, scale = known.mean(dim=0), known.std(dim=0) + 1e-6
    known, features = (known - centre) / scale, (features - centre) / scale
    linear = torch.nn.Linear(known.shape[1], shares.shape[1])
    torch.nn.init.zeros_(linear.weight)
    optimiser = torch.optim.LBFGS(linear.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(linear(known), shares) + 0.005 * linear.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        logits: torch.Tensor = linear(features)
    return logits


def right(logits: torch.Tensor, truth: torch.Tensor) -> float:
    return float((logits.argmax(dim=1) == truth.argmax(dim=1)).double().mean())


def spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def table(found: dict[tuple[str, int], list[Score]]) -> str:
    """Means and standard deviations over the seeds, in Markdown."""

    def cell(values: list[float]) -> str:
        return "" if math.isnan(values[0]) else f"{mean(values):.3f} ± {spread(values):.3f}"

    lines = ["| changed since the map | | KL, nats | top-1 | linear probe, top-1 |", "|---|---|---|---|---|"]
    for (name, outdated), scores in sorted(found.items(), key=lambda item: (item[0][0] in OBJECTIVES, item[0][1])):
        columns = zip(*((score.kl, score.top1, score.probe) for score in scores), strict=True)
        age = "" if name == "random weights" else f"{outdated} %"
        lines.append(f"| {age} | {name} | {' | '.join(cell(list(values)) for values in columns)} |")
    return "\n".join(lines)
