"""What vendors say beside an image is known of its scene."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from pipeline.scenes.delivery import read_delivery
from pipeline.scenes.discovery import take_inventory
from pipeline.scenes.scene import Scene
from pipeline.scenes.vendors import parse_time
from tests.deliveries import tiff, write_archive, write_folder

DIMAP = """<?xml version="1.0" encoding="UTF-8"?>
<Dimap_Document><Dataset_Sources><Source_Identification><Strip_Source>
<MISSION>PHR</MISSION><MISSION_INDEX>1A</MISSION_INDEX><INSTRUMENT>PHR</INSTRUMENT>
<IMAGING_DATE>2020-06-01</IMAGING_DATE><IMAGING_TIME>10:20:30.5Z</IMAGING_TIME>
</Strip_Source></Source_Identification></Dataset_Sources>
<Dataset_Content><CLOUD_COVERAGE unit="percent">12.5</CLOUD_COVERAGE></Dataset_Content>
<Raster_Data><Raster_Display><Raster_Index_List>
<Raster_Index><BAND_ID>B2</BAND_ID></Raster_Index><Raster_Index><BAND_ID>B1</BAND_ID></Raster_Index>
<Raster_Index><BAND_ID>B0</BAND_ID></Raster_Index><Raster_Index><BAND_ID>B3</BAND_ID></Raster_Index>
</Raster_Index_List></Raster_Display></Raster_Data>
<Geometric_Data><Use_Area><Located_Geometric_Values><Solar_Incidences>
<SUN_AZIMUTH unit="deg">150.5</SUN_AZIMUTH><SUN_ELEVATION unit="deg">60.25</SUN_ELEVATION>
</Solar_Incidences></Located_Geometric_Values></Use_Area></Geometric_Data></Dimap_Document>"""
IMD = """version = "28.3";
BEGIN_GROUP = BAND_R
\tULLon = 7.1;
END_GROUP = BAND_R
BEGIN_GROUP = BAND_G
END_GROUP = BAND_G
BEGIN_GROUP = BAND_B
END_GROUP = BAND_B
BEGIN_GROUP = BAND_N
END_GROUP = BAND_N
BEGIN_GROUP = IMAGE_1
\tsatId = "PHR1A";
\tfirstLineTime = 2020-06-01T10:20:30.500000Z;
\tmeanSunAz = 150.5;
\tmeanSunEl = 60.25;
\tcloudCover = 0.125;
END_GROUP = IMAGE_1
END;
"""
MAXAR = """<isd><IMD><BAND_R/><BAND_G/><BAND_B/><BAND_N/><IMAGE><SATID>PHR1A</SATID>
<FIRSTLINETIME>2020-06-01T10:20:30.500000Z</FIRSTLINETIME><MEANSUNAZ>150.5</MEANSUNAZ><MEANSUNEL>60.25</MEANSUNEL>
<CLOUDCOVER>0.125</CLOUDCOVER></IMAGE></IMD></isd>"""
PLANET = """<ps:EarthObservation xmlns:ps="http://schemas.planet.com/ps/v1/planet_product_metadata_geocorrected_level"
 xmlns:eop="http://earth.esa.int/eop" xmlns:opt="http://earth.esa.int/opt">
<eop:Platform><eop:shortName>PHR1A</eop:shortName></eop:Platform>
<eop:Acquisition><opt:illuminationAzimuthAngle uom="deg">150.5</opt:illuminationAzimuthAngle>
<opt:illuminationElevationAngle uom="deg">60.25</opt:illuminationElevationAngle>
<ps:acquisitionDateTime>2020-06-01T10:20:30.500000+00:00</ps:acquisitionDateTime></eop:Acquisition>
<opt:cloudCoverPercentage uom="percentage">12.5</opt:cloudCoverPercentage></ps:EarthObservation>"""
PLANET_JSON = """{"type": "Feature", "id": "x", "geometry": null, "properties": {"acquired": "2020-06-01T10:20:30.5Z",
 "cloud_cover": 0.125, "provider": "PHR1A", "sun_azimuth": 150.5, "sun_elevation": 60.25}}"""
FORMS = {
    "DIMAP": ("IMG_PHR1A_MS_1_R1C1.TIF", "DIM_PHR1A_MS_1.XML", DIMAP),
    "IMD": ("20JUN01_M2AS-1_P001.TIF", "20JUN01_M2AS-1_P001.IMD", IMD),
    "Maxar's XML": ("20JUN01_M2AS-1_P001.TIF", "20JUN01_M2AS-1_P001.XML", MAXAR),
    "Planet's XML": (
        "20200601_102030_1003_3B_AnalyticMS.tif",
        "20200601_102030_1003_3B_AnalyticMS_metadata.xml",
        PLANET,
    ),
    "Planet's XML, SR": ("2020_3B_AnalyticMS_SR_clip.tif", "2020_3B_AnalyticMS_metadata.xml", PLANET),
    "Planet's JSON": ("20200601_102030_1003_3B_AnalyticMS.tif", "20200601_102030_1003_metadata.json", PLANET_JSON),
}


def image(count: int = 4) -> bytes:
    pixels = np.full((count, 20, 30), 300, np.uint16)
    return tiff(pixels, crs="EPSG:32632", transform=Affine(2, 0, 300000, 0, -2, 30000))


def only_scene(path: Path) -> Scene:
    (delivery,) = take_inventory([path]).deliveries
    (scene,) = read_delivery(delivery)
    assert isinstance(scene, Scene), scene
    return scene


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_time_sun_and_bands_are_those_of_the_vendors_metadata(tmp_path: Path, form: str, packed: bool) -> None:
    name, metadata, text = FORMS[form]
    files = {name: image(), metadata: text.encode()}
    scene = only_scene(write_archive(tmp_path / "a.tar", files) if packed else write_folder(tmp_path / "a", files))
    assert (scene.acquired, scene.satellite) == (datetime(2020, 6, 1, 10, 20, 30, 500_000, UTC), "PHR1A")
    angles = {"view:sun_elevation": "60.25", "view:sun_azimuth": "150.5", "eo:cloud_cover": "12.5"}
    assert angles.items() <= scene.metadata.items()
    bgrn = ("blue", "green", "red", "nir")
    assert scene.bands == (bgrn if "Planet" in form else ("red", "green", "blue", "nir"))
    if not packed:
        assert {Path(file).name for file in scene.files} == {name, metadata}


@pytest.mark.parametrize(
    "text",
    [
        DIMAP.replace("B3", "B9").replace("2020-06-01", "June").replace("60.25", "high"),
        DIMAP.replace("<Dimap_Document>", "<Other>").replace("</Dimap_Document>", "</Other>"),
        "<Dimap_Document>",
        '<!DOCTYPE x [<!ENTITY e "PHR">]><Dimap_Document><MISSION>&e;</MISSION></Dimap_Document>',
    ],
)
def test_what_metadata_do_not_say_is_unknown(tmp_path: Path, text: str) -> None:
    name, metadata, _ = FORMS["DIMAP"]
    scene = only_scene(write_folder(tmp_path / "a", {name: image(), metadata: text.encode()}))
    assert scene.acquired is None
    assert scene.bands == ("band_1", "band_2", "band_3", "band_4")
    assert "view:sun_elevation" not in scene.metadata


def test_bands_of_another_number_than_the_images_are_not_its(tmp_path: Path) -> None:
    name, metadata, text = FORMS["IMD"]
    scene = only_scene(write_folder(tmp_path / "a", {name: image(3), metadata: text.encode()}))
    assert scene.bands == ("band_1", "band_2", "band_3")
    assert scene.satellite == "PHR1A"


@pytest.mark.parametrize("text", ["", "T", "2020-06", "2020-06-01T25:00:00Z"])
def test_a_time_that_is_none_is_unknown(text: str) -> None:
    assert parse_time(text) is None
