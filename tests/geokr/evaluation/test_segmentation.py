"""Segmentation learns what can be learnt, and nothing else; and it draws the same for every encoder."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from geokr.evaluation import segmentation
from geokr.evaluation.backbones import find_source
from geokr.evaluation.examples import Examples
from geokr.evaluation.mask_classes import IGNORE
from geokr.evaluation.segmentation import Segmentation, SegmentationSettings, draw_batches, mean_cross_entropy
from geokr.evaluation.task import Job, Outcome, score
from geokr.settings import ConfigError

SIDE = 48


def make_texture(target: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Pixels of a mask: noise of single pixels in class 1, of patches in class 0, with the same mean and spread."""
    fine = random.integers(0, 256, target.shape)
    coarse = random.integers(0, 256, [-(-length // 8) for length in target.shape]).repeat(8, 0).repeat(8, 1)
    grey = np.where(target == 1, fine, coarse[: target.shape[0], : target.shape[1]])
    return np.repeat(grey.astype(np.uint8)[None], 3, axis=0)


def make_examples(count: int = 20, shuffled: bool = False, side: int = SIDE) -> Examples:
    """Images of two textures that meet along a line; with other images' masks if `shuffled`."""
    random = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side + 8), indexing="ij")) - side / 2
    masks = []
    for _ in range(count):
        angle = random.uniform(0, 2 * np.pi)
        masks.append((grid[0] * np.cos(angle) + grid[1] * np.sin(angle) > random.uniform(-8, 8)).astype(np.uint8))
    images = [make_texture(mask, random) for mask in masks]
    if shuffled:
        masks = [masks[(i + 7) % count] for i in range(count)]
    return Examples(
        names=tuple(f"{i}.png" for i in range(count)),
        bands=("red", "green", "blue"),
        classes=("coarse", "fine"),
        stratum=np.zeros(count, np.int64),
        group=np.arange(count),
        split={},
        scale=255.0,
        image=images.__getitem__,
        target=masks.__getitem__,
    )


def make_job(examples: Examples, mode: str = "finetune", model: str = "test_resnet", **changes: object) -> Job:
    settings = {"window": 32, "overlap": 8, "batch": 4, "steps": 40, "lr": [3e-3], "linear_lr": [3e-2], "device": "cpu"}
    positions = np.arange(len(examples))
    return Job(
        examples=examples,
        source=find_source("scratch", model),
        mode=mode,
        train=positions[:-8],
        val=positions[-8:-6],
        test=positions[-6:],
        seed=0,
        settings=SegmentationSettings.model_validate(settings | changes),
    )


@pytest.fixture(scope="module")
def learnt() -> Outcome:
    return Segmentation().run(make_job(make_examples()))


def test_textures_are_learnt(learnt: Outcome) -> None:
    assert learnt.metrics["miou"] > 0.75
    assert learnt.metrics["iou/fine"] > 0.75
    assert learnt.chosen == {"lr": 3e-3}


def test_masks_of_other_images_are_not() -> None:
    assert Segmentation().run(make_job(make_examples(shuffled=True))).metrics["miou"] < 0.55


def test_the_parts_and_predictions_of_an_outcome_give_its_metrics(learnt: Outcome) -> None:
    task, examples = Segmentation(), make_examples()
    scores = score(task.prepare, learnt.parts)
    assert scores == {name: learnt.metrics[name] for name in scores}
    assert task.primary in scores
    assert learnt.parts.shape == (6, 2, 2)
    masks, shapes = learnt.predictions["masks"], learnt.predictions["shapes"]
    assert shapes.tolist() == [[SIDE, SIDE + 8]] * 6
    right = np.mean([(masks[k] == examples.target(14 + k)).mean() for k in range(6)])
    assert right == pytest.approx(learnt.metrics["accuracy"])


def test_a_linear_layer_on_random_features_tells_textures_apart() -> None:
    assert Segmentation().run(make_job(make_examples(), "linear")).metrics["miou"] > 0.6


@pytest.mark.parametrize("mode", ["linear", "finetune"])
def test_the_learning_rate_is_chosen_on_the_validation_images(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    job = make_job(make_examples(), mode, **{"lr" if mode == "finetune" else "linear_lr": [1e-4, 1e-3, 1e-2]})
    seen = []

    def predict(job: Job, lr: float, positions: np.ndarray) -> list[np.ndarray]:
        """Right on the validation images at 1e-3 alone, and on the test images at other rates alone."""
        right = (lr == 1e-3) == (positions is job.val)
        seen.append((lr, positions is job.test))
        return [job.examples.target(i) if right else 1 - job.examples.target(i) for i in positions]

    monkeypatch.setattr(segmentation, "train", lambda job, lr: lr)
    monkeypatch.setattr(segmentation, "predict_all", predict)
    outcome = Segmentation().run(job)
    assert outcome.chosen == {"lr": 1e-3}
    assert outcome.metrics["miou"] == 0
    assert [lr for lr, test in seen if test] == [1e-3]  # test images are seen once


def test_a_job_has_one_outcome() -> None:
    runs = [Segmentation().run(make_job(make_examples(), steps=3)) for _ in range(2)]
    assert np.array_equal(runs[0].predictions["masks"], runs[1].predictions["masks"])
    other = Segmentation().run(replace(make_job(make_examples(), steps=3), seed=1))
    assert not np.array_equal(runs[0].predictions["masks"], other.predictions["masks"])


def test_every_encoder_sees_the_same_views_in_the_same_order() -> None:
    job = make_job(make_examples(), steps=5)
    sources = [job.source, replace(find_source("scratch", "test_convnext"), mean=(0.0,) * 3, std=(1.0,) * 3)]
    one, other = (list(draw_batches(replace(job, source=source))) for source in sources)
    mean, std = (torch.tensor(values)[:, None, None] for values in (job.source.mean, job.source.std))
    assert len(one) == 5
    for (image, target), (plain, same) in zip(one, other, strict=True):
        assert torch.equal(target, same)
        torch.testing.assert_close(image * std + mean, plain)


def test_each_image_comes_once_before_one_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    examples, seen = make_examples(), []
    monkeypatch.setattr(segmentation, "CACHE_BYTES", 1)  # keeps one image at most
    recorded = replace(examples, target=lambda i: (seen.append(i), examples.target(i))[1])
    list(draw_batches(make_job(recorded, steps=6)))
    assert seen[0] == 0  # its size tells how many are kept
    assert sorted(seen[1:13]) == sorted(seen[13:]) == list(range(12))


def test_an_encoder_reads_its_bands_of_sixteen_bits() -> None:
    rgb = make_examples()
    extra = np.full((1, SIDE, SIDE + 8), 9999, np.uint16)

    def read(i: int) -> np.ndarray:
        red, green, blue = rgb.image(i).astype(np.uint16) * 10
        return np.concatenate([extra, blue[None], green[None], red[None], extra])

    deep = replace(rgb, bands=("coastal", "blue", "green", "red", "nir"), scale=2550.0, image=read)
    wanted, found = (next(draw_batches(make_job(examples)))[0] for examples in (rgb, deep))
    torch.testing.assert_close(found, wanted)
    two = replace(rgb, bands=("red", "nir"), image=lambda i: rgb.image(i)[:2])
    with pytest.raises(ConfigError, match="scratch: the encoder needs red, green, blue, but the data have red, nir"):
        Segmentation().run(make_job(two))


def test_images_smaller_than_the_window_are_extended_by_pixels_without_class() -> None:
    job = make_job(make_examples(side=20), window=64, overlap=0, steps=2)
    image, target = next(draw_batches(job))
    assert (image.shape, target.shape) == ((4, 3, 64, 64), (4, 64, 64))
    assert ((target == IGNORE).sum(dim=(1, 2)) == 64 * 64 - 20 * 28).all()
    assert (image[:, 0][target == IGNORE] == 0).all()
    outcome = Segmentation().run(job)
    assert outcome.parts.sum(axis=(1, 2)).tolist() == [20 * 28] * 6


def test_pixels_without_a_class_have_no_loss() -> None:
    scores = torch.randn(1, 2, 3, 3, requires_grad=True)
    target = torch.full((1, 3, 3), IGNORE)
    assert mean_cross_entropy(scores, target) == 0
    target[0, 0, 0] = 1
    wanted = torch.nn.functional.cross_entropy(scores[0, :, 0, 0][None], torch.tensor([1]))
    assert mean_cross_entropy(scores, target) == wanted


def test_training_that_diverges_is_no_outcome() -> None:
    with pytest.raises(ValueError, match=r"scratch: training diverged with each lr of \(1e\+30,\); add smaller ones"):
        Segmentation().run(make_job(make_examples(), lr=[1e30], steps=10))


def test_windows_must_be_larger_than_their_overlap() -> None:
    with pytest.raises(ValueError, match="overlap=64 px must be less than window=64 px"):
        SegmentationSettings(window=64, overlap=64)
