"""Which tiles a run reads follows from the index alone, whatever its columns are."""

from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geokr.loading.loader import TileLoader
from geokr.loading.selection import Selection, hash_texts, read_condition, select_tiles

NAN = float("nan")
MORE = {
    "agreement": np.array([0.5, NAN, 1.0, 0.25, 0.0, 0.75], np.float32),
    "year_gap": np.array([0, 1, 2, 3, 4, 5], np.int32),
    "resolution": np.array([0.8, 0.8, 2.0, 4.0, 16.0, 16.0], np.float32),
    "sensor": np.array(["PMS1", "PMS2", None, "PMS1", "WFV1", "WFV2"], object),
    "when": np.array(["2018-01-01", "2019-05-01", "NaT", "2019-05-02", "2020-01-01", "2021-01-01"], "datetime64[us]"),
}


@pytest.fixture(scope="session")
def described(build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One scene of six tiles, column as address, with further columns of every type."""
    share = np.array([[[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0, 1], [0.2, 0.2, 0.6], [1, 0, 0]]], np.float32)
    pixels = np.full((1, 6, 4, 8, 8), 9, np.uint8)
    return build(tmp_path_factory.mktemp("described") / "d", {"only": pixels}, {"only": share}, more=MORE)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ((), [0, 1, 2, 3, 4, 5]),
        (("resolution<=0.8",), [0, 1]),  # 0.8 in float32, as the column has it
        (("resolution > 0.8", "year_gap < 4"), [2, 3]),
        (("agreement>=0",), [0, 2, 3, 4, 5]),
        (("agreement!=1",), [0, 3, 4, 5]),  # a tile without a value is not known to differ
        (("sensor=PMS1|WFV2",), [0, 3, 5]),
        (("sensor != PMS1",), [1, 4, 5]),
        (("year_gap=1|3",), [1, 3]),
        (("year_gap>1.5",), [2, 3, 4, 5]),
        (("when>=2019-05-02",), [3, 4, 5]),
        (("when<2019-05-01T00:00:01",), [0, 1]),
    ],
)
def test_conditions_choose_tiles(described: Path, where: tuple[str, ...], expected: list[int]) -> None:
    assert select_tiles(described, Selection("train", where=where))[1].col.tolist() == expected
    assert TileLoader(described, Selection("train", where=where), batch=1).tiles == len(expected)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("gsd", "not a condition: 'gsd'; expected one like"),
        ("gsd<2|3", "< takes one value"),
        ("sensor=a||b", "= takes one value"),
        ("year_gap<soon", r"index\.parquet: year_gap<soon: soon is not of the column's type, int32"),
        ("cirrus<1", r"index\.parquet has no column cirrus, only tile, scene"),
        ("year_gap>100", "no tile of split train with known >= 0 and year_gap>100"),
        ("__import__('os')=1", "not a condition"),
    ],
)
def test_what_is_no_condition_is_refused(described: Path, where: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_tiles(described, Selection("train", where=(where,)))


def test_values_are_what_they_read_as() -> None:
    condition = read_condition(" sensor =  GF1 PMS | GF2 ")
    assert (condition.column, condition.comparison, condition.values) == ("sensor", "=", ("GF1 PMS", "GF2"))
    assert condition.evaluate(pa.chunked_array([["GF2", None, "GF1 PMS", "GF1"]])).to_pylist() == [
        True,
        False,
        True,
        False,
    ]
    coded = pa.chunked_array([pa.array(["GF2", None, "GF3"]).dictionary_encode()])
    assert condition.evaluate(coded).to_pylist() == [True, False, False]
    numbers = pa.chunked_array([pa.array([1.0, NAN, None, 2.0], from_pandas=False)])
    assert read_condition("gsd != 1").evaluate(numbers).to_pylist() == [False, False, False, True]
    late = read_condition("acquired > 2020-01-01").evaluate(pa.chunked_array([[datetime(2020, 1, 2), None]]))
    assert late.to_pylist() == [True, False]


def test_weights_are_products_of_columns(described: Path) -> None:
    assert (select_tiles(described, Selection("train"))[1].weight == 1).all()
    _, tiles = select_tiles(
        described, Selection("train", where=("agreement>=0",), weight=("agreement", "known", "year_gap"))
    )
    assert tiles.weight.tolist() == [0.0, 2.0, 0.75, 0.0, 3.75]
    loader = TileLoader(described, Selection("train", where=("agreement>=0",), weight=("agreement",)), batch=2, seed=2)
    order = loader.order(0)
    for i, batch in enumerate(loader):
        assert sorted(batch.weight.tolist()) == sorted(loader.selected.weight[order[2 * i : 2 * i + 2]].tolist())
    _, tiles = select_tiles(described, Selection("train", weight=lambda rows: 0.5 ** rows["year_gap"].to_numpy()))
    assert tiles.weight.tolist() == [1, 0.5, 0.25, 0.125, 0.0625, 0.03125]


def test_a_weight_that_is_none_is_refused(described: Path) -> None:
    with pytest.raises(ValueError, match=r"1 of 6 selected tiles have a missing or negative weight \(agreement\)"):
        select_tiles(described, Selection("train", weight=("agreement",)))
    with pytest.raises(
        ValueError, match=r"6 of 6 selected tiles have a missing or negative weight \(the weight function\)"
    ):
        select_tiles(described, Selection("train", weight=lambda rows: np.full(rows.num_rows, -1.0)))
    with pytest.raises(ValueError, match="the weight of every selected tile is 0"):
        select_tiles(described, Selection("train", where=("year_gap=0",), weight=("year_gap",)))
    with pytest.raises(ValueError, match=r"returned an array of shape \(2,\), expected \(6,\)"):
        select_tiles(described, Selection("train", weight=lambda rows: np.ones(2)))
    with pytest.raises(ValueError, match="has no column cirrus"):
        select_tiles(described, Selection("train", weight=("cirrus",)))


def test_a_label_is_known_as_far_as_the_chosen_classes_cover_the_tile(build, tmp_path: Path) -> None:
    """A trace of two classes is no full label of them: what lies under other classes is unknown."""
    share = np.array([[[0.004, 0.001, 0.995], [0.5, 0.25, 0.25], [0, 0, 1], [0.7, 0.3, 0]]], np.float32)
    share = np.concatenate([share, share])  # the second row is in no split
    pixels = np.full((2, 4, 4, 8, 8), 9, np.uint8)
    dataset = build(
        tmp_path / "traces",
        {"only": pixels},
        {"only": share},
        known=lambda scene, row, col: 0.5 if col == 3 else 0.8,
        split=lambda scene, row, col: None if row else "train",
    )

    def select(**options) -> tuple[list[int], list[float], list[float]]:
        _, tiles = select_tiles(dataset, Selection("train", ("water", "forest"), **options))
        return tiles.col.tolist(), tiles.known.tolist(), tiles.weight.tolist()

    everything = select_tiles(dataset, Selection("train"))[1]
    assert everything.known.tolist() == pytest.approx([0.8, 0.8, 0.8, 0.5])
    known = [0.8 * 0.005, 0.8 * 0.75, 0.5]
    assert select() == ([0, 1, 3], pytest.approx(known, rel=1e-3), [1, 1, 1])
    assert select(weight=("known",)) == ([0, 1, 3], pytest.approx(known, rel=1e-3), pytest.approx(known, rel=1e-3))
    assert select(min_known=0.5)[0] == [1, 3]  # 0.7 + 0.3 is all of the tile, though not quite so in float32
    assert select(where=("known<0.1",))[0] == [0]  # one meaning of the word, in conditions and functions too
    by_function = select(weight=lambda rows: rows["known"].to_numpy())
    assert by_function == select(weight=("known",))
    with pytest.raises(ValueError, match=r"with known >= 0\.7 in the classes water, forest; does"):
        select(min_known=0.7)


@given(st.lists(st.text(max_size=20) | st.sampled_from(["32650_10_1_2", "32650_10_12_", "\0", "\0\0"]), max_size=30))
def test_texts_have_equal_numbers_if_they_and_their_kinds_are_equal(texts: list[str]) -> None:
    column = pa.chunked_array(
        [pa.array(["left out", *texts[:3]], pa.string()).slice(1), pa.array(texts[3:], pa.string())]
    )
    numbers = hash_texts(column, "256 200").tolist()
    by_text = dict(zip(texts, numbers, strict=True))
    assert numbers == [by_text[text] for text in texts]
    assert len(set(numbers)) == len(by_text)
    assert not {*hash_texts(column, "256 128").tolist()} & {*numbers}
