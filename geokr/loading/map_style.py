"""Tiles by number, for a `DataLoader` of PyTorch or Lightning and its samplers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geokr.loading.pixels import TileReader, open_reader
from geokr.loading.selection import Selection, select_tiles


class TileDataset(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The selected tiles by number.

    A sample is {"image": (band, y, x) uint8 or uint16, "fraction": (class,) float32, "known", "weight": float32}, and
    with a `grid` also "parts": (part row, part column, class) uint8. All tiles of a batch are read together in
    tensorstore's threads, so `num_workers=0` is the right setting. Worker processes must not be forked: use
    `multiprocessing_context="spawn"`.
    """

    def __init__(self, dataset: str | Path, selection: Selection, *, bands: Sequence[str] = ()) -> None:
        """selection: tiles to read, without `pairs`. bands: as in `TileLoader`."""
        self.classes, tiles = select_tiles(dataset, selection)
        self._reader: TileReader | None = open_reader(str(dataset), selection.split, tiles, bands)
        self.bands, self.units, self.selected = self._reader.bands, self._reader.units, self._reader.tiles
        self._root = self._reader.roots

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}  # each worker process opens the shards itself

    def __len__(self) -> int:
        return len(self.selected)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """Read samples by number. Raises ValueError naming the shard and the tile if one cannot be read."""
        self._reader = self._reader or TileReader(self._root, self.selected, self.bands, self.units)
        positions = np.asarray(indices, dtype=np.int64)
        target = np.empty((len(positions), *self._reader.tile_shape), dtype=self._reader.dtype)
        image = torch.from_numpy(target)
        if errors := self._reader.finish(self._reader.request(positions, target)):
            raise ValueError(next(iter(errors.values())))
        names = ["fraction", "known", "weight", *(["parts"] if self.selected.parts is not None else [])]
        arrays = {name: torch.from_numpy(getattr(self.selected, name)[positions]) for name in names}
        return [
            {"image": image[i], **{name: values[i] for name, values in arrays.items()}} for i in range(len(positions))
        ]
