"""The rules of the evidence: arms, lengths, and what is compared with what. docs/evidence.md says them in words."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks import imagenet

SIZE = 64
SEARCH_SEED, SEEDS = 100, (0, 1, 2)
"""Seed of the runs that choose the rate, and those of the runs that count."""
SETTINGS = (
    f"image_size={SIZE}",
    "bands=red,green,blue",
    "classes=[]",
    "min_known=0.5",
    "batch=64",
    "optimiser=adamw",
    "schedule=cosine",
    "warm_up=0.05",
    "weight_decay=0.05",
    "probe=0",
    "loggers=[]",
)
"""Settings of all arms. They replace those of the presets."""
KEPT = ("distil=1", "start_statistics=true")
FORGOTTEN = ("distil=0", "start_statistics=false")
EIGHT = ("grid=8",)
"""Parts along a side of a tile, as the preset had them when these rules were written."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to come to an encoder."""

    preset: str | None
    """Preset of the pre-training; None for no pre-training."""
    start: str
    """What it starts from: scratch or imagenet."""
    settings: tuple[str, ...] = ()


ARMS: Mapping[str, Arm] = {
    "scratch": Arm(None, "scratch"),
    "imagenet": Arm(None, "imagenet"),
    "supervised": Arm("geokr", "scratch", ("objective=supervised",)),
    "reference": Arm("reference", "scratch"),
    "geokr": Arm("geokr", "scratch"),
    "parts": Arm("parts", "scratch", EIGHT),
    "simclr": Arm("simclr", "scratch"),
    "moco": Arm("moco", "scratch"),
    "byol": Arm("byol", "scratch"),
    "softcon": Arm("softcon", "scratch"),
    "geco": Arm("geco", "scratch"),
    "imagenet-geokr": Arm("geokr", "imagenet", FORGOTTEN),
    "imagenet-geokr-kept": Arm("geokr", "imagenet", KEPT),
    "imagenet-parts-kept": Arm("parts", "imagenet", (*EIGHT, *KEPT)),
    "imagenet-simclr-kept": Arm("simclr", "imagenet", KEPT),
}
AGAINST = {"scratch": ("scratch", "simclr"), "imagenet": ("imagenet", "imagenet-simclr-kept")}
"""Start of an arm -> the arms that it is compared with. They have the same start."""
BUILD = """
build:
  grid: {tile: 128, stride: 96}
  index:
    split: {shares: {train: 0.9, val: 0.1}, cell: 600000, seed: 0}
"""
"""The data set: cells of several tiles' width, 78 km, are in one split."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One set of labelled images and how it is used."""

    task: str
    modes: tuple[str, ...]
    labels: tuple[str, ...]
    settings: tuple[str, ...]


SEARCH_SET = "scene_aid"
"""Its linear probe with 10 % of the labels chooses the learning rates. It is in no other table."""
SEARCH = Trial("classification", ("linear",), ("10%",), (f"size={SIZE}",))
DENSE = ("window=96", "overlap=16", "batch=4", "steps=80", "lr=0.0003,0.001")
BOXES = ("batch=2", "steps=100", "lr=0.001", "window=128", "overlap=32", "box=12")
RSSCN7 = "scene_rsscn7"
PRIMARY = (RSSCN7, "linear", 0.1)
"""The figure that decides: set, mode and share of the labels."""


@dataclass(frozen=True, slots=True)
class Length:
    """What a number of processor hours decides. Mappings are from an arm's start, scratch or imagenet."""

    models: Mapping[str, str]
    steps: Mapping[str, int]
    """Steps of 64 tiles of a run."""
    search: Mapping[str, int]
    """Steps of a run that chooses the learning rate."""
    rates: Mapping[str, tuple[float, ...]]
    """Learning rates that are tried for each arm."""
    trials: Mapping[str, Trial]
    """Folder of labelled images -> how it is used."""
    settings: tuple[str, ...] = ()


LENGTHS: Mapping[str, Length] = {
    "short": Length(
        models={"scratch": "mobilenetv3_small_050", "imagenet": imagenet.MODEL},
        steps={"scratch": 320, "imagenet": 240},
        search={"scratch": 40, "imagenet": 40},
        rates={"scratch": (1e-3, 3e-3), "imagenet": (3e-4, 1e-3)},
        trials={RSSCN7: Trial("classification", ("knn", "linear"), ("1%", "5%", "10%"), (f"size={SIZE}",))},
        settings=("momentum=0.97",),
    ),
    "long": Length(
        models={"scratch": imagenet.MODEL, "imagenet": imagenet.MODEL},
        steps={"scratch": 2500, "imagenet": 2500},
        search={"scratch": 600, "imagenet": 600},
        rates={"scratch": (3e-4, 1e-3, 3e-3), "imagenet": (3e-4, 1e-3, 3e-3)},
        trials={
            RSSCN7: Trial("classification", ("knn", "linear"), ("1%", "5%", "10%", "100%"), (f"size={SIZE}",)),
            "seg_amazon": Trial("segmentation", ("linear",), ("10%", "100%"), (*DENSE, "classes=other,forest")),
            "seg_roads": Trial("segmentation", ("linear",), ("10%", "100%"), (*DENSE, "classes=background,road")),
            "det_trees_naip": Trial("detection", ("finetune",), ("10%", "100%"), BOXES),
        },
    ),
}
