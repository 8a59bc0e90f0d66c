"""Settings from YAML files and command lines: strict models, and one-sentence messages for invalid values."""

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

Share = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """An immutable model that rejects unknown keys, and booleans as numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _reject_bool_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML reads `yes` and `on` as true, and pydantic takes true for 1.
        if has_bool(value) and not allows_bool(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("Input should not be true or false")
        return value


def has_bool(value: Any) -> bool:
    """Whether a value is true or false, or a list that contains one."""
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(has_bool, value)))


def allows_bool(annotation: Any) -> bool:
    """Whether a field of this type may be true or false."""
    return annotation is bool or any(map(allows_bool, get_args(annotation)))


Settings = TypeVar("Settings", bound=Strict)


class ConfigError(ValueError):
    """A setting that cannot be used. The message is one sentence."""


def split_names(value: Any) -> Any:
    """Split `a, b`, the form of a list on a command line, into its parts. Other values are returned unchanged."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",")] if value.strip() else []


def split_numbers(value: Any) -> Any:
    """Split `1, 2`, the form of a list on a command line, into its numbers. Other values are returned unchanged."""
    if not isinstance(value, str | int | float):
        return value
    try:
        return yaml.safe_load(f"[{value}]")
    except yaml.YAMLError as error:
        raise ValueError("expected numbers") from error


Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(split_names)]
"""Names, as a list or as `a, b`."""


def read_section(path: str | Path, section: str) -> dict[str, Any]:
    """Read one section of a YAML parameter file. Raises ConfigError naming the file and the fault."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get(section, ""), dict | None):
        raise ConfigError(f"{path}: there is no section `{section}`")
    return content[section] or {}  # a section without a line is empty


def explain(error: ValidationError) -> tuple[tuple[str, ...], str]:
    """Describe the first fault that a model reports: the path of keys to the setting, and a phrase.

    The path is empty if the fault concerns the model as a whole.
    """
    # A key in the wrong group is unknown there and missing elsewhere: the first is what the user can find.
    faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    fault = faults[0]
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


def apply_changes(config: Settings, changes: Mapping[str, Any], source: str) -> Settings:
    """Replace the values of some keys of `config`. Raises ConfigError naming `source` and the key."""
    model = type(config)
    for key in changes:
        if key not in model.model_fields:
            raise ConfigError(f"{source}: there is no setting {key}{suggest(str(key), model.model_fields)}")
    try:
        return model.model_validate({**config.model_dump(), **changes})
    except ValidationError as error:
        location, message = explain(error)
        if not location:
            raise ConfigError(f"{source}: {message}") from error
        raise ConfigError(f"{source}: {location[0]}: {message}, got {changes.get(location[0])!r}") from error


def read_pair(pair: str) -> tuple[str, Any]:
    """Parse a `key=value` pair of the command line; the value is read as YAML."""
    key, equals, value = pair.partition("=")
    if not equals or not key:
        raise ConfigError(f"command line: expected key=value, got {pair}")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"command line: the value of {key} cannot be read: {value}") from error
