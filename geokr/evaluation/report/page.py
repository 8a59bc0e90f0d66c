"""The report: one HTML file that opens without a network, and the tables for a paper beside it."""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geokr.evaluation.backbones import SCRATCH
from geokr.evaluation.examples import Examples
from geokr.evaluation.protocols import choose_task
from geokr.evaluation.report.figures import draw_confusion, draw_curves, draw_gallery
from geokr.evaluation.report.html import Links, Picture, embed_png, render_page
from geokr.evaluation.report.tables import Comparison, compare_encoders, format_latex, format_markdown, list_cells
from geokr.evaluation.results import RESULTS, Result, cell_file, read_parts, read_results
from geokr.evaluation.task import Task, score
from geokr.storage.files import replace_file
from geokr.storage.inputs import InputError

PAGE, MARKDOWN, LATEX = "report.html", "tables.md", "tables.tex"
IMAGES = 3
"""Images of a gallery in which one encoder is better, and in which the other is."""
TEMPLATE = """{% extends "base" %}
{% from "parts" import show %}
{% block body %}
{% for section in sections %}
<section>
<h2>{{ section.table.title }}</h2>
<p class="note">{{ section.table.metric }} on the test images: mean ± standard deviation over the seeds.</p>
<table>
<tr><th>labels (images)</th>
{% for share in section.table.shares %}
<th>{{ "%.4g" | format(100 * share) }} % ({{ section.table.images[loop.index0] }})</th>
{% endfor %}</tr>
{% for encoder, means, differences in section.cells %}
<tr><td>{{ encoder }}</td>{% for text in means %}<td>{{ text }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% if section.table.differences %}
<p class="note">Difference from {{ section.table.baseline }}, with its 95 % interval in brackets. An interval that
contains 0 shows no certain difference.</p>
<table>
<tr><th>labels (images)</th>
{% for share in section.table.shares %}
<th>{{ "%.4g" | format(100 * share) }} % ({{ section.table.images[loop.index0] }})</th>
{% endfor %}</tr>
{% for encoder, means, differences in section.cells if encoder != section.table.baseline %}
<tr><td>{{ encoder }}</td>{% for text in differences %}<td>{{ text }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% endif %}
{% for picture in section.pictures %}
{{ show(picture) }}
{% endfor %}
{% if section.note %}<p class="note">{{ section.note }}</p>{% endif %}
</section>
{% endfor %}
{% endblock %}
"""


@dataclass(frozen=True, slots=True)
class Section:
    """What the page says about one task, data, split and mode."""

    table: Comparison
    cells: tuple[tuple[str, list[str], list[str]], ...]
    """See list_cells."""
    pictures: tuple[Picture, ...]
    note: str
    """Why there is no gallery; empty if there is one."""


def write_report(out: Path, baseline: str = "", page: Path | None = None, links: Links = ()) -> Path:
    """Write report.html, tables.md and tables.tex of an evaluation. Returns the page's path.

    baseline: encoder that the others are compared with; by default `scratch`, or else the first. page: write only the
    page, and there, with these links at its top. Raises InputError if there are no results, or none of `baseline`.
    """
    results = read_results(out)
    if not results:
        raise InputError(f"{out / RESULTS}: no results; run an evaluation first")
    if baseline and baseline not in {result.encoder for result in results}:
        raise InputError(f"{out / RESULTS}: no results of the encoder {baseline}")
    names = shorten({result.encoder for result in results})
    results, baseline = [replace(result, encoder=names[result.encoder]) for result in results], names.get(baseline, "")
    groups = groupby(sorted(results, key=_group), key=_group)
    sections = [make_section(out, list(members), baseline) for _, members in groups]
    tables = [section.table for section in sections]
    texts = {page or out / PAGE: render_page(TEMPLATE, "Evaluation of encoders", links, sections=sections)}
    if page is None:
        texts[out / MARKDOWN] = "\n\n".join(
            f"### {table.title}: {table.metric}\n\n{format_markdown(table)}" for table in tables
        )
        texts[out / LATEX] = "\n\n".join(map(format_latex, tables))
    for path, text in texts.items():
        with replace_file(path) as file:
            file.write((text + "\n").encode())
    return page or out / PAGE


def shorten(encoders: Collection[str]) -> dict[str, str]:
    """Encoder -> the shortest end of its path that no other encoder ends in; a name without folders stays."""
    names = {}
    for encoder in encoders:
        parts = Path(encoder).parts
        ends = (str(Path(*parts[-count:])) for count in range(1, len(parts) + 1))
        names[encoder] = next(
            (end for end in ends if not any(o != encoder and f"/{o}".endswith(f"/{end}") for o in encoders)), encoder
        )
    return names


def _group(result: Result) -> tuple[str, str, str, str]:
    return result.task, result.data, result.split, result.mode


def make_section(out: Path, results: Sequence[Result], baseline: str) -> Section:
    """Compute the tables and draw the pictures of one task, data, split and mode."""
    encoders = [result.encoder for result in results]
    baseline = baseline if baseline in encoders else SCRATCH if SCRATCH in encoders else encoders[0]
    task = choose_task(results[0].task)
    table = compare_encoders(out, results, task.prepare, baseline)
    pictures = [embed_png("Label efficiency; bars are one standard deviation over the seeds.", draw_curves(table))]
    split = json.loads((out / "splits" / f"{results[0].split}.json").read_text(encoding="utf-8"))
    pair = choose_pair(results, table)
    for result in pair:
        confusion = count_classes(task, read_parts(out, result), len(split["classes"]))
        if confusion is not None:
            title = f"{result.encoder}, {100 * result.labels:.4g} % of the labels"
            picture = draw_confusion(confusion, split["classes"])
            pictures.append(embed_png(f"{title}: % of each true class that is predicted as each class.", picture))
    note = ""
    try:
        examples = task.read(Path(results[0].folder), task.settings.model_validate(results[0].settings))
        pictures += draw_pair(out, task, examples, split["test"], pair)
    except (ValueError, OSError, KeyError) as error:
        note = f"No gallery, because the data cannot be read: {' '.join(str(error).split())}"
    return Section(table, tuple(list_cells(table, "±")), tuple(pictures), note)


def choose_pair(results: Sequence[Result], table: Comparison) -> list[Result]:
    """The best encoder other than the baseline, and the baseline, with the most labels and the first seed of both."""
    share = table.shares[-1]
    members = {(result.encoder, result.seed): result for result in results if result.labels == share}
    names = [name for name, _ in members if name != table.baseline]
    best = sorted(set(names), key=lambda name: -table.rows[name, share].mean)[:1]
    chosen = [name for name in (*best, table.baseline) if any(name == encoder for encoder, _ in members)]
    seeds = set.intersection(*({seed for name, seed in members if name == encoder} for encoder in chosen))
    return [members[name, min(seeds)] for name in chosen] if seeds else []


def count_classes(task: Task, parts: npt.NDArray[Any], classes: int) -> npt.NDArray[Any] | None:
    """Confusion matrix of all test images, (class, predicted); None for a task without one."""
    match task.name:
        case "classification":
            cells = parts[:, 0] * classes + parts[:, 1]
            return np.bincount(cells, minlength=classes**2).reshape(classes, classes)
        case "segmentation":
            confusion: npt.NDArray[Any] = parts.sum(axis=0)
            return confusion
    return None


def draw_pair(
    out: Path, task: Task, examples: Examples, test: Sequence[str], pair: Sequence[Result]
) -> Iterator[Picture]:
    """Draw galleries of the images for which each of two encoders is better by most, and of some others if none is."""
    if len(pair) < 2:
        return
    scores = [score_images(task, read_parts(out, result), result.primary) for result in pair]
    gain = scores[0] - scores[1]
    order = np.argsort(-gain, kind="stable")
    better, worse = order[gain[order] > 0][:IMAGES], order[::-1][gain[order[::-1]] < 0][:IMAGES]
    first, second = (result.encoder for result in pair)
    chosen = [(f"{first} is better than {second}", better), (f"{second} is better than {first}", worse)]
    if not len(better) and not len(worse):
        chosen = [(f"{first} and {second} are equally good", order[:IMAGES])]
    numbers = {name: i for i, name in enumerate(examples.names)}
    for caption, rows in chosen:
        if len(rows):
            sides = [(result.encoder, read_predictions(out, result, rows.tolist())) for result in pair]
            picture = draw_gallery(task.name, examples, [numbers[test[row]] for row in rows], sides)
            yield embed_png(f"Test images for which {caption}.", picture)


def score_images(task: Task, parts: npt.NDArray[Any], metric: str) -> npt.NDArray[np.float64]:
    """The metric of each test image alone, 0 where it is not defined: (test,) float64."""
    return np.nan_to_num([score(task.prepare, parts[i : i + 1])[metric] for i in range(len(parts))])


def read_predictions(out: Path, result: Result, rows: Sequence[int]) -> list[Any]:
    """Read the predictions of some test images, as draw_gallery takes them."""
    with np.load(cell_file(out, result.cell)) as arrays:
        match result.task:
            case "classification":
                return list(arrays["predicted"][rows])
            case "segmentation":
                masks, shapes = arrays["masks"], arrays["shapes"]
                return [masks[row, : shapes[row, 0], : shapes[row, 1]] for row in rows]
            case _:
                image, boxes = arrays["image"], [arrays[name] for name in ("corners", "classes", "scores")]
                return [tuple(values[image == row] for values in boxes) for row in rows]
