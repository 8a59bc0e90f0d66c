"""Each file that was given is in a scene, in a map, or named once with its reason."""

import io
import json
import os
import tarfile
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from pyproj import CRS

from geokr.dataset.contents import list_scenes
from pipeline.build_levir_kr import main
from pipeline.catalog import quarantine
from pipeline.catalog.account import USED, Given, read_account
from pipeline.catalog.stac_items import write_static_catalog
from pipeline.scenes.delivery import read_delivery
from pipeline.scenes.discovery import find_deliveries
from pipeline.scenes.scene import Scene
from tests.deliveries import (
    NAME,
    camera,
    coordinates,
    jp2,
    members,
    pair,
    rpc_text,
    tiff,
    write_archive,
    write_folder,
    write_zip,
)
from tests.products import L2A, LANDSAT, landsat, safe

NAMES = [NAME.replace("1234567", number) for number in ("1000001", "1000002", "1000003", "1000004", "1000005")]
EAST, NORTH = 5e5, 2.7e6
"""Upper left corner of the first image on a map, in UTM zone 48: all of them lie in one row."""


def place(k: int, gsd: float = 8.0) -> dict[str, Any]:
    return {"crs": "EPSG:32648", "transform": Affine(gsd, 0, EAST + 2000 * k, 0, -gsd, NORTH)}


def image_pixels(k: int, bands: int = 3, dtype: str = "uint16") -> npt.NDArray[Any]:
    """Texture, so that tiles are accepted: (band, row, col)."""
    texture = np.random.default_rng(k).integers(60, 200, (bands, 10, 12))
    return np.kron(texture, np.ones((1, 4, 4))).astype(dtype)


def image(k: int, bands: int = 3, dtype: str = "uint16", **profile: Any) -> bytes:
    """An image on a map at the k-th place."""
    return tiff(image_pixels(k, bands, dtype), **place(k) | profile)


def converted(content: bytes, driver: str) -> dict[str, bytes]:
    """An image in another form: the files `x`, `x.hdr` ..., without notes of GDAL."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "source.tif").write_bytes(content)
        rasterio.shutil.copy(f"{folder}/source.tif", f"{folder}/x", driver=driver)
        return {path.name: path.read_bytes() for path in Path(folder).glob("x*") if path.suffix != ".xml"}


def classes(k: int, **profile: Any) -> bytes:
    """A map of classes at the k-th place."""
    return tiff(np.random.default_rng(k).choice([10, 20, 60], (1, 40, 48)).astype(np.uint8), **place(k), **profile)


def with_palette(content: bytes) -> bytes:
    with rasterio.MemoryFile(content) as source, source.open() as file, rasterio.MemoryFile() as target:
        with target.open(**file.profile) as copy:
            copy.write(file.read())
            copy.write_colormap(1, {10: (1, 2, 3, 255), 20: (4, 5, 6, 255)})
        return bytes(target.read())


def item(name: str, hrefs: dict[str, str], west: float = 104.9) -> dict[str, Any]:
    """A STAC item with a band an asset, or all bands in one."""
    bands = ("red", "green", "blue", "nir")
    named = {key: [{"name": key, "common_name": key}] if key in bands else [] for key in hrefs}
    if [*hrefs] == ["all"]:
        named = {"all": [{"name": band, "common_name": band} for band in bands[:3]]}
    assets = {key: {"href": href, "type": "image/tiff", "eo:bands": named[key]} for key, href in hrefs.items()}
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": name, "links": [], "assets": assets,
        "geometry": None, "bbox": [west, 24.0, west + 1, 25.0], "properties": {"datetime": "2021-06-01T10:00:00Z"},
    }  # fmt: skip


def unsafe_tar() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../outside.tif"))
    return content.getvalue()


def everything(root: Path) -> dict[str, str]:
    """A folder with one of everything. Returns path below it -> its role."""
    roles: dict[str, str] = {}

    def add(folder: str, files: dict[str, bytes], *expected: str) -> None:
        """One role for all files, or one for each."""
        write_folder(root / folder, files)
        paths = [f"{folder}/{name}" for name in files]
        roles.update(zip(paths, expected * len(paths) if len(expected) == 1 else expected, strict=True))

    # scenes
    add("plain", {"rgb.tif": image(0, dtype="uint8"), "rgb.tif.aux.xml": b"<PAMDataset/>"}, "scene")
    add("plain", {"rgb.tif.ovr": b"II", "rgb.jpg": b"\xff\xd8", "rgb.md5": b"0"}, "overviews", "preview", "checksum")
    add("plain", {"masked.tif": image(1), "masked.tif.msk": tiff(np.full((1, 40, 48), 255, np.uint8))}, "scene")
    add("GF1", members(f"{NAMES[0]}-MSS1"), "scene")
    add("GF1", {f"{NAMES[0]}-MSS1.jpg": b"", f"{NAMES[0]}-MSS1_thumb.jpg": b"", "order.xml": b"<o/>"},
        "preview", "preview", "metadata")  # fmt: skip
    add("GF1/more", pair(NAMES[1], "MSS1", "PAN1"), *["scene"] * 3, *["unused"] * 3)
    write_archive(root / "GF1" / "delivery.tar.gz", members(f"{NAMES[2]}-MSS1"))
    write_zip(root / "GF1" / "two.zip", members(f"{NAMES[3]}-MSS1") | {"manual.pdf": b"%PDF"})
    roles |= {"GF1/delivery.tar.gz": "scene", "GF1/two.zip": "scene"}
    bands = {f"{name}.tif": image(2, 1) for name in ("B02", "B03", "B04", "B08")}
    add("s2", bands, "scene")
    hrefs = {"blue": "B02.tif", "green": "B03.tif", "red": "B04.tif", "nir": "B08.tif", "scl": "SCL.tif"}
    add("s2", {"item.json": json.dumps(item("s2", hrefs)).encode(), "SCL.tif": image(2, 1), "q.json": b"{"},
        "scene", "unused", "metadata")  # fmt: skip
    both = [item("twice", {"all": "one.tif"}), item("twice", {"all": "other.tif"})]
    collection = json.dumps({"type": "FeatureCollection", "features": both}).encode()
    add("items", {"one.tif": image(3), "other.tif": image(4), "items.geojson": collection}, "scene", "refused", "scene")
    add("items", {"wrong.json": json.dumps(item("wrong", {"all": "right.tif"}, west=10)).encode()}, "refused")
    add("items", {"right.tif": image(5)}, "scene")
    partial = item("partial", {"red": "p_red.tif", "green": "p_green.tif", "blue": "p_lost.tif"})
    add("items", {"partial.json": json.dumps(partial).encode(), "p_red.tif": image(6, 1), "p_green.tif": image(6, 1)},
        "refused")  # fmt: skip
    add("z_again", {"rgb_copy.tif": image(0, dtype="uint8"), "masked.tif": image(7)}, "refused", "refused")
    add("disk2", {"linked.tif": image(8), "README": b"of the disk"}, "scene", "unknown")
    parts = "".join(
        f'<VRTRasterBand dataType="UInt16" band="{k}"><SimpleSource><SourceFilename relativeToVRT="1">{name}.tif'
        "</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
        for k, name in enumerate(("v_red", "v_nir"), 1)
    )
    size = '<VRTDataset rasterXSize="48" rasterYSize="40"><SRS>EPSG:32648</SRS><GeoTransform>'
    stack = f"{size}{EAST + 20000}, 8, 0, {NORTH}, 0, -8</GeoTransform>{parts}</VRTDataset>"
    add("vrt", {"stack.vrt": stack.encode(), "v_red.tif": image(10, 1), "v_nir.tif": image(10, 1)}, "scene")
    add("plain", {"all.vrt": stack.replace("v_red", "masked").replace("v_nir", "masked").encode()}, "mosaic")
    # other forms
    with_header, with_world = converted(image(11), "ENVI"), image(12, crs=None, transform=None)
    add("forms", {"line.dat": with_header["x"], "line.hdr": with_header["x.hdr"]}, "scene")
    world = "\n".join(map(str, (8, 0, 0, -8, EAST + 24004, NORTH - 4))).encode()
    add("forms", {"world.tif": with_world, "world.tfw": world, "world.prj": CRS(32648).to_wkt().encode()}, "scene")
    layers, lossless = converted(image(13, dtype="int16"), "netCDF")["x"], jp2(image_pixels(14), **place(14))
    add("forms", {"layers.nc": layers, "lossless.jp2": lossless}, "scene")
    add("forms", {"camera.tif": members()[f"{NAME}-MSS1.tiff"], "camera_RPC.TXT": rpc_text(camera()).encode()}, "scene")
    add("landsat", landsat(), "scene")
    (root / "sentinel").mkdir()
    write_zip(root / "sentinel" / f"{L2A}.zip", safe())
    roles[f"sentinel/{L2A}.zip"] = "scene"
    # no imagery
    add("masks", {"scene_udm2.tif": image(9, 8, "uint8"), "LC08_QA_PIXEL.TIF": image(9, 1), "T48_SCL.tif": image(9, 1),
                  "cloud_mask.tif": image(9, 1, "uint8"), "a_cloudmask.tif": image(9, 1, "uint8")}, "mask")  # fmt: skip
    add("maps", {"palette.tif": with_palette(classes(0)), "nlcd_2011_land_cover_l48_20210604.tif": classes(0),
                 "my_landcover.tif": classes(0)}, "classes", "land cover", "land cover")  # fmt: skip
    heights = {"srtm_58_07.tif": image(9, 1), "ASTGTMV003_N24E105_dem.tif": image(9, 1), "site_slope.tif": image(9, 1)}
    add("heights", heights, "elevation")
    add("heights", {"used.tif": tiff(np.full((1, 9, 9), 500, np.int16), crs="EPSG:4326",
                    transform=Affine(0.5, 0, 103, 0, -0.5, 27))}, "heights")  # fmt: skip
    add("pictures", {"scene_browse.tif": image(9, 3, "uint8"), "a_thumb.tif": image(9, 3, "uint8"), "map.png": b""},
        "preview")  # fmt: skip
    sheet = tiff(np.random.default_rng(0).choice([10, 20, 60], (1, 90, 90)).astype(np.uint8), crs="EPSG:32648",
                 transform=Affine(900, 0, EAST - 3e4, 0, -900, NORTH + 3e4))  # fmt: skip
    add("globeland30", {"n48_20_2020lc030.tif": sheet, "n48_20_2020lc030.tfw": b"900", "licence.txt": b"free"},
        "map", "georeference", "metadata")  # fmt: skip
    # own output
    tables = {"scenes.parquet": b"PAR1", "index.parquet/part-00000-of-00001.parquet": b"PAR1"}
    card = {"README.md": b"", "README-tiles.png": b"", "croissant.json": b"{}"}
    card["collection.json"] = b'{"type": "Collection", "stac_version": "1.1.0", "links": []}'
    add("dataset", {"build.jsonl": b"{}\n"} | tables | card, "own output")
    write_folder(root / "dataset/tiles.zarr/rgb/image", {"0.0": b"", "zarr.json": b"{}"})
    write_folder(root / "dataset/labels/globeland30_2020.zarr", {"zarr.json": b"{}"})
    roles |= {"dataset/tiles.zarr": "own output", "dataset/labels/globeland30_2020.zarr": "own output"}
    write_folder(root / "theirs.zarr", {"zarr.json": b"{}"})
    roles["theirs.zarr"] = "store"
    own = [s for one in find_deliveries([root / "plain"]) for s in read_delivery(one) if isinstance(s, Scene)]
    write_static_catalog(root / "stac", own)
    roles |= {"stac/catalog.json": "metadata"} | {f"stac/{s.id}/{s.id}.json": "own output" for s in own}
    # what cannot be used
    raw = members()[f"{NAME}-MSS1.tiff"]
    images = {"empty.tif": b"", "text.tif": b"no image", "cut.tif": image(9)[:300], "photo.tif": tiff(coordinates())}
    archives = {"empty.zip": b"", "noise.tar.gz": b"noise", "unsafe.tar": unsafe_tar()}
    add("broken", images | archives | {f"{NAMES[4]}-MSS1.tiff": raw}, "refused")
    write_zip(root / "broken" / "documents.zip", {"manual.pdf": b"%PDF"})
    roles["broken/documents.zip"] = "refused"
    # the rest
    for role, names in {
        "document": ("manual.pdf", "list.xlsx", "letter.docx"),
        "vectors": ("area.shp", "area.dbf", "area.shx", "area.kml"),
        "hidden": (".DS_Store", "Thumbs.db", ".scene.tif.part"),
        "archive": ("scene.rar", "scene.7z"),
        "metadata": ("area.geojson", "list.csv"),
        "program": ("run.py",),
        "model": ("weights.pt",),
        "unknown": ("notes", "a.xyz"),
    }.items():
        add("rest", dict.fromkeys(names, b"{}"), role)
    os.symlink(root / "disk2", root / "rest" / "disk")
    os.symlink(root / "gone.tif", root / "rest" / "gone.pdf")
    roles["rest/gone.pdf"] = "unreadable"
    return roles


@dataclass(frozen=True)
class Everything:
    """A folder with one of everything, built."""

    root: Path
    roles: dict[str, str]
    """Path below `in` -> role of the file."""
    printed: str

    @property
    def arguments(self) -> list[str]:
        scenes, heights = str(self.root / "in"), str(self.root / "in" / "heights" / "used.tif")
        cover, out = str(self.root / "in" / "globeland30"), str(self.root / "out")
        sizes = ["--tile", "16", "--stride", "16", "--workers", "1"]
        return ["--scenes", scenes, "--landcover", cover, "--dem", heights, "--out", out, *sizes]

    @property
    def account(self) -> dict[str, Given]:
        lines = read_account(self.root / "out")
        found = {str(Path(line.file).relative_to(self.root / "in")): line for line in lines}
        assert len(found) == len(lines)
        return found


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Everything:
    root = tmp_path_factory.mktemp("everything")
    roles = everything(root / "in")
    with redirect_stdout(io.StringIO()) as out:
        assert main(Everything(root, roles, "").arguments) == 0
    return Everything(root, roles, out.getvalue())


def test_a_folder_of_everything_is_one_command_in_whose_account_nothing_is_missing(given: Everything) -> None:
    assert len(given.roles) >= 60
    found = given.account
    assert {name: line.role for name, line in found.items()} == given.roles
    folder = given.root / "in"
    listed = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    assert {name for name in listed if ".zarr" not in name} == {name for name in found if not name.endswith(".zarr")}
    scenes = {name for line in found.values() if line.role == "scene" for name in line.of.split(", ")}
    in_folders = {"rgb", "masked", "s2", "twice", "right", "linked", "stack"}
    in_other_forms = {"line", "world", "layers", "lossless", "camera", LANDSAT, L2A}
    assert scenes == {*NAMES[:4]} | in_folders | in_other_forms
    assert scenes == {*list_scenes(given.root / "out" / "tiles.zarr")}
    refused = " ".join(entry["detail"] for entry in quarantine.read(given.root / "out"))
    assert all(line.reason in refused for line in found.values() if line.role == "refused")
    assert f"{len(found)} files: " in given.printed
    for role in {*given.roles.values()} - {*USED}:
        assert f" {role}" in given.printed


def test_a_line_of_the_account_names_what_was_read_or_why_nothing_was(given: Everything) -> None:
    said, folder = given.account, given.root / "in"
    assert said["plain/rgb.tif"] == Given(f"{folder}/plain/rgb.tif", "scene", "rgb")
    assert said["globeland30/n48_20_2020lc030.tif"].of == "globeland30_2020"
    assert "give it with --landcover" in said["maps/nlcd_2011_land_cover_l48_20210604.tif"].reason
    assert "another scene has the same name" in said["items/other.tif"].reason
    assert "already found in" in said["z_again/rgb_copy.tif"].reason
    assert "p_lost.tif" in said["items/partial.json"].reason
    assert "a band of " in said["items/p_red.tif"].reason
    assert said["rest/gone.pdf"].reason == "a link that leads nowhere"


def test_the_account_is_the_same_when_the_command_is_run_again(given: Everything) -> None:
    before = (given.root / "out" / "inputs.jsonl").read_bytes()
    assert main([*given.arguments, "--only", "catalog"]) == 0
    assert (given.root / "out" / "inputs.jsonl").read_bytes() == before


def test_a_dry_run_gives_the_same_account_and_refusals_and_writes_nothing(
    given: Everything, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*given.arguments[:-2], "--out", str(tmp_path / "out"), "--dry-run"]
    assert main([*arguments, "--strict"]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert not (tmp_path / "out").exists()
    account = given.printed[given.printed.index("inputs ") :].splitlines()
    assert lines[lines.index(account[0]) :][: len(account)] == account
    refused = {line.removeprefix("refused   ") for line in lines if line.startswith("refused ")}
    assert refused == {entry["detail"] for entry in quarantine.read(given.root / "out") if entry["stage"] == "catalog"}
    assert any(line.startswith("splits    of all tiles, ") for line in lines)


def test_a_dry_run_refuses_what_the_settings_cannot_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, given: Everything
) -> None:
    scene, cover = given.root / "in" / "plain" / "rgb.tif", given.root / "in" / "globeland30"
    arguments = ["--scenes", str(scene), "--landcover", str(cover), "--out", str(tmp_path / "out"), "--dry-run"]
    small = ["--tile", "16", "--stride", "16"]
    assert main([*arguments, *small, "--radiometry", "toa"]) == 2
    printed = capsys.readouterr()
    assert "refused   " in printed.out
    assert "reflectance needs the acquisition time" in printed.out
    assert "none of the scenes can be used" in printed.err
    assert main(arguments) == 2  # no tile of 256 px fits
    assert "no tile of 256 px at 8 m fits into the scene" in capsys.readouterr().out
    caplog.set_level("INFO")
    assert main([*arguments, *small]) == 0
    assert "split val has no tile" in capsys.readouterr().out
    assert "rgb: nothing says when it was taken" in caplog.text


@pytest.mark.parametrize("given_as_map", [True, False])
def test_a_map_among_the_scenes_is_told_on_the_terminal(
    tmp_path: Path, given_as_map: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """A map that lies among the scenes is a map if it is given as such, and otherwise named with the option."""
    folder, maps = tmp_path / "in", tmp_path / "maps"
    sheet = {"crs": "EPSG:32648", "transform": Affine(900, 0, EAST - 3e4, 0, -900, NORTH + 3e4)}
    content = tiff(np.random.default_rng(0).choice([10, 20, 60], (1, 90, 90)).astype(np.uint8), **sheet)
    name = "n48_20_2020lc030.tif"
    write_folder(folder, {"scene.tif": image(0, dtype="uint8"), name: content})
    write_folder(maps, {name: content})
    cover = folder if given_as_map else maps
    arguments = ["--scenes", str(folder), "--landcover", str(cover), "--tile", "16", "--stride", "16"]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    if given_as_map:
        assert "inputs            2 files: 1 in 1 scene, 1 in 1 map, 0 in nothing" in lines
    else:
        path = folder / name
        said = f"1 land cover, {path}: its name is that of a sheet of globeland30; give it with --landcover"
        assert f"{'':<18}{said}" in lines
