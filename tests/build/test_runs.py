"""However a build is run, stopped or resumed, the same bytes come of it."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from dask.distributed import LocalCluster

from geokr.dataset import contents, layout
from geokr.dataset.index import read_index, read_summary
from geokr.landcover.discovery import find_landcover
from pipeline.build_levir_kr import main
from pipeline.config import BuildConfig
from pipeline.plan import tile_grid
from pipeline.report.readme import write_readme
from pipeline.stages import catalog, index, labels, tiles
from pipeline.tasks import rows as rows_module
from tests.build.conftest import Built


def digests_of(dataset: Path) -> dict[str, str]:
    """Digest of every file but the log, dataset.json (counts what was refused) and inputs.jsonl (has paths)."""
    return {
        str(path.relative_to(dataset)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(dataset.rglob("*"))
        if path.is_file() and path.name not in ("dataset.json", "build.jsonl", "inputs.jsonl")
    }


@pytest.mark.parametrize("workers", ["1", "loop"])
def test_one_worker_two_workers_and_a_plain_loop_write_the_same_bytes(
    built: Built, tmp_path: Path, workers: str
) -> None:
    out = tmp_path / "dataset"
    if workers == "loop":
        config = built.config.model_copy(update={"out": str(out)})
        out.mkdir()
        entries = catalog.run(config, None)
        tiles.run(config, entries, None)
        covers = find_landcover(config.labels.landcover)
        labels.run(config, covers, entries, None)
        write_readme(str(out), index.run(config, covers, entries, None), entries)
    else:
        assert main([*built.arguments, "--out", str(out), "--workers", workers]) == 0
    for scene in contents.list_scenes(str(built.dataset / layout.TILES)):
        for name, array in ((layout.TILES, "image"), (layout.TILES, "status")):
            first, second = (
                zarr.open_array(str(d / name), path=f"{scene}/{array}", mode="r")[:] for d in (built.dataset, out)
            )
            assert np.array_equal(first, second)
            assert first.any()
    assert digests_of(out) == digests_of(built.dataset)


def test_another_scheduler_builds_the_same(built: Built, tmp_path: Path) -> None:
    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=":0", host="127.0.0.1") as elsewhere:
        arguments = [*built.arguments, "--out", str(tmp_path / "dataset"), "--scheduler", elsewhere.scheduler_address]
        assert main(arguments) == 0
    assert digests_of(tmp_path / "dataset") == digests_of(built.dataset)


def test_a_second_run_writes_nothing(built: Built) -> None:
    before = {
        path: path.stat().st_mtime_ns for path in (built.dataset / layout.TILES).rglob("c/**/*") if path.is_file()
    }
    digests = digests_of(built.dataset)
    assert main([*built.arguments, "--out", str(built.dataset), "--workers", "1"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert digests_of(built.dataset) == digests


def test_blocks_that_are_not_done_are_built_anew(built: Built, tmp_path: Path) -> None:
    """A killed run leaves shards without statuses, halves of shards, and scenes without anything."""
    out = tmp_path / "dataset"
    shutil.copytree(built.dataset, out)
    first, second, third = contents.list_scenes(str(out / layout.TILES))
    (out / layout.TILES / first / "status" / "c" / "0" / "0").unlink()
    shard = out / layout.TILES / second / "image" / "c" / "1" / "1" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:1000])
    (out / layout.TILES / second / "status" / "c" / "1" / "1").unlink()
    shutil.rmtree(out / layout.TILES / third)
    for array in ("known", "status"):
        shutil.rmtree(out / layout.label_store("globeland30_2020") / third / array)
    shutil.rmtree(out / "index.parquet")
    assert main([*built.arguments, "--out", str(out), "--workers", "1"]) == 0
    assert digests_of(out) == digests_of(built.dataset)


def test_an_index_that_was_killed_between_two_parts_is_completed(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts that are there are kept if the settings are the same, and written again otherwise."""
    monkeypatch.setattr(index, "PART_SCENES", 1)
    covers = find_landcover(built.config.labels.landcover)
    in_one_go, killed = tmp_path / "in_one_go", tmp_path / "killed"
    for out in (in_one_go, killed):
        shutil.copytree(built.dataset, out)
    configs = {out: built.config.model_copy(update={"out": str(out)}) for out in (in_one_go, killed)}
    summary = index.run(configs[in_one_go], covers, built.entries, None)
    wanted = digests_of(in_one_go)
    assert len([name for name in wanted if name.startswith("index.parquet/")]) == 3
    assert summary["counts"] == read_summary(built.dataset)["counts"]
    assert summary["class_shares"] == read_summary(built.dataset)["class_shares"]
    rows = [read_index(out).to_pydict() for out in (in_one_go, built.dataset)]
    assert str(rows[0]) == str(rows[1])  # NaN differs from itself

    def fail_at_last(job: rows_module.PartJob) -> rows_module.PartReport:
        if job.number == 2:
            raise KeyboardInterrupt
        return rows_module.write_part(job)

    def kill(config: BuildConfig) -> list[Path]:
        before = digests_of(killed)
        with monkeypatch.context() as patch:
            patch.setattr(index, "write_part", fail_at_last)
            with pytest.raises(KeyboardInterrupt):
                index.run(config, covers, built.entries, None)
        parts = sorted((killed / layout.UNFINISHED_INDEX).iterdir())
        assert len(parts) == 2
        after = {name: digest for name, digest in digests_of(killed).items() if "index.partial" not in name}
        assert after == before  # the old index is there until the new one is complete
        return parts

    kept = [path.stat().st_ino for path in kill(configs[killed])]
    assert index.run(configs[killed], covers, built.entries, None) == summary
    assert digests_of(killed) == wanted
    assert [path.stat().st_ino for path in sorted((killed / layout.INDEX).iterdir())][:2] == kept
    split = configs[killed].index.split.model_copy(update={"seed": 5})
    kill(configs[killed].model_copy(update={"index": configs[killed].index.model_copy(update={"split": split})}))
    assert index.run(configs[killed], covers, built.entries, None) == summary
    assert digests_of(killed) == wanted


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_cleanly_and_a_second_run_goes_on(
    built: Built, tmp_path: Path, sent: signal.Signals, status: int
) -> None:
    out, scratch = tmp_path / "dataset", tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "pipeline.build_levir_kr", *built.arguments, "--out", str(out), "--workers", "1"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"TMPDIR": str(scratch)},
    )
    done: set[Path] = set()
    while not done and process.poll() is None:
        done = {path for path in out.glob(f"{layout.TILES}/*/status/c/*/*") if path.suffix != ".partial"}
        time.sleep(0.01)
    os.killpg(process.pid, sent)  # as a terminal sends it: to the command and to its workers
    _, said = process.communicate()
    assert process.returncode == status, said
    assert not list(scratch.glob("geokr-*"))
    assert "run the same command again to resume" in said
    assert "Traceback" not in said
    assert not (out / "index.parquet").exists()
    written = {path: path.stat().st_mtime_ns for path in done}
    assert main([*built.arguments, "--out", str(out), "--workers", "1"]) == 0
    assert written == {path: path.stat().st_mtime_ns for path in done}
    assert digests_of(out) == digests_of(built.dataset)


def test_other_settings_are_refused_not_mixed(built: Built, capsys: pytest.CaptureFixture[str]) -> None:
    digests = digests_of(built.dataset)
    arguments = [*built.arguments, "--out", str(built.dataset), "--workers", "1"]
    arguments[arguments.index("--stride") + 1] = "32"
    assert main(arguments) == 2
    assert "was built with other settings" in capsys.readouterr().err
    assert digests_of(built.dataset) == digests


def test_a_dry_run_touches_nothing_and_promises_what_comes(
    built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(built.directory.rglob("*"))
    assert main([*built.arguments, "--out", str(tmp_path / "new"), "--dry-run"]) == 0
    assert not (tmp_path / "new").exists()
    assert sorted(built.directory.rglob("*")) == before
    printed = capsys.readouterr().out
    config = built.config
    for entry in built.entries:
        grid = tile_grid(entry, config.grid)
        assert grid is not None
        (image,) = entry.scene.images
        assert f"{entry.scene.id}: {image.width} x {image.height} px, {entry.scene.gsd:g} m" in printed
    assert "globeland30_2020: 2 sheets" in printed
    assert "lacks" not in printed
    assert "peak memory of a worker" in printed
    size = sum(path.stat().st_size for path in built.dataset.rglob("*") if path.is_file())
    estimated = re.search(r"^estimate  ([\d.]+) MB on disk, .* tiles, of which \d+% were accepted$", printed, re.M)
    assert estimated is not None
    assert 0.5 < float(estimated[1]) * 1e6 / size < 2
    arguments = [*built.arguments, "--out", str(tmp_path / "new"), "--dry-run"]
    place = arguments.index("--landcover") + 1
    kept, missing = sorted(Path(arguments[place]).glob("*.tif"))
    arguments[place] = str(kept)
    assert main(arguments) == 0
    assert f"landcover globeland30_2020: lacks {missing.name}, " in capsys.readouterr().out
