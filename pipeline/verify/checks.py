"""The checks of a data set: each gives its faults, a sentence each. What can be read again is not believed."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from geokr.dataset import contents, layout
from geokr.dataset.layout import DATASET
from geokr.landcover.discovery import find_landcover
from geokr.storage import files
from pipeline.catalog.table import CATALOG
from pipeline.plan import placement_attributes, tile_attributes, tile_grid
from pipeline.tasks.labels import LabelJob, compute_labels
from pipeline.tasks.tiles import TileJob, make_tiles
from pipeline.verify.dataset import DataSet, StoredScene, shorten

ROUNDING = 1e-6
"""How far the float32 shares of a tile may sum up from 1."""


GROUP = (
    "proj:code",
    "spatial:transform",
    "tile",
    "stride",
    "block",
    "bands",
    "gsd",
    "acquired",
    "source",
    "stretch",
    "tiles",
)
"""What a scene's group must say of itself."""


def check_schema(data: DataSet) -> list[str]:
    """dataset.json is of this layout, and describes the tables beside it."""
    if (version := data.summary["schema"]) != layout.SCHEMA:
        return [f"{DATASET}: schema {version}, this program knows {layout.SCHEMA}"]
    return [
        f"{name}: its SHA-256 is not the one in {DATASET}"
        for name, digest in data.summary["sha256"].items()
        if files.sha256(files.join(data.root, name)) != digest
    ]


def check_provenance(data: DataSet) -> list[str]:
    """Every scene in the stores says what it was made from, and says the same as the catalog."""

    def check(scene: StoredScene) -> Iterator[str]:
        entry = data.entries.get(scene.name)
        if entry is None:
            yield f"{scene.name}: is not in {CATALOG}"
            return
        said = dict(scene.tiles.attrs)
        if missing := [key for key in GROUP if key not in said]:
            yield f"{scene.name}: its group does not say {', '.join(missing)}"
            return
        known = entry.scene.bytes > 0 or not entry.scene.files  # of images on servers, the size need not be known
        if len(entry.scene.metadata_digest) != 64 or not known or not entry.scene.images:
            yield f"{scene.name}: {CATALOG} does not say which files it was made from"
        grid = tile_grid(entry, data.config.grid)
        if grid is None:
            yield f"{scene.name}: no tile fits into the footprint that {CATALOG} has"
            return
        wanted: dict[str, Any] = json.loads(json.dumps(tile_attributes(entry, grid, data.config.tiles)))
        if differing := sorted(key for key in said.keys() | wanted.keys() if said.get(key) != wanted.get(key)):
            yield f"{scene.name}: its group and {CATALOG} differ in {', '.join(differing)}"
        for key, value in placement_attributes(grid).items():
            if scene.labels.attrs.get(key) != value:
                yield f"{scene.name}: {key} of its labels is not that of its tiles"
        if not scene.labels.attrs.get("product") or "sheets" not in scene.labels.attrs:
            yield f"{scene.name}: its labels do not say which land cover they were made from"

    return data.each(check)


def check_metadata(data: DataSet) -> list[str]:
    """What the stores' roots say of their scenes is what the scenes say; pixels and labels have the same scenes."""
    found = []
    there = {root: contents.list_scenes(root) for root in (data.tiles, *data.label_sets)}
    for root, names in there.items():
        found += [f"{name}: is in {data.tiles} or in {root} alone" for name in {*names} ^ {*there[data.tiles]}]
        held = contents.read_consolidated(root)
        of_scenes = {path: said for path, said in held.items() if path.partition("/")[0] in names}
        found += [f"{path}: {root} holds metadata of a scene that is not there" for path in held.keys() - of_scenes]
        found += [f"{name}: {root} does not hold its metadata" for name in names if name not in held]
        for path, said in of_scenes.items():
            try:
                same = contents.read_metadata(root, path) == {
                    k: v for k, v in said.items() if k != "consolidated_metadata"
                }
            except (OSError, ValueError):
                same = False
            if not same:
                found.append(f"{path}: its metadata and those that the root of {root} holds differ")
    return found


def check_statuses(data: DataSet) -> list[str]:
    """Every block is built, in tiles and labels, by a code that has a name; the counts are those of dataset.json."""

    def check(scene: StoredScene) -> Iterator[str]:
        for group, names in ((scene.tiles, layout.TILE_STATUS), (scene.labels, layout.LABEL_STATUS)):
            for i, j, tiles in scene.blocks():
                block = f"{scene.name} block ({i}, {j})"
                try:
                    status = np.asarray(group["status"][tiles])  # type: ignore[index]
                except Exception as error:
                    yield f"{block}: the status of {group.store_path} cannot be read: {shorten(error)}"
                    continue
                if (status >= len(names)).any():
                    yield f"{block}: status {status.max()} of {group.store_path} has no meaning"
                if not status.all() and (scene.name, i, j) not in data.failed:
                    yield f"{block}: not built in {group.store_path}"

    found = data.each(check)
    if not found:
        unlisted = {entry["scene"] for entry in data.refused if entry["stage"] == "index"}
        held = np.concatenate([scene.status.ravel() for scene in data.scenes if scene.name not in unlisted])
        counts = dict(contents.count_statuses(held, layout.TILE_STATUS))
        if counts != data.summary["counts"]["tiles"]:
            found.append(f"{DATASET}: counts {data.summary['counts']['tiles']}, the stores hold {counts}")
    return found


def check_shards(data: DataSet, tiles: int | None) -> list[str]:
    """Every block with an accepted tile has a shard, and only those; it can be read, and its checksums are right.

    tiles: how many of each shard are read; None for all.
    """

    def check(scene: StoredScene) -> Iterator[str]:
        keys = contents.list_chunks(scene.tiles, "image")
        image = contents.open_array(data.tiles, f"{scene.name}/image").result()
        for i, j, (rows, cols) in scene.blocks():
            accepted = np.argwhere(scene.status[rows, cols] == layout.ACCEPTED)
            block = f"{scene.name} block ({i}, {j})"
            if (there := (i, j) in keys) != bool(len(accepted)):
                yield f"{block}: " + ("a shard without accepted tiles" if there else "its shard is missing")
            elif there and tiles != 0:
                yield from check_shard(
                    image, block, rows, cols, accepted if tiles is None else accepted[:tiles], tiles is None
                )

    return data.each(check)


def check_shard(
    image: Any, block: str, rows: slice, cols: slice, accepted: npt.NDArray[np.int64], whole: bool
) -> Iterator[str]:
    """Faults of one shard. accepted: (n, 2) tiles to read, in the block; whole: read the block instead."""
    try:
        if whole:
            pixels = image[rows, cols].read().result()
            filled = pixels.any(axis=(2, 3, 4))
        else:
            filled = np.zeros((rows.stop - rows.start, cols.stop - cols.start), bool)
            for r, c in accepted:
                filled[r, c] = image[rows.start + r, cols.start + c].read().result().any()
    except Exception as error:  # tensorstore raises ValueError and others
        yield f"{block}: its shard cannot be read: {shorten(error)}"
        return
    marked = np.zeros_like(filled)
    marked[tuple(accepted.T)] = True
    for r, c in np.argwhere(marked != filled):
        what = "is accepted, but has no pixels" if marked[r, c] else "was rejected, but has pixels"
        yield f"{block}: tile ({rows.start + r}, {cols.start + c}) {what}"


def check_labels(data: DataSet) -> list[str]:
    """In every label set, shares sum to 1 where anything is known and are 0 elsewhere, as status says."""
    found = []
    for root in data.label_sets:

        def check(scene: StoredScene, root: str = root) -> Iterator[str]:
            arrays = {
                key: contents.open_array(root, f"{scene.name}/{key}").result()
                for key in ("fraction", "known", "status")
            }
            for i, j, tiles in scene.blocks():
                try:
                    block = {key: np.asarray(array[tiles].read().result()) for key, array in arrays.items()}
                except Exception as error:
                    yield f"{scene.name} block ({i}, {j}): labels cannot be read: {shorten(error)}"
                    continue
                fraction, known = block["fraction"].astype(float), block["known"].astype(float)
                right = (fraction >= 0).all(axis=2) & (known >= 0) & (known <= 1 + ROUNDING)
                right &= np.abs(fraction.sum(axis=2) - (known > 0)) <= ROUNDING
                right &= (block["status"] == layout.LABEL_STATUS.index("labelled")) == (known > 0)
                right |= block["status"] == 0
                for r, c in np.argwhere(~right):
                    yield (
                        f"{scene.describe_tile(tiles[0].start + r, tiles[1].start + c)}: its shares sum to "
                        f"{fraction[r, c].sum():.6g}, where {known[r, c]:.6g} is known; "
                        f"status {layout.LABEL_STATUS[block['status'][r, c]]}"
                    )

        found += data.each(check)
    return found


def check_sample(data: DataSet, number: int) -> list[str]:
    """Tiles drawn from the index are, byte for byte, what their source gives today."""
    index = data.index
    chosen = index.iloc[np.sort(np.random.default_rng(0).permutation(len(index))[:number])]
    block = data.config.grid.block
    groups = chosen.groupby(["scene", chosen["row"] // block, chosen["col"] // block])
    scenes = {scene.name: scene for scene in data.scenes}
    labels = data.config.labels
    covers = find_landcover(labels.landcover, labels.legends, labels.taxonomy)
    (cover,) = (cover for cover in covers if cover.name == data.summary["label_set"])

    def check(group: tuple[tuple[str, int, int], Any]) -> list[str]:
        (name, i, j), tiles = group
        scene, entry = scenes[name], data.entries[name]
        grid = tile_grid(entry, data.config.grid)
        assert grid is not None
        try:
            arrays, status, _ = make_tiles(TileJob(data.tiles, entry, data.config.tiles, grid, i, j))
            fraction, *_ = compute_labels(LabelJob(data.labels, name, cover, grid, i, j))
        except Exception as error:
            return [f"{name} block ({i}, {j}): cannot be computed anew: {shorten(error)}"]
        found = []
        for row, col in zip(tiles["row"], tiles["col"], strict=True):
            r, c = row - i * block, col - j * block
            if status[r, c] != scene.status[row, col]:
                found.append(
                    f"{scene.describe_tile(row, col)} is {layout.TILE_STATUS[status[r, c]]} when computed anew"
                )
            elif not np.array_equal(arrays["image"][r, c], np.asarray(scene.tiles["image"][row, col])):  # type: ignore[index]
                found.append(f"{scene.describe_tile(row, col)} has other pixels when computed anew")
            if not np.array_equal(fraction[r, c], np.asarray(scene.labels["fraction"][row, col])):  # type: ignore[index]
                found.append(f"{scene.describe_tile(row, col)} has other shares when computed anew")
        return found

    return [fault for group in groups for fault in check(group)]
