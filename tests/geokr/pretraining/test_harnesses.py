"""The settings for other harnesses load an exported encoder as it is."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

from geokr import export, train

SETTINGS = Path(__file__).parents[3] / "workflows" / "harnesses"
BANDS = 4
RUN = ["model=test_resnet", "image_size=32", "batch=32", "steps=3", "bands=nir,red,green,blue", "loggers=[]"]


@pytest.fixture(scope="module")
def folder(coloured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a run, with the file for torchgeo."""
    folder, run = tmp_path_factory.mktemp("export"), tmp_path_factory.mktemp("run")
    assert train.main(["--data", str(coloured), "--out", str(run), *RUN]) == 0
    assert export.main([str(run), "--out", str(folder), "--forms", "torchgeo"]) == 0
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and their features."""
    encoder = timm.create_model("test_resnet", num_classes=0, in_chans=BANDS).eval()
    encoder.load_state_dict(load_file(folder / "encoder.safetensors"))
    image = torch.rand(2, BANDS, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return image, encoder(image)


def read_arguments(name: str) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load((SETTINGS / name).read_text(encoding="utf-8"))
    arguments: dict[str, Any] = settings["model"]["init_args"]
    return arguments


def test_torchgeo_starts_from_the_encoder(folder: Path, expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    from torchgeo.trainers import ClassificationTask

    image, features = expected
    arguments = read_arguments("torchgeo.yaml")
    assert (arguments["weights"], arguments["in_channels"]) == ("export/encoder.ckpt", BANDS)
    task = ClassificationTask(**arguments | {"model": "test_resnet", "weights": str(folder / "encoder.ckpt")})
    network = task.model.eval()
    with torch.no_grad():
        assert torch.allclose(
            network.forward_head(network.forward_features(image), pre_logits=True), features, atol=1e-6
        )
    assert network.get_classifier().out_features == 10


def test_terratorch_starts_from_the_encoder(folder: Path, expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    """TerraTorch gives what follows `backbone_` to timm, with features_only. Without the file, timm would download."""
    image, features = expected
    arguments = read_arguments("terratorch.yaml")["model_args"]
    given = {name.removeprefix("backbone_"): value for name, value in arguments.items() if name.startswith("backbone_")}
    assert given["pretrained_cfg_overlay"] == {"file": "export/encoder.safetensors"}
    given["pretrained_cfg_overlay"] = {"file": str(folder / "encoder.safetensors")}
    assert arguments["backbone"].startswith("timm_")
    network = timm.create_model("test_resnet", features_only=True, **given).eval()
    with torch.no_grad():
        assert torch.allclose(network(image)[-1].mean(dim=(2, 3)), features, atol=1e-6)


def test_timm_loads_it_by_name(folder: Path, expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, features = expected
    overlay = {"file": str(folder / "encoder.safetensors")}
    network = timm.create_model(
        "test_resnet", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, in_chans=BANDS
    )
    with torch.no_grad():
        assert torch.allclose(network.eval()(image), features, atol=1e-6)
