"""Land-cover products, as the files in `knowledge/products/` and the user's own describe them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geokr.landcover.legend import KNOWLEDGE, read_toml
from geokr.storage.inputs import InputError


class LandCoverError(InputError):
    """A product or sheet that cannot be used: one sentence that names the file and the fault."""


@dataclass(frozen=True, slots=True)
class Product:
    """A land-cover product as its file describes it."""

    path: Path
    name: str
    rules: tuple[dict[str, Any], ...]
    """How its sheets are named, one for each kind of file: see docs/landcover.md."""

    def match(self, file: str) -> tuple[dict[str, Any], dict[str, str]] | None:
        """The rule that a file's name follows, and the parts of the name; None where it follows none."""
        for rule in self.rules:
            if match := re.search(rule["name"], file, re.IGNORECASE):
                return rule, match.groupdict()
        return None


def load_products(own: Iterable[str | Path] = ()) -> list[Product]:
    """The products that are known: first those described in the user's files or directories, then the shipped ones.

    Raises LandCoverError for a description that cannot be used.
    """
    files: list[Path] = []
    for place in map(Path, own):
        found = sorted(place.glob("*.toml")) if place.is_dir() else [place]
        if not found:
            raise LandCoverError(f"{place}: no .toml file is in there")
        files += found
    return [read_product(path) for path in [*files, *sorted((KNOWLEDGE / "products").glob("*.toml"))]]


def read_product(path: Path) -> Product:
    """A product's description. Raises LandCoverError naming the file and the fault."""
    try:
        content = read_toml(path)
        rules = content["sheets"]
        for rule in rules:
            groups = re.compile(rule["name"]).groupindex
            if not {"year", "years"} & {*groups, *rule}:
                raise ValueError("a rule for sheets has no group `year` in its name, and no key `year` or `years`")
            match rule["extent"]:
                case "bounds" | [_, _, _, _]:
                    needed: set[str] = set()
                case "globeland30":
                    needed = {"hemisphere", "zone", "latitude"}
                case "grid_zone":
                    needed = {"zone", "band"}
                case {"degrees": _, "corner": "lower left" | "upper left"}:
                    needed = {"latitude", "longitude"}
                case other:
                    raise ValueError(f"no sheet can have the extent {other!r}")
            if missing := needed - set(groups):
                raise ValueError(f"the sheets' name has no group {sorted(missing)}, which their extent needs")
        if not re.fullmatch(r"[a-z0-9_]+", content["name"]):
            raise ValueError(f"the name {content['name']!r} must be of small letters, digits and _")
        return Product(path, content["name"], tuple(rules))
    except KeyError as error:
        raise LandCoverError(f"{path}: {error} is missing") from error
    except re.error as error:
        raise LandCoverError(f"{path}: the sheets' name is not a regular expression: {error}") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise LandCoverError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
