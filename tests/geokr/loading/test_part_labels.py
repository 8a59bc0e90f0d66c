"""Parts of tiles come with their tiles, in every order, at any grid, for the chosen classes."""

from pathlib import Path

import numpy as np
import pytest

from geokr.dataset.layout import WHOLE_PART
from geokr.loading.loader import TileLoader
from geokr.loading.map_style import TileDataset
from geokr.loading.part_labels import resample
from geokr.loading.selection import Selection
from tests.geokr.conftest import coordinates, some_shares, write_dataset

SHAPES = {"alpha": ((5, 7), 4), "beta": ((3, 4), 2)}


@pytest.fixture(scope="module")
def parted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes with other grids; a part is of one class but for one unknown unit, by its place and its tile's."""
    pixels, share, parts = {}, {}, {}
    for i, (scene, ((rows, cols), grid)) in enumerate(SHAPES.items()):
        pixels[scene], share[scene] = coordinates(i, rows, cols), some_shares(rows, cols, seed=i)
        row, col, y, x = np.ogrid[:rows, :cols, :grid, :grid]
        which = (row + 2 * col + y + x) % 3
        parts[scene] = ((which[..., None] == np.arange(3)) * (WHOLE_PART - 1)).astype(np.uint8)
    return write_dataset(tmp_path_factory.mktemp("parted") / "data", pixels, share, parts=parts)


@pytest.mark.parametrize("grid", [2, 4])
def test_parts_come_with_their_tile(parted: Path, grid: int) -> None:
    loader = TileLoader(parted, Selection("train", grid=grid), bands=("blue", "green", "red"), batch=5, seed=4)
    seen = 0
    for batch in loader:
        assert batch.parts is not None
        for image, areas in zip(batch.image.numpy(), batch.parts.numpy(), strict=True):
            scene, row, col = image[:, 0, 0].tolist()
            stored = 4 if scene == 0 else 2
            y, x = np.mgrid[:stored, :stored]
            full = ((row + 2 * col + y + x) % 3)[..., None] == np.arange(3)
            assert np.array_equal(areas, resample((full * (WHOLE_PART - 1)).astype(np.uint8)[None], grid)[0])
            seen += 1
    assert seen == 45
    samples = TileDataset(parted, Selection("train", grid=grid))
    assert samples[3]["parts"].shape == (grid, grid, 3)


def test_without_a_grid_no_parts_are_read(parted: Path, addressed: Path) -> None:
    assert next(iter(TileLoader(parted, Selection("train"), batch=4))).parts is None
    assert "parts" not in TileDataset(parted, Selection("train"))[0]
    with pytest.raises(ValueError, match=r"made_2020.zarr/alpha: its labels have no parts; label it again with geokr"):
        TileLoader(addressed, Selection("train", grid=2), batch=4)


def test_what_lies_under_other_classes_is_unknown(parted: Path) -> None:
    chosen = TileLoader(parted, Selection("train", classes=("bare", "water"), grid=4), batch=5, shuffle=False)
    full = TileLoader(parted, Selection("train", grid=4), batch=5, shuffle=False)
    assert chosen.selected.parts is not None
    assert full.selected.parts is not None
    assert np.array_equal(chosen.selected.parts, full.selected.parts[..., [2, 0]])


def test_coarser_parts_are_means_and_finer_ones_repeat() -> None:
    rng = np.random.default_rng(0)
    fine = np.diff(np.sort(rng.integers(0, 256, (50, 8, 8, 4)), axis=-1), axis=-1, prepend=0).astype(np.uint8)
    coarse = resample(fine, 2)
    means = fine.reshape(50, 2, 4, 2, 4, 4).mean(axis=(2, 4))
    assert np.abs(coarse - means).max() <= 1
    assert np.abs(coarse.sum(axis=-1) - means.sum(axis=-1)).max() <= 0.5
    assert np.array_equal(resample(fine, 8), fine)
    assert np.array_equal(resample(coarse, 8), coarse.repeat(4, axis=1).repeat(4, axis=2))
