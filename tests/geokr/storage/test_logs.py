"""A log grows by lines, in a file on a disk and by small objects in a bucket."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from geokr.storage import files


@pytest.fixture(params=["disk", "bucket"])
def log(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "disk":
        yield str(tmp_path / "build.jsonl")
        return
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        boto3.client("s3").create_bucket(Bucket="logs")
        yield f"s3://logs/{tmp_path.name}/build.jsonl"
    finally:
        server.stop()


def test_lines_are_read_as_they_were_appended(log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one process after the other; no write is longer than an object may be."""
    monkeypatch.setattr(files, "LOG_OBJECT", 100)
    written: list[int] = []
    write = files.write
    monkeypatch.setattr(files, "write", lambda path, data: (written.append(len(data)), write(path, data))[1])
    assert [*files.read_lines(log)] == []
    lines = [f"line {k} of a scène \udcff" for k in range(30)]
    for k, line in enumerate(lines):
        if k == 17:
            files._OpenLogs.objects.clear()  # another process
        files.append(log, line)
    assert [*files.read_lines(log)] == [line.replace("\udcff", "\\udcff") for line in lines]
    assert max(written, default=0) <= 100
    if files.in_bucket(log):
        assert len(written) == 30
        assert 8 <= len(files.list_names(log)) <= 12


def test_the_end_of_a_file_is_read_alone(log: str) -> None:
    files.write(log, bytes(range(200)))
    assert files.read_end(log, 5) == bytes(range(195, 200))
    assert files.read_end(log, 1000) == bytes(range(200))
    with pytest.raises(FileNotFoundError):
        files.read_end(f"{log}.missing", 5)
