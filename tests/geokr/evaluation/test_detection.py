"""A detector finds what it was shown, sees images of any size, and is the same for every encoder."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from geokr.evaluation.average_precision import Detections, measure
from geokr.evaluation.backbones import build_network, build_pyramid, find_source
from geokr.evaluation.box_formats import Boxes
from geokr.evaluation.detection import (
    Detection,
    DetectionSettings,
    cut_boxes,
    detect,
    draw_training_window,
    find_smallest,
    train_detector,
)
from geokr.evaluation.detectors import build_detector, place_anchors
from geokr.evaluation.examples import Examples
from geokr.evaluation.task import Job, Outcome, score
from geokr.evaluation.windows import View
from geokr.storage.inputs import InputError

SIDE = 64
"""Of the images, px."""
SCRATCH = find_source("scratch", "test_resnet")
SETTINGS = DetectionSettings(window=32, overlap=16, channels=16, steps=2, lr=(1e-3,))
LONGER = {"window": 64, "steps": 90, "lr": (3e-3,)}


@cache
def draw_squares() -> tuple[list[np.ndarray], list[tuple[np.ndarray, np.ndarray]]]:
    """Dark noise with one to three bright squares of 10 to 15 px in each image."""
    random = np.random.default_rng(5)
    images, targets = [], []
    for _ in range(32):
        image = random.integers(40, 90, (3, SIDE, SIDE)).astype(np.uint8)
        corners = []
        for left in (2, 23, 44)[: random.integers(1, 4)]:
            side, top = random.integers(10, 16), random.integers(0, SIDE - 15)
            image[:, top : top + side, left : left + side] = random.integers(190, 240)
            corners.append((left, top, left + side, top + side))
        images.append(image)
        targets.append((np.array(corners, np.float32), np.zeros(len(corners), np.int64)))
    return images, targets


def squares(shift: int = 0) -> Examples:
    """shift: each image gets the boxes of the image so many places further on."""
    images, targets = draw_squares()
    moved = targets[shift:] + targets[:shift]
    count = np.arange(len(images))
    names = tuple(f"{k}.png" for k in count)
    return Examples(
        names=names,
        bands=("red", "green", "blue"),
        classes=("square",),
        stratum=np.ones_like(count),
        group=count,
        split={},
        scale=255.0,
        image=images.__getitem__,
        target=moved.__getitem__,
    )


def make_job(examples: Examples, **changes: Any) -> Job:
    settings = SETTINGS.model_copy(update=changes)
    train, val, test = np.split(np.arange(len(examples)), [16, 20])
    return Job(examples, SCRATCH, "finetune", train, val, test, 0, settings)


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return Detection().run(make_job(squares(), **LONGER))


def test_squares_are_found_after_a_few_steps(outcome: Outcome) -> None:
    assert outcome.metrics["ap50"] > 0.3


def test_boxes_of_other_images_are_not_found() -> None:
    assert Detection().run(make_job(squares(shift=1), **LONGER)).metrics["ap50"] < 0.1


def test_the_statistics_of_the_images_give_the_metrics(outcome: Outcome) -> None:
    scored = score(Detection().prepare, outcome.parts)
    assert scored == pytest.approx({name: outcome.metrics[name] for name in ("ap", "ap50")})
    found = outcome.predictions
    per_image = [
        Detections(*(found[name][found["image"] == i] for name in ("corners", "classes", "scores"))) for i in range(12)
    ]
    objects = [Boxes(*squares().target(i)) for i in range(20, 32)]
    assert measure(per_image, objects, ["square"]) == outcome.metrics


def test_a_seed_gives_the_same_detector() -> None:
    job = make_job(squares(), steps=2)
    one, again = train_detector(job, 1e-3), train_detector(job, 1e-3)
    other = train_detector(replace(job, seed=1), 1e-3)
    assert one is not None
    assert again is not None
    assert other is not None
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_the_learning_rate_is_chosen_on_the_validation_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test images, which are all found with the other rate, have no say."""
    job = make_job(squares(), lr=(1e-3, 1e-2))

    def train(job: Job, lr: float) -> nn.Module:
        return nn.Identity() if lr == 1e-2 else nn.Flatten()

    def detect_all(job: Job, model: nn.Module, positions: np.ndarray) -> tuple[list[Detections], list[Boxes]]:
        objects = [Boxes(*job.examples.target(i)) for i in positions.tolist()]
        right = isinstance(model, nn.Identity) == (len(positions) == len(job.val))
        score = np.float32(0.5 if right else 0)
        found = [
            Detections(its.corners + 20 * (not right), its.classes, score.repeat(len(its.classes))) for its in objects
        ]
        return found, objects

    monkeypatch.setattr("geokr.evaluation.detection.detect_all", detect_all)
    monkeypatch.setattr("geokr.evaluation.detection.train_detector", train)
    result = Detection().run(job)
    assert (result.chosen["lr"], result.metrics["ap"]) == (1e-2, 0)


@pytest.mark.parametrize("detector", ["retinanet", "fasterrcnn"])
@pytest.mark.parametrize("frozen", [False, True])
def test_all_of_the_encoder_is_trained_or_none_of_it(detector: str, frozen: bool) -> None:
    mode = "linear" if frozen else "finetune"
    job = replace(make_job(squares(), detector=detector, steps=3, batch=2), mode=mode)
    before = {name: value.clone() for name, value in build_network(SCRATCH, 0).state_dict().items()}
    model = train_detector(job, 1e-3)
    assert model is not None
    after = model.backbone.pyramid.network.state_dict()
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert same == (before.keys() if frozen else set())  # also the statistics of each batch norm


def test_the_detector_sees_the_features_of_the_encoder() -> None:
    pyramid = build_pyramid(SCRATCH, 3)
    model = build_detector(
        "retinanet", pyramid, classes=1, channels=16, smallest=8, detections=9, frozen=False, seed=0
    ).eval()
    image = torch.randn(1, 3, 64, 64)
    seen: list[list[torch.Tensor]] = []
    pyramid.register_forward_hook(lambda _, __, maps: seen.append(maps))
    model([image[0]])
    with torch.no_grad():
        maps = (
            build_network(SCRATCH, 3)
            .eval()
            .forward_intermediates(image, indices=pyramid.levels, intermediates_only=True)
        )
    for ours, theirs in zip(seen[0], maps, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_head_starts_alike_for_every_encoder() -> None:
    """Whatever the channels of its maps are."""
    heads = []
    for name in ("test_resnet", "test_efficientnet"):
        source = find_source("scratch", name)
        options = {"classes": 2, "channels": 16, "smallest": 8.0, "detections": 9, "frozen": False, "seed": 4}
        model = build_detector("fasterrcnn", build_pyramid(source, 0, 32), **options)
        heads.append(model.roi_heads.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(heads[0].values(), heads[1].values(), strict=True))


def test_every_encoder_gets_the_same_windows() -> None:
    job = make_job(squares())
    boxes = [Boxes(*job.examples.target(i)) for i in job.train.tolist()]
    other = replace(SCRATCH, bands=("blue", "red"), mean=(0.0, 0.0), std=(1.0, 1.0))
    for step in range(5):
        first, second = (
            draw_training_window(replace(job, source=source), boxes, np.random.default_rng((0, step)))
            for source in (SCRATCH, other)
        )
        assert torch.equal(first.target["boxes"], second.target["boxes"])
        mean, std = (torch.tensor(values)[[2, 0], None, None] for values in (SCRATCH.mean, SCRATCH.std))
        torch.testing.assert_close(first.image[[2, 0]] * std + mean, second.image)


def test_boxes_follow_their_pixels() -> None:
    """A box that is bright in an image frames the bright pixels of each of its views."""
    image = np.zeros((1, 30, 40), np.uint8)
    image[0, 9:14, 11:20] = 1
    corners = np.array([[11, 9, 20, 14], [0, 0, 40, 1]], np.float32)
    for mirror in (False, True):
        for turns in range(4):
            view = View(top=5, left=8, side=24, mirror=mirror, turns=turns)
            cut, kept = cut_boxes(corners, view, (30, 40))
            rows, columns = np.nonzero(view.cut(image)[0])
            assert kept.tolist() == [True, False]  # the second lies above the view
            assert cut.tolist() == [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]
    cut, _ = cut_boxes(corners[:1], View(top=10, left=30, side=32, mirror=True, turns=1), (30, 40))
    assert cut.shape == (0, 4)


class FindsBright(nn.Module):
    """In the place of a detector: the box around the bright pixels of each window, with their share as its score."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, windows: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        return [self.frame(window[0]) for window in windows]

    def frame(self, window: torch.Tensor) -> dict[str, torch.Tensor]:
        rows, columns = torch.nonzero(window > 0, as_tuple=True)
        corners = [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]] if len(rows) else []
        scores = torch.full((len(corners),), float(len(rows)) / window.numel())
        return {
            "boxes": torch.tensor(corners).reshape(-1, 4).float(),
            "labels": torch.zeros(len(corners), dtype=torch.int64),
            "scores": scores,
        }


@pytest.mark.parametrize("shape", [(90, 41), (32, 77), (20, 25)])
def test_an_object_anywhere_is_found_once_and_whole(shape: tuple[int, int]) -> None:
    for top in range(0, shape[0] - 8, 5):
        for left in range(0, shape[1] - 9, 3):
            image = torch.zeros(1, *shape)
            image[0, top : top + 8, left : left + 9] = 1
            found = detect(FindsBright(), image, SETTINGS)
            assert found.corners.tolist() == [[left, top, left + 9, top + 8]], (top, left)


def test_anchors_span_the_objects() -> None:
    sizes, ratios = place_anchors(4, 8.0)
    assert [round(level[0]) for level in sizes] == [8, 16, 32, 64]
    assert ratios == ((0.5, 1.0, 2.0),) * 4
    (single,), _ = place_anchors(1, 8.0)
    assert single == pytest.approx([size for level in sizes for size in level])
    objects = Boxes(np.array([[0, 0, 4, 9]] + [[0, 0, 20, 20]] * 19, np.float32), np.zeros(20, np.int64))
    assert find_smallest([objects]) == 20
    assert find_smallest([]) == 16


def test_a_plain_transformer_with_a_single_band_can_detect() -> None:
    vit = find_source("scratch", "test_vit")
    job = replace(make_job(squares(), steps=1), source=replace(vit, bands=("red",), mean=(0.5,), std=(0.2,)))
    assert train_detector(job, 1e-3) is not None


def test_a_class_of_the_test_split_that_training_lacks_is_refused() -> None:
    examples = squares()
    targets = [examples.target(i) for i in range(len(examples))]
    targets[25] = (targets[25][0], np.ones(len(targets[25][0]), np.int64))
    job = make_job(replace(examples, classes=("square", "disc"), target=targets.__getitem__))
    with pytest.raises(InputError, match=r"25.png: disc is in the test split, but in no training image"):
        Detection().run(job)


def test_training_that_diverges_with_every_rate_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geokr.evaluation.detection.train_detector", lambda job, lr: None)
    with pytest.raises(ValueError, match=r"scratch: training diverged with each lr of \(0.001,\); add smaller ones"):
        Detection().run(make_job(squares()))


def test_windows_that_do_not_advance_are_refused() -> None:
    with pytest.raises(ValueError, match="overlap=64 px must be less than window=64 px"):
        DetectionSettings(window=64, overlap=64)
