"""A data set in a bucket of a server that turns one request in ten away, built by a run that is killed and resumed."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import geopandas
import numpy as np
import pytest
import xarray

from geokr import files, store
from geokr.index import read_index, read_summary
from geokr.loader import TileLoader
from pipeline.verify import main as verify
from tests.build.conftest import Built
from tests.build.test_runs import contents
from tests.s3 import Server, s3_server

URL = "s3://bucket/some/dataset"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch, s3_server() as server:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="module")
def bucket(built: Built, server: Server) -> Server:
    """The data set of `built`, built into the bucket by a run that is killed and one that goes on."""
    server.one_in = 10
    command = [sys.executable, "-m", "pipeline.build_levir_kr", *built.arguments, "--out", URL, "--workers", "1"]
    first = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    until = time.monotonic() + 300
    while first.poll() is None and time.monotonic() < until:
        done = [key for key in server.keys("some/dataset/tiles.zarr") if "/status/c/" in key]
        if len(done) >= 5:
            break
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    said, _ = first.communicate()
    assert first.returncode == -signal.SIGKILL, said
    assert "index.parquet" not in server.keys("some/dataset")
    second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert second.returncode == 0, second.stderr
    assert "Traceback" not in second.stderr
    assert server.refused > 50
    server.one_in = 0
    return server


def test_the_bytes_are_those_of_a_build_on_a_disk(built: Built, bucket: Server) -> None:
    names = {*bucket.keys("some/dataset")} - {"dataset.json", "build.jsonl"}
    found = {name: hashlib.sha256(bucket.get(f"some/dataset/{name}")).hexdigest() for name in names}
    assert found == contents(built.dataset)
    assert read_summary(URL)["counts"] == read_summary(built.dataset)["counts"]
    log = [json.loads(line)["event"] for line in bucket.get("some/dataset/build.jsonl").splitlines()]
    assert log[0] == "run"
    assert log.count("run") == 2  # that of the killed run too


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
    tree = xarray.open_datatree(store.opened(f"{URL}/{store.TILES}"), engine="zarr", chunks={})  # type: ignore[arg-type]
    index = geopandas.read_parquet(built.dataset / "index.parquet")
    assert read_index(URL, ["tile"])["tile"].to_pylist() == index["tile"].to_list()
    tile = index.iloc[0]
    pixels = tree[tile["scene"]]["image"][tile["row"], tile["col"]].values
    local = store.open_scene(str(built.dataset / store.TILES), tile["scene"])["image"]
    assert np.array_equal(pixels, local[tile["row"], tile["col"]])
    loaders = [TileLoader(place, "val", batch=16, shuffle=False) for place in (URL, built.dataset)]
    for batch, same in zip(*loaders, strict=True):
        assert np.array_equal(batch.image, same.image)
        assert np.array_equal(batch.share, same.share)


def test_an_object_that_is_not_there(bucket: Server) -> None:
    assert not files.exists(f"{URL}/none")
    with pytest.raises(FileNotFoundError, match="No such file or directory: 's3://bucket/some/dataset/none'"):
        files.read(f"{URL}/none")
    with pytest.raises(ValueError, match=r"s3://bucket/none/dataset.json: no such file"):
        read_summary("s3://bucket/none")


def test_a_bucket_that_may_not_be_written_is_a_sentence(server: Server) -> None:
    layout = {"shape": (1, 1), "bands": 1, "tile": 16, "block": 1, "dtype": "uint8", "attributes": {}}
    with pytest.raises(store.StoreWriteError, match=r"s3://nobucket/tiles\.zarr/scene: cannot be written: "):
        store.create_tiles("s3://nobucket/tiles.zarr", "scene", **layout)  # type: ignore[arg-type]
    with pytest.raises(OSError, match=r"s3://nobucket/dataset\.json: "):
        files.write("s3://nobucket/dataset.json", b"{}")
