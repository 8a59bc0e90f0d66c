"""What was refused, and why: quarantine.jsonl, one JSON object a line."""

import json
from pathlib import Path

from geokr import files

FILE = "quarantine.jsonl"


def read(dataset: Path) -> list[dict[str, str]]:
    """All entries, each with `scene`, `stage`, `reason` and `detail`; none where there is no file."""
    path = dataset / FILE
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def replace(dataset: Path, stage: str, entries: list[dict[str, str]]) -> None:
    """Put a stage's entries in place of those of its last run; the other stages' stay."""
    kept = [entry for entry in read(dataset) if entry["stage"] != stage]
    new = [{"scene": entry["scene"], "stage": stage, **entry} for entry in entries]
    lines = sorted(json.dumps(entry, ensure_ascii=False) for entry in kept + new)
    write_whole(dataset / FILE, "".join(line + "\n" for line in lines))


def write_whole(path: Path, text: str) -> None:
    """Write a small file at once: a reader sees the old or the new one."""
    # A file's name may be no UTF-8; JSON reads what stands for its bytes then.
    files.write(path, text.encode(errors="backslashreplace"))
