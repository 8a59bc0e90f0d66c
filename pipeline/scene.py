"""A scene: one image of one moment, where it lies, and what is known about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from shapely import Polygon

from pipeline.sensor import SensorModel


class SceneError(ValueError):
    """A scene that cannot be used: one sentence that names the file and the fault."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One image of one moment. Multispectral and panchromatic images of a delivery are a scene each."""

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
    """Ground sampling distance, m."""
    bands: tuple[str, ...]
    """Band names in the file's order: `blue`, `green`, `red`, `nir`, `pan`, `red_edge_1` ..., or `band_1` ..."""
    width: int
    height: int
    """Size of the image, px."""
    dtype: str
    """Of the pixels in the file: `uint8` or `uint16`."""
    nodata: float | None
    """Pixel value that stands for no data, where the file states one."""
    image: str
    """What GDAL opens: a path, a URL, or a member of an archive (`/vsitar/...`)."""
    delivery: str
    """The path it was found under: of the image, or of the archive that holds it."""
    files: tuple[str, ...]
    """The image and its metadata files, where they are not in an archive."""
    bytes: int
    """Size of the image file, or of its archive."""
    checksum: str
    """SHA-256 of the metadata files (XML, RPB), or of the header of a georeferenced image."""
    model: SensorModel
    footprint: Polygon
    """Outline of the image on the ground, longitude and latitude in degrees."""
    metadata: Mapping[str, str]
    """Everything the metadata file says, by element name."""

    def __post_init__(self) -> None:
        if self.acquired is not None and self.acquired.utcoffset() != timedelta(0):
            raise ValueError(f"{self.id}: acquired must be in UTC, got {self.acquired}")
        if not self.gsd > 0:
            raise ValueError(f"{self.id}: the ground sampling distance must be positive, got {self.gsd} m")
        if self.width < 1 or self.height < 1:
            raise ValueError(f"{self.id}: an image of {self.width} x {self.height} px is empty")
