"""Settings from YAML files and command lines: strict models, and one-sentence messages for invalid values."""

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

Share = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """An immutable model that rejects unknown keys, and booleans as numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _reject_bool_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in (int, float):
            raise ValueError("Input should be a number")
        return value


class ConfigError(ValueError):
    """A setting that cannot be used. The message is one sentence."""


def split_names(value: Any) -> Any:
    """Split `a, b`, the form of a list on a command line, into its parts. Other values are returned unchanged."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(split_names)]
"""Names, as a list or as `a, b`."""


def read_section(path: str | Path, section: str) -> dict[str, Any]:
    """Read one section of a YAML parameter file. Raises ConfigError naming the file and the fault."""
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
    """Describe the first fault that a model reports: the path of keys to the setting, and a phrase.

    The path is empty if the fault concerns the model as a whole.
    """
    fault = error.errors()[0]
    key_path = tuple(str(part) for part in fault["loc"])
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return key_path, "no such setting"
    return key_path, fault["msg"].removeprefix("Value error, ")


def suggest(name: str, known: Collection[str]) -> str:
    """Suggest the known name closest to a misspelt one, as `; batch?`. Empty if no known name is similar."""
    matches = get_close_matches(name, known, n=1)
    return f"; {matches[0]}?" if matches else ""


def list_differences(before: Mapping[str, Any], after: Mapping[str, Any], ignored: Collection[str] = ()) -> list[str]:
    """List what differs between two sets of settings, one phrase per setting: `lr 0.1, now 0.2`.

    ignored: keys that are not compared.
    """
    keys = sorted((before.keys() | after.keys()) - set(ignored))
    return [f"{key} {before.get(key)}, now {after.get(key)}" for key in keys if before.get(key) != after.get(key)]
