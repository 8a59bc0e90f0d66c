"""Objectives without labels: their losses, a stop at any step, several processes, and what they learn."""

import copy
import json
import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules.heads import (
    BYOLPredictionHead,
    BYOLProjectionHead,
    MoCoProjectionHead,
    ProjectionHead,
    SimCLRProjectionHead,
)
from lightly.models.utils import patchify

from geokr import train
from geokr.loading.loader import Batch, TileLoader
from geokr.loading.selection import Selection
from geokr.pretraining.augment import draw_maps
from geokr.pretraining.checkpoint import LAST, load
from geokr.pretraining.config import PRESETS, TrainConfig, configure
from geokr.pretraining.facts import gather_facts
from geokr.pretraining.learner import Learner, create_learner, train_step
from geokr.pretraining.metrics import divergence
from geokr.pretraining.objectives import byol, mae, simclr
from geokr.pretraining.objectives.byol import squared_distance
from geokr.pretraining.objectives.geco import Correction
from geokr.pretraining.objectives.mae import MAE, cut_patches, normalise_patches, pixel_error
from geokr.pretraining.objectives.moco import info_nce
from geokr.pretraining.objectives.projected import make_mlp, rising_momentum
from geokr.pretraining.objectives.simclr import nt_xent
from geokr.pretraining.objectives.softcon import soft_contrast
from geokr.pretraining.processes import Process
from geokr.pretraining.render import blur, make_input_format, render
from geokr.pretraining.validation import validate
from tests.geokr.conftest import write_dataset
from tests.ranks import start_ranks, wait_for_ranks

ALONE = Process(0, 1, torch.device("cpu"))
WITHOUT_LABELS = ("simclr", "moco", "byol", "mae")
RIVALS = (*WITHOUT_LABELS, "softcon", "geco")
PAIRED = ("simclr", "moco", "byol", "softcon", "geco")
SMALL = ("batch=32", "probe=0", "queue=96", "bands=red,green,blue")


def model(rival: str) -> list[str]:
    """A small network; for mae of 16 patches."""
    return ["model=test_vit", "image_size=64"] if rival == "mae" else ["model=test_resnet", "image_size=32"]


def unit(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def learner_of(dataset: Path, rival: str, *settings: str) -> Learner:
    config = configure(rival, None, [*model(rival), *SMALL, "steps=8", *settings])
    training = TileLoader(dataset, Selection("train", pairs=config.pairs), batch=config.batch)
    return create_learner(config, ALONE, training, training, gather_facts(training, training))


def losses_of(learner: Learner, batch: Batch) -> torch.Tensor:
    """Loss, KL of the probe, and the objective's own loss, of each tile."""
    return learner.objective.losses(learner.part(batch, 0))


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byol, "HIDDEN", 64)


# --- losses


def test_nt_xent_is_that_of_lightly() -> None:
    first, second = unit(0, 7, 5), unit(1, 7, 5)
    ours = nt_xent(first, second, torch.ones(7, dtype=torch.bool), 0.2)
    assert ours.shape == (7,)
    assert float(ours.mean()) == pytest.approx(float(NTXentLoss(0.2)(first, second)), abs=1e-12)
    assert float(ours[2]) == pytest.approx(np.mean([by_hand(first, second, 2), by_hand(second, first, 2)]), abs=1e-12)


def by_hand(first: torch.Tensor, second: torch.Tensor, tile: int) -> float:
    anchor = first[tile]
    others = [float(anchor @ view) / 0.2 for views in (first, second) for view in views]
    del others[tile]  # the anchor itself
    return math.log(sum(map(math.exp, others))) - float(anchor @ second[tile]) / 0.2


def test_an_empty_tile_is_compared_with_none() -> None:
    first, second = unit(0, 7, 5), unit(1, 7, 5)
    present = torch.tensor([True, True, False, True, True, True, False])
    ours = nt_xent(first, second, present, 0.2)
    assert torch.allclose(ours[present], nt_xent(first[present], second[present], torch.ones(5, dtype=torch.bool), 0.2))
    assert ours.isfinite().all()  # a loss of weight 0 must still be a number


def test_info_nce_is_that_of_lightly() -> None:
    query, key, queue = unit(0, 6, 5), unit(1, 6, 5), unit(2, 9, 5)
    loss = NTXentLoss(0.3, memory_bank_size=(9, 5))
    loss.memory_bank.bank = queue
    ours = info_nce(query, key, queue, torch.ones(9, dtype=torch.bool), 0.3)
    assert float(ours.mean()) == pytest.approx(float(loss(query, key)), abs=1e-12)
    filled = torch.arange(9) < 4
    assert torch.allclose(
        info_nce(query, key, queue, filled, 0.3), info_nce(query, key, queue[:4], torch.ones(4, dtype=torch.bool), 0.3)
    )


def test_the_distance_is_that_of_lightly() -> None:
    prediction, target = 3 * unit(0, 6, 5), 0.1 * unit(1, 6, 5)
    ours = squared_distance(prediction, target).double()
    assert float(ours.mean()) == pytest.approx(2 + 2 * float(NegativeCosineSimilarity()(prediction, target)), abs=1e-6)


def test_soft_contrast_of_labels_is_a_weighted_cross_entropy() -> None:
    first, second = unit(0, 5, 4), unit(1, 5, 4)
    label = torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [0, 0, 1], [0, 0.2, 0.8], [0.1, 0.1, 0.8]], dtype=torch.float64)
    present = torch.tensor([True, True, False, True, True])
    ours = soft_contrast(first, second, label, present, 0.2)
    losses = []
    for anchor, mate in ((0, 5), (5, 0)):
        views = [*first, *second]
        others = [k for k in range(10) if k != anchor and k % 5 != 2]
        share = {k: math.exp(float(views[anchor] @ views[k]) / 0.2) for k in others}
        alike = {k: float(label[0] @ label[k % 5] / label[0].norm() / label[k % 5].norm()) for k in others}
        assert alike[mate] == 1
        terms = [alike[k] / sum(alike.values()) * math.log(share[k] / sum(share.values())) for k in others]
        losses.append(-sum(terms))
    assert float(ours[0]) == pytest.approx(np.mean(losses), abs=1e-12)


def test_soft_contrast_of_unlike_labels_is_nt_xent() -> None:
    first, second, present = unit(0, 5, 4), unit(1, 5, 4), torch.ones(5, dtype=torch.bool)
    ours = soft_contrast(first, second, torch.eye(5, dtype=torch.float64), present, 0.2)
    assert torch.allclose(ours, nt_xent(first, second, present, 0.2))


def test_the_pixel_error_is_of_masked_patches_normalised() -> None:
    image = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    patches = cut_patches(image, 4)
    assert torch.equal(patches, patchify(image, 4))
    predicted = torch.randn(patches.shape, generator=torch.Generator().manual_seed(1))
    masked = torch.tensor([[5, 0], [2, 3]])
    ours = pixel_error(predicted, normalise_patches(patches), masked)
    for tile in range(2):
        errors = []
        for k in masked[tile].tolist():
            values = patches[tile, k].numpy().astype(float)
            target = (values - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-6)
            errors.append(np.mean((predicted[tile, k].numpy() - target) ** 2))
        assert float(ours[tile]) == pytest.approx(np.mean(errors), rel=1e-5)


def test_a_label_is_corrected_by_the_matrix_of_its_year_gap() -> None:
    correction = Correction(3).double()
    matrix = torch.softmax(correction.logits, dim=2)
    assert torch.allclose(matrix.diagonal(dim1=1, dim2=2), torch.full((22, 3), 0.95, dtype=torch.float64))
    with torch.no_grad():
        correction.logits.copy_(torch.randn(correction.logits.shape, generator=torch.Generator().manual_seed(0)))
    label = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.1, 0.1, 0.8]])
    corrected, penalty = correction(label, torch.tensor([0.0, -3.0, 40.0, torch.nan]))
    for tile, number in enumerate((10, 7, 20, 21)):  # no change of years is in the middle; far ones share the last
        logits = correction.logits[number].detach().numpy()
        t = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        assert corrected[tile].detach().numpy() == pytest.approx(label[tile].numpy() @ t, abs=1e-6)
        assert float(penalty[tile].detach()) == pytest.approx(-(label[tile].numpy() @ np.log(np.diag(t))), abs=1e-6)


def test_matrices_learn_what_the_map_has_wrong() -> None:
    """Water and forest are exchanged on the maps that are three years older, and right on those of the year."""
    correction = Correction(3)
    optimiser = torch.optim.Adam(correction.parameters(), lr=0.05)
    truth = torch.eye(3).repeat(8, 1)
    old = torch.arange(24) < 12
    label = torch.where(old[:, None], truth[:, [1, 0, 2]], truth)
    for _ in range(100):
        corrected, penalty = correction(label, torch.where(old, -3.0, 0.0))
        loss = divergence(corrected, (0.97 * truth + 0.01).log()) + 0.5 * penalty  # of a network that is right
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
    matrix = torch.softmax(correction.logits.detach(), dim=2)
    assert float(matrix[7, 0, 1]) > 0.8
    assert float(matrix[7, 1, 0]) > 0.8
    assert float(matrix[7, 2, 2]) > 0.9
    assert float(matrix[10].diagonal().min()) > 0.9
    assert torch.allclose(matrix[9].diagonal(), torch.full((3,), 0.95), atol=1e-4)  # no tile is of this gap


def test_the_years_between_map_and_image_come_from_the_index(build, tmp_path: Path) -> None:
    def half(scene: str, row: int, col: int) -> str:
        return "val" if row == 0 else "train"

    gaps = np.array([0, -3, np.nan, 7] * 8, np.float32)
    image = np.arange(32, dtype=np.uint8).reshape(4, 8, 1, 1, 1) * np.ones((1, 1, 4, 8, 8), np.uint8)
    share = np.full((4, 8, 3), 1 / 3, np.float32)
    dataset = build(tmp_path / "gaps", {"a": image}, {"a": share}, more={"year_gap": gaps}, split=half)
    training, held_out = train.make_loaders(str(dataset), configure("geco", None, ["batch=8"]), ALONE)
    batch = next(iter(training))
    assert batch.year_gap is not None
    expected = torch.from_numpy(gaps[batch.image[:, 0, 0, 0].long()])
    assert torch.equal(batch.year_gap.nan_to_num(99), expected.nan_to_num(99))
    assert next(iter(held_out)).year_gap is None


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (SimCLRProjectionHead(12, 12, 8), make_mlp(12, 12, 8, batch_norm=True, last_batch_norm=True)),
        (MoCoProjectionHead(12, 12, 8), make_mlp(12, 12, 8, batch_norm=False)),
        (BYOLProjectionHead(12, 20, 8), make_mlp(12, 20, 8, batch_norm=True)),
        (BYOLPredictionHead(8, 20, 8), make_mlp(8, 20, 8, batch_norm=True)),
    ],
)
def test_heads_are_those_of_lightly(theirs: ProjectionHead, ours: torch.nn.Module) -> None:
    values = zip(ours.state_dict(), theirs.state_dict().values(), strict=True)
    ours.load_state_dict(dict(values))
    features = torch.randn(9, next(theirs.parameters()).shape[1], generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(features), theirs(features))


def test_momentum_rises_to_one() -> None:
    values = [rising_momentum(step, 100, 0.996) for step in range(101)]
    assert values[0] == pytest.approx(0.996)
    assert values[50] == pytest.approx(0.998)
    assert values[100] == 1.0
    assert values == sorted(values)


# --- views


def test_a_grey_view_has_no_colour() -> None:
    config = TrainConfig(bands=("red", "green", "blue", "nir"), grey=0.5)
    maps = draw_maps(64, config, [1.0] * 4, seed=3)
    pixels = 0.4 + 0.1 * torch.rand(64, 4, 8, 8, generator=torch.Generator().manual_seed(0))  # nothing is clipped
    form = make_input_format(8, [0.0] * 4, [1.0] * 4, torch.float32, torch.device("cpu"))
    view = render(pixels, maps, form)
    is_grey = (view - view.mean(dim=1, keepdim=True)).abs().amax(dim=(1, 2, 3)) < 1e-6
    assert 16 < int(is_grey.sum()) < 48
    without = draw_maps(64, replace_settings(config, grey=0.0), [1.0] * 4, seed=3)
    assert torch.equal(maps[~is_grey], without[~is_grey])  # whether others are grey changes no view
    coloured = render(pixels, without, form)
    assert torch.allclose(view[is_grey], coloured[is_grey].mean(dim=1, keepdim=True).expand(-1, 4, -1, -1), atol=1e-6)


def replace_settings(config: TrainConfig, **values: Any) -> TrainConfig:
    return config.model_copy(update=values)


def test_a_view_is_blurred_by_its_own_gaussian() -> None:
    point = torch.zeros(3, 2, 33, 33)
    point[:, :, 16, 16] = 1.0
    spread = torch.tensor([[0.0], [0.2], [0.29]])
    blurred = blur(point, spread)
    assert torch.equal(blurred[0], point[0])
    assert torch.allclose(blurred.sum(dim=(2, 3)), torch.ones(3, 2))
    for number in (1, 2):
        ratio = float(blurred[number, 0, 16, 17] / blurred[number, 0, 16, 16])
        assert ratio == pytest.approx(math.exp(-0.5 / float(spread[number]) ** 2), rel=1e-4)
    level = torch.full((1, 2, 33, 33), 0.7)
    assert torch.allclose(blur(level, torch.tensor([[0.25]])), level)  # at the edges, too


def test_some_views_are_blurred() -> None:
    config = replace_settings(PRESETS["simclr"], bands=("red", "green", "blue"))
    spread = draw_maps(2000, config, [1.0] * 3, seed=0)[:, -1]
    assert 0.45 < float((spread > 0).float().mean()) < 0.55
    assert 0.1 <= float(spread[spread > 0].min()) < float(spread.max()) <= 2.0


# --- runs


def command(dataset: Path, run: Path, rival: str, *settings: str) -> int:
    arguments = ["--data", str(dataset), "--out", str(run), "--preset", rival, *model(rival), *SMALL, "loggers=[]"]
    return train.main([*arguments, *settings])


@pytest.mark.parametrize("rival", RIVALS)
def test_stopping_changes_nothing(coloured: Path, tmp_path: Path, rival: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(coloured, tmp_path / "whole", rival, "steps=6") == 0

    def interrupted(learner: Learner, batch: Batch) -> None:
        train_step(learner, batch)
        if learner.step == 3:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", interrupted)
        assert command(coloured, tmp_path / "parts", rival, "steps=6") == 128 + signal.SIGTERM
    assert command(coloured, tmp_path / "parts", rival, "steps=6") == 0
    whole, parts = (load(tmp_path / run / LAST) for run in ("whole", "parts"))
    for name, weights in whole.networks.items():
        assert all(torch.equal(value, parts.networks[name][key]) for key, value in weights.items()), name
    assert all(torch.equal(value, parts.memory[key]) for key, value in whole.memory.items())
    for name in ("encoder.safetensors", "metrics.json", "plots/train.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name
    assert not any("projector" in name or "head" in name for name in load_names(tmp_path / "whole"))


def load_names(run: Path) -> list[str]:
    return [*json.loads((run / "encoder.safetensors").read_bytes()[8:].split(b"}}")[0] + b"}}")]


@pytest.mark.parametrize("rival", WITHOUT_LABELS)
def test_labels_do_not_reach_the_encoder(coloured: Path, rival: str) -> None:
    learners = [learner_of(coloured, rival) for _ in range(2)]
    batch = next(iter(learners[0].training))
    train_step(learners[0], batch)
    train_step(learners[1], replace(batch, fraction=batch.fraction.roll(1, dims=1)))
    for name, value in learners[0].student.named_parameters():
        assert torch.equal(value, learners[1].student.get_parameter(name)) != name.startswith("head."), name


@pytest.mark.parametrize("rival", PAIRED)
def test_the_second_view_shows_the_other_date(coloured: Path, rival: str) -> None:
    learner = learner_of(coloured, rival)
    batch = next(iter(learner.training))
    train_step(learner, batch)  # fills a queue
    alone = losses_of(learner, batch)
    paired = losses_of(learner, replace(batch, pair=batch.image.flip(0)))
    assert not torch.allclose(alone[:, 2], paired[:, 2])
    if rival in ("moco", "byol"):  # elsewhere, both views share batch statistics
        assert torch.allclose(alone[:, 1], paired[:, 1], atol=1e-5)  # the probe's is of the first view


def test_a_step_of_comparisons_is_not_computed_in_parts(coloured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(coloured, coloured / "no", "simclr", "accumulate=2") == 2
    assert "simclr compares all tiles of a step" in capsys.readouterr().err
    assert not (coloured / "no").exists()


def test_the_queue_holds_the_newest_tiles_of_whole_steps(coloured: Path) -> None:
    learner = learner_of(coloured, "moco", "accumulate=2")
    memory = learner.objective.memory
    batches = [next(iter(learner.training))] * 4
    for number, batch in enumerate(batches):
        before = {name: values.clone() for name, values in memory.items()}
        train_step(learner, replace(batch, weight=(torch.arange(32) != 5).float()))
        assert torch.equal(memory["queue"][32:], before["queue"][:-32])
        assert int(memory["filled"].sum()) == min(3, number + 1) * 31  # not the empty one
        assert not memory["filled"][5]
        learner.logged_steps = learner.step
    assert torch.allclose(memory["queue"].norm(dim=1), torch.ones(96))
    assert not any(name.startswith(("queue", "filled")) for name, _ in learner.student.named_buffers())


def test_the_target_of_byol_follows_the_student(coloured: Path) -> None:
    learner = learner_of(coloured, "byol", "momentum=0.5")
    student, target = learner.objective.networks.values()
    before = copy.deepcopy(target)
    train_step(learner, next(iter(learner.training)))
    keep = rising_momentum(1, 8, 0.5)
    for name, value in target.named_parameters():
        if not name.startswith("head."):
            expected = keep * before.get_parameter(name) + (1 - keep) * student.get_parameter(name)
            assert torch.allclose(value, expected, atol=1e-6), name


def test_the_encoder_of_mae_does_not_see_masked_patches(coloured: Path) -> None:
    learner = learner_of(coloured, "mae")
    objective, batch = learner.objective, next(iter(learner.training))
    assert isinstance(objective, MAE)
    assert objective.student.visible == 4
    image = learner.part(batch, 0).view(0)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).expand(32, -1)
    _, features, pixels = objective.student(image, order)
    patches = image.unfold(2, 16, 16).unfold(3, 16, 16)  # (n, band, 4, 4, 16, 16): views of the image
    patches[:, :, order[0, 9] // 4, order[0, 9] % 4] = 0.0
    _, others, other_pixels = objective.student(image, order)
    assert torch.equal(features, others)
    assert torch.equal(pixels, other_pixels)
    patches[:, :, order[0, 1] // 4, order[0, 1] % 4] = 0.0
    assert not torch.allclose(objective.student(image, order)[1], features)
    whole = objective.student.encoder(image)
    assert torch.allclose(objective.student(image)[1], whole)


def test_pixels_are_predicted_as_they_are_or_relative_to_their_patch(
    coloured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets: list[torch.Tensor] = []

    def keep(predicted: torch.Tensor, target: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        targets.append(target)
        return pixel_error(predicted, target, masked)

    monkeypatch.setattr(mae, "pixel_error", keep)
    for setting in ("false", "true"):
        learner = learner_of(coloured, "mae", f"normalise_patches={setting}")
        losses_of(learner, next(iter(learner.training)))
    plain, relative = targets
    assert torch.equal(normalise_patches(plain), relative)
    assert not torch.allclose(plain, relative, atol=0.1)


def test_the_decoder_knows_where_patches_are(coloured: Path) -> None:
    """Its prediction does not depend on the order in which visible and masked patches are listed."""
    student = learner_of(coloured, "mae").student
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1)).expand(2, -1)
    other = torch.cat([order[:, :4].flip(1), order[:, 4:].roll(3, 1)], dim=1)
    assert torch.allclose(student(image, order)[2], student(image, other)[2], atol=1e-5)


@pytest.mark.parametrize(("network", "size", "reason"), [
    ("test_resnet", 32, "mae needs a plain vision transformer"),
    ("test_vit", 16, "mae needs several patches"),
])  # fmt: skip
def test_mae_needs_patches(coloured: Path, network: str, size: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        learner_of(coloured, "mae", f"model={network}", f"image_size={size}")


RANK = """
import sys
from pathlib import Path
import torch
from geokr.pretraining.processes import process_group
from tests.geokr.pretraining.test_rivals import ALONE, three_steps

with process_group("cpu") as process:
    states = {rival: three_steps(Path(sys.argv[1]), rival, process) for rival in sys.argv[3:]}
torch.save(states, Path(sys.argv[2]) / f"rank{process.rank}.pt")
"""


def three_steps(dataset: Path, rival: str, process: Process) -> dict[str, torch.Tensor]:
    """All networks and the memory after three steps of layer normalisation only, with a tile of no weight."""
    for module in (simclr, byol):
        module.make_mlp = lambda *widths, **_: make_mlp(*widths, batch_norm=False)  # type: ignore[attr-defined]
    byol.HIDDEN = 64
    size = 64 if rival == "mae" else 32
    settings = [*SMALL, "model=test_vit", f"image_size={size}", "optimiser=sgd", "lr=0.05", "steps=3", "clip=1"]
    config = configure(rival, None, settings)
    world = process.world
    training = TileLoader(dataset, Selection("train"), batch=32 // world, rank=process.rank, world=world)
    facts = gather_facts(training, training)
    learner = create_learner(config, process, training, training, facts)
    empty = torch.arange(32) == 20
    for batch in training:
        weight = (~empty).float()[process.rank * (32 // world) :][: 32 // world]
        train_step(learner, replace(batch, weight=weight))
        if learner.step == 3:
            break
    states = {name: network.state_dict() for name, network in learner.objective.networks.items()}
    states["memory"] = dict(learner.objective.memory)
    return {f"{group}.{name}": value for group, state in states.items() for name, value in state.items()}


def test_two_processes_do_the_work_of_one(coloured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (simclr, byol):
        monkeypatch.setattr(module, "make_mlp", make_mlp)  # put back what `three_steps` replaces
    ranks = start_ranks(RANK, coloured, tmp_path, *RIVALS)
    alone = {rival: three_steps(coloured, rival, ALONE) for rival in RIVALS}
    wait_for_ranks(ranks)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    for rival, state in alone.items():
        assert state.keys() == first[rival].keys()
        for name, value in state.items():
            assert torch.equal(first[rival][name], second[rival][name]), (rival, name)
            assert torch.allclose(first[rival][name].float(), value.float(), atol=1e-5), (rival, name)


# --- what they learn


@pytest.fixture(scope="session")
def parcels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Places of the sample world, 512 m wide, with their class shares: 256 to train on and 128 held out."""
    from geokr.landcover.legend import KNOWLEDGE, read_legend
    from pipeline.sample.world import CENTRE, World

    world, legend = World.from_seed(0, 0.0), read_legend(KNOWLEDGE / "products" / "globeland30.toml")
    rng = np.random.default_rng(0)
    left, top = (middle + rng.uniform(-2e4, 2e4, 384)[:, None, None] for middle in CENTRE)
    metres = 16.0 * (np.arange(32) + 0.5)
    east, north = np.broadcast_arrays(left + metres[None, None, :], top - metres[None, :, None])
    colours = world.reflectance(east, north)  # (band, tile, y, x)
    colours *= rng.uniform(0.7, 1.3, (4, 384, 1, 1))  # the air differs from tile to tile
    image = (255 * colours / np.quantile(colours, 0.99, axis=(1, 2, 3), keepdims=True)).clip(0, 255).astype(np.uint8)
    counts = np.stack([np.bincount(codes.ravel(), minlength=256) for codes in world.cover(east, north)])
    shares = counts @ legend.shares(np.arange(256)) / 32**2
    present = np.flatnonzero(shares.sum(axis=0) > 0)
    return write_dataset(
        tmp_path_factory.mktemp("parcels"),
        {"world": image.transpose(1, 0, 2, 3).reshape(16, 24, 4, 32, 32)},
        {"world": shares[:, present].reshape(16, 24, -1).astype(np.float32)},
        split=lambda scene, row, col: "val" if col >= 16 else "train",
        classes=tuple(legend.classes[k] for k in present),
        block=8,
    )


# A transformer begins with the histogram of colours, and needs more patches and steps to be ahead of it.
LONGER = ("model=test_vit4", "image_size=96", "mask=0.5", "steps=240", "lr=3e-3")


@pytest.mark.parametrize("rival", [*PAIRED, "mae"])
def test_it_learns_what_places_look_like(parcels: Path, rival: str) -> None:
    settings = [*model(rival), SMALL[0], "bands=[blue,green,red,nir]", "steps=120", "queue=512", "momentum=0.9"]
    settings += ["lr=2e-3", "probe=256", "warm_up=0.1", *(LONGER if rival == "mae" else ())]
    config = configure(rival, None, settings)
    training = TileLoader(parcels, Selection("train"), batch=32, bands=config.bands)
    held_out = TileLoader(parcels, Selection("val"), batch=32, shuffle=False, bands=config.bands)
    learner = create_learner(config, ALONE, training, held_out, gather_facts(training, held_out))
    before = validate(learner).numbers
    for batch in train.iterate_batches(training, 0, learner.total):
        train_step(learner, batch)
        learner.logged_steps = learner.step
    after = validate(learner).numbers
    assert after["knn_top1"] > before["knn_top1"] + 0.05
    assert after["knn_mae"] < (0.95 if rival == "mae" else 0.9) * before["knn_mae"]
