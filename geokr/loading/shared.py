"""Arrays that the processes of a machine have in memory once."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]

_calls = count()


def count_ranks() -> int:
    """Number of processes that torchrun started on this machine: its LOCAL_WORLD_SIZE, 1 without it.

    Raises ValueError if that is not a positive number.
    """
    text = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"LOCAL_WORLD_SIZE must be the number of processes on this machine, got {text!r}")
    return int(text)


def name_run() -> str:
    """A name that the processes which torchrun started together have, and no other processes, earlier ones included.

    A process that is killed leaves its files. The number of torchrun's process alone would find them again: in a
    container it is the same after each start.
    """
    parent, began, boot = os.getppid(), "0", "0"
    if (stat := Path(f"/proc/{parent}/stat")).exists():  # otherwise it is outside the container, or this is no Linux
        fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        began = fields[19]  # proc(5): field 22, clock ticks since the machine was started
    if (boots := Path("/proc/sys/kernel/random/boot_id")).exists():
        boot = boots.read_text(encoding="ascii")
    return f"{parent}-{began}-{boot[:8]}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def share_arrays(make: Callable[[], tuple[Any, Arrays]], name: str | None = None) -> tuple[Any, Arrays]:
    """Call `make` in the first process that asks, and map its arrays from files in the others, read-only.

    make: returns a header, which must be possible to write as JSON, and arrays. All processes of the machine must call
    this function equally often. The files are in the directory for temporary files, and are removed when the last
    process has mapped them; the memory is free when the last process has ended. name: distinguishes calls; by default
    the number of the call, and the start of this run: see `name_run`.
    """
    ranks, number = count_ranks(), next(_calls)
    if ranks == 1:
        return make()
    folder = Path(tempfile.gettempdir()) / f"geokr-{os.getuid()}-{name or f'{name_run()}-{number}'}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if (status := folder.lstat()).st_uid != os.getuid() or status.st_mode & 0o077:
        raise OSError(f"{folder}: belongs to another user, or is open to others; set TMPDIR to a directory of your own")
    with (folder / "ranks").open("a+b") as ranks_file:
        fcntl.flock(ranks_file, fcntl.LOCK_EX)  # until the file is closed
        header = folder / "header.json"
        if not header.exists():
            values, arrays = make()
            for key, array in arrays.items():
                np.save(folder / f"{key}.npy", array, allow_pickle=False)
            del arrays
            header.write_text(json.dumps(values), encoding="utf-8")
        mapped = {path.stem: np.asarray(np.load(path, mmap_mode="r")) for path in sorted(folder.glob("*.npy"))}
        values = json.loads(header.read_text(encoding="utf-8"))
        ranks_file.write(b"1")
        ranks_file.flush()
        if os.fstat(ranks_file.fileno()).st_size == ranks:
            shutil.rmtree(folder)
    return values, mapped
