"""Whatever is killed, going on leads to the same bytes."""

import random
from pathlib import Path

from benchmarks.chaos import VICTIMS, Chaos, Cluster
from geokr.dataset.index import part_name


def test_a_build_whose_processes_are_killed_ends_in_the_same_bytes(tmp_path: Path) -> None:
    """One data set, in the making of which a worker, the scheduler and the client are killed in turn.

    `python -m benchmarks chaos --rounds 50` is the long form.
    """
    chaos = Chaos(tmp_path, random.Random(1), patience=None)
    chaos.prepare(scenes=2)
    with Cluster(tmp_path) as cluster:
        assert chaos.round("disturbed", VICTIMS, cluster) == []
    assert chaos.kills.total() >= 2  # on a busy machine one may come too late
    assert any("/image/" in path for path in chaos.calm)
    assert {
        f"index.parquet/{part_name(0, 1)}",
        "dataset.json",
        "scenes.parquet",
        "quarantine.jsonl",
    } <= chaos.calm.keys()
