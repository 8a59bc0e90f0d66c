"""Conversion of digital numbers to stored pixels: stretches, reflectance, or unchanged numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from numba import njit

from pipeline.scenes.numbers import AS_THEY_ARE, Numbers


@dataclass(frozen=True, slots=True)
class Stretch:
    """A linear stretch of digital numbers to 8 bits: `low` becomes 0, `high` becomes 255, values beyond are clipped."""

    low: float
    high: float
    """Digital numbers; high > low."""

    def __post_init__(self) -> None:
        if not self.high > self.low:
            raise ValueError(f"a stretch needs high > low, got {self.low} .. {self.high}")


def percentile_stretch(
    sample: npt.NDArray[Any], valid: npt.NDArray[np.bool_], low: float = 1.0, high: float = 99.0
) -> Stretch:
    """One stretch for a full scene, from percentiles over all its bands together, as the GeoKR authors made it.

    sample: (band, ...), a decimated read of the scene. valid: (...), False where a pixel has no data. Pixels that are
    0 in every band do not count either, since deliveries are padded with 0.
    Raises ValueError if no pixel counts or both percentiles are equal.
    """
    values = sample[:, valid & (sample != 0).any(axis=0)]
    if values.size == 0:
        raise ValueError("the image holds no data")
    bottom, top = np.percentile(values, [low, high])
    if not top > bottom:
        raise ValueError(f"the image has one value, {bottom:g}, from its {low:g} % to its {high:g} % percentile")
    return Stretch(float(bottom), float(top))


Kind = Literal["percentile", "percentile-per-band", "toa", "dn"]
"""How digital numbers become stored pixels."""
REFLECTANCE = 1e-4
"""Reflectance of one step of a stored `toa` pixel."""


class RadiometryError(ValueError):
    """Coefficients or metadata are missing or cannot be used. The message is one sentence."""


@dataclass(frozen=True, slots=True)
class Radiometry:
    """The conversion of digital numbers to stored pixels: linear in each band, rounded and clipped to the type."""

    kind: Kind
    low: tuple[float, ...]
    high: tuple[float, ...]
    """The digital numbers that become 0 and the type's largest value, for each band."""
    dtype: str
    """`uint8` or `uint16`."""
    numbers: Mapping[str, Any]
    """The parameters that `low` and `high` were derived from, for the provenance."""

    def __post_init__(self) -> None:
        if self.dtype not in ("uint8", "uint16"):
            raise ValueError(f"pixels are stored as uint8 or uint16, not as {self.dtype}")
        if len(self.low) != len(self.high) or not all(h > b for b, h in zip(self.low, self.high, strict=True)):
            raise ValueError(f"each band needs high > low, got {self.low} .. {self.high}")

    @property
    def top(self) -> int:
        """The type's largest value."""
        return int(np.iinfo(self.dtype).max)

    def apply(self, pixels: npt.NDArray[Any], meanings: Sequence[Numbers] = ()) -> npt.NDArray[Any]:
        """Convert (..., band) digital numbers to stored pixels, uint8 or uint16, laid out band after band in memory.

        meanings: the digital numbers that the numbers in `pixels` stand for, for each band; by default the same.
        """
        bands = len(self.low)
        if pixels.shape[-1] != bands:
            raise ValueError(f"the pixels have {pixels.shape[-1]} bands, but the radiometry has {bands}")
        every = np.arange(np.iinfo(pixels.dtype).max + 1, dtype=np.float64)
        values = [meaning.decode(every) for meaning in meanings or (AS_THEY_ARE,) * bands]
        lines = [
            (numbers - low) * (self.top / (high - low))
            for numbers, low, high in zip(values, self.low, self.high, strict=True)
        ]
        tables = np.clip(np.rint(lines), 0, self.top).astype(self.dtype)
        stored = np.empty((bands, *pixels.shape[:-1]), self.dtype)
        look_up(np.ascontiguousarray(pixels).reshape(-1, bands), tables, stored.reshape(bands, -1))
        return np.moveaxis(stored, 0, -1)

    def digital_numbers(self, stored: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """The digital numbers of (..., band) stored pixels, to half a step of the stored type, between low and high."""
        low, high = np.array(self.low), np.array(self.high)
        return np.asarray(low + stored.astype(np.float64) * ((high - low) / self.top))

    def attributes(self) -> dict[str, Any]:
        """Attributes for a scene's group: all that is needed to convert its pixels back to digital numbers."""
        attributes: dict[str, Any] = {"kind": self.kind, "low": list(self.low), "high": list(self.high), **self.numbers}
        # Names from the CF conventions: stored x scale_factor + add_offset is reflectance.
        return attributes | ({"scale_factor": REFLECTANCE, "add_offset": 0.0} if self.kind == "toa" else {})

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__} | {"numbers": dict(self.numbers)}


@njit(cache=True, nogil=True)
def look_up(pixels: npt.NDArray[Any], tables: npt.NDArray[Any], stored: npt.NDArray[Any]) -> None:  # pragma: no cover
    """Look up each number in its band's table. pixels: (pixel, band), tables: (band, number), stored: (band, pixel)."""
    for start in range(0, len(pixels), 4096):  # these pixels stay in the processor's cache for all bands
        stop = min(start + 4096, len(pixels))
        for band in range(len(tables)):
            for k in range(start, stop):
                stored[band, k] = tables[band, pixels[k, band]]


def radiometry_from_json(value: dict[str, Any]) -> Radiometry:
    """Restore the radiometry that `to_json` describes."""
    return Radiometry(**value | {"low": tuple(value["low"]), "high": tuple(value["high"])})


def radiometry_from_stretch(stretch: Stretch, bands: int) -> Radiometry:
    """Return the radiometry of one stretch for all bands, as in the paper."""
    return Radiometry("percentile", (stretch.low,) * bands, (stretch.high,) * bands, "uint8", {})


def stretch_per_band(
    sample: npt.NDArray[Any], valid: npt.NDArray[np.bool_], low: float, high: float, bands: Sequence[str]
) -> Radiometry:
    """Stretch each band by its own percentiles. sample, valid and errors are those of `percentile_stretch`."""
    values = sample[:, valid & (sample != 0).any(axis=0)]
    if values.size == 0:
        raise ValueError("the image holds no data")
    bottom, top = np.percentile(values, [low, high], axis=1)
    for name, b, t in zip(bands, bottom, top, strict=True):
        if not t > b:
            raise ValueError(f"band {name} has one value, {b:g}, from its {low:g} % to its {high:g} % percentile")
    ends = tuple(map(float, bottom)), tuple(map(float, top))
    return Radiometry("percentile-per-band", *ends, "uint8", {"percentiles": [low, high]})


def identity_radiometry(dtype: str, meanings: Sequence[Numbers]) -> Radiometry:
    """Return the radiometry that stores digital numbers unchanged, or above their base if some are negative.

    meanings: for each band. Raises RadiometryError if they are no whole numbers.
    """
    if any(meaning.step != 1 for meaning in meanings):
        raise RadiometryError("radiometry dn stores whole numbers of 16 bits; choose toa or a percentile stretch")
    low = tuple(meaning.base for meaning in meanings)
    bases = {"scale_factor": 1.0, "add_offset": min(low)} if any(low) else {}
    if len({*low}) > 1:
        raise RadiometryError("some of its bands have negative numbers and others have not; choose another radiometry")
    return Radiometry("dn", low, tuple(base + float(np.iinfo(dtype).max) for base in low), dtype, bases)


def radiometry_from_scales(scales: Sequence[float], offsets: Sequence[float]) -> Radiometry:
    """Return the conversion to reflectance from scales and offsets that the metadata state, as STAC catalogs do."""
    if not all(scale > 0 for scale in scales):
        raise RadiometryError(f"scales must be positive, got {[*scales]}")
    top = np.iinfo("uint16").max * REFLECTANCE
    low = tuple(-offset / scale for scale, offset in zip(scales, offsets, strict=True))
    high = tuple((top - offset) / scale for scale, offset in zip(scales, offsets, strict=True))
    return Radiometry("toa", low, high, "uint16", {"scales": [*scales], "offsets": [*offsets]})
