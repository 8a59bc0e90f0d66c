"""Batches of tiles from shards, against other ways to store the same tiles on a disk.

Every reader yields batches of 64 tiles with their labels as tensors: 3 of 4 bands, 256 px, uint8, in a random order
(WebDataset: in the order of its shuffle buffer). First each reader yields one epoch, and the tiles are compared. Then
the readers take turns in rounds, once from the page cache (warm) and once after their files were dropped from it (cold:
posix_fadvise with DONTNEED on each file; a host's cache behind a virtual disk may still have them).

Peers: a Dataset with one GeoTIFF and one JSON file per tile (deflate, and uncompressed) in a DataLoader with the
fastest number of workers on this machine; zarr-python on the same shards, tile by tile in a thread pool; WebDataset and
LitData with uncompressed arrays, in one worker per core; numpy.memmap of one uncompressed file. `goal` is the lowest
ratio aimed for; a lower ratio is still printed and does not fail the benchmark.

At the end, the loader reads the same tiles from one scene and from 400: see many_scenes.py.
"""

import argparse
import io
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import zarr
from torch.utils.data import DataLoader, Dataset

from benchmarks.many_scenes import measure_scenes
from benchmarks.tiles import dataset
from geokr.dataset.index import read_index
from geokr.loading.loader import TileLoader
from geokr.loading.selection import Selection

BATCH = 64
BANDS = ("red", "green", "blue")
CORES = os.cpu_count() or 1
LEAST = 1.5
"""Shortest duration of a warm measurement, s; it runs full epochs. A cold measurement is one epoch."""

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.float32]
Sample = tuple[torch.Tensor, torch.Tensor]
Epoch = Callable[[int], Iterator[Sample]]
"""Epoch number -> batches of images (n, band, y, x) and labels (n, class)."""


def main(argv: list[str]) -> int:
    """Run the command. The exit status is 1 if the readers do not yield the same tiles."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks loader", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each reader (%(default)s)")
    parser.add_argument("--dir", type=Path, help="where to write (the system's temporary folder)")
    parser.add_argument("--keep", type=Path, help="folder for the data set (a temporary one)")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.dir) as temporary:
        folder = Path(temporary)
        source, pixels = dataset(options.keep or folder / "ours")
        images, shares = everything(source)
        status = compare(source, pixels, images, shares, folder, options.rounds)
        return max(status, measure_scenes(images, folder, options.rounds))


def compare(source: Path, pixels: str, images: Pixels, shares: Labels, folder: Path, rounds: int) -> int:
    """Write the tiles in every form, compare the readers' tiles, measure, and print. pixels: name of the scene."""
    files: dict[str, Path] = {name: folder / name for name in ("deflate", "geotiff", "tar", "litdata", "raw")}
    for compress in ("deflate", "geotiff"):
        write_geotiffs(files[compress], images, shares, compress)
    write_tar(files["tar"], images, shares)
    write_litdata(files["litdata"], images, shares)
    files["raw"].mkdir()
    images.tofile(files["raw"] / "tiles")
    files["ours"] = source
    print(
        f"tiles={len(images)} pixels={pixels} cores={CORES} "
        + " ".join(f"{name}={size(path) / images.nbytes:.2f}" for name, path in files.items()),
        flush=True,
    )

    fixed = TileLoader(source, Selection("train"), bands=BANDS, batch=BATCH, prefetch=8)
    readers: dict[str, tuple[Callable[[], Epoch], Path]] = {
        "ours": (lambda: ours(fixed), source),
        "ours-cold": (
            lambda: ours(TileLoader(source, Selection("train"), bands=BANDS, batch=BATCH, prefetch=8)),
            source,
        ),
        "ours-buffer": (
            lambda: ours(TileLoader(source, Selection("train"), bands=BANDS, batch=BATCH, shuffle_buffer=512)),
            source,
        ),
        "geotiff-deflate": (tuned(files["deflate"]), files["deflate"]),
        "geotiff-uncompressed": (tuned(files["geotiff"]), files["geotiff"]),
        "zarr-python": (lambda: zarr_python(source, shares), source),
        "webdataset": (lambda: webdataset(files["tar"]), files["tar"]),
        "litdata": (lambda: litdata(files["litdata"]), files["litdata"]),
        "memmap": (lambda: memmap(files["raw"] / "tiles", images.shape, shares), files["raw"]),
    }
    opened = {name: opening() for name, (opening, _) in readers.items()}
    expected = marks(ours(TileLoader(source, Selection("train"), bands=BANDS, batch=len(images)))(0))
    assert len(set(expected)) == len(images)
    # Our shuffled epochs drop the tiles that do not fill the last batch, different ones in each epoch.
    equal = {name: set(marks(epoch(0))) <= set(expected) for name, epoch in opened.items()}
    full = {name: len(set(marks(epoch(1)))) >= len(images) - BATCH for name, epoch in opened.items()}
    same = {name: equal[name] and full[name] for name in readers}

    times: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        for state in ("warm", "cold"):
            for name, (opening, path) in readers.items():
                if (name, state) in (("ours-cold", "warm"), ("ours", "cold")):
                    continue  # a cold measurement of ours also starts without shard indexes in memory
                epoch = opened[name]
                if state == "cold":
                    drop(path)
                    if name.startswith("ours"):
                        epoch = opening()
                began, tiles, duration, epochs = time.perf_counter(), 0, 0.0, 0
                while duration < (LEAST if state == "warm" else 1e-9):
                    tiles += sum(len(image) for image, _ in epoch(2 + number + epochs * rounds))
                    duration, epochs = time.perf_counter() - began, epochs + 1
                times.setdefault((name, state), []).append(tiles / duration)
    return report(times, same)


GOALS = {"geotiff-deflate": 10, "geotiff-uncompressed": 10, "webdataset": 2, "litdata": 2, "memmap": 0.5}


def report(times: dict[tuple[str, str], list[float]], same: dict[str, bool]) -> int:
    """Print one line per reader of ours, peer and state. Returns the exit status."""
    for state in ("warm", "cold"):
        for own in ("ours" if state == "warm" else "ours-cold", "ours-buffer"):
            for name in ("geotiff-deflate", "geotiff-uncompressed", "zarr-python", "webdataset", "litdata", "memmap"):
                our_rates, peer_rates = times[own, state], times[name, state]
                ratio = statistics.median(a / b for a, b in zip(our_rates, peer_rates, strict=True))
                goal = f" goal={GOALS[name]}" if name in GOALS else ""
                print(
                    f"case={own.removesuffix('-cold')}-{name}-{state} ours={statistics.median(our_rates):.0f} "
                    f"peer={statistics.median(peer_rates):.0f} unit=tiles/s ratio={ratio:.2f} "
                    f"equal={'yes' if same[name] and same[own] else 'NO'}{goal}"
                )
    return 0 if all(same.values()) else 1


def marks(epoch: Iterator[Sample]) -> list[int]:
    """A checksum of each tile together with its label."""
    return [
        zlib.crc32(label.tobytes(), zlib.crc32(tile.tobytes()))
        for image, share in epoch
        for tile, label in zip(image.numpy(), share.numpy(), strict=True)
    ]


def everything(source: Path) -> tuple[Pixels, Labels]:
    """All tiles with all bands (tile, band, y, x), and their labels (tile, class), in the order of the index."""
    loader = TileLoader(source, Selection("train"), bands=("blue", "green", "red", "nir"), batch=BATCH, shuffle=False)
    return np.concatenate([batch.image.numpy() for batch in loader]), loader.fraction


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def drop(path: Path) -> None:
    """Drop a folder's files from the kernel's page cache."""
    for file in path.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def parts(tiles: int, number: int) -> Iterator[npt.NDArray[np.int64]]:
    """Positions of an epoch's batches in random order, as in our loader: full batches, each sorted."""
    order = np.random.default_rng([0, number]).permutation(tiles)
    yield from (np.sort(order[i : i + BATCH]) for i in range(0, tiles - BATCH + 1, BATCH))


# --- the readers


def ours(loader: TileLoader) -> Epoch:
    def epoch(number: int) -> Iterator[Sample]:
        return ((batch.image, batch.fraction) for batch in loader.epoch(number))

    return epoch


def write_geotiffs(folder: Path, images: Pixels, shares: Labels, compress: str) -> None:
    import rasterio

    folder.mkdir()
    options = {"compress": "deflate"} if compress == "deflate" else {}
    shape = {"count": images.shape[1], "height": images.shape[2], "width": images.shape[3], "dtype": "uint8"}
    transform = rasterio.transform.from_origin(500_000, 4_000_000, 30, 30)
    for number, (image, share) in enumerate(zip(images, shares, strict=True)):
        georeference: Any = {"crs": "EPSG:32612", "transform": transform}
        with rasterio.open(folder / f"{number}.tif", "w", driver="GTiff", **shape, **options, **georeference) as file:
            file.write(image)
        (folder / f"{number}.json").write_text(json.dumps({"share": share.tolist()}), encoding="utf-8")


class GeoTiffs(Dataset[Sample]):
    def __init__(self, folder: Path) -> None:
        self.folder, self.tiles = folder, len(list(folder.glob("*.tif")))

    def __len__(self) -> int:
        return self.tiles

    def __getitem__(self, number: int) -> Sample:
        import rasterio

        with rasterio.open(self.folder / f"{number}.tif") as file:
            image = file.read([3, 2, 1])
        share = json.loads((self.folder / f"{number}.json").read_bytes())["share"]
        return torch.from_numpy(image), torch.tensor(share)


def tuned(folder: Path) -> Callable[[], Epoch]:
    """The DataLoader over a folder of GeoTIFFs with the number of workers whose second epoch is the fastest."""

    def opening() -> Epoch:
        best: tuple[float, Epoch] | None = None
        for workers in (0, CORES, 2 * CORES):
            epoch = from_files(folder, workers)
            list(epoch(0))
            began = time.perf_counter()
            list(epoch(1))
            duration = time.perf_counter() - began
            if best is None or duration < best[0]:
                best = (duration, epoch)
        assert best is not None
        return best[1]

    return opening


def from_files(folder: Path, workers: int) -> Epoch:
    options: dict[str, Any] = {"persistent_workers": True, "prefetch_factor": 4} if workers else {}
    generator = torch.Generator()
    loader = DataLoader(
        GeoTiffs(folder), BATCH, shuffle=True, drop_last=True, num_workers=workers, generator=generator, **options
    )

    def epoch(number: int) -> Iterator[Sample]:
        generator.manual_seed(number)
        return ((image, share) for image, share in loader)

    return epoch


def zarr_python(source: Path, shares: Labels) -> Epoch:
    rows = read_index(source, ["scene", "row", "col"])
    scenes, row, col = rows["scene"].to_pylist(), rows["row"].to_numpy(), rows["col"].to_numpy()
    root = zarr.open_group(f"{source}/tiles.zarr", mode="r")
    arrays: dict[str, Any] = {name: root[f"{name}/image"] for name in set(scenes)}
    pool = ThreadPoolExecutor(CORES)

    def tile(number: int) -> Pixels:
        image: Pixels = arrays[scenes[number]][int(row[number]), int(col[number])][2::-1]
        return image

    def epoch(number: int) -> Iterator[Sample]:
        for part in parts(len(scenes), number):
            yield torch.from_numpy(np.stack(list(pool.map(tile, part.tolist())))), torch.from_numpy(shares[part])

    return epoch


def write_tar(folder: Path, images: Pixels, shares: Labels) -> None:
    """Write tar shards of 128 samples, each an array of pixels and one of shares."""
    folder.mkdir()
    for first in range(0, len(images), 128):
        with tarfile.open(folder / f"{first:06d}.tar", "w") as tar:
            for number in range(first, min(first + 128, len(images))):
                for name, values in (("image.npy", images[number]), ("share.npy", shares[number])):
                    data = io.BytesIO()
                    np.save(data, values)
                    info = tarfile.TarInfo(f"{number:06d}.{name}")
                    info.size = data.tell()
                    data.seek(0)
                    tar.addfile(info, data)


def as_tensors(image: Pixels, share: Labels) -> Sample:
    return torch.from_numpy(image[2::-1].copy()), torch.from_numpy(share)


def pair_of(sample: Sequence[Any]) -> Sample:
    return as_tensors(sample[0], sample[1])


def named(sample: dict[str, Any]) -> Sample:
    return as_tensors(sample["image"], sample["share"])


def webdataset(folder: Path) -> Epoch:
    import webdataset as wds

    shards = sorted(str(path) for path in folder.glob("*.tar"))
    pipeline = wds.WebDataset(shards, shardshuffle=len(shards), seed=0).shuffle(512).decode()
    pipeline = pipeline.to_tuple("image.npy", "share.npy").map(pair_of).batched(BATCH)
    loader = wds.WebLoader(pipeline, batch_size=None, num_workers=CORES, persistent_workers=True, prefetch_factor=4)
    return lambda number: ((image, share) for image, share in loader)


def write_litdata(folder: Path, images: Pixels, shares: Labels) -> None:
    from litdata.streaming.writer import BinaryWriter

    folder.mkdir()
    writer = BinaryWriter(str(folder), chunk_bytes=2**26)
    for number, (image, share) in enumerate(zip(images, shares, strict=True)):
        writer[number] = {"image": image, "share": share}
    writer.done()
    writer.merge()


def litdata(folder: Path) -> Epoch:
    from litdata import StreamingDataLoader, StreamingDataset

    loader = StreamingDataLoader(
        StreamingDataset(str(folder), shuffle=True, drop_last=False, transform=named),
        batch_size=BATCH,
        num_workers=CORES,
        persistent_workers=True,
        prefetch_factor=4,
    )
    return lambda number: ((image, share) for image, share in loader)


def memmap(path: Path, shape: tuple[int, ...], shares: Labels) -> Epoch:
    def epoch(number: int) -> Iterator[Sample]:
        tiles = np.memmap(path, np.uint8, "r", shape=shape)  # opened in each epoch: mapped pages cannot be dropped
        for part in parts(len(tiles), number):
            image = np.empty((len(part), 3, *shape[2:]), np.uint8)
            for row, position in enumerate(part):  # without copying the fourth band
                image[row] = tiles[position, 2::-1]
            yield torch.from_numpy(image), torch.from_numpy(shares[part])

    return epoch


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
