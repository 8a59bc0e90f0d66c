"""Settings that keep what the encoder knew at its start."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from geokr import export, train
from geokr.loading.loader import Batch, TileLoader
from geokr.loading.selection import Selection
from geokr.pretraining.checkpoint import LAST, load
from geokr.pretraining.config import TrainConfig, configure
from geokr.pretraining.facts import gather_facts
from geokr.pretraining.learner import Learner, compute_losses, create_learner, train_step
from geokr.pretraining.processes import Process
from geokr.pretraining.validation import validate

ALONE = Process(0, 1, torch.device("cpu"))
SMALL = ["image_size=32", "batch=32", "loggers=[]", "bands=red,green,blue"]
ALL = ["start_pull=0.5", "distil=1", "head_warm_up=0.3", "start_statistics=true", "interpolate=[0, 0.5, 1]", "probe=64"]


@pytest.fixture(scope="module")
def start(coloured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder file of a short run."""
    run = tmp_path_factory.mktemp("start")
    settings = ["model=test_resnet", "objective=supervised", "steps=4", "probe=0", *SMALL]
    assert train.main(["--data", str(coloured), "--out", str(run), *settings]) == 0
    return run / "encoder.safetensors"


def learner_of(dataset: Path, *settings: str) -> Learner:
    config = configure("geokr", None, ["model=test_resnet", *SMALL, "objective=supervised", "steps=4", *settings])
    training = TileLoader(dataset, Selection("train"), batch=32)
    held_out = TileLoader(dataset, Selection("val"), batch=32, shuffle=False)
    return create_learner(config, ALONE, training, held_out, gather_facts(training, held_out))


def encoder_of(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learner.student.get_submodule("encoder").state_dict().items()}


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_weights_are_pulled_to_the_start_by_the_learning_rate(coloured: Path, start: Path, optimiser: str) -> None:
    common = [f"pretrained={start}", f"optimiser={optimiser}", "lr=0.01", "warm_up=0", "weight_decay=0"]
    free, pulled = learner_of(coloured, *common), learner_of(coloured, *common, "start_pull=20")
    before = encoder_of(free)
    batch = next(iter(free.training))
    for learner in (free, pulled):
        train_step(learner, batch)
    after = encoder_of(pulled)
    for name, value in encoder_of(free).items():
        if "running" in name or "num_batches" in name:
            assert torch.equal(after[name], value), name
        else:
            assert torch.allclose(after[name], value + 0.01 * 20 * (before[name] - value), atol=1e-7), name
    assert torch.equal(*(learner.student.get_parameter("head.weight") for learner in (free, pulled)))


def test_a_pulled_encoder_does_not_decay_to_nothing(coloured: Path, start: Path) -> None:
    learner = learner_of(coloured, f"pretrained={start}", "start_pull=1", "weight_decay=0.3")
    decays = {
        group["encoder"]: group["weight_decay"] for group in learner.optimiser.param_groups if group["weight_decay"]
    }
    assert decays == {False: 0.3}


@pytest.mark.parametrize("objective", ["supervised", "simclr", "geokr"])
def test_features_of_the_same_views_are_compared_with_the_start(coloured: Path, start: Path, objective: str) -> None:
    settings = [f"pretrained={start}", f"objective={objective}", "start_statistics=true"]
    plain, kept = (learner_of(coloured, *settings, f"distil={weight}") for weight in (0, 3))
    batch = next(iter(plain.training))
    for learner in (plain, kept):
        train_step(learner, batch)
    assert torch.allclose(plain.recent_losses[0], kept.recent_losses[0])  # where it starts, there is no distance
    losses = [float(loss) for loss in (train_loss(plain, batch), train_loss(kept, batch))]
    # The distance has no gradient there, either: both did the same step.
    views = [0] if objective in ("supervised", "geokr") else [0, 1]
    part = kept.part(batch, 0)
    student, before = kept.student.get_submodule("encoder"), kept.networks["start"]
    with torch.no_grad():
        distances = []
        for stream in views:
            one, other = (network(part.view(stream)).double() for network in (student, before))
            distances.append(1 - (one * other).sum(1) / one.norm(dim=1) / other.norm(dim=1))
    distance = float(torch.stack(distances).mean())
    assert distance > 1e-6
    assert losses[1] - losses[0] == pytest.approx(3 * distance, rel=0.02)


def train_loss(learner: Learner, batch: Batch) -> torch.Tensor:
    return compute_losses(learner, batch, 0)[:, 0].detach().mean()


def test_only_the_head_learns_at_first(coloured: Path, start: Path) -> None:
    learner = learner_of(coloured, f"pretrained={start}", "head_warm_up=0.5", "start_statistics=true")
    before, head = encoder_of(learner), learner.student.get_parameter("head.weight").clone()
    for number, batch in enumerate(learner.training):
        train_step(learner, batch)
        same = all(torch.equal(value, before[name]) for name, value in encoder_of(learner).items())
        assert same == (number < 2)
        if number == 2:
            break
    assert not torch.equal(head, learner.student.get_parameter("head.weight"))


def test_the_encoder_begins_its_schedule_when_it_begins_to_learn() -> None:
    config = TrainConfig(pretrained=True, head_warm_up=0.2, lr=1.0)
    pairs = [config.learning_rates(step, 100, 10) for step in range(100)]
    assert [encoder for encoder, _ in pairs[:20]] == [0.0] * 20
    assert [encoder for encoder, _ in pairs[20:]] == [config.learning_rate(step, 80, 10) for step in range(80)]
    assert [head for _, head in pairs] == [config.learning_rate(step, 100, 10) for step in range(100)]


def test_statistics_of_the_start_stay_and_are_used(coloured: Path, start: Path) -> None:
    learner = learner_of(coloured, f"pretrained={start}", "start_statistics=true", "probe=0")
    before = encoder_of(learner)
    batch = next(iter(learner.training))
    for _ in range(2):
        train_step(learner, batch)
        validate(learner)  # must not switch them on again
        learner.logged_steps = learner.step
    after = encoder_of(learner)
    assert all(torch.equal(after[name], before[name]) for name in before if "running" in name)
    assert not torch.equal(after["conv1.0.weight"], before["conv1.0.weight"])
    image = learner.part(batch, 0).view(0)
    assert learner.student.training
    assert torch.allclose(learner.student(image)[0][:5], learner.student(image[:5])[0], atol=1e-5)


def test_the_best_mixture_of_start_and_end_is_exported(coloured: Path, start: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ["model=test_resnet", f"pretrained={start}", "steps=6", *SMALL, "interpolate=[0, 0.25, 1]", "probe=64"]
    assert train.main(["--data", str(coloured), "--out", str(run), *settings]) == 0
    metrics, last = json.loads((run / "metrics.json").read_text()), load(run / LAST)
    errors = {float(share): error for share, error in metrics["knn_mae_of_end_share"].items()}
    assert errors.keys() == {0.0, 0.25, 1.0}
    assert errors[1.0] == pytest.approx(metrics["val_knn_mae"], abs=1e-6)
    share = metrics["end_share"]
    assert errors[share] == min(errors.values())
    assert last.end_share == share
    first = load_file(start)
    for other in (share, 0.25):
        export.export(replace(last, end_share=other), tmp_path / "encoder.safetensors")
        for name, value in load_file(tmp_path / "encoder.safetensors").items():
            end = last.networks["teacher"][f"encoder.{name}"]
            expected = first[name] + other * (end - first[name]) if value.is_floating_point() else end
            assert torch.allclose(value, expected, atol=1e-6), name
    export.export(last, tmp_path / "encoder.safetensors")
    assert (tmp_path / "encoder.safetensors").read_bytes() == (run / "encoder.safetensors").read_bytes()
    assert export.main([str(run), "--out", str(tmp_path / "out")]) == 0
    assert ("of those at the start" in (tmp_path / "out/README.md").read_text()) == (share != 1)


@pytest.mark.parametrize("objective", ["geokr", "moco"])
def test_stopping_changes_nothing(
    coloured: Path, start: Path, tmp_path: Path, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["--data", str(coloured), "model=test_resnet", f"pretrained={start}", f"objective={objective}"]
    common += ["steps=6", "queue=64", *SMALL, *ALL]
    assert train.main([*common, "--out", str(tmp_path / "whole")]) == 0

    def interrupted(learner: Learner, batch: Batch) -> None:
        train_step(learner, batch)
        if learner.step == 3:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", interrupted)
        assert train.main([*common, "--out", str(tmp_path / "parts")]) == 128 + signal.SIGTERM
    assert train.main([*common, "--out", str(tmp_path / "parts")]) == 0
    whole, parts = (load(tmp_path / run / LAST) for run in ("whole", "parts"))
    assert whole.networks.keys() == parts.networks.keys() >= {"student", "teacher", "start"}
    for name, weights in whole.networks.items():
        assert all(torch.equal(value, parts.networks[name][key]) for key, value in weights.items()), name
    for name in ("encoder.safetensors", "metrics.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name


@pytest.mark.parametrize("setting", ALL[:5])
def test_there_must_be_something_to_keep(setting: str) -> None:
    with pytest.raises(ValueError, match="keeps what the encoder starts from: set pretrained"):
        configure("geokr", None, [setting])


def has_fixed_statistics(learner: Learner) -> bool:
    norms = [module for module in learner.student.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len({module.training for module in norms}) == 1
    return not norms[0].training


@pytest.mark.parametrize(
    ("settings", "distil", "fixed"),
    [
        (["pretrained=START"], 1.0, True),
        (["pretrained=START", "objective=supervised"], 1.0, True),
        (["pretrained=START", "objective=simclr"], 0.0, False),
        (["pretrained=START", "objective=reference"], 0.0, False),
        (["pretrained=START", "distil=0", "start_statistics=false"], 0.0, False),
        (["pretrained=START", "objective=simclr", "distil=2", "start_statistics=true"], 2.0, True),
        ([], 0.0, False),
    ],
)
def test_what_starts_from_weights_and_learns_shares_keeps_what_it_knows(
    coloured: Path, start: Path, settings: list[str], distil: float, fixed: bool
) -> None:
    learner = learner_of(coloured, *(text.replace("START", str(start)) for text in settings))
    assert learner.distil == distil
    assert has_fixed_statistics(learner) == fixed
    assert ("start" in learner.networks) == (distil > 0)


@pytest.mark.usefixtures("offline")
def test_a_start_that_could_not_be_downloaded_is_not_kept(coloured: Path) -> None:
    learner = learner_of(coloured, "pretrained=auto")
    assert learner.start == "random weights"
    assert learner.distil == 0
    assert not has_fixed_statistics(learner)
