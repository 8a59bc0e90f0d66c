"""Each weight is moved as the recipe of its network says: which decay, how fast a layer learns, what is left out."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from geokr import train
from geokr.loading.loader import TileLoader
from geokr.loading.selection import Selection
from geokr.pretraining.classifier import build_classifier
from geokr.pretraining.config import configure
from geokr.pretraining.facts import gather_facts
from geokr.pretraining.learner import Learner, create_learner, train_step
from geokr.pretraining.optimiser import make_optimiser, set_learning_rate
from geokr.pretraining.processes import Process

ALONE = Process(0, 1, torch.device("cpu"))


def groups_of(*settings: str) -> dict[str, dict[str, Any]]:
    """Name of each parameter -> the group that it is in."""
    config = configure(overrides=["bands=red,green,blue", *settings])
    student, _ = build_classifier(config.model, config.bands, 4, config.image_size, False, config.drop_path)
    names = {parameter: name for name, parameter in student.named_parameters()}
    groups = make_optimiser(student, config).param_groups
    found = {names[parameter]: group for group in groups for parameter in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups) == len(names)  # each once
    return found


def learner_of(dataset: Path, *settings: str) -> Learner:
    config = configure(
        overrides=[
            "bands=red,green,blue",
            "model=test_vit",
            "image_size=32",
            "batch=32",
            "steps=9",
            "warm_up=0",
            *settings,
        ]
    )
    training = TileLoader(dataset, Selection("train"), batch=32)
    held_out = TileLoader(dataset, Selection("val"), batch=32, shuffle=False)
    return create_learner(config, ALONE, training, held_out, gather_facts(training, held_out))


@pytest.mark.parametrize(
    ("model", "size", "exempt"),
    [
        ("test_vit", 32, {"pos_embed", "cls_token"}),
        ("swin_tiny_patch4_window7_224", 224, {"relative_position_bias_table"}),
        ("test_resnet", 32, set()),
    ],
)
@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_what_gives_places_their_names_does_not_decay(
    model: str, size: int, exempt: set[str], layer_decay: float
) -> None:
    with torch.device("meta"):
        groups = groups_of(f"model={model}", f"image_size={size}", f"layer_decay={layer_decay}", "weight_decay=0.3")
        student, _ = build_classifier(model, ("red", "green", "blue"), 4, size, False)
    shapes = {name: parameter.ndim for name, parameter in student.named_parameters()}
    still = {name for name, group in groups.items() if group["weight_decay"] == 0}
    assert still == {name for name, ndim in shapes.items() if ndim <= 1 or name.rpartition(".")[2] in exempt}
    assert {group["weight_decay"] for name, group in groups.items() if name not in still} == {0.3}


def test_a_layer_learns_at_a_share_of_the_rate_of_the_one_above_it() -> None:
    config = configure(overrides=["bands=red,green,blue", "model=test_vit", "image_size=32", "layer_decay=0.5"])
    student, _ = build_classifier("test_vit", config.bands, 4, 32, False)
    optimiser = make_optimiser(student, config)
    set_learning_rate(optimiser, 0.8, 0.8)
    rates = {parameter: group["lr"] for group in optimiser.param_groups for parameter in group["params"]}
    names = dict(student.named_parameters())
    blocks = len(student.encoder.blocks)  # type: ignore[arg-type]
    assert blocks >= 2
    found = [rates[names[f"encoder.blocks.{number}.mlp.fc1.weight"]] for number in range(blocks)]
    assert found == pytest.approx([0.8 * 0.5 ** (blocks - number) for number in range(blocks)])
    assert rates[names["encoder.patch_embed.proj.weight"]] == pytest.approx(0.8 * 0.5 ** (blocks + 1))
    assert rates[names["head.weight"]] == rates[names["head.bias"]] == 0.8


def test_blocks_are_left_out_for_some_tiles_in_training_alone(coloured: Path) -> None:
    learner = learner_of(coloured, "drop_path=0.9")
    image = torch.rand(64, 3, 32, 32)
    torch.manual_seed(0)
    first, second = (learner.student.train()(image)[1].detach() for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(*(learner.objective.networks["teacher"](image)[1] for _ in range(2)))


def test_a_network_without_stochastic_depth_says_so(
    coloured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--data", str(coloured), "--out", str(tmp_path), "model=vgg11", "image_size=32", "batch=32", "loggers=[]"]
    assert train.main([*line, "drop_path=0.1"]) == 2
    assert capsys.readouterr().err == "error: vgg11 has no stochastic depth: set drop_path to 0\n"


def test_a_network_that_cannot_compute_its_activations_again_says_so(
    coloured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--data", str(coloured), "--out", str(tmp_path), "model=vgg11", "image_size=32", "batch=32", "loggers=[]"]
    assert train.main([*line, "recompute=true"]) == 2
    assert capsys.readouterr().err == "error: vgg11 cannot compute its activations again: set recompute to false\n"


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_lamb_shortens_a_gradient_only_if_asked(coloured: Path, clip: float) -> None:
    """The first moment after a step is a tenth of the gradient, whatever its length."""
    learner = learner_of(coloured, "optimiser=lamb", "objective=supervised", "highest_loss=1e9", f"clip={clip}")
    for parameter in learner.student.parameters():
        parameter.register_hook(lambda gradient: 1e3 * gradient)
    for batch in islice(learner.training, 1):
        train_step(learner, batch)
    gradient = torch.cat([parameter.grad.flatten() for parameter in learner.student.parameters()])
    assert float(gradient.norm()) == pytest.approx(clip, rel=1e-3) if clip else float(gradient.norm()) > 100
    states = learner.optimiser.state.values()
    moment = torch.cat([state["exp_avg"].flatten() for state in states])
    assert float(moment.norm()) == pytest.approx(0.1 * float(gradient.norm()), rel=1e-3)
