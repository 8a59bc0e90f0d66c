"""Deliveries: good ones in every form say the same, and bad ones end in one sentence that names file and fault."""

import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyproj import Transformer

from pipeline.catalog.table import Entry
from pipeline.geometry.sensor import Georeferenced
from pipeline.scenes import archive
from pipeline.scenes.delivery import Refusal, read_delivery
from pipeline.scenes.discovery import Delivery, find_deliveries
from pipeline.scenes.raster import open_image
from pipeline.scenes.scene import Scene
from pipeline.tasks.survey import read_and_survey
from tests.broken import BROKEN
from tests.deliveries import (
    GSD,
    HEIGHT,
    LAT,
    LON,
    NAME,
    STEM,
    WIDTH,
    camera,
    catalog_job,
    coordinates,
    fields,
    members,
    rpb,
    tiff,
    write_archive,
    write_folder,
    xml,
)

OTHER = STEM.replace("1234567", "7654321")
OTHER_NAME = OTHER.removesuffix("-MSS1")
Files = dict[str, bytes]


def found(path: Path) -> list[Scene | Refusal]:
    return [item for one in find_deliveries([path]) for item in read_delivery(one)]


def only(path: Path) -> Scene:
    (item,) = found(path)
    assert isinstance(item, Scene), item
    return item


def pixels(scene: Scene) -> npt.NDArray[Any]:
    with open_image(scene.images[0].path) as file:
        return np.asarray(file.read())


# --- good ones


def test_a_scene_is_what_its_files_say(tmp_path: Path) -> None:
    scene = only(write_folder(tmp_path / STEM, members()))
    assert (scene.id, scene.satellite, scene.sensor, scene.level) == (NAME, "GF1", "PMS1", "L1A")
    assert scene.acquired == datetime(2020, 5, 22, 21, 3, 8, tzinfo=UTC)  # the day before, in UTC
    assert (scene.gsd, scene.images[0].width, scene.images[0].height, scene.read_type) == (GSD, WIDTH, HEIGHT, "uint16")
    assert scene.bands == ("blue", "green", "red", "nir")
    assert scene.images[0].model == camera()
    said = fields() | {"ProductID": "12880001234567"}
    assert scene.metadata == {key: str(value) for key, value in said.items() if value is not None}
    assert [Path(file).suffix for file in scene.files] == [".rpb", ".tiff", ".xml"]


def test_the_footprint_is_where_the_camera_sees_the_border(tmp_path: Path) -> None:
    """The image is rotated by 20 degrees and wider than high."""
    scene = only(write_folder(tmp_path, members()))
    ring = shapely.get_coordinates(scene.footprint.exterior)
    col, row = camera().image(ring[:, 0], ring[:, 1], np.array(500.0))
    assert np.minimum(np.minimum(col, WIDTH - col), np.minimum(row, HEIGHT - row)) == pytest.approx(0, abs=1e-6)
    for corner in ((0, 0), (WIDTH, 0), (WIDTH, HEIGHT), (0, HEIGHT)):
        assert np.hypot(col - corner[0], row - corner[1]).min() < 1e-6
    project = Transformer.from_crs(4326, 32648, always_xy=True).transform
    area = shapely.transform(scene.footprint, lambda points: np.column_stack(project(*points.T))).area
    assert area == pytest.approx(WIDTH * HEIGHT * GSD**2, rel=0.01)


@pytest.mark.parametrize("form", [".tar", ".tar.gz", ".tgz", ".TAR.GZ"])
@pytest.mark.parametrize("change", ["", "dot", "folder", "upper"])
def test_every_form_of_a_delivery_gives_the_same_scene_and_pixels(tmp_path: Path, form: str, change: str) -> None:
    folder = only(write_folder(tmp_path / "folder", members()))
    rename: dict[str, Callable[[str], str]] = {
        "": str,
        "dot": lambda name: f"./{name}",
        "folder": lambda name: f"{STEM.removesuffix('-MSS1')}/{name}",
        "upper": lambda name: name.replace(".tiff", ".TIFF").replace(".rpb", ".RPB").replace(".xml", ".XML"),
    }
    files = {rename[change](name): content for name, content in members().items()}
    archived = only(write_archive(tmp_path / f"{STEM}{form}", files))
    assert archived.files == (str(tmp_path / f"{STEM}{form}"),)
    assert archived.bytes == (tmp_path / f"{STEM}{form}").stat().st_size

    def apart(scene: Scene) -> Scene:
        images = tuple(replace(image, path="") for image in scene.images)
        return replace(scene, images=images, delivery="", files=(), bytes=0)

    assert apart(archived) == apart(folder)
    assert np.array_equal(pixels(archived), coordinates())
    assert np.array_equal(pixels(folder), coordinates())


def test_suffixes_in_capitals_are_the_same_in_a_folder(tmp_path: Path) -> None:
    files = {f"{Path(name).stem}{Path(name).suffix.upper()}": content for name, content in members().items()}
    scene = only(write_folder(tmp_path, files))
    assert scene.images[0].model == camera()
    assert len(scene.files) == 3


def test_the_images_of_one_moment_are_a_scene_each(tmp_path: Path) -> None:
    """GF-6 WFV: three images, each with its RPB, and one XML for all."""
    stem = "GF6_WFV_E105.3_N24.8_20200523_L1A1119991234"
    said = xml(fields() | {"SatelliteID": "GF6", "SensorID": "WFV", "Bands": "1,2,3,4,5,6,7,8", "ImageGSD": "16"})
    files: Files = {f"{stem}.xml": said.encode()}
    for k in "123":
        files[f"{stem}-{k}.tiff"] = tiff(coordinates(bands=8))
        files[f"{stem}-{k}.rpb"] = rpb(camera(heading=10.0 * int(k))).encode()
    for path in (write_folder(tmp_path / "folder", files), write_archive(tmp_path / "archive.tar", files)):
        scenes = found(path)
        assert [item.id for item in scenes if isinstance(item, Scene)] == [f"{stem}-{k}" for k in "123"]
        assert [item.images[0].model for item in scenes if isinstance(item, Scene)] == [
            camera(heading=h) for h in (10, 20, 30)
        ]
        assert {item.bands[-1] for item in scenes if isinstance(item, Scene)} == {"yellow"}


def test_a_projected_gaofen_image_needs_no_rpb(tmp_path: Path) -> None:
    stem = STEM.replace("L1A", "L2A")
    x, y = Transformer.from_crs(4326, 32648, always_xy=True).transform(LON, LAT)
    transform = Affine(8, 0, x - 360, 0, -8, y + 280)
    image = tiff(coordinates(), crs="EPSG:32648", transform=transform)
    scene = only(write_folder(tmp_path, {f"{stem}.tiff": image, f"{stem}.xml": xml(fields()).encode()}))
    assert isinstance(scene.images[0].model, Georeferenced)
    assert scene.level == "L2A"
    assert scene.footprint.centroid.distance(shapely.Point(LON, LAT)) < 1e-4


@pytest.mark.parametrize(
    ("crs", "transform", "gsd"),
    [
        ("EPSG:32648", Affine(3.2, 0.4, 5e5, 0.4, -3.2, 2.7e6), 3.225),
        ("EPSG:4326", Affine(1e-4, 0, LON, 0, -1e-4, LAT), 10.574),
        ("EPSG:3857", Affine(10, 0, 11_721_000, 0, -10, 2_850_000), 9.076),
    ],
)
def test_any_image_on_a_map_is_a_scene(tmp_path: Path, crs: str, transform: Affine, gsd: float) -> None:
    image = tiff(coordinates(bands=2), crs=crs, transform=transform, nodata=0)
    scene = only(write_folder(tmp_path, {"sentinel.tif": image}))
    assert (scene.id, scene.level, scene.images[0].nodata, scene.bands) == (
        "sentinel",
        "L2A",
        0.0,
        ("band_1", "band_2"),
    )
    assert scene.gsd == pytest.approx(gsd, rel=2e-3)
    corners = [transform @ corner for corner in ((0, 0), (WIDTH, 0), (WIDTH, HEIGHT), (0, HEIGHT))]
    lonlat = Transformer.from_crs(crs, 4326, always_xy=True).itransform(corners)
    assert scene.footprint.symmetric_difference(shapely.Polygon(list(lonlat))).area < 1e-4 * scene.footprint.area


@pytest.mark.parametrize("easting", [822_000, 824_100, 826_000])
def test_an_image_across_the_antimeridian_lies_in_one_piece(tmp_path: Path, easting: float) -> None:
    image = tiff(coordinates(), crs="EPSG:32760", transform=Affine(40, 0, easting, 0, -40, 8_120_000))
    scene = only(write_folder(tmp_path, {"fiji.tif": image}))
    west, south, east, north = scene.footprint.bounds
    assert east - west == pytest.approx(WIDTH * 40 / 106_000, rel=0.1)
    assert north - south == pytest.approx(HEIGHT * 40 / 110_700, rel=0.1)


def test_band_names_and_time_come_from_the_tags(tmp_path: Path) -> None:
    path = tmp_path / "tagged.tif"
    path.write_bytes(tiff(coordinates(bands=2), crs="EPSG:32648", transform=Affine(8, 0, 5e5, 0, -8, 2.7e6)))
    with rasterio.open(path, "r+") as file:
        file.descriptions = ("Near Infrared", "red")
        file.update_tags(TIFFTAG_DATETIME="2021:02:03 04:05:06")
    scene = only(tmp_path)
    assert scene.bands == ("nir", "red")
    assert scene.acquired == datetime(2021, 2, 3, 4, 5, 6, tzinfo=UTC)


# --- bad ones


def without(suffix: str) -> Files:
    return {name: content for name, content in members().items() if not name.endswith(suffix)}


def changed(suffix: str, change: Callable[[bytes], bytes]) -> Files:
    return {name: change(content) if name.endswith(suffix) else content for name, content in members().items()}


PLACED = {"crs": "EPSG:32648", "transform": Affine(8, 0, 5e5, 0, -8, 2.7e6)}

BAD: dict[str, tuple[Files, str, str]] = {
    "empty image": (changed(".tiff", lambda b: b""), f"{STEM}.tiff", "not an image that can be opened"),
    "no image at all": (changed(".tiff", lambda b: b"<html>404</html>"), f"{STEM}.tiff", "not an image"),
    "cut in its header": (changed(".tiff", lambda b: b[:40]), f"{STEM}.tiff", "not an image that can be opened"),
    "no RPB": (without(".rpb"), f"{STEM}.tiff", "there is no RPB next to it, and the image has no georeference"),
    "empty RPB": (changed(".rpb", lambda b: b""), f"{STEM}.rpb", "the file is empty"),
    "RPB of zeros": (changed(".rpb", lambda b: bytes(len(b))), f"{STEM}.rpb", "lineOffset is missing"),
    "broken RPB": (changed(".rpb", lambda b: b[: len(b) // 2]), f"{STEM}.rpb", "is missing"),
    "RPB of a coefficient less": (
        changed(".rpb", lambda b: b.replace(b"\t\t\t1.0,\n", b"", 1)),
        f"{STEM}.rpb",
        "lineDenCoef has 19 coefficients, expected 20",
    ),
    "RPB of another place": (
        changed(".rpb", lambda b: rpb(camera(lon=LON - 10)).encode()),
        f"{STEM}.rpb",
        "it places the image at 95.3 E 24.8 N, 10 degrees from the centre in its name",
    ),
    "RPB that sees no ground": (
        changed(".rpb", lambda b: rpb(replace(camera(), line_num=camera().samp_num)).encode()),
        f"{STEM}.tiff",
        "the RPC has no ground point for a pixel of the image",
    ),
    "no XML": (without(".xml"), f"{STEM}.tiff", "there is no product XML next to it"),
    "empty XML": (changed(".xml", lambda b: b""), f"{STEM}.xml", "the file is empty"),
    "cut XML": (changed(".xml", lambda b: b[:-9]), f"{STEM}.xml", "not a product XML"),
    "XML with entities": (
        changed(".xml", lambda b: b.replace(b"<ProductMeta", b"<!DOCTYPE r [<!ENTITY a 'b'>]>\n<ProductMeta", 1)),
        f"{STEM}.xml",
        "not a product XML",
    ),
    "XML of another width": (
        changed(".xml", lambda b: xml(fields(WIDTH + 1)).encode()),
        f"{STEM}.xml",
        f"WidthInPixels is {WIDTH + 1}, but",
    ),
    "XML of another height": (
        changed(".xml", lambda b: xml(fields(WIDTH, 7)).encode()),
        f"{STEM}.xml",
        f".tiff has {HEIGHT}",
    ),
    "XML of an endless width": (
        changed(".xml", lambda b: xml(fields() | {"WidthInPixels": "9" * 5000}).encode()),
        STEM,
        "",
    ),
    "complex": (
        changed(".tiff", lambda b: tiff(coordinates().astype(np.complex64))),
        f"{STEM}.tiff",
        "pixels are ['complex64'], expected whole or real numbers",
    ),
    "plain": ({"photo.tif": tiff(coordinates())}, "photo.tif", "no georeference and no RPC, and its name is not"),
    "a CRS, but no transform": ({"photo.tif": tiff(coordinates(), crs="EPSG:4326")}, "photo.tif", "no georeference"),
    "a CRS without a place on Earth": (
        {"plan.tif": tiff(coordinates(), crs='LOCAL_CS["site",UNIT["metre",1]]', transform=PLACED["transform"])},
        "plan.tif",
        "its coordinate system cannot be converted to longitude and latitude",
    ),
    "nowhere": (
        {"far.tif": tiff(coordinates(), crs="EPSG:4326", transform=Affine(0.01, 0, 0, 0, -0.01, 120))},
        "far.tif",
        "its georeference leads to coordinates that are not on Earth",
    ),
    "the whole world": (
        {"world.tif": tiff(coordinates(), crs="EPSG:4326", transform=Affine(4, 0, -180, 0, -2.5, 87.5))},
        "world.tif",
        "too much for a UTM zone",
    ),
    "over the pole": (
        {"pole.tif": tiff(coordinates(), crs="EPSG:3031", transform=Affine(100, 0, -4000, 0, -100, 3000))},
        "pole.tif",
        "it contains a pole, so it has no outline",
    ),
    "a transform without inverse": (
        {"flat.tif": tiff(coordinates(), crs="EPSG:32648", transform=Affine(0, 0, 5e5, 0, 0, 2.7e6))},
        "flat.tif",
        "has no inverse",
    ),
    "pixels of nothing": (
        {"tiny.tif": tiff(coordinates(), crs="EPSG:32648", transform=Affine(1e-5, 0, 5e5, 0, -1e-5, 2.7e6))},
        "tiny.tif",
        "",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("archived", [False, True])
def test_what_cannot_be_used_ends_in_a_sentence_and_the_others_go_on(tmp_path: Path, case: str, archived: bool) -> None:
    files, file, fault = BAD[case]
    good = members(OTHER)
    if archived:
        write_archive(tmp_path / "both.tar.gz", files | good)
    else:
        write_folder(tmp_path, files | good)
    items = found(tmp_path)
    (refusal,) = [item for item in items if isinstance(item, Refusal)]
    assert [item.id for item in items if isinstance(item, Scene)] == [OTHER_NAME]
    image = Path(next(name for name in files if name.endswith((".tif", ".tiff")))).stem
    assert refusal.scene == image.removesuffix("-MSS1")
    assert refusal.reason == "unusable"
    assert file in refusal.detail
    assert fault in refusal.detail
    assert not archived or str(tmp_path / "both.tar.gz") in refusal.detail
    assert len(refusal.detail.splitlines()) == 1
    assert len(refusal.detail) < 500


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def too_many(path: Path) -> None:
    write_archive(path, members() | {f"{k}": b"" for k in range(archive.MAX_MEMBERS)})


ARCHIVES: dict[str, tuple[str, Callable[[Path], object], str, str]] = {
    "empty": (".tar.gz", lambda p: p.write_bytes(b""), "unreadable", "cannot be unpacked"),
    "no tar": (".tar", lambda p: p.write_bytes(b"<html>404</html>" * 99), "unreadable", "cannot be unpacked"),
    "gzip of no tar": (".tgz", lambda p: p.write_bytes(b"\x1f\x8b\x08" + bytes(999)), "unreadable", "unpacked"),
    "cut": (".tar.gz", lambda p: cut(write_archive(p, members()), 0.6), "unreadable", "cannot be unpacked"),
    "cut, not packed": (
        ".tar",
        lambda p: cut(write_archive(p, members()), 0.3),
        "unreadable",
        "cannot be unpacked",
    ),
    "without image": (
        ".tar.gz",
        lambda p: write_archive(p, without(".tiff")),
        "no_image",
        "the archive contains no TIFF",
    ),
    "without anything": (".tar", lambda p: write_archive(p, {}), "no_image", "the archive contains no TIFF"),
    "of too many members": (".tar", too_many, "unreadable", "the archive has more than 10000 members"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_an_archive_that_cannot_be_used_ends_in_a_sentence(tmp_path: Path, case: str) -> None:
    form, make, reason, fault = ARCHIVES[case]
    path = tmp_path / f"{STEM}{form}"
    make(path)
    (refusal,) = found(tmp_path)
    assert isinstance(refusal, Refusal)
    assert (refusal.scene, refusal.reason) == (path.name, reason)
    assert refusal.detail.startswith(f"{path}: ")
    assert fault in refusal.detail
    assert len(refusal.detail.splitlines()) == 1


def test_members_that_lead_outside_are_passed_over(tmp_path: Path) -> None:
    """By their names or as links: none is read or written, and the good ones beside them are."""
    secret = tmp_path / "secret.xml"
    secret.write_bytes(xml(fields()).encode())
    path = tmp_path / "in" / "bad.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:

        def add(name: str, content: bytes = b"", **change: Any) -> None:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            for key, value in change.items():
                setattr(entry, key, value)
            archive.addfile(entry, io.BytesIO(content))

        image = tiff(coordinates(), **PLACED)
        add("../above.tif", image)
        add(str(tmp_path / "absolute.tif"), image)
        add("a/../../aside.tif", image)
        add("link.tif", type=tarfile.SYMTYPE, linkname=str(secret))
        add("hard.tif", type=tarfile.LNKTYPE, linkname=f"{STEM}.tiff")
        add("pipe.tif", type=tarfile.FIFOTYPE)
        add("folder.tif", type=tarfile.DIRTYPE)
        for name, content in members().items():
            add(name, content)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    scene, *faults = sorted(found(path), key=lambda item: isinstance(item, Refusal))
    assert isinstance(scene, Scene)
    assert scene.id == NAME
    assert [fault.reason for fault in faults if isinstance(fault, Refusal)] == ["unsafe"] * 2
    assert [fault.detail for fault in faults if isinstance(fault, Refusal)] == [
        f"{path}: member '../above.tif' leads outside the archive; it is skipped",
        f"{path}: further members skipped: 5",
    ]
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


def test_an_xml_that_is_only_a_link_is_none(tmp_path: Path) -> None:
    path = tmp_path / "linked.tar"
    write_archive(path, without(".xml"))
    (tmp_path / "secret.xml").write_bytes(xml(fields()).encode())
    with tarfile.open(path, "a") as archive:
        entry = tarfile.TarInfo(f"{STEM}.xml")
        entry.type, entry.linkname = tarfile.SYMTYPE, "secret.xml"
        archive.addfile(entry)
    link, refusal = found(path)
    assert isinstance(link, Refusal)
    assert f"member '{STEM}.xml' is a link" in link.detail
    assert isinstance(refusal, Refusal)
    assert "there is no product XML next to it" in refusal.detail


def test_metadata_of_megabytes_is_not_read(tmp_path: Path) -> None:
    files = changed(".xml", lambda b: b + b" " * archive.MAX_METADATA)
    for path in (write_folder(tmp_path / "folder", files), write_archive(tmp_path / "archive.tar", files)):
        (refusal,) = found(path)
        assert isinstance(refusal, Refusal)
        assert ".xml: more than 4 MiB are too many for a metadata file" in refusal.detail


def test_a_folder_that_cannot_be_listed_and_names_of_no_encoding_are_refused(tmp_path: Path) -> None:
    (refusal,) = read_delivery(Delivery("gone/image.tif", ("gone/image.tif", "gone/image.xml")))
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "unreadable"
    name = b"\xff\xfe.tif"
    Path(str(tmp_path), name.decode(errors="surrogateescape")).write_bytes(tiff(coordinates(), **PLACED))
    (refusal,) = found(tmp_path)
    assert isinstance(refusal, Refusal)


@pytest.mark.parametrize("kind", BROKEN)
def test_every_kind_of_broken_delivery_has_its_sentence(tmp_path: Path, kind: str) -> None:
    """No scene comes of it, nothing is written, and the sentence fits into a line."""
    BROKEN[kind].write(tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    places = [tmp_path] if "JSON" not in kind else [*tmp_path.iterdir()]  # of a folder's JSON not all is STAC
    items = [item for one in find_deliveries(places) for item in read_and_survey(catalog_job(one))]
    refusals = [item for item in items if isinstance(item, Refusal)]
    assert refusals == items
    assert any(BROKEN[kind].words in item.detail for item in refusals), refusals
    for item in refusals:
        assert str(tmp_path) in item.detail
        assert len(item.detail.splitlines()) == 1
        assert len(item.detail) < 600
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before
    assert not Path("/tmp/geokr-above.tif").exists()


# --- finding them


def test_images_and_archives_are_found_once_and_in_order(tmp_path: Path) -> None:
    names = ["b/x.tiff", "a/y.TIF", "a/z.tar.gz", "c.tgz", "a/deep/er/w.tar", "d.TAR.GZ", "e.zip"]
    ignored = ["order.xml", "a/x.jpg", "a/x_thumb.jpg", "a/x.rpb", "b/x.tiff.aux.xml", "f.gz"]
    for name in names + ignored:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "directory.tif").mkdir()
    one = [(str(Path(item.path).relative_to(tmp_path)), item.archive) for item in find_deliveries([tmp_path])]
    assert one == sorted((name, not name.lower().endswith((".tiff", ".tif"))) for name in names)
    paths: list[str | Path] = [tmp_path / "b", tmp_path, tmp_path / "b" / "x.tiff", str(tmp_path / "a")]
    assert sorted(item.path for item in find_deliveries(paths)) == sorted(str(tmp_path / name) for name in names)


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone: no such file or directory"):
        list(find_deliveries([tmp_path, tmp_path / "gone"]))


# --- whatever comes


@given(data=st.data(), packed=st.booleans())
@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
def test_only_scenes_and_refusals_come_of_spoiled_deliveries(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, packed: bool
) -> None:
    """Bytes changed or cut anywhere in the files, or in the archive of them."""
    folder = tmp_path_factory.mktemp("spoiled")

    def spoil(content: bytes) -> bytes:
        spoiled = bytearray(content)
        for _ in range(data.draw(st.integers(1, 5))):
            # A TIFF's and a tar's structure is in the first bytes more often than not.
            place = data.draw(st.integers(0, min(700, len(content) - 1)) | st.integers(0, len(content) - 1))
            spoiled[place] = data.draw(st.integers(0, 255))
        return bytes(spoiled[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])

    if packed:
        path = write_archive(folder / "delivery.tar", members())
        path.write_bytes(spoil(path.read_bytes()))
    else:
        which = data.draw(st.sampled_from([*members()]))
        write_folder(folder, {name: spoil(c) if name == which else c for name, c in members().items()})
    for one in find_deliveries([folder]):
        items = read_and_survey(catalog_job(one))
        assert items
        for item in items:
            assert isinstance(item, Entry | Refusal)
            if isinstance(item, Refusal):
                assert len(item.detail.splitlines()) == 1, item.detail
