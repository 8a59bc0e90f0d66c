"""Input files at any address: on a disk, `s3://`, `http://` or `https://`.

Files on a server are read as ranges of bytes through obstore, which retries requests that a busy server rejects. The
region, the keys and the endpoint of S3 come from the environment variables listed in `files`.
"""

import hashlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Any
from urllib.parse import unquote

from pydantic import AfterValidator

from geokr.storage import files

REMOTE = ("http://", "https://", files.S3)
SAMPLES, SAMPLE_BYTES = 16, 1 << 16
"""A digest covers this many samples of a file, of this many bytes each: 1 MiB in total. Of a smaller file, it covers
all bytes."""


class InputError(ValueError):
    """An input from the user that cannot be used. The message is one sentence that names the file and the fault."""


@dataclass(frozen=True, slots=True)
class Stat:
    """What distinguishes a file from a different one at the same address."""

    size: int
    """Bytes."""
    version: str
    """Changes each time the file is written: a server's ETag, or the time of writing, which is always used on a disk.
    Empty if the server reports neither."""


def is_remote(path: str | Path) -> bool:
    """Whether a path is an address on a server rather than on a disk of this machine."""
    return str(path).lower().startswith(REMOTE)


def expand_home(path: str) -> str:
    """Replace `~` or `~user` at the start of a path, which a shell leaves as it is after `=` and in a file."""
    return path if is_remote(path) else os.path.expanduser(path)


def local_path(text: str) -> Path:
    """The path that an argument of a command names: see `expand_home`."""
    return Path(expand_home(text))


Address = Annotated[str, AfterValidator(expand_home)]
"""A setting with a path or an address on a server; `~` at its start is the home directory."""


def make_absolute(path: str) -> str:
    """Make a path independent of the working directory. Remote addresses are returned as they are."""
    return path if is_remote(path) else str(Path(path).absolute())


def list_folder(folder: Path) -> list[Path]:
    """List the files in a directory and all its subdirectories, in the order of their paths.

    A link to a directory is followed, but no directory is listed twice, so that links in a circle end. A link that
    leads nowhere is listed as a file, and a directory that cannot be read as itself, so that neither goes unnoticed.
    """
    seen, paths = {folder.resolve()}, list[Path]()

    def add_unreadable(error: OSError) -> None:
        paths.append(Path(error.filename))

    for parent, subfolders, names in os.walk(folder, onerror=add_unreadable, followlinks=True):
        paths += [path for name in names if (path := Path(parent, name)).is_file() or not path.exists()]
        subfolders.sort(key=lambda name: (Path(parent, name).is_symlink(), name))  # directories come before links
        new = {Path(parent, name).resolve(): name for name in reversed(subfolders)}
        subfolders[:] = [name for path, name in reversed(new.items()) if path not in seen]
        seen |= new.keys()
    return sorted(paths)


def stat(path: str) -> Stat:
    """Get size and version of a file, in one request.

    Raises FileNotFoundError if it does not exist, and OSError if it cannot be accessed.
    """
    if not is_remote(path):
        status = os.stat(path)
        return Stat(status.st_size, str(status.st_mtime_ns))
    with _translate_errors(path):
        import obstore

        return _stat(obstore.head(*_locate(path)))


def list_bucket(url: str, deep: bool = True) -> dict[str, Stat]:
    """List the files under a prefix of a bucket: address -> Stat, in the order that their paths would have on a disk.

    deep: include files in subfolders. Raises OSError.
    """
    url = url.rstrip("/")
    with _translate_errors(url):
        import obstore

        store, prefix = _locate(url)
        if deep:
            objects = [meta for chunk in obstore.list(store, prefix or None) for meta in chunk]
        else:
            objects = [*obstore.list_with_delimiter(store, prefix or None)["objects"]]
    root = url.removesuffix(prefix).rstrip("/")
    # An object with the name of the prefix itself stands for an empty folder.
    stats = {f"{root}/{meta['path']}": _stat(meta) for meta in objects if meta["path"] != prefix}
    return dict(sorted(stats.items(), key=lambda item: PurePosixPath(item[0]).parts))


def open_file(path: str, buffer: int = 1 << 20) -> IO[bytes]:
    """Open a file for random access. buffer: the fewest bytes that one request to a server asks for.

    Raises FileNotFoundError if it does not exist, and OSError, both on opening and while reading.
    """
    if not is_remote(path):
        return Path(path).open("rb")
    return io.BufferedReader(_Ranges(path, stat(path).size), buffer)


def read_ranges(path: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    """Read parts of a file; from a server, all at once. spans: first byte and one past the last. Raises OSError."""
    if not is_remote(path):
        parts = []
        with Path(path).open("rb") as file:
            for first, end in spans:
                file.seek(first)
                parts.append(file.read(end - first))
        return parts
    if all(first == end for first, end in spans):  # a server refuses such a request
        return [b"" for _ in spans]
    with _translate_errors(path):
        import obstore

        starts, ends = [first for first, _ in spans], [end for _, end in spans]
        buffers = obstore.get_ranges(*_locate(path), starts=starts, ends=ends, coalesce=4 * SAMPLE_BYTES)
        return [bytes(buffer) for buffer in buffers]


def sample_digest(path: str) -> str:
    """Compute the SHA-256 of a file's size and of samples of its content: both ends, and evenly between them.

    It takes milliseconds, and is the same wherever the file is stored. A change between the samples that keeps the
    file's size is not detected. Raises FileNotFoundError if the file does not exist, and OSError.
    """
    size = stat(path).size
    starts = [k * (size - SAMPLE_BYTES) // (SAMPLES - 1) for k in range(SAMPLES)]
    spans = [(0, size)] if size <= SAMPLES * SAMPLE_BYTES else [(start, start + SAMPLE_BYTES) for start in starts]
    digest = hashlib.sha256(size.to_bytes(8, "big"))
    for part in read_ranges(path, spans):
        digest.update(part)
    return digest.hexdigest()


class _Ranges(io.RawIOBase):
    """A file on a server. Each read is one request."""

    def __init__(self, path: str, size: int) -> None:
        self.path, self.size, self.position = path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise ValueError(f"{self.path}: cannot seek to a position before its first byte")
        self.position = start + offset
        return self.position

    def readinto(self, target: Any) -> int:
        end = min(self.position + len(target), self.size)
        if end <= self.position:
            return 0
        (part,) = read_ranges(self.path, [(self.position, end)])
        target[: len(part)] = part
        self.position += len(part)
        return len(part)


def _stat(meta: Any) -> Stat:
    modified = meta["last_modified"]  # the epoch if the server does not report it
    return Stat(meta["size"], meta["e_tag"] or (modified.isoformat() if modified.timestamp() > 0 else ""))


def _locate(url: str) -> tuple[Any, str]:
    """Get obstore's store for a bucket or server, and the file's path in it."""
    scheme, _, address = url.partition("://")
    host, _, key = address.partition("/")
    if scheme.lower() == "s3":
        return files.s3_store(f"{files.S3}{host}", files.s3_endpoint()), key
    if "?" in key:
        raise OSError(f"{url}: an address with a query cannot be read by ranges of bytes")
    return _http_store(f"{scheme.lower()}://{host}"), unquote(key)


@lru_cache(maxsize=16)  # each store has its own pool of connections
def _http_store(server: str) -> Any:
    from obstore.store import HTTPStore

    return HTTPStore.from_url(server, client_options={"allow_http": True})


@contextmanager
def _translate_errors(path: str) -> Iterator[None]:
    """Raise an OSError with a one-sentence message that names the file, instead of what obstore raises."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file or directory") from error
    except ImportError as error:
        raise OSError(f"{path}: reading from a server needs obstore: pip install obstore") from error
    except OSError:
        raise
    except Exception as error:  # the errors of obstore have no narrower base class
        message = str(error)
        status, code = (re.search(pattern, message) for pattern in (r"status code: ([\w ]+)", r"<Code>(\w+)</Code>"))
        if status is not None:
            message = f"the server answers {status[1]}" + (f", {code[1]}" if code else "")
        raise OSError(f"{path}: {message.splitlines()[0]}") from error
