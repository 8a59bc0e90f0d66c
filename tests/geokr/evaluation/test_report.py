"""The report: tables for a paper, and galleries of predictions."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geokr import evaluate
from geokr.evaluation.examples import Examples
from geokr.evaluation.report.figures import draw_gallery
from geokr.evaluation.report.page import shorten
from geokr.evaluation.report.tables import Comparison, format_latex
from geokr.evaluation.results import Difference, Row


def test_the_tables_are_beside_it(page: Path) -> None:
    markdown = (page.parent / "tables.md").read_text()
    assert "| labels | 10 % (6) | 100 % (54) |" in markdown
    assert re.search(r"\| scratch \| \d\.\d{3} ± \d\.\d{3} \| ", markdown)
    assert r"<b>a_b & 50%<\|b>.pth - scratch | " in markdown
    latex = (page.parent / "tables.tex").read_text()
    assert r"a\_b \& 50\%" in latex
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 1


def test_another_encoder_is_the_baseline_by_name(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["report", str(page.parent), "--against", "nobody"]) == 2
    assert "no results of the encoder nobody" in capsys.readouterr().err
    assert evaluate.main(["report", str(page.parent / "none")]) == 2
    assert "results.jsonl: no results; run an evaluation first" in capsys.readouterr().err


def test_differences_and_gaps_stand_in_their_columns() -> None:
    rows = {(name, 1.0): Row("t", "d", "s", "m", name, 1.0, "ap", 0.5, 0.1, 2, 30) for name in ("a", "b")}
    rows["a", 0.1] = Row("t", "d", "s", "m", "a", 0.1, "ap", 0.25, 0.0, 1, 3)
    difference = {("b", 1.0): Difference(0.1, -0.05, 0.25, 2)}
    table = Comparison("d, t, m", "ap", "a", (0.1, 1.0), (3, 30), ("a", "b"), rows, difference)
    lines = format_latex(table).splitlines()
    assert r"a & 0.250 & 0.500 $\pm$ 0.100 \\" in lines
    assert r"b &  & 0.500 $\pm$ 0.100 \\" in lines
    assert r"b $-$ a &  & $+0.100 \,[-0.050, +0.250]$ \\" in lines


@pytest.mark.parametrize("task", ["classification", "segmentation", "detection"])
def test_a_gallery_shows_truth_and_both_predictions(task: str, tmp_path: Path) -> None:
    mask = np.zeros((20, 30), np.uint8)
    box = (np.array([[2, 3, 9, 8]], np.float32), np.array([1]))
    label = {"classification": 1, "segmentation": mask, "detection": box}[task]
    predicted = {"classification": 0, "segmentation": mask + 1, "detection": (*box, np.array([0.9]))}[task]
    examples = Examples(
        names=("a",),
        bands=("red", "green", "blue"),
        classes=("one", "two"),
        stratum=np.zeros(1, np.int64),
        group=np.zeros(1, np.int64),
        split={},
        scale=255,
        image=lambda i: np.full((3, 20, 30), 128, np.uint8),
        target=lambda i: label,
    )
    (tmp_path / "gallery.png").write_bytes(draw_gallery(task, examples, [0], [("x", [predicted]), ("y", [predicted])]))
    pixels = np.asarray(Image.open(tmp_path / "gallery.png").convert("RGB")).reshape(-1, 3)
    vermilion = (np.abs(pixels.astype(int) - (0xD5, 0x5E, 0)).max(axis=1) < 40).sum()
    assert vermilion > 100
    assert pixels.shape[0] == 213 * (690 if task == "classification" else 920)  # as high as an image of 20 x 30 is


def test_encoders_have_the_shortest_names_that_tell_them_apart() -> None:
    names = shorten(["scratch", "runs/a/encoder", "runs/b/encoder", "/archive/runs/c", "x/scratch", "c.safetensors"])
    assert [*names.values()] == ["scratch", "a/encoder", "b/encoder", "c", "x/scratch", "c.safetensors"]
