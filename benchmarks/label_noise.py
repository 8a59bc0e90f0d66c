"""How much does the teacher gain if the map is out of date? Encoders trained on old labels, judged on true ones.

The benchmark writes sample worlds in which 40 % of the parcels have changed since they were first mapped. It labels
their images with maps of three ages: today's map, and the maps since which 20 % and 40 % of the parcels have changed.
On each it trains a small encoder with the mean teacher (`geokr`) and without it (`supervised`); with `--arm geco
geco-geokr` also with learnt corrections of the labels, alone and with the teacher. It judges all of them, and
random weights, on held-out places by the true shares of today's land cover: KL divergence and top-1 accuracy of the
exported network, and top-1 accuracy of a linear classifier on its frozen features, fitted to the true shares of the
training places. A seed sets the world as well as the weights.
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
from geokr.dataset.index import part_name, read_index, read_summary
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
"""Percentage of the parcels that have changed since the oldest map."""
OUTDATED = (0, 20, 40)
"""Percentage of the parcels that have changed since each map."""
ARMS: dict[str, tuple[str, ...]] = {
    "supervised": ("objective=supervised",),
    "geokr": ("objective=geokr",),
    "geco": ("objective=geco", "consistency=0"),
    "geco-geokr": ("objective=geco", "consistency=1"),
}
"""Ways to learn from a map -> their settings."""
COMPARED = ("geokr", "supervised")
"""The two arms that the last line compares; they are also the default."""
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
  probe: 0
  validate_every: 1000000
  loggers: []
"""


@dataclass(frozen=True, slots=True)
class Score:
    """Scores of one encoder on the held-out places, against the true shares."""

    kl: float
    """KL(truth || prediction), nats; NaN for an encoder whose head was not trained."""
    top1: float
    """Share of tiles whose largest class is right; NaN for an encoder whose head was not trained."""
    probe: float
    """The same share for a linear classifier on the features."""


@dataclass(frozen=True, slots=True)
class Job:
    """One training run."""

    folder: Path
    """Folder of the seed's data sets."""
    seed: int
    outdated: int
    """One of OUTDATED."""
    arm: str
    """One of ARMS."""
    settings: tuple[str, ...]


def main(argv: list[str]) -> int:
    """Run the command. It prints what comes out; no score passes or fails."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks label-noise", description=__doc__)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="seeds of worlds and weights (0 to 4)"
    )
    parser.add_argument("--arm", nargs="+", choices=ARMS, default=[*COMPARED], help="ways to learn (%(default)s)")
    parser.add_argument(
        "--outdated", nargs="+", type=int, choices=OUTDATED, default=[*OUTDATED], help="ages of the map (%(default)s)"
    )
    parser.add_argument("--keep", type=Path, help="folder for data sets and runs (a temporary one)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="training settings to try")
    options = parser.parse_args(argv)
    results: dict[tuple[str, int], list[Score]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        jobs = []
        for seed in options.seeds:
            folder = (options.keep or Path(temporary)) / f"seed{seed}"
            prepare(folder, seed)
            cases = product(options.outdated, options.arm)
            jobs += [Job(folder, seed, *case, tuple(options.settings)) for case in cases]
        # A network this small gains nothing from a second thread.
        with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
            for job, scores in zip(jobs, pool.map(trained_and_judged, jobs), strict=True):
                for name, score in scores.items():
                    results.setdefault((name, job.outdated if name == job.arm else 0), []).append(score)
    print(table(results))
    oldest = max(options.outdated)
    if not {*COMPARED} <= {*options.arm}:
        return 0
    for measure, unit in (("kl", "nats"), ("probe", "top1")):
        ours, peer = ([getattr(score, measure) for score in results[name, oldest]] for name in COMPARED)
        gains = [a - b for a, b in zip(ours, peer, strict=True)]
        print(
            f"case=label-noise-{oldest}-{measure} ours={mean(ours):.4f} peer={mean(peer):.4f} unit={unit} "
            f"ratio={mean(ours) / mean(peer):.3f} gain={mean(gains):+.4f} spread={spread(gains):.4f} seeds={len(gains)}"
        )
    return 0


def trained_and_judged(job: Job) -> dict[str, Score]:
    """Train and judge one run, and random weights once per seed. Raises RuntimeError if training fails."""
    torch.set_num_threads(1)
    folder, run = job.folder, job.folder / f"{job.arm}-{job.outdated}"
    arguments = ["--data", str(folder / f"map-{job.outdated}"), "--out", str(run), f"seed={job.seed}"]
    arguments += ["--params", str(folder / "params.yaml"), *ARMS[job.arm], *job.settings]
    if train.main(arguments):
        raise RuntimeError(f"{run} could not be trained")
    checkpoint = load(run / LAST)
    scores = {job.arm: judge(run, checkpoint, folder)}
    if (job.outdated, job.arm) == (OUTDATED[0], COMPARED[0]):
        scores["random weights"] = judge(run, checkpoint, folder, trained=False)
    return scores


def prepare(folder: Path, seed: int) -> None:
    """Build a sample world's data set under `folder` and label it with the map of each age; today's is the truth."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(PARAMS, encoding="utf-8")
    if (folder / f"map-{OUTDATED[-1]}" / INDEX).exists():  # written last
        return
    write_world(folder / "world", seed, CHANGED / 100)
    world, dataset = folder / "world", folder / "dataset"
    arguments = [
        "--scenes",
        str(world / "scenes"),
        "--landcover",
        str(world / "landcover"),
        "--dem",
        str(world / "dem.tif"),
    ]
    arguments += ["--params", str(folder / "params.yaml"), "--out", str(dataset), "--strict"]
    if build_levir_kr.main(arguments):
        raise RuntimeError(f"{dataset} could not be built")
    index = pq.read_table(dataset / INDEX)
    for outdated in OUTDATED:
        # The world before the last `outdated` per cent of the parcels changed.
        label = shares(dataset, World.from_seed(seed, (CHANGED - outdated) / 100))
        labelled = index
        for k, name in enumerate(read_summary(dataset)["classes"]):
            labelled = labelled.set_column(labelled.schema.get_field_index(name), name, pa.array(label[:, k]))
        copy = folder / f"map-{outdated}"
        copy.mkdir(exist_ok=True)
        (copy / DATASET).write_bytes((dataset / DATASET).read_bytes())
        (copy / TILES).unlink(missing_ok=True)
        (copy / TILES).symlink_to((dataset / TILES).resolve())
        (copy / INDEX).mkdir(exist_ok=True)
        pq.write_table(labelled, copy / INDEX / part_name(0, 1))


def shares(dataset: Path, world: World) -> npt.NDArray[np.float32]:
    """Class shares (tile, class) of the index's tiles by a world's land cover, sampled at every second pixel."""
    legend = read_legend(KNOWLEDGE / "products" / "globeland30.toml")
    code_shares = legend.shares(np.arange(256))
    rows = read_index(dataset, ["scene", "row", "col"])
    scene, row, col = (rows[name].to_numpy() for name in ("scene", "row", "col"))
    result = np.zeros((len(scene), len(legend.classes)), np.float32)
    for name in np.unique(scene):
        attributes = store.open_scene(str(dataset / TILES), str(name)).attrs
        transform: Sequence[float] = np.array(attributes["spatial:transform"], float).tolist()
        tile, stride = int(str(attributes["tile"])), int(str(attributes["stride"]))
        pixel = np.arange(1, tile, 2)  # the common corner of four pixels
        for batch in np.array_split(np.flatnonzero(scene == name), 1 + (scene == name).sum() // 64):
            x = transform[2] + transform[0] * (stride * col[batch, None, None] + pixel[None, None, :])
            y = transform[5] + transform[4] * (stride * row[batch, None, None] + pixel[None, :, None])
            code = world.cover(*np.broadcast_arrays(x, y))
            result[batch] = code_shares[code].reshape(len(batch), -1, len(legend.classes)).mean(axis=1)
    return result


def judge(run: Path, checkpoint: Checkpoint, folder: Path, trained: bool = True) -> Score:
    """Score a run's exported encoder with its head, or if not trained, a network of its kind with random weights."""
    encoder = load_encoder(run)
    if not trained:
        torch.manual_seed(checkpoint.config["seed"])
        encoder.network = build_encoder(checkpoint.config["model"], len(encoder.bands), encoder.size).eval()
    train_features, train_truth = outputs(encoder, folder, "train")
    features, truth = outputs(encoder, folder, "val")
    probe = right(fitted(train_features, train_truth, features), truth)
    if not trained:
        return Score(math.nan, math.nan, probe)
    head = checkpoint.networks[checkpoint.exported]
    logits = F.linear(features, head["head.weight"], head["head.bias"])
    return Score(float(divergence(truth, logits).mean()), right(logits, truth), probe)


@torch.no_grad()
def outputs(encoder: Encoder, folder: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (tile, feature) and true shares (tile, class) of a split's tiles."""
    loader = TileLoader(folder / f"map-{OUTDATED[0]}", Selection(split), bands=encoder.bands, batch=128, shuffle=False)
    return torch.cat([encoder(batch.image) for batch in loader]), torch.from_numpy(loader.fraction)


def fitted(train_features: torch.Tensor, shares: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Logits for `features` from a linear classifier fitted to the training features' shares, all standardised."""
    centre, scale = train_features.mean(dim=0), train_features.std(dim=0) + 1e-6
    train_features, features = (train_features - centre) / scale, (features - centre) / scale
    linear = torch.nn.Linear(train_features.shape[1], shares.shape[1])
    torch.nn.init.zeros_(linear.weight)
    optimiser = torch.optim.LBFGS(linear.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(linear(train_features), shares) + 0.005 * linear.weight.square().sum()
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


def table(results: dict[tuple[str, int], list[Score]]) -> str:
    """A Markdown table of means and standard deviations over the seeds."""

    def cell(values: list[float]) -> str:
        return "" if math.isnan(values[0]) else f"{mean(values):.3f} ± {spread(values):.3f}"

    lines = ["| changed since the map | | KL, nats | top-1 | linear probe, top-1 |", "|---|---|---|---|---|"]
    for (name, outdated), scores in sorted(results.items(), key=lambda item: (item[0][0] in ARMS, item[0][1])):
        columns = zip(*((score.kl, score.top1, score.probe) for score in scores), strict=True)
        age = "" if name == "random weights" else f"{outdated} %"
        lines.append(f"| {age} | {name} | {' | '.join(cell(list(values)) for values in columns)} |")
    return "\n".join(lines)
