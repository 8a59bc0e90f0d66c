"""Processes start alike, whatever each can reach; a sharded network is gathered in the type that it computes in."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from geokr.pretraining.checkpoint import LAST, load
from tests.ranks import start_ranks, wait_for_ranks

SETTINGS = ["image_size=32", "batch=32", "steps=2", "loggers=[]", "probe=0", "bands=red,green,blue"]

RANK = """
import sys
from pathlib import Path
import timm
import torch
from geokr import train
from geokr.encoder import build_encoder
from geokr.pretraining import classifier
from geokr.pretraining.config import configure
from geokr.pretraining.processes import process_group
from safetensors.torch import save_file

data, out, *settings = sys.argv[1:]
begin, seen = train.create_learner, {}
learners = []
train.create_learner = lambda *arguments: learners.append(begin(*arguments)) or learners[-1]

def run(name, *more):
    return train.train(data, Path(out) / name, configure(overrides=[*settings, *more]), process)

def build(name, bands, size, weights=False, **more):
    if weights and process.rank == failing:
        raise RuntimeError("no network")
    return build_encoder(name, bands, size, **more)

def start(name):
    "The networks before their first step."
    learner = learners[-1]
    state = {f"{k}.{n}": v for k, m in learner.objective.networks.items() for n, v in m.state_dict().items()}
    save_file({k: v.clone().contiguous() for k, v in state.items()}, Path(out) / f"{name}-{process.rank}.safetensors")
    Path(out, f"{name}-{process.rank}.txt").write_text(learner.start)

classifier.build_encoder = build
with process_group("cpu") as process:
    for failing in (0, 1):
        for objective in ("geokr", "reference"):
            name = f"{objective}-{failing}"
            config = configure(overrides=[*settings, "model=test_resnet", "pretrained=auto", f"objective={objective}"])
            training, held_out = train.make_loaders(data, config, process)
            train.create_learner(config, process, training, held_out, train.gather_facts(training, held_out))
            start(name)
    failing = 0
    try:
        run("refused", "model=test_resnet", "pretrained=true")
    except ValueError as error:
        Path(out, f"refused-{process.rank}.txt").write_text(str(error))

    for model, layer in (("test_vit", "blocks.0.mlp.fc1"), ("test_resnet", "layer2.0.conv1")):
        types = []
        def note(module, images):
            types.append((module.weight.dtype, images[0].dtype))
        train.create_learner = lambda *arguments: learners.append(begin(*arguments)) or [
            learners[-1].student.encoder.get_submodule(layer).register_forward_pre_hook(note), learners[-1]][1]
        assert run(model, f"model={model}", "shard=true", "amp=bf16") == 0
        held = {p.dtype for p in learners[-1].student.parameters()} | {
            value.dtype for state in learners[-1].optimiser.state.values() for value in state.values()}
        seen[model] = [sorted({str(t) for pair in types for t in pair}), sorted(map(str, held))]
torch.save(seen, Path(out) / f"types-{process.rank}.pt")
"""


@pytest.fixture(scope="module")
def runs(coloured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave of several starts."""
    out = tmp_path_factory.mktemp("ranks")
    wait_for_ranks(start_ranks(RANK, coloured, out, *SETTINGS))
    return out


@pytest.mark.parametrize("objective", ["geokr", "reference"])
@pytest.mark.parametrize("failing", [0, 1])
def test_all_processes_start_from_what_the_first_one_has(runs: Path, objective: str, failing: int) -> None:
    name = f"{objective}-{failing}"
    one, other = (load_file(runs / f"{name}-{rank}.safetensors") for rank in range(2))
    assert one.keys() == other.keys()
    assert [key for key, value in one.items() if not torch.equal(value, other[key])] == []
    told = {(runs / f"{name}-{rank}.txt").read_text() for rank in range(2)}
    assert told == {"random weights" if failing == 0 else "timm's weights for test_resnet"}
    encoders = [
        {key.split(".", 1)[1]: value for key, value in one.items() if key.startswith(f"{network}.encoder")}
        for network in ("student", "teacher")
    ]
    assert all(torch.equal(value, encoders[1][key]) for key, value in encoders[0].items())


def test_what_the_first_process_lacks_is_told_by_all(runs: Path) -> None:
    first, second = ((runs / f"refused-{rank}.txt").read_text() for rank in range(2))
    assert first == second
    assert "timm's weights for test_resnet are not available (no network)" in first


@pytest.mark.parametrize("model", ["test_vit", "test_resnet"])
def test_sharded_weights_are_gathered_in_half_and_kept_in_full_precision(runs: Path, model: str) -> None:
    for rank in range(2):
        computed, held = torch.load(runs / f"types-{rank}.pt")[model]
        assert computed == ["torch.bfloat16"]
        assert held == ["torch.float32"]
    for value in load(runs / model / LAST).networks["student"].values():
        assert value.dtype in (torch.float32, torch.int64)
        assert bool(value.isfinite().all())
