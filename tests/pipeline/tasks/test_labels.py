"""Labels of a scene's blocks, and the rows that its tiles give the index."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from geokr.crs import footprint_polygons
from geokr.dataset import contents, layout, store
from geokr.landcover.discovery import find_landcover
from geokr.landcover.products import LandCoverError
from geokr.landcover.shares import compute_class_shares
from geokr.landcover.sheets import LandCover
from geokr.storage import files
from pipeline.config import IndexConfig
from pipeline.geometry.grid import TileGrid
from pipeline.geometry.sensor import Georeferenced
from pipeline.scenes.scene import Image, Scene
from pipeline.tasks.labels import LabelJob, LabelReport, build_labels
from pipeline.tasks.rows import RowJob, SceneRows, list_scene

CRS = "EPSG:32648"
LEFT, TOP = 440_000.0, 2_765_000.0
GSD, TILE, STRIDE, BLOCK, ROWS, COLS = 2.0, 16, 12, 2, 5, 7
CLASSES = (
    "cultivated",
    "forest",
    "grassland",
    "shrubland",
    "wetland",
    "water",
    "tundra",
    "artificial",
    "bare",
    "snow_ice",
)

LABELLED, UNKNOWN = (layout.LABEL_STATUS.index(name) for name in ("labelled", "unknown"))
SHORE = 97.0
"""Metres right of the scene's corner: forest before, water beyond."""
COAST = 130.0
"""Metres right of the scene's corner: from here on the map says nothing."""
SET = "nlcd_2019"
EXTRA = ("agreement", "year_gap")


def grid(block: int = BLOCK) -> TileGrid:
    shape = ((ROWS - 1) * STRIDE + TILE, (COLS - 1) * STRIDE + TILE)
    return TileGrid(GeoBox(shape, Affine(GSD, 0, LEFT, 0, -GSD, TOP), CRS), TILE, STRIDE, block)


def write_map(path: Path, cells: npt.NDArray[np.uint8], left: float = LEFT) -> LandCover:
    """A map with cells of 1 x 10 m from a border upwards and downwards past the scene."""
    height, width = cells.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": "uint8", "crs": CRS}
    with rasterio.open(path, "w", **profile, transform=Affine(1, 0, left, 0, -10, TOP + 50)) as file:
        file.write(cells, 1)
    (cover,) = find_landcover([path])
    return cover


@pytest.fixture
def shore(tmp_path: Path) -> LandCover:
    """Forest, then water from SHORE on, then no data from COAST on."""
    row = np.full(400, 0, np.uint8)
    row[: int(COAST)] = 11
    row[: int(SHORE)] = 41
    return write_map(tmp_path / "nlcd_2019.tif", np.tile(row, (60, 1)))


def create(dataset: Path, cover: LandCover, shape: tuple[int, int] = (ROWS, COLS), block: int = BLOCK) -> str:
    """A scene's label arrays, empty; their store."""
    root = files.join(dataset, layout.label_store(cover.name))
    store.create_labels(root, "scene", shape=shape, classes=cover.legend.classes, grid=2, block=block, attributes={})
    return root


def build(root: str, cover: LandCover, tiles: TileGrid) -> list[LabelReport]:
    """Label a whole scene, block by block."""
    return [
        build_labels(LabelJob(root, "scene", cover, 2, tiles, i, j))
        for i in range(tiles.blocks[0])
        for j in range(tiles.blocks[1])
    ]


def labels(root: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    group = store.open_scene(root, "scene")
    return group["fraction"][:], group["known"][:], contents.read_status(group)


# --- labels


def test_a_scene_across_a_shore_has_the_shares_that_geometry_gives(tmp_path: Path, shore: LandCover) -> None:
    root = create(tmp_path, shore)
    reports = build(root, shore, grid())
    fraction, known, status = labels(root)
    start = np.arange(COLS) * STRIDE * GSD
    forest = np.clip(SHORE - start, 0, TILE * GSD) / (TILE * GSD)
    covered = np.clip(COAST - start, 0, TILE * GSD) / (TILE * GSD)
    assert fraction.dtype == known.dtype == np.float32
    assert known == pytest.approx(np.tile(covered, (ROWS, 1)), abs=1e-6)
    for name, share in (("forest", forest), ("water", covered - forest)):
        wanted = np.divide(share, covered, out=np.zeros_like(share), where=covered > 0)
        assert fraction[..., CLASSES.index(name)] == pytest.approx(np.tile(wanted, (ROWS, 1)), abs=1e-6)
    assert fraction.sum(axis=-1) == pytest.approx(np.tile(covered > 0, (ROWS, 1)).astype(float), abs=1e-6)
    assert np.array_equal(status, np.where(known > 0, LABELLED, UNKNOWN))
    assert {LABELLED, UNKNOWN} == set(status.ravel().tolist())
    assert sum(report.tiles for report in reports) == ROWS * COLS
    assert sum(report.labelled for report in reports) == int((status == LABELLED).sum())


@given(block=st.integers(1, 8), seed=st.integers(0, 50))
@settings(max_examples=8)
def test_blocks_together_equal_the_whole(tmp_path_factory: pytest.TempPathFactory, block: int, seed: int) -> None:
    folder = tmp_path_factory.mktemp("labels")
    cells = np.random.default_rng(seed).choice([0, 11, 21, 41, 90], (60, 150)).astype(np.uint8)
    cover, tiles = write_map(folder / "nlcd_2019.tif", cells, LEFT + 20), grid(block)
    root = create(folder, cover, block=block)
    build(root, cover, tiles)
    fraction, known, status = labels(root)
    corners = tiles.corners(slice(0, ROWS), slice(0, COLS))
    whole = compute_class_shares(corners.reshape(-1, 4, 2), CRS, cover)
    assert known.ravel() == pytest.approx(whole.known, abs=1e-6)
    assert fraction.reshape(-1, len(CLASSES)) == pytest.approx(whole.fraction, abs=1e-6)
    assert status.all()


def test_a_block_alone_leaves_the_others_not_built(tmp_path: Path, shore: LandCover) -> None:
    root = create(tmp_path, shore)
    report = build_labels(LabelJob(root, "scene", shore, 2, grid(), 2, 3))  # the corner block, a single tile
    fraction, known, status = labels(root)
    assert report == LabelReport(tiles=1, labelled=0, unlisted=frozenset())
    assert np.argwhere(status).tolist() == [[4, 6]]
    assert not fraction.any()
    assert not known.any()


def test_a_scene_without_any_sheet_is_built_and_unknown(tmp_path: Path, shore: LandCover) -> None:
    root = create(tmp_path, shore)
    reports = build(root, replace(shore, sheets=()), grid())
    _, known, status = labels(root)
    assert (status == UNKNOWN).all()
    assert not known.any()
    assert sum(report.labelled for report in reports) == 0


def test_codes_that_the_legend_lacks_are_reported(tmp_path: Path) -> None:
    cells = np.full((60, 400), 41, np.uint8)
    cells[:, :10] = 99
    cover = write_map(tmp_path / "nlcd_2019.tif", cells)
    reports = build(create(tmp_path, cover), cover, grid())
    assert [report.unlisted for report in reports[:2]] == [{99}, frozenset()]


def test_a_block_of_which_a_sheet_cannot_be_read_is_not_marked_as_done(tmp_path: Path, shore: LandCover) -> None:
    root = create(tmp_path, shore)
    build_labels(LabelJob(root, "scene", shore, 2, grid(), 0, 0))
    Path(shore.sheets[0].path).unlink()
    with pytest.raises(LandCoverError, match="cannot be read"):
        build_labels(LabelJob(root, "scene", shore, 2, grid(), 0, 1))
    assert np.argwhere(labels(root)[2]).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_a_block_labelled_again_is_the_same(tmp_path: Path, shore: LandCover) -> None:
    root = create(tmp_path, shore)
    build(root, shore, grid())
    before = {path: path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}
    build(root, shore, grid())
    assert {path: path.read_bytes() for path in Path(root).rglob("*") if path.is_file()} == before


# --- rows


def scene(acquired: datetime | None = datetime(2022, 6, 24, 4, 5, 6, 789_000, UTC)) -> Scene:
    model = Georeferenced(CRS, (GSD, 0, LEFT, 0, -GSD, TOP))
    return Scene(
        id="scene",
        satellite="GF2",
        sensor="PMS1",
        level="L2A",
        acquired=acquired,
        gsd=GSD,
        images=(Image("scene.tif", ("red",), 90, 70, "uint8", None, GSD, model),),
        pan=None,
        delivery="scene.tif",
        files=("scene.tif",),
        bytes=1,
        metadata_digest="",
        footprint=shapely.box(104, 24, 105, 25),
        metadata={},
    )


def tiles_with(dataset: Path, status: npt.NDArray[np.uint8]) -> None:
    """A tile store whose scene has these statuses, and no pixels."""
    root = files.join(dataset, layout.TILES)
    store.create_tiles(root, "scene", shape=(ROWS, COLS), bands=1, tile=TILE, block=8, dtype="uint8", attributes={})
    store.open_scene(root, "scene", "r+")["status"][:] = status


def rows(dataset: Path, min_known: float = 0.0, **changes: Any) -> SceneRows:
    return list_scene(RowJob(str(dataset), scene(**changes), grid(), SET, (), IndexConfig(min_known=min_known)))


STATUSES = np.random.default_rng(1).integers(1, len(layout.TILE_STATUS), (ROWS, COLS), np.uint8)
STATUSES[:, ::2] = layout.ACCEPTED


@pytest.fixture
def dataset(tmp_path: Path, shore: LandCover) -> Path:
    """A data set with one scene: tiles of all statuses, labels across a shore."""
    tiles_with(tmp_path, STATUSES)
    build(create(tmp_path, shore), shore, grid())
    return tmp_path


@pytest.mark.parametrize("min_known", [0.0, 0.1, 0.9, 1.0])
def test_rows_are_the_accepted_tiles_of_which_enough_is_known(dataset: Path, min_known: float) -> None:
    fraction, known, _ = labels(files.join(dataset, layout.label_store(SET)))
    listed = rows(dataset, min_known)
    wanted = (layout.ACCEPTED == STATUSES) & (known > 0) & (known >= np.float32(min_known))
    row, col = np.nonzero(wanted)
    assert 0 < len(row) < (layout.ACCEPTED == STATUSES).sum()
    assert listed.columns["row"].tolist() == row.tolist()
    assert listed.columns["col"].tolist() == col.tolist()
    assert np.array_equal(listed.columns["known"], known[row, col])
    assert np.array_equal(np.stack([listed.columns[name] for name in CLASSES], axis=-1), fraction[row, col])
    assert listed.unknown == (layout.ACCEPTED == STATUSES).sum() - len(row)
    assert listed.statuses == {name: int((code == STATUSES).sum()) for code, name in enumerate(layout.TILE_STATUS)}


def test_rows_have_the_columns_of_the_index_in_its_order_and_types(dataset: Path) -> None:
    listed = rows(dataset)
    kinds = {name: values.dtype for name, values in listed.columns.items()}
    assert list(kinds) == [
        "tile",
        "scene",
        "place",
        "row",
        "col",
        "satellite",
        "sensor",
        "acquired",
        "gsd",
        "known",
        "cloud",
        *EXTRA,
        *CLASSES,
    ]
    assert {name for name, kind in kinds.items() if kind.kind == "O"} == {
        "tile",
        "scene",
        "place",
        "satellite",
        "sensor",
    }
    assert kinds["row"] == kinds["col"] == np.int32
    assert kinds["acquired"] == np.dtype("datetime64[us]")
    assert {kinds[name] for name in ("gsd", "known", "cloud", *EXTRA, *CLASSES)} == {np.dtype(np.float32)}
    assert {len(values) for values in listed.columns.values()} == {len(listed.corners)}
    assert len(set(listed.columns["tile"])) == len(listed.corners)
    assert listed.columns["tile"][0] == "scene_r000_c000"
    assert set(listed.columns["satellite"]) == {"GF2"}
    assert set(listed.columns["acquired"].tolist()) == {datetime(2022, 6, 24, 4, 5, 6, 789_000)}


def test_a_scene_of_unknown_date_has_no_date(dataset: Path) -> None:
    assert np.isnat(rows(dataset, acquired=None).columns["acquired"]).all()


def test_a_rows_corners_are_its_tiles_on_the_ground(dataset: Path) -> None:
    listed = rows(dataset)
    x, y = Transformer.from_crs("EPSG:4326", CRS, always_xy=True).transform(*np.moveaxis(listed.corners, -1, 0))
    left = LEFT + listed.columns["col"] * STRIDE * GSD
    top = TOP - listed.columns["row"] * STRIDE * GSD
    for k, (dx, dy) in enumerate([(0, 0), (1, 0), (1, 1), (0, 1)]):
        assert x[:, k] == pytest.approx(left + dx * TILE * GSD, abs=1e-6)
        assert y[:, k] == pytest.approx(top - dy * TILE * GSD, abs=1e-6)


def test_a_scene_without_accepted_tiles_has_no_rows(tmp_path: Path, shore: LandCover) -> None:
    tiles_with(tmp_path, np.full((ROWS, COLS), layout.TILE_STATUS.index("cloud"), np.uint8))
    build(create(tmp_path, shore), shore, grid())
    listed = rows(tmp_path)
    assert listed.corners.shape == (0, 4, 2)
    assert {len(values) for values in listed.columns.values()} == {0}
    assert listed.statuses["cloud"] == ROWS * COLS
    assert footprint_polygons(listed.corners).shape == (0,)


@pytest.mark.parametrize("kind", ["tiles", "labels"])
def test_of_a_scene_that_is_not_whole_the_rest_is_listed(dataset: Path, kind: str) -> None:
    whole = rows(dataset)
    root = files.join(dataset, layout.TILES if kind == "tiles" else layout.label_store(SET))
    status = store.open_scene(root, "scene", "r+")["status"]
    status[3, 2:4] = 0
    listed = rows(dataset)
    gone = (whole.columns["row"] == 3) & np.isin(whole.columns["col"], (2, 3))
    assert gone.any()
    assert (whole.missing, listed.missing) == (0, 2)
    assert listed.columns["tile"].tolist() == whole.columns["tile"][~gone].tolist()
    status[:] = 0
    with pytest.raises(layout.StoreError, match="none of the tiles of this scene is built"):
        rows(dataset)


@pytest.mark.parametrize("kind", [layout.TILES, layout.LABELS])
def test_a_scene_that_is_in_one_store_alone_is_refused(dataset: Path, kind: str) -> None:
    (dataset / kind).rename(dataset / "elsewhere")
    with pytest.raises(layout.StoreError, match="no such scene"):
        rows(dataset)


# --- several label sets


def second(dataset: Path, name: str, codes: npt.NDArray[np.uint8], classes: tuple[str, ...] | None = None) -> None:
    """Another label set of the scene, from a map of the same grid."""
    cover = write_map(dataset / f"{name}.tif", codes)
    if classes is not None:
        cover = replace(cover, legend=replace(cover.legend, classes=classes, colours=("#000000",) * len(classes)))
    build(create(dataset, cover), cover, grid())


def compared(dataset: Path, *others: str, **limits: Any) -> SceneRows:
    return list_scene(RowJob(str(dataset), scene(), grid(), SET, others, IndexConfig(min_known=0.0, **limits)))


def test_agreement_is_one_minus_half_the_distance_to_the_other_sets(dataset: Path) -> None:
    wet = np.full((60, 400), 11, np.uint8)
    wet[:, 100:] = 0
    second(dataset, "nlcd_2001", wet)
    second(dataset, "nlcd_2006", np.full((60, 400), 41, np.uint8))
    alone = compared(dataset).columns
    assert np.isnan(alone["agreement"]).all()
    one = compared(dataset, "nlcd_2001").columns
    unknown = one["col"] * STRIDE * GSD >= 100
    assert unknown.any()
    assert np.array_equal(np.isnan(one["agreement"]), unknown)
    assert one["agreement"][~unknown] == pytest.approx(one["water"][~unknown], abs=1e-6)
    both = compared(dataset, "nlcd_2001", "nlcd_2006").columns
    wanted = np.where(unknown, both["forest"], (both["water"] + both["forest"]) / 2)
    assert both["agreement"] == pytest.approx(wanted, abs=1e-6)
    assert compared(dataset, "nlcd_2001", "nowhere_2020").columns["agreement"] == pytest.approx(
        one["agreement"], nan_ok=True
    )


def test_sets_of_other_classes_are_not_compared(dataset: Path) -> None:
    second(dataset, "nlcd_2001", np.full((60, 400), 11, np.uint8), classes=tuple(f"class_{k}" for k in range(10)))
    assert np.isnan(compared(dataset, "nlcd_2001").columns["agreement"]).all()


def test_the_index_keeps_tiles_on_which_the_sets_agree(dataset: Path) -> None:
    wet = np.full((60, 400), 11, np.uint8)
    wet[:, 100:] = 0
    second(dataset, "nlcd_2001", wet)
    every = compared(dataset, "nlcd_2001")
    for least in (0.0, 0.3, 1.0):
        kept = compared(dataset, "nlcd_2001", min_agreement=least)
        wanted = every.columns["agreement"] >= least  # where there is nothing to compare with, no
        assert kept.columns["tile"].tolist() == every.columns["tile"][wanted].tolist()
        assert kept.unfit == (~wanted).sum() > 0
        assert kept.unknown == every.unknown


def test_the_index_keeps_tiles_whose_label_is_of_about_their_year(dataset: Path) -> None:
    whole = rows(dataset)
    assert set(whole.columns["year_gap"].tolist()) == {2019 - 2022}
    assert len(compared(dataset, max_year_gap=3).corners) == len(whole.corners)
    none = compared(dataset, max_year_gap=2.5)
    assert len(none.corners) == 0
    assert none.unfit == len(whole.corners)
    assert np.isnan(rows(dataset, acquired=None).columns["year_gap"]).all()


# --- footprints


def test_a_footprint_is_the_polygon_of_its_corners() -> None:
    corners = np.array([[(104.0, 25.0), (104.1, 25.0), (104.1, 24.9), (104.0, 24.9)]])
    (polygon,) = footprint_polygons(corners)
    assert polygon.geom_type == "Polygon"
    assert np.array_equal(shapely.get_coordinates(polygon)[:4], corners[0])


@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("zone", [60, 1])
def test_a_footprint_across_the_antimeridian_is_cut_in_two(zone: int, first: int) -> None:
    crs = f"EPSG:326{zone:02d}"
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(180.0, 66.0)
    corners = np.array([(-3000, 1000), (1000, 1000), (1000, -3000), (-3000, -3000)]) + np.array([x, y])
    lonlat = np.stack(Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(*corners.T), axis=-1)
    (footprint,) = footprint_polygons(np.roll(lonlat, first, axis=0)[None])
    assert footprint.geom_type == "MultiPolygon"
    assert footprint.bounds[::2] == (-180.0, 180.0)
    eastern, western = sorted(footprint.geoms, key=lambda part: part.bounds[0], reverse=True)
    assert 0 < 180.0 - eastern.bounds[0] < 0.1
    assert 0 < western.bounds[2] + 180.0 < 0.1
    plain = shapely.Polygon(np.stack([lonlat[:, 0] % 360.0, lonlat[:, 1]], axis=-1))
    assert footprint.area == pytest.approx(plain.area, rel=1e-9)
    assert eastern.area == pytest.approx(plain.intersection(shapely.box(0, -90, 180, 90)).area, rel=1e-9)
