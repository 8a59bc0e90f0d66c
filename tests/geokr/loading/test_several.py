"""Several data sets are read as one: archives, sensors and sizes of tiles apart, classes held against each other."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geokr.loading import loader as loader_module
from geokr.loading.loader import Batch, TileLoader
from geokr.loading.selection import Selection, list_datasets, select_tiles
from tests.geokr.conftest import BANDS, CLASSES, coordinates, some_shares

TRAIN = Selection("train")


@pytest.fixture(scope="module")
def two(build, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two data sets whose scenes have the same names, and whose tiles are their own addresses: 30 and 12 tiles."""
    folder = tmp_path_factory.mktemp("several")
    first = {"alpha": coordinates(0, 4, 5), "beta": coordinates(1, 2, 5)}
    second = {"beta": coordinates(2, 3, 4)}
    return [
        build(folder / name, pixels, {s: some_shares(*image.shape[:2]) for s, image in pixels.items()})
        for name, pixels in (("one", first), ("two", second))
    ]


def addresses(batch: Batch) -> list[tuple[int, int, int]]:
    image = batch.image.numpy()
    assert (image == image[:, :, :1, :1]).all()
    return [tuple(pixel) for pixel in image[:, :3, 0, 0].tolist()]


def read(data: Any, **options: Any) -> list[tuple[int, int, int]]:
    loader = TileLoader(data, TRAIN, **({"bands": BANDS, "batch": 6} | options))
    return [address for batch in loader for address in addresses(batch)]


def test_each_tile_of_all_comes_once_those_of_one_after_the_other(two: list[Path]) -> None:
    parts = [read(dataset, shuffle=False) for dataset in two]
    assert read(two, shuffle=False) == [*parts[0], *parts[1]]
    assert sorted(read(two)) == sorted(parts[0] + parts[1])
    classes, tiles = select_tiles(two, TRAIN)
    assert (classes, tiles.scenes, tiles.homes) == (CLASSES, ("alpha", "beta", "beta"), (0, 0, 1))
    assert TileLoader(two, TRAIN, bands=BANDS, batch=6).count_by_dataset() == (30, 12)


def test_labels_stay_with_their_tiles(two: list[Path]) -> None:
    alone = {}
    for dataset in two:
        for batch in TileLoader(dataset, TRAIN, bands=BANDS, batch=6, shuffle=False):
            alone |= dict(zip(addresses(batch), batch.fraction.tolist(), strict=True))
    for batch in TileLoader(two, TRAIN, bands=BANDS, batch=6):
        assert [alone[address] for address in addresses(batch)] == batch.fraction.tolist()


@pytest.mark.parametrize("buffer", [0, 8])
def test_ranks_read_disjoint_parts_of_all(two: list[Path], buffer: int) -> None:
    options = {"batch": 3, "world": 2, "shuffle_buffer": buffer, "mixture": () if buffer else (1, 1)}
    ranks = [read(two, rank=rank, **options) for rank in (0, 1)]
    if buffer:
        assert len({*ranks[0], *ranks[1]}) == 42
    else:
        assert Counter(ranks[0] + ranks[1]) == Counter(read(two, mixture=(1, 1)))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_a_mixture_decides_how_much_comes_of_each(
    two: list[Path], monkeypatch: pytest.MonkeyPatch, large: bool, balance: float
) -> None:
    if large:
        monkeypatch.setattr(loader_module, "LARGE", 10)
    loader = TileLoader(two, TRAIN, bands=BANDS, batch=6, mixture=(1, 3), balance=balance)
    orders = [loader.order(epoch)[:42] for epoch in range(20)]
    of_second = [int((loader.selected.scene[order] == 2).sum()) for order in orders]
    assert abs(np.mean(of_second) - 42 * 3 / 4) < 0.75
    seen = Counter(orders[0].tolist())
    if not balance:  # evenly within each: 31.5 draws of 12 tiles, 10.5 of 30
        assert {seen[k] for k in range(30, 42)} <= {2, 3}
        assert {seen[k] for k in range(30)} <= {0, 1}
    assert read(two, mixture=(1, 3), balance=balance) == read(two, mixture=(1, 3), balance=balance)


def test_balance_of_a_mixture_is_that_of_each_data_set(two: list[Path]) -> None:
    loader = TileLoader(two, TRAIN, bands=BANDS, batch=6, mixture=(1, 3), balance=1)
    alone = TileLoader(two[1], TRAIN, bands=BANDS, batch=6, balance=1)
    assert loader._chance is not None
    assert alone._chance is not None
    np.testing.assert_allclose(loader._chance[30:], alone._chance * 0.75, rtol=1e-12)


def test_a_mixture_that_does_not_fit_is_refused(two: list[Path]) -> None:
    with pytest.raises(ValueError, match="mixture has 3 shares, expected one for each of 2 data sets"):
        TileLoader(two, TRAIN, batch=6, mixture=(1, 1, 1))
    with pytest.raises(ValueError, match="drawn at random: set shuffle"):
        TileLoader(two, TRAIN, batch=6, mixture=(1, 1), shuffle=False)
    with pytest.raises(ValueError, match="two: mixture asks for tiles of this data set, but none is selected"):
        TileLoader(two, Selection("train", where=["scene=alpha"]), batch=6, mixture=(1, 1))


def test_a_data_set_that_is_given_twice_is_refused(two: list[Path], tmp_path: Path) -> None:
    """Each of its tiles would count twice, in training and among those held out."""
    (tmp_path / "link").symlink_to(two[0])
    for twice in (two[0], str(two[0]), f"{two[0]}/", tmp_path / "link"):
        with pytest.raises(ValueError, match=r"given twice, also as .*/one; to draw more of its tiles, set mixture"):
            TileLoader([*two, twice], TRAIN, batch=6)
    with pytest.raises(ValueError, match="s3://bucket/a/: given twice, also as s3://bucket/a;"):
        list_datasets(["s3://bucket/a", "s3://bucket/b", "s3://bucket/a/"])


def test_a_data_set_without_tiles_is_named(two: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    loader = TileLoader(two, Selection("train", where=["scene=alpha"]), bands=BANDS, batch=6)
    assert loader.tiles == 20
    assert f"{two[1]} has no tile of split train with known >= 0 and scene=alpha" in caplog.text
    with pytest.raises(ValueError, match=r"one/index\.parquet, .*two/index\.parquet: no tile of split val"):
        TileLoader(two, Selection("val"), batch=6)


# --- unlike data sets


def test_tiles_of_unlike_sizes_are_resized(build, two: list[Path], tmp_path: Path) -> None:
    """Also their ground distance. What is read of each equals the resized tiles of that data set alone."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 16, 16), dtype=np.uint8)
    large = build(tmp_path / "large", {"wide": noise}, {"wide": some_shares(2, 3)})
    with pytest.raises(
        ValueError, match=r"large/tiles\.zarr/wide: tiles are \(16, 16\) px of uint8, expected \(8, 8\)"
    ):
        TileLoader([two[0], large], TRAIN, batch=6)
    loader = TileLoader([two[0], large], Selection("train", gsd=True), bands=BANDS, batch=36, side=12, shuffle=False)
    (batch,) = loader
    assert batch.image.shape == (36, 4, 12, 12)
    assert batch.gsd is not None
    assert batch.gsd.tolist() == [pytest.approx(16 * 8 / 12)] * 30 + [pytest.approx(16 * 16 / 12)] * 6
    near = batch.image[:30].float()
    alone = next(iter(TileLoader(two[0], TRAIN, bands=BANDS, batch=30, shuffle=False))).image[:, :, :1, :1].float()
    assert (near == alone).all()  # constant tiles stay constant
    tiles = noise.reshape(6, 4, 16, 16).astype(float)
    assert np.abs(batch.image[30:].numpy().mean(axis=(2, 3)) - tiles.mean(axis=(2, 3))).max() < 3
    # By a triangle of 4/3 px on each side, the first pixel is a weighted mean of the first two.
    weights = np.clip(1 - np.abs((np.arange(3) + 0.5) - 2 / 3) / (4 / 3), 0, None)
    weights /= weights.sum()
    expected = np.einsum("nbyx,y,x->nb", tiles[:, :, :3, :3], weights, weights)
    assert np.abs(batch.image[30:, :, 0, 0].numpy() - expected).max() <= 0.51
    levels = loader.measure_levels()
    assert levels.dtype == "uint8"


def test_a_tile_that_cannot_be_read_is_named_whatever_its_size(build, two: list[Path], tmp_path: Path) -> None:
    image = np.full((2, 2, 4, 16, 16), 7, np.uint8)
    large = build(tmp_path / "large", {"beta": image}, {"beta": some_shares(2, 2)})
    (large / "tiles.zarr/beta/image/c/0/0/0/0/0").unlink()
    options: dict[str, Any] = {"bands": BANDS, "batch": 34, "side": 8, "shuffle": False}
    with pytest.raises(ValueError, match=r"large/tiles\.zarr/beta/image/c/0/0/0/0/0: tile \(0, 0\) cannot be read"):
        list(TileLoader([two[0], large], TRAIN, **options))
    loader = TileLoader([two[0], large], TRAIN, on_error="skip", **options)
    (batch,) = loader
    assert (len(batch.image), loader.skipped) == (30, 4)
    assert addresses(batch) == read(two[0], shuffle=False)


def test_unlike_classes_are_refused_in_one_sentence(build, two: list[Path], tmp_path: Path) -> None:
    pixels, share = {"only": coordinates(9, 2, 2)}, {"only": np.full((2, 2, 3), 1 / 3, np.float32)}
    other = build(tmp_path / "other", pixels, share, classes=("forest", "water", "tundra"))
    with pytest.raises(ValueError, match="has the classes") as error:
        TileLoader([two[0], other], TRAIN, batch=6)
    assert str(error.value) == (
        f"{two[0]} has the classes water, forest, bare, but {other} has forest, water, tundra; choose "
        "classes=water,forest, which all have, or label both with one taxonomy by geokr label"
    )
    with pytest.raises(ValueError, match="other has no class bare, only forest, water, tundra"):
        TileLoader([two[0], other], Selection("train", classes=("bare", "water")), batch=6)
    loader = TileLoader([two[0], other], Selection("train", classes=("water", "forest")), bands=BANDS, batch=6)
    assert loader.tiles == 34
    assert loader.selected.known[30:].tolist() == [pytest.approx(2 / 3)] * 4  # tundra is unknown now


def test_the_same_classes_in_another_order_are_the_same(build, two: list[Path], tmp_path: Path) -> None:
    share = some_shares(2, 2)
    other = build(
        tmp_path / "other", {"only": coordinates(9, 2, 2)}, {"only": share[..., ::-1].copy()}, classes=CLASSES[::-1]
    )
    classes, tiles = select_tiles([two[0], other], TRAIN)
    assert classes == CLASSES
    np.testing.assert_allclose(tiles.fraction[30:], share.reshape(4, 3), rtol=1e-6)


def test_bands_that_a_data_set_lacks_are_refused_with_its_name(build, two: list[Path], tmp_path: Path) -> None:
    pixels = {"only": coordinates(9, 2, 2)[:, :, :2]}
    other = build(tmp_path / "other", pixels, {"only": some_shares(2, 2)}, bands={"only": ["nir", "swir16"]})
    message = r"other/tiles\.zarr: no scene with these tiles has bands red, green, blue; they have nir, swir16; choose"
    with pytest.raises(ValueError, match=message):
        TileLoader([two[0], other], TRAIN, batch=6)
    assert TileLoader([two[0], other], TRAIN, bands=("nir",), batch=6).tiles == 34


def test_reflectance_in_unlike_steps_becomes_one(build, tmp_path: Path) -> None:
    """0.25 is 2500 in one data set and 1750 in the other. 8-bit pixels are something else."""
    share = {"only": some_shares(2, 2)}

    def make(name: str, pixel: int, **radiometry: Any) -> Path:
        pixels = {"only": np.full((2, 2, 4, 8, 8), pixel, np.uint16)}
        its_own = {"only": {"kind": "toa", "scale_factor": 1e-4, "add_offset": 0.0} | radiometry}
        return build(tmp_path / name, pixels, share, radiometry=its_own)

    fine, coarse = make("fine", 2500), make("coarse", 1750, scale_factor=2e-4, add_offset=-0.1)
    loader = TileLoader([fine, coarse], TRAIN, bands=BANDS, batch=8, shuffle=False)
    (batch,) = loader
    reflectance = batch.image.numpy() * loader.units.scale_factor + loader.units.add_offset
    assert np.abs(reflectance - 0.25).max() < 1e-9
    eight = build(tmp_path / "eight", {"only": np.full((2, 2, 4, 8, 8), 9, np.uint8)}, share)
    with pytest.raises(ValueError, match=r"eight/tiles\.zarr/only: tiles are \(8, 8\) px of uint8, expected .* uint16"):
        TileLoader([fine, eight], TRAIN, batch=8)
    numbers = make("numbers", 9, kind="dn", scale_factor=1.0)
    with pytest.raises(ValueError, match=r"numbers/tiles\.zarr/only: pixels are digital numbers, expected reflectance"):
        TileLoader([fine, numbers], TRAIN, batch=8)


@pytest.mark.parametrize(("stride", "tiles"), [(8, 8), (6, 0)])
def test_pairs_are_of_tiles_with_the_same_size_and_stride(build, tmp_path: Path, stride: int, tiles: int) -> None:
    """The name of a place counts in strides, so that one name is two places if strides differ."""
    data = []
    for day, its_stride in ((1, 8), (2, stride)):
        more = {
            "place": np.array([f"32647_10_{k}_0" for k in range(4)], object),
            "acquired": np.array([f"2020-01-0{day}"] * 4, "datetime64[us]"),
        }
        root = build(tmp_path / f"day{day}", {"only": coordinates(day, 2, 2)}, {"only": some_shares(2, 2)}, more=more)
        summary = json.loads((root / "dataset.json").read_text())
        summary["settings"] = {"grid": {"tile": 8, "stride": its_stride}}
        (root / "dataset.json").write_text(json.dumps(summary))
        data.append(root)
    if not tiles:
        with pytest.raises(ValueError, match="no place of two dates"):
            TileLoader(data, Selection("train", pairs=True), bands=BANDS, batch=2)
        return
    loader = TileLoader(data, Selection("train", pairs=True), bands=BANDS, batch=2)
    assert loader.tiles == tiles
    for batch in loader:
        assert batch.pair is not None
        assert (batch.image[:, 1:3] == batch.pair[:, 1:3]).all()
        assert (batch.image[:, 0] + batch.pair[:, 0] == 3).all()  # scene 1 and scene 2


def test_parts_come_from_the_label_set_of_each(build, tmp_path: Path) -> None:
    data = []
    for value in (40, 80):
        parts = {"only": np.full((2, 2, 2, 2, 3), value, np.uint8)}
        pixels = {"only": coordinates(value, 2, 2)}
        data.append(build(tmp_path / str(value), pixels, {"only": some_shares(2, 2)}, parts=parts))
    for batch in TileLoader(data, Selection("train", grid=2), bands=BANDS, batch=4):
        assert batch.parts is not None
        assert (batch.parts == batch.image[:, 0, 0, 0].view(-1, 1, 1, 1)).all()
