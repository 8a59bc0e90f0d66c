"""Does an encoder learn from land cover? A small one trains on a Landsat scene and is judged on held-out places.

The benchmark builds a data set from `zion_landsat8.tif` and `zion_nlcd2011.tif` (Landsat 8 and NLCD 2011 of Zion, Utah,
as in the R package spDataLarge) and trains for a few minutes on a CPU. It prints the KL divergence of the held-out
tiles' land-cover shares from the prediction, next to their divergence from the mean of the training tiles.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.real_data import LANDSAT, MISSING, NLCD, has_files, real_folder
from geokr import train
from pipeline import build_levir_kr

PARAMS = """
build:
  grid: {tile: 64, stride: 32}
  index:
    split: {shares: {train: 0.75, val: 0.25}, cell: 6000, seed: 1}
train:
  model: resnet10t
  bands: [blue, green, red, nir]
  image_size: 64
  crop: 1.0
  batch: 32
  epochs: 12
  loggers: []
"""


def main(argv: list[str]) -> int:
    """Run the command. The exit status is 1 if the encoder is not better than the mean by a fifth."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks zion", description=__doc__)
    default = real_folder("zion")
    parser.add_argument("--data", type=Path, default=default, help="folder of the two files (GEOKR_REAL_DATA/zion)")
    parser.add_argument("--keep", type=Path, help="folder for the data set and the run (a temporary one)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="training settings to try")
    options = parser.parse_args(argv)
    if not has_files("zion", options.data, (LANDSAT, NLCD)):
        return MISSING
    with tempfile.TemporaryDirectory() as temporary:
        out = options.keep or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        (out / "params.yaml").write_text(PARAMS, encoding="utf-8")
        scene, cover = options.data / LANDSAT, options.data / NLCD
        common = ["--params", str(out / "params.yaml"), "--out"]
        status = build_levir_kr.main(
            ["--scenes", str(scene), "--landcover", str(cover), *common, str(out / "dataset"), "--strict"]
        )
        if status == 0:
            status = train.main(["--data", str(out / "dataset"), *common, str(out / "run"), *options.settings])
        if status:
            return status
        metrics = json.loads((out / "run" / "metrics.json").read_text(encoding="utf-8"))
    ours, mean = metrics["val_kl"], metrics["val_kl_mean_baseline"]
    print(
        f"case=zion-held-out-kl ours={ours:.4f} peer={mean:.4f} unit=nats ratio={ours / mean:.3f} "
        f"lower={100 * (1 - ours / mean):.0f}% top1={metrics['val_top1']:.3f} tiles={metrics['val_tiles']}"
    )
    return 0 if ours <= 0.8 * mean else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
