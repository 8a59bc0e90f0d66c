"""Views of tiles, computed on the device in a few passes over the pixels: warped, recoloured and normalised.

What a view shows is decided on the host, as one row of numbers per tile: see `geokr.pretraining.augment`. All constants
are on the device, so that the host never waits for it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812

from geokr.encoder import resize


@dataclass(frozen=True, slots=True)
class InputFormat:
    """The format of the networks' input. Tensors are float32 on the device."""

    size: int
    """Side of the image, px."""
    dtype: torch.dtype
    """Data type that views are written in: that of the computation."""
    layout: torch.memory_format
    mean: torch.Tensor
    """(band, 1, 1): mean of each band that the input is normalised with, for pixels in 0..1."""
    std: torch.Tensor
    """(band, 1, 1): the same for the standard deviation."""
    lowest: torch.Tensor
    """(band, 1, 1): a pixel of 0, normalised."""
    highest: torch.Tensor
    """(band, 1, 1): a pixel of 1, normalised."""
    centres: torch.Tensor
    """(size, 1): coordinates of pixel centres along a side, in -1..1."""
    levels: int = field(kw_only=True)
    """Number of resolutions of a tile, each half the one before, that zoomed views are sampled from."""


def make_input_format(
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    device: torch.device,
    channels_last: bool = False,
    zoom: float = 1.0,
) -> InputFormat:
    """Put the constants on the device. zoom: largest factor of a view's ground distance, as in `TrainConfig`."""
    middle, spread = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (mean, std))
    centres = (2 * torch.arange(size, dtype=torch.float64)[:, None] + 1) / size - 1
    constants = (middle, spread, -middle / spread, (1 - middle) / spread, centres)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    levels = 1 + math.ceil(math.log2(zoom))
    moved = [values.float().to(device) for values in constants]
    return InputFormat(size, dtype, layout, *moved, levels=levels)


def normalise(pixels: torch.Tensor, form: InputFormat) -> torch.Tensor:
    """Normalise (n, band, y, x) float pixels in 0..1 with the mean and the standard deviation of each band."""
    return ((pixels - form.mean) / form.std).contiguous(memory_format=form.layout)


@torch.no_grad()
def render(pixels: torch.Tensor, maps: torch.Tensor, form: InputFormat) -> torch.Tensor:
    """Compute a view of each tile: (n, band, size, size), normalised, in the data type and layout of `form`.

    pixels: (n, band, y, x) float32 in 0..1. maps: (n, columns) float32, from `draw_maps`. A view shows no
    finer detail than the whole tile does at this size, without aliasing, which is also what validation sees.
    """
    bands = pixels.shape[1]
    blurs = maps.shape[1] - 6 - 2 * bands**2  # 1 or 0
    theta, mix, mix_mean, spread = torch.split(maps, [6, bands**2, bands**2, blurs], dim=1)
    if pixels.shape[-1] > form.size:
        pixels = resize(pixels, form.size)
    view = _sample(pixels, theta.view(-1, 2, 3), form)  # (n, band, size, size)
    if blurs:
        view = blur(view, spread)
    mean = view.mean(dim=(2, 3))[:, :, None]  # (n, band, 1)
    base = torch.baddbmm(form.lowest[:, :, 0].expand_as(mean), mix_mean.reshape(-1, bands, bands), mean)
    colours = torch.baddbmm(base, mix.reshape(-1, bands, bands), view.flatten(2)).view_as(view)
    result = torch.empty_like(colours, dtype=form.dtype, memory_format=form.layout)
    return torch.clamp(colours, form.lowest, form.highest, out=result)  # one pass: clips, converts and reorders


def blur(view: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """Blur each view by a Gaussian of its own, mirrored at the edges: (n, band, size, size).

    spread: (n, 1), standard deviations up to 2 px of 224; 0 for no blur.
    """
    count, bands, size, _ = view.shape
    reach = min(size - 1, -(-6 * size // 224))  # three of the largest standard deviations, px
    taps = torch.arange(-reach, reach + 1, device=view.device)
    kernel = torch.softmax(-0.5 * (taps / spread.clamp_min(1e-3)).square(), dim=1)  # (n, taps)
    kernel = kernel.repeat_interleave(bands, dim=0)[:, None, :, None]  # (n * band, 1, taps, 1)
    rows = F.pad(view.reshape(1, -1, size, size), [reach] * 4, mode="reflect")
    blurred = F.conv2d(F.conv2d(rows, kernel, groups=len(kernel)), kernel.transpose(2, 3), groups=len(kernel))
    return blurred.view(count, bands, size, size)


def _sample(pixels: torch.Tensor, theta: torch.Tensor, form: InputFormat) -> torch.Tensor:
    """Warp tiles to views, without aliasing where they are zoomed out: (n, band, size, size).

    A view is interpolated between the two resolutions of the tile that are nearest to its own: trilinear
    interpolation in an image pyramid (Williams, Pyramidal Parametrics, 1983).
    """
    if form.levels == 1:
        return _warp(pixels, theta, form)
    side = pixels.shape[-1]
    area = theta[:, 0, 0] * theta[:, 1, 1] - theta[:, 0, 1] * theta[:, 1, 0]  # of the view, in tiles
    level = (0.5 * torch.log2(area.abs()) + math.log2(side / form.size)).clamp(0, form.levels - 1)
    view = torch.zeros((), device=pixels.device)
    for number in range(form.levels):
        share = (1 - (level - number).abs()).clamp_min(0)[:, None, None, None]
        view = view + share * _warp(resize(pixels, max(1, side // 2**number)), theta, form)
    return view


def _warp(pixels: torch.Tensor, theta: torch.Tensor, form: InputFormat) -> torch.Tensor:
    """Sample tiles at the positions of the views' pixels. theta: (n, 2, 3), see `view_affines`."""
    across, down, centre = (theta[:, None, None, :, column] for column in range(3))  # each (n, 1, 1, 2)
    # No matrix product as in F.affine_grid: with TF32, it would move pixels by up to a tenth of one.
    grid = torch.addcmul(centre, form.centres, across) + form.centres[:, None] * down  # (n, size, size, 2)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
