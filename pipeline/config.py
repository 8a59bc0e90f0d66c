"""The settings of a build: one strict model, from a parameter file and the command line."""

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.imaging.ortho import Resampling
from pipeline.imaging.quality import Rules
from pipeline.imaging.radiometry import Kind
from pipeline.scenes.scene import Imagery

Share = Annotated[float, Field(ge=0, le=1)]
LARGEST_BLOCK = 16_384
"""Longest side of a block, px: what it draws on, up to twice as long, must be less than OpenCV's 32,767 px."""


class Strict(BaseModel):
    """Refuses keys it does not know, and never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SplitConfig(Strict):
    """How places are divided."""

    shares: dict[str, Share] = {"train": 0.9, "val": 0.1}
    """Split -> share of the cells; sums to 1."""
    cell: Annotated[float, Field(gt=0)] = 25_000.0
    """Side of a cell, m. Must be several times a tile, or few tiles lie in one cell only."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _whole(self) -> "SplitConfig":
        if abs(sum(self.shares.values()) - 1) > 1e-9:
            raise ValueError(f"the shares of the splits must sum to 1, got {self.shares}")
        return self


class BuildConfig(Strict):
    """Everything that decides what a data set holds."""

    scenes: Annotated[list[str], Field(min_length=1)]
    """Directories or files with scenes."""
    landcover: Annotated[list[str], Field(min_length=1)]
    """Directories or files with land-cover sheets."""
    legends: list[str] = []
    """The user's own descriptions of land-cover products: files, or directories of them."""
    taxonomy: str = "globeland30"
    """Classes of the labels: globeland30, paper, own (each product's own), or a file of the user's."""
    out: str
    """The data set's directory."""
    imagery: Imagery = "mss"
    """Which images of a delivery are tiled: mss, pan, or pansharpened."""
    bands: Annotated[tuple[str, ...], Field(min_length=1)] = ("red", "green", "blue", "nir")
    """Common names of the bands that are taken of a STAC item, as far as it has them; other images keep all."""
    dem: str | None = None
    """Heights above the ellipsoid: any raster that GDAL opens."""
    tile: Annotated[int, Field(ge=8, le=4096)] = 256
    """Side of a tile, px."""
    stride: Annotated[int, Field(ge=1)] = 200
    """Distance of neighbouring tiles, px."""
    block: Annotated[int, Field(ge=1, le=256)] = 16
    """Side of a block, tiles: the unit of work, of memory and of a shard."""
    stretch: tuple[Annotated[float, Field(ge=0, le=100)], Annotated[float, Field(ge=0, le=100)]] = (1.0, 99.0)
    """Percentiles of a scene that become 0 and 255."""
    geoid: str | None = None
    """Heights of the geoid above the ellipsoid, where the DEM's are above the geoid: a raster that GDAL opens."""
    resampling: Resampling = "bilinear"
    """bilinear, cubic (sharper) or nearest (digital numbers as they are)."""
    radiometry: Kind = "percentile"
    """What is stored: percentile or percentile-per-band (8 bits), toa (reflectance) or dn (16 bits)."""
    coefficients: str | None = None
    """For toa: a table instead of the one that is built in, CSV as pipeline/imaging/calibration.csv."""
    pansharpen_weights: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)] | None = None
    """Weight of each band in the panchromatic one; equal unless given."""
    rules: Rules = Rules()
    labels: str | None = None
    """Label set of the index, `<product>_<year>`; may be left out where the land cover holds only one."""
    min_known: Share = 0.5
    """A tile of which the land cover knows less than this share is left out of the index."""
    min_agreement: Share | None = None
    """A tile on which the label sets agree less than this is left out of the index, and one with no second set."""
    max_year_gap: Annotated[float, Field(ge=0)] | None = None
    """A tile whose image and label lie more years apart than this is left out of the index, and one without a date."""
    split: SplitConfig = SplitConfig()

    @model_validator(mode="after")
    def _sensible(self) -> "BuildConfig":
        if self.stride > self.tile:
            raise ValueError(f"stride must be in 1..{self.tile} px (the tile), got {self.stride}")
        if (side := (self.block - 1) * self.stride + self.tile) > LARGEST_BLOCK:
            raise ValueError(f"{self.block} x {self.block} tiles make a block of {side} px, more than {LARGEST_BLOCK}")
        if self.geoid is not None and self.dem is None:
            raise ValueError("a geoid is of use to a DEM alone")
        if self.coefficients is not None and self.radiometry != "toa":
            raise ValueError(f"coefficients are of use to radiometry toa alone, not to {self.radiometry}")
        if self.radiometry == "toa" and self.imagery == "pansharpened":
            raise ValueError("the reflectance of pansharpened pixels is not known; choose another radiometry")
        if self.stretch[0] >= self.stretch[1]:
            raise ValueError(f"the stretch must run from a lower to a higher percentile, got {self.stretch}")
        return self


class ConfigError(ValueError):
    """A setting that cannot be used: one sentence."""


def read_config(params: str | Path | None, overrides: dict[str, Any]) -> BuildConfig:
    """Settings from the `build` section of a YAML file, and over them those given on the command line.

    Raises ConfigError with a sentence that names the file and the setting at fault.
    """
    values: dict[str, Any] = {}
    if params is not None:
        try:
            loaded = yaml.safe_load(Path(params).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(f"{params}: no such file") from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{params}: cannot be read as YAML: {' '.join(str(error).split())}") from error
        if not isinstance(loaded, dict) or not isinstance(loaded.get("build"), dict):
            raise ConfigError(f"{params}: there is no section `build`")
        values = loaded["build"]
    values = values | overrides
    try:
        return BuildConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        # The command line goes over the file: what was given there is not the file's fault.
        source = f"{params}: " if params is not None and not {*first["loc"][:1]} & overrides.keys() else ""
        if first["type"] == "missing" and len(first["loc"]) == 1:
            raise ConfigError(f"{source}{where} is missing; give it as --{where} or in a parameter file") from error
        if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            raise ConfigError(f"{source}{where} is not a setting of a build") from error
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{source}{where}: {message}" if where else f"{source}{message}") from error
