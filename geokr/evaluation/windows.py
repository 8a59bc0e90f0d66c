"""Parts of large images: random views to train on, and overlapping windows whose predictions are averaged."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812


@dataclass(frozen=True, slots=True)
class View:
    """A square part of an image, mirrored and turned."""

    top: int
    """First row, px."""
    left: int
    """First column, px."""
    side: int
    """Rows and columns, px; fewer where the image ends."""
    mirror: bool
    """Whether left and right change places."""
    turns: int
    """Quarter turns, counter-clockwise, after the mirror: 0..3."""

    def cut(self, image: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Cut the view from an image: (..., y, x) -> (..., side, side), or less where the image is smaller."""
        part = image[..., self.top : self.top + self.side, self.left : self.left + self.side]
        part = part[..., ::-1] if self.mirror else part
        return np.ascontiguousarray(np.rot90(part, self.turns, axes=(-2, -1)))


def draw_view(shape: tuple[int, int], side: int, random: np.random.Generator) -> View:
    """Draw a view of an image of `shape`, (y, x) px: any place inside it, and one of the square's eight symmetries."""
    top, left = (int(random.integers(0, max(0, length - side) + 1)) for length in shape)
    return View(top, left, side, bool(random.integers(2)), int(random.integers(4)))


def place_windows(length: int, side: int, overlap: int) -> list[int]:
    """First pixels of windows that cover an axis: [0] for an axis of at most `side` px.

    The first window starts and the last one ends at the axis' ends. Neighbours overlap by at least `overlap` px, and
    their distances differ by 1 px at most.
    """
    if not 0 <= overlap < side:
        raise ValueError(f"windows of {side} px cannot overlap by {overlap} px")
    if length <= side:
        return [0]
    count = -(-(length - side) // (side - overlap)) + 1
    return [round(k * (length - side) / (count - 1)) for k in range(count)]


def pad(tensor: torch.Tensor, side: int, value: float) -> torch.Tensor:
    """Extend an image to the right and below to `side` px: (..., y, x) -> (..., >= side, >= side)."""
    missing = [max(0, side - length) for length in tensor.shape[-2:]]
    return F.pad(tensor, (0, missing[1], 0, missing[0]), value=value)


@torch.no_grad()
def predict_windows(
    predict: Callable[[torch.Tensor], torch.Tensor],
    image: torch.Tensor,
    classes: int,
    side: int,
    overlap: int,
    batch: int,
) -> torch.Tensor:
    """Predict class probabilities of a large image: (class, y, x) float32, from (band, y, x) float32.

    predict: (n, band, side, side) -> (n, class, side, side) scores before the softmax. side, overlap: of the windows,
    px. batch: windows at a time. An image smaller than a window is extended by zeros, and the prediction cut to its
    size. A pixel in several windows gets the weighted mean of their probabilities: the weight of a window falls from
    its middle to its edges, where a network sees least of a pixel's surroundings.
    """
    height, width = image.shape[-2:]
    image = pad(image, side, 0.0)
    places = [
        (top, left)
        for top in place_windows(image.shape[-2], side, overlap)
        for left in place_windows(image.shape[-1], side, overlap)
    ]
    ramp = torch.minimum(torch.arange(1, side + 1), torch.arange(side, 0, -1)).to(image)
    weight = ramp[:, None] * ramp / ramp.max() ** 2
    total = torch.zeros(image.shape[-2:], device=image.device)
    result = torch.zeros(classes, *image.shape[-2:], device=image.device)
    for start in range(0, len(places), batch):
        some = places[start : start + batch]
        windows = torch.stack([image[:, top : top + side, left : left + side] for top, left in some])
        shares = predict(windows).float().softmax(dim=1)
        for (top, left), share in zip(some, shares, strict=True):
            result[:, top : top + side, left : left + side] += share * weight
            total[top : top + side, left : left + side] += weight
    return (result / total)[:, :height, :width]
