"""Products whose bands are files of their own. A new kind of product is a module that is a `band_files.Reader`."""

from collections.abc import Iterable

from pipeline.scenes import landsat, sentinel2
from pipeline.scenes.band_files import Reader

READERS: tuple[Reader, ...] = (landsat, sentinel2)


def find_products(names: Iterable[str]) -> dict[str, list[str]]:
    """Group the files of products by product: path of the product -> all its files. Other files are left out."""
    names = [*names]
    return {path: files for reader in READERS for path, files in reader.find_products(names).items()}


def find_folder(name: str) -> str:
    """The folder that contains all files of the product with this file; empty if they lie side by side."""
    return next(filter(None, (reader.find_folder(name) for reader in READERS)), "")


def find_reader(names: Iterable[str]) -> Reader | None:
    """The module that reads the product with these files; None if they are another kind of delivery."""
    names = [*names]
    return next((reader for reader in READERS if reader.find_products(names)), None)
