"""An exported encoder is a timm model, to the key and to the bit."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from geokr import export, train
from geokr.checkpoint import BEST, LAST, load
from geokr.models import build, build_encoder, load_weights

SETTINGS = ["model=test_resnet", "image_size=32", "batch=32", "steps=3", "bands=nir,red,green,blue", "loggers=[]"]


@pytest.fixture(scope="module")
def run(coloured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of four bands."""
    run = tmp_path_factory.mktemp("run")
    assert train.main(["--data", str(coloured), "--out", str(run), *SETTINGS]) == 0
    return run


def test_timm_loads_the_teachers_encoder(run: Path) -> None:
    encoder = timm.create_model("test_resnet", num_classes=0, in_chans=4)
    encoder.load_state_dict(load_file(run / "encoder.safetensors"), strict=True)
    checkpoint = load(run / LAST)
    assert checkpoint.teacher is not None
    teacher, _ = build("test_resnet", 4, 3, 32, False)
    teacher.load_state_dict(checkpoint.teacher)
    image = torch.rand(2, 4, 32, 32)
    assert torch.equal(encoder.eval()(image), teacher.encoder.eval()(image))
    assert not torch.equal(checkpoint.student["encoder.conv1.0.weight"], encoder.state_dict()["conv1.0.weight"])


def test_the_header_says_how_to_use_it(run: Path) -> None:
    with safe_open(run / "encoder.safetensors", "pt") as file:
        header = file.metadata()
    assert header["model"] == "test_resnet"
    assert json.loads(header["bands"]) == ["nir", "red", "green", "blue"]
    assert json.loads(header["classes"]) == ["water", "forest", "bare"]
    assert len(json.loads(header["mean"])) == len(json.loads(header["std"])) == 4
    assert (header["image_size"], header["step"], header["start"]) == ("32", "3", "random weights")


def test_exporting_again_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    assert export.main([str(run), "--out", str(tmp_path / "again.safetensors")]) == 0
    assert (tmp_path / "again.safetensors").read_bytes() == (run / "encoder.safetensors").read_bytes()
    assert export.main([str(run), "--best", "--out", str(tmp_path / "best.safetensors")]) == 0
    assert str(load(run / BEST).step) == safe_open(tmp_path / "best.safetensors", "pt").metadata()["step"]


def test_an_encoder_is_a_place_to_start_from(run: Path) -> None:
    encoder = build_encoder("test_resnet", 4, 32)
    load_weights(encoder, run / "encoder.safetensors", 4)
    expected = load_file(run / "encoder.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in encoder.state_dict().items())


def test_weights_for_three_bands_serve_for_four(tmp_path: Path) -> None:
    whole = timm.create_model("test_resnet", num_classes=10)
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    classifier, start = build("test_resnet", 4, 3, 32, str(tmp_path / "whole.pth"))
    weight, given = classifier.encoder.state_dict()["conv1.0.weight"], whole.state_dict()["conv1.0.weight"]
    assert torch.allclose(weight, given[:, [0, 1, 2, 0]] * 0.75)
    assert start == str(tmp_path / "whole.pth")


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_convnext").state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: not weights of this model: .* is missing"):
        build("test_resnet", 3, 3, 32, str(tmp_path / "other.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match=r"text\.pth: not a file of weights"):
        build("test_resnet", 3, 3, 32, str(tmp_path / "text.pth"))
    with pytest.raises(ValueError, match=r"none\.pth: no such file of weights"):
        build("test_resnet", 3, 3, 32, str(tmp_path / "none.pth"))


def test_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    made = timm.create_model

    def offline(name: str, pretrained: bool = False, **settings: object) -> torch.nn.Module:
        if pretrained:
            raise ConnectionError("no route to host\nat all")
        return made(name, **settings)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match=r"cannot be had \(no route to host\); set pretrained to a file"):
        build("test_resnet", 3, 3, 32, True)
    _, start = build("test_resnet", 3, 3, 32, "auto")
    assert start == "random weights"
    assert "the encoder starts at random" in caplog.text


def test_models_that_timm_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"timm has no model resnet5o; did you mean .*resnet50"):
        build("resnet5o", 3, 3, 32, False)
    with pytest.raises(ValueError, match="does not take images of 36 px"):
        build("test_vit", 3, 3, 36, False)


def test_the_command_refuses_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main([str(tmp_path), "--out", str(tmp_path / "e.safetensors")]) == 2
    assert capsys.readouterr().err == f"geokr.export: {tmp_path}/last.pt: no such checkpoint\n"
    (tmp_path / "last.pt").write_bytes(b"half a file")
    assert export.main([str(tmp_path), "--out", str(tmp_path / "e.safetensors")]) == 2
    assert "not a checkpoint, or a damaged one" in capsys.readouterr().err
    assert not (tmp_path / "e.safetensors").exists()
