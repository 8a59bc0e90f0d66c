"""Random views of tiles: cropped, rotated and with changed colours, on the device, independently for each tile.

There is no random state: the random numbers depend on the seed argument and on the tile's position in the batch only.
They are drawn on the CPU, so that a GPU computes the same views.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from geokr.dataset.layout import RGB
from geokr.pretraining.config import TrainConfig

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey value: ITU-R BT.601."""


def derive_seed(*parts: int) -> int:
    """Derive one seed from several numbers, so that similar numbers give unrelated random streams."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def augment(
    pixels: torch.Tensor, bands: Sequence[str], config: TrainConfig, seed: int, part: tuple[int, int] = (0, 1)
) -> torch.Tensor:
    """Compute a random view of each tile: (n, band, size, size) float32 in 0..1, on the device of `pixels`.

    pixels: (n, band, y, x) float32 in 0..1. part: index of this part, and number of equal parts of the step's tiles.
    Random numbers are drawn for all parts, so that the view of a tile does not depend on the number of parts.
    """
    index, count = part
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(len(pixels) * count, 13, generator=generator)[index * len(pixels) : (index + 1) * len(pixels)]
    order = torch.randperm(4, generator=generator).tolist()
    geometry, colour = draws[:, :9], draws[:, 9:]
    theta = view_affines(geometry, config).to(pixels.device)
    view = _warp(pixels, theta, config.image_size)
    return jitter_colour(view, bands, config, colour.to(pixels.device), order)


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


def _warp(pixels: torch.Tensor, theta: torch.Tensor, size: int) -> torch.Tensor:
    factor = pixels.shape[-1] // size
    if factor >= 2:  # the sampling below reads four pixels only, so a strong reduction would cause aliasing
        pixels = F.avg_pool2d(pixels, factor)
    grid = F.affine_grid(theta, [*pixels.shape[:2], size, size], align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def jitter_colour(
    pixels: torch.Tensor, bands: Sequence[str], config: TrainConfig, draws: torch.Tensor, order: Sequence[int]
) -> torch.Tensor:
    """Change brightness, contrast, saturation and hue as torchvision's ColorJitter does, by one amount per tile.

    pixels: (n, band, y, x) float in 0..1. draws: (n, 4) uniform in 0..1. order: order of the four changes. Brightness
    changes all bands by the same factor, which keeps their ratios and thus a vegetation index. Contrast changes red,
    green and blue about their mean grey value, and any other band about its own mean, because over vegetation the near
    infrared is several times as bright as red. Saturation and hue apply to red, green and blue only. If one of these
    bands is missing, saturation and hue are left out, and contrast changes each band about its own mean.
    """
    rgb: Any = [bands.index(band) for band in RGB] if set(RGB) <= set(bands) else None
    if rgb == list(range(len(bands))):
        rgb = slice(None)  # indexing with a slice makes no copy
    strength = (config.brightness, config.contrast, config.saturation, config.hue)
    amount = [((2.0 * draws[:, i] - 1.0) * strength[i])[:, None, None, None] for i in range(4)]  # 4 of (n, 1, 1, 1)
    for change in order:
        if strength[change] == 0:
            continue
        match change:
            case 0:
                pixels = pixels * (1.0 + amount[0])
            case 1:
                mean = pixels.mean(dim=(2, 3), keepdim=True)  # (n, band, 1, 1)
                if rgb is not None:
                    mean[:, rgb] = _luma(pixels[:, rgb]).mean(dim=(2, 3), keepdim=True).expand(-1, 3, -1, -1)
                pixels = torch.lerp(mean, pixels, 1.0 + amount[1])
            case 2 if rgb is not None:
                grey = _luma(pixels[:, rgb])
                pixels = _replace_colour(pixels, rgb, torch.lerp(grey, pixels[:, rgb], 1.0 + amount[2]))
            case 3 if rgb is not None:
                pixels = _replace_colour(pixels, rgb, _shift_hue(pixels[:, rgb], amount[3]))
        pixels = pixels.clamp_(0.0, 1.0)
    return pixels


def _luma(colour: torch.Tensor) -> torch.Tensor:
    """Compute the luma of (n, 3, y, x) colours: (n, 1, y, x)."""
    red, green, blue = colour.unbind(dim=1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[:, None]


def _replace_colour(pixels: torch.Tensor, rgb: Any, colour: torch.Tensor) -> torch.Tensor:
    if isinstance(rgb, slice):
        return colour
    result = pixels.clone()
    result[:, rgb] = colour
    return result


def _shift_hue(colour: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
    """Shift the hue of colours by a share of the full circle. colour: (n, 3, y, x); amount: (n, 1, 1, 1).

    Goes through HSV without branches: channel k is v - c * max(0, min(h', 4 - h', 1)), h' = (k + h / 60) mod 6.
    """
    red, green, blue = colour.unbind(dim=1)
    value, largest = colour.max(dim=1)
    chroma = value - colour.amin(dim=1)
    divisor = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sextant = torch.where(
        largest == 0,
        (green - blue) / divisor,
        torch.where(largest == 1, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    hue = sextant[:, None] + 6.0 * amount
    offset = colour.new_tensor([5.0, 3.0, 1.0])[:, None, None]
    position = (offset + hue) % 6.0
    return value[:, None] - chroma[:, None] * torch.minimum(position, 4.0 - position).clamp(0.0, 1.0)
