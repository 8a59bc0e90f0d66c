"""A scene: the images of one moment and place, where they lie, and what is known about them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from shapely import Polygon

from pipeline.sensor import SensorModel, model_from_json


class SceneError(ValueError):
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

    def __post_init__(self) -> None:
        if not self.gsd > 0:
            raise ValueError(f"{self.path}: the ground sampling distance must be positive, got {self.gsd} m")
        if self.width < 1 or self.height < 1:
            raise ValueError(f"{self.path}: an image of {self.width} x {self.height} px is empty")

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__} | {"model": self.model.to_json()}


def image_from_json(value: dict[str, Any]) -> Image:
    """The inverse of `to_json`."""
    return Image(**value | {"bands": tuple(value["bands"]), "model": model_from_json(value["model"])})


@dataclass(frozen=True, slots=True)
class Scene:
    """Images of one moment that are tiled together: the bands of all of them, one after the other."""

    id: str
    """The image's file name without its suffix: unique in a data set, and its group's name in the store."""
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
    delivery: str
    """The path it was found under: of the image, or of the archive that holds it."""
    files: tuple[str, ...]
    """The images and their metadata files, where they are not in an archive."""
    bytes: int
    """Size of the image files, or of their archive."""
    checksum: str
    """SHA-256 of the metadata files (XML, RPB), or of the header of a georeferenced image."""
    footprint: Polygon
    """Outline on the ground, longitude and latitude in degrees."""
    metadata: Mapping[str, str]
    """Everything the metadata file says, by element name."""

    def __post_init__(self) -> None:
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
