"""What the evidence found: tables, verdicts by the rules, a picture, and their place in a page."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev

from matplotlib.figure import Figure

from benchmarks.evidence_rules import AGAINST, ARMS, LENGTHS, PRIMARY, SEEDS
from geokr.evaluation.report.figures import COLOURS, MARKERS, to_png
from geokr.evaluation.results import read_results

Case = tuple[str, str, float]
"""Set, mode, share of the labels."""


@dataclass(frozen=True, slots=True)
class Found:
    """What is there of one length of the evidence."""

    scores: Mapping[Case, Mapping[str, Mapping[int, float]]]
    """Case -> arm -> seed -> primary metric, mean over the seeds of the evaluation."""
    rates: Mapping[str, float]
    """Arm -> learning rate that was chosen."""
    speeds: Mapping[str, float]
    """Arm -> training tiles per second, median over its runs; it depends on what else the machine did."""


def collect(keep: Path) -> Found:
    """Read what is there of all arms and seeds. keep: folder of one length."""
    scores: dict[Case, dict[str, dict[int, float]]] = {}
    rates, speeds = {}, {}
    for name in ARMS:
        for seed in SEEDS:
            values: dict[Case, list[float]] = {}
            for result in read_results(keep / "results" / f"{name}-{seed}"):
                values.setdefault((result.data, result.mode, result.labels), []).append(result.value)
            for case, several in values.items():
                scores.setdefault(case, {}).setdefault(name, {})[seed] = mean(several)
        chosen = keep / "rates" / f"{name}.json"
        if chosen.exists():
            rates[name] = float(json.loads(chosen.read_text())["rate"])
        logs = [keep / "runs" / f"{name}-{seed}-{rates.get(name, 0):g}-{steps(name, keep.name)}" for seed in SEEDS]
        lines = [line for log in logs if (log / "log.jsonl").exists() for line in (log / "log.jsonl").open()]
        if rows := [row["tiles_per_s"] for row in map(json.loads, lines) if "tiles_per_s" in row]:
            speeds[name] = median(rows)
    return Found(scores, rates, speeds)


def steps(name: str, length: str) -> int:
    return LENGTHS[length].steps[ARMS[name].start]


def verdict(ours: Mapping[int, float], peer: Mapping[int, float]) -> str:
    """What the rules say of two arms, from the seeds that both have: better, worse or not shown."""
    gains = [ours[seed] - peer[seed] for seed in ours if seed in peer]
    if len(gains) < len(SEEDS):
        return f"{len(gains)} of {len(SEEDS)} seeds"
    reach = 4.303 * stdev(gains) / math.sqrt(len(gains))  # 95 % of Student's t with two degrees of freedom
    if min(gains) > 0 or mean(gains) - reach > 0:
        return f"better: {mean(gains):+.3f} ± {reach:.3f}"
    if max(gains) < 0 or mean(gains) + reach < 0:
        return f"worse: {mean(gains):+.3f} ± {reach:.3f}"
    return f"not shown: {mean(gains):+.3f} ± {reach:.3f}"


def format_tables(found: Found) -> str:
    """Markdown: for each start, the arms' figures, and their verdicts by the primary figure."""
    return "\n\n".join(format_table(found, start) for start in AGAINST)


def format_table(found: Found, start: str) -> str:
    """Markdown: a row for each arm of a start. ± is one standard deviation over the seeds of pre-training."""
    cases = sorted(found.scores)
    head = ["arm", "rate", "tiles/s", *(f"{data}, {mode}, {labels:.0%}" for data, mode, labels in cases)]
    rows = [head + [f"against {peer}" for peer in AGAINST[start]], ["---"] * (len(head) + len(AGAINST[start]))]
    primary = found.scores.get(PRIMARY, {})
    for name in (name for name, arm in ARMS.items() if arm.start == start):
        rate, speed = found.rates.get(name), found.speeds.get(name)
        row = [f"`{name}`", f"{rate:g}" if rate else "", f"{speed:.0f}" if speed else ""]
        row += [format_cell(found.scores[case].get(name, {}).values()) for case in cases]
        for peer in AGAINST[start]:
            row.append(verdict(primary.get(name, {}), primary.get(peer, {})) if name not in (peer, start) else "")
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def format_cell(values: Iterable[float]) -> str:
    several: Sequence[float] = [*values]
    return f"{mean(several):.3f} ± {stdev(several) if len(several) > 1 else 0:.3f}" if several else ""


def draw(found: Found) -> bytes:
    """Draw the primary set and mode over the share of the labels as PNG: a panel a start, a curve an arm."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    data, mode, _ = PRIMARY
    shares = sorted(labels for case, way, labels in found.scores if (case, way) == (data, mode))
    for axes, start in zip(figure.subplots(1, len(AGAINST)), AGAINST, strict=True):
        arms = [name for name, arm in ARMS.items() if arm.start == start]
        for k, name in enumerate(arms):
            points = [(share, [*found.scores[data, mode, share].get(name, {}).values()]) for share in shares]
            points = [(share * 1.02 ** (k - len(arms) / 2), values) for share, values in points if values]
            spread = [stdev(values) if len(values) > 1 else 0.0 for _, values in points]
            colour, marker, style = (
                COLOURS[k % len(COLOURS)],
                MARKERS[(k + k // len(COLOURS)) % len(MARKERS)],
                "--" if name == start else "-",
            )
            at, height = [share for share, _ in points], [mean(values) for _, values in points]
            axes.errorbar(at, height, spread, label=name, color=colour, marker=marker, linestyle=style, capsize=2)
        axes.set_xscale("log")
        axes.set_xticks(shares, [f"{share:.0%}" for share in shares])
        axes.minorticks_off()
        axes.set_xlabel("labelled training images")
        axes.set_ylabel(f"{data}, {mode}: overall accuracy")
        axes.set_title("from random weights" if start == "scratch" else "from ImageNet's weights")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return to_png(figure)


def read_kept(path: Path) -> Found:
    """Read what `write_kept` wrote; nothing if there is no such file."""
    if not path.exists():
        return Found({}, {}, {})
    kept = json.loads(path.read_text(encoding="utf-8"))
    scores: dict[Case, dict[str, dict[int, float]]] = {}
    for data, mode, labels, name, seed, value in kept["scores"]:
        scores.setdefault((data, mode, labels), {}).setdefault(name, {})[seed] = value
    return Found(scores, kept["rates"], kept["speeds"])


def write_kept(path: Path, found: Found) -> None:
    """Write figures as JSON, a score a line, so that what another machine finds can be added."""
    rows = [
        json.dumps([*case, name, seed, round(value, 6)])
        for case, arms in sorted(found.scores.items())
        for name, seeds in arms.items()
        for seed, value in seeds.items()
    ]
    rest = f'"rates": {json.dumps(dict(found.rates))}, "speeds": {json.dumps(dict(found.speeds))}'
    path.write_text(f'{{{rest}, "scores": [\n' + ",\n".join(rows) + "\n]}\n", encoding="utf-8")


def merge(old: Found, new: Found) -> Found:
    """All figures of both; where both have one, that of `new`."""
    scores: dict[Case, dict[str, dict[int, float]]] = {}
    for found in (old, new):
        for case, arms in found.scores.items():
            for name in (name for name in ARMS if name in arms):
                scores.setdefault(case, {}).setdefault(name, {}).update(arms[name])
    return Found(scores, {**old.rates, **new.rates}, {**old.speeds, **new.speeds})


def write_page(page: Path, length: str, found: Found) -> None:
    """Put tables and picture into a page, in place of what is between the marks of the length.

    The figures are added to those in `evidence-LENGTH.json` beside the page, which an earlier run left. Raises
    ValueError if the page has no such marks.
    """
    marks = [f"<!-- {length}: {word} -->" for word in ("begin", "end")]
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not begin or not end:
        raise ValueError(f"{page} must have the lines {marks[0]} and {marks[1]}")
    kept = page.with_name(f"evidence-{length}.json")
    found = merge(read_kept(kept), found)
    write_kept(kept, found)
    picture = page.parent / "images" / f"evidence-{length}.png"
    picture.parent.mkdir(exist_ok=True)
    picture.write_bytes(draw(found))
    link = f"![Accuracy over the share of labels](images/{picture.name})"
    page.write_text(f"{before}{begin}\n{format_tables(found)}\n\n{link}\n{end}{after}", encoding="utf-8")
