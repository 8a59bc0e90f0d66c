"""Files of boxes around objects: COCO's JSON, YOLO's text, and tables of points."""

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import BaseModel, Field, ValidationError

from geokr.evaluation.examples import IntArray
from geokr.evaluation.images import open_image
from geokr.storage.inputs import InputError

MARGIN = 2.0
"""A box may exceed its image by so much, px, and is cut off there. Rounding and careless drawing cause about one."""
SPLIT_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Words in the names of files and folders -> the split that they name."""


class Size(NamedTuple):
    """Size of an image."""

    width: int
    """px."""
    height: int
    """px."""

    def __str__(self) -> str:
        return f"{self.width} x {self.height}"


@dataclass(frozen=True, slots=True)
class Boxes:
    """The objects in one image."""

    corners: npt.NDArray[np.float32]
    """(m, 4): left, top, right, bottom, px from the image's upper left corner."""
    classes: IntArray
    """(m,) numbers of classes."""


@dataclass(frozen=True, slots=True)
class LabelledFiles:
    """What a file of boxes says."""

    classes: tuple[str, ...]
    boxes: dict[Path, Boxes]
    """Image -> its objects; there may be none."""
    split: dict[Path, str]
    """Image -> train, val or test; empty if the file does not say."""


class _Coco(BaseModel):
    """The part of COCO's format that boxes need."""

    class Image(BaseModel):
        id: int
        file_name: str
        width: int | None = None
        height: int | None = None

    class Category(BaseModel):
        id: int
        name: str

    class Annotation(BaseModel):
        id: int | str = "?"
        image_id: int
        category_id: int
        bbox: Annotated[tuple[float, ...], Field(min_length=4, max_length=4)]
        iscrowd: int = 0

    images: list[Image]
    categories: list[Category]
    annotations: list[Annotation]


def read_coco(files: Mapping[Path, str], folder: Path) -> LabelledFiles:
    """Read COCO's JSON. Boxes around crowds are left out.

    files: file -> its split, or "". folder: of the data set; images are looked for there, in `images`, and beside the
    file. Raises InputError naming the file and the fault.
    """
    classes: tuple[str, ...] = ()
    boxes: dict[Path, Boxes] = {}
    split: dict[Path, str] = {}
    for file, its_split in files.items():
        coco = _parse_coco(file)
        names = {category.id: category.name for category in sorted(coco.categories, key=lambda entry: entry.id)}
        if classes and tuple(names.values()) != classes:
            raise InputError(f"{file}: the categories differ from those of {next(iter(files))}")
        classes = tuple(names.values())
        number = {identity: position for position, identity in enumerate(names)}
        folders = (file.parent, folder, folder / "images", *(top / its_split for top in (folder / "images", folder)))
        images = {image.id: _find_image(image.file_name, folders, file) for image in coco.images}
        sizes = {image.id: _check_size(image, images[image.id], file) for image in coco.images}
        rows: dict[int, list[tuple[float, ...]]] = {identity: [] for identity in images}
        for annotation in coco.annotations:
            at = f"{file}: annotation {annotation.id}"
            if annotation.image_id not in images:
                raise InputError(f"{at} belongs to image {annotation.image_id}, which the file does not list")
            if annotation.category_id not in number:
                raise InputError(f"{at} has category {annotation.category_id}, which the file does not define")
            if not annotation.iscrowd:
                left, top, width, height = annotation.bbox
                row = (left, top, left + width, top + height, number[annotation.category_id])
                rows[annotation.image_id].append(row)
        for identity, path in images.items():
            if path in boxes:
                raise InputError(f"{file}: the image {path} is listed twice")
            boxes[path] = check_boxes(path, sizes[identity], rows[identity], str(file))
            if its_split:
                split[path] = its_split
    return LabelledFiles(classes, boxes, split)


def _parse_coco(file: Path) -> _Coco:
    try:
        return _Coco.model_validate(json.loads(_read_text(file)))
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise InputError(f"{file}: not COCO's form of boxes: {place or 'it'}: {fault['msg']}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{file}: cannot be read as JSON: {error}") from error


def _find_image(name: str, folders: Sequence[Path], file: Path) -> Path:
    """Find an image that a file names. Raises InputError if it is in none of the folders."""
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{file}: there is no image {name} beside the file or in {' or '.join(map(str, folders[1:3]))}")


def _check_size(image: _Coco.Image, path: Path, file: Path) -> Size:
    """Read the size of an image. Raises InputError if the file of boxes says another: the boxes would not fit."""
    size = read_size(path)
    if (stated := Size(image.width or size.width, image.height or size.height)) != size:
        raise InputError(f"{file}: {path.name} is said to have {stated} px, but it has {size} px")
    return size


def read_yolo(images: Mapping[Path, str], classes: tuple[str, ...], labels: Path | None = None) -> LabelledFiles:
    """Read YOLO's text files: a line an object, with class, middle and size as shares of the image's sides.

    images: image -> its split, or "". An image without a text file has no objects. labels: folder of the text files;
    by default the image's own, with `labels` in place of `images`, or the image's own itself. Raises InputError naming
    the file, the line and the fault.
    """
    boxes: dict[Path, Boxes] = {}
    used = 0
    for image in images:
        file = next((path for path in _list_label_files(image, labels) if path.is_file()), None)
        used += file is not None
        size = read_size(image)
        rows = [] if file is None else _read_yolo_rows(file, size, classes)
        boxes[image] = check_boxes(image, size, rows, str(file))
    if not used:
        first = next(iter(images))
        raise InputError(
            f"{first}: neither this image nor another has a file of boxes, such as labels/{first.stem}.txt"
        )
    return LabelledFiles(classes, boxes, {path: split for path, split in images.items() if split})


def _list_label_files(image: Path, labels: Path | None) -> list[Path]:
    """Where an image's text file may be."""
    if labels is not None:
        return [labels / f"{image.stem}.txt"]
    parts = list(image.parts)
    places = [image.with_suffix(".txt")]
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        places.insert(0, Path(*parts[:last], "labels", *parts[last + 1 :]).with_suffix(".txt"))
    return places


def _read_yolo_rows(file: Path, size: Size, classes: Sequence[str]) -> list[tuple[float, ...]]:
    """Read a text file as rows of left, top, right, bottom in px, and class."""
    rows: list[tuple[float, ...]] = []
    for line_number, line in enumerate(_read_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        at = f"{file}, line {line_number}"
        try:
            number, x, y, w, h = map(float, line.split())
        except ValueError as error:
            raise InputError(f"{at}: expected class, x, y, width and height, got {line.strip()[:60]}") from error
        if number not in range(len(classes)):
            raise InputError(f"{at}: class {number:g} is none of the {len(classes)} classes {', '.join(classes)}")
        if not all(0 <= value <= 1 for value in (x, y, w, h)):
            raise InputError(
                f"{at}: x, y, width and height are shares of the image's sides, 0 to 1, got {line.strip()}"
            )
        left, top = (x - w / 2) * size.width, (y - h / 2) * size.height
        rows.append((left, top, left + w * size.width, top + h * size.height, number))
    return rows


def read_yaml_classes(file: Path) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Read the classes in YOLO's data.yaml, and all of its entries. Raises InputError naming the file."""
    try:
        content = yaml.safe_load(_read_text(file))
        names = content["names"]
        names = [names[number] for number in range(len(names))] if isinstance(names, dict) else names
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(f"{file}: expected YOLO's `names`, a list or numbers from 0 with names") from error
    if not isinstance(names, list) or not names:
        raise InputError(f"{file}: expected YOLO's `names`, a list or numbers from 0 with names")
    return tuple(map(str, names)), content


def read_points(file: Path, images: Iterable[Path], side: float) -> LabelledFiles:
    """Read a table of points, with columns image, x, y in px, and class if there are several: boxes around them.

    images: all of the set; an image without points has no objects. side: of the boxes, px; they end at the image's
    edge. Raises InputError naming the file, the line and the fault.
    """
    by_name = {name: path for path in images for name in (path.stem, path.name)}
    reader = csv.DictReader(_read_text(file).splitlines())
    if missing := {"image", "x", "y"} - set(reader.fieldnames or ()):
        raise InputError(f"{file}: the column {min(missing)} is missing")
    table = list(reader)
    classes = tuple(sorted({row.get("class") or "object" for row in table}))
    rows: dict[Path, list[tuple[float, ...]]] = {path: [] for path in by_name.values()}
    sizes = {path: read_size(path) for path in rows}
    for line_number, row in enumerate(table, start=2):
        at = f"{file}, line {line_number}"
        if (path := by_name.get(row["image"])) is None:
            raise InputError(f"{at}: there is no image {row['image']}")
        try:
            x, y = float(row["x"]), float(row["y"])
        except (TypeError, ValueError) as error:
            raise InputError(f"{at}: x and y must be numbers, got {row['x']} and {row['y']}") from error
        size = sizes[path]
        if not (0 <= x < size.width and 0 <= y < size.height):
            raise InputError(f"{at}: the point {x:g}, {y:g} lies outside {path.name}, which has {size} px")
        left, top, right, bottom = x - side / 2, y - side / 2, x + side / 2, y + side / 2
        number = classes.index(row.get("class") or "object")
        rows[path].append((max(left, 0), max(top, 0), min(right, size.width), min(bottom, size.height), number))
    boxes = {path: check_boxes(path, sizes[path], found, str(file)) for path, found in rows.items()}
    return LabelledFiles(classes, boxes, {})


def check_boxes(image: Path, size: Size, rows: Sequence[tuple[float, ...]], source: str) -> Boxes:
    """Check the boxes of an image, rows of left, top, right, bottom in px and class, and cut them off at its edges.

    Raises InputError naming `source` and the image if a box has no area, or exceeds the image by more than MARGIN.
    """
    table = np.array(rows, np.float64).reshape(len(rows), 5)
    for left, top, right, bottom, _ in table.tolist():
        described = f"{source}: the box {left:.6g}, {top:.6g} to {right:.6g}, {bottom:.6g} px in {image.name}"
        if not (right > left and bottom > top and np.isfinite([left, top, right, bottom]).all()):
            raise InputError(f"{described} has no area")
        beyond = max(-left, -top, right - size.width, bottom - size.height)
        if beyond > MARGIN or min(right, bottom) <= 0 or left >= size.width or top >= size.height:
            raise InputError(f"{described} lies outside the image, which has {size} px")
    inside = table[:, :4].clip(0, [size.width, size.height, size.width, size.height])
    return Boxes(inside.astype(np.float32), table[:, 4].astype(np.int64))


def find_split_word(name: str) -> str:
    """The split in a name or a path, the last one in it, as in `instances_train2017`; "" if there is none."""
    words = re.split(r"[^a-z]+", name.lower())[::-1]
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), "")


def read_size(path: Path) -> Size:
    """Read the size of an image from its header. Raises InputError naming it, as open_image does."""
    with open_image(path) as image:
        return Size(int(image.width), int(image.height))


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as text: {error}") from error
