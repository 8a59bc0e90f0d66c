"""The labels of views: those of the ground that they show; and the loss of the parts."""

import signal
from pathlib import Path

import numpy as np
import pytest
import shapely
import timm
import torch
import torch.nn.functional as F  # noqa: N812

from geokr import train
from geokr.encoder import build_encoder
from geokr.loading.loader import Batch, TileLoader
from geokr.loading.selection import Selection
from geokr.pretraining.augment import draw_maps
from geokr.pretraining.checkpoint import LAST, load
from geokr.pretraining.classifier import Classifier
from geokr.pretraining.config import TrainConfig, configure
from geokr.pretraining.facts import gather_facts
from geokr.pretraining.learner import Learner, create_learner, train_step
from geokr.pretraining.objectives.parts import PartClassifier, part_losses, to_map
from geokr.pretraining.overlap import label_views, measure_overlap, pool
from geokr.pretraining.processes import Process
from geokr.pretraining.render import make_input_format, render
from tests.geokr.conftest import COLOURS, Build, write_dataset

ALONE = Process(0, 1, torch.device("cpu"))

RGB = ("red", "green", "blue")
STILL = TrainConfig(bands=RGB, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, image_size=64)


def thetas(config: TrainConfig, views: int, seed: int = 0) -> torch.Tensor:
    return draw_maps(views, config, [1.0] * len(config.bands), seed)[:, :6].view(-1, 2, 3)


def polygon(theta: torch.Tensor) -> shapely.Polygon:
    corners = np.array([(-1, -1, 1), (1, -1, 1), (1, 1, 1), (-1, 1, 1)])
    return shapely.Polygon(corners @ theta.double().numpy().T)


@pytest.mark.parametrize("config", [{"crop": 0.2}, {"crop": 0.2, "rotate": 45.0, "aspect_ratio": 2.0}])
@pytest.mark.parametrize(("grid", "height", "width"), [(8, 7, 7), (4, 1, 1), (2, 3, 5)])
def test_overlaps_are_areas_of_intersection(config: dict[str, float], grid: int, height: int, width: int) -> None:
    views = thetas(STILL.model_copy(update=config), 12)
    overlap = measure_overlap(views, grid, height, width)
    assert overlap.sum(dim=(1, 2)) == pytest.approx(torch.ones(12), abs=1e-5)
    edges = np.linspace(-1, 1, grid + 1)
    parts = [shapely.box(x, y, x + 2 / grid, y + 2 / grid) for y in edges[:-1] for x in edges[:-1]]
    tile = shapely.box(-1, -1, 1, 1).buffer(1e-6)
    for theta, found in zip(views, overlap, strict=True):
        whole = polygon(theta)
        if not tile.contains(whole):  # then it shows the tile mirrored at its edge
            continue
        wanted = np.array([part.intersection(whole).area for part in parts]) / whole.area
        assert found.sum(dim=1).numpy() == pytest.approx(wanted, abs=0.016)
        for place in {0, height * width // 2, height * width - 1}:
            row, col = divmod(place, width)
            u, v = (2 * np.array([col, col + 1]) / width - 1), (2 * np.array([row, row + 1]) / height - 1)
            corners = np.array([(u[0], v[0], 1), (u[1], v[0], 1), (u[1], v[1], 1), (u[0], v[1], 1)])
            cell = shapely.Polygon(corners @ theta.double().numpy().T)
            wanted = np.array([part.intersection(cell).area for part in parts]) / whole.area
            assert found[:, place].numpy() == pytest.approx(wanted, abs=0.016)


@pytest.mark.parametrize("config", [{}, {"rotate": 180.0}])
def test_places_are_where_the_pixels_are(config: dict[str, float]) -> None:
    """A tile whose parts have a brightness of their own: pixels of a view, averaged by places, are what it overlaps."""
    settings = STILL.model_copy(update={"crop": 0.2, **config})
    maps = draw_maps(16, settings, [1.0] * 3, seed=5)
    brightness = torch.rand(16, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    tile = F.interpolate(brightness.expand(-1, 3, -1, -1), size=(64, 64), mode="nearest")
    form = make_input_format(64, [0.0] * 3, [1.0] * 3, torch.float32, torch.device("cpu"))
    seen = F.avg_pool2d(render(tile, maps, form)[:, :1], 16).flatten(1)
    overlap = measure_overlap(maps[:, :6].view(-1, 2, 3), 4, 4, 4)
    wanted = torch.bmm(brightness.flatten(1)[:, None], overlap)[:, 0] * 16
    assert seen.numpy() == pytest.approx(wanted.numpy(), abs=0.03)


@pytest.mark.parametrize(("crop", "worst", "mean"), [(0.7, 0.04, 0.006), (0.2, 0.05, 0.008)])
def test_the_label_of_a_view_is_that_of_its_footprint(crop: float, worst: float, mean: float) -> None:
    """Against exact shares of the footprint, on a map of patches; the label of the tile is much further from it."""
    rng = np.random.default_rng(2)
    side, tiles = 64, 40  # cells along a tile
    cells = rng.integers(0, 4, (tiles, 8, 8)).repeat(11, axis=1).repeat(11, axis=2)[:, 5 : 5 + side, 3 : 3 + side]
    shown = torch.from_numpy(cells[..., None] == np.arange(4)).float()  # (tile, y, x, class)
    parts = shown.reshape(tiles, 8, 8, 8, 8, 4).mean(dim=(2, 4)).flatten(1, 2)
    whole = shown.mean(dim=(1, 2))
    views = thetas(STILL.model_copy(update={"crop": crop, "aspect_ratio": 1.5}), tiles, seed=9)
    label = label_views(measure_overlap(views, 8, 1, 1), parts, whole)
    edges = np.linspace(-1, 1, side + 1)
    x0, y0 = np.meshgrid(edges[:-1], edges[:-1])
    boxes = shapely.box(x0, y0, x0 + 2 / side, y0 + 2 / side)
    exact = np.stack(
        [
            (area := shapely.area(shapely.intersection(boxes, polygon(theta)))).ravel()
            @ tile.flatten(0, 1).numpy()
            / area.sum()
            for theta, tile in zip(views, shown, strict=True)
        ]
    )
    apart = np.abs(label.numpy() - exact)
    assert apart.max() < worst
    assert apart.mean() < mean
    assert np.abs(whole.numpy() - exact).mean() > 3 * apart.mean()


def test_a_view_of_the_whole_tile_has_its_label_and_unknown_area_does_not_count() -> None:
    identity = torch.eye(2, 3)[None].expand(2, -1, -1)
    areas = torch.zeros(2, 4, 3)
    areas[0] = torch.tensor([(1, 0, 0), (0, 1, 0), (0, 0.5, 0), (0, 0, 0)])
    fraction = torch.tensor([(0.1, 0.2, 0.7)] * 2)
    label = label_views(measure_overlap(identity, 2, 1, 1), areas, fraction)
    assert label[0].tolist() == pytest.approx([1 / 2.5, 1.5 / 2.5, 0])
    assert torch.equal(label[1], fraction[1])  # nothing is known
    areas = areas[:, [3, 2, 1, 0]]  # the same for a tile turned by half a turn, and seen so
    assert torch.equal(label_views(measure_overlap(-identity, 2, 1, 1), areas, fraction), label)


def test_the_loss_of_parts_by_hand() -> None:
    """Two places above each other, two by two parts; the student sees all of the tile, the teacher its left half."""
    theta = torch.tensor([[(1.0, 0, 0), (0, 1.0, 0)]])
    left = torch.tensor([[(0.5, 0, -0.5), (0, 1.0, 0)]])
    p = torch.tensor([(0.5, 0.5), (0.9, 0.1)])  # of the upper and of the lower place
    q = torch.tensor([(0.2, 0.8), (0.6, 0.4)])
    student, teacher = (values.log().T[None, :, :, None] for values in (p, q))
    parts = torch.tensor([[(1.0, 0.0), (0.5, 0.5), (0.25, 0.25), (0.0, 0.0)]])
    overlaps = measure_overlap(theta, 2, 2, 1), measure_overlap(left, 2, 2, 1)
    label, disagree = part_losses(student, teacher, parts, *overlaps)[0].tolist()
    kl = lambda a, b: float((torch.xlogy(a, a) - torch.xlogy(a, b)).sum())  # noqa: E731
    upper = kl(torch.tensor([1.0, 0.0]), p[0]) + kl(torch.tensor([0.5, 0.5]), p[0])
    lower = 0.5 * kl(torch.tensor([0.5, 0.5]), p[1])
    assert label == pytest.approx((upper + lower) / 4, abs=1e-6)
    assert disagree == pytest.approx((kl(p[0], q[0]) + kl(p[1], q[1])) / 4, abs=1e-6)  # the left parts only
    pooled, share = pool(torch.softmax(teacher, dim=1), overlaps[1])
    assert share[0].tolist() == pytest.approx([0.5, 0, 0.5, 0])
    assert pooled[0, 0].tolist() == pytest.approx(q[0].tolist())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "swin_s3_tiny_224"])
def test_maps_have_their_channels_before_their_rows(name: str) -> None:
    """Of networks that return maps, maps with the channels last, and tokens after a class token."""
    size = 224 if name.startswith("swin") else 64
    encoder = build_encoder(name, 3, size).eval()
    with torch.no_grad():
        image = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        classifier = Classifier(encoder, encoder(image).shape[1], 4).eval()
        network = PartClassifier(classifier, 3, size).eval()
        logits, features = classifier(image)
        again, same, places = network(image)
        (wanted,) = encoder.forward_intermediates(image, indices=1, norm=True, intermediates_only=True)
        found = to_map(encoder, encoder.forward_features(image))
    assert torch.allclose(logits, again, atol=1e-6)
    assert torch.allclose(features, same, atol=1e-6)
    assert places.shape == (2, 4, *wanted.shape[2:])
    if name in ("test_resnet", "test_vit"):  # others have further layers after their last stage
        assert torch.allclose(found, wanted, atol=1e-5)


def test_tokens_that_do_not_lie_on_a_grid_are_refused() -> None:
    encoder = timm.create_model("test_vit", num_classes=0)
    with pytest.raises(ValueError, match=r"the encoder's last values, \(8, 5\), do not lie on a grid"):
        to_map(encoder, torch.zeros(1, 8, 5))


# --- runs


@pytest.fixture(scope="module")
def striped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiles of 32 px with 4 x 4 parts, of which each has one of three classes, told by its colour; some are unknown."""
    rng = np.random.default_rng(1)
    which = rng.integers(0, 3, (8, 16, 4, 4))
    noise = rng.normal(0, 12, (8, 16, 4, 32, 32))
    image = COLOURS[which.repeat(8, axis=2).repeat(8, axis=3)].transpose(0, 1, 4, 2, 3) + noise
    parts = (which[..., None] == np.arange(3)) * (rng.random((8, 16, 4, 4, 1)) < 0.9) * 255
    areas = parts.mean(axis=(2, 3))
    return write_dataset(
        tmp_path_factory.mktemp("striped"),
        {"scene": image.clip(0, 255).astype(np.uint8)},
        {"scene": (areas / areas.sum(axis=-1, keepdims=True)).astype(np.float32)},
        split=lambda scene, row, col: "val" if col >= 12 else "train",
        parts={"scene": parts.astype(np.uint8)},
        block=8,
    )


def learner_of(dataset: Path, *settings: str) -> Learner:
    small = ["model=test_resnet", "image_size=32", "batch=32", "probe=96", "grid=4", "crop=0.4", "lr=3e-3", "steps=60"]
    config = configure("parts", None, [*small, "bands=red,green,blue", *settings])
    training = TileLoader(dataset, Selection("train", grid=config.grid), batch=config.batch)
    held_out = TileLoader(dataset, Selection("val"), batch=32, shuffle=False)
    return create_learner(config, ALONE, training, held_out, gather_facts(training, held_out))


def test_a_step_in_parts_is_the_whole_step(striped: Path) -> None:
    settings = ("model=test_vit", "image_size=64", "optimiser=sgd", "ramp_up=0")
    whole, divided = learner_of(striped, *settings), learner_of(striped, *settings, "accumulate=4")
    batch = next(iter(whole.training))
    for learner in (whole, divided):
        train_step(learner, batch)
    assert whole.recent_losses[0] == pytest.approx(divided.recent_losses[0], abs=1e-5)
    assert (whole.recent_losses[0, 1:] > 0).all()
    for name, value in whole.student.named_parameters():
        assert torch.allclose(value, divided.student.get_parameter(name), atol=1e-6), name
    moved = dict(learner_of(striped, *settings).student.named_parameters())
    assert not torch.equal(moved["part_head.weight"], whole.student.get_parameter("part_head.weight"))


def test_the_target_is_the_label_of_the_first_view(striped: Path) -> None:
    learner = learner_of(striped, "crop=0.2")
    batch = next(iter(learner.training))
    part = learner.part(batch, 0)
    overlap = part.overlap(0, 1, 1)[..., 0]  # (n, part)
    assert batch.parts is not None
    areas = batch.parts.flatten(1, 2).float() / 255
    wanted = (overlap[..., None] * areas).sum(dim=1)
    assert torch.allclose(part.target, wanted / wanted.sum(dim=1, keepdim=True), atol=1e-5)
    assert not torch.allclose(part.target, batch.fraction, atol=0.1)


def test_views_of_coarse_tiles_are_not_zoomed(build: Build, tmp_path: Path) -> None:
    """In a set of two ground distances, the views of the finer tiles alone change; their parts follow."""
    image = np.random.default_rng(0).integers(0, 255, (2, 8, 4, 16, 16)).astype(np.uint8)
    share = np.full((2, 8, 3), 1 / 3, np.float32)
    gsd = np.array([2.0] * 4 + [16.0] * 4 + [2.0] * 8, np.float32)
    dataset = build(
        tmp_path / "unlike",
        {"a": image},
        {"a": share},
        more={"gsd": gsd},
        split=lambda scene, row, col: "val" if row else "train",
        parts={"a": np.full((2, 8, 2, 2, 3), 85, np.uint8)},
    )
    learners, batches = [], []
    for more in ([], ["zoom=4", "coarsest=16"]):
        settings = ["model=test_resnet", "image_size=16", "batch=8", "grid=2", "bands=red,green,blue", *more]
        config = configure("parts", None, settings)
        training, held_out = train.make_loaders(str(dataset), config, ALONE)
        learners.append(create_learner(config, ALONE, training, held_out, gather_facts(training, held_out)))
        batches.append(next(iter(training)))
    assert batches[0].gsd is None
    coarse = batches[1].gsd == 16
    assert coarse.sum() == 4
    plain, zoomed = (learner.part(batch, 0) for learner, batch in zip(learners, batches, strict=True))
    same = torch.isclose(zoomed.view(0), plain.view(0), atol=1e-3).flatten(1).all(dim=1)
    assert torch.equal(same, coarse)
    overlap, before = zoomed.overlap(0, 4, 4), plain.overlap(0, 4, 4)
    assert torch.equal(overlap[coarse], before[coarse])
    assert not torch.allclose(overlap[~coarse], before[~coarse], atol=1e-3)


def test_stopping_changes_nothing(striped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [
        "--data",
        str(striped),
        "--preset",
        "parts",
        "grid=2",
        "model=test_resnet",
        "image_size=32",
        "batch=32",
    ]
    arguments += ["batch=32", "probe=0", "loggers=[]", "steps=4", "bands=[red,green,blue]"]
    assert train.main([*arguments, "--out", str(tmp_path / "whole")]) == 0

    def interrupted(learner: Learner, batch: Batch) -> None:
        train_step(learner, batch)
        if learner.step == 2:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", interrupted)
        assert train.main([*arguments, "--out", str(tmp_path / "halves")]) == 128 + signal.SIGTERM
    assert train.main([*arguments, "--out", str(tmp_path / "halves")]) == 0
    whole, halves = (load(tmp_path / run / LAST) for run in ("whole", "halves"))
    for name, weights in whole.networks.items():
        assert all(torch.equal(value, halves.networks[name][key]) for key, value in weights.items()), name
    assert "part_head.weight" in whole.networks["teacher"]
    first, second = ((tmp_path / run / "encoder.safetensors").read_bytes() for run in ("whole", "halves"))
    assert first == second
    assert b"part_head" not in first


def test_it_learns_the_parts(striped: Path) -> None:
    learner = learner_of(striped, "model=test_vit", "image_size=64", "steps=30")
    losses = []
    for batch in train.iterate_batches(learner.training, 0, learner.total):
        train_step(learner, batch)
        losses.append(learner.recent_losses[0].tolist())
        learner.logged_steps = learner.step
    first, last = (np.mean([row[3] for row in rows]) for rows in (losses[:5], losses[-5:]))
    assert last < 0.8 * first


def test_a_view_far_beyond_its_tile_shows_it_mirrored_again_and_again() -> None:
    """Six tile widths, every second one mirrored: each part is seen equally often."""
    overlap = measure_overlap((torch.eye(2, 3) * 6)[None], 2, 12, 12)[0]
    assert overlap.sum(dim=1).tolist() == pytest.approx([0.25] * 4, abs=1e-6)
    upper_left = overlap[0].view(12, 12) * 144
    one = torch.tensor([1.0, 1, 0, 0] * 3)
    assert upper_left == pytest.approx(one[:, None] * one, abs=0.05)
