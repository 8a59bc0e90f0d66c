"""What the command stores with each radiometry and imagery, against the digital numbers that it stores with `dn`."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from affine import Affine
from pyproj import Transformer

from geokr.dataset import contents, layout, store
from pipeline.build_levir_kr import main
from tests.deliveries import LAT, LON, NAME, members, pair, tiff, write_folder

GAIN, OFFSET, IRRADIANCE = 0.2, 1.5, {"blue": 1945, "green": 1854, "red": 1543, "nir": 1081}


def build(folder: Path, name: str, *options: str) -> zarr.Group:
    """The tiles of the one scene in a folder, over forest throughout."""
    (folder / "map").mkdir(exist_ok=True)
    x, y = Transformer.from_crs(4326, 32648, always_xy=True).transform(LON, LAT)
    place = Affine(30, 0, x - 3000, 0, -30, y + 3000)
    sheet = tiff(np.full((1, 200, 200), 20, np.uint8), crs="EPSG:32648", transform=place)
    (folder / "map" / "n48_20_2020lc030.tif").write_bytes(sheet)
    common = ["--scenes", str(folder / "scenes"), "--landcover", str(folder / "map"), "--out", str(folder / name)]
    assert main([*common, "--tile", "32", "--stride", "24", "--workers", "1", *options]) == 0
    return store.open_scene(str(folder / name / layout.TILES), NAME)


def accepted(group: zarr.Group) -> npt.NDArray[np.float64]:
    """(tile, band, y, x)."""
    keep = contents.read_status(group) == layout.ACCEPTED
    assert keep.any()
    return np.asarray(group["image"][:], np.float64)[keep]  # type: ignore[index]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    by_day = {"2020-05-22 21:02:53": "2020-05-23 03:32:53", "2020-05-23 05:03:08": "2020-05-23 11:33:08"}
    files = members()
    for then, now in by_day.items():
        files = {name: data.replace(then.encode(), now.encode()) for name, data in files.items()}
    write_folder(tmp_path / "scenes", files)
    return tmp_path


def test_reflectance_follows_from_the_digital_numbers(folder: Path) -> None:
    """By the formula written out; the Sun's place by an almanac of a few lines, to a degree."""
    table = folder / "coefficients.csv"
    rows = [f"GF1,PMS1,2020,{band},{GAIN},{OFFSET},{e}" for band, e in IRRADIANCE.items()]
    table.write_text("\n".join(["satellite,sensor,year,band,gain,offset,irradiance", *rows]))
    numbers = build(folder, "dn", "--radiometry", "dn")
    reflectance = build(folder, "toa", "--radiometry", "toa", "--coefficients", str(table))
    said = dict(reflectance.attrs["radiometry"])  # type: ignore[call-overload]
    day, hours = 144, 3 + 33 / 60  # 23 May, 11:33 by the clocks of Beijing
    assert numbers["image"].dtype == reflectance["image"].dtype == np.uint16
    assert np.array_equal(contents.read_status(numbers), contents.read_status(reflectance))
    radiance = GAIN * accepted(numbers) + OFFSET
    sunlight = np.array([*IRRADIANCE.values()])[:, None, None] / said["earth_sun_distance"] ** 2
    wanted = math.pi * radiance / (sunlight * math.cos(math.radians(said["solar_zenith"])))
    assert np.abs(accepted(reflectance) * said["scale_factor"] - wanted).max() <= 0.5e-4 + 1e-9
    assert said["earth_sun_distance"] == pytest.approx(
        1 - 0.0167 * math.cos(2 * math.pi * (day - 4) / 365.25), abs=1e-3
    )
    tilt = math.radians(23.44 * math.sin(2 * math.pi * (day - 81) / 365.25))
    hour = math.radians(15 * (hours + LON / 15 - 12))
    high = math.sin(math.radians(LAT)) * math.sin(tilt) + math.cos(math.radians(LAT)) * math.cos(tilt) * math.cos(hour)
    assert said["solar_zenith"] == pytest.approx(90 - math.degrees(math.asin(high)), abs=2)


@pytest.mark.parametrize("kind", ["percentile", "percentile-per-band"])
def test_stretched_pixels_turn_back_into_the_digital_numbers(folder: Path, kind: str) -> None:
    numbers, stretched = build(folder, "dn", "--radiometry", "dn"), build(folder, kind, "--radiometry", kind)
    said = dict(stretched.attrs["radiometry"])  # type: ignore[call-overload]
    low, high = (np.array(said[name])[:, None, None] for name in ("low", "high"))
    assert stretched["image"].dtype == np.uint8
    for name in ("status", "cloud"):  # tiles are judged alike, whatever is stored of them
        assert np.array_equal(numbers[name][:], stretched[name][:], equal_nan=True)  # type: ignore[index]
    assert (len(set(said["high"])) > 1) == (kind == "percentile-per-band")
    back, wanted = low + accepted(stretched) * (high - low) / 255, np.clip(accepted(numbers), low, high)
    assert (np.abs(back - wanted) <= (high - low) / 255 / 2 + 1e-9).all()


def test_the_weighted_mean_of_sharpened_bands_is_the_panchromatic_image(tmp_path: Path) -> None:
    write_folder(tmp_path / "scenes", pair(NAME, "MSS1", "PAN1"))
    params = tmp_path / "params.yaml"
    weights = [0.1, 0.2, 0.3, 0.4]
    params.write_text(
        f"build:\n  survey: {{pansharpen_weights: {weights}}}\n  tiles: {{rules: {{dark_level: 1, flat_range: 0}}}}\n"
    )
    options = ["--radiometry", "dn", "--params", str(params)]
    pan = build(tmp_path, "pan", "--imagery", "pan", *options)
    sharp = build(tmp_path, "sharp", "--imagery", "pansharpened", *options)
    coarse = build(tmp_path, "mss", *options)
    assert [group.attrs["gsd"] for group in (pan, sharp, coarse)] == [2.0, 2.0, 8.0]
    assert pan.attrs["spatial:transform"] == sharp.attrs["spatial:transform"]
    both = (contents.read_status(pan) == layout.ACCEPTED) & (contents.read_status(sharp) == layout.ACCEPTED)
    assert both.sum() > 20
    one, four = (np.asarray(group["image"][:], np.float64)[both] for group in (pan, sharp))  # type: ignore[index]
    assert (one.shape[1], four.shape[1]) == (1, 4)
    assert np.abs(np.tensordot(four, weights, (1, 0)) - one[:, 0]).max() <= 0.5 + 1e-9


def test_a_scene_is_ten_objects_and_a_block_up_to_eight(folder: Path) -> None:
    """What a bucket has to hold grows with blocks, not with tiles."""
    (folder / "params.yaml").write_text("build: {grid: {block: 2}}")
    build(folder, "counted", "--params", str(folder / "params.yaml"))
    stores = [folder / "counted" / layout.TILES, folder / "counted" / layout.label_store("globeland30_2020")]
    files = [path for root in stores for path in (root / NAME).rglob("*") if path.is_file()]
    metadata = [path for path in files if path.name == "zarr.json"]
    assert len(metadata) == 10
    status = contents.read_status(store.open_scene(str(stores[0]), NAME))
    blocks = [status[i : i + 2, j : j + 2] for i in range(0, len(status), 2) for j in range(0, status.shape[1], 2)]
    shards = sum((block == layout.ACCEPTED).any() for block in blocks)
    assert 0 < shards
    assert len(files) == 10 + 7 * len(blocks) + shards
