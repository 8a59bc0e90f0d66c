"""Taxonomies, and crosswalks from the codes of a product into their classes.

Both are TOML files in `knowledge/`. A file in `taxonomies/` holds classes in label order. A file in `products/`
describes one land-cover product, with a row for each of its codes that says which class of the base taxonomy it
is. Another taxonomy says how it follows from the base; a product's row may say otherwise for it.
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
"""The taxonomy that the products' rows are written in."""
OWN = "own"
"""Stands for the product's own classes, each code a class."""


@dataclass(frozen=True, slots=True)
class Taxonomy:
    """Classes in label order."""

    name: str
    version: int
    """A change of the classes or of their order is a new version."""
    classes: tuple[str, ...]
    colours: tuple[str, ...]
    """One `#rrggbb` a class, for figures."""
    base: Mapping[str, Mapping[str, float]]
    """Class of the base taxonomy -> share of each class, `ignore` included; sums to 1. Empty in the base itself,
    and in a taxonomy that products' rows name by themselves."""

    def __post_init__(self) -> None:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"{self.name}: a class is named twice in {self.classes}")
        if IGNORE in self.classes:
            raise ValueError(f"{self.name}: a class cannot be named {IGNORE!r}")
        if len(self.colours) != len(self.classes):
            raise ValueError(f"{self.name}: {len(self.colours)} colours for {len(self.classes)} classes")


@dataclass(frozen=True, slots=True)
class Legend:
    """What each code of a product means in terms of a taxonomy's classes."""

    name: str
    """The product's short name, such as `globeland30`."""
    taxonomy: str
    """Name and version of the taxonomy: `globeland30-1`."""
    classes: tuple[str, ...]
    """Classes in label order: position k is column k of every label array."""
    colours: tuple[str, ...]
    """One `#rrggbb` a class, for figures."""
    codes: Mapping[int, tuple[float, ...]]
    """Code -> share of each class. A code may be split over several classes; what is missing to 1 is unknown."""
    ignored: frozenset[int]
    """Codes that say nothing (no data, cloud, a class that the taxonomy leaves out): their area counts as unknown."""

    def __post_init__(self) -> None:
        for code, shares in self.codes.items():
            if not (len(shares) == len(self.classes) and min(shares) >= 0 and 0 < sum(shares) <= 1 + 1e-9):
                raise ValueError(f"{self.name}: code {code} has shares {shares}, expected them to sum to 1 at most")
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
    """A TOML file as a dictionary. Raises ValueError naming the file where it cannot be read or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a TOML file: {error}") from error


def read_taxonomy(name: str = BASE) -> Taxonomy:
    """A taxonomy of the project by its name, or of the user's by the path of its file.

    Raises ValueError with one sentence naming the file and the fault.
    """
    shipped = {path.stem: path for path in sorted((KNOWLEDGE / "taxonomies").glob("*.toml"))}
    path = shipped.get(name, Path(name))
    if not path.is_file():
        raise ValueError(f"{name}: no taxonomy of that name, and no file; there are {', '.join([*shipped, OWN])}")
    content = read_toml(path)
    try:
        classes = tuple(str(row["name"]) for row in content["classes"])
        colours = tuple(str(row["colour"]) for row in content["classes"])
        base: dict[str, dict[str, float]] = {}
        if rows := content.get("base"):
            known = read_taxonomy().classes
            if set(rows) != set(known):
                raise ValueError(f"`base` speaks of {sorted(rows)}, expected all of {sorted(known)}")
            base = {source: parse_shares(target, classes, source) for source, target in rows.items()}
        return Taxonomy(str(content["name"]), int(content["version"]), classes, colours, base)
    except KeyError as error:
        raise ValueError(f"{path}: {error} is missing") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def parse_shares(target: Any, classes: tuple[str, ...], what: str) -> dict[str, float]:
    """`"forest"` or `{ forest = 0.5, ignore = 0.5 }` as shares. Raises ValueError naming `what` it is said of."""
    parts = {target: 1.0} if isinstance(target, str) else {str(key): float(value) for key, value in target.items()}
    if unknown := set(parts) - {*classes, IGNORE}:
        raise ValueError(f"{what} goes to {sorted(unknown)}, expected one of {[*classes, IGNORE]}")
    if not (parts and min(parts.values()) >= 0 and abs(sum(parts.values()) - 1) <= 1e-9):
        raise ValueError(f"{what} has weights {parts}, expected them to sum to 1")
    return parts


def read_legend(path: Path, taxonomy: Taxonomy | None = None) -> Legend:
    """The legend of the product described in `path`, in the classes of a taxonomy, or in the product's own.

    Raises ValueError with one sentence naming the file and the fault: a key that is missing, a code listed
    twice, a class outside the taxonomy, weights that do not sum to 1.
    """
    product = read_toml(path)
    try:
        known = read_taxonomy().classes
        rows: dict[int, Mapping[str, Any]] = {}
        for row in product["codes"]:
            if type(code := row["code"]) is not int:
                raise ValueError(f"code {code!r} is not a whole number")
            if code in rows:
                raise ValueError(f"code {code} is listed twice")
            rows[code] = row
        if taxonomy is None:
            taxonomy, targets = product_classes(product["name"], rows)
        else:
            targets = {code: map_row(row, taxonomy, known) for code, row in rows.items()}
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


def map_row(row: Mapping[str, Any], taxonomy: Taxonomy, known: tuple[str, ...]) -> dict[str, float]:
    """A code's shares of a taxonomy's classes, and of `ignore`. known: the classes of the base taxonomy."""
    what = f"code {row['code']}"
    if taxonomy.name in row:
        return parse_shares(row[taxonomy.name], taxonomy.classes, what)
    parts = parse_shares(row["to"], known, what)
    if taxonomy.name == BASE:
        return parts
    if not taxonomy.base:
        raise ValueError(f"{what} does not say what it is in the taxonomy {taxonomy.name}, as a key of that name")
    through: dict[str, float] = {}
    for source, share in parts.items():
        for target, weight in ({IGNORE: 1.0} if source == IGNORE else taxonomy.base[source]).items():
            through[target] = through.get(target, 0.0) + share * weight
    return through


def product_classes(
    product: str, rows: Mapping[int, Mapping[str, Any]]
) -> tuple[Taxonomy, dict[int, dict[str, float]]]:
    """A product's codes as classes, by their names, and what each code goes to."""
    names = {code: "_".join(re.findall("[a-z0-9]+", row["name"].lower())) for code, row in rows.items()}
    used = {code: name for code, name in names.items() if rows[code]["to"] != IGNORE}
    hues = [colorsys.hsv_to_rgb(0.618034 * k % 1, 0.6, 0.85) for k in range(len(used))]  # neighbours differ
    colours = ["#" + "".join(f"{round(255 * part):02x}" for part in hue) for hue in hues]
    taxonomy = Taxonomy(f"{OWN}-{product}", 1, tuple(used.values()), tuple(colours), {})
    return taxonomy, {code: {used.get(code, IGNORE): 1.0} for code in rows}
