"""Chunks and metadata that are written without zarr-python are those that it would write."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from geokr.dataset import store
from geokr.dataset.shards import encode_chunk

CHECKED = (ZstdCodec(level=0), Crc32cCodec())
NAN = float("nan")


@pytest.mark.parametrize("compressors", [CHECKED, (ZstdCodec(level=3),), ()])
@pytest.mark.parametrize(("dtype", "fill_value"), [("float32", NAN), ("float32", 0.0), ("uint8", 0), ("uint16", 7)])
@pytest.mark.parametrize("shape", [(4, 4, 3), (3, 2, 3)])
def test_a_chunk_is_that_of_zarr(
    tmp_path: Path, shape: tuple[int, ...], dtype: str, fill_value: float, compressors: Any
) -> None:
    random = np.random.default_rng(3)
    values = random.integers(0, 9, shape).astype(dtype)
    if fill_value != fill_value:
        values[0, 0] = NAN
    array = zarr.create_array(
        str(tmp_path), shape=(4, 4, 3), chunks=(4, 4, 3), dtype=dtype, fill_value=fill_value, compressors=compressors
    )
    padded = np.zeros((4, 4, 3), dtype)
    padded[: shape[0], : shape[1]] = values
    array[:] = padded
    document = json.loads((tmp_path / "zarr.json").read_bytes())
    encoded = encode_chunk(values, 4, float(document["fill_value"]), document["codecs"])
    assert encoded is not None
    assert encoded.tobytes() == (tmp_path / "c" / "0" / "0" / "0").read_bytes()


@pytest.mark.parametrize(("dtype", "fill_value"), [("float32", NAN), ("float32", 0.0), ("uint8", 0)])
def test_a_chunk_of_nothing_but_the_fill_value_is_not_written(dtype: str, fill_value: float) -> None:
    values = np.full((4, 4), fill_value, dtype)
    codecs = [{"name": "bytes"}, *(codec.to_dict() for codec in CHECKED)]
    assert encode_chunk(values, 4, fill_value, codecs) is None
    values[1, 1] = 1
    assert encode_chunk(values, 4, fill_value, codecs) is not None


def test_metadata_is_that_of_zarr(tmp_path: Path) -> None:
    store.create_tiles(
        str(tmp_path / "ours"), "scene", shape=(5, 7), bands=2, tile=16, block=4, dtype="uint16", attributes={"gsd": 8}
    )
    group = zarr.create_group(str(tmp_path / "theirs"), attributes={"gsd": 8})
    ours = zarr.open_group(str(tmp_path / "ours"), path="scene", mode="r")
    for name in ("image", "cloud", "lattice_error", "status"):
        array: Any = ours[name]
        group.create_array(
            name,
            shape=array.shape,
            chunks=array.chunks,
            shards=array.shards,
            dtype=array.dtype,
            fill_value=array.fill_value,
            compressors=array.compressors,
            dimension_names=array.metadata.dimension_names,
            attributes=dict(array.attrs),
        )
    for path in sorted((tmp_path / "theirs").rglob("zarr.json")):
        written = tmp_path / "ours" / "scene" / path.relative_to(tmp_path / "theirs")
        assert json.loads(written.read_bytes()) == json.loads(path.read_bytes()), path
    assert json.loads((tmp_path / "ours" / "zarr.json").read_bytes())["node_type"] == "group"
