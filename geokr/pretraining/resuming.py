"""Whether a run can be resumed with the settings and tiles of a command."""

import dataclasses
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from geokr.pretraining.checkpoint import LAST, Checkpoint, load
from geokr.pretraining.config import WITHOUT_EFFECT, TrainConfig
from geokr.pretraining.console import print_once
from geokr.pretraining.facts import DataFacts
from geokr.pretraining.processes import Process, barrier
from geokr.settings import list_differences


def find_checkpoint(
    run: Path, config: TrainConfig, facts: DataFacts, total: int, process: Process, restart: bool
) -> Checkpoint | None:
    """Load the last checkpoint in `run`, if there is one with the same settings and tiles.

    total: number of steps that the settings ask for. A finished run may be made longer, by `epochs` or `steps`. With
    `restart`, a run with other settings or tiles is moved aside. Otherwise, raises ValueError naming what differs.
    """
    if not (run / LAST).exists():
        return None
    try:
        last = load(run / LAST)
    except ValueError as error:  # of another version, or damaged
        if not restart:
            raise
        difference = str(error)
    else:
        length = {"epochs", "steps"} if last.step == last.total < total else set()
        changed = list_differences(last.config, config.model_dump(), WITHOUT_EFFECT | length)
        changed += [
            f"other {name.replace('_', ' ')}" for name in list_changed_facts(last.facts, dataclasses.asdict(facts))
        ]
        if not changed:
            return last
        difference = f"{run / LAST} belongs to a run with other settings or tiles ({'; '.join(changed)})"
    barrier(process)  # all processes must have read it before one of them moves it
    if not restart:
        raise ValueError(
            f"{difference}: restore these, choose another --out, delete {run}, or add --restart-if-changed"
        )
    if process.rank == 0:
        backup = next(path for n in count(1) if not (path := run.with_name(f"{run.name}.{n}")).exists())
        run.rename(backup)
        print_once(process, f"{difference}: moved to {backup}, starting again")
    barrier(process)
    return None


def list_changed_facts(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the names of the facts that differ between two starts of a run: see DataFacts.

    Which tiles cannot be read may be different each time. Statistics of pixels are therefore compared only if the whole
    sample could be read both times.
    """
    ignored = {"unread_tiles"}
    if before["unread_tiles"] or now["unread_tiles"]:
        ignored |= {"low_pixel", "high_pixel", "mean_pixel", "std_pixel"}
    if before["training_tiles"] != now["training_tiles"]:
        ignored.add("tiles_by_dataset")  # it follows
    return [name for name, value in now.items() if name not in ignored and value != before[name]]
