"""A run's state on disk: written whole or not at all, and all that it takes to go on."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from geokr.storage.files import replacing

VERSION = 3
"""Version of the file. Another one is refused."""

LAST = "last.pt"
BEST = "best.pt"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state after a step. All draws, and which tiles come next, are functions of seed and step."""

    step: int
    """Steps done."""
    total: int
    """Steps that the run has."""
    config: dict[str, Any]
    """TrainConfig as a dictionary."""
    dataset: str
    facts: dict[str, Any]
    """Facts of the data set as a dictionary: see learner.py."""
    mean: list[float]
    """Of each band, pixels in 0..1: what the network's input was normalised with."""
    std: list[float]
    start: str
    """Where the encoder started."""
    networks: dict[str, dict[str, torch.Tensor]]
    """Weights and statistics of the objective's networks, by name."""
    exported: str
    """The one of them whose encoder is exported."""
    memory: dict[str, torch.Tensor]
    """What the objective holds beside its networks."""
    optimiser: dict[str, Any]
    """Its learning rate is a function of the step, so that there is no schedule beside it."""
    scaler: dict[str, Any]
    """Of the loss in fp16, empty otherwise."""
    window: torch.Tensor
    """(n, 1 + measures): the loss and the objective's measures of each step since the last line of the log."""
    best: dict[str, float] | None
    """The validation with the lowest KL so far: {"step": ..., "kl": ...}."""


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in one piece: a kill at any moment leaves the one before or the new one."""
    state = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
    with replacing(path) as file:
        torch.save({"version": VERSION, **state}, file)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint to the CPU. Tensors and plain values alone: a file cannot run code.

    Raises ValueError naming the file where it is no checkpoint of this version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such checkpoint") from error
    except Exception as error:  # zipfile's, pickle's and torch's own have no common family
        raise ValueError(f"{path}: not a checkpoint, or a damaged one: {str(error).splitlines()[0]}") from error
    version = state.pop("version", None) if isinstance(state, dict) else None
    if version != VERSION:
        raise ValueError(f"{path}: a checkpoint of version {version}, this program reads version {VERSION}")
    return Checkpoint(**state)
