"""Real sets for detection are read with their boxes, splits and groups."""

from pathlib import Path

import numpy as np

from geokr.evaluation.boxes import BoxSettings, read_boxes
from geokr.evaluation.partition import draw_splits

SEQUENCES = "Munich|MOS1|MOS"


def test_cars_of_a_sequence_stay_in_one_split(real: Path) -> None:
    settings = BoxSettings(group=SEQUENCES, classes=("car",))
    cars = read_boxes(real / "downstream" / "det_cars_kitais", settings)
    assert (len(cars), cars.image(0).shape) == (65, (3, 430, 1764))
    assert sum(len(cars.target(i)[1]) for i in range(65)) == 2546
    splits = draw_splits(cars, 0.31, 0.31, 0)
    assert sorted(map(len, splits.values())) == [20, 20, 25]
    assert all(len(np.unique(cars.group[positions])) == 1 for positions in splits.values())


def test_all_classes_of_the_cars_are_read(real: Path) -> None:
    every = read_boxes(real / "downstream" / "det_cars_kitais", BoxSettings())
    counts = np.bincount(np.concatenate([every.target(i)[1] for i in range(65)]), minlength=5)
    assert dict(zip(every.classes, counts.tolist(), strict=True)) == {
        "car": 2546,
        "truck": 0,
        "bus": 25,
        "minibus": 22,
        "cyclist": 0,
    }


def test_trees_are_boxes_around_points_in_the_splits_of_the_set(real: Path) -> None:
    trees = read_boxes(real / "downstream" / "det_trees_naip", BoxSettings(box=12))
    assert (len(trees), trees.bands, trees.image(0).shape) == (474, ("red", "green", "blue", "nir"), (4, 256, 256))
    assert {name: len(positions) for name, positions in trees.split.items()} == {"train": 383, "val": 43, "test": 48}
    boxes = [trees.target(i)[0] for i in range(474)]
    assert sum(map(len, boxes)) == 24560
    assert sum(not len(its) for its in boxes) == 2
    assert min(its.min() for its in boxes if len(its)) == 0
