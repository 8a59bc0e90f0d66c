"""The checks of a data set, apart from those of its index. Each returns its faults, one sentence per fault."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from geokr.dataset import contents, layout
from geokr.dataset.index import combine_digests, list_parts, read_parts
from geokr.dataset.layout import DATASET
from geokr.dataset.store import CONSOLIDATED
from geokr.landcover.discovery import find_landcover
from geokr.storage import files
from pipeline.catalog.table import CATALOG
from pipeline.plan import placement_attributes, tile_attributes, tile_grid
from pipeline.tasks.labels import LabelJob, compute_labels
from pipeline.tasks.tiles import TileJob, make_tiles
from pipeline.verify.dataset import DataSet, StoredScene, shorten

ROUNDING = 1e-6
"""How far the sum of the float32 shares of a tile may differ from 1."""
PART_ROUNDING = 1.001 / layout.WHOLE_PART + 1e-3
"""How far a mean over parts may differ from the tile's share: rounding, and parts that differ in the map's plane."""


REQUIRED_ATTRIBUTES = (
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
"""Attributes that the group of a scene must have."""


def check_schema(data: DataSet) -> list[str]:
    """Check that dataset.json has this layout, and the checksums of the tables next to it."""
    if (version := data.summary["schema"]) != layout.SCHEMA:
        return [f"{DATASET}: schema {version}, but this program reads schema {layout.SCHEMA}"]
    found = {
        CATALOG: files.sha256(files.join(data.root, CATALOG)),
        layout.INDEX: combine_digests(map(files.sha256, list_parts(data.root))),
    }
    return [
        f"{name}: its SHA-256 is not the one in {DATASET}"
        for name, digest in found.items()
        if data.summary["sha256"].get(name) != digest
    ]


def check_provenance(data: DataSet) -> list[str]:
    """Check that every scene in the stores records what it was made from, in agreement with the catalog."""

    def check(scene: StoredScene) -> Iterator[str]:
        entry = data.entries.get(scene.name)
        if entry is None:
            yield f"{scene.name}: is not in {CATALOG}"
            return
        attributes = dict(scene.tiles.attrs)
        if missing := [key for key in REQUIRED_ATTRIBUTES if key not in attributes]:
            yield f"{scene.name}: its group lacks {', '.join(missing)}"
            return
        has_size = entry.scene.bytes > 0 or not entry.scene.files  # the size of images on servers may be unknown
        if len(entry.scene.metadata_digest) != 64 or not has_size or not entry.scene.images:
            yield f"{scene.name}: {CATALOG} does not record which files it was made from"
        grid = tile_grid(entry, data.config.grid)
        if grid is None:
            yield f"{scene.name}: no tile fits into its footprint in {CATALOG}"
            return
        expected: dict[str, Any] = json.loads(json.dumps(tile_attributes(entry, grid, data.config.tiles)))
        if differing := sorted(k for k in attributes.keys() | expected.keys() if attributes.get(k) != expected.get(k)):
            yield f"{scene.name}: its group and {CATALOG} differ in {', '.join(differing)}"
        for key, value in placement_attributes(grid).items():
            if scene.labels.attrs.get(key) != value:
                yield f"{scene.name}: {key} of its labels differs from that of its tiles"
        if not scene.labels.attrs.get("product") or "sheets" not in scene.labels.attrs:
            yield f"{scene.name}: its labels do not record which land cover they were made from"

    return data.check_scenes(check)


def check_metadata(data: DataSet) -> list[str]:
    """Check that consolidated metadata equal those of the scenes, and that pixels and labels have the same scenes."""
    faults = []
    scenes = {root: contents.list_scenes(root) for root in (data.tiles, *data.label_sets)}
    for root, names in scenes.items():
        faults += [f"{name}: is in only one of {data.tiles} and {root}" for name in {*names} ^ {*scenes[data.tiles]}]
        consolidated = contents.read_consolidated(root)
        if len(names) > CONSOLIDATED and not consolidated:
            continue
        of_scenes = {path: metadata for path, metadata in consolidated.items() if path.partition("/")[0] in names}
        faults += [f"{path}: {root} has metadata of a missing scene" for path in consolidated.keys() - of_scenes]
        faults += [f"{name}: {root} lacks its metadata" for name in names if name not in consolidated]
        for path, metadata in of_scenes.items():
            if data.number is not None and path.partition("/")[0] not in data.by_name:
                continue
            try:
                same = contents.read_metadata(root, path) == {
                    k: v for k, v in metadata.items() if k != "consolidated_metadata"
                }
            except (OSError, ValueError):
                same = False
            if not same:
                faults.append(f"{path}: its metadata differ from those in the root of {root}")
    return faults


def check_statuses(data: DataSet) -> list[str]:
    """Check that every block is built in tiles and labels, with known status codes, and the counts of dataset.json."""

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
                    yield f"{block}: status {status.max()} of {group.store_path} is not defined"
                if not status.all() and (scene.name, i, j) not in data.failed:
                    yield f"{block}: not built in {group.store_path}"

    faults = data.check_scenes(check)
    if not faults:
        unlisted = {entry["scene"] for entry in data.refused if entry["stage"] == "index"}
        counts = dict.fromkeys(layout.TILE_STATUS, 0)
        for scene in data.scenes:
            if scene.name not in unlisted:
                for status, tiles in contents.count_statuses(scene.status, layout.TILE_STATUS):
                    counts[status] += tiles
        name, expected = DATASET, data.summary["counts"]["tiles"]
        if data.number is not None:
            listed = [scene["statuses"] for report in data.reports for scene in report["scenes"].values()]
            name, expected = layout.INDEX, {status: sum(of[status] for of in listed) for status in counts}
        if counts != expected:
            faults.append(f"{name}: counts {expected}, but the stores have {counts}")
    return faults


def check_shards(data: DataSet, tiles: int | None) -> list[str]:
    """Check that exactly the blocks with an accepted tile have a shard, which can be read with correct checksums.

    tiles: number of tiles to read per shard; None for all.
    """

    def check(scene: StoredScene) -> Iterator[str]:
        keys = contents.list_chunks(scene.tiles, "image")
        image = contents.open_array(data.tiles, f"{scene.name}/image").result()
        for i, j, (rows, cols) in scene.blocks():
            accepted = np.argwhere(scene.status[rows, cols] == layout.ACCEPTED)
            block = f"{scene.name} block ({i}, {j})"
            if (has_shard := (i, j) in keys) != bool(len(accepted)):
                yield f"{block}: " + ("a shard without accepted tiles" if has_shard else "its shard is missing")
            elif has_shard and tiles != 0:
                yield from check_shard(
                    image, block, rows, cols, accepted if tiles is None else accepted[:tiles], tiles is None
                )

    return data.check_scenes(check)


def check_shard(
    image: Any, block: str, rows: slice, cols: slice, accepted: npt.NDArray[np.int64], full: bool
) -> Iterator[str]:
    """The faults of one shard. accepted: (n, 2) row, column in the block of the tiles to read. full: read all tiles."""
    try:
        if full:
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
        fault = "is accepted, but has no pixels" if marked[r, c] else "was rejected, but has pixels"
        yield f"{block}: tile ({rows.start + r}, {cols.start + c}) {fault}"


def check_labels(data: DataSet) -> list[str]:
    """Check that in every label set shares sum to 1 where anything is known and are 0 elsewhere, as the status says.

    The mean over the parts of a tile must be the tile's own shares, within the rounding of the parts.
    """
    faults = []
    for root in data.label_sets:

        def check(scene: StoredScene, root: str = root) -> Iterator[str]:
            arrays = {
                key: contents.open_array(root, f"{scene.name}/{key}").result()
                for key in ("fraction", "fraction_grid", "known", "status")
            }
            for i, j, tiles in scene.blocks():
                try:
                    block = {key: np.asarray(array[tiles].read().result()) for key, array in arrays.items()}
                except Exception as error:
                    yield f"{scene.name} block ({i}, {j}): labels cannot be read: {shorten(error)}"
                    continue
                fraction, known = block["fraction"].astype(float), block["known"].astype(float)
                valid = (fraction >= 0).all(axis=2) & (known >= 0) & (known <= 1 + ROUNDING)
                valid &= np.abs(fraction.sum(axis=2) - (known > 0)) <= ROUNDING
                valid &= (block["status"] == layout.LABEL_STATUS.index("labelled")) == (known > 0)
                mean = block["fraction_grid"].mean(axis=(2, 3)) / layout.WHOLE_PART
                equal = (np.abs(mean - fraction * known[..., None]) <= PART_ROUNDING).all(axis=2)
                valid, equal = valid | (block["status"] == 0), equal | (block["status"] == 0)
                for r, c in np.argwhere(valid & ~equal):
                    yield (
                        f"{scene.describe_tile(tiles[0].start + r, tiles[1].start + c)}: its shares are not the mean "
                        "of those of its parts"
                    )
                for r, c in np.argwhere(~valid):
                    yield (
                        f"{scene.describe_tile(tiles[0].start + r, tiles[1].start + c)}: its shares sum to "
                        f"{fraction[r, c].sum():.6g}, its known share is {known[r, c]:.6g}; "
                        f"status {layout.LABEL_STATUS[block['status'][r, c]]}"
                    )

        faults += data.check_scenes(check)
    return faults


def check_sample(data: DataSet, number: int) -> list[str]:
    """Check that tiles drawn from the index are byte for byte what their source yields now."""
    total = data.summary["counts"]["index"] if data.number is None else sum(r["rows"] for r in data.reports)
    drawn = np.sort(np.random.default_rng(0).choice(total, min(number, total), replace=False))
    tables, first = [], 0
    for part in read_parts(data.root, ["scene", "row", "col"], data.parts):
        last = first + part.num_rows
        tables.append(part.take(drawn[(drawn >= first) & (drawn < last)] - first))
        first = last
    chosen = pa.concat_tables(tables).to_pandas()
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
            parts = int(scene.labels.attrs["grid"])  # type: ignore[arg-type]
            labels = compute_labels(LabelJob(data.labels, name, cover, parts, grid, i, j))
        except Exception as error:
            return [f"{name} block ({i}, {j}): cannot be computed again: {shorten(error)}"]
        faults = []
        for row, col in zip(tiles["row"], tiles["col"], strict=True):
            r, c = row - i * block, col - j * block
            if status[r, c] != scene.status[row, col]:
                faults.append(
                    f"{scene.describe_tile(row, col)} is {layout.TILE_STATUS[status[r, c]]} when computed again"
                )
            elif not np.array_equal(arrays["image"][r, c], np.asarray(scene.tiles["image"][row, col])):  # type: ignore[index]
                faults.append(f"{scene.describe_tile(row, col)} has other pixels when computed again")
            for key in ("fraction", "fraction_grid"):
                if not np.array_equal(getattr(labels, key)[r, c], np.asarray(scene.labels[key][row, col])):  # type: ignore[index]
                    faults.append(f"{scene.describe_tile(row, col)} has other shares ({key}) when computed again")
        return faults

    return [fault for group in groups for fault in check(group)]
