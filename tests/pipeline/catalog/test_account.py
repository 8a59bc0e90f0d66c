"""What is said of each given file, in small."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from pipeline.catalog.account import Given, describe, read_account, summarise, take_account
from pipeline.catalog.stac_items import write_static_catalog
from pipeline.config import BuildConfig
from pipeline.scenes import roles
from pipeline.scenes.delivery import NoImagery, Refusal, read_delivery
from pipeline.scenes.discovery import find_alternatives, find_deliveries, take_inventory
from pipeline.scenes.scene import Scene
from pipeline.stages import catalog
from tests.deliveries import coordinates, tiff, write_archive, write_folder, write_zip
from tests.pipeline.scenes.test_stac import item, sentinel
from tests.pipeline.scenes.test_stac import write as write_item
from tests.products import L2A, safe
from tests.settings import build_config

PLACE = {"crs": "EPSG:32648", "transform": Affine(10, 0, 5e5, 0, -10, 2.7e6)}


def image(bands: int = 3, shift: int = 0) -> bytes:
    transform = Affine(10, 0, 5e5 + 2000 * shift, 0, -10, 2.7e6)
    return tiff(coordinates(bands=bands), crs="EPSG:32648", transform=transform)


def config(tmp_path: Path) -> BuildConfig:
    return build_config(scenes=[str(tmp_path / "in")], out=str(tmp_path / "out"), tile=16, stride=16)


def ids(tmp_path: Path) -> list[str]:
    return [entry.scene.id for entry in catalog.run(config(tmp_path), None)]


@pytest.mark.parametrize("form", ["tif", "tar", "item"])
def test_own_items_take_nobodys_image_away(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    match form:
        case "tif":
            write_folder(folder, {"a.tif": image(), "b.tif": image(shift=1)})
        case "tar":
            write_archive(folder / "a.tar", {"a.tif": image(), "b.tif": image(shift=1)})
        case _:
            write_item(folder, *sentinel())
    first = ids(tmp_path)
    before = (tmp_path / "out" / "scenes.parquet").read_bytes()
    found = [s for d in find_deliveries([folder]) for s in read_delivery(d) if isinstance(s, Scene)]
    for place in ("stac", "again/stac"):
        write_static_catalog(folder / place, found)
        assert ids(tmp_path) == first
    assert (tmp_path / "out" / "scenes.parquet").read_bytes() == before
    (document,) = find_deliveries([folder / "stac" / first[0] / f"{first[0]}.json"])
    assert document.item  # given by itself, it is an item like any other


@pytest.mark.parametrize("fault", ["elsewhere", "no bands", "another size of bands"])
def test_an_image_is_used_if_its_item_cannot_be(tmp_path: Path, fault: str) -> None:
    write_folder(tmp_path / "in", {"image.tif": image(), "free.tif": image(shift=1)})
    bands = [{"name": name, "common_name": name} for name in ("red", "green", "blue", "nir")]
    asset = {"href": "image.tif", "type": "image/tiff", "eo:bands": {"no bands": []}.get(fault, bands[:3])}
    if fault == "another size of bands":
        asset["eo:bands"] = bands
    value = item("theirs", {"data": asset}, {"datetime": "2021-06-01T00:00:00Z"})
    if fault == "elsewhere":
        value["bbox"] = [0, 0, 1, 1]
    (tmp_path / "in" / "item.json").write_text(json.dumps(value))
    assert ids(tmp_path) == ["free", "image"]
    said = {Path(g.file).name: g.role for g in read_account(tmp_path / "out")}
    assert said == {"image.tif": "scene", "free.tif": "scene", "item.json": "refused"}


def test_an_image_of_an_item_that_is_used_is_not_read_a_second_time(tmp_path: Path) -> None:
    write_item(tmp_path, *sentinel())
    inventory = take_inventory([tmp_path])
    first, *others = inventory.deliveries
    assert first.item
    assert len(others) == 6  # the bands and pictures
    assert find_alternatives(inventory, [first.path]) == []
    assert find_alternatives(inventory, []) == others


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("20200101_000000_1_3B_udm2.tif", "mask"),
        ("LC08_L2SP_190060_20210601_02_T1_QA_PIXEL.TIF", "mask"),
        ("LC08_L2SP_190060_20210601_02_T1_QA_RADSAT.TIF", "mask"),
        ("LC08_L2SP_190060_20210601_02_T1_SR_QA_AEROSOL.TIF", "mask"),
        ("LC08_L1TP_190060_20160601_01_T1_BQA.TIF", "mask"),
        ("T32TQM_20210601T101031_SCL_20m.tif", "mask"),
        ("MSK_CLDPRB_20m.tif", "mask"),
        ("scene_cloudmask.tif", "mask"),
        ("scene-cloud-mask.tif", "mask"),
        ("HLS.S30.T18TYN.2021001.Fmask.tif", "mask"),
        ("Copernicus_DSM_COG_10_N24_00_E105_00_DEM.tif", "elevation"),
        ("ASTGTMV003_N24E105_dem.tif", "elevation"),
        ("srtm_58_07.tif", "elevation"),
        ("AW3D30_N024E105.tif", "elevation"),
        ("us_nga_egm96_15.tif", "elevation"),
        ("hillshade.tif", "elevation"),
        ("ESA_WorldCover_10m_2021_v200_N24E105_Map.tif", "land cover"),
        ("n48_20_2020lc030.tif", "land cover"),
        ("city_landcover_2020.tif", "land cover"),
        ("GF2_browse.tif", "preview"),
        ("quicklook.tif", "preview"),
        # bands and scenes
        ("demo.tif", ""),
        ("mosaic_2020.tif", ""),
        ("B04.tif", ""),
        ("sclater_island.tif", ""),
        ("qatar_20210601.tif", ""),
        ("heightsville_pan.tif", ""),
        ("maskat.tif", ""),
        ("thumbay.tif", ""),
    ],
)
def test_a_name_says_what_an_image_of_one_band_is(tmp_path: Path, name: str, role: str) -> None:
    write_folder(tmp_path, {name: image(bands=1)})
    (result,) = [result for d in find_deliveries([tmp_path]) for result in read_delivery(d)]
    if role:
        assert isinstance(result, NoImagery)
        assert (result.reason, name in result.detail) == (role, True)
    else:
        assert isinstance(result, Scene)


@pytest.mark.parametrize("name", ["alps_dem_overlay.tif", "cloud.tif", "SCL_rgb.tif", "n48_20_2020lc030.tif"])
def test_an_image_of_several_bands_is_one_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path, {name: image(bands=4)})
    (result,) = [result for d in find_deliveries([tmp_path]) for result in read_delivery(d)]
    assert isinstance(result, Scene)


@pytest.mark.parametrize("unit", ["m", "metre", "US survey foot", ""])
@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:4326+5773"])
def test_heights_are_known_by_their_unit_or_their_reference(tmp_path: Path, unit: str, crs: str) -> None:
    content = tiff(coordinates(bands=1), crs=crs, transform=Affine(1e-3, 0, 105, 0, -1e-3, 25))
    write_folder(tmp_path, {"grid.tif": content})
    with rasterio.open(tmp_path / "grid.tif", "r+") as file:
        file.units = (unit,)
    (result,) = [result for d in find_deliveries([tmp_path]) for result in read_delivery(d)]
    assert isinstance(result, NoImagery if unit or "+" in crs else Scene)


def test_what_is_no_imagery_is_no_fault_of_an_archive(tmp_path: Path) -> None:
    write_archive(tmp_path / "in.tar", {"a.tif": image(), "a_udm2.tif": image(bands=8)})
    (delivery,) = find_deliveries([tmp_path])
    results = read_delivery(delivery)
    assert [type(result) for result in results] == [Scene, NoImagery]
    (line,) = take_account(take_inventory([tmp_path]), {delivery.path: results})
    assert line == Given(str(tmp_path / "in.tar"), "scene", "a")


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
def test_what_macos_writes_beside_each_file_is_hidden(tmp_path: Path, form: str) -> None:
    (tmp_path / "in").mkdir()
    files = safe(side=120) | {"a.tif": image()}
    doubles = {f"{'__MACOSX/' if form != 'folder' else ''}{path.parent}/._{path.name}" for path in map(Path, files)}
    files |= dict.fromkeys(doubles, b"\0\5\x16\7")
    match form:
        case "folder":
            write_folder(tmp_path / "in", files | {"._b.zip": b"\0\5\x16\7"})
        case "zip":
            write_zip(tmp_path / "in" / "a.zip", files)
        case _:
            write_archive(tmp_path / "in" / "a.tar", files)
    assert ids(tmp_path) == [L2A, "a"]
    roles_found = {line.role for line in read_account(tmp_path / "out")}
    assert roles_found == ({"scene", "hidden"} if form == "folder" else {"scene"})


def test_an_image_of_one_bit_is_a_mask(tmp_path: Path) -> None:
    one_bit = tiff((coordinates(bands=3) > 120).astype(np.uint8), **PLACE, NBITS=1)
    write_folder(tmp_path / "in", {"a.tif": image(shift=1), "flooded.tif": one_bit})
    assert ids(tmp_path) == ["a"]
    assert [line.role for line in read_account(tmp_path / "out")] == ["scene", "mask"]


@pytest.mark.parametrize("href", ["./my%20scene%20%231.tif", "my scene #1.tif", "my%20scene%20%231.tif"])
def test_an_address_in_an_item_may_be_escaped(tmp_path: Path, href: str) -> None:
    bands = [{"name": name, "common_name": name} for name in ("red", "green", "blue")]
    asset = {"href": href, "type": "image/tiff", "eo:bands": bands}
    value = item("theirs", {"data": asset}, {"datetime": "2021-06-01T00:00:00Z"})
    value["bbox"] = [104, 24, 106, 25]
    write_folder(tmp_path / "in", {"my scene #1.tif": image(), "item.json": json.dumps(value).encode()})
    assert ids(tmp_path) == ["theirs"]


def test_a_file_that_is_known_is_said_to_be_what_it_is_unless_a_scene_was_read_from_it(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.tif": image(), "b.tif": image(shift=1), "c.txt": b""})
    inventory = take_inventory([tmp_path])
    a, b, c = (str(tmp_path / name) for name in ("a.tif", "b.tif", "c.txt"))
    outcomes = {a: read_delivery(next(d for d in inventory.deliveries if d.path == a)), b: [Refusal("b", "x", "why")]}
    known = [Given(a, "unrecognised"), Given(b, "map", "m_2020"), Given(c, "setting"), Given("/d.tif", "unrecognised")]
    found = {line.file: line.role for line in take_account(inventory, outcomes, known)}
    assert found == {a: "scene", b: "map", c: "setting", "/d.tif": "unrecognised"}


def test_each_suffix_has_one_role() -> None:
    suffixes = [suffix for suffixes in roles.SUFFIXES.values() for suffix in suffixes]
    assert len(suffixes) == len({*suffixes})
    assert describe("/nowhere/a.hdf").role == "unreadable"


def test_the_summary_counts_each_file_once_and_names_an_example() -> None:
    lines = [Given("/a.tif", "scene", "a, b"), Given("/b.tif", "scene", "b"), Given("/m.tif", "map", "m_2020")]
    lines += [Given("/x.tif", "refused", "x", "/x.tif: cannot be read"), Given("/1.pdf", "document")]
    lines += [Given("/2.pdf", "document"), Given("/dem.tif", "heights"), Given("/u", "archive", "", "unpack it")]
    assert [" ".join(line.split()) for line in summarise(lines)] == [
        "inputs 8 files: 2 in 2 scenes, 1 in 1 map, 1 with heights, 4 in nothing",
        "1 refused, /x.tif: cannot be read",
        "2 document, such as /1.pdf",
        "1 archive, /u: unpack it",
    ]


def test_a_folder_without_scenes_says_what_it_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    heights = tiff(np.zeros((1, 9, 9), np.int16), **PLACE)
    write_folder(tmp_path / "in", {"scene.rar": b"", "dem.tif": heights})
    with pytest.raises(ValueError, match="none of the scenes can be used"):
        ids(tmp_path)
    assert "1 elevation" in caplog.text
    assert "unpack it" in caplog.text


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("GF1_PMS1_69.4_N33.3_20220624_L1A0006547030-MSS1.tiff", "has the longitude, such as E69.4, as part 3"),
        ("GF2_PMS1_E69.4_N33.3_2022-06-24_L1A0006547030.tiff", "where this one has '2022-06-24'"),
        ("ZY3_MUX.tif", "the longitude, such as E69.4, as part 3 of its name, where this one ends"),
        ("photo.tif", "a GeoTIFF needs a CRS and a transform"),
    ],
)
def test_an_image_of_no_form_is_told_what_it_lacks_for_the_nearest(tmp_path: Path, name: str, part: str) -> None:
    write_folder(tmp_path, {name: tiff(coordinates())})
    (result,) = [result for d in find_deliveries([tmp_path]) for result in read_delivery(d)]
    assert isinstance(result, Refusal)
    assert name in result.detail
    assert part in result.detail


@pytest.mark.parametrize(
    ("members", "end"),
    [
        ({}, "the archive contains no TIFF"),
        ({"a.pdf": b"", "in.rar": b""}, "no TIFF, but 2 other files, such as in.rar (unpack it, or pack its files as"),
        ({"x.h5": b""}, "no TIFF, but x.h5 (HDF5; it is read in a folder"),
    ],
)
def test_an_archive_without_images_says_what_it_has(tmp_path: Path, members: dict[str, bytes], end: str) -> None:
    write_archive(tmp_path / "a.tar", members)
    (result,) = [result for d in find_deliveries([tmp_path]) for result in read_delivery(d)]
    assert isinstance(result, Refusal)
    assert end in result.detail


def test_bands_that_an_item_lacks_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    value, files = sentinel()
    del value["assets"]["nir"], value["assets"]["nir08"]
    write_item(tmp_path / "in", value, files)
    ids(tmp_path)
    assert "S2B_48RYN_20230704_0_L2A: no band nir; the tiles have red, green, blue" in caplog.text
