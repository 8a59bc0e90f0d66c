"""Tables of results for a paper, as Markdown and as LaTeX with booktabs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from geokr.evaluation.results import Difference, Result, Row, compare, read_parts, tabulate
from geokr.evaluation.task import Prepare

LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
)
"""Signs that mean something in LaTeX -> what prints them."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The results of one task, data, split and mode."""

    title: str
    metric: str
    baseline: str
    """Encoder that the others are compared with."""
    shares: tuple[float, ...]
    """Shares of the training labels, ascending."""
    images: tuple[int, ...]
    """Labelled training images at each share."""
    encoders: tuple[str, ...]
    rows: dict[tuple[str, float], Row]
    """Encoder and share -> mean over the seeds."""
    differences: dict[tuple[str, float], Difference]
    """Encoder and share -> its difference from the baseline, over the seeds that both have."""


def compare_encoders(out: Path, results: Sequence[Result], prepare: Prepare, baseline: str) -> Comparison:
    """Compare the encoders of one task, data, split and mode with a baseline. Raises InputError, see read_parts."""
    rows = {(row.encoder, row.labels): row for row in tabulate(results)}
    cells = {(result.encoder, result.labels, result.seed): result for result in results}
    differences = {}
    for encoder, share in rows:
        seeds = sorted({seed for name, labels, seed in cells if (name, labels) == (encoder, share)})
        pairs = [
            (cells[encoder, share, seed], cells[baseline, share, seed])
            for seed in seeds
            if encoder != baseline and (baseline, share, seed) in cells
        ]
        if pairs:
            parts = [[read_parts(out, result) for result in side] for side in zip(*pairs, strict=True)]
            differences[encoder, share] = compare(parts[0], parts[1], prepare, results[0].primary)
    shares = tuple(sorted({share for _, share in rows}))
    images = tuple(next(row.images for (_, labels), row in rows.items() if labels == share) for share in shares)
    encoders = tuple(dict.fromkeys(encoder for encoder, _ in rows))
    title = f"{results[0].data}, {results[0].task}, {results[0].mode}"
    return Comparison(title, results[0].primary, baseline, shares, images, encoders, rows, differences)


def list_cells(table: Comparison, spread: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Each encoder with the texts of its means, and of its differences from the baseline. spread: sign of ±."""
    for encoder in table.encoders:
        means, differences = [], []
        for share in table.shares:
            row, difference = table.rows.get((encoder, share)), table.differences.get((encoder, share))
            means.append(
                "" if row is None else f"{row.mean:.3f} {spread} {row.std:.3f}" if row.seeds > 1 else f"{row.mean:.3f}"
            )
            differences.append(
                "" if difference is None else f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
            )
        yield encoder, means, differences


def format_markdown(table: Comparison) -> str:
    """A Markdown table: a row an encoder, a column a share of the labels, then the differences from the baseline."""
    heads = [f"{share:.4g} %" for share in (100 * share for share in table.shares)]
    counts = [f"{head} ({count})" for head, count in zip(heads, table.images, strict=True)]
    lines = [_join(["labels", *counts]), _join(["---"] * (len(heads) + 1))]
    changes = []
    for encoder, means, differences in list_cells(table, "±"):
        name = encoder.replace("|", "\\|")
        lines.append(_join([name, *means]))
        if any(differences):
            changes.append(_join([f"{encoder} - {table.baseline}".replace("|", "\\|"), *differences]))
    return "\n".join(lines + changes)


def _join(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def format_latex(table: Comparison) -> str:
    """A LaTeX table, for \\usepackage{booktabs}, with the same contents as the Markdown table."""
    heads = [f"{100 * share:.4g}\\,\\% ({count})" for share, count in zip(table.shares, table.images, strict=True)]
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{table.title.translate(LATEX)}: {table.metric.translate(LATEX)}. "
        "Mean and standard deviation over the seeds; differences with 95\\,\\% intervals.}}",
        f"\\begin{{tabular}}{{l{'c' * len(heads)}}}",
        "\\toprule",
        f"labels & {' & '.join(heads)} \\\\",
        "\\midrule",
    ]
    changes = []
    for encoder, means, differences in list_cells(table, "$\\pm$"):
        lines.append(f"{encoder.translate(LATEX)} & {' & '.join(means)} \\\\")
        if any(differences):
            name = f"{encoder.translate(LATEX)} $-$ {table.baseline.translate(LATEX)}"
            changes.append(f"{name} & {' & '.join(f'${_bracket(text)}$' if text else '' for text in differences)} \\\\")
    if changes:
        lines += ["\\midrule", *changes]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}"])


def _bracket(text: str) -> str:
    """Keep the bracket of an interval from being read as an argument of LaTeX's line break."""
    return text.replace("[", "\\,[")
