"""Which images train, validate and test, and nested subsets of their labels: pure functions of a seed."""

from collections.abc import Mapping

import numpy as np

from geokr.evaluation.examples import SPLITS, Examples, IntArray


def draw_splits(examples: Examples, val: float, test: float, seed: int) -> dict[str, IntArray]:
    """Positions of the training, validation and test images, sorted: those that came with the data, others drawn.

    A drawn split has about the same share of each stratum, and no group is in two splits. val, test: shares of all
    images; a missing validation split is drawn from the training images. Raises ValueError if a split is left empty.
    """
    given = {name: np.sort(positions) for name, positions in examples.split.items() if len(positions)}
    rest = np.setdiff1d(np.arange(len(examples)), np.concatenate([np.empty(0, np.int64), *given.values()]))
    if "train" in given:  # images in no split of the data stay out, unless it has a training split alone
        rest = given["train"] if "test" in given else np.union1d(given["train"], rest)
    splits = dict(given)
    for name, share in (("test", test), ("val", val)):
        if name not in given:
            count = share * (len(examples) if not given else len(rest))
            splits[name] = draw_groups(examples, rest, count / max(len(rest), 1), seed)
            rest = np.setdiff1d(rest, splits[name])
    splits["train"] = rest
    for name in SPLITS:
        if not len(splits[name]):
            raise ValueError(
                f"no image is left for {name}: {len(examples)} images are too few for val={val:g}, test={test:g}"
            )
    return {name: splits[name] for name in SPLITS}


def draw_groups(examples: Examples, positions: IntArray, share: float, seed: int) -> IntArray:
    """Draw about `share` of some images, the same share of each stratum, in whole groups. Returns sorted positions."""
    random = np.random.default_rng(seed)
    groups, first = np.unique(examples.group[positions], return_index=True)
    stratum_of = dict(zip(groups.tolist(), examples.stratum[positions[first]].tolist(), strict=True))
    size_of = dict(zip(*np.unique(examples.group[positions], return_counts=True), strict=True))
    drawn: list[int] = []
    for stratum in sorted(set(stratum_of.values())):
        members = random.permutation([group for group in groups.tolist() if stratum_of[group] == stratum])
        wanted, taken = share * sum(size_of[group] for group in members), 0
        for group in members.tolist():
            if taken + size_of[group] / 2 > wanted:  # nearer to the share without it
                continue
            drawn.append(group)
            taken += size_of[group]
    return np.sort(positions[np.isin(examples.group[positions], drawn)])


def draw_labels(positions: IntArray, stratum: IntArray, share: float, seed: int) -> IntArray:
    """Draw a share of some images, the same share of each stratum and at least one image of each; sorted positions.

    The subsets of one seed are nested: a larger share contains all images of a smaller one. stratum: of all images.
    """
    random = np.random.default_rng(seed)
    parts = []
    for value in np.unique(stratum[positions]):
        members = random.permutation(positions[stratum[positions] == value])
        parts.append(members[: max(1, round(share * len(members)))])
    return np.sort(np.concatenate(parts))


def name_splits(examples: Examples, splits: Mapping[str, IntArray]) -> dict[str, list[str]]:
    """Names of the images of each split."""
    return {name: [examples.names[i] for i in positions.tolist()] for name, positions in splits.items()}
