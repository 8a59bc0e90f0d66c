"""Find deliveries in directories, archives, buckets and STAC documents and at URLs, and group files by product."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path, PurePosixPath

from geokr.dataset import layout
from geokr.storage import inputs
from geokr.storage.inputs import Stat
from pipeline.scenes import gaofen, stac, vrt
from pipeline.scenes.archive import ARCHIVES, IMAGES, PRODUCT_METADATA
from pipeline.scenes.band_files import Reader
from pipeline.scenes.image_files import CONTAINERS, find_images, is_hidden, metadata_files
from pipeline.scenes.products import READERS, find_folder, find_products
from pipeline.scenes.scene import SceneError

STORES = ".zarr"
"""Suffix of a Zarr store. Its files, thousands in a data set, are not listed one by one."""
LOG = "build.jsonl"
OWN_FILES = (
    LOG, layout.DATASET, "scenes.parquet", "scenes.partial.parquet", "quarantine.jsonl", "inputs.jsonl",
    "README.md", "README-tiles.png", "README-shares.png", "croissant.json", "collection.json",
)  # fmt: skip
"""What this program writes into a data set, besides stores."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """The images of one product with their metadata files, or an archive, or a STAC item."""

    path: str
    """The archive, the first image, or the address of the STAC item."""
    files: tuple[str, ...]
    """The images and metadata files, or only the archive, or the document that contains the STAC item."""
    item: str = ""
    """The STAC item as JSON; empty for other deliveries."""
    fault: str = ""
    """Why a STAC document cannot be used; empty if it can, and for other deliveries."""
    source_version: str = ""
    """Identifies the state of its files on a server: it changes if one of them does.

    Empty if the server reports no versions, and for local files and STAC items, which are identified in other ways.
    """
    items: tuple[str, ...] = ()
    """Paths of the deliveries that show its pixels: it is read on its own only if none of them can be used.

    For an image, STAC items that refer to it, and VRTs with a band a file. For a VRT with all bands in each file, the
    deliveries of its files.
    """
    part_of: str = ""
    """The STAC item or VRT of whose several images this is one; empty if it is the only image of its items."""

    @property
    def archive(self) -> bool:
        return self.path.lower().endswith(ARCHIVES)


@dataclass(frozen=True, slots=True)
class Inventory:
    """What lies at the places that were given."""

    files: tuple[str, ...] = ()
    """Every file, absolute, and every Zarr store as one, in the order of the places. Of a URL or document, itself."""
    deliveries: tuple[Delivery, ...] = ()
    """Those with `items` are alternatives to the items, which come first."""
    own: tuple[str, ...] = ()
    """STAC items that this program wrote about images that are here too, and the files of its data sets."""


def take_inventory(paths: Iterable[str | Path], readers: Sequence[Reader] = READERS) -> Inventory:
    """List what lies at directories, files and URLs, in the order of the paths, each file and delivery once.

    readers: of products whose bands are files of their own.
    Paths of deliveries are absolute, because a worker on another machine has another working directory.
    Raises FileNotFoundError for a path that does not exist, OSError for a folder in a bucket that cannot be listed.
    """
    files: dict[str, None] = {}
    own: dict[str, None] = {}
    deliveries: dict[str, Delivery] = {}
    for path in sorted(inputs.make_absolute(str(path)) for path in paths):
        place = look_at_url(path, readers) if inputs.is_remote(path) else look_at_path(Path(path), readers)
        files |= dict.fromkeys(place.files)
        own |= dict.fromkeys(place.own)
        for delivery in place.deliveries:  # one of the paths may contain another
            deliveries.setdefault(delivery.path, delivery)
    ordered = sorted(deliveries.values(), key=lambda delivery: bool(delivery.items))
    return Inventory(tuple(files), tuple(ordered), tuple(own))


def find_deliveries(paths: Iterable[str | Path]) -> Iterator[Delivery]:
    """The deliveries at directories, files and URLs without alternatives: see `take_inventory`."""
    return (delivery for delivery in take_inventory(paths).deliveries if not delivery.items)


def find_alternatives(inventory: Inventory, used: Iterable[str]) -> list[Delivery]:
    """The deliveries to read in place of others that show their pixels and cannot be used.

    used: paths of the deliveries that gave a scene.
    """
    given = {*used}
    return [delivery for delivery in inventory.deliveries if delivery.items and given.isdisjoint(delivery.items)]


def look_at_path(path: Path, readers: Sequence[Reader]) -> Inventory:
    """What lies under a directory, in the order of paths, or the delivery that a file belongs to."""
    if path.is_dir():
        return group_deliveries([*map(str, inputs.list_folder(path))], readers)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or directory")
    name, given = path.name.lower(), (str(path),)
    if name.endswith(ARCHIVES):
        return Inventory(given, (Delivery(str(path), given),))
    if name.endswith(stac.DOCUMENTS) and not name.endswith(PRODUCT_METADATA):
        return Inventory(given, tuple(map(to_delivery, number_repeats(stac.walk_items(str(path))))))
    if vrt.is_vrt(name):  # it shows its files, which are not given themselves
        return Inventory(given, (Delivery(str(path), given),))
    folder = find_folder(str(path))
    beside = inputs.list_folder(Path(folder)) if folder else [file for file in path.parent.iterdir() if file.is_file()]
    groups = [group for group in group_products(map(str, beside), readers) if str(path) in group]
    return Inventory(given, tuple(Delivery(group[0], group) for group in groups))


def look_at_url(url: str, readers: Sequence[Reader]) -> Inventory:
    """What is at the URL of an archive, an image, a STAC document or a folder in a bucket."""
    name, given = url.lower(), (url,)
    if name.endswith(ARCHIVES):
        version = hash_versions(given, {url: inputs.stat(url)})
        return Inventory(given, (Delivery(url, given, source_version=version),))
    if name.endswith((*IMAGES, *CONTAINERS, vrt.SUFFIX)):
        stats = stat_siblings(url)
        groups = [group for group in group_products(stats, readers) if url in group]
        return Inventory(
            given, tuple(Delivery(group[0], group, source_version=hash_versions(group, stats)) for group in groups)
        )
    if name.startswith("s3://") and not name.endswith(stac.DOCUMENTS):
        stats = inputs.list_bucket(url)
        return group_deliveries([*stats], readers, stats)
    # The URL of an API has no suffix.
    return Inventory(given, tuple(map(to_delivery, number_repeats(stac.walk_items(url)))))


def stat_siblings(url: str) -> dict[str, Stat]:
    """Size and version of an image on a server and, if its bucket can be listed, of the files next to it."""
    try:
        in_bucket = url.lower().startswith("s3://")
        stats = inputs.list_bucket(url.rpartition("/")[0], deep=False) if in_bucket else {url: inputs.stat(url)}
    except OSError:  # reading the header will show whether the image exists
        stats = {}
    return {url: Stat(0, "")} | stats


def hash_versions(names: Iterable[str], stats: Mapping[str, Stat]) -> str:
    """SHA-256 of the sizes and versions of files on a server; empty if the server reports no versions."""
    lines = [f"{name} {stats[name].size} {stats[name].version}" for name in names if name in stats]
    if not lines or any(line.endswith(" ") for line in lines):
        return ""
    return hashlib.sha256("\n".join(lines).encode(errors="backslashreplace")).hexdigest()


def group_deliveries(names: list[str], readers: Sequence[Reader], stats: Mapping[str, Stat] | None = None) -> Inventory:
    """Group files into deliveries, in the order of their paths.

    An image that a STAC item or a VRT of several images refers to is read as part of it. On its own, it is an
    alternative: see `Delivery`.
    stats: name -> size and version, for files on a server.
    """
    stats = stats or {}
    given = dict.fromkeys(store_name(name) or name for name in names)
    names = [name for name in given if not name.lower().endswith(STORES)]
    here = {*names}
    of_products = {name for files in find_products(names, readers).values() for name in files}
    documents = [name for name in names if name.lower().endswith(stac.DOCUMENTS) and name not in of_products]
    sources = number_repeats(source for name in documents for source in stac.items_in_file(name))
    # This program's own items describe images that are read themselves: the items would take their place.
    items = [source for source in sources if not (stac.is_own(source.item) and here.issuperset(stac.hrefs(source)))]
    own = {source.document for source in sources} - {source.document for source in items}
    mosaics = read_mosaics(names)
    shown = {source.href: stac.hrefs(source) for source in items}
    # A VRT with a band a file, or that shows more than what was given, is the scene; another one is that of its files.
    shown |= {name: files for name, (mosaic, files) in mosaics.items() if mosaic.stacked or not here.issuperset(files)}
    described: dict[str, list[str]] = {}
    for path, hrefs in shown.items():
        for href in hrefs:
            if href in here and href not in of_products and href.lower().endswith(IMAGES):
                described.setdefault(href, []).append(path)
    names, images = [name for name in names if name not in mosaics], {*find_images(names)}
    groups = group_products((name for name in names if name not in described), readers)
    groups += [(name,) for name in names if name.lower().endswith(ARCHIVES) and not is_hidden(name)]
    deliveries = [Delivery(group[0], group, source_version=hash_versions(group, stats)) for group in groups]
    beside = [name for name in names if name not in of_products | images]
    for group in group_products([*described, *beside], readers):
        of = dict.fromkeys(path for name in group for path in described.get(name, ()))
        several = [
            path
            for path in of
            if len(described.keys() & {*shown[path]}) > 1 and (path not in mosaics or mosaics[path][0].stacked)
        ]
        version = hash_versions(group, stats)
        deliveries.append(Delivery(group[0], group, "", "", version, tuple(of), min(several, default="")))
    owners = {name: delivery for delivery in deliveries for name in delivery.files if name in images | of_products}
    for name, (_, files) in mosaics.items():
        shown_by = [owners[file] for file in files if file in owners and name not in owners[file].items]
        of = dict.fromkeys(path for delivery in shown_by for path in (delivery.path, *delivery.items))
        deliveries.append(Delivery(name, (name,), items=tuple(of)))
    data_sets = {name.partition(f"/{LOG}")[0] for name in names if f"/{LOG}/" in f"{name}/"}  # in a bucket, a directory
    own |= {name for name in given if is_own_file(name, data_sets)}
    ordered = sorted([*deliveries, *map(to_delivery, items)], key=lambda delivery: delivery.path)
    return Inventory(tuple(given), tuple(ordered), tuple(sorted(own)))


def read_mosaics(names: Sequence[str]) -> dict[str, tuple[vrt.Mosaic, list[str]]]:
    """The VRTs among files that can be read, with the files that they show, under the names that these have here.

    What is wrong with the others is found when they are read as scenes.
    """
    mosaics = {}
    for name in filter(vrt.is_vrt, names):
        with suppress(SceneError):
            mosaics[name] = vrt.read_mosaic(name)
    here = {os.path.realpath(name): name for name in names} if mosaics else {}
    return {
        name: (mosaic, [here.get(os.path.realpath(file), file) for file in mosaic.sources])
        for name, mosaic in mosaics.items()
    }


def store_name(name: str) -> str:
    """The Zarr store that a file is a part of; empty if it is in none."""
    parts = name.split("/")
    return next(("/".join(parts[:n]) for n in range(1, len(parts)) if parts[n - 1].lower().endswith(STORES)), "")


def is_own_file(name: str, data_sets: Collection[str]) -> bool:
    """Whether a file or store is one that this program writes into its data sets, which are given as directories."""
    directory, _, file = name.rpartition("/")
    if directory.endswith((f"/{layout.INDEX}", f"/{layout.UNFINISHED_INDEX}", f"/{LOG}")):
        return directory.rpartition("/")[0] in data_sets
    if file.endswith(STORES):
        return directory.removesuffix(f"/{layout.LABELS}") in data_sets
    return directory in data_sets and file in OWN_FILES


def number_repeats(sources: Iterable[stac.ItemSource]) -> list[stac.ItemSource]:
    """The same items, each with an address of its own: a document may have several items of one id."""
    counts: Counter[str] = Counter()
    numbered = []
    for source in sources:
        counts[source.href] += 1
        number = counts[source.href]
        numbered.append(source if number == 1 else replace(source, href=f"{source.href}#{number}"))
    return numbered


def to_delivery(source: stac.ItemSource) -> Delivery:
    """Convert a STAC item or its fault to a delivery."""
    item = json.dumps(source.item, sort_keys=True) if source.item else ""
    return Delivery(source.href, (source.document,), item, source.fault)


def group_products(names: Iterable[str], readers: Sequence[Reader] = READERS) -> list[tuple[str, ...]]:
    """Group files by product: the images of one product in one folder, then their metadata files.

    Case is ignored, except in the names of images. A product whose bands are files of their own has all its files.
    """
    names = sorted(names)
    products = find_products(names, readers)
    names = sorted({*names} - {name for files in products.values() for name in files})
    images: dict[str, list[str]] = {}
    for name in find_images(names):
        images.setdefault(product_path(name), []).append(name)
    of_images = {name for members in images.values() for name in members}
    metadata = {name.lower(): name for name in names if name not in of_images}
    groups = {
        path: tuple(sorted(files, key=lambda name: (not name.lower().endswith(IMAGES), name)))
        for path, files in products.items()
    }
    for path, members in images.items():
        candidates = [name.lower() for member in members for name in chain(*metadata_files(member).values())]
        existing = [metadata[name] for name in candidates if name in metadata]
        groups[path] = (*members, *dict.fromkeys(existing))
    return [group for _, group in sorted(groups.items())]


def group_name(files: Sequence[str], readers: Sequence[Reader] = READERS) -> str:
    """Name of the scene of a group of files."""
    return next((path.rpartition("/")[2] for path in find_products(files, readers)), "") or scene_name(files[0])


def scene_name(name: str) -> str:
    """Name of the scene that an image belongs to: its stem, in a Gaofen name without the camera's suffix."""
    stem = PurePosixPath(name).stem
    try:
        return gaofen.parse_name(stem).scene
    except gaofen.GaofenError:
        return stem


def product_path(name: str) -> str:
    """The path that the images of one Gaofen scene share. For any other image, its own path."""
    path = PurePosixPath(name)
    scene = scene_name(name)
    return name if scene == path.stem or vrt.is_vrt(name) else str(path.with_name(scene))
