"""Sentinel-2 products as the Copernicus programme delivers them, and the scenes that they are."""

import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio.windows import Window

from pipeline.imaging.clouds import find_clouds
from pipeline.scenes.archive import MAX_METADATA
from pipeline.scenes.delivery import Refusal, read_delivery
from pipeline.scenes.discovery import find_deliveries
from pipeline.scenes.raster import read_image
from pipeline.scenes.scene import Imagery, Scene, SceneError
from pipeline.tasks.survey import survey
from pipeline.tasks.tiles import orthorectify_clouds
from tests import products
from tests.deliveries import jp2, survey_config, tiff, write_archive, write_folder, write_zip
from tests.products import L1C, L2A, S2_SIDE, safe

RGBN = ("red", "green", "blue", "nir")
Files = dict[str, bytes]


def read(*paths: Path, imagery: Imagery = "mss", bands: tuple[str, ...] = RGBN) -> list[Scene | Refusal]:
    return [got for one in find_deliveries(paths) for got in read_delivery(one, imagery, bands)]


def only(*paths: Path, **choice: Any) -> Scene:
    (scene,) = read(*paths, **choice)
    assert isinstance(scene, Scene), scene
    return scene


def names_of(scene: Scene) -> list[str]:
    return [Path(image.path).stem.split("_", 2)[2] for image in scene]


def moved(files: Files, before: str, after: str) -> Files:
    return {name.replace(before, after): content for name, content in files.items()}


@pytest.fixture(scope="module")
def l2a() -> Files:
    return safe()


@pytest.fixture(scope="module")
def l1c() -> Files:
    return safe(L1C, offset=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, l2a: Files) -> Path:
    return write_folder(tmp_path_factory.mktemp("safe"), l2a)


def test_a_safe_folder_is_one_scene_of_its_10_m_bands(folder: Path, l2a: Files) -> None:
    """All its files belong to the scene: classifications, masks, previews and reports are no scenes."""
    scene = only(folder)
    assert (scene.id, scene.satellite, scene.sensor, scene.gsd) == (L2A, "Sentinel-2A", "MSI", 10.0)
    assert scene.acquired == datetime(2022, 10, 5, 9, 49, 38, 123456, tzinfo=UTC)
    assert (scene.bands, names_of(scene)) == (RGBN, ["B04_10m", "B03_10m", "B02_10m", "B08_10m"])
    assert {(image.scales, image.offsets, image.nodata) for image in scene} == {((1e-4,), (-0.1,), 0)}
    assert {str(Path(file).relative_to(folder)) for file in scene.files} == {*l2a}
    properties = {"eo:cloud_cover": "2.75", "view:sun_elevation": "64.5", "view:sun_azimuth": "101.25"}
    assert scene.metadata.items() >= properties.items()
    for image, band in zip(scene, RGBN, strict=True):
        assert np.array_equal(read_image(image)[0], products.ramp(band, S2_SIDE, S2_SIDE))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_the_same_scene(tmp_path: Path, folder: Path, l2a: Files, method: int) -> None:
    scene, unpacked = only(write_zip(tmp_path / f"{L2A}.zip", l2a, method)), only(folder)
    assert (scene.id, scene.bands, scene.metadata) == (unpacked.id, unpacked.bands, unpacked.metadata)
    assert scene.metadata_digest == unpacked.metadata_digest
    assert scene.images[0].path.startswith(f"/vsizip/{{{tmp_path}/{L2A}.zip}}/{L2A}.SAFE/GRANULE/")
    for one, two in zip(scene, unpacked, strict=True):
        assert np.array_equal(read_image(one)[0], read_image(two)[0])


def test_other_bands_of_level_2a(folder: Path) -> None:
    """By common names, by the product's own, and at a resolution that is not the finest."""
    wanted = ("red", "rededge1", "B8A", "nir08", "swir16", "coastal", "nir09", "coarse=B02_60m")
    scene = only(folder, bands=wanted)
    assert scene.bands == ("red", "rededge1", "B8A", "nir08", "swir16", "coastal", "nir09", "coarse")
    assert names_of(scene) == [
        "B04_10m", "B05_20m", "B8A_20m", "B8A_20m", "B11_20m", "B01_60m", "B09_60m", "B02_60m",
    ]  # fmt: skip
    assert [image.gsd for image in scene] == [10, 20, 20, 20, 20, 60, 60, 60]
    assert scene.gsd == 10
    assert only(folder, bands=("red", "cirrus")).bands == ("red",)  # level 2A has no cirrus band


def test_a_coarser_image_does_not_replace_a_band_that_is_missing(tmp_path: Path, l2a: Files) -> None:
    """Unless there is nothing finer of any band."""
    lacking = {name: content for name, content in l2a.items() if "B04_10m" not in name}
    (refusal,) = read(write_zip(tmp_path / "lacking.zip", lacking))
    assert isinstance(refusal, Refusal)
    assert f"{L2A}: there is no file of band red; the bands are " in refusal.detail
    assert names_of(only(tmp_path / "lacking.zip", bands=("green", "B05"))) == ["B03_10m", "B05_20m"]
    coarse = {name: content for name, content in l2a.items() if "R10m" not in name}
    scene = only(write_folder(tmp_path / "coarse", coarse), bands=("red", "green", "blue"))
    assert names_of(scene) == ["B04_20m", "B03_20m", "B02_20m"]


def test_level_1c_before_the_offsets(tmp_path: Path, l1c: Files) -> None:
    scene = only(write_folder(tmp_path, l1c), bands=(*RGBN, "cirrus"))
    assert (scene.id, scene.satellite) == (L1C, "Sentinel-2B")
    assert [image.gsd for image in scene] == [10, 10, 10, 10, 60]
    assert {(image.scales, image.offsets) for image in scene} == {((1e-4,), (0.0,))}


def test_level_1c_has_offsets_of_its_own(tmp_path: Path) -> None:
    product = L1C.replace("N0301", "N0400")
    files = safe(product, side=12)
    scene = only(write_folder(tmp_path, files))
    assert {(image.scales, image.offsets) for image in scene} == {((1e-4,), (-0.1,))}
    xml = f"{product}.SAFE/MTD_MSIL1C.xml"
    files[xml] = files[xml].replace(b'<RADIO_ADD_OFFSET band_id="3">-1000', b'<RADIO_ADD_OFFSET band_id="3">-900')
    scene = only(write_folder(tmp_path, files))
    assert [image.offsets for image in scene] == [pytest.approx((-0.09,)), (-0.1,), (-0.1,), (-0.1,)]  # band_id 3: red


def read_masked(*paths: Path) -> list[Scene | Refusal]:
    return [got for one in find_deliveries(paths) for got in read_delivery(one, mask="qa")]


def test_the_scene_classification_is_read_if_it_is_asked_for(tmp_path: Path, folder: Path, l1c: Files) -> None:
    (delivery,) = find_deliveries([folder])
    (scene,) = read_delivery(delivery, mask="qa")
    assert isinstance(scene, Scene)
    assert scene.quality is not None
    assert (scene.quality.bands, scene.quality.gsd) == (("SCL",), 20.0)
    assert scene.quality.path.endswith("_SCL_20m.jp2")
    bare = {name: content for name, content in l1c.items() if not name.endswith(".gml")}
    (delivery,) = find_deliveries([write_folder(tmp_path, bare)])
    (scene,) = read_delivery(delivery, mask="qa")
    assert isinstance(scene, Scene)
    assert scene.quality is None


def test_the_masks_of_level_1c_are_clouds_and_cirrus(tmp_path: Path) -> None:
    side = 60
    (delivery,) = find_deliveries([write_folder(tmp_path, safe(L1C.replace("N0301", "N0400"), side=side))])
    (scene,) = read_delivery(delivery, mask="qa")
    assert isinstance(scene, Scene)
    assert scene.quality is not None
    assert (scene.quality.bands, scene.quality.gsd) == (("MSK_CLASSI", "MSK_CLASSI_CIRRUS"), 60.0)
    pixels, _ = read_image(scene.quality)
    wanted = np.zeros((side // 6, side // 6), np.bool_)
    wanted[:, 0] = wanted[0] = True  # and the last pixel is snow
    assert np.array_equal(find_clouds("MSK_CLASSI", pixels).any(axis=0), wanted)
    entry = survey(scene, survey_config(mask="qa"))
    grid = orthorectify_clouds(GeoBox((side, side), Affine(10, 0, 354_600, 0, -10, 31_500), "EPSG:32632"), entry)
    assert grid is not None
    assert np.array_equal(grid, np.kron(wanted, np.ones((6, 6), np.bool_)))


WEST, NORTH = 354_600.0, 31_500.0


def box(left: int, top: int, right: int, bottom: int) -> products.Ring:
    """A rectangle as corners in UTM. Its sides are in pixels of 10 m from the corner of the granule."""
    return [(WEST + 10 * c, NORTH - 10 * r) for c, r in ((left, top), (right, top), (right, bottom), (left, bottom))]


CLOUDS = products.cloud_mask(
    ("OPAQUE", [box(-30, 12, 60, 48), box(6, 18, 18, 30), box(30, 24, 42, 36)]), ("CIRRUS", [box(90, 60, 150, 96)])
)
"""A cloud with two holes that lies partly outside the granule, and cirrus."""


def shape_of_the_clouds() -> npt.NDArray[np.bool_]:
    """Where CLOUDS are in the pixels of 10 m: (row, col)."""
    wanted = np.zeros((S2_SIDE, S2_SIDE), np.bool_)
    wanted[12:48, :60] = wanted[60:96, 90:] = True
    wanted[18:30, 6:18] = wanted[24:36, 30:42] = False
    return wanted


@pytest.mark.parametrize("form", ["folder", "zip", "stored zip", "tar.gz", "older form"])
def test_the_polygons_of_an_older_level_1c_are_clouds_and_cirrus(tmp_path: Path, l1c: Files, form: str) -> None:
    files = {name: CLOUDS if name.endswith("MSK_CLOUDS_B00.gml") else content for name, content in l1c.items()}
    match form:
        case "folder":
            path = write_folder(tmp_path, files)
        case "zip" | "stored zip":
            path = write_zip(tmp_path / "a.zip", files, zipfile.ZIP_DEFLATED if form == "zip" else zipfile.ZIP_STORED)
        case "tar.gz":
            path = write_archive(tmp_path / "a.tar.gz", files)
        case "older form":
            name = "S2A_OPER_MSK_CLOUDS_SGS__20151231T150000_A002735_T32NLF_B00_MSIL1C.gml"
            path = write_folder(tmp_path, moved(files, "MSK_CLOUDS_B00.gml", name))
    (scene,) = read_masked(path)
    assert isinstance(scene, Scene)
    assert scene.quality is not None
    assert (scene.quality.bands, scene.quality.gsd) == (("MSK_CLOUDS",), 10.0)
    wanted = shape_of_the_clouds()
    pixels, valid = read_image(scene.quality)
    assert valid is None
    assert np.array_equal(find_clouds("MSK_CLOUDS", pixels)[0], wanted)
    assert {*np.unique(pixels[0, 60:])} == {0, 2}
    window, _ = read_image(scene.quality, Window(50, 40, 70, 30))
    assert np.array_equal(window, pixels[:, 40:70, 50:120])
    decimated, _ = read_image(scene.quality, shape=(S2_SIDE // 6, S2_SIDE // 6))
    assert np.array_equal(np.kron(decimated[0] > 0, np.ones((6, 6))) > 0, wanted)
    entry = survey(scene, survey_config(mask="qa"))
    grid = orthorectify_clouds(GeoBox((S2_SIDE,) * 2, Affine(10, 0, WEST, 0, -10, NORTH), "EPSG:32632"), entry)
    assert grid is not None
    assert np.array_equal(grid, wanted)


def test_a_cloud_mask_without_clouds_is_clear(tmp_path: Path, l1c: Files) -> None:
    (scene,) = read_masked(write_folder(tmp_path, l1c))
    assert isinstance(scene, Scene)
    assert scene.quality is not None
    assert not read_image(scene.quality)[0].any()
    survey(scene, survey_config(mask="qa"))


def test_clouds_in_another_coordinate_system_lie_where_they_are(tmp_path: Path, l1c: Files) -> None:
    """As after the images were converted: the polygons are those of the product still."""
    move = Transformer.from_crs("EPSG:32632", "EPSG:32633", always_xy=True)
    moved_clouds = CLOUDS.replace(b":32632", b":32633")
    for x, y in {*box(-30, 12, 60, 48), *box(6, 18, 18, 30), *box(30, 24, 42, 36), *box(90, 60, 150, 96)}:
        to = "{:.6f} {:.6f}".format(*move.transform(x, y))
        moved_clouds = moved_clouds.replace(f"{x:.0f} {y:.0f}".encode(), to.encode())
    (name,) = (name for name in l1c if name.endswith(".gml"))
    (scene,) = read_masked(write_folder(tmp_path, l1c | {name: moved_clouds}))
    assert isinstance(scene, Scene)
    assert scene.quality is not None
    assert np.array_equal(read_image(scene.quality)[0][0] > 0, shape_of_the_clouds())


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (CLOUDS[:700], "unclosed token"),
        (b"", "no element found"),
        (b"<html/>", "its root is html, expected Mask"),
        (b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>', "DTDForbidden"),
        (CLOUDS.replace(b"OPAQUE", b"SNOW"), "it has a mask of type 'SNOW', expected OPAQUE or CIRRUS"),
        (CLOUDS.replace(b"posList", b"pos"), "a polygon has no positions"),
        (CLOUDS.replace(b"exterior", b"outside"), "a polygon has no outline"),
        (CLOUDS.replace(b"354660", b"many"), "could not convert string to float: 'many'"),
        (CLOUDS.replace(b"355200", b"nan"), "a coordinate is no finite number"),
        (CLOUDS.replace(b'"2"', b'"3"'), "a polygon of 10 coordinates of dimension 3 is none"),
        (CLOUDS.replace(b":32632", b":1"), "Invalid projection"),
    ],
)
def test_a_broken_cloud_mask_is_named(tmp_path: Path, l1c: Files, content: bytes, fault: str) -> None:
    (name,) = (name for name in l1c if name.endswith(".gml"))
    (scene,) = read_masked(write_folder(tmp_path, l1c | {name: content}))
    assert isinstance(scene, Scene)
    with pytest.raises(SceneError) as refusal:
        survey(scene, survey_config(mask="qa"))
    assert str(refusal.value).startswith(f"{tmp_path}/{name}: not the cloud mask of a Sentinel-2 product: ")
    assert fault in str(refusal.value)


def test_a_survey_knows_the_reflectance(folder: Path) -> None:
    entry = survey(only(folder), survey_config(radiometry="toa"))
    assert entry.radiometry is not None
    assert (entry.radiometry.low, entry.radiometry.numbers["offsets"]) == ((1000.0,) * 4, [-0.1] * 4)


@pytest.mark.parametrize("start", ["", "MTD_MSIL2A.xml", "manifest.safe", "GRANULE/*/IMG_DATA/R20m/*_SCL_20m.jp2"])
def test_any_file_of_a_product_stands_for_it(folder: Path, start: str) -> None:
    (path,) = (folder / f"{L2A}.SAFE").glob(start) if start else [folder / f"{L2A}.SAFE"]
    assert only(path).images == only(folder).images


def test_a_safe_folder_without_its_suffix_or_its_own_folder(tmp_path: Path, l2a: Files) -> None:
    scene = only(write_folder(tmp_path / "a", moved(l2a, f"{L2A}.SAFE", "mine")))
    assert (scene.id, scene.images[0].offsets) == ("mine", (-0.1,))
    scene = only(write_zip(tmp_path / "flat.zip", moved(l2a, f"{L2A}.SAFE/", "")))
    assert (scene.id, scene.images[0].offsets) == ("L2A_T32NLF_A038058_20221005T094938", (-0.1,))


def test_each_granule_of_an_old_product_is_a_scene(tmp_path: Path, l1c: Files) -> None:
    """The form before 2016: several granules, and other names of everything."""
    old, files = "S2A_OPER_PRD_MSIL1C_PDMC_20160101T120000_R036_V20151231T094029_20151231T094029", {}
    for name, content in l1c.items():
        for tile in ("T32NLF", "T32NMF"):
            granule = f"S2A_OPER_MSI_L1C_TL_SGS__20151231T150000_A002735_{tile}"
            path = name.replace(L1C, old).replace("L1C_T32NLF_A038058_20221005T094938", f"{granule}_N02.01")
            path = path.replace("T32NLF_20210908T094029", granule).replace(
                "MTD_TL.xml", f"{granule.replace('MSI', 'MTD')}.xml"
            )
            files[path.replace("MTD_MSIL1C.xml", "S2A_OPER_MTD_SAFL1C_PDMC_20160101T120000.xml")] = content
    scenes = read(write_folder(tmp_path, files))
    assert [scene.id for scene in scenes if isinstance(scene, Scene)] == [
        f"S2A_OPER_MSI_L1C_TL_SGS__20151231T150000_A002735_{tile}_N02.01" for tile in ("T32NLF", "T32NMF")
    ]
    for scene in scenes:
        assert isinstance(scene, Scene)
        assert all(scene.id in image.path and image.scales == (1e-4,) for image in scene)
        assert f"{tmp_path}/{old}.SAFE/manifest.safe" in scene.files


def test_images_out_of_their_folder_are_read_by_their_names(tmp_path: Path, l2a: Files) -> None:
    """Converted to TIFF or not. An image of another name is a scene of its own."""
    stem = "T32NLF_20221005T094041"
    images = {Path(name).name: content for name, content in l2a.items() if "IMG_DATA/R" in name and "_10m" in name}
    images[f"{stem}_B04_10m.tif"] = tiff(
        products.ramp("red", 9, 9), crs="EPSG:32632", transform=Affine(10, 0, 354_600, 0, -10, 31_500)
    )
    del images[f"{stem}_B04_10m.jp2"]
    images[f"{stem}_stack.tif"] = images[f"{stem}_B04_10m.tif"]
    scene, other = read(write_folder(tmp_path, images))
    assert isinstance(scene, Scene)
    assert isinstance(other, Scene)
    assert (scene.id, other.id, scene.bands) == (stem, f"{stem}_stack", RGBN)
    assert scene.images[0].path.endswith("B04_10m.tif")
    assert scene.acquired == datetime(2022, 10, 5, 9, 40, 41, tzinfo=UTC)
    assert {image.scales for image in scene} == {()}
    (tmp_path / "MTD_MSIL2A.xml").write_bytes(l2a[f"{L2A}.SAFE/MTD_MSIL2A.xml"])
    assert {image.scales for image in only(tmp_path / f"{stem}_B04_10m.tif")} == {(1e-4,)}


def test_an_image_without_georeference_lies_where_the_granule_says(tmp_path: Path, l2a: Files, folder: Path) -> None:
    (red,) = (name for name in l2a if name.endswith("B04_10m.jp2"))
    bare = jp2(products.ramp("red", S2_SIDE, S2_SIDE), block=64)
    image = only(write_folder(tmp_path, l2a | {red: bare})).images[0]
    assert image.model.ground(np.zeros(1), np.zeros(1), np.zeros(1)) == only(folder).images[0].model.ground(
        np.zeros(1), np.zeros(1), np.zeros(1)
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("no green", f"{L2A}: there is no file of band green"),
        ("empty XML", "MTD_MSIL2A.xml: the file is empty"),
        ("empty XML of the granule", "MTD_TL.xml: the file is empty"),
        ("XML of megabytes", "MTD_MSIL2A.xml: more than 4 MiB are too many for a metadata file"),
        ("broken XML", "MTD_MSIL2A.xml: not the XML of a Sentinel-2 product"),
        ("entity", "MTD_TL.xml: not the XML of a Sentinel-2 product"),
        ("no number", "MTD_MSIL2A.xml: its quantification or offsets are no numbers"),
        ("no size", "MTD_TL.xml: the size or position at 10 m is no number"),
        ("elsewhere", "B04_10m.jp2: it lies 6.0 px from where the metadata beside it place it"),
        ("no georeference", "B04_10m.jp2: it has no georeference"),
        ("half an image", "B04_10m.jp2: not an image that can be opened"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(tmp_path: Path, l2a: Files, change: str, sentence: str) -> None:
    (red,) = (name for name in l2a if name.endswith("B04_10m.jp2"))
    (granule,) = (name for name in l2a if name.endswith("MTD_TL.xml"))
    product, files = f"{L2A}.SAFE/MTD_MSIL2A.xml", dict(l2a)
    match change:
        case "no green":
            files = {name: content for name, content in files.items() if "_B03_" not in name}
        case "empty XML":
            files[product] = b""
        case "empty XML of the granule":
            files[granule] = b" \n"
        case "XML of megabytes":
            files[product] += b" " * MAX_METADATA
        case "broken XML":
            files[product] = files[product][:500]
        case "entity":
            files[granule] = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>'
        case "no number":
            files[product] = files[product].replace(b">10000<", b">many<")
        case "no size":
            files[granule] = files[granule].replace(b"<NROWS>120<", b"<NROWS><")
        case "elsewhere":
            files[granule] = files[granule].replace(b"<ULX>354600<", b"<ULX>354660<")
        case "no georeference":
            files[red] = jp2(products.ramp("red", 9, 9))
        case "half an image":
            files[red] = files[red][:60]
    (refusal,) = read(write_folder(tmp_path, files))
    assert isinstance(refusal, Refusal)
    assert refusal.scene == L2A
    assert sentence in refusal.detail


def test_an_image_that_breaks_off_is_refused_by_its_name(tmp_path: Path, l2a: Files) -> None:
    (red,) = (name for name in l2a if name.endswith("B04_10m.jp2"))
    scene = only(write_folder(tmp_path, l2a | {red: l2a[red][: len(l2a[red]) * 2 // 3]}))
    with pytest.raises(ValueError, match=r"B04_10m\.jp2: cannot be read to its end"):
        survey(scene, survey_config())
