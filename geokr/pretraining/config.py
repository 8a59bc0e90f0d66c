"""The settings of a training run, strictly validated, from a preset, a parameter file and the command line."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictStr, model_validator

from geokr.settings import (
    ConfigError,
    Names,
    Share,
    Strict,
    apply_changes,
    read_pair,
    read_section,
    split_names,
    split_numbers,
)

SECTION = "train"
"""Section of a parameter file with the training settings. The pipeline stages read the other sections."""

WITHOUT_EFFECT = frozenset(
    {
        "device",
        "compile",
        "channels_last",
        "recompute",
        "shard",
        "prefetch",
        "checkpoint_minutes",
        "keep_checkpoints",
        "loggers",
    }
)
"""Settings that may change when a run is resumed: they affect how a run is computed, not what it learns."""

Size = Annotated[int, Field(ge=1, lt=2**31, strict=True)]
Count = Annotated[int, Field(ge=0, lt=2**62, strict=True)]
Amount = Annotated[float, Field(ge=0)]


class TrainConfig(Strict):
    """All settings of a run. The defaults are the preset `geokr`."""

    bands: Names = ()
    """Names of the input bands of the encoder, in this order. Scenes that lack one are left out. If empty: red, green
    and blue or, if no scene has them, the bands that all scenes have."""
    classes: Names = ()
    """Classes to learn; all classes of the data set if empty. Shares are renormalised over these classes, and what lies
    under other classes counts as unknown."""
    min_known: Share = 0.5
    """Minimum share of a tile's area that its label covers with the classes to learn, in 0..1."""
    where: Names = ()
    """Conditions on columns of the index that all tiles must meet, such as `gsd<=4` or `satellite=GF1|GF2`."""
    weight: Names = ()
    """Columns of the index whose product is the weight of a training tile in the loss, such as `known`."""
    balance: Share = 0.0
    """0: each training tile once per epoch. 1: tiles are drawn so that the classes have equal mass."""
    mixture: Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(split_numbers)] = ()
    """With several data sets: shares of the training tiles that each gives, relative to each other, in the order of
    --data. Tiles are then drawn, some several times, and `balance` is within each data set. Empty: by number of tiles.
    """
    pairs: StrictBool = False
    """Use only places with several dates. The student sees one date, the teacher another."""
    grid: Literal[1, 2, 4, 8] = 1
    """Parts along a side of a tile of which labels are read. Above 1, the label of a view is that of what it shows, and
    objective parts learns the parts. The label set must have them; they take grid * grid bytes a tile and class."""
    shuffle_buffer: Count = 0
    """0: an epoch is a random permutation. Otherwise shards are read one after the other, each once and in one piece,
    and tiles are shuffled over about this many. For buckets and cold disks."""
    on_error: Literal["raise", "skip"] = "raise"
    """raise: a tile that cannot be read stops the run. skip: it is left out and counted."""

    model: str = "resnet50"
    """Any name that timm knows, with or without a tag (`resnet50.tv_in1k`)."""
    pretrained: StrictBool | StrictStr = False
    """Weights that the encoder starts from. false: random weights. true: timm's weights, which are downloaded. auto:
    timm's weights, or random weights with a warning if the download fails. Otherwise a .safetensors or .pth file
    with weights of timm, torchvision or this project."""

    objective: Literal[
        "geokr", "reference", "supervised", "simclr", "moco", "byol", "mae", "softcon", "geco", "parts"
    ] = "geokr"
    """geokr: KL(A || p) + consistency * KL(p || q). reference: the loss of the paper's published code, with its
    teacher. supervised: KL(A || p), without a teacher. simclr, moco, byol, mae: without labels. softcon: like simclr,
    but tiles of similar labels have similar features. geco: KL(A T || p), with learnt matrices T that correct labels.
    parts: as geokr, plus part_weight times the mean of the same over the parts of `grid`. Views are settings of their
    own: see the presets."""
    consistency: Amount = 1.0
    """Weight of the consistency with the teacher in the loss."""
    part_weight: Amount = 1.0
    """Objective parts only: weight of the parts in the loss."""
    ramp_up: Share = 0.1
    """Share of the run over which the weight of the consistency rises from almost 0 to its full value."""
    ema_horizon: Share = 0.1
    """Objective geokr only: share of the steps so far that the teacher averages over. It does not depend on the length
    of the run or the batch. 0: the teacher is the student. 1: the mean of all students, the random start included."""
    ema_decay: Share = 0.95
    """Objective reference only: the share of its own weights that the teacher keeps at an update."""
    ema_periods: Annotated[tuple[Size, ...], Field(min_length=1), BeforeValidator(split_numbers)] = (
        500,
        10500,
        20500,
        30500,
    )
    """Objective reference only: periods of the teacher updates, in steps of 16 tiles."""

    temperature: Annotated[float, Field(gt=0)] = 0.1
    """Objectives simclr, softcon and moco: what cosines are divided by. The smaller, the more the most similar tiles
    count."""
    queue: Size = 4096
    """Objective moco: number of tiles of earlier steps that a tile is compared with."""
    momentum: Share = 0.996
    """Objectives moco and byol: share of its own weights that the momentum network keeps at the first step; rises to 1
    over the run by half a cosine. Lower for a run of a few hundred steps, in which it would not leave the start."""
    correction: Amount = 1.0
    """Objective geco: weight of the penalty on the correction of labels. 0 lets labels become what is easily learnt."""
    mask: Annotated[float, Field(gt=0, lt=1)] = 0.75
    """Objective mae: share of the patches that the encoder does not see."""
    normalise_patches: bool = False
    """Objective mae: predict the pixels of a patch relative to their mean and spread in the patch, as published for
    photographs. Colours of patches, which tell land cover, then count for nothing."""

    image_size: Size = 224
    """Side of the input image of the encoder, px."""
    crop: Annotated[float, Field(ge=0.01, le=1)] = 0.7
    """Minimum share of a tile's area that a view covers, in 0..1. Without a `grid`, labels are shares of the whole
    tile: the smaller the view, the less they apply to it. 0.7 of a 256 px tile is 214 px, close to `image_size`."""
    quarter_turn_probability: Share = 1.0
    """Probability that a view is rotated by a random multiple of 90 degrees."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Maximum additional rotation, degrees. It costs sharpness, and satellite images have no preferred direction that
    would remain after quarter turns."""
    aspect_ratio: Annotated[float, Field(ge=1, le=4)] = 1.0
    """Maximum ratio of a view's sides. Above 1, the ground distance per pixel depends on the direction."""
    zoom: Annotated[float, Field(ge=1, le=8)] = 1.0
    """Views have up to this many times the ground distance of their tile, uniform in the logarithm, so that an encoder
    knows other resolutions. Beyond its edges, such a view shows the tile mirrored, and keeps its label."""
    coarsest: Amount = 0.0
    """Ground distance beyond which `zoom` takes no tile, m: that of the coarsest scenes, if they have several. 0: no
    limit."""
    brightness: Share = 0.3
    """Views are multiplied by a random factor within 1 +- this value."""
    contrast: Share = 0.3
    """The same for the difference from the mean."""
    saturation: Share = 0.3
    """The same for the difference of red, green and blue from grey."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.02
    """The hue is shifted by up to this share of the full circle. Small, since hue separates water from forest."""
    grey: Share = 0.0
    """Probability that a view has no colour: each of its bands shows the mean of all bands."""
    blur: Share = 0.0
    """Probability that a view is blurred, by a Gaussian with a standard deviation of 0.1 to 2 px of 224."""

    start_pull: Amount = 0.0
    """Weight of a penalty on the encoder's distance from its start (L2-SP), in place of its `weight_decay`."""
    distil: Amount | None = None
    """Weight of 1 - cosine of the features of the encoder and of its start for the same views, in the loss. If empty:
    1 for an encoder that starts from weights and learns class shares (geokr, supervised, parts, geco), otherwise 0."""
    head_warm_up: Share = 0.0
    """Share of the run at its beginning in which only what is on top of the encoder learns."""
    start_statistics: StrictBool | None = None
    """Let the encoder's batch normalisation keep the statistics of its start, in training, too. If empty: in the same
    cases as `distil`."""
    interpolate: Annotated[tuple[Share, ...], BeforeValidator(split_numbers)] = ()
    """Shares of the end to try for the exported encoder, the rest being its start, weight by weight. The one with the
    smallest error of the k-nearest-neighbour prediction of held-out tiles is exported. Empty: the end."""

    optimiser: Literal["adamw", "adam", "sgd", "lamb"] = "adamw"
    """adamw, adam, sgd (momentum 0.9), or lamb for batches of thousands."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Maximum learning rate."""
    weight_decay: Amount = 0.05
    """Weight decay; not applied to biases, normalisation layers, and what else timm exempts in a network, such as
    position embeddings, class tokens and tables of relative positions."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Ratio of the learning rates of a layer and of the one above it, from the output down. Below 1 for transformers
    that start from weights, such as 0.75."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability with which the last residual block is left out for a tile (stochastic depth); rises from 0 at the
    first block. For transformers and deep networks, such as 0.1."""
    schedule: Literal["cosine", "step"] = "cosine"
    """After the warm-up. cosine: half a cosine down to 0. step: times `decay` every `decay_every` epochs."""
    warm_up: Share = 0.05
    """Share of the run over which the learning rate rises."""
    decay: Share = 0.9
    """Schedule step only: factor of the learning rate."""
    decay_every: Size = 1
    """Schedule step only: epochs between changes of the learning rate."""
    clip: Amount = 0.0
    """Maximum norm of the gradient of a step, to which larger gradients are scaled down; 0: no clipping."""
    batch: Size = 256
    """Tiles per step, over all processes. Fewer if there are not so many training tiles."""
    accumulate: Size = 1
    """Number of parts in which the tiles of a step are computed, one after the other. Needs less memory for the same
    step, except that batch normalisation sees one part at a time."""
    epochs: Size = 10
    """Number of passes over the training tiles."""
    steps: Count = 0
    """Length of the run in steps; 0: `epochs` decides the length."""
    seed: Count = 0
    """Seed of initialisation, order and augmentation. On a CPU the same seed gives the same weights, bit for bit."""

    validate_every: Count = 0
    """Steps between validations; 0: one validation per epoch. The run always ends with one."""
    checkpoint_minutes: Amount = 10.0
    """Minutes between checkpoints. One is also written at each validation and when the run is stopped. Steps go on
    while it is written."""
    keep_checkpoints: Size = 1
    """Number of last checkpoints to keep: last.pt and, above 1, these by step in RUN/checkpoints."""
    probe: Count = 2048
    """Number of training tiles for the k-nearest-neighbour prediction of the held-out tiles in validation; 0: none."""
    highest_loss: Amount = 100.0
    """Nats. A loss that is higher, or not a number, stops the run; the tiles of the step are kept in RUN/diverged."""
    amp: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """bf16, fp16 (with a scaled loss), fp32, or auto: bf16 on a GPU, fp16 on a GPU without bf16, fp32 otherwise."""
    compile: StrictBool = False
    """Compile student and teacher with torch.compile: takes minutes at the start, then steps are faster."""
    channels_last: StrictBool = True
    """Store the channels of a pixel next to each other in memory, as convolutions on a GPU prefer."""
    recompute: StrictBool = False
    """Compute the activations of a block again for its gradient: less memory, a third more time."""
    shard: StrictBool = False
    """Shard weights, gradients and optimiser state over the processes (FSDP2) instead of replicating them, for a
    network that is too large for one GPU."""
    sync_batch_norm: StrictBool = False
    """Compute batch statistics over the tiles of all processes instead of each process alone; needs GPUs."""
    device: str = "auto"
    """auto: the GPU if there is one. Otherwise a device name of torch, such as cuda:1."""
    prefetch: Size = 4
    """Number of batches to read ahead."""
    loggers: Annotated[
        tuple[Literal["tensorboard", "dvclive", "wandb", "mlflow"], ...], BeforeValidator(split_names)
    ] = ("tensorboard",)
    """Logs to write in addition to log.jsonl: tensorboard, dvclive, wandb, mlflow, or none ([])."""

    @model_validator(mode="after")
    def _check_consistency(self) -> "TrainConfig":
        for name in ("bands", "classes"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise ValueError(f"{name} must not repeat a name, got {', '.join(getattr(self, name))}")
        if len(self.classes) == 1:
            raise ValueError(f"classes must name at least two classes, got only {self.classes[0]}")
        if self.pairs and self.shuffle_buffer:
            raise ValueError("pairs cannot be read with a shuffle_buffer: set shuffle_buffer to 0")
        if self.coarsest and self.zoom == 1:
            raise ValueError("coarsest limits zoom: set zoom above 1")
        kept = ("start_pull", "distil", "head_warm_up", "start_statistics", "interpolate")
        if self.pretrained is False and (used := [name for name in kept if getattr(self, name)]):
            raise ValueError(f"{used[0]} keeps what the encoder starts from: set pretrained")
        if self.interpolate and not self.probe:
            raise ValueError("interpolate chooses by the k-nearest-neighbour prediction: set probe")
        return self

    def length(self, epoch: int) -> int:
        """Number of steps of the run. epoch: steps per epoch."""
        return self.steps or self.epochs * epoch

    def learning_rates(self, step: int, total: int, steps_per_epoch: int) -> tuple[float, float]:
        """Learning rates of the encoder, whose schedule begins after `head_warm_up`, and of what is on top of it."""
        head = self.learning_rate(step, total, steps_per_epoch)
        held = round(self.head_warm_up * total)
        return 0.0 if step < held else self.learning_rate(step - held, total - held, steps_per_epoch), head

    def learning_rate(self, step: int, total: int, steps_per_epoch: int) -> float:
        """Learning rate of a step, counted from 0. total: number of steps in the run."""
        rise = self.warm_up * total
        if step < rise:
            return self.lr * (step + 1) / (rise + 1)
        if self.schedule == "step":
            return self.lr * self.decay ** (step // (steps_per_epoch * self.decay_every))
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, total - rise)))


REFERENCE = TrainConfig(
    # The ten classes of GlobeLand30 without shrubland and tundra, in the order of the published code.
    classes=("artificial", "bare", "cultivated", "forest", "grassland", "snow_ice", "water", "wetland"),
    min_known=0.0,
    model="resnet50.tv_in1k",
    pretrained="auto",
    objective="reference",
    ramp_up=0.0,
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
VIEWS_ALONE: Mapping[str, Any] = {
    # Of objectives that compare views: small crops, and neither colour nor sharpness that gives a tile away. Quarter
    # turns stay, and hue is shifted by half as much as published for photographs, where no band means water.
    "crop": 0.2,
    "aspect_ratio": 4 / 3,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.05,
    "grey": 0.2,
    "blur": 0.5,
}
PRESETS: Mapping[str, TrainConfig] = {
    "geokr": TrainConfig(),
    "reference": REFERENCE,
    "parts": TrainConfig(objective="parts", grid=4),
    "simclr": TrainConfig(objective="simclr", **VIEWS_ALONE),
    "moco": TrainConfig(objective="moco", temperature=0.2, **VIEWS_ALONE),
    "byol": TrainConfig(objective="byol", **VIEWS_ALONE),
    "softcon": TrainConfig(objective="softcon", **VIEWS_ALONE),
    "geco": TrainConfig(objective="geco", consistency=0.0),
    "mae": TrainConfig(
        objective="mae",
        model="vit_small_patch16_224",
        crop=0.2,
        aspect_ratio=4 / 3,
        brightness=0.0,
        contrast=0.0,
        saturation=0.0,
        hue=0.0,
    ),
}


def configure(preset: str = "geokr", params: Path | None = None, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read the settings of a run: a preset, overridden by a parameter file, overridden by `key=value` pairs.

    Raises ConfigError with one sentence naming the source and the key if it is unknown, or if its value has the wrong
    type or is out of range.
    """
    if preset not in PRESETS:
        raise ConfigError(f"there is no preset {preset}, only {' and '.join(PRESETS)}")
    config = PRESETS[preset]
    if params is not None:
        config = apply_changes(config, read_section(params, SECTION), source=f"{params}, {SECTION}")
    return apply_changes(config, dict(read_pair(pair) for pair in overrides), source="command line")
