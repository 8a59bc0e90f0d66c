"""Selection of the tiles that a run reads: rows of the index that meet its conditions, with labels and weights."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from geokr.dataset.index import read_index, read_parts, read_summary
from geokr.dataset.layout import DATASET, INDEX
from geokr.loading.part_labels import read_part_labels
from geokr.loading.shared import share_arrays

Weighting = Sequence[str] | Callable[[pa.Table], npt.NDArray[Any]]
"""Columns of the index whose product is the weight of a tile; or a function of the selected rows, with all columns."""

CONDITION = re.compile(r"\s*([\w:.-]+)\s*(<=|>=|!=|=|<|>)\s*(.+?)\s*")
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
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "scenes"}
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


def share_tiles(dataset: str | Path, selection: Selection) -> tuple[tuple[str, ...], Tiles]:
    """Like `select_tiles`, but the processes of a machine that torchrun started have the arrays in memory once.

    Each must call it as often as the others, with the same arguments.
    """

    def make() -> tuple[Any, dict[str, npt.NDArray[Any]]]:
        classes, tiles = select_tiles(dataset, selection)
        return [classes, tiles.scenes], tiles.arrays()

    (classes, scenes), arrays = share_arrays(make)
    return tuple(classes), Tiles(tuple(scenes), **arrays)


def select_tiles(dataset: str | Path, selection: Selection) -> tuple[tuple[str, ...], Tiles]:
    """Select the classes to learn, and the tiles that meet all conditions and contain any of these classes.

    Raises ValueError naming the data set if a class or a column does not exist, if the weight of a tile is missing or
    negative, or if no tile is left.
    """
    summary = read_summary(dataset)
    available = summary["classes"]
    classes = tuple(selection.classes or available)
    if unknown := [name for name in classes if name not in available]:
        raise ValueError(f"{dataset} has no class {', '.join(unknown)}, only {', '.join(available)}")
    conditions = [read_condition(text) for text in selection.where]
    columns = ["scene", "row", "col", "known", "split", *classes, *(condition.column for condition in conditions)]
    if selection.pairs:
        columns += ["place", "acquired"]
    if selection.year_gap:
        columns += ["year_gap"]
    if selection.gsd:
        columns += ["gsd"]
    weight = selection.weight
    if callable(weight):
        tables: Iterable[pa.Table] = [read_index(dataset)]  # a function of all selected rows
    else:
        tables = read_parts(dataset, list(dict.fromkeys([*columns, *weight])))
    scenes: dict[str, int] = {}
    chunks: list[dict[str, Any]] = []
    listed = 0
    for table in tables:
        listed += table.num_rows
        rows, total = _filter(dataset, table, selection, classes, len(classes) < len(available))
        encoded = rows["scene"].combine_chunks().dictionary_encode()
        numbers = [scenes.setdefault(name, len(scenes)) for name in encoded.dictionary.to_pylist()]
        chunk: dict[str, Any] = {
            "scene": np.array(numbers, np.int32)[encoded.indices.to_numpy()],
            "row": rows["row"].to_numpy().astype(np.int32),
            "col": rows["col"].to_numpy().astype(np.int32),
            "fraction": (np.stack([rows[name].to_numpy() for name in classes], axis=1) / total[:, None]).astype(
                np.float32
            ),
            "known": rows["known"].to_numpy().astype(np.float32),
        }
        if selection.pairs:
            chunk["place"] = rows["place"]
            chunk["date"] = rows["acquired"].cast(pa.date32()).cast(pa.int32()).to_numpy().astype(np.int64)
        for name in ("year_gap", "gsd"):
            if getattr(selection, name):
                chunk[name] = rows[name].to_numpy().astype(np.float32)
        if callable(weight):
            chunk["weight"] = {"the weight function": np.asarray(weight(rows), dtype=np.float64)}
        else:
            chunk["weight"] = {name: rows[name].cast(pa.float64()).to_numpy() for name in weight}
        chunks.append(chunk)
    if listed != (counted := summary.get("counts", {}).get("index", listed)):
        raise ValueError(f"{dataset}/{INDEX}: {listed} tiles, but {DATASET} counts {counted}; build the index again")
    weights = [chunk.pop("weight") for chunk in chunks]
    if not sum(len(chunk["scene"]) for chunk in chunks):
        extra = f" in the classes {', '.join(classes)}" if selection.classes else ""
        extra += "".join(f" and {text}" for text in selection.where)
        criteria = f"split {selection.split} with known >= {selection.min_known:g}{extra}"
        advice = f"does the build make {selection.split}, in cells (build.index.split.cell) smaller than the scenes?"
        raise ValueError(f"{dataset}/{INDEX}: no tile of {criteria}; {advice}")
    places = [chunk.pop("place") for chunk in chunks] if selection.pairs else []
    # Column by column, so that both copies are in memory of one column only.
    arrays = {name: np.concatenate([chunk.pop(name) for chunk in chunks]) for name in [*chunks[0]]}
    if selection.pairs:
        arrays["place"] = _encode(pa.chunked_array([piece for place in places for piece in place.chunks]))
    arrays["weight"] = _multiply_weights(
        dataset,
        {name: np.concatenate([columns[name] for columns in weights]) for name in weights[0]},
        len(arrays["row"]),
    )
    if selection.grid > 1:
        arrays["parts"] = read_part_labels(
            str(dataset), summary["label_set"], tuple(scenes), arrays["scene"], arrays["row"], arrays["col"],
            [available.index(name) for name in classes], selection.grid,
        )  # fmt: skip
    return classes, Tiles(tuple(scenes), **arrays)


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


def _encode(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return column.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)  # type: ignore[no-any-return]


def _multiply_weights(
    dataset: str | Path, columns: dict[str, npt.NDArray[np.float64]], tiles: int
) -> npt.NDArray[np.float32]:
    """The product of columns, by name: (tile,), 1 without columns."""
    product = np.ones(tiles)
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
    if not product.any():
        raise ValueError(f"{dataset}/{INDEX}: the weight of every selected tile is 0")
    return product.astype(np.float32)
