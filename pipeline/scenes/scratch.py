"""Images in compressed archives, unpacked once: gzip has no seeking, so each block would be read from far before.

An archive on a server is unpacked from there, and known by its size and ETag as one on a disk by its size and date.

The copies lie in a folder that all processes of a machine share, `GEOKR_SCRATCH` or one in the temporary directory,
and are bounded: the one that was not used for the longest time makes room.
"""

import fcntl
import hashlib
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO

from geokr.storage import inputs, rasters
from pipeline.scenes.archive import AT_ONCE, BROKEN, tar_stream
from pipeline.scenes.scene import SceneError

BOUND = 32 << 30
"""Bytes of unpacked images that are kept."""
SPARE = 1 << 30
"""Bytes of the disk that are left free."""

_MEMBER = re.compile(r"/vsi(tar|zip)/\{(.+?)\}/(.+)", re.DOTALL)


@contextmanager
def local_copy(path: str) -> Iterator[str]:
    """What GDAL opens instead of a path: of a member of a compressed archive a copy, which stays meanwhile.

    It is the place in the archive for everything else, and where there is no room; the path itself of no member.
    Raises SceneError naming the archive where the member cannot be unpacked.
    """
    found = _MEMBER.fullmatch(path)
    if found is None:
        yield path
        return
    kind, archive, member = found.groups()
    in_place = f"/vsi{kind}/{{{rasters.gdal_path(archive)}}}/{member}"
    try:
        state = inputs.stat(archive)
        folder = scratch_folder() if is_compressed(kind, archive, member, state) else None
    except OSError as error:
        raise SceneError(f"{archive}: cannot be unpacked: {error}") from error
    if folder is None:
        yield in_place
        return
    name = hashlib.sha256(os.fsencode(f"{path} {state.size} {state.version}")).hexdigest()[:32]
    copy = folder / f"{name}.tif"
    with (folder / f"{name}.lock").open("w") as lock:
        while True:
            fcntl.flock(lock, fcntl.LOCK_SH)  # nobody removes it now
            if copy.exists():
                break
            fcntl.flock(lock, fcntl.LOCK_EX)  # which may have let another one in between
            if not copy.exists() and not unpack(archive, member, copy):
                yield in_place
                return
        os.utime(copy)
        yield str(copy)


@lru_cache(maxsize=1 << 12)  # a server is not asked for each window
def is_compressed(kind: str, archive: str, member: str, _state: inputs.Stat) -> bool:
    """Whether a member's bytes have to be unpacked to be read from their middle. Raises OSError."""
    if kind == "tar":
        (start,) = inputs.read_ranges(archive, [(0, 2)])
        return start == b"\x1f\x8b"
    try:
        with inputs.open_file(archive) as file, zipfile.ZipFile(file) as packed:
            return packed.getinfo(member).compress_type != zipfile.ZIP_STORED
    except OSError:
        raise
    except BROKEN:
        return False  # GDAL says better what is wrong


def scratch_folder() -> Path:
    """The folder of the copies, open to its owner alone. Raises OSError where it is another's."""
    folder = Path(os.environ.get("GEOKR_SCRATCH") or Path(tempfile.gettempdir()) / f"geokr-unpacked-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else; set GEOKR_SCRATCH to a folder of your own")
    return folder


def unpack(archive: str, member: str, copy: Path) -> bool:
    """Write a member to a file, under its lock; whether there was room for it.

    The file's name is ours, never the archive's.
    """
    new = copy.with_suffix(".new")
    try:
        with open_member(archive, member) as (source, size):
            if not reserve(new, size):
                return False
            with new.open("r+b") as target:
                shutil.copyfileobj(source, target, 1 << 20)
                if target.tell() != size:
                    raise SceneError(f"{archive}: {member} ends after {target.tell()} of {size} bytes")
        new.replace(copy)
    except BROKEN as error:
        new.unlink(missing_ok=True)
        if isinstance(error, SceneError):
            raise
        raise SceneError(f"{archive}: {member} cannot be unpacked: {error or type(error).__name__}") from error
    return True


@contextmanager
def open_member(archive: str, member: str) -> Iterator[tuple[IO[bytes], int]]:
    """A member as a stream, and its size."""
    if archive.lower().endswith(".zip"):
        with inputs.open_file(archive, AT_ONCE) as file, zipfile.ZipFile(file) as packed, packed.open(member) as source:
            yield source, packed.getinfo(member).file_size
        return
    with tar_stream(archive) as stream:
        for entry in stream:
            if entry.isfile() and entry.name.removeprefix("./") == member:
                unpacking = stream.extractfile(entry)
                if unpacking is None:
                    break
                yield unpacking, entry.size
                return
    raise tarfile.ReadError("it is not there any more")


def reserve(new: Path, size: int) -> bool:
    """Make a file of a size in the folder, and room for it; False where there is none."""
    folder = new.parent
    with (folder / "room.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        copies = sorted((file.stat().st_mtime, file.stat().st_size, file) for file in folder.glob("*.[tn][ie][fw]"))
        total = sum(length for _, length, _ in copies)
        for _, length, file in copies:
            if total + size <= BOUND and shutil.disk_usage(folder).free >= size + SPARE:
                break
            if remove_if_unused(file):
                total -= length
        if total + size > BOUND or shutil.disk_usage(folder).free < size + SPARE:
            return False
        with new.open("wb") as target:
            try:
                os.posix_fallocate(target.fileno(), 0, size) if size else None
            except OSError:
                return False
    return True


def remove_if_unused(file: Path) -> bool:
    """Remove a copy unless somebody reads or writes it."""
    with file.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        file.unlink(missing_ok=True)
        return True
