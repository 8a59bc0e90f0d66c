"""Class taxonomies, and crosswalks from a product's codes into them.

Both are TOML files in `knowledge/`: `classes.toml` holds the target classes in label order; every
other file describes one land-cover product, with a row for each of its codes.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

KNOWLEDGE = Path(__file__).parent / "knowledge"
IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class Legend:
    """What each code of a product means in terms of the target classes."""

    name: str
    """The product's short name, such as `globeland30`."""
    classes: tuple[str, ...]
    """Target classes in label order: position k is column k of every label array."""
    colours: tuple[str, ...]
    """One `#rrggbb` a class, for figures."""
    codes: Mapping[int, tuple[float, ...]]
    """Code -> share of each class, summing to 1. A code may be split over several classes."""
    ignored: frozenset[int]
    """Codes that say nothing (no data, cloud): their area counts as unknown."""

    def __post_init__(self) -> None:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"{self.name}: a class is named twice in {self.classes}")
        if len(self.colours) != len(self.classes):
            raise ValueError(f"{self.name}: {len(self.colours)} colours for {len(self.classes)} classes")
        for code, shares in self.codes.items():
            if not (len(shares) == len(self.classes) and min(shares) >= 0 and abs(sum(shares) - 1) <= 1e-9):
                raise ValueError(f"{self.name}: code {code} has shares {shares}, expected them to sum to 1")
        if both := self.ignored & set(self.codes):
            raise ValueError(f"{self.name}: codes {sorted(both)} are both ignored and mapped")

    def shares(self, codes: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Share of each class that a cell of each code stands for.

        codes: (n,) int. Returns (n, class) float64; a row is all 0 where the code is ignored or unlisted.
        """
        nothing = (0.0,) * len(self.classes)
        rows = [self.codes.get(int(code), nothing) for code in np.atleast_1d(np.asarray(codes))]
        return np.array(rows, dtype=np.float64).reshape(-1, len(self.classes))

    def unlisted(self, codes: npt.ArrayLike) -> frozenset[int]:
        """Those of `codes` that the product's file does not mention at all."""
        return frozenset(int(code) for code in np.atleast_1d(np.asarray(codes))) - self.ignored - set(self.codes)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dictionary. Raises ValueError naming the file where it is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a TOML file: {error}") from error


def read_legend(path: Path, classes_file: Path = KNOWLEDGE / "classes.toml") -> Legend:
    """The legend of the product described in `path`.

    Raises ValueError with one sentence naming the file and the fault: a key that is missing, a code listed
    twice, a class outside the taxonomy, shares that do not sum to 1.
    """
    taxonomy, product = read_toml(classes_file), read_toml(path)
    try:
        classes = tuple(row["name"] for row in taxonomy["classes"])
        colours = tuple(row["colour"] for row in taxonomy["classes"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{classes_file}: expected `classes`, each with `name` and `colour`: {error}") from error
    codes: dict[int, tuple[float, ...]] = {}
    ignored: set[int] = set()
    try:
        for row in product["codes"]:
            code, target = row["code"], row["to"]
            if type(code) is not int:
                raise ValueError(f"code {code!r} is not a whole number")
            if code in codes or code in ignored:
                raise ValueError(f"code {code} is listed twice")
            if target == IGNORE:
                ignored.add(code)
                continue
            parts = {target: 1.0} if isinstance(target, str) else target
            if unknown := set(parts) - set(classes):
                raise ValueError(f"code {code} goes to {sorted(unknown)}, expected one of {list(classes)}")
            codes[code] = tuple(float(parts.get(name, 0.0)) for name in classes)
        return Legend(product["name"], classes, colours, codes, frozenset(ignored))
    except KeyError as error:
        raise ValueError(f"{path}: {error} is missing") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
