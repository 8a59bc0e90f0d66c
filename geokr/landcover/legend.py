"""Taxonomies, and crosswalks from the codes of a product to their classes.

Both are TOML files in `knowledge/`. A file in `taxonomies/` lists classes in label order. A file in `products/`
describes one land-cover product. It has a row for each code, which maps the code to classes of the base taxonomy.
Any other taxonomy maps the classes of the base taxonomy to its own; a product's row may override this mapping with a
key of that taxonomy's name.
"""

import colorsys
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

KNOWLEDGE = Path(__file__).parent / "knowledge"
IGNORE = "ignore"
BASE = "globeland30"
"""The taxonomy to which the rows of the products map their codes."""
OWN = "own"
"""Selects the product's own classes instead of a taxonomy: each code is a class."""


@dataclass(frozen=True, slots=True)
class Taxonomy:
    """Classes in label order."""

    name: str
    version: int
    """Must be raised when the classes or their order change."""
    classes: tuple[str, ...]
    colours: tuple[str, ...]
    """One `#rrggbb` per class, for figures."""
    base: Mapping[str, Mapping[str, float]]
    """Class of the base taxonomy -> share of each class, including `ignore`; sums to 1. Empty for the base taxonomy
    itself, and for a taxonomy to which the products' rows map directly."""

    def __post_init__(self) -> None:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"{self.name}: a class is named twice in {self.classes}")
        if IGNORE in self.classes:
            raise ValueError(f"{self.name}: a class cannot be named {IGNORE!r}")
        if len(self.colours) != len(self.classes):
            raise ValueError(f"{self.name}: {len(self.colours)} colours for {len(self.classes)} classes")


@dataclass(frozen=True, slots=True)
class Legend:
    """The classes of a taxonomy that each code of a product stands for."""

    name: str
    """The product's short name, such as `globeland30`."""
    taxonomy: str
    """Name and version of the taxonomy: `globeland30-1`."""
    classes: tuple[str, ...]
    """Classes in label order: position k is column k of every label array."""
    colours: tuple[str, ...]
    """One `#rrggbb` per class, for figures."""
    codes: Mapping[int, tuple[float, ...]]
    """Code -> share of each class. A code may be split over several classes; if the sum is below 1, the remainder is
    unknown."""
    ignored: frozenset[int]
    """Codes without a class (no data, cloud, a class that the taxonomy omits): their area counts as unknown."""

    def __post_init__(self) -> None:
        for code, shares in self.codes.items():
            if not (len(shares) == len(self.classes) and min(shares) >= 0 and 0 < sum(shares) <= 1 + 1e-9):
                raise ValueError(f"{self.name}: code {code} has shares {shares}, expected a sum above 0 and at most 1")
        if ambiguous := self.ignored & set(self.codes):
            raise ValueError(f"{self.name}: codes {sorted(ambiguous)} are both ignored and mapped")

    def shares(self, codes: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Share of each class in a cell of each code.

        codes: (n,) int. Returns (n, class) float64; a row is all 0 if its code is ignored or unlisted.
        """
        unknown = (0.0,) * len(self.classes)
        rows = [self.codes.get(int(code), unknown) for code in np.atleast_1d(np.asarray(codes))]
        return np.array(rows, dtype=np.float64).reshape(-1, len(self.classes))

    def unlisted(self, codes: npt.ArrayLike) -> frozenset[int]:
        """Those of `codes` that are not listed in the product's file."""
        return frozenset(int(code) for code in np.atleast_1d(np.asarray(codes))) - self.ignored - set(self.codes)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file as a dictionary. Raises ValueError that names the file if it cannot be read or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a TOML file: {error}") from error


def list_taxonomies() -> dict[str, Path]:
    """The files of the shipped taxonomies, by name."""
    return {path.stem: path for path in sorted((KNOWLEDGE / "taxonomies").glob("*.toml"))}


def read_taxonomy(name: str = BASE) -> Taxonomy:
    """Read a shipped taxonomy, given its name, or a user's taxonomy, given the path of its file.

    Raises ValueError with one sentence that names the file and the fault.
    """
    shipped = list_taxonomies()
    path = shipped.get(name, Path(name))
    if not path.is_file():
        raise ValueError(f"{name}: no taxonomy of that name, and no such file; available: {', '.join([*shipped, OWN])}")
    content = read_toml(path)
    try:
        classes = tuple(str(row["name"]) for row in content["classes"])
        colours = tuple(str(row["colour"]) for row in content["classes"])
        base: dict[str, dict[str, float]] = {}
        if rows := content.get("base"):
            base_classes = read_taxonomy().classes
            if set(rows) != set(base_classes):
                raise ValueError(f"`base` maps {sorted(rows)}, expected exactly {sorted(base_classes)}")
            base = {source: parse_shares(target, classes, source) for source, target in rows.items()}
        return Taxonomy(str(content["name"]), int(content["version"]), classes, colours, base)
    except KeyError as error:
        raise ValueError(f"{path}: {error} is missing") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def parse_shares(target: Any, classes: tuple[str, ...], source: str) -> dict[str, float]:
    """Shares from `"forest"` or `{ forest = 0.5, ignore = 0.5 }`. Raises ValueError that names `source`."""
    parts = {target: 1.0} if isinstance(target, str) else {str(key): float(value) for key, value in target.items()}
    if unknown := set(parts) - {*classes, IGNORE}:
        raise ValueError(f"{source} goes to {sorted(unknown)}, expected one of {[*classes, IGNORE]}")
    if not (parts and min(parts.values()) >= 0 and abs(sum(parts.values()) - 1) <= 1e-9):
        raise ValueError(f"{source} has weights {parts}, expected them to sum to 1")
    return parts


def read_legend(path: Path, taxonomy: Taxonomy | None = None) -> Legend:
    """Read the legend of the product described in `path`.

    taxonomy: its classes are those of the legend; None for the product's own classes. Raises ValueError with one
    sentence that names the file and the fault: a missing key, a code listed twice, a class outside the taxonomy,
    weights that do not sum to 1.
    """
    product = read_toml(path)
    try:
        base_classes = read_taxonomy().classes
        rows: dict[int, Mapping[str, Any]] = {}
        for row in product["codes"]:
            if type(code := row["code"]) is not int:
                raise ValueError(f"code {code!r} is not an integer")
            if code in rows:
                raise ValueError(f"code {code} is listed twice")
            rows[code] = row
        if taxonomy is None:
            taxonomy, targets = make_own_taxonomy(product["name"], rows)
        else:
            targets = {code: map_row(row, taxonomy, base_classes) for code, row in rows.items()}
        shares = {code: tuple(parts.get(name, 0.0) for name in taxonomy.classes) for code, parts in targets.items()}
        return Legend(
            product["name"],
            f"{taxonomy.name}-{taxonomy.version}",
            taxonomy.classes,
            taxonomy.colours,
            {code: parts for code, parts in shares.items() if any(parts)},
            frozenset(code for code, parts in shares.items() if not any(parts)),
        )
    except KeyError as error:
        raise ValueError(f"{path}: {error} is missing") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def map_row(row: Mapping[str, Any], taxonomy: Taxonomy, base_classes: tuple[str, ...]) -> dict[str, float]:
    """A code's share of each class of a taxonomy, and of `ignore`."""
    source = f"code {row['code']}"
    if taxonomy.name in row:
        return parse_shares(row[taxonomy.name], taxonomy.classes, source)
    parts = parse_shares(row["to"], base_classes, source)
    if taxonomy.name == BASE:
        return parts
    if not taxonomy.base:
        raise ValueError(f"{source} has no key `{taxonomy.name}` to give its class in the taxonomy of that name")
    shares: dict[str, float] = {}
    for base_class, share in parts.items():
        for target, weight in ({IGNORE: 1.0} if base_class == IGNORE else taxonomy.base[base_class]).items():
            shares[target] = shares.get(target, 0.0) + share * weight
    return shares


def make_own_taxonomy(
    product: str, rows: Mapping[int, Mapping[str, Any]]
) -> tuple[Taxonomy, dict[int, dict[str, float]]]:
    """A taxonomy of a product's own codes, named after them, and the class of each code."""
    names = {code: "_".join(re.findall("[a-z0-9]+", row["name"].lower())) for code, row in rows.items()}
    class_names = {code: name for code, name in names.items() if rows[code]["to"] != IGNORE}
    palette = [
        colorsys.hsv_to_rgb(0.618034 * k % 1, 0.6, 0.85) for k in range(len(class_names))
    ]  # contrast between neighbours
    colours = ["#" + "".join(f"{round(255 * part):02x}" for part in rgb) for rgb in palette]
    taxonomy = Taxonomy(f"{OWN}-{product}", 1, tuple(class_names.values()), tuple(colours), {})
    return taxonomy, {code: {class_names.get(code, IGNORE): 1.0} for code in rows}
