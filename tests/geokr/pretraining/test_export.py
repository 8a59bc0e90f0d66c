"""An exported encoder is a timm model, to the key and to the bit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pystac
import pytest
import shapely.geometry
import timm
import torch
import torchvision
import yaml
from pystac.extensions.mlm import AssetGeneralMLMExtension, MLMExtension
from safetensors import safe_open
from safetensors.torch import load_file

from geokr import export, train
from geokr.dataset.index import read_extent, write_index
from geokr.dataset.layout import RGB
from geokr.encoder import build_encoder
from geokr.landcover.legend import KNOWLEDGE, read_toml
from geokr.pretraining.card import (
    describe_extent,
    format_model_card,
    list_licences,
    make_stac_item,
    public_name,
    to_json,
)
from geokr.pretraining.checkpoint import BEST, LAST, load
from geokr.pretraining.classifier import build_classifier
from geokr.weights import apply_weights

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
    teacher, _ = build_classifier("test_resnet", ("nir", "red", "green", "blue"), 3, 32, False)
    teacher.load_state_dict(checkpoint.networks["teacher"])
    image = torch.rand(2, 4, 32, 32)
    assert torch.equal(encoder.eval()(image), teacher.encoder.eval()(image))
    assert not torch.equal(
        checkpoint.networks["student"]["encoder.conv1.0.weight"], encoder.state_dict()["conv1.0.weight"]
    )


def test_the_header_says_how_to_use_it(run: Path) -> None:
    with safe_open(run / "encoder.safetensors", "pt") as file:
        header = file.metadata()
    assert header["model"] == "test_resnet"
    assert json.loads(header["bands"]) == ["nir", "red", "green", "blue"]
    assert json.loads(header["classes"]) == ["water", "forest", "bare"]
    checkpoint = load(run / LAST)
    assert json.loads(header["mean"]) == checkpoint.mean == list(checkpoint.facts["mean_pixel"])
    assert json.loads(header["std"]) == checkpoint.std == list(checkpoint.facts["std_pixel"])
    assert len(set(checkpoint.mean + checkpoint.std)) == 8
    assert int.from_bytes((run / "encoder.safetensors").read_bytes()[:8], "little") % 8 == 0  # tensors are aligned
    assert (header["image_size"], header["step"], header["start"]) == ("32", "3", "random weights")


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's encoder in all forms."""
    folder = tmp_path_factory.mktemp("model")
    assert export.main([str(run), "--out", str(folder), "--forms", *export.FORMS]) == 0
    return folder


@pytest.fixture(scope="module")
def expected(run: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and their features by the trained teacher."""
    checkpoint = load(run / LAST)
    teacher, _ = build_classifier("test_resnet", ("nir", "red", "green", "blue"), 3, 32, False)
    teacher.load_state_dict(checkpoint.networks["teacher"])
    image = torch.rand(5, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return image, teacher.eval()(image)[1]


def test_the_graph_of_torch_export_gives_the_same_features(
    folder: Path, expected: tuple[torch.Tensor, torch.Tensor]
) -> None:
    image, features = expected
    encoder = torch.export.load(folder / "encoder.pt2").module()
    assert torch.allclose(encoder(image), features, atol=1e-6)
    assert torch.allclose(encoder(image[:1]), features[:1], atol=1e-6)  # any number of images


def test_onnx_gives_the_same_features(folder: Path, expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, features = expected
    session = onnxruntime.InferenceSession(folder / "encoder.onnx")
    (found,) = session.run(["features"], {"image": image.numpy()})
    assert torch.allclose(torch.from_numpy(found), features, atol=1e-5)
    (found,) = session.run(["features"], {"image": image[:1].numpy()})
    assert torch.allclose(torch.from_numpy(found), features[:1], atol=1e-5)


def test_the_encoder_in_the_folder_is_that_of_the_run(run: Path, folder: Path) -> None:
    assert (folder / "encoder.safetensors").read_bytes() == (run / "encoder.safetensors").read_bytes()


@pytest.mark.parametrize("model", ["resnet18", "vgg11"])
def test_torchvision_loads_its_own_names(model: str) -> None:
    """There and back: torchvision computes the same features, and its weights are a place to start from."""
    torch.manual_seed(3)
    encoder = build_encoder(model, 3, 64).eval()
    theirs = torchvision.models.get_model(model).eval()
    left = theirs.load_state_dict(encoder.state_dict(), strict=False)
    assert left.unexpected_keys == []
    assert {name.split(".")[0] for name in left.missing_keys} == {"fc" if model == "resnet18" else "classifier"}
    image = torch.rand(2, 3, 64, 64)
    if model == "resnet18":
        theirs.fc = torch.nn.Identity()
    else:
        theirs.avgpool, theirs.classifier = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Identity()
    with torch.no_grad():
        assert torch.allclose(theirs(image), encoder(image), atol=1e-4)
    other = build_encoder(model, 3, 64)
    apply_weights(other, torchvision.models.get_model(model).state_dict() | encoder.state_dict(), RGB, RGB, "theirs")
    assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in other.state_dict().items())


def test_a_vgg_has_no_hidden_layers(tmp_path: Path) -> None:
    """The published head is the mean of the last map and one linear layer. timm's own weights are a place to start."""
    with torch.device("meta"):
        student, _ = build_classifier("vgg16", RGB, 8, 256, False)
        whole = timm.create_model("vgg16")
    assert student.head.in_features == 512
    assert sum(parameter.numel() for parameter in student.encoder.parameters()) == 14_714_688
    assert sum(parameter.numel() for parameter in whole.pre_logits.parameters()) == 119_545_856
    small = timm.create_model("vgg11", mlp_ratio=1 / 64)
    torch.save(small.state_dict(), tmp_path / "timm.pth")
    started, _ = build_classifier("vgg11", RGB, 8, 32, str(tmp_path / "timm.pth"))
    assert torch.equal(started.encoder.features[0].weight, small.features[0].weight)
    assert started(torch.rand(2, 3, 32, 32))[1].shape == (2, 512)


def test_the_stac_item_says_what_the_model_takes_and_gives(folder: Path, run: Path) -> None:
    item = pystac.Item.from_file(str(folder / "item.json"))
    model = MLMExtension.ext(item)
    checkpoint = load(run / LAST)
    encoder = build_encoder("test_resnet", 4, 32)
    assert model.mlm_name == "geokr-test_resnet"
    assert model.architecture == "test_resnet"
    assert model.framework == "pytorch"
    assert model.total_parameters == sum(parameter.numel() for parameter in encoder.parameters())
    assert model.hyperparameters is not None
    assert model.hyperparameters.to_dict()["steps"] == 3
    (given,) = model.input
    assert given.bands == ["nir", "red", "green", "blue"]
    assert given.input.shape == [-1, 4, 32, 32]
    assert given.input.dim_order == ["batch", "bands", "height", "width"]
    scaling = item.properties["mlm:input"][0]["value_scaling"]  # a list, one a band; pystac knows one alone
    assert [part["type"] for part in scaling] == ["z-score"] * 4
    pixels = torch.rand(4) * 255
    mean, std = (torch.tensor([part[name] for part in scaling]) for name in ("mean", "stddev"))
    ours = (pixels / 255 - torch.tensor(checkpoint.mean)) / torch.tensor(checkpoint.std)
    assert torch.allclose((pixels - mean) / std, ours, atol=1e-5)
    (result,) = model.output
    assert result.result.shape == [-1, encoder.num_features]
    assert item.bbox == pytest.approx([100, 30, 100.01, 30.01])
    assert item.geometry is not None
    assert shapely.geometry.shape(item.geometry).bounds == pytest.approx((100, 30, 100.01, 30.01))
    assert item.properties["start_datetime"] <= item.properties["end_datetime"]
    assert len(item.assets) == 1 + len(export.FORMS)
    for part in item.assets.values():
        path = folder / part.href
        of = AssetGeneralMLMExtension.ext(part)
        assert of.artifact_type
        assert "mlm:model" in (part.roles or [])
        assert part.extra_fields["mlm:memory_size"] == path.stat().st_size


def test_what_is_published_names_the_data_set_and_no_directory(folder: Path, run: Path) -> None:
    place = load(run / LAST).datasets[0]
    assert Path(place).is_absolute()
    with safe_open(folder / export.ENCODER, "pt") as file:
        assert file.metadata()["dataset"] == Path(place).name
    for text in ((folder / "README.md").read_text(), (folder / "item.json").read_text()):
        assert Path(place).name in text
        assert str(Path(place).parent) not in text
    assert public_name("s3://bucket/data/levir-kr") == "s3://bucket/data/levir-kr"


def test_the_model_card_names_the_data_the_numbers_and_the_rights(folder: Path, run: Path) -> None:
    card = (folder / "README.md").read_text()
    rows = [line.split("|")[1].strip() for line in card.splitlines() if line.startswith("|")]
    assert rows.index("the same, predicted by the most similar training tiles") == 1 + rows.index(
        "share of tiles with the right largest class"
    )
    metrics = json.loads((run / "metrics.json").read_text())
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "timm"
    for text in ("made_2020", "| water |", "| forest |", "| nir |", "192 training tiles and 64 held out"):
        assert text in card
    assert f"| KL(A \\|\\| p), nats | {metrics['val_kl']:.4f} |" in card
    checkpoint = load(run / LAST)
    for band, mean, std in zip(("nir", "red", "green", "blue"), checkpoint.mean, checkpoint.std, strict=True):
        assert f"| {band} | 0 | 255 | {mean:.6f} | {std:.6f} |" in card
    for name, share in zip(("water", "forest", "bare"), checkpoint.facts["mean_label"], strict=True):
        assert f"| {name} | {100 * share:.1f} % | {metrics['val_mae_of'][name]:.4f} |" in card
    assert "Acquired within 100.00 to 100.01 E and 30.00 to 30.01 N." in card
    assert "## Licences" in card
    code = (
        card.split("```python")[1].split("```")[0].replace('"encoder.safetensors"', repr(str(folder / export.ENCODER)))
    )
    names: dict[str, Any] = {}
    exec(code, names)  # what the card tells people to do
    assert names["encoder"].conv1[0].weight.shape[1] == 4


def test_numbers_of_another_step_are_not_in_the_card(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    (tmp_path / "run/metrics.json").write_text(json.dumps(metrics | {"steps": 2}))
    assert export.main([str(tmp_path / "run"), "--out", str(tmp_path / "model")]) == 0
    card = (tmp_path / "model/README.md").read_text()
    assert "| not validated at this step | |" in card
    assert f"{metrics['val_kl']:.4f}" not in card


def test_an_item_says_from_when_to_when_and_holds_no_number_that_json_lacks(run: Path) -> None:
    checkpoint = load(run / LAST)
    moments = ["2019-12-31T23:00:00", "2020-05-01T03:04:05"]
    item = make_stac_item(
        replace(checkpoint, facts=checkpoint.facts | {"acquired": moments}), 9, 9, {}, {"val_kl": 0.5}
    )
    assert item["properties"]["start_datetime"] == "2019-12-31T23:00:00Z"
    assert item["properties"]["end_datetime"] == "2020-05-01T03:04:05Z"
    assert item["properties"]["mlm:hyperparameters"]["geokr:val_kl"] == 0.5
    facts = {"bounds": (), "acquired": moments}
    assert describe_extent(facts) == " Acquired between 2019-12-31 and 2020-05-01."
    numbers = {"a": [1.5, float("inf"), (float("nan"), -float("inf"))], "b": 3}
    assert json.loads(to_json(numbers)) == {"a": [1.5, None, [None, None]], "b": 3}


def test_the_extent_is_that_of_the_index(tmp_path: Path) -> None:
    boxes = [shapely.geometry.box(100, 30, 101, 31), shapely.geometry.box(102, 29, 103, 30)]
    moments = np.array(["2020-05-01T03:04:05", "2019-12-31T23:00:00"], "datetime64[us]")
    write_index(tmp_path, {"acquired": moments}, boxes)
    bounds, acquired = read_extent(tmp_path)
    assert bounds == (100, 29, 103, 31)
    assert acquired == ("2019-12-31T23:00:00", "2020-05-01T03:04:05")
    write_index(tmp_path, {"row": np.arange(2)}, boxes)
    assert read_extent(tmp_path)[1] == ()


def test_licences_are_those_of_the_product() -> None:
    assert any("CC-BY-4.0" in line for line in list_licences("worldcover_2021"))
    assert any("GlobeLand30" in line and "research" in line for line in list_licences("globeland30_2020"))
    assert any("not stated" in line for line in list_licences("made_2020"))
    for path in (KNOWLEDGE / "products").glob("*.toml"):  # some have several words in their names
        product = read_toml(path)
        assert list_licences(f"{path.stem}_2020")[0] == f"Land cover: {product['title']}: {product['licence']}."


def test_exporting_again_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    for folder in ("one", "other"):
        assert export.main([str(run), "--out", str(tmp_path / folder)]) == 0
    for name in ("encoder.safetensors", "README.md", "item.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert export.main([str(run), "--best", "--out", str(tmp_path / "best")]) == 0
    assert str(load(run / BEST).step) == safe_open(tmp_path / "best" / export.ENCODER, "pt").metadata()["step"]


def test_an_encoder_is_a_place_to_start_from(run: Path) -> None:
    expected = load_file(run / "encoder.safetensors")
    path = str(run / "encoder.safetensors")
    same, start = build_classifier("test_resnet", ("nir", "red", "green", "blue"), 3, 32, path)
    assert start == path
    assert all(torch.equal(value, expected[name]) for name, value in same.encoder.state_dict().items())
    # Bands are matched by name.
    turned, _ = build_classifier("test_resnet", ("red", "nir"), 3, 32, path)
    weight = turned.encoder.state_dict()["conv1.0.weight"]
    assert torch.allclose(weight, 2 * expected["conv1.0.weight"][:, [1, 0]])


def test_weights_for_three_bands_serve_for_four(tmp_path: Path) -> None:
    whole = timm.create_model("test_resnet", num_classes=10)
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    classifier, start = build_classifier(
        "test_resnet", ("nir", "blue", "green", "red"), 3, 32, str(tmp_path / "whole.pth")
    )
    weight, given = classifier.encoder.state_dict()["conv1.0.weight"], whole.state_dict()["conv1.0.weight"]
    assert torch.allclose(weight[:, 1:], 0.75 * given[:, [2, 1, 0]])
    assert torch.allclose(weight[:, 0], 0.75 * given.mean(1))
    assert torch.allclose(weight.sum(1), given.sum(1), atol=1e-6)  # grey looks as it did
    assert start == str(tmp_path / "whole.pth")


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_convnext").state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: not weights of this model: .* is missing"):
        build_classifier("test_resnet", RGB, 3, 32, str(tmp_path / "other.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match=r"text\.pth: not a file of weights"):
        build_classifier("test_resnet", RGB, 3, 32, str(tmp_path / "text.pth"))
    with pytest.raises(ValueError, match=r"none\.pth: no such file of weights"):
        build_classifier("test_resnet", RGB, 3, 32, str(tmp_path / "none.pth"))


@pytest.mark.usefixtures("offline")
def test_weights_that_cannot_be_had(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"are not available \(no route to host\); set pretrained to a file"):
        build_classifier("test_resnet", RGB, 3, 32, True)
    _, start = build_classifier("test_resnet", RGB, 3, 32, "auto")
    assert start == "random weights"
    assert "the encoder starts at random" in caplog.text


def test_models_that_timm_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"timm has no model resnet5o; did you mean .*resnet50"):
        build_classifier("resnet5o", RGB, 3, 32, False)
    with pytest.raises(ValueError, match="does not take images of 36 px"):
        build_classifier("test_vit", RGB, 3, 36, False)


def test_the_command_refuses_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main([str(tmp_path), "--out", str(tmp_path / "model")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/last.pt: no such checkpoint\n"
    (tmp_path / "last.pt").write_bytes(b"half a file")
    assert export.main([str(tmp_path), "--out", str(tmp_path / "model")]) == 2
    assert "not a checkpoint, or a damaged one" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("resnet10t", 64), ("vgg11", 32), ("convnext_atto", 64), ("regnetx_002", 64), ("mobilevit_xxs", 64),
        ("vit_tiny_patch16_224", 64), ("vit_tiny_patch16_224", 224), ("beit_base_patch16_224", 64),
        ("eva02_tiny_patch14_224", 56), ("cait_xxs24_224", 64), ("xcit_nano_12_p8_224", 64),
        ("swin_tiny_patch4_window7_224", 112), ("swinv2_tiny_window8_256", 128), ("maxvit_nano_rw_256", 128),
        ("coatnet_nano_rw_224", 96), ("mixer_s16_224", 64), ("pvt_v2_b0", 64), ("tiny_vit_5m_224", 128),
    ],
)  # fmt: skip
def test_the_code_of_the_card_makes_the_network_of_the_run(run: Path, model: str, size: int) -> None:
    """Of every family of timm, also of those whose networks have one size."""
    checkpoint = load(run / LAST)
    changed = replace(checkpoint, config=checkpoint.config | {"model": model, "image_size": size})
    card = format_model_card(changed, 1, {})
    code = card.split("```python")[1].split("```")[0].replace("from safetensors.torch import load_file", "")
    names: dict[str, Any] = {}
    with torch.device("meta"):
        network = build_encoder(model, 4, size)
        exec(code, names | {"load_file": lambda file: network.state_dict()}, names)
    assert {k: v.shape for k, v in names["encoder"].state_dict().items()} == {
        k: v.shape for k, v in network.state_dict().items()
    }
    assert f"{size} px" in card
