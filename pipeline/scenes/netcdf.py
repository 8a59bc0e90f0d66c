"""Whether a NetCDF or HDF5 file is complete.

The libraries read zeros where a classic NetCDF file ends early, and do not say why they refuse an HDF5 file. After the
NetCDF File Format Specification, appendix B.1, and the HDF5 File Format Specification, II.A.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.scenes.scene import SceneError

HDF5 = b"\x89HDF\r\n\x1a\n"
USER_BLOCKS = (0, 512, 1024, 2048, 4096, 8192)
"""Where an HDF5 file may begin within a file, bytes."""
CLASSIC = {b"CDF\x01": (4, 4), b"CDF\x02": (4, 8), b"CDF\x05": (8, 8)}
"""First bytes of a classic NetCDF file -> size of its counts and of its offsets, bytes."""
ITEM_SIZES = (0, 1, 1, 2, 4, 4, 8, 1, 2, 4, 8, 8)
"""Number of a type -> bytes of a value."""
MAX_COUNT = 1 << 20
"""A header that announces more dimensions, attributes or letters is taken as broken."""


def require_complete(name: str) -> None:
    """Raise SceneError if a file is neither NetCDF nor HDF5, or ends before the last byte that it announces."""
    size = Path(name).stat().st_size
    with Path(name).open("rb") as file:
        try:
            end = find_end(file)
        except (struct.error, LookupError) as error:
            raise SceneError(f"{name}: it ends in its header, after {size} bytes") from error
    if end is None:
        raise SceneError(f"{name}: neither NetCDF nor HDF5 by its content")
    if size < end:
        raise SceneError(f"{name}: it is not complete: it has {size} bytes of {end}")


def find_end(file: IO[bytes]) -> int | None:
    """Where a file has to end, at the earliest, bytes from its start; None if it is neither NetCDF nor HDF5.

    Raises struct.error or LookupError if the header cannot be read.
    """
    start = file.read(8)
    if start[:4] in CLASSIC:
        file.seek(4)
        return ClassicHeader(file, *CLASSIC[start[:4]]).find_end()
    for begin in USER_BLOCKS:
        file.seek(begin)
        block = file.read(64)
        if block.startswith(HDF5):
            return find_hdf5_end(block)
    return len(HDF5) if start and HDF5.startswith(start) else None


def find_hdf5_end(superblock: bytes) -> int:
    """The address of the end of an HDF5 file, from its first block."""
    version = superblock[8]
    place, width = (28, superblock[9]) if version >= 2 else ((44, 40)[version == 0], superblock[13])
    if width != 8:  # never written by today's libraries
        return 0
    return int(struct.unpack_from("<Q", superblock, place)[0])


@dataclass
class ClassicHeader:
    """The header of a classic NetCDF file, from the number of its records on."""

    file: IO[bytes]
    count_size: int
    offset_size: int

    def number(self, size: int) -> int:
        return int(struct.unpack(">I" if size == 4 else ">Q", self.file.read(size))[0])

    def count(self) -> int:
        count = self.number(self.count_size)
        if count > MAX_COUNT:
            raise LookupError(count)
        return count

    def skip(self, size: int) -> None:
        """Skip values, which are filled up to four bytes."""
        if len(self.file.read(-(-size // 4) * 4)) < size:
            raise LookupError(size)

    def skip_attributes(self) -> None:
        self.number(4)
        for _ in range(self.count()):
            self.skip(self.count())  # the name
            item = ITEM_SIZES[self.number(4)]
            self.skip(item * self.count())

    def find_end(self) -> int:
        """The end of the last value, bytes from the start of the file."""
        records = self.number(self.count_size)
        self.number(4)
        dimensions = []
        for _ in range(self.count()):
            self.skip(self.count())
            dimensions.append(self.number(self.count_size))
        self.skip_attributes()
        self.number(4)
        fixed, of_records = [self.file.tell()], list[tuple[int, int]]()
        for _ in range(self.count()):
            self.skip(self.count())
            shape = [dimensions[self.number(self.count_size)] for _ in range(self.count())]
            self.skip_attributes()
            item = ITEM_SIZES[self.number(4)]
            self.number(self.count_size)  # a size that may be too small for the variable
            begin = self.number(self.offset_size)
            if shape and shape[0] == 0:  # the dimension of the records
                of_records.append((begin, math.prod(shape[1:]) * item))
            else:
                fixed.append(begin + math.prod(shape) * item)
        streamed = records >= 2 ** (8 * self.count_size) - 1
        return max(*fixed, 0, *([] if streamed or not records else self.record_ends(records, of_records)))

    @staticmethod
    def record_ends(records: int, variables: Sequence[tuple[int, int]]) -> list[int]:
        """Where the last record of each variable ends. variables: where the first one begins and its size, bytes."""
        sizes = [size if len(variables) == 1 else -(-size // 4) * 4 for _, size in variables]
        return [begin + (records - 1) * sum(sizes) + size for begin, size in variables]
