"""A data set and all that it is made of in a bucket, of a server that turns one request in ten away.

It is built by a run that is killed, and by one that goes on.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import xarray
from affine import Affine
from rasterio.io import MemoryFile

from benchmarks.s3 import Server, s3_server
from geokr.dataset import layout, store
from geokr.dataset.index import part_name, read_index, read_summary
from geokr.loading.loader import TileLoader
from geokr.loading.selection import Selection
from geokr.storage import files
from pipeline.build_levir_kr import check_inputs, main
from pipeline.catalog.table import CATALOG, read_catalog
from pipeline.config import BuildConfig
from pipeline.relabel import main as add_labels
from pipeline.report.__main__ import main as report
from pipeline.runtime.progress import LOG_FILE
from pipeline.stages import catalog, labels
from pipeline.verify.__main__ import main as verify
from tests.build.conftest import Built
from tests.build.test_runs import digests_of

URL = "s3://bucket/some/dataset"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch, s3_server() as server:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="module")
def arguments(built: Built, server: Server) -> list[str]:
    """The command of `built` with its inputs in the bucket: a folder and archives of scenes, DEM, land cover."""
    found = [*built.arguments]
    for option in ("--scenes", "--landcover", "--dem"):
        place = found.index(option) + 1
        found[place] = server.upload(Path(found[place]), f"world/{Path(found[place]).name}")
    return [*found, "--out", URL, "--workers", "1"]


@pytest.fixture(scope="module")
def bucket(server: Server, arguments: list[str]) -> Server:
    """The data set of `built`, built from the bucket into it by a run that is killed and one that goes on."""
    server.one_in = 10
    command = [sys.executable, "-m", "pipeline.build_levir_kr", *arguments]
    first = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    while first.poll() is None:
        done = [key for key in server.keys("some/dataset/tiles.zarr") if "/status/c/" in key]
        if len(done) >= 5:
            break
        time.sleep(0.05)
    if first.poll() is None:
        os.killpg(first.pid, signal.SIGKILL)
    said, _ = first.communicate()
    assert first.returncode == -signal.SIGKILL, said
    assert not [key for key in server.keys("some/dataset") if key.startswith("index.parquet")]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert "Traceback" not in second.stderr
    assert server.refused > 50
    server.one_in = 0
    return server


def test_the_bytes_are_those_of_a_build_on_a_disk(built: Built, bucket: Server) -> None:
    names = {name for name in bucket.keys("some/dataset") if not name.startswith(f"{LOG_FILE}/")}
    names -= {"dataset.json", "inputs.jsonl"}
    found = {name: hashlib.sha256(bucket.get(f"some/dataset/{name}")).hexdigest() for name in names}
    local = digests_of(built.dataset)
    assert found.keys() == local.keys()
    # The catalog says where all that lies, and croissant.json has its checksum.
    assert {name for name in names if found[name] != local[name]} == {CATALOG, "croissant.json"}
    assert {"README.md", "README-tiles.png", "README-shares.png", "collection.json"} <= names
    assert read_summary(URL)["counts"] == read_summary(built.dataset)["counts"]
    log = [json.loads(line)["event"] for line in files.read_lines(f"{URL}/{LOG_FILE}")]
    assert log[0] == "run"
    assert log.count("run") == 2  # that of the killed run too
    entries = read_catalog(f"{URL}/{CATALOG}")
    assert [Path(entry.scene.delivery).suffix for entry in entries] == [".gz", ".gz", ".tiff"]
    for entry, same in zip(entries, built.entries, strict=True):
        assert entry.scene.delivery.startswith("s3://bucket/world/scenes/")
        assert entry.terrain.dem == "s3://bucket/world/dem.tif"
        assert entry.scene.files == ()
        assert same.source_version == ""
        images = tuple(
            replace(image, path=was.path) for image, was in zip(entry.scene.images, same.scene.images, strict=True)
        )
        scene = replace(entry.scene, delivery=same.scene.delivery, images=images, files=same.scene.files)
        assert replace(entry, scene=scene, terrain=same.terrain, source_version="") == same


def test_it_is_proved_where_it_lies(bucket: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify([URL, "--full", "--sample", "3"]) == 0
    key = next(key for key in bucket.keys("some/dataset/tiles.zarr") if "/image/c/" in key)
    whole = bucket.get(f"some/dataset/tiles.zarr/{key}")
    bucket.put(f"some/dataset/tiles.zarr/{key}", whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    capsys.readouterr()
    assert verify([URL, "--full"]) == 1
    assert f"FAIL  shards: {key.split('/')[0]} block (" in capsys.readouterr().out
    bucket.put(f"some/dataset/tiles.zarr/{key}", whole)


def test_xarray_and_the_loader_read_it(built: Built, bucket: Server) -> None:
    tree = xarray.open_datatree(store.open_store(f"{URL}/{layout.TILES}"), engine="zarr", chunks={})  # type: ignore[arg-type]
    index = geopandas.read_parquet(built.dataset / "index.parquet")
    assert read_index(URL, ["tile"])["tile"].to_pylist() == index["tile"].to_list()
    tile = index.iloc[0]
    pixels = tree[tile["scene"]]["image"][tile["row"], tile["col"]].values
    local = store.open_scene(str(built.dataset / layout.TILES), tile["scene"])["image"]
    assert np.array_equal(pixels, local[tile["row"], tile["col"]])
    loaders = [TileLoader(place, Selection("val"), batch=16, shuffle=False) for place in (URL, built.dataset)]
    for batch, same in zip(*loaders, strict=True):
        assert np.array_equal(batch.image, same.image)
        assert np.array_equal(batch.fraction, same.fraction)


def test_what_is_known_is_not_read_again(bucket: Server, arguments: list[str]) -> None:
    before = {name: bucket.get(f"some/dataset/{name}") for name in (CATALOG, f"{layout.INDEX}/{part_name(0, 1)}")}
    with bucket.listening() as asked:
        assert main(arguments) == 0
    assert not [line for line in asked if "/world/scenes/" in line]
    assert not [line for line in asked if line.startswith("PUT") and "/tiles.zarr/" in line]
    assert before == {name: bucket.get(f"some/dataset/{name}") for name in before}


def remote(config: BuildConfig) -> BuildConfig:
    """The settings of `built` with inputs and data set in the bucket."""
    places = {"scenes": ["s3://bucket/world/scenes"], "dem": "s3://bucket/world/dem.tif"}
    survey = config.survey.model_copy(update=places)
    labels = config.labels.model_copy(update={"landcover": ["s3://bucket/world/landcover"]})
    return config.model_copy(update={"survey": survey, "labels": labels, "out": URL})


def test_an_image_that_was_replaced_is_surveyed_again(built: Built, bucket: Server) -> None:
    (key,) = (f"world/scenes/{key}" for key in bucket.keys("world/scenes") if key.endswith(".tiff"))
    was = bucket.get(key)
    bucket.put(key, was[: len(was) // 2] + bytes(len(was) // 4) + was[-len(was) // 4 :])
    try:
        with (
            bucket.listening() as asked,
            pytest.raises(layout.StoreError, match=r"source\.sha256_of_every_20th_pixel was"),
        ):
            catalog.run(remote(built.config), None)
    finally:
        bucket.put(key, was)
    assert f"GET /bucket/{key}" in asked
    assert not [line for line in asked if line.endswith(".tar.gz")]


@pytest.mark.parametrize("place", ["bucket", "disk"])
@pytest.mark.parametrize("kind", ["dem", "sheet"])
def test_another_dem_or_sheet_of_the_same_size_is_refused_by_name(
    built: Built, bucket: Server, place: str, kind: str
) -> None:
    files = [built.directory / "dem.tif"] if kind == "dem" else sorted((built.directory / "landcover").iterdir())
    file, key = files[0], f"world/{files[0].relative_to(built.directory)}"
    was = file.read_bytes()
    with rasterio.open(file) as raster:
        cells, profile = raster.read() // 50 * 50, raster.profile
    with MemoryFile() as memory:
        with memory.open(**profile) as raster:
            raster.write(cells)
        other = memory.read().ljust(len(was), b"\0")  # a TIFF may go on behind its end
    assert len(other) == len(was)
    config = remote(built.config) if place == "bucket" else built.config
    what = "dem_fingerprint" if kind == "dem" else rf"sheets\.{file.name}"
    said = rf"was built with other settings or from other input \({what} was \w{{64}}, now \w{{64}}\)"

    def run() -> None:
        covers = check_inputs(config)
        if kind == "dem":
            catalog.run(config, None)
        else:
            labels.run(config, covers, read_catalog(f"{config.out}/{CATALOG}"), None)

    try:
        bucket.put(key, other) if place == "bucket" else file.write_bytes(other)
        with pytest.raises(layout.StoreError, match=said):
            run()
    finally:
        bucket.put(key, was) if place == "bucket" else file.write_bytes(was)
    run()


def test_a_product_in_the_bucket_is_added_where_the_data_set_lies(bucket: Server, tmp_path: Path) -> None:
    west, south, east, north = geopandas.read_parquet(BytesIO(bucket.get(f"some/dataset/{CATALOG}"))).total_bounds
    profile = {"driver": "GTiff", "height": 50, "width": 50, "count": 1, "dtype": "uint8", "crs": "EPSG:4326"}
    transform = Affine((east - west) / 50, 0, west, 0, (south - north) / 50, north)
    with rasterio.open(tmp_path / "dynamic_world_2016.tif", "w", **profile, transform=transform) as file:
        file.write(np.tile(np.array([0, 1], np.uint8), (1, 50, 25)))
    place = bucket.upload(tmp_path, "other")
    bucket.copy("some/dataset", "copy")
    assert add_labels(["--data", "s3://bucket/copy", "--landcover", place, "--workers", "1"]) == 0
    assert read_summary("s3://bucket/copy")["label_sets"] == ["dynamic_world_2016", "globeland30_2020"]
    agreement = read_index("s3://bucket/copy", ["agreement"])["agreement"].to_numpy()
    assert np.isfinite(agreement).mean() > 0.9


def test_inputs_that_are_not_there_are_a_sentence(
    server: Server, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {
        "--dem": ("s3://bucket/none.tif", "no such file or directory"),
        "--landcover": ("s3://bucket/none", "no such file or directory"),
        "--scenes": ("s3://nobucket/scenes", "the server answers 404 Not Found, NoSuchBucket"),
    }
    for option, (place, fault) in wrong.items():
        command = [*arguments, "--out", "s3://bucket/new", "--dry-run"]
        command[command.index(option) + 1] = place
        assert main(command) == 2
        (said,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
        assert said == f"error: {place}: {fault}"


def test_a_report_of_it_is_that_of_a_disk(
    built: Built, bucket: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for place in (URL, str(built.dataset)):
        assert report([place, "--picture", str(tmp_path / "tiles.png"), "--html", str(tmp_path / "pages")]) == 0
        said.append([line for line in capsys.readouterr().out.splitlines() if not line.startswith("last dashboard")])
        (tmp_path / "pages").rename(tmp_path / f"pages-{len(said)}")
        assert (tmp_path / "tiles.png").stat().st_size > 10_000
        (tmp_path / "tiles.png").unlink()
    assert said[0] == said[1]
    for name in ("scenes.html", "tiles.html", "labels.html"):  # that of the map has random names of its parts
        texts = [(tmp_path / f"pages-{number}" / name).read_text(encoding="utf-8") for number in (1, 2)]
        assert texts[0].replace(URL, "DATASET") == texts[1].replace(str(built.dataset), "DATASET"), name
    assert (tmp_path / "pages-1/index.html").read_text(encoding="utf-8").count("scenes.html#scene-2") >= 1


def test_an_object_that_is_not_there(bucket: Server) -> None:
    assert not files.exists(f"{URL}/none")
    with pytest.raises(FileNotFoundError, match="No such file or directory: 's3://bucket/some/dataset/none'"):
        files.read(f"{URL}/none")
    with pytest.raises(ValueError, match=r"s3://bucket/none/dataset.json: no such file"):
        read_summary("s3://bucket/none")


def test_a_bucket_that_may_not_be_written_is_a_sentence(server: Server) -> None:
    given = {"shape": (1, 1), "bands": 1, "tile": 16, "block": 1, "dtype": "uint8", "attributes": {}}
    with pytest.raises(layout.StoreWriteError, match=r"s3://nobucket/tiles\.zarr/scene: cannot be written: "):
        store.create_tiles("s3://nobucket/tiles.zarr", "scene", **given)  # type: ignore[arg-type]
    with pytest.raises(OSError, match=r"s3://nobucket/dataset\.json: "):
        files.write("s3://nobucket/dataset.json", b"{}")
