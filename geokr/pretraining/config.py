"""The settings of a training run: one strict value, from a preset, a parameter file and the command line."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, StrictBool, StrictStr, ValidationError, model_validator

from geokr.settings import ConfigError, Names, Share, Strict, explain, read_section, split_names, suggest

SECTION = "train"
"""The section of a parameter file that holds training settings; stages of the pipeline read the others."""

WITHOUT_EFFECT = frozenset(
    {"device", "compile", "channels_last", "recompute", "shard", "prefetch", "checkpoint_every", "loggers"}
)
"""Settings that a resumed run may change: they say how a run is carried out, not what it learns."""

Size = Annotated[int, Field(ge=1, lt=2**31, strict=True)]
Count = Annotated[int, Field(ge=0, lt=2**62, strict=True)]
Amount = Annotated[float, Field(ge=0)]


def split_numbers(value: Any) -> Any:
    """The numbers of `1, 2`, as a command line writes a list; any other value as it is."""
    return yaml.safe_load(f"[{value}]") if isinstance(value, str | int) else value


class TrainConfig(Strict):
    """What a run learns, from what and how. The defaults are the preset `geokr`."""

    bands: Annotated[Names, Field(min_length=1)] = ("red", "green", "blue")
    """Bands fed to the encoder, by name, in this order. Scenes that lack one are left out."""
    classes: Names = ()
    """Classes to learn; none named, all of the data set's. Shares are renormalised over those named."""
    min_known: Share = 0.5
    """Least share of a tile's area that its label covers, in 0..1."""
    where: Names = ()
    """Conditions on columns of the index that every tile must meet, such as `gsd<=4` or `satellite=GF1|GF2`."""
    weight: Names = ()
    """Columns of the index whose product is what a training tile counts for in the loss, such as `known`."""
    balance: Share = 0.0
    """0: each training tile once an epoch. 1: tiles are drawn such that the classes come with equal mass."""
    pairs: StrictBool = False
    """Learn from places of several dates alone, the student from one and the teacher from another of them."""
    shuffle_buffer: Count = 0
    """0: an epoch is one permutation. Otherwise shards are read one after the other, each once and whole, and about
    so many tiles are shuffled: for buckets and cold disks."""
    on_error: Literal["raise", "skip"] = "raise"
    """raise: a tile that cannot be read stops the run. skip: it is left out, and counted."""

    model: str = "resnet50"
    """Any name that timm knows, with or without a tag (`resnet50.tv_in1k`)."""
    pretrained: StrictBool | StrictStr = False
    """Where the encoder starts. false: at random. true: at timm's own weights, which it downloads. auto: at
    timm's own, or at random with a warning where they cannot be had. Otherwise a .safetensors or .pth file of
    timm's, of torchvision's or of this project's."""

    objective: Literal["geokr", "reference", "supervised"] = "geokr"
    """geokr: KL(A || p) + consistency * KL(p || q). reference: the loss of the paper's published code, with its
    teacher. supervised: KL(A || p), without a teacher."""
    consistency: Amount = 1.0
    """Weight of the consistency with the teacher."""
    ramp_up: Share = 0.1
    """Share of the run over which the weight of the consistency rises from near 0 to its full value."""
    ema: Share = 0.999
    """The share of itself that the teacher keeps at an update."""
    ema_periods: Annotated[tuple[Size, ...], BeforeValidator(split_numbers)] = (500, 10500, 20500, 30500)
    """For objective reference alone: the periods of its teacher's updates, in steps of 16 tiles."""

    image_size: Size = 224
    """Side of the image that the encoder sees, px."""
    crop: Annotated[float, Field(ge=0.01, le=1)] = 0.7
    """Least share of a tile's area that a view keeps, in 0..1. A label is the share over the whole tile, so it
    holds less and less for smaller views; 0.7 of a 256 px tile is 214 px, near `image_size`."""
    quarter_turn_probability: Share = 1.0
    """Probability that a view is turned by a random multiple of 90 degrees."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Greatest rotation beside that, degrees. It costs sharpness, and sensors' images have no direction that
    quarter turns leave."""
    aspect_ratio: Annotated[float, Field(ge=1, le=4)] = 1.0
    """Greatest ratio of a view's sides. Above 1, lengths on the ground differ with direction."""
    brightness: Share = 0.3
    """Views are multiplied by a number within 1 +- this."""
    contrast: Share = 0.3
    """The same for the distance from the mean."""
    saturation: Share = 0.3
    """The same for the distance from grey, of red, green and blue."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.02
    """Views' hue is turned by up to this share of the circle. Small, for hue tells water from forest."""

    optimiser: Literal["adamw", "adam", "sgd", "lamb"] = "adamw"
    """adamw, adam, sgd (momentum 0.9), or lamb for batches of thousands."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Highest learning rate."""
    weight_decay: Amount = 0.05
    """Not applied to biases and normalisation layers."""
    schedule: Literal["cosine", "step"] = "cosine"
    """What follows the warm-up. cosine: half a cosine down to 0. step: times `decay` every `decay_every` epochs."""
    warm_up: Share = 0.05
    """Share of the run over which the learning rate rises."""
    decay: Share = 0.9
    """For schedule step."""
    decay_every: Size = 1
    """For schedule step, epochs."""
    clip: Amount = 0.0
    """Greatest norm of a step's gradient, longer ones are shortened to it; 0: as it is."""
    batch: Size = 256
    """Tiles a step, over all processes together."""
    accumulate: Size = 1
    """Parts that a step's tiles are computed in, one after the other: less memory, the same step, but that batch
    normalisation sees a part at a time."""
    epochs: Size = 10
    """Passes over the training tiles."""
    steps: Count = 0
    """Length of the run in steps; 0: `epochs` decides."""
    seed: Count = 0
    """Of initialisation, order and augmentation. On a CPU the same seed gives the same weights, bit for bit."""

    validate_every: Count = 0
    """Steps between validations; 0: one an epoch. There is always one at the end."""
    checkpoint_every: Size = 500
    """Steps between checkpoints; each validation, and a stop, writes one too."""
    probe: Count = 2048
    """Training tiles by whose features validation guesses the held-out ones (k nearest neighbours); 0: none."""
    highest_loss: Amount = 100.0
    """Nats. A step whose loss is higher, or no number, stops the run and leaves its tiles in RUN/diverged."""
    amp: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """bf16, fp16 (with a scaled loss), fp32, or auto: bf16 on a GPU, fp16 on one that lacks it, fp32 elsewhere."""
    compile: StrictBool = False
    """Compile student and teacher with torch.compile: minutes at the start, faster steps."""
    channels_last: StrictBool = True
    """Pixels of all channels beside each other in memory, as convolutions on a GPU want them."""
    recompute: StrictBool = False
    """Compute a block's activations again when its gradient needs them: less memory, a third more time."""
    shard: StrictBool = False
    """Share out weights, gradients and the optimiser's state over the processes (FSDP2) instead of copying them
    to each: for a network that is too large for one GPU."""
    sync_batch_norm: StrictBool = False
    """Batch statistics over the tiles of all processes, on GPUs; otherwise over those of each."""
    device: str = "auto"
    """auto: the GPU where there is one; or a name that torch knows, such as cuda:1."""
    prefetch: Size = 4
    """Batches read ahead."""
    loggers: Annotated[tuple[Literal["tensorboard", "dvclive"], ...], BeforeValidator(split_names)] = ("tensorboard",)
    """Besides log.jsonl: tensorboard, dvclive, both or none ([])."""

    @model_validator(mode="after")
    def _sensible(self) -> "TrainConfig":
        for name in ("bands", "classes"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise ValueError(f"{name} names one twice: {', '.join(getattr(self, name))}")
        if len(self.classes) == 1:
            raise ValueError(f"classes must name at least two classes, got {self.classes[0]} alone")
        if self.pairs and self.shuffle_buffer:
            raise ValueError("pairs cannot be read with a shuffle_buffer: set it to 0")
        return self

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


REFERENCE = TrainConfig(
    # GlobeLand30's ten without shrubland and tundra, in the order of the published code.
    classes=("artificial", "bare", "cultivated", "forest", "grassland", "snow_ice", "water", "wetland"),
    min_known=0.0,
    model="resnet50.tv_in1k",
    pretrained="auto",
    objective="reference",
    ramp_up=0.0,
    ema=0.95,
    image_size=256,
    crop=1.0,
    quarter_turn_probability=0.5,
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

    Raises ConfigError with one sentence naming the source and the key: unknown, of a wrong type, out of range.
    """
    if preset not in PRESETS:
        raise ConfigError(f"there is no preset {preset}, only {' and '.join(PRESETS)}")
    config = PRESETS[preset]
    if params is not None:
        config = apply_changes(config, read_section(params, SECTION), source=f"{params}, {SECTION}")
    return apply_changes(config, dict(read_pair(pair) for pair in pairs), source="command line")


def apply_changes(config: TrainConfig, changes: Mapping[str, Any], source: str) -> TrainConfig:
    """`config` with other values for some of its keys. Raises ConfigError naming `source` and the key."""
    for key in changes:
        if key not in TrainConfig.model_fields:
            raise ConfigError(f"{source}: there is no setting {key}{suggest(str(key), TrainConfig.model_fields)}")
    try:
        return TrainConfig.model_validate({**config.model_dump(), **changes})
    except ValidationError as error:
        place, what = explain(error)
        if not place:
            raise ConfigError(f"{source}: {what}") from error
        raise ConfigError(f"{source}: {place[0]}: {what}, got {changes.get(place[0])!r}") from error


def read_pair(pair: str) -> tuple[str, Any]:
    """One `key=value` of the command line; the value is read as YAML."""
    key, equals, value = pair.partition("=")
    if not equals or not key:
        raise ConfigError(f"command line: expected key=value, got {pair}")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"command line: the value of {key} cannot be read: {value}") from error
