"""The contents of archives, local or remote: the names of the images and the contents of the metadata files.

Nothing is unpacked to disk. An archive is untrusted input: sizes and counts are checked before anything is read.
"""

import gzip
import os
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from stat import S_ISLNK

from geokr.storage import inputs
from pipeline.scenes.scene import SceneError

IMAGES = (".tif", ".tiff", ".jp2", ".j2k", ".img")
PICTURES = (".jpg", ".jpeg", ".png")
"""Suffixes of images that may lie on a map, if a world file beside them says where: see `image_files`."""
METADATA = (".xml", ".rpb", "_rpc.txt", ".rpc", ".rpc.txt", ".rpb.txt")
"""Ends of the names of metadata beside an image: product XML, and cameras."""
VENDOR_METADATA = (".imd", "_metadata.json")
"""Ends of the names of vendors' metadata that are no XML: see `vendors`."""
GEOREFERENCE = (
    ".prj", ".wld", ".tfw", ".tifw", ".tiffw", ".j2w", ".jp2w", ".jgw", ".jpgw", ".jpegw", ".pgw", ".pngw",
)  # fmt: skip
"""Suffixes of text files that say where an image lies."""
PRODUCT_METADATA = (".xml", "_mtl.txt", "_mtl.json")
"""Ends of the names of metadata files of products whose bands are files of their own."""
TEXTS = (*METADATA, *GEOREFERENCE, *VENDOR_METADATA, *PRODUCT_METADATA, ".hdr")
"""Ends of the names of files that are read for what they say."""
MASK = ".msk"
"""Suffix that GDAL appends to the name of an image for a file with its mask."""
CLOUDS = ("msk_clouds_b00.gml", "_b00_msil1c.gml")
"""Ends of the names of files with clouds as polygons: see `cloud_polygons`."""
TARS = (".tar.gz", ".tgz", ".tar")
ARCHIVES = (*TARS, ".zip")
MAX_MEMBERS = 10_000
"""An archive with more members than this is refused."""
MAX_METADATA = 4 << 20
"""A metadata file (XML, RPB, RPC text) with more bytes than this is not read."""
MAX_UNPACKED = 64 << 30
"""An archive that unpacks to more bytes than this is refused. The largest real deliveries have about 5 GiB."""
MAX_RATIO = 100
"""An archive that unpacks to more than 1 GiB and to more than this multiple of its size is refused.

Images shrink to half their size at best.
"""

READ_SIZE = 8 << 20
"""Bytes of an archive that are requested from a server at a time."""

ARCHIVE_ERRORS = (
    OSError, EOFError, ValueError, ArithmeticError, LookupError, RecursionError, NotImplementedError, struct.error,
    tarfile.TarError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""Exceptions that the archive libraries raise for broken archives."""


@dataclass(frozen=True, slots=True)
class Contents:
    """The images and metadata files of an archive."""

    files: dict[str, bytes | None]
    """Member name -> content; None for images, masks and clouds, and for metadata above MAX_METADATA."""
    faults: list[str]
    """One sentence per fault. The members at fault are skipped."""
    others: tuple[str, ...] = ()
    """Names of the members of other kinds."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a tar or zip archive."""

    name: str
    size: int
    """Unpacked size, bytes."""
    fault: str | None
    """Why the member cannot be used; None if it can."""
    read: Callable[[], bytes]
    """Reads the content. Call it before iterating to the next member."""


def member_path(archive: str, name: str) -> str:
    """The GDAL path of a member. `scratch.open_local_copy` turns it into a path that can be opened."""
    return f"/{'vsizip' if archive.lower().endswith('.zip') else 'vsitar'}/{{{archive}}}/{name}"


def read_contents(path: str) -> Contents:
    """Read the images and metadata files of an archive. Raises SceneError naming the archive if it is unreadable."""
    files: dict[str, bytes | None] = {}
    counts: Counter[str] = Counter()
    faults: list[str] = []
    others: list[str] = []
    try:
        for member in zip_members(path) if path.lower().endswith(".zip") else tar_members(path):
            name = member.name.removeprefix("./")
            fault = member.fault or name_fault(name)
            if fault:
                faults.append(f"{path}: member {printable_name(member.name)} {fault}; it is skipped")
                continue
            if name.lower().endswith((*IMAGES, *PICTURES, MASK, *CLOUDS)):
                files[name] = None
            elif name.lower().endswith(TEXTS):
                files[name] = member.read() if member.size <= MAX_METADATA else None
            else:
                others.append(name)
                continue
            if name.lower().endswith(PICTURES):
                others.append(name)
            counts[name] += 1
    except SceneError as error:
        raise SceneError(f"{path}: {error}") from error
    except ARCHIVE_ERRORS as error:
        raise SceneError(f"{path}: cannot be unpacked: {error or type(error).__name__}") from error
    for name in (name for name, count in counts.items() if count > 1):
        del files[name]
        faults.append(f"{path}: the archive has {counts[name]} members named {printable_name(name)}; they are skipped")
    if len(faults) > 1:  # one example is enough to find the cause
        faults[1:] = [f"{path}: further members skipped: {len(faults) - 1}"]
    return Contents(files, faults, tuple(others))


def require_text(name: str, files: Mapping[str, bytes | None]) -> bytes:
    """The content of a metadata file. Raises SceneError naming it if it is too large to be read."""
    content = files[name]
    if content is None:
        raise SceneError(f"{name}: more than {MAX_METADATA >> 20} MiB are too many for a metadata file")
    return content


def name_fault(name: str) -> str | None:
    """Describe the fault of a member's name; None if there is none."""
    if name.startswith("/") or name[1:2] == ":" or ".." in PurePosixPath(name).parts:
        return "leads outside the archive"
    if not name.isprintable() or "\\" in name or not is_utf8(name):
        return "has a name that is not UTF-8 text, or that contains unprintable characters or backslashes"
    return None


def is_utf8(name: str) -> bool:
    """Whether a name can be encoded as UTF-8. Undecodable bytes in a file name become surrogates, which cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable_name(name: str) -> str:
    """A name in quotes, escaped to fit on one line; its first 200 characters."""
    return repr(name[:200].encode("utf-8", "backslashreplace").decode())


def check_limits(count: int, unpacked: int, packed: int) -> None:
    """Raise SceneError, without the archive's name, if an archive exceeds the limits for a delivery."""
    if count > MAX_MEMBERS:
        raise SceneError(f"the archive has more than {MAX_MEMBERS} members, too many for a delivery")
    if unpacked > MAX_UNPACKED or unpacked > max(1 << 30, MAX_RATIO * packed):
        raise SceneError(f"{packed} bytes unpack to {unpacked} or more, too many for a delivery")


@contextmanager
def open_tar(path: str) -> Iterator[tarfile.TarFile]:
    """Open a tar, gzipped or not, for reading from start to end."""
    with inputs.open_file(path, READ_SIZE) as file:
        gzipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = gzip.GzipFile(fileobj=file) if gzipped else file
        with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 20, tarinfo=TarHeader) as archive:
            yield archive


def tar_members(path: str) -> Iterator[Member]:
    """The members of a tar without its directories. Raises SceneError without the archive's name."""
    packed, unpacked = inputs.stat(path).size, 0
    with open_tar(path) as archive:
        for n, entry in enumerate(archive):
            unpacked += entry.size
            check_limits(n + 1, unpacked, packed)
            if entry.isdir():
                continue
            fault = None
            if entry.issym() or entry.islnk():
                fault = "is a link"
            elif not entry.isfile():
                fault = "is a device or pipe, not a file"
            elif entry.issparse():
                fault = "is a sparse file, which is not supported"
            yield Member(entry.name, entry.size, fault, partial(tar_content, archive, entry))


EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip


class TarHeader(tarfile.TarInfo):
    """A tar header whose extensions are limited to 1 MiB, because tarfile reads them into memory completely."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type not in EXTENSIONS or self.size <= 1 << 20:
            return super()._proc_member(archive)  # type: ignore[misc, no-any-return]
        raise tarfile.ReadError(f"a header of {self.size} bytes is too large")


def tar_content(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    """Read a member of a tar."""
    content = archive.extractfile(entry)
    return content.read() if content else b""


@contextmanager
def open_zip(path: str, buffer: int = 1 << 20) -> Iterator[zipfile.ZipFile]:
    """Open a zip, whose names need not declare UTF-8.

    Windows writes them in the encoding of its language: they are read as UTF-8 or else as GB18030, whichever all of
    them are; otherwise as code page 437, which is the standard's and takes any bytes.
    """
    with inputs.open_file(path, buffer) as file:
        with zipfile.ZipFile(file) as archive:
            undeclared = b"\n".join(
                entry.filename.encode("cp437") for entry in archive.infolist() if not entry.flag_bits & UTF8_NAME
            )
            encoding = next(name for name in ("utf-8", "gb18030", "cp437") if can_decode(undeclared, name))
            if encoding == "cp437" or undeclared.isascii():
                yield archive
                return
        with zipfile.ZipFile(file, metadata_encoding=encoding) as archive:
            yield archive


UTF8_NAME = 0x800
"""Flag of a member of a zip whose name is declared to be UTF-8."""


def can_decode(text: bytes, encoding: str) -> bool:
    """Whether bytes are text in an encoding."""
    try:
        text.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def zip_members(path: str) -> Iterator[Member]:
    """The members of a zip without its directories. Raises SceneError without the archive's name."""
    packed = inputs.stat(path).size
    check_limits(count_zip_members(path), 0, packed)  # before zipfile reads the complete central directory into memory
    with open_zip(path) as archive:
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
                fault = f"is compressed by method {entry.compress_type}, which is not supported"
            yield Member(entry.filename, entry.file_size, fault, partial(zip_content, archive, entry))


def zip_content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Read a member of a zip, at most MAX_METADATA bytes: the size in the central directory may be wrong."""
    with archive.open(entry) as content:
        return content.read(MAX_METADATA)


def count_zip_members(path: str) -> int:
    """Number of members that a zip declares, or an estimate from the size of its central directory if that is larger.

    0 if the file is not a zip. After APPNOTE.TXT, 4.3.14 to 4.3.16.
    """
    with inputs.open_file(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - (1 << 16) - 64))
        tail = file.read()
        end = tail.rfind(b"PK\x05\x06")
        if end < 0 or len(tail) < end + 22:
            return 0
        count, directory_size = struct.unpack_from("<HL", tail, end + 10)
        locator = tail.rfind(b"PK\x06\x07", 0, end)
        if locator >= 0:
            file.seek(struct.unpack_from("<Q", tail, locator + 8)[0])
            count, directory_size = struct.unpack_from("<QQ", file.read(48), 32)
        return max(int(count), int(directory_size) // 1024)  # an entry with its name and comment takes less than 1 KiB
