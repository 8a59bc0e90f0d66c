"""The sample world: terrain, land cover and reflectance as functions of position, generated from a seed.

Positions are eastings and northings in metres of `CRS`. Nothing is stored or interpolated: every function can be
evaluated at any point, so the sample's files can be checked against it. The land cover consists of convex parcels of
0.1 to 1.5 km. Random numbers come from tables of `CELLS` x `CELLS` that repeat, so the world is meant to be used within
some 15 km of its centre.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from geokr.crs import transformer
from pipeline.geometry.sensor import Floats

CRS = "EPSG:32648"
CENTRE = (439_453.5, 2_765_081.7)
"""104.4 E, 25 N: two sheets of GlobeLand30 meet here."""
BASE = 1500.0
"""Mean height, m above the ellipsoid."""
CELLS = 256
WIDE, NARROW, STRAY = 1100.0, 270.0, 140.0
"""Spacing, m, of large parcels, of the small parcels that some of these are split into, and of a sheet's errors."""

CODES = np.array([10, 20, 30, 40, 50, 60, 80, 90, 100, 60], dtype=np.uint8)
"""GlobeLand30 code of each kind of surface. The last kind is the lake, which is deeper than other water."""
LAKE = 9
BANDS = ("blue", "green", "red", "nir")
SPECTRA = np.array(
    [
        [0.070, 0.100, 0.090, 0.270],  # cultivated
        [0.045, 0.070, 0.050, 0.330],  # forest
        [0.065, 0.100, 0.085, 0.255],  # grassland
        [0.060, 0.090, 0.075, 0.235],  # shrubland
        [0.075, 0.100, 0.080, 0.190],  # wetland
        [0.125, 0.140, 0.115, 0.075],  # water, turbid
        [0.150, 0.160, 0.170, 0.210],  # artificial
        [0.145, 0.185, 0.225, 0.275],  # bare
        [0.390, 0.400, 0.390, 0.350],  # old snow and ice
        [0.030, 0.024, 0.016, 0.008],  # the lake
    ]
)
"""Reflectance of each kind of surface in `BANDS`."""
TEXTURE = np.array(
    [
        [0.03, 0.05, 0.16, 0.00],  # cultivated: rows
        [0.30, 0.10, 0.00, 0.00],  # forest: crowns
        [0.06, 0.08, 0.00, 0.00],
        [0.20, 0.16, 0.00, 0.00],
        [0.06, 0.40, 0.00, 0.00],  # wetland: pools
        [0.00, 0.03, 0.00, 0.00],
        [0.05, 0.00, 0.00, 0.40],  # artificial: roofs and yards
        [0.06, 0.14, 0.00, 0.00],
        [0.02, 0.10, 0.00, 0.00],
        [0.00, 0.00, 0.00, 0.00],
    ]
)
"""Relative amplitude, for each kind of surface, of grain (16 m), mottle (70 m), rows (36 m) and blocks (30 m)."""
FAVOUR = np.array([0.4, 0.25, 0.0, 0.2, -0.2, -0.3, 0.0, 0.0, -0.35])
UPHILL = np.array([-0.8, 0.5, 0.2, 0.3, -1.0, -1.1, -0.9, 1.1, 1.6])
"""Base log odds of each class, and the increase of the log odds per 300 m of height."""

Sun = tuple[float, float]
"""Azimuth, clockwise from north, and zenith angle, degrees."""


@dataclass(frozen=True, slots=True)
class Wave:
    """One sinusoid of the terrain."""

    amplitude: float
    """m."""
    east: float
    north: float
    """Wave numbers, rad/m."""
    phase: float
    """rad, at the world's centre."""


@dataclass(frozen=True, slots=True)
class World:
    """A world whose truth can be evaluated at any point."""

    seed: int
    outdated: float
    """Share of the parcels whose land cover has changed since it was mapped."""
    waves: tuple[Wave, ...]
    lake: tuple[float, float, float]
    """Easting, northing and radius of the lake, a disc, m."""

    def __post_init__(self) -> None:
        if not 0 <= self.outdated <= 1:
            raise ValueError(f"outdated must be a share in 0..1, got {self.outdated}")

    @classmethod
    def from_seed(cls, seed: int, outdated: float = 0.08) -> "World":
        """Generate the world of a seed. Its relief is at least 500 m in any square of 8 km near the centre."""
        rng = np.random.default_rng([seed, 0])
        azimuth0 = rng.uniform(-30, 30)
        # The two largest waves cross each other, so that a square of one wavelength contains both extremes of both.
        azimuths = np.radians([azimuth0, azimuth0 + rng.uniform(75, 105), *rng.uniform(0, 360, 2)])
        phases = rng.uniform(0, 2 * np.pi, 4)
        waves = []
        for amplitude, length, azimuth, phase in zip(
            (190.0, 150.0, 40.0, 10.0), (6800.0, 5600.0, 3200.0, 2200.0), azimuths, phases, strict=True
        ):
            k = 2 * np.pi / length
            waves.append(Wave(amplitude, float(k * np.sin(azimuth)), float(k * np.cos(azimuth)), float(phase)))
        dry_world = cls(seed, outdated, tuple(waves), (*CENTRE, 0.0))
        e, n = np.meshgrid(CENTRE[0] + np.arange(-2500.0, 2600.0, 100), CENTRE[1] + np.arange(-2500.0, 2600.0, 100))
        lowest = np.argmin(dry_world.height(e, n))
        return cls(seed, outdated, dry_world.waves, (float(e.flat[lowest]), float(n.flat[lowest]), 900.0))

    def height(self, e: Floats, n: Floats) -> Floats:
        """Height of the ground above the ellipsoid, m."""
        z = np.full(np.broadcast_shapes(np.shape(e), np.shape(n)), BASE)
        for w in self.waves:
            z += w.amplitude * np.sin(w.east * (e - CENTRE[0]) + w.north * (n - CENTRE[1]) + w.phase)
        return z

    def slope(self, e: Floats, n: Floats) -> tuple[Floats, Floats]:
        """Slope of the ground towards east and towards north, m/m."""
        east = np.zeros(np.broadcast_shapes(np.shape(e), np.shape(n)))
        north = np.zeros_like(east)
        for w in self.waves:
            rise = w.amplitude * np.cos(w.east * (e - CENTRE[0]) + w.north * (n - CENTRE[1]) + w.phase)
            east += w.east * rise
            north += w.north * rise
        return east, north

    def parcel(self, e: Floats, n: Floats) -> npt.NDArray[np.intp]:
        """Number of the parcel that contains a point: its index in the tables of `make_parcels`."""
        tables = make_parcels(self)
        numbers = nearest_seed(e, n, WIDE, self.seed, 10)
        split = tables.split[numbers]
        if split.any():
            numbers[split] = CELLS * CELLS + nearest_seed(e[split], n[split], NARROW, self.seed, 20)
        east, north, radius = self.lake
        numbers[(e - east) ** 2 + (n - north) ** 2 < radius**2] = 2 * CELLS * CELLS
        return numbers

    def cover(self, e: Floats, n: Floats) -> npt.NDArray[np.uint8]:
        """Land cover today, as GlobeLand30 codes."""
        e, n = np.broadcast_arrays(np.asarray(e, float), np.asarray(n, float))
        return np.asarray(CODES[make_parcels(self).today[self.parcel(e, n)]])

    def mapped(self, e: Floats, n: Floats, sheet: int | None = None) -> npt.NDArray[np.uint8]:
        """Land cover according to the map, as GlobeLand30 codes: land cover before the changes.

        sheet: 20 or 25, the lower latitude of one sheet. A sheet is wrong at 5 % of its points beyond its own side of
        the 25th parallel. None: at each point, the sheet of that side.
        """
        e, n = np.broadcast_arrays(np.asarray(e, float), np.asarray(n, float))
        kind = np.array(make_parcels(self).mapped[self.parcel(e, n)])
        if sheet is not None:
            is_north = transformer(CRS, "EPSG:4326").transform(e, n)[1] >= 25.0
            is_beyond = is_north != (sheet == 25)
            stray = nearest_seed(e[is_beyond], n[is_beyond], STRAY, self.seed, 30)
            is_wrong = random_table(self.seed, 33)[stray] < 0.05
            # One to seven classes further in the cyclic list: never the same class, and never the lake.
            wrong_kind = (kind[is_beyond] % LAKE + 1 + (random_table(self.seed, 34)[stray] * 7).astype(np.intp)) % LAKE
            # The lake and water are two kinds of one class.
            wrong_kind[CODES[wrong_kind] == CODES[kind[is_beyond]]] = 0
            kind[is_beyond] = np.where(is_wrong, wrong_kind, kind[is_beyond])
        return np.asarray(CODES[kind])

    def reflectance(self, e: Floats, n: Floats, sun: Sun = (135.0, 35.0)) -> Floats:
        """Reflectance of the ground in `BANDS`: (band, ...) float64, lit by the Sun."""
        e, n = np.broadcast_arrays(np.asarray(e, float), np.asarray(n, float))
        tables, number = make_parcels(self), self.parcel(e, n)
        kind = tables.today[number]
        weight = TEXTURE[kind]
        along = tables.east[number] * (e - CENTRE[0]) + tables.north[number] * (n - CENTRE[1])
        block = random_table(self.seed, 43)[
            wrap_index(np.floor(e / 30.0).astype(np.intp), np.floor(n / 30.0).astype(np.intp))
        ]
        light = 1.0 + weight[..., 0] * noise(e, n, 16.0, self.seed, 41)
        light += weight[..., 1] * noise(e, n, 70.0, self.seed, 42)
        light += weight[..., 2] * (4.0 * np.abs(along - np.floor(along) - 0.5) - 1.0)
        light += weight[..., 3] * (2.0 * block - 1.0)
        light *= tables.bright[number]
        # Water is level.
        light *= np.where(CODES[kind] == 60, 1.0, self.shade(e, n, sun))
        value = np.moveaxis(SPECTRA[kind], -1, 0) * light
        value[3] *= tables.vigour[number]
        return value

    def shade(self, e: Floats, n: Floats, sun: Sun) -> Floats:
        """Light on a slope, as a multiple of the light on level ground; half of it is diffuse light from the sky."""
        azimuth, zenith = np.radians(sun)
        east, north = self.slope(e, n)
        sunward_slope = east * np.sin(azimuth) + north * np.cos(azimuth)
        direct = (1.0 - sunward_slope * np.tan(zenith)) / np.sqrt(1.0 + east * east + north * north)
        return np.asarray(0.5 + 0.5 * np.maximum(direct, 0.0))


@dataclass(frozen=True, slots=True)
class Parcels:
    """Properties of the parcels, by number: large parcels first, then small ones, the lake last."""

    split: npt.NDArray[np.bool_]
    """True for large parcels that are split into small ones."""
    mapped: npt.NDArray[np.intp]
    today: npt.NDArray[np.intp]
    """Kind of surface before and after the changes."""
    bright: Floats
    vigour: Floats
    """Factors of the reflectance: in all bands, and in the near infrared."""
    east: Floats
    north: Floats
    """Wave vector of the rows in a field: its direction is across the rows, its length their number per metre."""


@lru_cache(maxsize=4)
def make_parcels(world: World) -> Parcels:
    """Generate the parcels of a world. Land cover is correlated over some 5 km and depends on the ground height."""
    seed = world.seed
    row, col = np.divmod(np.arange(CELLS * CELLS), CELLS)
    # Rows and columns in the second half of the table are those below and left of the centre.
    x, y = ((v + CELLS // 2) % CELLS - CELLS // 2 + 0.5 for v in (col, row))
    e = np.concatenate([x * WIDE, x * NARROW]) + CENTRE[0]
    n = np.concatenate([y * WIDE, y * NARROW]) + CENTRE[1]
    hill = (world.height(e, n) - BASE) / 300.0
    odds = np.stack([f + u * hill for f, u in zip(FAVOUR, UPHILL, strict=True)], axis=-1)
    odds += np.stack([2.2 * noise(e, n, 5000.0, seed, 100 + k) for k in range(LAKE)], axis=-1)
    rng = np.random.default_rng([seed, 1])
    mapped = np.argmax(odds + rng.gumbel(size=odds.shape), axis=-1)
    # The new class of a parcel also depends on its position, and is never the old class.
    new_odds = odds + rng.gumbel(size=odds.shape)
    np.put_along_axis(new_odds, mapped[:, None], -np.inf, axis=-1)
    # Additive recurrence instead of random draws, with which the share among a few hundred parcels would vary.
    change_rank = (
        np.concatenate([x, x]) * 0.7548776662466927 + np.concatenate([y, y]) * 0.5698402909980532 + rng.random()
    ) % 1
    today = np.where(change_rank < world.outdated, np.argmax(new_odds, axis=-1), mapped)
    bright, vigour = 1.0 + 0.15 * rng.uniform(-1, 1, (2, mapped.size))
    angle = rng.uniform(0, np.pi, mapped.size)
    split = rng.random(CELLS * CELLS) < 0.6
    return Parcels(
        split=split,
        mapped=np.append(mapped, LAKE),
        today=np.append(today, LAKE),
        bright=np.append(bright, 1.0),
        vigour=np.append(vigour, 1.0),
        east=np.append(np.sin(angle) / 36.0, 0.0),
        north=np.append(np.cos(angle) / 36.0, 0.0),
    )


@lru_cache(maxsize=64)
def random_table(seed: int, salt: int) -> Floats:
    """Uniform random numbers for the cells of a table, flattened."""
    return np.random.default_rng([seed, 2, salt]).random(CELLS * CELLS)


def wrap_index(col: npt.NDArray[np.intp], row: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Index of a cell in a flattened table that repeats in both directions."""
    return (row % CELLS) * CELLS + col % CELLS


def nearest_seed(e: Floats, n: Floats, spacing: float, seed: int, salt: int) -> npt.NDArray[np.intp]:
    """Index in a flattened table of the seed point nearest to each position, which is that of its Voronoi cell.

    Each square of a lattice contains one seed point, at most 0.4 of the spacing from its middle along each axis. Only
    the four squares around a position are searched; where this cuts a Voronoi cell, its edge runs along the lattice.
    """
    x, y = (e - CENTRE[0]) / spacing, (n - CENTRE[1]) / spacing
    left, lower = np.floor(x - 0.5).astype(np.intp), np.floor(y - 0.5).astype(np.intp)
    x, y = x - left - 0.5, y - lower - 0.5
    shift_x, shift_y = (0.8 * random_table(seed, salt + k) - 0.4 for k in (1, 2))
    best_distance = np.full(x.shape, np.inf)
    position = np.zeros(x.shape, dtype=np.intp)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        cell = wrap_index(left + j, lower + i)
        distance = (x - j - shift_x[cell]) ** 2 + (y - i - shift_y[cell]) ** 2
        closer = distance < best_distance
        best_distance = np.where(closer, distance, best_distance)
        position = np.where(closer, cell, position)
    return position


def noise(e: Floats, n: Floats, spacing: float, seed: int, salt: int) -> Floats:
    """Smooth noise in -1..1: random numbers on a lattice, interpolated between its nodes."""
    table = random_table(seed, salt)
    x, y = (e - CENTRE[0]) / spacing, (n - CENTRE[1]) / spacing
    left, lower = np.floor(x).astype(np.intp), np.floor(y).astype(np.intp)
    x, y = x - left, y - lower
    x, y = x * x * (3.0 - 2.0 * x), y * y * (3.0 - 2.0 * y)
    west, east = left % CELLS, (left + 1) % CELLS
    south, north = lower % CELLS * CELLS, (lower + 1) % CELLS * CELLS
    lower_value = table[south + west] + x * (table[south + east] - table[south + west])
    upper_value = table[north + west] + x * (table[north + east] - table[north + west])
    return np.asarray(2.0 * (lower_value + y * (upper_value - lower_value)) - 1.0)
