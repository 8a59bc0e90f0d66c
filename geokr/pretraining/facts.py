"""What a run knows of its tiles, by which it is not resumed with other tiles."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from geokr.dataset.index import read_extent, read_summary
from geokr.loading.loader import TileLoader

LABELS_JOINED = "+"


@dataclass(frozen=True, slots=True)
class DataFacts:
    """Properties of the tiles of a run. A checkpoint stores them, so that a run is not resumed with other tiles."""

    training_tiles: int
    held_out_tiles: int
    classes: tuple[str, ...]
    """In the order of the head's outputs."""
    mean_label: tuple[float, ...]
    """Mean share of each class over the training tiles."""
    pixel_type: str
    """Type of the pixels: uint8 or uint16."""
    quantity: str
    """What they stand for, as pixel * scale_factor + add_offset: see `PixelUnits`."""
    scale_factor: float
    add_offset: float
    low_pixel: tuple[float, ...]
    """Pixel of each band that becomes 0."""
    high_pixel: tuple[float, ...]
    """Pixel of each band that becomes 1."""
    mean_pixel: tuple[float, ...]
    """Mean of each band over a sample of the training tiles, in 0..1."""
    std_pixel: tuple[float, ...]
    """Standard deviation of each band over the same sample."""
    unread_tiles: int
    """Number of tiles of this sample that could not be read and are left out of the two."""
    tiles_by_dataset: tuple[int, ...]
    """Number of training tiles in each data set."""
    labels: str
    """Name of the label set: product and year. Those of several data sets, joined by LABELS_JOINED."""
    bounds: tuple[float, ...]
    """West, south, east and north of the data set, degrees; empty if unknown to the index."""
    acquired: tuple[str, ...]
    """Acquisition times of the first and the last tile, ISO 8601 in UTC; empty if unknown to the index."""


def gather_facts(training: TileLoader, held_out: TileLoader) -> DataFacts:
    skipped = training.skipped
    levels = training.measure_levels()
    bounds, acquired = join_extents(map(read_extent, training.datasets))
    labels = [str(read_summary(dataset)["label_set"]) for dataset in training.datasets]
    return DataFacts(
        training_tiles=training.tiles,
        held_out_tiles=held_out.tiles,
        classes=training.classes,
        mean_label=tuple(training.fraction.mean(axis=0, dtype="float64").tolist()),
        pixel_type=levels.dtype,
        **dataclasses.asdict(training.units),
        low_pixel=tuple(levels.low),
        high_pixel=tuple(levels.high),
        mean_pixel=tuple(levels.mean),
        std_pixel=tuple(levels.std),
        unread_tiles=training.skipped - skipped,
        tiles_by_dataset=training.count_by_dataset(),
        labels=LABELS_JOINED.join(dict.fromkeys(labels)),
        bounds=bounds,
        acquired=acquired,
    )


def join_extents(
    extents: Iterable[tuple[tuple[float, ...], tuple[str, ...]]],
) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """The extent of several data sets together, from those of each: see `read_extent`."""
    given = list(extents)
    boxes, times = [bounds for bounds, _ in given if bounds], [time for _, acquired in given for time in acquired]
    west, south, east, north = zip(*boxes, strict=True) if boxes else ((),) * 4
    bounds = (min(west), min(south), max(east), max(north)) if boxes else ()
    return bounds, (min(times), max(times)) if times else ()
