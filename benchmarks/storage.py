"""The cost of a checked and durable data set: chunks with a checksum, files that survive a power cut.

Shards of 256 tiles of 4 x 256 x 256 px, which compress as imagery does, are written with zarr-python and read in
random order with tensorstore, with and without a checksum. Then a file of a shard's size is written with and without
fsync.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import tensorstore as ts
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore

from geokr.dataset import store
from geokr.storage import files

BLOCK, TILE, BANDS, SHARDS = 16, 256, 4, 2


def main(argv: list[str]) -> int:
    """Run the command. The exit status is 1 if the two variants do not give the same pixels."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks storage", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each variant (%(default)s)")
    parser.add_argument("--dir", type=Path, help="where to write (the system's temporary folder)")
    options = parser.parse_args(argv)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        return max(checksum(folder, options.rounds), durable(folder, options.rounds))


def imagery() -> npt.NDArray[np.uint8]:
    """Make one block (row, col, band, y, x): overlapping windows of smooth ground with noise."""
    rng = np.random.default_rng(0)
    ground = rng.normal(0, 1, (BANDS, 1024, 1024)).astype(np.float32)
    bands = [cv2.GaussianBlur(b, (0, 0), 3) * 300 + 128 + rng.normal(0, 3, b.shape) for b in ground]
    scene = np.clip(np.stack(bands), 0, 255).astype(np.uint8)
    starts = range(0, BLOCK * 48, 48)
    return np.array([[scene[:, y : y + TILE, x : x + TILE] for x in starts] for y in starts])


def timed(function: Callable[..., Any], *arguments: Any) -> float:
    """Seconds that one call takes."""
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began


def write(array: "zarr.Array[Any]", pixels: npt.NDArray[np.uint8]) -> None:
    array[:BLOCK] = pixels


def pick(reader: Any, rows: npt.NDArray[np.int64], cols: npt.NDArray[np.int64]) -> None:
    reader.vindex[rows, cols].read().result()


def line(case: str, ours: list[float], peer: list[float], unit: str, equal: bool) -> int:
    first, second = statistics.median(ours), statistics.median(peer)
    same = "yes" if equal else "no"
    print(f"case={case} ours={first:.4g} peer={second:.4g} unit={unit} ratio={first / second:.3f} equal={same}")
    return 0 if equal else 1


def checksum(folder: str, rounds: int) -> int:
    """Write a block and read random tiles of it, with and without a checksum behind each chunk."""
    pixels = imagery()
    blosc = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")
    arrays, readers = [], []
    for name, codecs in (("checked", [blosc, Crc32cCodec()]), ("plain", [blosc])):
        shape = (BLOCK, BLOCK, BANDS, TILE, TILE)
        root = f"{folder}/{name}"
        arrays.append(
            zarr.create_array(
                LocalStore(root),
                shape=(SHARDS * BLOCK, *shape[1:]),
                chunks=(1, 1, *shape[2:]),
                shards=shape,
                dtype="uint8",
                compressors=codecs,
            )
        )
        context = ts.Context({"cache_pool": {"total_bytes_limit": 0}})
        spec = {"driver": "zarr3", "kvstore": files.kvstore_spec(root), "recheck_cached_data": False}
        for shard in range(SHARDS):
            arrays[-1][shard * BLOCK : (shard + 1) * BLOCK] = pixels
        readers.append(ts.open(spec, read=True, context=context).result())
    equal = all(np.array_equal(reader[:BLOCK].read().result(), pixels) for reader in readers)
    written: tuple[list[float], list[float]] = ([], [])
    read: tuple[list[float], list[float]] = ([], [])
    rng = np.random.default_rng(1)
    for k in range(rounds):
        rows, cols = rng.integers(0, SHARDS * BLOCK, 256), rng.integers(0, BLOCK, 256)
        for variant in (k % 2, 1 - k % 2):
            written[variant].append(BLOCK * BLOCK / timed(write, arrays[variant], pixels))
            read[variant].append(len(rows) / timed(pick, readers[variant], rows, cols))
    return max(
        line("write-with-checksum", *written, "tiles/s", equal), line("read-with-checksum", *read, "tiles/s", equal)
    )


def durable(folder: str, rounds: int) -> int:
    """Write a block through the data set's store, and through zarr-python's own, which does not wait for the disk."""
    pixels = imagery()
    times: tuple[list[float], list[float]] = ([], [])
    ours, plain = f"{folder}/durable", f"{folder}/plain-store"
    side, status = slice(0, BLOCK), np.ones((BLOCK, BLOCK), np.uint8)
    for k in range(rounds):
        shape = (BLOCK, BLOCK)
        store.create_tiles(ours, str(k), shape=shape, bands=BANDS, tile=TILE, block=BLOCK, dtype="uint8", attributes={})
        array = zarr.create_array(
            LocalStore(plain),
            name=str(k),
            shape=pixels.shape,
            chunks=(1, 1, *pixels.shape[2:]),
            shards=pixels.shape,
            dtype="uint8",
            compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()],
        )
        for variant in (k % 2, 1 - k % 2):
            if variant == 0:
                times[0].append(timed(store.write_block, ours, str(k), side, side, {"image": pixels}, status))
            else:
                times[1].append(timed(write, array, pixels))
    shards = [Path(root, "c/0/0/0/0/0").read_bytes() for root in (f"{ours}/0/image", f"{plain}/0")]
    return line("write-durable", *times, "s/block", shards[0] == shards[1])
