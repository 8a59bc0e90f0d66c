"""What the index says of all tiles: sums and histograms of its columns, and a sample of its rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from geokr.evaluation.report.figures import COLOURS, draw_confusion, to_png

Floats = npt.NDArray[np.float64]
COLUMNS = ("scene", "row", "col", "acquired", "gsd", "known", "cloud", "agreement", "year_gap", "split")
SHARES = {"known": "share of the tile that the map knows", "agreement": "agreement of the label sets", "cloud": "cloud"}
"""Columns in 0..1 -> what they are."""
VALUES = {"gsd": "GSD, m", "year_gap": "year of the map - year of the image"}
"""Columns with few different values."""
NO_SPLIT = "between splits"
BINS = 25


@dataclass
class Totals:
    """Sums over the index. Memory does not grow with the number of tiles, but for the sampled rows."""

    classes: tuple[str, ...]
    tiles: dict[str, int] = field(default_factory=dict)
    """Split -> number of tiles."""
    shares: dict[str, Floats] = field(default_factory=dict)
    """Split -> sum of the shares of each class."""
    together: Floats | None = None
    """(class, class): sum over the tiles of the product of two classes' shares."""
    histograms: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    """Column of SHARES -> number of tiles in each of BINS bins of 0..1, and without a value."""
    values: dict[str, dict[str, int]] = field(default_factory=dict)
    """Column of VALUES, `month` and `scene` -> value -> number of tiles."""
    sample: pd.DataFrame = field(default_factory=pd.DataFrame)
    """COLUMNS and classes of some tiles, drawn evenly, in the order of the index."""


def sum_up(tables: Iterable[pa.Table], classes: Sequence[str], total: int, sample: int) -> Totals:
    """Add up the tables of an index, and draw about `sample` of its `total` rows; the same rows each time."""
    totals, drawn = Totals(tuple(classes)), []
    totals.together = np.zeros((len(classes), len(classes)))
    for number, table in enumerate(tables):
        share = np.stack([table[name].to_numpy() for name in classes], axis=1).astype(np.float64)
        totals.together += share.T @ share
        names, at = _encode(pc.fill_null(table["split"], NO_SPLIT))
        for k, name in enumerate(names):
            totals.tiles[name] = totals.tiles.get(name, 0) + int((at == k).sum())
            totals.shares[name] = totals.shares.get(name, 0) + share[at == k].sum(axis=0)
        for name in SHARES:
            value = table[name].to_numpy().astype(np.float64)
            seen = value[~np.isnan(value)]
            counts = np.append(np.histogram(seen, BINS, (0, 1))[0], len(value) - len(seen))
            totals.histograms[name] = totals.histograms.get(name, 0) + counts
        months = pc.fill_null(pc.strftime(table["acquired"], "%Y-%m"), "unknown")
        for name, column in {
            **{name: table[name] for name in VALUES},
            "month": months,
            "scene": table["scene"],
        }.items():
            counted = totals.values.setdefault(name, {})
            for item in pc.value_counts(column.combine_chunks()).to_pylist():
                text = _to_text(item["values"])
                counted[text] = counted.get(text, 0) + item["counts"]
        keep = np.random.default_rng([0, number]).random(len(table)) * total < sample
        drawn.append(table.filter(pa.array(keep)).to_pandas())
    totals.sample = pd.concat(drawn, ignore_index=True)
    totals.sample["split"] = totals.sample["split"].fillna(NO_SPLIT)
    return totals


def _encode(column: pa.ChunkedArray) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The different texts of a column, and the number of each row's text among them."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def _to_text(value: float | str | None) -> str:
    if value is None or value != value:
        return "unknown"
    return value if isinstance(value, str) else f"{value:g}"


def draw_shares(totals: Totals, colours: Sequence[str]) -> bytes:
    """Draw the mean share of each class, in % of the area, a group of bars a class and a bar a split."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 3.4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(totals.tiles)
    for k, (split, count) in enumerate(sorted(totals.tiles.items(), key=lambda item: (item[0] == NO_SPLIT, item[0]))):
        place = np.arange(len(totals.classes)) + (k - (len(totals.tiles) - 1) / 2) * width
        mean = 100 * totals.shares[split] / count
        bars = axes.bar(place, mean, width, color=COLOURS[k % len(COLOURS)], label=f"{split}: {count:,} tiles")
        axes.bar_label(bars, fmt="%.1f", fontsize=6, rotation=90, padding=2)
    axes.set_xticks(range(len(totals.classes)), totals.classes, rotation=30, ha="right")
    for tick, colour in zip(axes.get_xticklabels(), colours, strict=True):
        tick.set_bbox({"facecolor": "none", "edgecolor": colour, "linewidth": 2, "pad": 1.5})
    axes.margins(y=0.2)
    axes.set_ylabel("% of the area")
    axes.legend(fontsize=8)
    return to_png(figure)


def draw_together(totals: Totals) -> bytes:
    """Draw what else is in the tiles of a class: for each class, the mean shares of all, weighted by its own share."""
    assert totals.together is not None
    return draw_confusion(totals.together, totals.classes, ("where this class is", "the tile also has"))


def draw_histograms(totals: Totals) -> bytes:
    """Draw how many tiles have which value of each of the columns that tell how good a label is."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 5.4), layout="constrained")
    cells = figure.subplots(2, 3).ravel()
    for axes, (name, title) in zip(cells, SHARES.items(), strict=False):
        *counts, missing = totals.histograms[name].tolist()
        if sum(counts):
            axes.bar((np.arange(BINS) + 0.5) / BINS, counts, 1 / BINS, color=COLOURS[0])
            axes.set_xlim(0, 1)
        else:
            reason = "only one label set" if name == "agreement" else "no tile has a value"
            axes.text(0.5, 0.5, reason, ha="center", transform=axes.transAxes, color="0.4")
            axes.set_yticks([])
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(f"{missing:,} tiles without a value" if missing and sum(counts) else "", fontsize=8)
    for axes, (name, title) in zip(cells[3:], {**VALUES, "month": "month of the image"}.items(), strict=True):
        pairs = sorted(totals.values[name].items(), key=lambda pair: _order(pair[0]))
        pairs = _thin(pairs) if len(pairs) > 24 else pairs
        axes.bar(range(len(pairs)), [count for _, count in pairs], color=COLOURS[0])
        axes.set_xticks(
            range(len(pairs)), [text for text, _ in pairs], rotation=90 if len(pairs) > 4 else 0, fontsize=7
        )
        axes.set_xlim(-1, max(len(pairs), 3))
        axes.set_title(title, fontsize=9)
    for axes in cells[::3]:
        axes.set_ylabel("tiles")
    return to_png(figure)


def _order(text: str) -> tuple[float, str]:
    """Numbers by value, then texts."""
    try:
        return float(text), ""
    except ValueError:
        return np.inf, text


def _thin(pairs: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Join neighbouring values until 24 bars are left; a bar has the name of its first value."""
    parts = np.array_split(np.arange(len(pairs)), 24)
    return [(pairs[part[0]][0], sum(pairs[i][1] for i in part)) for part in parts]
