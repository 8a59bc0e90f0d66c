"""Classification sets that torchgeo knows by name: `--data torchgeo:EuroSAT:FOLDER`. Needs the extra `torchgeo`.

torchgeo says which files there are, their classes and their split; pixels are read like those of any other set.
"""

from pathlib import Path
from typing import Any

import numpy as np

from geokr.evaluation.examples import SPLITS, Examples
from geokr.evaluation.folders import LabelledFiles
from geokr.evaluation.images import find_bands, find_scale
from geokr.evaluation.task import Settings
from geokr.settings import ConfigError
from geokr.storage.inputs import InputError

PREFIX = "torchgeo:"
SENTINEL2 = {"B02": "blue", "B03": "green", "B04": "red", "B08": "nir", "B11": "swir1", "B12": "swir2"}
"""torchgeo's names of bands -> ours; other bands keep their names."""


def read_torchgeo(address: str, settings: Settings) -> Examples:
    """Read a set at `torchgeo:NAME:FOLDER`, with torchgeo's split. Nothing is downloaded.

    NAME: a class of torchgeo.datasets for image classification. Raises ConfigError for another name, and InputError
    naming the folder if torchgeo does not find the set there.
    """
    try:
        from torchgeo import datasets
    except ImportError as error:
        raise ConfigError(f"{address}: install the extra `torchgeo` to read this set") from error
    name, _, folder = address.removeprefix(PREFIX).partition(":")
    kind = getattr(datasets, name, None)
    if not folder or not isinstance(kind, type) or not issubclass(kind, datasets.NonGeoClassificationDataset):
        raise ConfigError(f"{address}: expected torchgeo:NAME:FOLDER with a classification set of torchgeo's")
    make: Any = kind
    try:
        parts = [make(root=folder, split=split) for split in SPLITS]
    except TypeError as error:
        raise ConfigError(f"{address}: torchgeo has no train, val and test split of {name}") from error
    except (datasets.DatasetNotFoundError, OSError) as error:
        raise InputError(f"{folder}: torchgeo does not find {name} there") from error
    paths = [Path(path) for part in parts for path, _ in part.imgs]
    labels = [int(label) for part in parts for _, label in part.imgs]
    split = np.repeat(np.arange(len(SPLITS)), [len(part.imgs) for part in parts])
    known = tuple(SENTINEL2.get(band, band) for band in getattr(kind, "all_band_names", ()))
    bands = find_bands(paths[0], settings.bands or known)
    files = LabelledFiles(tuple(paths), tuple(labels), bands)
    return Examples(
        names=tuple(path.relative_to(folder).as_posix() for path in paths),
        bands=bands,
        classes=tuple(parts[0].classes),
        stratum=np.array(labels, np.int64),
        group=np.arange(len(paths)),
        split={part: np.flatnonzero(split == number) for number, part in enumerate(SPLITS)},
        scale=find_scale(paths[0], settings.scale),
        image=files.image,
        target=files.target,
    )
