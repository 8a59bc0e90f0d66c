"""What a build says of its data set: Croissant, STAC and README agree with what lies there."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import mlcroissant
import numpy as np
import pyarrow.parquet as pq
import pystac
import pytest
import xarray
from pystac.extensions.datacube import DatacubeExtension
from pystac.extensions.table import TableExtension

from geokr.dataset.index import list_parts, read_index, read_summary
from pipeline.report.readme import find_terms, write_readme
from tests.build.conftest import Built

WRITTEN = ("README.md", "README-tiles.png", "README-shares.png", "croissant.json", "collection.json")


def describe(dataset: Path, built: Built) -> None:
    write_readme(str(dataset), read_summary(dataset), built.entries)


def test_croissant_is_valid_and_reads_the_index(built: Built) -> None:
    described = mlcroissant.Dataset(jsonld=built.dataset / "croissant.json")
    issues = described.metadata.ctx.issues
    assert not issues.errors
    # A build does not know when its data set is published, nor how it is cited.
    assert {re.search(r'/(\w+)" is recommended', warning)[1] for warning in issues.warnings} == {  # type: ignore[index]
        "citeAs",
        "datePublished",
    }
    rows = list(described.records("tiles"))
    index = read_index(built.dataset)
    assert len(rows) == len(index) > 100
    found = {name: [row[f"tiles/{name}"] for row in rows] for name in index.column_names}
    assert found["tile"] == [name.encode() for name in index["tile"].to_pylist()]
    for name in (*read_summary(built.dataset)["classes"], "known", "row", "gsd"):
        np.testing.assert_array_equal(found[name], index[name].to_numpy())
    (catalog,) = described.metadata.file_objects
    assert catalog.sha256 == read_summary(built.dataset)["sha256"]["scenes.parquet"]


def test_the_collection_is_valid_and_names_columns_and_dimensions(built: Built) -> None:
    value: dict[str, Any] = json.loads((built.dataset / "collection.json").read_bytes())
    # The schemas of extensions are on the web alone; pystac holds that of the core.
    pystac.Collection.from_dict(value | {"stac_extensions": []}).validate()
    collection = pystac.Collection.from_dict(value)
    table = TableExtension.ext(collection)
    schema = pq.read_schema(list_parts(built.dataset)[0])
    assert [column.name for column in table.columns] == schema.names
    assert table.row_count == read_summary(built.dataset)["counts"]["index"]
    cube = DatacubeExtension.ext(collection)
    group = next(iter(xarray.open_datatree(built.dataset / "tiles.zarr", engine="zarr", chunks={}).children.values()))
    labels = xarray.open_datatree(built.dataset / "labels/globeland30_2020.zarr", engine="zarr", chunks={})
    arrays = {**group.data_vars, **next(iter(labels.children.values())).data_vars}
    arrays["status"] = group["status"]
    assert cube.variables is not None
    for name, variable in cube.variables.items():
        assert tuple(variable.dimensions) == arrays[name].dims, name
    values = {name: len(cube.dimensions[name].to_dict()["values"]) for name in ("band", "class")}
    assert values == {"band": arrays["image"].sizes["band"], "class": arrays["fraction"].sizes["class"]}
    assert cube.dimensions["y"].to_dict()["extent"] == [0, arrays["image"].sizes["y"] - 1]
    for asset in collection.assets.values():
        assert (built.dataset / asset.href).exists()
    (west, south, east, north) = collection.extent.spatial.bboxes[0]
    boxes = read_index(built.dataset, ["bbox"])["bbox"].combine_chunks()
    assert west <= min(boxes.field("xmin").to_pylist()) < max(boxes.field("xmax").to_pylist()) <= east
    assert south <= min(boxes.field("ymin").to_pylist()) < max(boxes.field("ymax").to_pylist()) <= north


def test_the_card_shows_pictures_and_its_example_runs(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (built.dataset / "README.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[.+\]\((.+)\)", text)
    assert pictures == ["README-tiles.png", "README-shares.png"]
    for name in pictures:
        image = cv2.imread(str(built.dataset / name))
        assert image is not None
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50
    assert "GlobeLand30, 30 m: free for research" in text
    assert "| GF1 |" in text
    assert re.search(r"^- Images of GF\w+(, GF\w+)*: terms of the China Centre", text, re.MULTILINE)
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(built.dataset)
    said: dict[str, Any] = {}
    exec(example, said)
    assert said["pixels"].shape == (4, 64, 64)
    first = read_index(built.dataset, ["cultivated", "forest"]).slice(0, 1).to_pylist()[0]
    assert said["shares"].to_dict() == first


def test_the_same_data_set_has_the_same_card_elsewhere(built: Built, tmp_path: Path) -> None:
    shutil.copytree(built.dataset, tmp_path / "moved")
    for name in WRITTEN:
        (tmp_path / "moved" / name).unlink()
    describe(tmp_path / "moved", built)
    assert {name: (tmp_path / "moved" / name).read_bytes() for name in WRITTEN} == {
        name: (built.dataset / name).read_bytes() for name in WRITTEN
    }


def test_a_card_that_cannot_be_made_is_a_warning(
    built: Built, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(built.dataset, tmp_path / "damaged")
    (part,) = (tmp_path / "damaged/index.parquet").iterdir()
    part.unlink()
    describe(tmp_path / "damaged", built)
    (said,) = caplog.messages
    assert said.startswith(f"{tmp_path}/damaged: its description cannot be written: ")
    assert "0 parts, expected at least one" in said


@pytest.mark.parametrize(
    ("satellite", "words"),
    [("Sentinel-2A", "Copernicus"), ("LANDSAT_8", "public domain"), ("GF2", "China Centre"), ("SkySat", "owner")],
)
def test_terms_of_images(satellite: str, words: str) -> None:
    assert words in find_terms(satellite)
