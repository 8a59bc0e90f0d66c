"""Neighbouring windows of a JPEG 2000 image share what is decoded, and hold its pixels whatever happens to that."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from rasterio.windows import Window

from pipeline.geometry.sensor import Georeferenced
from pipeline.scenes import decoded as module
from pipeline.scenes.archive import member_path
from pipeline.scenes.decoded import FOLDER, read_decoded
from pipeline.scenes.raster import open_image, read_bands
from pipeline.scenes.scene import Image, SceneError
from tests.deliveries import jp2, write_zip

ROWS, COLS, PART = 600, 840, 256
PIXELS = np.random.default_rng(0).integers(1, 60_000, (3, ROWS, COLS)).astype(np.uint16)
PLACE = {"crs": "EPSG:32648", "transform": Affine(10, 0, 5e5, 0, -10, 2.7e6)}


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GEOKR_SCRATCH", str(tmp_path / "scratch"))
    return tmp_path / "scratch" / FOLDER


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.jp2"
    path.write_bytes(jp2(PIXELS, PART, **PLACE))
    return path


class Counted:
    """An open image that counts the pixels of each read."""

    def __init__(self, file: Any) -> None:
        self.file, self.decoded = file, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def read(self, indexes: list[int], window: Window) -> Any:
        self.decoded += int(window.width * window.height)
        return self.file.read(indexes, window=window)


@contextmanager
def counted(path: Path | str) -> Iterator[Counted]:
    with open_image(str(path)) as file:
        yield Counted(file)


def describe(path: Path) -> Image:
    model = Georeferenced("EPSG:32648", (10, 0, 5e5, 0, -10, 2.7e6))
    return Image(str(path), ("a", "b", "c"), COLS, ROWS, "uint16", None, 10.0, model)


def read(file: Any, window: Window, indexes: tuple[int, ...] = (1, 2, 3)) -> Any:
    out = np.zeros((len(indexes), window.height, window.width), np.uint16)
    read_decoded(file, indexes, window, out)
    return out


def test_any_window_holds_the_pixels_of_the_image(path: Path) -> None:
    rng = np.random.default_rng(1)
    with open_image(str(path)) as file:
        for _ in range(30):
            row, col = int(rng.integers(ROWS)), int(rng.integers(COLS))
            window = Window(col, row, int(rng.integers(1, COLS - col + 1)), int(rng.integers(1, ROWS - row + 1)))
            indexes = ((1, 2, 3), (2,), (3, 1))[int(rng.integers(3))]
            expected = PIXELS[:, row : row + window.height, col : col + window.width][[k - 1 for k in indexes]]
            assert np.array_equal(read(file, window, indexes), expected)


def test_each_part_is_decoded_once_by_all_windows_and_processes_of_a_machine(path: Path) -> None:
    total = 0
    for row in range(0, ROWS, 150):
        for col in range(0, COLS, 170):
            with counted(path) as file:  # opened anew, as another process does it
                window = Window(col, row, min(200, COLS - col), min(180, ROWS - row))
                read(file, window)
                total += file.decoded
    assert total == ROWS * COLS


@pytest.mark.parametrize("form", ["stored", "packed"])
def test_members_of_archives_are_decoded_once_too(tmp_path: Path, path: Path, form: str) -> None:
    archive = write_zip(tmp_path / "a.zip", {"a.jp2": path.read_bytes()}, 0 if form == "stored" else 8)
    for expected in (PART * PART, 0):
        with counted(member_path(str(archive), "a.jp2")) as file:
            assert np.array_equal(read(file, Window(5, 6, 20, 30)), PIXELS[:, 6:36, 5:25])
            assert file.decoded == expected


def test_parts_of_a_replaced_image_are_not_taken(path: Path) -> None:
    with open_image(str(path)) as file:
        read(file, Window(0, 0, 10, 10))
    os.utime(path, (1, 1))
    changed = PIXELS // 2
    path.write_bytes(jp2(changed, PART, **PLACE))
    with open_image(str(path)) as file:
        assert np.array_equal(read(file, Window(0, 0, 10, 10)), changed[:, :10, :10])


@pytest.mark.parametrize("fault", ["cut", "empty", "noise", "no folder", "no room"])
def test_what_cannot_be_kept_is_decoded_again(
    path: Path, scratch: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "no folder":
        scratch.parent.mkdir(mode=0o700)
        scratch.write_bytes(b"a file in its place")
    if fault == "no room":
        monkeypatch.setattr(module, "MIN_FREE", 1 << 60)
    for _ in range(2):
        with counted(path) as file:
            assert np.array_equal(read(file, Window(0, 0, 600, 400)), PIXELS[:, :400, :600])
        for part in scratch.glob("*.npy"):
            content = part.read_bytes()
            part.write_bytes({"cut": content[:1000], "empty": b"", "noise": b"\x93NUMPY\x01\0"}[fault])
    assert file.decoded == 3 * PART * 2 * PART
    assert not [*scratch.glob("*.new")]


def test_the_oldest_parts_make_room(path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = PIXELS.shape[0] * PART * PART * 2
    monkeypatch.setattr(module, "MAX_TOTAL", 3 * size)
    monkeypatch.setattr(module, "CHECKED", 0)
    monkeypatch.setattr(module, "_room", threading.local())
    with open_image(str(path)) as file:
        read(file, Window(0, 0, COLS, ROWS))
    assert sum(part.stat().st_size for part in scratch.iterdir()) <= 4 * size


def test_blocks_are_read_this_way_and_samples_are_not(path: Path, scratch: Path) -> None:
    image = describe(path)
    window = Window(100, 90, 200, 150)
    for many in (False, True):
        (pixels,), _ = read_bands(image, window, [slice(0, 3)], one_of_many=many)
        assert np.array_equal(np.moveaxis(pixels, -1, 0), PIXELS[:, 90:240, 100:300])
        assert scratch.exists() == many


def test_an_image_that_is_cut_is_named(path: Path) -> None:
    image = describe(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SceneError, match=r"a\.jp2: cannot be read"):
        read_bands(image, Window(0, 0, COLS, ROWS), [slice(0, 3)], one_of_many=True)
