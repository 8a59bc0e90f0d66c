"""Which parts of a tile a view shows, and where: so the label of a view becomes that of what it shows.

The parts of a tile lie on a grid, and so do the places of a feature map, but the view in which a network sees the tile
is mirrored, turned and cropped. All that follows from one number for each part and place: the share of the view's area
that lies in both.
"""

import math

import torch

SAMPLES = 64
"""Points along a side of a view at which it is looked up, at least: borders are 1/128 of it off at most."""


@torch.no_grad()
def measure_overlap(theta: torch.Tensor, grid: int, height: int, width: int) -> torch.Tensor:
    """Compute the share of each view's area in each part and place: (n, grid * grid, height * width), sums to 1.

    theta: (n, 2, 3), see `view_affines`. Parts of the tile and places of the view are both counted row by row. Where a
    view shows the tile mirrored at its edge, it shows the parts there.
    """
    rows, cols = height * math.ceil(SAMPLES / height), width * math.ceil(SAMPLES / width)
    y, x = (
        (2 * torch.arange(count, device=theta.device) + 1) / count - 1 for count in (rows, cols)
    )  # centres of a raster, in -1..1
    part = torch.zeros(len(theta), rows, cols, dtype=torch.int64, device=theta.device)
    for axis, stride in ((1, grid), (0, 1)):
        across, down, centre = (theta[:, axis, k, None, None] for k in range(3))
        place = across * x + down * y[:, None] + centre  # (n, rows, cols)
        place = ((place - 1).remainder(4) - 2).abs() - 1  # mirrored at the edges of the tile, again and again
        part += stride * ((place + 1) * (grid / 2)).long().clamp(0, grid - 1)
    cell_row, cell_col = (
        torch.arange(count, device=theta.device) // (count // cells) for count, cells in ((rows, height), (cols, width))
    )
    cells = height * width
    index = part * cells + (cell_row[:, None] * width + cell_col)
    counts = torch.zeros(len(theta), grid * grid * cells, device=theta.device)
    counts.scatter_add_(1, index.flatten(1), torch.ones((), device=theta.device).expand(len(theta), rows * cols))
    return counts.view(len(theta), grid * grid, cells) / (rows * cols)


def label_views(overlap: torch.Tensor, parts: torch.Tensor, fraction: torch.Tensor) -> torch.Tensor:
    """The class shares of what each view shows: (n, class), rows sum to 1.

    overlap: (n, part, place). parts: (n, part, class), area of each class in each part, 0..1. fraction: (n, class), the
    label of the whole tile, for a view in which nothing is known.
    """
    areas = torch.bmm(overlap.sum(dim=2)[:, None], parts)[:, 0]  # (n, class)
    known = areas.sum(dim=1, keepdim=True)
    return torch.where(known > 1e-6, areas / known.clamp_min(1e-6), fraction)


def pool(predicted: torch.Tensor, overlap: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Average what a view's places predict over each part: (n, part, class), and the parts' shares of it: (n, part).

    predicted: (n, class, y, x) shares. overlap: (n, part, y * x). A part that the view does not show gets zeros.
    """
    share = overlap.sum(dim=2)
    sums = torch.bmm(overlap, predicted.flatten(2).transpose(1, 2))
    return sums / share[..., None].clamp_min(1e-9), share
