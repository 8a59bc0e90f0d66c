"""Encoding of shards and chunks in the format of the codecs of Zarr v3: `sharding_indexed`, `blosc`, `zstd`, `crc32c`.

zarr-python's own codecs do the same and take several times as long, since they pass each chunk through a pipeline.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import Blosc
from numcodecs.zstd import Zstd

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


def encode_chunk(
    values: npt.NDArray[Any], side: int, fill_value: Any, codecs: Sequence[Mapping[str, Any]]
) -> npt.NDArray[np.uint8] | None:
    """Encode the only chunk of a block, of an array without shards. None if it is empty.

    values: (row, col, ...), at most `side` rows and columns. At the border of the grid, a block is smaller than its
    chunk, and the rest of the chunk is 0. A chunk is empty if it holds nothing but the fill value. codecs: `bytes`,
    which is little-endian, and then any of `zstd` and `crc32c`, as in the array's metadata document.
    """
    padding = [(0, side - values.shape[0]), (0, side - values.shape[1]), *[(0, 0)] * (values.ndim - 2)]
    chunk = np.pad(values, padding) if any(map(any, padding)) else values
    is_float = np.issubdtype(chunk.dtype, np.floating)
    if np.array_equal(chunk, np.full_like(chunk, fill_value), equal_nan=is_float):
        return None
    data = chunk.astype(chunk.dtype.newbyteorder("<"), copy=False).tobytes()
    for codec in codecs[1:]:
        if codec["name"] == "crc32c":
            data = append_checksum(data)
        else:
            assert codec["name"] == "zstd", codec
            data = bytes(Zstd(**codec["configuration"]).encode(data))
    return np.frombuffer(data, np.uint8)


def append_checksum(data: bytes) -> bytes:
    """Append the checksum to the data, in the format of the codec `crc32c`."""
    return data + int(google_crc32c.value(data)).to_bytes(4, "little")
