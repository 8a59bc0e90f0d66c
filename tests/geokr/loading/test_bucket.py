"""Tiles are read from an S3 bucket as from a disk."""

import shutil
import threading
from pathlib import Path

import numpy as np
import obstore
import pytest

from geokr.dataset.index import list_parts, part_name, publish, write_part
from geokr.dataset.layout import INDEX, UNFINISHED_INDEX
from geokr.loading.pixels import TileReader
from geokr.loading.selection import Selection, select_tiles
from geokr.storage import files

BANDS = ("red", "green", "blue")


def test_pixels_come_from_a_bucket_as_from_a_disk(addressed: Path, bucket: str) -> None:
    for path in (addressed / "tiles.zarr").rglob("*"):
        if path.is_file():
            files.write(f"{bucket}/{path.relative_to(addressed)}", path.read_bytes())
    _, tiles = select_tiles(addressed, Selection("train"))
    disk = TileReader(f"{addressed}/tiles.zarr", tiles, BANDS)
    cloud = TileReader(f"{bucket}/tiles.zarr", tiles, BANDS)
    positions = np.random.default_rng(0).permutation(len(tiles))
    here, there = (np.zeros((len(tiles), *disk.tile_shape), np.uint8) for _ in range(2))
    assert disk.finish(disk.request(positions, here)) == {}
    assert cloud.finish(cloud.request(positions, there)) == {}
    assert here.any()
    assert np.array_equal(here, there)


def test_a_shard_that_the_bucket_lacks_is_named(addressed: Path, bucket: str) -> None:
    shutil.rmtree(addressed / "tiles.zarr/gamma/image/c/1")
    for path in (addressed / "tiles.zarr").rglob("*"):
        if path.is_file():
            files.write(f"{bucket}/{path.relative_to(addressed)}", path.read_bytes())
    _, tiles = select_tiles(addressed, Selection("train"))
    cloud = TileReader(f"{bucket}/tiles.zarr", tiles, BANDS)
    target = np.zeros((len(tiles), *cloud.tile_shape), np.uint8)
    wrong = cloud.finish(cloud.request(np.arange(len(tiles)), target))
    assert len(wrong) == 6
    assert all(why.startswith(f"{bucket}/tiles.zarr/gamma/image/c/1/0/0/0/0: tile (") for why in wrong.values())


def test_parts_are_published_at_the_same_time(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, thousands would take minutes."""
    together, copy = threading.Barrier(8), obstore.copy

    def held(*places: object) -> None:
        together.wait()
        copy(*places)

    monkeypatch.setattr(obstore, "copy", held)
    for number in range(16):
        write_part(bucket, number, 16, b"%d" % number)
    publish(bucket, 16)
    names = [part_name(number, 16) for number in range(16)]
    assert [files.read(f"{bucket}/{INDEX}/{name}") for name in names] == [b"%d" % number for number in range(16)]


def test_an_index_in_a_bucket_replaces_one_with_more_parts(addressed: Path, bucket: str) -> None:
    content = Path(*list_parts(addressed)).read_bytes()
    files.write(f"{bucket}/dataset.json", (addressed / "dataset.json").read_bytes())
    for parts in (3, 1):
        for number in range(parts):
            write_part(bucket, number, parts, content)
        publish(bucket, parts)
        assert files.list_names(f"{bucket}/{INDEX}") == [part_name(number, parts) for number in range(parts)]
        assert files.list_names(f"{bucket}/{UNFINISHED_INDEX}") == []
    wanted, found = select_tiles(addressed, Selection("train")), select_tiles(bucket, Selection("train"))
    assert np.array_equal(found[1].fraction, wanted[1].fraction)
    files.remove(f"{bucket}/{INDEX}/{part_name(0, 1)}")
    with pytest.raises(ValueError, match="0 parts, expected at least one"):
        select_tiles(bucket, Selection("train"))
