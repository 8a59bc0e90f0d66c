"""Segmentation data as people have them: images and masks in folders, split by folders, lists or a table."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, Field

from geokr.dataset.layout import RGB
from geokr.evaluation.examples import SPLITS, Examples, IntArray, PixelArray
from geokr.evaluation.images import find_bands, find_images, find_scale, open_image, read_pixels
from geokr.evaluation.mask_classes import (
    FILES,
    IGNORE,
    MaskClasses,
    name_values,
    number_classes,
    read_mask_classes,
    read_values,
)
from geokr.evaluation.split_files import group_names, read_split_files
from geokr.evaluation.task import Settings
from geokr.settings import Names, split_numbers
from geokr.storage.inputs import InputError

TABLE = "list.csv"
"""Table of a folder of data with the columns image and mask, and, if wished, split and group."""


class MaskSettings(Settings):
    """How segmentation data lie in their folder."""

    images_dir: str = "images"
    """Folder of the images."""
    masks_dir: str = "masks"
    """Folder of the masks, which have the names of their images but for the suffix. If it holds a folder a class, the
    masks in these are binary: any value but 0 is the class."""
    mask_ending: str = ""
    """What the name of a mask adds to that of its image, such as `_label`."""
    classes: Names = ()
    """Classes of the values 0, 1, 2 ... of a mask. For binary masks, the order of their folders: where two overlap, the
    later one counts. By default `classes_file` says what the values or colours mean; without one, each value is a
    class."""
    classes_file: str = ""
    """YAML or TOML file that says which values or colours mean which class; by default classes.yaml or classes.toml in
    the folder of the data."""
    background: str = "background"
    """Class of the pixels that no binary mask has."""
    ignore: Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(split_numbers)] = ()
    """Values of a mask without a class: they count neither in training nor in a metric."""
    group: str = ""
    """Regular expression on the names of images. Images with the same match, or the same first group of it, stay in one
    split: copies, or the parts of one scene."""


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and its mask."""

    name: str
    """Path of the image, relative to the folder of the data."""
    image: Path
    masks: tuple[Path, ...]
    """The mask, or a binary mask for each class but the background. One that does not exist has no pixel."""
    split: str = ""
    """Name of the split, if the data say it."""
    group: str = ""
    """Name of the group, if the data say it."""


@dataclass(frozen=True, slots=True)
class Masks:
    """Pairs of images and masks, and how their pixels are read."""

    pairs: tuple[Pair, ...]
    classes: MaskClasses
    bands: tuple[str, ...]
    binary: bool
    ignore: tuple[int, ...]
    """Values without a class in a binary mask."""

    def read_image(self, i: int) -> PixelArray:
        """Read an image: (band, y, x). Raises InputError naming the file."""
        return read_pixels(self.pairs[i].image, self.bands)

    def read_target(self, i: int) -> npt.NDArray[np.uint8]:
        """Read a mask: (y, x) uint8 numbers of classes, with IGNORE. Raises InputError naming the file."""
        pair = self.pairs[i]
        if not self.binary:
            mask = pair.masks[0]
            pixels = read_pixels(mask, RGB) if self.classes.coloured else read_mask(mask)
            return self.classes.encode(pixels, str(mask))
        layers = {k: read_values(read_mask(mask), str(mask)) for k, mask in enumerate(pair.masks, 1) if mask.is_file()}
        target = np.zeros(next(iter(layers.values())).shape, np.uint8)
        for k, layer in layers.items():
            if layer.shape != target.shape:
                raise InputError(
                    f"{pair.masks[k - 1]}: the mask is {_write_size(layer.shape)}, others of its image are"
                    f" {_write_size(target.shape)}"
                )
            target[np.isin(layer, self.ignore)] = IGNORE
            target[(layer != 0) & ~np.isin(layer, self.ignore)] = k
        return target


def read_masks(folder: Path, settings: MaskSettings) -> Examples:
    """Read a segmentation set; all its masks are checked. Raises InputError naming the file that does not fit."""
    pairs, folders = find_pairs(folder, settings)
    classes = find_classes(folder, pairs, folders, settings)
    bands = find_bands(pairs[0].image, settings.bands)
    masks = Masks(tuple(pairs), classes, bands, bool(folders), settings.ignore)
    counts = np.stack([count_classes(masks, i) for i in range(len(pairs))])  # (n, class)
    names = tuple(pair.name for pair in pairs)
    split = find_split(folder, pairs)
    check_classes(masks, split, counts)
    return Examples(
        names=names,
        bands=bands,
        classes=classes.names,
        stratum=np.where(counts.any(axis=1), counts.argmax(axis=1), -1),
        group=group_names([pair.group for pair in pairs], names, settings.group),
        split=split,
        scale=find_scale(pairs[0].image, settings.scale),
        image=masks.read_image,
        target=masks.read_target,
    )


def find_pairs(folder: Path, settings: MaskSettings) -> tuple[list[Pair], list[str]]:
    """Find the images of a folder with their masks, by name, and the classes of binary masks; none for usual masks.

    A table list.csv with the columns image and mask says which belong together. Otherwise a mask has its image's path
    inside the folder of masks, except for the suffix. Images and masks may lie in folders train, val and test, or
    these in the folders of images and masks. Raises InputError naming the image that has no mask.
    """
    if (folder / TABLE).is_file() and (pairs := _read_table(folder)):
        return pairs, []
    homes = [folder / split for split in SPLITS if (folder / split / settings.images_dir).is_dir()] or [folder]
    folders = _find_class_folders(homes, settings)
    pairs = []
    for home in homes:
        images_dir, masks_dir = home / settings.images_dir, home / settings.masks_dir
        found = {_drop_suffix(mask.relative_to(masks_dir)): mask for mask in find_images(masks_dir)}
        for image in find_images(images_dir):
            inside = image.relative_to(images_dir)
            key = _drop_suffix(inside) + settings.mask_ending
            wanted = [f"{name}/{key}" for name in folders] or [key]
            if not any(name in found for name in wanted):
                raise InputError(f"{image}: there is no mask {masks_dir / wanted[0]}.* for this image")
            masks = tuple(found.get(name, masks_dir / f"{name}{image.suffix}") for name in wanted)
            split = home.name if home != folder else inside.parts[0] if inside.parts[0] in SPLITS else ""
            pairs.append(Pair(image.relative_to(folder).as_posix(), image, masks, split))
    return pairs, folders


def _read_table(folder: Path) -> list[Pair]:
    """Read list.csv; nothing if it has no columns image and mask. Raises InputError naming the line of a fault."""
    file = folder / TABLE
    with file.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.DictReader(lines)
        if not {"image", "mask"} <= set(rows.fieldnames or ()):
            return []
        pairs = []
        for row in rows:
            for column in ("image", "mask"):
                if not row[column] or not (folder / row[column]).is_file():
                    raise InputError(f"{file}, line {rows.line_num}: no such {column}: {row[column] or 'empty'}")
            if (split := row.get("split") or "") not in ("", *SPLITS):
                raise InputError(f"{file}, line {rows.line_num}: the split {split} is none of {', '.join(SPLITS)}")
            image, mask = folder / row["image"], folder / row["mask"]
            pairs.append(Pair(Path(row["image"]).as_posix(), image, (mask,), split, row.get("group") or ""))
    if not pairs:
        raise InputError(f"{file}: the table names no image")
    return pairs


def _find_class_folders(homes: list[Path], settings: MaskSettings) -> list[str]:
    """Folders of binary masks, in the order of their numbers: those in the folder of masks that images do not have."""
    found = {
        child.name
        for home in homes
        for child in (home / settings.masks_dir).glob("*/")
        if not (home / settings.images_dir / child.name).is_dir() and child.name[0] != "."
    }
    if not found or not settings.classes:
        return sorted(found)
    if missing := sorted(set(settings.classes) ^ found):
        raise InputError(
            f"{homes[0] / settings.masks_dir}: there are masks of {', '.join(sorted(found))}, but classes names "
            f"{', '.join(settings.classes)}: {missing[0]} differs"
        )
    return list(settings.classes)


def find_classes(folder: Path, pairs: list[Pair], folders: list[str], settings: MaskSettings) -> MaskClasses:
    """Find the classes of the masks. Raises InputError naming the file of classes, or the folder, with the fault."""
    try:
        if folders:
            return number_classes((settings.background, *folders))
        if settings.classes:
            return number_classes(settings.classes, settings.ignore)
        files = [Path(settings.classes_file)] if settings.classes_file else [folder / name for name in FILES]
        for file in files:
            if settings.classes_file or file.is_file():
                return read_mask_classes(file, settings.ignore)
        values: set[int] = set()
        for pair in pairs:
            values |= set(np.unique(read_values(read_mask(pair.masks[0]), str(pair.masks[0]))).tolist())
            if len(values) >= IGNORE:
                raise InputError(f"{pair.masks[0]}: too many values to be classes; name them in {FILES[0]}")
        return name_values(sorted(values), settings.ignore)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{folder}: {error}") from error


def read_mask(path: Path) -> npt.NDArray[np.generic]:
    """Read the values of a mask: (band, y, x), whole numbers. A palette is not applied. Raises InputError naming it."""
    with open_image(path) as mask:
        if not all(np.issubdtype(dtype, np.integer) for dtype in mask.dtypes):
            raise InputError(f"{path}: values of {mask.dtypes[0]}; the values of a mask are whole numbers")
        values: npt.NDArray[np.generic] = mask.read()
    return values


def count_classes(masks: Masks, i: int) -> IntArray:
    """Count the pixels of each class in a mask: (class,). Raises InputError if mask and image differ in size."""
    pair, target = masks.pairs[i], masks.read_target(i)
    with open_image(pair.image) as image:
        if image.shape != target.shape:
            mask = next(path for path in pair.masks if path.is_file())
            raise InputError(
                f"{mask}: the mask is {_write_size(target.shape)}, its image {pair.image.name} is "
                f"{_write_size(image.shape)}"
            )
    return np.bincount(target.ravel(), minlength=IGNORE + 1)[: len(masks.classes.names)]


def find_split(folder: Path, pairs: list[Pair]) -> dict[str, IntArray]:
    """Find the split that came with the data: split -> positions; empty if none came.

    Lists (train.txt ...) come before a table and folders.
    """
    if split := read_split_files(folder, [pair.name for pair in pairs]):
        return split
    named = {split: np.array([i for i, pair in enumerate(pairs) if pair.split == split], np.int64) for split in SPLITS}
    return {name: positions for name, positions in named.items() if len(positions)}


def check_classes(masks: Masks, split: Mapping[str, IntArray], counts: IntArray) -> None:
    """Raise InputError naming a mask of the given test split with a class that no given training mask has."""
    if "train" not in split or "test" not in split:
        return
    learnt = counts[split["train"]].any(axis=0)
    for i in split["test"].tolist():
        if len(wrong := np.flatnonzero(counts[i].astype(bool) & ~learnt)):
            raise InputError(
                f"{masks.pairs[i].masks[0]}: the class {masks.classes.names[wrong[0]]} is in the test split, but in no "
                "mask of the training split"
            )


def _drop_suffix(path: Path) -> str:
    return path.with_suffix("").as_posix()


def _write_size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]} px"
