"""Data for detection: images with boxes around objects."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from geokr.evaluation.box_formats import (
    Boxes,
    LabelledFiles,
    find_split_word,
    read_coco,
    read_points,
    read_yaml_classes,
    read_yolo,
)
from geokr.evaluation.examples import SPLITS, Examples, IntArray, PixelArray
from geokr.evaluation.images import find_bands, find_images, find_scale, read_pixels
from geokr.evaluation.split_files import group_names, read_split_files
from geokr.evaluation.task import Settings
from geokr.settings import Names
from geokr.storage.inputs import InputError

CLASS_FILES = ("classes.txt", "obj.names", "labels/classes.txt")
"""Files with a class a line, which stand beside YOLO's labels."""


class BoxSettings(Settings):
    """How labelled boxes are found and read."""

    annotations: str = ""
    """File of the boxes in the folder: COCO's .json, YOLO's .yaml, or a .csv of points. By default it is found."""
    images: str = ""
    """Folder of the images of a table of points or of YOLO's labels without data.yaml; `images` if there is one."""
    box: Annotated[float, Field(ge=0)] = 0.0
    """Side of the boxes around points, px. A table of points needs it."""
    classes: Names = ()
    """Classes to detect; objects of others are left out. By default all."""
    group: str = ""
    """Regular expression on the names of images. Images with the same match, or the same first group of it, stay in one
    split: the frames of a sequence, or copies."""


def read_boxes(folder: Path, settings: BoxSettings) -> Examples:
    """Read images with boxes. Raises InputError naming the file that does not fit."""
    labelled = select_classes(_read_labels(folder, settings), settings.classes, folder)
    paths = sorted(labelled.boxes)
    names = tuple(path.relative_to(folder).as_posix() for path in paths)
    boxes = tuple(labelled.boxes[path] for path in paths)
    bands = find_bands(paths[0], settings.bands)
    split = {
        name: np.array([i for i, path in enumerate(paths) if labelled.split.get(path) == name], np.int64)
        for name in SPLITS
        if name in labelled.split.values()
    }
    return Examples(
        names=names,
        bands=bands,
        classes=labelled.classes,
        stratum=find_rarest_class(boxes),
        group=group_names([""] * len(names), names, settings.group),
        split=split or read_split_files(folder, names),
        scale=find_scale(paths[0], settings.scale),
        image=partial(_read_image, tuple(paths), bands),
        target=partial(_get_boxes, boxes),
    )


def _read_image(paths: Sequence[Path], bands: Sequence[str], position: int) -> PixelArray:
    return read_pixels(paths[position], bands)


def _get_boxes(boxes: Sequence[Boxes], position: int) -> tuple[Any, Any]:
    return boxes[position].corners, boxes[position].classes


def _read_labels(folder: Path, settings: BoxSettings) -> LabelledFiles:
    """Read whatever file of boxes a folder has."""
    file = _find_annotations(folder, settings.annotations)
    images = folder / (settings.images or ("images" if (folder / "images").is_dir() else ""))
    if file is None:
        files = _find_coco(folder)
        if not files:
            raise InputError(
                f"{folder}: there are no boxes; expected COCO's .json, YOLO's data.yaml or classes.txt, or points.csv"
            )
        return read_coco(files, folder)
    match file.suffix:
        case ".json":
            return read_coco({file: ""}, folder)
        case ".yaml" | ".yml":
            return _read_yolo_yaml(file)
        case ".csv":
            if not settings.box:
                raise InputError(
                    f"{file}: a table of points needs the side of the boxes around them, such as box=12 px"
                )
            return read_points(file, find_images(images), settings.box)
        case ".txt" | ".names":
            classes = tuple(filter(None, map(str.strip, file.read_text(encoding="utf-8").splitlines())))
            split = {path: find_split_word(str(path.parent.relative_to(folder))) for path in find_images(images)}
            return read_yolo(split, classes)
    raise InputError(f"{file}: boxes are read from .json, .yaml, .csv and classes.txt")


def _find_annotations(folder: Path, given: str) -> Path | None:
    """The file of boxes, or of their classes; None if there is none but perhaps COCO's."""
    if given:
        if not (folder / given).is_file():
            raise InputError(f"{folder / given}: no such file of boxes")
        return folder / given
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    named = [folder / name for name in ("data.yaml", "data.yml", *CLASS_FILES, "points.csv")]
    found = [file for file in named if file.is_file()]
    kinds = {"yolo" if file.suffix != ".csv" else "points" for file in found} | (
        {"coco"} if _find_coco(folder) else set()
    )
    if len(kinds) > 1:
        raise InputError(
            f"{folder}: there are boxes in several forms, {', '.join(sorted(kinds))}; add annotations=FILE"
        )
    return found[0] if found else None


def _find_coco(folder: Path) -> dict[Path, str]:
    """COCO's files in a folder -> the split that each is for, or "" if there is but one file."""
    places = [
        folder,
        folder / "annotations",
        *(path for path in sorted(folder.iterdir()) if find_split_word(path.name)),
    ]
    found = [file for place in places if place.is_dir() for file in sorted(place.glob("*.json"))]
    split = {file: find_split_word(str(file.relative_to(folder).with_suffix(""))) for file in found}
    if len(found) > 1 and (unnamed := [file for file, name in split.items() if not name]):
        raise InputError(f"{unnamed[0]}: the name of this file does not say of which split it is; add annotations=FILE")
    counts = Counter(split.values())
    if repeated := [file for file, name in split.items() if counts[name] > 1]:
        raise InputError(f"{repeated[0]}: a second file of the split {split[repeated[0]]}; add annotations=FILE")
    return split


def _read_yolo_yaml(file: Path) -> LabelledFiles:
    """Read the images and labels that YOLO's data.yaml names: folders of images, or lists of them."""
    classes, content = read_yaml_classes(file)
    root = file.parent / str(content.get("path") or "")
    images: dict[Path, str] = {}
    for split in SPLITS:
        entries = content.get(split) or []
        for entry in entries if isinstance(entries, list) else [entries]:
            # Some tools write paths relative to a folder below that of the file.
            place = next(
                (path for path in (root / entry, file.parent / str(entry).removeprefix("../")) if path.exists()), None
            )
            if place is None:
                raise InputError(f"{file}: {split} is {entry}, but there is no {root / entry}")
            for path in find_images(place) if place.is_dir() else _read_list(place):
                if images.setdefault(path, split) != split:
                    raise InputError(f"{file}: {path} is an image for {images[path]} and for {split}")
    if not images:
        raise InputError(f"{file}: expected train, val and test with the folders of their images")
    return read_yolo(images, classes)


def _read_list(file: Path) -> list[Path]:
    """Read a list of images, a path a line, relative to the list."""
    paths = [file.parent / line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if missing := [path for path in paths if not path.is_file()]:
        raise InputError(f"{file}: there is no image {missing[0]}")
    return paths


def select_classes(labelled: LabelledFiles, classes: Sequence[str], folder: Path) -> LabelledFiles:
    """Keep only the objects of some classes, and number these in their order. () keeps all.

    Raises InputError naming the folder for a class that the data lack.
    """
    if not classes:
        return labelled
    if unknown := [name for name in classes if name not in labelled.classes]:
        raise InputError(f"{folder}: there is no class {unknown[0]} among {', '.join(labelled.classes)}")
    numbers = np.array([list(classes).index(name) if name in classes else -1 for name in labelled.classes])
    boxes = {}
    for path, its_boxes in labelled.boxes.items():
        renumbered = numbers[its_boxes.classes]
        boxes[path] = Boxes(its_boxes.corners[renumbered >= 0], renumbered[renumbered >= 0])
    return LabelledFiles(tuple(classes), boxes, labelled.split)


def find_rarest_class(boxes: Sequence[Boxes]) -> IntArray:
    """What a drawn split balances: (n,) each image's class that the fewest images have, plus 1; 0 without boxes."""
    frequency = Counter(number for its_boxes in boxes for number in set(its_boxes.classes.tolist()))
    rarest = [min(set(its.classes.tolist()), key=lambda k: (frequency[k], k), default=-1) for its in boxes]
    return np.array(rarest, np.int64) + 1
