"""A VRT shows the pixels of other files: they become one scene, never two, and GDAL opens nothing else for it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from pipeline.catalog.account import read_account
from pipeline.config import BuildConfig
from pipeline.scenes.delivery import Refusal, read_delivery
from pipeline.scenes.discovery import find_deliveries
from pipeline.scenes.raster import read_image
from pipeline.scenes.scene import Scene
from pipeline.stages import catalog
from tests.deliveries import tiff, write_folder, write_zip
from tests.settings import build_config

CRS, ROWS, COLS, GSD = "EPSG:32648", 40, 48, 10
EAST, NORTH = 5e5, 2.7e6
Part = tuple[str, int, int]
"""Path of a source as the VRT writes it, number of its band or of the first one, and column where it begins."""


def image(bands: int, column: int = 0, seed: int = 0, **profile: object) -> bytes:
    """An image whose first column is this one of the mosaic."""
    pixels = np.random.default_rng(seed).integers(1, 200, (bands, ROWS, COLS)).astype(np.uint16)
    place = {"crs": CRS, "transform": Affine(GSD, 0, EAST + GSD * column, 0, -GSD, NORTH)}
    return tiff(pixels, **(place | profile))


def source(part: Part, band: int, tag: str = "SimpleSource", more: str = "") -> str:
    name, _, column = part
    return (
        f'<{tag}><SourceFilename relativeToVRT="{int(not name.startswith("/"))}" shared="0">{name}</SourceFilename>'
        f'<SourceBand>{band}</SourceBand><SourceProperties RasterXSize="{COLS}" RasterYSize="{ROWS}" '
        f'DataType="UInt16" BlockXSize="{COLS}" BlockYSize="{ROWS}"/>'
        f'<SrcRect xOff="0" yOff="0" xSize="{COLS}" ySize="{ROWS}"/>'
        f'<DstRect xOff="{column}" yOff="0" xSize="{COLS}" ySize="{ROWS}"/>{more}</{tag}>'
    )


def vrt(*bands: list[Part], width: int = COLS, more: str = "", before: str = "") -> bytes:
    """A VRT as `gdalbuildvrt` writes it: the sources of each band."""
    text = "".join(
        f'<VRTRasterBand dataType="UInt16" band="{k}">{before}'
        + "".join(source(part, part[1]) for part in parts)
        + "</VRTRasterBand>"
        for k, parts in enumerate(bands, 1)
    )
    place = f"{EAST}, {GSD}.0, 0.0, {NORTH}, 0.0, -{GSD}.0"
    return (
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{ROWS}"><SRS dataAxisToSRSAxisMapping="1,2">{CRS}</SRS>'
        f"<GeoTransform>{place}</GeoTransform>{more}{text}</VRTDataset>"
    ).encode()


def side_by_side(*names: str) -> bytes:
    """Images of three bands, a gap of 12 columns after each."""
    parts = [(name, COLS * k + 12 * k) for k, name in enumerate(names)]
    bands = [[(name, band, column) for name, column in parts] for band in (1, 2, 3)]
    return vrt(*bands, width=(COLS + 12) * len(names))


def config(tmp_path: Path, folder: str = "in") -> BuildConfig:
    return build_config(scenes=[str(tmp_path / folder)], out=str(tmp_path / "out"), tile=16, stride=16)


def surveyed(tmp_path: Path) -> tuple[list[Scene], dict[str, str]]:
    """The scenes of the folder `in`, and the role of each file."""
    scenes = [entry.scene for entry in catalog.run(config(tmp_path), None)]
    return scenes, {Path(line.file).name: line.role for line in read_account(tmp_path / "out")}


def detail_of(path: Path) -> str:
    (delivery,) = find_deliveries([path])
    (refusal,) = read_delivery(delivery)
    assert isinstance(refusal, Refusal), refusal
    return refusal.detail


STACKS = {
    "of a sensor": (["S2A_32TQM_20210601_B04", "S2A_32TQM_20210601_B03"], ("red", "green")),
    "of no sensor": (["field-nir", "field-red"], ("nir", "red")),
    "one of two differences": (["a_1_x", "b_2_x"], ("band_1", "band_2")),
    "numbers": (["B4", "B3"], ("b4", "b3")),
    "with spaces and signs": (["my scene #1 100% ü_red", "my scene #1 100% ü_blue"], ("red", "blue")),
}


@pytest.mark.parametrize("case", STACKS)
def test_files_of_a_band_each_are_one_scene(tmp_path: Path, case: str) -> None:
    stems, bands = STACKS[case]
    folder = tmp_path / "in"
    files = {f"bands/{stem}.tif": image(1, seed=k) for k, stem in enumerate(stems)}
    write_folder(folder, files | {"stack.vrt": vrt(*([(name, 1, 0)] for name in files))})
    (scene,), roles = surveyed(tmp_path)
    assert (scene.id, scene.bands) == ("stack", bands)
    assert {*roles.values()} == {"scene"}
    assert scene.bytes == sum(path.stat().st_size for path in folder.rglob("*.*"))
    pixels, valid = read_image(scene.images[0])
    for name, band in zip(files, pixels, strict=True):
        with rasterio.open(folder / name) as file:
            assert np.array_equal(file.read(1), band)
    assert valid is not None
    assert valid.all()
    before = (tmp_path / "out" / "scenes.parquet").read_bytes()
    surveyed(tmp_path)
    assert (tmp_path / "out" / "scenes.parquet").read_bytes() == before


def test_a_stack_of_mosaics_is_one_scene(tmp_path: Path) -> None:
    files = {f"{band}_{k}.tif": image(1, COLS * k, seed=k) for band in ("red", "blue") for k in (0, 1)}
    bands = [[(f"{band}_{k}.tif", 1, COLS * k) for k in (0, 1)] for band in ("red", "blue")]
    write_folder(tmp_path / "in", files | {"all.vrt": vrt(*bands, width=2 * COLS)})
    (scene,), roles = surveyed(tmp_path)
    assert {*roles.values()} == {"scene"}
    assert scene.images[0].width == 2 * COLS


def test_images_that_are_scenes_are_not_read_again_as_a_mosaic(tmp_path: Path) -> None:
    write_folder(
        tmp_path / "in", {"a.tif": image(3), "b.tif": image(3, 60, 1), "all.vrt": side_by_side("a.tif", "b.tif")}
    )
    (tmp_path / "in" / "view.vrt").write_bytes(vrt([("a.tif", 3, 0)]))
    scenes, roles = surveyed(tmp_path)
    assert [scene.id for scene in scenes] == ["a", "b"]
    assert roles == {"a.tif": "scene", "b.tif": "scene", "all.vrt": "mosaic", "view.vrt": "mosaic"}
    (line,) = [line for line in read_account(tmp_path / "out") if line.file.endswith("all.vrt")]
    assert "a.tif" in line.reason
    assert "b.tif" in line.reason


@pytest.mark.parametrize("given", ["none", "one", "linked", "the file"])
def test_a_mosaic_of_images_that_are_not_given_is_a_scene(tmp_path: Path, given: str) -> None:
    """What no image of it shows is void."""
    write_folder(tmp_path / "disk", {"a.tif": image(3), "b.tif": image(3, 60, 1)})
    folder = tmp_path / "in"
    folder.mkdir()
    names = {name: f"{tmp_path}/disk/{name}" for name in ("a.tif", "b.tif")}
    if given == "one":
        (tmp_path / "disk" / "a.tif").rename(folder / "a.tif")
        names["a.tif"] = "a.tif"
    if given == "linked":
        (folder / "a.tif").symlink_to(tmp_path / "disk" / "a.tif")
    (folder / "all.vrt").write_bytes(side_by_side(*names.values()))
    if given == "the file":
        (folder / "c.tif").write_bytes(image(3))
        (scene,) = [s for d in find_deliveries([folder / "all.vrt"]) for s in read_delivery(d) if isinstance(s, Scene)]
    else:
        (scene,), roles = surveyed(tmp_path)
        assert {*roles.values()} == {"scene"}
    assert (scene.id, scene.bands) == ("all", ("band_1", "band_2", "band_3"))
    pixels, valid = read_image(scene.images[0])
    assert valid is not None
    assert np.array_equal(valid.all(axis=0), ([True] * COLS + [False] * 12) * 2)
    with rasterio.open(tmp_path / "disk" / "b.tif") as file:
        assert np.array_equal(file.read(), pixels[:, :, 60 : 60 + COLS])


@pytest.mark.parametrize("where", ["inside", "beside", "nodata", "of the VRT"])
def test_pixels_without_data_in_its_files_have_none(tmp_path: Path, where: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "disk").mkdir()
    path, mask = tmp_path / "disk" / "a.tif", np.full((ROWS, COLS), 255, np.uint8)
    path.write_bytes(image(3, nodata=0) if where == "nodata" else image(3))
    mask[:, 20:] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=where == "inside"), rasterio.open(path, "r+") as file:
        if where in ("inside", "beside"):
            file.write_mask(mask)
        else:
            file.write(np.where(mask, file.read(), 0))
    before = "<NoDataValue>0</NoDataValue>" if where == "of the VRT" else ""
    (folder / "a.vrt").write_bytes(vrt(*([(str(path), band, 0)] for band in (1, 2, 3)), before=before))
    (scene,), _ = surveyed(tmp_path)
    _, valid = read_image(scene.images[0])
    assert valid is not None
    assert np.array_equal(valid, mask != 0)


def test_a_vrt_places_an_image_that_is_on_no_map(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", {"a.tif": image(3, crs=None, transform=Affine.identity())})
    (tmp_path / "in" / "placed.vrt").write_bytes(vrt(*([("a.tif", band, 0)] for band in (1, 2, 3))))
    (scene,), roles = surveyed(tmp_path)
    assert scene.id == "placed"
    assert {*roles.values()} == {"scene"}


def test_a_band_of_a_stack_that_cannot_be_used_is_no_scene(tmp_path: Path) -> None:
    files = {"s_red.tif": image(1), "s_blue.tif": image(1)[:300], "free.tif": image(3)}
    write_folder(tmp_path / "in", files | {"s.vrt": vrt([("s_red.tif", 1, 0)], [("s_blue.tif", 1, 0)])})
    scenes, roles = surveyed(tmp_path)
    assert [scene.id for scene in scenes] == ["free"]
    assert roles == {"free.tif": "scene", "s.vrt": "refused", "s_red.tif": "refused", "s_blue.tif": "refused"}


NO_FILE = "no TIFF or JPEG 2000 file on this machine"
BAND = '<VRTRasterBand dataType="UInt16" band="1">{}</VRTRasterBand>'
BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "a server": (lambda: vrt([("/vsicurl/http://127.0.0.1:9/a.tif", 1, 0)]), NO_FILE),
    "a URL": (lambda: vrt([("http://127.0.0.1:9/a.tif", 1, 0)]), NO_FILE),
    "a bucket": (lambda: vrt([("s3://b/a.tif", 1, 0)]), NO_FILE),
    "an archive": (lambda: vrt([("/vsizip/a.zip/a.tif", 1, 0)]), NO_FILE),
    "another format": (lambda: vrt([("passwords.txt", 1, 0)]), NO_FILE),
    "a driver": (lambda: vrt([("/tmp/x:GTIFF_DIR:1:a", 1, 0)]), NO_FILE),
    "a VRT": (lambda: vrt([("b.vrt", 1, 0)]), "is a VRT itself"),
    "a VRT by another name": (lambda: vrt([("disguised.tif", 1, 0)]), "by its content"),
    "a mask by another name": (lambda: vrt([("masked.tif", 1, 0)]), "masked.tif.msk is no TIFF"),
    "a file that is not there": (lambda: vrt([("lost.tif", 1, 0)]), "lost.tif does not exist"),
    "a directory": (lambda: vrt([("folder.tif", 1, 0)]), "folder.tif does not exist"),
    "no name": (lambda: vrt([("", 1, 0)]), NO_FILE),
    "a warped one": (lambda: vrt([("a.tif", 1, 0)]).replace(b"<VRTDataset", b'<VRTDataset subClass="VRTWarpedDataset"'),
                     "computed from other images (VRTWarpedDataset)"),
    "a pixel function": (
        lambda: vrt([("a.tif", 1, 0)]).replace(b"<VRTRasterBand", b'<VRTRasterBand subClass="VRTDerivedRasterBand"'),
        "computed from other images (VRTDerivedRasterBand)"),
    "a function's code": (lambda: vrt([("a.tif", 1, 0)], before="<PixelFunctionCode>import os</PixelFunctionCode>"),
                          "contains PixelFunctionCode"),
    "a filter": (lambda: vrt([], more=BAND.format(source(("a.tif", 1, 0), 1, "KernelFilteredSource"))),
                 "contains KernelFilteredSource"),
    "options": (lambda: vrt([], more=BAND.format(source(("a.tif", 1, 0), 1, more="<OpenOptions/>"))),
                "contains OpenOptions"),
    "raw bytes": (lambda: vrt([("a.tif", 1, 0)], before="<ImageOffset>0</ImageOffset>"), "contains ImageOffset"),
    "capitals": (lambda: vrt([("a.tif", 1, 0)]).replace(b"SourceFilename", b"sourcefilename"),
                 "contains sourcefilename"),
    "an entity": (lambda: b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>' + vrt([("&e;", 1, 0)]),
                  "not the XML of a VRT"),
    "other XML": (lambda: b"<PAMDataset/>", "begins with PAMDataset"),
    "half": (lambda: vrt([("a.tif", 1, 0)])[:300], "not the XML of a VRT"),
    "nothing": (lambda: b"", "not the XML of a VRT"),
    "no band": (lambda: vrt(), "a.vrt: "),
    "no size": (lambda: vrt([("a.tif", 1, 0)]).replace(b"rasterXSize", b"x"), "not an image that can be opened"),
    "a rectangle of no numbers": (lambda: vrt([("a.tif", 1, 0)]).replace(b'xOff="0"', b'xOff="nan"'), "a.vrt: "),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_a_vrt_may_not_show_is_refused_in_one_sentence(tmp_path: Path, case: str) -> None:
    content, words = BROKEN[case]
    masked = image(1)
    beside = {"masked.tif": masked, "masked.tif.msk": vrt([("a.tif", 1, 0)]), "passwords.txt": b"secret"}
    write_folder(tmp_path / "disk", {"a.tif": image(1), "b.vrt": vrt([("a.tif", 1, 0)])} | beside)
    write_folder(tmp_path / "disk", {"disguised.tif": vrt([("/vsicurl/http://127.0.0.1:9/a.tif", 1, 0)])})
    (tmp_path / "disk" / "folder.tif").mkdir()
    path = tmp_path / "disk" / "a.vrt"
    path.write_bytes(content())
    detail = detail_of(path)
    assert words in detail
    assert detail.startswith(f"{path}: ")
    assert "\n" not in detail
    assert len(detail) < 400
    assert "secret" not in detail


def test_metadata_lead_gdal_nowhere(tmp_path: Path) -> None:
    """GDAL would take overviews from any file that the metadata name."""
    write_folder(tmp_path / "in", {"other.tif": image(1, seed=5)})
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.tif").write_bytes(image(1))
    more = f'<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{tmp_path}/in/other.tif</MDI></Metadata>'
    (tmp_path / "in" / "a.vrt").write_bytes(vrt([(f"{tmp_path}/disk/a.tif", 1, 0)], more=more))
    scenes, _ = surveyed(tmp_path)
    (scene,) = [scene for scene in scenes if scene.id == "a"]
    small, _ = read_image(scene.images[0], shape=(2, 2))
    with rasterio.open(tmp_path / "disk" / "a.tif") as file:
        assert np.array_equal(small, file.read(out_shape=(1, 2, 2)))


def test_a_vrt_in_an_archive_is_named(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", {"a.vrt": vrt([("a.tif", 1, 0)])})
    assert "a.vrt (a mosaic; it is read in a folder, not in an archive)" in detail_of(tmp_path / "a.zip")
