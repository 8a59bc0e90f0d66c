"""Is an encoder better for being pre-trained on land-cover shares? Arms, rules and results: docs/evidence.md.

The rules were written before the first run. Everything is kept in `--keep` and resumed with the same command, cell by
cell. `--arm` and `--seed` compute a part; the table has what is there. Nothing here can be set that the rules fix.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from benchmarks import imagenet
from benchmarks.evidence_page import collect, format_tables, write_page
from benchmarks.evidence_rules import (
    ARMS,
    BUILD,
    LENGTHS,
    SEARCH,
    SEARCH_SEED,
    SEARCH_SET,
    SEEDS,
    SETTINGS,
    Length,
    Trial,
)
from benchmarks.real_data import MCD12C1, MISSING, has_files, real_folder
from geokr import evaluate, train
from geokr.dataset.layout import INDEX
from geokr.evaluation.results import read_results
from pipeline import build_levir_kr

WEIGHTS = "imagenet.safetensors"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the evidence of one length is kept, and where its labelled sets are."""

    keep: Path
    length: Length
    downstream: Path


def main(argv: list[str]) -> int:
    """Run the command: compute what is missing of the chosen arms and seeds, and print the table of all there is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks evidence", description=__doc__)
    parser.add_argument("--keep", type=Path, default=Path("evidence"), help="folder of data set, runs and results")
    parser.add_argument("--length", choices=LENGTHS, default="short", help="short: four hours of a processor core")
    parser.add_argument("--arm", nargs="*", choices=ARMS, default=list(ARMS), help="arms to compute (all)")
    parser.add_argument("--seed", nargs="*", type=int, choices=SEEDS, default=list(SEEDS), help="seeds to compute")
    parser.add_argument("--page", type=Path, help="also write the results into this Markdown page, with a picture")
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
                judge(place, name, encoder, data, trial, place.keep / "results" / f"{name}-{seed}")
    found = collect(place.keep)
    print(format_tables(found))
    if options.page:
        write_page(options.page, options.length, found)
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


if __name__ == "__main__":
    raise SystemExit(main([]))
