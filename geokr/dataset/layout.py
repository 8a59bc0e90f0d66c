"""File names, status codes and layout version of a data set. Training imports them without Zarr."""

INDEX = "index.parquet"
"""The index inside a data set: a directory of Parquet files, its parts."""
UNFINISHED_INDEX = "index.partial"
"""Where the parts of an index lie until all are written."""
DATASET = "dataset.json"
TILES = "tiles.zarr"
"""The store of tiles inside a data set. It is named in this module, because training reads it without zarr-python."""
SCHEMA = 3
"""Version of the layout on disk. A reader rejects any other version."""
LABELS = "labels"
TILE_STATUS = ("not_built", "accepted", "void", "dark", "flat", "cloud", "missing_lines")
"""Whether a tile was accepted, or why it was rejected. The code of a status is its position, so only append."""
LABEL_STATUS = ("not_built", "labelled", "unknown")
"""Whether a tile has a label. `unknown`: the product covers no part of the tile with a class of the legend."""
GRIDS = (1, 2, 4, 8)
"""Numbers of parts along a side of a tile for which a label set may have shares."""
WHOLE_PART = 255
"""The array `fraction_grid` counts areas in units of a part's area divided by this."""
RGB = ("red", "green", "blue")
"""Bands of an image in true colour, and of the weights that others publish."""
ACCEPTED = TILE_STATUS.index("accepted")


class StoreError(ValueError):
    """The store on disk does not match what the caller wants to write or read."""


class StoreWriteError(StoreError):
    """Writing to the store failed. No input is at fault, and any other block would fail the same way."""


def label_store(label_set: str) -> str:
    """Path of a label set's store inside the data set. `label_set` is `<product>_<year>`."""
    return f"{LABELS}/{label_set}.zarr"
