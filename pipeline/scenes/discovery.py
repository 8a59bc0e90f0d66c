"""Where deliveries lie: under directories, in archives, at URLs, in STAC documents; and which files belong together."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from geokr.storage import inputs
from geokr.storage.inputs import Stat
from pipeline.scenes import gaofen, stac
from pipeline.scenes.archive import ARCHIVES, IMAGES, METADATA


@dataclass(frozen=True, slots=True)
class Delivery:
    """The images of one product and the metadata beside them, or an archive of such, or a STAC item."""

    path: str
    """The archive, the first of the images, or the item's address."""
    files: tuple[str, ...]
    """Images and metadata files; the archive alone; the document that holds the item."""
    item: str = ""
    """The STAC item as JSON, where it is one."""
    fault: str = ""
    """Why there is nothing to read, where a STAC document is at fault."""
    source_version: str = ""
    """What its files on a server are known by when nothing of them changes; empty where they are known otherwise."""

    @property
    def archive(self) -> bool:
        return self.path.lower().endswith(ARCHIVES)


def find_deliveries(paths: Iterable[str | Path]) -> Iterator[Delivery]:
    """Deliveries under directories, in the order of their paths, each once; files and URLs may be named too.

    The paths are absolute: a worker elsewhere on a shared file system has another working directory.
    Raises FileNotFoundError for a path that does not exist, OSError for a place in a bucket that cannot be listed.
    """
    seen: set[str] = set()
    for path in sorted(inputs.make_absolute(str(path)) for path in paths):
        for delivery in find_remote(path) if inputs.is_remote(path) else find_local(Path(path)):
            if delivery.path not in seen:  # or one of the paths leads into another
                seen.add(delivery.path)
                yield delivery


def find_local(path: Path) -> list[Delivery]:
    """The deliveries under a directory, or the one that a file belongs to, in the order of their paths."""
    if path.is_dir():
        return group_deliveries([str(file) for file in path.rglob("*") if file.is_file()])
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or directory")
    name = path.name.lower()
    if name.endswith(ARCHIVES):
        return [Delivery(str(path), (str(path),))]
    if name.endswith(stac.DOCUMENTS):
        return [to_delivery(found) for found in stac.walk_items(str(path))]
    beside = group_products(str(file) for file in path.parent.iterdir() if file.is_file())
    return [Delivery(group[0], group) for group in beside if str(path) in group]


def find_remote(url: str) -> list[Delivery]:
    """The deliveries at a URL: an archive's, an image's, a STAC document's, or those of a folder in a bucket."""
    name = url.lower()
    if name.endswith(stac.DOCUMENTS):
        return [to_delivery(found) for found in stac.walk_items(url)]
    if name.endswith(ARCHIVES):
        return [Delivery(url, (url,), source_version=version_of((url,), {url: inputs.stat(url)}))]
    if name.endswith(IMAGES):
        there = stat_siblings(url)
        return [
            Delivery(group[0], group, source_version=version_of(group, there))
            for group in group_products(there)
            if url in group
        ]
    if name.startswith("s3://"):
        there = inputs.list_bucket(url)
        return group_deliveries([*there], there)
    return [to_delivery(found) for found in stac.walk_items(url)]  # an API's answer has no suffix


def stat_siblings(url: str) -> dict[str, Stat]:
    """What a server tells of an image and, where it lies in a bucket that may be listed, of the files beside it."""
    try:
        bucket = url.lower().startswith("s3://")
        found = inputs.list_bucket(url.rpartition("/")[0], deep=False) if bucket else {url: inputs.stat(url)}
    except OSError:  # whether it is there, its header will say
        found = {}
    return {url: Stat(0, "")} | found


def version_of(names: Iterable[str], there: Mapping[str, Stat]) -> str:
    """What files on a server are known by; empty where the server does not tell one version from another."""
    found = [f"{name} {there[name].size} {there[name].version}" for name in names if name in there]
    if not found or any(line.endswith(" ") for line in found):
        return ""
    return hashlib.sha256("\n".join(found).encode(errors="backslashreplace")).hexdigest()


def group_deliveries(names: list[str], there: Mapping[str, Stat] | None = None) -> list[Delivery]:
    """The deliveries among files, in the order of their paths; what a STAC item refers to is no image of its own.

    there: what a server tells of them.
    """
    there = there or {}
    items = [found for name in names if name.lower().endswith(stac.DOCUMENTS) for found in stac.items_in_file(name)]
    referred = {asset["href"] for found in items for asset in found.item.get("assets", {}).values()}
    groups = group_products(name for name in names if name not in referred)
    groups += [(name,) for name in names if name.lower().endswith(ARCHIVES)]
    found = [Delivery(group[0], group, source_version=version_of(group, there)) for group in groups]
    return sorted([*found, *map(to_delivery, items)], key=lambda delivery: delivery.path)


def to_delivery(found: stac.ItemSource) -> Delivery:
    """A STAC item as a delivery."""
    item = json.dumps(found.item, sort_keys=True) if found.item else ""
    return Delivery(found.href, (found.document,), item, found.fault)


def group_products(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Files that belong together: the images of one product in one folder, then the metadata of each.

    Upper and lower case are the same, but in images' names.
    """
    names = sorted(names)
    metadata = {name.lower(): name for name in names if name.lower().endswith(METADATA)}
    images: dict[str, list[str]] = {}
    for name in names:
        if name.lower().endswith(IMAGES):
            images.setdefault(product_path(name), []).append(name)
    found = []
    for _, members in sorted(images.items()):
        wanted = [name.lower() for member in members for name in metadata_names(member)]
        beside = [metadata[name] for name in wanted if name in metadata]
        found.append((*members, *dict.fromkeys(beside)))
    return found


def metadata_names(image: str) -> list[str]:
    """What the metadata files of an image may be called, but for upper and lower case.

    Last comes the XML that all images of a delivery share where they have none each: GF-6 WFV.
    """
    stem = image.removesuffix(PurePosixPath(image).suffix)  # a path would take a slash from `s3://`
    return [*(stem + suffix for suffix in METADATA), f"{stem.rpartition('-')[0]}.xml"]


def scene_name(name: str) -> str:
    """The name of the scene that an image belongs to: without suffix and, in a Gaofen name, without the camera's."""
    stem = PurePosixPath(name).stem
    try:
        return gaofen.parse_name(stem).scene
    except gaofen.GaofenError:
        return stem


def product_path(name: str) -> str:
    """The path that the images of one scene share; an image with any other name is alone."""
    path = PurePosixPath(name)
    scene = scene_name(name)
    return name if scene == path.stem else str(path.with_name(scene))
