"""What a run says of its speed: multiplications as they are counted by hand, and a trace of its steps."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from geokr import train
from geokr.pretraining.config import configure
from geokr.pretraining.objectives import choose
from geokr.pretraining.processes import Process
from geokr.pretraining.throughput import count_flops, find_peak, peak_share


def learner_of(model: str, size: int, passes: float, process: Process) -> Any:
    config = configure(overrides=[f"model={model}", f"image_size={size}", "bands=red,green,blue"])
    facts = SimpleNamespace(classes=("water", "forest"))
    objective = SimpleNamespace(passes=passes)
    return SimpleNamespace(config=config, facts=facts, objective=objective, process=process)


@pytest.mark.parametrize("name", ["supervised", "geokr"])
def test_operations_of_a_step_are_those_of_its_passes(name: str) -> None:
    """VGG-11 at 32 px: two for each of the products of eight convolutions and of the linear layer."""
    learner = learner_of("vgg11", 32, choose(name).passes, Process(0, 1, torch.device("cpu")))
    layers = [(3, 64, 32), (64, 128, 16), (128, 256, 8), (256, 256, 8), (256, 512, 4), (512, 512, 4)]
    layers += [(512, 512, 2), (512, 512, 2)]
    forward = sum(2 * 9 * taken * given * side**2 for taken, given, side in layers) + 2 * 512 * 2
    assert count_flops(learner) == {"supervised": 3, "geokr": 4}[name] * forward


def test_the_share_of_the_peak_is_that_of_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    learner = learner_of("vgg11", 32, 2, Process(0, 4, torch.device("cuda")))
    speed = 0.25 * 4 * 989e12 / count_flops(learner)
    assert peak_share(learner, speed) == pytest.approx(0.25)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an unknown GPU")
    assert peak_share(learner, speed) is None
    assert peak_share(learner_of("vgg11", 32, 2, Process(0, 1, torch.device("cpu"))), speed) is None
    assert (find_peak("NVIDIA H100 PCIe"), find_peak("NVIDIA H100 80GB HBM3")) == (756, 989)


def test_a_trace_shows_some_steps(coloured: Path, tmp_path: Path) -> None:
    settings = ["model=test_resnet", "image_size=32", "batch=8", "steps=18", "loggers=[]", "probe=0"]
    settings += ["validate_every=18", "objective=supervised"]
    assert train.main(["--data", str(coloured), "--out", str(tmp_path), "--profile", *settings]) == 0
    events = json.loads((tmp_path / "profile/rank0.json").read_text())["traceEvents"]
    steps = {event["name"] for event in events if event.get("name", "").startswith("ProfilerStep#")}
    assert len(steps) == 5
    assert any("conv" in event.get("name", "") for event in events)
