"""What do labels of parts of a tile teach an encoder? Grids of 1, 2, 4 and 8 parts a side, on good and on bad maps.

The benchmark writes sample worlds in which 40 % of the parcels have changed since they were first mapped, and builds
one data set of a world's images. It labels it with four maps of cells of 30 m: today's, those since which 20 % and 40 %
of the parcels have changed, and today's moved by half a cell, 15 m east and 15 m south. On each map it trains a small
encoder with each grid: with 1 part by objective `geokr`, whose label is the tile's whatever the view shows; with more
parts by objective `parts`, whose label is that of the view and of each part. All else is equal: views of half a tile or
more, weights, order, steps. A tile is 64 px of 8 m, 17 cells wide, so a part of 8 x 8 is 2.1 cells wide.

Rules, fixed before the first run. Encoders are frozen and judged on held-out places by today's true land cover:
- `probe`: a linear classifier on the features of a tile, fitted to the true shares of the training places; share of
  tiles whose largest class is right.
- `dense`: a linear classifier on the feature maps, fitted to the true classes of 8 x 8 places of each training tile;
  share of held-out places that are right.
- `seg5`: the same on 16 x 16 places, fitted to 5 % of the training tiles, judged by the mean IoU of the classes that
  occur: segmentation with 5 % of the labels. The tiles are the same for all encoders of a seed.
Maps are all maps of a stride of at least 8 px, interpolated to the places and standardised. A seed sets the world, the
weights and the order. The primary figure is `seg5`. A grid is better than 1 part on a map if it is ahead in every seed,
of which there must be three; otherwise nothing is shown. The default changes only if one grid is better on all four
maps in `seg5` and not worse in `probe` on average.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import mean

import numpy as np
import numpy.typing as npt
import rasterio
import torch
import torch.nn.functional as F  # noqa: N812
from affine import Affine

from benchmarks.label_noise import fitted, right, spread
from geokr import train
from geokr.dataset import store
from geokr.dataset.layout import INDEX, TILES
from geokr.encoder import Encoder, build_encoder, load_encoder, resize, to_unit
from geokr.landcover.legend import KNOWLEDGE, read_legend
from geokr.loading.loader import TileLoader
from geokr.loading.selection import Selection
from pipeline import build_levir_kr
from pipeline.catalog.table import CATALOG
from pipeline.sample.files import SHOTS, surrounding_box, write_sheets, write_world
from pipeline.sample.world import World

CHANGED = 40
"""Percentage of the parcels that have changed since the oldest map."""
MAPS = {"0 %": (0, 0.0), "20 %": (20, 0.0), "40 %": (40, 0.0), "moved": (0, 0.5)}
"""Percentage of the parcels that have changed since a map, and by which part of a cell it is moved."""
GRIDS = (1, 2, 4, 8)
SHARE_OF_LABELS = 0.05
PARAMS = """
build:
  grid: {tile: 64, stride: 48}
  index:
    split: {shares: {train: 0.6, val: 0.4}, cell: 2500, seed: 0}
train:
  model: test_resnet
  bands: [red, green, blue, nir]
  image_size: 64
  crop: 0.5
  batch: 64
  probe: 0
  validate_every: 1000000
  loggers: []
"""


@dataclass(frozen=True, slots=True)
class Score:
    """Scores of one encoder on the held-out places."""

    probe: float
    dense: float
    seg5: float


@dataclass(frozen=True, slots=True)
class Job:
    """One training run; grid 0 stands for random weights."""

    folder: Path
    seed: int
    map: str
    grid: int
    settings: tuple[str, ...]


def main(argv: list[str]) -> int:
    """Run the command. The exit status is 1 if a run fails."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks grid", description=__doc__)
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of worlds and weights (0 to 2)")
    add("--maps", nargs="+", choices=MAPS, default=[*MAPS], help="maps to learn from (all)")
    add("--grids", type=int, nargs="+", choices=GRIDS, default=[*GRIDS], help="grids to compare (all)")
    add("--epochs", type=int, default=12, help="length of a run (12: two hours of a core for all)")
    add("--keep", type=Path, help="folder for data sets and runs (a temporary one)")
    add("settings", nargs="*", metavar="key=value", help="training settings to try")
    options = parser.parse_args(argv)
    settings = (f"epochs={options.epochs}", *options.settings)
    results: dict[tuple[str, int], list[Score]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        jobs = []
        for seed in options.seeds:
            folder = (options.keep or Path(temporary)) / f"seed{seed}"
            prepare(folder, seed, options.maps)
            cases = [(options.maps[0], 0), *product(options.maps, options.grids)]
            jobs += [Job(folder, seed, *case, settings) for case in cases]
        # A network this small gains nothing from a second thread.
        with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
            for job, score in zip(jobs, pool.map(trained_and_judged, jobs), strict=True):
                results.setdefault(("", 0) if job.grid == 0 else (job.map, job.grid), []).append(score)
    print(f"{len(options.seeds)} seeds, {options.epochs} epochs")
    print(table(results))
    for name in options.maps:
        for grid in [g for g in options.grids if g > 1 and 1 in options.grids]:
            ours, peer = ([score.seg5 for score in results[name, g]] for g in (grid, 1))
            gains = [a - b for a, b in zip(ours, peer, strict=True)]
            print(
                f"case=grid-{grid}-map-{name.replace(' ', '')} ours={mean(ours):.4f} peer={mean(peer):.4f} unit=mIoU "
                f"gain={mean(gains):+.4f} spread={spread(gains):.4f} ahead={sum(g > 0 for g in gains)} "
                f"seeds={len(gains)}"
            )
    return 0


def prepare(folder: Path, seed: int, maps: Sequence[str]) -> None:
    """Build a sample world's data set under `folder` and label it with each map."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(PARAMS, encoding="utf-8")
    world, base = folder / "world", folder / "dataset"
    if not (base / INDEX).exists():
        write_world(world, seed, CHANGED / 100)
        build(folder, world / "landcover", base, [])
    for name in maps:
        dataset, (outdated, shift) = folder / f"map {name}", MAPS[name]
        if (dataset / INDEX).exists():
            continue
        sheets = write_map(folder / f"sheets {name}", World.from_seed(seed, (CHANGED - outdated) / 100), shift)
        dataset.mkdir(exist_ok=True)
        for file in (CATALOG, TILES):
            (dataset / file).unlink(missing_ok=True)
            (dataset / file).symlink_to((base / file).resolve())
        for stage in ("labels", "index"):
            build(folder, sheets, dataset, ["--only", stage])


def build(folder: Path, landcover: Path, dataset: Path, more: list[str]) -> None:
    """Run the pipeline. Raises RuntimeError if it fails."""
    world = folder / "world"
    arguments = ["--scenes", str(world / "scenes"), "--landcover", str(landcover), "--dem", str(world / "dem.tif")]
    arguments += ["--params", str(folder / "params.yaml"), "--out", str(dataset), "--strict", *more]
    if build_levir_kr.main(arguments):
        raise RuntimeError(f"{dataset} could not be built")


def write_map(folder: Path, world: World, shift: float) -> Path:
    """Write a world's land cover as sheets whose cells are off by a part of a cell."""
    for path in write_sheets(folder, world, surrounding_box(SHOTS)):
        with rasterio.open(path, "r+") as file:
            rows, cols = np.mgrid[: file.height, : file.width] + 0.5
            file.write(world.cover(*(file.transform * (cols, rows))).astype(np.uint8), 1)
            file.transform = Affine.translation(30 * shift, -30 * shift) * file.transform
    return folder


def trained_and_judged(job: Job) -> Score:
    """Train one run, unless it exists, and judge its encoder. Raises RuntimeError if training fails."""
    torch.set_num_threads(1)
    dataset = job.folder / f"map {job.map}"
    if job.grid == 0:
        return judge(None, job)
    run = job.folder / f"run {job.map} {job.grid}"
    arguments = ["--data", str(dataset), "--out", str(run), "--params", str(job.folder / "params.yaml")]
    arguments += [f"seed={job.seed}", f"grid={job.grid}", f"objective={'geokr' if job.grid == 1 else 'parts'}"]
    if train.main([*arguments, *job.settings]):
        raise RuntimeError(f"{run} could not be trained")
    return judge(load_encoder(run), job)


@torch.no_grad()
def judge(encoder: Encoder | None, job: Job) -> Score:
    """Score an encoder, or random weights, by the rules above."""
    world = World.from_seed(job.seed, CHANGED / 100)
    dataset = job.folder / f"map {job.map}"
    data = []
    for split in ("train", "val"):
        loader = TileLoader(dataset, Selection(split), bands=("red", "green", "blue", "nir"), batch=128, shuffle=False)
        if encoder is None:
            torch.manual_seed(job.seed)
            network = build_encoder("test_resnet", 4, 64).eval()
            levels = loader.measure_levels()
            encoder = Encoder(network, loader.bands, levels.mean, levels.std, 64).eval()
        outputs = [see(encoder, batch.image) for batch in loader]
        features, maps = (torch.cat(values) for values in zip(*outputs, strict=True))
        data.append((features, maps, true_classes(dataset, loader, world)))
    (train_features, train_maps, train_truth), (features, maps, truth) = data
    classes = int(max(train_truth.max(), truth.max())) + 1

    def shares(labels: torch.Tensor) -> torch.Tensor:
        return F.one_hot(labels.flatten(1), classes).float().mean(dim=1)

    def places(values: torch.Tensor, side: int) -> torch.Tensor:
        resized = F.interpolate(values, size=(side, side), mode="bilinear")
        return resized.permute(0, 2, 3, 1).flatten(0, 2)

    with torch.enable_grad():
        probe = right(fitted(train_features, shares(train_truth), features), shares(truth))
        coarse = [labels[:, 1::2, 1::2].flatten() for labels in (train_truth, truth)]
        logits = fitted(places(train_maps, 8), F.one_hot(coarse[0], classes).float(), places(maps, 8))
        few = torch.from_numpy(np.random.default_rng(job.seed).permutation(len(train_maps)))
        few = few[: max(1, round(SHARE_OF_LABELS * len(few)))]
        target = F.one_hot(train_truth[few].flatten(), classes).float()
        segmented = fitted(places(train_maps[few], 16), target, places(maps, 16)).argmax(dim=1)
    dense = float((logits.argmax(dim=1) == coarse[1]).double().mean())
    return Score(probe, dense, mean_iou(segmented, truth.flatten()))


def see(encoder: Encoder, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (tile, feature) and feature maps (tile, channel, 16, 16) of stored pixels."""
    image = (resize(to_unit(pixels, encoder.gain, encoder.offset), encoder.size) - encoder.mean) / encoder.std
    network: torch.nn.Module = encoder.network
    levels = network.forward_intermediates(image, intermediates_only=True)  # type: ignore[operator]
    levels = [level for level in levels if level.shape[-1] * 8 <= image.shape[-1]]
    maps = [F.interpolate(level, size=(16, 16), mode="bilinear") for level in levels]
    return network(image), torch.cat(maps, dim=1)


def true_classes(dataset: Path, loader: TileLoader, world: World) -> torch.Tensor:
    """Class numbers of today's land cover in the middle of 16 x 16 places of each tile: (tile, 16, 16) int64."""
    legend = read_legend(KNOWLEDGE / "products" / "globeland30.toml")
    number = legend.shares(np.arange(256)).argmax(axis=1)
    tiles = loader.selected
    result: npt.NDArray[np.int64] = np.zeros((len(tiles), 16, 16), np.int64)
    for k, name in enumerate(tiles.scenes):
        attributes = store.open_scene(str(dataset / TILES), name).attrs
        a, _, left, _, e, top = np.array(attributes["spatial:transform"], float).tolist()
        tile, stride = int(str(attributes["tile"])), int(str(attributes["stride"]))
        pixel = (np.arange(16) + 0.5) * tile / 16
        for part in np.array_split(here := np.flatnonzero(tiles.scene == k), 1 + len(here) // 64):
            x = left + a * (stride * tiles.col[part, None, None] + pixel[None, None, :])
            y = top + e * (stride * tiles.row[part, None, None] + pixel[None, :, None])
            result[part] = number[world.cover(*np.broadcast_arrays(x, y))]
    return torch.from_numpy(result)


def mean_iou(predicted: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean IoU of the classes that occur."""
    present = truth.unique()  # type: ignore[no-untyped-call]
    both = torch.stack([((predicted == c) & (truth == c)).sum() for c in present])
    either = torch.stack([((predicted == c) | (truth == c)).sum() for c in present])
    return float((both / either).mean())


def table(results: dict[tuple[str, int], list[Score]]) -> str:
    """A Markdown table of means and standard deviations over the seeds."""
    lines = ["| map | parts | probe, top-1 | dense, top-1 | segmentation, 5 %, mIoU |", "|---|---|---|---|---|"]
    for (name, grid), scores in results.items():
        columns = zip(*(astuple(score) for score in scores), strict=True)
        cells = [f"{mean(values):.3f} ± {spread(values):.3f}" for values in columns]
        lines.append(f"| {name} | {f'{grid} x {grid}' if grid else 'random weights'} | {' | '.join(cells)} |")
    return "\n".join(lines)
