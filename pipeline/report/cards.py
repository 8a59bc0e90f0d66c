"""What the report reads of a data set, and a tile as the pages show it."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from geokr.dataset.index import read_parts, read_summary
from geokr.settings import ConfigError
from geokr.storage import files
from pipeline.catalog import quarantine
from pipeline.catalog.table import CATALOG, Entry, read_catalog
from pipeline.report.scene_tiles import draw_map, read_map_parts, read_scenes
from pipeline.report.totals import COLUMNS, Totals, sum_up

SAMPLE = 12_000
"""Accepted tiles on the map, about; also those that galleries are drawn from."""

LISTED = 3000
"""Scenes on the map and in the table of scenes, at most; also refused scenes that are listed."""


@dataclass
class Card:
    """A tile as it is shown."""

    title: str
    facts: list[str]
    pictures: list[tuple[str, str]]
    """What it is, and a data: address."""
    shares: dict[str, dict[str, float]] = field(default_factory=dict)
    """What they are -> class -> share."""


class Report:
    """What the pages show of a data set."""

    def __init__(self, dataset: str, threads: ThreadPoolExecutor) -> None:
        self.dataset = dataset
        self.summary = read_summary(dataset)
        self.classes: list[str] = self.summary["classes"]
        self.colours = dict(zip(self.classes, self.summary["colours"], strict=True))
        self.scenes = read_scenes(dataset, threads)
        self.entries: dict[str, Entry] = {
            entry.scene.id: entry
            for entry in read_catalog(files.join(dataset, CATALOG))
            if entry.scene.id in self.scenes
        }
        self.scenes = {name: scene for name, scene in self.scenes.items() if name in self.entries}
        self.numbers = {name: number for number, name in enumerate(self.scenes)}
        self.listed = list(self.scenes)[:: max(1, -(-len(self.scenes) // LISTED))]
        """Names of the scenes on the map and in the table, drawn evenly."""
        self.refused = quarantine.read(dataset)
        rows = self.summary["counts"]["index"]
        if not self.scenes or not rows:
            raise ConfigError(f"{dataset}: no tile is in the index, so there is nothing to show")
        self.totals: Totals = sum_up(read_parts(dataset, [*COLUMNS, *self.classes]), self.classes, rows, SAMPLE)

    def describe(self, tile: pd.Series) -> Card:
        """A row of the index as a card, with its pixels and its map."""
        scene, row, col = self.scenes[tile["scene"]], int(tile["row"]), int(tile["col"])
        (parts,) = read_map_parts(self.dataset, self.summary["label_set"], scene.name, [(row, col)])
        facts = [f"known {tile['known']:.0%}", f"split {tile['split']}"]
        facts += [f"cloud {tile['cloud']:.0%}"] if tile["cloud"] > 0 else []
        facts += [f"agreement {tile['agreement']:.2f}"] if tile["agreement"] == tile["agreement"] else []
        facts += [describe_gap(tile["year_gap"])] if tile["year_gap"] == tile["year_gap"] else []
        pictures = [
            (scene.colours(), scene.tile(row, col)),
            (
                f"the map: largest class of {parts.shape[0]} x {parts.shape[1]} parts",
                draw_map(parts, [*self.colours.values()]),
            ),
        ]
        return Card(f"{scene.name} ({row}, {col})", facts, pictures, {"map": self.shares(tile)})

    def shares(self, tile: Any) -> dict[str, float]:
        """Class -> share of a row of the index, largest first, without those that are 0."""
        shares = sorted(((float(tile[name]), name) for name in self.classes), reverse=True)
        return {name: share for share, name in shares if share > 0}


def describe_gap(years: float) -> str:
    """The column `year_gap` in words."""
    if not years:
        return "map and image of one year"
    unit = "year" if abs(years) == 1 else "years"
    return f"map {abs(years):.0f} {unit} {'younger' if years > 0 else 'older'} than the image"


def group_scenes(sample: pd.DataFrame) -> list[tuple[str, npt.NDArray[np.intp]]]:
    """Each scene of some rows of the index, and the numbers of its rows."""
    return [(str(name), np.asarray(rows)) for name, rows in sample.groupby("scene").indices.items()]
