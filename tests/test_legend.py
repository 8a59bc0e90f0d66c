"""Class taxonomies and crosswalks: what the shipped files say, and what a broken one is told."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geokr.legend import KNOWLEDGE, OWN, Legend, Taxonomy, read_legend, read_taxonomy, read_toml

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

CLASSES_FILE = """
classes = [
  { name = "wet", colour = "#0000ff" },
  { name = "dry", colour = "#ffff00" },
  { name = "icy", colour = "#ffffff" },
]
"""


def product(tmp_path: Path, codes: str) -> tuple[Path, Path]:
    """The files of a product with these rows, and of its classes."""
    path, classes = tmp_path / "product.toml", tmp_path / "classes.toml"
    path.write_text(f'name = "product"\ncodes = [{codes}]\n')
    classes.write_text(CLASSES_FILE)
    return path, classes


def refusal(path: Path, classes: Path) -> str:
    """What a broken file is told, found to be one sentence."""
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        read_legend(path, classes)
    return str(caught.value)


def column(shares: np.ndarray, name: str) -> float:
    """The sum over rows of one class."""
    return float(shares[:, CLASSES.index(name)].sum())


# --- the shipped files


def test_every_shipped_product_is_tested() -> None:
    assert {path.stem for path in KNOWLEDGE.glob("*.toml")} == {*CODES, "classes"}


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


@each_product
def test_a_shipped_file_says_how_its_sheets_are_named_and_how_far_they_count(name: str) -> None:
    sheets = read_toml(KNOWLEDGE / f"{name}.toml")["sheets"]
    assert "year" in re.compile(sheets["name"]).groupindex
    assert sheets["extent"] in ("bounds", "utm_sheet")


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
    parts = {name: weight / sum(weights) for name, weight in zip(("icy", "dry", "wet"), weights, strict=True) if weight}
    to = ", ".join(f"{name} = {share!r}" for name, share in parts.items())
    paths = product(tmp_path_factory.mktemp("legend"), f"{{ code = {code}, to = {{ {to} }} }}")
    (shares,) = read_legend(*paths).shares([code])
    assert dict(zip(("wet", "dry", "icy"), shares, strict=True)) == {"wet": 0, "dry": 0, "icy": 0, **parts}


# --- refusals


@pytest.mark.parametrize(
    ("codes", "fault"),
    [
        ('{ code = 5, to = "wet" }, { code = 5, to = "dry" }', "code 5 is listed twice"),
        ('{ code = 5, to = "wet" }, { code = 5, to = "ignore" }', "code 5 is listed twice"),
        ('{ code = 5, to = "ignore" }, { code = 5, to = "wet" }', "code 5 is listed twice"),
        ('{ code = 5, to = "moist" }', "code 5 goes to ['moist']"),
        ("{ code = 5, to = { wet = 0.5, moist = 0.5 } }", "code 5 goes to ['moist']"),
        ("{ code = 5, to = { wet = 0.5, dry = 0.4 } }", "sum to 1"),
        ("{ code = 5, to = { wet = 1.5, dry = -0.5 } }", "code 5"),
        ("{ code = 5, to = {} }", "sum to 1"),
        ('{ code = 5.5, to = "wet" }', "code 5.5 is not a whole number"),
        ('{ code = "5", to = "wet" }', "code '5' is not a whole number"),
        ("{ code = 5, to = 7 }", "int"),
        ('{ code = 5, to = { wet = "all" } }', "all"),
        ("{ code = 5 }", "'to' is missing"),
        ('{ to = "wet" }', "'code' is missing"),
    ],
)
def test_a_faulty_row_is_refused_by_file_and_fault(tmp_path: Path, codes: str, fault: str) -> None:
    path, classes = product(tmp_path, codes)
    message = refusal(path, classes)
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
    path, classes = product(tmp_path, "")
    path.write_bytes(text)
    message = refusal(path, classes)
    assert message.startswith(f"{path}: ")
    assert fault in message


@pytest.mark.parametrize("text", ["", "classes = 3", 'classes = [{ name = "wet" }]', "classes = [1, 2]", "classes ="])
def test_a_broken_taxonomy_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path, classes = product(tmp_path, "")
    classes.write_text(text)
    assert refusal(path, classes).startswith(f"{classes}: ")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"classes": ("forest",) * 10}, "named twice"),
        ({"colours": ("#000000",) * 9}, "9 colours for 10 classes"),
        ({"codes": {1: (1.0,)}}, "code 1"),
        ({"codes": {1: (0.0,) * 10}}, "sum to 1"),
        ({"codes": {1: (float("nan"),) * 10}}, "sum to 1"),
        ({"codes": {1: (1.0,) + (0.0,) * 9}, "ignored": frozenset({1})}, "both ignored and mapped"),
    ],
)
def test_a_legend_refuses_nonsense(change: dict[str, object], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        replace(LEGENDS["nlcd"], **change)
