"""Scenes with a file a band, under the names that a user gives their files."""

from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from geokr.settings import ConfigError
from pipeline.config import read_config
from pipeline.scenes.delivery import Refusal, read_delivery
from pipeline.scenes.discovery import take_inventory
from pipeline.scenes.products import make_readers
from pipeline.scenes.raster import read_image
from pipeline.scenes.scene import Scene
from tests.deliveries import tiff, write_archive, write_folder

VALUES = {"blue": 10, "green": 20, "red": 30, "nir": 40}


def write(folder: Path, names: dict[str, str], *, packed: bool = False) -> None:
    """Write one-band images. names: band -> file name. The pixels of each are its band's in VALUES, where it is one."""
    files = {}
    for band, name in names.items():
        pixels = np.full((1, 20, 30), VALUES.get(band, 1), np.uint16)
        files[name] = tiff(pixels, crs="EPSG:32632", transform=Affine(10, 0, 300000, 0, -10, 30000))
    if packed:
        folder.mkdir()
        write_archive(folder / "a.tar", files)
    else:
        write_folder(folder, files)


def read(folder: Path, pattern: str, bands: tuple[str, ...] = ("blue", "green", "red", "nir")) -> list[Scene | Refusal]:
    inventory = take_inventory([folder], make_readers(pattern))
    return [got for d in inventory.deliveries for got in read_delivery(d, bands=bands, band_files=pattern)]


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        (r"(?P<scene>.+)_(?P<band>[a-z]+)\.tif", "x 2020_06_{}.tif"),
        (r"(?P<band>[a-z]+)-(?P<scene>.+)_v2\.TIF", "{}-x 2020_06_v2.tif"),
        (r".+_(?P<band>[a-z]+)\.tif", "x 2020_06_{}.tif"),
        (r"(?P<scene>x 2020_06).*_(?P<band>[A-Z]+)[.].*", "x 2020_06_T1_{}.tif"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_images_of_one_name_but_the_band_are_one_scene(tmp_path: Path, pattern: str, name: str, packed: bool) -> None:
    write(tmp_path / "in", {band: name.format(band) for band in (*VALUES, "qa")}, packed=packed)
    (scene,) = read(tmp_path / "in", pattern)
    assert isinstance(scene, Scene)
    assert (scene.id, scene.bands) == ("x 2020_06", tuple(VALUES))
    assert [int(read_image(image)[0].mean()) for image in scene.images] == [*VALUES.values()]
    assert all(image.nodata is None for image in scene.images)


def test_scenes_of_one_folder_are_told_apart_and_other_images_are_scenes_of_their_own(tmp_path: Path) -> None:
    for scene in ("a", "b"):
        write(tmp_path, {band: f"{scene}.{band}.tif" for band in VALUES})
        write(tmp_path / "below", {band: f"{scene}.{band}.tif" for band in VALUES})
    write(tmp_path, {"red": "other.tif"})
    pattern = r"(?P<scene>\w)\.(?P<band>\w+)\.tif"
    found = [scene for scene in read(tmp_path, pattern) if isinstance(scene, Scene)]
    assert sorted(len(scene.images) for scene in found) == [1, 4, 4, 4, 4]
    assert len(read(tmp_path, "")) == 17


def test_bands_are_named_by_the_setting_or_by_the_sensor(tmp_path: Path) -> None:
    names = dict(zip(("blue", "green", "red", "nir"), ("B02", "B03", "B04", "B08"), strict=True))
    pattern = r"(?P<scene>.+)_(?P<band>B\d+)\.tif"
    write(tmp_path / "s2", {band: f"S2A_mine_{name}.tif" for band, name in names.items()})
    write(tmp_path / "any", {band: f"mine_{name}.tif" for band, name in names.items()})
    (scene,) = read(tmp_path / "s2", pattern)
    assert isinstance(scene, Scene)
    assert scene.bands == tuple(VALUES)
    (scene,) = read(tmp_path / "any", pattern, ("red=B04", "nir=b08", "B02"))
    assert isinstance(scene, Scene)
    assert scene.bands == ("red", "nir", "B02")
    (refusal,) = read(tmp_path / "any", pattern)
    assert isinstance(refusal, Refusal)
    assert "none of the bands blue, green, red, nir; its own are B02, B03, B04, B08, which" in refusal.detail


@pytest.mark.parametrize(
    ("pattern", "fault"), [("(?P<band>", "is not a regular expression"), (r"(\w+)\.tif", "has no group (?P<band>...)")]
)
def test_a_pattern_that_is_none_is_refused(pattern: str, fault: str) -> None:
    with pytest.raises(ConfigError, match="band_files") as refusal:
        read_config(None, {"scenes": ["a"], "out": "b", "band_files": pattern})
    assert fault in str(refusal.value)
