"""The state of a run on disk: everything needed to resume it, written atomically while training goes on."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from geokr.storage.files import replace_file

VERSION = 8
"""Version of the file format. Files of another version are refused, except those of 7, which had one data set."""

LAST = "last.pt"
BEST = "best.pt"
KEPT = "checkpoints"
"""Directory of a run with the last few checkpoints, by step, if more than one is kept."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state after a step. All random draws, and the next tiles, are functions of seed and step."""

    step: int
    """Number of steps done."""
    total: int
    """Number of steps of the run."""
    config: dict[str, Any]
    """TrainConfig as a dictionary."""
    datasets: tuple[str, ...]
    """Paths or URLs of the data sets."""
    facts: dict[str, Any]
    """DataFacts as a dictionary: see facts.py."""
    mean: list[float]
    """Mean of each band that the input is normalised with, for pixels in 0..1."""
    std: list[float]
    """Standard deviation of each band that the input is normalised with, for pixels in 0..1."""
    start: str
    """Description of the weights that the encoder started from."""
    networks: dict[str, dict[str, torch.Tensor]]
    """Weights and batch-norm statistics of the objective's networks, by name."""
    exported: str
    """Name of the network whose encoder is exported."""
    end_share: float
    """Share of this encoder in the exported one; the rest is that of the network `start`."""
    memory: dict[str, torch.Tensor]
    """State of the objective in addition to its networks."""
    optimiser: dict[str, Any]
    """State of the optimiser. There is no scheduler state, since the learning rate is a function of the step."""
    scaler: dict[str, Any]
    """State of the loss scaler for fp16, empty otherwise."""
    window: torch.Tensor
    """(n, 1 + measures): the loss and the objective's measures for each step since the last log line."""
    best: dict[str, float] | None
    """Step and result of the validation with the lowest KL so far: {"step": ..., "kl": ...}."""


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically: if the process is killed, the file has either the old or the new checkpoint."""
    state = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
    with replace_file(path) as file:
        torch.save({"version": VERSION, **state}, file)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint into CPU memory. Only tensors and plain values are loaded, so a file cannot run code.

    Raises ValueError naming the file if it is not a checkpoint of this version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such checkpoint") from error
    except Exception as error:  # the errors of zipfile, pickle and torch have no common base class
        raise ValueError(f"{path}: not a checkpoint, or a damaged one: {str(error).splitlines()[0]}") from error
    version = state.pop("version", None) if isinstance(state, dict) else None
    if version == 7:
        version, state["datasets"] = VERSION, (state.pop("dataset"),)
        state["facts"]["tiles_by_dataset"] = (state["facts"]["training_tiles"],)
        state["config"]["mixture"] = ()
    if version != VERSION:
        raise ValueError(f"{path}: a checkpoint of version {version}, this program reads version {VERSION}")
    return Checkpoint(**state)


class CheckpointWriter:
    """Writes the checkpoints of a run in a thread, one after the other. Must be closed, as a context is.

    A checkpoint must not change while it is written, so its tensors must be copies. keep: number of last checkpoints to
    keep; above 1, each is also kept under its step.
    """

    def __init__(self, run: Path, keep: int) -> None:
        self.run, self.keep = run, keep
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown()

    def write(self, checkpoint: Checkpoint, is_best: bool) -> None:
        """Begin to write a checkpoint, once the one before it is written. Raises like `wait`."""
        self.wait()
        self._writing = self._thread.submit(self._write, checkpoint, is_best)

    def check(self) -> None:
        """Raise the error of a checkpoint that could not be written, without waiting for one that is being written."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the checkpoint is written. Raises OSError if it cannot be."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, checkpoint: Checkpoint, is_best: bool) -> None:
        if is_best:
            save(self.run / BEST, checkpoint)
        save(self.run / LAST, checkpoint)
        if self.keep > 1:
            kept = self.run / KEPT
            kept.mkdir(exist_ok=True)
            path = kept / f"step{checkpoint.step:08d}.pt"
            path.unlink(missing_ok=True)
            os.link(self.run / LAST, path)  # the same file: it takes no space until last.pt is replaced
            for earlier in sorted(kept.glob("step*.pt"))[: -self.keep]:
                earlier.unlink()
