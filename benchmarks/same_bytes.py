"""Does a change leave the results unchanged? `python -m benchmarks.same_bytes --before REVISION`.

The command builds the sample world, builds the real deliveries that GEOKR_REAL_DATA contains, and trains for 30 steps,
once with the code of a revision and once with that of the working tree. It prints one line per case: whether the
pixels, class shares, statuses, index rows and weights are equal bit for bit, and which attributes differ.
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

from benchmarks.real_data import LANDSAT, MCD12C1, NLCD, real_folder

ROOT = Path(__file__).parents[1]
ARRAYS = ("image", "cloud", "lattice_error", "status", "fraction", "known")
GRID = {"tile": 64, "stride": 48, "block": 8}
SPLIT = {"shares": {"train": 0.75, "val": 0.25}, "cell": 2500}
TRAIN = ["model=resnet10t", "image_size=32", "batch=32", "steps=30", "loggers=[]", "probe=64", "device=cpu"]
RUNS: Mapping[str, list[str]] = {
    "geokr": ["bands=red,green,blue,nir"],
    "supervised": ["objective=supervised", "bands=red,green,blue,nir"],
    "reference": ["--preset", "reference", "pretrained=false", "batch=16"],
}
"""Run -> arguments for the training command."""


def settings(checkout: Path, grid: Mapping[str, Any], split: Mapping[str, Any]) -> dict[str, Any]:
    """The `build` section of a parameter file, in the form that the code of a checkout reads."""
    if (checkout / "geokr" / "storage").is_dir():  # settings are grouped by stage
        return {"build": {"grid": dict(grid), "index": {"split": dict(split)}}}
    return {"build": {**grid, "split": dict(split)}}


def command(checkout: Path, module: str, *arguments: str) -> None:
    """Run a command of a checkout. Raises SystemExit with the end of its error output if it fails."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=checkout, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"error: {module} of {checkout} ended with status {done.returncode}: {done.stderr[-2000:]}")


def build(checkout: Path, out: Path, arguments: Sequence[str], split: Mapping[str, Any]) -> None:
    """Build one data set."""
    params = out.with_suffix(".yaml")
    params.write_text(yaml.safe_dump(settings(checkout, GRID, split)), encoding="utf-8")
    command(checkout, "pipeline.build_levir_kr", *arguments, "--params", str(params), "--out", str(out))


def chunks(dataset: Path, array: str) -> dict[str, bytes]:
    """Contents of every file of an array, over all scenes and stores, by path."""
    return {
        path.relative_to(dataset).as_posix(): path.read_bytes()
        for path in sorted(dataset.rglob(f"*/{array}/c/**/*"))
        if path.is_file()
    }


def attributes(dataset: Path) -> dict[str, dict[str, Any]]:
    """Attributes of the scenes' groups, by path."""
    groups = {}
    for path in dataset.rglob("zarr.json"):
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["node_type"] == "group" and path.parent.suffix != ".zarr":
            groups[path.relative_to(dataset).as_posix()] = document["attributes"]
    return groups


def differing(one: Any, other: Any, name: str = "") -> set[str]:
    """Dotted names of the entries that differ between two nested values."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = {key: f"{name}.{key}".strip(".") for key in one.keys() | other.keys()}
        return {d for key, dotted in names.items() for d in differing(one.get(key), other.get(key), dotted)}
    return set() if one == other else {name}


def compare_datasets(case: str, before: Path, after: Path) -> bool:
    """Print a comparison of two builds. Returns whether all results are equal."""
    equal = {array: chunks(before, array) == chunks(after, array) for array in ARRAYS}
    files = sum(len(chunks(before, array)) for array in ARRAYS)
    tables = [pq.read_table(dataset / "index.parquet") for dataset in (before, after)]
    common = [name for name in tables[0].column_names if name in tables[1].column_names]
    rows = [repr(table.select(common).to_pylist()) for table in tables]  # as text, in which NaN equals NaN
    equal["index"] = rows[0] == rows[1]
    renamed = sorted({*tables[0].column_names} ^ {*tables[1].column_names})
    groups = attributes(before), attributes(after)
    changed = sorted({d for path in groups[0] for d in differing(groups[0][path], groups[1].get(path, {}))})
    all_equal = all(equal.values()) and files > 0 and groups[0].keys() == groups[1].keys()
    columns = " ".join(f"{name}={'yes' if same else 'NO'}" for name, same in equal.items())
    print(
        f"case={case} equal={'yes' if all_equal else 'NO'} {columns} files={files} tiles={tables[0].num_rows} "
        f"other_columns={','.join(renamed) or 'none'} other_attributes={','.join(changed) or 'none'}",
        flush=True,
    )
    return all_equal


def compare_runs(case: str, before: Path, after: Path) -> bool:
    """Print and return whether two runs have the same weights and losses."""
    weights = [load_file(run / "encoder.safetensors") for run in (before, after)]
    same_weights = weights[0].keys() == weights[1].keys() and all(
        weights[0][name].tobytes() == weights[1][name].tobytes() for name in weights[0]
    )
    losses = []
    for run in (before, after):
        rows = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        losses.append([(row["step"], row["split"], row["kl"]) for row in rows])
    equal = same_weights and losses[0] == losses[1]
    print(
        f"case={case} equal={'yes' if equal else 'NO'} tensors={len(weights[0])} losses={len(losses[0])}",
        flush=True,
    )
    return equal


def real_builds() -> dict[str, list[str]]:
    """Case -> arguments of a build, for the real deliveries that exist."""
    gaofen = real_folder("gaofen").absolute()
    mcd12c1 = real_folder("landcover").absolute() / MCD12C1
    landsat, nlcd = (real_folder("zion").absolute() / name for name in (LANDSAT, NLCD))
    builds = {}
    if gaofen.is_dir() and mcd12c1.is_file():
        arguments = ["--scenes", str(gaofen), "--landcover", str(mcd12c1)]
        builds["gaofen"] = arguments
        builds["gaofen-pan-cubic"] = [*arguments, "--imagery", "pan", "--resampling", "cubic"]
        builds["gaofen-pansharpened"] = [*arguments, "--imagery", "pansharpened"]
    if landsat.is_file() and nlcd.is_file():
        arguments = ["--scenes", str(landsat), "--landcover", str(nlcd)]
        builds["zion"] = arguments
        builds["zion-dn"] = [*arguments, "--radiometry", "dn"]
    return builds


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. The exit status is 1 if any result differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.same_bytes", description=__doc__)
    parser.add_argument("--before", default="HEAD", metavar="REVISION", help="git revision to compare with (HEAD)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        old = folder / "checkout"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(old), options.before], check=True)
        try:
            equal = True
            world = folder / "world"
            command(old, "pipeline.sample", str(world))
            sample = ["--scenes", f"{world}/scenes", "--landcover", f"{world}/landcover", "--dem", f"{world}/dem.tif"]
            builds = {"sample": sample}
            builds |= {"sample-per-band": [*sample, "--radiometry", "percentile-per-band", "--taxonomy", "paper"]}
            builds |= real_builds()
            for case, arguments in builds.items():
                paths = [folder / f"{case}-{side}" for side in ("before", "after")]
                for checkout, path in zip((old, ROOT), paths, strict=True):
                    build(checkout, path, arguments, SPLIT)
                equal &= compare_datasets(case, *paths)
            for run, arguments in RUNS.items():
                paths = [folder / f"run-{run}-{side}" for side in ("before", "after")]
                for checkout, path, side in zip((old, ROOT), paths, ("before", "after"), strict=True):
                    dataset = ["--data", str(folder / f"sample-{side}"), "--out", str(path)]
                    command(checkout, "geokr.train", *dataset, *TRAIN, *arguments)
                equal &= compare_runs(f"run-{run}", *paths)
        finally:
            subprocess.run([*git, "remove", "--force", str(old)], check=True)
    return 0 if equal else 1


if __name__ == "__main__":
    raise SystemExit(main())
