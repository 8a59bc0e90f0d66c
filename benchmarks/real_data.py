"""The real scenes and maps that some benchmarks read: files below the folder that GEOKR_REAL_DATA names (`data`)."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

LANDSAT, NLCD = "zion_landsat8.tif", "zion_nlcd2011.tif"
"""In `zion`: Landsat 8 and NLCD 2011 of Zion, Utah, as in the R package spDataLarge."""
WORLDCOVER = "ESA_WorldCover_10m_2020_v100_N00E006_Map.tif"
"""In `landcover`: the ESA WorldCover tile of Sao Tome."""
MCD12C1 = "MCD12C1.A2019001.006.2020220162300.tif"
"""In `landcover`: the global MCD12C1 of 2019."""
MISSING = 3
"""Exit status of a benchmark that did not run because its real data are missing."""


def real_folder(name: str) -> Path:
    """The path of a folder of real data, which may not exist."""
    return Path(os.environ.get("GEOKR_REAL_DATA") or "data") / name


def has_files(benchmark: str, folder: Path, names: Iterable[str]) -> bool:
    """Whether a folder holds all files that a benchmark cannot do without; prints a sentence to stderr if not."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        print(
            f"{benchmark} did not run: it needs {' and '.join(missing)} in {folder}; "
            f"set GEOKR_REAL_DATA to the folder that contains {folder.name}/",
            file=sys.stderr,
        )
    return not missing
