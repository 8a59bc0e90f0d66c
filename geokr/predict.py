"""Predict land cover with a pre-trained network: `geokr predict RUN --data DATASET --out FOLDER`.

The network learnt the class shares of tiles from a map that is older and coarser than the images. Its prediction for
a tile is therefore an estimate of what the map would say today, and where both differ, the map may be outdated, the
image cloudy, or the geolocation wrong. Nothing of this is validated: it is the pre-training task, applied.

With `--scenes`, the tiles are built first, into FOLDER/dataset, by `geokr build`.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from tqdm import tqdm

from geokr.dataset.contents import list_scenes, read_attributes
from geokr.dataset.layout import TILES
from geokr.encoder import Encoder, load_encoder
from geokr.landcover.legend import list_taxonomies, read_taxonomy
from geokr.loading.pixels import open_reader
from geokr.loading.selection import Tiles
from geokr.loading.units import PixelUnits
from geokr.prediction.maps import TABLE, open_table, write_maps
from geokr.prediction.tiles import ScenePrediction, as_tiles, read_scene_tiles
from geokr.pretraining.checkpoint import LAST, Checkpoint, load
from geokr.storage import files
from geokr.storage.inputs import expand_home, local_path

BATCH = 64
"""Tiles at once."""
WORST = 3
"""Tiles that are named as those that differ most from the map."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="geokr predict", description="Predict class shares of tiles, and where they differ from the map."
    )
    add = parser.add_argument
    add("run", type=local_path, metavar="RUN", help="folder of the pre-training run")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=expand_home, metavar="DATASET", help="data set, with labels or without")
    source.add_argument("--scenes", nargs="+", metavar="PLACE", help="scenes to build tiles of, as for a build")
    add("--params", metavar="FILE.yaml", help="with --scenes: settings of the build, as for the training tiles")
    add("--labels", metavar="NAME", help="label set to compare with, <product>_<year> (that of the run)")
    add("--out", type=local_path, required=True, metavar="FOLDER", help="folder to write to")
    add("--device", default=DEVICE, help="device (a GPU if there is one)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns its exit status: 0 done, 2 an input cannot be used."""
    options = make_parser().parse_args(arguments)
    try:
        checkpoint, predictor = load_predictor(options.run, options.device)
        dataset = options.data
        if options.scenes:
            dataset = str(options.out / "dataset")
            build_tiles(options.scenes, options.params, dataset)
        classes = tuple(checkpoint.facts["classes"])
        colours, summary = find_colours(classes), Summary(classes)
        options.out.mkdir(parents=True, exist_ok=True)
        with open_table(options.out, classes) as add_to_table:
            for prediction in predict_dataset(dataset, checkpoint, predictor, options.labels):
                write_maps(options.out, prediction, classes, colours)
                add_to_table(prediction)
                summary.add(prediction)
        if not summary.scenes:
            raise ValueError(f"{dataset}: no accepted tile of a scene with bands {', '.join(predictor.encoder.bands)}")
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: a device that is not there
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(summary.lines(options.out)))
    return 0


@dataclass(frozen=True, slots=True)
class Predictor:
    """An encoder and the layer that the run trained on it."""

    encoder: Encoder
    weight: torch.Tensor
    """(class, feature)."""
    bias: torch.Tensor
    """(class,)."""
    units: PixelUnits
    """Of the pixels that the encoder was trained with."""

    @torch.no_grad()
    def predict(self, dataset: str, tiles: Tiles) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Predict the class shares of tiles whose scenes have the encoder's bands.

        Returns the shares, (tile, class), whose rows sum to 1, and the features, (tile, feature). Raises ValueError
        naming the shard if pixels cannot be read, or the scene if its pixels stand for something else.
        """
        reader = open_reader(dataset, "", tiles, self.encoder.bands, self.units)
        shares, kept = [], []
        for start in tqdm(range(0, len(tiles), BATCH), unit="batch", disable=None, leave=False):
            positions = np.arange(start, min(start + BATCH, len(tiles)))
            pixels = np.empty((len(positions), *reader.tile_shape), reader.dtype)
            if errors := reader.finish(reader.request(positions, pixels)):
                raise ValueError(next(iter(errors.values())))
            features = self.encoder(torch.from_numpy(pixels).to(self.weight.device))
            shares.append(F.linear(features, self.weight, self.bias).float().softmax(dim=1).cpu().numpy())
            kept.append(features.float().cpu().numpy())
        return np.concatenate(shares), np.concatenate(kept)


def load_predictor(run: Path, device: str = "") -> tuple[Checkpoint, Predictor]:
    """The last checkpoint of a run, and its network on a device, by default a GPU if there is one.

    Raises ValueError naming the run if there is none, or if its head does not fit its encoder.
    """
    checkpoint, encoder = load(run / LAST), load_encoder(run)
    if checkpoint.end_share != 1:
        raise ValueError(f"{run}: the head does not fit an encoder between start and end (interpolate)")
    place = torch.device(device or DEVICE)
    head = checkpoint.networks[checkpoint.exported]
    weight, bias = head["head.weight"].to(place), head["head.bias"].to(place)
    units = PixelUnits(*(checkpoint.facts[field.name] for field in fields(PixelUnits)))
    return checkpoint, Predictor(encoder.to(place), weight, bias, units)


def find_colours(classes: tuple[str, ...]) -> dict[str, str]:
    """Colours of the shipped taxonomies, #rrggbb, by class; classes of other names have none."""
    taxonomies = [read_taxonomy(name) for name in reversed(list_taxonomies())]
    colours = {name: colour for one in taxonomies for name, colour in zip(one.classes, one.colours, strict=True)}
    return {name: colours[name] for name in classes if name in colours}


class Summary:
    """What was predicted, in total, and the tiles that differ most from the map."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes, self.scenes, self.tiles = classes, 0, 0
        self.total = np.zeros(len(classes))
        """Sum of the shares of each class."""
        self.differences: list[npt.NDArray[np.float32]] = []
        """From the map, of each scene's tiles for which it knows anything."""
        self.worst: list[tuple[float, str]] = []
        """The largest of them, with the tile."""

    def add(self, prediction: ScenePrediction) -> None:
        """Count a scene."""
        self.scenes, self.tiles = self.scenes + 1, self.tiles + len(prediction.share)
        self.total += prediction.share.sum(axis=0, dtype=np.float64)
        difference, tiles = prediction.disagreement(), prediction.tiles
        compared = np.flatnonzero(~np.isnan(difference))
        self.differences.append(difference[compared])
        largest = compared[np.argsort(-difference[compared], kind="stable")[:WORST]]
        named = [(float(difference[i]), f"{tiles.name} ({tiles.row[i]}, {tiles.col[i]})") for i in largest]
        self.worst = sorted([*self.worst, *named], key=lambda tile: -tile[0])[:WORST]

    def lines(self, out: Path) -> list[str]:
        """The summary as text."""
        largest = sorted(zip((self.total / self.tiles).tolist(), self.classes, strict=True), reverse=True)
        lines = [f"tiles         {self.tiles} of {self.scenes} scenes"]
        lines.append("shares        " + ", ".join(f"{name} {100 * share:.1f} %" for share, name in largest))
        if self.worst:
            difference = np.concatenate(self.differences)
            lines.append(f"disagreement  {np.median(difference):.3f} in the median of {len(difference)} tiles")
            lines.append("worst         " + ", ".join(f"{tile}: {value:.3f}" for value, tile in self.worst))
        lines.append(f"maps          {out}/SCENE_shares.tif, {out}/SCENE_class.tif, {out}/{TABLE}")
        return lines


def build_tiles(scenes: list[str], params: str | None, dataset: str) -> None:
    """Build the tiles of scenes, without labels. Raises ValueError if the build fails; it says why itself."""
    for stage in ("catalog", "tiles"):
        command = [sys.executable, "-m", "pipeline.build_levir_kr", "--scenes", *scenes, "--out", dataset]
        command += ["--only", stage, *(["--params", params] if params else [])]
        if status := subprocess.run(command, check=False).returncode:
            raise ValueError(f"{dataset}: the tiles could not be built (exit status {status})")


def predict_dataset(
    dataset: str, checkpoint: Checkpoint, predictor: Predictor, label_set: str | None
) -> Iterator[ScenePrediction]:
    """Predict the accepted tiles of each scene that has the encoder's bands; other scenes are named and left out.

    label_set: labels to compare with; by default those of the run, if the data set has them.
    """
    root, classes = files.join(dataset, TILES), tuple(checkpoint.facts["classes"])
    scenes = list_scenes(root)
    if not scenes:
        raise ValueError(f"{root}: no scenes; is {dataset} a data set?")
    for name in tqdm(scenes, unit="scene", disable=None):
        attributes = read_attributes(root, name)
        if missing := [band for band in predictor.encoder.bands if band not in attributes["bands"]]:
            print(f"{name} is left out: it has no band {', '.join(missing)}, only {', '.join(attributes['bands'])}")
            continue
        labels = label_set or str(checkpoint.facts["labels"])
        scene = read_scene_tiles(dataset, name, attributes, classes, labels, optional=label_set is None)
        if len(scene.row):
            yield ScenePrediction(scene, predictor.predict(dataset, as_tiles(scene))[0])
