"""How do encoders compare on real labelled sets? `geokr.evaluate` on the sets in `downstream` of the real data.

Rules, written before the first run. The same command as a user's, on each set with every encoder: `scratch`, and those
that `--encoder` names (`imagenet` with `imagenet=FILE`, runs, exports). Sizes are small, so that a CPU is enough:
images of 64 px for all encoders, 1 %, 10 % and 100 % of the labels, three seeds. Nothing is chosen on test images:
grids are the defaults of the command, except that fine-tuning takes 8 passes, at least 60 steps, with a learning rate
of 3e-4 or 1e-3. The tables are printed as they come out; there is no score that passes or fails.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.real_data import MISSING, has_files, real_folder
from geokr import evaluate

SETS = {"scene_rsscn7": "classification", "scene_aid": "classification"}
"""Folder of a labelled set -> task."""
LABELS = ("1%", "10%", "100%")
SETTINGS = ("size=64", "epochs=8", "least_steps=60", "lr=0.0003,0.001")


def main(argv: list[str]) -> int:
    """Run the command on each set. Returns MISSING without the sets, otherwise the command's highest exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks downstream", description=__doc__)
    parser.add_argument("--encoder", nargs="+", default=[], help="encoders in addition to scratch")
    parser.add_argument("--mode", nargs="+", default=["knn", "linear", "finetune"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for the results, to resume from (a temporary one)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings such as model=NAME, imagenet=FILE")
    options = parser.parse_intermixed_args(argv)
    folder = real_folder("downstream")
    if not has_files("downstream", folder, [f"{name}/README.md" for name in SETS]):
        return MISSING
    status = 0
    with tempfile.TemporaryDirectory() as temporary:
        for name, task in SETS.items():
            given = [task, "--data", str(folder / name), "--out", str((options.out or Path(temporary)) / name)]
            given += ["--encoder", "scratch", *options.encoder, "--mode", *options.mode, "--labels", *LABELS]
            given += ["--seeds", str(options.seeds), *SETTINGS, *options.settings]
            status = max(status, evaluate.main(given))
    return status
