"""An image lies where it lies, whatever holds its pixels and whatever file beside it says where."""

import gzip
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from pyproj import CRS
from rasterio.control import GroundControlPoint
from scipy.io import netcdf_file  # type: ignore[import-untyped]

from benchmarks.s3 import Server
from pipeline.catalog.account import take_account
from pipeline.catalog.table import Entry
from pipeline.scenes.delivery import NoImagery, Refusal, read_delivery
from pipeline.scenes.discovery import take_inventory
from pipeline.scenes.netcdf import require_complete
from pipeline.scenes.raster import read_image
from pipeline.scenes.scene import Scene, SceneError
from pipeline.tasks.survey import read_and_survey
from tests.deliveries import STEM, catalog_job, write_folder, write_zip

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
CRS_CODE, PLACE, ROWS, COLS = "EPSG:32643", Affine(10, 2, 300000, 2, -10, 3700000), 50, 60
PIXELS = np.kron(np.random.default_rng(0).integers(1, 250, (3, 5, 6)), np.ones((10, 10))).astype(np.uint8)


def write(
    path: Path, driver: str = "GTiff", crs: str | None = None, transform: Affine | None = None, **profile: Any
) -> None:
    pixels = profile.pop("pixels", PIXELS)
    place = {} if transform is None else {"transform": transform}
    with rasterio.open(
        path,
        "w",
        driver=driver,
        width=COLS,
        height=ROWS,
        count=len(pixels),
        dtype=pixels.dtype,
        crs=crs,
        **place,
        **profile,
    ) as file:
        file.write(pixels)
    Path(f"{path}.aux.xml").unlink(missing_ok=True)


def write_world(path: Path, decimal: str = ".") -> None:
    x, y = PLACE * (0.5, 0.5)
    numbers = (PLACE.a, PLACE.d, PLACE.b, PLACE.e, x, y)
    path.write_text("\r\n".join(f"{number:.6f}".replace(".", decimal) for number in numbers))


def write_prj(path: Path) -> None:
    path.write_text(CRS(CRS_CODE).to_wkt("WKT1_ESRI"))


def write_aux(path: Path, *, transform: bool) -> None:
    place = ", ".join(map(str, PLACE.to_gdal()))
    text = f"<GeoTransform>{place}</GeoTransform>" if transform else ""
    srs = CRS(CRS_CODE).to_wkt("WKT1_GDAL").replace('"', "&quot;")
    path.write_text(f"<PAMDataset><SRS>{srs}</SRS>{text}</PAMDataset>")


def make(folder: Path, form: str) -> None:
    """Write the image in one form, as `image` with some suffix, and whatever belongs to it."""
    driver = {"jpg": "JPEG", "JPEG": "JPEG", "png": "PNG"}.get(form.split()[0], "GTiff")
    match form:
        case "tfw prj" | "jpg jgw prj" | "png pgw prj" | "JPEG wld prj":
            suffix = "tif" if form == "tfw prj" else form.split()[0]
            write(folder / f"image.{suffix}", driver)
            world = form.split()[-2]
            write_world(folder / f"image.{world}", "," if world == "pgw" else ".")
            write_prj(folder / "image.prj")
        case "tif with a CRS, TFW":
            write(folder / "image.tif", crs=CRS_CODE)
            write_world(folder / "image.TFW")
        case "tif with a transform, prj":
            write(folder / "image.tif", transform=PLACE)
            write_prj(folder / "image.PRJ")
        case "wld aux":
            write(folder / "image.tif")
            write_world(folder / "image.wld")
            write_aux(folder / "image.tif.aux.xml", transform=False)
        case "aux":
            write(folder / "image.tif")
            write_aux(folder / "image.tif.aux.xml", transform=True)
        case "j2k wld prj":
            write(folder / "image.j2k", "JP2OpenJPEG", QUALITY=100, REVERSIBLE="YES", CODEC="J2K")
            write_world(folder / "image.wld")
            write_prj(folder / "image.prj")
        case "ENVI":
            write(folder / "image", "ENVI", CRS_CODE, PLACE)
        case ".dat" | ".bsq" | ".img of ENVI":
            write(folder / f"image{form.split()[0]}", "ENVI", CRS_CODE, PLACE)
        case ".bil, header with suffix":
            write(folder / "image.bil", "ENVI", CRS_CODE, PLACE, INTERLEAVE="BIL")
            (folder / "image.hdr").rename(folder / "image.bil.hdr")
        case ".img of ERDAS":
            write(folder / "image.img", "HFA", CRS_CODE, PLACE)


FORMS = (
    "tfw prj", "jpg jgw prj", "png pgw prj", "JPEG wld prj", "tif with a CRS, TFW", "tif with a transform, prj",
    "wld aux", "aux", "j2k wld prj", "ENVI", ".dat", ".bsq", ".img of ENVI", ".bil, header with suffix",
    ".img of ERDAS",
)  # fmt: skip


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("reference")
    write(folder / "image.tif", crs=CRS_CODE, transform=PLACE)
    return only_scene(folder)


def only_scene(folder: Path, **settings: Any) -> Scene:
    """The scene of a folder, in whose account each file is in that scene."""
    inventory = take_inventory([folder])
    (delivery,) = inventory.deliveries
    (scene,) = read_delivery(delivery, **settings)
    assert isinstance(scene, Scene), scene
    assert {given.role for given in take_account(inventory, {delivery.path: [scene]})} == {"scene"}
    return scene


@pytest.mark.parametrize("form", FORMS)
def test_an_image_on_a_map_is_a_scene_in_every_form(tmp_path: Path, reference: Scene, form: str) -> None:
    make(tmp_path, form)
    scene = only_scene(tmp_path)
    assert scene.footprint.hausdorff_distance(reference.footprint) < 1e-9
    assert (scene.gsd, scene.level) == (reference.gsd, "L2A")
    pixels, valid = read_image(scene.images[0])
    assert valid is None
    assert np.abs(pixels.astype(int) - PIXELS).mean() < (15 if form.startswith(("jpg", "JPEG")) else 1e-9)
    if "ENVI" in form or "ERDAS" in form:  # whose drivers describe bands as `Band 1` and `Layer_1`
        assert scene.bands == ("band_1", "band_2", "band_3")


@pytest.mark.parametrize(
    ("form", "spoil", "fault"),
    [
        (
            "tfw prj",
            lambda f: (f / "image.prj").unlink(),
            "image.tfw says where its pixels lie, but not in which coord",
        ),
        ("tfw prj", lambda f: (f / "image.prj").write_text("?"), "image.prj: not the text of a coordinate system"),
        ("tfw prj", lambda f: (f / "image.tfw").write_text("1 2 3"), "image.tfw: it should contain six numbers"),
        ("tfw prj", lambda f: (f / "image.tfw").write_text("0 0 0 0 0 0"), "image.tfw: its six numbers are no transf"),
        ("tif with a transform, prj", lambda f: (f / "image.PRJ").unlink(), "the image says where its pixels lie, but"),
        ("tfw prj", lambda f: (f / "image.tfw").unlink(), "no georeference and no RPC"),
        (".dat", lambda f: (f / "image.hdr").write_text("no header"), "image.dat: not an image that can be opened"),
    ],
)
def test_what_lacks_is_named(tmp_path: Path, form: str, spoil: Any, fault: str) -> None:
    make(tmp_path, form)
    spoil(tmp_path)
    (delivery,) = take_inventory([tmp_path]).deliveries
    (refusal,) = read_delivery(delivery)
    assert isinstance(refusal, Refusal)
    assert fault in refusal.detail


def test_text_files_beside_an_image_may_begin_with_a_mark_of_utf_8(tmp_path: Path, reference: Scene) -> None:
    make(tmp_path, "tfw prj")
    for name in ("image.tfw", "image.prj"):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (tmp_path / name).read_bytes())
    assert only_scene(tmp_path).footprint.hausdorff_distance(reference.footprint) < 1e-9


def test_an_image_with_ground_control_points_alone_is_told_how_to_become_a_map(tmp_path: Path) -> None:
    corners = [GroundControlPoint(row, col, *(PLACE * (col, row))) for row in (0, ROWS) for col in (0, COLS)]
    write(tmp_path / "a.tif")
    with rasterio.open(tmp_path / "a.tif", "r+") as file:
        file.gcps = corners, rasterio.CRS.from_user_input(CRS_CODE)
    (refusal,) = read_delivery(take_inventory([tmp_path]).deliveries[0])
    assert isinstance(refusal, Refusal)
    assert (
        f"a.tif: it has 4 ground control points, but is on no map; `gdalwarp -t_srs EPSG:4326 '{tmp_path}/a.tif'"
        in (refusal.detail)
    )


@pytest.mark.parametrize("name", ["a.tif", "a.jp2", "A.TIFF", "a.img"])
def test_an_empty_file_is_called_empty(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    (refusal,) = read_delivery(take_inventory([tmp_path]).deliveries[0])
    assert isinstance(refusal, Refusal)
    assert refusal.detail == f"{tmp_path}/{name}: not an image that can be opened: the file is empty"


@pytest.mark.parametrize("name", ["21JUN01-M1BS_R1C2-012345678901_01_P001.TIF", "IMG_SPOT6_MS_1_R2C1.TIF"])
def test_a_tile_without_its_camera_is_told_so(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    (refusal,) = read_delivery(take_inventory([tmp_path]).deliveries[0])
    assert isinstance(refusal, Refusal)
    assert "it is a tile of a larger image, as its name says" in refusal.detail


def test_a_picture_with_its_world_file_in_an_archive_is_a_scene(tmp_path: Path, reference: Scene) -> None:
    (tmp_path / "in").mkdir()
    make(tmp_path / "in", "png pgw prj")
    shutil.make_archive(str(tmp_path / "image"), "zip", tmp_path / "in")
    (delivery,) = take_inventory([tmp_path / "image.zip"]).deliveries
    (scene,) = read_delivery(delivery)
    assert isinstance(scene, Scene)
    assert scene.footprint.hausdorff_distance(reference.footprint) < 1e-9
    assert (read_image(scene.images[0])[0] == PIXELS).all()


def test_a_picture_alone_and_a_file_without_header_are_no_images(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", "JPEG")
    (tmp_path / "b.dat").write_bytes(b"0" * 100)
    inventory = take_inventory([tmp_path])
    assert inventory.deliveries == ()
    assert [given.role for given in take_account(inventory, {})] == ["preview", "other format"]


@pytest.mark.parametrize(("count", "bands"), [(4, ("blue", "green", "red", "nir")), (1, ("band_1",)), (2, None)])
def test_a_gaofen_image_on_a_map_needs_no_xml(tmp_path: Path, count: int, bands: tuple[str, ...] | None) -> None:
    name = tmp_path / f"{STEM}.tiff"
    place = Affine(8, 0, 350000, 0, -8, 3690000)
    write(name, crs="EPSG:32642", transform=place, pixels=np.full((count, ROWS, COLS), 300, np.uint16))
    if count == 2:
        with rasterio.open(name, "r+") as file:
            file.descriptions = ("nir", "red")
    scene = only_scene(tmp_path)
    assert (scene.satellite, scene.sensor, scene.gsd, scene.acquired) == ("GF1", "PMS1", 8.0, None)
    assert scene.bands == (bands or ("nir", "red"))


@pytest.mark.parametrize("name", ["image.nc", "image.h5"])
def test_variables_on_a_map_are_bands(tmp_path: Path, name: str) -> None:
    """A NetCDF file and an HDF5 file of three variables, on a grid without rotation, as NetCDF has them."""
    place = Affine(10, 0, 300000, 0, -10, 3700000)
    pixels = PIXELS.astype(np.int16) * 100
    write(tmp_path / "image.tif", crs=CRS_CODE, transform=place, pixels=pixels, nodata=-9)
    wanted = only_scene(tmp_path)
    (tmp_path / "in").mkdir()
    try:
        rasterio.shutil.copy(tmp_path / "image.tif", tmp_path / "in" / name, driver="netCDF", FORMAT="NC4")
    except SystemError:  # rasterio says so although the file is complete
        assert (tmp_path / "in" / name).exists()
    scene = only_scene(tmp_path / "in")
    assert scene.footprint.hausdorff_distance(wanted.footprint) < 1e-9
    assert scene.bands == ("Band1", "Band2", "Band3")
    assert [read_image(image)[0][0].tolist() for image in scene.images] == read_image(wanted.images[0])[0].tolist()
    assert only_scene(tmp_path / "in", bands=("blue=Band2", "nir", "red=Band1")).bands == ("blue", "red")


def test_longitudes_and_latitudes_without_a_crs_are_a_map(tmp_path: Path) -> None:
    with netcdf_file(tmp_path / "s2_l2a.nc", "w") as file:
        for axis, start, step, count, unit in (("lat", 30, 1e-4, ROWS, "north"), ("lon", 75, 1e-4, COLS, "east")):
            file.createDimension(axis, count)
            variable = file.createVariable(axis, "f8", (axis,))
            variable[:] = start + step * (np.arange(count) + 0.5)
            variable.units = f"degrees_{unit}"
        for k, name in enumerate(("B2", "B3", "B4", "cloud_mask")):
            file.createVariable(name, "f4", ("lat", "lon"))[:] = PIXELS[k % 3] / 1000
    scene = only_scene(tmp_path)
    assert scene.bands == ("red", "green", "blue")
    assert scene.footprint.bounds == pytest.approx((75, 30, 75 + COLS * 1e-4, 30 + ROWS * 1e-4), abs=1e-9)
    image = scene.images[2]
    assert image.numbers.decode(read_image(image)[0])[0] == pytest.approx(PIXELS[0][::-1] / 1000, abs=1e-4)


@pytest.mark.parametrize("bend", [0.0, 1e-9, 1.0])
def test_rows_that_are_not_evenly_spaced_are_no_map(tmp_path: Path, bend: float) -> None:
    """GDAL gives them a transform, by which their middle lies kilometres off. bend: in distances of rows."""
    with netcdf_file(tmp_path / "a.nc", "w") as file:
        for axis, start, count, unit in (("lat", 30, ROWS, "north"), ("lon", 75, COLS, "east")):
            file.createDimension(axis, count)
            variable = file.createVariable(axis, "f8", (axis,))
            t = np.arange(count) + 0.5
            variable[:] = start + 1e-4 * (t + bend * (axis == "lat") * np.sin(np.pi * t / count))
            variable.units = f"degrees_{unit}"
        file.createVariable("B2", "i2", ("lat", "lon"))[:] = PIXELS[0]
    (result,) = read_delivery(take_inventory([tmp_path]).deliveries[0])
    if bend == 1:
        assert isinstance(result, Refusal)
        assert not isinstance(result, NoImagery)
        assert result.detail.startswith(f"{tmp_path}/a.nc: its latitudes are not evenly spaced")
    else:
        assert isinstance(result, Scene)


def test_a_container_without_an_image_is_none(tmp_path: Path) -> None:
    with netcdf_file(tmp_path / "series.nc", "w") as file:
        file.createDimension("time", 5)
        file.createVariable("x", "f4", ("time",))[:] = 1
    (result,) = read_delivery(take_inventory([tmp_path]).deliveries[0])
    assert isinstance(result, NoImagery)
    assert "series.nc: GDAL finds no image in it" in result.detail


def write_cube(path: Path, form: str) -> None:
    """Three bands on a map in a form that announces its length."""
    driver, options = {
        "NetCDF": ("netCDF", {"FORMAT": "NC"}), "NetCDF with 64-bit offsets": ("netCDF", {"FORMAT": "NC2"}),
        "HDF5": ("netCDF", {"FORMAT": "NC4"}), "ENVI": ("ENVI", {}), "a band after another": ("ENVI", {}),
        "GeoTIFF": ("GTiff", {}), "JPEG 2000": ("JP2OpenJPEG", {"QUALITY": 100, "REVERSIBLE": "YES"}),
    }[form]  # fmt: skip
    place = Affine(10, 0, 300000, 0, -10, 3700000)
    write(path.with_suffix(".source"), crs=CRS_CODE, transform=place, pixels=PIXELS.astype(np.int16) * 100)
    with suppress(SystemError):  # rasterio raises it for NetCDF although the file is complete
        rasterio.shutil.copy(path.with_suffix(".source"), path, driver=driver, **options)
    path.with_suffix(".source").unlink()
    Path(f"{path}.aux.xml").unlink(missing_ok=True)


CUBES = {
    "NetCDF": "a.nc", "NetCDF with 64-bit offsets": "a.nc", "HDF5": "a.h5", "ENVI": "a.dat",
    "a band after another": "a.bsq", "GeoTIFF": "a.tif", "JPEG 2000": "a.jp2",
}  # fmt: skip


@pytest.mark.parametrize("share", [0.999, 0.6, 0.1, 0])
@pytest.mark.parametrize("form", CUBES)
def test_a_file_that_ends_early_is_refused_in_every_form(tmp_path: Path, form: str, share: float) -> None:
    """GDAL reads zeros where NetCDF or ENVI files end early, and they would pass for pixels."""
    path = tmp_path / CUBES[form]
    write_cube(path, form)
    (delivery,) = take_inventory([tmp_path]).deliveries
    (entry,) = read_and_survey(catalog_job(delivery))
    assert isinstance(entry, Entry)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    (refusal,) = read_and_survey(catalog_job(delivery))
    assert isinstance(refusal, Refusal)
    assert not isinstance(refusal, NoImagery)
    assert str(path) in refusal.detail
    if (form in ("ENVI", "a band after another") and share) or (form.startswith("NetCDF") and share > 0.5):
        assert "it is not complete" in refusal.detail


@pytest.mark.parametrize(
    "content", [b"(G-code of a mill)\nG21\n", b"CDF\x01" + b"\xff" * 40, b"\x89HDF", b"\x89HDF\r\n\x1a\n"]
)
def test_a_file_that_is_no_container_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.nc").write_bytes(content)
    (result,) = read_delivery(take_inventory([tmp_path]).deliveries[0])
    assert isinstance(result, Refusal)
    assert not isinstance(result, NoImagery)
    assert re.search("neither NetCDF nor HDF5|ends in its header|not complete", result.detail)


def test_a_series_of_records_is_as_long_as_its_last_record(tmp_path: Path) -> None:
    for names in (("x",), ("x", "y")):
        path = tmp_path / f"{len(names)}.nc"
        with netcdf_file(path, "w") as file:
            file.createDimension("time", None)
            file.createDimension("place", 3)
            for name in names:
                file.createVariable(name, "i2", ("time", "place"))[:7] = np.full((7, 3), 5)
        require_complete(str(path))
        content = path.read_bytes()
        for lost in (3, 9, len(content) - 20):
            path.write_bytes(content[:-lost])
            with pytest.raises(SceneError, match=r"not complete|ends in its header"):
                require_complete(str(path))


def test_a_compressed_envi_image_has_fewer_bytes_than_pixels(tmp_path: Path) -> None:
    write(tmp_path / "a.dat", "ENVI", CRS_CODE, PLACE)
    with (tmp_path / "a.hdr").open("a") as header:
        header.write("file compression = 1\n")
    (tmp_path / "a.dat").write_bytes(gzip.compress((tmp_path / "a.dat").read_bytes()))
    assert (read_image(only_scene(tmp_path).images[0])[0] == PIXELS).all()


@pytest.mark.parametrize("form", ["zip", "bucket"])
@pytest.mark.parametrize("name", ["a.dat", "a.img", "a", "a.nc", "a.h5"])
def test_forms_that_need_a_folder_say_so_elsewhere(tmp_path: Path, name: str, form: str, s3: Server) -> None:
    files = {name: b"\0" * 100, "a.hdr": b"ENVI\n"} if "nc" not in name and "h5" not in name else {name: b"CDF\x01"}
    folder = write_folder(tmp_path / "in", files)
    place = str(write_zip(tmp_path / "a.zip", files)) if form == "zip" else s3.upload(folder, tmp_path.name)
    (delivery,) = take_inventory([place]).deliveries
    (refusal,) = read_delivery(delivery)
    assert isinstance(refusal, Refusal)
    assert re.search(r"read (in|from) a folder|not read from servers; download it", refusal.detail), refusal.detail
