"""How do encoders compare on real labelled sets? `geokr.evaluate` on the sets in `downstream` of the real data.

Rules, written before the first run. The same command as a user's, on each set with every encoder: `scratch`, and those
that `--encoder` names (`imagenet` with `imagenet=FILE`, runs, exports). Sizes are small, so that two processor cores
are enough, and the same for all encoders: see SETS. Where a set comes with a split, it is used; otherwise the command
draws one. Frozen encoders (k-NN, linear) of scene classification have 1 %, 10 % and 100 % of the labels; everything
that trains on pixels for many steps has 10 % and 100 %, and fine-tuned scene classification 10 % alone. Of the aerial
cars one sequence is for each split, since its frames overlap, so that their training split is too small for less than
all of its labels. Segmentation and detection have one learning rate, the same for all encoders. Nothing is chosen on
test images. Each figure is a mean over seeds that are paired between encoders, two by default. The tables are printed
as they come out; there is no score that passes or fails.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.real_data import MISSING, has_files, real_folder
from geokr import evaluate


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One call of the command on a set."""

    task: str
    modes: tuple[str, ...]
    labels: tuple[str, ...]
    settings: tuple[str, ...]


FROZEN = Evaluation("classification", ("knn", "linear"), ("1%", "10%", "100%"), ("size=64",))
FINETUNED = Evaluation(
    "classification", ("finetune",), ("10%",), ("size=64", "epochs=8", "least_steps=60", "lr=0.0003,0.001")
)
DENSE = ("window=96", "overlap=16", "batch=4", "steps=60", "lr=0.001", "linear_lr=0.01")
BOXES = ("batch=2", "steps=80", "lr=0.001")
SETS: dict[str, tuple[Evaluation, ...]] = {
    "scene_rsscn7": (FROZEN, FINETUNED),
    "scene_aid": (FROZEN, FINETUNED),
    "seg_roads": (
        Evaluation("segmentation", ("linear", "finetune"), ("10%", "100%"), (*DENSE, "classes=background,road")),
    ),
    "seg_amazon": (
        Evaluation("segmentation", ("linear", "finetune"), ("10%", "100%"), (*DENSE, "classes=other,forest")),
    ),
    "cloud_l8biome": (
        Evaluation(
            "segmentation",
            ("linear", "finetune"),
            ("10%", "100%"),
            (*DENSE, "classes=clear,cloud,thin_cloud,shadow", "scale=10000"),
        ),
    ),
    "det_cars_kitais": (
        Evaluation(
            "detection",
            ("linear", "finetune"),
            ("100%",),
            (*BOXES, "window=192", "overlap=32", "classes=car", "group=Munich|MOS1|MOS", "val=0.31", "test=0.31"),
        ),
    ),
    "det_trees_naip": (
        Evaluation(
            "detection", ("linear", "finetune"), ("10%", "100%"), (*BOXES, "window=128", "overlap=32", "box=12")
        ),
    ),
}
"""Folder of a labelled set -> how it is evaluated."""


def main(argv: list[str]) -> int:
    """Run the command on each set. Returns MISSING without the sets, otherwise the command's highest exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks downstream", description=__doc__)
    parser.add_argument("--set", nargs="+", choices=SETS, default=list(SETS), help="sets (all)")
    parser.add_argument("--encoder", nargs="+", default=[], help="encoders in addition to scratch")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for the results, to resume from (a temporary one)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings such as model=NAME, imagenet=FILE")
    options = parser.parse_intermixed_args(argv)
    folder = real_folder("downstream")
    if not has_files("downstream", folder, [f"{name}/README.md" for name in options.set]):
        return MISSING
    status = 0
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.set:
            print(f"set={name}", flush=True)
            for case in SETS[name]:
                given = [case.task, "--data", str(folder / name), "--out", str((options.out or Path(temporary)) / name)]
                given += ["--encoder", "scratch", *options.encoder, "--mode", *case.modes, "--labels", *case.labels]
                given += ["--seeds", str(options.seeds), *case.settings, *options.settings]
                status = max(status, evaluate.main(given))
    return status
