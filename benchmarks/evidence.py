"""Is an encoder better for being pre-trained on land-cover shares? Arms, rules and results: docs/evidence.md.

The rules were written before the first run. Everything is kept in `--keep` and resumed with the same command, cell by
cell. `--arm` and `--seed` compute a part; the table has what is there. Nothing here can be set that the rules fix.
"""

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from benchmarks import imagenet
from benchmarks.real_data import MISSING, has_files, real_folder
from geokr import evaluate, train
from geokr.dataset.layout import INDEX
from geokr.evaluation.results import read_results
from pipeline import build_levir_kr

SIZE = 64
SEARCH_SEED, SEEDS = 100, (0, 1, 2)
"""Seed of the runs that choose the rate, and those of the runs that count."""
WEIGHTS = "imagenet.safetensors"
MCD12C1 = "MCD12C1.A2019001.006.2020220162300.tif"
SETTINGS = (
    f"image_size={SIZE}",
    "bands=red,green,blue",
    "classes=[]",
    "min_known=0.5",
    "batch=64",
    "optimiser=adamw",
    "schedule=cosine",
    "warm_up=0.05",
    "weight_decay=0.05",
    "probe=0",
    "loggers=[]",
)
"""Settings of all arms. They replace those of the presets."""
KEPT = ("distil=1", "start_statistics=true")
FORGOTTEN = ("distil=0", "start_statistics=false")


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to come to an encoder."""

    preset: str | None
    """Preset of the pre-training; None for no pre-training."""
    start: str
    """What it starts from: scratch or imagenet."""
    settings: tuple[str, ...] = ()


ARMS: Mapping[str, Arm] = {
    "scratch": Arm(None, "scratch"),
    "imagenet": Arm(None, "imagenet"),
    "supervised": Arm("geokr", "scratch", ("objective=supervised",)),
    "reference": Arm("reference", "scratch"),
    "geokr": Arm("geokr", "scratch"),
    "parts": Arm("parts", "scratch"),
    "simclr": Arm("simclr", "scratch"),
    "moco": Arm("moco", "scratch"),
    "byol": Arm("byol", "scratch"),
    "softcon": Arm("softcon", "scratch"),
    "geco": Arm("geco", "scratch"),
    "imagenet-geokr": Arm("geokr", "imagenet", FORGOTTEN),
    "imagenet-geokr-kept": Arm("geokr", "imagenet", KEPT),
    "imagenet-parts-kept": Arm("parts", "imagenet", KEPT),
    "imagenet-simclr-kept": Arm("simclr", "imagenet", KEPT),
}
AGAINST = {"scratch": ("scratch", "simclr"), "imagenet": ("imagenet", "imagenet-simclr-kept")}
"""Start of an arm -> the arms that it is compared with. They have the same start."""
BUILD = """
build:
  grid: {tile: 128, stride: 96}
  index:
    split: {shares: {train: 0.9, val: 0.1}, cell: 600000, seed: 0}
"""
"""The data set: cells of several tiles' width, 78 km, are in one split."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One set of labelled images and how it is used."""

    task: str
    modes: tuple[str, ...]
    labels: tuple[str, ...]
    settings: tuple[str, ...]


SEARCH_SET = "scene_aid"
"""Its linear probe with 10 % of the labels chooses the learning rates. It is in no other table."""
SEARCH = Trial("classification", ("linear",), ("10%",), (f"size={SIZE}",))
DENSE = ("window=96", "overlap=16", "batch=4", "steps=80", "lr=0.0003,0.001")
BOXES = ("batch=2", "steps=100", "lr=0.001", "window=128", "overlap=32", "box=12")
RSSCN7 = "scene_rsscn7"
PRIMARY = (RSSCN7, "linear", 0.1)
"""The figure that decides: set, mode and share of the labels."""


@dataclass(frozen=True, slots=True)
class Length:
    """What a number of processor hours decides. Mappings are from an arm's start, scratch or imagenet."""

    models: Mapping[str, str]
    steps: Mapping[str, int]
    """Steps of 64 tiles of a run."""
    search: Mapping[str, int]
    """Steps of a run that chooses the learning rate."""
    rates: Mapping[str, tuple[float, ...]]
    """Learning rates that are tried for each arm."""
    trials: Mapping[str, Trial]
    """Folder of labelled images -> how it is used."""
    settings: tuple[str, ...] = ()


LENGTHS: Mapping[str, Length] = {
    "short": Length(
        models={"scratch": "mobilenetv3_small_050", "imagenet": imagenet.MODEL},
        steps={"scratch": 320, "imagenet": 240},
        search={"scratch": 40, "imagenet": 40},
        rates={"scratch": (1e-3, 3e-3), "imagenet": (3e-4, 1e-3)},
        trials={RSSCN7: Trial("classification", ("knn", "linear"), ("1%", "5%", "10%"), (f"size={SIZE}",))},
        settings=("momentum=0.97",),
    ),
    "long": Length(
        models={"scratch": imagenet.MODEL, "imagenet": imagenet.MODEL},
        steps={"scratch": 2500, "imagenet": 2500},
        search={"scratch": 600, "imagenet": 600},
        rates={"scratch": (3e-4, 1e-3, 3e-3), "imagenet": (3e-4, 1e-3, 3e-3)},
        trials={
            RSSCN7: Trial("classification", ("knn", "linear"), ("1%", "5%", "10%", "100%"), (f"size={SIZE}",)),
            "seg_amazon": Trial("segmentation", ("linear",), ("10%", "100%"), (*DENSE, "classes=other,forest")),
            "seg_roads": Trial("segmentation", ("linear",), ("10%", "100%"), (*DENSE, "classes=background,road")),
            "det_trees_naip": Trial("detection", ("finetune",), ("10%", "100%"), BOXES),
        },
    ),
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where the evidence of one length is kept, and where its labelled sets are."""

    keep: Path
    length: Length
    downstream: Path

    @property
    def results(self) -> Path:
        return self.keep / "results"


def main(argv: list[str]) -> int:
    """Run the command: compute what is missing of the chosen arms and seeds, and print the table of all there is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks evidence", description=__doc__)
    parser.add_argument("--keep", type=Path, default=Path("evidence"), help="folder of data set, runs and results")
    parser.add_argument("--length", choices=LENGTHS, default="short", help="short: four hours of a processor core")
    parser.add_argument("--arm", nargs="*", choices=ARMS, default=list(ARMS), help="arms to compute (all)")
    parser.add_argument("--seed", nargs="*", type=int, choices=SEEDS, default=list(SEEDS), help="seeds to compute")
    options = parser.parse_args(argv)
    length = LENGTHS[options.length]
    corpus, downstream = real_folder("pretrain/bluemarble_z8"), real_folder("downstream")
    if not has_files("evidence", corpus, ["scenes.csv"]) or not has_files(
        "evidence", downstream, [f"{name}/README.md" for name in (SEARCH_SET, *length.trials)]
    ):
        return MISSING
    place = Place(options.keep / options.length, length, downstream)
    place.keep.mkdir(parents=True, exist_ok=True)
    build_dataset(options.keep, corpus / "scenes", real_folder("landcover") / MCD12C1)
    for seed in options.seed:
        for name in options.arm:
            rate = choose_rate(place, name)
            encoder = pretrain(place, name, seed, rate, length.steps[ARMS[name].start])
            for data, trial in length.trials.items():
                judge(place, name, encoder, data, trial, place.results / f"{name}-{seed}")
    print(format_table(collect(place.results)))
    return 0


def build_dataset(keep: Path, scenes: Path, landcover: Path) -> None:
    """Build the tiles that all arms learn from, once. Raises RuntimeError if the build fails."""
    params = keep / "params.yaml"
    params.write_text(BUILD, encoding="utf-8")
    given = [
        "--scenes",
        str(scenes),
        "--landcover",
        str(landcover),
        "--params",
        str(params),
        "--out",
        str(keep / "dataset"),
    ]
    if not (keep / "dataset" / INDEX).exists() and build_levir_kr.main(given):
        raise RuntimeError(f"{keep / 'dataset'} could not be built")
    if not (keep / WEIGHTS).exists() and imagenet.main(["--out", str(keep / WEIGHTS)]):
        raise RuntimeError("the ImageNet weights are not those of timm's network")


def list_settings(place: Place, name: str, seed: int, rate: float, steps: int) -> list[str]:
    """The arguments of `geokr.train` after data and run: preset and settings."""
    arm = ARMS[name]
    start = place.keep.parent / WEIGHTS if arm.start == "imagenet" else "false"
    own = (f"model={place.length.models[arm.start]}", f"pretrained={start}", f"lr={rate:g}", f"seed={seed}")
    return ["--preset", str(arm.preset), *SETTINGS, *place.length.settings, *own, f"steps={steps}", *arm.settings]


def pretrain(place: Place, name: str, seed: int, rate: float, steps: int) -> str:
    """Train an arm, or go on with it, and return what names its encoder to `geokr.evaluate`.

    Raises RuntimeError if it stops.
    """
    if ARMS[name].preset is None:
        return ARMS[name].start
    run = place.keep / "runs" / f"{name}-{seed}-{rate:g}-{steps}"
    given = ["--data", str(place.keep.parent / "dataset"), "--out", str(run)]
    if train.main([*given, *list_settings(place, name, seed, rate, steps)]):
        raise RuntimeError(f"{run} has not finished; the same command goes on with it")
    return str(run)


def judge(place: Place, name: str, encoder: str, data: str, trial: Trial, out: Path) -> None:
    """Evaluate an encoder on a set; cells that are there are not computed again. Raises RuntimeError if it stops."""
    given = [trial.task, "--data", str(place.downstream / data), "--out", str(out), "--encoder", encoder]
    given += ["--mode", *trial.modes, "--labels", *trial.labels, "--seeds", "3", *trial.settings]
    given += [f"imagenet={place.keep.parent / WEIGHTS}"]
    given += [f"model={place.length.models[ARMS[name].start]}"] if ARMS[name].preset is None else []
    if evaluate.main(given):
        raise RuntimeError(f"{out} has not finished; the same command goes on with it")


def choose_rate(place: Place, name: str) -> float:
    """The learning rate of an arm: the best linear probe of the search set after a short run with the search seed."""
    if ARMS[name].preset is None:
        return 0.0
    chosen, start = place.keep / "rates" / f"{name}.json", ARMS[name].start
    if not chosen.exists():
        scores = {}
        for rate in place.length.rates[start]:
            out = place.keep / "search" / f"{name}-{rate:g}"
            encoder = pretrain(place, name, SEARCH_SEED, rate, place.length.search[start])
            judge(place, name, encoder, SEARCH_SET, SEARCH, out)
            scores[rate] = mean(result.value for result in read_results(out))
        chosen.parent.mkdir(exist_ok=True)
        chosen.write_text(json.dumps({"rate": max(scores, key=lambda rate: scores[rate]), "scores": scores}))
    return float(json.loads(chosen.read_text())["rate"])


Scores = dict[tuple[str, str, float], dict[str, dict[int, float]]]
"""(set, mode, share of the labels) -> arm -> seed -> primary metric, mean over the seeds of the evaluation."""


def collect(results: Path) -> Scores:
    """Read the scores of all arms and seeds that are there."""
    scores: Scores = {}
    for name in ARMS:
        for seed in SEEDS:
            values: dict[tuple[str, str, float], list[float]] = {}
            for result in read_results(results / f"{name}-{seed}"):
                values.setdefault((result.data, result.mode, result.labels), []).append(result.value)
            for case, several in values.items():
                scores.setdefault(case, {}).setdefault(name, {})[seed] = mean(several)
    return scores


def verdict(ours: Mapping[int, float], peer: Mapping[int, float]) -> str:
    """What the rules say of two arms, from the seeds that both have: better, worse or not shown."""
    gains = [ours[seed] - peer[seed] for seed in ours if seed in peer]
    if len(gains) < len(SEEDS):
        return f"{len(gains)} of {len(SEEDS)} seeds"
    reach = 4.303 * stdev(gains) / math.sqrt(len(gains))  # 95 % of Student's t with two degrees of freedom
    if min(gains) > 0 or mean(gains) - reach > 0:
        return f"better by {mean(gains):+.3f} ± {reach:.3f}"
    if max(gains) < 0 or mean(gains) + reach < 0:
        return f"worse by {mean(gains):+.3f} ± {reach:.3f}"
    return f"not shown ({mean(gains):+.3f} ± {reach:.3f})"


def format_table(scores: Scores) -> str:
    """Markdown: all figures, and the verdicts of the primary figure."""
    cases = sorted(scores)
    lines = ["| arm | " + " | ".join(f"{data}, {mode}, {labels:.0%}" for data, mode, labels in cases) + " |"]
    lines.append("|---" * (len(cases) + 1) + "|")
    for name in ARMS:
        lines.append(
            f"| {name} | " + " | ".join(format_cell(scores[case].get(name, {}).values()) for case in cases) + " |"
        )
    primary = scores.get(PRIMARY, {})
    for start, peers in AGAINST.items():
        lines += [
            "",
            "| arm | " + " | ".join(f"against {peer}" for peer in peers) + " |",
            "|---" * (len(peers) + 1) + "|",
        ]
        for name in (name for name, arm in ARMS.items() if arm.start == start and name != start):
            found = (verdict(primary.get(name, {}), primary.get(peer, {})) if peer != name else "" for peer in peers)
            lines.append(f"| {name} | " + " | ".join(found) + " |")
    return "\n".join(lines)


def format_cell(values: Iterable[float]) -> str:
    several: Sequence[float] = [*values]
    return f"{mean(several):.3f} ± {stdev(several) if len(several) > 1 else 0:.3f}" if several else ""


if __name__ == "__main__":
    raise SystemExit(main([]))
