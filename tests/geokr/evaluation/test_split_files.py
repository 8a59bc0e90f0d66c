"""Lists of images name the splits that came with the data."""

from pathlib import Path

import pytest

from geokr.evaluation.split_files import read_split_files
from geokr.storage.inputs import InputError

NAMES = ("images/a.png", "images/b.c.png", "images/d.png", "other/d.png")


def test_a_line_names_an_image_by_path_name_or_stem(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("b.c\n\n./images/a.png\n")
    (tmp_path / "test.txt").write_text("other/d\nimages/d.png")
    splits = read_split_files(tmp_path, NAMES)
    assert {name: positions.tolist() for name, positions in splits.items()} == {"train": [0, 1], "test": [2, 3]}


def test_without_lists_there_is_no_split(tmp_path: Path) -> None:
    assert read_split_files(tmp_path, NAMES) == {}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [("e.png", "no image named e.png"), ("d", "2 images named d"), ("a", "a is also in train.txt")],
)
def test_a_line_that_does_not_fit_is_named(tmp_path: Path, line: str, sentence: str) -> None:
    (tmp_path / "train.txt").write_text("a.png")
    (tmp_path / "val.txt").write_text(f"b.c.png\n{line}\n")
    with pytest.raises(InputError) as error:
        read_split_files(tmp_path, NAMES)
    assert str(error.value) == f"{tmp_path / 'val.txt'}, line 2: {sentence}"
