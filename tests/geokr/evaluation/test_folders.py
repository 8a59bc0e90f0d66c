"""Classification data as people have it: folders, tables, and splits that came with them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geokr.evaluation.folders import read_labelled_folder
from geokr.evaluation.task import Settings
from geokr.storage.inputs import InputError


def put(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(path)
    return path


def test_a_folder_a_class(tmp_path: Path) -> None:
    for i, name in enumerate(("b/1.png", "a/2.jpg", "b/sub/3.tif")):
        put(tmp_path / name, 50 * i)
    examples = read_labelled_folder(tmp_path, Settings())
    assert examples.names == ("a/2.jpg", "b/1.png", "b/sub/3.tif")
    assert examples.classes == ("a", "b")
    assert [examples.target(i) for i in range(3)] == [0, 1, 1]
    assert examples.image(2).shape == (3, 4, 6)
    assert examples.image(2).max() == 100
    assert examples.split == {}


def test_folders_of_splits(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/2.png", "test/a/3.png", "test/b/4.png"):
        put(tmp_path / name)
    examples = read_labelled_folder(tmp_path, Settings())
    names = {split: [examples.names[i] for i in part] for split, part in examples.split.items()}
    assert names == {"train": ["train/a/1.png", "train/b/2.png"], "test": ["test/a/3.png", "test/b/4.png"]}


def test_a_folder_images_and_lists_of_splits(tmp_path: Path) -> None:
    for name in ("images/a/1.png", "images/b/2.png", "images/a/3.png", "images/b/4.png"):
        put(tmp_path / name)
    (tmp_path / "train.txt").write_text("1.png\na\n".replace("a\n", "2\n"))
    (tmp_path / "test.txt").write_text("images/a/3.png\n\n4.png\n")
    examples = read_labelled_folder(tmp_path, Settings())
    assert examples.classes == ("a", "b")
    assert {split: len(part) for split, part in examples.split.items()} == {"train": 2, "test": 2}


def test_a_table(tmp_path: Path) -> None:
    for name in ("x/1.png", "x/2.png", "3.png"):
        put(tmp_path / name)
    (tmp_path / "labels.csv").write_text("file,label,split\nx/1.png,sea,train\nx/2.png,land,train\n3.png,sea,test\n")
    examples = read_labelled_folder(tmp_path, Settings())
    assert examples.names == ("x/1.png", "x/2.png", "3.png")
    assert examples.classes == ("land", "sea")
    assert examples.split["test"].tolist() == [2]


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("file,class\n1.png,a\n", "its header needs the columns file and label"),
        ("file,label\n1.png,a\n9.png,b\n", "line 3: 9.png is no file in this folder"),
        ("file,label\n1.png,a\n1.png,b\n", "1.png is listed twice"),
        ("file,label\n1.png,\n", "line 2: file or label is empty"),
        ("file,label,split\n1.png,a,dev\n", "line 2: the split is dev, expected train, val or test"),
        ("file,label\n1.png,a\n2.png,a\n", "only the class a; at least two are needed"),
        ("file,label\n", "there are no rows"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, table: str, sentence: str) -> None:
    put(tmp_path / "1.png")
    put(tmp_path / "2.png")
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(InputError, match=sentence):
        read_labelled_folder(tmp_path, Settings())


def test_an_image_outside_the_folders_of_classes_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "a/1.png")
    put(tmp_path / "stray.png")
    with pytest.raises(InputError, match=r"stray\.png: the image is in no folder of a class"):
        read_labelled_folder(tmp_path, Settings())


def test_a_path_without_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_labelled_folder(tmp_path / "none", Settings())
