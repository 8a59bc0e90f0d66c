"""What is left is found fast, a failed block is tried again, and nothing is ever mixed in silence."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio

from geokr.dataset import contents, layout, store
from geokr.dataset.index import part_name
from geokr.landcover.discovery import find_landcover
from pipeline.build_levir_kr import main
from pipeline.report.readme import write_readme
from pipeline.runtime import progress
from pipeline.scenes.scene import SceneError
from pipeline.stages import catalog, index, labels, tiles
from pipeline.tasks import rows
from pipeline.tasks.tiles import TileJob, TileReport, build_tiles
from tests.build.conftest import Built
from tests.build.test_runs import digests_of


@pytest.fixture
def moved(built: Built, tmp_path: Path) -> tuple[Path, list[str]]:
    """A copy of the scenes and of the data set made of them, and the command for them."""
    shutil.copytree(built.directory / "scenes", tmp_path / "scenes")
    shutil.copytree(built.dataset, tmp_path / "dataset")
    arguments = [*built.arguments, "--out", str(tmp_path / "dataset"), "--workers", "1"]
    arguments[arguments.index("--scenes") + 1] = str(tmp_path / "scenes")
    return tmp_path, arguments


def test_a_replaced_image_is_refused_by_name_before_anything_is_written(
    moved: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    directory, arguments = moved
    before = digests_of(directory / "dataset")
    (image,) = (directory / "scenes").glob("*/*.tiff")
    with rasterio.open(image, "r+") as file:
        file.write(file.read() // 2 + 7)
    assert main(arguments) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert image.parent.name in said
    assert "source.sha256_of_every_20th_pixel was" in said
    assert "delete the scene from the store to rebuild it" in said
    assert digests_of(directory / "dataset") == before
    shutil.rmtree(directory / "dataset" / layout.TILES / image.parent.name)
    assert main(arguments) == 0
    after = digests_of(directory / "dataset")
    changed = {path for path in before if before[path] != after[path]}
    ours = {path for path in changed if path.startswith(f"{layout.TILES}/{image.parent.name}/")}
    assert any("/image/c/" in path for path in ours)
    names = {path.replace(part_name(0, 1), "part") for path in changed - ours}
    assert names == {
        "scenes.parquet", f"{layout.TILES}/zarr.json", "index.parquet/part", "croissant.json", "README-tiles.png"
    }  # fmt: skip


@pytest.mark.parametrize("name", [layout.TILES, layout.label_store("globeland30_2020")])
def test_a_run_that_ended_before_its_metadata_were_gathered_goes_on(built: Built, tmp_path: Path, name: str) -> None:
    """All blocks are there, and the store's root says nothing of them, or of the last one's scene."""
    dataset = tmp_path / "dataset"
    shutil.copytree(built.dataset, dataset)
    arguments = [*built.arguments, "--out", str(dataset), "--workers", "1"]
    before = digests_of(dataset)
    root = dataset / name / "zarr.json"
    document = json.loads(root.read_text())
    scene = sorted(document["consolidated_metadata"]["metadata"])[0]
    held = {k: v for k, v in document["consolidated_metadata"]["metadata"].items() if not k.startswith(scene)}
    for remains in (None, document["consolidated_metadata"] | {"metadata": held}):
        changed = {k: v for k, v in document.items() if k != "consolidated_metadata"}
        root.write_text(json.dumps(changed | ({} if remains is None else {"consolidated_metadata": remains})))
        assert main(arguments) == 0
        assert digests_of(dataset) == before


def test_a_file_that_was_only_touched_is_no_other_input(moved: tuple[Path, list[str]]) -> None:
    directory, arguments = moved
    shards = {path: path.stat().st_mtime_ns for path in directory.rglob("c/**/*") if path.is_file()}
    for file in (directory / "scenes").rglob("*"):
        os.utime(file)
    assert main(arguments) == 0
    assert shards == {path: path.stat().st_mtime_ns for path in directory.rglob("c/**/*") if path.is_file()}


def test_a_scene_that_is_gone_is_left_out_aloud(moved: tuple[Path, list[str]]) -> None:
    directory, arguments = moved
    (image,) = (directory / "scenes").glob("*/*.tiff")
    shutil.rmtree(image.parent)
    assert main(arguments) == 0
    (entry,) = map(json.loads, (directory / "dataset" / "quarantine.jsonl").read_text().splitlines())
    assert (entry["scene"], entry["reason"]) == (image.parent.name, "gone")
    assert image.parent.name not in set(geopandas.read_parquet(directory / "dataset" / "index.parquet")["scene"])


def test_a_failed_block_costs_its_own_tiles_and_is_tried_again(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "dataset"
    out.mkdir()
    config = built.config.model_copy(update={"out": str(out)})
    unlucky = built.entries[0].scene.id

    def failing(job: TileJob) -> TileReport:
        if job.scene == unlucky and (job.i, job.j) in ((0, 1), (1, 1)):
            raise SceneError(f"{job.entry.scene.images[0].path}: cannot be read at block {job.i}")
        return build_tiles(job)

    def run() -> dict[str, Any]:
        entries, covers = catalog.run(config, None), find_landcover(config.labels.landcover)
        tiles.run(config, entries, None)
        labels.run(config, covers, entries, None)
        summary = index.run(config, covers, entries, None)
        write_readme(str(out), summary, entries)
        return summary

    with monkeypatch.context() as patch:
        patch.setattr(tiles, "build_tiles", failing)
        summary = run()
    (entry,) = map(json.loads, (out / "quarantine.jsonl").read_text().splitlines())
    assert (entry["scene"], entry["stage"], entry["reason"]) == (unlucky, "tiles", "SceneError")
    assert entry["blocks"] == [[0, 1], [1, 1]]
    assert entry["detail"].endswith("cannot be read at block 0")  # of the first, whichever failed first
    assert list(summary["incomplete"]) == [unlucky]
    assert summary["counts"]["incomplete"] == 1
    listed = geopandas.read_parquet(out / "index.parquet")
    status = contents.read_status(store.open_scene(str(out / layout.TILES), unlucky))
    assert (status == 0).sum() == summary["incomplete"][unlucky] > 0
    assert (listed["scene"] == unlucky).sum() > 0
    summary = run()
    assert summary["incomplete"] == {}
    assert digests_of(out) == digests_of(built.dataset)


def test_tiles_of_one_place_share_its_name(built: Built) -> None:
    index = geopandas.read_parquet(built.dataset / "index.parquet")
    assert len(index) > index["place"].nunique()  # two of the scenes overlap
    shared = index.groupby("place").filter(lambda tiles: len(tiles) > 1)
    assert shared.groupby("place")["scene"].nunique().min() > 1
    corners = index.assign(corner=[tuple(np.round(geometry.bounds, 9)) for geometry in index.geometry])
    assert (corners.groupby("place")["corner"].nunique() == 1).all()
    assert (corners.groupby("corner")["place"].nunique() == 1).all()


def test_without_a_terminal_there_is_a_line_now_and_then(
    built: Built,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.1)
    caplog.set_level(logging.INFO)  # which the command sets unless somebody listens
    assert main([*built.arguments, "--out", str(tmp_path / "dataset"), "--workers", "1"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "tiles: " in line]
    assert len(said) > 2
    assert any("tiles/s" in line and "% accepted" in line and line.endswith("left") for line in said)
    assert "took" in said[-1]
    lines = [json.loads(line) for line in (tmp_path / "dataset" / progress.LOG_FILE).read_text().splitlines()]
    events = [line["event"] for line in lines]
    assert events[0] == "run"
    assert [line["stage"] for line in lines if line["event"] == "stage"] == ["catalog", "tiles", "labels", "index"]
    done = {line["scene"]: line for line in lines if line["event"] == "scene" and line["stage"] == "tiles"}
    assert set(done) == {entry.scene.id for entry in built.entries}
    index = geopandas.read_parquet(tmp_path / "dataset" / "index.parquet")
    assert all(line["accepted"] >= (index["scene"] == scene).sum() > 0 for scene, line in done.items())
    assert all(line["dashboard"].startswith("http://127.0.0.1:") for line in lines if line["event"] == "stage")


def test_a_performance_report_is_written(built: Built, tmp_path: Path) -> None:
    shutil.copytree(built.dataset, tmp_path / "dataset")
    report = tmp_path / "report.html"
    arguments = [*built.arguments, "--out", str(tmp_path / "dataset"), "--workers", "1", "--only", "index"]
    assert main([*arguments, "--performance-report", str(report)]) == 0
    assert "Task Stream" in report.read_text(encoding="utf-8")


def test_a_block_that_no_worker_has_the_memory_for_is_refused(
    built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "dataset"
    arguments = [*built.arguments, "--out", str(out), "--workers", "1"]
    assert main([*arguments, "--memory", "300MB"]) == 2
    assert "a worker with 300 MB has too little memory for its libraries" in capsys.readouterr().err
    # So little memory that a job of the catalog may be refused with its scene, before its tiles are.
    assert main([*arguments, "--only", "catalog"]) == 0
    assert main([*arguments, "--memory", "400MB", "--only", "tiles"]) == 0  # what is refused is named
    entries = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert {entry["reason"] for entry in entries if entry["stage"] == "tiles"} == {"MemoryError"}
    assert all("use smaller blocks" in entry["detail"] for entry in entries if entry["stage"] == "tiles")


def test_scenes_that_are_added_are_all_that_is_done(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new scene is surveyed, tiled, labelled and listed; the result is that of a build from nothing."""
    monkeypatch.setattr(index, "PART_SCENES", 1)
    done: dict[str, list[str]] = {"survey": [], "tiles": [], "labels": [], "rows": []}

    def count(stage: str, function: Any, name: Callable[[Any], str]) -> Callable[[Any], Any]:
        def counted(job: Any) -> Any:
            done[stage].append(name(job))
            return function(job)

        return counted

    monkeypatch.setattr(
        catalog, "read_and_survey", count("survey", catalog.read_and_survey, lambda job: Path(job.delivery.path).name)
    )
    for stage, module, function in (("tiles", tiles, "build_tiles"), ("labels", labels, "build_labels")):
        monkeypatch.setattr(module, function, count(stage, getattr(module, function), lambda job: job.scene))
    monkeypatch.setattr(rows, "list_scene", count("rows", rows.list_scene, lambda job: job.scene.id))

    def run(out: str) -> dict[str, list[str]]:
        config = built.config.model_copy(
            update={"out": out, "survey": built.config.survey.model_copy(update={"scenes": (str(scenes),)})}
        )
        covers = find_landcover(config.labels.landcover)
        for stage in done.values():
            stage.clear()
        entries = catalog.run(config, None, covers)
        tiles.run(config, entries, None)
        labels.run(config, covers, entries, None)
        index.run(config, covers, entries, None)
        return {stage: sorted(set(names)) for stage, names in done.items()}

    scenes = tmp_path / "scenes"
    shutil.copytree(built.directory / "scenes", scenes)
    (added,) = [path for path in scenes.iterdir() if built.shots[2].name in path.name]
    added.rename(tmp_path / added.name)
    before = run(str(tmp_path / "dataset"))
    names = [shot.name for shot in built.shots]
    assert before["tiles"] == before["labels"] == before["rows"] == sorted(names[:2])
    (tmp_path / added.name).rename(added)
    assert run(str(tmp_path / "dataset")) == {
        "survey": [added.name], "tiles": [names[2]], "labels": [names[2]], "rows": [names[2]]
    }  # fmt: skip
    assert run(str(tmp_path / "dataset")) == {"survey": [], "tiles": [], "labels": [], "rows": []}
    run(str(tmp_path / "anew"))
    assert digests_of(tmp_path / "dataset") == digests_of(tmp_path / "anew")


def test_an_index_that_was_begun_is_not_completed_from_other_stores(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scene whose blocks were lost after its part had been written is not listed by that part."""
    monkeypatch.setattr(index, "PART_SCENES", 1)
    shutil.copytree(built.dataset, tmp_path / "dataset")
    config = built.config.model_copy(update={"out": str(tmp_path / "dataset")})
    covers, write = find_landcover(config.labels.landcover), rows.write_part

    def stop(job: rows.PartJob) -> rows.PartReport:
        if job.number == 2:
            raise KeyboardInterrupt
        return write(job)

    monkeypatch.setattr(index, "write_part", stop)
    with pytest.raises(KeyboardInterrupt):
        index.run(config, covers, built.entries, None)
    monkeypatch.setattr(index, "write_part", write)
    lost = built.entries[0].scene.id
    shutil.rmtree(tmp_path / "dataset" / layout.TILES / lost)
    summary = index.run(config, covers, built.entries, None)
    assert summary["counts"]["scenes"] == 2
    assert lost not in set(geopandas.read_parquet(tmp_path / "dataset" / "index.parquet")["scene"])
