"""The sheets that an area lacks are named as their makers name them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import rasterio
import shapely
from affine import Affine

from geokr.landcover import __main__
from geokr.landcover.extents import find_nominal_extent
from geokr.landcover.gaps import find_gaps, known_years, name_sheets
from geokr.landcover.products import Product, load_products
from geokr.landcover.sheets import Sheet

PRODUCTS = {product.name: product for product in load_products()}
NAMED = [(name, year) for name, product in PRODUCTS.items() for rule in product.rules if "file" in rule
         for year in (known_years(rule) or [2020])]  # fmt: skip


@pytest.mark.parametrize(("name", "year"), NAMED)
def test_a_name_means_the_sheet_of_its_place(name: str, year: int) -> None:
    product, sheets = PRODUCTS[name], [*name_sheets(PRODUCTS[name], year)]
    for file, extent in sheets[:: max(1, len(sheets) // 50)]:
        for one in file.split(" or "):
            match = product.match(one)
            assert match is not None, one
            assert year in {int(match[1].get("year", year)), *known_years(match[0])}
            assert find_nominal_extent(one, match[0]["extent"], match[1], shapely.box(*extent)) == extent


@pytest.mark.parametrize("name", sorted({name for name, _ in NAMED}))
def test_every_place_on_land_has_one_sheet(name: str) -> None:
    year = next(year for product, year in NAMED if product == name)
    boxes = [shapely.box(*extent) for _, extent in name_sheets(PRODUCTS[name], year)]
    rng = np.random.default_rng(0)
    places = shapely.points(rng.uniform(-180, 180, 500), rng.uniform(-79, 79, 500))
    point, _ = shapely.STRtree(boxes).query(places, predicate="within")
    assert (np.bincount(point, minlength=500) == 1).all()


def make_sheet(extent: tuple[float, float, float, float]) -> Sheet:
    return Sheet("x.tif", "x.tif", 1, "EPSG:4326", (1, 0, 0, 0, -1, 0), 1, 1, None, extent, shapely.box(*extent))


@pytest.mark.parametrize("centre", [(6.0, 0.0), (180.0, 0.0), (-180.0, 66.0), (102.0, 30.0)])
@pytest.mark.parametrize("name", ["worldcover", "globeland30", "esri", "glc_fcs30d"])
def test_missing_is_what_is_needed_and_not_at_hand(name: str, centre: tuple[float, float]) -> None:
    area = shapely.Point(centre).buffer(1.0, quad_segs=2)
    gaps, needed = find_gaps(PRODUCTS[name], 2020, [], {"a": area})
    assert len(gaps) == needed > 1
    assert {gap.scenes for gap in gaps} == {("a",)}
    extents = dict(name_sheets(PRODUCTS[name], 2020))
    for gap in gaps:  # each is needed: with all others at hand, it alone is missing
        others = [make_sheet(extents[other.sheet]) for other in gaps if other != gap]
        assert find_gaps(PRODUCTS[name], 2020, others, {"a": area}) == ([gap], needed)
    assert find_gaps(PRODUCTS[name], 2020, map(make_sheet, extents.values()), {"a": area}) == ([], needed)


def test_a_cut_out_of_another_name_is_a_sheet_where_it_lies() -> None:
    product: Product = PRODUCTS["worldcover"]
    scenes = {"west": shapely.box(2.5, 1, 2.9, 2), "east": shapely.box(3.1, 1, 3.5, 2)}
    (gap,), needed = find_gaps(product, 2021, [make_sheet((2.4, 0.5, 3.0, 2.5))], scenes)
    assert (gap.sheet, gap.scenes, needed) == ("ESA_WorldCover_10m_2021_v200_N00E003_Map.tif", ("east",), 2)
    assert find_gaps(PRODUCTS["corine"], 2018, [make_sheet((2.4, 0.5, 3.0, 2.5))], scenes)[0][0].scenes == ("east",)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """One scene in each form: in a data set, a document and a rotated image, each in a cell of its own; an archive."""
    (tmp_path / "set").mkdir()
    outline = shapely.to_wkb([shapely.box(4, 1, 4.1, 1.1)])
    parquet.write_table(pa.table({"id": ["a"], "geometry": outline}), tmp_path / "set" / "scenes.parquet")
    (tmp_path / "in").mkdir()
    geometry = json.loads(shapely.to_geojson(shapely.box(7, 1, 7.1, 1.1)))
    features = [{"type": "Feature", "id": "b", "geometry": geometry, "properties": {}}]
    (tmp_path / "in" / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    (tmp_path / "in" / "other.json").write_text("[]")
    (tmp_path / "in" / "c.zip").touch()
    for name, place in (("point", {"type": "Point", "coordinates": [10, 9]}), ("null", None)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"type": "Feature", "geometry": place, "properties": {}}))
    transform = Affine.translation(300000, 1200000) @ Affine.rotation(20) @ Affine.scale(100, -100)
    for name in ("d.tif", "ESA_WorldCover_10m_2021_v200_N00E006_Map.tif"):
        path, crs = tmp_path / "in" / name, "EPSG:32632" if name == "d.tif" else "EPSG:4326"
        place = transform if name == "d.tif" else Affine(0.01, 0, 6, 0, -0.01, 3)
        size = 60 if name == "d.tif" else 300
        with rasterio.open(path, "w", driver="GTiff", width=size, height=size, count=1, dtype="uint8", crs=crs,
                           transform=place) as file:  # fmt: skip
            file.write(np.full((size, size), 10, np.uint8), 1)
    return tmp_path


def test_check_names_the_sheets_that_scenes_lack(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--scenes", str(scenes / "set"), str(scenes / "in")]
    assert __main__.main(["check", str(scenes / "in"), *places]) == 1
    said = capsys.readouterr().out
    assert "worldcover_2021: 2 of 3 sheets are missing for 3 scenes" in said
    assert "  ESA_WorldCover_10m_2021_v200_N00E003_Map.tif  (1 scenes, such as a)" in said
    assert f"  ESA_WorldCover_10m_2021_v200_N09E006_Map.tif  (1 scenes, such as {scenes / 'in' / 'd.tif'})" in said
    assert f"without an outline: {scenes / 'in' / 'c.zip'}; " in said
    assert __main__.main(["check", *places, "--product", "globeland30_2010", "esri_2021", "nlcd_2019"]) == 1
    said = capsys.readouterr().out
    names = ("n31_00_2010lc030.tif", "n32_00_2010lc030.tif", "n32_10_2010lc030.tif", "31N_20210101-20220101.tif")
    assert all(f"  {name}  " in said for name in (*names, "32P_20210101-20220101.tif"))
    assert "nlcd_2019: nothing covers all of a and 2 more; no names of sheets are known" in said
    found = ["check", str(scenes / "in"), "--scenes", str(scenes / "in" / "items.json")]
    assert __main__.main(found) == 0
    assert "worldcover_2021: no sheet is missing for 1 scenes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ([], "give directories with sheets, or --scenes, or both"),
        (["--scenes", "{in}/items.json"], "which product is needed? give it as --product NAME_YEAR"),
        (["--scenes", "{in}/items.json", "--product", "worldcover_2019"], "no sheets of 2019, only of 2020, 2021"),
        (
            ["--scenes", "{in}/items.json", "--product", "worldcover"],
            "worldcover: not the name of a product and a year",
        ),
        (["--scenes", "{in}/gone", "--product", "worldcover_2021"], "gone: no such file or directory"),
        (["--scenes", "{in}/other.json", "--product", "worldcover_2021"], "other.json: not GeoJSON with outlines"),
        (["--scenes", "{in}/c.zip", "--product", "worldcover_2021"], "c.zip: no outline of a scene"),
        (["--scenes", "{in}/../point.json", "--product", "worldcover_2021"], "point.json is a Point, which has no"),
        (["--scenes", "{in}/../null.json", "--product", "worldcover_2021"], "null.json is a feature of no area"),
    ],
)
def test_what_cannot_be_checked_is_told(
    scenes: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], fault: str
) -> None:
    arguments = [argument.replace("{in}", str(scenes / "in")) for argument in arguments]
    assert __main__.main(["check", *arguments]) == 2
    assert fault in capsys.readouterr().err
