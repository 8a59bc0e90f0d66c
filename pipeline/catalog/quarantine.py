"""The list of refused scenes with the reasons: quarantine.jsonl, one JSON object per line."""

import json
from pathlib import Path
from typing import Any

from geokr.storage import files

FILE = "quarantine.jsonl"


def read(dataset: str | Path) -> list[dict[str, Any]]:
    """Read all entries, each with `scene`, `stage`, `reason` and `detail`. No entries if the file does not exist.

    An entry with `blocks`, a list of [row, column], concerns only these blocks. Other blocks of the scene may have
    been built.
    """
    path = files.join(dataset, FILE)
    if not files.exists(path):
        return []
    return [json.loads(line) for line in files.read(path).decode().split("\n") if line]


def replace(dataset: str | Path, stage: str, entries: list[dict[str, Any]]) -> None:
    """Replace the entries of a stage. Those of other stages are kept."""
    kept = [entry for entry in read(dataset) if entry["stage"] != stage]
    new = [{"scene": entry["scene"], "stage": stage, **entry} for entry in entries]
    lines = sorted(json.dumps(entry, ensure_ascii=False) for entry in kept + new)
    files.write_text(files.join(dataset, FILE), "".join(line + "\n" for line in lines))
