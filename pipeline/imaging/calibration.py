"""Top-of-atmosphere reflectance: calibration coefficients and the position of the Sun."""

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
"""Plausible solar irradiance of each band, W / m2 / um. A list that is shifted by one band lies outside."""
BRIGHTEST = (0.1, 4.0)
"""Plausible reflectance of the digital number 1023, ten bits of ones. A reciprocal gain is ten times beyond it."""


@dataclass(frozen=True, slots=True)
class Coefficients:
    """The calibration of one band in one year."""

    gain: float
    offset: float
    """Radiance = gain x digital number + offset, W / m2 / sr / um."""
    irradiance: float
    """Solar irradiance above the atmosphere at one astronomical unit, mean over the band, W / m2 / um."""


Key = tuple[str, str, int, str]
"""Satellite, sensor, year, band."""


def read_coefficients(path: str | Path = CALIBRATION) -> dict[Key, Coefficients]:
    """Read a table of coefficients: CSV with the columns satellite, sensor, year, band, gain, offset, irradiance.

    Raises RadiometryError naming file, line and value if a row is implausible.
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
                    coefficients = Coefficients(float(row["gain"]), float(row["offset"]), float(row["irradiance"]))
                except (TypeError, ValueError, AttributeError) as error:
                    raise RadiometryError(f"{where}: {error}") from error
                if key in table:
                    raise RadiometryError(f"{where}: {' '.join(map(str, key))} is listed twice")
                if fault := find_fault(key[3], coefficients):
                    raise RadiometryError(f"{where}: {' '.join(map(str, key))}: {fault}")
                table[key] = coefficients
    except (OSError, UnicodeDecodeError) as error:
        raise RadiometryError(f"{path}: cannot be read: {error}") from error
    return table


def find_fault(band: str, coefficients: Coefficients) -> str | None:
    """Return the fault of coefficients, or None. Public tables contain reciprocal gains, zeros and shifted bands."""
    if not all(map(math.isfinite, (coefficients.gain, coefficients.offset, coefficients.irradiance))):
        return "a value is not a finite number"
    if not coefficients.gain > 0:
        return f"the gain must be positive, got {coefficients.gain:g}"
    low, high = PLAUSIBLE.get(band, (200, 2200))
    if not low <= coefficients.irradiance <= high:
        return f"the solar irradiance of band {band} must be {low} to {high} W/m2/um, got {coefficients.irradiance:g}"
    brightest = math.pi * (coefficients.gain * 1023 + coefficients.offset) / coefficients.irradiance
    if not BRIGHTEST[0] <= brightest <= BRIGHTEST[1]:
        return (
            f"a gain of {coefficients.gain:g} and an offset of {coefficients.offset:g} give the number 1023 a "
            f"reflectance of {brightest:.2f}, outside {BRIGHTEST[0]} to {BRIGHTEST[1]}; is the gain a reciprocal?"
        )
    if abs(math.pi * coefficients.offset / coefficients.irradiance) > 0.1:
        return f"an offset of {coefficients.offset:g} W/m2/sr/um alone gives a reflectance of more than 0.1"
    return None


def toa_radiometry(bands: Mapping[str, Coefficients], zenith: float, distance: float) -> Radiometry:
    """Return the conversion of digital numbers to top-of-atmosphere reflectance.

    pi x radiance x distance ** 2 / (irradiance x cos(zenith)): Chander, Markham and Helder, 2009, equation 4.
    zenith: solar zenith angle, degrees. distance: Earth-Sun distance, astronomical units.
    """
    if not 0 <= zenith < 85:
        raise RadiometryError(f"the Sun is {zenith:.1f} degrees from the zenith, too low to compute reflectance")
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


def find_sun(when: datetime, lon: float, lat: float) -> tuple[float, float]:
    """Solar zenith angle, degrees, and Earth-Sun distance, astronomical units.

    Accurate to a hundredth of a degree, by the Astronomical Almanac's low-precision formulas (valid 1950 to 2050).
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


def find_solar_zenith(fields: Mapping[str, str], when: datetime, lon: float, lat: float) -> float:
    """Solar zenith angle, degrees: from the metadata, checked against time and place, or computed from these if absent.

    Raises RadiometryError if the two differ by more than three degrees: some files store an elevation under this name.
    """
    computed, _ = find_sun(when, lon, lat)
    for name, sign in (
        ("SolarZenith", 1),
        ("SunZenith", 1),
        ("SolarElevation", -1),
        ("SunElevation", -1),
        ("SunAltitude", -1),
    ):
        try:
            zenith = float(fields.get(name, ""))
        except ValueError:
            continue
        zenith = zenith if sign > 0 else 90.0 - zenith
        if abs(zenith - computed) > 3.0:
            raise RadiometryError(
                f"{name} puts the Sun {zenith:.1f} degrees from the zenith, but at {when:%Y-%m-%d %H:%M} UTC and "
                f"{lon:.2f} E {lat:.2f} N it stood at {computed:.1f}"
            )
        return zenith
    return computed
