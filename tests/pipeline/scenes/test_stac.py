"""STAC items as scenes: Sentinel-2 and Landsat as their catalogs write them, local, over HTTP and from a bucket."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer
from pyproj import CRS
from rasterio.io import MemoryFile
from rasterio.windows import Window

from geokr.dataset.index import read_summary
from pipeline.build_levir_kr import main
from pipeline.scenes.delivery import Refusal, read_delivery
from pipeline.scenes.discovery import find_deliveries
from pipeline.scenes.raster import read_image
from pipeline.scenes.scene import Imagery, Scene
from pipeline.scenes.stac import resolve_href, to_source, walk_items
from tests.deliveries import coordinates, jp2, surveyed, tiff

SIDE = 120
"""Px of the 10 m bands."""
PLACE = {"crs": "EPSG:32648", "transform": Affine(10, 0, 5e5, 0, -10, 2.7e6)}
BBOX = [104.9, 24.3, 105.1, 24.5]


def band(k: int, side: int = SIDE, gsd: float = 10) -> bytes:
    """The k-th band, all of whose pixels know their place."""
    pixels = coordinates(side, side, k + 2)[k][None] + k
    return tiff(pixels, crs=PLACE["crs"], transform=Affine(gsd, 0, 5e5, 0, -gsd, 2.7e6), nodata=0)


def sentinel(version: str = "1.0.0") -> tuple[dict[str, Any], dict[str, bytes]]:
    """A Sentinel-2 L2A item, and its files."""
    files = {f"{name}.tif": band(k) for k, name in enumerate(("B02", "B03", "B04", "B08"))}
    files["B8A.tif"] = band(4, SIDE // 2, 20)
    files["TCI.tif"] = tiff(coordinates(SIDE, SIDE, 3).astype(np.uint8), **PLACE)
    assets: dict[str, Any] = {
        "thumbnail": {"href": "./preview.jpg", "type": "image/jpeg", "roles": ["thumbnail"]},
        "visual": described(version, "TCI.tif", [("B04", "red"), ("B03", "green"), ("B02", "blue")]),
    }
    for key, name, common in (
        ("blue", "B02", "blue"), ("green", "B03", "green"), ("red", "B04", "red"), ("nir", "B08", "nir"),
        ("nir08", "B8A", "nir08"),
    ):  # fmt: skip
        assets[key] = described(version, f"{name}.tif", [(name, common)], scale=0.0001, offset=-0.1, nodata=0)
    assets["scl"] = {"href": "SCL.tif", "type": "image/tiff; application=geotiff", "roles": ["data"]}
    said = {
        "datetime": "2023-07-04T03:35:41.024000Z", "platform": "sentinel-2b", "instruments": ["msi"],
        "eo:cloud_cover": 3.2, "view:sun_elevation": 71.5,
    }  # fmt: skip
    return item("S2B_48RYN_20230704_0_L2A", assets, said, version), files


def landsat() -> tuple[dict[str, Any], dict[str, bytes]]:
    """A Landsat 9 C2 L2 item, and its files."""
    files = {f"LC09_SR_B{k + 2}.TIF": band(k, SIDE, 30) for k in range(4)}
    assets = {
        key: described(
            "1.0.0", f"LC09_SR_B{k + 2}.TIF", [(f"OLI_B{k + 2}", key)], scale=2.75e-05, offset=-0.2, nodata=0
        )
        for k, key in enumerate(("blue", "green", "red", "nir08"))
    }
    said = {"datetime": "2023-07-04T03:31:12Z", "platform": "landsat-9", "instruments": ["oli", "tirs"]}
    return item("LC09_L2SP_128043_20230704_02_T1", assets, said), files


def described(version: str, href: str, bands: list[tuple[str, str]], **raster: float) -> dict[str, Any]:
    """An asset, as STAC 1.0 and 1.1 describe its bands."""
    asset: dict[str, Any] = {"href": href, "type": "image/tiff; application=geotiff; profile=cloud-optimized"}
    asset["roles"] = ["visual"] if href == "TCI.tif" and version == "1.1.0" else ["data"]
    if version == "1.1.0":
        asset["bands"] = [{"name": name, "eo:common_name": common} for name, common in bands]
        asset |= {key if key == "nodata" else f"raster:{key}": value for key, value in raster.items()}
    else:
        asset["eo:bands"] = [{"name": name, "common_name": common} for name, common in bands]
        asset |= {"raster:bands": [raster]} if raster else {}
    return asset


def item(name: str, assets: dict[str, Any], said: dict[str, Any], version: str = "1.0.0") -> dict[str, Any]:
    west, south, east, north = BBOX
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {
        "type": "Feature", "stac_version": version, "stac_extensions": [], "id": name, "properties": said,
        "geometry": {"type": "Polygon", "coordinates": [ring]}, "bbox": BBOX, "links": [], "assets": assets,
    }  # fmt: skip


def write(folder: Path, value: dict[str, Any], files: dict[str, bytes], name: str = "item.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    (folder / name).write_text(json.dumps(value))
    return folder / name


def read_all(
    *paths: str | Path, imagery: Imagery = "mss", bands: tuple[str, ...] = ("red", "green", "blue", "nir")
) -> Any:
    return [got for one in find_deliveries(paths) for got in read_delivery(one, imagery, bands)]


def only(path: str | Path, **choice: Any) -> Scene:
    (scene,) = read_all(path, **choice)
    assert isinstance(scene, Scene), scene
    return scene


# --- what is taken of an item


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_a_sentinel_2_item_is_a_scene_of_its_10_m_bands(tmp_path: Path, version: str) -> None:
    scene = only(write(tmp_path, *sentinel(version)))
    assert (scene.id, scene.satellite, scene.sensor) == ("S2B_48RYN_20230704_0_L2A", "sentinel-2b", "msi")
    assert scene.acquired == datetime(2023, 7, 4, 3, 35, 41, 24000, tzinfo=UTC)
    assert scene.bands == ("red", "green", "blue", "nir")
    assert [Path(image.path).name for image in scene.images] == ["B04.tif", "B03.tif", "B02.tif", "B08.tif"]
    assert scene.gsd == 10.0
    assert {(image.scales, image.offsets, image.nodata) for image in scene.images} == {((0.0001,), (-0.1,), 0.0)}
    assert scene.metadata["eo:cloud_cover"] == "3.2"
    assert [read_image(image)[0][0, 7, 9] for image in scene.images] == [111, 108, 109, 110]  # 100 + row or column + k
    assert surveyed(scene, None, 1.0, 99.0).scene.bands == scene.bands
    assert len(scene.files) == 5


def test_landsats_near_infrared_has_another_name(tmp_path: Path) -> None:
    scene = only(write(tmp_path, *landsat()))
    assert scene.bands == ("red", "green", "blue", "nir")
    assert (scene.gsd, scene.sensor) == (30.0, "oli+tirs")
    assert {image.offsets for image in scene.images} == {(-0.2,)}


def test_bands_of_two_resolutions_make_tiles_of_the_finer(tmp_path: Path) -> None:
    scene = only(write(tmp_path, *sentinel()), bands=("nir08", "green"))
    assert scene.bands == ("nir08", "green")
    assert [image.gsd for image in scene.images] == [20.0, 10.0]
    assert scene.gsd == 10.0


def test_of_an_image_of_several_bands_those_wanted_are_read(tmp_path: Path) -> None:
    """NAIP: red, green, blue and near infrared in one file."""
    pixels = coordinates(SIDE, SIDE, 4) + np.arange(4, dtype=np.uint16)[:, None, None]
    asset = described("1.0.0", "naip.tif", [("R", "red"), ("G", "green"), ("B", "blue"), ("N", "nir")])
    value = item("naip", {"image": asset}, {"datetime": None, "start_datetime": "2020-01-01T00:00:00Z"})
    scene = only(write(tmp_path, value, {"naip.tif": tiff(pixels, **PLACE)}), bands=("nir", "green"))
    (image,) = scene.images
    assert (image.bands, image.indexes, image.scales) == (("nir", "green"), (4, 2), ())
    assert np.array_equal(read_image(image)[0], pixels[[3, 1]])
    assert np.array_equal(read_image(image, shape=(4, 5))[0].shape, (2, 4, 5))
    assert scene.acquired == datetime(2020, 1, 1, tzinfo=UTC)


def test_an_offset_that_the_pixels_hold_already_is_none(tmp_path: Path) -> None:
    value, files = sentinel()
    value["properties"]["earthsearch:boa_offset_applied"] = True
    assert {image.offsets for image in only(write(tmp_path, value, files)).images} == {(0.0,)}


def test_jpeg_2000_holds_the_pixels_as_delivered(tmp_path: Path) -> None:
    """Earth Search has both forms of a band. Its TIFFs include the offset of baseline 04.00, its JPEG 2000s do not."""
    value, files = sentinel()
    value["properties"]["earthsearch:boa_offset_applied"] = True
    pixels = coordinates(SIDE, SIDE, 1)
    asset = described("1.0.0", "B02.jp2", [("B02", "blue")], scale=0.0001, offset=-0.1, nodata=0)
    value["assets"] = {"blue-jp2": asset | {"type": "image/jp2"}, "green": value["assets"]["green"]}
    files["B02.jp2"] = jp2(pixels, block=64, **PLACE)
    scene = only(write(tmp_path, value, files))
    green, blue = scene.images
    assert (green.offsets, blue.offsets) == ((0.0,), (-0.1,))
    assert (scene.gsd, blue.nodata, blue.model) == (10.0, 0.0, green.model)
    window = Window(50, 30, 60, 80)
    assert np.array_equal(read_image(blue, window)[0], pixels[:, 30:110, 50:110])


def test_a_panchromatic_asset_sharpens(tmp_path: Path) -> None:
    value, files = landsat()
    value["assets"]["pan"] = described("1.0.0", "B8.TIF", [("OLI_B8", "pan")])
    path = write(tmp_path, value, files | {"B8.TIF": band(0, 2 * SIDE, 15)})
    assert only(path, imagery="pan").bands == ("pan",)
    sharp = only(path, imagery="pansharpened")
    assert sharp.pan is not None
    assert (sharp.gsd, sharp.pan.gsd, sharp.bands) == (15.0, 15.0, ("red", "green", "blue", "nir"))
    (refusal,) = read_all(write(tmp_path / "b", *sentinel()), imagery="pansharpened")
    assert "none of its assets contains pan" in refusal.detail


# --- where items are found


def collection(folder: Path) -> Path:
    """A Collection that links to an item, and to a catalog that links to another and back."""
    write(folder / "s2", *sentinel())
    write(folder / "sub" / "landsat", *landsat())
    catalog = {"type": "Catalog", "id": "c", "stac_version": "1.0.0", "description": ""}
    links = [{"rel": "item", "href": "./landsat/item.json"}, {"rel": "child", "href": "../collection.json"}]
    write(folder / "sub", catalog | {"links": links}, {}, "catalog.json")
    links = [{"rel": "item", "href": "s2/item.json"}, {"rel": "child", "href": "./sub/catalog.json"}]
    return write(folder, catalog | {"type": "Collection", "links": links}, {}, "collection.json")


@pytest.mark.parametrize("form", ["items", "collection", "item collection", "folder"])
def test_an_item_is_found_once_in_whatever_form(tmp_path: Path, form: str) -> None:
    """A folder's images that an item refers to are no scenes of their own."""
    top = collection(tmp_path)
    paths = [tmp_path / "s2" / "item.json", tmp_path / "sub" / "landsat" / "item.json"]
    whole = read_all(*paths)
    if form == "items":
        got = whole
    elif form == "item collection":
        features = [json.loads(path.read_text()) for path in paths]
        for path, feature in zip(paths, features, strict=True):
            for asset in feature["assets"].values():
                asset["href"] = str(path.parent / asset["href"])
        got = read_all(write(tmp_path, {"type": "FeatureCollection", "features": features}, {}, "items.geojson"))
    else:
        (tmp_path / "other.json").write_text('{"type": "Feature", "no": "STAC"}')
        (tmp_path / "s2" / "TCI.tif").unlink()
        got = read_all(top if form == "collection" else tmp_path)
    assert [scene.id for scene in got] == ["S2B_48RYN_20230704_0_L2A", "LC09_L2SP_128043_20230704_02_T1"]
    assert [scene.images for scene in got] == [scene.images for scene in whole]


def test_items_and_images_over_http(tmp_path: Path, served: str) -> None:
    collection(tmp_path)
    got = read_all(f"{served}/collection.json")
    assert [scene.id for scene in got] == ["S2B_48RYN_20230704_0_L2A", "LC09_L2SP_128043_20230704_02_T1"]
    assert got[0].images[0].path == f"/vsicurl/{served}/s2/B04.tif"
    assert got[0].files == ()
    local = only(tmp_path / "s2" / "item.json")
    assert all(
        np.array_equal(read_image(a)[0], read_image(b)[0]) for a, b in zip(got[0].images, local.images, strict=True)
    )
    image = only(f"{served}/s2/B04.tif")
    assert (image.id, image.gsd) == ("B04", 10.0)
    (refusal,) = read_all(f"{served}/gone.json")
    assert f"{served}/gone.json: cannot be read as STAC: HTTP Error 404" in refusal.detail


def test_items_and_images_from_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        environment = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        collection(tmp_path)
        bucket = boto3.client("s3")
        bucket.create_bucket(Bucket="scenes")
        for file in tmp_path.rglob("*"):
            if file.is_file():
                bucket.upload_file(str(file), "scenes", f"in/{file.relative_to(tmp_path)}")
        got = read_all("s3://scenes/in/collection.json")
        assert [scene.id for scene in got] == ["S2B_48RYN_20230704_0_L2A", "LC09_L2SP_128043_20230704_02_T1"]
        assert got[0].images[0].path == "/vsis3/scenes/in/s2/B04.tif"
        local = only(tmp_path / "s2" / "item.json")
        assert all(
            np.array_equal(read_image(a)[0], read_image(b)[0]) for a, b in zip(got[0].images, local.images, strict=True)
        )
        assert only("s3://scenes/in/s2/B04.tif").gsd == 10.0
        assert {scene.id for scene in read_all("s3://scenes/in") if isinstance(scene, Scene)} == {
            scene.id for scene in got
        }
    finally:
        server.stop()


def test_sentinel_2_is_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Items in, tiles and labels out."""
    rows, cols = np.mgrid[:90, :90]
    classes = np.where((rows // 20 + cols // 20) % 2, 20, 10).astype(np.uint8)[None]
    sheet = tiff(classes, crs="EPSG:32648", transform=Affine(30, 0, 499_000, 0, -30, 2_701_000))
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "n48_20_2020lc030.tif").write_bytes(sheet)
    path = write(tmp_path / "s2", *sentinel())
    arguments = ["--scenes", str(path), "--landcover", str(tmp_path / "maps"), "--tile", "32", "--stride", "32"]
    assert (
        main(
            [*arguments, "--out", str(tmp_path / "out"), "--stac", str(tmp_path / "stac"), "--workers", "1", "--strict"]
        )
        == 0
    ), capsys.readouterr()
    assert (tmp_path / "stac" / "S2B_48RYN_20230704_0_L2A" / "S2B_48RYN_20230704_0_L2A.json").is_file()
    assert read_summary(tmp_path / "out")["counts"]["index"] > 0


# --- what is wrong with them


def spoiled(change: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    value, files = sentinel()
    red = value["assets"]["red"]
    match change:
        case "no bands":
            value["assets"] = {"scl": value["assets"]["scl"]}
        case "gone":
            del files["B04.tif"]
        case "elsewhere":
            value["bbox"] = [10, 10, 11, 11]
        case "complex":
            files["B04.tif"] = tiff(np.ones((1, SIDE, SIDE), np.complex64), **PLACE)
        case "two types":
            files["B04.tif"] = tiff(np.ones((1, SIDE, SIDE), np.uint8), **PLACE)
        case "more bands":
            files["B04.tif"] = tiff(coordinates(SIDE, SIDE, 2), **PLACE)
        case "no georeference":
            files["B04.tif"] = tiff(coordinates(SIDE, SIDE, 1))
        case "a system of GDAL's":
            red["href"] = "/vsimem/B04.tif"
        case "a VRT":
            files["B04.tif"] = b'<VRTDataset rasterXSize="1" rasterYSize="1"></VRTDataset>'
        case "an id that leads elsewhere":
            value["id"] = "../../out"
        case "no id":
            del value["id"]
        case "no assets":
            value["assets"] = None
        case "an empty list of assets":
            value["assets"] = {}
    return value, files


SPOILED = {
    "no bands": "none of its assets contains red or green or blue or nir; the assets are scl",
    "gone": "B04.tif: not an image that can be opened",
    "elsewhere": "its bbox is [10, 10, 11, 11], but",
    "complex": "pixels are ['complex64'], expected whole or real numbers",
    "two types": "the pixels of its bands are of different types, uint16 and uint8",
    "more bands": "its asset red should have 1 bands, but has 2",
    "no georeference": "its asset red has no georeference",
    "a system of GDAL's": "/vsimem/B04.tif is not an address of an image",
    "a VRT": "not an image that can be opened",
    "an id that leads elsewhere": "'../../out' cannot be the name of a scene",
    "no id": "an item without id or assets",
    "no assets": "an item without id or assets",
    "an empty list of assets": "it has no assets",
}


@pytest.mark.parametrize("change", SPOILED)
def test_an_item_that_cannot_be_used_ends_in_a_sentence(tmp_path: Path, change: str) -> None:
    path = write(tmp_path, *spoiled(change))
    (refusal,) = read_all(path)
    assert isinstance(refusal, Refusal)
    assert SPOILED[change] in refusal.detail
    assert str(path) in refusal.detail
    assert len(refusal.detail.splitlines()) == 1


@pytest.mark.parametrize("turn", [-360, 360])
def test_longitudes_of_an_item_may_be_counted_otherwise_than_its_images(tmp_path: Path, turn: int) -> None:
    value, files = sentinel()
    value["bbox"] = [BBOX[0] + turn, BBOX[1], BBOX[2] + turn, BBOX[3]]
    scene = only(write(tmp_path, value, files))
    assert scene.footprint.centroid.x == pytest.approx(105, abs=0.1)


@pytest.mark.parametrize(
    "href", ["{}?sig=a%2Fb&x=1", "file://{folder}/{}", "file://localhost{folder}/{}", "FILE:{folder}/{}", "./{}#1"]
)
def test_an_address_in_a_local_item_is_a_url(tmp_path: Path, href: str) -> None:
    """One that is not understood would leave each band a scene of its own."""
    value, files = sentinel()
    folder = tmp_path / "a folder"
    for asset in value["assets"].values():
        name = asset["href"].removeprefix("./")
        asset["href"] = href.format(name, folder=str(folder).replace(" ", "%20"))
    if href.endswith("#1"):
        files = {f"{name}#1": content for name, content in files.items()}  # a name that looks like one
    scene = only(write(folder, value, files).parent)
    assert scene.bands == ("red", "green", "blue", "nir")


def test_an_item_that_ends_early_is_named_in_a_folder(tmp_path: Path) -> None:
    """Not one JSON of a folder is read in silence if it says that it is STAC; others may be anything."""
    path = write(tmp_path, *sentinel())
    path.write_text(path.read_text()[:900])
    (tmp_path / "other.json").write_text('{"a": ')
    faults = [got.detail for got in read_all(tmp_path) if isinstance(got, Refusal)]
    assert len(faults) == 1
    assert faults[0].startswith(f"{path}: cannot be read as STAC: ")


@pytest.mark.parametrize(
    "said",
    [
        {"proj:epsg": 32648}, {"proj:code": "EPSG:32648"}, {"proj:wkt2": CRS(32648).to_wkt()},
        {"proj:projjson": CRS(32648).to_json_dict(), "proj:code": None},
    ],
)  # fmt: skip
def test_an_image_without_georeference_lies_where_its_item_says(tmp_path: Path, said: dict[str, Any]) -> None:
    value, files = sentinel()
    wanted = only(write(tmp_path / "a", value, files))
    for name in files:
        files[name] = bare(files[name])
    assert (
        "has no georeference, and the item does not say it" in read_all(write(tmp_path / "b", value, files))[0].detail
    )
    value["properties"] |= said
    for key, asset in value["assets"].items():
        gsd, side = (20, SIDE // 2) if key == "nir08" else (10, SIDE)
        asset |= {"proj:transform": [gsd, 0, 5e5, 0, -gsd, 2.7e6, 0, 0, 1], "proj:shape": [side, side]}
    scene = only(write(tmp_path / "c", value, files))
    assert scene.footprint.equals_exact(wanted.footprint, 1e-9)
    assert scene.gsd == 10.0
    for asset in value["assets"].values():
        asset["proj:shape"] = [SIDE, SIDE + 1]  # those of another image
    assert "has no georeference" in read_all(write(tmp_path / "d", value, files))[0].detail


def bare(content: bytes) -> bytes:
    """A TIFF without its georeference."""
    with MemoryFile(content) as memory, memory.open() as file:
        return tiff(file.read(), nodata=0)


@pytest.mark.parametrize("form", ["text in the item", "aux.xml", "mask"])
def test_pixels_without_data_are_told_beside_the_images_of_an_item(tmp_path: Path, form: str) -> None:
    value, files = sentinel()
    valid = np.broadcast_to(np.arange(SIDE) >= 30, (SIDE, SIDE))
    for name in files:
        if name.startswith("B0"):
            pixels = np.where(valid, coordinates(SIDE, SIDE, 1), 5).astype(np.uint16)
            files[name] = tiff(pixels, **PLACE)
    for name in [*files]:
        if form == "aux.xml":
            text = "<PAMRasterBand band='1'><NoDataValue>5</NoDataValue></PAMRasterBand>"
            files[f"{name}.aux.xml"] = f"<PAMDataset>{text}</PAMDataset>".encode()
        elif form == "mask":
            files[f"{name}.msk"] = tiff(np.where(valid, 255, 0).astype(np.uint8)[None])
    for asset in value["assets"].values():
        for band in asset.get("raster:bands", []):
            band.pop("nodata")
            band |= {"nodata": "5"} if form.startswith("text") else {}
    scene = only(write(tmp_path, value, files))
    for image in scene.images:
        assert np.array_equal(read_image(image)[1], valid)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "cannot be read as STAC"),
        ("[1]", "the JSON is not an object"),
        ("{}", "not a STAC Item, ItemCollection, Collection or Catalog"),
        ('{"type": "FeatureCollection"}', "the collection has no list of features"),
        ("[" * 100_000, "cannot be read as STAC"),
    ],
)
def test_a_document_that_is_none_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "items.json").write_text(text)
    (refusal,) = read_all(tmp_path / "items.json")
    assert refusal.detail.startswith(f"{tmp_path / 'items.json'}: ")
    assert sentence in refusal.detail


def test_what_a_remote_document_says_never_leads_to_this_machines_files() -> None:
    for href in ("file:///etc/hostname", "/etc/hostname", "../../../etc/hostname"):
        meant = resolve_href(href, "https://host/a/b.json")
        assert not meant.startswith("/")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.sampled_from(["red", "href", "bands", "type"]), part),
    max_leaves=6,
)


@given(key=st.sampled_from(["properties", "assets", "bbox", "id", "red", "href", "eo:bands", "raster:bands"]), put=JSON)
@settings(max_examples=150)
def test_only_scenes_and_refusals_come_of_spoiled_items(
    tmp_path_factory: pytest.TempPathFactory, key: str, put: Any
) -> None:
    value, _ = sentinel()
    red = value["assets"]["red"]
    (red if key in red else value["assets"] if key == "red" else value)[key] = put
    got = to_source(value, str(tmp_path_factory.getbasetemp() / "item.json"), inside=False)
    if got.fault:
        assert "\n" not in got.fault
        return
    path = tmp_path_factory.mktemp("item") / "item.json"
    path.write_text(json.dumps(value))
    for result in read_all(path):
        assert isinstance(result, Scene | Refusal)
        assert not isinstance(result, Refusal) or len(result.detail.splitlines()) == 1


def test_the_same_item_is_the_same_delivery(tmp_path: Path) -> None:
    path = write(tmp_path, *sentinel())
    first, second = (list(walk_items(str(path))) for _ in range(2))
    assert first == second
    assert replace(first[0], fault="x") != first[0]
