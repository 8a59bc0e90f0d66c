"""Scenes as STAC: the catalog's GeoParquet and a static catalog give valid items that say what the scenes are."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pystac
import pytest
import shapely
from affine import Affine
from pystac.extensions.eo import EOExtension
from pystac.extensions.file import FileExtension
from pystac.extensions.projection import ProjectionExtension
from pystac.extensions.view import ViewExtension
from stac_geoparquet.arrow import stac_table_to_items

from geokr.crs import cut_at_antimeridian
from pipeline.catalog.stac_items import bounding_box, to_item, write_static_catalog
from pipeline.catalog.table import Entry, read_catalog, write_catalog
from pipeline.scenes.delivery import read_delivery
from pipeline.scenes.discovery import find_deliveries
from pipeline.scenes.scene import Imagery, Scene
from tests.deliveries import (
    GSD,
    HEIGHT,
    NAME,
    WIDTH,
    coordinates,
    fields,
    members,
    pair,
    surveyed,
    tiff,
    write_archive,
    xml,
)
from tests.deliveries import write_folder as write
from tests.pipeline.scenes.test_stac import sentinel
from tests.pipeline.scenes.test_stac import write as write_item


def entries(place: Path, imagery: Imagery = "mss") -> list[Entry]:
    found = [item for one in find_deliveries([place]) for item in read_delivery(one, imagery)]
    assert all(isinstance(scene, Scene) for scene in found), found
    return [surveyed(scene, None, 1.0, 99.0) for scene in found if isinstance(scene, Scene)]


@pytest.fixture
def several(tmp_path: Path) -> list[Entry]:
    """A pair in a folder, an archive, an image on a map without a date, and a Sentinel-2 item."""
    angles = {"SolarZenith": "13.5", "SolarAzimuth": "86.7", "SatelliteZenith": "74.8", "SatelliteAzimuth": "280"}
    files = pair(NAME, "MSS1", "PAN1")
    files[f"{NAME}-MSS1.xml"] = xml(fields() | angles | {"CloudPercent": "7"}).encode()
    write(tmp_path / "pair", files)
    place = {"crs": "EPSG:32648", "transform": Affine(8, 0, 5e5, 0, -8, 2.7e6)}
    write(tmp_path / "others", {"map.tif": tiff(coordinates(bands=2), nodata=3, **place)})
    other = NAME.replace("1234567", "7654321")
    write_archive(tmp_path / "others" / f"{other}.tar", members(f"{other}-MSS1"))
    write_item(tmp_path / "others" / "s2", *sentinel())
    return entries(tmp_path / "pair", "pansharpened") + entries(tmp_path / "others")


def valid(value: dict[str, Any]) -> pystac.Item:
    """An item that the schemas of STAC's core accept, which pystac holds; those of extensions are on the web alone."""
    extensions, value = value["stac_extensions"], value | {"stac_extensions": []}
    pystac.Item.from_dict(value).validate()
    return pystac.Item.from_dict(value | {"stac_extensions": extensions})


def test_the_catalog_reads_back_as_valid_stac_items(tmp_path: Path, several: list[Entry]) -> None:
    path = tmp_path / "scenes.parquet"
    write_catalog(path, several, "{}")
    assert read_catalog(path) == sorted(several, key=lambda entry: entry.scene.id)
    table = pyarrow.parquet.read_table(path)
    assert {"id", "type", "stac_version", "stac_extensions", "geometry", "bbox", "links", "assets"} <= {
        *table.column_names
    }
    found = {value["id"]: valid(value) for value in stac_table_to_items(table)}
    assert set(found) == {entry.scene.id for entry in several}
    for entry in several:
        same(found[entry.scene.id], entry.scene)


def test_a_static_catalog_is_valid_and_can_be_built_from(tmp_path: Path, several: list[Entry]) -> None:
    write_static_catalog(tmp_path / "stac", [entry.scene for entry in several])
    catalog = pystac.Catalog.from_file(str(tmp_path / "stac" / "catalog.json"))
    catalog.validate()
    found = {value.id: valid(value.to_dict()) for value in catalog.get_items(recursive=True)}
    assert set(found) == {entry.scene.id for entry in several}
    for entry in several:
        same(found[entry.scene.id], entry.scene)
    (sentinel_2,) = [entry.scene for entry in several if entry.scene.satellite == "sentinel-2b"]
    again = entries(tmp_path / "stac" / sentinel_2.id / f"{sentinel_2.id}.json")[0].scene
    assert again.images == sentinel_2.images
    assert (again.id, again.acquired, again.gsd) == (sentinel_2.id, sentinel_2.acquired, sentinel_2.gsd)


def same(found: pystac.Item, scene: Scene) -> None:
    """An item says of a scene what is so."""
    assert found.datetime == scene.acquired or scene.acquired is None
    assert shapely.geometry.shape(found.geometry).equals_exact(scene.footprint, 1e-9)
    assert found.bbox == pytest.approx(scene.footprint.bounds)
    assert found.common_metadata.gsd == scene.gsd
    assert len(found.assets) == len(list(scene))
    for image, asset in zip(scene, found.assets.values(), strict=True):
        projection, eo = ProjectionExtension.ext(asset), EOExtension.ext(asset)
        assert projection.shape == [image.height, image.width]
        assert [band.name for band in eo.bands or []] == list(image.bands)
        if scene.level == "L2A":
            assert projection.code == "EPSG:32648"
            assert tuple(projection.transform or ())[:6] == tuple(image.model.to_json()["transform"])
        if not image.path.startswith("/vsi"):
            assert FileExtension.ext(asset).size == Path(image.path).stat().st_size
        assert Path(asset.href).is_file()


def test_an_item_says_how_the_sun_stood_and_how_the_camera_looked(several: list[Entry]) -> None:
    found = to_item(next(entry.scene for entry in several if entry.scene.id == NAME))
    view = ViewExtension.ext(found)
    assert (view.sun_elevation, view.sun_azimuth, view.azimuth) == (76.5, 86.7, 280.0)
    assert view.incidence_angle == pytest.approx(15.2)
    assert EOExtension.ext(found).cloud_cover == 7
    assert found.common_metadata.platform == "GF1"
    assert found.common_metadata.instruments == ["PMS1"]
    assert {key: asset.extra_fields["gsd"] for key, asset in found.assets.items()} == {"image": GSD, "pan": GSD / 4}
    assert found.assets["image"].extra_fields["proj:shape"] == [HEIGHT, WIDTH]


def test_what_cannot_be_is_not_said(several: list[Entry]) -> None:
    scene = replace(several[0].scene, metadata={"CloudPercent": "101", "SolarZenith": "x", "SatelliteZenith": "nan"})
    assert set(to_item(scene).properties) == {"gsd", "platform", "instruments", "processing:software"}


def test_a_scene_across_the_antimeridian_is_cut_there(several: list[Entry]) -> None:
    scene = replace(several[0].scene, footprint=shapely.box(179, -17, 182, -16))
    assert bounding_box(cut_at_antimeridian(scene.footprint)) == [179, -17, -178, -16]
    assert cut_at_antimeridian(scene.footprint).area == pytest.approx(3)
    assert valid(to_item(scene).to_dict()).geometry["type"] == "MultiPolygon"


def test_an_unknown_date_is_some_time(several: list[Entry]) -> None:
    found = to_item(replace(several[0].scene, acquired=None)).to_dict()
    assert found["properties"]["datetime"] is None
    assert found["properties"]["start_datetime"] < "1960" < "2090" < found["properties"]["end_datetime"]
    json.dumps(valid(found).to_dict())
