"""Settings of builds for tests, by the names of single ones, whatever group they are in."""

from typing import Any

from pipeline.config import BuildConfig, setting_names

NEEDED: dict[str, Any] = {"scenes": ["none"], "landcover": ["none"], "out": "none"}


def grouped(**values: Any) -> dict[str, Any]:
    """Values of single settings in their groups. Raises ValueError for a name that is in none or in two."""
    groups = {
        name: [g for g, field in BuildConfig.model_fields.items() if name in setting_names(field)] for name in values
    }
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name in BuildConfig.model_fields and not groups[name]:
            found[name] = value
            continue
        (group,) = groups[name]
        found.setdefault(group, {})[name] = value
    return found


def build_config(**values: Any) -> BuildConfig:
    """The settings of a build, with some values of its own."""
    return BuildConfig(**grouped(**NEEDED | values))
