"""Read image files: the header, and the pixels and validity mask of a window."""

import math
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.enums import MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.windows import Window

from geokr.storage import rasters
from pipeline.geometry.sensor import RPC, SensorModel
from pipeline.scenes import roles, vrt
from pipeline.scenes.archive import CLOUDS, MASK
from pipeline.scenes.cloud_polygons import rasterize_clouds
from pipeline.scenes.decoded import read_decoded
from pipeline.scenes.image_files import CONTAINERS, RAW
from pipeline.scenes.numbers import AS_THEY_ARE, Numbers, choose_numbers, has_data
from pipeline.scenes.pam import BandNotes, parse_pam
from pipeline.scenes.scene import Image, NoImageryError, SceneError
from pipeline.scenes.scratch import open_local_copy

Pixels = npt.NDArray[Any]
Valid = npt.NDArray[np.bool_] | None
"""(row, col), True where there is data; None if the file has no nodata value, alpha band or mask."""

OPTIONS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # GDAL must not read files next to the image on its own
    "GDAL_CACHEMAX": rasters.CACHE_BYTES,
    "CPL_VSIL_GZIP_WRITE_PROPERTIES": "NO",  # otherwise GDAL writes a file next to each archive
    # A part of a JPEG 2000 image that another thread of GDAL cannot decode is zeros without an error (GDAL 3.10). The
    # cores are used nevertheless: blocks and scenes are read side by side.
    "GDAL_NUM_THREADS": "1",
}

DRIVERS = {
    ".jp2": ("JP2OpenJPEG",), ".j2k": ("JP2OpenJPEG",), ".jpg": ("JPEG",), ".jpeg": ("JPEG",), ".png": ("PNG",),
    **dict.fromkeys(RAW, ("ENVI", "EHdr")), ".img": ("HFA", "ENVI"), "": ("GTiff", "ENVI", "EHdr"),
}  # fmt: skip
"""Suffix of an image -> the drivers that may open it, in order; GTiff opens the others.

Only these are allowed: other formats make GDAL open files or URLs that the delivery chooses. A VRT is written anew.
"""
LAYER = re.compile(r'NETCDF:"(?P<file>.+)":(?P<layer>[^"]+)', re.DOTALL)
"""Path of a variable in a NetCDF or HDF5 file."""
WITH_HEADER: dict[str, Any] = {"GDAL_DISABLE_READDIR_ON_OPEN": "TRUE", "GDAL_PAM_ENABLED": "NO"}
"""For files of pixels alone, whose header GDAL finds by its name, and masks beside the files that a VRT shows."""
MAPPED_BYTES = 64 << 20
"""Bytes of an image that are mapped into memory at a time, because they count as memory of the process."""


@contextmanager
def open_image(path: str, *, mapped: bool = False) -> Iterator[Any]:
    """Open an image with rasterio, or an unpacked copy if it is in a compressed archive. Sidecar files are ignored.

    mapped: read uncompressed pixels through a memory mapping of the file, without GDAL's block cache.
    """
    drivers, options = choose_drivers(path)
    options = OPTIONS | options | rasters.gdal_options() | ({"GTIFF_VIRTUAL_MEM_IO": "YES"} if mapped else {})
    with rasterio.Env(**options), warnings.catch_warnings(), open_local_copy(path) as local_path:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        if vrt.is_vrt(path):
            local_path = vrt.read_mosaic(path).xml
        try:
            with open_with(local_path, drivers) as source:
                yield source
        except RasterioIOError as error:
            if local_path != path:  # the name of the copy means nothing to a user
                raise RasterioIOError(str(error).replace(local_path, path)) from error
            raise


def choose_drivers(path: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The drivers that may open a path, in order, and their options for GDAL."""
    if LAYER.fullmatch(path) or path.lower().endswith(CONTAINERS):
        return ("netCDF",), {}
    if vrt.is_vrt(path):
        return ("VRT",), WITH_HEADER
    name = path.partition("?")[0] if path.startswith("/vsicurl/") else path
    suffix = PurePosixPath(name).suffix.lower()
    has_header = suffix in RAW and not path.startswith("/vsi")
    return DRIVERS.get(suffix, ("GTiff",)), WITH_HEADER if has_header else {}


def open_with(path: str, drivers: Sequence[str]) -> Any:
    """Open an image with the first driver that can. Raises the RasterioIOError of the first one."""
    fault: RasterioIOError | None = None
    for driver in drivers:
        try:
            return rasterio.open(path, driver=driver)
        except RasterioIOError as error:
            fault = fault or error
    raise fault or RasterioIOError(f"{path}: no driver opens it")


@dataclass(frozen=True, slots=True)
class Header:
    """The header of an image."""

    width: int
    height: int
    """Size, px."""
    indexes: tuple[int, ...]
    """Bands with measurements, counted from 1: all except the mask."""
    alpha: int
    """Number of the band that is a mask; 0 if there is none."""
    mask: Literal["", "inside", "beside"]
    """Where a mask is stored: see `Image`."""
    dtypes: tuple[str, ...]
    """One per band, alpha included."""
    crs: Any
    """None if the image is not georeferenced."""
    stated_crs: Any
    """The CRS that the file states, also without a transform; None if it states none."""
    transform: Any
    nodatas: tuple[float | None, ...]
    """For each band with measurements."""
    descriptions: tuple[str, ...]
    colours: tuple[str, ...]
    """GDAL's colour interpretation of each band, such as `red` or `undefined`."""
    tags: dict[str, str]
    camera: RPC | None
    """The camera in the tags of the file; None if there is none."""
    gcps: int
    """Number of ground control points."""
    numbers: Numbers
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    """For each band with measurements: pixel x scale + offset is the measured value. Both are empty if not stated."""

    @property
    def count(self) -> int:
        return len(self.indexes)

    @property
    def nodata(self) -> float | None:
        """The nodata value of the first band."""
        return self.nodatas[0]

    def images(self, path: str, bands: tuple[str, ...], gsd: float, model: SensorModel) -> tuple[Image, ...]:
        """Make the images that this header describes: one for each run of bands with the same nodata value."""
        image, parts = self.image(path, bands, gsd, model), list[Image]()
        for _, run in groupby(range(self.count), key=lambda k: str(self.nodatas[k])):
            parts.append(select_bands(image, [*run], self))
        return tuple(parts) if len(parts) > 1 else (image,)

    def image(self, path: str, bands: tuple[str, ...], gsd: float, model: SensorModel) -> Image:
        """Make the Image that this header describes, with the nodata value of the first band."""
        indexes = () if self.indexes == tuple(range(1, len(self.dtypes) + 1)) else self.indexes
        return Image(
            path,
            bands,
            self.width,
            self.height,
            self.dtypes[0],
            self.nodata,
            gsd,
            model,
            indexes,
            self.alpha,
            self.mask,
            self.numbers,
            self.scales,
            self.offsets,
        )


def select_bands(image: Image, bands: Sequence[int], header: Header) -> Image:
    """Some bands of an image with the nodata value of the first of them. bands: counted from 0."""
    return replace(
        image,
        bands=tuple(image.bands[k] for k in bands),
        indexes=tuple(header.indexes[k] for k in bands),
        nodata=header.nodatas[bands[0]],
        scales=tuple(image.scales[k] for k in bands) if image.scales else (),
        offsets=tuple(image.offsets[k] for k in bands) if image.offsets else (),
    )


Alpha = Literal["auto", "mask", "band"]
"""What a band is that the file declares as alpha: a mask, a band with measurements, or what `find_mask_band` finds.

GDAL declares the fourth band of each 8-bit image that it writes as alpha, unless it is told otherwise.
"""
ALPHA_NAMES = (
    "alpha", "mask", "transparency", "opacity", "valid", "validity", "valid_mask", "data_mask", "datamask",
)  # fmt: skip
"""Names that a mask may have, in lower case. A band of such a name that has a mask's values is one, declared or not."""
ALPHA_ROWS = 16
"""Number of rows that are sampled to find out whether a band is a mask, and what range pixels have."""
SAMPLE_SIDE = 512
"""Side of the overview that is sampled instead if there is one, px."""
READ_AS_THEY_ARE = ("uint8", "uint16")
"""Types of pixels that are not converted."""
CONVERTED_BYTES = 16 << 20
"""Bytes of pixels of other types that are read and converted at a time, or more if a row of blocks has more."""
CONVERSION = 128 << 20
"""Memory that the conversion takes, bytes."""


def read_header(
    path: str,
    alpha: Alpha = "auto",
    *,
    has_mask: bool = False,
    sidecar: bytes | None = None,
    any_origin: bool = False,
) -> Header:
    """Read the header of an image. Raises SceneError if it cannot be opened or its pixels are complex numbers.

    has_mask: whether a file `.msk` lies beside it. sidecar: content of GDAL's `.aux.xml` beside it, which goes before
    what the file says of its bands. any_origin: nothing else says that it is an image of a scene; then NoImageryError
    is raised for one that holds something else, such as classes or heights.
    """
    try:
        with open_image(path) as file:
            require_pixels(path, file)
            if any_origin and (other := roles.no_imagery(path, file)) is not None:
                raise NoImageryError(other[0], f"{path}: {other[1]}")
            notes, numbers = parse_pam(sidecar).bands, range(1, file.count + 1)
            said = [notes.get(k, BandNotes()) for k in numbers]
            names = [note.description or name or "" for note, name in zip(said, file.descriptions, strict=True)]
            colours = [note.colour or colour.name for note, colour in zip(said, file.colorinterp, strict=True)]
            band = find_mask_band(file, names, colours, alpha)
            flags = file.mask_flag_enums[0]
            inside = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
            indexes = tuple(k for k in numbers if k != band)
            nodatas = choose_nodata(
                [file.nodatavals[k - 1] if said[k - 1].nodata is None else said[k - 1].nodata for k in indexes]
            )
            header = Header(
                file.width, file.height,
                indexes,
                band,
                "beside" if has_mask else "inside" if inside else "",
                file.dtypes,
                # A CRS alone is no georeference: GDAL reports the identity if the file has no transform.
                None if file.transform == Affine.identity() else file.crs,
                file.crs,
                file.transform,
                nodatas,
                tuple(names),
                tuple(colours),
                file.tags(),
                read_camera(path, file),
                len(file.gcps[0]),
                sample_numbers(file, indexes, nodatas),
                *read_scales(file, [(k, said[k - 1]) for k in indexes]),
            )  # fmt: skip
        if has_mask:
            with open_image(path + MASK) as file:
                if (file.width, file.height) != (header.width, header.height):
                    size = f"{file.width} x {file.height} px, but the image has {header.width} x {header.height}"
                    raise SceneError(f"{path}{MASK}: the mask has {size}")
    except RasterioIOError as error:
        is_empty = Path(path).is_file() and not Path(path).stat().st_size
        fault = "the file is empty" if is_empty else error
        raise SceneError(f"{path}: not an image that can be opened: {fault}") from error
    if len(set(header.dtypes)) != 1 or np.dtype(header.dtypes[0]).kind not in "iuf":
        raise SceneError(f"{path}: pixels are {sorted(set(header.dtypes))}, expected whole or real numbers of one type")
    if not header.indexes:
        raise SceneError(f"{path}: it has no band except alpha")
    return header


def read_beside(path: str) -> dict[str, Any]:
    """What lies beside an image on this machine, as arguments of `read_header`: a mask, and GDAL's `.aux.xml`."""
    sidecar = Path(f"{path}.aux.xml")
    return {"has_mask": Path(path + MASK).is_file(), "sidecar": sidecar.read_bytes() if sidecar.is_file() else None}


def require_pixels(path: str, file: Any) -> None:
    """Raise SceneError if an open file of pixels alone has fewer than its header says: GDAL reads 0 for the others."""
    bits = file.tags(1, ns="IMAGE_STRUCTURE").get("NBITS")
    if file.driver not in ("ENVI", "EHdr") or bits or is_gzipped(path):
        return
    expected = file.width * file.height * sum(np.dtype(dtype).itemsize for dtype in file.dtypes)
    if (size := Path(path).stat().st_size) < expected:
        raise SceneError(f"{path}: it is not complete: it has {size} bytes, but its header describes {expected}")


def is_gzipped(path: str) -> bool:
    """Whether a file is compressed as a whole, as ENVI does it."""
    with Path(path).open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def find_mask_band(file: Any, names: Sequence[str], colours: Sequence[str], alpha: Alpha) -> int:
    """The number of the band of an open file that is a mask; 0 if none is.

    It is the one that is declared as alpha, unless its name or its values are not those of a mask, or one that has the
    name and the values of a mask. names, colours: description and colour interpretation of each band.
    """
    declared = colours.index("alpha") + 1 if "alpha" in colours else 0
    if declared and alpha == "mask":
        return declared
    if alpha == "band":
        return 0
    plain = [name.strip().lower().replace(" ", "_") for name in names]
    if declared and plain[declared - 1] in ALPHA_NAMES:
        return declared
    if declared and not plain[declared - 1] and has_mask_values(file, declared):
        return declared
    named = (k for k, name in enumerate(plain, 1) if name in ALPHA_NAMES and file.count > 1)
    return next((k for k in named if has_mask_values(file, k)), 0)


def has_mask_values(file: Any, band: int) -> bool:
    """Whether a band has only the values of a mask.

    Those are 0 and the largest of the type, except in a few pixels at a blurred edge.
    """
    opaque = np.iinfo(file.dtypes[band - 1]).max if np.dtype(file.dtypes[band - 1]).kind in "iu" else 1
    rows = np.unique(np.linspace(0, file.height - 1, ALPHA_ROWS).astype(int))
    sample = np.concatenate([file.read(band, window=Window(0, row, file.width, 1)) for row in rows])
    return bool(np.isin(sample, (0, 1, 255, opaque)).mean() > 0.9)


def sample_numbers(file: Any, indexes: Sequence[int], nodatas: Sequence[float | None]) -> Numbers:
    """Choose how the pixels of an open file are read as numbers, from a sample of them. nodatas: of each band."""
    if np.dtype(file.dtypes[0]).kind not in "iuf" or file.dtypes[0] in READ_AS_THEY_ARE or not indexes:
        return AS_THEY_ARE
    if file.overviews(indexes[0]):
        sample = file.read([*indexes], out_shape=(len(indexes), *(min(n, SAMPLE_SIDE) for n in file.shape)))
    else:
        rows = np.unique(np.linspace(0, file.height - 1, ALPHA_ROWS).astype(int))
        sample = np.stack([file.read([*indexes], window=Window(0, row, file.width, 1)) for row in rows])
    parts = [part[has_data(part, nodata)] for part, nodata in zip(np.moveaxis(sample, -3, 0), nodatas, strict=True)]
    return choose_numbers(np.concatenate(parts))


def read_camera(path: str, file: Any) -> RPC | None:
    """The camera in the tags of an open file, as GDAL keeps it there; None if there is none.

    Raises SceneError if it cannot be used.
    """
    rpcs = file.rpcs
    if rpcs is None:
        return None
    offsets = (rpcs.line_off, rpcs.samp_off, rpcs.lat_off, rpcs.long_off, rpcs.height_off)
    scales = (rpcs.line_scale, rpcs.samp_scale, rpcs.lat_scale, rpcs.long_scale, rpcs.height_scale)
    lists = (rpcs.line_num_coeff, rpcs.line_den_coeff, rpcs.samp_num_coeff, rpcs.samp_den_coeff)
    try:
        return RPC(*offsets, *scales, *(tuple(values) for values in lists))
    except ValueError as error:
        raise SceneError(f"{path}: the RPC in its tags cannot be used: {error}") from error


def choose_nodata(stated: Sequence[float | None]) -> tuple[float | None, ...]:
    """The nodata value of each band: its own, or else that of the first band, since most files state one for all."""
    return tuple(stated[0] if nodata is None else nodata for nodata in stated)


def read_scales(file: Any, bands: Sequence[tuple[int, BandNotes]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Scale and offset of each band of an open file; both empty if neither it nor what is noted of it states any."""
    scales = [file.scales[k - 1] if note.scale is None else note.scale for k, note in bands]
    offsets = [file.offsets[k - 1] if note.offset is None else note.offset for k, note in bands]
    if not any(scale not in (0.0, 1.0) for scale in scales) and not any(offsets):
        return (), ()
    return tuple(map(float, scales)), tuple(map(float, offsets))


def read_image(
    image: Image, window: Window | None = None, shape: tuple[int, int] | None = None
) -> tuple[Pixels, Valid]:
    """Read the pixels of an image, (band, row, col) in `image.read_type`, and the mask where all bands have data.

    window: in px of the image, by default all of it. shape: (rows, cols) to decimate to by nearest neighbour.
    Raises SceneError naming the file if it cannot be read.
    """
    all_bands = [slice(0, len(image.bands))]
    (pixels,), valid = read_bands(image, window or Window(0, 0, image.width, image.height), all_bands, shape)
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0)), valid


def lines_at_a_time(file: Any, cols: int) -> int:
    """Number of lines of an open file to read at a time, if `cols` columns of them are read."""
    itemsize: int = np.dtype(file.dtypes[0]).itemsize
    if file.dtypes[0] not in READ_AS_THEY_ARE:
        block = int(file.block_shapes[0][0])
        return max(1, CONVERTED_BYTES // (cols * int(file.count) * itemsize) // block) * block
    if file.driver == "GTiff" and file.compression is None:
        return max(1, MAPPED_BYTES // (int(file.width) * int(file.count) * itemsize))
    return int(file.height)


class BufferPool(threading.local):
    """Buffers that a thread reuses for one window after another.

    New memory is zeroed by the kernel, which takes as long as reading the pixels.
    """

    def __init__(self) -> None:
        self.kept: dict[int, npt.NDArray[np.uint8]] = {}

    def empty(self, part: int, shape: tuple[int, ...], dtype: str) -> Pixels:
        """An uninitialized array, valid until the next call for the same part."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if part not in self.kept or self.kept[part].size < size:
            self.kept.pop(part, None)
            self.kept[part] = np.empty(size, np.uint8)
        return self.kept[part][:size].view(dtype).reshape(shape)


def read_bands(
    image: Image,
    window: Window,
    parts: Sequence[slice],
    shape: tuple[int, int] | None = None,
    memory: BufferPool | None = None,
    *,
    one_of_many: bool = False,
) -> tuple[list[Pixels], Valid]:
    """Read ranges of an image's bands, one (row, col, band) array per range, and the mask where all of them have data.

    Otherwise like `read_image`. The bands of a pixel are adjacent, as in most files and as resampling needs them.
    memory: buffers to read into. The arrays are valid until the next read into the same buffers. one_of_many: whether
    windows beside this one will be read too; what is decoded is then kept for them, see `decoded`.
    """
    rows, cols = (int(window.height), int(window.width)) if shape is None else shape
    if image.path.lower().endswith(CLOUDS):
        return [rasterize_clouds(image, window, (rows, cols))[..., None]], None
    indexes = image.indexes or tuple(range(1, len(image.bands) + 1))
    shapes = [(rows, cols, part.stop - part.start) for part in parts]
    if memory is None:
        arrays = [np.empty(size, image.read_type) for size in shapes]
    else:
        arrays = [memory.empty(k, size, image.read_type) for k, size in enumerate(shapes)]
    convert = image.dtype not in READ_AS_THEY_ARE
    mask = np.ones((rows, cols), np.bool_) if image.alpha or image.mask or convert else None
    done = 0
    try:
        while done < rows:
            with open_image(image.path, mapped=shape is None) as file:
                strip, source = slice(done, rows), window
                if shape is None:
                    strip = slice(done, min(done + lines_at_a_time(file, cols), rows))
                    source = Window(window.col_off, window.row_off + done, cols, strip.stop - done)
                for part, pixels in zip(parts, arrays, strict=True):
                    target = np.moveaxis(pixels[strip], -1, 0)
                    if convert and mask is not None:
                        values = np.empty(target.shape, image.dtype)
                        read_window(file, indexes[part], source, values, one_of_many)
                        mask[strip] &= has_data(values, image.nodata).all(axis=0)
                        image.numbers.encode(values, target)
                    else:
                        read_window(file, indexes[part], source, target, one_of_many)
                if mask is not None and image.alpha:
                    mask[strip] &= file.read(image.alpha, window=source, out_shape=mask[strip].shape) != 0
                if mask is not None and image.mask == "inside":
                    mask[strip] &= file.read_masks(1, window=source, out_shape=mask[strip].shape) != 0
            done = strip.stop
        if mask is not None and image.mask == "beside":
            with open_image(image.path + MASK) as file:
                mask &= file.read(1, window=window, out_shape=mask.shape) != 0
    except RasterioIOError as error:
        raise SceneError(f"{image.path}: cannot be read: {error.__cause__ or error}") from error
    if image.nodata is None or convert:
        return arrays, mask
    valid = np.logical_and.reduce([(pixels != image.nodata).all(axis=2) for pixels in arrays])
    return arrays, valid if mask is None else valid & mask


def read_window(file: Any, indexes: Sequence[int], window: Window, out: Pixels, one_of_many: bool) -> None:
    """Read a window of an open file into an array (band, row, col), decimated if the array is smaller."""
    if one_of_many and file.driver == "JP2OpenJPEG":
        read_decoded(file, indexes, window, out)
    else:
        file.read([*indexes], window=window, out=out)
