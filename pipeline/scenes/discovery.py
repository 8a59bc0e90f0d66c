"""Find deliveries in directories, archives, buckets and STAC documents and at URLs, and group files by product."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from geokr.storage import inputs
from geokr.storage.inputs import Stat
from pipeline.scenes import gaofen, stac
from pipeline.scenes.archive import ARCHIVES, IMAGES, MASK, METADATA
from pipeline.scenes.products import find_products


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

    @property
    def archive(self) -> bool:
        return self.path.lower().endswith(ARCHIVES)


def find_deliveries(paths: Iterable[str | Path]) -> Iterator[Delivery]:
    """Find the deliveries at directories, files and URLs, in the order of the paths, each once.

    Paths of deliveries are absolute, because a worker on another machine has another working directory.
    Raises FileNotFoundError for a path that does not exist, OSError for a folder in a bucket that cannot be listed.
    """
    seen: set[str] = set()
    for path in sorted(inputs.make_absolute(str(path)) for path in paths):
        for delivery in find_remote(path) if inputs.is_remote(path) else find_local(Path(path)):
            if delivery.path not in seen:  # one of the paths may contain another
                seen.add(delivery.path)
                yield delivery


def find_local(path: Path) -> list[Delivery]:
    """The deliveries under a directory, in the order of their paths, or the one that a file belongs to."""
    if path.is_dir():
        return group_deliveries([*map(str, inputs.list_folder(path))])
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or directory")
    name = path.name.lower()
    if name.endswith(ARCHIVES):
        return [Delivery(str(path), (str(path),))]
    if name.endswith(stac.DOCUMENTS):
        return [to_delivery(source) for source in stac.walk_items(str(path))]
    groups = group_products(str(file) for file in path.parent.iterdir() if file.is_file())
    return [Delivery(group[0], group) for group in groups if str(path) in group]


def find_remote(url: str) -> list[Delivery]:
    """The deliveries at the URL of an archive, an image, a STAC document or a folder in a bucket."""
    name = url.lower()
    if name.endswith(stac.DOCUMENTS):
        return [to_delivery(source) for source in stac.walk_items(url)]
    if name.endswith(ARCHIVES):
        return [Delivery(url, (url,), source_version=hash_versions((url,), {url: inputs.stat(url)}))]
    if name.endswith(IMAGES):
        stats = stat_siblings(url)
        return [
            Delivery(group[0], group, source_version=hash_versions(group, stats))
            for group in group_products(stats)
            if url in group
        ]
    if name.startswith("s3://"):
        stats = inputs.list_bucket(url)
        return group_deliveries([*stats], stats)
    return [to_delivery(source) for source in stac.walk_items(url)]  # the URL of an API has no suffix


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


def group_deliveries(names: list[str], stats: Mapping[str, Stat] | None = None) -> list[Delivery]:
    """Group files into deliveries, in the order of their paths. An asset of a STAC item is not a delivery of its own.

    stats: name -> size and version, for files on a server.
    """
    stats = stats or {}
    of_products = {name for files in find_products(names).values() for name in files}
    documents = [name for name in names if name.lower().endswith(stac.DOCUMENTS) and name not in of_products]
    items = [source for name in documents for source in stac.items_in_file(name)]
    assets = {asset["href"] for source in items for asset in source.item.get("assets", {}).values()}
    groups = group_products(name for name in names if name in of_products or name not in assets)
    groups += [(name,) for name in names if name.lower().endswith(ARCHIVES)]
    deliveries = [Delivery(group[0], group, source_version=hash_versions(group, stats)) for group in groups]
    return sorted([*deliveries, *map(to_delivery, items)], key=lambda delivery: delivery.path)


def to_delivery(source: stac.ItemSource) -> Delivery:
    """Convert a STAC item or its fault to a delivery."""
    item = json.dumps(source.item, sort_keys=True) if source.item else ""
    return Delivery(source.href, (source.document,), item, source.fault)


def group_products(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Group files by product: the images of one product in one folder, then their metadata files.

    Case is ignored, except in the names of images. A product whose bands are files of their own has all its files.
    """
    names = sorted(names)
    products = find_products(names)
    names = sorted({*names} - {name for files in products.values() for name in files})
    metadata = {name.lower(): name for name in names if name.lower().endswith((*METADATA, MASK))}
    images: dict[str, list[str]] = {}
    for name in names:
        if name.lower().endswith(IMAGES):
            images.setdefault(product_path(name), []).append(name)
    groups = {
        path: tuple(sorted(files, key=lambda name: (not name.lower().endswith(IMAGES), name)))
        for path, files in products.items()
    }
    for path, members in images.items():
        candidates = [name.lower() for member in members for name in metadata_names(member)]
        existing = [metadata[name] for name in candidates if name in metadata]
        groups[path] = (*members, *dict.fromkeys(existing))
    return [group for _, group in sorted(groups.items())]


def metadata_names(image: str) -> list[str]:
    """Possible names of an image's files: own XML, RPB, RPC text, shared XML, GDAL's mask and XML. Case may differ.

    The shared XML belongs to all images of a delivery if they have none of their own: GF-6 WFV.
    """
    stem = image.removesuffix(PurePosixPath(image).suffix)  # PurePosixPath would turn `s3://` into `s3:/`
    own = [stem + suffix for suffix in METADATA]
    return [*own, f"{stem.rpartition('-')[0]}.xml", image + MASK, f"{image}.aux.xml"]


def group_name(files: Sequence[str]) -> str:
    """Name of the scene of a group of files."""
    return next((path.rpartition("/")[2] for path in find_products(files)), "") or scene_name(files[0])


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
    return name if scene == path.stem else str(path.with_name(scene))
