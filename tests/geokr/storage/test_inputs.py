"""Inputs in a bucket or behind HTTP are what they are on a disk: bytes, archives, land cover, heights."""

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from affine import Affine
from rasterio.windows import Window

from benchmarks.s3 import Server
from geokr.landcover.__main__ import main as landcover
from geokr.landcover.discovery import find_landcover
from geokr.landcover.products import LandCoverError
from geokr.landcover.sheets import read_cells
from geokr.storage import files, inputs, rasters
from pipeline.build_levir_kr import main
from pipeline.geometry.terrain import Terrain
from pipeline.scenes.archive import MAX_METADATA, member_path
from pipeline.scenes.delivery import Refusal, read_delivery
from pipeline.scenes.discovery import Delivery, find_deliveries
from pipeline.scenes.raster import read_image
from pipeline.scenes.scene import Scene, SceneError
from pipeline.scenes.scratch import open_local_copy
from pipeline.tasks.survey import read_and_survey
from tests.broken import BROKEN
from tests.deliveries import (
    LAT,
    LON,
    NAME,
    STEM,
    catalog_job,
    coordinates,
    members,
    tiff,
    write_archive,
    write_dem,
    write_folder,
    write_zip,
)

Publish = Callable[[Path], str]


@pytest.fixture(params=["s3", "http"])
def publish(request: pytest.FixtureRequest, tmp_path: Path) -> Publish:
    """Puts a file or folder of the test's directory on a server; its address."""
    if request.param == "http":
        address: str = request.getfixturevalue("served")
        return lambda path: f"{address}/{quote(str(path.relative_to(tmp_path)))}"
    server: Server = request.getfixturevalue("s3")
    return lambda path: server.upload(path, f"{tmp_path.name}/{path.relative_to(tmp_path)}")


def found(path: str | Path) -> list[Scene | Refusal]:
    return [item for one in find_deliveries([path]) for item in read_delivery(one)]


def only(path: str | Path) -> Scene:
    (item,) = found(path)
    assert isinstance(item, Scene), item
    return item


def only_delivery(path: str) -> Delivery:
    (one,) = find_deliveries([path])
    return one


def noise(size: int) -> bytes:
    return np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()


# --- bytes


@pytest.mark.parametrize("size", [0, 1, 5000, 1 << 20, (1 << 20) + 1, 5_000_000])
def test_a_file_has_the_same_digest_wherever_it_lies(tmp_path: Path, publish: Publish, size: int) -> None:
    path = tmp_path / "高分 a#1%20+b.bin"
    path.write_bytes(noise(size))
    url = publish(path)
    assert inputs.stat(url).size == size
    assert inputs.sample_digest(url) == inputs.sample_digest(str(path))


@pytest.mark.parametrize("size", [5000, 1 << 20, 30_000_000])
def test_a_file_of_the_same_size_has_another_digest(tmp_path: Path, size: int) -> None:
    path, content = tmp_path / "a.bin", bytearray(noise(size))
    path.write_bytes(content)
    before = inputs.sample_digest(str(path))
    assert before == inputs.sample_digest(str(path))
    for place in (0, size - 1, *range(size // 15, size, size // 15)):
        # Of a larger file than a MiB, what lies in no sample is not seen: a swapped one differs in longer parts.
        part = slice(place, place + (1 if size <= 1 << 20 else size // 15))
        changed = content.copy()
        changed[part] = bytes(byte ^ 1 for byte in changed[part])
        path.write_bytes(changed)
        assert inputs.sample_digest(str(path)) != before
    path.write_bytes(content + b"x")
    assert inputs.sample_digest(str(path)) != before


def test_a_digest_is_what_it_is_said_to_be(tmp_path: Path) -> None:
    size, content = 4_000_001, noise(4_000_001)
    (tmp_path / "a.bin").write_bytes(content)
    said = hashlib.sha256(size.to_bytes(8, "big"))
    for k in range(16):
        start = k * (size - 65_536) // 15
        said.update(content[start : start + 65_536])
    assert inputs.sample_digest(str(tmp_path / "a.bin")) == said.hexdigest()


def test_a_digest_takes_few_requests(tmp_path: Path, s3: Server) -> None:
    (tmp_path / "large.bin").write_bytes(noise(30_000_000))
    url = s3.upload(tmp_path / "large.bin", f"{tmp_path.name}/large.bin")
    with s3.listening() as asked:
        inputs.sample_digest(url)
    assert len(asked) == 17


def test_a_file_is_read_from_anywhere_in_it(tmp_path: Path, publish: Publish) -> None:
    content = noise(300_000)
    (tmp_path / "a.bin").write_bytes(content)
    random = np.random.default_rng(1)
    with inputs.open_file(publish(tmp_path / "a.bin"), 10_000) as file:
        assert file.seek(-10, os.SEEK_END) == len(content) - 10
        assert file.read() == content[-10:]
        assert file.read(1) == b""
        for start, size in random.integers(0, [len(content), 40_000], (30, 2)):
            file.seek(int(start))
            assert file.read(int(size)) == content[start : start + size]
            assert file.tell() == min(start + size, len(content))
        file.seek(0)
        assert file.read() == content
        with pytest.raises(ValueError, match=r"negative|before its first byte"):
            file.seek(-1)


def test_a_listing_has_the_order_of_a_disk(tmp_path: Path, s3: Server) -> None:
    names = ["a-b/x.tif", "a/x.tif", "a/b/y.tif", "a.tif", "高/z z.tif"]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(name.encode())
    url = s3.upload(tmp_path / "in", f"{tmp_path.name}/in")
    s3.put(f"{tmp_path.name}/in/", b"")  # how some programs make a folder
    s3.put(f"{tmp_path.name}/inside.tif", b"of another place")
    here = [str(path.relative_to(tmp_path / "in")) for path in sorted((tmp_path / "in").rglob("*")) if path.is_file()]
    for place in (url, f"{url}/"):
        assert list(inputs.list_bucket(place)) == [f"{url}/{name}" for name in here]
    assert [*inputs.list_bucket(url, deep=False)] == [f"{url}/a.tif"]
    assert {stat.size for stat in inputs.list_bucket(url).values()} == {len(name.encode()) for name in names}
    assert inputs.list_bucket(url)[f"{url}/a.tif"] == inputs.stat(f"{url}/a.tif")


def test_what_cannot_be_read_is_a_sentence(tmp_path: Path, s3: Server, served: str) -> None:
    for folder in ("forbidden", "whole"):
        write_archive(tmp_path / folder / "a.tgz", {}) if (tmp_path / folder).mkdir() else None
        (tmp_path / folder / "a.tgz").write_bytes(b"content")
    for url, fault in {
        f"s3://bucket/{tmp_path.name}/none": "no such file or directory",
        f"{served}/none": "no such file or directory",
        f"{served}/forbidden/a.tgz": "the server answers 403 Forbidden",
        f"{served}/a.tgz?key=1": "an address with a query cannot be read by ranges of bytes",
    }.items():
        for reading in (inputs.stat, inputs.sample_digest, inputs.open_file):
            with pytest.raises(OSError, match=r"^[^\n]+$") as caught:
                reading(url)
            assert str(caught.value).startswith(f"{url}: {fault}")
    with pytest.raises(OSError, match=r"whole/a\.tgz: .*[Rr]ange request not supported[^\n]*$"):
        inputs.sample_digest(f"{served}/whole/a.tgz")
    with pytest.raises(OSError, match=r"^s3://nobucket/a: the server answers 404 Not Found, NoSuchBucket$"):
        inputs.list_bucket("s3://nobucket/a")


# --- deliveries


@pytest.mark.parametrize("form", [".tar.gz", ".TGZ", ".tar", ".zip", "stored.zip"])
def test_an_archive_on_a_server_is_the_same_delivery(tmp_path: Path, publish: Publish, form: str) -> None:
    path = tmp_path / f"{NAME}{form}"
    if form.endswith("zip"):
        write_zip(path, members(), 0 if form == "stored.zip" else 8)
    else:
        write_archive(path, members())
    url = publish(path)
    here, there = only(path), only(url)
    image, same = there.images[0], here.images[0]
    kind = "zip" if form.endswith("zip") else "tar"
    assert image.path == f"/vsi{kind}/{{{url}}}/{STEM}.tiff"
    assert (there.delivery, there.files, there.bytes) == (url, (), path.stat().st_size)
    assert replace(there, delivery=here.delivery, files=here.files, images=here.images) == here
    assert replace(image, path=same.path) == same
    for window in (None, Window(20, 31, 40, 17)):
        assert np.array_equal(read_image(image, window)[0], read_image(same, window)[0])
    with open_local_copy(image.path) as opened:
        in_place = form in (".tar", "stored.zip")
        assert opened.startswith(
            f"/vsi{kind}/{{{rasters.gdal_path(url)}}}" if in_place else os.environ["GEOKR_SCRATCH"]
        )
    (entry,) = (item for one in find_deliveries([url]) for item in read_and_survey(catalog_job(one)))
    assert not isinstance(entry, Refusal)
    assert len(entry.source_version) == 64


def test_another_archive_at_the_same_address_is_unpacked_anew(tmp_path: Path, publish: Publish) -> None:
    """Be it of the same size."""
    path = write_archive(tmp_path / f"{NAME}.tgz", members())
    other = members() | {f"{STEM}.tiff": members()[f"{STEM}.tiff"][::-1]}
    packed = [file.read_bytes() for file in (path, write_archive(tmp_path / "other.tgz", other))]
    path.write_bytes(packed[0].ljust(100_000, b"\0"))  # which gzip passes over
    member = member_path(publish(path), f"{STEM}.tiff")
    with open_local_copy(member) as first:
        pass
    path.write_bytes(packed[1].ljust(100_000, b"\0"))
    os.utime(path, (1e9, 1e9))
    publish(path)
    with open_local_copy(member) as second:
        assert second != first
        assert Path(second).read_bytes() == other[f"{STEM}.tiff"]


def test_without_room_an_archive_on_a_server_is_read_in_place(
    tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.scenes.scratch.MAX_TOTAL", 10)
    path = write_archive(tmp_path / f"{NAME}.tgz", members())
    assert np.array_equal(read_image(only(publish(path)).images[0])[0], read_image(only(path).images[0])[0])


def test_a_folder_in_a_bucket_is_the_same_delivery(tmp_path: Path, s3: Server) -> None:
    folder = write_folder(tmp_path / NAME, members())
    url = s3.upload(folder, f"{tmp_path.name}/{NAME}")
    here = only(folder)
    for place in (url, f"{url}/{STEM}.tiff"):
        there = only(place)
        assert (there.delivery, there.files) == (f"{url}/{STEM}.tiff", ())
        assert there.bytes == (folder / f"{STEM}.tiff").stat().st_size
        assert replace(there, delivery=here.delivery, files=here.files, images=here.images) == here
        assert np.array_equal(read_image(there.images[0])[0], read_image(here.images[0])[0])


@pytest.mark.parametrize("suffix", [".tiff", ".rpb", ".xml"])
def test_a_delivery_is_known_by_each_of_its_files(tmp_path: Path, s3: Server, suffix: str) -> None:
    url = s3.upload(write_folder(tmp_path / NAME, members()), f"{tmp_path.name}/{NAME}")
    (before,) = find_deliveries([url])
    assert len(before.source_version) == 64
    key = f"{tmp_path.name}/{NAME}/{STEM}{suffix}"
    s3.put(key, s3.get(key))
    assert list(find_deliveries([url])) == [before]
    s3.put(key, s3.get(key)[:-1] + b"\1")
    (after,) = find_deliveries([url])
    assert after.source_version != before.source_version


def test_an_image_on_a_server_is_known_while_it_stays(tmp_path: Path, publish: Publish) -> None:
    path = tmp_path / "map.tif"
    states: set[str] = set()
    for size in (40, 41):
        path.write_bytes(tiff(coordinates(size, size), crs="EPSG:32648", transform=Affine(8, 0, 5e5, 0, -8, 2.7e6)))
        url = publish(path)
        first, second = (only_delivery(url).source_version for _ in range(2))
        assert first == second
        assert len(first) == 64
        states.add(first)
    assert len(states) == 2


def test_metadata_of_megabytes_is_not_fetched(tmp_path: Path, s3: Server) -> None:
    files = members() | {f"{STEM}.xml": members()[f"{STEM}.xml"] + b" " * MAX_METADATA}
    url = s3.upload(write_folder(tmp_path / NAME, files), f"{tmp_path.name}/{NAME}")
    with s3.listening() as asked:
        (refusal,) = found(url)
    assert isinstance(refusal, Refusal)
    assert ".xml: more than 4 MiB are too many for a metadata file" in refusal.detail
    assert f"GET /bucket/{tmp_path.name}/{NAME}/{STEM}.rpb" in asked
    assert f"GET /bucket/{tmp_path.name}/{NAME}/{STEM}.xml" not in asked


@pytest.mark.parametrize("kind", [kind for kind in BROKEN if "JSON" not in kind and "STAC" not in kind])
def test_every_kind_of_broken_delivery_has_its_sentence(tmp_path: Path, s3: Server, kind: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    BROKEN[kind].write(folder)
    url = s3.upload(folder, f"{tmp_path.name}/in")
    items = [item for one in find_deliveries([url]) for item in read_and_survey(catalog_job(one))]
    refusals = [item for item in items if isinstance(item, Refusal)]
    assert refusals == items
    assert any(BROKEN[kind].words in item.detail for item in refusals), refusals
    assert all(len(item.detail.splitlines()) == 1 for item in refusals)
    assert not Path("/tmp/geokr-above.tif").exists()


def test_an_archive_that_is_not_there_is_named(tmp_path: Path, publish: Publish) -> None:
    path = write_archive(tmp_path / "a.tgz", members())
    url = publish(path)
    with pytest.raises(FileNotFoundError, match=rf"^{url}x\.tar: no such file or directory$"):
        found(f"{url}x.tar")
    with pytest.raises(SceneError, match=rf"^{url}x: cannot be unpacked: {url}x: no such file or directory$"):
        open_local_copy(f"/vsitar/{{{url}x}}/a.tif").__enter__()


# --- land cover and heights


def sheet(path: Path, code: int) -> Path:
    """A sheet of GlobeLand30 of one code, but for a corner, in the middle of its zone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = np.full((1, 60, 50), code, np.uint8)
    cells[0, :10, :10] = 60
    south = int(path.name[4:6])
    transform = Affine(30, 0, 5e5, 0, -30, (south + 2.5) * 110_700)
    path.write_bytes(tiff(cells, crs="EPSG:32648", transform=transform))
    return path


def test_land_cover_in_a_bucket_is_that_on_a_disk(
    tmp_path: Path, s3: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, code in {
        "a/n48_20_2020lc030.tif": 10,
        "a-b/n48_25_2020lc030.tif": 20,
        "a/n48_25_2010lc030.tif": 30,
    }.items():
        sheet(tmp_path / "maps" / name, code)
    (tmp_path / "maps" / "lulc.tif").write_text("of another product")
    url = s3.upload(tmp_path / "maps", f"{tmp_path.name}/maps")
    here, there = find_landcover([tmp_path / "maps"]), find_landcover([url])
    for cover, same in zip(there, here, strict=True):
        for one, other in zip(cover.sheets, same.sheets, strict=True):
            key = other.path.removeprefix(f"{tmp_path}/maps/")
            assert (one.path, one.source) == (f"{url}/{key}", rasters.gdal_path(f"{url}/{key}"))
            assert replace(one, path=other.path, source=other.source) == other
            window = Window(3, 5, 20, 20)
            assert np.array_equal(read_cells(one, window)[0], read_cells(other, window)[0])
        layers = [{each.path: each.source for each in both.sheets} for both in (cover, same)]
        assert [*rasters.fingerprints(layers[0]).values()] == [*rasters.fingerprints(layers[1]).values()]
        assert replace(cover, sheets=same.sheets) == same
    assert find_landcover([f"{url}/a/n48_20_2020lc030.tif"])[0].sheets == there[1].sheets[:1]
    said = []
    for place in (url, str(tmp_path / "maps")):
        assert landcover(["check", place]) == 0
        said.append(capsys.readouterr().out.replace(place, "PLACE"))
    assert said[0] == said[1]
    assert "not recognised: PLACE/lulc.tif" in said[0]


def test_land_cover_over_http_is_that_on_a_disk(tmp_path: Path, served: str) -> None:
    path = sheet(tmp_path / "n48_20_2020lc030.tif", 10)
    (one,), (other,) = (find_landcover([place])[0].sheets for place in (f"{served}/{path.name}", path))
    window = Window(3, 5, 20, 20)
    assert np.array_equal(read_cells(one, window)[0], read_cells(other, window)[0])
    assert rasters.fingerprint(one.path) == rasters.fingerprint(other.path)


def test_land_cover_that_is_not_there_is_named(tmp_path: Path, s3: Server, served: str) -> None:
    for place in (f"s3://bucket/{tmp_path.name}/none", f"{served}/none.tif"):
        with pytest.raises(LandCoverError, match=rf"^{place}: no such file or directory$"):
            find_landcover([place])
    path = tmp_path / "n48_20_2020lc030.tif"
    path.write_bytes(sheet(path, 10).read_bytes()[:60])
    url = s3.upload(path, f"{tmp_path.name}/{path.name}")
    with pytest.raises(LandCoverError, match=rf"^{url}: not a raster that can be read[^\n]*$"):
        find_landcover([url])


def test_a_sheet_that_is_replaced_in_the_bucket_is_read_anew(tmp_path: Path, s3: Server) -> None:
    """By one process, which has the old one open."""
    path = sheet(tmp_path / "n48_20_2020lc030.tif", 10)
    url = s3.upload(path, f"{tmp_path.name}/{path.name}")
    (one,) = find_landcover([url])[0].sheets
    for code in (10, 30):
        s3.upload(sheet(path, code), f"{tmp_path.name}/{path.name}")
        assert (read_cells(one, Window(20, 20, 9, 9))[0] == code).all()


def test_heights_on_a_server_are_those_on_a_disk(tmp_path: Path, publish: Publish) -> None:
    """A mosaic of two sheets, and a geoid."""
    heights = np.arange(30 * 40, dtype=np.float32).reshape(30, 40)
    corner = Affine(0.01, 0, LON - 0.2, 0, -0.01, LAT + 0.15)
    folder = tmp_path / "dem"
    folder.mkdir()
    write_dem(folder / "west.tif", heights[:, :20], corner, "EPSG:4326")
    write_dem(folder / "east.tif", heights[:, 20:], corner @ Affine.translation(20, 0), "EPSG:4326")
    wide = Affine.translation(LON - 1, LAT + 1) @ Affine.scale(0.05, -0.05)
    write_dem(tmp_path / "geoid.tif", heights[::-1] / 100, wide, "EPSG:4326")
    sources = "".join(
        f"<SimpleSource><SourceFilename relativeToVRT='1'>{name}.tif</SourceFilename><SourceBand>1</SourceBand>"
        f"<SrcRect xOff='0' yOff='0' xSize='20' ySize='30'/><DstRect xOff='{x}' yOff='0' xSize='20' ySize='30'/>"
        "</SimpleSource>"
        for name, x in (("west", 0), ("east", 20))
    )
    (folder / "dem.vrt").write_text(
        f"<VRTDataset rasterXSize='40' rasterYSize='30'><SRS>EPSG:4326</SRS>"
        f"<GeoTransform>{', '.join(map(str, corner.to_gdal()))}</GeoTransform>"
        f"<VRTRasterBand dataType='Float32' band='1'>{sources}</VRTRasterBand></VRTDataset>"
    )
    lon, lat = np.meshgrid(np.linspace(LON - 0.1, LON + 0.1, 9), np.linspace(LAT - 0.1, LAT + 0.1, 7))
    url, geoid = f"{publish(folder)}/dem.vrt", publish(tmp_path / "geoid.tif")
    here = Terrain(str(folder / "dem.vrt"), 0.0, str(tmp_path / "geoid.tif"))
    there = Terrain(url, 0.0, geoid)
    assert np.array_equal(there.heights(lon, lat), here.heights(lon, lat))
    assert np.ptp(here.heights(lon, lat)) > 100
    rasters.fingerprint.cache_clear()
    before = rasters.fingerprint(url)
    assert before == rasters.fingerprint(str(folder / "dem.vrt"))
    write_dem(folder / "east.tif", heights[:, 20:] + 1, corner @ Affine.translation(20, 0), "EPSG:4326")
    publish(folder)
    assert rasters.fingerprint(url) == before  # it is computed once in a run
    rasters.fingerprint.cache_clear()
    assert before != rasters.fingerprint(url) == rasters.fingerprint(str(folder / "dem.vrt"))


def test_an_archive_over_http_is_one_command(
    tmp_path: Path, served: str, s3: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scenes over HTTP, land cover in a bucket, a data set on the disk; a dry run says the same."""
    write_archive(tmp_path / f"{NAME}.tar.gz", members())
    south, north = LAT - 0.02, LAT + 0.02
    cells = np.full((1, 100, 100), 10, np.uint8)
    name = "ESA_WorldCover_10m_2020_v100_N24E105_Map.tif"
    place = Affine(0.0004, 0, LON - 0.02, 0, (south - north) / 100, north)
    (tmp_path / name).write_bytes(tiff(cells, crs="EPSG:4326", transform=place))
    maps = s3.upload(tmp_path / name, f"{tmp_path.name}/maps/{name}").rpartition("/")[0]
    url = f"{served}/{NAME}.tar.gz"
    arguments = ["--scenes", url, "--landcover", maps, "--tile", "16", "--stride", "16", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--dry-run"]) == 0
    assert f"scene     {NAME}: 90 x 70 px" in capsys.readouterr().out
    shutil.rmtree(os.environ["GEOKR_SCRATCH"])
    assert main([*arguments, "--workers", "1", "--strict"]) == 0, capsys.readouterr()
    assert "tiles, labels of worldcover_2020" in capsys.readouterr().out


def test_a_bucket_that_is_open_to_all_is_read_without_keys(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them and unasked, each library would look for keys of the machine it runs on."""
    s3.client().put_object(Bucket="bucket", Key="open/to/all", Body=b"words", ACL="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    for cached in (files.s3_store, files._open_kvstore):
        cached.cache_clear()
    try:
        assert files.kvstore_spec("s3://bucket/open")["aws_credentials"] == {"type": "anonymous"}
        assert files.read("s3://bucket/open/to/all") == b"words"
        assert inputs.read_ranges("s3://bucket/open/to/all", [(1, 4)]) == [b"ord"]
    finally:
        for cached in (files.s3_store, files._open_kvstore):
            cached.cache_clear()


def test_linked_folders_are_listed_once_and_circles_end(tmp_path: Path) -> None:
    for name in ("in/a.tif", "in/sub/b.tif", "disk/c.tif", "disk/deep/d.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "in/disk").symlink_to(tmp_path / "disk")
    (tmp_path / "in/a_second_way").symlink_to(tmp_path / "in/sub")
    (tmp_path / "in/twin").symlink_to(tmp_path / "in/disk")
    (tmp_path / "disk/deep/up").symlink_to(tmp_path / "in")
    (tmp_path / "in/nothing").symlink_to(tmp_path / "gone")
    names = [str(path.relative_to(tmp_path / "in")) for path in inputs.list_folder(tmp_path / "in")]
    assert names == ["a.tif", "disk/c.tif", "disk/deep/d.tif", "nothing", "sub/b.tif"]  # a broken link has a name, too
    assert len(find_deliveries_at(tmp_path / "in")) == 4


def find_deliveries_at(folder: Path) -> list[Delivery]:
    return [*find_deliveries([folder])]
