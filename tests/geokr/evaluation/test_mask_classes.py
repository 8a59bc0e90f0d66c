"""A small file says which values or colours of a mask stand for which class."""

from pathlib import Path

import numpy as np
import pytest

from geokr.evaluation.mask_classes import IGNORE, MaskClasses, name_values, number_classes, read_mask_classes
from geokr.storage.inputs import InputError


def write(folder: Path, text: str, name: str = "classes.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_values_become_the_numbers_of_their_classes(tmp_path: Path) -> None:
    text = "classes:\n  land: [0, 7]\n  cloud: 1000\nignore: 65535"
    classes = read_mask_classes(write(tmp_path, text), ignore=[3])
    assert classes.names == ("land", "cloud")
    mask = np.array([[[0, 7, 1000], [65535, 3, 0]]], np.uint16)
    assert classes.encode(mask, "a.tif").tolist() == [[0, 0, 1], [IGNORE, IGNORE, 0]]


def test_yaml_and_toml_say_the_same(tmp_path: Path) -> None:
    yaml = write(tmp_path, 'classes: {road: "#ff0000", other: ["#000000", "#00FF00"]}\nignore: ["#ffffff"]')
    toml = write(
        tmp_path,
        'ignore = ["#ffffff"]\n[classes]\nroad = "#ff0000"\nother = ["#000000", "#00FF00"]',
        "classes.toml",
    )
    classes = read_mask_classes(yaml)
    assert classes == read_mask_classes(toml)
    mask = np.array([[255, 0, 0, 255], [0, 0, 255, 255], [0, 0, 0, 255], [9, 9, 9, 9]], np.uint8)[:, None]
    assert classes.encode(mask, "a.png").tolist() == [[0, 1, 1, IGNORE]]


def test_without_a_file_classes_are_positions_or_the_values_found() -> None:
    assert number_classes(["a", "b"], ignore=[9]).codes == {0: 0, 1: 1, 9: IGNORE}
    assert name_values([255, 0, 3], ignore=[3]) == MaskClasses(("0", "255"), {0: 0, 255: 1, 3: IGNORE}, False)


def test_a_grey_mask_may_be_saved_with_three_bands() -> None:
    grey = np.repeat(np.array([[[0, 1]]], np.uint8), 3, axis=0)
    assert number_classes(["a", "b"]).encode(grey, "a.png").tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("classes: {a: 0, b: 0}", "the value 0 stands for two classes, or for a class and none"),
        ("classes: {a: 0, b: 1}\nignore: 1", "the value 1 stands for two classes, or for a class and none"),
        ("classes: {a: 0, b: '#00ff00'}", "colours and values cannot be mixed"),
        ("classes: {a: 0, b: -1}", "-1 is neither a value from 0 to 65535 nor a colour in quotes"),
        ("classes: {a: 0, b: green}", "'green' is neither a value"),
        ("classes: {a: 0, b: yes}", "True is neither a value"),
        ("classes: {a: 0, b: []}", "the class b has no value"),
        ("classes: {a: 0}", "expected 2 to 254 classes, got 1"),
        ("classes: [a, b]", "expected `classes` with a value or a colour for each name"),
        ("klasses: {a: 0}", "there is no key klasses, only classes and ignore"),
        ("ignore: 3", "the key 'classes' is missing"),
        ("", "expected `classes`"),
        ("classes: {", "while parsing"),
    ],
)
def test_a_file_of_classes_that_cannot_be_used_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        read_mask_classes(write(tmp_path, text))
    assert str(error.value).startswith(f"{tmp_path / 'classes.yaml'}: ")
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_of_classes_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.toml: no such file of classes"):
        read_mask_classes(tmp_path / "no.toml")


def test_a_value_or_colour_without_class_is_named_with_its_place() -> None:
    mask = np.zeros((1, 3, 4), np.uint8)
    mask[0, 2, 1] = 9
    with pytest.raises(InputError, match=r"a\.png: value 9 at row 2, column 1 has no class; name it in the file of"):
        number_classes(["a", "b"]).encode(mask, "a.png")
    coloured = MaskClasses(("a", "b"), {0: 0, 0xFF0000: 1}, True)
    with pytest.raises(InputError, match=r"a\.png: colour #090909 at row 2, column 1 has no class"):
        coloured.encode(np.repeat(mask, 3, axis=0), "a.png")
    with pytest.raises(InputError, match=r"a\.png: the classes are given as colours, but the mask has 1 band"):
        coloured.encode(mask, "a.png")
    with pytest.raises(InputError, match=r"a\.png: the mask has colours; give the colour of each class"):
        number_classes(["a", "b"]).encode(np.arange(12, dtype=np.uint8).reshape(3, 2, 2), "a.png")
