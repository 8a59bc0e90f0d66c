"""The DVC stages of a parameter file: `python -m workflows.stages workflows/NAME.yaml` writes dvc.yaml.

DVC cannot turn a list in a parameter file into a list of dependencies. Therefore the stages are written out, each with
the groups of settings that it reads and with every file and directory that these settings name. `--check` writes
nothing, and fails if dvc.yaml differs from what would be written. Each stage runs this check first.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import yaml

from geokr.evaluation import plan as evaluation
from geokr.landcover.discovery import split_location
from geokr.landcover.legend import OWN, list_taxonomies
from geokr.pretraining.config import SECTION, configure
from geokr.settings import ConfigError
from geokr.storage import inputs, rasters
from pipeline.config import BuildConfig, read_config
from pipeline.scenes.discovery import find_deliveries

DVC = Path("dvc.yaml")
WORLD = "data/sample/world"
"""Where the stage `sample` writes the sample world."""
CHIPS = "data/sample/chips"
"""Where the stage `chips` writes labelled images of the sample world."""
HEAD = """\
# `dvc repro` runs the stages that have changed. This file was written by
#   python -m workflows.stages {params}
# and is written the same way for another parameter file. Outputs from which a stage can resume are `persist: true`,
# otherwise DVC would delete them first. Outputs are `cache: false`, so that large files are on the disk only once.
# DVC records what it ran in dvc.lock; commit that file with your results.
"""
CALIBRATION = "pipeline/imaging/calibration.csv"
"""The built-in table of calibration coefficients."""
KEPT = {"cache": False, "persist": True}
PLOT = {"cache": False, "x": "step", "y": "loss"}


def list_inputs(scenes: Iterable[str]) -> list[str]:
    """The scenes' directories and files, and the files that belong to a single file: its metadata and other bands."""
    paths = []
    for scene in scenes:
        files = [delivery.files for delivery in find_deliveries([scene])] if Path(scene).is_file() else []
        paths += [scene, *(os.path.relpath(name) for names in files for name in names)]
    return paths


def list_rasters(path: str | None) -> list[str | None]:
    """A raster, and the rasters that a mosaic (VRT) refers to, if it exists already."""
    if path is None or inputs.is_remote(path) or not path.lower().endswith(".vrt") or not Path(path).is_file():
        return [path]
    with rasters.open_raster(path) as mosaic:
        return [path, *sorted(os.path.relpath(name) for name in mosaic.files if Path(name) != Path(path))]


def local_paths(paths: Iterable[str | None]) -> list[str]:
    """The local ones of some paths, without duplicates. DVC does not track paths on servers."""
    return [*dict.fromkeys(path for path in paths if path is not None and not inputs.is_remote(path))]


def read_run(params: Path) -> tuple[str, str]:
    """Name and preset of the training run. Raises ConfigError if a section that DVC must track is missing."""
    content = yaml.safe_load(params.read_text(encoding="utf-8"))
    missing = [key for key in ("name", "preset", SECTION) if key not in content]
    missing += [f"build.{group}" for group in BuildConfig.model_fields if group not in content["build"]]
    if missing:
        raise ConfigError(
            f"{params}: DVC cannot track missing sections; add {', '.join(missing)}, if only as empty sections"
        )
    name, preset = content["name"], content["preset"]
    if not (isinstance(name, str) and isinstance(preset, str)):
        raise ConfigError(f"{params}: name and preset must be texts, got {name!r} and {preset!r}")
    return name, preset


def make_stages(params: Path) -> dict[str, Any]:
    """The content of dvc.yaml for a parameter file. Raises ConfigError if the parameter file is invalid."""
    config = read_config(params, {})
    name, preset = read_run(params)
    if inputs.is_remote(config.out):
        raise ConfigError(
            f"{params}: DVC needs a local data set, got out: {config.out}; build it by the command instead"
        )
    out, run = config.out, f"runs/{name}"
    start = configure(preset, params).pretrained
    survey, labels = config.survey, config.labels
    scenes, terrain = list_inputs(survey.scenes), [*list_rasters(survey.dem), *list_rasters(survey.geoid)]
    maps = [split_location(location)[0] for location in labels.landcover]
    landcover = [*maps, *labels.legends, taxonomy_file(config)]
    coefficients = (survey.coefficients or CALIBRATION) if survey.radiometry == "toa" else None
    catalog, tiles = f"{out}/scenes.parquet", f"{out}/tiles.zarr"
    check = f"python -m workflows.stages --check {quote(str(params))}"

    def build(stage: str, deps: Iterable[str | None], groups: Sequence[str], outs: Iterable[str]) -> dict[str, Any]:
        return {
            "cmd": [check, f"python -m pipeline.build_levir_kr --params {quote(str(params))} --only {stage}"],
            "deps": local_paths(deps),
            "params": [{str(params): [f"build.{group}" for group in ("out", *groups)]}],
            "outs": [{path: KEPT if stage != "index" else {"cache": False}} for path in outs],
        }

    stage_definitions: dict[str, Any] = {}
    if any(Path(os.path.normpath(path)).is_relative_to(WORLD) for path in local_paths([*scenes, *terrain, *landcover])):
        stage_definitions["sample"] = {
            "desc": "Write the sample world.",
            "cmd": f"python -m pipeline.sample {WORLD}",
            "deps": ["pipeline/sample"],
            "outs": [{WORLD: {"cache": False}}],
        }
    stage_definitions["catalog"] = {
        "desc": "Find the scenes; read their metadata and sample their pixels.",
        **build("catalog", [*scenes, *terrain, coefficients], ["survey"], [catalog]),
    }
    stage_definitions["tiles"] = {
        "desc": "Orthorectify the scenes; cut, judge and store their tiles.",
        **build("tiles", [catalog, *scenes, *terrain], ["grid", "tiles"], [tiles]),
    }
    stage_definitions["labels"] = {
        "desc": "Intersect each tile with the land cover.",
        **build("labels", [catalog, *landcover], ["grid", "labels"], [f"{out}/labels"]),
    }
    stage_definitions["index"] = {
        "desc": "List the accepted, labelled tiles, and assign splits by location.",
        **build(
            "index",
            [catalog, tiles, f"{out}/labels", *landcover],
            [group for group in BuildConfig.model_fields if group != "out"],  # dataset.json records all settings
            [f"{out}/index.parquet", f"{out}/dataset.json"],
        ),
    }
    stage_definitions["pretrain"] = {
        "desc": "Pre-train the encoder.",
        "cmd": [
            check,
            f"python -m geokr.train --data {quote(out)} --out {quote(run)} --preset {quote(preset)} "
            f"--params {quote(str(params))} --restart-if-changed",
        ],
        "deps": local_paths([tiles, f"{out}/index.parquet", f"{out}/dataset.json", weights_file(start)]),
        "params": [{str(params): ["name", "preset", "train"]}],
        "outs": [{f"{run}/encoder.safetensors": {"cache": False}}],
        "metrics": [{f"{run}/metrics.json": {"cache": False}}],
        "plots": [
            {f"{run}/plots/train.csv": PLOT},
            {f"{run}/plots/val.csv": PLOT},
            {f"{run}/plots/confusion.png": {"cache": False}},
        ],
    }
    if has_evaluation(params):
        stage_definitions |= make_evaluation(params, name, check, run, "sample" in stage_definitions)
    curves = {f"{run}/plots/{split}.csv": "loss" for split in ("train", "val")}
    title = "KL divergence of the land-cover shares from the prediction, nats"
    return {"stages": stage_definitions, "plots": [{"loss": {"title": title, "x": "step", "y": curves}}]}


def has_evaluation(params: Path) -> bool:
    """Whether a parameter file has the section of the evaluation."""
    return evaluation.SECTION in yaml.safe_load(params.read_text(encoding="utf-8"))


def make_evaluation(params: Path, name: str, check: str, run: str, sample: bool) -> dict[str, Any]:
    """The stages of the evaluation. run: folder of the run. sample: whether a stage writes the sample world."""
    plan = evaluation.read_plan(params, {})
    folder = f"evaluations/{name}"
    encoder = f"{run}/encoder.safetensors"
    given = [path for path in (*plan.encoder, str(plan.settings.get("imagenet") or "")) if Path(path).is_file()]
    stages: dict[str, Any] = {}
    if sample and os.path.normpath(plan.data) == CHIPS:
        stages["chips"] = {
            "desc": "Write labelled images of the sample world.",
            "cmd": f"python -m pipeline.sample.chips {WORLD} {CHIPS}",
            "deps": ["pipeline/sample", f"{WORLD}/truth.json"],
            "outs": [{CHIPS: {"cache": False}}],
        }
    stages["evaluate"] = {
        "desc": "Compare encoders on a downstream task.",
        "cmd": [
            check,
            f"python -m geokr.evaluate {quote(plan.task)} --params {quote(str(params))} --out {quote(folder)}",
        ],
        "deps": local_paths([plan.data, encoder, *given]),
        "params": [{str(params): [evaluation.SECTION]}],
        "outs": [{f"{folder}/results.jsonl": KEPT}],
        "metrics": [{f"{folder}/metrics.json": {"cache": False}}],
        "plots": [{f"{folder}/plots/labels.csv": {"cache": False, "x": "labels", "y": "mean"}}],
    }
    return stages


def taxonomy_file(config: BuildConfig) -> str | None:
    """The file of the taxonomy, if the user wrote one; otherwise None."""
    name = config.labels.taxonomy
    return None if name == OWN or name in list_taxonomies() else name


def weights_file(start: bool | str) -> str | None:
    """The weights file from which the encoder starts, if the setting names a file; otherwise None."""
    return start if isinstance(start, str) and start != "auto" else None


class Plain(yaml.SafeDumper):
    """Writes equal values out in full, instead of as YAML aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def render(params: Path) -> str:
    """The text of dvc.yaml."""
    return HEAD.format(params=params) + yaml.dump(make_stages(params), Dumper=Plain, sort_keys=False, width=120)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit status: 1 if dvc.yaml is out of date, 2 if the parameter file is invalid."""
    parser = argparse.ArgumentParser(prog="python -m workflows.stages", description=__doc__)
    parser.add_argument("params", type=Path, metavar="FILE.yaml", help="parameter file")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if dvc.yaml is out of date")
    options = parser.parse_args(argv)
    try:
        text = render(options.params)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not options.check:
        DVC.write_text(text, encoding="utf-8")
    elif not DVC.is_file() or DVC.read_text(encoding="utf-8") != text:
        command = f"python -m workflows.stages {options.params}"
        print(f"error: {DVC} does not match {options.params}; write it with {command}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
