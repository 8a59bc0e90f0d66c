"""Classes of a mask's pixels: which values or colours stand for which class, from a small file or from settings."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from geokr.storage.inputs import InputError

IGNORE = 255
"""Target of a pixel that has no class. It counts neither in training nor in a metric."""
FILES = ("classes.yaml", "classes.yml", "classes.toml")
"""Names under which the file of classes is looked for in a folder of data."""


@dataclass(frozen=True, slots=True)
class MaskClasses:
    """Classes of the pixels of a mask."""

    names: tuple[str, ...]
    """In the order of their numbers in a target, 0, 1 ..."""
    codes: Mapping[int, int]
    """Value or colour of a mask -> number of the class, or IGNORE. A colour is red * 65536 + green * 256 + blue."""
    coloured: bool
    """Whether the codes are colours."""

    def __post_init__(self) -> None:
        if not 2 <= len(self.names) < IGNORE:
            raise ValueError(f"expected 2 to {IGNORE - 1} classes, got {len(self.names)}")
        if repeated := [name for name in self.names if self.names.count(name) > 1]:
            raise ValueError(f"the class {repeated[0]} is named twice")

    def encode(self, pixels: npt.NDArray[np.generic], file: str) -> npt.NDArray[np.uint8]:
        """Encode a mask as numbers of classes: (y, x) uint8 with IGNORE, from (band, y, x) values or colours.

        Raises InputError naming `file` and the first value that no class has.
        """
        if self.coloured and len(pixels) < 3:
            raise InputError(f"{file}: the classes are given as colours, but the mask has {len(pixels)} band")
        codes = _pack(pixels) if self.coloured else read_values(pixels, file)
        known = np.array(sorted(self.codes))
        place = np.searchsorted(known, codes).clip(max=len(known) - 1)
        if len(wrong := np.argwhere(known[place] != codes)):
            row, column = wrong[0]
            raise InputError(
                f"{file}: {self.write_code(int(codes[row, column]))} at row {row}, column {column} has no class; name "
                "it in the file of classes, or among the values to ignore"
            )
        numbers = np.array([self.codes[int(code)] for code in known], np.uint8)
        target: npt.NDArray[np.uint8] = numbers[place]
        return target

    def write_code(self, code: int) -> str:
        return f"colour #{code:06x}" if self.coloured else f"value {code}"


def read_values(pixels: npt.NDArray[np.generic], file: str) -> npt.NDArray[np.int64]:
    """Read the values of a mask of one band: (y, x) int64 from (band, y, x).

    A grey mask saved with red, green and blue bands is taken as one; a fourth band, or a second one, is opacity.
    Raises InputError naming `file` if the bands differ.
    """
    if len(pixels) > 2 and any((band != pixels[0]).any() for band in pixels[1:3]):
        raise InputError(f"{file}: the mask has colours; give the colour of each class in a file of classes")
    values: npt.NDArray[np.int64] = pixels[0].astype(np.int64)
    return values


def read_mask_classes(path: Path, ignore: Sequence[int] = ()) -> MaskClasses:
    """Read a file of classes, YAML or TOML. Raises InputError naming the file and the fault.

    `classes` maps the name of each class to its value, its colour as `#rrggbb`, or a list of values or of colours.
    `ignore` is the same for pixels without a class. ignore: more values without a class.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
        unknown = sorted(map(str, content.keys() - {"classes", "ignore"}))
        if unknown:
            raise ValueError(f"there is no key {unknown[0]}, only classes and ignore")
        given = content["classes"]
        entries = [(number, _read_codes(entry)) for number, entry in enumerate(given.values())]
        entries.append((IGNORE, _read_codes(content.get("ignore", [])) + [(False, value) for value in ignore]))
        return _collect(tuple(map(str, given)), entries)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file of classes") from error
    except KeyError as error:
        raise InputError(f"{path}: the key {error} is missing") from error
    except (AttributeError, TypeError) as error:
        raise InputError(f"{path}: expected `classes` with a value or a colour for each name") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error


def number_classes(names: Sequence[str], ignore: Sequence[int] = ()) -> MaskClasses:
    """Classes whose value in a mask is their position in `names`. ignore: values without a class.

    Raises ValueError if a value to ignore is also that of a class.
    """
    entries = [(number, [(False, number)]) for number in range(len(names))]
    return _collect(tuple(names), [*entries, (IGNORE, [(False, value) for value in ignore])])


def name_values(values: Sequence[int], ignore: Sequence[int] = ()) -> MaskClasses:
    """Classes named after the values that occur in masks, in ascending order. ignore: values without a class."""
    named = sorted(set(values) - set(ignore))
    entries = [(number, [(False, value)]) for number, value in enumerate(named)]
    return _collect(tuple(map(str, named)), [*entries, (IGNORE, [(False, value) for value in ignore])])


def _collect(names: tuple[str, ...], entries: Sequence[tuple[int, list[tuple[bool, int]]]]) -> MaskClasses:
    """Build MaskClasses from (number, codes). Raises ValueError if a code stands twice, or colours beside values."""
    codes: dict[int, int] = {}
    coloured = any(is_colour for _, pairs in entries for is_colour, _ in pairs)
    for number, pairs in entries:
        if not pairs and number != IGNORE:
            raise ValueError(f"the class {names[number]} has no value")
        for is_colour, code in pairs:
            if is_colour != coloured:
                raise ValueError("colours and values cannot be mixed")
            if codes.setdefault(code, number) != number:
                text = f"the colour #{code:06x}" if coloured else f"the value {code}"
                raise ValueError(f"{text} stands for two classes, or for a class and none")
    return MaskClasses(names, codes, coloured)


def _read_codes(entry: Any) -> list[tuple[bool, int]]:
    """Read values or colours of a class: whether it is a colour, and its code. Raises ValueError for anything else."""
    match entry:
        case bool():
            pass
        case int() if 0 <= entry < 2**16:
            return [(False, entry)]
        case str() if re.fullmatch("#[0-9a-fA-F]{6}", entry):
            return [(True, int(entry[1:], 16))]
        case list():
            return [code for part in entry for code in _read_codes(part)]
    raise ValueError(f"{entry!r} is neither a value from 0 to 65535 nor a colour in quotes, such as '#00ff00'")


def _pack(pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    red, green, blue = pixels[:3].astype(np.int64)
    return np.asarray(red * 65536 + green * 256 + blue)
