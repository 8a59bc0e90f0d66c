"""Every form in which scenes are delivered: the table in docs/forms.md names the test of each."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.windows import Window

from pipeline.scenes import raster
from pipeline.scenes.delivery import Refusal, read_delivery
from pipeline.scenes.discovery import find_deliveries
from pipeline.scenes.raster import read_image
from pipeline.scenes.scene import Imagery, Scene
from tests.deliveries import (
    GSD,
    HEIGHT,
    NAME,
    WIDTH,
    camera,
    coordinates,
    fields,
    jp2,
    members,
    pair,
    rpb,
    rpc_text,
    surveyed,
    tiff,
    write_archive,
    write_folder,
    write_zip,
    xml,
)


def found(path: Path, imagery: Imagery = "mss") -> list[Scene | Refusal]:
    return [item for one in find_deliveries([path]) for item in read_delivery(one, imagery)]


def only(path: Path, imagery: Imagery = "mss") -> Scene:
    (item,) = found(path, imagery)
    assert isinstance(item, Scene), item
    return item


def refused(path: Path, imagery: Imagery = "mss") -> str:
    (item,) = found(path, imagery)
    assert isinstance(item, Refusal)
    return item.detail


# --- one delivery, two resolutions

CAMERAS = {
    "GF1_PMS1": ("MSS1", "PAN1"), "GF1_PMS2": ("MSS2", "PAN2"), "GF1B_PMS": ("MUX", "PAN"), "GF1C_PMS": ("MUX", "PAN"),
    "GF1D_PMS": ("MUX", "PAN"), "GF2_PMS1": ("MSS1", "PAN1"), "GF2_PMS2": ("MSS2", "PAN2"), "GF6_PMS": ("MUX", "PAN"),
    "GF7_DLC": ("BWDMUX", "BWDPAN"), "ZY302_TMS": ("MUX", "NAD"), "CB04A_WPM": ("MSS", "PAN"),
}  # fmt: skip


@pytest.mark.parametrize("satellite", CAMERAS)
@pytest.mark.parametrize("form", ["folder", "tar.gz", "zip"])
def test_two_images_of_a_delivery_are_one_scene(tmp_path: Path, satellite: str, form: str) -> None:
    name = f"{satellite}_E105.3_N24.8_20200523_L1A0001234567"
    files = pair(name, *CAMERAS[satellite])
    if satellite == "GF7_DLC":  # the forward look is another view of the ground, and no part of the scene
        files |= {f"{name}-FWDPAN{Path(k).suffix}": v for k, v in files.items() if "BWDPAN" in k}
    if form == "folder":
        path = write_folder(tmp_path / name, files)
    else:
        path = (write_archive if form == "tar.gz" else write_zip)(tmp_path / f"{name}.{form}", files)
    mss, pan, sharp = (only(path, imagery) for imagery in ("mss", "pan", "pansharpened"))
    assert {mss.id, pan.id, sharp.id} == {name}
    assert (mss.gsd, pan.gsd, sharp.gsd) == (GSD, GSD / 4, GSD / 4)
    assert (mss.bands, pan.bands, sharp.bands) == (("blue", "green", "red", "nir"), ("pan",), mss.bands)
    assert (mss.pan, pan.pan) == (None, None)
    assert sharp.images == mss.images
    assert (sharp.pan,) == pan.images
    assert np.array_equal(read_image(mss.images[0])[0], coordinates())
    assert np.array_equal(read_image(pan.images[0])[0], coordinates(4 * WIDTH, 4 * HEIGHT, 1))
    # The stretch is that of sharpened pixels, whose mean is that of the panchromatic image.
    stretches = [surveyed(scene).stretch for scene in (mss, pan, sharp)]
    assert stretches[2] != stretches[0]
    assert stretches[2].high == pytest.approx(stretches[1].high, rel=0.4)
    if form == "folder":
        assert len(mss.files) == len(pan.files) == 3
        assert set(sharp.files) == {*mss.files, *pan.files}
        assert found(Path(pan.files[1])) == [mss]  # whichever of its files is named, it is the delivery


@pytest.mark.parametrize(
    ("images", "imagery", "sentence"),
    [
        (["MSS1"], "pan", "no panchromatic image, but --imagery pan needs one"),
        (["MSS1"], "pansharpened", "no panchromatic image, but --imagery pansharpened needs one"),
        (["PAN1"], "mss", "no multispectral image, but --imagery mss needs one"),
        (["MSS1", "MSS2"], "mss", "2 multispectral images, but --imagery mss needs one"),
        (["MSS1", "PAN1"], "pansharpened", "the panchromatic image has 4 bands"),
    ],
)
def test_an_image_that_is_not_there_is_named(
    tmp_path: Path, images: list[str], imagery: Imagery, sentence: str
) -> None:
    for part in images:
        write_folder(tmp_path, members(f"{NAME}-{part}"))
    detail = refused(tmp_path, imagery)
    assert sentence in detail
    assert NAME in detail


def test_an_image_on_a_map_has_no_panchromatic_one(tmp_path: Path) -> None:
    image = tiff(coordinates(), crs="EPSG:32648", transform=Affine(8, 0, 5e5, 0, -8, 2.7e6))
    write_folder(tmp_path, {"map.tif": image})
    assert only(tmp_path).gsd == pytest.approx(GSD, rel=1e-3)
    assert "map.tif: no panchromatic image, but --imagery pan needs one" in refused(tmp_path, "pan")


def test_a_panchromatic_image_that_is_cut_spoils_no_multispectral_scene(tmp_path: Path) -> None:
    files = pair(NAME, "MSS1", "PAN1")
    write_folder(tmp_path, files | {f"{NAME}-PAN1.tiff": files[f"{NAME}-PAN1.tiff"][:40]})
    assert only(tmp_path).id == NAME
    assert "-PAN1.tiff: not an image that can be opened" in refused(tmp_path, "pansharpened")


def test_a_panchromatic_image_that_is_no_finer_sharpens_nothing(tmp_path: Path) -> None:
    said = xml(fields() | {"Bands": "5"}).encode()
    one = {f"{NAME}-PAN1.tiff": tiff(coordinates(bands=1)), f"{NAME}-PAN1.xml": said}
    write_folder(tmp_path, members() | one | {f"{NAME}-PAN1.rpb": rpb(camera()).encode()})
    assert "-PAN1.tiff: its pixels are 8 m, no finer than the 8 m of" in refused(tmp_path, "pansharpened")


# --- sensor models


@pytest.mark.parametrize("form", ["folder", "tar.gz"])
def test_a_camera_in_the_tags_of_the_image_is_the_same_camera(tmp_path: Path, form: str) -> None:
    """As `gdal_translate` writes it, which finds the RPB beside its source."""
    files = members()
    source = write_folder(tmp_path / "source", files)
    image = next(name for name in files if name.endswith(".tiff"))
    rasterio.shutil.copy(source / image, tmp_path / image, driver="GTiff", COMPRESS="DEFLATE")
    tagged = {name: content for name, content in files.items() if name.endswith(".xml")}
    tagged[image] = (tmp_path / image).read_bytes()
    if form == "folder":
        path = write_folder(tmp_path / "tagged", tagged)
    else:
        path = write_archive(tmp_path / "tagged.tar.gz", tagged)
    model, expected = only(path).images[0].model, only(source).images[0].model
    col, row, height = np.array([0.0, WIDTH, 30.5]), np.array([0.0, HEIGHT, 12.25]), np.array([300.0, 500.0, 900.0])
    found, wanted = model.ground(col, row, height), expected.ground(col, row, height)
    assert np.abs(np.subtract(found, wanted)).max() < 1e-9


def test_an_rpc_text_file_is_the_same_camera(tmp_path: Path) -> None:
    model = camera(heading=77, lean=(0.1, -0.2))
    files = members(rpc=model)
    first = only(write_folder(tmp_path / "rpb", files))
    text = {name.replace(".rpb", "_RPC.TXT"): content for name, content in files.items()}
    text[f"{NAME}-MSS1_RPC.TXT"] = rpc_text(model).encode()
    second = only(write_folder(tmp_path / "txt", text))
    assert first.images[0].model == second.images[0].model == model
    assert f"{NAME}-MSS1_RPC.TXT" in [Path(file).name for file in second.files]


@pytest.mark.parametrize(
    ("suffix", "encoding"),
    [
        (".RPB", "ascii"), ("_RPC.TXT", "utf-8-sig"), ("_rpc.txt", "utf-16"), (".rpc", "ascii"), (".rpc", "one line"),
        ("_RPC.TXT", "utf-16-le"), ("_RPC.TXT", "utf-16-be"), (".RPC.TXT", "ascii"), (".tif_rpc.txt", "ascii"),
        (".rpb.txt", "ascii"),
    ],
)  # fmt: skip
def test_an_image_of_any_name_with_a_camera_is_a_scene(tmp_path: Path, suffix: str, encoding: str) -> None:
    """As WorldView, Pleiades, SPOT, Cartosat, SuperView and others come, where only the RPC is known."""
    model = camera(heading=12)
    text = rpb(model) if suffix == ".RPB" else rpc_text(model)
    content = " ".join(text.split()).encode() if encoding == "one line" else text.encode(encoding)
    scene = only(write_folder(tmp_path, {"21JUN01_P001.tif": tiff(coordinates()), f"21JUN01_P001{suffix}": content}))
    assert scene.images[0].model == model
    assert (scene.id, scene.satellite, scene.level) == ("21JUN01_P001", "", "L1A")
    assert f"21JUN01_P001{suffix}" in [Path(file).name for file in scene.files]
    assert scene.gsd == pytest.approx(8, rel=0.1)


def test_a_camera_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    broken = rpc_text(camera()).replace("LINE_SCALE", "LINE_SCALD")
    (refusal,) = found(write_folder(tmp_path, {"a.tif": tiff(coordinates()), "a_RPC.TXT": broken.encode()}))
    assert isinstance(refusal, Refusal)
    assert refusal.detail.endswith("a_RPC.TXT: LINE_SCALE is missing")


def test_wide_field_images_have_no_suffix(tmp_path: Path) -> None:
    for k in "1234":
        name = f"GF1_WFV{k}_E105.3_N24.8_20200523_L1A0001234567"
        said = xml(fields() | {"SensorID": f"WFV{k}"}).encode()
        files = {f"{name}.tiff": tiff(coordinates()), f"{name}.rpb": rpb(camera()).encode(), f"{name}.xml": said}
        write_folder(tmp_path / name / name, files)  # a folder in a folder of the same name
    scenes = found(tmp_path)
    assert [item.sensor for item in scenes if isinstance(item, Scene)] == ["WFV1", "WFV2", "WFV3", "WFV4"]
    assert len(scenes) == 4


# --- masks


@pytest.mark.parametrize("mapped", [raster.MAPPED_BYTES, 2000])
@pytest.mark.parametrize("form", ["alpha", "mask", "beside", "nodata", "sidecar"])
def test_pixels_without_data_are_told_by_the_file(
    tmp_path: Path, form: str, mapped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An alpha band and a mask in the file, as a nodata value: what lies left of a slanting line holds nothing.

    Read as a whole, and a few lines at a time, as large images are.
    """
    monkeypatch.setattr(raster, "MAPPED_BYTES", mapped)
    pixels = coordinates(bands=3)
    row, col = np.mgrid[:HEIGHT, :WIDTH]
    known = col >= WIDTH // 3 + row // 4
    path, place = tmp_path / "map.tif", {"crs": "EPSG:32648", "transform": Affine(8, 0, 5e5, 0, -8, 2.7e6)}
    if form == "alpha":
        opaque = np.where(known, 65535, 0).astype(np.uint16)
        path.write_bytes(tiff(np.concatenate([pixels, opaque[None]]), photometric="RGB", alpha="yes", **place))
    elif form == "nodata":
        path.write_bytes(tiff(np.where(known, pixels, 0), nodata=0, **place))
    elif form == "sidecar":
        path.write_bytes(tiff(np.where(known, pixels, 0), **place))
        nodata = "<PAMDataset><PAMRasterBand band='1'><NoDataValue>0</NoDataValue></PAMRasterBand></PAMDataset>"
        (tmp_path / "map.tif.aux.xml").write_text(nodata)
    else:
        path.write_bytes(tiff(pixels, **place))
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=form == "mask"), rasterio.open(path, "r+") as file:
            file.write_mask(known)
        assert (tmp_path / "map.tif.msk").exists() == (form == "beside")
    scene = only(tmp_path)
    (image,) = scene.images
    assert len(scene.bands) == 3
    assert (image.alpha, image.mask, image.indexes) == {
        "alpha": (4, "", (1, 2, 3)), "mask": (0, "inside", ()), "beside": (0, "beside", ()),
    }.get(form, (0, "", ()))  # fmt: skip
    found, valid = read_image(image, Window(20, 10, 50, 40))
    assert np.array_equal(found[:, known[10:50, 20:70]], pixels[:, 10:50, 20:70][:, known[10:50, 20:70]])
    assert valid is not None
    assert np.array_equal(valid, known[10:50, 20:70])
    assert surveyed(scene, None, 0.0, 100.0).stretch.low >= 100  # the void does not count


def test_a_mask_and_a_value_for_no_data_both_count(tmp_path: Path) -> None:
    """The mask hides the left third of the image, the value its first rows in one band."""
    pixels = coordinates(bands=3)
    pixels[1, :15] = 7
    path, place = tmp_path / "map.tif", {"crs": "EPSG:32648", "transform": Affine(8, 0, 5e5, 0, -8, 2.7e6)}
    path.write_bytes(tiff(pixels, **place))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.write_mask(np.broadcast_to(np.arange(WIDTH) >= WIDTH // 3, pixels.shape[1:]))
    (image,) = only(tmp_path).images
    _, valid = read_image(replace(image, nodata=7.0), Window(20, 10, 50, 40))
    row, col = np.mgrid[10:50, 20:70]
    assert np.array_equal(valid, (col >= WIDTH // 3) & (row >= 15))


@pytest.mark.filterwarnings("error")
def test_an_alpha_band_and_a_value_for_no_data_both_count(tmp_path: Path) -> None:
    """Without a word of GDAL on the screen, which would heed the value alone."""
    pixels = coordinates(bands=4)
    pixels[3] = np.where(np.arange(WIDTH) >= WIDTH // 3, 65535, 0)
    pixels[1, :15] = 7
    (tmp_path / "map.tif").write_bytes(tiff(pixels, photometric="RGB", alpha="yes", nodata=7, **PLACE))
    (image,) = only(tmp_path).images
    _, valid = read_image(image, Window(20, 10, 50, 40))
    row, col = np.mgrid[10:50, 20:70]
    assert np.array_equal(valid, (col >= WIDTH // 3) & (row >= 15))


PLACE = {"crs": "EPSG:32648", "transform": Affine(8, 0, 5e5, 0, -8, 2.7e6)}


def pam(bands: dict[int, str], more: str = "") -> str:
    """The text of an `.aux.xml`. bands: number -> elements of a band."""
    elements = (f'<PAMRasterBand band="{k}">{text}</PAMRasterBand>' for k, text in bands.items())
    return f"<PAMDataset>{more}{''.join(elements)}</PAMDataset>"


@pytest.mark.parametrize("form", ["sidecar", "sidecar against the file", "ERDAS", "VRT"])
def test_each_band_may_have_a_value_for_no_data_of_its_own(tmp_path: Path, form: str) -> None:
    """7 hides the left of the first band, 9 the top of the others, and 7 is a pixel like any other there."""
    pixels = coordinates(bands=3)
    pixels[0, :, :20], pixels[1:, :15], pixels[1:, 30:40] = 7, 9, 7
    suffix = "img" if form == "ERDAS" else "tif"
    path = tmp_path / f"map.{suffix}"
    nodata = {"nodata": 7} if form == "sidecar against the file" else {}
    size = {"width": WIDTH, "height": HEIGHT, "count": 3, "dtype": "uint16"}
    with rasterio.open(path, "w", driver="HFA" if form == "ERDAS" else "GTiff", **size, **PLACE, **nodata) as file:
        file.write(pixels)
    values = {k: f"<NoDataValue>{7 if k == 1 else 9}</NoDataValue>" for k in (1, 2, 3)}
    if form == "VRT":
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
            rasterio.shutil.copy(str(path), str(tmp_path / "map.vrt"), driver="VRT")
        text = (tmp_path / "map.vrt").read_text()
        for k, value in values.items():
            text = re.sub(rf'(<VRTRasterBand [^>]*band="{k}"[^>]*>)', rf"\1{value}", text)
        (tmp_path / "map.vrt").write_text(text)
        path = tmp_path / "map.vrt"
    else:
        Path(f"{path}.aux.xml").write_text(pam(values))
    scene = only(path)
    assert [(image.bands, image.nodata) for image in scene.images] == [
        (("band_1",), 7.0), (("band_2", "band_3"), 9.0),
    ]  # fmt: skip
    row, col = np.mgrid[:HEIGHT, :WIDTH]
    valid = np.logical_and.reduce([read_image(image)[1] for image in scene.images])
    assert np.array_equal(valid, (col >= 20) & (row >= 15))
    assert np.array_equal(np.concatenate([read_image(image)[0] for image in scene.images]), pixels)
    entry = surveyed(scene, None, 0.0, 100.0)
    assert entry.valid_share < 0.7


def test_what_lies_beside_an_image_goes_before_what_it_says_of_its_bands(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(2, 255, (4, HEIGHT, WIDTH)).astype(np.uint8)
    (tmp_path / "map.tif").write_bytes(tiff(pixels, **PLACE))
    said = {k: f"<Description>{name}</Description>" for k, name in enumerate(("blue", "green", "red", "nir"), 1)}
    (tmp_path / "map.tif.aux.xml").write_text(
        pam({k: f"{text}<Scale>0.0{k}</Scale><Offset>-{k}</Offset>" for k, text in said.items()})
    )
    (image,) = only(tmp_path).images
    assert image.bands == ("blue", "green", "red", "nir")
    assert (image.scales, image.offsets) == ((0.01, 0.02, 0.03, 0.04), (-1, -2, -3, -4))
    (tmp_path / "map.tif.aux.xml").write_text("no XML")
    assert only(tmp_path).bands == ("red", "green", "blue", "band_4")


def test_a_camera_in_the_aux_xml_is_the_same_camera(tmp_path: Path) -> None:
    model = camera(heading=12)
    write_folder(tmp_path, {"a.tif": tiff(coordinates()), "a_rpc.txt": rpc_text(model).encode()})
    fields = dict(line.split(": ") for line in rpc_text(model).splitlines())
    lists = {
        key: " ".join(fields[f"{key}_{k}"] for k in range(1, 21))
        for key in ("LINE_NUM_COEFF", "LINE_DEN_COEFF", "SAMP_NUM_COEFF", "SAMP_DEN_COEFF")
    }
    numbers = {key: value.split()[0] for key, value in fields.items() if "COEFF" not in key}
    items = "".join(f'<MDI key="{key}">{value}</MDI>' for key, value in (numbers | lists).items())
    (tmp_path / "a_rpc.txt").unlink()
    (tmp_path / "a.tif.aux.xml").write_text(pam({}, f'<Metadata domain="RPC">{items}</Metadata>'))
    assert only(tmp_path).images[0].model == model


@pytest.mark.parametrize("values", ["mask", "smooth"])
@pytest.mark.parametrize("name", ["alpha", "Mask", "dataMask", "valid mask"])
def test_a_band_of_the_name_and_the_values_of_a_mask_is_one(tmp_path: Path, name: str, values: str) -> None:
    """Whether it is declared as alpha or not, and wherever it stands."""
    pixels = coordinates(bands=5)
    pixels[1] = np.where(np.arange(WIDTH) >= WIDTH // 3, 1, 0) if values == "mask" else pixels[0]
    (tmp_path / "map.tif").write_bytes(tiff(pixels, **PLACE))
    with rasterio.open(tmp_path / "map.tif", "r+") as file:
        file.descriptions = ("blue", name, "green", "red", "nir")
    (image,) = only(tmp_path).images
    if values == "smooth":
        assert (image.alpha, len(image.bands)) == (0, 5)
        return
    assert (image.bands, image.alpha, image.indexes) == (("blue", "green", "red", "nir"), 2, (1, 3, 4, 5))
    assert np.array_equal(read_image(image)[1], np.broadcast_to(np.arange(WIDTH) >= WIDTH // 3, (HEIGHT, WIDTH)))
    (scene,) = read_delivery(*find_deliveries([tmp_path]), alpha="band")
    assert len(scene.bands) == 5


def masked_members(folder: Path) -> dict[str, bytes]:
    """An image and the file with its mask, which hides the left third."""
    folder.mkdir()
    (folder / "map.tif").write_bytes(tiff(coordinates(bands=3), **PLACE))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(folder / "map.tif", "r+") as file:
        file.write_mask(np.broadcast_to(np.arange(WIDTH) >= WIDTH // 3, (HEIGHT, WIDTH)))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("form", ["folder", "archive", "zip"])
def test_a_mask_beside_an_image_belongs_to_it_in_every_form(tmp_path: Path, form: str) -> None:
    files, place = masked_members(tmp_path / "made"), tmp_path / "in"
    place.mkdir()
    match form:
        case "folder":
            write_folder(place, files)
        case "archive":
            write_archive(place / "map.tar.gz", files)
        case "zip":
            write_zip(place / "map.zip", files)
    scene = only(place)
    _, valid = read_image(scene.images[0])
    assert np.array_equal(valid, np.broadcast_to(np.arange(WIDTH) >= WIDTH // 3, (HEIGHT, WIDTH)))
    assert len(scene.files) == (2 if form == "folder" else 1)  # with another mask, the scene is surveyed again


def test_a_mask_in_capitals_is_not_ignored(tmp_path: Path) -> None:
    """GDAL writes `.msk`; without a sentence, pixels without data would be tiled."""
    files = {name.replace(".msk", ".MSK"): content for name, content in masked_members(tmp_path / "made").items()}
    write_folder(tmp_path / "in", files)
    image = f"{tmp_path}/in/map.tif"
    assert refused(tmp_path / "in") == (
        f"{image}.MSK: the mask of {image} is read under the name {image}.msk; rename it"
    )


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    files = masked_members(tmp_path / "made") | {"map.tif": tiff(coordinates(WIDTH + 1, HEIGHT, 3), **PLACE)}
    write_folder(tmp_path / "in", files)
    assert refused(tmp_path / "in") == (
        f"{tmp_path}/in/map.tif.msk: the mask has {WIDTH} x {HEIGHT} px, but the image has {WIDTH + 1} x {HEIGHT}"
    )


@pytest.mark.parametrize(
    ("name", "values", "alpha", "is_band"),
    [
        ("nir", "smooth", "auto", True),
        ("near infrared", "mask", "auto", True),  # a name that no mask has
        ("", "smooth", "auto", True),
        ("", "mask", "auto", False),
        ("", "feathered", "auto", False),
        ("alpha", "smooth", "auto", False),
        ("nir", "smooth", "mask", False),  # the user insists
        ("", "mask", "band", True),
    ],
)
def test_a_fourth_band_is_a_mask_only_if_it_is_one(
    tmp_path: Path, name: str, values: str, alpha: Any, is_band: bool
) -> None:
    """GDAL declares the fourth band of an 8-bit image as alpha, whatever it is."""
    pixels = np.random.default_rng(0).integers(2, 255, (4, HEIGHT, WIDTH)).astype(np.uint8)
    if values != "smooth":
        pixels[3] = np.where(np.arange(WIDTH) >= WIDTH // 3, 255, 0)
    if values == "feathered":
        pixels[3, :, WIDTH // 3] = 100
    path = tmp_path / "map.tif"
    path.write_bytes(tiff(pixels, **PLACE))
    with rasterio.open(path, "r+") as file:
        assert file.colorinterp[3].name == "alpha"
        file.descriptions = ("blue", "green", "red", name) if name else ("", "", "", "")
    (scene,) = read_delivery(*find_deliveries([path]), alpha=alpha)
    assert isinstance(scene, Scene)
    assert len(scene.bands) == (4 if is_band else 3)
    assert (read_image(scene.images[0])[1] is None) == is_band


# --- the table


def test_each_form_of_the_table_has_its_test() -> None:
    root = Path(__file__).parents[2]
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", (root.parent / "docs" / "forms.md").read_text())
    rows = [line for line in (root.parent / "docs" / "forms.md").read_text().splitlines() if line.startswith("| ")]
    assert len(named) == len(rows) - 1  # but for the table's head
    for file, test in named:
        assert f"def {test}(" in (root / file).read_text(), f"{file}::{test}"


def test_a_jpeg_2000_on_a_map_is_a_scene(tmp_path: Path) -> None:
    """As a file and in archives, of which the compressed one is unpacked under another name."""
    pixels = coordinates()
    content = jp2(pixels, block=32, crs="EPSG:32648", transform=Affine(5, 0, 5e5, 0, -5, 2.7e6))
    plain = only(write_folder(tmp_path / "a", {"x.jp2": content}) / "x.jp2")
    packed = [only(write(tmp_path / name, {"x.JP2": content})) for name, write in
              (("x.zip", write_zip), ("x.tar", write_archive), ("x.tar.gz", write_archive))]  # fmt: skip
    for scene in (plain, *packed):
        assert (scene.gsd, scene.images[0].width) == (5.0, WIDTH)
        assert np.array_equal(read_image(scene.images[0])[0], pixels)
        assert np.array_equal(read_image(scene.images[0], Window(30, 20, 50, 40))[0], pixels[:, 20:60, 30:80])
