"""Files of a data set, on a disk or in an S3 bucket: read whole, and written whole or not at all.

On `s3://` the region, the keys and the endpoint come from the variables that AWS's own tools read: AWS_REGION,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_ENDPOINT_URL. AWS_NO_SIGN_REQUEST=YES, as for GDAL, is
for buckets that are open to all.
"""

import errno
import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import tensorstore as ts

S3 = "s3://"


def in_bucket(path: str | Path) -> bool:
    """Whether a path lies in a bucket, and not on a disk."""
    return str(path).startswith(S3)


def join(dataset: str | Path, *parts: str) -> str:
    """A path or URL inside the data set. `dataset` may be a local directory or `s3://...`."""
    return "/".join([str(dataset).rstrip("/"), *parts])


def exists(path: str | Path) -> bool:
    """Whether there is such a file, or such an object."""
    if not in_bucket(path):
        return Path(path).is_file()
    bucket, key = _split(path)
    return bool(_result(bucket.read(key, byte_range=slice(0, 0)), path).state == "value")


def read(path: str | Path) -> bytes:
    """A whole file. Raises FileNotFoundError where there is none, and OSError where it cannot be read."""
    if not in_bucket(path):
        return Path(path).read_bytes()
    bucket, key = _split(path)
    answer = _result(bucket.read(key), path)
    if answer.state != "value":
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return bytes(answer.value)


def modified_time(path: str | Path) -> float:
    """When a file was written, s since the epoch, by the clock of its disk or of its server."""
    if not in_bucket(path):
        return Path(path).stat().st_mtime
    import obstore  # the extra `s3`, which only building takes

    root, _, key = str(path).rpartition("/")
    return obstore.head(s3_store(root, s3_endpoint()), key)["last_modified"].timestamp()


def write(path: str | Path, data: bytes | memoryview) -> None:
    """Write a whole file: a reader sees the old or the new one, also after a kill or a power cut.

    On a disk, once this returns the file and the directories made for it outlive a power cut.
    Raises OSError where there is no space, no right or no answer; nothing new is left then.
    """
    if in_bucket(path):
        bucket, key = _split(path)
        _result(bucket.write(key, bytes(data)), path)
        return
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A file on a disk to write into, that takes the place of `path` once it is whole, as `write` does."""
    file = Path(path)
    make_directory(file.parent)
    for remains in file.parent.glob(f"{file.name}.*.partial"):  # of a run that was killed at this file
        remains.unlink(missing_ok=True)
    # A name of its own for each writer: of two at once, the one whose file was swept away fails.
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
    """Remove a file, if there is one."""
    if not in_bucket(path):
        Path(path).unlink(missing_ok=True)
        return
    bucket, key = _split(path)
    _result(bucket.write(key, None), path)


def write_text(path: str | Path, text: str) -> None:
    """Write a small text file, whole or not at all. What is no UTF-8, as a file's name may be, is escaped."""
    write(path, text.encode(errors="backslashreplace"))


def sha256(path: str | Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(read(path)).hexdigest()


def append(path: str | Path, line: str) -> None:
    """Add a line to a small text file. An object in a bucket is written anew."""
    if in_bucket(path):
        before = read(path) if exists(path) else b""
        write(path, before + f"{line}\n".encode(errors="backslashreplace"))
        return
    # A file's name may be no UTF-8.
    with Path(path).open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"{line}\n")


@contextmanager
def lock_directory(directory: str | Path, what: str) -> Iterator[None]:
    """Meanwhile no other process of this machine does the same with a directory; made where it is not there.

    A kill ends it too. Nothing is held in a bucket, nor on a disk that knows no locks of directories.
    Raises OSError with a sentence where another one does it (`what`: "builds"), or it cannot be a directory.
    """
    if in_bucket(directory):
        yield
        return
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"{directory}: cannot be made a directory: {error.strerror}") from error
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise BlockingIOError(f"{directory}: another process {what} it now; wait until it has ended") from error
    except OSError:  # a network disk, say
        pass
    try:
        yield
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """Make a directory and those above it where they are not there, and have the disk know of them."""
    if not directory.is_dir():
        make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        _sync(directory.parent)


def _sync(directory: Path) -> None:
    """Have the disk know of what a directory holds."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def s3_endpoint() -> str | None:
    """The S3 server, where it is not AWS's own."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


@lru_cache(maxsize=16)  # one pool of connections each
def s3_store(root: str, server: str | None) -> Any:
    """obstore's name for a place in a bucket. server: `endpoint()`."""
    from obstore.store import S3Store

    # A server that is not AWS's own may be one without encryption on the same network.
    given: Any = {} if server is None else {"endpoint": server, "client_options": {"allow_http": True}}
    if is_unsigned():
        given["skip_signature"] = True
    return S3Store.from_url(root, **given)


def is_unsigned() -> bool:
    """Whether buckets are asked without keys, as those that are open to all want it: what GDAL reads, too."""
    return os.environ.get("AWS_NO_SIGN_REQUEST", "").upper() in ("YES", "TRUE", "ON", "1")


def kvstore_spec(root: str | Path) -> dict[str, Any]:
    """tensorstore's name for a directory or for a place in a bucket."""
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
    elif "AWS_ACCESS_KEY_ID" in os.environ:  # otherwise, what tensorstore finds: a profile, the machine's role
        spec["aws_credentials"] = {"type": "environment"}
    # Without it a request that a busy server turned away waits a second before it is tried again.
    spec["context"] = {"s3_request_retries": {"initial_delay": "100ms"}}
    return spec


def _split(path: str | Path) -> tuple[Any, str]:
    root, _, key = str(path).rpartition("/")
    return _open_kvstore(root, s3_endpoint()), key


@lru_cache(maxsize=16)
def _open_kvstore(root: str, _endpoint: str | None) -> Any:
    return ts.KvStore.open(kvstore_spec(root)).result()


def _result(future: Any, path: str | Path) -> Any:
    """A request's result. Raises OSError naming the object where it failed for good."""
    try:
        return future.result()
    except Exception as error:  # tensorstore raises ValueError and others
        raise OSError(f"{path}: {str(error).split(' [')[0]}") from error
