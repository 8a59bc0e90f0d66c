"""What is decided about scenes before a pixel is read for them: their grids, what their groups say, memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from geokr.landcover.shares import select_sheets
from geokr.landcover.sheets import LandCover
from geokr.settings import ConfigError
from geokr.storage.rasters import fingerprint
from pipeline.catalog.table import Entry
from pipeline.config import BuildConfig, GridConfig, TilesConfig
from pipeline.geometry.grid import TileGrid, make_scene_grid, peak_bytes
from pipeline.imaging.radiometry import Kind, Radiometry, Stretch, from_stretch
from pipeline.runtime.worker import LIBRARIES
from pipeline.scenes.delivery import Refusal, read_delivery
from pipeline.scenes.discovery import find_deliveries
from pipeline.scenes.footprint import flat_terrain
from pipeline.scenes.scene import Scene


def tile_grid(entry: Entry, config: GridConfig) -> TileGrid | None:
    """A scene's tile grid, None where no tile fits into it."""
    return make_scene_grid(entry.scene.footprint, entry.scene.gsd, config.tile, config.stride, config.block)


def placement_attributes(grid: TileGrid) -> dict[str, Any]:
    """What places the tiles of a scene's group, by the names of the disk contract."""
    return {
        "proj:code": str(grid.geobox.crs),
        "spatial:transform": list(grid.geobox.transform)[:6],
        "tile": grid.tile,
        "stride": grid.stride,
    }


def tile_attributes(entry: Entry, grid: TileGrid, config: TilesConfig) -> dict[str, Any]:
    """What a scene's group says of itself: all that places its tiles, and all that their pixels depend on."""
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
        "stretch": [entry.stretch.low, entry.stretch.high],
        "radiometry": stored_radiometry(entry).attributes(),
        "tiles": config.model_dump(mode="json"),
        **terrain_attributes(entry),
        "pansharpened": {"method": "weighted Brovey", "weights": list(entry.pan_weights)}
        if entry.pan_weights
        else None,
    }


def stored_radiometry(entry: Entry) -> Radiometry:
    """What is stored of a scene's pixels."""
    return entry.radiometry or from_stretch(entry.stretch, len(entry.scene.bands))


def terrain_attributes(entry: Entry) -> dict[str, Any]:
    """Where a scene's heights come from."""
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
    """Peak memory of building one block of a scene, bytes, beside the libraries. kind: what is stored of its pixels."""
    itemsize = 1 if scene.dtype == "uint8" else 2
    deep = 2 if kind == "toa" else itemsize if kind == "dn" else 1
    sizes = (grid.block, grid.tile, grid.stride, len(scene.bands), itemsize)
    return peak_bytes(*sizes, pan=scene.pan is not None, stored=deep)


def check_coverage(config: BuildConfig, covers: list[LandCover], entries: list[Entry]) -> None:
    """Raise ConfigError where none of a product's sheets touches any of the scenes."""

    def grids() -> Iterator[TileGrid]:
        return (grid for entry in entries if (grid := tile_grid(entry, config.grid)) is not None)

    for cover in covers:
        if not any(select_sheets(grid.outline, str(grid.geobox.crs), cover).sheets for grid in grids()) and any(
            grids()
        ):
            more = f" and {len(cover.sheets) - 1} more" if len(cover.sheets) > 1 else ""
            sheets = f"{cover.sheets[0].path}{more}"
            raise ConfigError(f"{cover.name}: none of its sheets, {sheets}, covers any of the scenes; leave it out")


def dry_run(config: BuildConfig, covers: list[LandCover]) -> list[str]:
    """What a build would do, from headers alone: scenes, grids, blocks, bytes and peak memory, a line each.

    Raises ConfigError where a product covers none of the scenes.
    """
    lines, total, memory, most = [], 0, 0, 0
    found: dict[str, Entry] = {}
    for delivery in find_deliveries(config.survey.scenes):
        for scene in read_delivery(delivery, config.survey.imagery, config.survey.bands):
            if isinstance(scene, Refusal):
                lines.append(f"refused   {scene.detail}")
            elif scene.id not in found:
                found[scene.id] = Entry(scene, flat_terrain(scene.images[0].model), Stretch(0, 1), 0.0)
    check_coverage(config, covers, [*found.values()])
    for name, entry in sorted(found.items()):
        grid = tile_grid(entry, config.grid)
        if grid is None:
            lines.append(f"too small {name}: no tile of {config.grid.tile} px at {entry.scene.gsd:g} m fits into it")
            continue
        rows, cols = grid.blocks
        tiles = grid.rows * grid.cols
        pixels = tiles * len(entry.scene.bands) * grid.tile**2
        total, most = total + tiles, most + pixels
        first = entry.scene.images[0]
        memory = max(memory, projected_bytes(entry.scene, grid, config.survey.radiometry))
        lines.append(
            f"scene     {name}: {first.width} x {first.height} px, {entry.scene.gsd:g} m, "
            f"{grid.geobox.crs}, {grid.rows} x {grid.cols} tiles in {rows * cols} blocks, at most {pixels / 1e6:.0f} MB"
        )
    for cover in covers:
        lines.append(f"landcover {cover.name}: {len(cover.sheets)} sheets, classes {', '.join(cover.legend.classes)}")
    lines.append(
        f"in all    {len(found)} scenes, {total} tiles, at most {most / 1e6:.0f} MB of pixels before compression, "
        f"peak memory of a worker {memory / 1e6:.0f} MB beside the {LIBRARIES / 1e6:.0f} MB of its libraries"
    )
    return lines
