"""Encoding of a shard in the format of the codecs `sharding_indexed`, `blosc` and `crc32c` of Zarr v3."""

from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import Blosc

BLOSC = Blosc(cname="lz4", clevel=5, shuffle=Blosc.BITSHUFFLE)
"""The fastest of the measured codecs to decode; the output of Zstandard is smaller: see docs/decisions.md."""
BLOSC_HEADER_BYTES = 16
"""Size of Blosc's header, bytes: how much an incompressible chunk grows."""


def encode_shard(values: npt.NDArray[Any], keep: npt.NDArray[np.bool_], side: int) -> npt.NDArray[np.uint8] | None:
    """Encode a shard with the tiles to keep, row by row, in the format of the Zarr v3 codec `sharding_indexed`.

    values: (row, col, band, y, x), at most `side` rows and columns. keep: (row, col). Returns None if no tile is kept.
    zarr-python's own codec takes three times as long: it compares with the fill value and passes chunks around.
    """
    if not keep.any():
        return None
    index = np.full((side, side, 2), 2**64 - 1, "<u8")  # this value marks a tile at the fill value
    max_chunk_bytes = values[0, 0].nbytes + BLOSC_HEADER_BYTES + 4
    shard = np.empty(int(keep.sum()) * max_chunk_bytes + index.nbytes + 4, np.uint8)
    end = 0
    for r, c in np.argwhere(keep):
        encoded = append_checksum(BLOSC.encode(np.ascontiguousarray(values[r, c])))
        shard[end : end + len(encoded)] = np.frombuffer(encoded, np.uint8)
        index[r, c] = end, len(encoded)
        end += len(encoded)
    encoded = append_checksum(index.tobytes())
    shard[end : end + len(encoded)] = np.frombuffer(encoded, np.uint8)
    return shard[: end + len(encoded)]


def append_checksum(data: bytes) -> bytes:
    """Append the checksum to the data, in the format of the codec `crc32c`."""
    return data + int(google_crc32c.value(data)).to_bytes(4, "little")
