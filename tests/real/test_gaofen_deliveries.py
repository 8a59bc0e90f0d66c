"""Three real Gaofen deliveries with MCD12C1 land cover and no DEM, through the command that users give."""

import json
import logging
from pathlib import Path

import cv2
import geopandas
import numpy as np
import pytest
import rasterio
import xarray
from pyproj import Transformer
from rasterio.transform import RPCTransformer
from rasterio.warp import Resampling, reproject

from geokr.dataset import contents, layout, store
from geokr.dataset.index import read_summary
from geokr.landcover.discovery import find_landcover
from geokr.landcover.shares import compute_class_shares
from pipeline.build_levir_kr import main
from pipeline.catalog.table import Entry, read_catalog
from pipeline.config import GridConfig
from pipeline.imaging.ortho import orthorectify
from pipeline.plan import tile_grid

IMAGES = {
    "GF1_PMS1_E69.4_N33.3_20220624_L1A0006547030",
    "GF1_WFV3_E89.0_N23.9_20200523_L1A0004819525",
    "GF2_PMS1_W91.0_N17.6_20200510_L1A0004793969",
}


@pytest.fixture(scope="module")
def built(real: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The data set, and what the command said while it built it."""
    out = tmp_path_factory.mktemp("gaofen") / "dataset"
    logged: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.append(record.getMessage())

    logging.getLogger("pipeline").addHandler(Keep())
    sheet = next((real / "landcover").glob("MCD12C1*.tif"))
    deliveries = [str(path) for path in sorted((real / "gaofen").iterdir()) if path.name != "originals"]
    status = main(["--scenes", *deliveries, "--landcover", str(sheet), "--out", str(out), "--workers", "2", "--strict"])
    assert status == 0
    return out, "\n".join(logged)


@pytest.fixture(scope="module")
def entries(built: tuple[Path, str]) -> list[Entry]:
    return read_catalog(built[0] / "scenes.parquet")


def test_all_three_deliveries_become_tiles(built: tuple[Path, str]) -> None:
    index = geopandas.read_parquet(built[0] / "index.parquet")
    assert set(index["scene"]) == IMAGES
    assert set(contents.list_scenes(str(built[0] / layout.TILES))) == IMAGES
    assert index.crs == "EPSG:4326"
    assert (index["known"] > 0.99).all()


def test_the_missing_dem_is_said_aloud_and_kept(built: tuple[Path, str], entries: list[Entry]) -> None:
    for entry in entries:
        assert f"{entry.scene.id}: no DEM: the ground is assumed flat at" in built[1]
        group = store.open_scene(str(built[0] / layout.TILES), entry.scene.id)
        assert group.attrs["dem"] is None
        assert group.attrs["ground_height"] == entry.scene.images[0].model.height_off


def test_everything_that_the_xml_says_is_kept(entries: list[Entry]) -> None:
    scene = next(entry.scene for entry in entries if entry.scene.sensor == "WFV3")
    assert scene.metadata["CloudPercent"] == "38"
    assert scene.metadata["StartTime"] == "2020-05-23 13:02:53"
    assert scene.acquired is not None
    assert scene.acquired.isoformat() == "2020-05-23T05:03:08+00:00"
    assert scene.bands == ("nir", "red", "green")


@pytest.mark.parametrize("scene_id", sorted(IMAGES))
def test_geolocation_agrees_with_gdal(built: tuple[Path, str], entries: list[Entry], scene_id: str) -> None:
    """In any accepted tile, GDAL's RPC transformer puts a pixel at most 0.1 px from where ours took it.

    The stored pixels are also held against GDAL's RPC warp of the image: by phase correlation they are not shifted.
    """
    entry = next(entry for entry in entries if entry.scene.id == scene_id)
    scene = entry.scene
    grid = tile_grid(entry, GridConfig())
    assert grid is not None
    with rasterio.open(scene.images[0].path) as file:
        rpcs, pixels = file.rpcs, file.read()
    crs, transform = str(grid.geobox.crs), grid.geobox.transform
    warped = np.zeros((len(scene.bands), *grid.geobox.shape), pixels.dtype)
    height = {"RPC_HEIGHT": str(entry.terrain.height)}
    reproject(
        pixels, warped, rpcs=rpcs, src_crs="EPSG:4326", dst_transform=transform, dst_crs=crs,
        resampling=Resampling.bilinear, tolerance=0, **height,
    )  # fmt: skip
    mesh = orthorectify(grid.geobox, scene.images[0], entry.terrain).lattice
    ours = np.stack(mesh.dense((grid.geobox.shape[0], grid.geobox.shape[1])))
    group = store.open_scene(str(built[0] / layout.TILES), scene_id)
    accepted = np.argwhere(contents.read_status(group) == layout.ACCEPTED)
    assert len(accepted) > 5
    worst, shifts = 0.0, []
    with RPCTransformer(rpcs) as gdal:
        for r, c in accepted:
            top, left = r * grid.stride, c * grid.stride
            y, x = np.mgrid[top : top + grid.tile : 15, left : left + grid.tile : 15]
            east, north = transform @ (x.ravel() + 0.5, y.ravel() + 0.5)
            lon, lat = Transformer.from_crs(crs, 4326, always_xy=True).transform(east, north)
            rows, cols = gdal.rowcol(lon, lat, zs=np.full(lon.shape, entry.terrain.height), op=lambda value: value)
            worst = max(worst, float(np.abs(ours[:, y.ravel(), x.ravel()] - [cols, rows]).max()))
            window = np.s_[:, top : top + grid.tile, left : left + grid.tile]
            stored = np.asarray(group["image"][r, c]).astype(np.float32).mean(axis=0)
            theirs = (
                np.interp(warped[window], [entry.stretch.low, entry.stretch.high], [0, 255])
                .astype(np.float32)
                .mean(axis=0)
            )
            shifts.append(
                np.hypot(*cv2.phaseCorrelate(stored, theirs, cv2.createHanningWindow(stored.shape, cv2.CV_32F))[0])
            )
    print(f"{scene_id}: {len(accepted)} tiles, farthest from GDAL {worst:.4f} px, shift {np.median(shifts):.4f} px")
    assert worst < 0.1
    # The median: GDAL's bilinear kernel widens with the ratio of the pixel sizes, which itself shifts some tiles.
    assert np.median(shifts) < 0.1


@pytest.mark.parametrize(
    ("scene_id", "counts"),
    [
        ("GF1_WFV3_E89.0_N23.9_20200523_L1A0004819525", {12: 1147, 14: 244, 0: 30, 11: 17, 9: 16, 13: 8, 10: 6, 16: 1}),
        ("GF1_PMS1_E69.4_N33.3_20220624_L1A0006547030", {10: 44, 7: 4, 16: 1}),
        ("GF2_PMS1_W91.0_N17.6_20200510_L1A0004793969", {8: 19, 9: 1}),
    ],
)
def test_shares_of_the_footprints_agree_with_counted_cells(
    real: Path, entries: list[Entry], scene_id: str, counts: dict[int, int]
) -> None:
    """Cells counted by their centres, independently of this project: equal to a cell's share of the footprint."""
    cover = find_landcover([next((real / "landcover").glob("MCD12C1*.tif"))])[0]
    scene = next(entry.scene for entry in entries if entry.scene.id == scene_id)
    # The outline's corners stand at every 16th point of its border.
    corners = np.array(scene.footprint.exterior.coords)[:-1:16]
    shares = compute_class_shares(corners[None], "EPSG:4326", cover)
    total = sum(counts.values())
    expected = sum(n / total * cover.legend.shares([code])[0] for code, n in counts.items())
    assert shares.known[0] == pytest.approx(1, abs=1e-4)
    # A border of that many cells is what counting by centres can miss, about half of it either way.
    assert np.abs(shares.fraction[0] - expected).max() < 0.5 / np.sqrt(total)


def test_opens_with_xarray_and_geopandas(built: tuple[Path, str]) -> None:
    tree = xarray.open_datatree(str(built[0] / layout.TILES), engine="zarr", chunks={})
    scene = tree["GF2_PMS1_W91.0_N17.6_20200510_L1A0004793969"]
    assert scene["image"].dims == ("row", "col", "band", "y", "x")
    assert scene.attrs["proj:code"] == "EPSG:32615"
    index = geopandas.read_parquet(built[0] / "index.parquet")
    tile = index[index["scene"] == scene.name].iloc[0]
    assert scene["image"][tile["row"], tile["col"]].values.max() > 0
    summary = read_summary(built[0])
    assert np.allclose(index[summary["classes"]].sum(axis=1), 1, atol=1e-6)
    # What places a tile is in the attributes alone: the footprint follows from them.
    a = scene.attrs
    step = a["stride"] * a["gsd"]
    x, y = a["spatial:transform"][2] + tile["col"] * step, a["spatial:transform"][5] - tile["row"] * step
    side = a["tile"] * a["gsd"]
    square = geopandas.GeoSeries.from_xy([x, x + side], [y, y - side], crs=a["proj:code"]).to_crs(4326)
    assert tile["geometry"].exterior.coords[0] == pytest.approx((square.x[0], square.y[0]), abs=1e-9)


def test_the_summary_counts_what_is_there(built: tuple[Path, str]) -> None:
    summary = json.loads((built[0] / "dataset.json").read_text())
    index = geopandas.read_parquet(built[0] / "index.parquet")
    assert summary["counts"]["index"] == len(index) == summary["counts"]["tiles"]["accepted"]
