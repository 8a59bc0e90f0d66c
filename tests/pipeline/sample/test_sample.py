"""The sample world: its files agree with its closed forms, and are the same every time."""

import hashlib
import json
import tarfile
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.errors import NotGeoreferencedWarning

from geokr.crs import transformer
from pipeline.sample.__main__ import main
from pipeline.sample.camera import Camera, fit_rpc, render
from pipeline.sample.files import SHOTS, make_view, surrounding_box, write_dem, write_world
from pipeline.sample.level1a import find_height_range, rpb_text, tiff_bytes, write_delivery, xml_text
from pipeline.sample.world import CENTRE, CODES, CRS, LAKE, SPECTRA, World
from pipeline.scenes.gaofen import parse_name, parse_rpb, parse_xml

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

SMALL = tuple(replace(shot, camera=replace(shot.camera, width=130, height=160)) for shot in SHOTS)


def tree(root: Path) -> dict[str, str]:
    return {
        p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


def places(count: int = 400, reach: float = 9000.0):
    """A lattice of places about the centre, m, off every round number."""
    e, n = np.linspace(-reach, reach, count) + 1.7, np.linspace(-reach, reach, count + 3) - 2.3
    return np.meshgrid(e + CENTRE[0], n + CENTRE[1])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("world")
    write_world(path, seed=5, shots=SMALL)
    return path


cameras = st.builds(
    Camera,
    crs=st.just(CRS),
    east=st.floats(400_000, 480_000),
    north=st.floats(2_700_000, 2_800_000),
    up=st.floats(-100, 4000),
    altitude=st.floats(450_000, 700_000),
    heading=st.floats(0, 360),
    roll=st.floats(-35, 35),
    pitch=st.floats(-10, 10),
    gsd=st.floats(0.8, 32),
    width=st.integers(2, 12_000),
    height=st.integers(2, 12_000),
)


# --- the camera -------------------------------------------------------------------------------------------


@given(cameras, st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_image_of_ground_is_the_pixel(camera, seed):
    rng = np.random.default_rng(seed)
    col, row = rng.uniform(-20, camera.width + 20, 50), rng.uniform(-20, camera.height + 20, 50)
    height = camera.up + rng.uniform(-2000, 2000, 50)
    back = camera.image(*camera.ground(col, row, height), height)
    assert np.abs(np.stack(back) - [col, row]).max() < 1e-6


@given(cameras)
@settings(max_examples=60, deadline=None)
def test_centre_of_the_image_shows_its_point_at_its_gsd_unmirrored(camera):
    col, row = camera.width / 2 + np.array([0.0, 0.5, -0.5, 0, 0]), camera.height / 2 + np.array([0, 0, 0, 0.5, -0.5])
    e, n = camera.locate(col, row, np.full(5, camera.up))
    assert (e[0], n[0]) == pytest.approx((camera.east, camera.north), abs=1e-6)
    across, along = np.array([e[1] - e[2], n[1] - n[2]]), np.array([e[3] - e[4], n[3] - n[4]])
    assert np.hypot(*across) == pytest.approx(camera.gsd, rel=1e-6)
    assert np.hypot(*along) == pytest.approx(camera.gsd, rel=1e-6)
    heading = np.radians(camera.heading)
    np.testing.assert_allclose(along / camera.gsd, [np.sin(heading), np.cos(heading)], atol=1e-6)
    # From column to row is a right turn on the ground, as on a screen.
    assert across[0] * along[1] - across[1] * along[0] < 0


@pytest.mark.parametrize("roll", [-20.0, 20.0])
def test_higher_ground_leans_away_from_the_platform(roll):
    camera = replace(SHOTS[0].camera, roll=roll, pitch=0.0)
    low, high = (camera.project(camera.east, camera.north, np.array(camera.up + h)) for h in (0.0, 1000.0))
    # A tower of 1000 m, seen at 20 degrees from the vertical, covers 1000 tan 20 m of the ground behind it.
    lean = np.sign(roll) * 1000 * np.tan(np.radians(20)) / camera.gsd
    assert high[0] - low[0] == pytest.approx(lean, rel=0.01)
    assert high[1] == pytest.approx(low[1], abs=1e-6)


@pytest.mark.parametrize("shot", SHOTS, ids=lambda shot: shot.image)
def test_views_meet_the_terrain(shot):
    world, camera = World.from_seed(1), shot.camera
    col, row = np.meshgrid(np.linspace(0, camera.width, 70), np.linspace(0, camera.height, 50))
    e, n, height = camera.meet(col, row, world.height)
    assert np.abs(height - world.height(e, n)).max() < 1e-6
    assert np.abs(np.stack(camera.project(e, n, height)) - [col, row]).max() < 1e-6


def test_ground_steeper_than_the_view_is_refused():
    # Looking east, at the face of a cliff.
    camera = replace(SHOTS[0].camera, heading=180.0, roll=14.0, pitch=0.0, up=1500.0)
    with pytest.raises(ValueError, match="steeper than the view"):
        camera.meet(np.array(camera.width / 2), np.array(9.0), lambda e, n: np.where(e > camera.east, 2000.0, 1000.0))


@pytest.mark.parametrize("shot", SHOTS, ids=lambda shot: shot.image)
def test_rpc_fits_the_camera_within_a_hundredth_of_a_pixel(shot):
    camera, rng = shot.camera, np.random.default_rng(3)
    rpc = fit_rpc(camera, 800.0, 2300.0)
    col, row = rng.uniform(-30, camera.width + 30, 30_000), rng.uniform(-30, camera.height + 30, 30_000)
    height = rng.uniform(800, 2300, col.size)
    lon, lat = camera.ground(col, row, height)
    assert np.abs(np.stack(rpc.image(lon, lat, height)) - [col, row]).max() < 0.01
    read = parse_rpb(rpb_text(rpc))
    assert np.abs(np.stack(read.image(lon, lat, height)) - [col, row]).max() < 0.01
    # Where the RPC meets no ground in the image it must not go astray either: no pole in its box.
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, 9)] * 3)
    box = rpc.lon_off + x * rpc.lon_scale, rpc.lat_off + y * rpc.lat_scale, rpc.height_off + z * rpc.height_scale
    assert np.abs(np.stack(rpc.image(*box)) - np.stack(camera.image(*box))).max() < 0.01


@pytest.mark.parametrize("supersample", [1, 2, 3])
def test_rendered_coordinates_are_those_of_pixel_centres(supersample):
    world, camera = World.from_seed(2), replace(SHOTS[3].camera, width=75, height=70)
    image = render(camera, world.height, lambda e, n, height: np.stack([e, n, height]), supersample)
    col, row = np.meshgrid(np.arange(75) + 0.5, np.arange(70) + 0.5)
    truth = np.stack(camera.meet(col, row, world.height))
    assert image.shape == (3, 70, 75)
    assert np.abs(image - truth).max() < 1e-6


def test_supersampling_is_the_mean_over_the_pixel():
    camera = replace(SHOTS[0].camera, width=40, height=50, heading=0.0, roll=0.0, pitch=0.0)
    level, edge = camera.up, camera.north + 3.0  # 3/8 of a pixel beyond the border between rows 24 and 25
    image = render(camera, lambda e, n: np.full(np.shape(e), level), lambda e, n, h: (n > edge)[None] * 1.0, 8)
    assert image[0, :, 20] == pytest.approx([0] * 25 + [5 / 8] + [1] * 24)


# --- the world --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_every_scene_has_relief(seed):
    world = World.from_seed(seed)
    assert min(np.ptp(find_height_range(shot.camera, world.height)) for shot in SHOTS) >= 500


def test_slope_is_the_derivative_of_height():
    world, (e, n) = World.from_seed(0), places(30)
    east, north = world.slope(e, n)
    np.testing.assert_allclose(east, (world.height(e + 0.5, n) - world.height(e - 0.5, n)), atol=1e-6)
    np.testing.assert_allclose(north, (world.height(e, n + 0.5) - world.height(e, n - 0.5)), atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_dem_interpolates_to_the_terrain(seed, tmp_path):
    world, box = World.from_seed(seed), (433_000.0, 2_760_000.0, 446_000.0, 2_770_000.0)
    write_dem(tmp_path / "dem.tif", world, box)
    rng = np.random.default_rng(seed)
    e, n = rng.uniform(box[0], box[2], 50_000), rng.uniform(box[1] + 40, box[3] - 40, 50_000)
    lon, lat = transformer(CRS, "EPSG:4326").transform(e, n)
    with rasterio.open(tmp_path / "dem.tif") as dem:
        assert (dem.crs.to_epsg(), dem.dtypes[0], dem.res[0]) == (4326, "float32", pytest.approx(1 / 3600))
        t = dem.transform
        col, row = (lon - t.c) / t.a, (lat - t.f) / t.e
        cells = dem.read(1).astype(float)
    j, i = np.floor(col - 0.5).astype(int), np.floor(row - 0.5).astype(int)
    x, y = col - 0.5 - j, row - 0.5 - i
    found = (cells[i, j] * (1 - x) + cells[i, j + 1] * x) * (1 - y)
    found += (cells[i + 1, j] * (1 - x) + cells[i + 1, j + 1] * x) * y
    assert np.abs(found - world.height(e, n)).max() < 0.1


@pytest.mark.parametrize("seed", range(3))
def test_land_cover_holds_every_class_and_varies_over_kilometres(seed):
    world, (e, n) = World.from_seed(seed), places()
    cover = world.cover(e, n)
    shares = [float((cover == code).mean()) for code in sorted(set(CODES.tolist()))]
    assert set(np.unique(cover)) == set(CODES)
    assert min(shares) > 0.03
    assert max(shares) < 0.3
    same = [(cover == world.cover(e + distance, n)).mean() for distance in (10.0, 500.0, 8000.0)]
    assert same[0] > 0.93
    assert same[1] > same[2] + 0.05


@pytest.mark.parametrize("outdated", [0.0, 0.08, 0.3, 1.0])
def test_share_of_changed_land_is_the_share_asked_for(outdated):
    world, (e, n) = World.from_seed(0, outdated), places()
    changed = (world.cover(e, n) != world.mapped(e, n)).mean()
    lake = np.pi * world.lake[2] ** 2 / 18_000**2  # it never changes
    assert changed == pytest.approx(outdated * (1 - lake), abs=0.025 if 0 < outdated < 1 else 0.001)


def test_a_point_does_not_depend_on_its_company():
    world, (e, n) = World.from_seed(0), places(40)
    for ask in (world.cover, world.reflectance, world.height, lambda e, n: world.mapped(e, n, 20)):
        whole = ask(e, n)
        assert np.array_equal(whole[..., 7, 11], ask(e[7, 11], n[7, 11]))


def test_reflectance_follows_land_cover_of_today():
    world, (e, n) = World.from_seed(0, outdated=0.5), places()
    cover, value = world.cover(e, n), world.reflectance(e, n)
    assert value.shape == (4, *e.shape)
    assert value.min() > 0
    assert value.max() < 1
    assert value[3][cover == 60].max() < 0.11 < np.percentile(value[3][cover != 60], 1)
    assert np.percentile(value[0][cover == 100], 1) > 0.2 > np.percentile(value[0][(cover != 100)], 96)
    east, north, radius = world.lake
    within = np.hypot(e - east, n - north) < radius
    assert (cover[within] == 60).all()
    assert np.allclose(value[:, within], SPECTRA[LAKE][:, None])


# --- the files --------------------------------------------------------------------------------------------


def test_same_seed_same_bytes(root, tmp_path):
    write_world(tmp_path / "again", seed=5, shots=SMALL)
    assert tree(tmp_path / "again") == tree(root)
    write_world(tmp_path / "other", seed=6, shots=SMALL[:1])
    other = tree(tmp_path / "other")
    names = [name for name in other if name.endswith((".tif", ".tiff", ".json"))]
    assert len(names) == 5
    assert all(other[name] != tree(root)[name] for name in names)


def test_sheets_say_what_the_map_says(root):
    world, sheets = World.from_seed(5), {}
    for path in sorted((root / "landcover").iterdir()):
        with rasterio.open(path) as source:
            assert (source.crs.to_epsg(), source.dtypes, source.nodata, source.res) == (
                32648,
                ("uint8",),
                None,
                (30, 30),
            )
            t, codes = source.transform, source.read(1)
            x, y = np.meshgrid(t.c + 30 * (np.arange(source.width) + 0.5), t.f - 30 * (np.arange(source.height) + 0.5))
            sheet = int(path.name[4:6])
            assert np.array_equal(codes, world.mapped(x, y, sheet))
            sheets[sheet] = codes, t, transformer(CRS, "EPSG:4326").transform(x, y)[1], world.mapped(x, y)
    assert sorted(p.name for p in (root / "landcover").iterdir()) == ["n48_20_2020lc030.tif", "n48_25_2020lc030.tif"]
    # On its own side a sheet is the map.
    for sheet, side in ((20, 1), (25, -1)):
        codes, _, lat, truth = sheets[sheet]
        own = side * (25 - lat) > 0
        assert own.any()
        assert not own.all()
        assert np.array_equal(codes[own], truth[own])
    (south, low, *_), (north, high, *_) = sheets[20], sheets[25]
    assert (low.c - high.c) % 30 == 0
    overlap = round((low.f - (high.f - 30 * north.shape[0])) / 30)
    assert 100 <= overlap <= 250
    assert (south[:overlap] != north[-overlap:]).mean() == pytest.approx(0.05, abs=0.01)


def test_deliveries_have_the_form_of_real_ones(root):
    found = sorted(p.name for p in (root / "scenes").iterdir())
    assert len(found) == 6
    assert sum(name.endswith(".tar.gz") for name in found) == 3
    for shot in SMALL:
        if shot.archive:
            path = root / "scenes" / f"{shot.name}.tar.gz"
            assert path.read_bytes()[3:8] == bytes(5)  # gzip's flags and time
            with tarfile.open(path) as tar:
                names = tar.getnames()
                assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, 0, "", "")}
        else:
            names = [p.name for p in (root / "scenes" / shot.name).iterdir()]
        assert sorted(names) == sorted([*(f"{shot.image}.{end}" for end in ("rpb", "tiff", "xml")), "order.xml"])
        name = parse_name(shot.image)
        assert (name.satellite, name.sensor, name.part) == (shot.satellite, shot.sensor, shot.part)
        assert name.date == f"{shot.acquired:%Y%m%d}"
        assert abs(name.lon - 104.4) < 0.051
        assert abs(name.lat - 25.0) < 0.051


@pytest.mark.parametrize("shot", SHOTS, ids=lambda shot: shot.image)
def test_xml_has_66_fields_and_two_time_zones(shot):
    text = xml_text(shot)
    assert text.count("\n    <") == 66
    fields = parse_xml(text.encode())
    assert datetime.fromisoformat(fields["ReceiveTime"]) == shot.acquired.replace(tzinfo=None)
    centre = datetime.fromisoformat(fields["CenterTime"])
    assert centre == shot.acquired.replace(tzinfo=None) + timedelta(hours=8)
    assert datetime.fromisoformat(fields["StartTime"]) < centre < datetime.fromisoformat(fields["EndTime"])
    assert float(fields["ImageGSD"]) == shot.camera.gsd
    assert int(fields["WidthInPixels"]) == shot.camera.width != shot.camera.height == int(fields["HeightInPixels"])
    assert 0 < float(fields["SolarZenith"]) < 60
    assert 90 < float(fields["SolarAzimuth"]) < 180 or float(fields["SolarZenith"]) < 30


def test_sun_is_where_an_almanac_has_it():
    # The real scene of 91.0 W, 17.6 N, 10 May 2020, 17:03:20 UTC: azimuth 86.7, zenith 13.6 in its XML.
    e, n = transformer("EPSG:4326", "EPSG:32615").transform(-91.0, 17.6)
    shot = replace(
        SHOTS[0],
        acquired=SHOTS[0].acquired.replace(month=5, day=10, hour=17, minute=3, second=20),
        camera=replace(SHOTS[0].camera, crs="EPSG:32615", east=e, north=n),
    )
    assert shot.sun == pytest.approx((86.7, 13.6), abs=3)


def test_gdal_opens_the_image_inside_the_archive(root):
    shot = next(shot for shot in SMALL if shot.archive)
    with rasterio.open(f"/vsitar/{root}/scenes/{shot.name}.tar.gz/{shot.image}.tiff") as source:
        assert (source.count, source.height, source.width, source.dtypes[0]) == (4, 160, 130, "uint16")
        assert source.crs is None
        assert source.transform.is_identity
        low, high = find_height_range(shot.camera, World.from_seed(5).height)
        rpc = fit_rpc(shot.camera, low - 300, high + 300)
        assert source.rpcs.samp_off == pytest.approx(rpc.samp_off)
        assert source.rpcs.line_num_coeff == pytest.approx(rpc.line_num)
        pixels = source.read()
    assert pixels.min() >= 1
    assert pixels.max() < 1024


def test_tiff_without_its_rpb_says_nothing_of_place(root, tmp_path):
    shot = next(shot for shot in SMALL if not shot.archive)
    bare = tmp_path / "bare.tiff"
    bare.write_bytes((root / "scenes" / shot.name / f"{shot.image}.tiff").read_bytes())
    with pytest.warns(NotGeoreferencedWarning), rasterio.open(bare) as source:
        assert (source.crs, source.rpcs, source.gcps[0]) == (None, None, [])


def test_the_world_can_be_made_again_from_its_truth(root):
    truth = json.loads((root / "truth.json").read_text())
    world = World.from_seed(truth["seed"], truth["outdated"])
    assert truth["world"]["lake"] == list(world.lake)
    assert [scene["id"] for scene in truth["scenes"]] == [shot.name for shot in SMALL]
    for scene, shot in zip(truth["scenes"], SMALL, strict=True):
        assert Camera(**scene["camera"]) == shot.camera
        assert (root / scene["file"]).exists()
        assert scene["relief"] == list(find_height_range(shot.camera, world.height))


def test_clouds_cover_the_share_asked_for():
    world, shot = World.from_seed(0), SHOTS[4]
    clear = replace(shot, clouds=0.0)
    camera = shot.camera
    col, row = np.meshgrid(np.linspace(0, camera.width, 300), np.linspace(0, camera.height, 300))
    ground = camera.meet(col, row, world.height)
    under, over = make_view(world, clear)(*ground), make_view(world, shot)(*ground)
    opaque = (over - under) / (640 - under)
    assert opaque.min() == 0
    assert opaque.max() == pytest.approx(1)
    assert (opaque[0] > 0.5).mean() == pytest.approx(0.14, abs=0.02)
    assert [s.clouds for s in SHOTS if s.clouds] == [0.14]


def test_any_pixels_can_be_delivered(tmp_path):
    shot = replace(SMALL[0], archive=False)
    path = write_delivery(
        tmp_path, shot, lambda e, n: 0 * e + 1200.0, lambda e, n, h: np.stack([e - CENTRE[0] + 9000.4, h]), 1
    )
    with rasterio.open(path / f"{shot.image}.tiff") as source:
        pixels = source.read()
    col, row = np.meshgrid(np.arange(130) + 0.5, np.arange(160) + 0.5)
    e, _ = shot.camera.locate(col, row, np.array(1200.0))
    assert np.array_equal(pixels[0], np.rint(e - CENTRE[0] + 9000.4))
    assert (pixels[1] == 1200).all()
    with pytest.raises(ValueError, match=r"must be in 0\.\.65535, got -1"):
        tiff_bytes(np.full((1, 2, 2), -1.0))


def test_surroundings_hold_every_scene_and_reach_beyond():
    left, bottom, right, top = surrounding_box(SHOTS)
    for shot in SHOTS:
        c = shot.camera
        e, n, _ = c.meet(
            np.array([0, c.width, 0, c.width]), np.array([0, 0, c.height, c.height]), World.from_seed(0).height
        )
        assert left + 2500 < e.min() < e.max() < right - 2500
        assert bottom + 2500 < n.min() < CENTRE[1] < n.max() < top - 2500


def test_command_refuses_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path / "file" / "world")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert str(tmp_path / "file") in said
    assert said.count("\n") == 1
