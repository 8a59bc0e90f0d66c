"""Unpack images in compressed archives once. Gzip cannot seek, so reading a block would decompress all data before it.

An archive on a server is unpacked from there. A copy is identified by the size and ETag of a remote archive, or by the
size and modification time of a local one.

The copies are in a folder that all processes of a machine share: `GEOKR_SCRATCH`, or one in the temporary directory.
Their total size is limited; the least recently used copies are removed to make room.
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
from pipeline.scenes.archive import ARCHIVE_ERRORS, READ_SIZE, TARS, UTF8_NAME, open_tar, open_zip
from pipeline.scenes.scene import SceneError

MAX_TOTAL = 32 << 30
"""Limit of the total size of the copies, bytes."""
MIN_FREE = 1 << 30
"""Disk space that is left free, bytes."""

LONGEST_NAME = 100
"""Length of the name that fits into the plain header of a member of a tar, bytes."""

GZIPPED = tuple(suffix for suffix in TARS if suffix.endswith("gz"))
_MEMBER = re.compile(r"/vsi(tar|zip)/\{(.+?)\}/(.+)", re.DOTALL)


@contextmanager
def open_local_copy(path: str) -> Iterator[str]:
    """Yield the path for GDAL to open: for a member of a compressed archive, a copy kept while the context is active.

    For a member that is not compressed, or if there is no room for a copy, it is the GDAL path into the archive. Paths
    of other files are returned unchanged. Raises SceneError naming the archive if the member cannot be unpacked.
    """
    match = _MEMBER.fullmatch(path)
    if match is None:
        yield path
        return
    kind, archive, member = match.groups()
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
            fcntl.flock(lock, fcntl.LOCK_SH)  # keeps other processes from removing the copy
            if copy.exists():
                break
            # Changing the lock is not atomic: another process may have unpacked the member in between.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not copy.exists() and not unpack(archive, member, copy):
                yield in_place
                return
        os.utime(copy)
        yield str(copy)


@lru_cache(maxsize=1 << 12)  # so that a server is not asked for each window
def is_compressed(kind: str, archive: str, member: str, _state: inputs.Stat) -> bool:
    """Whether a member is compressed, so that it has to be unpacked for random access. Raises OSError.

    So are members that GDAL does not find: those of a tar whose names need an extended header, those of a tar that is
    called gzipped and is not, as browsers leave it, and those of a zip with names in other encodings than UTF-8.
    """
    if kind == "tar":
        if archive.lower().endswith(GZIPPED) or not (member.isascii() and len(member) <= LONGEST_NAME):
            return True
        (start,) = inputs.read_ranges(archive, [(0, 2)])
        return start == b"\x1f\x8b"
    try:
        with open_zip(archive) as packed:
            entry = packed.getinfo(member)
            is_named = member.isascii() or bool(entry.flag_bits & UTF8_NAME)
            return entry.compress_type != zipfile.ZIP_STORED or not is_named
    except OSError:
        raise
    except ARCHIVE_ERRORS:
        return False  # GDAL reports the fault more precisely


def scratch_folder() -> Path:
    """Create the folder of the copies, accessible only to its owner. Raises OSError if it belongs to another user."""
    folder = Path(os.environ.get("GEOKR_SCRATCH") or Path(tempfile.gettempdir()) / f"geokr-unpacked-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user; set GEOKR_SCRATCH to a folder of your own")
    return folder


def unpack(archive: str, member: str, copy: Path) -> bool:
    """Unpack a member to a file and return whether there was room for it. The caller holds the lock of the file.

    The file is never named after the archive or the member. Raises SceneError if the member cannot be unpacked.
    """
    new_file = copy.with_suffix(".new")
    try:
        with open_member(archive, member) as (source, size):
            if not reserve(new_file, size):
                return False
            with new_file.open("r+b") as target:
                shutil.copyfileobj(source, target, 1 << 20)
                if target.tell() != size:
                    raise SceneError(f"{archive}: {member} ends after {target.tell()} of {size} bytes")
        new_file.replace(copy)
    except ARCHIVE_ERRORS as error:
        new_file.unlink(missing_ok=True)
        if isinstance(error, SceneError):
            raise
        raise SceneError(f"{archive}: {member} cannot be unpacked: {error or type(error).__name__}") from error
    return True


def containing_file(path: str) -> str:
    """The file or archive, at any address, in which the content of a path for GDAL is stored."""
    match = _MEMBER.fullmatch(path)
    return match[2] if match else rasters.from_gdal_path(path)


@contextmanager
def open_content(path: str) -> Iterator[tuple[IO[bytes], int]]:
    """Open what a path for GDAL names, a file or a member: a stream and its size in bytes. Raises ARCHIVE_ERRORS."""
    if match := _MEMBER.fullmatch(path):
        with open_member(match[2], match[3]) as opened:
            yield opened
        return
    name = rasters.from_gdal_path(path)
    with inputs.open_file(name) as source:
        yield source, inputs.stat(name).size


@contextmanager
def open_member(archive: str, member: str) -> Iterator[tuple[IO[bytes], int]]:
    """Open a member: a stream and its size in bytes."""
    if archive.lower().endswith(".zip"):
        with open_zip(archive, READ_SIZE) as packed, packed.open(member) as source:
            yield source, packed.getinfo(member).file_size
        return
    with open_tar(archive) as stream:
        for entry in stream:
            if entry.isfile() and entry.name.removeprefix("./") == member:
                content = stream.extractfile(entry)
                if content is None:
                    break
                yield content, entry.size
                return
    raise tarfile.ReadError("the archive no longer contains it")


def reserve(new_file: Path, size: int) -> bool:
    """Allocate a file of `size` bytes, removing old copies if necessary. Returns False if there is no room."""
    folder = new_file.parent
    with (folder / "room.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        copies = sorted((file.stat().st_mtime, file.stat().st_size, file) for file in folder.glob("*.[tn][ie][fw]"))
        total = sum(length for _, length, _ in copies)
        for _, length, file in copies:
            if total + size <= MAX_TOTAL and shutil.disk_usage(folder).free >= size + MIN_FREE:
                break
            if remove_if_unused(file):
                total -= length
        if total + size > MAX_TOTAL or shutil.disk_usage(folder).free < size + MIN_FREE:
            return False
        with new_file.open("wb") as target:
            try:
                os.posix_fallocate(target.fileno(), 0, size) if size else None
            except OSError:
                return False
    return True


def remove_if_unused(file: Path) -> bool:
    """Remove a copy unless a process reads or writes it. Returns whether it was removed."""
    with file.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        file.unlink(missing_ok=True)
        return True
