"""Class taxonomies and crosswalks: what the shipped files say, and what a broken one is told."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geokr.landcover.legend import KNOWLEDGE, Legend, Taxonomy, read_legend, read_taxonomy

PRODUCTS = KNOWLEDGE / "products"

# The codes of each product as its makers list them, copied by hand from their documents.
CODES = {
    "globeland30": {0, 10, 20, 30, 40, 50, 60, *range(70, 80), 80, 90, 100, 255},
    "worldcover": {0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100},
    "mcd12c1": {*range(17), 255},
    "nlcd": {0, 11, 12, 21, 22, 23, 24, 31, 41, 42, 43, 51, 52, 71, 81, 82, 90, 95, 255},
}
CLASSES = (
    "cultivated", "forest", "grassland", "shrubland", "wetland", "water", "tundra", "artificial", "bare", "snow_ice",
)  # fmt: skip

LEGENDS = {name: read_legend(PRODUCTS / f"{name}.toml", read_taxonomy()) for name in CODES}
each_product = pytest.mark.parametrize("name", CODES)
any_legend = st.sampled_from(list(LEGENDS.values()))

WEATHER = """
name = "weather"
version = 3
classes = [
  { name = "wet", colour = "#0000ff" },
  { name = "dry", colour = "#ffff00" },
  { name = "icy", colour = "#ffffff" },
]
"""


def product(tmp_path: Path, codes: str) -> Path:
    """The file of a product with these rows."""
    path = tmp_path / "product.toml"
    path.write_text(f'name = "product"\ncodes = [{codes}]\n')
    return path


def taxonomy(tmp_path: Path, text: str = WEATHER) -> Path:
    """The file of a taxonomy of the user's."""
    path = tmp_path / "weather.toml"
    path.write_text(text)
    return path


def refusal(path: Path, classes: Taxonomy | None = None) -> str:
    """What a broken file is told, found to be one sentence."""
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        read_legend(path, classes or read_taxonomy())
    return str(caught.value)


def column(shares: np.ndarray, name: str) -> float:
    """The sum over rows of one class."""
    return float(shares[:, CLASSES.index(name)].sum())


# --- the shipped files


@each_product
def test_a_shipped_file_names_its_product_and_shares_the_taxonomy(name: str) -> None:
    legend = LEGENDS[name]
    assert legend.name == name
    assert legend.classes == CLASSES
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in legend.colours)
    assert len(set(legend.colours)) == len(CLASSES)


@each_product
def test_every_code_of_a_product_is_mapped_or_ignored(name: str) -> None:
    legend, codes = LEGENDS[name], sorted(CODES[name])
    assert legend.unlisted(codes) == frozenset()
    sums = legend.shares(codes).sum(axis=1)
    assert sums == pytest.approx([0.0 if code in legend.ignored else 1.0 for code in codes], abs=1e-12)


def test_tundra_kinds_add_up() -> None:
    kinds = LEGENDS["globeland30"].shares(range(70, 80))
    assert column(kinds, "tundra") == 10.0
    assert kinds.sum() == 10.0


def test_zero_is_water_to_modis_and_nothing_to_the_others() -> None:
    assert column(LEGENDS["mcd12c1"].shares([0]), "water") == 1.0
    assert {name for name, legend in LEGENDS.items() if 0 in legend.ignored} == {"globeland30", "nlcd", "worldcover"}


@pytest.mark.parametrize(
    ("name", "code", "target"),
    [
        ("globeland30", 255, "water"),  # the sea
        ("globeland30", 60, "water"),
        ("globeland30", 10, "cultivated"),
        ("worldcover", 10, "forest"),  # not GlobeLand30's 10
        ("worldcover", 80, "water"),  # not GlobeLand30's 80
        ("worldcover", 95, "wetland"),
        ("worldcover", 100, "tundra"),
        ("mcd12c1", 16, "bare"),
        ("nlcd", 24, "artificial"),
        ("nlcd", 95, "wetland"),
    ],
)
def test_a_code_goes_to_the_class_of_its_own_product(name: str, code: int, target: str) -> None:
    assert column(LEGENDS[name].shares([code]), target) == 1.0


# --- laws


@given(any_legend, st.lists(st.integers(-5, 300), max_size=40))
@settings(max_examples=60)
def test_a_row_of_shares_depends_on_its_code_alone(legend: Legend, codes: list[int]) -> None:
    shares = legend.shares(codes)
    assert shares.shape == (len(codes), len(legend.classes))
    assert shares.dtype == np.float64
    for row, code in zip(shares, codes, strict=True):
        assert row.tolist() == legend.shares([code])[0].tolist()
        assert row.sum() == pytest.approx(1.0 if code in legend.codes else 0.0, abs=1e-12)
    assert legend.unlisted(codes) == {c for c in codes if c not in legend.codes and c not in legend.ignored}


@given(st.integers(-1000, 1000), st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(any))
@settings(max_examples=40)
def test_a_code_split_over_classes_is_read_as_it_is_written(
    tmp_path_factory: pytest.TempPathFactory, code: int, weights: list[int]
) -> None:
    names = ("snow_ice", "bare", "ignore")
    parts = {name: weight / sum(weights) for name, weight in zip(names, weights, strict=True) if weight}
    to = ", ".join(f"{name} = {share!r}" for name, share in parts.items())
    path = product(tmp_path_factory.mktemp("legend"), f"{{ code = {code}, to = {{ {to} }} }}")
    legend = read_legend(path, read_taxonomy())
    (shares,) = legend.shares([code])
    assert dict(zip(CLASSES, shares, strict=True)) == {name: parts.get(name, 0) for name in CLASSES}
    assert legend.ignored == (frozenset() if shares.any() else {code})


# --- taxonomies


def test_the_base_taxonomy_is_globeland30s_and_the_papers_leaves_three_of_its_classes_out() -> None:
    base, paper = read_taxonomy(), read_taxonomy("paper")
    assert (base.name, base.version, base.classes) == ("globeland30", 1, CLASSES)
    assert (paper.name, paper.version) == ("paper", 1)
    assert paper.classes == tuple(name for name in CLASSES if name not in ("shrubland", "tundra"))
    legend = read_legend(PRODUCTS / "globeland30.toml", paper)
    assert legend.taxonomy == "paper-1"
    assert legend.ignored == {0, 40, *range(70, 80), 255}  # no value, shrubland, tundra and the sea
    assert legend.shares([60])[0, paper.classes.index("water")] == 1.0


def test_a_split_code_loses_the_part_that_a_taxonomy_leaves_out() -> None:
    paper = read_taxonomy("paper")
    (shares,) = read_legend(PRODUCTS / "mcd12c1.toml", paper).shares([14])  # a mosaic, a tenth of it shrubland
    assert shares.sum() == pytest.approx(0.9, abs=1e-12)
    assert shares[paper.classes.index("cultivated")] == 0.5


def test_a_products_own_classes_are_its_codes_by_name() -> None:
    legend = read_legend(PRODUCTS / "worldcover.toml", None)
    assert legend.taxonomy == "own-worldcover-1"
    assert legend.classes[:2] == ("tree_cover", "shrubland")
    assert legend.classes[-1] == "moss_and_lichen"
    assert legend.ignored == {0}
    assert np.array_equal(legend.shares([10, 20, 0])[:, :2], [[1, 0], [0, 1], [0, 0]])
    assert len(set(legend.colours)) == len(legend.classes)
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in legend.colours)


def test_a_taxonomy_of_the_users_is_named_by_the_rows_themselves(tmp_path: Path) -> None:
    mine = read_taxonomy(str(taxonomy(tmp_path)))
    row = '{ code = 5, to = "water", weather = { wet = 0.75, icy = 0.25 } }'
    legend = read_legend(product(tmp_path, row), mine)
    assert legend.taxonomy == "weather-3"
    assert legend.shares([5]).tolist() == [[0.75, 0.0, 0.25]]
    message = refusal(product(tmp_path, '{ code = 5, to = "water" }'), mine)
    assert "code 5 has no key `weather` to give its class in the taxonomy" in message


def test_a_taxonomy_that_follows_from_the_base_takes_every_product(tmp_path: Path) -> None:
    rows = "\n".join(f'{name} = "dry"' for name in CLASSES if name not in ("water", "snow_ice"))
    text = f'{WEATHER}[base]\n{rows}\nwater = "wet"\nsnow_ice = {{ icy = 0.5, ignore = 0.5 }}\n'
    legend = read_legend(PRODUCTS / "worldcover.toml", read_taxonomy(str(taxonomy(tmp_path, text))))
    assert legend.shares([80, 40, 70]).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0.5]]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (WEATHER + '[base]\nwater = "wet"\n', "`base` maps ['water']"),
        (WEATHER + "[base]\n" + "\n".join(f'{name} = "moist"' for name in CLASSES), "goes to ['moist']"),
        (WEATHER + "[base]\n" + "\n".join(f"{name} = {{ wet = 0.5 }}" for name in CLASSES), "sum to 1"),
        (WEATHER.replace("dry", "wet"), "a class is named twice"),
        (WEATHER.replace("dry", "ignore"), "a class cannot be named 'ignore'"),
        (WEATHER.replace("version = 3", ""), "'version' is missing"),
        (WEATHER.replace('name = "weather"', ""), "'name' is missing"),
        ("", "'classes' is missing"),
        ("classes = 3", "int"),
        ('classes = [{ name = "wet" }]', "'colour' is missing"),
        ("classes = [1, 2]", "int"),
        ("classes =", "not a TOML file"),
    ],
)
def test_a_broken_taxonomy_is_refused_by_name_and_fault(tmp_path: Path, text: str, fault: str) -> None:
    path = taxonomy(tmp_path, text)
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        read_taxonomy(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert fault in str(caught.value)


def test_a_taxonomy_that_is_nowhere_is_told_which_there_are() -> None:
    with pytest.raises(
        ValueError, match=r"nowhere: no taxonomy of that name, and no such file; available: .*paper, own"
    ):
        read_taxonomy("nowhere")


# --- refusals


@pytest.mark.parametrize(
    ("codes", "fault"),
    [
        ('{ code = 5, to = "water" }, { code = 5, to = "bare" }', "code 5 is listed twice"),
        ('{ code = 5, to = "water" }, { code = 5, to = "ignore" }', "code 5 is listed twice"),
        ('{ code = 5, to = "ignore" }, { code = 5, to = "water" }', "code 5 is listed twice"),
        ('{ code = 5, to = "moist" }', "code 5 goes to ['moist']"),
        ("{ code = 5, to = { water = 0.5, moist = 0.5 } }", "code 5 goes to ['moist']"),
        ("{ code = 5, to = { water = 0.5, bare = 0.4 } }", "sum to 1"),
        ("{ code = 5, to = { water = 1.5, bare = -0.5 } }", "code 5"),
        ("{ code = 5, to = {} }", "sum to 1"),
        ('{ code = 5.5, to = "water" }', "code 5.5 is not an integer"),
        ('{ code = "5", to = "water" }', "code '5' is not an integer"),
        ("{ code = 5, to = 7 }", "int"),
        ('{ code = 5, to = { water = "all" } }', "all"),
        ("{ code = 5 }", "'to' is missing"),
        ('{ to = "water" }', "'code' is missing"),
    ],
)
def test_a_faulty_row_is_refused_by_file_and_fault(tmp_path: Path, codes: str, fault: str) -> None:
    path = product(tmp_path, codes)
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    assert fault in message


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"codes = [", "not a TOML file"),
        (b'name = "a"\nname = "b"', "not a TOML file"),
        (b'name = "\xff"', "not a TOML file"),
        (b'name = "a"', "'codes' is missing"),
        (b"codes = []", "'name' is missing"),
        (b'name = "a"\ncodes = 3', "int"),
    ],
)
def test_a_broken_file_is_refused_by_name_and_fault(tmp_path: Path, text: bytes, fault: str) -> None:
    path = product(tmp_path, "")
    path.write_bytes(text)
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    assert fault in message


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"codes": {1: (1.0,)}}, "code 1"),
        ({"codes": {1: (0.0,) * 10}}, "a sum above 0 and at most 1"),
        ({"codes": {1: (float("nan"),) * 10}}, "a sum above 0 and at most 1"),
        ({"codes": {1: (1.0,) + (0.0,) * 9}, "ignored": frozenset({1})}, "both ignored and mapped"),
    ],
)
def test_a_legend_refuses_nonsense(change: dict[str, object], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        replace(LEGENDS["nlcd"], **change)
