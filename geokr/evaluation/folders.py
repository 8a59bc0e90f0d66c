"""Labelled sets for scene classification: a folder a class, or a CSV table of files and classes."""

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from geokr.evaluation.examples import SPLITS, Examples, PixelArray
from geokr.evaluation.images import find_bands, find_images, find_scale, read_pixels
from geokr.evaluation.split_files import read_split_files
from geokr.evaluation.task import Settings
from geokr.storage.inputs import InputError

TABLE = "labels.csv"
"""Table with a header: columns file, label and, if there is a split, split (train, val or test)."""


@dataclass(frozen=True, slots=True)
class LabelledFiles:
    """Image files, and the number of each one's class."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    bands: tuple[str, ...]

    def image(self, i: int) -> PixelArray:
        return read_pixels(self.paths[i], self.bands)

    def target(self, i: int) -> int:
        return self.labels[i]


def read_labelled_folder(folder: Path, settings: Settings) -> Examples:
    """Read a classification set: with labels.csv as it says, otherwise with a folder a class.

    Folders train, val and test that contain the classes' folders, or files train.txt, val.txt and test.txt with a name
    a line, are the split that came with the data. Raises InputError naming what does not fit.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    table = folder / TABLE
    found = read_table(table) if table.is_file() else find_class_folders(folder)
    names, labels, splits = zip(*found, strict=True)
    classes = tuple(sorted(set(labels)))
    if len(classes) < 2:
        raise InputError(f"{folder}: only the class {classes[0]}; at least two are needed")
    numbers = [classes.index(label) for label in labels]
    paths = tuple(folder / name for name in names)
    bands = find_bands(paths[0], settings.bands)
    split = {
        name: np.array([i for i, its_split in enumerate(splits) if its_split == name], np.int64) for name in SPLITS
    }
    files = LabelledFiles(paths, tuple(numbers), bands)
    return Examples(
        names=tuple(names),
        bands=bands,
        classes=classes,
        stratum=np.array(numbers, np.int64),
        group=np.arange(len(names)),
        split={name: part for name, part in split.items() if len(part)} or read_split_files(folder, names),
        scale=find_scale(paths[0], settings.scale),
        image=files.image,
        target=files.target,
    )


def find_class_folders(folder: Path) -> list[tuple[str, str, str]]:
    """Name, class and split ("" if none) of each image: CLASS/..., SPLIT/CLASS/... or images/CLASS/..."""
    found = []
    for path in find_images(folder):
        name = path.relative_to(folder)
        *folders, _ = name.parts
        split = folders.pop(0) if folders and folders[0] in SPLITS else ""
        if folders and folders[0] == "images":
            folders.pop(0)
        if not folders:
            raise InputError(f"{path}: the image is in no folder of a class")
        found.append((name.as_posix(), folders[0], split))
    return found


def read_table(table: Path) -> list[tuple[str, str, str]]:
    """Name, class and split of each row of a table. Raises InputError naming the row that does not fit."""
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if not {"file", "label"} <= set(rows.fieldnames or ()):
            raise InputError(f"{table}: its header needs the columns file and label, got {rows.fieldnames}")
        found = []
        for number, row in enumerate(rows, start=2):
            name, label, split = row["file"], row["label"], row.get("split") or ""
            if not name or not label:
                raise InputError(f"{table}, line {number}: file or label is empty")
            if split not in ("", *SPLITS):
                raise InputError(f"{table}, line {number}: the split is {split}, expected train, val or test")
            if not (table.parent / name).is_file():
                raise InputError(f"{table}, line {number}: {name} is no file in this folder")
            found.append((name, label, split))
    if not found:
        raise InputError(f"{table}: there are no rows")
    if twice := [name for name, count in Counter(name for name, _, _ in found).items() if count > 1]:
        raise InputError(f"{table}: {twice[0]} is listed twice")
    return found
