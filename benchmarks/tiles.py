"""A data set for benchmarks: overlapping tiles of 256 px with four bands, from a real scene if there is one."""

from pathlib import Path

from benchmarks.real_data import LANDSAT, NLCD, real_folder
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
    """Build the data set in a folder unless it exists. Returns its path, and the name of its scene or their number.

    The scene is Landsat 8 of Zion if the real data contain it; otherwise the scenes are those of the sample world.
    """
    landsat, nlcd = (real_folder("zion") / name for name in (LANDSAT, NLCD))
    out, params = folder / "dataset", folder / "tiles.yaml"
    if not (out / "dataset.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        # Tiles overlap to make more of them from one image; each is compressed by itself.
        params.write_text(PARAMS, encoding="utf-8")
        if landsat.is_file() and nlcd.is_file():
            inputs = ["--scenes", str(landsat), "--landcover", str(nlcd)]
        else:
            make_world([str(folder / "world")])
            world = folder / "world"
            inputs = ["--scenes", f"{world}/scenes", "--landcover", f"{world}/landcover", "--dem", f"{world}/dem.tif"]
        if build_levir_kr.main([*inputs, "--params", str(params), "--out", str(out)]):
            raise RuntimeError(f"{out} was not built")
    scenes = read_index(out, ["scene"])["scene"].unique().to_pylist()
    return out, scenes[0] if len(scenes) == 1 else f"{len(scenes)}-scenes"
