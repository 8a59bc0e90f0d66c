"""A scene: the images of one place and time, where they are stored, and their metadata."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from shapely import Polygon

from geokr.storage.inputs import InputError
from pipeline.geometry.sensor import SensorModel, model_from_json
from pipeline.scenes.numbers import AS_THEY_ARE, Numbers

Imagery = Literal["mss", "pan", "pansharpened"]
"""Which image of a delivery is tiled: multispectral, panchromatic, or multispectral sharpened by panchromatic."""

CloudMask = Literal["none", "qa"]
"""What tells clouds besides their brightness: nothing, or the quality band that comes with a scene."""

_ID = re.compile(r"[^/\\\ud800-\udfff]{1,200}")


class SceneError(InputError):
    """A scene that cannot be used: one sentence that names the file and the fault."""


class NoImageryError(SceneError):
    """An image that holds something else than measurements of a scene: one sentence that names the file."""

    def __init__(self, role: str, message: str) -> None:
        """role: what it holds instead: see `roles.no_imagery`."""
        super().__init__(message)
        self.role = role


@dataclass(frozen=True, slots=True)
class Image:
    """One raster file: bands of one resolution with one sensor model."""

    path: str
    """Path for `raster.open_image`: of a file, of a remote file, or of a member of an archive (`/vsitar/...`)."""
    bands: tuple[str, ...]
    """Names in the order of the file: `blue`, `green`, `red`, `nir`, `pan`, `red_edge_1` ..., or `band_1` ..."""
    width: int
    height: int
    """Size, px."""
    dtype: str
    """Type of the pixels in the file: of whole or real numbers."""
    nodata: float | None
    """Pixel value that means no data; None if none is declared."""
    gsd: float
    """Ground sampling distance, m."""
    model: SensorModel
    indexes: tuple[int, ...] = ()
    """Numbers of the bands in the file, counted from 1; empty if these are all bands of the file in order."""
    alpha: int = 0
    """Number of the band that is 0 where there is no data, counted from 1; 0 if there is none."""
    mask: Literal["", "inside", "beside"] = ""
    """Where a mask that is 0 where there is no data is stored: in the file, or in a file `.msk` beside it."""
    numbers: Numbers = AS_THEY_ARE
    """How pixels of other types than uint8 and uint16 are read as numbers of 16 bits."""
    scales: tuple[float, ...] = ()
    offsets: tuple[float, ...] = ()
    """Per band: pixel * scale + offset is the measured value. Both are empty if not known."""

    def __post_init__(self) -> None:
        if not self.gsd > 0:
            raise ValueError(f"{self.path}: the ground sampling distance must be positive, got {self.gsd} m")
        if self.width < 1 or self.height < 1:
            raise ValueError(f"{self.path}: an image of {self.width} x {self.height} px is empty")
        for name in ("indexes", "scales", "offsets"):
            if len(getattr(self, name)) not in (0, len(self.bands)):
                raise ValueError(f"{self.path}: {len(getattr(self, name))} {name} for {len(self.bands)} bands")

    @property
    def read_type(self) -> str:
        """Type of the numbers that the pixels are read as: `uint8` or `uint16`."""
        return "uint8" if self.dtype == "uint8" else "uint16"

    def to_json(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in self.__slots__}
        return fields | {"model": self.model.to_json(), "numbers": asdict(self.numbers)}


def image_from_json(value: dict[str, Any]) -> Image:
    """Create an image from the JSON of `Image.to_json`."""
    lists = {name: tuple(part) for name, part in value.items() if isinstance(part, list)}
    numbers = Numbers(**value["numbers"])
    return Image(**value | lists | {"model": model_from_json(value["model"]), "numbers": numbers})


@dataclass(frozen=True, slots=True)
class Scene:
    """Images of one place and time that are tiled together. The tiles have the bands of all images, in order."""

    id: str
    """Name of the delivery, item or image. It is unique in a data set and names the scene's group in the store."""
    satellite: str
    """`GF1`, `GF1B`, `GF2`, `GF6` ...; empty if unknown."""
    sensor: str
    """`PMS1`, `WFV3` ...; empty if unknown."""
    level: str
    """`L1A` (raw geometry) or `L2A` (georeferenced)."""
    acquired: datetime | None
    """Start or centre of the acquisition, UTC; None if unknown."""
    gsd: float
    """Ground sampling distance of the tiles, m."""
    images: tuple[Image, ...]
    """At least one. All are read as numbers of the same type."""
    pan: Image | None
    """The panchromatic image for pansharpening; None if the scene is not pansharpened."""
    delivery: str
    """Path or URL of the delivery: see `discovery.Delivery.path`."""
    files: tuple[str, ...]
    """Local files that the scene was read from: images and metadata files, or the archive. Empty for remote ones."""
    bytes: int
    """Size of the image files or of their archive, bytes."""
    metadata_digest: str
    """SHA-256 of the metadata files (XML, RPB), of the STAC item, or of the header of any other georeferenced image."""
    footprint: Polygon
    """Outline on the ground, longitude and latitude in degrees."""
    metadata: Mapping[str, str]
    """All fields of the product XML, properties of the STAC item, or TIFF tags: name -> text."""
    quality: Image | None = None
    """The quality band whose clouds count, under its name in `clouds.find_clouds`, or several, of which the first has
    that name and each has clouds; None if none is used."""

    def __post_init__(self) -> None:
        # The id is used as a folder name or as part of an object key.
        if not _ID.fullmatch(self.id) or not self.id.isprintable() or self.id.startswith((".", "__")):
            raise ValueError(f"{self.id[:200]!r} cannot be the name of a scene; rename the image or item")
        if self.acquired is not None and self.acquired.utcoffset() != timedelta(0):
            raise ValueError(f"{self.id}: acquired must be in UTC, got {self.acquired}")
        if not self.gsd > 0:
            raise ValueError(f"{self.id}: the ground sampling distance must be positive, got {self.gsd} m")
        if not self.images:
            raise ValueError(f"{self.id}: a scene needs an image")

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands of the tiles."""
        return tuple(band for image in self.images for band in image.bands)

    @property
    def read_type(self) -> str:
        """Type of the numbers that the pixels are read as: `uint8` or `uint16`."""
        return self.images[0].read_type

    @property
    def numbers(self) -> tuple[Numbers, ...]:
        """What the numbers of each band stand for."""
        return tuple(image.numbers for image in self.images for _ in image.bands)

    def __iter__(self) -> Iterator[Image]:
        """All images that the tiles are made of, the panchromatic one last."""
        yield from self.images
        if self.pan is not None:
            yield self.pan
