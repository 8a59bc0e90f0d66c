"""A scene: the images of one moment and place, where they lie, and what is known about them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from shapely import Polygon

from geokr.storage.inputs import InputError
from pipeline.geometry.sensor import SensorModel, model_from_json

Imagery = Literal["mss", "pan", "pansharpened"]
"""Which of a delivery's images are tiled: the multispectral, the panchromatic, or the one sharpened by the other."""

_ID = re.compile(r"[^/\\\ud800-\udfff]{1,200}")


class SceneError(InputError):
    """A scene that cannot be used: one sentence that names the file and the fault."""


@dataclass(frozen=True, slots=True)
class Image:
    """One raster: bands of one resolution behind one sensor model."""

    path: str
    """What GDAL opens: a path, a URL, or a member of an archive (`/vsitar/...`)."""
    bands: tuple[str, ...]
    """Names in the file's order: `blue`, `green`, `red`, `nir`, `pan`, `red_edge_1` ..., or `band_1` ..."""
    width: int
    height: int
    """Size, px."""
    dtype: str
    """Of the pixels in the file: `uint8` or `uint16`."""
    nodata: float | None
    """Pixel value that stands for no data, where the file states one."""
    gsd: float
    """Ground sampling distance, m."""
    model: SensorModel
    indexes: tuple[int, ...] = ()
    """Which bands of the file these are, counted from 1; empty where they are all of them."""
    masked: bool = False
    """Whether the file says by an alpha band or a mask of its own which pixels hold data."""
    scales: tuple[float, ...] = ()
    offsets: tuple[float, ...] = ()
    """A pixel times its band's scale, plus its offset, is what was measured; empty where nobody says."""

    def __post_init__(self) -> None:
        if not self.gsd > 0:
            raise ValueError(f"{self.path}: the ground sampling distance must be positive, got {self.gsd} m")
        if self.width < 1 or self.height < 1:
            raise ValueError(f"{self.path}: an image of {self.width} x {self.height} px is empty")
        for name in ("indexes", "scales", "offsets"):
            if len(getattr(self, name)) not in (0, len(self.bands)):
                raise ValueError(f"{self.path}: {len(getattr(self, name))} {name} for {len(self.bands)} bands")

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__} | {"model": self.model.to_json()}


def image_from_json(value: dict[str, Any]) -> Image:
    """The inverse of `to_json`."""
    lists = {name: tuple(part) for name, part in value.items() if isinstance(part, list)}
    return Image(**value | lists | {"model": model_from_json(value["model"])})


@dataclass(frozen=True, slots=True)
class Scene:
    """Images of one moment that are tiled together: the bands of all of them, one after the other."""

    id: str
    """The delivery's name, or an image's without its suffix: unique in a data set, its group's name in the store."""
    satellite: str
    """`GF1`, `GF1B`, `GF2`, `GF6` ...; empty where unknown."""
    sensor: str
    """`PMS1`, `WFV3` ...; empty where unknown."""
    level: str
    """`L1A` (raw geometry) or `L2A` (on a map)."""
    acquired: datetime | None
    """Start of the exposure or its centre, UTC; None where unknown."""
    gsd: float
    """Ground sampling distance of the tiles, m."""
    images: tuple[Image, ...]
    """At least one; their pixels are of one type."""
    pan: Image | None
    """The panchromatic image that is to sharpen the others, where that was asked for."""
    delivery: str
    """The path it was found under: of the image, or of the archive that holds it."""
    files: tuple[str, ...]
    """What it was read from on this machine: the images and their metadata files, or the archive."""
    bytes: int
    """Size of the image files, or of their archive."""
    metadata_digest: str
    """SHA-256 of the metadata files (XML, RPB), or of the header of a georeferenced image."""
    footprint: Polygon
    """Outline on the ground, longitude and latitude in degrees."""
    metadata: Mapping[str, str]
    """Everything the metadata file says, by element name."""

    def __post_init__(self) -> None:
        # It becomes a folder, or a part of an object's key.
        if not _ID.fullmatch(self.id) or not self.id.isprintable() or self.id.startswith((".", "__")):
            raise ValueError(f"{self.id[:200]!r} cannot be the name of a scene: rename the image or item")
        if self.acquired is not None and self.acquired.utcoffset() != timedelta(0):
            raise ValueError(f"{self.id}: acquired must be in UTC, got {self.acquired}")
        if not self.gsd > 0:
            raise ValueError(f"{self.id}: the ground sampling distance must be positive, got {self.gsd} m")
        if not self.images:
            raise ValueError(f"{self.id}: a scene needs an image")

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands of its tiles."""
        return tuple(band for image in self.images for band in image.bands)

    @property
    def dtype(self) -> str:
        """Of the pixels in the files."""
        return self.images[0].dtype

    def __iter__(self) -> Iterator[Image]:
        """Every image that its tiles draw on."""
        yield from self.images
        if self.pan is not None:
            yield self.pan
