"""The Python blocks of the documentation run, page by page, beside a data set, a run and an exported encoder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from geokr import export, train
from geokr.dataset.index import read_index
from tests.build.conftest import Built
from tests.test_docs import PAGES, blocks

EXAMPLES = {
    page.name: texts for page in PAGES if (texts := [t for language, t in blocks(page) if language == "python"])
}


@pytest.fixture(scope="module")
def place(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `dataset`, `encoder` and `export`, as the pages name them."""
    place = tmp_path_factory.mktemp("examples")
    (place / "dataset").symlink_to(built.dataset)
    settings = ["model=test_resnet", "image_size=64", "batch=32", "steps=2", "loggers=[]", "probe=0"]
    settings += ["bands=blue,green,red,nir"]
    assert train.main(["--data", str(built.dataset), "--out", str(place / "run"), *settings]) == 0
    assert export.main([str(place / "run"), "--out", str(place / "encoder")]) == 0
    (place / "export").symlink_to(place / "encoder")
    return place


def run(page: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the blocks of a page one after another. Returns all that they have defined."""
    monkeypatch.chdir(place)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (2, 4, 64, 64), np.uint8))
    defined: dict[str, Any] = {"pixels": pixels, "timm": timm, "model": "test_resnet"}
    for text in EXAMPLES[page]:
        exec(compile(text.replace("s3://bucket/prefix", "dataset"), page, "exec"), defined)
    return defined


def test_each_page_with_an_example_is_known() -> None:
    assert sorted(EXAMPLES) == [
        "README.md", "clusters.md", "dataset.md", "evaluation.md", "index.md", "training.md",
    ]  # fmt: skip


@pytest.mark.parametrize("page", ["README.md", "index.md"])
def test_the_encoder_takes_stored_pixels(page: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = run(page, place, monkeypatch)["features"]
    assert features.shape[0] == 2
    assert torch.isfinite(features).all()


def test_the_stores_are_read(built: Built, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = run("clusters.md", place, monkeypatch)["tree"]
    assert {*tree.children} == {entry.scene.id for entry in built.entries}


def test_the_data_set_is_read(built: Built, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("dataset.md", place, monkeypatch)
    assert found["pixels"].shape == (4, 64, 64)
    forest = read_index(built.dataset, ["forest"])["forest"].to_numpy()
    assert len(list(found["rows"])) == len(forest)
    assert len(found["index"]) == (forest > 0.5).sum() > 0  # the window has all tiles in it


def test_the_weights_load_into_timm(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = run("evaluation.md", place, monkeypatch)["network"]
    assert network(torch.zeros(1, 4, 64, 64)).ndim == 2


def test_the_loader_reads_batches(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = run("training.md", place, monkeypatch)["batch"]
    assert batch.image.shape[1:] == (3, 64, 64)
    assert batch.fraction.sum(dim=1).allclose(torch.ones(len(batch.fraction)))
