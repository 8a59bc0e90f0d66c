"""What was refused, and why: quarantine.jsonl, one JSON object a line."""

import json
from pathlib import Path
from typing import Any

from geokr.storage import files

FILE = "quarantine.jsonl"


def read(dataset: str | Path) -> list[dict[str, Any]]:
    """All entries, each with `scene`, `stage`, `reason` and `detail`; none where there is no file.

    `blocks`, [row, column] each, says which blocks failed where the scene's others may have been built.
    """
    path = files.join(dataset, FILE)
    if not files.exists(path):
        return []
    return [json.loads(line) for line in files.read(path).decode().split("\n") if line]


def replace(dataset: str | Path, stage: str, entries: list[dict[str, Any]]) -> None:
    """Put a stage's entries in place of those of its last run; the other stages' stay."""
    kept = [entry for entry in read(dataset) if entry["stage"] != stage]
    new = [{"scene": entry["scene"], "stage": stage, **entry} for entry in entries]
    lines = sorted(json.dumps(entry, ensure_ascii=False) for entry in kept + new)
    files.write_text(files.join(dataset, FILE), "".join(line + "\n" for line in lines))
