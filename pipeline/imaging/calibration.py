"""Reflectance at the top of the atmosphere: calibration coefficients, and where the Sun stands."""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from pipeline.imaging.radiometry import REFLECTANCE, Radiometry, RadiometryError

CALIBRATION = Path(__file__).parent / "calibration.csv"
PLAUSIBLE = {
    "coastal": (1550, 1900), "blue": (1850, 2050), "green": (1750, 1950), "yellow": (1600, 1800), "red": (1450, 1650),
    "red_edge_1": (1300, 1500), "red_edge_2": (1150, 1350), "nir": (950, 1150), "pan": (1200, 1650),
}  # fmt: skip
"""What the solar irradiance of a band can be, W / m2 / um: a list that is shifted by one band is not within these."""
BRIGHTEST = (0.1, 4.0)
"""Reflectance of a pixel of ten bits that is all ones: a gain's reciprocal is ten times beyond."""


@dataclass(frozen=True, slots=True)
class Coefficients:
    """One band's calibration in one year."""

    gain: float
    offset: float
    """Radiance = gain x digital number + offset, W / m2 / sr / um."""
    irradiance: float
    """Of the Sun above the atmosphere at one astronomical unit, mean of the band, W / m2 / um."""


Key = tuple[str, str, int, str]
"""Satellite, sensor, year, band."""


def read_coefficients(path: str | Path = CALIBRATION) -> dict[Key, Coefficients]:
    """A table of coefficients: CSV with the columns satellite, sensor, year, band, gain, offset, irradiance.

    Raises RadiometryError naming file, line and value for a row that cannot be right.
    """
    columns = ("satellite", "sensor", "year", "band", "gain", "offset", "irradiance")
    table: dict[Key, Coefficients] = {}
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
                raise RadiometryError(f"{path}: there is no column {missing[0]}")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                try:
                    key = (row["satellite"].strip(), row["sensor"].strip(), int(row["year"]), row["band"].strip())
                    found = Coefficients(float(row["gain"]), float(row["offset"]), float(row["irradiance"]))
                except (TypeError, ValueError, AttributeError) as error:
                    raise RadiometryError(f"{where}: {error}") from error
                if key in table:
                    raise RadiometryError(f"{where}: {' '.join(map(str, key))} is there twice")
                if fault := find_fault(key[3], found):
                    raise RadiometryError(f"{where}: {' '.join(map(str, key))}: {fault}")
                table[key] = found
    except (OSError, UnicodeDecodeError) as error:
        raise RadiometryError(f"{path}: cannot be read: {error}") from error
    return table


def find_fault(band: str, found: Coefficients) -> str | None:
    """What is wrong with coefficients, or None. Public tables hold reciprocal gains, zeros, and shifted bands."""
    if not all(map(math.isfinite, (found.gain, found.offset, found.irradiance))):
        return "a value that is not a finite number"
    if not found.gain > 0:
        return f"the gain must be positive, got {found.gain:g}"
    low, high = PLAUSIBLE.get(band, (200, 2200))
    if not low <= found.irradiance <= high:
        return f"a solar irradiance of {found.irradiance:g} W/m2/um; in the band {band} it is {low} to {high}"
    brightest = math.pi * (found.gain * 1023 + found.offset) / found.irradiance
    if not BRIGHTEST[0] <= brightest <= BRIGHTEST[1]:
        return (
            f"a gain of {found.gain:g} and an offset of {found.offset:g} make a reflectance of {brightest:.2f} of the "
            f"number 1023, which is beyond {BRIGHTEST[0]} to {BRIGHTEST[1]}; is the gain a reciprocal?"
        )
    if abs(math.pi * found.offset / found.irradiance) > 0.1:
        return f"an offset of {found.offset:g} W/m2/sr/um makes a reflectance of more than 0.1 by itself"
    return None


def toa_radiometry(bands: Mapping[str, Coefficients], zenith: float, distance: float) -> Radiometry:
    """Digital numbers to reflectance at the top of the atmosphere.

    pi x radiance x distance ** 2 / (irradiance x cos(zenith)): Chander, Markham and Helder, 2009, equation 4.
    zenith: of the Sun, degrees. distance: of the Sun, astronomical units.
    """
    if not 0 <= zenith < 85:
        raise RadiometryError(f"the Sun stands {zenith:.1f} degrees from the zenith, which leaves no reflectance")
    low, high, top = [], [], np.iinfo("uint16").max * REFLECTANCE
    for c in bands.values():
        per_number = math.pi * distance**2 / (c.irradiance * math.cos(math.radians(zenith)))
        low.append(-c.offset / c.gain)
        high.append((top / per_number - c.offset) / c.gain)
    numbers = {
        "gain": [c.gain for c in bands.values()],
        "offset": [c.offset for c in bands.values()],
        "irradiance": [c.irradiance for c in bands.values()],
        "solar_zenith": zenith,
        "earth_sun_distance": distance,
    }
    return Radiometry("toa", tuple(low), tuple(high), "uint16", numbers)


def sun_position(when: datetime, lon: float, lat: float) -> tuple[float, float]:
    """Where the Sun stands: its angle from the zenith, degrees, and its distance, astronomical units.

    To a hundredth of a degree, from the Astronomical Almanac's low-precision formulas (valid 1950 to 2050).
    when: UTC. lon, lat: degrees.
    """
    days = (when - datetime(2000, 1, 1, 12, tzinfo=UTC)).total_seconds() / 86400
    anomaly = math.radians(357.528 + 0.9856003 * days)
    ecliptic = math.radians(280.460 + 0.9856474 * days + 1.915 * math.sin(anomaly) + 0.020 * math.sin(2 * anomaly))
    tilt = math.radians(23.439 - 4e-7 * days)
    ascension = math.atan2(math.cos(tilt) * math.sin(ecliptic), math.cos(ecliptic))
    declination = math.asin(math.sin(tilt) * math.sin(ecliptic))
    hour = math.radians(280.46061837 + 360.98564736629 * days + lon) - ascension
    phi = math.radians(lat)
    height = math.sin(phi) * math.sin(declination) + math.cos(phi) * math.cos(declination) * math.cos(hour)
    distance = 1.00014 - 0.01671 * math.cos(anomaly) - 0.00014 * math.cos(2 * anomaly)
    return math.degrees(math.acos(max(-1.0, min(1.0, height)))), distance


def solar_zenith(fields: Mapping[str, str], when: datetime, lon: float, lat: float) -> float:
    """The Sun's angle from the zenith, degrees: as the metadata say, held against the time and the place.

    Raises RadiometryError where the two are more than three degrees apart: some files hold an elevation.
    """
    computed, _ = sun_position(when, lon, lat)
    for name, sign in (
        ("SolarZenith", 1),
        ("SunZenith", 1),
        ("SolarElevation", -1),
        ("SunElevation", -1),
        ("SunAltitude", -1),
    ):
        try:
            said = float(fields.get(name, ""))
        except ValueError:
            continue
        said = said if sign > 0 else 90.0 - said
        if abs(said - computed) > 3.0:
            raise RadiometryError(
                f"{name} puts the Sun {said:.1f} degrees from the zenith, but at {when:%Y-%m-%d %H:%M} UTC and "
                f"{lon:.2f} E {lat:.2f} N it stood at {computed:.1f}"
            )
        return said
    return computed
