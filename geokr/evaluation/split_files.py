"""Which images belong together, and lists of those in a split that came with the data: train.txt, val.txt, test.txt."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from geokr.evaluation.examples import SPLITS, IntArray
from geokr.storage.inputs import InputError


def read_split_files(folder: Path, names: Sequence[str]) -> dict[str, IntArray]:
    """Read the lists of images in a folder: split -> positions in `names`, sorted. Empty if there is no list.

    names: paths of the images relative to the folder. A line is such a path, or its end (`images/a.png`, `a.png`), with
    or without the suffix; empty lines are passed over. Raises InputError naming the file and the line if it fits no
    image or several, or an image of another split.
    """
    positions: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        for ending in _list_endings(PurePosixPath(name)):
            positions.setdefault(ending, []).append(position)
    split_of: dict[int, str] = {}
    for split in SPLITS:
        if not (file := folder / f"{split}.txt").is_file():
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            if not (entry := line.strip()):
                continue
            found = positions.get(entry.removeprefix("./"), [])
            if len(found) != 1:
                raise InputError(f"{file}, line {number}: {len(found) or 'no'} image{'s'[: len(found)]} named {entry}")
            if split_of.setdefault(found[0], split) != split:
                raise InputError(f"{file}, line {number}: {entry} is also in {split_of[found[0]]}.txt")
    return {
        split: np.array(sorted(i for i, own in split_of.items() if own == split), np.int64)
        for split in SPLITS
        if (folder / f"{split}.txt").is_file()
    }


def group_names(given: list[str], names: tuple[str, ...], pattern: str) -> IntArray:
    """Number the groups of images: (n,) int64. Those that match nothing are alone.

    given: groups that the data name, "" for none. pattern: regular expression on names, used if it is not empty.
    Raises InputError if it is not one.
    """
    try:
        key: Callable[[str], re.Match[str] | None] = re.compile(pattern).search
    except re.error as error:
        raise InputError(f"group={pattern}: not a regular expression: {error}") from error
    if pattern:
        matches = [key(name) for name in names]
        given = [(match[1] if match.re.groups else match[0]) or "" if match else "" for match in matches]
    keys = [f"group {group}" if group else f"image {name}" for group, name in zip(given, names, strict=True)]
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def _list_endings(path: PurePosixPath) -> set[str]:
    """All names for an image: its path without any of the first folders, with and without the suffix."""
    ends = [PurePosixPath(*path.parts[k:]) for k in range(len(path.parts))]
    return {str(form) for end in ends for form in (end, end.with_suffix(""))}
