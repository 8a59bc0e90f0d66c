"""Several label sets side by side: added without touching a pixel, compared in the index, in other classes."""

import json
import shutil
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from dask.distributed import LocalCluster

from geokr.dataset import layout, store
from geokr.dataset.index import list_parts, read_index
from geokr.loading.selection import Selection, select_tiles
from pipeline import relabel
from pipeline.build_levir_kr import main
from pipeline.verify.__main__ import main as verify
from tests.build.conftest import Built

BASE, OTHER = "globeland30_2020", "dynamic_world_2016"


def read_bytes(dataset: Path) -> list[bytes]:
    """The parts of the index."""
    return [Path(part).read_bytes() for part in list_parts(dataset)]


@pytest.fixture(scope="module")
def other(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another product over the western part of the scenes: forest in its north, water in its south."""
    west, south, east, north = geopandas.read_parquet(built.dataset / "scenes.parquet").total_bounds
    folder = tmp_path_factory.mktemp("other")
    size = (north - south) / 60
    profile = {"driver": "GTiff", "height": 62, "width": 31, "count": 1, "dtype": "uint8", "crs": "EPSG:4326"}
    transform = Affine((east - west) / 60, 0, west, 0, -size, north + size)
    with rasterio.open(folder / "dynamic_world_2016.tif", "w", **profile, transform=transform) as file:
        file.write(np.repeat(np.array([1, 0], np.uint8), 31)[:, None].repeat(31, axis=1), 1)
    return folder


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and date of every file."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def copied(built: Built, place: Path, labels_too: bool = True) -> Path:
    shutil.copytree(built.dataset, place)
    if not labels_too:
        shutil.rmtree(place / layout.LABELS)
    return place


def test_a_product_is_added_without_touching_a_pixel_and_compared(
    built: Built, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copied(built, tmp_path / "added")
    tiles, base = files(out / layout.TILES), files(out / layout.label_store(BASE))
    before = geopandas.read_parquet(out / "index.parquet")
    assert before["agreement"].isna().all()
    assert set(before["year_gap"]) == {2020 - date.year for date in before["acquired"]}
    assert relabel.main(["--data", str(out), "--landcover", str(other), "--workers", "1"]) == 0
    assert files(out / layout.TILES) == tiles
    assert files(out / layout.label_store(BASE)) == base
    after = geopandas.read_parquet(out / "index.parquet")
    summary = json.loads((out / "dataset.json").read_text())
    assert (summary["label_set"], summary["label_sets"]) == (BASE, [OTHER, BASE])
    assert summary["settings"]["labels"]["landcover"] == [*built.config.labels.landcover, str(other)]
    assert "splits" in summary["counts"]
    same = [name for name in before.columns if name not in ("agreement", "geometry")]
    assert before[same].equals(after[same])
    classes = summary["classes"]
    assert 0 < after["agreement"].isna().sum() < len(after)
    enough = 0
    for _, row in after.iterrows():
        group = store.open_scene(str(out / layout.label_store(OTHER)), row["scene"])
        known = group["known"][row["row"], row["col"]]
        enough += known >= 0.5  # min_known
        assert np.isnan(row["agreement"]) == (known == 0)
        if known > 0:
            apart = np.abs(row[classes].to_numpy(float) - group["fraction"][row["row"], row["col"]]).sum()
            assert row["agreement"] == pytest.approx(1 - apart / 2, abs=1e-6)
    # A build of both from the start comes to the same.
    again = copied(built, tmp_path / "again", labels_too=False)
    arguments = [*built.arguments, "--out", str(again), "--workers", "1", "--label-set", BASE]
    arguments.insert(arguments.index("--landcover") + 1, str(other))
    assert main([*arguments, "--only", "labels"]) == main([*arguments, "--only", "index"]) == 0
    assert read_bytes(again) == read_bytes(out)
    capsys.readouterr()
    # An index of the tiles on which the sets agree, and the proof of it.
    params = tmp_path / "params.yaml"
    params.write_text((built.directory / "params.yaml").read_text().replace("index: {", "index: {min_agreement: 0.3, "))
    assert main([*arguments, "--params", str(params), "--only", "index"]) == 0
    assert 0 < read_index(again).num_rows < len(after)
    assert verify([str(again)]) == 0
    # From now on the index may be of the new set.
    assert relabel.main(["--data", str(out), "--landcover", str(other), "--label-set", OTHER, "--workers", "1"]) == 0
    turned = read_index(out)
    assert 0 < turned.num_rows == enough
    assert set(turned["year_gap"].to_pylist()) == {2016 - date.year for date in after["acquired"]}
    assert relabel.main(["--data", str(out), "--landcover", str(other), "--label-set", "nlcd_2019"]) == 2
    assert "error: label_set is nlcd_2019, expected one of dynamic_world_2016" in capsys.readouterr().err
    # The first command knows nothing of the new set, and says so.
    capsys.readouterr()
    assert main([*built.arguments, "--out", str(out), "--workers", "1", "--only", "index"]) == 0
    said = capsys.readouterr().err
    assert f"{OTHER}: their land cover is no longer among the inputs; the index leaves them out" in said
    assert f"the index changes from label set {OTHER} to {BASE}" in said


def test_the_papers_classes_are_another_taxonomy_and_never_mixed_with_the_base(
    built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copied(built, tmp_path / "dataset")
    arguments = [*built.arguments, "--out", str(out), "--workers", "1", "--taxonomy", "paper"]
    assert main([*arguments, "--only", "labels"]) == 2
    said = capsys.readouterr().err
    assert "was built with other settings" in said
    assert "taxonomy" in said
    shutil.rmtree(out / layout.LABELS)
    assert main([*arguments, "--only", "labels"]) == main([*arguments, "--only", "index"]) == 0
    summary = json.loads((out / "dataset.json").read_text())
    assert (summary["taxonomy"], len(summary["classes"])) == ("paper-1", 8)
    paper, base = geopandas.read_parquet(out / "index.parquet"), geopandas.read_parquet(built.dataset / "index.parquet")
    assert "shrubland" not in paper.columns
    both = base.set_index("tile").loc[paper["tile"]].reset_index()
    left_out = both["shrubland"] + both["tundra"]  # of GlobeLand30 and of the sample world, whose sea is code 60
    assert paper["known"].to_numpy() == pytest.approx((both["known"] * (1 - left_out)).to_numpy(), abs=1e-6)
    assert paper[summary["classes"]].sum(axis=1).to_numpy() == pytest.approx(np.ones(len(paper)), abs=1e-6)
    assert verify([str(out), "--sample", "2"]) == 0


def test_a_data_set_gets_another_taxonomy_without_touching_a_pixel(
    built: Built, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, wanted = copied(built, tmp_path / "changed"), copied(built, tmp_path / "wanted", labels_too=False)
    arguments = [*built.arguments, "--out", str(wanted), "--workers", "1", "--taxonomy", "paper"]
    assert main([*arguments, "--only", "labels"]) == main([*arguments, "--only", "index"]) == 0
    tiles, cover = files(out / layout.TILES), built.config.labels.landcover
    command = ["--data", str(out), "--taxonomy", "paper", "--workers", "1", "--landcover"]
    # All label sets have one taxonomy.
    assert relabel.main([*command, str(other)]) == 2
    assert f"now globeland30; give the land cover of {BASE}, too" in capsys.readouterr().err
    # One that was stopped on its way, between two scenes: nobody reads shares of one class as those of another.
    name = store_of_first_scene(out)
    store.discard_scene(str(out / layout.label_store(BASE)), name)
    attributes = store.open_scene(str(wanted / layout.label_store(BASE)), name).attrs
    shutil.rmtree(out / layout.label_store(BASE) / name)
    shutil.copytree(wanted / layout.label_store(BASE) / name, out / layout.label_store(BASE) / name)
    assert attributes["taxonomy"] == "paper-1"
    with pytest.raises(ValueError, match=rf"{name}: its labels have the classes .*; run geokr label again"):
        select_tiles(out, Selection("train", grid=2))
    assert relabel.main([*command, *cover]) == 0
    assert files(out / layout.TILES) == tiles
    assert read_bytes(out) == read_bytes(wanted)
    settings, expected = (json.loads((place / "dataset.json").read_text()) for place in (out, wanted))
    assert settings["settings"]["labels"]["taxonomy"] == "paper"
    assert [settings[key] for key in ("taxonomy", "classes", "counts")] == [
        expected[key] for key in ("taxonomy", "classes", "counts")
    ]
    assert select_tiles(out, Selection("train", grid=2))[0] == tuple(expected["classes"])
    assert verify([str(out)]) == 0


def store_of_first_scene(dataset: Path) -> str:
    return sorted(path.name for path in (dataset / layout.label_store(BASE)).iterdir() if path.is_dir())[0]


def test_land_cover_of_elsewhere_is_refused_before_a_pixel_is_read(
    built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "elsewhere", tmp_path / "dataset"
    folder.mkdir()
    profile = {"driver": "GTiff", "height": 9, "width": 9, "count": 1, "dtype": "uint8", "crs": "EPSG:4326"}
    path = folder / "dynamic_world_2016.tif"
    with rasterio.open(path, "w", **profile, transform=Affine(0.1, 0, -30, 0, -0.1, -20)) as file:
        file.write(np.ones((9, 9), np.uint8), 1)
    arguments = [*built.arguments, "--out", str(out), "--workers", "1", "--label-set", BASE]
    arguments.insert(arguments.index("--landcover") + 1, str(folder))
    for command in (arguments, [*arguments, "--dry-run"]):
        assert main(command) == 2
        (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert said == f"error: {OTHER}: none of its sheets, {path}, covers any of the scenes; leave it out"
    assert not (out / layout.TILES).exists()


def test_a_sheet_that_is_another_by_the_same_name_is_refused(
    built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, cover = copied(built, tmp_path / "dataset"), tmp_path / "landcover"
    shutil.copytree(built.directory / "landcover", cover)
    with (cover / "n48_25_2020lc030.tif").open("ab") as sheet:
        sheet.write(b"more")
    arguments = [*built.arguments, "--out", str(out), "--workers", "1", "--only", "labels"]
    arguments[arguments.index("--landcover") + 1] = str(cover)
    assert main(arguments) == 2
    assert "sheets.n48_25_2020lc030.tif was " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ("index: {min_agreement: 0.5}", "min_agreement is set, but globeland30_2020 is the only label set"),
        ("labels: {taxonomy: nowhere}", "nowhere: no taxonomy of that name"),
        ("labels: {legends: [/no/such/file.toml]}", "/no/such/file.toml: cannot be read"),
        ("index: {max_year_gap: -1}", "max_year_gap"),
        ("index: {min_agreement: 2}", "min_agreement"),
    ],
)
def test_a_setting_of_labels_at_fault_stops_at_once(
    built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: str, fault: str
) -> None:
    params = tmp_path / "params.yaml"
    params.write_text(f"build: {{grid: {{block: 8}}, {settings}}}\n")
    arguments = [*built.arguments, "--out", str(tmp_path / "dataset")]
    arguments[arguments.index("--params") + 1] = str(params)
    assert main(arguments) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert fault in said


def test_a_class_may_not_be_named_as_a_column_of_the_index(
    built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taxonomy = tmp_path / "mine.toml"
    names = [
        "cultivated",
        "forest",
        "grassland",
        "shrubland",
        "wetland",
        "water",
        "tundra",
        "artificial",
        "bare",
        "snow_ice",
    ]
    rows = "\n".join(f'{name} = "place"' for name in names)
    taxonomy.write_text(
        f'name = "mine"\nversion = 1\nclasses = [{{ name = "place", colour = "#000000" }}]\n[base]\n{rows}\n'
    )
    assert main([*built.arguments, "--out", str(tmp_path / "dataset"), "--taxonomy", str(taxonomy)]) == 2
    assert "mine-1: class place has the name of an index column" in capsys.readouterr().err


def test_an_old_label_set_gets_its_grid_without_touching_a_pixel(
    built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copied(built, tmp_path / "dataset")
    root = out / layout.label_store(BASE)
    scenes = [path for path in root.iterdir() if path.is_dir()]
    for scene in scenes:  # as they were before there were parts
        shutil.rmtree(scene / "fraction_grid")
        group = json.loads((scene / "zarr.json").read_text())
        assert group["attributes"].pop("grid") in layout.GRIDS
        (scene / "zarr.json").write_text(json.dumps(group))
    summary = json.loads((out / "dataset.json").read_text())
    del summary["settings"]["labels"]["grid"]
    (out / "dataset.json").write_text(json.dumps(summary))
    tiles = files(out / layout.TILES)
    arguments = ["--data", str(out), "--workers", "1"]
    assert main([*built.arguments, "--out", str(out), "--workers", "1", "--only", "labels"]) == 2
    assert "grid was missing, now 8" in capsys.readouterr().err
    assert relabel.main([*arguments, "--landcover", *built.config.labels.landcover]) == 0
    assert files(out / layout.TILES) == tiles
    assert read_bytes(out) == read_bytes(built.dataset)
    fresh = built.dataset / layout.label_store(BASE)
    assert {name: content for name, (content, _) in files(root).items()} == {
        name: content for name, (content, _) in files(fresh).items()
    }
    assert verify([str(out)]) == 0
    # A coarser grid: the same labels of tiles, and their parts are means of the finer ones.
    assert relabel.main([*arguments, "--landcover", *built.config.labels.landcover, "--grid", "2"]) == 0
    assert files(out / layout.TILES) == tiles
    for scene in scenes:
        coarse, fine = (store.open_scene(str(folder), scene.name) for folder in (root, fresh))
        assert np.abs(coarse["fraction"][:] - fine["fraction"][:]).max() < 1e-4  # where tiles cross two sheets
        grid = fine["fraction_grid"][:]
        assert coarse["fraction_grid"].shape[2:4] == (2, 2)
        side = grid.shape[2] // 2
        means = grid.reshape(*grid.shape[:2], 2, side, 2, side, -1).mean(axis=(3, 5))
        assert np.abs(means - coarse["fraction_grid"][:]).max() <= 2


def test_labels_are_added_on_a_cluster(
    built: Built, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copied(built, tmp_path / "dataset")
    command = ["--data", str(out), "--landcover", str(other)]
    with LocalCluster(1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:
        assert relabel.main([*command, "--scheduler", cluster.scheduler_address]) == 0
        assert cluster.scheduler.transition_counter > 0  # it has had tasks
    assert json.loads((out / "dataset.json").read_text())["label_sets"] == [OTHER, BASE]
    assert relabel.main([*command, "--scheduler", "tcp://127.0.0.1:9"]) == 2
    assert "no Dask scheduler answers at this address" in capsys.readouterr().err
    assert relabel.main([*command, "--workers", "0"]) == 2
    assert "--workers must be at least 1, got 0" in capsys.readouterr().err
