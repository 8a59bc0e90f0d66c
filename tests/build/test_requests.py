"""How many requests a build in a bucket takes."""

import pytest

from benchmarks import bucket, scale


def test_a_scene_and_a_block_take_so_many_requests(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is asked for without need shows here."""
    assert scale.main(["--steps", "bucket"]) == 0
    lines = [dict(word.split("=") for word in line.split()) for line in capsys.readouterr().out.splitlines()]
    assert [(line["scenes"], line["blocks"]) for line in lines[:6:2]] == [("4", "4"), ("8", "8"), ("4", "27")]
    added = {line["added_by"]: line for line in lines if line["of"] == "dataset" and "added_by" in line}
    counts = {unit: [int(line[kind]) for kind in bucket.KINDS] for unit, line in added.items()}
    # A block: 8 objects, of which two are removed before; the metadata of 8 arrays, and 5 chunks for the index.
    assert counts["block"] == [8, 2, 0, 13, 0, 0]
    # A scene: 10 documents of metadata, and a line of the log for each of two stages. Each document is read when it is
    # copied into the root of its store, and those of groups and statuses wherever it is asked what is there.
    assert counts["scene"] == [12, 0, 0, 34, 0, 4]
