"""Selection of the tiles that a run reads: rows of the index that meet its conditions, with labels and weights."""

import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from geokr.dataset.index import list_parts, read_part, read_summary
from geokr.dataset.layout import DATASET, INDEX
from geokr.loading.order import mix
from geokr.loading.part_labels import read_part_labels
from geokr.loading.shared import share_arrays
from geokr.storage import files

Weighting = Sequence[str] | Callable[[pa.Table], npt.NDArray[Any]]
"""Columns of the index whose product is the weight of a tile; or a function of selected rows, with all columns. It is
called for each part of the index, on several threads, so the weight of a row must not depend on other rows."""
DataSets = str | Path | Sequence[str | Path]
"""Path or URL of a data set, or those of several."""
OPTIONAL = ("year_gap", "gsd")
"""Columns that are read if the selection says so."""

READERS = 8
"""Parts of the index that are read at once."""
CONDITION = re.compile(r"\s*([\w:.-]+)\s*(<=|>=|!=|=|<|>)\s*(.+?)\s*")
log = logging.getLogger(__name__)
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


@dataclass(frozen=True, slots=True)
class Selection:
    """The tiles to read, the classes to learn from their labels, and the weights of the tiles."""

    split: str
    classes: Sequence[str] = ()
    """Classes to learn; all classes of the data set if empty. Shares are renormalised over them, and the column `known`
    is multiplied by their total share before it is used below."""
    min_known: float = 0.0
    """Minimum share of a tile's area that its label covers, in 0..1. A tile with none of the classes is left out."""
    where: Sequence[str] = ()
    """Conditions on columns of the index. A tile must meet all of them: see `read_condition`."""
    weight: Weighting = ()
    """Columns of the index whose product is the weight of a tile, or a function: see `Weighting`."""
    pairs: bool = False
    """Also read places and dates, to pair tiles of one place. Tiles without a place or a date are left out."""
    year_gap: bool = False
    """Also read the years between map and image."""
    gsd: bool = False
    """Also read the ground distance of the pixels."""
    grid: int = 1
    """Parts along a side of a tile whose class shares are read too: 1, which reads none, 2, 4 or 8."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """The selected tiles, in the order of the index. All arrays have one row per tile."""

    scenes: tuple[str, ...]
    scene: npt.NDArray[np.int32]
    """Index into `scenes`."""
    row: npt.NDArray[np.int32]
    col: npt.NDArray[np.int32]
    fraction: npt.NDArray[np.float32]
    """(tile, class): the label over the selected classes, rows sum to 1."""
    known: npt.NDArray[np.float32]
    """Share of the tile's area that the label covers: with the selected classes only."""
    weight: npt.NDArray[np.float32]
    """Weight of the tile in the loss; 1 by default."""
    place: npt.NDArray[np.int64] | None = None
    """Number of the place, equal for tiles of the same place. None, like `date`, unless the selection has `pairs`."""
    date: npt.NDArray[np.int64] | None = None
    """Acquisition day, in days since 1970-01-01."""
    year_gap: npt.NDArray[np.float32] | None = None
    """Year of the map minus year of the image; NaN if unknown. None unless the selection has `year_gap`."""
    gsd: npt.NDArray[np.float32] | None = None
    """Ground distance of the pixels, m. None unless the selection has `gsd`."""
    parts: npt.NDArray[np.uint8] | None = None
    """(tile, part row, part column, class): area of each selected class in each part, in units of 1 / WHOLE_PART of a
    part; the rest of the part is unknown. None unless the selection has a `grid`."""
    homes: tuple[int, ...] = ()
    """Number of the data set of each of `scenes`; empty if there is one."""

    def __len__(self) -> int:
        return len(self.scene)

    def filter(self, keep: npt.NDArray[np.bool_]) -> "Tiles":
        """Select the tiles for which `keep` is true."""
        if keep.all():
            return self
        kept: dict[str, Any] = {name: values[keep] for name, values in self.arrays().items()}
        return replace(self, **kept)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays by name, each with one row per tile."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("scenes", "homes")}
        return {name: values for name, values in arrays.items() if values is not None}


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on a column of the index: a comparison with one value, or equality with one or none of several."""

    column: str
    comparison: str
    """<, <=, >, >=, = or !=."""
    values: tuple[str, ...]
    """As text. Only = and != take several."""

    def evaluate(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """Test each row. A row without a value (NULL or NaN) meets no condition, not even !=.

        Raises ValueError if a value is not of the column's type.
        """
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        # A float32 column stores 0.1 as the nearest float32 number, so the value must be rounded in the same way.
        data_type = pa.float64() if pa.types.is_integer(column.type) else column.type
        try:
            values = pa.array(self.values).cast(data_type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(f"{'|'.join(self.values)} is not of the column's type, {column.type}") from error
        if self.comparison in COMPARISONS:
            mask = COMPARISONS[self.comparison](column, values[0])
        else:
            mask = pc.is_in(column.cast(data_type), values)
            if self.comparison == "!=":
                mask = pc.invert(mask)
        return pc.and_(mask.fill_null(False), pc.is_valid(column))


def read_condition(text: str) -> Condition:
    """Parse a condition: `gsd <= 4`, `satellite = GF1|GF2`, `acquired >= 2019-05-01`.

    Raises ValueError if the text is not a condition.
    """
    match = CONDITION.fullmatch(text)
    if match is None:
        raise ValueError(f"not a condition: {text!r}; expected one like gsd<=4 or satellite=GF1|GF2")
    column, comparison, value = match.groups()
    values = tuple(part.strip() for part in value.split("|"))
    if not all(values) or (len(values) > 1 and comparison in COMPARISONS):
        raise ValueError(f"not a condition: {text!r}; {comparison} takes one value")
    return Condition(column, comparison, values)


def list_datasets(data: DataSets) -> tuple[str, ...]:
    """The paths or URLs of one data set, or of several. Raises ValueError naming one that is given twice."""
    datasets = (str(data),) if isinstance(data, str | Path) else tuple(map(str, data))
    places: dict[str, str] = {}
    for dataset in datasets:
        place = dataset.rstrip("/") if files.in_bucket(dataset) else str(Path(dataset).resolve())
        if place in places:
            raise ValueError(f"{dataset}: given twice, also as {places[place]}; to draw more of its tiles, set mixture")
        places[place] = dataset
    return datasets


def share_tiles(data: DataSets, selection: Selection) -> tuple[tuple[str, ...], Tiles]:
    """Like `select_tiles`, but the processes of a machine that torchrun started have the arrays in memory once.

    Each must call it as often as the others, with the same arguments.
    """

    def make() -> tuple[Any, dict[str, npt.NDArray[Any]]]:
        classes, tiles = select_tiles(data, selection)
        return [classes, tiles.scenes, tiles.homes], tiles.arrays()

    (classes, scenes, homes), arrays = share_arrays(make)
    return tuple(classes), Tiles(tuple(scenes), **arrays, homes=tuple(homes))


def keep_scenes(tiles: Tiles, keep: npt.NDArray[np.bool_]) -> Tiles:
    """The tiles of the scenes for which `keep`, (scene,), is true."""
    return tiles if keep.all() else tiles.filter(keep[tiles.scene])


def share_scenes(tiles: Tiles, keep: npt.NDArray[np.bool_]) -> Tiles:
    """Like `keep_scenes`, with the arrays in memory once, as in `share_tiles`."""
    if keep.all():
        return tiles
    shared: dict[str, Any] = share_arrays(lambda: (None, keep_scenes(tiles, keep).arrays()))[1]
    return replace(tiles, **shared)


def select_tiles(data: DataSets, selection: Selection) -> tuple[tuple[str, ...], Tiles]:
    """Select the classes to learn, and the tiles that meet all conditions and contain any of these classes.

    data: one data set, or several: the tiles of one then follow those of the other. Raises ValueError naming the data
    set if a class or a column does not exist, if two data sets have unlike classes and none are chosen, if the weight
    of a tile is missing or negative, or if no tile is left.
    """
    datasets = list_datasets(data)
    summaries = [read_summary(dataset) for dataset in datasets]
    classes = choose_classes(datasets, [summary["classes"] for summary in summaries], selection.classes)
    scenes: list[str] = []
    homes: list[int] = []
    chunks: list[dict[str, Any]] = []
    parts: list[npt.NDArray[np.uint8]] = []
    for home, (dataset, summary) in enumerate(zip(datasets, summaries, strict=True)):
        numbers: dict[str, int] = {}  # number of each scene among all, by its name in this data set
        found = _read_chunks(dataset, summary, selection, classes, numbers, first=len(scenes))
        if selection.grid > 1:
            parts.append(_read_parts_of(dataset, summary, selection.grid, classes, [*numbers], len(scenes), found))
        if len(datasets) > 1 and not any(len(chunk["scene"]) for chunk in found):
            log.warning("%s has no tile of %s", dataset, _describe(selection))
        scenes += numbers
        homes += [home] * len(numbers)
        chunks += found
    if not any(len(chunk["scene"]) for chunk in chunks):
        advice = f"does the build make {selection.split}, in cells (build.index.split.cell) smaller than the scenes?"
        where = ", ".join(f"{dataset}/{INDEX}" for dataset in datasets)
        raise ValueError(f"{where}: no tile of {_describe(selection)}; {advice}")
    # Column by column, so that both copies are in memory of one column only.
    arrays = {name: np.concatenate([chunk.pop(name) for chunk in chunks]) for name in [*chunks[0]]}
    if parts:
        arrays["parts"] = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if not arrays["weight"].any():
        raise ValueError(f"{', '.join(datasets)}: the weight of every selected tile is 0")
    return classes, Tiles(tuple(scenes), **arrays, homes=tuple(homes))


def choose_classes(
    datasets: Sequence[str], available: Sequence[Sequence[str]], wanted: Sequence[str]
) -> tuple[str, ...]:
    """The classes to learn: those that are wanted, or else all. available: the classes of each data set.

    Raises ValueError if a data set lacks one of them, or if none are wanted and data sets have unlike classes.
    """
    for dataset, names in zip(datasets, available, strict=True):
        if unknown := [name for name in wanted if name not in names]:
            raise ValueError(f"{dataset} has no class {', '.join(unknown)}, only {', '.join(names)}")
        if not wanted and {*names} != {*available[0]}:
            common = [name for name in available[0] if all(name in others for others in available)]
            advice = f"choose classes={','.join(common)}, which all have, or " if len(common) > 1 else ""
            raise ValueError(
                f"{datasets[0]} has the classes {', '.join(available[0])}, but {dataset} has {', '.join(names)}; "
                f"{advice}label both with one taxonomy by geokr label"
            )
    return tuple(wanted or available[0])


def _read_chunks(
    dataset: str,
    summary: Mapping[str, Any],
    selection: Selection,
    classes: Sequence[str],
    numbers: dict[str, int],
    first: int,
) -> list[dict[str, Any]]:
    """The selected tiles of each part of an index: the arrays of `Tiles` by name, without `parts`.

    numbers: gets the scenes, numbered from `first`.
    """
    weight = selection.weight
    columns = ["scene", "row", "col", "known", "split", *classes, *(read_condition(t).column for t in selection.where)]
    columns += ["place", "acquired"] if selection.pairs else []
    columns += [name for name in OPTIONAL if getattr(selection, name)]
    wanted = None if callable(weight) else list(dict.fromkeys([*columns, *weight]))
    # Only tiles of the same size and stride are of the same ground if they have the same place.
    settings = summary.get("settings", {}).get("grid", {"dataset": dataset})
    kind = f"{settings.get('tile')} {settings.get('stride')} {settings.get('dataset', '')}"
    reduce = len(classes) < len(summary["classes"])

    def read(path: str) -> tuple[int, list[str], dict[str, Any]]:
        table = read_part(path, wanted)
        rows, total = _filter(dataset, table, selection, classes, reduce)
        encoded = rows["scene"].combine_chunks().dictionary_encode()
        fraction = np.empty((rows.num_rows, len(classes)), np.float32)
        for k, name in enumerate(classes):
            np.divide(rows[name].to_numpy(), total, out=fraction[:, k], casting="same_kind")
        chunk: dict[str, Any] = {
            "scene": encoded.indices.to_numpy(),
            "row": rows["row"].to_numpy().astype(np.int32),
            "col": rows["col"].to_numpy().astype(np.int32),
            "fraction": fraction,
            "known": rows["known"].to_numpy().astype(np.float32),
            "weight": _read_weights(dataset, rows, weight),
        }
        if selection.pairs:
            chunk["place"] = hash_texts(rows["place"], kind)
            chunk["date"] = rows["acquired"].cast(pa.date32()).cast(pa.int32()).to_numpy().astype(np.int64)
        for name in OPTIONAL:
            if getattr(selection, name):
                chunk[name] = rows[name].to_numpy().astype(np.float32)
        return table.num_rows, encoded.dictionary.to_pylist(), chunk

    with ThreadPoolExecutor(READERS, "index") as threads:
        found = [*threads.map(read, list_parts(dataset))]
    for _, scenes, chunk in found:
        at = [numbers.setdefault(name, first + len(numbers)) for name in scenes]
        chunk["scene"] = np.array(at, np.int32)[chunk["scene"]]
    if (listed := sum(rows for rows, *_ in found)) != (counted := summary.get("counts", {}).get("index", listed)):
        raise ValueError(f"{dataset}/{INDEX}: {listed} tiles, but {DATASET} counts {counted}; build the index again")
    return [chunk for *_, chunk in found]


def _read_parts_of(
    dataset: str,
    summary: Mapping[str, Any],
    grid: int,
    classes: Sequence[str],
    scenes: Sequence[str],
    first: int,
    chunks: Sequence[dict[str, Any]],
) -> npt.NDArray[np.uint8]:
    """The array `parts` of the tiles of a data set, whose scenes are numbered from `first`."""
    scene, row, col = (np.concatenate([chunk[name] for chunk in chunks]) for name in ("scene", "row", "col"))
    available = [summary["classes"].index(name) for name in classes]
    label_set = summary["label_set"]
    return read_part_labels(dataset, label_set, scenes, scene - first, row, col, summary["classes"], available, grid)


def _describe(selection: Selection) -> str:
    """The conditions of a selection, for messages."""
    extra = f" in the classes {', '.join(selection.classes)}" if selection.classes else ""
    extra += "".join(f" and {text}" for text in selection.where)
    return f"split {selection.split} with known >= {selection.min_known:g}{extra}"


def _filter(
    dataset: str | Path, rows: pa.Table, selection: Selection, classes: Sequence[str], reduce: bool
) -> tuple[pa.Table, npt.NDArray[np.float64]]:
    """The rows that meet all conditions, and the total share of the classes. reduce: they are not all classes."""
    total = np.stack([rows[name].to_numpy() for name in classes]).sum(axis=0, dtype=np.float64)
    if reduce:
        rows = _reduce_known(rows, total)
    mask = pc.and_(pc.equal(rows["split"], selection.split), pc.greater_equal(rows["known"], selection.min_known))
    mask = pc.and_(mask, pa.array(total > 0))
    for text in selection.where:
        condition = read_condition(text)
        try:
            mask = pc.and_(mask, condition.evaluate(rows[condition.column]))
        except ValueError as error:
            raise ValueError(f"{dataset}/{INDEX}: {text}: {error}") from error
    if selection.pairs:
        mask = pc.and_(mask, pc.and_(pc.is_valid(rows["place"]), pc.is_valid(rows["acquired"])))
    mask = mask.fill_null(False)  # a tile outside all splits has no split
    return rows.filter(mask), total[mask.to_numpy()]


def _reduce_known(rows: pa.Table, total: npt.NDArray[np.float64]) -> pa.Table:
    """Multiply the column `known` by the total share of the chosen classes, (tile,): what lies under others is unknown.

    Without this, a tile with a trace of one chosen class would have a full label of that class.
    """
    known = rows["known"].to_numpy() * np.minimum(total.round(6), 1.0)  # float32 shares sum to 1 only to about 1e-7
    return rows.set_column(rows.schema.get_field_index("known"), "known", pa.array(known.astype(np.float32)))


def hash_texts(column: pa.ChunkedArray, kind: str) -> npt.NDArray[np.int64]:
    """A number for each text, (n,): equal for equal texts of the same kind.

    Unlike texts have the same number by chance, for one pair in 2^64: among 100 million, with a chance of 0.0003.
    """
    texts = column.combine_chunks().cast(pa.large_binary())
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset :][: len(texts) + 1]
    data = np.frombuffer(texts.buffers()[2] or b"", np.uint8)
    lengths = np.diff(offsets)
    hashed = np.full(len(texts), int.from_bytes(hashlib.sha256(kind.encode()).digest()[:8], "little"), np.uint64)
    for start in range(0, int(lengths.max(initial=0)), 8):  # eight bytes at a time; 0 beyond the end of a text
        at = offsets[:-1, None] + np.arange(start, start + 8)
        inside = at < offsets[1:, None]
        word = np.where(inside, data[np.where(inside, at, 0)], np.uint8(0))
        hashed = mix(hashed ^ word.view(np.uint64)[:, 0])
    return mix(hashed ^ lengths.astype(np.uint64)).view(np.int64)


def _read_weights(dataset: str, rows: pa.Table, weight: Weighting) -> npt.NDArray[np.float32]:
    """The weights of rows: (tile,), 1 if there are neither columns nor a function."""
    if callable(weight):
        columns = {"the weight function": np.asarray(weight(rows), dtype=np.float64)}
    else:
        columns = {name: rows[name].cast(pa.float64()).to_numpy() for name in weight}
    product = np.ones(rows.num_rows)
    for name, values in columns.items():
        if values.shape != product.shape:
            raise ValueError(
                f"{name} returned an array of shape {values.shape}, expected {product.shape}: one weight per tile"
            )
        if invalid := int((~(np.isfinite(values) & (values >= 0))).sum()):  # NULL comes as NaN
            raise ValueError(
                f"{dataset}/{INDEX}: {invalid} of {len(values)} selected tiles have a missing or negative weight "
                f"({name}); leave them out with a condition"
            )
        product = product * values
    return product.astype(np.float32)
