"""Settings are strict: what is unknown, mistyped or out of range is refused in one sentence that names it."""

from pathlib import Path

import pytest

from geokr.pretraining.config import PRESETS, REFERENCE, WITHOUT_EFFECT, TrainConfig, configure
from geokr.settings import list_differences


def test_later_sources_win(tmp_path: Path) -> None:
    params = tmp_path / "sample.yaml"
    params.write_text("tiles: {tile: 256}\ntrain:\n  batch: 32\n  lr: 1e-3\n  bands: [nir, red, green]\n")
    config = configure("geokr", params, ["batch=64", "pretrained=weights/start.pth", "ema_horizon=0.2"])
    assert config == TrainConfig().model_copy(
        update={
            "batch": 64,
            "lr": 1e-3,
            "bands": ("nir", "red", "green"),
            "pretrained": "weights/start.pth",
            "ema_horizon": 0.2,
        }
    )


@pytest.mark.parametrize(
    ("pair", "key", "value"),
    [
        ("lr=1e-4", "lr", 1e-4),
        ("lr=1", "lr", 1.0),
        ("bands=blue, green", "bands", ("blue", "green")),
        ("bands=[pan]", "bands", ("pan",)),
        ("bands=[]", "bands", ()),
        ("classes=[]", "classes", ()),
        ("pretrained=true", "pretrained", True),
        ("pretrained=auto", "pretrained", "auto"),
        ("compile=true", "compile", True),
        ("loggers=tensorboard,dvclive", "loggers", ("tensorboard", "dvclive")),
    ],
)
def test_values_are_read_by_the_type_of_their_key(pair: str, key: str, value: object) -> None:
    found = getattr(configure(overrides=[pair]), key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("batchs=3", "command line: there is no setting batchs; batch?"),
        ("batch=many", "command line: batch: Input should be a valid integer, got 'many'"),
        ("batch=1.5", "command line: batch: Input should be a valid integer, got 1.5"),
        ("batch=true", "command line: batch: Input should not be true or false, got True"),
        ("batch=0", "command line: batch: Input should be greater than or equal to 1, got 0"),
        ("lr=fast", "command line: lr: Input should be a valid number"),
        ("lr=true", "command line: lr: Input should not be true or false, got True"),
        ("lr=.nan", "command line: lr: Input should be greater than 0, got nan"),
        ("lr=0", "command line: lr: Input should be greater than 0, got 0"),
        ("compile=1", "command line: compile: Input should be a valid boolean, got 1"),
        ("crop=2", "command line: crop: Input should be less than or equal to 1, got 2"),
        ("objective=kl", "command line: objective: Input should be 'geokr', 'reference', .* or .*, got 'kl'"),
        ("ema_periods=0", "command line: ema_periods: Input should be greater than or equal to 1, got 0"),
        ("bands=[1, 2]", r"command line: bands: Input should be a valid string, got \[1, 2\]"),
        ("bands=red,,nir", "command line: bands: String should have at least 1 character"),
        ("ema_periods=[]", "command line: ema_periods: "),
        ("ema_periods='1, ['", "command line: ema_periods: expected numbers"),
        ("bands=red,red", "command line: bands must not repeat a name, got red, red"),
        ("classes=water", "command line: classes must name at least two classes"),
        ("coarsest=16", "command line: coarsest limits zoom: set zoom above 1"),
        (
            "loggers=comet",
            "command line: loggers: Input should be 'tensorboard', 'dvclive', 'wandb' or 'mlflow', got 'comet'",
        ),
        (
            "pairs=true shuffle_buffer=8",
            "command line: pairs cannot be read with a shuffle_buffer: set shuffle_buffer to 0",
        ),
        ("batch", "command line: expected key=value, got batch"),
        ("batch={", "command line: the value of batch cannot be read: {"),
    ],
)
def test_what_is_wrong_is_refused_by_name(pair: str, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message.replace("{", r"\{")) as caught:
        configure(overrides=pair.split(" ") if "=" in pair.partition(" ")[2] else [pair])
    assert "\n" not in str(caught.value)


def test_parameter_files_that_are_wrong(tmp_path: Path) -> None:
    params = tmp_path / "p.yaml"
    params.write_text("tiles: {}\n")
    with pytest.raises(ValueError, match=r"p\.yaml: there is no section `train`"):
        configure(params=params)
    params.write_text("train: {depth: 3}\n")
    with pytest.raises(ValueError, match=r"p\.yaml, train: there is no setting depth"):
        configure(params=params)
    params.write_text("train: [\n")
    with pytest.raises(ValueError, match=r"p\.yaml: cannot be read as YAML"):
        configure(params=params)
    with pytest.raises(ValueError, match="there is no preset best, only geokr and reference"):
        configure("best")


def test_the_reference_preset_is_the_published_recipe() -> None:
    assert len(REFERENCE.classes) == 8
    assert not {"shrubland", "tundra"} & set(REFERENCE.classes)
    rates = [REFERENCE.learning_rate(step, total=1000, steps_per_epoch=100) for step in (0, 99, 100, 999)]
    assert rates == pytest.approx([1e-3, 1e-3, 0.9e-3, 1e-3 * 0.9**9])


def test_steps_follow_the_warm_up() -> None:
    config = TrainConfig().model_copy(
        update={"schedule": "step", "lr": 1.0, "warm_up": 0.1, "decay": 0.1, "decay_every": 3}
    )
    rates = [config.learning_rate(step, total=100, steps_per_epoch=10) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert [rates[step] for step in (10, 29, 30, 59, 60)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_the_cosine_rises_then_falls_to_nothing() -> None:
    config = TrainConfig(lr=1.0, warm_up=0.1)
    rates = [config.learning_rate(step, total=100, steps_per_epoch=7) for step in range(101)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10] == max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)


def test_differences_that_matter_are_named() -> None:
    then = PRESETS["geokr"].model_dump()
    now = {**then, "lr": 0.5, "device": "cpu", "prefetch": 9}
    assert list_differences(then, now, WITHOUT_EFFECT) == ["lr 0.001, now 0.5"]
    free = {"device", "compile", "channels_last", "recompute", "shard", "prefetch", "loggers"}
    free |= {"checkpoint_minutes", "keep_checkpoints"}
    for name, value in then.items():  # what decides what is learnt is told, all of it
        assert bool(list_differences(then, {**then, name: (value, "other")}, WITHOUT_EFFECT)) == (name not in free)


def test_a_run_is_as_long_as_its_epochs_unless_steps_say_otherwise() -> None:
    assert TrainConfig(epochs=3).length(7) == 21
    assert TrainConfig(epochs=3, steps=5).length(7) == 5
