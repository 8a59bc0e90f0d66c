"""Build settings for tests, given by the name of each setting without its group."""

from typing import Any

from pipeline.config import BuildConfig, setting_names

NEEDED: dict[str, Any] = {"scenes": ["none"], "landcover": ["none"], "out": "none"}


def grouped(**values: Any) -> dict[str, Any]:
    """Sort single settings into their groups. Raises ValueError for a name that is in no group or in two."""
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
    """The settings of a build: defaults for tests, changed by `values`."""
    return BuildConfig(**grouped(**NEEDED | values))
