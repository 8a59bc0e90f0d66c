"""The settings of a build, grouped by stage, from a parameter file and the command line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from geokr.settings import ConfigError, Names, Share, Strict, explain, read_section, suggest
from geokr.storage.inputs import Address
from pipeline.geometry.terrain import find_geoid
from pipeline.imaging.ortho import Resampling
from pipeline.imaging.quality import Rules
from pipeline.imaging.radiometry import Kind
from pipeline.scenes.named_bands import parse_pattern
from pipeline.scenes.raster import Alpha
from pipeline.scenes.scene import CloudMask, Imagery

SECTION = "build"
"""The section of a parameter file with these settings."""
LARGEST_BLOCK = 16_384
"""Largest side of a block, px. Its source window, up to twice as long, must stay below OpenCV's 32,767 px."""
Percent = Annotated[float, Field(ge=0, le=100)]
Weight = Annotated[float, Field(ge=0)]


class SurveyConfig(Strict):
    """Which scenes are used, and how their pixels are stored."""

    scenes: Annotated[list[Address], Field(min_length=1)]
    """Directories, files or URLs with scenes."""
    imagery: Imagery = "mss"
    """Which images of a delivery are tiled: mss, pan, or pansharpened."""
    bands: Annotated[Names, Field(min_length=1)] = ("red", "green", "blue", "nir")
    """Bands to use from a STAC item or a product with a file a band: common names, names of the product's own, or
    NAME=OWN NAME. Those that it lacks are left out. Other images keep all bands."""
    band_names: Names = ()
    """Names of the bands of images with as many bands, instead of those in the file, which may have none. Gaofen
    deliveries and STAC items name their own."""
    band_files: Annotated[str, AfterValidator(parse_pattern)] = ""
    """Which images are bands of one scene: a regular expression of their file names with the groups `band` and, if the
    rest of the name is not that of the scene, `scene`, such as `(?P<scene>.+)_(?P<band>B\\d+)_.*`. Empty for none."""
    alpha: Alpha = "auto"
    """What a band declared as alpha is: mask, band (of measurements), or auto: a mask if named and filled as one."""
    mask: CloudMask = "none"
    """What tells clouds besides their brightness: none, or qa, the quality band of a Landsat or Sentinel-2 scene."""
    dem: Address | None = None
    """Heights above the ellipsoid: any raster that GDAL opens."""
    geoid: Annotated[Address, AfterValidator(find_geoid)] | None = None
    """Heights of the geoid above the ellipsoid, for a DEM with heights above the geoid: any raster that GDAL opens, or
    egm96 or egm2008, if PROJ has the grid on this machine."""
    stretch: tuple[Percent, Percent] = (1.0, 99.0)
    """Percentiles of a scene that are mapped to 0 and 255."""
    radiometry: Kind = "percentile"
    """How pixels are stored: percentile or percentile-per-band (8 bits), toa (reflectance) or dn (16 bits)."""
    reflectance_scale: Annotated[float, Field(gt=0)] | None = None
    """For toa: the reflectance of one step of the pixels of images that state no scale, such as 0.0001."""
    coefficients: Address | None = None
    """For toa: a table to use instead of the built-in one, CSV in the form of pipeline/imaging/calibration.csv."""
    pansharpen_weights: Annotated[tuple[Weight, ...], Field(min_length=1)] | None = None
    """Weight of each band in the panchromatic band; equal weights by default."""

    @model_validator(mode="after")
    def _check_settings(self) -> "SurveyConfig":
        if len(set(self.band_names)) != len(self.band_names):
            raise ValueError(f"band_names must not repeat a name, got {', '.join(self.band_names)}")
        if self.geoid is not None and self.dem is None:
            raise ValueError("a geoid can only be used together with a DEM")
        if self.coefficients is not None and self.radiometry != "toa":
            raise ValueError(f"coefficients can only be used with radiometry toa, not with {self.radiometry}")
        if self.radiometry == "toa" and self.imagery == "pansharpened":
            raise ValueError("pansharpened pixels have no known reflectance; choose another radiometry")
        if self.stretch[0] >= self.stretch[1]:
            raise ValueError(f"the stretch must run from a lower to a higher percentile, got {self.stretch}")
        return self


class GridConfig(Strict):
    """How a scene is divided into tiles, and how tiles are grouped into blocks."""

    tile: Annotated[int, Field(ge=8, le=4096)] = 256
    """Side length of a tile, px."""
    stride: Annotated[int, Field(ge=1)] = 200
    """Distance between neighbouring tiles, px."""
    block: Annotated[int, Field(ge=1, le=256)] = 16
    """Side length of a block, tiles. A block is the unit of work and of memory, and one shard."""

    @model_validator(mode="after")
    def _check_settings(self) -> "GridConfig":
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
    """The land cover with which tiles are intersected."""

    landcover: list[Address] = Field(default_factory=list)
    """Directories, files or URLs with land-cover sheets, also as PRODUCT_YEAR=PATH if their names do not tell. Tiles
    are built without any."""
    legends: list[Address] = Field(default_factory=list)
    """The user's own descriptions of land-cover products: files, or directories of them."""
    taxonomy: Address = "globeland30"
    """Classes of the labels: globeland30, paper, own (those of each product), or a file written by the user."""
    grid: Literal[1, 2, 4, 8] = 8
    """Largest number of parts along a side of a tile that get shares of their own: 1, 2, 4 or 8. A scene has fewer if
    a part would be narrower than two cells of the map."""


class SplitConfig(Strict):
    """How locations are divided into splits."""

    shares: dict[str, Share] = Field(default_factory=lambda: {"train": 0.9, "val": 0.1})
    """Split -> share of the cells; sums to 1."""
    cell: Annotated[float, Field(gt=0)] | None = None
    """Side length of a cell, m. Must be several times that of a tile, otherwise few tiles lie inside a single cell.

    By default 25 km, doubled until it is at least three times the side of the largest tile.
    """
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _check_shares(self) -> "SplitConfig":
        if abs(sum(self.shares.values()) - 1) > 1e-9:
            raise ValueError(f"the shares of the splits must sum to 1, got {self.shares}")
        return self


class IndexConfig(Strict):
    """Which tiles are listed, with which labels, and how they are divided."""

    label_set: str | None = None
    """Label set of the index, `<product>_<year>`; can be left out if the land cover has only one."""
    min_known: Share = 0.5
    """A tile is left out if the share of its area with a known class is smaller than this."""
    min_agreement: Share | None = None
    """A tile is left out if the label sets agree less than this, or if it has no second label set."""
    max_year_gap: Annotated[float, Field(ge=0)] | None = None
    """A tile is left out if its image and label are more years apart than this, or if its image has no date."""
    split: SplitConfig = SplitConfig()


class BuildConfig(Strict):
    """Everything that determines the content of a data set."""

    out: Address
    """The data set: a directory, or `s3://...`."""
    survey: SurveyConfig
    grid: GridConfig = GridConfig()
    tiles: TilesConfig = TilesConfig()
    labels: LabelsConfig = LabelsConfig()
    index: IndexConfig = IndexConfig()


OPTIONS: Mapping[str, tuple[str, ...]] = {
    "out": ("out",),
    **{name: ("survey", name) for name in ("scenes", "imagery", "band_names", "band_files", "alpha", "mask")},
    **{name: ("survey", name) for name in ("dem", "geoid", "radiometry", "coefficients")},
    **{name: ("grid", name) for name in ("tile", "stride")},
    "resampling": ("tiles", "resampling"),
    **{name: ("labels", name) for name in ("landcover", "legends", "taxonomy")},
    "label_set": ("index", "label_set"),
}
"""Command-line option -> the setting that it sets."""


def read_config(params: str | Path | None, options: Mapping[str, Any]) -> BuildConfig:
    """The settings in section `build` of a YAML file; command-line options override them.

    options: option -> value, with the names in OPTIONS. Raises ConfigError with one sentence that names the file and
    the setting.
    """
    values: dict[str, Any] = {} if params is None else read_section(params, SECTION)
    for group in BuildConfig.model_fields:
        if group != "out" and values.get(group) is None:  # a group without a line is empty
            values[group] = {}
    for option, value in options.items():
        *groups, name = OPTIONS[option]
        target = values
        for group in groups:
            target = target[group] if isinstance(target[group], dict) else {}  # the model refuses the group, below
        target[name] = value
    try:
        return BuildConfig.model_validate(values)
    except ValidationError as error:
        path, fault = explain(error)
        setting = ".".join(path)
        flag = next((name for name, target_path in OPTIONS.items() if target_path == path), None)
        # An option of the command line overrides the file, so the file is not to blame for it.
        file_at_fault = params is not None and (flag is None or flag not in options)
        source = f"{params}: " if file_at_fault else ""
        if fault == "Field required" and flag is not None:
            raise ConfigError(f"{source}{setting} is missing; give it as --{flag} or in a parameter file") from error
        if fault == "no such setting":
            raise ConfigError(f"{source}{setting} is not a setting of a build{suggest_setting(path)}") from error
        raise ConfigError(f"{source}{setting}: {fault}" if setting else f"{source}{fault}") from error


def suggest_setting(path: tuple[str, ...]) -> str:
    """`; grid.tile?` for a setting of another group, or for one with a similar spelling; otherwise an empty string."""
    paths = {
        name: f"{group}.{name}" for group, field in BuildConfig.model_fields.items() for name in setting_names(field)
    }
    if path[-1] in paths:
        return f"; {paths[path[-1]]}?"
    return suggest(path[-1], [*paths, *BuildConfig.model_fields])


def setting_names(field: Any) -> list[str]:
    """Names of the settings in a group, from the model field of the group; empty if the field is not a group."""
    kind = field.annotation
    return [*kind.model_fields] if isinstance(kind, type) and issubclass(kind, Strict) else []
