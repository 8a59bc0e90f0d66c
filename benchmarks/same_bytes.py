"""Does a change leave the results alone? `python -m benchmarks.same_bytes --before REVISION`.

Builds the sample world, and where GEOKR_REAL_DATA names a folder the real deliveries in it, and trains 30 steps, once
with the code of a revision and once with that of the working tree. Prints a line a case: whether the pixels, the class
shares, the statuses, the rows of the index and the weights are equal, bit for bit, and which attributes are not.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]
ARRAYS = ("image", "cloud", "lattice_error", "status", "fraction", "known")
GRID = {"tile": 64, "stride": 48, "block": 8}
SPLIT = {"shares": {"train": 0.75, "val": 0.25}, "cell": 2500}
TRAIN = ["model=resnet10t", "image_size=32", "batch=32", "steps=30", "loggers=[]", "probe=64", "device=cpu"]
RUNS: Mapping[str, list[str]] = {
    "geokr": ["ema=0.9", "bands=red,green,blue,nir"],
    "supervised": ["objective=supervised", "bands=red,green,blue,nir"],
    "reference": ["--preset", "reference", "pretrained=false", "batch=16"],
}
"""Run -> arguments of the training command."""


def settings(checkout: Path, grid: Mapping[str, Any], split: Mapping[str, Any]) -> dict[str, Any]:
    """The `build` section of a parameter file as the code of a checkout reads it."""
    if (checkout / "geokr" / "storage").is_dir():  # settings are grouped by stage
        return {"build": {"grid": dict(grid), "index": {"split": dict(split)}}}
    return {"build": {**grid, "split": dict(split)}}


def command(checkout: Path, module: str, *arguments: str) -> None:
    """Run a command of a checkout. Raises SystemExit with what it printed where it fails."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=checkout, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"error: {module} of {checkout} ended with {done.returncode}: {done.stderr[-2000:]}")


def build(checkout: Path, out: Path, arguments: Sequence[str], split: Mapping[str, Any]) -> None:
    """Build one data set."""
    params = out.with_suffix(".yaml")
    params.write_text(yaml.safe_dump(settings(checkout, GRID, split)), encoding="utf-8")
    command(checkout, "pipeline.build_levir_kr", *arguments, "--params", str(params), "--out", str(out))


def chunks(dataset: Path, array: str) -> dict[str, bytes]:
    """Every file of an array, of all scenes and stores, by its path."""
    return {
        path.relative_to(dataset).as_posix(): path.read_bytes()
        for path in sorted(dataset.rglob(f"*/{array}/c/**/*"))
        if path.is_file()
    }


def attributes(dataset: Path) -> dict[str, dict[str, Any]]:
    """What the scenes' groups say, by path."""
    found = {}
    for path in dataset.rglob("zarr.json"):
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["node_type"] == "group" and path.parent.suffix != ".zarr":
            found[path.relative_to(dataset).as_posix()] = document["attributes"]
    return found


def differing(one: Any, other: Any, name: str = "") -> set[str]:
    """Dotted names of what is not the same in two nested values."""
    if isinstance(one, dict) and isinstance(other, dict):
        parts = {key: f"{name}.{key}".strip(".") for key in one.keys() | other.keys()}
        return {d for key, at in parts.items() for d in differing(one.get(key), other.get(key), at)}
    return set() if one == other else {name}


def compare_datasets(case: str, before: Path, after: Path) -> bool:
    """Print what two builds have in common. Returns whether all results are equal."""
    equal = {array: chunks(before, array) == chunks(after, array) for array in ARRAYS}
    files = sum(len(chunks(before, array)) for array in ARRAYS)
    tables = [pq.read_table(dataset / "index.parquet") for dataset in (before, after)]
    common = [name for name in tables[0].column_names if name in tables[1].column_names]
    equal["index"] = tables[0].select(common).equals(tables[1].select(common))
    renamed = sorted({*tables[0].column_names} ^ {*tables[1].column_names})
    groups = attributes(before), attributes(after)
    other = sorted({d for path in groups[0] for d in differing(groups[0][path], groups[1].get(path, {}))})
    fine = all(equal.values()) and files > 0 and groups[0].keys() == groups[1].keys()
    said = " ".join(f"{name}={'yes' if same else 'NO'}" for name, same in equal.items())
    print(
        f"case={case} equal={'yes' if fine else 'NO'} {said} files={files} tiles={tables[0].num_rows} "
        f"other_columns={','.join(renamed) or 'none'} other_attributes={','.join(other) or 'none'}",
        flush=True,
    )
    return fine


def compare_runs(case: str, before: Path, after: Path) -> bool:
    """Print whether two runs have the same weights and losses."""
    weights = [load_file(run / "encoder.safetensors") for run in (before, after)]
    same = weights[0].keys() == weights[1].keys() and all(
        weights[0][name].tobytes() == weights[1][name].tobytes() for name in weights[0]
    )
    losses = []
    for run in (before, after):
        rows = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        losses.append([(row["step"], row["split"], row["kl"]) for row in rows])
    logged = losses[0] == losses[1]
    print(
        f"case={case} equal={'yes' if same and logged else 'NO'} tensors={len(weights[0])} losses={len(losses[0])}",
        flush=True,
    )
    return same and logged


def real_builds(data: Path) -> dict[str, list[str]]:
    """Case -> arguments of builds of the real deliveries."""
    gaofen, world = str(data / "gaofen"), str(data / "landcover" / "MCD12C1.A2019001.006.2020220162300.tif")
    cover = ["--landcover", world]
    zion = ["--scenes", str(data / "zion/zion_landsat8.tif"), "--landcover", str(data / "zion/zion_nlcd2011.tif")]
    return {
        "gaofen": ["--scenes", gaofen, *cover],
        "gaofen-pan-cubic": ["--scenes", gaofen, *cover, "--imagery", "pan", "--resampling", "cubic"],
        "gaofen-pansharpened": ["--scenes", gaofen, *cover, "--imagery", "pansharpened"],
        "zion": zion,
        "zion-dn": [*zion, "--radiometry", "dn"],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit status 1 where any result differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.same_bytes", description=__doc__)
    parser.add_argument("--before", default="HEAD", metavar="REVISION", help="the code to compare with (HEAD)")
    options = parser.parse_args(argv)
    data = os.environ.get("GEOKR_REAL_DATA")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        old = folder / "checkout"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(old), options.before], check=True)
        try:
            fine = True
            world = folder / "world"
            command(old, "pipeline.sample", str(world))
            sample = ["--scenes", f"{world}/scenes", "--landcover", f"{world}/landcover", "--dem", f"{world}/dem.tif"]
            builds = {"sample": sample}
            builds |= {"sample-per-band": [*sample, "--radiometry", "percentile-per-band", "--taxonomy", "paper"]}
            builds |= real_builds(Path(data).absolute()) if data else {}
            for case, arguments in builds.items():
                paths = [folder / f"{case}-{side}" for side in ("before", "after")]
                for checkout, path in zip((old, ROOT), paths, strict=True):
                    build(checkout, path, arguments, SPLIT)
                fine &= compare_datasets(case, *paths)
            for run, arguments in RUNS.items():
                paths = [folder / f"run-{run}-{side}" for side in ("before", "after")]
                for checkout, path, side in zip((old, ROOT), paths, ("before", "after"), strict=True):
                    dataset = ["--data", str(folder / f"sample-{side}"), "--out", str(path)]
                    command(checkout, "geokr.train", *dataset, *TRAIN, *arguments)
                fine &= compare_runs(f"run-{run}", *paths)
        finally:
            subprocess.run([*git, "remove", "--force", str(old)], check=True)
    return 0 if fine else 1


if __name__ == "__main__":
    raise SystemExit(main())
