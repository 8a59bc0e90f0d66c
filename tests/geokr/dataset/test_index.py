"""The tile index, and splits that share no ground."""

import json
import math
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import duckdb
import geopandas
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer

from geokr.dataset.index import (
    ROW_GROUP,
    list_parts,
    make_part,
    publish,
    read_index,
    read_summary,
    write_index,
    write_part,
)
from geokr.dataset.layout import DATASET, INDEX, SCHEMA
from geokr.dataset.splits import count_columns, draw_cells, find_cell_ranges, split_by_place

Floats = npt.NDArray[np.float64]

SHARES = {"train": 0.7, "validation": 0.2, "test": 0.1}
RADIUS = 6371007.181


def squares(lon: npt.ArrayLike, lat: npt.ArrayLike, side: float) -> Floats:
    """Footprints about centres in degrees, `side` metres wide, longitudes in -180..180: (n, 4, 2)."""
    lon, lat = np.atleast_1d(np.asarray(lon, float)), np.atleast_1d(np.asarray(lat, float))
    half = np.rad2deg(side / 2 / RADIUS)
    signs = np.array([(-1, 1), (1, 1), (1, -1), (-1, -1)])
    across = lon[:, None] + signs[:, 0] * (half / np.cos(np.deg2rad(lat)))[:, None]
    return np.stack([(across + 180.0) % 360.0 - 180.0, lat[:, None] + signs[:, 1] * half], axis=-1)


def polygons(lonlat: Floats, middle: float) -> npt.NDArray[np.object_]:
    """Footprints as polygons whose longitudes are the nearest to `middle`."""
    near = middle + (lonlat[..., 0] - middle + 180.0) % 360.0 - 180.0
    return np.asarray(shapely.polygons(np.stack([near, lonlat[..., 1]], axis=-1)))


def apart(shapes: npt.NDArray[np.object_], splits: npt.NDArray[np.object_]) -> None:
    """Assert that no ground lies in footprints of two splits."""
    ground = {split: shapely.union_all(shapes[splits == split]) for split in set(splits) - {None}}
    for one, other in combinations(ground.values(), 2):
        assert shapely.intersection(one, other).area <= 1e-12 * min(one.area, other.area)


# --- splits


@given(
    lon=st.sampled_from([-180.0, -179.99, -60.0, 0.0, 104.4, 179.97, 180.0]),
    lat=st.one_of(st.sampled_from([-83.9, 0.0, 83.9, 89.5, -89.5]), st.floats(-85, 85)),
    side=st.floats(300, 4000),
    cell=st.floats(2000, 20_000),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60)
def test_footprints_of_different_splits_share_no_ground(
    lon: float, lat: float, side: float, cell: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    spread = np.rad2deg(15_000 / RADIUS)
    lats = np.clip(lat + rng.uniform(-spread, spread, 120), -89.8, 89.8)
    lons = lon + rng.uniform(-spread, spread, 120) / np.cos(np.deg2rad(lat))
    tiles = squares(lons, lats, side)
    splits = split_by_place(tiles, SHARES, cell, seed)
    assert set(splits) <= {*SHARES, None}
    apart(polygons(tiles, lon), splits)


def lattice(zone: int, offset: float, lat: float, side: float) -> tuple[Floats, Floats]:
    """Overlapping UTM tiles from a place on, longitudes and latitudes: their corners, and their bent outlines."""
    crs = f"EPSG:326{zone:02d}"
    to_lonlat = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    _, north = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(6.0 * zone - 183.0, lat)
    r, c = (index.ravel() for index in np.meshgrid(np.arange(12), np.arange(12), indexing="ij"))
    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
    origins = np.array([500_000.0 + offset * side, north]) + np.stack([c, r], axis=-1) * side * 200 / 256
    corners = origins[:, None] + square * side
    steps = np.linspace(0, 1, 33, endpoint=False)[:, None]
    following = np.roll(corners, -1, axis=1)
    outlines = (corners[:, :, None] + (following - corners)[:, :, None] * steps).reshape(len(corners), -1, 2)
    return tuple(np.stack(to_lonlat.transform(p[..., 0], p[..., 1]), axis=-1) for p in (corners, outlines))


offsets = st.sampled_from([-4.4, -0.5, -0.3, 40.0])  # sides from the central meridian, across which edges bulge
latitudes = st.sampled_from([1.0, 45.0, 70.0, 83.5])
gsds = st.sampled_from([2.0, 16.0, 50.0])


@given(zone=st.sampled_from([1, 31, 60]), offset=offsets, lat=latitudes, gsd=gsds, seed=st.integers(0, 1000))
@settings(max_examples=30)
def test_utm_tiles_of_different_splits_share_no_ground_though_their_edges_bend(
    zone: int, offset: float, lat: float, gsd: float, seed: int
) -> None:
    corners, outlines = lattice(zone, offset, lat, 256 * gsd)
    splits = split_by_place(corners, SHARES, 6 * 256 * gsd, seed)
    apart(polygons(outlines, 6.0 * zone - 183.0), splits)


@given(offset=offsets, lat=latitudes, gsd=gsds, pixels=st.floats(0.05, 0.2))
@settings(max_examples=30)
def test_the_cells_of_a_tile_hold_its_bent_edges(offset: float, lat: float, gsd: float, pixels: float) -> None:
    cell = gsd * pixels  # so small that the bends cross borders
    corners, outlines = lattice(31, offset, lat, 256 * gsd)
    # Lambert's cylindrical equal-area projection with true scale at 30 degrees.
    column = outlines[..., 0] * (count_columns(cell) / 360.0)
    row = np.sin(np.deg2rad(outlines[..., 1])) * RADIUS / math.cos(math.radians(30.0)) / cell
    first_column, last_column, first_row, last_row = find_cell_ranges(corners, cell).T
    assert (first_column <= column.min(axis=1)).all()
    assert (last_column + 1 >= column.max(axis=1)).all()
    assert (first_row <= row.min(axis=1)).all()
    assert (last_row + 1 >= row.max(axis=1)).all()


def test_a_footprint_lies_in_its_cells_split_or_between_splits() -> None:
    rng = np.random.default_rng(3)
    lon, lat = rng.uniform(-180, 180, 4000), np.rad2deg(np.arcsin(rng.uniform(-0.99, 0.99, 4000)))
    cell = 5000.0
    small = split_by_place(squares(lon, lat, 1.0), SHARES, cell, 7)
    large = split_by_place(squares(lon, lat, 3000.0), SHARES, cell, 7)
    assert np.mean(small == None) < 0.01  # noqa: E711 - elementwise
    # A larger footprint about the same place has the same split or none, and none only if it meets two cells.
    assert all(b is None or a is None or a == b for a, b in zip(small, large, strict=True))
    assert 0.2 < np.mean(large == None) < 0.8  # noqa: E711 - elementwise


@pytest.mark.parametrize("border", [180.0, -180.0, 0.0, 60.0])
def test_a_footprint_in_cells_of_two_splits_has_none_and_in_cells_of_one_has_that(border: float) -> None:
    cell = 2 * math.pi * RADIUS * math.cos(math.radians(30)) / 7200  # a border every 0.05 degrees, one at 180
    row = np.arange(-200, 200) + 0.5
    lat = np.rad2deg(np.arcsin(row * cell * math.cos(math.radians(30)) / RADIUS))
    west, across, east = (
        split_by_place(squares(border + by + 0 * lat, lat, 200.0), SHARES, cell, 11) for by in (-0.01, 0, 0.01)
    )
    assert across.tolist() == [a if a == b else None for a, b in zip(west, east, strict=True)]
    assert set(across) == {*SHARES, None}


@pytest.mark.parametrize("seed", range(3))
def test_the_shares_of_the_cells_approach_the_wished_ones(seed: int) -> None:
    column, row = (index.ravel() for index in np.meshgrid(np.arange(100), np.arange(100)))
    draws = draw_cells(column, row, seed)
    assert np.histogram(draws, bins=10, range=(0, 1))[0] == pytest.approx(1000, abs=4 * math.sqrt(900))
    cell = 5000.0
    lon = (column + 0.5) * (360.0 / count_columns(cell))
    lat = np.rad2deg(np.arcsin((row - 50 + 0.5) * cell * math.cos(math.radians(30)) / RADIUS))
    splits = split_by_place(squares(lon, lat, 10.0), SHARES, cell, seed)  # one footprint a cell
    for name, share in SHARES.items():
        assert np.mean(splits == name) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 10_000))


@pytest.mark.parametrize("step", [(1, 0), (0, 1), (1, 1), (-1, 1), (0, 2), (1000, 0)])
def test_neighbouring_cells_draw_independently(step: tuple[int, int]) -> None:
    column, row = (index.ravel() for index in np.meshgrid(np.arange(-50, 50), np.arange(-50, 50)))
    here, there = draw_cells(column, row, 5), draw_cells(column + step[0], row + step[1], 5)
    assert abs(np.corrcoef(here, there)[0, 1]) < 4 / math.sqrt(len(column))


places = st.lists(st.tuples(st.floats(-180, 180), st.floats(-80, 80)), min_size=1, max_size=40)


@given(places, st.integers(0, 2**63 - 1))
@settings(max_examples=40)
def test_a_footprints_split_depends_on_its_place_and_the_seed_alone(
    centres: list[tuple[float, float]], seed: int
) -> None:
    tiles = squares(*np.transpose(centres), 4000.0)
    splits = split_by_place(tiles, SHARES, 20_000.0, seed)
    assert split_by_place(tiles.copy(), SHARES, 20_000.0, seed).tolist() == splits.tolist()
    assert split_by_place(tiles[::-1], SHARES, 20_000.0, seed)[::-1].tolist() == splits.tolist()
    for k in range(len(tiles)):
        assert split_by_place(tiles[k : k + 1], SHARES, 20_000.0, seed).tolist() == [splits[k]]
    turned = np.roll(tiles, 1, axis=1)[:, ::-1]  # another first corner, the other way round
    assert split_by_place(turned, SHARES, 20_000.0, seed).tolist() == splits.tolist()


def test_another_seed_gives_other_splits() -> None:
    rng = np.random.default_rng(1)
    tiles = squares(rng.uniform(-180, 180, 500), rng.uniform(-60, 60, 500), 10.0)
    several = [tuple(split_by_place(tiles, SHARES, 5000.0, seed)) for seed in (0, 1, 2, 2**40, 2**63)]
    assert len(set(several)) == len(several)
    agreement = np.mean(np.array(several[0], object) == np.array(several[1], object))
    assert agreement == pytest.approx(sum(share**2 for share in SHARES.values()), abs=0.1)


def test_a_split_keeps_its_cells_when_the_last_ones_are_merged() -> None:
    rng = np.random.default_rng(2)
    tiles = squares(rng.uniform(-180, 180, 500), rng.uniform(-60, 60, 500), 10.0)
    three, two = (split_by_place(tiles, s, 5000.0, 4) for s in (SHARES, {"train": 0.7, "rest": 0.3}))
    assert ((three == "train") == (two == "train")).all()


def test_a_share_of_none_or_of_all_is_kept() -> None:
    rng = np.random.default_rng(2)
    tiles = squares(rng.uniform(-180, 180, 500), rng.uniform(-60, 60, 500), 4000.0)
    for shares in ({"train": 1.0}, {"train": 1.0, "test": 0.0}, {"test": 0.0, "train": 1.0}):
        assert set(split_by_place(tiles, shares, 5000.0, 4)) == {"train"}


@pytest.mark.parametrize(
    ("shares", "cell", "fault"),
    [
        ({"train": 0.7, "test": 0.2}, 5000.0, "sum to 1"),
        ({"train": 1.2, "test": -0.2}, 5000.0, "sum to 1"),
        ({}, 5000.0, "sum to 1"),
        (SHARES, 0.0, "must be positive, got 0.0 m"),
        (SHARES, -5.0, "must be positive, got -5.0 m"),
    ],
)
def test_nonsense_is_refused_by_its_value(shares: Mapping[str, float], cell: float, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        split_by_place(squares(0.0, 0.0, 10.0), shares, cell, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_footprint_that_lies_nowhere_is_refused(value: float) -> None:
    tiles = squares([0.0, 1.0], [0.0, 1.0], 10.0)
    tiles[1, 2, 0] = value
    with pytest.raises(ValueError, match="finite"):
        split_by_place(tiles, SHARES, 5000.0, 0)


def test_no_footprints_have_no_splits() -> None:
    assert split_by_place(np.zeros((0, 4, 2)), SHARES, 5000.0, 0).shape == (0,)


# --- the index on disk


def columns(n: int) -> dict[str, npt.NDArray[Any]]:
    """Columns of every kind that an index holds."""
    rng = np.random.default_rng(n)
    names = np.array([f"scène_{k}" for k in range(n)], dtype=object)
    return {
        "tile": names,
        "row": rng.integers(0, 500, n, np.int32),
        "acquired": np.array(["2022-06-24T04:05:06.789", "NaT"] * n, "datetime64[us]")[:n],
        "gsd": rng.random(n, np.float32),
        "known": rng.random(n, np.float32),
        "split": np.array(["train", None, "test"] * n, dtype=object)[:n],
    }


@pytest.mark.parametrize("n", [0, 1, 7])
def test_an_index_is_read_as_it_was_written(tmp_path: Path, n: int) -> None:
    wanted = columns(n)
    write_index(tmp_path, wanted, shapely.polygons(squares(np.arange(n), np.arange(n), 500.0)))
    table = read_index(tmp_path)
    assert table.column_names == list(wanted)
    for name, values in wanted.items():
        found = table[name].to_numpy()
        if values.dtype == object:
            assert found.tolist() == values.tolist()
        else:
            assert found.dtype == values.dtype
            assert np.array_equal(found, values, equal_nan=True)


def test_a_columns_type_does_not_depend_on_the_rows(tmp_path: Path) -> None:
    schemas = []
    for n in (0, 1, 7):
        write_index(tmp_path, columns(n), shapely.polygons(squares(np.arange(n), np.arange(n), 500.0)))
        schemas.append(read_index(tmp_path).schema.remove_metadata())
    between = {**columns(7), "split": np.full(7, None, dtype=object)}
    write_index(tmp_path, between, shapely.polygons(squares(np.arange(7), np.arange(7), 500.0)))
    schemas.append(read_index(tmp_path).schema.remove_metadata())
    assert all(schema.equals(schemas[0]) for schema in schemas)
    assert pa.types.is_large_string(schemas[0].field("split").type) or pa.types.is_string(
        schemas[0].field("split").type
    )


def test_columns_are_read_in_the_order_asked_for(tmp_path: Path) -> None:
    write_index(tmp_path, columns(4), shapely.polygons(squares(np.arange(4), np.arange(4), 500.0)))
    assert read_index(tmp_path, ["split", "row"]).column_names == ["split", "row"]
    assert read_index(str(tmp_path), ("tile", "geometry")).column_names == ["tile", "geometry"]


def test_geopandas_opens_an_index_with_its_footprints_in_longitude_and_latitude(tmp_path: Path) -> None:
    footprints = shapely.polygons(squares([104.4, -60.0], [25.0, -31.0], 500.0))
    write_index(tmp_path, columns(2), footprints)
    frame = geopandas.read_parquet(tmp_path / INDEX)
    assert frame.crs == "EPSG:4326"
    assert frame.geometry.name == "geometry"
    assert shapely.equals_exact(frame.geometry.to_numpy(), footprints).all()
    geo = json.loads(pa.parquet.read_schema(list_parts(tmp_path)[0]).metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    assert geo["columns"]["geometry"]["encoding"] == "WKB"


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for folder in ("a", "b"):
        write_index(tmp_path / folder, columns(7), shapely.polygons(squares(np.arange(7), np.arange(7), 500.0)))
    first, second = (Path(*list_parts(tmp_path / folder)).read_bytes() for folder in ("a", "b"))
    assert first == second


def parts_of(n: int, parts: int) -> list[bytes]:
    """An index of n tiles a degree apart, in parts of equal size."""
    whole, boxes = columns(n), shapely.polygons(squares(np.arange(n), np.arange(n) / 2, 500.0))
    cuts = np.array_split(np.arange(n), parts)
    return [make_part({name: values[cut] for name, values in whole.items()}, boxes[cut]) for cut in cuts]


def test_parts_that_replace_an_index_are_all_of_it(tmp_path: Path) -> None:
    """Whatever was there: more parts, parts of another number, or what an interrupted run left."""
    for number, content in enumerate(parts_of(12, 4)):
        write_part(tmp_path, number, 4, content)
    assert read_index_names(tmp_path) == []  # not before all are written
    publish(tmp_path, 4)
    write_part(tmp_path, 4, 5, b"left by a run with another scene")
    for number, content in enumerate(parts_of(12, 3)):
        write_part(tmp_path, number, 3, content)
    publish(tmp_path, 3)
    assert read_index_names(tmp_path) == [f"part-0000{k}-of-00003.parquet" for k in range(3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [INDEX]
    wanted = columns(12)
    assert read_index(tmp_path, ["row"])["row"].to_pylist() == wanted["row"].tolist()
    Path(list_parts(tmp_path)[1]).unlink()
    with pytest.raises(ValueError, match=r"index\.parquet: 2 parts, expected 3; build the index again"):
        read_index(tmp_path)


def read_index_names(dataset: Path) -> list[str]:
    return sorted(path.name for path in (dataset / INDEX).glob("*"))


def test_a_replacement_that_was_interrupted_is_completed(tmp_path: Path) -> None:
    write_index(tmp_path, columns(3), shapely.polygons(squares(np.arange(3), np.arange(3), 500.0)))
    (content,) = parts_of(5, 1)
    write_part(tmp_path, 0, 1, content)
    (tmp_path / INDEX).rename(tmp_path / f"{INDEX}.old")  # killed between the two renames
    publish(tmp_path, 1)
    assert read_index(tmp_path).num_rows == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == [INDEX]


def test_every_reader_finds_the_same_tiles(tmp_path: Path) -> None:
    """Tiles of a split with a condition in a window, by geopandas, DuckDB and pyarrow."""
    for number, content in enumerate(parts_of(40, 3)):
        write_part(tmp_path, number, 3, content)
    publish(tmp_path, 3)
    folder, window = tmp_path / INDEX, (4.5, 0.0, 31.5, 40.0)
    west, south, east, north = window
    frame = geopandas.read_parquet(folder, bbox=window)
    found = {"geopandas": frame[(frame["split"] == "train") & (frame["known"] > 0.5)]["tile"].tolist()}
    inside = (pc.field("bbox", "xmax") >= west) & (pc.field("bbox", "xmin") <= east)
    inside &= (pc.field("bbox", "ymax") >= south) & (pc.field("bbox", "ymin") <= north)
    condition = (pc.field("split") == "train") & (pc.field("known") > 0.5) & inside
    found["pyarrow"] = pa.dataset.dataset(folder).to_table(["tile"], condition)["tile"].to_pylist()
    rows = duckdb.sql(
        f"SELECT tile FROM '{folder}/*.parquet' WHERE split = 'train' AND known > 0.5 "
        f"AND bbox.xmax >= {west} AND bbox.xmin <= {east} AND bbox.ymax >= {south} AND bbox.ymin <= {north}"
    )
    found["duckdb"] = [tile for (tile,) in rows.fetchall()]
    wanted = columns(40)
    chosen = (wanted["split"] == "train") & (wanted["known"] > 0.5) & (np.abs(np.arange(40) - 18) < 13.6)
    assert chosen.sum() == 3
    assert found == dict.fromkeys(found, wanted["tile"][chosen].tolist())


def test_a_row_group_says_where_its_tiles_lie(tmp_path: Path) -> None:
    n = ROW_GROUP + 5
    boxes = shapely.box(np.arange(n) / 100, 0, np.arange(n) / 100 + 0.01, 1)
    write_index(tmp_path, {"row": np.arange(n)}, boxes)
    metadata = pa.parquet.read_metadata(*list_parts(tmp_path))
    assert metadata.num_row_groups == 2
    names = [metadata.row_group(1).column(k).path_in_schema for k in range(metadata.num_columns)]
    last = metadata.row_group(1).column(names.index("bbox.xmin")).statistics
    assert (last.min, last.max) == (ROW_GROUP / 100, (n - 1) / 100)


def test_the_summary_of_an_unfinished_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a finished data set") as caught:
        read_summary(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / DATASET}: ")
    (tmp_path / DATASET).write_text(json.dumps({"schema": SCHEMA}))
    assert read_summary(tmp_path) == {"schema": SCHEMA}
    (tmp_path / DATASET).write_text(json.dumps({"schema": SCHEMA - 1}))
    with pytest.raises(ValueError, match=rf"dataset\.json: schema {SCHEMA - 1}, but this program reads {SCHEMA}"):
        read_summary(tmp_path)
