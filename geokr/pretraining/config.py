"""The settings of a training run: one strict value, from a preset, a parameter file and the command line."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

import yaml

SECTION = "train"
"""The section of a parameter file that holds training settings; stages of the pipeline read the others."""

WITHOUT_EFFECT = frozenset(
    {"device", "compile", "channels_last", "recompute", "shard", "prefetch", "checkpoint_every", "loggers"}
)
"""Settings that a resumed run may change: they say how a run is carried out, not what it learns."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """What a run learns, from what and how. The defaults are the preset `geokr`."""

    bands: tuple[str, ...] = ("red", "green", "blue")
    """Bands fed to the encoder, by name, in this order. Scenes that lack one are left out."""
    classes: tuple[str, ...] = ()
    """Classes to learn; none named, all of the data set's. Shares are renormalised over those named."""
    min_known: float = 0.5
    """Least share of a tile's area that its label covers, in 0..1."""
    where: tuple[str, ...] = ()
    """Conditions on columns of the index that every tile must meet, such as `gsd<=4` or `satellite=GF1|GF2`."""
    weight: tuple[str, ...] = ()
    """Columns of the index whose product is what a training tile counts for in the loss, such as `known`."""
    balance: float = 0.0
    """0: each training tile once an epoch. 1: tiles are drawn such that the classes come with equal mass."""
    pairs: bool = False
    """Learn from places of several dates alone, the student from one and the teacher from another of them."""
    buffer: int = 0
    """0: an epoch is one permutation. Otherwise shards are read one after the other, each once and whole, and about
    so many tiles are shuffled: for buckets and cold disks."""
    on_error: str = "raise"
    """raise: a tile that cannot be read stops the run. skip: it is left out, and counted."""

    model: str = "resnet50"
    """Any name that timm knows, with or without a tag (`resnet50.tv_in1k`)."""
    pretrained: bool | str = False
    """Where the encoder starts. false: at random. true: at timm's own weights, which it downloads. auto: at
    timm's own, or at random with a warning where they cannot be had. Otherwise a .safetensors or .pth file of
    timm's, of torchvision's or of this project's."""

    objective: str = "geokr"
    """geokr: KL(A || p) + consistency * KL(p || q). reference: the loss of the paper's published code, with its
    teacher. supervised: KL(A || p), without a teacher."""
    consistency: float = 1.0
    """Weight of the consistency with the teacher."""
    ramp_up: float = 0.1
    """Share of the run over which the weight of the consistency rises from near 0 to its full value."""
    ema: float = 0.999
    """The share of itself that the teacher keeps at an update."""
    ema_periods: tuple[int, ...] = ()
    """For objective reference alone: the periods of its teacher's updates, in steps of 16 tiles (see teacher.py)."""

    image_size: int = 224
    """Side of the image that the encoder sees, px."""
    crop: float = 0.7
    """Least share of a tile's area that a view keeps, in 0..1. A label is the share over the whole tile, so it
    holds less and less for smaller views; 0.7 of a 256 px tile is 214 px, near `image_size`."""
    turn: float = 1.0
    """Probability that a view is turned by a random multiple of 90 degrees."""
    rotate: float = 0.0
    """Greatest rotation beside that, degrees. It costs sharpness, and sensors' images have no direction that
    quarter turns leave."""
    stretch: float = 1.0
    """Greatest ratio of a view's sides. Above 1, lengths on the ground differ with direction."""
    brightness: float = 0.3
    """Views are multiplied by a number within 1 +- this."""
    contrast: float = 0.3
    """The same for the distance from the mean."""
    saturation: float = 0.3
    """The same for the distance from grey, of red, green and blue."""
    hue: float = 0.02
    """Views' hue is turned by up to this share of the circle. Small, for hue tells water from forest."""

    optimiser: str = "adamw"
    """adamw, adam, sgd (momentum 0.9), or lamb for batches of thousands."""
    lr: float = 1e-3
    """Highest learning rate."""
    weight_decay: float = 0.05
    """Not applied to biases and normalisation layers."""
    schedule: str = "cosine"
    """What follows the warm-up. cosine: half a cosine down to 0. step: times `decay` every `decay_every` epochs."""
    warm_up: float = 0.05
    """Share of the run over which the learning rate rises."""
    decay: float = 0.9
    """For schedule step."""
    decay_every: int = 1
    """For schedule step, epochs."""
    clip: float = 0.0
    """Greatest norm of a step's gradient, longer ones are shortened to it; 0: as it is."""
    batch: int = 256
    """Tiles a step, over all processes together."""
    accumulate: int = 1
    """Parts that a step's tiles are computed in, one after the other: less memory, the same step, but that batch
    normalisation sees a part at a time."""
    epochs: int = 10
    """Passes over the training tiles."""
    steps: int = 0
    """Length of the run in steps; 0: `epochs` decides."""
    seed: int = 0
    """Of initialisation, order and augmentation. On a CPU the same seed gives the same weights, bit for bit."""

    validate_every: int = 0
    """Steps between validations; 0: one an epoch. There is always one at the end."""
    checkpoint_every: int = 500
    """Steps between checkpoints; each validation, and a stop, writes one too."""
    probe: int = 2048
    """Training tiles by whose features validation guesses the held-out ones (k nearest neighbours); 0: none."""
    highest_loss: float = 100.0
    """Nats. A step whose loss is higher, or no number, stops the run and leaves its tiles in RUN/diverged."""
    amp: str = "auto"
    """bf16, fp16 (with a scaled loss), fp32, or auto: bf16 on a GPU, fp16 on one that lacks it, fp32 elsewhere."""
    compile: bool = False
    """Compile student and teacher with torch.compile: minutes at the start, faster steps."""
    channels_last: bool = True
    """Pixels of all channels beside each other in memory, as convolutions on a GPU want them."""
    recompute: bool = False
    """Compute a block's activations again when its gradient needs them: less memory, a third more time."""
    shard: bool = False
    """Share out weights, gradients and the optimiser's state over the processes (FSDP2) instead of copying them
    to each: for a network that is too large for one GPU."""
    sync_batch_norm: bool = False
    """Batch statistics over the tiles of all processes, on GPUs; otherwise over those of each."""
    device: str = "auto"
    """auto: the GPU where there is one; or a name that torch knows, such as cuda:1."""
    prefetch: int = 4
    """Batches read ahead."""
    loggers: tuple[str, ...] = ("tensorboard",)
    """Besides log.jsonl: tensorboard, dvclive, both or none ([])."""

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            for chosen in value if isinstance(value, tuple) else (value,):
                if chosen not in allowed:
                    raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {chosen}")
        for name, (low, high) in RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be in {low:g}..{high:g}, got {getattr(self, name):g}")
        for name in ("bands", "classes"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise ValueError(f"{name} names one twice: {', '.join(getattr(self, name))}")
        if not self.bands:
            raise ValueError("bands must name at least one band")
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, got {self.lr:g}")
        if len(self.classes) == 1:
            raise ValueError(f"classes must name at least two classes, got {self.classes[0]} alone")
        if self.pairs and (self.objective != "geokr" or self.buffer):
            raise ValueError(
                "pairs are for objective geokr, whose teacher sees a view of its own, and without a buffer"
            )
        if bool(self.ema_periods) != (self.objective == "reference") or min(self.ema_periods, default=1) < 1:
            raise ValueError("ema_periods must be positive numbers, given with objective reference and no other")

    def length(self, epoch: int) -> int:
        """How many steps the run has. epoch: steps an epoch."""
        return self.steps or self.epochs * epoch

    def learning_rate(self, step: int, total: int, epoch: int) -> float:
        """The learning rate of a step, counted from 0. total, epoch: steps in the run, and in an epoch."""
        rise = self.warm_up * total
        if step < rise:
            return self.lr * (step + 1) / (rise + 1)
        if self.schedule == "step":
            return self.lr * self.decay ** (step // (epoch * self.decay_every))
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, total - rise)))


CHOICES: Mapping[str, tuple[str, ...]] = {
    "objective": ("geokr", "reference", "supervised"),
    "optimiser": ("adamw", "adam", "sgd", "lamb"),
    "schedule": ("cosine", "step"),
    "amp": ("auto", "bf16", "fp16", "fp32"),
    "loggers": ("tensorboard", "dvclive"),
    "on_error": ("raise", "skip"),
}
RANGES: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("min_known", "ramp_up", "ema", "turn", "brightness", "contrast", "saturation", "balance"), (0, 1)),
    **dict.fromkeys(("warm_up", "decay"), (0, 1)),
    **dict.fromkeys(("batch", "epochs", "image_size", "checkpoint_every", "prefetch"), (1, 2**31)),
    **dict.fromkeys(("accumulate", "decay_every"), (1, 2**31)),
    **dict.fromkeys(("steps", "validate_every", "seed", "probe", "buffer"), (0, 2**62)),
    **dict.fromkeys(("consistency", "weight_decay", "clip", "highest_loss"), (0, math.inf)),
    "crop": (0.01, 1),
    "hue": (0, 0.5),
    "rotate": (0, 180),
    "stretch": (1, 4),
}

REFERENCE = TrainConfig(
    # GlobeLand30's ten without shrubland and tundra, in the order of the published code.
    classes=("artificial", "bare", "cultivated", "forest", "grassland", "snow_ice", "water", "wetland"),
    min_known=0.0,
    model="resnet50.tv_in1k",
    pretrained="auto",
    objective="reference",
    ramp_up=0.0,
    ema=0.95,
    ema_periods=(500, 10500, 20500, 30500),
    image_size=256,
    crop=1.0,
    turn=0.5,
    contrast=0.5,
    saturation=0.5,
    hue=0.3,
    optimiser="adam",
    weight_decay=0.0,
    schedule="step",
    warm_up=0.0,
    batch=8,
)
PRESETS: Mapping[str, TrainConfig] = {"geokr": TrainConfig(), "reference": REFERENCE}


def configure(preset: str = "geokr", params: Path | None = None, pairs: Sequence[str] = ()) -> TrainConfig:
    """The settings of a run: the preset, changed by a parameter file, changed by `key=value` pairs.

    Raises ValueError with one sentence naming the source and the key: unknown, of a wrong type, out of range.
    """
    if preset not in PRESETS:
        raise ValueError(f"there is no preset {preset}, only {' and '.join(PRESETS)}")
    config = PRESETS[preset]
    if params is not None:
        config = changed(config, read_params(params), source=f"{params}, {SECTION}")
    return changed(config, dict(read_pair(pair) for pair in pairs), source="command line")


def changed(config: TrainConfig, changes: Mapping[str, Any], source: str) -> TrainConfig:
    """`config` with other values for some of its keys. Raises ValueError naming `source` and the key."""
    types = get_type_hints(TrainConfig)
    typed: dict[str, Any] = {}
    for key, value in changes.items():
        if key not in types:
            near = get_close_matches(str(key), types, n=1)
            raise ValueError(f"{source}: there is no setting {key}" + (f"; {near[0]}?" if near else ""))
        typed[key] = _typed(value, types[key], f"{source}: {key}")
    if typed.get("objective", "reference") != "reference":
        typed.setdefault("ema_periods", ())  # they belong to the objective that is being left
    try:
        return dataclasses.replace(config, **typed)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _typed(value: Any, wanted: Any, where: str) -> Any:
    """`value` as `wanted`, a type of one of TrainConfig's fields."""
    if wanted is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)  # from text too: YAML takes 1e-3, without a point, for text
        except ValueError:
            number = math.nan
        if not math.isnan(number):
            return number
    if wanted is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if wanted in (bool, bool | str) and isinstance(value, bool):
        return value
    if wanted in (str, bool | str) and isinstance(value, str):
        return value
    if wanted in (tuple[str, ...], tuple[int, ...]):
        item = wanted.__args__[0]
        parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        if item is int and not isinstance(parts, list | tuple):
            parts = [parts]
        if isinstance(parts, list | tuple):
            return tuple(
                _typed(yaml.safe_load(p) if item is int and isinstance(p, str) else p, item, where) for p in parts
            )
    names: dict[Any, str] = {
        tuple[str, ...]: "a list of names",
        tuple[int, ...]: "a list of whole numbers",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a name",
        bool | str: "true, false, auto or a path",
    }
    raise ValueError(f"{where} must be {names[wanted]}, got {value!r}")


def read_params(path: Path) -> Mapping[str, Any]:
    """The training section of a YAML file. Raises ValueError naming the file where it has none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    section = content.get(SECTION) if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise ValueError(f"{path}: there is no section `{SECTION}:` of settings in it")
    return section


def read_pair(pair: str) -> tuple[str, Any]:
    """One `key=value` of the command line; the value is read as YAML."""
    key, equals, value = pair.partition("=")
    if not equals or not key:
        raise ValueError(f"command line: expected key=value, got {pair}")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"command line: the value of {key} cannot be read: {value}") from error


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between the settings of two runs and has an effect, one phrase a setting."""
    keys = sorted((then.keys() | now.keys()) - WITHOUT_EFFECT)
    return [f"{key} {then.get(key)}, now {now.get(key)}" for key in keys if then.get(key) != now.get(key)]
