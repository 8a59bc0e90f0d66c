"""Settings from YAML files and command lines: strict models, and one sentence for whatever is wrong with a value."""

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

Share = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """A model that refuses keys it does not know, and never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_is_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in (int, float):
            raise ValueError("Input should be a number")
        return value


class ConfigError(ValueError):
    """A setting that cannot be used: one sentence."""


def split_names(value: Any) -> Any:
    """The parts of `a, b`, as a command line writes a list; any other value as it is."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(split_names)]
"""Names, as a list or as `a, b`."""


def read_section(path: str | Path, section: str) -> dict[str, Any]:
    """One section of a YAML parameter file. Raises ConfigError naming the file and the fault."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    values = content.get(section) if isinstance(content, dict) else None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: there is no section `{section}`")
    return values


def explain(error: ValidationError) -> tuple[tuple[str, ...], str]:
    """Where the first fault that a model found lies, and what it is, in a phrase.

    A fault of the whole has no place.
    """
    first = error.errors()[0]
    place = tuple(str(part) for part in first["loc"])
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return place, "no such setting"
    return place, first["msg"].removeprefix("Value error, ")


def suggest(name: str, known: Collection[str]) -> str:
    """`; batch?` for a name that is nearly a known one, otherwise nothing."""
    near = get_close_matches(name, known, n=1)
    return f"; {near[0]}?" if near else ""


def differences(then: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str] = ()) -> list[str]:
    """What differs between two sets of settings, one phrase a setting: `lr 0.1, now 0.2`. free: keys not looked at."""
    keys = sorted((then.keys() | now.keys()) - set(free))
    return [f"{key} {then.get(key)}, now {now.get(key)}" for key in keys if then.get(key) != now.get(key)]
