"""A data set of real pixels for benchmarks: overlapping tiles of 256 px, four bands."""

import os
from pathlib import Path

from geokr.dataset.index import read_index
from pipeline import build_levir_kr
from pipeline.sample.__main__ import main as make_world

PARAMS = """
build:
  grid: {tile: 256, stride: 32}
  index:
    split: {shares: {train: 1.0}, cell: 6000, seed: 1}
"""


def dataset(folder: Path) -> tuple[Path, str]:
    """The data set in a folder, built if it is not there, and the name of its scene, or how many it has.

    Landsat 8 of Zion where GEOKR_REAL_DATA names a folder that has it, otherwise the sample world.
    """
    real = Path(os.environ.get("GEOKR_REAL_DATA", "")) / "zion"
    zion = "GEOKR_REAL_DATA" in os.environ and real.is_dir()
    out, params = folder / "dataset", folder / "tiles.yaml"
    if not (out / "dataset.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        # Windows of one image overlap, and are compressed each for itself.
        params.write_text(PARAMS, encoding="utf-8")
        if zion:
            inputs = ["--scenes", f"{real}/zion_landsat8.tif", "--landcover", f"{real}/zion_nlcd2011.tif"]
        else:
            make_world([str(folder / "world")])
            world = folder / "world"
            inputs = ["--scenes", f"{world}/scenes", "--landcover", f"{world}/landcover", "--dem", f"{world}/dem.tif"]
        if build_levir_kr.main([*inputs, "--params", str(params), "--out", str(out)]):
            raise RuntimeError(f"{out} was not built")
    scenes = read_index(out, ["scene"])["scene"].unique().to_pylist()
    return out, scenes[0] if len(scenes) == 1 else f"{len(scenes)}-scenes"
