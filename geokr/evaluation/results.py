"""Results of an evaluation: one JSON line a cell, tables over seeds, and paired differences with their intervals."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geokr.evaluation.task import Outcome, Prepare
from geokr.storage.files import replace_file
from geokr.storage.inputs import InputError

RESULTS = "results.jsonl"
CELLS = "cells"
"""Folder of the predictions, one file a cell."""


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the results: a cell and what came of it."""

    cell: str
    """Digest of everything that decides the result."""
    task: str
    data: str
    """Name of the data's folder."""
    folder: str
    """Address of the data, as it was given."""
    split: str
    """Digest of the split, whose names are in splits/DIGEST.json."""
    encoder: str
    """As it was asked for."""
    model: str
    digest: str
    """Of the encoder's weights."""
    mode: str
    labels: float
    """Share of the training labels, in 0..1."""
    images: dict[str, int]
    """Number of images for training, validation and testing."""
    seed: int
    primary: str
    """Metric that is compared."""
    metrics: dict[str, float]
    chosen: dict[str, float]
    """What was chosen on the validation images."""
    seconds: float
    settings: dict[str, Any]
    versions: dict[str, str]

    @property
    def value(self) -> float:
        """The primary metric."""
        return self.metrics[self.primary]


def read_results(out: Path, every: bool = False) -> list[Result]:
    """Read the results in a folder, sorted, so that the order of computation does not matter.

    every: also results that were followed by others of the same name, with other weights, settings or images.
    A last line that breaks off, of a process that was killed, is left out. Raises InputError naming a wrong line.
    """
    path = out / RESULTS
    if not path.exists():
        return []
    found: dict[tuple[Any, ...], Result] = {}
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            values = json.loads(line)
            metrics = {name: math.nan if value is None else value for name, value in values.pop("metrics").items()}
            result = Result(metrics=metrics, **values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path}, line {number}: not a result: {' '.join(str(error).split())}") from error
        name = (result.task, result.data, result.encoder, result.mode, result.labels, result.seed)
        found[(result.cell,) if every else name] = result
    return sorted(found.values(), key=lambda r: (r.task, r.data, r.mode, r.encoder, r.labels, r.seed, r.cell))


def append_result(out: Path, result: Result, outcome: Outcome) -> None:
    """Write the predictions of a cell, and then its line, which marks it as done."""
    with replace_file(cell_file(out, result.cell)) as file:
        arrays: dict[str, Any] = {"parts": outcome.parts, **outcome.predictions}
        np.savez_compressed(file, **arrays)
    values = asdict(result)
    values["metrics"] = {name: value if math.isfinite(value) else None for name, value in result.metrics.items()}
    line = json.dumps(values, allow_nan=False).encode() + b"\n"
    with (out / RESULTS).open("ab+") as lines:
        end = lines.seek(0, os.SEEK_END)
        lines.seek(0)
        whole = lines.read().rfind(b"\n") + 1
        if whole < end:  # a line that broke off
            lines.truncate(whole)
        lines.write(line)
        lines.flush()
        os.fsync(lines.fileno())


def cell_file(out: Path, cell: str) -> Path:
    """Predictions of a cell: .npz with `parts`, as in Outcome, and the arrays of `Outcome.predictions`."""
    return out / CELLS / f"{cell}.npz"


def read_parts(out: Path, result: Result) -> npt.NDArray[Any]:
    """Read `Outcome.parts` of a cell. Raises InputError if the file is missing."""
    path = cell_file(out, result.cell)
    try:
        with np.load(path) as arrays:
            parts: npt.NDArray[Any] = arrays["parts"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: the predictions of a cell cannot be read; delete its line in {RESULTS}") from error
    return parts


@dataclass(frozen=True, slots=True)
class Row:
    """Mean over the seeds of an encoder in a mode at a share of the labels."""

    task: str
    data: str
    split: str
    mode: str
    encoder: str
    labels: float
    metric: str
    mean: float
    std: float
    """Standard deviation over the seeds; 0 for one seed."""
    seeds: int
    images: int
    """Labelled training images."""


def tabulate(results: Sequence[Result], metric: str | None = None) -> list[Row]:
    """Average over seeds. metric: by default, the primary metric of each task."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        key = (result.task, result.data, result.split, result.mode, result.encoder, result.labels)
        groups.setdefault(key, []).append(result)
    rows = []
    for key, members in groups.items():
        name = metric or members[0].primary
        values = np.array([member.metrics.get(name, math.nan) for member in members])
        std = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        rows.append(Row(*key, name, float(values.mean()), std, len(values), members[0].images["train"]))
    return rows


def format_table(rows: Sequence[Row]) -> str:
    """Markdown table of one task, data and mode: a row an encoder, a column a share of the labels."""
    encoders = list(dict.fromkeys(row.encoder for row in rows))
    shares = sorted({row.labels for row in rows})
    images = {row.labels: row.images for row in rows}
    cells = {(row.encoder, row.labels): f"{row.mean:.3f} ± {row.std:.3f}" for row in rows}
    lines = ["| labels | " + " | ".join(f"{share:.0%} ({images[share]})" for share in shares) + " |"]
    lines.append("|---" * (len(shares) + 1) + "|")
    for encoder in encoders:
        lines.append(f"| {encoder} | " + " | ".join(cells.get((encoder, share), "") for share in shares) + " |")
    return "\n".join(lines)


def write_summary(out: Path, results: Sequence[Result]) -> None:
    """Write metrics.json, with means over seeds, and plots/labels.csv, the curves of label efficiency, for DVC."""
    rows = tabulate(results)
    metrics: dict[str, Any] = {}
    for row in rows:
        encoders = metrics.setdefault(row.task, {}).setdefault(row.data, {}).setdefault(row.mode, {})
        encoders.setdefault(row.encoder, {})[f"{100 * row.labels:g}%"] = round(row.mean, 6)
    with replace_file(out / "metrics.json") as file:
        file.write((json.dumps(metrics, indent=2, sort_keys=True) + "\n").encode())
    lines = ["task,data,mode,encoder,labels,metric,mean,std"]
    for row in rows:
        names = [f'"{text}"' for text in (row.task, row.data, row.mode, f"{row.encoder}, {row.mode}")]
        lines.append(",".join([*names, f"{row.labels:g}", row.metric, f"{row.mean:.6f}", f"{row.std:.6f}"]))
    with replace_file(out / "plots" / "labels.csv") as file:
        file.write(("\n".join(lines) + "\n").encode())


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better an encoder is than another in the primary metric, over the seeds that both have."""

    mean: float
    low: float
    high: float
    """Bounds of the 95 % interval of the bootstrap."""
    seeds: int


def compare(
    parts: Sequence[npt.NDArray[Any]],
    other_parts: Sequence[npt.NDArray[Any]],
    prepare: Prepare,
    metric: str,
    draws: int = 1000,
) -> Difference:
    """Compare two encoders by a paired bootstrap over seeds and test images.

    parts, other_parts: `Outcome.parts` of each seed, of the same test images and with the same seeds. A draw takes test
    images with replacement, the same for both encoders and all seeds, and seeds with replacement. With one seed, the
    interval covers the choice of test images alone. A draw without a value of the metric is left out.
    """
    if len(parts) != len(other_parts) or not parts:
        raise ValueError(f"{len(parts)} and {len(other_parts)} seeds; pairs are needed")
    random = np.random.default_rng(0)
    images = len(parts[0])
    scorers = [(prepare(a), prepare(b)) for a, b in zip(parts, other_parts, strict=True)]
    once = np.ones(images, np.int64)
    observed = [one(once)[metric] - other(once)[metric] for one, other in scorers]
    differences = []
    for _ in range(draws):
        counts = np.bincount(random.integers(images, size=images), minlength=images)
        seeds = random.integers(len(parts), size=len(parts))
        scored = {s: scorers[s][0](counts)[metric] - scorers[s][1](counts)[metric] for s in set(seeds.tolist())}
        differences.append(np.mean([scored[s] for s in seeds.tolist()]))
    low, high = np.nanpercentile(differences, (2.5, 97.5))
    return Difference(float(np.mean(observed)), float(low), float(high), len(parts))


def labels_to_reach(rows: Sequence[Row], encoder: str, baseline: str) -> tuple[Row | None, Row]:
    """The smallest share of labels with which `encoder` is at least as good as `baseline` with the most labels.

    rows: of one task, data and mode, with the baseline's. Returns both rows; None if the encoder does not get there.
    """
    goal = max((row for row in rows if row.encoder == baseline), key=lambda row: row.labels)
    reached = [row for row in rows if row.encoder == encoder and row.mean >= goal.mean]
    return min(reached, key=lambda row: row.labels, default=None), goal
