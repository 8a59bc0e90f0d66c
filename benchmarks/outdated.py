"""Do the tiles on which network and map disagree most lie where the sample world has changed since it was mapped?

python -m benchmarks outdated DATASET RUN [--truth WORLD/truth.json]

DATASET and RUN are those of `make demo`. A tile has changed if the class of more than a given share of its area is not
the one in the map, by the truth of the world, taken at points 16 m apart. Printed are the precision of the worst 5 % of
disagreement, and its recall; `peer` is the precision of tiles drawn at random. It is told of all accepted tiles with a
label, and of the held-out ones.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from geokr.dataset.index import read_index
from geokr.predict import load_predictor, predict_dataset
from geokr.prediction.tiles import SceneTiles
from pipeline.sample.world import World

WORST = 0.05
CHANGED = (0.1, 0.25, 0.5)
"""Shares of a tile's area above which it has changed."""
POINT = 16.0
"""Distance between the points at which the world is looked at, m."""


def measure_change(world: World, tiles: SceneTiles) -> npt.NDArray[np.float64]:
    """The share of each tile's area whose class today is not the mapped one: (tile,) in 0..1."""
    corners = tiles.corners()
    origin, across, down = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 3] - corners[:, 0]
    points = max(2, round(float(np.hypot(*across[0])) / POINT))
    at = (np.arange(points) + 0.5) / points
    shares = []
    for start, right, below in zip(origin, across, down, strict=True):
        e, n = (start[k] + at * right[k] + at[:, None] * below[k] for k in (0, 1))
        shares.append((world.cover(e, n) != world.mapped(e, n)).mean())
    return np.array(shares)


def main(argv: list[str]) -> int:
    """Run the benchmark. Returns 0, or 1 if the worst tiles have not changed more often than others."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks outdated", description=__doc__)
    parser.add_argument("dataset", nargs="?", default="data/sample/dataset")
    parser.add_argument("run", nargs="?", type=Path, default=Path("runs/sample"))
    parser.add_argument("--truth", type=Path, default=Path("data/sample/world/truth.json"))
    options = parser.parse_args(argv)
    if not options.truth.is_file() or not options.run.is_dir():
        print(f"case=outdated needs {options.truth} and {options.run}: make demo writes them")
        return 2
    truth = json.loads(options.truth.read_text(encoding="utf-8"))
    world = World.from_seed(truth["seed"], truth["outdated"])
    rows = read_index(options.dataset, ["scene", "row", "col", "split"]).to_pylist()
    held_out = {(row["scene"], row["row"], row["col"]) for row in rows if row["split"] == "val"}
    checkpoint, predictor = load_predictor(options.run)
    changed, differing, new = [], [], []
    for prediction in predict_dataset(options.dataset, checkpoint, predictor, None):
        tiles, difference = prediction.tiles, prediction.disagreement()
        known = ~np.isnan(difference)
        changed.append(measure_change(world, tiles)[known])
        differing.append(difference[known])
        places = zip(tiles.row[known].tolist(), tiles.col[known].tolist(), strict=True)
        new.append(np.array([(tiles.name, row, col) in held_out for row, col in places], bool))
    share, difference, val = (np.concatenate(parts) for parts in (changed, differing, new))
    better = True
    for name, of in (("all", np.ones(len(val), bool)), ("held-out", val)):
        count = max(1, round(WORST * of.sum()))
        worst = np.argsort(-difference[of], kind="stable")[:count]
        for limit in CHANGED:
            is_changed = share[of] > limit
            hits, base = int(is_changed[worst].sum()), float(is_changed.mean())
            precision, recall = hits / count, hits / max(1, int(is_changed.sum()))
            print(
                f"case=outdated-{name} changed>{limit:g} ours={precision:.3f} peer={base:.3f} unit=precision "
                f"ratio={precision / max(base, 1e-9):.2f} recall={recall:.3f} worst={count} tiles={int(of.sum())}"
            )
            better &= precision > base or not is_changed.any()
    return 0 if better else 1
