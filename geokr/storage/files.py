"""Files of a data set, on a disk or in an S3 bucket. They are read in full, and written in full or not at all.

For `s3://`, the region, the keys and the endpoint come from the environment variables that AWS's own tools read:
AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_ENDPOINT_URL. As for GDAL,
AWS_NO_SIGN_REQUEST=YES is for public buckets.
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt
import tensorstore as ts

S3 = "s3://"
AT_ONCE = 16
"""Number of files that are flushed or sent at once. A disk takes about as long to flush ten files as one."""
LOG_OBJECT = 1 << 15
"""Size of an object of a log in a bucket, bytes."""


def in_bucket(path: str | Path) -> bool:
    """Whether a path is in a bucket rather than on a disk."""
    return str(path).startswith(S3)


def join(dataset: str | Path, *parts: str) -> str:
    """Build a path or URL inside the data set. `dataset` may be a local directory or `s3://...`."""
    return "/".join([str(dataset).rstrip("/"), *parts])


def exists(path: str | Path) -> bool:
    """Whether the path is an existing file or object."""
    if not in_bucket(path):
        return Path(path).is_file()
    bucket, key = _split(path)
    return bool(_result(bucket.read(key, byte_range=slice(0, 0)), path).state == "value")


def read(path: str | Path) -> bytes:
    """Read a file in full. Raises FileNotFoundError if it does not exist, and OSError if it cannot be read."""
    if not in_bucket(path):
        return Path(path).read_bytes()
    bucket, key = _split(path)
    result = _result(bucket.read(key), path)
    if result.state != "value":
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return bytes(result.value)


def read_all(directory: str | Path, names: Sequence[str]) -> list[bytes | None]:
    """Read several files of a directory in full; None for one that does not exist. Raises OSError like `read`."""
    if in_bucket(directory):
        bucket = _open_kvstore(str(directory), s3_endpoint())
        asked = [(name, bucket.read(name)) for name in names]
        results = [_result(future, join(directory, name)) for name, future in asked]
        return [bytes(result.value) if result.state == "value" else None for result in results]
    found: list[bytes | None] = []
    for name in names:
        try:
            found.append(Path(directory, name).read_bytes())
        except FileNotFoundError:
            found.append(None)
    return found


def read_end(path: str | Path, size: int) -> bytes:
    """Read the last bytes of a file, up to `size`. Raises FileNotFoundError and OSError like `read`."""
    if not in_bucket(path):
        with Path(path).open("rb") as file:
            file.seek(-min(size, Path(path).stat().st_size), os.SEEK_END)
            return file.read()
    bucket, key = _split(path)
    try:
        result = _result(bucket.read(key, byte_range=slice(-size, None)), path)
    except OSError as error:
        if "OUT_OF_RANGE" not in str(error):
            raise
        return read(path)  # it is shorter
    if result.state != "value":
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return bytes(result.value)


def modified_time(path: str | Path) -> float:
    """When a file was last written, s since the epoch, by the clock of its disk or server."""
    if not in_bucket(path):
        return Path(path).stat().st_mtime
    import obstore  # from the extra `s3`, which only building needs

    root, _, key = str(path).rpartition("/")
    return obstore.head(s3_store(root, s3_endpoint()), key)["last_modified"].timestamp()


def write(path: str | Path, data: bytes | memoryview) -> None:
    """Write a file in full: a reader sees either the old or the new content, even after a kill or a power cut.

    On a disk, once this function returns, the file and the directories created for it survive a power cut.
    Raises OSError if there is no space, no permission, or no response from the server. Nothing new is left then.
    """
    if in_bucket(path):
        bucket, key = _split(path)
        _result(bucket.write(key, bytes(data)), path)
        return
    with replace_file(path) as file:
        file.write(data)


@contextmanager
def replace_file(path: str | Path) -> Iterator[BinaryIO]:
    """Yield a temporary file on a disk that replaces `path` once it is complete, with the guarantees of `write`."""
    file = Path(path)
    make_directory(file.parent)
    temporary = Path(_name_temporary(str(file)))
    try:
        with temporary.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(file.parent)


def write_all(directory: str | Path, contents: Mapping[str, bytes | npt.NDArray[np.uint8] | None]) -> None:
    """Write several files in a directory, each in full, and remove those whose content is None.

    contents: path in the directory -> content. The files are written in no order, with the guarantees of `write`, but
    faster: they are flushed, or sent to a bucket, at once. Directories in between are created. Raises
    FileNotFoundError if the directory itself does not exist, for example because its file system is not mounted any
    more, and OSError like `write`; then any of the files may be old or new.
    """
    if in_bucket(directory):
        import obstore  # from the extra `s3`, which only building needs

        bucket = s3_store(str(directory), s3_endpoint())

        def send(item: tuple[str, Any]) -> None:
            name, data = item
            if data is None:
                obstore.delete(bucket, name)
            else:
                obstore.put(bucket, name, data)

        _at_once(send, contents.items())
        return
    if not os.path.isdir(directory):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(directory))
    named = {join(directory, name): data for name, data in contents.items()}
    changed = {os.path.dirname(file) for file, data in named.items() if data is not None}
    for parent in [*changed]:
        changed |= _make_directories(parent)
    opened: dict[str, tuple[str, int]] = {}
    try:
        for file, data in named.items():
            if data is None:
                with suppress(FileNotFoundError):
                    os.unlink(file)
                continue
            temporary = _name_temporary(file)
            opened[file] = temporary, os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            _write_fully(opened[file][1], data)
        _at_once(os.fsync, [descriptor for _, descriptor in opened.values()])
        for file, (temporary, _) in opened.items():
            os.replace(temporary, file)
    except BaseException:
        for temporary, _ in opened.values():
            with suppress(FileNotFoundError):
                os.unlink(temporary)
        raise
    finally:
        for _, descriptor in opened.values():
            os.close(descriptor)
    _at_once(_sync, changed)


def _write_fully(descriptor: int, data: Any) -> None:
    """Write bytes or an array of them to an opened file, which may take a part at a time."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _name_temporary(file: str) -> str:
    """The name under which a file is written. Removes what a run that was killed left of this file.

    Each writer has a name of its own: if two write at once, the one whose file was removed here fails.
    """
    directory, name = os.path.split(file)
    with os.scandir(directory) as entries:
        found = [entry.name for entry in entries if entry.name.endswith(".partial")]
    for leftover in found:
        if re.fullmatch(rf"{re.escape(name)}\.[^.]*\.partial", leftover):
            Path(directory, leftover).unlink(missing_ok=True)
    return f"{file}.{uuid.uuid4().hex}.partial"


def _at_once(act: Callable[[Any], Any], items: Collection[Any]) -> list[Any]:
    """Act on each item, on several threads. Returns the results in the items' order, or raises the first error."""
    return [*_threads(os.getpid()).map(act, items)] if len(items) > 1 else [*map(act, items)]


@lru_cache(maxsize=1)
def _threads(_process: int) -> ThreadPoolExecutor:
    """The threads of `_at_once`. The process only keeps a forked one from using its parent's, which it lacks."""
    return ThreadPoolExecutor(AT_ONCE, "files")


def remove(path: str | Path) -> None:
    """Remove a file if it exists."""
    if not in_bucket(path):
        Path(path).unlink(missing_ok=True)
        return
    bucket, key = _split(path)
    _result(bucket.write(key, None), path)


def list_names(directory: str | Path) -> list[str]:
    """Names of the files in a directory, or of the objects with this prefix, sorted. Empty if there is none."""
    if not in_bucket(directory):
        path = Path(directory)
        return sorted(file.name for file in path.iterdir() if file.is_file()) if path.is_dir() else []
    bucket = _open_kvstore(str(directory), s3_endpoint())
    return sorted(key.decode() for key in _result(bucket.list(), directory))


def list_directories(directories: Sequence[str | Path]) -> list[list[str]]:
    """Names of the directories in each of some directories, sorted. Raises OSError if one cannot be read."""

    def list_one(directory: str | Path) -> list[str]:
        if not in_bucket(directory):
            with os.scandir(directory) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir())
        import obstore  # from the extra `s3`, which only building needs

        parent, _, name = str(directory).rpartition("/")
        found = obstore.list_with_delimiter(s3_store(parent, s3_endpoint()), f"{name}/")["common_prefixes"]
        return sorted(path.rpartition("/")[2] for path in found)

    return _at_once(list_one, directories) if any(map(in_bucket, directories)) else [*map(list_one, directories)]


def remove_directory(directory: str | Path) -> None:
    """Remove a directory or file with all its contents, or all objects with this prefix, if there are any."""
    if in_bucket(directory):
        bucket = _open_kvstore(str(directory), s3_endpoint())
        _result(bucket.delete_range(ts.KvStore.KeyRange()), directory)
    elif Path(directory).is_dir():
        shutil.rmtree(directory)
    else:
        remove(directory)


def replace_directory(new: str | Path, directory: str | Path) -> None:
    """Let the files of `new` take the place of those in `directory`, whatever it is.

    On a disk, a reader sees the old directory, for a moment none, then the new one. In a bucket, where directories
    cannot be renamed, each object is copied within the bucket, so a reader may see objects of both for a while. A call
    that was interrupted is completed by another.
    """
    if in_bucket(directory):
        import obstore  # from the extra `s3`, which only building needs

        names = list_names(new)
        store = s3_store("/".join(str(directory).split("/")[:3]), s3_endpoint())
        prefixes = ["/".join(str(path).split("/")[3:]) for path in (new, directory)]

        def copy(name: str) -> None:
            obstore.copy(store, *(f"{prefix}/{name}" for prefix in prefixes))

        old_names = {*list_names(directory)} - {*names}
        _at_once(copy, names)
        _at_once(remove, [join(directory, name) for name in old_names])
        remove(directory)  # an object of this name, of an earlier version
    else:
        old = Path(f"{directory}.old")
        remove_directory(old)
        if Path(directory).exists():
            Path(directory).rename(old)
        Path(new).rename(directory)
        _sync(Path(directory).parent)
        remove_directory(old)
    remove_directory(new)


def write_text(path: str | Path, text: str) -> None:
    """Write a small text file, in full or not at all. Text that is not UTF-8, e.g. in a file's name, is escaped."""
    write(path, text.encode(errors="backslashreplace"))


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    return hashlib.sha256(read(path)).hexdigest()


class _OpenLogs:
    """The object that this process now appends to, for each log in a bucket: its URL and its content."""

    lock = threading.Lock()
    objects: ClassVar[dict[str, tuple[str, bytes]]] = {}


def append(path: str | Path, line: str) -> None:
    """Append a line to a log. In a bucket, where nothing can be appended to, the log is a directory of objects.

    Each process writes objects of its own, in the order of their names, with up to LOG_OBJECT bytes each: a line costs
    no more than that, however long the log is. `read_lines` reads both forms.
    """
    if in_bucket(path):
        data = f"{line}\n".encode(errors="backslashreplace")
        with _OpenLogs.lock:
            place, content = _OpenLogs.objects.get(str(path), ("", b""))
            if not place or len(content) + len(data) > LOG_OBJECT:
                place, content = join(path, f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"), b""
            write(place, content + data)
            _OpenLogs.objects[str(path)] = place, content + data
        return
    # The line may contain a file name that is not UTF-8.
    with Path(path).open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"{line}\n")


def read_lines(path: str | Path) -> Iterator[str]:
    """The lines of a log that `append` wrote; none if there is no log."""
    if in_bucket(path):
        contents = (read(join(path, name)) for name in list_names(path))
    else:
        contents = (read(path) for _ in range(exists(path)))
    for content in contents:
        yield from content.decode(errors="replace").splitlines()


@contextmanager
def lock_directory(directory: str | Path, action: str) -> Iterator[None]:
    """Keep other processes of this machine from locking the same directory while the context is active.

    The directory is created if it does not exist. The lock also ends if the process is killed. Nothing is locked in a
    bucket, or on a disk that does not support locks on directories. action: what the process does, for the message
    ("builds"). Raises OSError with a one-sentence message if another process holds the lock, or if the path cannot be
    a directory.
    """
    if in_bucket(directory):
        yield
        return
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"{directory}: cannot create this directory: {error.strerror}") from error
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise BlockingIOError(f"{directory}: another process {action} it now; wait until it has ended") from error
    except OSError:  # the file system does not support locks, e.g. a network disk
        pass
    try:
        yield
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """Create a directory and its missing parents, and flush each new entry to the disk."""
    for parent in _make_directories(str(directory)):
        _sync(parent)


def _make_directories(directory: str) -> set[str]:
    """Create a directory and its missing parents. Returns those that have new entries, which are to be flushed."""
    if not directory or os.path.isdir(directory):
        return set()
    parent = os.path.dirname(directory)
    changed = _make_directories(parent) | {parent or "."}
    try:
        os.mkdir(directory)
    except FileExistsError:
        if not os.path.isdir(directory):  # otherwise another process has made it
            raise
    return changed


def _sync(directory: str | Path) -> None:
    """Flush the entries of a directory to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def s3_endpoint() -> str | None:
    """The URL of the S3 server, or None for AWS's own."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


@lru_cache(maxsize=16)  # each store has its own pool of connections
def s3_store(root: str, server: str | None) -> Any:
    """obstore's store for a bucket or a prefix in it. server: `s3_endpoint()`."""
    from obstore.store import S3Store

    # A server other than AWS may run on the same network without encryption.
    options: Any = {} if server is None else {"endpoint": server, "client_options": {"allow_http": True}}
    if is_unsigned():
        options["skip_signature"] = True
    return S3Store.from_url(root, **options)


def is_unsigned() -> bool:
    """Whether requests are sent without keys, as for public buckets. GDAL reads the same variable."""
    return os.environ.get("AWS_NO_SIGN_REQUEST", "").upper() in ("YES", "TRUE", "ON", "1")


def kvstore_spec(root: str | Path) -> dict[str, Any]:
    """tensorstore's key-value store specification for a directory, or for a prefix in a bucket."""
    if not in_bucket(root):
        return {"driver": "file", "path": f"{Path(root).resolve()}/"}
    bucket, _, path = str(root).removeprefix(S3).partition("/")
    spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": f"{path.rstrip('/')}/" if path else ""}
    if (server := s3_endpoint()) is not None:
        spec["endpoint"] = server
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        spec["aws_region"] = region
    if is_unsigned():
        spec["aws_credentials"] = {"type": "anonymous"}
    elif "AWS_ACCESS_KEY_ID" in os.environ:  # otherwise tensorstore searches itself: a profile, the machine's role
        spec["aws_credentials"] = {"type": "environment"}
    # By default, a request that a busy server rejected is retried only after a second.
    spec["context"] = {"s3_request_retries": {"initial_delay": "100ms"}}
    return spec


def _split(path: str | Path) -> tuple[Any, str]:
    """Split an object's URL into the opened key-value store of its parent, and its key there."""
    root, _, key = str(path).rpartition("/")
    return _open_kvstore(root, s3_endpoint()), key


@lru_cache(maxsize=16)
def _open_kvstore(root: str, _endpoint: str | None) -> Any:
    """Open a key-value store. The endpoint only makes the cache distinguish servers."""
    return ts.KvStore.open(kvstore_spec(root)).result()


def _result(future: Any, path: str | Path) -> Any:
    """Wait for a request's result. Raises OSError naming the object if the request failed after all retries."""
    try:
        return future.result()
    except Exception as error:  # tensorstore raises ValueError and others
        raise OSError(f"{path}: {str(error).split(' [')[0]}") from error
