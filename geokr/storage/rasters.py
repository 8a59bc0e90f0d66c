"""Rasters at any address, as GDAL opens them, and fingerprints that reveal when a raster was replaced."""

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
"""How many rasters are opened at the same time: a server is slow to answer one request, but answers many at once."""
CACHE_BYTES = 64 << 20
"""Size of GDAL's block cache, by default 5 % of the memory. As `GDAL_CACHEMAX`, rasterio takes bytes, not megabytes."""
NETWORK_OPTIONS = {
    "GDAL_HTTP_CONNECTTIMEOUT": 30,
    "GDAL_HTTP_LOW_SPEED_TIME": 60,  # give up on a server that sends nothing for a minute
    "GDAL_HTTP_LOW_SPEED_LIMIT": 1,
    "GDAL_HTTP_MAX_RETRY": 8,
    "GDAL_HTTP_RETRY_DELAY": 0.1,  # s, doubled each time
    # With the cache, parts that a process read before a file was replaced would be taken for parts of the new one.
    "CPL_VSIL_CURL_NON_CACHED": "/vsis3/:/vsicurl/",
}


def gdal_options() -> dict[str, Any]:
    """Options for `rasterio.Env`, needed wherever GDAL may read from a server.

    They include GDAL's own names for the S3 server in `AWS_ENDPOINT_URL`.
    """
    server = urlsplit(files.s3_endpoint() or "")
    if not server.netloc:
        return NETWORK_OPTIONS
    https = "YES" if server.scheme == "https" else "NO"
    return NETWORK_OPTIONS | {"AWS_S3_ENDPOINT": server.netloc, "AWS_HTTPS": https, "AWS_VIRTUAL_HOSTING": "FALSE"}


def gdal_path(address: str) -> str:
    """The path that GDAL opens for an address. A local path, or one of GDAL's own, is returned as it is."""
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
    """Open a raster with rasterio, including the sidecar files that GDAL recognises. Raises RasterioIOError."""
    with rasterio.Env(**gdal_options()), rasterio.open(gdal_path(address)) as source:
        yield source


@lru_cache(maxsize=1 << 16)
def fingerprint(raster: str, layer: str = "") -> str:
    """Compute the SHA-256 of the names and digests of a raster's files, including sidecars and the files of a mosaic.

    It is the same wherever the files are stored. It is computed once per process; `fingerprint.cache_clear` resets
    that. For files in GDAL's virtual file systems, only the names count. layer: what GDAL opens, if the file holds
    several rasters. Raises OSError naming the file if it cannot be read.
    """
    try:
        with open_raster(layer or raster) as source:
            names = {from_gdal_path(name) for name in source.files}
    except RasterioIOError as error:
        raise OSError(f"{raster}: not a raster that can be read: {' '.join(str(error).split())}") from error
    lines = sorted(
        f"{PurePosixPath(name).name} {'' if name.startswith('/vsi') else inputs.sample_digest(name)}"
        for name in {inputs.make_absolute(name) for name in {raster, *names}}
    )
    return sha256("\n".join(lines).encode(errors="backslashreplace")).hexdigest()


def fingerprints(layers: Mapping[str, str]) -> dict[str, str]:
    """Compute the fingerprints of rasters, many at a time. layers: raster -> what GDAL opens of it."""
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(layers, pool.map(fingerprint, layers.keys(), layers.values()), strict=True))
