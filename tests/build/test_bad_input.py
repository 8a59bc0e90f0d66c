"""What is wrong with the input is said in one sentence, and stops nothing else."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import geopandas
import pytest

from geokr.dataset import layout, store
from geokr.storage import files
from pipeline.build_levir_kr import main
from pipeline.scenes.raster import open_image
from tests.broken import BROKEN
from tests.build.conftest import Built

GOOD = 10


@pytest.fixture
def archive(built: Built, tmp_path: Path) -> Path:
    """Ten good scenes, and every kind of broken delivery in a folder of its own among them."""
    scenes = tmp_path / "scenes"
    good = next(path for path in (built.directory / "scenes").iterdir() if path.is_dir())
    number = good.name[-10:]
    for k in range(GOOD):
        new = f"{int(number) + k:010d}"
        folder = scenes / good.name.replace(number, new)
        folder.mkdir(parents=True)
        for file in good.iterdir():
            copy = folder / file.name.replace(number, new)
            shutil.copy(file, copy)
            if copy.suffix == ".xml":
                copy.write_text(copy.read_text().replace(str(int(number)), str(int(new))))
    for k, broken in enumerate(BROKEN.values()):
        folder = scenes / f"{k:02d}"
        folder.mkdir()
        broken.write(folder)
    return scenes


def test_what_cannot_be_used_is_quarantined_each_with_its_sentence_and_the_others_are_built(
    built: Built, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "dataset"
    number = [*BROKEN].index("STAC that is no JSON")
    scenes = [str(archive), str(archive / f"{number:02d}/items.json")]  # of a folder's JSON not all is STAC
    arguments = ["--scenes", *scenes, *built.arguments[2:], "--out", str(out), "--workers", "2"]
    assert main(arguments) == 0
    good = {path.name for path in archive.iterdir() if len(path.name) > 2}
    assert set(geopandas.read_parquet(out / "index.parquet")["scene"]) == good
    assert len(good) == GOOD
    entries = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert {tuple(entry) for entry in entries} == {("scene", "stage", "reason", "detail")}
    assert not any(entry["scene"] in good or "\n" in entry["detail"] for entry in entries)
    said = [[entry["detail"] for entry in entries if f"/{k:02d}/" in entry["detail"]] for k in range(len(BROKEN))]
    for (kind, broken), details in zip(BROKEN.items(), said, strict=True):
        assert any(broken.words in detail for detail in details), (kind, details)
    assert len(BROKEN) > 60
    assert f"{GOOD} built, 0 of them incomplete, {len(entries)} refused" in capsys.readouterr().out
    assert main([*arguments, "--strict"]) == 3


def test_no_land_cover_under_a_scene_leaves_its_tiles_out_of_the_index(
    built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The northern sheet alone: what lies south of 25 N is built, and known to 0."""
    out, cover = tmp_path / "dataset", tmp_path / "landcover"
    cover.mkdir()
    shutil.copy(built.directory / "landcover" / "n48_25_2020lc030.tif", cover)
    arguments = [*built.arguments, "--out", str(out), "--workers", "2"]
    arguments[arguments.index("--landcover") + 1] = str(cover)
    assert main(arguments) == 0
    index = geopandas.read_parquet(out / "index.parquet")
    whole = geopandas.read_parquet(built.dataset / "index.parquet")
    summary = json.loads((out / "dataset.json").read_text())
    assert 0 < len(index) < len(whole)
    assert summary["counts"]["unknown"] == len(whole) - len(index)
    assert f"{len(whole) - len(index)} left out because too little land cover is known" in capsys.readouterr().out
    assert set(index["tile"]) == set(whole["tile"]) - set(whole["tile"][whole.geometry.bounds["maxy"] < 25]) - {
        tile for tile in whole["tile"][whole.geometry.bounds["miny"] < 25] if tile not in set(index["tile"])
    }
    labels = store.open_scene(str(out / layout.label_store("globeland30_2020")), whole["scene"][0])
    south = whole[(whole["scene"] == whole["scene"][0]) & (whole.geometry.bounds["maxy"] < 25)].iloc[0]
    assert labels["known"][south["row"], south["col"]] == 0
    assert not labels["fraction"][south["row"], south["col"]].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--scenes": "/no/such/place"}, "/no/such/place: no such file or directory"),
        ({"--landcover": "/no/such/map"}, "/no/such/map: no such file or directory"),
        ({"--dem": "/no/such/dem.tif"}, "/no/such/dem.tif: no such file or directory"),
        ({"--stride": "65"}, "stride must be in 1..64 px"),
        ({"--tile": "0"}, "tile"),
        ({"--label-set": "corine_2018"}, "corine_2018"),
        ({"--out": "/dev/null"}, "/dev/null: cannot create this directory"),
        ({"--out": "/dev/null/dataset"}, "/dev/null/dataset: cannot create this directory"),
        ({"--dashboard": "no address"}, "cannot start workers with their dashboard at no address"),
        ({"--performance-report": "/no/such/report.html"}, "/no/such/report.html: its directory does not exist"),
        ({"--params": "/no/such/params.yaml"}, "/no/such/params.yaml"),
        ({"--scheduler": "tcp://127.0.0.1:9"}, "no Dask scheduler answers"),
    ],
)
def test_a_setting_at_fault_stops_at_once_with_one_sentence(
    built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], message: str
) -> None:
    values = dict(zip(built.arguments[::2], built.arguments[1::2], strict=True)) | {"--out": str(tmp_path / "dataset")}
    assert main([part for pair in (values | change).items() for part in pair]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert message in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "dataset" / "tiles.zarr").exists()


def test_two_builds_of_one_data_set_are_refused(
    built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "dataset"
    with files.lock_directory(out, "builds"):
        assert main([*built.arguments, "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"error: {out}: another process builds it now; wait until it has ended\n"
    assert not list(out.iterdir())


def test_an_unknown_parameter_is_named(built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("build: {grid: {tile: 64, strid: 48}}\n")
    values = dict(zip(built.arguments[::2], built.arguments[1::2], strict=True)) | {"--params": str(params)}
    assert main([*(part for pair in values.items() for part in pair), "--out", str(tmp_path / "dataset")]) == 2
    assert "grid.strid is not a setting of a build; stride?" in capsys.readouterr().err


def test_a_directory_without_scenes_says_so(built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    arguments = [*built.arguments, "--out", str(tmp_path / "dataset"), "--workers", "1"]
    arguments[arguments.index("--scenes") + 1] = str(tmp_path / "empty")
    assert main(arguments) == 2
    assert "no TIFF, archive or STAC item" in capsys.readouterr().err


def test_a_scene_lost_between_catalog_and_tiles_is_quarantined(built: Built, tmp_path: Path) -> None:
    scenes, out = tmp_path / "scenes", tmp_path / "dataset"
    shutil.copytree(built.directory / "scenes", scenes)
    arguments = [*built.arguments, "--out", str(out), "--workers", "1"]
    arguments[arguments.index("--scenes") + 1] = str(scenes)
    assert main([*arguments, "--only", "catalog"]) == 0
    lost = next(path for path in scenes.iterdir() if path.is_dir())
    shutil.rmtree(lost)
    for stage in ("tiles", "labels", "index"):
        assert main([*arguments, "--only", stage]) == 0
    entries = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert {(entry["scene"].startswith(lost.name), entry["stage"]) for entry in entries} == {
        (True, "tiles"),
        (True, "index"),
    }
    assert len(set(geopandas.read_parquet(out / "index.parquet")["scene"])) == 2


def test_help_explains_itself() -> None:
    for module in ("pipeline.build_levir_kr", "pipeline.sample", "pipeline.report", "geokr.train", "geokr.export"):
        done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True)
        assert "--help" in done.stdout


def test_archives_are_read_in_place(built: Built) -> None:
    """Nothing is unpacked, and nothing is left beside the archive."""
    archived = next(entry.scene for entry in built.entries if entry.scene.images[0].path.startswith("/vsitar/"))
    with open_image(archived.images[0].path) as source:
        assert source.width == archived.images[0].width
    assert {path.suffix for path in (built.directory / "scenes").rglob("*") if path.is_file()} == {
        ".gz", ".rpb", ".tiff", ".xml",
    }  # fmt: skip
