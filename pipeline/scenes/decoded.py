"""Decoded parts of JPEG 2000 images, kept for a while in the scratch folder that the processes of a machine share.

JPEG 2000 is decoded in parts, of 1,024 px in Sentinel-2, whatever window is read. Neighbouring blocks of tiles need the
same parts: with the default tiles, each part of a Sentinel-2 scene would be decoded 2.4 times.
"""

import hashlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.windows import Window

from geokr.storage import inputs, rasters
from pipeline.scenes.scratch import MIN_FREE, scratch_folder

Pixels = npt.NDArray[Any]
"""(band, row, col)."""
FOLDER = "decoded"
"""Subfolder of the scratch folder, with a file for each part."""
MAX_TOTAL = 2 << 30
"""Limit of the total size of the parts on a machine, bytes: some rows of blocks of several scenes."""
CHECKED = 64 << 20
"""Bytes that a process writes before it looks for room again."""

_ARCHIVE = re.compile(r"/vsi(?:zip|tar)/\{(.+?)\}/.+", re.DOTALL)
_room = threading.local()


def read_decoded(file: Any, indexes: Sequence[int], window: Window, out: Pixels) -> None:
    """Read a window of an open image into `out`, from the parts that are kept as far as they are there.

    indexes: bands, counted from 1. Raises RasterioIOError if the image cannot be decoded.
    """
    height, width = file.block_shapes[0]
    top, left = int(window.row_off), int(window.col_off)
    columns = range(left // width, -(-(left + int(window.width)) // width))
    key = identify(file, indexes)
    for i in range(top // height, -(-(top + int(window.height)) // height)):
        kept = {j: load(name_part(key, i, j)) for j in columns} if key else {}
        parts = {j: part for j, part in kept.items() if part is not None}
        for run in split_runs([j for j in columns if j not in parts]):
            parts |= decode(file, indexes, i, run, key)
        for j, part in parts.items():
            paste(part, i * height - top, j * width - left, out)


def split_runs(numbers: Sequence[int]) -> list[list[int]]:
    """Split rising numbers where one is left out."""
    runs = groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    return [[number for _, number in run] for _, run in runs]


def identify(file: Any, indexes: Sequence[int]) -> str:
    """Path, without its end, of the parts of an open image; empty if none can be kept.

    It depends on the size and the version of the file, so that parts of a replaced one are not taken.
    """
    archive = _ARCHIVE.fullmatch(file.name)
    try:
        state, scratch = inputs.stat(rasters.from_gdal_path(archive[1] if archive else file.name)), scratch_folder()
        (scratch / FOLDER).mkdir(exist_ok=True)
    except OSError:
        return ""
    # A copy from an archive is touched at each use; its name says of which archive it is.
    version = "copy" if Path(file.name).parent == scratch else state.version
    described = f"{file.name} {state.size} {version} {[*indexes]} {file.block_shapes[0]}"
    return str(scratch / FOLDER / hashlib.sha256(os.fsencode(described)).hexdigest()[:32]) if version else ""


def name_part(key: str, i: int, j: int) -> Path:
    return Path(f"{key}-{i}-{j}.npy")


def load(path: Path) -> Pixels | None:
    """A part that is kept; None if it is not."""
    try:
        part: Pixels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return part


def decode(file: Any, indexes: Sequence[int], i: int, columns: Sequence[int], key: str) -> dict[int, Pixels]:
    """Decode neighbouring parts of one row together, and keep them: column -> part."""
    height, width = file.block_shapes[0]
    top, left = i * height, columns[0] * width
    size = min((columns[-1] + 1) * width, file.width) - left, min(height, file.height - top)
    pixels = file.read([*indexes], window=Window(left, top, *size))
    parts = {j: pixels[:, :, k * width : (k + 1) * width] for k, j in enumerate(columns)}
    for j, part in parts.items():
        if key:
            keep(name_part(key, i, j), part)
    return parts


def keep(path: Path, part: Pixels) -> None:
    """Write a part as a whole, unless there is no room. Another process may do the same."""
    _room.left = getattr(_room, "left", 0) - part.nbytes
    try:
        if _room.left < 0:
            make_room(path.parent)
            _room.left = CHECKED
        if shutil.disk_usage(path.parent).free < part.nbytes + MIN_FREE:
            return
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".new", delete=False) as target:
            try:
                np.save(target, part)
                Path(target.name).replace(path)
            except OSError:
                Path(target.name).unlink()
    except OSError:
        pass  # what is not kept is decoded again


def make_room(folder: Path) -> None:
    """Remove the oldest parts beyond the limit of their total size."""
    found = []
    for path in folder.iterdir():
        with suppress(OSError):
            state = path.stat()
            found.append((state.st_mtime, state.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= MAX_TOTAL:
            break
        path.unlink(missing_ok=True)
        total -= size


def paste(part: Pixels, row: int, col: int, out: Pixels) -> None:
    """Copy the common pixels of a part, whose first one lies at (row, col) of `out`."""
    rows = slice(max(row, 0), min(row + part.shape[1], out.shape[1]))
    cols = slice(max(col, 0), min(col + part.shape[2], out.shape[2]))
    out[:, rows, cols] = part[:, rows.start - row : rows.stop - row, cols.start - col : cols.stop - col]
