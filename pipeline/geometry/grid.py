"""The tile grid of a scene on the lattice of its UTM zone, and its division into blocks. Arithmetic only."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from geokr.crs import transformer
from pipeline.geometry.sensor import Floats


@dataclass(frozen=True, slots=True)
class Block:
    """A run of tile rows and columns: the unit of work, memory, writing and resuming."""

    rows: slice
    cols: slice
    geobox: GeoBox
    """The pixels that the tiles of the block cover together."""


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Overlapping square tiles over a scene, on the lattice that all scenes of a UTM zone share.

    Tile (r, c) covers `tile` x `tile` pixels of `geobox`, starting at pixel (r * stride, c * stride). Origins are
    multiples of stride x gsd, so two scenes of one place with the same GSD have tiles with the same origins.
    """

    geobox: GeoBox
    """All pixels of all tiles. Its CRS is that of `choose_crs`, its resolution the scene's GSD."""
    tile: int
    """Side of a tile, px."""
    stride: int
    """Distance between the origins of neighbouring tiles, px."""
    block: int
    """Side of a block, tiles."""

    def __post_init__(self) -> None:
        if self.tile < 1:
            raise ValueError(f"tile must be at least 1 px, got {self.tile}")
        if not 0 < self.stride <= self.tile:
            raise ValueError(f"stride must be in 1..{self.tile} px, got {self.stride}")
        if self.block < 1:
            raise ValueError(f"block must be at least 1 tile, got {self.block}")
        for size in self.geobox.shape:
            if size < self.tile or (size - self.tile) % self.stride:
                raise ValueError(
                    f"{size} px is not a whole number of tiles of {self.tile} px with stride {self.stride} px"
                )

    @property
    def rows(self) -> int:
        return int(self.geobox.shape[0] - self.tile) // self.stride + 1

    @property
    def cols(self) -> int:
        return int(self.geobox.shape[1] - self.tile) // self.stride + 1

    @property
    def blocks(self) -> tuple[int, int]:
        """Number of block rows and block columns."""
        return math.ceil(self.rows / self.block), math.ceil(self.cols / self.block)

    def block_at(self, i: int, j: int) -> Block:
        """Return block (i, j). Blocks at the lower and right border may contain fewer tiles."""
        rows = slice(i * self.block, min((i + 1) * self.block, self.rows))
        cols = slice(j * self.block, min((j + 1) * self.block, self.cols))
        if not (0 <= i and rows.start < self.rows and 0 <= j and cols.start < self.cols):
            raise IndexError(f"block ({i}, {j}) is outside the grid of {self.blocks} blocks")
        y, x = rows.start * self.stride, cols.start * self.stride
        height = (rows.stop - rows.start - 1) * self.stride + self.tile
        width = (cols.stop - cols.start - 1) * self.stride + self.tile
        return Block(rows, cols, self.geobox[y : y + height, x : x + width])

    def __iter__(self) -> Iterator[Block]:
        """Iterate over all blocks, row by row."""
        rows, cols = self.blocks
        return (self.block_at(i, j) for i in range(rows) for j in range(cols))

    def corners(self, rows: slice, cols: slice) -> Floats:
        """Corners of tiles in the grid's CRS: (row, col, corner, xy) float64, m, clockwise from the upper left."""
        r, c = np.meshgrid(np.arange(rows.start, rows.stop), np.arange(cols.start, cols.stop), indexing="ij")
        offsets = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * self.tile
        x = c[..., None] * self.stride + offsets[:, 0]
        y = r[..., None] * self.stride + offsets[:, 1]
        transform: Affine = self.geobox.transform
        return np.stack([transform.c + transform.a * x, transform.f + transform.e * y], axis=-1)

    @property
    def outline(self) -> Floats:
        """Corners of the full grid, in the order of `corners`: (1, 4, 2) float64, m."""
        left, bottom, right, top = self.geobox.boundingbox
        return np.array([[(left, top), (right, top), (right, bottom), (left, bottom)]])

    def place_ids(self, rows: Iterable[int], cols: Iterable[int]) -> list[str]:
        """Identifiers of the tiles' places, equal for tiles of all scenes with the same origin, zone and GSD.

        Format: `<EPSG code>_<GSD in m>_<east>_<north>`; the last two are counted in strides from the zone's origin.
        """
        transform: Affine = self.geobox.transform
        step = self.stride * transform.a
        left, top = round(transform.c / step), round(transform.f / step)
        prefix = f"{str(self.geobox.crs).removeprefix('EPSG:')}_{transform.a:g}"
        return [f"{prefix}_{left + c}_{top - r}" for r, c in zip(rows, cols, strict=True)]


def utm_zone(lon: float, lat: float) -> str:
    """Return the UTM zone of a place: `EPSG:326zz` in the north, `EPSG:327zz` in the south."""
    zone = int(((lon + 180.0) % 360.0) // 6.0) + 1
    return f"EPSG:{(32600 if lat >= 0 else 32700) + zone}"


POLAR = 84.0
"""Latitude beyond which UTM is not defined, degrees north or south."""


def choose_crs(lon: float, lat: float) -> str:
    """Choose the CRS of a place: its UTM zone, or universal polar stereographic (EPSG:5041, 5042) beyond 84 degrees.

    UPS is the polar complement that the definition of UTM provides: metres, easting and northing, one scale. EPSG:3413
    and 3031, which are true to scale at 70 N and 71 S, stretch a pixel at the pole by 3 per cent; UPS by 0.6.
    """
    if abs(lat) > POLAR:
        return "EPSG:5041" if lat > 0 else "EPSG:5042"
    return utm_zone(lon, lat)


def find_area_centre(footprint: shapely.Polygon) -> tuple[float, float]:
    """Longitude and latitude of a footprint's centre of area, computed on the ground and not in degrees.

    The projection is Lambert's azimuthal equal-area on the sphere, about the mean of the corners: Snyder, Map
    Projections (USGS PP 1395, 1987), equations 20-14, 20-15 and 24-2 to 24-4.
    """
    lon, lat = np.radians(shapely.get_coordinates(footprint.exterior)).T
    lon0, lat0 = lon.mean(), lat.mean()
    sin0, cos0, cos_lat_cos_lon = math.sin(lat0), math.cos(lat0), np.cos(lat) * np.cos(lon - lon0)
    scale = np.sqrt(2 / (1 + sin0 * np.sin(lat) + cos0 * cos_lat_cos_lon))
    x, y = scale * np.cos(lat) * np.sin(lon - lon0), scale * (cos0 * np.sin(lat) - sin0 * cos_lat_cos_lon)
    centre = shapely.Polygon(np.column_stack([x, y])).centroid
    rho = math.hypot(centre.x, centre.y)
    if rho == 0:
        return math.degrees(lon0), math.degrees(lat0)
    angle = 2 * math.asin(rho / 2)
    sin_lat = math.cos(angle) * sin0 + centre.y * math.sin(angle) * cos0 / rho
    lon_shift = math.atan2(centre.x * math.sin(angle), rho * cos0 * math.cos(angle) - centre.y * sin0 * math.sin(angle))
    return math.degrees(lon0 + lon_shift), math.degrees(math.asin(max(-1.0, min(1.0, sin_lat))))


@lru_cache(maxsize=1 << 16)  # every stage needs it
def make_scene_grid(footprint: shapely.Polygon, gsd: float, tile: int, stride: int, block: int) -> TileGrid | None:
    """Make the grid of a scene: all tiles that fit into the bounds of its footprint, or None if no tile fits.

    footprint: longitude and latitude, degrees; across the antimeridian, longitudes continue past 180. gsd: side of a
    pixel, m. The CRS is that of the footprint's centre, however far the scene extends into another zone.
    """
    crs = choose_crs(*find_area_centre(footprint))
    ring = shapely.get_coordinates(footprint.exterior)
    x, y = transformer("EPSG:4326", crs).transform(ring[:, 0], ring[:, 1])
    step, side = stride * gsd, tile * gsd
    left, right = math.ceil(x.min() / step), math.floor((x.max() - side) / step)
    top, bottom = math.floor(y.max() / step), math.ceil((y.min() + side) / step)
    rows, cols = top - bottom + 1, right - left + 1
    if rows < 1 or cols < 1:
        return None
    shape = ((rows - 1) * stride + tile, (cols - 1) * stride + tile)
    return TileGrid(GeoBox(shape, Affine(gsd, 0, left * step, 0, -gsd, top * step), crs), tile, stride, block)


def peak_bytes(
    block: int, tile: int, stride: int, bands: int, itemsize: int, *, pan: bool = False, stored: int = 1
) -> int:
    """Peak memory of building one block, bytes, as the build plan reports it.

    The sum of the source window and the resampled pixels in the file's type (the window is up to twice the block,
    since a scene may be rotated against the grid), the DEM's window (twice, with at most as many cells as the block
    has pixels), the mask, the stretched block, and twice the tiles: once for their shard, and once for the 8-bit block
    that is judged if another radiometry is stored. pan: whether a panchromatic image sharpens the bands. stored: bytes
    of a stored pixel in each band.
    """
    pixels = ((block - 1) * stride + tile) ** 2
    tiles = block * block * tile * tile
    sources = 3 * (bands + pan) * itemsize + 2 * pan
    return pixels * (sources + 2 * 4 + 2 + bands * stored) + 2 * tiles * bands * stored
