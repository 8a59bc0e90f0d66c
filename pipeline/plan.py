"""What is decided about scenes before their pixels are read: grids, attributes of their groups, memory."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from geokr.dataset.layout import GRIDS
from geokr.landcover.discovery import RASTERS, list_files
from geokr.landcover.outlines import project
from geokr.landcover.shares import select_sheets
from geokr.landcover.sheets import LandCover
from geokr.settings import ConfigError
from geokr.storage import inputs
from geokr.storage.rasters import fingerprint
from pipeline.catalog.account import USED, Given, describe
from pipeline.catalog.table import Entry
from pipeline.config import BuildConfig, GridConfig, TilesConfig
from pipeline.geometry.grid import TileGrid, make_scene_grid, peak_bytes
from pipeline.imaging.radiometry import Kind, Radiometry, radiometry_from_stretch
from pipeline.scenes.discovery import Inventory
from pipeline.scenes.raster import CONVERSION, READ_AS_THEY_ARE
from pipeline.scenes.scene import Scene


def tile_grid(entry: Entry, config: GridConfig) -> TileGrid | None:
    """The tile grid of a scene; None if no tile fits into it."""
    return make_scene_grid(entry.scene.footprint, entry.scene.gsd, config.tile, config.stride, config.block)


def placement_attributes(grid: TileGrid) -> dict[str, Any]:
    """The attributes of a scene's group that locate its tiles, under the names of the on-disk format."""
    return {
        "proj:code": str(grid.geobox.crs),
        "spatial:transform": list(grid.geobox.transform)[:6],
        "tile": grid.tile,
        "stride": grid.stride,
    }


def tile_attributes(entry: Entry, grid: TileGrid, config: TilesConfig) -> dict[str, Any]:
    """The attributes of a scene's group: all that locates its tiles, and all that their pixels depend on."""
    scene = entry.scene
    return {
        **placement_attributes(grid),
        "block": grid.block,
        "bands": list(scene.bands),
        "gsd": scene.gsd,
        "acquired": None if scene.acquired is None else scene.acquired.isoformat(),
        "satellite": scene.satellite,
        "sensor": scene.sensor,
        "source": {
            "name": Path(scene.images[0].path).name,
            "bytes": scene.bytes,
            "sha256_of_metadata": scene.metadata_digest,
            "sha256_of_every_20th_pixel": entry.pixel_digest,
        },
        "quality_band": None if scene.quality is None else Path(scene.quality.path).name,
        "stretch": [entry.stretch.low, entry.stretch.high],
        "radiometry": stored_radiometry(entry).attributes(),
        "tiles": config.model_dump(mode="json"),
        **terrain_attributes(entry),
        "pansharpened": {"method": "weighted Brovey", "weights": list(entry.pan_weights)}
        if entry.pan_weights
        else None,
    }


def parts_per_side(grid: TileGrid, cover: LandCover, most: int) -> int:
    """Number of parts along a side of a tile that get shares of their own: 1, 2, 4 or 8, at most `most`.

    Each part is at least two cells of every sheet wide, measured at the tile in the middle; 1 if no sheet is near.
    """
    middle = slice(grid.rows // 2, grid.rows // 2 + 1), slice(grid.cols // 2, grid.cols // 2 + 1)
    corners = grid.corners(*middle)[0]  # (1, 4, 2)
    cells = []
    for sheet in cover.sheets:
        a, _, _, _, e, _ = sheet.transform
        points = project(corners, str(grid.geobox.crs), sheet.crs)[0] / [a, e]
        cells.append(float(np.linalg.norm(points - np.roll(points, -1, axis=0), axis=1).min()))
    narrowest = min(cells, default=0.0)
    return max(g for g in GRIDS if g == 1 or (g <= most and narrowest >= 2 * g))


def stored_radiometry(entry: Entry) -> Radiometry:
    """How the pixels of a scene are stored."""
    return entry.radiometry or radiometry_from_stretch(entry.stretch, len(entry.scene.bands))


def terrain_attributes(entry: Entry) -> dict[str, Any]:
    """The attributes that record where the heights of a scene come from."""
    terrain = entry.terrain
    return {
        "dem": None if terrain.dem is None else Path(terrain.dem).name,
        "dem_fingerprint": None if terrain.dem is None else fingerprint(terrain.dem),
        "dem_coverage": entry.dem_coverage,
        "dem_holes_interpolated": entry.dem_holes,
        "geoid": None if terrain.geoid is None else Path(terrain.geoid).name,
        "geoid_fingerprint": None if terrain.geoid is None else fingerprint(terrain.geoid),
        "ground_height": terrain.height,
    }


def projected_bytes(scene: Scene, grid: TileGrid, kind: Kind) -> int:
    """Peak memory for building one block, bytes, in addition to the libraries. kind: how the pixels are stored."""
    itemsize = 1 if scene.read_type == "uint8" else 2
    stored_itemsize = 2 if kind == "toa" else itemsize if kind == "dn" else 1
    bands = len(scene.bands) + (scene.quality is not None)
    sizes = (grid.block, grid.tile, grid.stride, bands, itemsize)
    conversion = 0 if all(image.dtype in READ_AS_THEY_ARE for image in scene) else CONVERSION
    return peak_bytes(*sizes, pan=scene.pan is not None, stored=stored_itemsize) + conversion


def known_inputs(config: BuildConfig, covers: Sequence[LandCover]) -> list[Given]:
    """The given files that are not looked for among the scenes: land cover, heights, and files of settings."""
    known = [Given(inputs.make_absolute(sheet.path), "map", cover.name) for cover in covers for sheet in cover.sheets]
    survey, labels = config.survey, config.labels
    known += [Given(inputs.make_absolute(path), "heights") for path in (survey.dem, survey.geoid) if path is not None]
    paths = [*labels.legends, labels.taxonomy, *filter(None, [survey.coefficients])]
    known += [Given(inputs.make_absolute(path), "setting") for path in map(str, paths) if Path(path).is_file()]
    for file in list_files(labels.landcover) if covers else ():
        if file.lower().endswith(RASTERS):
            reason = "no land-cover product has sheets of this name; describe it with --legend"
            known.append(Given(inputs.make_absolute(file), "unrecognised", "", reason))
        else:
            known.append(describe(inputs.make_absolute(file)))
    return known


def leave_out_known(inventory: Inventory, known: Iterable[Given]) -> Inventory:
    """An inventory without the deliveries whose images are maps or heights of this build."""
    taken = {os.path.realpath(given.file) for given in known if given.role in USED and not inputs.is_remote(given.file)}
    deliveries = [d for d in inventory.deliveries if d.item or os.path.realpath(d.path) not in taken]
    return replace(inventory, deliveries=tuple(deliveries))


def check_coverage(config: BuildConfig, covers: list[LandCover], entries: list[Entry]) -> None:
    """Raise ConfigError if no sheet of a product touches any of the scenes."""

    def grids() -> Iterator[TileGrid]:
        return (grid for entry in entries if (grid := tile_grid(entry, config.grid)) is not None)

    for cover in covers:
        if not any(select_sheets(grid.outline, str(grid.geobox.crs), cover).sheets for grid in grids()) and any(
            grids()
        ):
            further = f" and {len(cover.sheets) - 1} more" if len(cover.sheets) > 1 else ""
            sheets = f"{cover.sheets[0].path}{further}"
            raise ConfigError(f"{cover.name}: none of its sheets, {sheets}, covers any of the scenes; leave it out")
