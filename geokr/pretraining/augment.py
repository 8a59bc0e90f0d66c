"""What a random view of a tile shows: which part of it, how rotated, and with which change of colours.

There is no random state: the random numbers depend on the seed argument and on the tile's position in the batch only.
They are drawn on the CPU, so that a GPU computes the same views, and become one row of numbers per tile, which
`geokr.pretraining.render` applies.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from geokr.dataset.layout import RGB
from geokr.pretraining.config import TrainConfig

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey value: ITU-R BT.601."""


def derive_seed(*parts: int) -> int:
    """Derive one seed from several numbers, so that similar numbers give unrelated random streams."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def draw_maps(
    tiles: int, config: TrainConfig, std: Sequence[float], seed: int, part: tuple[int, int] = (0, 1)
) -> torch.Tensor:
    """Draw a view of each tile: (tiles, 6 + 2 * band * band) float32 on the CPU, a column more each with blur and zoom.

    Each row has the six numbers of the affine map of `view_affines`, and the two matrices of `colour_maps`, divided by
    `std` of each band; then the standard deviation of the blur, px, or 0 for none; then the power of the largest zoom,
    uniform in 0..1, which `zoom_out` takes. part: index of this part, and number
    of equal parts of the step's tiles. Random numbers are drawn for all parts, so that the view of a tile does not
    depend on the number of parts.
    """
    index, count = part
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(tiles * count, 13, generator=generator)[index * tiles : (index + 1) * tiles]
    order = torch.randperm(4, generator=generator).tolist()
    more = torch.rand(tiles * count, 3, generator=generator)[index * tiles : (index + 1) * tiles]
    theta = view_affines(draws[:, :9], config)
    is_grey = (more[:, 0] < config.grey)[:, None, None]
    scale = 1 / torch.tensor(std)[:, None]
    columns = [theta.flatten(1)]
    for matrix in colour_maps(draws[:, 9:], config, order):
        columns.append((torch.where(is_grey, matrix.mean(dim=1, keepdim=True), matrix) * scale).flatten(1))
    if config.blur:
        spread = (0.1 + 1.9 * more[:, 1]) * config.image_size / 224
        columns.append((spread * (more[:, 2] < config.blur))[:, None])
    if config.zoom > 1:
        columns.append(torch.rand(tiles * count, generator=generator)[index * tiles : (index + 1) * tiles, None])
    return torch.cat(columns, dim=1)


def zoom_out(maps: torch.Tensor, config: TrainConfig, gsd: torch.Tensor | None) -> torch.Tensor:
    """Let each view show a coarser ground distance, by a factor up to `zoom`, uniform in its logarithm.

    maps: from `draw_maps`, on any device; without the last column in the result. gsd: (n,) ground distances of the
    tiles' pixels, m, NaN if unknown, needed with `coarsest`: then no tile is shown coarser than that, and one of
    unknown ground distance as it is. The view covers more of the tile and, beyond its edges, shows it mirrored.
    """
    most = torch.full_like(maps[:, -1:], config.zoom)
    if config.coarsest and gsd is not None:
        most = (config.coarsest / gsd[:, None]).nan_to_num(nan=1.0).clamp(1.0, config.zoom)
    theta = maps[:, :6].view(-1, 2, 3)
    linear = theta[:, :, :2] * (most ** maps[:, -1:])[:, :, None]
    return torch.cat([torch.cat([linear, theta[:, :, 2:]], dim=2).flatten(1), maps[:, 6:-1]], dim=1)


def view_affines(draws: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """Compute the geometry of each view: (n, 2, 3) affine maps from view to tile, on (x, y, 1) in -1..1.

    draws: (n, 9) uniform in 0..1. A view covers `crop` to 1 of the tile's area. The ratio of its sides is within
    1/`aspect_ratio` .. `aspect_ratio`, and no side is longer than the tile's. The view is mirrored in x and in y with
    probability 1/2 each, rotated by 0, 90, 180 or 270 degrees (equally likely) with probability
    `quarter_turn_probability`, and rotated by up to `rotate` degrees more in either direction. It lies inside the tile
    unless the rotation makes it too wide; its corners then show the tile mirrored at its edge.
    """
    mirror = 1.0 - 2.0 * (draws[:, :2] < 0.5)  # (n, 2)
    quarters = torch.where(
        draws[:, 2] < config.quarter_turn_probability, (draws[:, 3] * 4).floor(), torch.zeros(())
    ).long()
    cos = torch.tensor([1.0, 0.0, -1.0, 0.0])[quarters]
    sin = torch.tensor([0.0, 1.0, 0.0, -1.0])[quarters]
    if config.rotate:
        angle = torch.deg2rad(config.rotate * (2.0 * draws[:, 7] - 1.0))
        cos, sin = cos * angle.cos() - sin * angle.sin(), sin * angle.cos() + cos * angle.sin()
    side = (config.crop + (1.0 - config.crop) * draws[:, 4]).sqrt()  # (n,), relative to the side of the tile
    ratio = config.aspect_ratio ** (draws[:, 8] - 0.5)  # square root of the ratio of the sides
    sides = torch.stack([side * ratio, side / ratio], dim=1).clamp(max=1.0)  # (n, 2)
    linear = torch.stack([cos, -sin, sin, cos], dim=1).reshape(-1, 2, 2) * (mirror * sides)[:, None, :]
    margin = (1.0 - linear.abs().sum(dim=2)).clamp(min=0.0)  # (n, 2), on each side
    centre = (2.0 * draws[:, 5:7] - 1.0) * margin
    return torch.cat([linear, centre[:, :, None]], dim=2)


def colour_maps(draws: torch.Tensor, config: TrainConfig, order: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the change of colours of each view: matrices A and B, both (n, band, band).

    A pixel x of a view with the mean m becomes A x + B m, clipped to 0..1. draws: (n, 4) uniform in 0..1. order: order
    of brightness, contrast, saturation and hue, numbered 0 to 3.

    The changes are those of torchvision's ColorJitter, with two differences, so that they are linear and together one
    map: colours are clipped once, after the last change, and the hue is rotated about the grey axis of red, green and
    blue instead of around the hexagon of HSV. Brightness changes all bands by the same factor, which keeps their ratios
    and thus a vegetation index. Contrast changes red, green and blue about their mean grey value, and any other band
    about its own mean, because over vegetation the near infrared is several times as bright as red. Saturation and hue
    apply to red, green and blue only. If one of these bands is missing, saturation and hue are left out, and contrast
    changes each band about its own mean.
    """
    identity = torch.eye(len(config.bands))
    grey, turn = identity.clone(), torch.zeros_like(identity)  # of a band without colour: itself, and nothing
    third = identity.clone()
    if set(RGB) <= set(config.bands):
        red, green, blue = rgb = [config.bands.index(band) for band in RGB]
        grey[rgb], third[rgb] = 0.0, 0.0
        for band, luma in zip(rgb, LUMA, strict=True):
            grey[rgb, band], third[rgb, band] = luma, 1 / 3
        for band, before, after in ((red, green, blue), (green, blue, red), (blue, red, green)):
            turn[band, before], turn[band, after] = -(3**-0.5), 3**-0.5
    strength = torch.tensor([config.brightness, config.contrast, config.saturation, config.hue])
    amounts = ((2.0 * draws - 1.0) * strength)[:, :, None, None].unbind(dim=1)  # 4 of (n, 1, 1)
    mix = identity.expand(len(draws), -1, -1)
    mix_mean = torch.zeros_like(mix)
    for change in order:
        amount = amounts[change]
        match change:
            case 0:
                mix, mix_mean = (1 + amount) * mix, (1 + amount) * mix_mean
            case 1:  # the mean of the pixels so far is (A + B) m
                mean = grey @ (mix + mix_mean)
                mix, mix_mean = (1 + amount) * mix, (1 + amount) * mix_mean - amount * mean
            case 2:
                matrix = identity + amount * (identity - grey)
                mix, mix_mean = matrix @ mix, matrix @ mix_mean
            case 3:  # Rodrigues' rotation about (1, 1, 1)
                angle = 2 * math.pi * amount
                matrix = identity + angle.sin() * turn + (1 - angle.cos()) * (third - identity)
                mix, mix_mean = matrix @ mix, matrix @ mix_mean
    return mix, mix_mean
