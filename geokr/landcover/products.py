"""Land-cover products, as described by the files in `knowledge/products/` and by the user's own files."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from geokr.landcover.legend import KNOWLEDGE, read_toml
from geokr.storage.inputs import InputError

FIELDS = {
    "year", "next_year", "edition", "lat", "lon", "north", "east", "n", "e", "hemisphere", "zone", "latitude", "band",
}  # fmt: skip
"""Fields of the key `file` of a `[[sheets]]` rule: see docs/landcover.md."""


class LandCoverError(InputError):
    """A product or sheet that cannot be used: one sentence that names the file and the fault."""


@dataclass(frozen=True, slots=True)
class Product:
    """A land-cover product, as described by its file."""

    path: Path
    name: str
    rules: tuple[dict[str, Any], ...]
    """The `[[sheets]]` tables, one for each pattern of file names: see docs/landcover.md."""

    def match(self, file: str) -> tuple[dict[str, Any], dict[str, str]] | None:
        """The first rule whose pattern matches a file name, and the named groups; None if no rule matches."""
        for rule in self.rules:
            if match := re.search(rule["name"], file, re.IGNORECASE):
                return rule, match.groupdict()
        return None


def load_products(own: Iterable[str | Path] = ()) -> list[Product]:
    """All products: first those described in the user's files or directories, then the shipped ones.

    Raises LandCoverError if a description cannot be used.
    """
    files: list[Path] = []
    for path in map(Path, own):
        descriptions = sorted(path.glob("*.toml")) if path.is_dir() else [path]
        if not descriptions:
            raise LandCoverError(f"{path}: the directory contains no .toml file")
        files += descriptions
    return [read_product(path) for path in [*files, *sorted((KNOWLEDGE / "products").glob("*.toml"))]]


def read_product(path: Path) -> Product:
    """Read a product's description. Raises LandCoverError that names the file and the fault."""
    try:
        content = read_toml(path)
        rules = content["sheets"]
        for rule in rules:
            groups = re.compile(rule["name"]).groupindex
            if not {"year", "years"} & {*groups, *rule}:
                raise ValueError("a [[sheets]] rule has no group `year` in its name, and no key `year` or `years`")
            if faulty := [year for year in (*rule.get("years", ()), rule.get("year", 1)) if int(year) < 1]:
                raise ValueError(f"the year of a [[sheets]] rule is {faulty[0]}; fill in that of the map")
            match rule["extent"]:
                case "bounds" | [_, _, _, _]:
                    needed: set[str] = set()
                case "globeland30":
                    needed = {"hemisphere", "zone", "latitude"}
                case "grid_zone":
                    needed = {"zone", "band"}
                case {"degrees": _, "corner": "lower left" | "upper left"}:
                    needed = {"latitude", "longitude"}
                case extent:
                    raise ValueError(f"unknown extent {extent!r} in a [[sheets]] rule")
            if missing := needed - set(groups):
                raise ValueError(
                    f"the name of a [[sheets]] rule has no group {sorted(missing)}, which its extent needs"
                )
            fields = {field for _, field, _, _ in Formatter().parse(rule.get("file", "")) if field is not None}
            if unknown := fields - FIELDS:
                raise ValueError(f"the key file of a [[sheets]] rule has unknown fields {sorted(unknown)}")
        if not re.fullmatch(r"[a-z0-9_]+", content["name"]):
            raise ValueError(f"the name {content['name']!r} may contain only lower-case letters, digits and _")
        return Product(path, content["name"], tuple(rules))
    except KeyError as error:
        raise LandCoverError(f"{path}: {error} is missing") from error
    except re.error as error:
        raise LandCoverError(f"{path}: the name of a [[sheets]] rule is not a regular expression: {error}") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise LandCoverError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
