"""What archives hold, wherever they lie: the names of images, and the small files beside them.

Nothing is unpacked to disk.

It is hostile until shown otherwise: sizes and numbers are bounded before anything is read.
"""

import gzip
import os
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from stat import S_ISLNK

from geokr.storage import inputs
from pipeline.scenes.scene import SceneError

IMAGES = (".tif", ".tiff")
METADATA = (".xml", ".rpb", "_rpc.txt")
TARS = (".tar.gz", ".tgz", ".tar")
ARCHIVES = (*TARS, ".zip")
MAX_MEMBERS = 10_000
"""An archive with more members than this is no delivery."""
MAX_METADATA = 4 << 20
"""An XML or RPB with more bytes than this is none."""
MAX_UNPACKED = 64 << 30
"""An archive of more bytes than this, unpacked, is no delivery: the largest real ones hold some 5 GiB."""
MAX_RATIO = 100
"""An archive that unpacks to more than a GiB and more than this times its size is no delivery: images halve at best."""

AT_ONCE = 8 << 20
"""Bytes of a tar that are asked of a server at a time."""

BROKEN = (
    OSError, EOFError, ValueError, ArithmeticError, LookupError, RecursionError, NotImplementedError, struct.error,
    tarfile.TarError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What the libraries of archives raise over broken ones."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What an archive holds of use."""

    files: dict[str, bytes | None]
    """Member -> content, None for images."""
    faults: list[str]
    """What in it is not as it should be, a sentence each; those members are passed over."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an archive, whatever kind."""

    name: str
    size: int
    """Bytes, unpacked."""
    fault: str | None
    """Why it cannot be used, if so."""
    read: Callable[[], bytes]
    """Its content; to be called before the next member is asked for."""


def member_path(archive: str, name: str) -> str:
    """A member as GDAL names it: `unpacked` says what it opens."""
    return f"/{'vsizip' if archive.lower().endswith('.zip') else 'vsitar'}/{{{archive}}}/{name}"


def read_contents(path: str) -> Contents:
    """The images and metadata files in an archive. Raises SceneError naming the archive where it cannot be read."""
    files: dict[str, bytes | None] = {}
    counts: Counter[str] = Counter()
    faults = []
    try:
        for member in zip_members(path) if path.lower().endswith(".zip") else tar_members(path):
            name = member.name.removeprefix("./")
            fault = member.fault or name_fault(name)
            if fault:
                faults.append(f"{path}: its member {printable_name(member.name)} {fault}, and is passed over")
                continue
            if name.lower().endswith(IMAGES):
                files[name] = None
            elif name.lower().endswith(METADATA) and member.size <= MAX_METADATA:
                files[name] = member.read()
            else:
                continue
            counts[name] += 1
    except SceneError as error:
        raise SceneError(f"{path}: {error}") from error
    except BROKEN as error:
        raise SceneError(f"{path}: cannot be unpacked: {error or type(error).__name__}") from error
    for name in (name for name, count in counts.items() if count > 1):
        del files[name]
        faults.append(
            f"{path}: it holds {counts[name]} members of the name {printable_name(name)}, which are passed over"
        )
    if len(faults) > 1:  # one is enough to know what kind of archive it is
        faults[1:] = [f"{path}: so it is with {len(faults) - 1} more of its members"]
    return Contents(files, faults)


def name_fault(name: str) -> str | None:
    """What is wrong with a member's name, if anything."""
    if name.startswith("/") or name[1:2] == ":" or ".." in PurePosixPath(name).parts:
        return "leads outside the archive"
    if not name.isprintable() or "\\" in name or not is_utf8(name):
        return "has a name that is not UTF-8 text, or holds characters that no name should"
    return None


def is_utf8(name: str) -> bool:
    """Whether a name is text, and not bytes of some encoding that stand in for it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable_name(name: str) -> str:
    """A name as it can be printed, in one piece."""
    return repr(name[:200].encode("utf-8", "backslashreplace").decode())


def check_limits(count: int, unpacked: int, packed: int) -> None:
    """Raises SceneError, without the archive's name, where an archive holds more than any delivery."""
    if count > MAX_MEMBERS:
        raise SceneError(f"the archive has more than {MAX_MEMBERS} members, which no delivery has")
    if unpacked > MAX_UNPACKED or unpacked > max(1 << 30, MAX_RATIO * packed):
        raise SceneError(f"{packed} bytes unpack to {unpacked} or more, which no delivery does")


@contextmanager
def tar_stream(path: str) -> Iterator[tarfile.TarFile]:
    """A tar, gzipped or not, to be read from front to end."""
    with inputs.open_file(path, AT_ONCE) as file:
        gzipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = gzip.GzipFile(fileobj=file) if gzipped else file
        with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 20, tarinfo=TarHeader) as archive:
            yield archive


def tar_members(path: str) -> Iterator[Member]:
    """The members of a tar, directories left out. Raises SceneError without the archive's name."""
    packed, unpacked = inputs.stat(path).size, 0
    with tar_stream(path) as archive:
        for n, entry in enumerate(archive):
            unpacked += entry.size
            check_limits(n + 1, unpacked, packed)
            if entry.isdir():
                continue
            fault = None
            if entry.issym() or entry.islnk():
                fault = "is a link"
            elif not entry.isfile():
                fault = "is no file but a device or pipe"
            elif entry.issparse():
                fault = "is a sparse file, which is not read"
            yield Member(entry.name, entry.size, fault, partial(tar_content, archive, entry))


EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip


class TarHeader(tarfile.TarInfo):
    """A header whose extensions, which tarfile reads into memory whole, cannot be of any size."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type not in EXTENSIONS or self.size <= 1 << 20:
            return super()._proc_member(archive)  # type: ignore[misc, no-any-return]
        raise tarfile.ReadError(f"a header of {self.size} bytes")


def tar_content(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    """The bytes of a member."""
    content = archive.extractfile(entry)
    return content.read() if content else b""


def zip_members(path: str) -> Iterator[Member]:
    """The members of a zip, directories left out. Raises SceneError without the archive's name."""
    packed = inputs.stat(path).size
    check_limits(zip_count(path), 0, packed)  # zipfile reads the whole list at once
    with inputs.open_file(path) as file, zipfile.ZipFile(file) as archive:
        unpacked = 0
        for n, entry in enumerate(archive.infolist()):
            unpacked += entry.file_size
            check_limits(n + 1, unpacked, packed)
            if entry.is_dir():
                continue
            fault = None
            if S_ISLNK(entry.external_attr >> 16):
                fault = "is a link"
            elif entry.flag_bits & 0x1:
                fault = "is encrypted"
            elif entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                fault = f"is packed by method {entry.compress_type}, which is not read"
            elif not entry.flag_bits & 0x800 and not entry.filename.isascii():
                fault = "has a name that does not say its encoding"
            yield Member(entry.filename, entry.file_size, fault, partial(zip_content, archive, entry))


def zip_content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """The bytes of a member, as far as its size is what the list says."""
    with archive.open(entry) as content:
        return content.read(MAX_METADATA)


def zip_count(path: str) -> int:
    """About how many members a zip says it has, from the size of its list; 0 where it is none.

    By APPNOTE.TXT, 4.3.14 to 4.3.16.
    """
    with inputs.open_file(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - (1 << 16) - 64))
        tail = file.read()
        end = tail.rfind(b"PK\x05\x06")
        if end < 0 or len(tail) < end + 22:
            return 0
        count, listed = struct.unpack_from("<HL", tail, end + 10)
        locator = tail.rfind(b"PK\x06\x07", 0, end)
        if locator >= 0:
            file.seek(struct.unpack_from("<Q", tail, locator + 8)[0])
            count, listed = struct.unpack_from("<QQ", file.read(48), 32)
        return max(int(count), int(listed) // 1024)  # names and remarks included, a member's line is shorter
