"""Images in compressed archives: read from a copy that is made once, shared, bounded, and never in anybody's way."""

import os
import shutil
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from rasterio.errors import RasterioIOError

from pipeline.scenes import scratch as module
from pipeline.scenes.archive import member_path, read_contents
from pipeline.scenes.raster import open_image
from pipeline.scenes.scene import SceneError
from pipeline.scenes.scratch import open_local_copy
from tests.deliveries import STEM, coordinates, members, write_archive, write_zip

IMAGE = f"{STEM}.tiff"


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GEOKR_SCRATCH", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


def copies(scratch: Path) -> list[Path]:
    return [file for file in scratch.glob("*") if file.suffix != ".lock"]


@pytest.mark.parametrize("form", [".tar.gz", ".tgz", ".zip", ".tar", "stored.zip"])
def test_only_what_is_compressed_is_copied(tmp_path: Path, scratch: Path, form: str) -> None:
    archive = tmp_path / f"in{form}"
    if form.endswith("zip"):
        write_zip(archive, members(), 0 if form == "stored.zip" else 8)
    else:
        write_archive(archive, members())
    path = member_path(str(archive), IMAGE)
    for _ in range(2):
        with open_image(path) as file:
            assert np.array_equal(file.read(), coordinates())
    found = copies(scratch)
    assert len(found) == (0 if form in (".tar", "stored.zip") else 1)
    assert all(file.read_bytes() == members()[IMAGE] for file in found)
    assert oct(scratch.stat().st_mode)[-3:] == "700" if found else True


@pytest.mark.parametrize("form", [".tar.gz", ".zip", ".tar", "stored.zip"])
@pytest.mark.parametrize(
    "name", ["ü é 雪.tiff", "a b#1 100%.tiff", f"{'folder/' * 20}a.tiff", f"{'n' * 97}.tiff", "{a}/b.tiff"]
)
@pytest.mark.parametrize("layout", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_member_is_found_whatever_its_name(
    tmp_path: Path, form: str, name: str, layout: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names that are long or not ASCII are in extended headers of a tar, which GDAL does not read."""
    monkeypatch.setattr(tarfile, "DEFAULT_FORMAT", layout)
    monkeypatch.setattr(tarfile.TarFile, "format", layout)
    files = {name: members()[IMAGE]}
    archive = tmp_path / f"in{form}"
    write_zip(archive, files, 0 if form == "stored.zip" else 8) if "zip" in form else write_archive(archive, files)
    with open_image(member_path(str(archive), name)) as file:
        assert np.array_equal(file.read(), coordinates())


@pytest.mark.parametrize("method", [0, 8])
@pytest.mark.parametrize(("encoding", "text"), [("gb18030", "影像 数据"), ("utf-8", "影像 ü"), ("cp437", "état ÿ")])
def test_a_zip_need_not_declare_the_encoding_of_its_names(
    tmp_path: Path, encoding: str, text: str, method: int
) -> None:
    """Windows writes names in the encoding of its language."""
    name, raw = f"{text}/{IMAGE}", f"{text}/".encode(encoding)
    archive = write_zip(tmp_path / "in.zip", {f"{'x' * len(raw)}{IMAGE}": members()[IMAGE]}, method)
    archive.write_bytes(archive.read_bytes().replace(b"x" * len(raw), raw))
    contents = read_contents(str(archive))
    assert (contents.faults, [*contents.files]) == ([], [name])
    with open_image(member_path(str(archive), name)) as file:
        assert np.array_equal(file.read(), coordinates())


def test_a_tar_may_be_called_gzipped(tmp_path: Path) -> None:
    """Some browsers unpack what is gzipped, and keep its name."""
    archive = write_archive(tmp_path / "in.tar", members()).rename(tmp_path / "in.tar.gz")
    with open_image(member_path(str(archive), IMAGE)) as file:
        assert np.array_equal(file.read(), coordinates())


def test_another_archive_of_the_same_name_is_unpacked_anew(tmp_path: Path, scratch: Path) -> None:
    path = member_path(str(write_archive(tmp_path / "a.tgz", members())), IMAGE)
    with open_local_copy(path) as first:
        pass
    os.utime(tmp_path / "a.tgz", (1, 1))
    with open_local_copy(path) as second:
        assert first != second
    assert len(copies(scratch)) == 2


def test_the_oldest_copy_that_nobody_reads_makes_room(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(members()[IMAGE])
    monkeypatch.setattr(module, "MAX_TOTAL", 2 * size + 10)
    paths = [member_path(str(write_archive(tmp_path / f"{k}.tgz", members())), IMAGE) for k in range(4)]
    with open_local_copy(paths[0]):
        pass
    with open_local_copy(paths[0]) as kept:  # by one that found it there
        with open_local_copy(paths[1]) as second:
            assert len(copies(scratch)) == 2
            with open_local_copy(paths[2]) as third:  # both are in use
                assert third == paths[2]
        with open_local_copy(paths[3]) as fourth:
            assert fourth != paths[3]
        assert Path(kept).exists()
        assert not Path(second).exists()
    assert sum(file.stat().st_size for file in copies(scratch)) <= 2 * size


def test_the_copy_that_was_not_used_for_the_longest_time_goes_first(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(members()[IMAGE])
    monkeypatch.setattr(module, "MAX_TOTAL", 3 * size + 10)
    found = []
    for k in (0, 1, 2, 0, 3):
        path = member_path(str(tmp_path / f"{k}.tgz"), IMAGE)
        if not (tmp_path / f"{k}.tgz").exists():
            write_archive(tmp_path / f"{k}.tgz", members())
        with open_local_copy(path) as copy:
            found.append(Path(copy))
            if len(found) < 4:  # an hour or two ago
                os.utime(copy, (1000 * len(found),) * 2)
    assert {*copies(scratch)} == {found[0], found[2], found[4]}
    assert found[3] == found[0]


def test_what_killed_runs_left_half_written_counts_and_makes_room(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(members()[IMAGE])
    monkeypatch.setattr(module, "MAX_TOTAL", size + 10)
    scratch.mkdir()
    (scratch / "remains.new").write_bytes(bytes(size))
    with open_local_copy(member_path(str(write_archive(tmp_path / "a.tgz", members())), IMAGE)) as copy:
        assert copies(scratch) == [Path(copy)]


def test_a_folder_that_may_be_anothers_is_not_used(tmp_path: Path, scratch: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    scratch.symlink_to(tmp_path / "elsewhere")
    path = member_path(str(write_archive(tmp_path / "a.tgz", members())), IMAGE)
    with pytest.raises(SceneError, match="belongs to another user; set GEOKR_SCRATCH"):
        open_local_copy(path).__enter__()
    assert not [*(tmp_path / "elsewhere").iterdir()]


def test_without_room_on_the_disk_the_archive_is_read_in_place(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIN_FREE", shutil.disk_usage(tmp_path).total)
    path = member_path(str(write_archive(tmp_path / "a.tgz", members())), IMAGE)
    with open_image(path) as file:
        assert np.array_equal(file.read(), coordinates())
    assert copies(scratch) == []


def test_many_readers_make_one_copy(tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = member_path(str(write_archive(tmp_path / "a.tgz", members())), IMAGE)
    made: list[Path] = []
    unpack = module.unpack

    def watched(archive: str, member: str, copy: Path) -> bool:
        made.append(copy)
        time.sleep(0.05)  # in which others would begin to make it too
        return unpack(archive, member, copy)

    monkeypatch.setattr(module, "unpack", watched)

    def read(_: int) -> int:
        with open_local_copy(path) as copy:
            return len(Path(copy).read_bytes())

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(read, range(32))) == {len(members()[IMAGE])}
    assert copies(scratch) == made
    assert len(made) == 1


def test_two_that_look_for_room_at_once_do_not_both_find_the_same(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_TOTAL", len(members()[IMAGE]) + 10)
    usage, both = shutil.disk_usage, threading.Barrier(2)

    def slow(folder: Path) -> object:
        time.sleep(0.05)  # in which the other one would look too
        return usage(folder)

    monkeypatch.setattr(module.shutil, "disk_usage", slow)

    def read(name: str) -> bool:
        path = member_path(str(write_archive(tmp_path / name, members())), IMAGE)
        try:
            with open_local_copy(path) as copy:
                both.wait()
                return copy != path
        except BaseException:
            both.abort()  # or the other would wait for ever
            raise

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(read, ["a.tgz", "b.tgz"])) == [False, True]


def test_the_remains_of_a_killed_run_are_replaced(tmp_path: Path, scratch: Path) -> None:
    path = member_path(str(write_archive(tmp_path / "a.tgz", members())), IMAGE)
    with open_local_copy(path) as copy:
        pass
    Path(copy).rename(Path(copy).with_suffix(".new"))
    Path(copy).with_suffix(".new").write_bytes(b"half")
    with open_local_copy(path) as again:
        assert Path(again).read_bytes() == members()[IMAGE]
    assert copies(scratch) == [Path(copy)]


def test_an_archive_that_changed_since_it_was_listed_is_named(tmp_path: Path, scratch: Path) -> None:
    archive = write_archive(tmp_path / "a.tgz", members())
    with pytest.raises(SceneError, match=r"a\.tgz: gone\.tif cannot be unpacked: the archive no longer contains it"):
        open_local_copy(member_path(str(archive), "gone.tif")).__enter__()
    archive.write_bytes(archive.read_bytes()[:9_000])
    with pytest.raises(SceneError, match=rf"a\.tgz: {IMAGE} cannot be unpacked"):
        open_local_copy(member_path(str(archive), IMAGE)).__enter__()
    damaged = write_zip(tmp_path / "a.zip", members())
    data = bytearray(damaged.read_bytes())
    data[5000] ^= 1  # found when the member has been read to its end
    damaged.write_bytes(data)
    with pytest.raises(SceneError, match=rf"a\.zip: {IMAGE} cannot be unpacked"):
        open_local_copy(member_path(str(damaged), IMAGE)).__enter__()
    assert copies(scratch) == []


def test_what_fails_while_a_member_is_read_in_place_stays_what_it_is(tmp_path: Path) -> None:
    path = member_path(str(write_archive(tmp_path / "a.tar", members())), "gone.tif")
    with pytest.raises(RasterioIOError, match=r"a\.tar\}/gone\.tif"), open_image(path):
        pass


def test_a_members_name_decides_nothing_about_where_it_is_written(tmp_path: Path, scratch: Path) -> None:
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../../above.tif"))
    with open_local_copy(f"/vsitar/{{{tmp_path}/a.tgz}}/../../above.tif") as copy:
        assert Path(copy).parent == scratch
    assert not (tmp_path.parent / "above.tif").exists()
