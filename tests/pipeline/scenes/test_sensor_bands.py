"""Bands of items that state no common names, or others than those asked for: each catalog as it writes its items."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.scenes.delivery import Refusal, read_delivery
from pipeline.scenes.discovery import find_deliveries
from pipeline.scenes.scene import Scene
from pipeline.scenes.sensor_bands import OLI, SENTINEL_2, find_sensor, to_common_name
from tests.deliveries import coordinates, tiff
from tests.pipeline.scenes.test_stac import PLACE, item

PIXELS = tiff(coordinates(20, 20, 1), **PLACE)
TIFF, JP2 = "image/tiff; application=geotiff; profile=cloud-optimized", "image/jp2"
DEFAULT = ("red", "green", "blue", "nir")


def assets(entries: dict[str, Any], kind: str = TIFF, **fields: Any) -> dict[str, Any]:
    """Assets that lie in files of their own. entries: key -> its entry in `eo:bands`, or None without any."""
    lists = {key: {} if entry is None else {"eo:bands": [entry]} for key, entry in entries.items()}
    return {key: {"href": f"./{key}.tif", "type": kind, "roles": ["data"], **lists[key], **fields} for key in entries}


def keys(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names)


def named(**common_names: str) -> dict[str, Any]:
    return {key: {"name": key, "common_name": name} for key, name in common_names.items()}


def write(folder: Path, name: str, found: dict[str, Any], collection: str, **properties: Any) -> Path:
    value = item(name, found, {"datetime": "2023-07-04T03:35:41Z", **properties}) | {"collection": collection}
    for asset in found.values():
        (folder / asset["href"]).write_bytes(PIXELS)
    (folder / "item.json").write_text(json.dumps(value))
    return folder / "item.json"


def read(path: Path, bands: tuple[str, ...] = DEFAULT) -> Scene | Refusal:
    (delivery,) = find_deliveries([path])
    (result,) = read_delivery(delivery, "mss", bands)
    return result


USGS = {
    key: {"href": f"LC08_L2SP_190060_20210601_20210608_02_T1_SR_B{n}.TIF", "eo:bands": [n], "roles": ["data"]}
    for n, key in enumerate(("blue", "green", "red", "nir08", "swir16", "swir22"), 2)
}
DEA = keys(
    "nbar_red", *(f"nbart_{name}" for name in ("blue", "green", "red", "red_edge_1", "nir_1", "nir_2", "swir_2")),
    "nbart_swir_3", "oa_fmask",
)  # fmt: skip
SENTINEL = ("B02", "B03", "B04", "B05", "B08", "B8A", "B11", "B12", "SCL")
CDSE = {
    f"{name}_{gsd}m": {
        "href": f"{name}_{gsd}m.tif", "type": JP2, "gsd": gsd, "roles": ["data", "reflectance"],
        "bands": [{"name": name, "eo:common_name": common}],
    }
    for gsd in (60, 20, 10) for name, common in (("B04", "red"), ("B03", "green"), ("B02", "blue"), ("B08", "nir"))
    if name != "B08" or gsd == 10
}  # fmt: skip
EARTH_SEARCH = named(
    red="red", green="green", blue="blue", nir="nir", nir08="nir08", rededge1="rededge", rededge2="rededge"
)
CATALOGS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], dict[str, str]]] = {
    # id, assets, collection, properties, band -> its asset
    "USGS": (
        "LC08_L2SP_190060_20210601_20210608_02_T1_SR", USGS, "landsat-c2l2-sr", {"platform": "LANDSAT_8"},
        {"red": "red", "nir": "nir08", "nir08": "nir08", "swir22": "swir22", "SR_B4": "red", "B5": "nir08"},
    ),
    "DEA, Sentinel-2": (
        "ga_s2am_ard_3-2-1_55HGA_2019-11-21_final", assets(DEA), "ga_s2am_ard_3", {"platform": "sentinel-2a"},
        {
            "red": "nbart_red", "nir": "nbart_nir_1", "nir08": "nbart_nir_2", "swir16": "nbart_swir_2",
            "swir22": "nbart_swir_3", "rededge071": "nbart_red_edge_1", "nbar_red": "nbar_red",
        },
    ),
    "DEA, Landsat": (
        "ga_ls8c_ard_3-2-1_091085_2021-06-01_final", assets(keys("nbart_red", "nbart_nir", "nbart_swir_1",
        "nbart_swir_2", "nbart_panchromatic")), "ga_ls8c_ard_3", {"platform": "landsat-8"},
        {"red": "nbart_red", "nir": "nbart_nir", "swir16": "nbart_swir_1", "swir22": "nbart_swir_2",
         "pan": "nbart_panchromatic"},
    ),
    "Earth Search v0": (
        "S2B_48RYN_20230704_0_L2A", assets({name: {"name": name} for name in SENTINEL}), "sentinel-s2-l2a-cogs",
        {"platform": "sentinel-2b"}, {"red": "B04", "nir": "B08", "nir08": "B8A", "rededge1": "B05", "swir16": "B11"},
    ),
    "Earth Search v1": (
        "S2B_48RYN_20230704_0_L2A",
        assets({f"{key}-jp2": band for key, band in EARTH_SEARCH.items()}, JP2, gsd=10) | assets(EARTH_SEARCH),
        "sentinel-2-l2a", {"platform": "sentinel-2b"},
        {
            "red": "red", "nir": "nir", "B04": "red", "B8A": "nir08", "rededge2": "rededge2", "B05": "rededge1",
            "red_edge_2": "rededge2", "blue-jp2": "blue-jp2",
        },
    ),
    "HLS, Landsat": (
        "HLS.L30.T55HGA.2023185T000000.v2.0", assets(keys("B02", "B03", "B04", "B05", "B07", "Fmask")), "HLSL30_2.0",
        {}, {"blue": "B02", "red": "B04", "nir": "B05", "swir22": "B07"},
    ),
    "HLS, Sentinel-2": (
        "HLS.S30.T55HGA.2023185T000000.v2.0", assets(keys(*SENTINEL)), "HLSS30_2.0", {},
        {"red": "B04", "nir": "B08", "nir08": "B8A", "swir22": "B12"},
    ),
    "Planetary Computer": (
        "S2A_MSIL2A_20230704T033541_R061_T48RYN_20230704T120000",
        assets(named(B02="blue", B03="green", B04="red", B05="rededge", B08="nir", B8A="rededge")), "sentinel-2-l2a",
        {"platform": "Sentinel-2A"}, {"red": "B04", "nir": "B08", "nir08": "B8A", "rededge071": "B05"},
    ),
    "Planetary Computer, Landsat 7": (
        "LE07_L2SP_190060_20010601_02_T1", assets({"red": {"name": "ETM_B3"}, "nir08": {"name": "ETM_B4"}}),
        "landsat-c2-l2", {"platform": "landsat-7"}, {"red": "red", "nir": "nir08", "B4": "nir08", "TM_B3": "red"},
    ),
    "CDSE": (
        "S2A_MSIL2A_20230704T033541_N0509_R061_T48RYN_20230704T120000", CDSE, "sentinel-2-l2a",
        {"platform": "sentinel-2a"}, {"red": "B04_10m", "nir": "B08_10m", "B03": "B03_10m", "B02_60m": "B02_60m"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("catalog", CATALOGS)
def test_each_catalogs_items_are_read_by_common_names_and_by_their_own(tmp_path: Path, catalog: str) -> None:
    name, found, collection, properties, expected = CATALOGS[catalog]
    path = write(tmp_path, name, found, collection, **properties)
    for band, key in expected.items():
        scene = read(path, (band,))
        assert isinstance(scene, Scene), scene
        assert scene.bands == (band,)
        assert Path(scene.images[0].path).name == Path(found[key]["href"]).name, band


@pytest.mark.parametrize("catalog", CATALOGS)
def test_the_quality_band_of_an_item_is_known_by_its_key(tmp_path: Path, catalog: str) -> None:
    name, found, collection, properties, _ = CATALOGS[catalog]
    (delivery,) = find_deliveries([write(tmp_path, name, found, collection, **properties)])
    (scene,) = read_delivery(delivery, "mss", ("red",), mask="qa")
    assert isinstance(scene, Scene)
    expected = {
        "DEA, Sentinel-2": "oa_fmask",
        "Earth Search v0": "SCL",
        "HLS, Landsat": "Fmask",
        "HLS, Sentinel-2": "SCL",
    }
    assert (None if scene.quality is None else scene.quality.bands[0]) == expected.get(catalog)


def test_an_item_of_an_unknown_sensor_is_read_by_the_names_that_the_setting_gives(tmp_path: Path) -> None:
    path = write(tmp_path, "x", assets(keys("channel_1", "channel_2", "B04")), "own")
    refusal = read(path)
    assert isinstance(refusal, Refusal)
    assert "the assets are B04, channel_1, channel_2; name them in the setting bands, such as red=ASSET" in (
        refusal.detail
    )
    scene = read(path, ("red=channel_2", "nir=B04", "blue=gone"))
    assert isinstance(scene, Scene)
    assert [(image.bands, Path(image.path).stem) for image in scene.images] == [
        (("red",), "channel_2"), (("nir",), "B04"),
    ]  # fmt: skip
    assert read(path, ("red", "B04")).bands == ("B04",)  # type: ignore[union-attr]


def test_the_setting_comes_before_the_names_that_an_item_states(tmp_path: Path) -> None:
    name, found, collection, properties, _ = CATALOGS["Planetary Computer"]
    scene = read(write(tmp_path, name, found, collection, **properties), ("nir=B8A", "red=nowhere"))
    assert isinstance(scene, Scene)
    assert [(image.bands, Path(image.path).stem) for image in scene.images] == [(("nir",), "B8A"), (("red",), "B04")]


@pytest.mark.parametrize(
    ("text", "bands"),
    [
        ("LC08_L2SP_190060_20210601_02_T1", "oli"), ("LT05_L1TP_190060_19900601_02_T1", "tm"), ("landsat_7", "tm"),
        ("LM05_L1TP_190060_19900601_02_T1", "mss"), ("landsat-4 mss", "mss"), ("sentinel-s2-l1c", "s2"),
        ("S2C_MSIL1C_20250101", "s2"), ("worldview-2", ""), ("planet_s25", ""), ("hls2-l30", "oli"),
    ],
)  # fmt: skip
def test_a_sensor_is_known_by_ids_and_platforms(text: str, bands: str) -> None:
    markers = {"oli": ("b5", "nir08"), "tm": ("b5", "swir16"), "mss": ("b4", "nir09"), "s2": ("b8a", "nir08")}
    found = find_sensor([text])
    assert {name for name, (band, common) in markers.items() if found.get(band) == common} == ({bands} - {""})


def test_a_number_means_another_band_with_each_sensor() -> None:
    assert to_common_name("B05", SENTINEL_2) == "rededge071"
    assert to_common_name("band_5", OLI) == to_common_name("SR_B5", OLI) == "nir08"
    assert to_common_name("B05", {}) == "b5"
