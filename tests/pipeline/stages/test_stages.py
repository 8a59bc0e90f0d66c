"""How stages count: what is left of a scene, what failed, how far they are, and what a person reads of it."""

import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zarr
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from geokr.dataset import contents, layout, store
from pipeline.catalog import quarantine
from pipeline.config import BuildConfig
from pipeline.geometry.grid import TileGrid
from pipeline.runtime import progress
from pipeline.runtime.progress import Progress, count_stages, format_duration
from pipeline.scenes.scene import SceneError
from pipeline.stages.blocks import Failures, Tally, UnbuiltBlocks, consolidate_if_changed, record_refusals, tile_count
from tests.settings import build_config

PLACES = st.tuples(st.integers(0, 4), st.integers(0, 4))


def grid(rows: int, cols: int, block: int) -> TileGrid:
    shape = ((rows - 1) * 48 + 64, (cols - 1) * 48 + 64)
    return TileGrid(GeoBox(shape, Affine(2, 0, 0, 0, -2, 0), "EPSG:32648"), 64, 48, block)


def there(*blocks: tuple[int, int], **attributes: Any) -> contents.SceneContents:
    return contents.SceneContents(attributes, (5, 7), frozenset(blocks))


def config(out: Path) -> BuildConfig:
    return build_config(out=str(out))


def logged(out: Path) -> list[dict[str, Any]]:
    """The lines of the log without their times."""
    lines = [json.loads(line) for line in (out / progress.LOG_FILE).read_text().splitlines()]
    assert all(line.pop("time") for line in lines)
    return lines


# --- blocks


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 3), st.none() | st.frozensets(PLACES))
def test_what_is_left_is_what_is_not_there_row_by_row(
    rows: int, cols: int, block: int, done: frozenset[tuple[int, int]] | None
) -> None:
    """Blocks that the grid does not have are no blocks of it."""
    whole = grid(rows, cols, block)
    left = UnbuiltBlocks(whole, None if done is None else there(*done))
    wanted = [(b.rows.start // block, b.cols.start // block) for b in whole]
    assert [*left] == [place for place in wanted if place not in (done or ())]
    assert left.tiles == sum(tile_count(whole, i, j) for i, j in left)
    assert sum(tile_count(whole, i, j) for i, j in wanted) == rows * cols


def test_a_scene_of_other_settings_is_refused(tmp_path: Path) -> None:
    UnbuiltBlocks(grid(2, 2, 1), None).check("root", "scene", {"gsd": 2})
    UnbuiltBlocks(grid(2, 2, 1), there(gsd=2)).check("root", "scene", {"gsd": 2})
    for wanted in ({"gsd": 3}, {}, {"gsd": 2, "dem": "dem.tif"}):
        with pytest.raises(layout.StoreError, match="root/scene was built with other settings"):
            UnbuiltBlocks(grid(2, 2, 1), there(gsd=2)).check("root", "scene", wanted)


def test_failures_are_told_once_a_scene_and_reason_by_their_first_block() -> None:
    failures = Failures()
    failures.add("b", (1, 0), SceneError("b.tif: row 1"))
    failures.add("b", (0, 2), SceneError("row 0"))
    failures.add("b", (0, 0), MemoryError())
    failures.add("a", (0, 10), SceneError("a.tif: cut"))
    failures.add("a", (0, 9), SceneError("a.tif: short"))
    assert failures.entries() == [
        {"scene": "a", "reason": "SceneError", "detail": "a.tif: short", "blocks": [[0, 9], [0, 10]]},
        {"scene": "b", "reason": "MemoryError", "detail": "b: MemoryError()", "blocks": [[0, 0]]},
        {"scene": "b", "reason": "SceneError", "detail": "b: row 0", "blocks": [[0, 2], [1, 0]]},
    ]


def test_a_scene_goes_to_the_log_when_it_is_done(tmp_path: Path) -> None:
    tally = Tally(config(tmp_path), "tiles", {"a": 5, "b": 4})
    assert tally.total == 9
    tally.add("a", 3, accepted=2)
    tally.add("b", 4, failed=1)
    tally.add("a", 2, accepted=1)
    assert logged(tmp_path) == [
        {"event": "scene", "stage": "tiles", "scene": "b", "tiles": 4, "failed": 1},
        {"event": "scene", "stage": "tiles", "scene": "a", "tiles": 5, "accepted": 3},
    ]


def test_metadata_are_gathered_where_they_changed_or_were_not(tmp_path: Path) -> None:
    root = str(tmp_path / layout.TILES)
    arguments: Any = {"shape": (1, 1), "bands": 1, "tile": 16, "block": 1, "dtype": "uint8", "attributes": {}}
    consolidate_if_changed(root, {}, False)  # no store yet
    for scene, changed in (("a", True), ("b", False)):
        store.create_tiles(root, scene, **arguments)
        consolidate_if_changed(root, contents.read_scene_contents(root, contents.list_scenes(root)), changed)
        assert {"a", scene} <= contents.read_consolidated(root).keys()
    before = (tmp_path / layout.TILES / "zarr.json").stat().st_mtime_ns
    consolidate_if_changed(root, contents.read_scene_contents(root, ["a", "b"]), False)
    assert (tmp_path / layout.TILES / "zarr.json").stat().st_mtime_ns == before


def test_a_store_of_many_scenes_has_no_copy_of_all_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(tmp_path / layout.TILES)
    monkeypatch.setattr(store, "CONSOLIDATED", 2)
    arguments: Any = {"shape": (1, 1), "bands": 1, "tile": 16, "block": 1, "dtype": "uint8", "attributes": {}}
    for scene, listed in (("a", {"a"}), ("b", {"a", "b"}), ("c", set()), ("d", set())):
        store.create_tiles(root, scene, **arguments)
        consolidate_if_changed(root, {}, True)
        assert {name for name in contents.read_consolidated(root) if "/" not in name} == listed
    before = (tmp_path / layout.TILES / "zarr.json").stat().st_mtime_ns
    consolidate_if_changed(root, contents.read_scene_contents(root, list("abcd")), False)
    assert (tmp_path / layout.TILES / "zarr.json").stat().st_mtime_ns == before
    assert sorted(zarr.open_group(root, mode="r").group_keys()) == list("abcd")


def test_what_a_stage_refused_is_said_logged_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    refusal = {"scene": "a", "reason": "SceneError", "detail": "a.tif: cut"}
    record_refusals("tiles", config(tmp_path), [refusal])
    assert [record.getMessage() for record in caplog.records] == ["refused: a.tif: cut"]
    assert logged(tmp_path) == [{"event": "refused", "stage": "tiles", **refusal}]
    assert quarantine.read(tmp_path) == [{"stage": "tiles", **refusal}]


# --- what a person reads


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Seconds, which go on when the test says so."""
    now = [1000.0]
    with monkeypatch.context() as patch:
        patch.setattr(progress.time, "monotonic", lambda: now[0])
        yield now


def test_a_line_says_how_far_how_fast_how_good_and_how_long(tmp_path: Path, clock: list[float]) -> None:
    progress = Progress(tmp_path, "tiles", 5120, "tile")
    assert progress.format_line() == "tiles: 0 of 5,120 tiles, 0 %, 0 tiles/s, time left unknown"
    clock[0] += 8
    progress.add(1000, 750)
    progress.add(24, 18)
    assert progress.format_line() == "tiles: 1,024 of 5,120 tiles, 20 %, 128 tiles/s, 75 % accepted, 32 s left"
    assert progress.collect_facts() == {
        "done": 1024, "total": 5120, "unit": "tile", "seconds": 8.0, "per_second": 128.0, "accepted": 0.75,
    }  # fmt: skip
    clock[0] += 92
    progress.add(4096)  # not judged
    assert progress.format_line() == "tiles: 5,120 of 5,120 tiles, 100 %, 51 tiles/s, 75 % accepted, took 2 min"
    assert progress.collect_facts() | {"per_second": 51.2, "accepted": 0.75} == progress.collect_facts()


def test_a_stage_without_work_or_judgement_says_no_more_than_that(tmp_path: Path, clock: list[float]) -> None:
    assert Progress(tmp_path, "index", 0, "scene").format_line() == "index: 0 of 0 scenes, took 0 s"
    assert "accepted" not in Progress(tmp_path, "index", 0, "scene").collect_facts()


def test_a_slow_stage_has_a_speed_too(tmp_path: Path, clock: list[float]) -> None:
    progress = Progress(tmp_path, "catalog", 12, "delivery")
    progress.add(6)
    clock[0] += 15
    assert progress.format_line() == "catalog: 6 of 12 deliveries, 50 %, 0.4 deliveries/s, 15 s left"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (89.4, "89 s"), (90, "2 min"), (1020, "17 min"), (5369, "89 min"), (5400, "1 h 30 min"),
     (11_100, "3 h 05 min"), (360_000, "100 h 00 min")],
)  # fmt: skip
def test_a_time_for_a_person(seconds: float, said: str) -> None:
    assert format_duration(seconds) == said


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


WORKERS: Any = SimpleNamespace(
    scheduler_info=lambda: {
        "workers": {
            "a": {"metrics": {"memory": 1 << 30}, "memory_limit": 4 << 30},
            "b": {"metrics": {"memory": 1 << 29}, "memory_limit": 4 << 30},
            "c": {"metrics": {}, "memory_limit": None},  # it has just joined
        }
    }
)


def test_a_bar_says_how_fast_how_good_how_long_and_how_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with count_stages(2) as count, Progress(tmp_path, "tiles", 1000, "tile", client=WORKERS) as bar:
        bar.add(500, 400)
        bar.refresh()
        drawn = terminal.getvalue().rpartition("tiles:")[2]
        count()
    assert "500/1000" in drawn
    assert " tiles/s, 80 % accepted, 1.5 of 8.0 GiB]" in drawn
    assert "build: 1 of 2 stages |" in terminal.getvalue()
    assert bar.collect_facts()["memory"] == 3 << 29
    assert "80 % accepted, 1.5 of 8.0 GiB, " in bar.format_line()


@pytest.mark.parametrize("error", [OSError("lost"), RuntimeError("loop is closed"), CancelledError()])
def test_a_bar_outlives_its_scheduler(tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        raise error

    lost: Any = SimpleNamespace(scheduler_info=fail)
    progress = Progress(tmp_path, "tiles", 10, "tile", client=lost)
    progress.refresh()
    assert "GiB" not in progress.format_line()


@pytest.mark.parametrize("error", [None, SceneError("x")])
def test_the_last_line_is_said_of_a_stage_that_ended_well(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception | None
) -> None:
    caplog.set_level("INFO")
    try:
        with Progress(tmp_path, "index", 3, "scene") as progress:
            progress.add(3)
            if error is not None:
                raise error
    except SceneError:
        pass
    assert len(caplog.records) == (error is None)
    assert not progress.ticker.is_alive()


def test_the_log_says_how_far_a_stage_is_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.001)
    with Progress(tmp_path, "index", 3, "scene") as bar:
        bar.add(2)
        log = tmp_path / progress.LOG_FILE  # a line may be older than what was added
        while not (log.exists() and '"done": 2' in log.read_text()) and bar.ticker.is_alive():
            time.sleep(0.001)
    line = logged(tmp_path)[-1]
    assert {key: line[key] for key in ("event", "stage", "done", "total", "unit")} == {
        "event": "progress", "stage": "index", "done": 2, "total": 3, "unit": "scene",
    }  # fmt: skip
