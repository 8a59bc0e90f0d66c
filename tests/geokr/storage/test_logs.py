"""A log grows by lines, in a file on a disk and by small objects in a bucket."""

from pathlib import Path

import pytest

from geokr.storage import files


@pytest.fixture(params=["disk", "bucket"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    place = request.getfixturevalue("bucket") if request.param == "bucket" else tmp_path
    return f"{place}/build.jsonl"


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
