"""The shift of a scene against a reference, where it is known: the same ground, placed elsewhere on purpose."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from affine import Affine
from PIL import Image as Picture

from pipeline.geocheck import main, measure_shift, measure_shifts, read_one_scene
from pipeline.geometry.terrain import Terrain
from pipeline.imaging.ortho import orthorectify
from tests.deliveries import GSD, camera, image_of, rpb, tiff, write_folder, xml
from tests.pipeline.imaging.test_ortho import CRS, EAST, FLAT, NORTH, area

SIDE = 400


def ground(side: int = SIDE, seed: int = 4) -> npt.NDArray[Any]:
    """Texture of many sizes: (2, side, side) uint16."""
    rng = np.random.default_rng(seed)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    f[0, 0] = np.inf
    fields = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(side, side))) / f**1.2).real for _ in range(2)]
    return np.stack([1000 + 200 * (field - field.mean()) / field.std() for field in fields]).clip(1, 4000).astype("u2")


def placed(path: Path, pixels: npt.NDArray[Any], east: float = 0.0, north: float = 0.0, gsd: float = GSD) -> str:
    side = SIDE * GSD / 2
    path.write_bytes(tiff(pixels, crs=CRS, transform=Affine(gsd, 0, EAST - side + east, 0, -gsd, NORTH + side + north)))
    return str(path)


@pytest.mark.parametrize(("east", "north"), [(29.6, -17.6), (-3.2, 4.4)])
def test_a_known_shift_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str], east: float, north: float) -> None:
    pixels = ground()
    scene = placed(tmp_path / "scene.tif", pixels, east, north)
    reference = placed(tmp_path / "reference.tif", pixels)
    found = measure_shifts(read_one_scene(scene), read_one_scene(reference), Terrain(None, 0.0), chip=128, across=5)
    assert len(found.moved) >= 20
    assert np.median(found.moved, axis=0) == pytest.approx((east, north), abs=0.1 * GSD)
    assert np.percentile(np.abs(found.moved - [east, north]), 90) < 0.2 * GSD
    arguments = [
        scene,
        "--reference",
        reference,
        "--chip",
        "128",
        "--across",
        "5",
        "--picture",
        str(tmp_path / "arrows.png"),
    ]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert f"of {found.chips} chips, 8 m a pixel, {CRS}" in printed
    assert "median shift" in printed
    assert "90 %" in printed
    with Picture.open(tmp_path / "arrows.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5


def test_a_raw_scene_is_held_against_a_coarser_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The camera's own offset moved by 3 columns: 24 m along its rows."""
    stem = "GF1_PMS1_E105.3_N24.8_20200523_L1A0001234567-MSS1"
    model = camera(SIDE, SIDE, heading=0.0)
    fields = {"Bands": None, "CenterTime": "2020-05-23 05:03:08", "ImageGSD": GSD}
    wrong = rpb(replace(model, samp_off=model.samp_off - 3))
    files = {f"{stem}.tiff": tiff(ground()), f"{stem}.rpb": wrong.encode(), f"{stem}.xml": xml(fields).encode()}
    write_folder(tmp_path / "raw", files)
    right = image_of(tmp_path / "right.tif", ground(), model)
    geobox = area(190, 190, 16.0)
    pixels = orthorectify(geobox, right, FLAT).pixels
    (tmp_path / "map.tif").write_bytes(tiff(np.moveaxis(pixels, -1, 0), crs=CRS, transform=geobox.transform))
    found = measure_shifts(
        read_one_scene(str(tmp_path / "raw")), read_one_scene(str(tmp_path / "map.tif")), FLAT, chip=64, across=5
    )
    assert found.gsd == pytest.approx(16.0, abs=0.01)
    east, north = np.median(found.moved, axis=0)
    assert east == pytest.approx(24.0, abs=2.0)
    assert north == pytest.approx(0.0, abs=2.0)
    assert main([str(tmp_path / "raw"), "--reference", str(tmp_path / "raw")]) == 2
    assert "the reference must be georeferenced" in capsys.readouterr().err


def test_pictures_of_nothing_in_common_tell_no_shift(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = placed(tmp_path / "scene.tif", ground(seed=1))
    reference = placed(
        tmp_path / "reference.tif", np.random.default_rng(0).integers(1, 999, (2, SIDE, SIDE), np.uint16)
    )
    assert main([scene, "--reference", reference, "--chip", "128", "--across", "3"]) == 1
    assert "chips agrees with the reference well enough" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["gone.tif", "--reference", "reference.tif"], "gone.tif"),
        (["reference.tif", "--reference", "far.tif"], "the reference does not overlap"),
        (["empty", "--reference", "reference.tif"], "empty: contains no image"),
        ([".", "--reference", "reference.tif"], "contains 2 scenes; name one of them"),
        (
            ["reference.tif", "--reference", "reference.tif", "--chip", "8"],
            "--chip must be at least 32 px and --across at least 1, got 8 px",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    sentence: str,
) -> None:
    placed(tmp_path / "reference.tif", ground())
    placed(tmp_path / "far.tif", ground(), east=100_000)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(("right", "down"), [(5, 0), (0, -7), (11, 4)])
def test_a_shift_has_its_sign(right: int, down: int) -> None:
    """The second picture lies to the right of and below the first."""
    pixels = ground()[0].astype(np.float32)
    first, second = pixels[100:228, 100:228], pixels[100 - down : 228 - down, 100 - right : 228 - right]
    found = measure_shift(first - first.mean(), second - second.mean())
    assert found == pytest.approx((right, down), abs=0.2)
