"""Rasters at any address, as GDAL opens them, and what tells one from another that is put in its place."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import rasterio
from rasterio.errors import RasterioIOError

from geokr.storage import files, inputs

READERS = 16
"""Rasters that are looked at at once: a server answers late, but many."""
SERVERS = {
    "GDAL_HTTP_CONNECTTIMEOUT": 30,
    "GDAL_HTTP_LOW_SPEED_TIME": 60,  # a server that says nothing for a minute is not waited for
    "GDAL_HTTP_LOW_SPEED_LIMIT": 1,
    "GDAL_HTTP_MAX_RETRY": 8,
    "GDAL_HTTP_RETRY_DELAY": 0.1,  # s, doubled each time
    # Or what one process read of a file before it was replaced would be taken for a part of the new one.
    "CPL_VSIL_CURL_NON_CACHED": "/vsis3/:/vsicurl/",
}


def gdal_options() -> dict[str, Any]:
    """What GDAL must be told wherever it may read from a server, for `rasterio.Env`.

    With GDAL's names for the S3 server that `AWS_ENDPOINT_URL` means.
    """
    server = urlsplit(files.s3_endpoint() or "")
    if not server.netloc:
        return SERVERS
    https = "YES" if server.scheme == "https" else "NO"
    return SERVERS | {"AWS_S3_ENDPOINT": server.netloc, "AWS_HTTPS": https, "AWS_VIRTUAL_HOSTING": "FALSE"}


def gdal_path(address: str) -> str:
    """What GDAL opens for an address; a path of this machine, or one of GDAL's own, is that itself."""
    if address.lower().startswith(files.S3):
        return f"/vsis3/{address[len(files.S3) :]}"
    return f"/vsicurl/{address}" if inputs.is_remote(address) else address


def from_gdal_path(path: str) -> str:
    """The inverse of `gdal_path`."""
    if path.startswith("/vsis3/"):
        return f"{files.S3}{path.removeprefix('/vsis3/')}"
    return path.removeprefix("/vsicurl/")


@contextmanager
def open_raster(address: str) -> Iterator[Any]:
    """A raster opened by rasterio, with the files beside it that GDAL knows of. Raises RasterioIOError."""
    with rasterio.Env(**gdal_options()), rasterio.open(gdal_path(address)) as source:
        yield source


@lru_cache(maxsize=1 << 16)
def fingerprint(raster: str, layer: str = "") -> str:
    """SHA-256 over the names and the digests of a raster's files, those of a mosaic and those beside it included.

    It is the same wherever they lie, and computed once: `fingerprint.cache_clear` begins anew. Of files in GDAL's own
    systems, the names alone. layer: what GDAL opens of a file that holds several rasters. Raises OSError naming the
    file where it cannot be read.
    """
    try:
        with open_raster(layer or raster) as source:
            found = {from_gdal_path(name) for name in source.files}
    except RasterioIOError as error:
        raise OSError(f"{raster}: not a raster that can be read: {' '.join(str(error).split())}") from error
    said = sorted(
        f"{PurePosixPath(name).name} {'' if name.startswith('/vsi') else inputs.sample_digest(name)}"
        for name in {inputs.make_absolute(name) for name in {raster, *found}}
    )
    return sha256("\n".join(said).encode(errors="backslashreplace")).hexdigest()


def fingerprints(layers: Mapping[str, str]) -> dict[str, str]:
    """Fingerprints of rasters, many at a time. layers: raster -> what GDAL opens of it."""
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(layers, pool.map(fingerprint, layers.keys(), layers.values()), strict=True))
