"""A sample world, built once, for the tests that look at the result."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipeline.build_levir_kr import main
from pipeline.catalog.table import Entry, read_catalog
from pipeline.config import BuildConfig, read_config
from pipeline.geometry.sensor import Floats
from pipeline.sample.files import SHOTS, surrounding_box, write_dem, write_sheets
from pipeline.sample.level1a import Shot, write_delivery
from pipeline.sample.world import World

collect_ignore = [] if shutil.which("chromium") or os.environ.get("CI") else ["test_report_pages.py"]
"""`make test` says when a machine has no browser. Where CI is set, the tests then fail."""
PERIOD = 256.0
"""Ground metres in which the patterns of `coordinates` repeat: 32 px of 8 m, far more than any error looked for."""


@dataclass(frozen=True)
class Built:
    """A finished data set and what it was made from."""

    directory: Path
    world: World
    shots: tuple[Shot, ...]
    arguments: tuple[str, ...]
    """Of the command, without --out."""

    @property
    def dataset(self) -> Path:
        return self.directory / "dataset"

    @property
    def config(self) -> BuildConfig:
        options = dict(zip(self.arguments[::2], self.arguments[1::2], strict=True))
        values = {"scenes": [options["--scenes"]], "landcover": [options["--landcover"]], "dem": options["--dem"]}
        sizes = {"tile": int(options["--tile"]), "stride": int(options["--stride"])}
        return read_config(options["--params"], values | sizes | {"out": str(self.dataset)})

    @property
    def entries(self) -> list[Entry]:
        return read_catalog(self.dataset / "scenes.parquet")


def coordinates(e: Floats, n: Floats, height: Floats) -> Floats:
    """Pixels that hold their own place: sine and cosine of easting and of northing, 100 to 900."""
    x, y = 2 * np.pi * e / PERIOD, 2 * np.pi * n / PERIOD
    return 500.0 + 400.0 * np.stack([np.sin(x), np.cos(x), np.sin(y), np.cos(y)])


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Three scenes, one of them archived, with a DEM and two land-cover sheets, whose pixels hold their own place."""
    directory = tmp_path_factory.mktemp("world")
    world = World.from_seed(3)
    shots = (SHOTS[0], SHOTS[4], SHOTS[2])
    box = surrounding_box(shots)
    write_dem(directory / "dem.tif", world, box)
    write_sheets(directory / "landcover", world, box)
    for shot in shots:
        write_delivery(directory / "scenes", shot, world.height, coordinates, supersample=1)
    params = directory / "params.yaml"
    params.write_text("build: {grid: {block: 8}, index: {split: {cell: 2500, shares: {train: 0.7, val: 0.3}}}}\n")
    arguments = (
        "--scenes", str(directory / "scenes"), "--landcover", str(directory / "landcover"),
        "--dem", str(directory / "dem.tif"), "--params", str(params), "--tile", "64", "--stride", "48",
    )  # fmt: skip
    assert main([*arguments, "--out", str(directory / "dataset"), "--workers", "2", "--strict"]) == 0
    return Built(directory, world, shots, arguments)
