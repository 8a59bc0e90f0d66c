"""Class shares at the poles, across the antimeridian, and of sheets that are opened once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import shapely
from affine import Affine
from pyproj import Transformer

from geokr.landcover import shares as module
from geokr.landcover import sheets
from geokr.landcover.discovery import find_landcover
from geokr.landcover.outlines import LONLAT, POLE_MARGIN, project, project_rings, to_equal_area
from geokr.landcover.shares import compute_class_shares, select_sheets
from geokr.landcover.sheets import LandCover, open_sheet

Floats = npt.NDArray[np.float64]

CODES = (1, 7, 10, 11, 12, 13, 15, 16)
"""Of MODIS: of eight classes, so that each eighth of a turn has one of its own."""
POLAR = {"EPSG:3413": 90.0, "EPSG:5041": 90.0, "EPSG:3031": -90.0, "EPSG:5042": -90.0, "EPSG:32633": 90.0}


@pytest.fixture(scope="module")
def globe(tmp_path_factory: pytest.TempPathFactory) -> LandCover:
    """A map of the globe in cells of half a degree; its codes turn with longitude, eight of them in a circle."""
    path = tmp_path_factory.mktemp("globe") / "MCD12C1.A2020001.061.2022172062638.tif"
    cells = np.tile(np.repeat(np.array(CODES, np.uint8), 90), (360, 1))
    profile = {"driver": "GTiff", "height": 360, "width": 720, "count": 1, "dtype": "uint8", "crs": LONLAT}
    with rasterio.open(path, "w", **profile, transform=Affine(0.5, 0, -180, 0, -0.5, 90)) as file:
        file.write(cells, 1)
    (cover,) = find_landcover([path])
    return cover


def eighths(cover: LandCover, corners: Floats, crs: str) -> Floats:
    """The share of each eighth of a turn, from 180 degrees west on."""
    shares = compute_class_shares(corners[None], crs, cover)
    assert shares.known[0] == pytest.approx(1.0, abs=1e-9)
    order = [int(np.flatnonzero(row)[0]) for row in cover.legend.shares(CODES)]
    return np.asarray(shares.fraction[0, order])


def square(side: float, centre: tuple[float, float] = (0.0, 0.0), turn: float = 0.0) -> Floats:
    local = np.array([(-1, 1), (1, 1), (1, -1), (-1, -1)]) * side / 2
    spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.asarray(np.add(local @ spin, centre))


def pole(crs: str) -> Floats:
    return np.array(Transformer.from_crs(LONLAT, crs, always_xy=True).transform(0.0, POLAR[crs]))


@pytest.mark.parametrize("crs", POLAR)
@pytest.mark.parametrize("turn", [0.0, 0.3])
def test_a_footprint_around_a_pole_has_every_longitude_alike(globe: LandCover, crs: str, turn: float) -> None:
    found = eighths(globe, square(2_000.0, turn=turn) + pole(crs), crs)
    assert found == pytest.approx(np.roll(found, 2), abs=3e-6)  # a square is the same after a quarter of a turn
    assert found.min() > 0.1


@pytest.mark.parametrize("crs", ["EPSG:3413", "EPSG:5041", "EPSG:3031", "EPSG:5042"])
@pytest.mark.parametrize("centre", [(1000.0, 1000.0), (1000.0, -1000.0), (1000.0, 0.0), (0.0, 1000.0), (1000.0, 300.0)])
def test_a_footprint_with_a_pole_on_its_border_takes_its_side_of_the_turn(
    globe: LandCover, crs: str, centre: tuple[float, float]
) -> None:
    here = eighths(globe, square(2_000.0, centre) + pole(crs), crs)
    there = eighths(globe, square(2_000.0, (-centre[0], -centre[1])) + pole(crs), crs)
    assert here == pytest.approx(np.roll(there, 4), abs=1e-5)
    a, b = square(2_000.0, centre), square(2_000.0, (-centre[0], centre[1]))
    if centre[0] == 1000.0 and centre[1] == 0.0:  # the two halves make a whole around the pole
        halves = eighths(globe, a + pole(crs), crs) + eighths(globe, b + pole(crs), crs)
        assert halves == pytest.approx(np.roll(halves, 4), abs=1e-5)
        assert halves.sum() == pytest.approx(2.0, abs=1e-9)


@pytest.mark.parametrize("crs", ["EPSG:3413", "EPSG:3031"])
def test_an_outline_near_a_pole_has_the_area_of_the_footprint(crs: str) -> None:
    scale = None
    for x, y in [(0, 0), (256, 256), (256, 0), (300, 40), (1e-4, 256), (700, 900), (512 * POLE_MARGIN * 1.8, 0)]:
        corners = (square(512.0, (x, y)) + pole(crs))[None]
        polygon = shapely.Polygon(project_rings(corners, crs, LONLAT)[0])
        assert polygon.is_valid
        area = to_equal_area(np.array([polygon]))[0].area
        scale = scale or area
        assert area == pytest.approx(scale, rel=5e-6)  # the same ground, whether the pole is within, on an edge or not


def test_a_product_that_ends_before_the_pole_leaves_the_rest_unknown(globe: LandCover, tmp_path: Path) -> None:
    path = tmp_path / "DynamicWorld_2021.tif"
    profile = {"driver": "GTiff", "height": 10, "width": 720, "count": 1, "dtype": "uint8", "crs": LONLAT}
    with rasterio.open(path, "w", **profile, transform=Affine(0.5, 0, -180, 0, -0.01, 89.99)) as file:
        file.write(np.ones((10, 720), np.uint8), 1)
    (cover,) = find_landcover([path])
    corners = (square(4_000.0) + pole("EPSG:3413"))[None]
    shares = compute_class_shares(corners, "EPSG:3413", cover)
    disc = np.pi * 1117.0**2 * 0.9729  # 0.01 degrees around the pole, in the projection's plane, where scale is 0.97
    assert 1 - shares.known[0] == pytest.approx(disc / 4000.0**2, abs=0.12)
    assert 0 < shares.known[0] < 1


@pytest.mark.parametrize("target", ["EPSG:4258", "+proj=longlat +ellps=clrk66 +towgs84=-5,135,172 +type=crs"])
def test_longitudes_past_the_antimeridian_stay_there_on_another_datum(target: str) -> None:
    points = np.array([[(-181.0, 52.0), (179.999, 52.0), (180.001, 52.0), (181.0, 52.0)]])
    found, turn = project(points, LONLAT, target), np.array([360.0, 0.0])
    assert found == pytest.approx(points, abs=0.01)
    assert found == pytest.approx(project(points - turn, LONLAT, target) + turn, abs=1e-9)


# --- which sheets lie near


@pytest.fixture(scope="module")
def ring_of_sheets(tmp_path_factory: pytest.TempPathFactory) -> LandCover:
    """Sheets of 3 degrees on both sides of the antimeridian and elsewhere."""
    folder = tmp_path_factory.mktemp("ring")
    profile = {"driver": "GTiff", "height": 30, "width": 30, "count": 1, "dtype": "uint8", "crs": LONLAT}
    for name, west in (("E174", 174), ("E177", 177), ("W180", -180), ("W177", -177), ("E000", 0)):
        path = folder / f"ESA_WorldCover_10m_2020_v100_N66{name}_Map.tif"
        with rasterio.open(path, "w", **profile, transform=Affine(0.1, 0, west, 0, -0.1, 69)) as file:
            file.write(np.full((30, 30), 10, np.uint8), 1)
    (cover,) = find_landcover([folder])
    return cover


@pytest.mark.parametrize("zone", [32660, 32601])
def test_sheets_beyond_the_antimeridian_are_near(ring_of_sheets: LandCover, zone: int) -> None:
    crs = f"EPSG:{zone}"
    x, y = Transformer.from_crs(LONLAT, crs, always_xy=True).transform(180.0, 67.5)
    across = square(20_000.0, (x, y))[None]
    names = {Path(sheet.path).name[29:36] for sheet in select_sheets(across, crs, ring_of_sheets).sheets}
    assert names == {"N66E177", "N66W180"}
    assert compute_class_shares(across, crs, ring_of_sheets).known == pytest.approx([1.0], abs=1e-9)
    alone = select_sheets(across, crs, ring_of_sheets)
    assert np.array_equal(
        compute_class_shares(across, crs, alone).known, compute_class_shares(across, crs, ring_of_sheets).known
    )


def test_footprints_in_degrees_may_go_on_past_the_antimeridian(ring_of_sheets: LandCover) -> None:
    corners = np.array([[(179.9, 67.1), (180.1, 67.1), (180.1, 67.0), (179.9, 67.0)]])
    for turn in (0.0, -360.0):
        assert compute_class_shares(np.add(corners, [turn, 0.0]), LONLAT, ring_of_sheets).known == pytest.approx(
            [1.0], abs=1e-9
        )


def test_nothing_is_near_to_far_sheets(ring_of_sheets: LandCover) -> None:
    assert (
        select_sheets(np.array([[(20.0, 1.0), (21.0, 1.0), (21.0, 0.0), (20.0, 0.0)]]), LONLAT, ring_of_sheets).sheets
        == ()
    )


def test_a_footprint_at_the_rim_of_the_sinusoidal_grid_is_cut_there(tmp_path: Path) -> None:
    crs = "+proj=sinu +lon_0=0 +x_0=0 +y_0=0 +R=6371007.181 +units=m +no_defs"
    side, cells = 1_111_950.519667, 240
    for h, code in ((0, 1), (35, 12)):
        name = f"MCD12Q1.A2020001.h{h:02d}v08.061.2022169160720_LC_Type1.tif"
        profile = {"driver": "GTiff", "height": cells, "width": cells, "count": 1, "dtype": "uint8", "crs": crs}
        transform = Affine(side / cells, 0, side * (h - 18), 0, -side / cells, side)
        with rasterio.open(tmp_path / name, "w", **profile, transform=transform) as file:
            file.write(np.full((cells, cells), code, np.uint8), 1)
    (cover,) = find_landcover([tmp_path])
    x, y = Transformer.from_crs(LONLAT, "EPSG:32601", always_xy=True).transform(180.0, 4.0)
    shares = compute_class_shares(square(8_000.0, (x, y))[None], "EPSG:32601", cover)
    assert shares.known == pytest.approx([1.0], abs=1e-6)
    for name in ("forest", "cultivated"):  # beyond the rim and before it
        assert shares.fraction[0, cover.legend.classes.index(name)] == pytest.approx(0.5, abs=1e-3)


# --- reading


@pytest.fixture
def fresh() -> Iterator[None]:
    open_sheet.cache_clear()
    yield
    open_sheet.cache_clear()


def blocks(cover: LandCover, count: int) -> list[Floats]:
    return [np.array([[(x, 10.0), (x + 0.4, 10.0), (x + 0.4, 9.7), (x, 9.7)]]) for x in np.linspace(-170, 170, count)]


@pytest.mark.usefixtures("fresh")
def test_a_sheet_is_opened_once_by_a_worker(globe: LandCover, monkeypatch: pytest.MonkeyPatch) -> None:
    count: list[str] = []
    real = rasterio.open

    def counted(path: str) -> object:
        count.append(path)
        return real(path)

    monkeypatch.setattr(rasterio, "open", counted)
    for corners in blocks(globe, 20):
        compute_class_shares(corners, LONLAT, globe)
    assert len(count) == 1


@pytest.mark.usefixtures("fresh")
def test_threads_share_no_open_sheet_and_agree(globe: LandCover) -> None:
    wanted = [compute_class_shares(corners, LONLAT, globe).fraction for corners in blocks(globe, 60)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda corners: compute_class_shares(corners, LONLAT, globe).fraction, blocks(globe, 60)))
    assert all(np.array_equal(a, b) for a, b in zip(wanted, found, strict=True))
    assert open_sheet.cache_info().currsize > 1


@pytest.mark.usefixtures("fresh")
def test_a_sheet_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "DynamicWorld_2021.tif"
    profile = {"driver": "GTiff", "height": 9, "width": 9, "count": 1, "dtype": "uint8", "crs": LONLAT}
    inside = np.array([[(100.1, 19.9), (100.3, 19.9), (100.3, 19.8), (100.1, 19.8)]])
    for code, name in ((1, "forest"), (0, "water")):
        with rasterio.open(path, "w", **profile, transform=Affine(0.1, 0, 100, 0, -0.1, 20)) as file:
            file.write(np.full((9, 9), code, np.uint8), 1)
        (cover,) = find_landcover([path])
        shares = compute_class_shares(inside, LONLAT, cover)
        assert shares.fraction[0, cover.legend.classes.index(name)] == pytest.approx(1.0, abs=1e-12)


def test_a_window_too_large_is_read_in_parts(globe: LandCover, monkeypatch: pytest.MonkeyPatch) -> None:
    corners = np.concatenate(blocks(globe, 9))
    whole = compute_class_shares(corners, LONLAT, globe)
    sizes: list[float] = []
    read = sheets.read_cells

    def watched(sheet: object, window: object) -> object:
        sizes.append(window.width * window.height)  # type: ignore[attr-defined]
        return read(sheet, window)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "read_cells", watched)
    monkeypatch.setattr(module, "LARGEST_WINDOW", 100)
    parts = compute_class_shares(corners, LONLAT, globe)
    assert max(sizes) <= 100
    assert np.array_equal(parts.fraction, whole.fraction)
    assert np.array_equal(parts.known, whole.known)


def test_of_a_band_of_years_each_is_read_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "GLC_FCS30D_19852000_E100N25_5years_V1.1.tif"
    profile = {"driver": "GTiff", "height": 9, "width": 9, "count": 3, "dtype": "uint8", "crs": LONLAT}
    with rasterio.open(path, "w", **profile, transform=Affine(0.1, 0, 101, 0, -0.1, 24)) as file:
        for band, code in enumerate((10, 52, 210), start=1):
            file.write(np.full((9, 9), code, np.uint8), band)
    inside = np.array([[(101.1, 23.9), (101.3, 23.9), (101.3, 23.8), (101.1, 23.8)]])
    covers = find_landcover([path])
    classes = covers[0].legend.classes
    largest = [classes[int(compute_class_shares(inside, LONLAT, cover).fraction.argmax())] for cover in covers]
    assert [(cover.year, name) for cover, name in zip(covers, largest, strict=True)] == [
        (1985, "cultivated"),
        (1990, "forest"),
        (1995, "water"),
    ]
    assert compute_class_shares(inside, LONLAT, replace(covers[0], sheets=())).known.tolist() == [0.0]
