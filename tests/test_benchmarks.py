"""Benchmarks on a machine without real data: they use made data, or report what they need and let the others run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import (
    downstream,
    evidence,
    evidence_page,
    evidence_rules,
    figure,
    labels,
    ortho,
    real_data,
    same_bytes,
    scale,
    tiles,
    zion,
)
from geokr.landcover.discovery import find_landcover
from geokr.landcover.shares import compute_class_shares
from geokr.pretraining.config import configure
from pipeline.scenes.gaofen import parse_rpb

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(params=["unset", "empty"], autouse=True)
def no_real_data(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GEOKR_REAL_DATA is unset, and there is no `data` folder; or it names an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GEOKR_REAL_DATA", raising=False)
    if request.param == "empty":
        (tmp_path / "real").mkdir()
        monkeypatch.setenv("GEOKR_REAL_DATA", "real")


@pytest.mark.parametrize(
    ("main", "files"),
    [
        (zion.main, "zion_landsat8.tif and zion_nlcd2011.tif"),
        (figure.main, "ESA_WorldCover_10m_2020_v100_N00E006"),
        (downstream.main, "scene_rsscn7/README.md and scene_aid/README.md"),
    ],
)
def test_a_benchmark_that_needs_real_data_reports_it_in_one_sentence(
    main: Callable[[list[str]], int], files: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([]) == real_data.MISSING
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert f"did not run: it needs {files}" in output.err
    assert "GEOKR_REAL_DATA" in output.err


def test_a_file_that_is_missing_is_named_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "zion_landsat8.tif").touch()
    assert zion.main(["--data", str(tmp_path)]) == real_data.MISSING
    assert f"it needs zion_nlcd2011.tif in {tmp_path};" in capsys.readouterr().err


def test_all_benchmarks_run_although_one_lacks_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []

    def benchmark(name: str, status: int) -> Callable[[list[str]], int]:
        return lambda _: runs.append(name) or status  # type: ignore[func-returns-value]

    statuses = {"first": 0, "lacking": real_data.MISSING, "last": 0}
    monkeypatch.setattr(command, "BENCHMARKS", {name: benchmark(name, status) for name, status in statuses.items()})
    assert command.main([]) == 0
    assert runs == ["first", "lacking", "last"]
    assert command.main(["lacking"]) == real_data.MISSING
    monkeypatch.setitem(command.BENCHMARKS, "failing", benchmark("failing", 1))
    assert command.main([]) == 1
    monkeypatch.setattr(command, "BENCHMARKS", {"lacking": benchmark("lacking", real_data.MISSING)})
    assert command.main([]) == 0


def test_ortho_runs_with_a_made_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = []

    def multispectral(folder: Path, rpb: Path, source: str, rounds: int) -> bool:
        sources.append(source)
        for path, (width, height, _, gsd) in (
            (rpb, ortho.MSS),
            (rpb.with_name(ortho.rpb_name("PAN1")), ortho.PAN),
        ):
            rpc = parse_rpb(path.read_text())
            col, row = np.array([0.0, width, width]), np.array([0.0, 0.0, height])
            for ground in (0.0, ortho.ROUGH):
                corners = rpc.image(*rpc.ground(col, row, np.array(ground)), np.array(ground))
                assert np.abs(np.stack(corners) - (col, row)).max() < 1e-3
            lon, lat = rpc.ground(col, row, np.array(1500.0))
            side = np.hypot(np.diff(lon) * np.cos(np.radians(lat[0])), np.diff(lat)) * 111_200.0
            assert np.allclose(side / (width, height), gsd, rtol=0.02)
        return True

    monkeypatch.setattr(ortho, "multispectral", multispectral)
    assert ortho.main(["--only", "mss"]) == 0
    assert sources == ["made"]


def test_ortho_prefers_the_real_camera(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sources = []

    def multispectral(folder: Path, rpb: Path, source: str, rounds: int) -> bool:
        sources.append((source, rpb))
        return True

    monkeypatch.setattr(ortho, "multispectral", multispectral)
    ortho.write_rpbs(tmp_path / "originals")
    assert ortho.main(["--only", "mss", "--originals", str(tmp_path / "originals")]) == 0
    assert sources == [("real", tmp_path / "originals" / ortho.rpb_name("MSS1"))]


def test_the_made_sheet_is_a_worldcover_sheet_with_data_under_the_tiles(tmp_path: Path) -> None:
    path = labels.write_sheet(tmp_path / "landcover" / real_data.WORLDCOVER)
    (cover,) = find_landcover([path])
    assert cover.name == "worldcover_2020"
    left, bottom, right, top = 228_000, 33_000 - (49 * 200 + 256), 228_000 + 59 * 200 + 256, 33_000
    corners = np.array([[(left, top), (right, top), (right, bottom), (left, bottom)]], float)
    assert compute_class_shares(corners, "EPSG:32632", cover).known == pytest.approx(1.0)
    assert path.stat().st_size < 20 << 20


def test_tiles_come_from_the_sample_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    builds: list[list[str]] = []
    monkeypatch.setattr(tiles, "make_world", lambda arguments: 0)
    monkeypatch.setattr(tiles.build_levir_kr, "main", lambda arguments: builds.append(arguments) or 1)
    with pytest.raises(RuntimeError, match="was not built"):
        tiles.dataset(tmp_path / "folder")
    assert builds[0][:2] == ["--scenes", f"{tmp_path}/folder/world/scenes"]


def test_same_bytes_leaves_real_builds_out() -> None:
    assert same_bytes.real_builds() == {}


@pytest.mark.parametrize("length", evidence_rules.LENGTHS)
def test_all_arms_of_a_start_see_the_same_tiles_as_often(length: str, tmp_path: Path) -> None:
    place = evidence.Place(tmp_path / length, evidence_rules.LENGTHS[length], tmp_path)
    same: tuple[str, ...] = (
        "model",
        "pretrained",
        "image_size",
        "bands",
        "classes",
        "min_known",
        "batch",
        "epochs",
        "steps",
        "lr",
    )
    same += ("optimiser", "schedule", "warm_up", "weight_decay", "seed", "accumulate", "balance", "where", "weight")
    for start in evidence_rules.AGAINST:
        arms = {name: arm for name, arm in evidence_rules.ARMS.items() if arm.start == start and arm.preset}
        configs = {}
        for name in arms:
            _, preset, *settings = evidence.list_settings(place, name, 1, 1e-3, place.length.steps[start])
            configs[name] = configure(preset, None, settings)
        first = next(iter(configs.values()))
        for name, config in configs.items():
            assert [getattr(config, setting) for setting in same] == [getattr(first, setting) for setting in same], name
            assert name.removeprefix("imagenet-").removesuffix("-kept") == config.objective
            assert name.endswith("-kept") == bool(config.distil and config.start_statistics)
        assert {*evidence_rules.AGAINST[start]} <= {*arms, start}


def test_the_evidence_chooses_nothing_by_what_it_reports() -> None:
    page = (REPOSITORY / "docs/evidence.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in evidence_rules.ARMS)
    assert all(evidence_rules.SEARCH_SET not in length.trials for length in evidence_rules.LENGTHS.values())
    assert evidence_rules.SEARCH_SEED not in evidence_rules.SEEDS


@pytest.mark.parametrize(
    ("ours", "peer", "expected"),
    [
        ([0.5, 0.6, 0.7], [0.4, 0.59, 0.6], "better: "),  # ahead in every seed
        ([0.5, 0.6, 0.7], [0.51, 0.61, 0.71], "worse: "),
        ([0.5, 0.6, 0.7], [0.51, 0.5, 0.6], "not shown"),
        ([0.5, 0.6], [0.4, 0.5], "2 of 3 seeds"),
    ],
)
def test_what_the_evidence_counts_as_better(ours: list[float], peer: list[float], expected: str) -> None:
    found = evidence_page.verdict(dict(enumerate(ours)), dict(enumerate(peer)))
    assert found.startswith(expected)


def test_the_page_of_the_evidence_is_written_between_its_marks(tmp_path: Path) -> None:
    seeds = dict.fromkeys(evidence_rules.SEEDS, 0.5)
    scores = {
        (evidence_rules.RSSCN7, "linear", share): {"scratch": seeds, "geokr": dict.fromkeys(seeds, 0.6)}
        for share in (0.01, 0.1)
    }
    found = evidence_page.Found(scores, {"geokr": 1e-3}, {"geokr": 100.0})
    page = tmp_path / "evidence.md"
    page.write_text("before\n<!-- short: begin -->\nold\n<!-- short: end -->\nafter\n")
    for _ in range(2):  # written again, it is the same
        evidence_page.write_page(page, "short", found)
        text = page.read_text()
        assert text.startswith("before\n<!-- short: begin -->\n| arm | rate ")
        assert text.endswith("<!-- short: end -->\nafter\n")
        assert (
            "| `geokr` | 0.001 | 100 | 0.600 ± 0.000 | 0.600 ± 0.000 | better: +0.100 ± 0.000 | 0 of 3 seeds |" in text
        )
        assert "old" not in text
    assert (tmp_path / "images/evidence-short.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"evidence\.md must have the lines <!-- long: begin -->"):
        evidence_page.write_page(page, "long", found)


def test_the_figures_of_two_runs_of_the_evidence_come_together(tmp_path: Path) -> None:
    page, case = tmp_path / "evidence.md", (evidence_rules.RSSCN7, "linear", 0.1)
    page.write_text("<!-- short: begin -->\n<!-- short: end -->\n")
    first = evidence_page.Found({case: {"geokr": {0: 0.5, 1: 0.25}}}, {"geokr": 1e-3}, {})
    second = evidence_page.Found({case: {"geokr": {1: 0.5}, "scratch": {0: 0.125}}}, {}, {"geokr": 99.0})
    evidence_page.write_page(page, "short", first)
    evidence_page.write_page(page, "short", second)
    both = evidence_page.read_kept(tmp_path / "evidence-short.json")
    assert both == evidence_page.Found(
        {case: {"scratch": {0: 0.125}, "geokr": {0: 0.5, 1: 0.5}}}, {"geokr": 1e-3}, {"geokr": 99.0}
    )
    assert "| `geokr` | 0.001 | 99 | 0.500 ± 0.000 | 1 of 3 seeds | 0 of 3 seeds |" in page.read_text()


def test_a_scheduler_is_measured_by_blocks_that_do_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Which come back from the workers, or the simulation fails."""
    arguments = ["--steps", "simulate", "--blocks", "300", "--workers", "4", "--processes", "2"]
    assert scale.main(arguments) == 0
    words = dict(word.split("=") for word in capsys.readouterr().out.split())
    assert (words["case"], words["blocks"], words["workers"]) == ("scale-simulate", "300", "4")
    costs = [float(words[process].removesuffix("ms/block")) for process in ("scheduler", "client")]
    assert min(costs) > 0
    most = float(words["most"].removesuffix("blocks/s"))
    assert most == pytest.approx(1e3 / max(costs), rel=0.02)
