"""Landsat products as the USGS delivers them, and the scenes that they are."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine

from pipeline.scenes import landsat
from pipeline.scenes.delivery import Refusal, read_delivery
from pipeline.scenes.discovery import find_deliveries
from pipeline.scenes.raster import read_image
from pipeline.scenes.scene import Imagery, Scene
from pipeline.tasks.survey import survey
from tests import products
from tests.deliveries import survey_config, tiff, write_archive, write_folder
from tests.products import LANDSAT, SIDE

RGBN = ("red", "green", "blue", "nir")
L1 = "LC09_L1TP_190060_20220601_20220608_02_T1"


def read(*paths: Path, imagery: Imagery = "mss", bands: tuple[str, ...] = RGBN) -> list[Scene | Refusal]:
    return [got for one in find_deliveries(paths) for got in read_delivery(one, imagery, bands)]


def only(path: Path, **choice: Any) -> Scene:
    (scene,) = read(path, **choice)
    assert isinstance(scene, Scene), scene
    return scene


def names_of(scene: Scene) -> list[str]:
    return [Path(image.path).stem.removeprefix(scene.id).strip("_") for image in scene]


def without(files: Mapping[str, bytes], *ends: str) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if not name.endswith(ends)}


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return products.landsat()


def test_a_folder_is_one_scene_with_all_its_files(tmp_path: Path, files: dict[str, bytes]) -> None:
    """Quality bands, STAC items and the rest are no scenes; an image of another name beside them is."""
    write_folder(tmp_path, files)
    (tmp_path / "other.tif").write_bytes(files[f"{LANDSAT}_SR_B4.TIF"])
    scene, other = read(tmp_path)
    assert isinstance(scene, Scene)
    assert isinstance(other, Scene)
    assert (scene.id, other.id) == (LANDSAT, "other")
    assert (scene.satellite, scene.sensor, scene.gsd) == ("LANDSAT_8", "OLI_TIRS", 30.0)
    assert scene.acquired == datetime(2021, 6, 1, 9, 46, 12, 194486, tzinfo=UTC)
    assert (scene.bands, names_of(scene)) == (RGBN, ["SR_B4", "SR_B3", "SR_B2", "SR_B5"])
    assert {(image.scales, image.offsets, image.nodata) for image in scene} == {((2.75e-05,), (-0.2,), 0)}
    assert {Path(file).name for file in scene.files} == {*files}
    assert (scene.metadata["eo:cloud_cover"], scene.metadata["view:sun_elevation"]) == ("1.55", "30.0")
    for image, pixels in zip(scene, (products.ramp(band, SIDE, SIDE) for band in RGBN), strict=True):
        assert np.array_equal(read_image(image)[0], pixels)


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_a_tar_is_the_same_scene(tmp_path: Path, files: dict[str, bytes], name: str) -> None:
    scene = only(write_archive(tmp_path / name, files))
    folder = only(write_folder(tmp_path / "folder", files))
    assert (scene.id, scene.bands, scene.metadata) == (folder.id, folder.bands, folder.metadata)
    assert scene.metadata_digest == folder.metadata_digest
    assert scene.images[0].path == f"/vsitar/{{{tmp_path / name}}}/{LANDSAT}_SR_B4.TIF"
    for one, two in zip(scene, folder, strict=True):
        assert np.array_equal(read_image(one)[0], read_image(two)[0])


@pytest.mark.parametrize("end", ["MTL.txt", "MTL.json", "QA_PIXEL.TIF"])
def test_any_file_of_a_product_stands_for_it(tmp_path: Path, files: dict[str, bytes], end: str) -> None:
    write_folder(tmp_path, files)
    assert only(tmp_path / f"{LANDSAT}_{end}") == only(tmp_path)


def test_names_alone_are_enough(tmp_path: Path, files: dict[str, bytes]) -> None:
    """Two scenes in one folder, without MTL, one of them of two bands; names in lower case."""
    for name, content in without(files, "txt", "xml", "json").items():
        (tmp_path / name).write_bytes(content)
        if "SR_B4" in name or "SR_B5" in name:
            (tmp_path / name.replace("20210601", "20210617").lower()).write_bytes(content)
    first, second = read(tmp_path, bands=("red", "nir"))
    assert isinstance(first, Scene)
    assert isinstance(second, Scene)
    assert (first.id, second.id) == (LANDSAT, LANDSAT.replace("20210601", "20210617").lower())
    assert (first.acquired, second.acquired) == (datetime(2021, 6, 1, tzinfo=UTC), datetime(2021, 6, 17, tzinfo=UTC))
    assert {image.scales + image.offsets for scene in (first, second) for image in scene} == {(2.75e-05, -0.2)}


@pytest.mark.parametrize(
    ("product", "expected"),
    [
        ("LT04_L1TP_190060_19890601_20200608_02_T1", ["B3", "B2", "B1", "B4"]),
        ("LT05_L2SP_190060_19990601_20200608_02_T1", ["SR_B3", "SR_B2", "SR_B1", "SR_B4"]),
        ("LE07_L1GT_190060_20010601_20200608_02_T2", ["B3", "B2", "B1", "B4"]),
        ("LC08_L1TP_190060_20210601_20210608_02_RT", ["B4", "B3", "B2", "B5"]),
        ("LC09_L2SP_190060_20220601_20220608_02_T1", ["SR_B4", "SR_B3", "SR_B2", "SR_B5"]),
    ],
)
def test_each_sensor_numbers_its_bands_in_its_own_way(tmp_path: Path, product: str, expected: list[str]) -> None:
    scene = only(write_folder(tmp_path, products.landsat(product, side=12)))
    assert (scene.bands, names_of(scene)) == (RGBN, expected)
    assert scene.satellite == f"LANDSAT_{product[3]}"


def test_the_multispectral_scanner_has_no_blue(tmp_path: Path, files: dict[str, bytes]) -> None:
    name = "LM05_L1TP_190060_19850601_20200608_02_T2"
    write_folder(tmp_path, {f"{name}_B{k}.TIF": files[f"{LANDSAT}_SR_B4.TIF"] for k in range(1, 5)})
    scene = only(tmp_path)
    assert (scene.bands, names_of(scene)) == (("red", "green", "nir"), ["B2", "B1", "B3"])


def test_bands_have_common_names_and_their_own(tmp_path: Path) -> None:
    path = write_folder(tmp_path, products.landsat("LE07_L1TP_190060_20010601_20200608_02_T1", side=12))
    wanted = ("swir22", "B6_VCID_2", "thermal=B6_VCID_1", "nir08")
    scene = only(path, bands=wanted)
    assert scene.bands == ("swir22", "B6_VCID_2", "thermal", "nir08")
    assert names_of(scene) == ["B7", "B6_VCID_2", "B6_VCID_1", "B4"]


def test_level_1_is_reflectance_under_its_sun(tmp_path: Path) -> None:
    """The MTL states it without the angle of the sun, here 30 degrees high: twice as much light is reflected."""
    path = write_folder(tmp_path, products.landsat(L1, side=12))
    scene = only(path, bands=("red", "lwir11"))
    red, thermal = scene.images
    assert red.scales == pytest.approx((2e-05 / math.sin(math.radians(30)),))
    assert red.offsets == pytest.approx((-0.1 / math.sin(math.radians(30)),))
    assert (thermal.scales, thermal.offsets) == ((), ())
    (path / f"{L1}_MTL.txt").unlink()
    assert only(path, bands=("red",)).images[0].scales == red.scales  # from the XML
    for end in ("xml", "json"):
        (path / f"{L1}_MTL.{end}").unlink()
    assert only(path, bands=("red",)).images[0].scales == ()


def test_a_level_2_mtl_holds_level_1_too(tmp_path: Path, files: dict[str, bytes]) -> None:
    """Both groups have fields of the same names, in whatever order they stand."""
    groups = products.landsat_mtl(LANDSAT)
    turned = dict(reversed(groups.items()))
    write_folder(tmp_path, files | {f"{LANDSAT}_MTL.txt": products.mtl_text(turned).encode()})
    scene = only(tmp_path, bands=("red", "ST_B10"))
    assert [(image.scales, image.offsets) for image in scene] == [((2.75e-05,), (-0.2,)), ((0.00341802,), (149.0,))]
    assert scene.id == LANDSAT


def test_the_quality_band_is_read_if_it_is_asked_for(tmp_path: Path, files: dict[str, bytes]) -> None:
    (delivery,) = find_deliveries([write_folder(tmp_path, files)])
    (scene,) = read_delivery(delivery, mask="qa")
    (bare,) = read_delivery(delivery)
    assert isinstance(scene, Scene)
    assert isinstance(bare, Scene)
    assert bare.quality is None
    assert scene.quality is not None
    assert (scene.quality.bands, Path(scene.quality.path).name) == (("QA_PIXEL",), f"{LANDSAT}_QA_PIXEL.TIF")
    assert (scene.quality.nodata, scene.bands) == (None, RGBN)


def test_panchromatic_band(tmp_path: Path) -> None:
    path = write_folder(tmp_path, products.landsat(L1, side=12))
    assert (only(path, imagery="pan").bands, only(path, imagery="pan").gsd) == (("pan",), 15.0)
    sharp = only(path, imagery="pansharpened")
    assert sharp.pan is not None
    assert (sharp.pan.gsd, names_of(sharp)) == (15.0, ["B4", "B3", "B2", "B5", "B8"])


def test_all_forms_of_an_mtl_say_the_same() -> None:
    groups = products.landsat_mtl(LANDSAT)
    forms = {"txt": products.mtl_text, "xml": products.mtl_xml, "json": products.mtl_json}
    for end, write in forms.items():
        parsed = landsat.parse_mtl(f"x_MTL.{end}", write(groups).encode())
        assert {group: parsed[group] for group in groups} == groups


def test_files_named_before_the_collections_belong_to_their_mtl(tmp_path: Path, files: dict[str, bytes]) -> None:
    old = "LC81900602021152LGN00"
    groups = products.landsat_mtl(L1)
    groups["METADATA_FILE_INFO"] = {"LANDSAT_SCENE_ID": old}
    groups["PRODUCT_METADATA"] = groups.pop("PRODUCT_CONTENTS") | groups.pop("IMAGE_ATTRIBUTES")
    groups["RADIOMETRIC_RESCALING"] = groups.pop("LEVEL1_RADIOMETRIC_RESCALING")
    del groups["PRODUCT_METADATA"]["LANDSAT_PRODUCT_ID"]
    bands = {f"{old}_B{k}.TIF": files[f"{LANDSAT}_SR_B4.TIF"] for k in range(1, 12)}
    quality = {f"{old}_BQA.TIF": files[f"{LANDSAT}_QA_PIXEL.TIF"]}
    scene = only(write_folder(tmp_path, bands | quality | {f"{old}_MTL.txt": products.mtl_text(groups).encode()}))
    assert (scene.id, names_of(scene)) == (old, ["B4", "B3", "B2", "B5"])
    assert scene.images[0].scales == pytest.approx((4e-05,))
    assert len(scene.files) == 13


def test_a_toa_survey_knows_the_reflectance(tmp_path: Path, files: dict[str, bytes]) -> None:
    entry = survey(only(write_folder(tmp_path, files)), survey_config(radiometry="toa"))
    assert entry.radiometry is not None
    assert entry.radiometry.numbers["offsets"] == [-0.2] * 4


ENTITY = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "b">]><MTL><A><B>&a;</B></A></MTL>'


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("no green", f"{LANDSAT}: there is no file of band green; the bands are SR_B1, SR_B2, SR_B4, SR_B5, SR_B6"),
        ("another MTL", f"MTL.txt: it is the MTL of {L1}, but the images are of {LANDSAT}"),
        ("all empty", "MTL.txt: the MTL contains no values"),
        ("empty", "MTL.txt: the MTL contains no values"),
        ("entity", "MTL.xml: not the MTL of a Landsat product"),
        ("list", "MTL.json: not the MTL of a Landsat product"),
        ("no georeference", "SR_B4.TIF: it has no georeference"),
        ("two bands", "SR_B4.TIF: it should have one band, but has 2"),
        ("no image", "SR_B4.TIF: not an image that can be opened"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    tmp_path: Path, files: dict[str, bytes], change: str, sentence: str
) -> None:
    text, red = f"{LANDSAT}_MTL.txt", f"{LANDSAT}_SR_B4.TIF"
    changed = dict(files)
    match change:
        case "no green":
            changed = without(files, "SR_B3.TIF")
        case "another MTL":
            changed[text] = products.mtl_text(products.landsat_mtl(L1)).encode()
        case "all empty":
            changed |= {name: b"" for name in files if "_MTL." in name}
        case "empty":
            changed[text] = b"x"
        case "entity":
            changed = without(files, text) | {f"{LANDSAT}_MTL.xml": ENTITY.encode()}
        case "list":
            changed = without(files, text, "MTL.xml") | {f"{LANDSAT}_MTL.json": b'{"x": [1]}'}
        case "no georeference":
            changed[red] = tiff(products.ramp("red", 9, 9))
        case "two bands":
            changed[red] = tiff(
                np.repeat(products.ramp("red", 9, 9), 2, axis=0), crs="EPSG:32632", transform=Affine.scale(30)
            )
        case "no image":
            changed[red] = files[red][:100]
    (refusal,) = read(write_folder(tmp_path, changed))
    assert isinstance(refusal, Refusal)
    assert refusal.scene == LANDSAT
    assert sentence in refusal.detail
