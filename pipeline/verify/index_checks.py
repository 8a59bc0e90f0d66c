"""The checks of the index: its rows, and the splits of its tiles."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pandas
import shapely

from geokr.crs import footprint_polygons, transformer
from geokr.dataset import contents, layout
from geokr.dataset.layout import DATASET, INDEX
from geokr.dataset.splits import count_columns, find_cell_ranges, split_by_place
from pipeline.tasks.rows import RowJob, measure_agreement
from pipeline.verify.dataset import DataSet, StoredScene

OVERLAP_TOLERANCE = 1e-6
"""Overlap of two tiles, as a share of the smaller, that counts as rounding; one pixel of 256 x 256 is 1.5e-5."""


CORNER_TOLERANCE = 1e-9
"""How far a footprint corner may be from the corner of its tile, degrees: a tenth of a millimetre."""


def check_index(data: DataSet, read_labels: bool) -> list[str]:
    """Check that the index lists every accepted, labelled tile once, at its location, with the values of the stores."""
    rows_by_scene: dict[str, geopandas.GeoDataFrame] = {}  # those of the part that is being checked
    classes = data.summary["classes"]
    split = data.config.index.split
    cell = float(data.summary["settings"]["index"]["split"]["cell"])  # the default follows the size of the tiles

    def check(scene: StoredScene) -> Iterator[str]:
        part = rows_by_scene.get(scene.name, nothing)
        row, col = part["row"].to_numpy(), part["col"].to_numpy()
        listings: npt.NDArray[np.int64] = np.zeros(scene.status.shape[:2], np.int64)
        inside = (row >= 0) & (row < listings.shape[0]) & (col >= 0) & (col < listings.shape[1])
        for r, c in zip(row[~inside], col[~inside], strict=True):
            size = f"{listings.shape[0]} x {listings.shape[1]}"
            yield f"{scene.describe_tile(r, c)} is listed, but the scene has {size} tiles"
        part, row, col = part[inside], row[inside], col[inside]
        np.add.at(listings, (row, col), 1)
        for r, c in np.argwhere(listings > 1):
            yield f"{scene.describe_tile(r, c)} is listed {listings[r, c]} times"
        eligible = scene.status == layout.ACCEPTED
        if read_labels:
            known, fraction = contents.read_arrays(data.labels, scene.name, "known", "fraction")
            eligible &= (known >= data.config.index.min_known) & (known > 0)
            figures = read_figures(data, scene, fraction)
            # A tile without a value (NaN) meets no condition, as in the build.
            if data.config.index.min_agreement is not None:
                eligible &= figures["agreement"] >= data.config.index.min_agreement
            if data.config.index.max_year_gap is not None:
                eligible &= np.abs(figures["year_gap"]) <= data.config.index.max_year_gap
            for r, c in np.argwhere(eligible & (listings == 0)):
                yield f"{scene.describe_tile(r, c)} is accepted and labelled, but not listed"
            same = part["known"].to_numpy() == known[row, col]
            same &= (part[classes].to_numpy(np.float32) == fraction[row, col]).all(axis=1)
            for r, c in zip(row[~same], col[~same], strict=True):
                yield f"{scene.describe_tile(r, c)} has other shares in the index than in the labels"
            for key, values in figures.items():
                for k in np.flatnonzero(~equal_or_nan(part[key].to_numpy(), values[row, col])):
                    stored = values[row[k], col[k]]
                    yield f"{scene.describe_tile(row[k], col[k])} has {key} {part[key].iloc[k]}, in the stores {stored}"
        for r, c in np.argwhere((listings > 0) & ~eligible):
            yield f"{scene.describe_tile(r, c)} is listed, but was not accepted"
        projected = scene.grid.corners(slice(0, scene.grid.rows), slice(0, scene.grid.cols))[row, col]
        lonlat = transformer(scene.tiles.attrs["proj:code"], "EPSG:4326").transform(
            projected[..., 0], projected[..., 1]
        )
        corners = np.stack(lonlat, axis=-1)
        for k in np.flatnonzero(
            ~shapely.equals_exact(part.geometry.to_numpy(), footprint_polygons(corners), tolerance=CORNER_TOLERANCE)
        ):
            yield f"{scene.describe_tile(row[k], col[k])} has another footprint in the index"
        expected = split_by_place(corners, split.shares, cell, split.seed)
        listed = part["split"].to_numpy(dtype=object, na_value=None)
        for k in np.flatnonzero(expected != listed):
            yield f"{scene.describe_tile(row[k], col[k])} is in split {listed[k]}, but by its location in {expected[k]}"
        for k in np.flatnonzero(part["place"].to_numpy() != scene.grid.place_ids(row.tolist(), col.tolist())):
            yield f"{scene.describe_tile(row[k], col[k])} has another place in the index"
        attributes: Any = scene.tiles.attrs
        scene_values = {
            "satellite": attributes["satellite"],
            "sensor": attributes["sensor"],
            "gsd": np.float32(attributes["gsd"]),
        }
        for key, value in scene_values.items():
            for k in np.flatnonzero(part[key].to_numpy() != value):
                yield f"{scene.describe_tile(row[k], col[k])} has {key} {part[key].iloc[k]}, its scene {value}"

    faults: list[str] = []
    unlisted, listed, tiles = {scene.name for scene in data.scenes}, set[str](), 0
    for part in data.index_parts():
        rows_by_scene, nothing = dict(iter(part.groupby("scene"))), part.iloc[:0]
        faults += [f"{name}: is listed in two parts of the index" for name in sorted(listed & rows_by_scene.keys())]
        faults += [f"{name}: is listed, but is not in the stores" for name in rows_by_scene.keys() - listed - unlisted]
        faults += data.check_scenes(check, rows_by_scene.keys() - listed)
        listed |= rows_by_scene.keys()
        unlisted -= listed
        tiles += len(part)
    rows_by_scene = {}
    faults += data.check_scenes(check, unlisted)
    if data.number is None and tiles != data.summary["counts"]["index"]:
        faults.append(f"{INDEX} has {tiles} rows, but {DATASET} counts {data.summary['counts']['index']}")
    return faults


def read_figures(
    data: DataSet, scene: StoredScene, fraction: npt.NDArray[np.float32]
) -> dict[str, npt.NDArray[np.float32]]:
    """Cloud, agreement and year gap of every tile, (row, col) each, computed from the stores."""
    name, source = data.summary["label_set"], data.entries[scene.name].scene
    other_sets = tuple(label_set for label_set in data.summary["label_sets"] if label_set != name)
    job = RowJob(data.root, source, scene.grid, name, other_sets, data.config.index)
    gap = np.nan if source.acquired is None else int(name.rpartition("_")[2]) - source.acquired.year
    return {
        "cloud": np.asarray(scene.tiles["cloud"][:]),  # type: ignore[index]
        "agreement": measure_agreement(job, fraction, scene.labels.attrs["classes"]),
        "year_gap": np.full(scene.status.shape, gap, np.float32),
    }


def equal_or_nan(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Element-wise: whether two arrays are equal or both NaN."""
    return np.asarray((first == second) | (np.isnan(first) & np.isnan(second)))


def check_splits(data: DataSet) -> list[str]:
    """Check that no two tiles of different splits cover the same ground, whatever their scenes.

    Tiles that share ground touch the same cell of the grid on which splits are drawn. So only tiles of cells that are
    touched by tiles of several splits are compared; a sound data set has none.
    """
    cell = float(data.summary["settings"]["index"]["split"]["cell"])
    columns = ["scene", "row", "col", "split", "geometry"]
    split_of: dict[int, str] = {}
    mixed: set[int] = set()
    for part in data.index_parts(columns):
        for split, tiles in part.groupby("split"):
            for place in np.unique(list_cells(tiles, cell)[1]).tolist():
                if split_of.setdefault(place, split) != split:
                    mixed.add(place)
    if not mixed:
        return []
    suspects = []
    for part in data.index_parts(columns):
        tile, places = list_cells(part, cell)
        chosen = np.unique(tile[np.isin(places, list(mixed))])
        suspects.append(part.iloc[chosen[part["split"].notna().to_numpy()[chosen]]])
    return compare_splits(data, pandas.concat(suspects))


def list_cells(tiles: geopandas.GeoDataFrame, cell: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The cells of the splits' grid that tiles touch: position of the tile, and number of the cell, (n,) each."""
    polygons, tile = shapely.get_parts(tiles.geometry.to_numpy(), return_index=True)
    west, south, east, north = shapely.bounds(polygons).reshape(-1, 4).T
    corners = np.stack([west, north, east, north, east, south, west, south], axis=1).reshape(-1, 4, 2)
    left, right, bottom, top = find_cell_ranges(corners, cell).T
    width, height = right - left + 1, top - bottom + 1
    which = np.repeat(np.arange(len(polygons)), width * height)
    offset = np.arange(len(which)) - np.repeat(np.cumsum(width * height) - width * height, width * height)
    column = (left[which] + offset % width[which]) % count_columns(cell)
    row = bottom[which] + offset // width[which]
    return tile[which], column * 2**32 + row + 2**31


def compare_splits(data: DataSet, tiles: geopandas.GeoDataFrame) -> list[str]:
    """Compare each tile with those of other splits."""
    tiles_in = data.summary["counts"]["splits"]
    parts = dict(iter(tiles.groupby("split")))
    faults = []
    for first, second in combinations(sorted(parts, key=lambda name: tiles_in.get(name, 0)), 2):
        small, large = parts[first], parts[second]
        polygons, tree_polygons = small.geometry.to_numpy(), large.geometry.to_numpy()
        a, b = shapely.STRtree(tree_polygons).query(polygons, predicate="intersects")
        overlap = shapely.area(shapely.intersection(polygons[a], tree_polygons[b]))
        shared = overlap > OVERLAP_TOLERANCE * np.minimum(shapely.area(polygons[a]), shapely.area(tree_polygons[b]))
        for i, j in zip(a[shared], b[shared], strict=True):
            tile, other_tile = describe_tile(data, small.iloc[i]), describe_tile(data, large.iloc[j])
            faults.append(f"{tile} of {first} shares ground with {other_tile} of {second}")
    return faults


def describe_tile(data: DataSet, tile: Any) -> str:
    """Name the scene, block and tile of an index row, for a message."""
    block = data.config.grid.block
    return (
        f"{tile['scene']} block ({tile['row'] // block}, {tile['col'] // block}): tile ({tile['row']}, {tile['col']})"
    )
