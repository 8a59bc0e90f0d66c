"""Windows cover an image exactly, and what they say of a pixel is averaged with weights that sum to one."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geokr.evaluation.windows import View, draw_view, pad, place_windows, predict_windows

WEIGHT = torch.tensor([[1.0, -2.0], [0.5, 1.0], [-1.0, 0.3]])


def predict_pixels(windows: torch.Tensor) -> torch.Tensor:
    """A network that sees single pixels, so that windows change nothing: 2 bands, 3 classes."""
    return torch.einsum("kb,nbyx->nkyx", WEIGHT, windows)


@given(st.integers(1, 300), st.integers(1, 64), st.data())
def test_windows_cover_an_axis_and_overlap_enough(length: int, side: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, side - 1))
    starts = place_windows(length, side, overlap)
    assert starts[0] == 0
    assert max(starts) + side == max(length, side)
    steps = np.diff(starts)
    assert all(1 <= step <= side - overlap for step in steps)
    assert np.ptp(steps) <= 1 if len(steps) else True


def test_windows_that_overlap_in_full_are_refused() -> None:
    with pytest.raises(ValueError, match="windows of 8 px cannot overlap by 8 px"):
        place_windows(20, 8, 8)


@pytest.mark.parametrize("shape", [(37, 53), (16, 90), (5, 7), (16, 16)])
@pytest.mark.parametrize("overlap", [0, 3, 12])
def test_windows_together_are_the_whole_image(shape: tuple[int, int], overlap: int) -> None:
    image = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    shares = predict_windows(predict_pixels, image, classes=3, side=16, overlap=overlap, batch=20)
    wanted = predict_pixels(image[None])[0].softmax(dim=0)
    assert shares.shape == (3, *shape)
    assert torch.allclose(shares, wanted, atol=1e-6)
    assert torch.allclose(shares.sum(dim=0), torch.ones(shape), atol=1e-6)


def test_a_pixel_in_two_windows_gets_their_weighted_mean() -> None:
    answers = iter([0.0, 4.0])  # the score of class 1 in each window

    def predict(windows: torch.Tensor) -> torch.Tensor:
        score = torch.full((1, 2, 4, 4), next(answers))
        score[:, 0] = 0
        return score

    shares = predict_windows(predict, torch.zeros(1, 4, 6), classes=2, side=4, overlap=2, batch=1)
    first, second = (torch.tensor([0.0, score]).softmax(0)[1] for score in (0.0, 4.0))
    # Weights of a window of 4 px: 1, 2, 2, 1. The windows start at columns 0 and 2.
    wanted = [first, first, (2 * first + 1 * second) / 3, (1 * first + 2 * second) / 3, second, second]
    assert shares[1, 0].tolist() == pytest.approx([float(value) for value in wanted])


def test_a_view_is_a_part_of_the_image_in_one_of_eight_attitudes() -> None:
    image = np.arange(6 * 9).reshape(1, 6, 9)
    assert View(1, 2, 3, mirror=False, turns=0).cut(image).tolist() == image[:, 1:4, 2:5].tolist()
    assert View(1, 2, 3, mirror=True, turns=0).cut(image).tolist() == image[:, 1:4, 2:5][..., ::-1].tolist()
    turned = View(0, 0, 6, mirror=False, turns=1).cut(image)[0]
    assert turned[0, 0] == image[0, 0, 5]  # counter-clockwise: the upper right corner becomes the upper left
    seen = {View(0, 0, 2, mirror, turns).cut(image).tobytes() for mirror in (False, True) for turns in range(4)}
    assert len(seen) == 8


def test_views_lie_in_the_image_and_are_a_function_of_the_seed() -> None:
    draws = [[draw_view((20, 50), 16, np.random.default_rng(seed)) for _ in range(5)] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    random = np.random.default_rng(0)
    views = [draw_view((20, 50), 16, random) for _ in range(300)]
    assert {view.top for view in views} == set(range(5))
    assert (min(view.left for view in views), max(view.left for view in views)) == (0, 34)
    assert draw_view((5, 50), 16, random).cut(np.zeros((3, 5, 50))).size == 3 * 5 * 16


def test_padding_extends_right_and_below() -> None:
    padded = pad(torch.ones(2, 3, 5), 4, 7.0)
    assert padded.shape == (2, 4, 5)
    assert padded[:, :3].eq(1).all()
    assert padded[:, 3].eq(7).all()
