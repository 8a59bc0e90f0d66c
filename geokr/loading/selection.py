"""Which tiles a run reads: the rows of the index that it asks for, with their labels and weights."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from geokr.dataset.index import read_index, read_summary
from geokr.dataset.layout import INDEX

Weighting = Sequence[str] | Callable[[pa.Table], npt.NDArray[Any]]
"""Columns of the index, whose product is a tile's weight; or a function of the chosen rows of the whole index."""

CONDITION = re.compile(r"\s*([\w:.-]+)\s*(<=|>=|!=|=|<|>)\s*(.+?)\s*")
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


@dataclass(frozen=True, slots=True)
class Selection:
    """Which tiles are read, what of their labels, and what they count for."""

    split: str
    classes: Sequence[str] = ()
    """Those to learn, over which shares are renormalised; none given, all of the data set's."""
    min_known: float = 0.0
    """Least share of a tile's area that its label covers, in 0..1."""
    where: Sequence[str] = ()
    """Conditions on columns of the index, all of which a tile must meet: see `read_condition`."""
    weight: Weighting = ()
    """Columns of the index whose product is a tile's weight, or a function."""
    pairs: bool = False
    """Only places of several dates: know the tiles' places and dates, and leave out one without either."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """The chosen tiles, in the order of the index. All arrays have a row a tile."""

    scenes: tuple[str, ...]
    scene: npt.NDArray[np.int32]
    """Position in `scenes`."""
    row: npt.NDArray[np.int32]
    col: npt.NDArray[np.int32]
    fraction: npt.NDArray[np.float32]
    """(tile, class): the label over the chosen classes, rows sum to 1."""
    known: npt.NDArray[np.float32]
    """Share of the tile's area that the label covers."""
    weight: npt.NDArray[np.float32]
    """What the tile counts for in a loss; 1 where no weight was asked for."""
    place: npt.NDArray[np.int64] | None = None
    """Equal for tiles of one place. None, as `date`, unless pairs were asked for."""
    date: npt.NDArray[np.int64] | None = None
    """Day of the image, as days since 1970."""

    def __len__(self) -> int:
        return len(self.scene)

    def filter(self, keep: npt.NDArray[np.bool_]) -> "Tiles":
        """The tiles for which `keep` is true."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "scenes"}
        return replace(self, **{name: values[keep] for name, values in arrays.items() if values is not None})


@dataclass(frozen=True, slots=True)
class Condition:
    """What a column of the index must be: a comparison with one value, or being one of several, or none of them."""

    column: str
    comparison: str
    """<, <=, >, >=, = or !=."""
    values: tuple[str, ...]
    """As text; several for = and != alone."""

    def evaluate(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """Which rows meet it. A row without a value (NULL or NaN) meets none, != not either.

        Raises ValueError where a value is not of the column's type.
        """
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        # A column of float32 holds 0.1 as the nearest of its own numbers, and so must the value.
        kind = pa.float64() if pa.types.is_integer(column.type) else column.type
        try:
            values = pa.array(self.values).cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(f"{'|'.join(self.values)} is not of its type, {column.type}") from error
        if self.comparison in COMPARISONS:
            met = COMPARISONS[self.comparison](column, values[0])
        else:
            met = pc.is_in(column.cast(kind), values)
            if self.comparison == "!=":
                met = pc.invert(met)
        return pc.and_(met.fill_null(False), pc.is_valid(column))


def read_condition(text: str) -> Condition:
    """A condition from text: `gsd <= 4`, `satellite = GF1|GF2`, `acquired >= 2019-05-01`.

    Raises ValueError where it is none.
    """
    match = CONDITION.fullmatch(text)
    if match is None:
        raise ValueError(f"not a condition: {text!r}; expected one like gsd<=4 or satellite=GF1|GF2")
    column, comparison, value = match.groups()
    values = tuple(part.strip() for part in value.split("|"))
    if not all(values) or (len(values) > 1 and comparison in COMPARISONS):
        raise ValueError(f"not a condition: {text!r}; {comparison} takes one value")
    return Condition(column, comparison, values)


def select_tiles(dataset: str | Path, selection: Selection) -> tuple[tuple[str, ...], Tiles]:
    """The classes to learn, and the tiles that meet all conditions and hold any of these classes.

    Raises ValueError naming the data set where a class or a column is not there, a tile's weight is missing or
    negative, or no tile is left.
    """
    there = read_summary(dataset)["classes"]
    classes = tuple(selection.classes or there)
    if unknown := [name for name in classes if name not in there]:
        raise ValueError(f"{dataset} has no class {', '.join(unknown)}, only {', '.join(there)}")
    conditions = [read_condition(text) for text in selection.where]
    columns = ["scene", "row", "col", "known", "split", *classes, *(condition.column for condition in conditions)]
    if selection.pairs:
        columns += ["place", "acquired"]
    weight = selection.weight
    rows = read_index(dataset, None if callable(weight) else list(dict.fromkeys([*columns, *weight])))
    met = pc.and_(pc.equal(rows["split"], selection.split), pc.greater_equal(rows["known"], selection.min_known))
    for text, condition in zip(selection.where, conditions, strict=True):
        try:
            met = pc.and_(met, condition.evaluate(rows[condition.column]))
        except ValueError as error:
            raise ValueError(f"{dataset}/{INDEX}: {text}: {error}") from error
    if selection.pairs:
        met = pc.and_(met, pc.and_(pc.is_valid(rows["place"]), pc.is_valid(rows["acquired"])))
    rows = rows.filter(met)
    if rows.num_rows == 0:
        also = "".join(f" and {text}" for text in selection.where)
        asked = f"split {selection.split} with known >= {selection.min_known:g}{also}"
        raise ValueError(f"{dataset}/{INDEX}: no tile of {asked}")
    total = np.stack([rows[name].to_numpy() for name in classes]).sum(axis=0, dtype=np.float64)
    if not (total > 0).any():
        raise ValueError(f"{dataset}: no tile of split {selection.split} holds any of {', '.join(classes)}")
    rows, total = rows.filter(pa.array(total > 0)), total[total > 0]
    days = rows["acquired"].cast(pa.date32()).cast(pa.int32()) if selection.pairs else None
    encoded = rows["scene"].combine_chunks().dictionary_encode()
    fraction = np.stack([rows[name].to_numpy() for name in classes], axis=1) / total[:, None]
    return classes, Tiles(
        scenes=tuple(encoded.dictionary.to_pylist()),
        scene=encoded.indices.to_numpy().astype(np.int32),
        row=rows["row"].to_numpy().astype(np.int32),
        col=rows["col"].to_numpy().astype(np.int32),
        fraction=fraction.astype(np.float32),
        known=rows["known"].to_numpy().astype(np.float32),
        weight=_weights(dataset, rows, weight),
        place=_codes(rows["place"]) if selection.pairs else None,
        date=None if days is None else days.to_numpy().astype(np.int64),
    )


def _codes(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return column.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)  # type: ignore[no-any-return]


def _weights(dataset: str | Path, rows: pa.Table, weight: Weighting) -> npt.NDArray[np.float32]:
    if callable(weight):
        values = {"the function of weights": np.asarray(weight(rows), dtype=np.float64)}
    else:
        values = {name: rows[name].cast(pa.float64()).to_numpy() for name in weight}
    product = np.ones(rows.num_rows)
    for name, its in values.items():
        if its.shape != product.shape:
            raise ValueError(f"{name} gave an array of shape {its.shape}, expected {product.shape}: a weight a tile")
        if wrong := int((~(np.isfinite(its) & (its >= 0))).sum()):  # NULL comes as NaN
            raise ValueError(
                f"{dataset}/{INDEX}: {wrong} of {len(its)} chosen tiles have no weight, or a negative one, by {name}; "
                "leave them out by a condition"
            )
        product = product * its
    if not product.any():
        raise ValueError(f"{dataset}/{INDEX}: the weight of every chosen tile is 0")
    return product.astype(np.float32)
