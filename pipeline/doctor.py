"""Say what works on this machine, what does not, and why: versions, GPU, GDAL, PROJ, memory and disk."""

import argparse
import os
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pyproj
import rasterio
from packaging.requirements import Requirement
from pyproj.network import is_network_enabled  # type: ignore[attr-defined]
from pyproj.transformer import TransformerGroup

from geokr.storage import inputs
from pipeline.runtime.cluster import count_cores, memory_per_worker
from pipeline.runtime.worker import usable_memory

OK, NOTE, FAIL = "ok", "note", "FAIL"
Finding = tuple[str, str, str]
"""One of OK, NOTE (something optional is missing) and FAIL; what was looked at; a sentence."""

EXTRAS = {
    "train": "geokr train, export and predict",
    "evaluate": "geokr evaluate",
    "s3": "data sets and inputs on s3://",
    "torchgeo": "sets of torchgeo in geokr evaluate",
    "mlflow": "the log mlflow",
    "wandb": "the log wandb",
}
"""Extra of pyproject.toml -> what needs it."""
DRIVERS = {
    "GTiff": (FAIL, "GeoTIFFs cannot be read: nothing can be built"),
    "VRT": (FAIL, "mosaics (.vrt) cannot be read"),
    "JP2OpenJPEG": (NOTE, "images in JPEG 2000 cannot be read, such as those of Sentinel-2 as downloaded"),
    "HFA": (NOTE, "maps in .img cannot be read, such as those of NLCD"),
    "netCDF": (NOTE, "maps in .nc cannot be read, such as those of ESA CCI"),
    "HDF4": (NOTE, "MCD12Q1 and MCD12C1 in .hdf must be converted first, elsewhere, by gdal_translate"),
}
"""GDAL's driver -> how bad it is if it is missing, and what then does not work. Parquet is read without GDAL."""
GRIDS = {"EPSG:4267": "NAD27", "EPSG:27700": "British National Grid", "EPSG:31467": "Gauss-Krueger of Germany"}
"""Systems whose datum needs a grid of PROJ to be exact."""
LEAST_DISK = 1e9
"""Free space below which a folder is as good as full, bytes."""


def check_packages() -> Iterator[Finding]:
    """The versions, and whether each package that pyproject.toml asks for is there in its range."""
    yield OK, "geokr", f"{version('geokr')}, Python {platform.python_version()} on {platform.platform()}"
    needs = [Requirement(line) for line in requires("geokr") or ()]
    missing = list(describe_missing([need for need in needs if need.marker is None]))
    yield (FAIL, "packages", "; ".join(missing)) if missing else (OK, "packages", "all that a build needs")
    for extra, purpose in EXTRAS.items():
        missing = list(
            describe_missing([n for n in needs if n.marker is not None and n.marker.evaluate({"extra": extra})])
        )
        advice = f"{'; '.join(missing)}; {purpose} will not work: pip install 'geokr[{extra}]'"
        yield (NOTE, f"extra {extra}", advice) if missing else (OK, f"extra {extra}", purpose)


def describe_missing(needs: Sequence[Requirement]) -> Iterator[str]:
    """What is wrong with the installed version of each requirement, if anything."""
    for need in needs:
        try:
            found = version(need.name)
        except PackageNotFoundError:
            yield f"{need.name} is not installed"
            continue
        if not need.specifier.contains(found, prereleases=True):
            yield f"{need.name} is {found}, expected {need.specifier}"


def check_gpu() -> Iterator[Finding]:
    """Whether torch computes on a GPU, and if not, why."""
    try:
        import torch  # takes seconds
    except ImportError as error:
        yield NOTE, "GPU", f"torch cannot be imported: {error}"
        return
    driver = shutil.which("nvidia-smi") is not None
    if not torch.cuda.is_available():
        why = "no NVIDIA driver on this machine"
        if driver:
            built = torch.version.cuda
            why = f"torch is built for CUDA {built}, which the driver may be too old for" if built else (
                "this torch is built without CUDA; install one with it"
            )  # fmt: skip
        yield NOTE, "GPU", f"torch {torch.__version__} finds none: {why}; training takes the processor, which is slow"
        return
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        try:
            torch.ones(2, device=f"cuda:{number}").sum().item()
        except RuntimeError as error:
            yield FAIL, f"GPU {number}", f"{device.name}: {str(error).splitlines()[0]}"
            continue
        precision = "bf16" if device.major >= 8 else "no bf16: use amp=fp16"
        yield OK, f"GPU {number}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB, {precision}"


def check_gdal() -> Iterator[Finding]:
    """Whether GDAL has the drivers of the forms that are read and written."""
    with rasterio.Env() as env:
        drivers = env.drivers()
    there = [name for name in DRIVERS if name in drivers]
    yield OK, "GDAL", f"{rasterio.__gdal_version__} with {', '.join(there)}"
    for name, (level, loss) in DRIVERS.items():
        if name not in drivers:
            yield level, f"GDAL {name}", f"the driver is missing: {loss}"


def check_proj() -> Iterator[Finding]:
    """Whether PROJ works, and which of some systems it knows less exactly for want of a grid."""
    yield OK, "PROJ", f"{pyproj.proj_version_str}, data in {pyproj.datadir.get_data_dir()}"
    if is_network_enabled():
        yield OK, "PROJ grids", "fetched from the network when they are needed"
        return
    inexact = []
    for code, name in GRIDS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it warns of what is asked here
            group = TransformerGroup(code, "EPSG:4326")
        if not group.best_available:
            inexact.append(f"{name} to {group.transformers[0].accuracy:.0f} m")
    if inexact:
        lacking = f"none for some datums, known only so well: {', '.join(inexact)}"
        yield NOTE, "PROJ grids", f"{lacking}; maps in these lie off: `pyproj sync --all` or PROJ_NETWORK=ON"
    else:
        yield OK, "PROJ grids", f"there, among others for {', '.join(GRIDS.values())}"


def check_memory() -> Iterator[Finding]:
    """Whether each worker of a build gets enough memory for a block."""
    cores, share = count_cores(), memory_per_worker()
    usable = usable_memory(share)
    said = f"{cores * share / 2**30:.1f} GiB for {cores} cores, {share / 2**30:.1f} GiB for each worker of a build"
    if usable <= 0:
        yield FAIL, "memory", f"{said}, which is too little for its libraries: give fewer --workers"
    else:
        yield OK, "memory", f"{said}, of which {usable / 2**30:.1f} GiB are for tiles; --dry-run says what they need"


def check_disk(folder: Path) -> Iterator[Finding]:
    """Whether the folder of a data set, and the one in which archives are unpacked, can be written and have space."""
    scratch = Path(os.environ.get("GEOKR_SCRATCH") or tempfile.gettempdir())
    for name, path in (("disk", folder), ("scratch", scratch)):
        there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
        free = shutil.disk_usage(there).free
        said = f"{free / 1e9:.1f} GB free in {path}"
        elsewhere = "" if name == "disk" else "; GEOKR_SCRATCH names another folder to unpack archives in"
        if not os.access(there, os.W_OK):
            yield FAIL, name, f"{path} cannot be written{elsewhere}"
        else:
            yield FAIL if free < LEAST_DISK else OK, name, said + elsewhere


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="geokr doctor",
        description=__doc__,
        epilog="Exit status: 0 nothing needed is missing; 1 something is.",
    )
    parser.add_argument(
        "folder", nargs="?", type=inputs.local_path, default=Path(), help="where a data set will be written (.)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit status: 1 if anything needed is missing."""
    options = make_parser().parse_args(argv)
    checks: list[Callable[[], Iterator[Finding]]] = [
        check_packages, check_gpu, check_gdal, check_proj, check_memory, lambda: check_disk(options.folder),
    ]  # fmt: skip
    failed = False
    for check in checks:
        for level, name, sentence in check():
            failed |= level == FAIL
            print(f"{level:<5} {name:<15} {' '.join(sentence.split())}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
