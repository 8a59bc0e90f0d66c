"""The checks of the index: its rows, and the splits of its tiles."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from geokr.crs import transformer
from geokr.dataset import contents, layout
from geokr.dataset.layout import DATASET, INDEX
from geokr.dataset.splits import split_by_place
from pipeline.tasks.rows import RowJob, footprint_polygons, measure_agreement
from pipeline.verify.dataset import DataSet, StoredScene

SHARED = 1e-6
"""Share of a tile that two may have in common before they share ground: rounding; one pixel of 256 x 256 is 1.5e-5."""


MOVED = 1e-9
"""How far a footprint's corner may lie from where the tile is, degrees: a tenth of a millimetre."""


def check_index(data: DataSet, read_labels: bool) -> list[str]:
    """The index lists every accepted and labelled tile once, where it lies, with what the stores say of it."""
    index = data.index
    here = dict(iter(index.groupby("scene")))
    classes = data.summary["classes"]
    split = data.config.index.split

    def check(scene: StoredScene) -> Iterator[str]:
        part = here.get(scene.name, index.iloc[:0])
        row, col = part["row"].to_numpy(), part["col"].to_numpy()
        times: npt.NDArray[np.int64] = np.zeros(scene.status.shape[:2], np.int64)
        inside = (row >= 0) & (row < times.shape[0]) & (col >= 0) & (col < times.shape[1])
        for r, c in zip(row[~inside], col[~inside], strict=True):
            yield f"{scene.describe_tile(r, c)} is listed, but the scene has {times.shape[0]} x {times.shape[1]} tiles"
        part, row, col = part[inside], row[inside], col[inside]
        np.add.at(times, (row, col), 1)
        for r, c in np.argwhere(times > 1):
            yield f"{scene.describe_tile(r, c)} is listed {times[r, c]} times"
        wanted = scene.status == layout.ACCEPTED
        if read_labels:
            known, fraction = contents.read_arrays(data.labels, scene.name, "known", "fraction")
            wanted &= (known >= data.config.index.min_known) & (known > 0)
            told = read_figures(data, scene, fraction)
            # What has no value meets no condition, as in the build.
            if data.config.index.min_agreement is not None:
                wanted &= told["agreement"] >= data.config.index.min_agreement
            if data.config.index.max_year_gap is not None:
                wanted &= np.abs(told["year_gap"]) <= data.config.index.max_year_gap
            for r, c in np.argwhere(wanted & (times == 0)):
                yield f"{scene.describe_tile(r, c)} is accepted and labelled, but not listed"
            same = part["known"].to_numpy() == known[row, col]
            same &= (part[classes].to_numpy(np.float32) == fraction[row, col]).all(axis=1)
            for r, c in zip(row[~same], col[~same], strict=True):
                yield f"{scene.describe_tile(r, c)} has other shares in the index than in the labels"
            for key, values in told.items():
                for k in np.flatnonzero(~equal_or_nan(part[key].to_numpy(), values[row, col])):
                    stored = values[row[k], col[k]]
                    yield f"{scene.describe_tile(row[k], col[k])} has {key} {part[key].iloc[k]}, by the stores {stored}"
        for r, c in np.argwhere((times > 0) & ~wanted):
            yield f"{scene.describe_tile(r, c)} is listed, but was not accepted"
        plane = scene.grid.corners(slice(0, scene.grid.rows), slice(0, scene.grid.cols))[row, col]
        lonlat = transformer(scene.tiles.attrs["proj:code"], "EPSG:4326").transform(plane[..., 0], plane[..., 1])
        corners = np.stack(lonlat, axis=-1)
        for k in np.flatnonzero(
            ~shapely.equals_exact(part.geometry.to_numpy(), footprint_polygons(corners), tolerance=MOVED)
        ):
            yield f"{scene.describe_tile(row[k], col[k])} does not lie where the index has it"
        drawn = split_by_place(corners, split.shares, split.cell, split.seed)
        told = part["split"].to_numpy(dtype=object, na_value=None)
        for k in np.flatnonzero(drawn != told):
            yield f"{scene.describe_tile(row[k], col[k])} is of {told[k]}, and by its place of {drawn[k]}"
        for k in np.flatnonzero(part["place"].to_numpy() != scene.grid.places(row.tolist(), col.tolist())):
            yield f"{scene.describe_tile(row[k], col[k])} has another place in the index"
        said: Any = scene.tiles.attrs
        of_scene = {"satellite": said["satellite"], "sensor": said["sensor"], "gsd": np.float32(said["gsd"])}
        for key, value in of_scene.items():
            for k in np.flatnonzero(part[key].to_numpy() != value):
                yield f"{scene.describe_tile(row[k], col[k])} has {key} {part[key].iloc[k]}, its scene {value}"

    found = [f"{name}: is listed, but is not in the stores" for name in here.keys() - {s.name for s in data.scenes}]
    found += data.each(check)
    if len(index) != data.summary["counts"]["index"]:
        found.append(f"{INDEX} has {len(index)} rows, {DATASET} says {data.summary['counts']['index']}")
    return found


def read_figures(
    data: DataSet, scene: StoredScene, fraction: npt.NDArray[np.float32]
) -> dict[str, npt.NDArray[np.float32]]:
    """(row, col) each: the figures that tiles are chosen by, from the stores."""
    name, source = data.summary["label_set"], data.entries[scene.name].scene
    others = tuple(other for other in data.summary["label_sets"] if other != name)
    job = RowJob(data.root, source, scene.grid, name, others, data.config.index)
    gap = np.nan if source.acquired is None else int(name.rpartition("_")[2]) - source.acquired.year
    return {
        "cloud": np.asarray(scene.tiles["cloud"][:]),  # type: ignore[index]
        "agreement": measure_agreement(job, fraction, scene.labels.attrs["classes"]),
        "year_gap": np.full(scene.status.shape, gap, np.float32),
    }


def equal_or_nan(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Where both are equal, or both no number."""
    return np.asarray((one == other) | (np.isnan(one) & np.isnan(other)))


def check_splits(data: DataSet) -> list[str]:
    """No two tiles of different splits cover the same ground, whatever their scenes."""
    parts = dict(iter(data.index.groupby("split")))
    found = []
    for first, second in combinations(sorted(parts, key=lambda name: len(parts[name])), 2):
        few, many = parts[first], parts[second]
        one, other = few.geometry.to_numpy(), many.geometry.to_numpy()
        a, b = shapely.STRtree(other).query(one, predicate="intersects")
        common = shapely.area(shapely.intersection(one[a], other[b]))
        shared = common > SHARED * np.minimum(shapely.area(one[a]), shapely.area(other[b]))
        for i, j in zip(a[shared], b[shared], strict=True):
            ours, theirs = describe_tile(data, few.iloc[i]), describe_tile(data, many.iloc[j])
            found.append(f"{ours} of {first} shares ground with {theirs} of {second}")
    return found


def describe_tile(data: DataSet, tile: Any) -> str:
    """Scene, block and tile of a row of the index."""
    block = data.config.grid.block
    return (
        f"{tile['scene']} block ({tile['row'] // block}, {tile['col'] // block}): tile ({tile['row']}, {tile['col']})"
    )
