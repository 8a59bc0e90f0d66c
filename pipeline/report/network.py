"""What a run came to: its curves, the tiles on which network and map disagree, and what looks alike to the encoder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geokr.evaluation.report.figures import COLOURS, to_png
from geokr.evaluation.report.html import Picture, embed_png
from geokr.loading.selection import Tiles
from geokr.predict import load_predictor
from geokr.pretraining.journal import CONFUSION, LOG
from pipeline.report.cards import Card, Report, group_scenes
from pipeline.report.summary import read_metrics, run_table
from pipeline.report.worldmap import Squares

PREDICTED = 2000
"""Tiles whose shares are predicted, at most."""
WORST = 24
QUERIES = 6
NEIGHBOURS = 4


def make_run(report: Report, run: Path) -> dict[str, Any]:
    """The page of a run. Raises ValueError or OSError naming what cannot be read, or does not fit the data set."""
    checkpoint, predictor = load_predictor(run)
    bands = predictor.encoder.bands
    classes = [*checkpoint.facts["classes"]]
    if unknown := [name for name in classes if name not in report.classes]:
        raise ValueError(f"{run}: learnt {', '.join(unknown)}, which {report.dataset} does not have")
    sample = report.totals.sample
    fitting = [name for name, scene in report.scenes.items() if {*bands} <= {*scene.attributes["bands"]}]
    sample = sample[sample["scene"].isin(fitting) & (sample[classes].sum(axis=1) > 0)]
    if sample.empty:
        raise ValueError(f"{run}: no scene of {report.dataset} has its bands {', '.join(bands)}")
    sample = sample.iloc[np.linspace(0, len(sample) - 1, min(PREDICTED, len(sample))).astype(int)]
    label = sample[classes].to_numpy(dtype=np.float32)
    label = label / label.sum(axis=1, keepdims=True)
    names, scene = np.unique(sample["scene"].to_numpy(dtype=str), return_inverse=True)
    ones = np.ones(len(sample), np.float32)
    row, col = (sample[name].to_numpy(dtype=np.int32) for name in ("row", "col"))
    tiles = Tiles(tuple(names.tolist()), scene.astype(np.int32), row, col, label, ones, ones)
    share, features = predictor.predict(report.dataset, tiles)
    difference = np.abs(share - label).sum(axis=1) / 2
    overlap = find_overlaps(report, sample)

    def describe(k: int, fact: str) -> Card:
        card = report.describe(sample.iloc[k])
        card.shares["network"] = dict(sorted(zip(classes, share[k].tolist(), strict=True), key=lambda pair: -pair[1]))
        return Card(card.title, [fact, *card.facts], card.pictures, card.shares)

    worst: list[int] = []
    for k in np.argsort(-difference, kind="stable").tolist():
        if len(worst) < WORST and not overlap[k][worst].any():
            worst.append(k)
    return {
        "lines": [line.split("  ", 1) for line in run_table(read_metrics(run), run)],
        "pictures": draw_run(run),
        "predicted": len(sample),
        "worst": [describe(k, f"disagreement {difference[k]:.2f}") for k in worst],
        "neighbours": [
            (describe(query, "the tile"), [describe(k, f"similarity {similar:.2f}") for k, similar in found])
            for query, found in find_neighbours(features, label, overlap)
        ],
        "colours": report.colours,
    }


def find_overlaps(report: Report, sample: Any) -> npt.NDArray[np.bool_]:
    """Which tiles share ground, of whatever scene: (tile, tile). Tiles that only touch may count as well."""
    squares, order = Squares(), []
    for name, rows in group_scenes(sample):
        one = sample.iloc[rows]
        blank = {mode: [""] * len(rows) for mode in ("status", "split", "class")}
        squares.add(name, report.scenes[name].attributes, one["row"].to_numpy(), one["col"].to_numpy(), blank)
        order.append(rows)
    back = np.argsort(np.concatenate(order))
    x, y, side = (np.array(values, np.float32)[back] for values in (squares.x, squares.y, squares.side))
    reach = (side[:, None] + side) / 2
    overlap: npt.NDArray[np.bool_] = (np.abs(x[:, None] - x) < reach) & (np.abs(y[:, None] - y) < reach)
    return overlap


def find_neighbours(
    features: npt.NDArray[np.float32], label: npt.NDArray[np.float32], overlap: npt.NDArray[np.bool_]
) -> list[tuple[int, list[tuple[int, float]]]]:
    """For the purest tile of each common class: the tiles elsewhere with the most similar features, and the cosines.

    features: (tile, feature). label: (tile, class). overlap: (tile, tile). No two of the results share ground.
    """
    centred = features - features.mean(axis=0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    common = np.argsort(-label.sum(axis=0), kind="stable")[:QUERIES]
    result = []
    for query in dict.fromkeys(label[:, k].argmax().item() for k in common):
        cosine: npt.NDArray[np.float32] = unit @ unit[query]
        found: list[tuple[int, float]] = []
        for k in np.argsort(-cosine, kind="stable").tolist():
            if len(found) < NEIGHBOURS and not overlap[k][[query, *(one for one, _ in found)]].any():
                found.append((k, float(cosine[k])))
        result.append((query, found))
    return result


def draw_run(run: Path) -> list[Picture]:
    """The curves of student and teacher, and the run's own confusion matrix, if it has drawn one."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in (run / LOG).read_text(encoding="utf-8").splitlines()]
    curves = {
        "training tiles, student": ("train", "kl"),
        "held-out tiles, student": ("val", "student_kl"),
        "held-out tiles, exported network": ("val", "kl"),
        "held-out tiles, the mean label as the prediction": ("val", "kl_of_mean"),
    }
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    for k, (title, (split, name)) in enumerate(curves.items()):
        points = [(row["step"], row[name]) for row in rows if row["split"] == split and name in row]
        if points:
            axes.plot(*zip(*points, strict=True), label=title, color=COLOURS[k], marker="." if split == "val" else None)
    axes.set_xlabel("step")
    axes.set_ylabel("KL(label || prediction), nats")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    pictures = [embed_png("How far the predicted shares are from the labels, while the run went on.", to_png(figure))]
    if (run / CONFUSION).exists():
        caption = "Held-out tiles: what the area of each class is predicted as."
        pictures.append(embed_png(caption, (run / CONFUSION).read_bytes()))
    return pictures
