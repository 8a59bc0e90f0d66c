"""The closing table says what is on the disk."""

import json
from pathlib import Path

import cv2
import geopandas
import pytest

from pipeline.report.__main__ import main
from tests.build.conftest import Built


def test_the_table_says_what_the_files_hold(built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {
        "val_kl": 0.25, "val_kl_mean_baseline": 0.5, "val_top1": 0.75, "val_tiles": 40, "tiles": 400, "steps": 7,
    }  # fmt: skip
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert main([str(built.dataset), str(tmp_path)]) == 0
    said = capsys.readouterr().out
    index = geopandas.read_parquet(built.dataset / "index.parquet")
    assert f"{len(index)} tiles, labels of globeland30_2020" in said
    assert f"{(index['split'] == 'train').sum()} train, {(index['split'] == 'val').sum()} val" in said
    assert f"forest {100 * index['forest'][index['split'] == 'train'].mean():.1f} %" in said
    assert "0.2500 nats KL; 0.5000 for the mean label" in said
    assert str(tmp_path / "encoder.safetensors") in said
    assert "last dashboard    http://127.0.0.1:" in said


def test_the_picture_shows_tiles(built: Built, tmp_path: Path) -> None:
    path = tmp_path / "tiles.png"
    assert main([str(built.dataset), "--picture", str(path)]) == 0
    image = cv2.imread(str(path))
    assert image is not None
    assert image.shape[1] > 2 * image.shape[0]
    assert image.std() > 20


def test_what_is_no_data_set_is_said_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
