"""The lattice of tiles: what blocks cover, where origins lie, and what memory is promised."""

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Geod, Transformer

from geokr.dataset import store
from pipeline.geometry.grid import TileGrid, choose_crs, find_area_centre, make_scene_grid, peak_bytes, utm_zone
from pipeline.geometry.sensor import Georeferenced
from pipeline.geometry.terrain import Terrain
from pipeline.imaging.pansharpen import equal_weights
from pipeline.imaging.radiometry import Stretch, identity_radiometry
from pipeline.scenes.numbers import AS_THEY_ARE
from pipeline.tasks.tiles import build_tiles
from tests.deliveries import image_of, scene_of, tile_job

CRS = "EPSG:32648"


@st.composite
def grids(draw: st.DrawFn) -> TileGrid:
    tile = draw(st.integers(1, 40))
    stride, block = draw(st.integers(1, tile)), draw(st.integers(1, 6))
    rows, cols = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    shape = ((rows - 1) * stride + tile, (cols - 1) * stride + tile)
    gsd = draw(st.sampled_from([0.81, 2.0, 16.0]))
    left, top = draw(st.integers(-500, 500)) * stride * gsd, draw(st.integers(-500, 500)) * stride * gsd
    return TileGrid(GeoBox(shape, Affine(gsd, 0, left, 0, -gsd, top), CRS), tile, stride, block)


@st.composite
def footprints(draw: st.DrawFn) -> shapely.Polygon:
    """A rotated oblong of tenths of a degree, in any zone, north or south."""
    lon, lat = draw(st.floats(-179.5, 179.5)), draw(st.floats(-70, 70))
    width, height = draw(st.floats(0.02, 0.4)), draw(st.floats(0.02, 0.4))
    turn = np.radians(draw(st.floats(0, 90)))
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [width, height] / 2
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return shapely.Polygon(corners @ rotation + [lon, lat])


# --- blocks


@given(grid=grids())
def test_blocks_cover_each_tile_exactly_once(grid: TileGrid) -> None:
    covered = np.zeros((grid.rows, grid.cols), int)
    for block in grid:
        covered[block.rows, block.cols] += 1
    assert (covered == 1).all()
    assert len(list(grid)) == grid.blocks[0] * grid.blocks[1]


@given(grid=grids())
def test_a_blocks_pixels_are_its_tiles_in_the_grid(grid: TileGrid) -> None:
    pixel = np.arange(grid.geobox.shape[0])[:, None] * 100_000 + np.arange(grid.geobox.shape[1])
    whole = grid.geobox.transform
    for block in grid:
        here = block.geobox.transform
        x, y = round((here.c - whole.c) / whole.a), round((here.f - whole.f) / whole.e)
        assert here.almost_equals(whole @ Affine.translation(x, y), precision=1e-6)
        height, width = block.geobox.shape
        own = pixel[y : y + height, x : x + width]
        first, last = (block.rows.start, block.cols.start), (block.rows.stop - 1, block.cols.stop - 1)
        assert own[0, 0] == first[0] * grid.stride * 100_000 + first[1] * grid.stride
        assert own[-1, -1] == (last[0] * grid.stride + grid.tile - 1) * 100_000 + last[1] * grid.stride + grid.tile - 1
        assert str(block.geobox.crs) == CRS


@given(grid=grids(), data=st.data())
def test_corners_are_those_of_the_tiles_geobox(grid: TileGrid, data: st.DataObject) -> None:
    r, c = data.draw(st.integers(0, grid.rows - 1)), data.draw(st.integers(0, grid.cols - 1))
    corners = grid.corners(slice(r, grid.rows), slice(c, grid.cols))
    assert corners.shape == (grid.rows - r, grid.cols - c, 4, 2)
    y, x = r * grid.stride, c * grid.stride
    tile = grid.geobox[y : y + grid.tile, x : x + grid.tile]
    left, bottom, right, top = tile.boundingbox.bbox
    wanted = [(left, top), (right, top), (right, bottom), (left, bottom)]  # clockwise from the upper left
    assert corners[0, 0] == pytest.approx(np.array(wanted), abs=1e-6)


@pytest.mark.parametrize("at", [(-1, 0), (0, -1), (2, 0), (0, 3)])
def test_a_block_outside_the_grid_is_refused(at: tuple[int, int]) -> None:
    grid = TileGrid(GeoBox((40, 60), Affine(1, 0, 0, 0, -1, 0), CRS), 10, 10, 2)
    assert grid.blocks == (2, 3)
    with pytest.raises(IndexError, match=r"outside the grid of \(2, 3\) blocks"):
        grid.block_at(*at)


@pytest.mark.parametrize(
    ("shape", "tile", "stride", "block", "sentence"),
    [
        ((40, 60), 0, 1, 2, "tile must be at least 1 px, got 0"),
        ((40, 60), 10, 0, 2, "stride must be in 1..10 px, got 0"),
        ((40, 60), 10, 11, 2, "stride must be in 1..10 px, got 11"),
        ((40, 60), 10, 10, 0, "block must be at least 1 tile, got 0"),
        ((45, 60), 10, 10, 2, "45 px is not a whole number of tiles of 10 px with stride 10 px"),
        ((40, 9), 10, 10, 2, "9 px is not a whole number of tiles"),
    ],
)
def test_a_grid_refuses_nonsense_by_name(
    shape: tuple[int, int], tile: int, stride: int, block: int, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        TileGrid(GeoBox(shape, Affine(1, 0, 0, 0, -1, 0), CRS), tile, stride, block)


# --- scenes

GSDS = st.sampled_from([0.81, 3.24, 8.0, 16.0])


@given(footprint=footprints(), gsd=GSDS, tile=st.integers(16, 64), data=st.data())
@settings(max_examples=60)
def test_the_grid_holds_every_tile_that_fits_the_bounds_and_no_other(
    footprint: shapely.Polygon, gsd: float, tile: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(8, tile))
    grid = make_scene_grid(footprint, gsd, tile, stride, 4)
    assert grid is not None
    crs = str(grid.geobox.crs)
    project = Transformer.from_crs(4326, crs, always_xy=True).transform
    x, y = project(*shapely.get_coordinates(footprint).T)
    left, bottom, right, top = grid.geobox.boundingbox.bbox
    step, slack = stride * gsd, 1e-6
    assert x.min() - slack <= left < x.min() + step + slack
    assert y.min() - slack <= bottom < y.min() + step + slack
    assert x.max() - step - slack < right <= x.max() + slack
    assert y.max() - step - slack < top <= y.max() + slack
    # On the lattice of the zone: origins of all tiles are whole multiples of stride x GSD.
    corners = grid.corners(slice(0, 2), slice(0, 2))[:, :, 0].reshape(-1, 2) / step
    assert np.abs(corners - np.rint(corners)).max() < 1e-6
    assert grid.geobox.resolution.x == -grid.geobox.resolution.y == gsd


@given(gsd=GSDS, tile=st.integers(16, 64), shift=st.tuples(*[st.floats(-1, 1)] * 2), data=st.data())
@settings(max_examples=30)
def test_scenes_of_one_place_and_gsd_share_tile_origins(
    gsd: float, tile: int, shift: tuple[float, float], data: st.DataObject
) -> None:
    """Each tile of one scene that lies within the other's grid is a tile of the other."""
    stride, side = data.draw(st.integers(8, tile)), 200 * gsd / 111_000
    boxes, origins, named = [], [], {}
    for lon, lat in ((105.3, 24.8), (105.3 + shift[0] * side / 2, 24.8 + shift[1] * side / 2)):
        grid = make_scene_grid(shapely.box(lon - side, lat - side, lon + side, lat + side), gsd, tile, stride, 4)
        assert grid is not None
        boxes.append(np.array(grid.geobox.boundingbox.bbox))
        origins.append(grid.corners(slice(0, grid.rows), slice(0, grid.cols))[:, :, 0].reshape(-1, 2))
        names = grid.place_ids(*np.divmod(np.arange(grid.rows * grid.cols), grid.cols))
        for name, origin in zip(names, map(tuple, origins[-1].round(2)), strict=True):
            assert named.setdefault(name, origin) == origin  # a place has one name, and a name one place
    for ours, box, theirs in ((origins[0], boxes[1], origins[1]), (origins[1], boxes[0], origins[0])):
        room = box + np.array([-1, tile - 1, 1 - tile, 1]) * gsd  # a pixel's leeway
        inside = ((ours > room[:2]) & (ours < room[2:])).all(axis=1)
        assert inside.sum() > 9
        assert set(map(tuple, ours[inside].round(4))) <= set(map(tuple, theirs.round(4)))
    assert len(set(named.values())) == len(named)


def test_tiles_of_another_size_zone_or_origin_are_of_another_place() -> None:
    names = []
    origins = [(2, CRS, 0, 0), (4, CRS, 0, 0), (2, "EPSG:32649", 0, 0), (2, CRS, 40, 0), (2, CRS, 0, 40)]
    for gsd, crs, left, top in origins:
        grid = TileGrid(GeoBox((10, 10), Affine(gsd, 0, left, 0, -gsd, top), crs), 10, 10, 1)
        names += grid.place_ids([0], [0])
    assert len(set(names)) == 5
    assert names[0] == "32648_2_0_0"


def test_a_scene_without_room_for_a_tile_has_no_grid() -> None:
    footprint = shapely.box(105.3, 24.8, 105.31, 24.83)  # about 1,010 x 3,320 m
    assert make_scene_grid(footprint, 8.0, 64, 64, 4) is not None
    assert make_scene_grid(footprint, 8.0, 128, 128, 4) is None
    assert make_scene_grid(footprint, 8.0, 500, 500, 4) is None


@pytest.mark.parametrize(
    ("lon", "lat", "code"),
    [
        (105.3, 24.8, "EPSG:32648"),
        (105.3, -24.8, "EPSG:32748"),
        (-180.0, 10.0, "EPSG:32601"),
        (179.99, 10.0, "EPSG:32660"),
        (180.0, 10.0, "EPSG:32601"),
        (185.9, -10.0, "EPSG:32701"),
        (90.0, 23.9, "EPSG:32646"),
        (89.99, 0.0, "EPSG:32645"),
    ],
)
def test_the_zone_of_a_place(lon: float, lat: float, code: str) -> None:
    assert utm_zone(lon, lat) == code


@pytest.mark.parametrize(
    ("lon", "lat", "code"),
    [
        (10.0, 84.1, "EPSG:5041"),
        (10.0, 83.9, "EPSG:32632"),
        (-170.0, 88.0, "EPSG:5041"),
        (10.0, -84.1, "EPSG:5042"),
        (10.0, -83.9, "EPSG:32732"),
    ],
)
def test_beyond_84_degrees_the_plane_is_polar_stereographic(lon: float, lat: float, code: str) -> None:
    assert choose_crs(lon, lat) == code
    footprint = shapely.box(lon - 1.0, lat - 0.05, lon + 1.0, lat + 0.05)
    grid = make_scene_grid(footprint, 16.0, 64, 48, 4)
    assert grid is not None
    assert str(grid.geobox.crs) == code
    # Tiles keep their places and size: a pixel is 16 m on the ground to within what the projection says of itself.
    corners = grid.corners(slice(0, grid.rows), slice(0, grid.cols)).reshape(-1, 4, 2)
    lons, lats = Transformer.from_crs(code, 4326, always_xy=True).transform(corners[..., 0], corners[..., 1])
    side = Geod(ellps="WGS84").inv(lons[:, 0], lats[:, 0], lons[:, 1], lats[:, 1])[2]
    assert side == pytest.approx(64 * 16.0, rel=7e-3)
    assert abs(lats.mean() - lat) < 0.05


def test_the_centre_decides_where_a_scene_belongs() -> None:
    """Across a zone's edge, the equator and 84 degrees: by a little on either side."""
    for shift, codes in (
        (-0.01, ("EPSG:32648", "EPSG:32748", "EPSG:32632")),
        (0.01, ("EPSG:32649", "EPSG:32648", "EPSG:5041")),
    ):
        boxes = ((108 + shift, 20.0, 0), (105.0, shift, 1), (10.0, 84 + shift, 2))
        for lon, lat, k in boxes:
            grid = make_scene_grid(shapely.box(lon - 0.3, lat - 0.3, lon + 0.3, lat + 0.3), 16.0, 64, 48, 4)
            assert grid is not None
            assert str(grid.geobox.crs) == codes[k]
    # A sliver to the west does not outweigh the rest of the scene.
    lopsided = shapely.Polygon([(107.0, 20.0), (108.9, 20.3), (108.9, 19.7)])
    assert find_area_centre(lopsided) == pytest.approx((108.267, 20.0), abs=0.01)


@pytest.mark.parametrize("lon", [179.95, 180.05, -180.05, -179.95])
def test_a_scene_across_the_antimeridian_lies_in_one_zone(lon: float) -> None:
    footprint = shapely.box(lon - 0.1, -17.1, lon + 0.1, -17.0)
    grid = make_scene_grid(footprint, 8.0, 64, 48, 4)
    assert grid is not None
    assert str(grid.geobox.crs) == utm_zone(lon, -17.0)
    assert grid.geobox.shape[1] * 8.0 == pytest.approx(21_300, abs=600)  # 0.2 degrees at 17 S
    assert grid.geobox.shape[0] * 8.0 == pytest.approx(11_070, abs=600)


# --- memory


@pytest.mark.parametrize(
    ("bands", "dtype", "turn", "pan", "dn"),
    [
        (4, "uint16", 0.0, False, False),
        (4, "uint16", 40.0, False, False),
        (3, "uint8", 40.0, False, False),
        (8, "uint16", 40.0, False, True),
        (4, "uint16", 40.0, True, False),
        (4, "uint16", 0.0, True, True),
    ],
)
def test_building_a_block_takes_no_more_memory_than_promised(
    tmp_path: Path, bands: int, dtype: str, turn: float, pan: bool, dn: bool
) -> None:
    """An image that lies askew is drawn on by a window of up to twice the block; nodata makes a mask of it, too."""
    tile, stride, block, gsd = 256, 200, 4, 10.0
    side = (block - 1) * stride + tile
    size = int(side * 1.45)
    placed = Affine.translation(5e5, 2e6) @ Affine.rotation(turn) @ Affine.scale(gsd, -gsd)
    model = Georeferenced(CRS, tuple(placed @ Affine.translation(-size / 2, -size / 2))[:6])
    pixels = np.random.default_rng(0).integers(30, 220, (bands, size, size)).astype(dtype)
    image = image_of(tmp_path / "image.tif", pixels, model, gsd, nodata=0)
    scene = replace(
        scene_of(image), pan=image_of(tmp_path / "pan.tif", pixels[:1], model, gsd, nodata=0) if pan else None
    )
    stored = identity_radiometry("uint16", [AS_THEY_ARE] * bands) if dn else None
    box = GeoBox((side, side), Affine(gsd, 0, 5e5 - side * gsd / 2, 0, -gsd, 2e6 + side * gsd / 2), CRS)
    root = str(tmp_path / "tiles.zarr")
    sizes: dict[str, Any] = {"bands": bands, "tile": tile, "block": block, "dtype": "uint16" if dn else "uint8"}
    grid = TileGrid(box, tile, stride, block)
    weights = equal_weights(bands) if pan else ()
    job = tile_job(root, scene, Terrain(None, 0.0), Stretch(0, 250), grid, radiometry=stored, weights=weights)
    del pixels

    def peak() -> int:
        store.create_tiles(root, scene.id, shape=(block, block), attributes={}, **sizes)
        tracemalloc.start()
        report = build_tiles(job)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert report.accepted == block * block
        return most

    peak()  # what libraries keep after their first use is not the block's
    promised = peak_bytes(block, tile, stride, bands, np.dtype(dtype).itemsize, pan=pan, stored=2 if dn else 1)
    assert promised / 4 < peak() <= promised
