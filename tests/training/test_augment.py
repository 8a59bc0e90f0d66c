"""Views hold what their tile holds: geometry to the pixel, colours as torchvision changes them."""

import dataclasses

import pytest
import torch
import torchvision.transforms.functional as tv

from geokr.augment import augment, placement, plain, recolour, seed_of
from geokr.config import TrainConfig

RGB = ("red", "green", "blue")
STILL = TrainConfig(crop=1.0, turn=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, image_size=12)


def noise(tiles: int, bands: int = 3, side: int = 12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (tiles, bands, side, side), dtype=torch.uint8, generator=generator)


def eight(image: torch.Tensor) -> list[torch.Tensor]:
    """An image in its eight positions, unturned ones first."""
    turned = [torch.rot90(image, quarter, (-2, -1)) for quarter in (0, 2, 1, 3)]
    return [position for turn in turned for position in (turn, turn.flip(-1))]


@pytest.mark.parametrize(("turn", "positions"), [(0.0, 4), (1.0, 8)])
def test_whole_views_are_the_tile_mirrored_and_turned(turn: float, positions: int) -> None:
    image = noise(200)
    views = augment(image, RGB, dataclasses.replace(STILL, turn=turn), seed=5)
    found = []
    for tile, view in zip(image.float() / 255, views, strict=True):
        matches = [i for i, position in enumerate(eight(tile)) if torch.allclose(position, view, atol=1e-4)]
        found += matches[:1] or [-1]
    assert sorted(set(found)) == list(range(positions))
    counts = [found.count(i) for i in range(positions)]
    assert min(counts) > 200 / positions / 2


def test_half_the_turns_of_the_reference_do_nothing() -> None:
    draws = torch.rand(4000, 7, generator=torch.Generator().manual_seed(1))
    linear = placement(draws, crop=1.0, turn=0.5)[:, :, :2]
    aside = (linear[:, 0, 0].abs() < 0.5).double().mean()
    assert float(aside) == pytest.approx(0.25, abs=0.03)  # half of them turn, and half of those by 90 or 270


def test_crops_stay_inside_and_keep_their_share() -> None:
    """Pixels that are their own coordinate: a view's corners say which part of the tile it is."""
    side, size = 64, 32
    ramp = torch.arange(side).expand(1, 1, side, side)
    image = torch.cat([ramp, ramp.transpose(2, 3)], dim=1).to(torch.uint8).expand(300, 2, side, side)
    config = dataclasses.replace(STILL, crop=0.4, image_size=size)
    views = augment(image, ("x", "y"), config, seed=2) * 255
    extent = (views.amax(dim=(2, 3)) - views.amin(dim=(2, 3))) * size / (size - 1)  # px, from centres to edges
    assert torch.allclose(extent[:, 0], extent[:, 1], atol=1.5)
    area = (extent[:, 0] / side) ** 2
    assert 0.38 < float(area.min()) < 0.45
    assert 0.9 < float(area.max()) <= 1.01
    assert float(area.mean()) == pytest.approx(0.7, abs=0.04)
    middle = views.mean(dim=(2, 3))
    assert float(middle.std(dim=0).min()) > 3  # they lie in different places


def test_views_are_a_function_of_seed_and_place() -> None:
    image = noise(8)
    config = TrainConfig(image_size=12)
    first = augment(image, RGB, config, seed=3)
    assert torch.equal(first, augment(image, RGB, config, seed=3))
    assert not torch.equal(first, augment(image, RGB, config, seed=4))
    same = augment(image[:1].expand(8, -1, -1, -1), RGB, config, seed=3)
    assert all(not torch.allclose(same[0], same[i]) for i in range(1, 8))
    parts = [augment(image[4 * rank : 4 * rank + 4], RGB, config, 3, (rank, 2)) for rank in range(2)]
    assert torch.allclose(torch.cat(parts), first, atol=1e-6)


def test_seeds_of_near_numbers_are_unlike() -> None:
    seeds = {seed_of(seed, step, stream) for seed in range(4) for step in range(50) for stream in range(4)}
    assert len(seeds) == 800
    assert all(0 <= seed < 2**64 for seed in seeds)


@pytest.mark.parametrize("change", range(4))
def test_each_change_of_colour_is_torchvisions(change: int) -> None:
    image = noise(6).float() / 255
    draws = torch.full((6, 4), 0.5)
    draws[:, change] = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    config = dataclasses.replace(STILL, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.3)
    found = recolour(image, RGB, config, draws, [change])
    amounts = (2 * draws[:, change] - 1) * (0.3 if change == 3 else 0.5)
    oracle = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)[change]
    for tile, view, amount in zip(image, found, amounts.tolist(), strict=True):
        expected = oracle(tile, amount if change == 3 else 1 + amount)
        # torchvision's weights of grey are rounded to four digits
        assert torch.allclose(view, expected, atol=2e-3 if change in (1, 2) else 1e-4)
    assert not torch.allclose(found[0], image[0], atol=0.05)


def test_bands_without_colour_keep_their_hue_and_saturation() -> None:
    image = noise(3, bands=4).float() / 255
    bands = ("nir", "blue", "green", "red")
    config = dataclasses.replace(STILL, saturation=0.5, hue=0.3)
    found = recolour(image, bands, config, torch.full((3, 4), 0.9), [2, 3])
    assert torch.equal(found[:, 0], image[:, 0])
    alone = recolour(image[:, [3, 2, 1]], RGB, config, torch.full((3, 4), 0.9), [2, 3])
    assert torch.allclose(found[:, [3, 2, 1]], alone)
    grey = recolour(image[:, :2], ("nir", "blue"), config, torch.full((3, 4), 0.9), [2, 3])
    assert torch.equal(grey, image[:, :2])


def test_views_stay_within_range_and_size() -> None:
    views = augment(noise(20, side=100), RGB, TrainConfig(image_size=24), seed=1)
    assert views.shape == (20, 3, 24, 24)
    assert 0 <= float(views.min()) < float(views.max()) <= 1


def test_plain_resizes_without_change() -> None:
    image = noise(2)
    assert torch.equal(plain(image, 12), image.float() / 255)
    constant = torch.full((1, 3, 40, 40), 51, dtype=torch.uint8)
    assert torch.allclose(plain(constant, 12), torch.full((1, 3, 12, 12), 0.2))
    assert plain(constant, 56).shape == (1, 3, 56, 56)
