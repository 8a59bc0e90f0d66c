"""Files that are read from any address: a disk's, `s3://`, `http://` or `https://`.

From a server come ranges of bytes, through obstore, which tries again what a busy one turns away. It finds region,
keys and endpoint of S3 where `files` says.
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
from typing import IO, Any
from urllib.parse import unquote

from geokr.storage import files

REMOTE = ("http://", "https://", files.S3)
SAMPLES, SAMPLE = 16, 1 << 16
"""A digest is of so many samples of a file, of so many bytes: at most a MiB, and of a smaller file the whole."""


class InputError(ValueError):
    """Something that a user gave and that cannot be used: one sentence that names the file and the fault."""


@dataclass(frozen=True, slots=True)
class Stat:
    """What tells a file from another one at its address."""

    size: int
    """Bytes."""
    version: str
    """Another one for each time it is written: a server's ETag or, as on a disk, a time; empty where none is told."""


def is_remote(path: str | Path) -> bool:
    """Whether a path is an address of a server, and not of this machine's disks."""
    return str(path).lower().startswith(REMOTE)


def make_absolute(path: str) -> str:
    """A path that means the same in another working directory."""
    return path if is_remote(path) else str(Path(path).absolute())


def stat(path: str) -> Stat:
    """Size and version of a file, in one request. Raises FileNotFoundError where there is none, and OSError."""
    if not is_remote(path):
        found = os.stat(path)
        return Stat(found.st_size, str(found.st_mtime_ns))
    with _translate_errors(path):
        import obstore

        return _stat(obstore.head(*_locate(path)))


def list_bucket(url: str, deep: bool = True) -> dict[str, Stat]:
    """The files under a place in a bucket by their addresses, in the order that their paths would have on a disk.

    deep: those in folders of it too. Raises OSError.
    """
    url = url.rstrip("/")
    with _translate_errors(url):
        import obstore

        store, prefix = _locate(url)
        if deep:
            found = [meta for part in obstore.list(store, prefix or None) for meta in part]
        else:
            found = [*obstore.list_with_delimiter(store, prefix or None)["objects"]]
    root = url.removesuffix(prefix).rstrip("/")
    # An object of the place's own name stands for the empty folder.
    there = {f"{root}/{meta['path']}": _stat(meta) for meta in found if meta["path"] != prefix}
    return dict(sorted(there.items(), key=lambda item: PurePosixPath(item[0]).parts))


def open_file(path: str, buffer: int = 1 << 20) -> IO[bytes]:
    """A file to be read from anywhere in it. buffer: bytes that a request to a server asks for at least.

    Raises FileNotFoundError where there is none, and OSError, then or while it is read.
    """
    if not is_remote(path):
        return Path(path).open("rb")
    return io.BufferedReader(_Ranges(path, stat(path).size), buffer)


def read_ranges(path: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    """Parts of a file, from a first byte to one past the last; of a server at once. Raises OSError."""
    if not is_remote(path):
        found = []
        with Path(path).open("rb") as file:
            for first, end in spans:
                file.seek(first)
                found.append(file.read(end - first))
        return found
    if all(first == end for first, end in spans):  # which a server refuses
        return [b"" for _ in spans]
    with _translate_errors(path):
        import obstore

        starts, ends = [first for first, _ in spans], [end for _, end in spans]
        answers = obstore.get_ranges(*_locate(path), starts=starts, ends=ends, coalesce=4 * SAMPLE)
        return [bytes(answer) for answer in answers]


def sample_digest(path: str) -> str:
    """SHA-256 over a file's size and samples of it: both ends, and evenly between them.

    It costs milliseconds, and is the same wherever the file lies; what changes between the samples of a file of the
    same size is not seen. Raises FileNotFoundError, and OSError.
    """
    size = stat(path).size
    starts = [k * (size - SAMPLE) // (SAMPLES - 1) for k in range(SAMPLES)]
    spans = [(0, size)] if size <= SAMPLES * SAMPLE else [(start, start + SAMPLE) for start in starts]
    found = hashlib.sha256(size.to_bytes(8, "big"))
    for part in read_ranges(path, spans):
        found.update(part)
    return found.hexdigest()


class _Ranges(io.RawIOBase):
    """A server's file; each reading is a request."""

    def __init__(self, path: str, size: int) -> None:
        self.path, self.size, self.position = path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise ValueError(f"{self.path}: there is nothing before its first byte")
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
    written = meta["last_modified"]  # the epoch where a server does not say
    return Stat(meta["size"], meta["e_tag"] or (written.isoformat() if written.timestamp() > 0 else ""))


def _locate(url: str) -> tuple[Any, str]:
    """obstore's name for a bucket or a server, and that of a file there."""
    scheme, _, rest = url.partition("://")
    host, _, key = rest.partition("/")
    if scheme.lower() == "s3":
        return files.s3_store(f"{files.S3}{host}", files.s3_endpoint()), key
    if "?" in key:
        raise OSError(f"{url}: an address with a query is not read by ranges")
    return _http_store(f"{scheme.lower()}://{host}"), unquote(key)


@lru_cache(maxsize=16)  # one pool of connections each
def _http_store(server: str) -> Any:
    from obstore.store import HTTPStore

    return HTTPStore.from_url(server, client_options={"allow_http": True})


@contextmanager
def _translate_errors(path: str) -> Iterator[None]:
    """What obstore raises becomes an OSError of one sentence, which names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file or directory") from error
    except ImportError as error:
        raise OSError(f"{path}: to be read from there it takes obstore: pip install obstore") from error
    except OSError:
        raise
    except Exception as error:  # its own errors have no base but this
        said = str(error)
        status, code = (re.search(pattern, said) for pattern in (r"status code: ([\w ]+)", r"<Code>(\w+)</Code>"))
        if status is not None:
            said = f"the server answers {status[1]}" + (f", {code[1]}" if code else "")
        raise OSError(f"{path}: {said.splitlines()[0]}") from error
