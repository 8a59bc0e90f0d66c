"""The example runs as it stands, from an empty folder to a label-efficiency curve."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples/label_efficiency.py"


def test_the_example_draws_a_curve(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, EXAMPLE], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    with (tmp_path / "evaluation/plots/labels.csv").open(encoding="utf-8") as file:
        rows = {(row["encoder"], float(row["labels"])): float(row["mean"]) for row in csv.DictReader(file)}
    assert {share for _, share in rows} == {0.1, 0.3, 1.0}
    names = sorted({encoder for encoder, _ in rows})
    assert names == ["run, linear", "scratch, linear"]
    assert rows["run, linear", 0.1] > rows["scratch, linear", 0.1]
    picture = cv2.imread(str(tmp_path / "label_efficiency.png"))
    assert picture is not None
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
