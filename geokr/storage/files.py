"""Files of a data set, on a disk or in an S3 bucket. They are read in full, and written in full or not at all.

For `s3://`, the region, the keys and the endpoint come from the environment variables that AWS's own tools read:
AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_ENDPOINT_URL. As for GDAL,
AWS_NO_SIGN_REQUEST=YES is for public buckets.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import tensorstore as ts

S3 = "s3://"
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
    for leftover in file.parent.glob(f"{file.name}.*.partial"):  # of a run that was killed while it wrote this file
        leftover.unlink(missing_ok=True)
    # Each writer has a unique temporary name: if two write at once, the one whose file was removed above fails.
    temporary = file.with_name(f"{file.name}.{uuid.uuid4().hex}.partial")
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
        for name in names:
            obstore.copy(store, *(f"{prefix}/{name}" for prefix in prefixes))
        for name in {*list_names(directory)} - {*names}:
            remove(join(directory, name))
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
    if not directory.is_dir():
        make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        _sync(directory.parent)


def _sync(directory: Path) -> None:
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
