"""Products whose bands are files of their own. A new kind of product is a module that is a `band_files.Reader`."""

import re
from collections.abc import Iterable, Sequence

from pipeline.scenes import landsat, sentinel2
from pipeline.scenes.band_files import Reader
from pipeline.scenes.image_files import is_hidden
from pipeline.scenes.named_bands import NamedBands

READERS: tuple[Reader, ...] = (landsat, sentinel2)


def make_readers(band_files: str) -> tuple[Reader, ...]:
    """The readers of all products. band_files: the user's pattern of file names, which comes first; empty for none."""
    return (NamedBands(re.compile(band_files, re.IGNORECASE)), *READERS) if band_files else READERS


def find_products(names: Iterable[str], readers: Sequence[Reader] = READERS) -> dict[str, list[str]]:
    """Group the files of products by product: path of the product -> all its files. Other files are left out."""
    names = [name for name in names if not is_hidden(name)]
    products: dict[str, list[str]] = {}
    for reader in readers:
        found = reader.find_products(names)
        products |= found
        if found:
            taken = {name for files in found.values() for name in files}
            names = [name for name in names if name not in taken]
    return products


def find_folder(name: str) -> str:
    """The folder that contains all files of the product with this file; empty if they lie side by side."""
    return next(filter(None, (reader.find_folder(name) for reader in READERS)), "")


def find_reader(names: Iterable[str], readers: Sequence[Reader] = READERS) -> Reader | None:
    """The module that reads the product with these files; None if they are another kind of delivery."""
    names = [*names]
    return next((reader for reader in readers if reader.find_products(names)), None)
