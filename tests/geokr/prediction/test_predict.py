"""A network's predictions become maps and a table at their place, and show where the map is out of date."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from rasterio.transform import Affine

from geokr import predict, train
from geokr.dataset import store
from geokr.dataset.layout import label_store
from geokr.prediction.tiles import ScenePrediction, SceneTiles
from tests.geokr.conftest import CLASSES, COLOURS

LABELS = "made_2020"
SETTINGS = ["model=test_resnet", "image_size=32", "batch=32", "steps=80", "lr=0.003", "crop=1.0"]
SETTINGS += ["bands=blue,green,red,nir", "loggers=[]", "probe=0"]
CHANGED = 5
"""Every fifth tile has another class than its map says."""


@pytest.fixture(scope="module")
def run(coloured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    assert train.main(["--data", str(coloured), "--out", str(run), *SETTINGS]) == 0
    return run


def paint(truth: np.ndarray, side: int = 32) -> np.ndarray:
    """Tiles of one class each: (row, col) numbers of classes -> (row, col, band, y, x) uint8."""
    noise = np.random.default_rng(1).normal(0, 12, (*truth.shape, 4, side, side))
    image: np.ndarray = (COLOURS[truth][..., None, None] + noise).clip(0, 255).astype(np.uint8)
    return image


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 3, (6, 8))


@pytest.fixture(scope="module")
def dataset(build: Callable[..., Path], truth: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene whose map is wrong about every fifth tile, and knows nothing of the last one; and one without labels."""
    mapped = truth.copy()
    mapped.ravel()[::CHANGED] = (mapped.ravel()[::CHANGED] + 1) % 3
    share = np.eye(3, dtype=np.float32)[mapped]
    folder = build(
        tmp_path_factory.mktemp("dataset"),
        {"town": paint(truth), "three": paint(truth)[:2, :2, :3]},
        {"town": share, "three": share[:2, :2]},
        bands={"three": ("blue", "green", "red")},
    )
    labels = str(folder / label_store(LABELS))
    store.create_labels(labels, "town", shape=(6, 8), classes=CLASSES, grid=1, block=8, attributes={})
    known = np.ones((6, 8), np.float32)
    known[-1, -1] = 0
    share[-1, -1] = 0
    whole = slice(0, 6), slice(0, 8)
    store.write_block(
        labels, "town", *whole, {"fraction": share, "known": known}, np.where(known > 0, 1, 2).astype(np.uint8)
    )
    return folder


def test_predictions_lie_in_place_and_find_what_changed(
    run: Path, dataset: Path, truth: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict.main([str(run), "--data", str(dataset), "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "three is left out: it has no band nir, only blue, green, red" in printed
    assert "tiles         48 of 1 scenes" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiles.parquet", "town_class.tif", "town_shares.tif"]

    with rasterio.open(tmp_path / "town_class.tif") as file:
        assert (file.read(1) == truth).all()
        assert (file.crs.to_epsg(), file.nodata) == (32647, 255)
        assert file.colormap(1)[1] == (0x1E, 0x84, 0x49, 255)  # forest in the taxonomy
        assert file.tags()["class_0"] == "water"
        x, y = file.xy(2, 3)
    with rasterio.open(tmp_path / "town_shares.tif") as file:
        shares = file.read()
        assert file.descriptions == (*CLASSES, "disagreement")
    assert shares[:3].sum(axis=0) == pytest.approx(np.ones((6, 8)), abs=1e-5)
    changed = np.zeros(48, bool)
    changed[::CHANGED] = True
    disagreement = shares[3].ravel()
    assert np.isnan(disagreement[-1])
    assert disagreement[:-1][changed[:-1]].min() > disagreement[:-1][~changed[:-1]].max()

    table = geopandas.read_parquet(tmp_path / "tiles.parquet")
    assert table.crs.to_epsg() == 4326
    one = table[(table.row == 2) & (table.col == 3)].to_crs("EPSG:32647").iloc[0]
    assert (one.geometry.centroid.x, one.geometry.centroid.y) == pytest.approx((x, y), abs=1e-3)
    assert one.geometry.area == pytest.approx(320.0**2, rel=1e-6)
    assert one.forest == shares[1, 2, 3]
    assert table.disagreement.to_numpy() == pytest.approx(disagreement, nan_ok=True)
    # Where the map is wrong, the prediction is nearer to the truth.
    target = np.eye(3)[truth.ravel()]
    ours = np.abs(table[list(CLASSES)].to_numpy() - target).sum(axis=1)
    theirs = np.abs(table[[f"{name}_map" for name in CLASSES]].to_numpy() - target).sum(axis=1)
    assert (ours[changed] < theirs[changed]).all()


def test_tiles_without_labels_have_no_disagreement(run: Path, coloured: Path, tmp_path: Path) -> None:
    assert predict.main([str(run), "--data", str(coloured), "--out", str(tmp_path)]) == 0
    table = geopandas.read_parquet(tmp_path / "tiles.parquet")
    assert len(table) == 256
    assert table.disagreement.isna().all()
    with rasterio.open(tmp_path / "east_shares.tif") as file:
        assert file.descriptions == CLASSES


def test_scenes_are_written_as_they_come(
    run: Path, coloured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their rows are not kept, and a table that lacks some is not left."""
    assert predict.main([str(run), "--data", str(coloured), "--out", str(tmp_path / "whole")]) == 0
    assert "tiles         256 of 2 scenes" in capsys.readouterr().out
    scenes = geopandas.read_parquet(tmp_path / "whole/tiles.parquet")["scene"]
    assert pq.ParquetFile(tmp_path / "whole/tiles.parquet").num_row_groups == scenes.nunique() == 2
    assert [path.stem for path in sorted((tmp_path / "whole").glob("*_class.tif"))] == [
        f"{name}_class" for name in sorted(scenes.unique())
    ]
    write, written = predict.write_maps, []

    def fail(folder: Path, prediction: ScenePrediction, *more: Any) -> None:
        if written:
            raise OSError("the disk is full")
        written.append(prediction.tiles.name)
        write(folder, prediction, *more)

    monkeypatch.setattr(predict, "write_maps", fail)
    assert predict.main([str(run), "--data", str(coloured), "--out", str(tmp_path / "part")]) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert {path.name.partition("_")[0] for path in (tmp_path / "part").iterdir()} == {*written}


def test_the_summary_is_of_all_scenes() -> None:
    summary, rng, shares, maps = predict.Summary(CLASSES), np.random.default_rng(0), [], []
    for name, tiles in (("a", 7), ("b", 1), ("c", 30)):
        share, label = (rng.dirichlet([1.0] * 3, tiles).astype(np.float32) for _ in range(2))
        label[::5] = np.nan
        place = np.arange(tiles, dtype=np.int32)
        summary.add(ScenePrediction(SceneTiles(name, {}, (1, tiles), place * 0, place, label), share))
        shares.append(share)
        maps.append(label)
    share, label = np.concatenate(shares), np.concatenate(maps)
    difference = np.abs(share - label).sum(axis=1) / 2
    names = [f"{name} (0, {k})" for name, tiles in (("a", 7), ("b", 1), ("c", 30)) for k in range(tiles)]
    worst = np.argsort(-np.nan_to_num(difference, nan=-1))[:3]
    lines = summary.lines(Path("out"))
    assert lines[0] == "tiles         38 of 3 scenes"
    assert all(f"{name} {100 * mean:.1f} %" in lines[1] for name, mean in zip(CLASSES, share.mean(axis=0), strict=True))
    assert lines[2].endswith(f" {np.nanmedian(difference):.3f} in the median of {(~np.isnan(difference)).sum()} tiles")
    assert lines[3] == "worst         " + ", ".join(f"{names[k]}: {difference[k]:.3f}" for k in worst)


def test_what_cannot_be_used_is_named(
    run: Path, dataset: Path, coloured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(*arguments: str | Path) -> str:
        assert predict.main([*map(str, arguments), "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.count("error: ") == 1
        return error

    assert "none/last.pt: no such checkpoint" in refusal(tmp_path / "none", "--data", dataset)
    assert "no scenes; is" in refusal(run, "--data", tmp_path)
    assert "labels/nlcd_2011.zarr/town: no such scene" in refusal(run, "--data", dataset, "--labels", "nlcd_2011")
    assert "device" in refusal(run, "--data", dataset, "--device", "nonsense")


def test_new_scenes_are_built_first(run: Path, tmp_path: Path, truth: np.ndarray) -> None:
    pixels = paint(truth).transpose(2, 0, 3, 1, 4).reshape(4, 6 * 32, 8 * 32)
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 4, "height": 192, "width": 256, "crs": "EPSG:32647"}
    with rasterio.open(tmp_path / "new.tif", "w", **profile, transform=Affine(10, 0, 400000, 0, -10, 3400000)) as file:
        file.write(pixels)
        file.descriptions = ("blue", "green", "red", "nir")
    build = {"grid": {"tile": 32, "stride": 32}, "survey": {"alpha": "band"}, "tiles": {"rules": {"flat_range": 0.0}}}
    (tmp_path / "params.yaml").write_text(json.dumps({"build": build}))
    arguments = ["--scenes", str(tmp_path / "new.tif"), "--params", str(tmp_path / "params.yaml")]
    assert predict.main([str(run), *arguments, "--out", str(tmp_path / "map")]) == 0
    assert len(geopandas.read_parquet(tmp_path / "map" / "tiles.parquet")) >= 30
