"""Boxes are read from COCO's JSON, YOLO's text and tables of points, or refused with one sentence."""

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning

from geokr.evaluation.boxes import BoxSettings, read_boxes
from geokr.evaluation.examples import Examples
from geokr.storage.inputs import InputError

WIDTH, HEIGHT = 40, 20
NAMES = ("a1.png", "a2.png", "b1.png")


def write_image(path: Path, bands: int = 3) -> None:
    """An image of WIDTH x HEIGHT px whose pixels are their column."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.broadcast_to(np.arange(WIDTH, dtype=np.uint8), (bands, HEIGHT, WIDTH))
    options = {"driver": "GTiff" if path.suffix == ".tif" else "PNG", "width": WIDTH, "height": HEIGHT}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", count=bands, dtype="uint8", **options) as image:
            image.write(pixels)


def coco(**changes: Any) -> dict[str, Any]:
    """Cars on a1 and a2, and a bus on a2; b1 is empty. changes: in the first annotation."""
    annotations = [
        {"id": 5, "image_id": 10, "category_id": 7, "bbox": [4, 2, 10, 6], "iscrowd": 0} | changes,
        {"id": 6, "image_id": 20, "category_id": 7, "bbox": [0, 0, 8, 8]},
        {"id": 8, "image_id": 20, "category_id": 3, "bbox": [30.5, 10, 9.5, 10]},
    ]
    return {
        "images": [{"id": 10 * k, "file_name": name, "width": WIDTH} for k, name in enumerate(NAMES, start=1)],
        "categories": [{"id": 7, "name": "car"}, {"id": 3, "name": "bus"}],
        "annotations": annotations,
    }


def write_coco(folder: Path, **changes: Any) -> Path:
    for name in NAMES:
        write_image(folder / "images" / name)
    (folder / "annotations.json").write_text(json.dumps(coco(**changes)))
    return folder


def write_yolo(folder: Path, line: str = "0 0.225 0.25 0.25 0.3") -> Path:
    """The same objects as `coco`. line: of a1's car."""
    for name in NAMES:
        write_image(folder / "images" / name)
    (folder / "labels").mkdir()
    (folder / "labels" / "a1.txt").write_text(f"{line}\n\n")
    (folder / "labels" / "a2.txt").write_text("0 0.1 0.2 0.2 0.4\n1 0.88125 0.75 0.2375 0.5\n")
    (folder / "classes.txt").write_text("car\nbus\n")
    return folder


def write_points(folder: Path, row: str = "a1,9,5") -> Path:
    for name in NAMES:
        write_image(folder / "images" / name)
    (folder / "points.csv").write_text(f"image,x,y\n{row}\na2.png,1,19\n")
    return folder


def targets(examples: Examples) -> list[list[list[float]]]:
    """Of each image: left, top, right, bottom and class of its objects."""
    pairs = [examples.target(i) for i in range(len(examples))]
    return [np.column_stack(pair).tolist() for pair in pairs]


def named(examples: Examples) -> list[list[tuple[str, list[float]]]]:
    """The same with the names of classes, which forms of files number differently."""
    return [[(examples.classes[int(row[4])], row[:4]) for row in rows] for rows in targets(examples)]


OBJECTS = [
    [("car", [4, 2, 14, 8])],
    [("car", [0, 0, 8, 8]), ("bus", [30.5, 10, 40, 20])],
    [],
]


def test_coco_and_yolo_give_the_same_boxes(tmp_path: Path) -> None:
    settings = BoxSettings()
    one, other = read_boxes(write_coco(tmp_path / "c"), settings), read_boxes(write_yolo(tmp_path / "y"), settings)
    assert one.names == other.names == tuple(f"images/{name}" for name in NAMES)
    assert (one.classes, other.classes) == (("bus", "car"), ("car", "bus"))
    assert named(one) == named(other) == OBJECTS
    assert one.image(0).shape == (3, HEIGHT, WIDTH)
    assert (one.split, one.bands, one.scale) == ({}, ("red", "green", "blue"), 255)
    assert targets(pickle.loads(pickle.dumps(one))) == targets(one)  # other processes get it


def test_points_become_boxes_that_end_at_the_image(tmp_path: Path) -> None:
    folder = write_points(tmp_path)
    assert targets(read_boxes(folder, BoxSettings(box=6))) == [[[6, 2, 12, 8, 0]], [[0, 16, 4, 20, 0]], []]
    with pytest.raises(InputError, match=r"points.csv: a table of points needs the side .* such as box=12"):
        read_boxes(folder, BoxSettings())


def test_a_box_is_cut_off_at_the_edge_where_it_exceeds_it_by_rounding(tmp_path: Path) -> None:
    assert targets(read_boxes(write_coco(tmp_path, bbox=[-1.5, 2, 10, 19]), BoxSettings()))[0] == [[0, 2, 8.5, 20, 1]]


def test_crowds_are_left_out_and_their_image_stays(tmp_path: Path) -> None:
    assert named(read_boxes(write_coco(tmp_path, iscrowd=1), BoxSettings()))[0] == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"bbox": [35, 2, 10, 6]}, r"the box 35, 2 to 45, 8 px in a1.png lies outside the image, which has 40 x 20 px"),
        ({"bbox": [4, -3, 10, 6]}, r"the box 4, -3 to 14, 3 px in a1.png lies outside"),
        ({"bbox": [-1.5, 2, 1, 6]}, r"in a1.png lies outside"),
        ({"bbox": [4, 2, 10, 0]}, r"the box 4, 2 to 14, 2 px in a1.png has no area"),
        ({"bbox": [4, 2, -3, 6]}, r"in a1.png has no area"),
        ({"bbox": [4, 2, float("nan"), 6]}, r"not COCO's form of boxes: annotations.0.bbox.2: .*finite|has no area"),
        ({"bbox": [4, 2, 10]}, r"not COCO's form of boxes: annotations.0.bbox"),
        ({"category_id": 9}, r"annotation 5 has category 9, which the file does not define"),
        ({"image_id": 9}, r"annotation 5 belongs to image 9, which the file does not list"),
    ],
)
def test_a_coco_file_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=rf"annotations.json: .*(?:{sentence})") as error:
        read_boxes(write_coco(tmp_path, **changes), BoxSettings())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("0 0.9 0.25 0.5 0.3", r"a1.txt: the box 26, 2 to 46, 8 px in a1.png lies outside the image"),
        ("0 0.225 0.25 0 0.3", r"a1.txt: the box .* has no area"),
        ("0 9 5 10 6", r"a1.txt, line 1: x, y, width and height are shares of the image's sides, 0 to 1, got 0 9 5"),
        ("0 nan 0.2 0.1 0.1", r"a1.txt, line 1: x, y, width and height are shares"),
        ("2 0.225 0.25 0.25 0.3", r"a1.txt, line 1: class 2 is none of the 2 classes car, bus"),
        ("0.5 0.225 0.25 0.25 0.3", r"a1.txt, line 1: class 0.5 is none"),
        ("0 0.2 0.2 0.3 0.2 0.3 0.4", r"a1.txt, line 1: expected class, x, y, width and height, got 0 0.2"),
        ("car 0.2 0.2 0.3 0.2", r"a1.txt, line 1: expected class"),
    ],
)
def test_a_yolo_line_that_does_not_fit_is_refused(tmp_path: Path, line: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_boxes(write_yolo(tmp_path, line), BoxSettings())


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("a1,40,5", r"points.csv, line 2: the point 40, 5 lies outside a1.png, which has 40 x 20 px"),
        ("a1,x,5", r"points.csv, line 2: x and y must be numbers, got x and 5"),
        ("a1,9", r"points.csv, line 2: x and y must be numbers, got 9 and None"),
        ("a9,9,5", r"points.csv, line 2: there is no image a9"),
    ],
)
def test_a_point_that_does_not_fit_is_refused(tmp_path: Path, row: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_boxes(write_points(tmp_path, row), BoxSettings(box=6))


def test_a_missing_or_an_empty_image_or_one_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = write_coco(tmp_path)
    image = folder / "images" / "a2.png"
    image.write_bytes(b"")
    with pytest.raises(InputError, match=r"a2.png: the file is empty"):
        read_boxes(folder, BoxSettings())
    image.unlink()
    with pytest.raises(InputError, match=r"annotations.json: there is no image a2.png beside the file or in "):
        read_boxes(folder, BoxSettings())
    write_image(image)
    stated = coco()
    stated["images"][1]["width"] = 80
    (folder / "annotations.json").write_text(json.dumps(stated))
    with pytest.raises(InputError, match=r"annotations.json: a2.png is said to have 80 x 20 px, but it has 40 x 20 px"):
        read_boxes(folder, BoxSettings())


def test_files_that_are_no_boxes_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a1.png")
    with pytest.raises(InputError, match=r"there are no boxes; expected COCO's"):
        read_boxes(tmp_path, BoxSettings())
    (tmp_path / "classes.txt").write_text("car\n")
    with pytest.raises(InputError, match=r"a1.png: neither this image nor another has a file of boxes"):
        read_boxes(tmp_path, BoxSettings())
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match=r"boxes in several forms, coco, yolo; add annotations=FILE"):
        read_boxes(tmp_path, BoxSettings())
    with pytest.raises(InputError, match=r"a.json: cannot be read as JSON"):
        read_boxes(tmp_path, BoxSettings(annotations="a.json"))
    with pytest.raises(InputError, match=r"b.json: no such file of boxes"):
        read_boxes(tmp_path, BoxSettings(annotations="b.json"))


def test_coco_files_may_be_one_a_split(tmp_path: Path) -> None:
    whole = coco()
    for k, split in enumerate(("train2017", "val2017", "test2017")):
        write_image(tmp_path / split[:-4] / NAMES[k])
        own = [entry for entry in whole["annotations"] if entry["image_id"] == 10 * (k + 1)]
        part = whole | {"images": [whole["images"][k]], "annotations": own}
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(part))
    examples = read_boxes(tmp_path, BoxSettings())
    assert examples.names == ("test/b1.png", "train/a1.png", "val/a2.png")
    assert {name: positions.tolist() for name, positions in examples.split.items()} == {
        "train": [1],
        "val": [2],
        "test": [0],
    }
    (tmp_path / "annotations" / "more.json").write_text(json.dumps(whole))
    with pytest.raises(InputError, match=r"more.json: the name of this file does not say of which split it is"):
        read_boxes(tmp_path, BoxSettings())


def test_yolo_data_may_be_described_by_a_yaml_file(tmp_path: Path) -> None:
    for split, name in zip(("train", "valid", "test"), NAMES, strict=True):
        write_image(tmp_path / split / "images" / name)
        (tmp_path / split / "labels").mkdir()
    (tmp_path / "train" / "labels" / "a1.txt").write_text("1 0.5 0.5 1 1\n")
    (tmp_path / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: test/images\nnames: {0: car, 1: bus}\n"
    )
    examples = read_boxes(tmp_path, BoxSettings())
    assert examples.classes == ("car", "bus")
    assert named(examples)[examples.names.index("train/images/a1.png")] == [("bus", [0, 0, 40, 20])]
    assert [examples.names[i] for i in examples.split["val"]] == ["valid/images/a2.png"]
    (tmp_path / "data.yaml").write_text("train: elsewhere\nnames: [car]\n")
    with pytest.raises(InputError, match=r"data.yaml: train is elsewhere, but there is no .*elsewhere"):
        read_boxes(tmp_path, BoxSettings())
    (tmp_path / "data.yaml").write_text("train: train\n")
    with pytest.raises(InputError, match=r"data.yaml: expected YOLO's `names`"):
        read_boxes(tmp_path, BoxSettings())


def test_lists_of_names_are_splits(tmp_path: Path) -> None:
    folder = write_coco(tmp_path)
    (folder / "train.txt").write_text("a1\na2.png\n")
    (folder / "test.txt").write_text("images/b1.png\n")
    split = read_boxes(folder, BoxSettings()).split
    assert {name: positions.tolist() for name, positions in split.items()} == {"train": [0, 1], "test": [2]}


def test_groups_come_from_names(tmp_path: Path) -> None:
    folder = write_coco(tmp_path)
    assert read_boxes(folder, BoxSettings()).group.tolist() == [0, 1, 2]
    assert read_boxes(folder, BoxSettings(group=r"/([a-z])\d")).group.tolist() == [0, 0, 1]
    with pytest.raises(InputError, match="not a regular expression"):
        read_boxes(folder, BoxSettings(group="("))


def test_some_classes_are_chosen_and_draws_balance_the_rarest(tmp_path: Path) -> None:
    folder = write_coco(tmp_path)
    examples = read_boxes(folder, BoxSettings())
    assert [examples.classes[k - 1] if k else "" for k in examples.stratum] == ["car", "bus", ""]
    chosen = read_boxes(folder, BoxSettings(classes=("car",)))
    assert named(chosen) == [OBJECTS[0], OBJECTS[1][:1], []]
    with pytest.raises(InputError, match=r"there is no class boat among bus, car"):
        read_boxes(folder, BoxSettings(classes=("boat",)))


def test_geotiffs_keep_their_bands(tmp_path: Path) -> None:
    folder = write_points(tmp_path)
    for name in NAMES:
        (folder / "images" / name).unlink()
        write_image((folder / "images" / name).with_suffix(".tif"), bands=4)
    (folder / "points.csv").write_text("image,x,y,class\na1,9,5,oak\na2,9,5,elm\n")
    examples = read_boxes(folder, BoxSettings(box=6, bands=("blue", "green", "red", "nir")))
    assert examples.classes == ("elm", "oak")
    assert examples.image(2).shape == (4, HEIGHT, WIDTH)
    assert examples.bands == ("blue", "green", "red", "nir")
