"""Unusable deliveries, by name: a function that writes each into a folder, and words of its quarantine message.

None of them contains a scene. Written into one directory, they do not affect other deliveries in it.
"""

import gzip
import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine

from tests.deliveries import (
    HEIGHT,
    LAT,
    LON,
    NAME,
    STEM,
    WIDTH,
    camera,
    coordinates,
    fields,
    members,
    rpb,
    tiff,
    write_folder,
    write_zip,
    xml,
)

Files = dict[str, bytes]


@dataclass(frozen=True)
class Broken:
    """One kind of broken delivery."""

    write: Callable[[Path], object]
    """Writes the delivery into an existing folder."""
    words: str
    """Part of its message in the quarantine."""


def without(suffix: str) -> Files:
    return {name: content for name, content in members().items() if not name.endswith(suffix)}


def changed(suffix: str, change: Callable[[bytes], bytes]) -> Files:
    return {name: change(content) if name.endswith(suffix) else content for name, content in members().items()}


CORNERS_OF_THE_NEXT = {
    f"{side}{end}{what}": place + sign * 0.003
    for side, north in (("Top", 1), ("Bottom", -1))
    for end, east in (("Left", -1), ("Right", 1))
    for what, place, sign in (("Longitude", LON, east), ("Latitude", LAT + 0.004, north))
}
"""Corner fields of a neighbouring scene; the image is some 0.007 x 0.005 degrees."""


def folder(files: Files, words: str) -> Broken:
    return Broken(lambda path: write_folder(path, files), words)


def said(**change: object) -> Files:
    """The files of the delivery, with other values in its XML."""
    return changed(".xml", lambda _: xml(fields() | change).encode())


def model(**change: Any) -> Files:
    """The files of the delivery, with another camera in its RPB."""
    return changed(".rpb", lambda _: rpb(replace(camera(), **change)).encode())


def replaced(suffix: str, old: bytes, new: bytes) -> Files:
    return changed(suffix, lambda content: content.replace(old, new, 1))


def tar(words: str, *members: tuple[tarfile.TarInfo, bytes], suffix: str = ".tar") -> Broken:
    """A tar archive of members that a delivery must not have."""

    def write(path: Path) -> None:
        with tarfile.open(path / f"{NAME}{suffix}", "w:gz" if suffix.endswith("gz") else "w") as archive:
            for entry, content in members:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))

    return Broken(write, words)


def member(name: str, **change: Any) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    for key, value in change.items():
        setattr(entry, key, value)
    return entry


def packed(suffix: str, content: bytes, words: str) -> Broken:
    """A file with an archive's name and any content."""
    return Broken(lambda path: (path / f"{NAME}{suffix}").write_bytes(content), words)


def archived(files: Files) -> bytes:
    """The bytes of a gzipped tar."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in files.items():
            archive.addfile(member(name, size=len(content)), io.BytesIO(content))
    return out.getvalue()


def zipped(change: Callable[[zipfile.ZipInfo], object], words: str) -> Broken:
    """A zip whose image's entry is changed before it is written."""

    def write(path: Path) -> None:
        with zipfile.ZipFile(path / f"{NAME}.zip", "w") as archive:
            entry = zipfile.ZipInfo(f"{STEM}.tiff")
            change(entry)
            archive.writestr(entry, members()[f"{STEM}.tiff"])

    return Broken(write, words)


def encrypted(path: Path) -> None:
    """Write a zip whose member is marked as encrypted."""
    content = bytearray(write_zip(path / f"{NAME}.zip", members()).read_bytes())
    place = content.find(b"PK\x01\x02")
    while place >= 0:
        content[place + 8] |= 1
        place = content.find(b"PK\x01\x02", place + 4)
    (path / f"{NAME}.zip").write_bytes(content)


def item(path: Path, **change: Any) -> None:
    """Write a STAC item with one asset. change: other values of its fields; with any, the asset's image exists."""
    asset = {"href": "B04.tif", "type": "image/tiff", "eo:bands": [{"common_name": "red"}], "roles": ["data"]}
    value = {"type": "Feature", "stac_version": "1.0.0", "id": "S2", "properties": {}, "assets": {"red": asset}}
    (path / "item.json").write_text(json.dumps(value | change))
    if change:
        (path / "B04.tif").write_bytes(tiff(coordinates(bands=1), **PLACED))


def million(count: int = 100_001) -> bytes:
    """A small gzipped tar of very many members."""
    return gzip.compress(member("a").tobuf() * count + bytes(1024), 1)


def bomb() -> bytes:
    """A gzipped tar whose only member has a header that declares 1 TiB."""
    return gzip.compress(member(f"{STEM}.tiff", size=1 << 40).tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))


def long_header() -> bytes:
    """A gzipped tar whose first header has an extension of 4 GiB."""
    return gzip.compress(member("x", size=4 << 30, type=tarfile.XHDTYPE).tobuf(tarfile.GNU_FORMAT) + bytes(1 << 16))


def lying() -> bytes:
    """A zip whose directory declares 3 GiB for its only member."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(f"{STEM}.tiff", b"II*")
    content = bytearray(out.getvalue())
    struct.pack_into("<L", content, content.find(b"PK\x01\x02") + 24, 3 << 30)
    return bytes(content)


PLACED: dict[str, Any] = {"crs": "EPSG:32648", "transform": Affine(8, 0, 5e5, 0, -8, 2.7e6)}
ENTITIES = b"".join(b'<!ENTITY %c "%s">' % (97 + k, b"&%c;" % (96 + k) * 10) for k in range(1, 20))
BOMB = b'<?xml version="1.0"?><!DOCTYPE r [<!ENTITY a "aaaaaaaaaa">' + ENTITIES + b"]><r><x>&t;</x></r>"
IMAGE = tiff(coordinates(), **PLACED)
IN_GBK = "影像.tif".encode("gbk").decode("utf-8", "surrogateescape")
LINK, HARD, PIPE, DEVICE = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE

BROKEN: dict[str, Broken] = {
    # images
    "empty image": folder(changed(".tiff", lambda _: b""), "not an image that can be opened"),
    "page of a web server": folder(changed(".tiff", lambda _: b"<html>404</html>"), "not an image that can be opened"),
    "cut in its header": folder(changed(".tiff", lambda content: content[:40]), "not an image that can be opened"),
    "cut in its middle": folder(changed(".tiff", lambda content: content[:25_000]), "cannot be read to its end"),
    "cut at its end": folder(changed(".tiff", lambda content: content[:-300]), "cannot be read to its end"),
    "virtual raster of GDAL's": folder(
        changed(".tiff", lambda _: b'<VRTDataset rasterXSize="9" rasterYSize="9"/>'), "not an image that can be opened"
    ),
    "complex": folder(
        changed(".tiff", lambda _: tiff(coordinates().astype(np.complex64))), "expected whole or real numbers"
    ),
    "one value": folder(
        changed(".tiff", lambda _: tiff(np.full((4, HEIGHT, WIDTH), 7, np.uint16))), "the image has one value"
    ),
    "zeros": folder(
        changed(".tiff", lambda _: tiff(np.zeros((4, HEIGHT, WIDTH), np.uint16))), "the image holds no data"
    ),
    "no georeference": folder({"photo.tif": tiff(coordinates())}, "no georeference"),
    "nowhere on Earth": folder(
        {"far.tif": tiff(coordinates(), crs="EPSG:4326", transform=Affine(0.01, 0, 0, 0, -0.01, 120))},
        "leads to coordinates that are not on Earth",
    ),
    # sensor models
    "no RPB": folder(without(".rpb"), "there is no RPB next to it"),
    "empty RPB": folder(changed(".rpb", lambda _: b""), "the file is empty"),
    "RPB cut": folder(changed(".rpb", lambda content: content[: len(content) // 2]), "is missing"),
    "RPB of zeros": folder(changed(".rpb", lambda content: bytes(len(content))), "lineOffset is missing"),
    "RPB of NaN": folder(
        replaced(".rpb", b"\t\t\t1.0,\n", b"\t\t\tNaN,\n"), "line_den holds a value that is not a finite number"
    ),
    "RPB of zero denominators": folder(replaced(".rpb", b"\t\t\t1.0,\n", b"\t\t\t0.0,\n"), "line_den is all zeros"),
    "RPB of a coefficient less": folder(replaced(".rpb", b"\t\t\t1.0,\n", b""), "19 coefficients, expected 20"),
    "RPB without scale": folder(
        replaced(".rpb", b"heightScale = 1000.0", b"heightScale = 0"), "height_scale must be a positive number"
    ),
    "RPB of another place": folder(
        changed(".rpb", lambda _: rpb(camera(lon=LON - 10)).encode()), "10 degrees from the centre in its name"
    ),
    "RPB that sees no ground": folder(model(line_num=camera().samp_num), "the RPC has no ground point"),
    "RPC text cut": folder(
        without(".rpb") | {f"{STEM}_rpc.txt": b"LINE_OFF: 35.0\nSAMP_OFF: 45.0\n"}, "LAT_OFF is missing"
    ),
    # product XML
    "no XML": folder(without(".xml"), "there is no product XML next to it"),
    "empty XML": folder(changed(".xml", lambda _: b""), "the file is empty"),
    "XML cut": folder(changed(".xml", lambda content: content[:-9]), "not a product XML"),
    "XML of entities": folder(changed(".xml", lambda _: BOMB), "not a product XML"),
    "XML that reads a file": folder(
        changed(".xml", lambda _: b'<!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/hostname">]><r><a>&x;</a></r>'),
        "not a product XML",
    ),
    "XML in no encoding": folder(replaced(".xml", b"<SatelliteID>GF1", b"<SatelliteID>\xff"), "not a product XML"),
    "XML of megabytes": folder(
        changed(".xml", lambda content: content + b" " * (5 << 20)), ".xml: more than 4 MiB are too many"
    ),
    "XML of another satellite": folder(said(SatelliteID="GF2"), "SatelliteID is GF2, but the image is of GF1"),
    "XML of another sensor": folder(said(SensorID="PMS2"), "SensorID is PMS2, but the image is of PMS1"),
    "XML of another day": folder(said(CenterTime="2020-06-23 05:03:08"), "the XML of another scene"),
    "XML of the next scene": folder(said(**CORNERS_OF_THE_NEXT), "its corners are those of a scene at 105.30 E 24.80"),
    "XML of another size": folder(said(WidthInPixels=WIDTH + 1), f"WidthInPixels is {WIDTH + 1}, but"),
    "XML of another pixel size": folder(said(ImageGSD="0.5"), "ImageGSD is 0.5 m, but the image's pixels are"),
    # archives
    "empty archive": packed(".tar.gz", b"", "cannot be unpacked"),
    "page instead of an archive": packed(".tgz", b"<html>404</html>" * 99, "cannot be unpacked"),
    "archive cut": packed(".tar.gz", archived(members())[: len(archived(members())) * 2 // 3], "cannot be unpacked"),
    "archive with bytes changed": packed(
        ".tar.gz",
        archived(members())[:9_000] + bytes(99) + archived(members())[9_099:],
        "cannot be unpacked",
    ),
    "zip cut": packed(".zip", b"PK\x03\x04" + bytes(999), "cannot be unpacked"),
    "archive without image": packed(".tar.gz", archived(without(".tiff")), "the archive contains no TIFF"),
    "archive of an archive": packed(".tar.gz", archived({"in.tar.gz": archived(members())}), "contains no TIFF"),
    "absolute path": tar("leads outside the archive", (member("/tmp/geokr-above.tif"), IMAGE)),
    "path upwards": tar("leads outside the archive", (member("a/../../above.tif"), IMAGE), suffix=".tar.gz"),
    "drive of Windows": tar("leads outside the archive", (member("C:/above.tif"), IMAGE)),
    "symbolic link": tar("is a link", (member("map.tif", type=LINK, linkname="/etc/hostname"), b"")),
    "hard link": tar("is a link", (member("map.tif", type=HARD, linkname="/etc/hostname"), b"")),
    "pipe": tar("is a device or pipe, not a file", (member("map.tif", type=PIPE), b"")),
    "device": tar("is a device or pipe, not a file", (member("map.tif", type=DEVICE, devmajor=1, devminor=5), b"")),
    "name in GBK": tar("a name that is not UTF-8 text", (member(IN_GBK), IMAGE)),
    "name with a line break": tar("a name that is not UTF-8 text", (member("a\nb.tif"), IMAGE)),
    "two of one name": tar("has 2 members named", (member("a.tif"), IMAGE), (member("./a.tif"), IMAGE)),
    "very many members": packed(".tar.gz", million(), "more than 10000 members"),
    "bomb": packed(".tar.gz", bomb(), "bytes unpack to 1099511627776 or more"),
    "header of gigabytes": packed(
        ".tar.gz", long_header(), "cannot be unpacked: a header of 4294967296 bytes is too large"
    ),
    "zip with a link": zipped(lambda entry: setattr(entry, "external_attr", 0o120777 << 16), "is a link"),
    "zip upwards": zipped(lambda entry: setattr(entry, "filename", "../a.tif"), "leads outside the archive"),
    "zip by an unusual method": zipped(
        lambda entry: setattr(entry, "compress_type", zipfile.ZIP_LZMA), "by method 14, which is not supported"
    ),
    "zip with a password": Broken(encrypted, "is encrypted"),
    "zip that lies of its size": packed(".zip", lying(), "bytes unpack to"),
    # STAC
    "STAC that is no JSON": Broken(lambda path: (path / "items.json").write_text('{"type": "Feature"'), "as STAC"),
    "STAC item without its image": Broken(item, "B04.tif: not an image that can be opened"),
    "STAC item of a hostile id": Broken(lambda path: item(path, id="../../x"), "cannot be the name of a scene"),
}
