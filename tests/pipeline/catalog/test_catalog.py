"""The catalog: what a survey decides, what of it is kept, and when it is not believed any more."""

import json
import logging
import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from geokr.crs import cut_at_antimeridian
from geokr.dataset import layout, store
from geokr.storage import files
from pipeline.catalog import quarantine
from pipeline.catalog.stac_items import bounding_box
from pipeline.catalog.table import CATALOG, Entry, read_catalog, reusable_entries, write_catalog
from pipeline.config import BuildConfig, ConfigError
from pipeline.geometry.sensor import Georeferenced
from pipeline.geometry.terrain import Terrain
from pipeline.imaging.radiometry import Radiometry, Stretch
from pipeline.plan import tile_attributes, tile_grid
from pipeline.scenes.delivery import Refusal, read_delivery
from pipeline.scenes.discovery import find_deliveries
from pipeline.scenes.raster import open_image
from pipeline.scenes.scene import Image, Scene, SceneError
from pipeline.stages import catalog, tiles
from pipeline.tasks import survey
from pipeline.tasks.survey import SurveyJob, read_and_survey
from tests.deliveries import (
    GROUND,
    HEIGHT,
    LAT,
    LON,
    NAME,
    STEM,
    WIDTH,
    camera,
    catalog_job,
    coordinates,
    members,
    rpb,
    surveyed,
    tiff,
    write_archive,
    write_dem,
    write_folder,
)
from tests.settings import build_config

OTHER, THIRD = (STEM.replace("1234567", number) for number in ("7654321", "9999999"))
OTHER_NAME, THIRD_NAME = (stem.removesuffix("-MSS1") for stem in (OTHER, THIRD))


def only(path: Path) -> Scene:
    (item,) = [item for one in find_deliveries([path]) for item in read_delivery(one)]
    assert isinstance(item, Scene)
    return item


def config(tmp_path: Path, **change: Any) -> BuildConfig:
    (tmp_path / "out").mkdir(exist_ok=True)
    return build_config(**{"scenes": [str(tmp_path / "scenes")], "out": str(tmp_path / "out")} | change)


def slope(tmp_path: Path, holes: bool = False) -> str:
    """A DEM that rises by 4 m a cell, in whose eastern half there is nothing, if so wanted."""
    _, col = np.mgrid[:100, :100]
    heights = 400.0 + 4.0 * (col + 0.5)
    if holes:
        heights[:, 50:] = -9999
    transform = Affine(0.001, 0, LON - 0.05, 0, -0.001, LAT + 0.05)
    return write_dem(tmp_path / "dem.tif", heights, transform, "EPSG:4326", nodata=-9999)


# --- the survey


def test_the_stretch_is_that_of_every_20th_pixel(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1, 4000, (3, 210, 330)).astype(np.uint16)
    files = members() | {f"{STEM}.tiff": tiff(values), f"{STEM}.rpb": rpb(camera(330, 210)).encode()}
    files[f"{STEM}.xml"] = files[f"{STEM}.xml"].replace(b">90<", b">330<").replace(b">70<", b">210<")
    entry = surveyed(only(write_folder(tmp_path, files)), None, 2.0, 97.0)
    with open_image(entry.scene.images[0].path) as file:
        sample = file.read(out_shape=(3, 210 // 20, 330 // 20))
    assert (entry.stretch.low, entry.stretch.high) == tuple(np.percentile(sample, [2, 97]))


def test_without_a_dem_the_ground_is_flat_at_the_rpcs_height(tmp_path: Path) -> None:
    scene = only(write_folder(tmp_path, members()))
    entry = surveyed(scene, None, 1.0, 99.0)
    assert entry.terrain == Terrain(None, GROUND)
    assert entry.dem_coverage == 0
    assert entry.scene.footprint.equals_exact(scene.footprint, 1e-12)


def test_with_a_dem_the_footprint_is_where_the_views_meet_the_ground(tmp_path: Path) -> None:
    """The camera leans by 3 px in 100 m, so the height depends on the place, and the place on the height."""
    model = camera(lean=(0.03, -0.02))
    scene = only(write_folder(tmp_path / "scene", members(rpc=model)))
    entry = surveyed(scene, slope(tmp_path), 1.0, 99.0)
    ring = shapely.get_coordinates(entry.scene.footprint.exterior)
    height = 400.0 + 4000.0 * (ring[:, 0] - (LON - 0.05))
    col, row = model.image(ring[:, 0], ring[:, 1], height)
    assert np.minimum(np.minimum(col, WIDTH - col), np.minimum(row, HEIGHT - row)) == pytest.approx(0, abs=1e-3)
    assert not entry.scene.footprint.equals_exact(scene.footprint, 1e-6)
    assert entry.dem_coverage == 1
    assert entry.terrain == Terrain(str(tmp_path / "dem.tif"), GROUND)


def test_holes_of_the_dem_are_counted(tmp_path: Path) -> None:
    scene = only(write_folder(tmp_path / "scene", members()))
    entry = surveyed(scene, slope(tmp_path, holes=True))
    assert entry.dem_holes > 50
    assert entry.dem_coverage == 1  # they are interpolated
    assert surveyed(scene, slope(tmp_path)).dem_holes == 0


def test_each_radiometry_is_decided_by_the_survey(tmp_path: Path) -> None:
    scene = only(write_folder(tmp_path / "scene", members()))
    scene = replace(scene, acquired=datetime(2020, 5, 23, 5, 3, 8, tzinfo=UTC))  # by day
    assert surveyed(scene).radiometry is None
    per_band = surveyed(scene, radiometry="percentile-per-band").radiometry
    assert per_band is not None
    assert len(set(per_band.high)) == 2  # columns and rows
    dn = surveyed(scene, radiometry="dn").radiometry
    assert dn is not None
    assert (dn.dtype, dn.high) == ("uint16", (65535.0,) * 4)
    table = tmp_path / "mine.csv"
    rows = [f"GF1,PMS1,2020,{band},0.2,1,{e}" for band, e in zip(scene.bands, (1945, 1854, 1543, 1081), strict=True)]
    table.write_text("\n".join(["satellite,sensor,year,band,gain,offset,irradiance", *rows]))
    toa = surveyed(scene, radiometry="toa", coefficients=str(table)).radiometry
    assert toa is not None
    assert toa.numbers["gain"] == [0.2] * 4
    assert toa.numbers["solar_zenith"] == pytest.approx(4.3, abs=1)  # near noon in May, at 25 N 105 E
    with pytest.raises(SceneError, match=r"calibration\.csv has no coefficients for GF1 PMS1 2020 blue; give a table"):
        surveyed(scene, radiometry="toa")
    scaled = replace(scene, images=(replace(scene.images[0], scales=(1e-4,) * 4, offsets=(-0.1,) * 4),))
    own = surveyed(scaled, radiometry="toa").radiometry
    assert own is not None
    assert own.low == pytest.approx((1000.0,) * 4)


def test_an_image_on_a_map_has_no_use_for_a_dem(tmp_path: Path) -> None:
    image = tiff(coordinates(), crs="EPSG:32648", transform=Affine(8, 0, 5e5, 0, -8, 2.7e6))
    entry = surveyed(only(write_folder(tmp_path, {"map.tif": image})), "/no/such/dem.tif", 1.0, 99.0)
    assert entry.terrain == Terrain(None, 0.0)


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_an_image_cut_anywhere_is_refused(tmp_path: Path, interleave: str, share: float) -> None:
    files = members()
    whole = tiff(coordinates(), interleave=interleave, blockysize=8)
    files[f"{STEM}.tiff"] = whole[: int(len(whole) * share)]
    path = write_folder(tmp_path, files) / f"{STEM}.tiff"
    (refusal,) = read_and_survey(catalog_job(next(find_deliveries([path]))))
    assert isinstance(refusal, Refusal)
    assert f"{STEM}.tiff: cannot be read to its end" in refusal.detail


@pytest.mark.parametrize(("value", "fault"), [(0, "the image holds no data"), (7, "the image has one value, 7,")])
def test_an_image_of_one_value_is_refused(tmp_path: Path, value: int, fault: str) -> None:
    files = members() | {f"{STEM}.tiff": tiff(np.full((4, HEIGHT, WIDTH), value, np.uint8))}
    with pytest.raises(SceneError, match=f"{STEM}.tiff: {fault}"):
        surveyed(only(write_folder(tmp_path, files)), None, 1.0, 99.0)


def test_nodata_has_no_part_in_the_stretch(tmp_path: Path) -> None:
    values = coordinates()
    values[:, :, 40:] = 60_000
    image = tiff(values, nodata=60_000, crs="EPSG:32648", transform=Affine(8, 0, 5e5, 0, -8, 2.7e6))
    assert surveyed(only(write_folder(tmp_path, {"map.tif": image})), None, 0.0, 100.0).stretch.high < 200


# --- on disk

names = st.from_regex(r"[A-Za-z0-9][\w.+@-]{0,20}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@st.composite
def images(draw: st.DrawFn) -> Image:
    return Image(
        path=draw(texts),
        bands=tuple(draw(st.lists(texts, min_size=1, max_size=8))),
        width=draw(st.integers(1, 2**31)),
        height=draw(st.integers(1, 2**31)),
        dtype=draw(st.sampled_from(["uint8", "uint16"])),
        nodata=draw(st.none() | st.floats(-1e5, 1e5)),
        gsd=draw(st.floats(0.01, 1e4)),
        model=draw(
            st.builds(camera, heading=st.floats(0, 360), lon=st.floats(-180, 180))
            | st.builds(Georeferenced, st.just("EPSG:32648"), st.just((8.0, 0.5, 5e5, 0.5, -8.0, 2.7e6)))
        ),
    )


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    low = draw(st.floats(0, 1e5))
    scene = Scene(
        id=draw(
            st.from_regex(
                r"[A-Za-z0-9][\w.+@ -]{0,20}",
                fullmatch=True,
                alphabet=st.characters(codec="utf-8", exclude_categories=["Cc", "Cf", "Zs"]),
            )
        ),
        satellite=draw(st.sampled_from(["GF1", ""])),
        sensor=draw(st.sampled_from(["PMS1", ""])),
        level="L1A",
        acquired=draw(st.none() | st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))),
        gsd=draw(st.floats(0.01, 1e4)),
        images=tuple(draw(st.lists(images(), min_size=1, max_size=3))),
        pan=draw(st.none() | images()),
        delivery=draw(texts),
        files=tuple(draw(st.lists(texts, max_size=3))),
        bytes=draw(st.integers(0, 2**50)),
        metadata_digest=draw(texts),
        footprint=shapely.box(*draw(st.tuples(*[st.floats(-180, 180)] * 4))),
        metadata=draw(st.dictionaries(texts, texts, max_size=4)),
    )
    terrain = Terrain(draw(st.none() | texts), draw(st.floats(-500, 9000)), draw(st.none() | texts))
    ends = tuple(draw(st.lists(st.floats(0, 100), min_size=1, max_size=4)))
    stored = Radiometry("dn", ends, tuple(end + 1 for end in ends), "uint16", draw(st.dictionaries(texts, texts)))
    stretch = Stretch(low, low + draw(st.floats(1, 1e5)))
    holes = draw(st.integers(0, 2**40))
    return Entry(
        scene,
        terrain,
        stretch,
        draw(st.floats(0, 1)),
        holes,
        draw(st.none() | st.just(stored)),
        draw(st.just(()) | st.just((0.25, 0.75))),
    )


@given(written=st.lists(entries(), max_size=4, unique_by=lambda entry: entry.scene.id))
@settings(max_examples=15)
def test_a_catalog_comes_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, written: list[Entry]) -> None:
    path = tmp_path_factory.mktemp("catalog") / CATALOG
    write_catalog(path, written, "{}")
    read = read_catalog(path)
    assert read == sorted(written, key=lambda entry: entry.scene.id)
    assert {type(entry.scene.acquired) for entry in read} <= {datetime, type(None)}
    assert [file.name for file in path.parent.iterdir()] == [CATALOG]
    assert reusable_entries(path, "{}") == {}  # of no file that is there


def test_a_catalog_is_a_map_for_others(tmp_path: Path) -> None:
    write_folder(tmp_path / "scenes", members())
    (entry,) = catalog.run(config(tmp_path), None)
    table = geopandas.read_parquet(tmp_path / "out" / CATALOG)
    assert table.crs == "EPSG:4326"
    assert table.geometry[0].equals(entry.scene.footprint)
    row = table.iloc[0]
    assert (row["id"], row["satellite"], row["gsd"]) == (NAME, "GF1", 8.0)
    assert json.loads(row["images"])[0]["width"] == WIDTH
    assert row["datetime"].isoformat() == "2020-05-22T21:03:08+00:00"
    assert json.loads(row["metadata"])["CloudPercent"] == "101"
    assert set(json.loads(row["provenance"])) == {"survey", "fingerprints", "coefficients", "software"}


@pytest.fixture
def known(tmp_path: Path) -> Path:
    """A catalog of a folder and an archive, whose files are older."""
    write_folder(tmp_path / "scenes" / STEM, members())
    write_archive(tmp_path / "scenes" / f"{OTHER}.tar.gz", members(OTHER))
    found: list[Entry] = []
    for one in find_deliveries([tmp_path / "scenes"]):
        found += [item for item in read_and_survey(catalog_job(one)) if isinstance(item, Entry)]
    write_catalog(tmp_path / CATALOG, found, "settings")
    later = (tmp_path / CATALOG).stat().st_mtime + 100
    os.utime(tmp_path / CATALOG, (later, later))
    return tmp_path / CATALOG


def test_entries_are_kept_while_nothing_changes(known: Path) -> None:
    kept = reusable_entries(known, "settings")
    assert sorted(kept) == sorted(one.path for one in find_deliveries([known.parent / "scenes"]))
    assert [entry for entries in kept.values() for entry in entries] == read_catalog(known)


def test_no_entry_is_kept_of_other_settings_or_no_catalog(known: Path) -> None:
    assert reusable_entries(known, "other settings") == {}
    assert reusable_entries(known.with_name("gone"), "settings") == {}


@pytest.mark.parametrize("suffix", [".tiff", ".rpb", ".xml"])
def test_a_newer_file_of_a_folder_drops_its_entry_alone(known: Path, suffix: str) -> None:
    newer = known.stat().st_mtime + 10
    os.utime(known.parent / "scenes" / STEM / f"{STEM}{suffix}", (newer, newer))
    assert list(reusable_entries(known, "settings")) == [str(known.parent / "scenes" / f"{OTHER}.tar.gz")]


def test_a_newer_archive_drops_its_entry_alone(known: Path) -> None:
    newer = known.stat().st_mtime + 10
    os.utime(known.parent / "scenes" / f"{OTHER}.tar.gz", (newer, newer))
    assert list(reusable_entries(known, "settings")) == [str(known.parent / "scenes" / STEM / f"{STEM}.tiff")]


def test_a_file_that_is_gone_drops_its_entry(known: Path) -> None:
    (known.parent / "scenes" / STEM / f"{STEM}.rpb").unlink()
    assert list(reusable_entries(known, "settings")) == [str(known.parent / "scenes" / f"{OTHER}.tar.gz")]


def test_a_file_put_in_place_later_drops_its_entry_whatever_its_date(known: Path) -> None:
    """Unpacking an archive gives files the dates that they had when they were packed."""
    earlier = known.stat().st_mtime - 200
    os.utime(known, (earlier, earlier))
    for file in (known.parent / "scenes").rglob("*"):
        os.utime(file, (earlier - 1000, earlier - 1000))
    assert reusable_entries(known, "settings") == {}


# --- the stage


def test_whatever_is_wrong_is_refused_once_and_the_good_go_on(tmp_path: Path) -> None:
    scenes = tmp_path / "scenes"
    write_folder(scenes / "a_good", members())
    stems = [STEM.replace("1234567", f"{k:07d}") for k in range(4)]
    write_folder(scenes / stems[0], {k: v for k, v in members(stems[0]).items() if not k.endswith(".rpb")})
    cut = members(stems[1])
    cut[f"{stems[1]}.tiff"] = cut[f"{stems[1]}.tiff"][:9_000]
    write_folder(scenes / stems[1], cut)
    write_folder(scenes / stems[2], members(stems[2]) | {f"{stems[2]}.xml": b""})
    (scenes / f"{stems[3]}.tar.gz").write_bytes(b"no archive")
    write_folder(scenes, {"photo.tif": tiff(coordinates())})
    write_archive(scenes / f"{OTHER}.tar.gz", members(OTHER))
    found = catalog.run(config(tmp_path), None)
    assert [entry.scene.id for entry in found] == [NAME, OTHER_NAME]
    refused = quarantine.read(tmp_path / "out")
    assert {entry["stage"] for entry in refused} == {"catalog"}
    assert {entry["scene"] for entry in refused} == {
        *(s.removesuffix("-MSS1") for s in stems[:3]),
        f"{stems[3]}.tar.gz",
        "photo",
    }
    assert len(refused) == 5
    for entry in refused:
        assert entry["scene"] in entry["detail"]
        assert len(entry["detail"].splitlines()) == 1
    assert [entry.scene.id for entry in read_catalog(tmp_path / "out" / CATALOG)] == [NAME, OTHER_NAME]


def test_a_scene_delivered_twice_counts_once(tmp_path: Path) -> None:
    """The first in the order of the paths, in a new catalog and in one that knows it already."""
    scenes = tmp_path / "scenes"
    write_folder(scenes / "a", members())
    write_archive(scenes / "m.tar", members())
    write_folder(scenes / "z", members())
    for _ in range(2):
        (entry,) = catalog.run(config(tmp_path), None)
        assert entry.scene.images[0].path == str(scenes / "a" / f"{STEM}.tiff")
        refused = quarantine.read(tmp_path / "out")
        assert [(item["scene"], item["reason"]) for item in refused] == [(NAME, "duplicate")] * 2
        places = (scenes / "m.tar", scenes / "z" / f"{STEM}.tiff")
        wanted = [f"{place}: the scene was already found in {entry.scene.images[0].path}" for place in places]
        assert sorted(item["detail"] for item in refused) == sorted(wanted)


@pytest.fixture
def one(tmp_path: Path) -> Entry:
    """A scene with a product number."""
    entry = surveyed(only(write_folder(tmp_path, members())))
    numbered = replace(entry.scene, metadata=dict(entry.scene.metadata) | {"ProductID": "1234567"})
    return replace(entry, scene=numbered, pixel_digest="a")


def other(entry: Entry, number: str | None = None, pixel_digest: str = "a", bands: str = "", **changes: Any) -> Entry:
    """Another entry, by what tells two scenes apart."""
    scene = entry.scene
    if number is not None:
        changes["metadata"] = dict(scene.metadata) | {"ProductID": number}
    if bands:
        changes["images"] = (replace(scene.images[0], bands=tuple(f"{bands}_{k}" for k in range(4))),)
    return replace(entry, scene=replace(scene, **changes), pixel_digest=pixel_digest)


def reasons(*entries: Entry) -> list[str | None]:
    """What becomes of scenes that were found under one path after the other; None for those that stay."""
    found: list[tuple[str, Entry | Refusal]] = [(f"{k}", entry) for k, entry in enumerate(entries)]
    kept, outcomes = catalog.remove_duplicates(found[::-1])
    said = {path: item.reason for path, (item,) in outcomes.items() if isinstance(item, Refusal)}
    assert kept == [entry for k, entry in enumerate(entries) if f"{k}" not in said]
    return [said.get(f"{k}") for k in range(len(entries))]


def test_two_of_a_product_number_are_one_scene_whatever_they_are_called(one: Entry) -> None:
    twin = other(one, id="twin", pixel_digest="b", footprint=shapely.box(0, 0, 1, 1))
    assert reasons(one, twin, twin) == [None, "duplicate", "duplicate"]
    for more in ({"satellite": "GF2"}, {"sensor": "PMS2"}, {"number": "7654321"}, {"bands": "x"}):
        assert reasons(one, other(twin, **more)) == [None, None]
        assert reasons(one, other(twin, **more, id=one.scene.id)) == [None, "same_name"]


@pytest.mark.parametrize(
    "unknown", [{"number": n} for n in ("", "0", "000", "2147483647", "12a")] + [{"satellite": ""}]
)
def test_without_a_product_number_the_same_pixels_in_the_same_place_are_one_scene(
    one: Entry, unknown: dict[str, str]
) -> None:
    first = other(one, **unknown)
    twin = other(first, id="twin")
    assert reasons(first, twin) == [None, "duplicate"]
    for more in (
        {"pixel_digest": "b"},
        {"footprint": shapely.box(0, 0, 1, 1)},
        {"bands": "x"},
        {"acquired": datetime(1999, 1, 1, tzinfo=UTC)},
    ):
        changes: dict[str, Any] = more
        assert reasons(first, other(twin, **changes)) == [None, None]


def test_a_scene_built_from_other_input_is_named_before_anything_is_written(one: Entry, tmp_path: Path) -> None:
    settings = config(tmp_path, tile=8, stride=8)
    grid = tile_grid(one, settings.grid)
    assert grid is not None
    root = files.join(settings.out, layout.TILES)
    catalog.check_unchanged(settings, [one])
    arguments: Any = {"shape": (grid.rows, grid.cols), "bands": 4, "tile": 8, "block": grid.block, "dtype": "uint8"}
    store.create_tiles(root, one.scene.id, **arguments, attributes=tile_attributes(one, grid, settings.tiles))
    catalog.check_unchanged(settings, [one, other(one, id="another", pixel_digest="b")])
    with pytest.raises(layout.StoreError, match=f"{one.scene.id} was built .*source.sha256_of_every_20th_pixel was a"):
        catalog.check_unchanged(settings, [other(one, id="another"), other(one, pixel_digest="b")])
    with pytest.raises(layout.StoreError, match="stride was 8, now 7"):
        catalog.check_unchanged(config(tmp_path, tile=8, stride=7), [one])


def test_a_scene_into_which_no_tile_fits_is_refused(one: Entry, tmp_path: Path) -> None:
    settings = config(tmp_path, tile=4096, stride=4096, block=1)
    tiles.run(settings, [one], None)
    (refused,) = quarantine.read(settings.out)
    assert (refused["scene"], refused["stage"], refused["reason"]) == (one.scene.id, "tiles", "too_small")
    assert refused["detail"].endswith(".tiff: no tile of 4096 px at 8 m fits into the scene")


def test_a_dem_of_elsewhere_is_refused(tmp_path: Path) -> None:
    """One that covers some of the scenes is not, see above."""
    write_folder(tmp_path / "scenes" / "a", members())
    away = Affine(0.001, 0, LON + 10, 0, -0.001, LAT + 10)
    dem = write_dem(tmp_path / "dem.tif", np.full((50, 50), 400.0), away, "EPSG:4326")
    with pytest.raises(ConfigError, match=r"dem\.tif: the DEM covers none of the scenes that need heights"):
        catalog.run(config(tmp_path, dem=dem), None)
    assert not (tmp_path / "out" / CATALOG).exists()


def test_a_path_named_twice_is_no_second_delivery(tmp_path: Path) -> None:
    write_folder(tmp_path / "scenes" / "a", members())
    paths = [str(tmp_path / "scenes"), str(tmp_path / "scenes" / "a")]
    assert len(catalog.run(config(tmp_path, scenes=paths), None)) == 1
    assert quarantine.read(tmp_path / "out") == []


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_survey_that_is_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Stopped it keeps what it has; against a kill, it does now and then."""
    for folder, stem in (("a", STEM), ("b", OTHER), ("c", THIRD)):
        write_folder(tmp_path / "scenes" / folder, members(stem))
    undisturbed = catalog.run(config(tmp_path, out=str(tmp_path / "calm")), None)
    surveyed: list[str] = []

    def interrupted(job: SurveyJob) -> list[Entry | Refusal]:
        if len(surveyed) == 2:
            raise KeyboardInterrupt if how == "stopped" else SystemExit  # the second is caught as little as a kill
        surveyed.append(job.delivery.path)
        return read_and_survey(job)

    with monkeypatch.context() as patch:
        patch.setattr(catalog, "WRITE_INTERVAL", 1e9 if how == "stopped" else -1.0)
        patch.setattr(catalog, "read_and_survey", interrupted)
        with pytest.raises(KeyboardInterrupt if how == "stopped" else SystemExit):
            catalog.run(config(tmp_path), None)
    assert not (tmp_path / "out" / CATALOG).exists()
    kept = tmp_path / "out" / catalog.PARTIAL
    later = kept.stat().st_mtime + 100
    os.utime(kept, (later, later))
    left: list[str] = []

    def watched(job: SurveyJob) -> list[Entry | Refusal]:
        left.append(job.delivery.path)
        return read_and_survey(job)

    monkeypatch.setattr(catalog, "read_and_survey", watched)
    assert catalog.run(config(tmp_path), None) == undisturbed
    assert sorted(surveyed + left) == sorted(entry.scene.delivery for entry in undisturbed)
    assert len(left) == 1
    assert not kept.exists()
    assert (tmp_path / "out" / CATALOG).read_bytes() == (tmp_path / "calm" / CATALOG).read_bytes()


def test_a_catalog_of_which_all_is_true_is_left_as_it_is(tmp_path: Path) -> None:
    for folder, stem in (("a", STEM), ("b", OTHER)):
        write_folder(tmp_path / "scenes" / folder, members(stem))
    first, path = catalog.run(config(tmp_path), None), tmp_path / "out" / CATALOG
    later = path.stat().st_mtime + 100
    os.utime(path, (later, later))
    assert catalog.run(config(tmp_path), None) == first
    assert path.stat().st_mtime == later
    shutil.rmtree(tmp_path / "scenes" / "b")
    assert [entry.scene.id for entry in catalog.run(config(tmp_path), None)] == [NAME]
    assert [entry.scene.id for entry in read_catalog(path)] == [NAME]


def test_only_what_changed_is_surveyed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    surveyed: list[str] = []

    def watched(job: SurveyJob) -> list[Entry | Refusal]:
        surveyed.append(Path(job.delivery.path).name)
        return read_and_survey(job)

    monkeypatch.setattr("pipeline.stages.catalog.read_and_survey", watched)
    write_folder(tmp_path / "scenes" / "a", members())
    write_folder(tmp_path / "scenes" / "b", members(OTHER))
    first = catalog.run(config(tmp_path), None)
    assert len(surveyed) == 2
    later = (tmp_path / "out" / CATALOG).stat().st_mtime + 100
    os.utime(tmp_path / "out" / CATALOG, (later, later))
    surveyed.clear()
    write_folder(tmp_path / "scenes" / "c", members(THIRD))
    second = catalog.run(config(tmp_path), None)
    assert surveyed == [f"{THIRD}.tiff"]
    assert [entry for entry in second if entry.scene.id != THIRD_NAME] == first
    later += 100
    os.utime(tmp_path / "out" / CATALOG, (later, later))
    surveyed.clear()
    third = catalog.run(config(tmp_path, stretch=(20.0, 80.0)), None)
    assert len(surveyed) == 3
    assert third[0].stretch != first[0].stretch


def test_a_ground_without_dem_is_said_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path / "scenes", members())
    with caplog.at_level(logging.WARNING):
        catalog.run(config(tmp_path), None)
        catalog.run(config(tmp_path, dem=slope(tmp_path, holes=True)), None)
    said = [record.getMessage() for record in caplog.records]
    assert f"{NAME}: no DEM: the ground is assumed flat at 500 m above the ellipsoid" in said[0]
    assert "dem.tif does not state what its heights refer to; they are used as heights above the ellipsoid" in said[1]
    assert f"{NAME}: 77 cells of the DEM have no height; they were interpolated" in said[2]
    assert len(said) == 3


def test_a_dem_of_two_units_is_said_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path / "scenes", members())
    dem = slope(tmp_path)
    with rasterio.open(dem, "r+") as file:
        file.crs, file.units = "EPSG:4326+5773", ("ft",)
    catalog.run(config(tmp_path, dem=dem), None)
    assert f"{dem}: the band's heights are in ft, those of its CRS in units of 1 m;" in caplog.text


def test_a_dem_that_ends_within_the_scene_is_said_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path / "scenes", members())
    dem = slope(tmp_path)
    with rasterio.open(dem) as file:
        west = file.read(1)[:, : file.width // 2]
        half = write_dem(tmp_path / "half.tif", west, file.transform, file.crs.to_string())
    with caplog.at_level(logging.WARNING):
        catalog.run(config(tmp_path, dem=half), None)
    message = "of the footprint; the rest is assumed flat at 500 m"
    assert any(message in record.getMessage() for record in caplog.records)


def test_a_dem_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "scenes", members())
    (tmp_path / "dem.tif").write_bytes(tiff(coordinates(bands=1), transform=Affine(8, 0, 5e5, 0, -8, 2.7e6)))
    with pytest.raises(ConfigError, match="none of the scenes can be used"):
        catalog.run(config(tmp_path, dem=str(tmp_path / "dem.tif")), None)
    (refused,) = quarantine.read(tmp_path / "out")
    assert f"{tmp_path}/dem.tif: the heights have no coordinate system" in refused["detail"]


def test_a_directory_without_scenes_is_said(tmp_path: Path) -> None:
    (tmp_path / "scenes").mkdir()
    with pytest.raises(ConfigError, match="no TIFF, archive or STAC item found"):
        catalog.run(config(tmp_path), None)
    (tmp_path / "scenes" / "photo.tif").write_bytes(tiff(coordinates()))
    with pytest.raises(ConfigError, match=r"none of the scenes can be used; see .*quarantine.jsonl for the reasons"):
        catalog.run(config(tmp_path), None)


def test_a_scenes_values_are_held_to_what_is_possible(tmp_path: Path) -> None:
    scene = only(write_folder(tmp_path, members()))
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"acquired": datetime(2020, 1, 1)}, "acquired must be in UTC"),
        ({"gsd": 0.0}, "the ground sampling distance must be positive, got 0.0 m"),
        ({"gsd": float("nan")}, "the ground sampling distance must be positive, got nan m"),
        ({"images": ()}, "a scene needs an image"),
    )
    for change, sentence in changes:
        with pytest.raises(ValueError, match=f"{NAME}: {sentence}"):
            replace(scene, **change)
    with pytest.raises(ValueError, match=rf"{STEM}\.tiff: an image of 0 x 70 px is empty"):
        replace(scene.images[0], width=0)


# --- what was refused


def test_a_stage_replaces_its_own_refusals_alone(tmp_path: Path) -> None:
    def entry(scene: str, detail: str) -> dict[str, str]:
        return {"scene": scene, "reason": "unusable", "detail": detail}

    quarantine.replace(tmp_path, "catalog", [entry("b", "北京 \udcff\u2028\x85"), entry("a", "x")])
    quarantine.replace(tmp_path, "tiles", [entry("c", "y")])
    assert [(item["scene"], item["stage"]) for item in quarantine.read(tmp_path)] == [
        ("a", "catalog"),
        ("b", "catalog"),
        ("c", "tiles"),
    ]
    assert quarantine.read(tmp_path)[1]["detail"] == "北京 \udcff\u2028\x85"  # a name of no encoding stays what it is
    quarantine.replace(tmp_path, "catalog", [])
    assert quarantine.read(tmp_path) == [{"scene": "c", "stage": "tiles", "reason": "unusable", "detail": "y"}]
    assert [file.name for file in tmp_path.iterdir()] == [quarantine.FILE]


def test_what_was_refused_in_an_archive_stays_refused(tmp_path: Path) -> None:
    """One good image and one without its RPB, read again although the catalog knows the good one."""
    files = members() | {name: content for name, content in members(OTHER).items() if not name.endswith(".rpb")}
    (tmp_path / "scenes").mkdir()
    write_archive(tmp_path / "scenes" / "m.tar", files)
    found = []
    for _ in range(2):
        entries = catalog.run(config(tmp_path), None)
        found.append(([entry.scene.id for entry in entries], quarantine.read(tmp_path / "out")))
        later = (tmp_path / "out" / CATALOG).stat().st_mtime + 100
        os.utime(tmp_path / "out" / CATALOG, (later, later))
    assert found[0] == found[1]
    assert found[0][0] == [NAME]
    assert [entry["scene"] for entry in found[0][1]] == [OTHER_NAME]


def test_which_of_two_deliveries_counts_does_not_depend_on_history(tmp_path: Path) -> None:
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    write_archive(scenes / "m.tar", members())
    catalog.run(config(tmp_path), None)
    later = (tmp_path / "out" / CATALOG).stat().st_mtime + 100
    os.utime(tmp_path / "out" / CATALOG, (later, later))
    write_folder(scenes / "a", members())
    (entry,) = catalog.run(config(tmp_path), None)
    assert entry.scene.images[0].path == str(scenes / "a" / f"{STEM}.tiff")


def test_a_ground_sampling_distance_that_the_rpc_denies_is_refused(tmp_path: Path) -> None:
    files = members()
    name = f"{STEM}.xml"
    said = files[name].replace(b"<ImageGSD>8<", b"<ImageGSD>0.5<")
    assert said != files[name]
    path = write_folder(tmp_path, files | {name: said})
    (refusal,) = read_delivery(next(iter(find_deliveries([path]))))
    assert isinstance(refusal, Refusal)
    assert "ImageGSD is 0.5 m, but the image's pixels are" in refusal.detail


@pytest.mark.parametrize("west", [190.0, -170.0, -530.0, 179.99])
def test_a_scene_lies_where_it_is_however_its_longitudes_are_counted(tmp_path: Path, west: float) -> None:
    transform = Affine(1e-4, 0, west, 0, -1e-4, 10)
    write_folder(tmp_path / "scenes", {"pacific.tif": tiff(coordinates(), crs="EPSG:4326", transform=transform)})
    (entry,) = catalog.run(config(tmp_path), None)
    here = (west + 180.0) % 360.0 - 180.0
    assert entry.scene.footprint.bounds[:2] == pytest.approx((here, 10 - HEIGHT * 1e-4))
    assert bounding_box(cut_at_antimeridian(entry.scene.footprint))[0] == pytest.approx(here)


def test_a_failure_with_one_scene_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the program did not expect, and wherever: in reading, in surveying, in making the row."""
    for name in ("a", "b", "c", "d"):
        write_folder(
            tmp_path / "scenes",
            {f"{name}.tif": tiff(coordinates(), crs="EPSG:32648", transform=Affine(10, 0, 5e5, 0, -10, 2e6))},
        )

    def failing(function: Any, victim: str) -> Any:
        def wrapper(first: Any, *rest: Any) -> Any:
            if victim in str(first):
                raise ZeroDivisionError("by zero")
            return function(first, *rest)

        return wrapper

    monkeypatch.setattr(survey, "read_delivery", failing(survey.read_delivery, "scenes/a.tif"))
    monkeypatch.setattr(survey, "survey", failing(survey.survey, "scenes/b.tif"))
    monkeypatch.setattr(survey, "geoparquet_columns", failing(survey.geoparquet_columns, "scenes/c.tif"))
    (entry,) = catalog.run(config(tmp_path), None)
    assert entry.scene.id == "d"
    details = [entry["detail"] for entry in quarantine.read(tmp_path / "out")]
    assert details == [f"{tmp_path}/scenes/{name}.tif: ZeroDivisionError: by zero" for name in ("a", "b", "c")]
