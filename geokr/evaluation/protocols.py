"""Protocols: which encoder is trained in which way on which labels, how often, and the loop over these cells."""

import hashlib
import itertools
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from geokr.evaluation.backbones import IMAGENET, SCRATCH, EncoderSource, find_source, select_bands
from geokr.evaluation.examples import Examples, IntArray
from geokr.evaluation.partition import draw_labels, draw_splits, name_splits
from geokr.evaluation.results import Result, append_result, read_results
from geokr.evaluation.task import WITHOUT_EFFECT, Job, Outcome, Settings, Task
from geokr.evaluation.torchgeo_sets import PREFIX, read_torchgeo
from geokr.settings import ConfigError, apply_changes
from geokr.storage.files import replace_file

PACKAGES = (
    *("geokr", "torch", "timm", "numpy", "scikit-learn", "torchvision"),
    *("segmentation-models-pytorch", "faster-coco-eval"),
)
"""Packages that decide a result; their versions stand beside it."""
PAPER: Mapping[str, Mapping[str, Any]] = {"classification": {"test": 0.25, "val": 0.075, "size": 256}}
"""What is known of the paper's protocol, by task: UC Merced with 75 % for training, and 256 px. A tenth of the training
images chooses the learning rate, which is ours. Networks of the paper are resnet50 and vgg16."""


def choose_task(name: str) -> Task:
    """Look up a task by name. Each is imported when it is asked for, with the libraries that it alone needs."""
    match name:
        case "classification":
            from geokr.evaluation.classification import Classification

            return Classification()
        case "detection":
            from geokr.evaluation.detection import Detection

            return Detection()
        case "segmentation":
            from geokr.evaluation.segmentation import Segmentation

            return Segmentation()
        case _:
            raise ValueError(f"there is no task {name}")


def configure(task: Task, changes: Mapping[str, Any], source: str, base: Settings | None = None) -> Any:
    """Settings of a task: those of the protocol, changed by `changes`. Raises ConfigError naming `source`."""
    settings = base or task.settings()
    if changes.get("protocol", settings.protocol) == "paper" and base is None:
        if task.name not in PAPER:
            raise ConfigError(f"protocol=paper: nothing is known of the paper's protocol for {task.name}")
        settings = apply_changes(settings, PAPER[task.name], "protocol=paper")
    return apply_changes(settings, changes, source)


def find_sources(names: Sequence[str], settings: Settings) -> list[EncoderSource]:
    """Encoders by name, in their order. `scratch` and `imagenet` use the network of the first other encoder.

    `scratch` also has its bands, normalisation and size, so that only the weights differ, if that network is used.
    Raises ValueError naming an encoder that cannot be used or is named twice.
    """
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"the encoder {twice[0]} is named twice")
    model, imagenet = settings.model or None, Path(settings.imagenet) if settings.imagenet else None
    sources = {name: find_source(name, model, imagenet) for name in names if name not in (SCRATCH, IMAGENET)}
    first = next(iter(sources.values()), None)
    model = model or (first.model if first else None)
    for name in set(names) - sources.keys():
        sources[name] = find_source(name, model, imagenet)
        if name == SCRATCH and first and first.model == model:
            sources[name] = replace(first, name=name, weights="random", digest="random")
    return [sources[name] for name in names]


@dataclass(frozen=True, slots=True)
class Cell:
    """What one line of the results is about."""

    source: EncoderSource
    mode: str
    labels: float
    """Share of the training labels, in 0..1."""
    seed: int


def list_cells(
    sources: Sequence[EncoderSource], modes: Sequence[str], labels: Sequence[float], seeds: int
) -> list[Cell]:
    """All cells, such that those that share an encoder's features follow each other."""
    cells = [Cell(*parts) for parts in itertools.product(sources, modes, sorted(set(labels)), range(seeds))]
    names = [source.name for source in sources]
    return sorted(cells, key=lambda cell: (cell.mode == "finetune", names.index(cell.source.name), cell.seed))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A task on one labelled set: all that its cells share."""

    task: str
    folder: str
    """Address of the data, as it was given."""
    examples: Examples
    splits: dict[str, IntArray]
    settings: Any

    def digest_split(self) -> str:
        """Digest of the names, the strata and the splits of the images."""
        content = [name_splits(self.examples, self.splits), self.examples.classes, self.examples.stratum.tolist()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def digest_cell(self, cell: Cell) -> str:
        """Digest of everything that decides the result of a cell."""
        content = {
            "task": self.task,
            "split": self.digest_split(),
            "settings": self.settings.model_dump(mode="json", exclude=WITHOUT_EFFECT),
            "encoder": {**asdict(cell.source), "weights": None},  # its digest, wherever the file lies
            "cell": [cell.mode, cell.labels, cell.seed],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def make_job(self, cell: Cell) -> Job:
        """The job of a cell. The same share of the training and of the validation labels is used."""
        train, val = (
            draw_labels(self.splits[name], self.examples.stratum, cell.labels, cell.seed) for name in ("train", "val")
        )
        return Job(self.examples, cell.source, cell.mode, train, val, self.splits["test"], cell.seed, self.settings)


def prepare(task: Task, data: str, settings: Any) -> Evaluation:
    """Read a labelled set and draw its splits. Raises InputError or ValueError naming what does not fit.

    data: a folder, or torchgeo:NAME:FOLDER for a classification set that torchgeo knows.
    """
    if not data.startswith(PREFIX):
        examples = task.read(Path(data), settings)
    elif task.name == "classification":
        examples = read_torchgeo(data, settings)
    else:
        raise ConfigError(f"{data}: sets of torchgeo are read for classification, not for {task.name}")
    splits = draw_splits(examples, settings.val, settings.test, settings.split_seed)
    return Evaluation(task.name, data, examples, splits, settings)


def write_split(evaluation: Evaluation, out: Path) -> None:
    """Write splits/DIGEST.json: the names of the images of each split, the classes and the bands."""
    path = out / "splits" / f"{evaluation.digest_split()}.json"
    examples = evaluation.examples
    content = {"data": Path(evaluation.folder).name, "classes": examples.classes, "bands": examples.bands}
    with replace_file(path) as file:
        file.write((json.dumps(content | name_splits(examples, evaluation.splits), indent=1) + "\n").encode())


def compute(evaluation: Evaluation, cells: Sequence[Cell], out: Path) -> Iterator[Result]:
    """Compute the cells that have no result in `out` yet, and write each result when it is there.

    The order in which results come does not matter. Raises ValueError for an encoder whose bands the data lack.
    """
    for cell in cells:
        select_bands(cell.source, evaluation.examples.bands)
    write_split(evaluation, out)
    done = {result.cell for result in read_results(out, every=True)}
    missing = [cell for cell in cells if evaluation.digest_cell(cell) not in done]
    for cell, outcome, seconds in run_cells(evaluation, missing):
        result = make_result(evaluation, cell, outcome, seconds)
        append_result(out, result, outcome)
        yield result


def run_cells(evaluation: Evaluation, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Outcome, float]]:
    """Run cells in this process, or in `workers` processes of their own, and return what is done first, first."""
    workers = min(evaluation.settings.workers, len(cells))
    if workers <= 1:
        for cell in cells:
            yield cell, *run_cell(evaluation, cell)
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = get_context("spawn")  # CUDA and threads do not survive a fork
    with ProcessPoolExecutor(workers, context, _begin_worker, (evaluation, threads)) as pool:
        waiting = {pool.submit(_run_in_worker, cell): cell for cell in cells}
        try:
            for future in as_completed(waiting):
                yield waiting[future], *future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def run_cell(evaluation: Evaluation, cell: Cell) -> tuple[Outcome, float]:
    """Run one cell. Returns the outcome and how long it took, s."""
    start = time.perf_counter()
    outcome = choose_task(evaluation.task).run(evaluation.make_job(cell))
    return outcome, time.perf_counter() - start


_shared: list[Evaluation] = []
"""The evaluation of a worker process: sent once, not with each cell, so that what is computed of it is cached."""


def _begin_worker(evaluation: Evaluation, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process stops the others
    torch.set_num_threads(threads)
    _shared[:] = [evaluation]


def _run_in_worker(cell: Cell) -> tuple[Outcome, float]:
    return run_cell(_shared[0], cell)


def make_result(evaluation: Evaluation, cell: Cell, outcome: Outcome, seconds: float) -> Result:
    job = evaluation.make_job(cell)
    return Result(
        cell=evaluation.digest_cell(cell),
        task=evaluation.task,
        data=Path(evaluation.folder).name,
        folder=evaluation.folder,
        split=evaluation.digest_split(),
        encoder=cell.source.name,
        model=cell.source.model,
        digest=cell.source.digest,
        mode=cell.mode,
        labels=cell.labels,
        images={"train": len(job.train), "val": len(job.val), "test": len(job.test)},
        seed=cell.seed,
        primary=choose_task(evaluation.task).primary,
        metrics=outcome.metrics,
        chosen=outcome.chosen,
        seconds=round(seconds, 3),
        settings=evaluation.settings.model_dump(mode="json", exclude=WITHOUT_EFFECT),
        versions=find_versions(),
    )


def find_versions() -> dict[str, str]:
    """Versions of PACKAGES."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # geokr may run from its source tree
            found[name] = "source"
    return found
