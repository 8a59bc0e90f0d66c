"""The settings of a build, grouped by the stage that they belong to, from a parameter file and the command line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from geokr.settings import ConfigError, Names, Share, Strict, explain, read_section, suggest
from pipeline.imaging.ortho import Resampling
from pipeline.imaging.quality import Rules
from pipeline.imaging.radiometry import Kind
from pipeline.scenes.scene import Imagery

SECTION = "build"
"""The section of a parameter file that holds these settings."""
LARGEST_BLOCK = 16_384
"""Longest side of a block, px: what it draws on, up to twice as long, must be less than OpenCV's 32,767 px."""
Percent = Annotated[float, Field(ge=0, le=100)]
Weight = Annotated[float, Field(ge=0)]


class SurveyConfig(Strict):
    """Which scenes there are, and what becomes of their pixels."""

    scenes: Annotated[list[str], Field(min_length=1)]
    """Directories, files or URLs with scenes."""
    imagery: Imagery = "mss"
    """Which images of a delivery are tiled: mss, pan, or pansharpened."""
    bands: Annotated[Names, Field(min_length=1)] = ("red", "green", "blue", "nir")
    """Common names of the bands that are taken of a STAC item, as far as it has them; other images keep all."""
    dem: str | None = None
    """Heights above the ellipsoid: any raster that GDAL opens."""
    geoid: str | None = None
    """Heights of the geoid above the ellipsoid, where the DEM's are above the geoid: a raster that GDAL opens."""
    stretch: tuple[Percent, Percent] = (1.0, 99.0)
    """Percentiles of a scene that become 0 and 255."""
    radiometry: Kind = "percentile"
    """What is stored: percentile or percentile-per-band (8 bits), toa (reflectance) or dn (16 bits)."""
    coefficients: str | None = None
    """For toa: a table in place of the one that is built in, CSV as pipeline/imaging/calibration.csv."""
    pansharpen_weights: Annotated[tuple[Weight, ...], Field(min_length=1)] | None = None
    """Weight of each band in the panchromatic one; equal unless given."""

    @model_validator(mode="after")
    def _sensible(self) -> "SurveyConfig":
        if self.geoid is not None and self.dem is None:
            raise ValueError("a geoid is of use to a DEM alone")
        if self.coefficients is not None and self.radiometry != "toa":
            raise ValueError(f"coefficients are of use to radiometry toa alone, not to {self.radiometry}")
        if self.radiometry == "toa" and self.imagery == "pansharpened":
            raise ValueError("the reflectance of pansharpened pixels is not known; choose another radiometry")
        if self.stretch[0] >= self.stretch[1]:
            raise ValueError(f"the stretch must run from a lower to a higher percentile, got {self.stretch}")
        return self


class GridConfig(Strict):
    """How a scene is divided into tiles, and these into blocks."""

    tile: Annotated[int, Field(ge=8, le=4096)] = 256
    """Side of a tile, px."""
    stride: Annotated[int, Field(ge=1)] = 200
    """Distance of neighbouring tiles, px."""
    block: Annotated[int, Field(ge=1, le=256)] = 16
    """Side of a block, tiles: the unit of work, of memory and of a shard."""

    @model_validator(mode="after")
    def _sensible(self) -> "GridConfig":
        if self.stride > self.tile:
            raise ValueError(f"stride must be in 1..{self.tile} px (the tile), got {self.stride}")
        if (side := (self.block - 1) * self.stride + self.tile) > LARGEST_BLOCK:
            raise ValueError(f"{self.block} x {self.block} tiles make a block of {side} px, more than {LARGEST_BLOCK}")
        return self


class TilesConfig(Strict):
    """How pixels are resampled, and which tiles are accepted."""

    resampling: Resampling = "bilinear"
    """bilinear, cubic (sharper) or nearest (digital numbers as they are)."""
    rules: Rules = Rules()


class LabelsConfig(Strict):
    """Which land cover the tiles are intersected with."""

    landcover: Annotated[list[str], Field(min_length=1)]
    """Directories, files or URLs with land-cover sheets."""
    legends: list[str] = Field(default_factory=list)
    """The user's own descriptions of land-cover products: files, or directories of them."""
    taxonomy: str = "globeland30"
    """Classes of the labels: globeland30, paper, own (each product's own), or a file of the user's."""


class SplitConfig(Strict):
    """How places are divided."""

    shares: dict[str, Share] = Field(default_factory=lambda: {"train": 0.9, "val": 0.1})
    """Split -> share of the cells; sums to 1."""
    cell: Annotated[float, Field(gt=0)] = 25_000.0
    """Side of a cell, m. Must be several times a tile, or few tiles lie in one cell only."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _whole(self) -> "SplitConfig":
        if abs(sum(self.shares.values()) - 1) > 1e-9:
            raise ValueError(f"the shares of the splits must sum to 1, got {self.shares}")
        return self


class IndexConfig(Strict):
    """Which tiles are listed, with which labels, and how they are divided."""

    label_set: str | None = None
    """Label set of the index, `<product>_<year>`; may be left out where the land cover holds only one."""
    min_known: Share = 0.5
    """A tile of which the land cover knows less than this share is left out."""
    min_agreement: Share | None = None
    """A tile on which the label sets agree less than this is left out, and one with no second set."""
    max_year_gap: Annotated[float, Field(ge=0)] | None = None
    """A tile whose image and label lie more years apart than this is left out, and one without a date."""
    split: SplitConfig = SplitConfig()


class BuildConfig(Strict):
    """Everything that decides what a data set holds."""

    out: str
    """The data set: a directory, or `s3://...`."""
    survey: SurveyConfig
    grid: GridConfig = GridConfig()
    tiles: TilesConfig = TilesConfig()
    labels: LabelsConfig
    index: IndexConfig = IndexConfig()


OPTIONS: Mapping[str, tuple[str, ...]] = {
    "out": ("out",),
    **{name: ("survey", name) for name in ("scenes", "imagery", "dem", "geoid", "radiometry", "coefficients")},
    **{name: ("grid", name) for name in ("tile", "stride")},
    "resampling": ("tiles", "resampling"),
    **{name: ("labels", name) for name in ("landcover", "legends", "taxonomy")},
    "label_set": ("index", "label_set"),
}
"""Option of the command line -> the setting that it is."""


def read_config(params: str | Path | None, given: Mapping[str, Any]) -> BuildConfig:
    """The settings in the section `build` of a YAML file, with options of the command line over them.

    given: option -> value, as in OPTIONS. Raises ConfigError with one sentence that names the file and the setting.
    """
    values: dict[str, Any] = {} if params is None else read_section(params, SECTION)
    for chosen, value in given.items():
        *groups, name = OPTIONS[chosen]
        target = values
        for group in groups:
            if target.setdefault(group, {}) is None:
                target[group] = {}
            target = target[group] if isinstance(target[group], dict) else {}  # which the model refuses, below
        target[name] = value
    for group in ("survey", "labels"):  # so that what is missing in them is named
        if values.get(group) is None:
            values[group] = {}
    try:
        return BuildConfig.model_validate(values)
    except ValidationError as error:
        place, what = explain(error)
        where = ".".join(place)
        option = next((name for name, at in OPTIONS.items() if at == place), None)
        # The command line goes over the file: what was given there is not the file's fault.
        blamed = params is not None and (option is None or option not in given)
        source = f"{params}: " if blamed else ""
        if what == "Field required" and option is not None:
            raise ConfigError(f"{source}{where} is missing; give it as --{option} or in a parameter file") from error
        if what == "no such setting":
            raise ConfigError(f"{source}{where} is not a setting of a build{suggest_setting(place)}") from error
        raise ConfigError(f"{source}{where}: {what}" if where else f"{source}{what}") from error


def suggest_setting(place: tuple[str, ...]) -> str:
    """`; grid.tile?` for a setting in another group, or one that is nearly spelt so; otherwise nothing."""
    every = {
        name: f"{group}.{name}" for group, field in BuildConfig.model_fields.items() for name in setting_names(field)
    }
    if place[-1] in every:
        return f"; {every[place[-1]]}?"
    return suggest(place[-1], [*every, *BuildConfig.model_fields])


def setting_names(field: Any) -> list[str]:
    """The settings of a group, by the field that holds it; none where it is no group."""
    kind = field.annotation
    return [*kind.model_fields] if isinstance(kind, type) and issubclass(kind, Strict) else []
