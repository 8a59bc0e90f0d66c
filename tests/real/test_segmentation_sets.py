"""Readers on real segmentation sets: roads, forest with distorted copies, clouds over 8 bands of 16 bits."""

from pathlib import Path

import numpy as np

from geokr.evaluation.masks import MaskSettings, read_masks


def test_roads_of_zurich_have_two_classes_and_no_split(real: Path) -> None:
    examples = read_masks(real / "downstream/seg_roads", MaskSettings(classes=("background", "road")))
    assert len(examples) == 100
    assert examples.split == {}
    assert examples.image(0).shape == (3, 400, 400)
    shares = [np.mean(examples.target(i)) for i in range(0, 100, 10)]
    assert 0.03 < np.mean(shares) < 0.4
    # Roads are brighter than what is around them.
    brightness = np.stack([[examples.image(i).mean(0)[examples.target(i) == k].mean() for k in (0, 1)] for i in (0, 9)])
    assert (brightness[:, 1] > brightness[:, 0]).all()


def test_forest_of_the_amazon_passes_over_a_table_about_something_else(real: Path) -> None:
    examples = read_masks(real / "downstream/seg_amazon", MaskSettings(classes=("other", "forest")))
    assert len(examples) == 34
    assert examples.split == {}
    assert sorted(set(examples.stratum.tolist())) == [0, 1]
    assert len(set(examples.group.tolist())) == 34


def test_clouds_keep_their_bands_and_the_split_that_came_with_them(real: Path) -> None:
    names = ("clear", "cloud", "thin_cloud", "shadow")
    examples = read_masks(real / "downstream/cloud_l8biome", MaskSettings(classes=names, scale=10000))
    assert examples.bands == ("blue", "green", "red", "nir", "swir1", "swir2", "cirrus", "tir1")
    assert {name: len(positions) for name, positions in examples.split.items()} == {"train": 16, "val": 8, "test": 5}
    assert sum(map(len, examples.split.values())) == len(examples) == 29
    pixels, target = examples.image(0), examples.target(0)
    assert (pixels.dtype, pixels.shape, target.shape) == (np.uint16, (8, 256, 256), (256, 256))
    blue = np.concatenate([examples.image(i)[0].ravel() for i in range(29)]) / examples.scale
    classes = np.concatenate([examples.target(i).ravel() for i in range(29)])
    assert blue[classes == 1].mean() > 0.25 > blue[classes == 3].mean()  # clouds are bright, their shadows are not
