"""What is evaluated on which data: the section `evaluate` of a parameter file, or the command line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from geokr.settings import ConfigError, Names, Strict, apply_changes, read_pair, read_section, split_names
from geokr.storage.inputs import Address

SECTION = "evaluate"
"""Section of a parameter file that `--params` reads."""
TASKS = ("classification", "segmentation", "detection")


def read_share(value: Any) -> Any:
    """A share of the labels, as 0.05 or as `5%`."""
    if not isinstance(value, str):
        return value
    try:
        return float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
    except ValueError as error:
        raise ValueError(f"{value} is no share; expected a number or a percentage, such as 5%") from error


LabelShare = Annotated[float, BeforeValidator(read_share), Field(gt=0, le=1)]


class Plan(Strict):
    """What is evaluated on which data."""

    task: str
    data: Address
    """Folder of the labelled set."""
    encoder: Annotated[tuple[Address, ...], Field(min_length=1), BeforeValidator(split_names)]
    """scratch, imagenet, runs, exports or files of weights."""
    mode: Names = ()
    """knn, linear, finetune; by default, all that the task knows."""
    labels: Annotated[tuple[LabelShare, ...], Field(min_length=1), BeforeValidator(split_names)] = (0.01, 0.05, 0.1, 1)
    """Shares of the training labels, such as 5%."""
    seeds: Annotated[int, Field(ge=1, strict=True)] = 5
    """Number of seeds: of labels, heads, order and views."""
    settings: dict[str, Any] = Field(default={})
    """Settings of the task: see Settings in geokr/evaluation/task.py, and the task's own file."""


def read_plan(params: Path | None, options: Mapping[str, Any], pairs: Sequence[str] = ()) -> Plan:
    """Read the plan: the section of a parameter file, overridden by the command line.

    options: fields of Plan. pairs: `key=value` settings of the task. Raises ConfigError naming a wrong setting.
    """
    section = read_section(params, SECTION) if params is not None else {}
    changes = {**section, **options}
    if missing := [name for name in ("task", "data", "encoder") if not changes.get(name)]:
        raise ConfigError(f"{params or 'command line'}: say what to evaluate; {missing[0]} is missing")
    changes["settings"] = {**(section.get("settings") or {}), **dict(read_pair(pair) for pair in pairs)}
    return apply_changes(Plan(task="none", data="none", encoder=("none",)), changes, str(params or "command line"))
