"""Views hold what their tile holds: geometry to the pixel, colours as torchvision changes them."""

import itertools
import math

import pytest
import torch
import torchvision.transforms.functional as tv

from geokr.encoder import resize
from geokr.pretraining.augment import colour_maps, derive_seed, draw_maps, view_affines, zoom_out
from geokr.pretraining.config import TrainConfig
from geokr.pretraining.render import make_input_format, normalise, render

RGB = ("red", "green", "blue")
STILL = TrainConfig(
    bands=RGB,
    crop=1.0,
    quarter_turn_probability=0.0,
    brightness=0.0,
    contrast=0.0,
    saturation=0.0,
    hue=0.0,
    image_size=12,
)


def noise(tiles: int, bands: int = 3, side: int = 12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (tiles, bands, side, side), generator=generator) / 255


def augment(pixels: torch.Tensor, config: TrainConfig, seed: int, part: tuple[int, int] = (0, 1)) -> torch.Tensor:
    """Views of pixels in 0..1, in 0..1: not normalised."""
    plain, unit = [0.0] * len(config.bands), [1.0] * len(config.bands)
    form = make_input_format(config.image_size, plain, unit, torch.float32, torch.device("cpu"))
    return render(pixels, draw_maps(len(pixels), config, unit, seed, part), form)


def recolour(
    image: torch.Tensor, bands: tuple[str, ...], config: TrainConfig, draws: torch.Tensor, order: list[int]
) -> torch.Tensor:
    """Colours changed by their maps, written out."""
    mix, mix_mean = colour_maps(draws, config.model_copy(update={"bands": bands}), order)
    mean = image.mean((2, 3))
    colours = torch.einsum("nij,njyx->niyx", mix, image) + torch.einsum("nij,nj->ni", mix_mean, mean)[..., None, None]
    return colours.clamp(0, 1)


def eight(image: torch.Tensor) -> list[torch.Tensor]:
    """An image in its eight positions, unturned ones first."""
    turned = [torch.rot90(image, quarter, (-2, -1)) for quarter in (0, 2, 1, 3)]
    return [position for turn in turned for position in (turn, turn.flip(-1))]


@pytest.mark.parametrize(("turn", "positions"), [(0.0, 4), (1.0, 8)])
def test_whole_views_are_the_tile_mirrored_and_turned(turn: float, positions: int) -> None:
    image = noise(200)
    views = augment(image, STILL.model_copy(update={"quarter_turn_probability": turn}), seed=5)
    found = []
    for tile, view in zip(image, views, strict=True):
        matches = [i for i, position in enumerate(eight(tile)) if torch.allclose(position, view, atol=1e-4)]
        found += matches[:1] or [-1]
    assert sorted(set(found)) == list(range(positions))
    counts = [found.count(i) for i in range(positions)]
    assert min(counts) > 200 / positions / 2


def some_draws(tiles: int = 4000) -> torch.Tensor:
    return torch.rand(tiles, 9, generator=torch.Generator().manual_seed(1))


def test_half_the_turns_of_the_reference_do_nothing() -> None:
    linear = view_affines(some_draws(), STILL.model_copy(update={"quarter_turn_probability": 0.5}))[:, :, :2]
    aside = (linear[:, 0, 0].abs() < 0.5).double().mean()
    assert float(aside) == pytest.approx(0.25, abs=0.03)  # half of them turn, and half of those by 90 or 270


def test_crops_stay_inside_and_keep_their_share() -> None:
    """Pixels that are their own coordinate: a view's corners say which part of the tile it is."""
    side, size = 64, 32
    ramp = torch.arange(side).expand(1, 1, side, side)
    image = torch.cat([ramp, ramp.transpose(2, 3)], dim=1).div(255).expand(300, 2, side, side)
    config = STILL.model_copy(update={"bands": ("x", "y"), "crop": 0.4, "image_size": size})
    views = augment(image, config, seed=2) * 255
    extent = (views.amax(dim=(2, 3)) - views.amin(dim=(2, 3))) * size / (size - 1)  # px, from centres to edges
    assert torch.allclose(extent[:, 0], extent[:, 1], atol=1.5)
    area = (extent[:, 0] / side) ** 2
    assert 0.38 < float(area.min()) < 0.45
    assert 0.9 < float(area.max()) <= 1.01
    assert float(area.mean()) == pytest.approx(0.7, abs=0.04)
    middle = views.mean(dim=(2, 3))
    assert float(middle.std(dim=0).min()) > 3  # they lie in different places
    assert abs(float(torch.corrcoef(middle.T)[0, 1])) < 0.2  # in all of them, not along a line


def test_free_rotation_turns_by_the_angle_and_keeps_lengths() -> None:
    config = STILL.model_copy(update={"rotate": 30.0, "crop": 0.25})
    theta = view_affines(some_draws(), config)
    linear = theta[:, :, :2]
    lengths = linear.square().sum(1).sqrt()  # of the view's sides, as shares of the tile's
    assert torch.allclose(lengths[:, 0], lengths[:, 1], atol=1e-6)
    assert 0.5 <= float(lengths.min()) < 0.51
    assert float(lengths.max()) > 0.99
    assert float((linear[:, :, 0] * linear[:, :, 1]).sum(1).abs().max()) < 1e-6  # sides stay square to each other
    angle = torch.rad2deg(torch.atan2(linear[:, 1, 0], linear[:, 0, 0]))
    off = (angle + 90) % 180 - 90  # mirroring turns by half a circle
    assert float(off.abs().max()) <= 30.001
    assert float(off.std()) == pytest.approx(60 / 12**0.5, rel=0.05)  # evenly within 30 either way
    reach = theta[:, :, 2].abs() + linear.abs().sum(2)
    inside = linear.abs().sum(2) <= 1
    assert float(inside.double().mean()) > 0.5
    assert float(reach[inside].max()) < 1 + 1e-6  # a view that can lie inside the tile does
    assert float(theta[:, :, 2][~inside].abs().max()) == 0


def test_a_rotated_view_shows_the_tile_rotated() -> None:
    """Pixels that are their own coordinate, so that the view says where each of its pixels lies."""
    side = 64
    ramp = torch.arange(side).expand(1, 1, side, side) * 2
    image = torch.cat([ramp, ramp.transpose(2, 3)], dim=1).div(255).expand(50, 2, side, side)
    config = STILL.model_copy(update={"bands": ("x", "y"), "rotate": 45.0, "crop": 0.25, "image_size": 16})
    views = augment(image, config, seed=4) * 255 / 2
    right, down = views[:, :, 8, 9] - views[:, :, 8, 8], views[:, :, 9, 8] - views[:, :, 8, 8]
    assert float((right * down).sum(1).abs().max()) < 0.05 * float(right.square().sum(1).max())
    assert torch.allclose(right.norm(dim=1), down.norm(dim=1), atol=0.05)
    assert float(right[:, 1].abs().max()) > 1  # not along the rows


def test_stretched_views_keep_their_area_within_the_ratio() -> None:
    config = STILL.model_copy(update={"crop": 0.3, "aspect_ratio": 2.0})
    lengths = view_affines(some_draws(), config)[:, :, :2].square().sum(1).sqrt()
    ratio = lengths[:, 0] / lengths[:, 1]
    assert 0.499 < float(ratio.min()) < 0.55
    assert 1.8 < float(ratio.max()) < 2.001
    assert float(lengths.max()) <= 1 + 1e-6
    assert float(lengths.prod(1).min()) == pytest.approx(0.3, abs=0.01)
    linear = view_affines(some_draws(), config.model_copy(update={"quarter_turn_probability": 1.0, "rotate": 40.0}))[
        :, :, :2
    ]
    assert float((linear[:, :, 0] * linear[:, :, 1]).sum(1).abs().max()) < 1e-6  # turned, and stretched without leaning


def test_views_are_a_function_of_seed_and_place() -> None:
    image = noise(8)
    config = TrainConfig(bands=RGB, image_size=12)
    first = augment(image, config, seed=3)
    assert torch.equal(first, augment(image, config, seed=3))
    assert not torch.equal(first, augment(image, config, seed=4))
    same = augment(image[:1].expand(8, -1, -1, -1), config, seed=3)
    assert all(not torch.allclose(same[0], same[i]) for i in range(1, 8))
    parts = [augment(image[4 * rank : 4 * rank + 4], config, 3, (rank, 2)) for rank in range(2)]
    assert torch.allclose(torch.cat(parts), first, atol=1e-6)


def test_the_changes_of_colour_come_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = []

    def noted(draws: torch.Tensor, config: TrainConfig, order: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        orders.append(order)
        return colour_maps(draws, config, order)

    monkeypatch.setattr("geokr.pretraining.augment.colour_maps", noted)
    for seed in range(60):
        draw_maps(1, STILL, [1.0] * 3, seed)
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    before = {pair for order in orders for pair in itertools.combinations(order, 2)}
    assert before == set(itertools.permutations(range(4), 2))


def test_seeds_of_near_numbers_are_unlike() -> None:
    seeds = {derive_seed(seed, step, stream) for seed in range(4) for step in range(50) for stream in range(4)}
    assert len(seeds) == 800
    assert all(0 <= seed < 2**64 for seed in seeds)


@pytest.mark.parametrize("change", range(3))
def test_each_change_but_of_hue_is_torchvisions(change: int) -> None:
    image = noise(6)
    draws = torch.full((6, 4), 0.5)
    draws[:, change] = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    config = STILL.model_copy(update={"brightness": 0.5, "contrast": 0.5, "saturation": 0.5})
    found = recolour(image, RGB, config, draws, [change])
    oracle = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)[change]
    for tile, view, amount in zip(image, found, (2 * draws[:, change] - 1).tolist(), strict=True):
        # torchvision's weights of grey are rounded to four digits
        assert torch.allclose(view, oracle(tile, 1 + amount / 2), atol=2e-3 if change else 1e-4)
    assert not torch.allclose(found[0], image[0], atol=0.05)


def test_the_hue_is_rotated_about_grey_as_torchvision_does_around_a_hexagon() -> None:
    """A third of the circle passes red on to green, green to blue and blue to red in both; near grey, both agree."""
    draws = torch.full((1, 4), 0.5)
    draws[:, 3] = 0.5 + 1 / 3 / 2 / 0.5
    config = STILL.model_copy(update={"hue": 0.5})
    image = noise(1)
    assert torch.allclose(recolour(image, RGB, config, draws, [3]), image[:, [2, 0, 1]], atol=1e-5)
    assert torch.allclose(tv.adjust_hue(image[0], 1 / 3), image[0, [2, 0, 1]], atol=1e-4)
    grey = torch.rand(1, 1, 4, 4).expand(1, 3, 4, 4)
    for amount in (0.1, 0.4, 0.9):
        draws[:, 3] = amount
        assert torch.allclose(recolour(grey, RGB, config, draws, [3]), grey, atol=1e-6)
        pale = 0.5 + (image - 0.5) / 10
        found = recolour(pale, RGB, config, draws, [3])
        assert float((found - tv.adjust_hue(pale, amount - 0.5)).abs().mean()) < 0.02
        assert torch.allclose(found.mean(1), pale.mean(1), atol=1e-6)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_changes_in_a_row_are_torchvisions_where_nothing_is_clipped(order: list[int]) -> None:
    image = 0.4 + noise(6) / 5
    draws = torch.rand(6, 4, generator=torch.Generator().manual_seed(3))
    found = recolour(image, RGB, TrainConfig(), draws, order)
    changes = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)
    for tile, view, numbers in zip(image, found, draws.tolist(), strict=True):
        for change in order:
            tile = changes[change](tile, 1 + 0.3 * (2 * numbers[change] - 1))
        assert torch.allclose(view, tile, atol=1e-3)


def test_a_view_in_one_pass_is_warp_colours_clipping_and_normalisation_one_by_one() -> None:
    bands = ("nir", "red", "green", "blue")
    config = TrainConfig(bands=bands, image_size=12, hue=0.2, contrast=0.5)
    mean, std = [0.2, 0.4, 0.5, 0.3], [0.1, 0.3, 0.2, 0.25]
    image = noise(9, bands=4, side=20)
    generator = torch.Generator().manual_seed(7)
    draws, order = torch.rand(9, 13, generator=generator), torch.randperm(4, generator=generator).tolist()
    theta = view_affines(draws[:, :9], config)
    grid = torch.nn.functional.affine_grid(theta, [9, 4, 12, 12], align_corners=False)
    view = torch.nn.functional.grid_sample(resize(image, 12), grid, padding_mode="reflection", align_corners=False)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        form = make_input_format(12, mean, std, dtype, torch.device("cpu"), channels_last=True)
        expected = normalise(recolour(view, bands, config, draws[:, 9:], order), form)
        found = render(image, draw_maps(9, config, std, seed=7), form)
        assert found.dtype == dtype
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(found.float(), expected, atol=tolerance)


def test_bands_without_colour_keep_their_hue_and_saturation() -> None:
    image = noise(3, bands=4)
    bands = ("nir", "blue", "green", "red")
    config = STILL.model_copy(update={"saturation": 0.5, "hue": 0.3})
    found = recolour(image, bands, config, torch.full((3, 4), 0.9), [2, 3])
    assert torch.allclose(found[:, 0], image[:, 0], atol=1e-6)
    alone = recolour(image[:, [3, 2, 1]], RGB, config, torch.full((3, 4), 0.9), [2, 3])
    assert torch.allclose(found[:, [3, 2, 1]], alone, atol=1e-6)
    grey = recolour(image[:, :2], ("nir", "blue"), config, torch.full((3, 4), 0.9), [2, 3])
    assert torch.equal(grey, image[:, :2])


def test_near_infrared_has_the_light_of_the_others_and_a_contrast_of_its_own() -> None:
    generator = torch.Generator().manual_seed(9)
    image = torch.rand(5, 4, 12, 12, generator=generator) * 0.2 + torch.tensor([0.6, 0.1, 0.15, 0.2])[:, None, None]
    bands = ("nir", "blue", "green", "red")
    config = STILL.model_copy(update={"brightness": 0.3, "contrast": 0.5})
    brighter = recolour(image, bands, config, torch.full((5, 4), 0.75), [0])
    assert torch.allclose(brighter, image * 1.15)  # every ratio of bands is kept
    sharper = recolour(image, bands, config, torch.full((5, 4), 0.75), [1])
    nir, its = image[:, 0], sharper[:, 0]
    assert torch.allclose(its.mean((1, 2)), nir.mean((1, 2)), atol=1e-6)
    assert torch.allclose(its.std((1, 2)), 1.25 * nir.std((1, 2)), atol=1e-5)
    alone = recolour(image[:, [3, 2, 1]], RGB, config, torch.full((5, 4), 0.75), [1])
    assert torch.allclose(sharper[:, [3, 2, 1]], alone)  # colours as if there were no near infrared


def test_views_stay_within_range_and_size() -> None:
    views = augment(noise(20, side=100), TrainConfig(bands=RGB, image_size=24), seed=1)
    assert views.shape == (20, 3, 24, 24)
    assert 0 <= float(views.min()) < float(views.max()) <= 1


@pytest.mark.parametrize("side", [18, 24, 30])
def test_a_whole_view_is_as_sharp_as_validation_sees_the_tile(side: int) -> None:
    """Reduced by 1.5, 2 and 2.5: without aliasing, equal to the resized tile up to its position."""
    image = noise(20, side=side)
    for plain, view in zip(resize(image, 12), augment(image, STILL, seed=0), strict=True):
        assert min(float((position - view).abs().max()) for position in eight(plain)) < 1e-4


def test_what_is_too_fine_for_a_view_does_not_alias() -> None:
    """Stripes of 2.2 px in a tile of 48 px, reduced by 1.5: beyond what 32 px can show, so they must fade."""
    stripes = 0.5 + 0.5 * torch.sin(2 * torch.pi * torch.arange(48) / 2.2)
    image = stripes.expand(8, 3, 48, 48)
    views = augment(image, STILL.model_copy(update={"image_size": 32, "crop": 0.8}), seed=0)
    assert float(views.std(dim=(2, 3)).max()) < 0.4 * float(image.std())


def test_plain_resizes_without_change() -> None:
    image = noise(2)
    assert torch.equal(resize(image, 12), image)
    constant = torch.full((1, 3, 40, 40), 0.2)
    assert torch.allclose(resize(constant, 12), torch.full((1, 3, 12, 12), 0.2))
    assert resize(constant, 56).shape == (1, 3, 56, 56)


# --- coarser ground distances


ZOOMED = STILL.model_copy(update={"zoom": 4.0, "image_size": 16})


def show(pixels: torch.Tensor, theta: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """Views of pixels in 0..1 by given affine maps, in 0..1."""
    plain, unit = [0.0] * 3, [1.0] * 3
    form = make_input_format(config.image_size, plain, unit, torch.float32, torch.device("cpu"), zoom=config.zoom)
    maps = draw_maps(len(pixels), config, unit, seed=0)[:, :-1]
    maps[:, :6] = theta.flatten(1)
    return render(pixels, maps, form)


def scaled(factor: float, tiles: int = 4) -> torch.Tensor:
    return (factor * torch.eye(2, 3)).expand(tiles, 2, 3)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_a_zoomed_view_is_the_tile_made_smaller_and_mirrored_around(factor: int) -> None:
    image = noise(4, side=16)
    small = resize(image, 16 // factor)
    around = torch.cat([small, small.flip(3), small, small.flip(3), small], dim=3)
    around = torch.cat([around, around.flip(2), around, around.flip(2), around], dim=2)
    middle, half = around.shape[-1] // 2, 8
    expected = around[:, :, middle - half : middle + half, middle - half : middle + half]
    torch.testing.assert_close(show(image, scaled(factor), ZOOMED), expected, rtol=0, atol=1e-5)


def test_a_zoomed_view_has_no_aliases() -> None:
    """Stripes as wide as a pixel are grey from afar, at each factor and each angle."""
    stripes = torch.arange(16).remainder(2).float().expand(4, 3, 16, 16)
    turned = torch.tensor([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0]])
    for theta in (scaled(2.0), scaled(3.1), 4 * turned.expand(4, 2, 3)):
        seen = show(stripes, theta, ZOOMED)
        assert (seen - 0.5).abs().max() < 0.13
    assert (show(stripes, scaled(1.0), ZOOMED) - 0.5).abs().min() > 0.49


def test_zooms_are_even_in_the_logarithm_and_stop_at_the_coarsest() -> None:
    config = ZOOMED.model_copy(update={"coarsest": 16.0})
    maps = draw_maps(4000, config, [1.0] * 3, seed=1)
    plain = draw_maps(4000, STILL, [1.0] * 3, seed=1)
    assert torch.equal(maps[:, :-1], plain)
    gsd = torch.tensor([2.0, 8.0, 16.0, 30.0, math.nan]).repeat(800)
    found = zoom_out(maps, config, gsd)
    assert torch.equal(found[:, 6:], plain[:, 6:])
    assert torch.equal(found[:, [2, 5]], plain[:, [2, 5]])
    factor = (found[:, 0].square() + found[:, 1].square()).sqrt() / (plain[:, 0].square() + plain[:, 1].square()).sqrt()
    for group, most in enumerate((4.0, 2.0, 1.0, 1.0, 1.0)):
        powers = factor[group::5].log2()
        assert powers.min() >= -1e-5
        assert powers.max() <= math.log2(most) + 1e-5
        assert powers.mean() == pytest.approx(math.log2(most) / 2, abs=0.06)
        assert powers.std() == pytest.approx(math.log2(most) / 12**0.5, abs=0.06)
    free = zoom_out(maps, ZOOMED, None)[:, :2].square().sum(dim=1).sqrt()
    assert free.max() > 3.9
