"""A built data set against the closed-form truth of the sample world."""

import geopandas
import numpy as np
import rasterio
import shapely
import xarray
from pyproj import Transformer

from geokr.dataset import contents, layout, store
from geokr.landcover.discovery import find_landcover
from geokr.landcover.legend import Legend
from pipeline.imaging.ortho import orthorectify
from pipeline.plan import tile_grid
from tests.build.conftest import PERIOD, Built


def test_every_pixel_lies_where_the_world_says(built: Built) -> None:
    """The stored bytes alone, with the place that the attributes give them, against the ground that they show."""
    worst, tiles, relief = 0.0, 0, 0.0
    for shot in built.shots:
        group = store.open_scene(str(built.dataset / layout.TILES), shot.name)
        a, low, high = group.attrs, *group.attrs["stretch"]
        transform, stride, size, gsd = a["spatial:transform"], a["stride"], a["tile"], a["gsd"]
        offset = (np.arange(size) + 0.5) * gsd
        heights = []
        for row, col in np.argwhere(contents.read_status(group) == layout.ACCEPTED):
            numbers = low + np.asarray(group["image"][row, col]).astype(float) / 255 * (high - low) - 500.0
            east = transform[2] + col * stride * gsd + offset[None, :]
            north = transform[5] - row * stride * gsd - offset[:, None]
            for (sine, cosine), truth in ((numbers[:2], east), (numbers[2:], north)):
                seen = np.arctan2(sine, cosine) / (2 * np.pi) * PERIOD
                away = (seen - truth + PERIOD / 2) % PERIOD - PERIOD / 2
                worst = max(worst, float(np.abs(away).max()) / gsd)
            heights.append(built.world.height(*np.broadcast_arrays(east, north)))
            tiles += 1
        relief = max(relief, float(np.max(heights) - np.min(heights)))
    print(f"{tiles} tiles, relief {relief:.0f} m, farthest pixel {worst:.4f} px from where the world has it")
    assert tiles > 500
    assert relief > 500
    assert worst < 0.1


def test_pixels_are_drawn_from_where_the_camera_saw_them(built: Built) -> None:
    """In image space: the lattice against the pushbroom camera in closed form, at every pixel of accepted tiles."""
    worst = 0.0
    for entry, shot in zip(built.entries, sorted(built.shots, key=lambda shot: shot.name), strict=True):
        grid = tile_grid(entry, built.config.grid)
        assert grid is not None
        status = contents.read_status(store.open_scene(str(built.dataset / layout.TILES), entry.scene.id))
        for block in grid:
            found = orthorectify(block.geobox, entry.scene.images[0], entry.terrain)
            valid, mesh = found.valid, found.lattice
            t = block.geobox.transform
            x, y = np.meshgrid(np.arange(valid.shape[1]) + 0.5, np.arange(valid.shape[0]) + 0.5)
            e, n = t.a * x + t.c, t.e * y + t.f
            lon, lat = Transformer.from_crs(str(grid.geobox.crs), shot.camera.crs, always_xy=True).transform(e, n)
            col, row = shot.camera.project(lon, lat, built.world.height(lon, lat))
            away = np.abs(np.subtract(mesh.dense(valid.shape), [col, row])).max(axis=0)
            for r, c in np.argwhere(status[block.rows, block.cols] == layout.ACCEPTED):
                top, left = r * grid.stride, c * grid.stride
                worst = max(worst, float(away[top : top + grid.tile, left : left + grid.tile].max()))
    print(f"farthest from the camera {worst:.4f} px")
    assert worst < 0.1


def counted(footprint: shapely.Polygon, sheets: list[tuple[str, shapely.Polygon]], legend: Legend) -> np.ndarray:
    """Shares by intersecting a footprint with every cell of every sheet, one by one; both in EPSG:32648."""
    areas = np.zeros(len(legend.classes))
    for path, extent in sheets:
        part = footprint.intersection(extent)
        if part.area == 0:
            continue
        with rasterio.open(path) as source:
            values, transform = source.read(1), source.transform
        left, bottom, right, top = part.bounds
        c0, r0 = (int(v) for v in ~transform @ (left, top))
        c1, r1 = (int(v) for v in ~transform @ (right, bottom))
        for row in range(r0, r1 + 1):
            for col in range(c0, c1 + 1):
                x, y = transform @ (col, row)
                cell = shapely.box(x, y - 30, x + 30, y)
                areas += legend.shares([values[row, col]])[0] * part.intersection(cell).area
    return areas / footprint.area


def test_class_shares_are_areas_of_intersection(built: Built) -> None:
    """Within 1e-6 on 120 tiles, among them tiles that lie across the two sheets."""
    index = geopandas.read_parquet(built.dataset / "index.parquet")
    cover = find_landcover([built.directory / "landcover"])[0]
    to_plane = Transformer.from_crs(4326, 32648, always_xy=True)
    extents = []
    for sheet in cover.sheets:
        west, south, east, north = (
            shapely.box(103, 24.5, 106, 25).bounds if "n48_20" in sheet.path else (103, 25, 106, 25.5)
        )
        # The parallel, bent as the zone's plane bends it.
        box = shapely.segmentize(shapely.box(west, south, east, north), 1e-3)
        extents.append((sheet.path, shapely.Polygon(np.column_stack(to_plane.transform(*box.exterior.xy)))))
    across = index[[g.bounds[1] < 25 < g.bounds[3] for g in index.geometry]]
    assert len(across) >= 20
    others = index.drop(across.index).sample(100, random_state=0)
    worst = 0.0
    classes = list(cover.legend.classes)
    for _, tile in [*across.sample(20, random_state=0).iterrows(), *others.iterrows()]:
        attributes = store.open_scene(str(built.dataset / layout.TILES), tile["scene"]).attrs
        assert attributes["proj:code"] == "EPSG:32648"
        step, side = attributes["stride"] * attributes["gsd"], attributes["tile"] * attributes["gsd"]
        left = attributes["spatial:transform"][2] + tile["col"] * step
        top = attributes["spatial:transform"][5] - tile["row"] * step
        truth = counted(shapely.box(left, top - side, left + side, top), extents, cover.legend)
        worst = max(worst, float(np.abs(truth - tile[classes].to_numpy(dtype=float) * tile["known"]).max()))
    print(f"120 tiles, 20 across two sheets, farthest share {worst:.2e}")
    assert worst < 1e-6


def test_opens_with_xarray_and_geopandas(built: Built) -> None:
    tree = xarray.open_datatree(str(built.dataset / layout.TILES), engine="zarr", chunks={})
    labels = xarray.open_datatree(str(built.dataset / layout.label_store("globeland30_2020")), engine="zarr", chunks={})
    index = geopandas.read_parquet(built.dataset / "index.parquet")
    assert index.crs == "EPSG:4326"
    assert set(tree.children) == {shot.name for shot in built.shots}
    assert set(labels.children) == set(tree.children)
    for _, tile in index.groupby("scene").first().reset_index().iterrows():
        scene = tree[tile["scene"]].to_dataset().isel(row=tile["row"], col=tile["col"])
        assert int(scene["status"]) == layout.ACCEPTED
        assert scene["image"].dtype == np.uint8
        assert scene["image"].values.any()
        shares = labels[tile["scene"]].to_dataset().isel(row=tile["row"], col=tile["col"])
        names = labels[tile["scene"]].attrs["classes"]
        assert np.array_equal(shares["fraction"].values, tile[names].to_numpy(dtype=np.float32))


def test_no_ground_of_train_lies_in_validation(built: Built) -> None:
    index = geopandas.read_parquet(built.dataset / "index.parquet")
    train, val = index[index["split"] == "train"], index[index["split"] == "val"]
    assert len(train) > 100
    assert len(val) > 50
    assert index["split"].isna().any()
    pairs = train.sjoin(val, predicate="intersects")
    assert not pairs.geometry.intersection(val.geometry.loc[pairs["index_right"]].set_axis(pairs.index)).area.any()
