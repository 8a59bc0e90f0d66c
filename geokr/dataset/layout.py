"""Names, codes and versions of what lies in a data set. Training imports them without Zarr."""

INDEX = "index.parquet"
DATASET = "dataset.json"
TILES = "tiles.zarr"
"""The tiles' store inside a data set. Named here, since training reads it without zarr-python."""
SCHEMA = 1
"""Version of the layout on disk. A reader refuses a newer one."""
LABELS = "labels"
TILE_STATUS = ("not_built", "accepted", "void", "dark", "flat", "cloud", "missing_lines")
"""Why a tile was rejected. Position is code; append only."""
LABEL_STATUS = ("not_built", "labelled", "unknown")
"""`unknown`: the product covers no part of the tile with a class of the legend."""
ACCEPTED = TILE_STATUS.index("accepted")


class StoreError(ValueError):
    """The store on disk is not what the caller wants to write or read."""


class StoreWriteError(StoreError):
    """What should be written did not reach the store: no input is at fault, and no other block would fare better."""


def label_store(label_set: str) -> str:
    """Name of a label set's store inside the data set; `label_set` is `<product>_<year>`."""
    return f"{LABELS}/{label_set}.zarr"
