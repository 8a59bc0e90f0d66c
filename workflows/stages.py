"""The stages of DVC for a parameter file: `python -m workflows.stages workflows/NAME.yaml` writes dvc.yaml.

DVC cannot make a list of a parameter into a list of dependencies. So the stages are written out, each with the
groups of settings that it reads, and with every file and directory that these name. `--check` writes nothing, and
fails where dvc.yaml is not what would be written: the stages that read inputs do that first.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from geokr.pretraining.config import SECTION, configure
from geokr.settings import ConfigError
from geokr.storage import inputs
from pipeline.config import BuildConfig, read_config

DVC = Path("dvc.yaml")
WORLD = "data/sample/world"
"""Where the stage `sample` writes the sample world."""
HEAD = """\
# `dvc repro` runs what has changed. Written by
#   python -m workflows.stages {params}
# which is also how the stages of another parameter file are written. Outputs that a stage can go on with are
# `persist: true`, or DVC would delete them first; the large ones are `cache: false`, so that they lie on the disk once.
# DVC notes what it ran in dvc.lock: commit it with your results.
"""
KEPT = {"cache": False, "persist": True}
PLOT = {"cache": False, "x": "step", "y": "loss"}


def local(paths: Iterable[str | None]) -> list[str]:
    """Those of some paths that lie on this machine: DVC does not follow the others. Each once."""
    return [*dict.fromkeys(path for path in paths if path is not None and not inputs.is_remote(path))]


def stages(params: Path) -> dict[str, Any]:
    """The stages of a parameter file, as dvc.yaml has them. Raises ConfigError where it is not sound."""
    config, content = read_config(params, {}), yaml.safe_load(params.read_text(encoding="utf-8"))
    missing = [key for key in ("name", "preset", SECTION) if key not in content]
    missing += [f"build.{group}" for group in BuildConfig.model_fields if group not in content["build"]]
    if missing:
        raise ConfigError(f"{params}: DVC cannot follow what is not there: add {', '.join(missing)}, empty at least")
    name, preset = content["name"], content["preset"]
    start = configure(preset, params).pretrained
    out, run = config.out, f"runs/{name}"
    survey, labels = config.survey, config.labels
    terrain, landcover = [survey.dem, survey.geoid], [*labels.landcover, *labels.legends, taxonomy(config)]
    catalog, tiles = f"{out}/scenes.parquet", f"{out}/tiles.zarr"

    def build(stage: str, deps: Iterable[str | None], groups: Sequence[str], outs: Iterable[str]) -> dict[str, Any]:
        check = f"python -m workflows.stages --check {params}"
        command = f"python -m pipeline.build_levir_kr --params {params} --only {stage}"
        return {
            "cmd": [check, command],
            "deps": local(deps),
            "params": [{str(params): [f"build.{group}" for group in ("out", *groups)]}],
            "outs": [{path: KEPT if stage != "index" else {"cache": False}} for path in outs],
        }

    found: dict[str, Any] = {}
    if any(path.startswith(f"{WORLD}/") for path in local([*survey.scenes, *landcover])):
        found["sample"] = {
            "desc": "Write the sample world.",
            "cmd": f"python -m pipeline.sample {WORLD}",
            "deps": ["pipeline/sample"],
            "outs": [{WORLD: {"cache": False}}],
        }
    found["catalog"] = {
        "desc": "Find the scenes and read what is known about them.",
        **build("catalog", [*survey.scenes, *terrain, survey.coefficients], ["survey"], [catalog]),
    }
    found["tiles"] = {
        "desc": "Orthorectify, tile and judge; store the pixels.",
        **build("tiles", [catalog, *survey.scenes, *terrain], ["grid", "tiles"], [tiles]),
    }
    found["labels"] = {
        "desc": "Intersect each tile with the land cover.",
        **build("labels", [catalog, *landcover], ["grid", "labels"], [f"{out}/labels"]),
    }
    found["index"] = {
        "desc": "List the accepted, labelled tiles, and split them by place.",
        **build(
            "index",
            [catalog, tiles, f"{out}/labels", *landcover],
            ["index"],
            [f"{out}/index.parquet", f"{out}/dataset.json"],
        ),
    }
    found["pretrain"] = {
        "desc": "Pre-train the encoder.",
        "cmd": f"python -m geokr.train --data {out} --out {run} --preset {preset} --params {params} "
        "--restart-if-changed",
        "deps": local([tiles, f"{out}/index.parquet", f"{out}/dataset.json", weights(start)]),
        "params": [{str(params): ["preset", "train"]}],
        "outs": [{f"{run}/encoder.safetensors": {"cache": False}}],
        "metrics": [{f"{run}/metrics.json": {"cache": False}}],
        "plots": [
            {f"{run}/plots/train.csv": PLOT},
            {f"{run}/plots/val.csv": PLOT},
            {f"{run}/plots/confusion.png": {"cache": False}},
        ],
    }
    curves = {f"{run}/plots/{split}.csv": "loss" for split in ("train", "val")}
    title = "KL divergence of the land-cover shares from the prediction, nats"
    return {"stages": found, "plots": [{"loss": {"title": title, "x": "step", "y": curves}}]}


def taxonomy(config: BuildConfig) -> str | None:
    """The file of the taxonomy, where it is one of the user's."""
    return config.labels.taxonomy if "/" in config.labels.taxonomy or config.labels.taxonomy.endswith(".toml") else None


def weights(start: bool | str) -> str | None:
    """The file that an encoder starts from, if it is one."""
    return start if isinstance(start, str) and start != "auto" else None


class Plain(yaml.SafeDumper):
    """Writes equal values out, instead of naming the first of them."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def written(params: Path) -> str:
    """The text of dvc.yaml."""
    return HEAD.format(params=params) + yaml.dump(stages(params), Dumper=Plain, sort_keys=False, width=120)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status: 1 where dvc.yaml is not what it should be."""
    parser = argparse.ArgumentParser(prog="python -m workflows.stages", description=__doc__)
    parser.add_argument("params", type=Path, metavar="FILE.yaml", help="parameter file")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where dvc.yaml differs")
    options = parser.parse_args(argv)
    try:
        text = written(options.params)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not options.check:
        DVC.write_text(text, encoding="utf-8")
    elif not DVC.is_file() or DVC.read_text(encoding="utf-8") != text:
        command = f"python -m workflows.stages {options.params}"
        print(f"error: {DVC} does not follow from {options.params} any more; write it with {command}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
