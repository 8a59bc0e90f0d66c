"""Each product on a small raster of the naming, CRS and codes that its makers use; the user's own; and the command."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from pyproj import Transformer

from geokr.landcover import __main__
from geokr.landcover.discovery import find_landcover
from geokr.landcover.legend import KNOWLEDGE, read_legend, read_taxonomy
from geokr.landcover.products import LandCoverError, load_products, read_product
from geokr.landcover.shares import compute_class_shares

LONLAT = "EPSG:4326"
SINUSOIDAL = "+proj=sinu +lon_0=0 +x_0=0 +y_0=0 +R=6371007.181 +units=m +no_defs"
CLARKE = (
    'GEOGCS["Unknown datum based upon the Clarke 1866 ellipsoid",'
    'DATUM["Not specified (based on Clarke 1866 spheroid)",SPHEROID["Clarke 1866",6378206.4,294.9786982]],'
    'PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433]]'
)
BASE = read_taxonomy().classes


@dataclass(frozen=True)
class Example:
    """A sheet as a product's makers name it."""

    file: str
    crs: str
    place: tuple[float, float]
    """Longitude and latitude of its upper left corner."""
    size: float
    """Side of a cell, units of the CRS."""
    labels: tuple[str, ...]
    """The label sets that come of it."""
    codes: dict[int, str]
    """Some of its codes and their classes in the base taxonomy; "" for one that says nothing."""
    dtype: str = "uint8"
    driver: str = "GTiff"
    options: tuple[tuple[str, str], ...] = ()


EXAMPLES = {
    "globeland30": Example(
        "n48_20_2010lc030.tif", "EPSG:32648", (104.0, 24.0), 30.0, ("globeland30_2010",),
        {10: "cultivated", 20: "forest", 75: "tundra", 100: "snow_ice", 255: "water", 0: ""},
    ),
    "worldcover": Example(
        "ESA_WorldCover_10m_2021_v200_S03W060_Map.tif", LONLAT, (-59.0, -1.0), 1 / 12000, ("worldcover_2021",),
        {10: "forest", 20: "shrubland", 80: "water", 95: "wetland", 100: "tundra", 0: ""},
    ),
    "esri": Example(
        "48R_20200101-20210101.tif", "EPSG:32648", (104.0, 28.0), 10.0, ("esri_2020",),
        {1: "water", 2: "forest", 4: "wetland", 7: "artificial", 9: "snow_ice", 10: "", 0: ""},
    ),
    "dynamic_world": Example(
        "20200713T030549_20200713T031412_T48RTV.tif", "EPSG:32648", (104.0, 28.0), 10.0, ("dynamic_world_2020",),
        {0: "water", 1: "forest", 2: "grassland", 5: "shrubland", 6: "artificial", 255: ""},
    ),
    "dynamic_world, a mosaic": Example(
        "DynamicWorld_2021_label.tif", LONLAT, (104.0, 28.0), 0.0001, ("dynamic_world_2021",),
        {0: "water", 3: "wetland", 4: "cultivated", 7: "bare", 8: "snow_ice"},
    ),
    "fromglc10": Example(
        "fromglc10v01_-4_102.tif", LONLAT, (102.5, -2.5), 0.0000898, ("fromglc10_2017",),
        {10: "cultivated", 40: "shrubland", 70: "tundra", 80: "artificial", 0: ""},
    ),
    "glc_fcs30": Example(
        "GLC_FCS30_2020_W125N40.tif", LONLAT, (-122.0, 38.0), 0.0002694946, ("glc_fcs30_2020",),
        {10: "cultivated", 62: "forest", 122: "shrubland", 140: "tundra", 180: "wetland", 190: "artificial", 250: ""},
    ),
    "glc_fcs30d, five years": Example(
        "GLC_FCS30D_19852000_E100N25_5years_V1.1.tif", LONLAT, (102.0, 24.0), 0.0002694946,
        tuple(f"glc_fcs30d_{year}" for year in (1985, 1990, 1995)),
        {20: "cultivated", 52: "forest", 153: "bare", 187: "wetland", 210: "water", 0: ""},
    ),
    "glc_fcs30d, each year": Example(
        "GLC_FCS30D_20002022_E100N25_Annual_V1.1.tif", LONLAT, (102.0, 24.0), 0.0002694946,
        tuple(f"glc_fcs30d_{year}" for year in range(2000, 2023)),
        {20: "cultivated", 52: "forest", 153: "bare", 185: "wetland", 220: "snow_ice", 250: ""},
    ),
    "cgls_lc100": Example(
        "PROBAV_LC100_global_v3.0.1_2019-nrt_Discrete-Classification-map_EPSG-4326.tif", LONLAT, (10.0, 50.0),
        1 / 1008, ("cgls_lc100_2019",),
        {20: "shrubland", 40: "cultivated", 111: "forest", 126: "forest", 200: "water", 255: "", 0: ""},
    ),
    "cgls_lc100, a tile": Example(
        "E000N60_PROBAV_LC100_global_v3.0.1_2015-base_Discrete-Classification-map_EPSG-4326.tif", LONLAT, (10.0, 50.0),
        1 / 1008, ("cgls_lc100_2015",), {30: "grassland", 60: "bare", 90: "wetland", 100: "tundra"},
    ),
    "cci_lc": Example(
        "ESACCI-LC-L4-LCCS-Map-300m-P1Y-2015-v2.0.7.tif", LONLAT, (10.0, 50.0), 1 / 360, ("cci_lc_2015",),
        {10: "cultivated", 62: "forest", 140: "tundra", 170: "wetland", 190: "artificial", 220: "snow_ice", 0: ""},
    ),
    "cci_lc, all years": Example(
        "ESACCI-LC-L4-LCCS-Map-300m-P1Y-1992_2015-v2.0.7.tif", LONLAT, (10.0, 50.0), 1 / 360,
        tuple(f"cci_lc_{year}" for year in range(1992, 2016)), {11: "cultivated", 82: "forest", 210: "water"},
    ),
    "cci_lc, continued": Example(
        "C3S-LC-L4-LCCS-Map-300m-P1Y-2020-v2.1.1.nc", LONLAT, (10.0, 50.0), 1 / 360, ("cci_lc_2020",),
        {20: "cultivated", 90: "forest", 122: "shrubland", 202: "bare"}, driver="netCDF",
    ),
    "globcover": Example(
        "GLOBCOVER_L4_200901_200912_V2.3.tif", LONLAT, (10.0, 50.0), 1 / 360, ("globcover_2009",),
        {11: "cultivated", 40: "forest", 140: "grassland", 180: "wetland", 210: "water", 230: ""},
    ),
    "globcover, 2005": Example(
        "GLOBCOVER_200412_200606_V2.2_Global_CLA.tif", LONLAT, (10.0, 50.0), 1 / 360, ("globcover_2005",),
        {14: "cultivated", 130: "shrubland", 220: "snow_ice"},
    ),
    "mcd12q1": Example(
        "MCD12Q1.A2020001.h27v06.061.2022169160720_LC_Type1.tif", SINUSOIDAL, (104.0, 25.0), 463.312716528,
        ("mcd12q1_2020",), {1: "forest", 7: "shrubland", 12: "cultivated", 17: "water", 255: ""},
    ),
    "mcd12q1, cut out": Example(
        "MCD12Q1.061_LC_Type1_doy2020001_aid0001.tif", LONLAT, (104.0, 25.0), 1 / 240, ("mcd12q1_2020",),
        {10: "grassland", 13: "artificial", 15: "snow_ice", 17: "water"},
    ),
    "mcd12c1": Example(
        "MCD12C1.A2020001.061.2022172062638.tif", CLARKE, (104.0, 25.0), 0.05, ("mcd12c1_2020",),
        {0: "water", 5: "forest", 11: "wetland", 16: "bare", 255: ""},
    ),
    "nlcd": Example(
        "nlcd_2019_land_cover_l48_20210604.img", "EPSG:5070", (-89.0, 43.0), 30.0, ("nlcd_2019",),
        {11: "water", 24: "artificial", 52: "shrubland", 72: "tundra", 81: "cultivated", 0: ""}, driver="HFA",
    ),
    "nlcd, annual": Example(
        "Annual_NLCD_LndCov_2022_CU_C1V0.tif", "EPSG:5070", (-89.0, 43.0), 30.0, ("nlcd_2022",),
        {12: "snow_ice", 31: "bare", 43: "forest", 90: "wetland", 250: ""},
    ),
    "corine": Example(
        "U2018_CLC2018_V2020_20u1.tif", "EPSG:3035", (10.0, 50.0), 100.0, ("corine_2018",),
        {1: "artificial", 12: "cultivated", 25: "forest", 34: "snow_ice", 36: "wetland", 44: "water", -128: ""},
        dtype="int8",
    ),
    "nlcd, edition of 2014": Example(
        "nlcd_2011_landcover_2011_edition_2014_10_10.img", "EPSG:5070", (-89.0, 43.0), 30.0, ("nlcd_2011",),
        {11: "water", 95: "wetland"}, driver="HFA",
    ),
    "nlcd, a cut-out": Example(
        "zion_NLCD_Land_Cover_2011.tif", "EPSG:5070", (-89.0, 43.0), 30.0, ("nlcd_2011",), {82: "cultivated"},
    ),
    "nlcd, annual, a cut-out": Example(
        "Annual_NLCD_LndCov_2021_CU_C1V1_3f1c-77.tiff", "EPSG:5070", (-89.0, 43.0), 30.0, ("nlcd_2021",),
        {41: "forest"},
    ),
    "corine, 2018 edition": Example(
        "CLC2018_CLC2018_V2018_20.tif", "EPSG:3035", (10.0, 50.0), 100.0, ("corine_2018",),
        {1: "artificial", 40: "water"},
    ),
    "corine, revised": Example(
        "CLC2012_CLC2006_V18_5.tif", "EPSG:3035", (10.0, 50.0), 100.0, ("corine_2006",), {23: "forest"},
    ),
    "corine, 2016 edition": Example(
        "g100_clc12_V18_5.tif", "EPSG:3035", (10.0, 50.0), 100.0, ("corine_2012",), {12: "cultivated", 255: ""},
    ),
    "corine, 1990": Example(
        "g250_clc90_V18_5a.tif", "EPSG:3035", (10.0, 50.0), 250.0, ("corine_1990",), {34: "snow_ice"},
    ),
    "esri, another store": Example(
        "48R-2022.tif", "EPSG:32648", (104.0, 28.0), 10.0, ("esri_2022",), {10: "", 8: "bare"},
    ),
    "cci_lc, a cut-out": Example(
        "C3S-LC-L4-LCCS-Map-300m-P1Y-2021-v2.1.1.area-subset.51.12.-3.9.nc", LONLAT, (10.0, 50.0), 1 / 360,
        ("cci_lc_2021",), {130: "grassland"}, driver="netCDF",
    ),
    "lcfm": Example(
        "LCFM_LCM-10_V100_2020_S03W060_MAP.tif", LONLAT, (-59.0, -1.0), 1 / 12000, ("lcfm_2020",),
        {10: "forest", 60: "wetland", 70: "tundra", 80: "bare", 90: "artificial", 110: "snow_ice", 255: ""},
    ),
    "mapbiomas": Example(
        "brasil_coverage_2022.tif", LONLAT, (-59.0, -1.0), 1 / 3711, ("mapbiomas_2022",),
        {3: "forest", 15: "grassland", 24: "artificial", 33: "water", 39: "cultivated", 27: ""},
    ),
    "mapbiomas, a region": Example(
        "mapbiomas-brazil-collection-90-acre-1999.tif", LONLAT, (-69.0, -9.0), 1 / 3711, ("mapbiomas_1999",),
        {20: "cultivated"},
    ),
}  # fmt: skip


def write(folder: Path, example: Example) -> Path:
    """The example's codes as columns of three cells, three rows high."""
    x, y = Transformer.from_crs(LONLAT, example.crs if example.crs != CLARKE else LONLAT, always_xy=True).transform(
        *example.place
    )
    cells = np.repeat(np.repeat(np.array([list(example.codes)], example.dtype), 3, 0), 3, 1)
    path = folder / example.file
    count = len(example.labels)
    profile = {"height": 3, "width": cells.shape[1], "count": count, "dtype": example.dtype}
    transform = Affine(example.size, 0, x, 0, -example.size, y)
    if example.driver == "netCDF":
        source = folder / "source.tif"
        with rasterio.open(source, "w", driver="GTiff", **profile, crs=example.crs, transform=transform) as file:
            file.write(cells, 1)
            file.update_tags(1, NETCDF_VARNAME="lccs_class")
        rasterio.shutil.copy(source, path, driver="netCDF")
        source.unlink()
        return path
    with rasterio.open(path, "w", driver=example.driver, **profile, crs=example.crs, transform=transform) as file:
        for band in range(count):
            file.write(np.roll(cells, 3 * band, axis=1), band + 1)  # each year another code in each place
    return path


def column(example: Example, k: int) -> np.ndarray:
    """A footprint within column k of codes, in the CRS of the sheet: (1, 4, 2)."""
    crs = example.crs if example.crs != CLARKE else LONLAT
    x, y = Transformer.from_crs(LONLAT, crs, always_xy=True).transform(*example.place)
    unit = np.add([(0.3, 0.3), (2.6, 0.4), (2.7, 2.6), (0.2, 2.8)], [3 * k, 0])
    return (unit * [example.size, -example.size] + [x, y])[None]


def test_every_product_has_an_example() -> None:
    shipped = {path.stem for path in (KNOWLEDGE / "products").glob("*.toml")}
    assert {name.partition(",")[0] for name in EXAMPLES} == shipped


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_product_is_recognised_by_its_makers_naming_and_read_by_its_codes(tmp_path: Path, name: str) -> None:
    example = EXAMPLES[name]
    write(tmp_path, example)
    covers = find_landcover([tmp_path])
    assert [cover.name for cover in covers] == sorted(example.labels)
    crs = example.crs if example.crs != CLARKE else LONLAT
    names = list(example.codes.values())
    for band, label in enumerate(example.labels):
        (cover,) = (cover for cover in covers if cover.name == label)
        assert cover.year == int(label[-4:])
        assert len(cover.sheets) == 1
        for k in range(len(names)):
            shares = compute_class_shares(column(example, k), crs, cover)
            assert shares.unlisted == frozenset()
            wanted = names[(k - band) % len(names)]
            assert shares.known[0] == pytest.approx(1.0 if wanted else 0.0, abs=1e-9)
            if wanted:
                assert shares.fraction[0, BASE.index(wanted)] == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("path", sorted((KNOWLEDGE / "products").glob("*.toml")), ids=lambda path: path.stem)
def test_a_shipped_description_says_all_that_a_user_asks(path: Path) -> None:
    text = __main__.read_toml(path)
    for key in ("title", "citation", "licence", "years", "zero", "sea"):
        assert text[key]
    assert text["name"] == path.stem
    doubtful = [row for row in text["codes"] if isinstance(row["to"], dict)]
    assert all("note" in row for row in doubtful)
    for taxonomy in (read_taxonomy(), read_taxonomy("paper"), None):
        legend = read_legend(path, taxonomy)
        assert legend.codes
        assert set(legend.codes) | legend.ignored == {row["code"] for row in text["codes"]}


SAYS = {
    "ignore": "no data|no value|no input|filled|masked|unclassified|outside|clouds",
    "cultivated": "crop|cultivat|arable|irrigated|rice|vineyard|fruit|olive|hay",
    "wetland": "wetland|flooded|marsh|swamp|mangrove|bogs|tidal|saline$",
    "bare": "bare|barren|sparse|sands|burnt",
    "tundra": "tundra|lichen|moss|dwarf|sedge",
    "artificial": r"urban|built|artificial|impervious|developed|industrial|\broad|port|extraction|sites|salines",
    "snow_ice": "snow",
    "water": "water|sea|lagoon|estuaries",
    "forest": "forest|tree|woody savanna",
    "shrubland": "shrub|scrub|heath|sclerophyllous",
    "grassland": "grass|herbaceous|savanna|pastures",
}
"""Class of the base taxonomy -> words in the names of codes that are it. The first that is found decides."""


@pytest.mark.parametrize("path", sorted((KNOWLEDGE / "products").glob("*.toml")), ids=lambda path: path.stem)
def test_a_code_goes_where_its_name_says(path: Path) -> None:
    """One that is split goes to several classes."""
    for row in __main__.read_toml(path)["codes"]:
        said = next((to for to, words in SAYS.items() if re.search(words, row["name"])), None)
        if isinstance(row["to"], dict):
            assert len(row["to"]) > 1
            continue
        assert row["to"] == said, row


@pytest.mark.parametrize(
    "name",
    [
        "nlcd_2011_impervious_2011_edition_2014_10_10.img",
        "nlcd_2001_to_2011_landcover_fromto_change_index_2011_edition.img",
        "nlcd_2006_to_2011_landcover_fromto_change.img",
        "nlcd_2011_landcover_fromto_change.img",
        "nlcd_2016_treecanopy_2019_08_31.img",
        "Annual_NLCD_FctImp_2021_CU_C1V1.tif",
        "g100_dem12_V18_5.tif",
        "48R_2020_probability.tif",
        "LCFM_TCD-10_V100_2020_N00E006_MAP.tif",
        "C3S-LC-L4-LCCS-Map-300m-P1Y-2020-v2.1.1.nc.md5",
        "mapbiomas_fire_2020.tif",
    ],
)
def test_other_layers_with_similar_names_are_no_sheets(name: str) -> None:
    assert all(product.match(name) is None for product in load_products())


@pytest.mark.parametrize(
    ("file", "location", "label"),
    [
        ("anything.tif", "corine_2018={}/anything.tif", "corine_2018"),
        ("deep/er/map.tif", "glc_fcs30_2015={}", "glc_fcs30_2015"),  # all rasters of a directory
        ("ESA_WorldCover_10m_2021_v200_N48E009_Map.tif", "esri_2021={}", "esri_2021"),  # whatever the name says
        ("U2018_CLC2018_V2020_20u1.tif", "corine_2012={}", "corine_2012"),
        ("anything.tif", "CORINE_2018={}/anything.tif", "corine_2018"),
    ],
)
def test_a_map_is_what_the_user_says_it_is(tmp_path: Path, file: str, location: str, label: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    write(tmp_path, Example(file, LONLAT, (10.0, 50.0), 0.001, ("",), {1: "", 12: "", 40: ""}))
    (cover,) = find_landcover([location.format(tmp_path)])
    assert (cover.name, cover.year) == (label, int(label[-4:]))
    assert [Path(sheet.path).name for sheet in cover.sheets] == [Path(file).name]
    (again,) = find_landcover([tmp_path, location.format(tmp_path)])  # found twice, and still what the user says
    assert again.name == label


def test_a_map_of_an_unknown_product_is_refused_and_the_known_ones_are_listed(tmp_path: Path) -> None:
    write(tmp_path, Example("map.tif", LONLAT, (10.0, 50.0), 0.001, ("",), {1: ""}))
    with pytest.raises(LandCoverError, match=r"corin_2018=map\.tif: there is no product corin; known .*corine, "):
        find_landcover([f"corin_2018={tmp_path}/map.tif"])
    with pytest.raises(LandCoverError, match="gone: no such file or directory"):
        find_landcover([f"corine_2018={tmp_path}/gone"])
    for form in ("corine", "product=corine,year=2018"):
        with pytest.raises(LandCoverError, match=f"{form}=.*: no such file .* is written as PRODUCT_YEAR=PATH"):
            find_landcover([f"{form}={tmp_path}/map.tif"])


def test_a_folder_with_an_equals_sign_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corine_2018=old").mkdir()
    write(tmp_path / "corine_2018=old", EXAMPLES["corine, 2016 edition"])
    monkeypatch.chdir(tmp_path)
    assert [cover.name for cover in find_landcover(["corine_2018=old"])] == ["corine_2012"]


def test_esris_rangeland_is_split(tmp_path: Path) -> None:
    legend = read_legend(KNOWLEDGE / "products" / "esri.toml", read_taxonomy())
    (shares,) = legend.shares([11])
    assert dict(zip(BASE, shares.tolist(), strict=True)) == {
        **dict.fromkeys(BASE, 0.0),
        "grassland": 0.5,
        "shrubland": 0.5,
    }


def test_the_sea_is_unknown_in_the_papers_classes_where_a_product_tells_it_apart() -> None:
    paper = read_taxonomy("paper")
    seas = {"globeland30": 255, "cgls_lc100": 200, "corine": 44}
    for name, code in seas.items():
        assert code in read_legend(KNOWLEDGE / "products" / f"{name}.toml", paper).ignored


# --- what names deny


@pytest.mark.parametrize(
    ("file", "crs", "place"),
    [
        ("ESA_WorldCover_10m_2021_v200_N24E102_Map.tif", LONLAT, (99.0, 25.0)),
        ("ESA_WorldCover_10m_2021_v200_N24W102_Map.tif", LONLAT, (103.0, 25.0)),
        ("fromglc10v01_24_102.tif", LONLAT, (102.5, 22.5)),
        ("GLC_FCS30_2020_E100N25.tif", LONLAT, (102.0, 27.0)),  # the name is the upper corner
        ("GLC_FCS30_2020_E100N25.tif", LONLAT, (102.0, 19.0)),
        ("48R_20200101-20210101.tif", "EPSG:32648", (104.0, 38.0)),
        ("48R_20200101-20210101.tif", "EPSG:32649", (111.0, 28.0)),
        ("n48_20_2020lc030.tif", "EPSG:32648", (104.0, 28.0)),
    ],
)
def test_a_sheet_that_lies_elsewhere_than_its_name_says_is_refused(
    tmp_path: Path, file: str, crs: str, place: tuple[float, float]
) -> None:
    path = write(tmp_path, Example(file, crs, place, 0.001 if crs == LONLAT else 100.0, ("",), {10: ""}))
    with pytest.raises(LandCoverError, match=r"^[^\n]+$") as caught:
        find_landcover([tmp_path])
    assert str(caught.value).startswith(f"{path}: its pixels lie ")


@pytest.mark.parametrize(
    ("file", "extent"),
    [
        ("ESA_WorldCover_10m_2021_v200_S03W060_Map.tif", (-60, -3, -57, 0)),
        ("fromglc10v01_-4_102.tif", (102, -4, 104, -2)),
        ("GLC_FCS30_2020_W125N40.tif", (-125, 35, -120, 40)),
        ("48R_20200101-20210101.tif", (102, 24, 108, 32)),
        ("32V_20200101-20210101.tif", (3, 56, 12, 64)),
        ("33X_20200101-20210101.tif", (9, 72, 21, 84)),
        ("60C_20200101-20210101.tif", (174, -80, 180, -72)),
    ],
)
def test_a_sheet_counts_within_its_nominal_extent(
    tmp_path: Path, file: str, extent: tuple[float, float, float, float]
) -> None:
    middle = ((extent[0] + extent[2]) / 2, (extent[1] + extent[3]) / 2)
    write(tmp_path, Example(file, LONLAT, middle, 0.001, ("",), {10: ""}))
    (cover,) = find_landcover([tmp_path])
    assert cover.sheets[0].extent == extent


@pytest.mark.parametrize("file", ["32X_20200101-20210101.tif", "00R_20200101-20210101.tif"])
def test_a_zone_that_is_none_is_refused_or_meets_no_other(tmp_path: Path, file: str) -> None:
    write(tmp_path, Example(file, LONLAT, (9.5, 78.0), 0.001, ("",), {10: ""}))
    if file.startswith("00"):
        with pytest.raises(LandCoverError, match="MGRS has no grid zone 0R"):
            find_landcover([tmp_path])
    else:
        assert find_landcover([tmp_path])[0].sheets[0].extent == (6, 72, 12, 84)


def test_a_file_with_other_bands_than_years_is_refused(tmp_path: Path) -> None:
    file = "GLC_FCS30D_19852000_E100N25_5years_V1.1.tif"
    path = write(tmp_path, Example(file, LONLAT, (102.0, 24.0), 0.001, ("", ""), {10: ""}))
    with pytest.raises(LandCoverError, match=f"{path}: it has 2 bands, expected 3, one for each year"):
        find_landcover([tmp_path])


def test_a_raster_of_fractions_is_refused(tmp_path: Path) -> None:
    file = "DynamicWorld_2021.tif"
    path = write(tmp_path, Example(file, LONLAT, (102.0, 24.0), 0.001, ("",), {10: ""}, dtype="float32"))
    with pytest.raises(LandCoverError, match=f"{path}: its cells are of type float32, expected integers"):
        find_landcover([tmp_path])


def test_sheets_that_overlap_without_a_nominal_extent_are_refused(tmp_path: Path) -> None:
    days = [f"202007{day}T030549_202007{day}T031412_T48RTV.tif" for day in (13, 18)]
    first, second = (
        write(tmp_path, Example(day, "EPSG:32648", (104.0 + k / 1000, 28.0), 100.0, ("",), {1: "", 2: ""}))
        for k, day in enumerate(days)
    )
    with pytest.raises(LandCoverError, match="would count twice") as caught:
        find_landcover([tmp_path])
    assert str(caught.value).startswith(f"{second}: it overlaps {first}")


def test_sheets_of_several_crss_that_cover_a_place_twice_are_refused_when_it_is_met(tmp_path: Path) -> None:
    for day, crs in (("13", "EPSG:32648"), ("18", "EPSG:32647")):
        file = f"202007{day}T030549_202007{day}T031412_T48RTV.tif"
        write(tmp_path, Example(file, crs, (101.99, 28.0), 100.0, ("",), dict.fromkeys(range(9), "")))
    (cover,) = find_landcover([tmp_path])
    x, y = Transformer.from_crs(LONLAT, "EPSG:32648", always_xy=True).transform(101.995, 27.999)
    square = np.add([[(0, 0), (50, 0), (50, 50), (0, 50)]], [x, y])
    with pytest.raises(LandCoverError, match=r"dynamic_world_2020: several of its sheets cover longitude 101\.99"):
        compute_class_shares(square, "EPSG:32648", cover)


# --- the user's own

MINE = """
name = "mine"
codes = [
  { code = 1000, name = "wood", to = "forest" },
  { code = 2000, name = "town", to = { artificial = 0.75, ignore = 0.25 } },
  { code = 0, name = "nothing", to = "ignore" },
]

[[sheets]]
name = '^ours_(?P<year>\\d{4})\\.tif$'
extent = "bounds"
"""


def own(folder: Path, text: str = MINE) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def ours(folder: Path, codes: Sequence[int] = (1000, 2000, 0)) -> Path:
    names = dict.fromkeys(codes, "")
    return write(folder, Example("ours_2018.tif", "EPSG:32648", (104.0, 25.0), 10.0, ("",), names, dtype="uint16"))


def test_any_raster_is_a_product_with_a_file_of_the_users(tmp_path: Path) -> None:
    ours(tmp_path)
    for legends in ([own(tmp_path)], [tmp_path]):
        (cover,) = find_landcover([tmp_path], legends)
        assert cover.name == "mine_2018"
        example = Example("", "EPSG:32648", (104.0, 25.0), 10.0, (), {})
        corners = np.concatenate([column(example, k) for k in range(3)])
        shares = compute_class_shares(corners, "EPSG:32648", cover)
        assert shares.known == pytest.approx([1.0, 0.75, 0.0], abs=1e-9)
        assert shares.fraction[0, BASE.index("forest")] == pytest.approx(1.0, abs=1e-9)
        assert shares.fraction[1, BASE.index("artificial")] == pytest.approx(1.0, abs=1e-9)
    (cover,) = find_landcover([tmp_path], [own(tmp_path)], "own")
    assert cover.legend.classes == ("wood", "town")


def test_the_users_description_goes_before_a_shipped_one(tmp_path: Path) -> None:
    write(tmp_path, EXAMPLES["nlcd, annual"])
    text = MINE.replace("^ours_", "^Annual_NLCD_LndCov_").replace(r"\.tif", r"_.*\.tif")
    assert [cover.name for cover in find_landcover([tmp_path], [own(tmp_path, text)])] == ["mine_2022"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (MINE.replace('name = "mine"', ""), "'name' is missing"),
        (MINE.replace('"mine"', '"My map"'), "may contain only lower-case letters"),
        (MINE.replace("[[sheets]]", "[[sheet]]"), "'sheets' is missing"),
        (MINE.replace("(?P<year>", "("), "no group `year` in its name"),
        (MINE.replace("(?P<year>", "(?P<year"), "not a regular expression"),
        (MINE.replace('"bounds"', '"around"'), "unknown extent 'around'"),
        (MINE.replace('"bounds"', '"grid_zone"'), "no group ['band', 'zone']"),
        (MINE.replace('extent = "bounds"', ""), "'extent' is missing"),
        (MINE.replace('extent = "bounds"', 'extent = "bounds"\nyear = 0'), "the year of a [[sheets]] rule is 0"),
        (MINE.replace('"bounds"', '{ degrees = 3, corner = "middle" }'), "unknown extent"),
        ("name = ", "not a TOML file"),
    ],
)
def test_a_broken_description_is_refused_by_name_and_fault(tmp_path: Path, text: str, fault: str) -> None:
    path = own(tmp_path, text)
    with pytest.raises(LandCoverError, match=r"^[^\n]+$") as caught:
        read_product(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("code = 2000", "code = 1000"), "code 1000 is listed twice"),
        (("ignore = 0.25", "ignore = 0.2"), "sum to 1"),
        (('"forest"', '"woods"'), "goes to ['woods']"),
    ],
)
def test_a_legend_with_a_fault_is_refused_before_work_starts(
    tmp_path: Path, change: tuple[str, str], fault: str
) -> None:
    ours(tmp_path)
    path = own(tmp_path, MINE.replace(*change))
    with pytest.raises(LandCoverError, match=r"^[^\n]+$") as caught:
        find_landcover([tmp_path], [path])
    assert str(caught.value).startswith(f"{path}: ")
    assert fault in str(caught.value)


def test_a_description_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LandCoverError, match=r"mine\.toml: cannot be read: No such file"):
        load_products([tmp_path / "mine.toml"])
    with pytest.raises(LandCoverError, match=r"the directory contains no \.toml file"):
        load_products([tmp_path])


# --- the command


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = __main__.main(arguments)
    return (status, *capsys.readouterr())


def test_the_products_are_listed_and_described(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, _ = run(capsys, "list")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == [product.name for product in load_products()]
    status, out, _ = run(capsys, "describe", "esri")
    assert status == 0
    assert "0.5 grassland + 0.5 shrubland   (grass and scrub together" in out
    assert "CC-BY-4.0" in out
    status, out, _ = run(capsys, "describe", "esri", "--taxonomy", "own")
    assert " rangeland" in out
    status, _, err = run(capsys, "describe", "nothing")
    assert (status, err.startswith("error: nothing: no such product; available: cci_lc, ")) == (2, True)


def test_a_directory_is_checked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write(tmp_path, EXAMPLES["globeland30"])
    write(tmp_path, EXAMPLES["worldcover"])
    status, out, _ = run(capsys, "check", str(tmp_path))
    assert status == 0
    assert "globeland30_2010: 1 sheets" in out
    assert "WGS 84 / UTM zone 48N (EPSG:32648)" in out
    assert "codes in 54 cells (a sample of blocks of each sheet): 0 16.7 %, 10 16.7 %" in out
    assert "not recognised" not in out


def test_a_check_tells_what_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ours(tmp_path, (1000, 3000, 0))
    bad = tmp_path / "n48_20_2010lc030.tif"
    bad.write_bytes(b"no raster")
    (tmp_path / "dem.tif").write_bytes(b"")
    status, out, _ = run(capsys, "check", str(tmp_path), "--legend", str(own(tmp_path)), "--all")
    assert status == 1
    assert f"code 3000 is not in the legend, first seen in {tmp_path / 'ours_2018.tif'}" in out
    assert f"cannot be used: {bad}: not a raster that can be read" in out
    assert f"not recognised: {tmp_path / 'dem.tif'}" in out
    status, _, err = run(capsys, "check", str(tmp_path / "nowhere"))
    assert (status, "no such file or directory" in err) == (2, True)
    (tmp_path / "empty").mkdir()
    status, out, _ = run(capsys, "check", str(tmp_path / "empty"))
    assert (status, "no land-cover sheet recognised" in out) == (1, True)


def test_a_check_looks_into_some_blocks_or_all(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cells = np.ones((80, 80), np.uint8)
    cells[3, 40] = 77  # in the third of 25 blocks
    profile = {"driver": "GTiff", "height": 80, "width": 80, "count": 1, "dtype": "uint8", "crs": LONLAT}
    path = tmp_path / "DynamicWorld_2021.tif"
    transform = Affine(0.01, 0, 100, 0, -0.01, 20)
    with rasterio.open(path, "w", **profile, transform=transform, blockxsize=16, blockysize=16, tiled=True) as file:
        file.write(cells, 1)
    status, out, _ = run(capsys, "check", str(tmp_path))
    assert (status, "codes in 4096 cells (a sample of blocks" in out) == (0, True)
    status, out, _ = run(capsys, "check", str(tmp_path), "--all")
    assert (status, "codes in 6400 cells: " in out, "code 77 is not in the legend" in out) == (1, True, True)


TABLE = """<PAMDataset><PAMRasterBand band="1"><GDALRasterAttributeTable>
<FieldDefn index="0"><Name>Value</Name><Type>0</Type><Usage>5</Usage></FieldDefn>
<FieldDefn index="1"><Name>Land_Cover</Name><Type>2</Type><Usage>2</Usage></FieldDefn>
<Row index="0"><F>7</F><F>Old "forest"</F></Row><Row index="1"><F>9</F><F>Water</F></Row>
</GDALRasterAttributeTable></PAMRasterBand></PAMDataset>"""
FREE_TABLE = TABLE.replace("<Usage>5", "<Usage>0").replace("<Usage>2", "<Usage>0")
"""Without usages, and with a name of the column of text that nothing says."""
CATEGORIES = """<PAMDataset><PAMRasterBand band="1"><CategoryNames>
<Category></Category><Category>Wood</Category><Category>Water</Category></CategoryNames></PAMRasterBand></PAMDataset>"""


@pytest.mark.parametrize(
    ("sidecar", "names"),
    [
        ("", {7: "7"}),
        (TABLE, {7: "Old 'forest'", 9: "Water"}),
        (FREE_TABLE, {7: "Old 'forest'", 9: "Water"}),
        (CATEGORIES, {1: "Wood", 2: "Water", 7: "7"}),
    ],
)
def test_names_and_colours_of_a_raster_become_the_draft_of_a_description(
    tmp_path: Path, sidecar: str, names: dict[int, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, Example("My map (2016).tif", LONLAT, (10.0, 50.0), 0.001, ("",), {7: "", 0: ""}))
    with rasterio.open(path, "r+") as file:
        file.nodata = 0
        file.write_colormap(1, {7: (255, 0, 16)})
    if sidecar:
        path.with_suffix(".tif.aux.xml").write_text(sidecar)
    assert __main__.main(["describe", str(path)]) == 0
    text = capsys.readouterr().out
    assert "# #ff0010" in text
    draft = tmp_path / "draft.toml"
    draft.write_text(text)
    rows = __main__.read_toml(draft)["codes"]
    assert {row["code"]: row["name"] for row in rows} == names | {0: "0"}
    with pytest.raises(LandCoverError, match=r"goes to \[''\]"):  # a draft is no description before it is filled in
        find_landcover([path], [draft])
    draft.write_text(text.replace('to = ""', 'to = "forest"'))
    assert [cover.name for cover in find_landcover([path], [draft])] == ["my_map_2016_2016"]


def test_a_draft_that_was_not_filled_in_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, Example("map.tif", LONLAT, (10.0, 50.0), 0.001, ("",), {7: ""}))
    _, text, _ = run(capsys, "describe", str(path))
    (tmp_path / "draft.toml").write_text(text)
    status, _, fault = run(capsys, "check", str(path), "--legend", str(tmp_path / "draft.toml"))
    assert (status, fault.count("\n")) == (2, 1)
    assert "draft.toml: the year of a [[sheets]] rule is 0; fill in that of the map" in fault


def test_a_raster_of_measurements_has_no_draft(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with rasterio.open(
        tmp_path / "heights.tif", "w", driver="GTiff", width=60, height=60, count=1, dtype="uint16", crs=LONLAT,
        transform=Affine(0.01, 0, 10, 0, -0.01, 50),
    ) as file:  # fmt: skip
        file.write(np.arange(3600, dtype=np.uint16).reshape(60, 60), 1)
    status, _, fault = run(capsys, "describe", str(tmp_path / "heights.tif"))
    assert (status, "heights.tif: a sample of its cells has 3600 values, too many for classes" in fault) == (2, True)
    status, _, fault = run(capsys, "describe", str(tmp_path / "gone.tif"))
    assert (status, fault) == (2, f"error: {tmp_path / 'gone.tif'}: no such file\n")


def test_hdf4_is_told_how_to_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("MCD12Q1.A2020001.h27v06.061.2022169160720.hdf", "MCD12C1.A2020001.061.2022172062638.hdf"):
        (tmp_path / name).write_bytes(b"")
    __main__.main(["check", str(tmp_path)])
    commands = re.findall(r"gdal_translate .* '([^']*)' '([^']*)'`", capsys.readouterr().out)
    assert sorted(source.removeprefix("HDF4_EOS:EOS_GRID:").replace(str(tmp_path), "") for source, _ in commands) == [
        "/MCD12C1.A2020001.061.2022172062638.hdf:MOD12C1:Majority_Land_Cover_Type_1",
        "/MCD12Q1.A2020001.h27v06.061.2022169160720.hdf:MCD12Q1:LC_Type1",
    ]
    for _, target in commands:  # what they write is recognised
        assert any(product.match(Path(target).name) for product in load_products())
