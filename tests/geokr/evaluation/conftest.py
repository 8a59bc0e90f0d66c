"""Small labelled sets that carry their own answer, and encoders that are good or bad at them."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from geokr import evaluate
from geokr.encoder import build_encoder

collect_ignore = [] if shutil.which("chromium") or os.environ.get("CI") else ["test_browser.py"]
"""`make test` says when a machine has no browser. Where CI is set, the test then fails."""
MODEL = "test_resnet"
SIZE = 32
"""Side of the images, px."""
CLASSES = ("coarse", "fine", "plain")


def texture(kind: int, random: np.random.Generator) -> np.ndarray:
    """(y, x, 3) uint8: coarse or fine stripes, or none, in a random direction, colour and phase."""
    period = (16, 4, 1e9)[kind]
    x = np.arange(SIZE) + random.uniform(0, period if period < 1e6 else 1)
    wave = np.sin(2 * np.pi * x / period)
    image = np.broadcast_to(wave if random.random() < 0.5 else wave[:, None], (SIZE, SIZE))
    colour = random.uniform(90, 160, 3)
    noisy = colour + 60 * image[..., None] + random.normal(0, 10, (SIZE, SIZE, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def textures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a class, 40 images of each."""
    folder = tmp_path_factory.mktemp("textures")
    random = np.random.default_rng(0)
    for kind, name in enumerate(CLASSES):
        (folder / name).mkdir()
        for i in range(40):
            Image.fromarray(texture(kind, random)).save(folder / name / f"{name}_{i}.png")
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of an encoder that was trained on the very task, on images of its own."""
    torch.manual_seed(0)
    encoder = build_encoder(MODEL, 3, SIZE)
    head = torch.nn.LazyLinear(3)
    model = torch.nn.Sequential(encoder, head).train()
    random = np.random.default_rng(7)
    optimiser: torch.optim.Optimizer | None = None
    for _ in range(60):
        kinds = random.integers(0, 3, 24)
        images = torch.from_numpy(np.stack([texture(int(kind), random) for kind in kinds])).permute(0, 3, 1, 2)
        scores = model((images / 255 - 0.5) / 0.25)
        if optimiser is None:
            optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
        loss = torch.nn.functional.cross_entropy(scores, torch.from_numpy(kinds))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    folder = tmp_path_factory.mktemp("trained")
    header = {"model": MODEL, "image_size": str(SIZE), "bands": json.dumps(["red", "green", "blue"])}
    save_file(
        encoder.state_dict(),
        folder / "encoder.safetensors",
        header
        | {"pixel_type": "uint8", "low": "[0, 0, 0]", "high": "[255, 255, 255]"}
        | {"mean": "[0.5, 0.5, 0.5]", "std": "[0.25, 0.25, 0.25]"},
    )
    return folder


NAME = "<b>a_b & 50%</b>.pth"
"""File of an encoder, whose name means something in HTML, in Markdown and in LaTeX."""


@pytest.fixture(scope="session")
def page(textures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    torch.manual_seed(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        torch.save(build_encoder("test_resnet", 3, 32).state_dict(), NAME.replace("/", "|"))
        given = ["classification", "--data", str(textures), "--out", "eval", "--encoder", "scratch"]
        given += [NAME.replace("/", "|"), "--mode", "knn", "--labels", "10%", "1.0", "--seeds", "2"]
        assert evaluate.main([*given, "size=32", "model=test_resnet", "val=0.15"]) == 0
        assert evaluate.main(["report", "eval"]) == 0
    return folder / "eval" / "report.html"
