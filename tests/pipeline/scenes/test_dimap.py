"""Raw images of Pleiades, SPOT and Pleiades Neo: their camera is in an XML, which serves all tiles of an image."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.geometry.sensor import RPC
from pipeline.scenes.delivery import Refusal, read_delivery
from pipeline.scenes.discovery import take_inventory
from pipeline.scenes.raster import read_image
from pipeline.scenes.scene import Scene
from tests.deliveries import HEIGHT, WIDTH, camera, coordinates, tiff, write_archive, write_folder

PRODUCT = "PHR1A_MS_202106011012345_SEN_5678901101-001"
MODEL = camera(heading=12, lean=(0.1, -0.2))


def rpc_xml(rpc: RPC, first_pixel: float = 1.0, model: str = "Inverse_Model") -> bytes:
    """An RPC_*.XML. first_pixel: image coordinates of the centre of the first pixel."""
    lists = {
        "SAMP_NUM_COEFF": rpc.samp_num, "SAMP_DEN_COEFF": rpc.samp_den,
        "LINE_NUM_COEFF": rpc.line_num, "LINE_DEN_COEFF": rpc.line_den,
    }  # fmt: skip
    terms = "".join(f"<{key}_{k}>{v!r}</{key}_{k}>" for key, values in lists.items() for k, v in enumerate(values, 1))
    numbers = {
        "LONG_SCALE": rpc.lon_scale, "LONG_OFF": rpc.lon_off, "LAT_SCALE": rpc.lat_scale, "LAT_OFF": rpc.lat_off,
        "HEIGHT_SCALE": rpc.height_scale, "HEIGHT_OFF": rpc.height_off, "SAMP_SCALE": rpc.samp_scale,
        "SAMP_OFF": rpc.samp_off + first_pixel, "LINE_SCALE": rpc.line_scale, "LINE_OFF": rpc.line_off + first_pixel,
    }  # fmt: skip
    validity = "".join(f"<{key}>{value!r}</{key}>" for key, value in numbers.items())
    return (
        '<?xml version="1.0" encoding="UTF-8"?><Dimap_Document><Rational_Function_Model><Global_RFM>'
        f"<Direct_Model>{terms.replace('0.', '9.')}</Direct_Model><{model}>{terms}</{model}>"
        f"<RFM_Validity>{validity}</RFM_Validity></Global_RFM></Rational_Function_Model></Dimap_Document>"
    ).encode()


def dim_xml(rows: int, cols: int) -> bytes:
    """The part of a DIM_*.XML with the size of the tiles."""
    tiles = f'<Tile_Set><Regular_Tiling><NTILES_SIZE nrows="{rows}" ncols="{cols}"/></Regular_Tiling></Tile_Set>'
    dimensions = f"<Raster_Dimensions>{tiles}</Raster_Dimensions>"
    return f"<Dimap_Document><Raster_Data>{dimensions}</Raster_Data></Dimap_Document>".encode()


def read(place: Path) -> list[Scene | Refusal]:
    return [result for delivery in take_inventory([place]).deliveries for result in read_delivery(delivery)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("image", "camera_file", "xml"),
    [
        (f"IMG_{PRODUCT}_R1C1.TIF", f"RPC_{PRODUCT}.XML", rpc_xml(MODEL)),
        (
            "IMG_PNEO3_1_MS-FS_SEN_RGB_R1C1.TIF",
            "RPC_PNEO3_1_MS-FS_SEN.XML",
            rpc_xml(MODEL, 0.5, "GroundtoImage_Values"),
        ),
    ],
    ids=["DIMAP 2", "DIMAP 3"],
)
def test_the_camera_of_a_raw_image_is_in_an_xml(
    tmp_path: Path, image: str, camera_file: str, xml: bytes, packed: bool
) -> None:
    files = {image: tiff(coordinates()), camera_file: xml}
    place = write_archive(tmp_path / "a.tar.gz", files) if packed else write_folder(tmp_path / "a", files)
    (scene,) = read(place)
    assert isinstance(scene, Scene), scene
    assert (scene.level, scene.images[0].model) == ("L1A", MODEL)
    assert len(scene.files) == (1 if packed else 2)


def test_each_tile_of_an_image_lies_where_its_part_of_the_image_lies(tmp_path: Path) -> None:
    rows, cols = 40, 50
    pixels = coordinates()
    files = {f"RPC_{PRODUCT}.XML": rpc_xml(MODEL), f"DIM_{PRODUCT}.XML": dim_xml(rows, cols)}
    for row in (1, 2):
        for col in (1, 2):
            part = pixels[:, (row - 1) * rows : row * rows, (col - 1) * cols : col * cols]
            files[f"IMG_{PRODUCT}_R{row}C{col}.TIF"] = tiff(part)
    scenes = read(write_folder(tmp_path, files))
    assert len(scenes) == 4
    for scene in scenes:
        assert isinstance(scene, Scene), scene
        (image,) = scene.images
        col, row = (np.array([3.5, image.width - 2.5]) for _ in "xy")
        row = np.array([2.5, image.height - 0.5])
        lon, lat = image.model.ground(col, row, np.full(2, 700.0))
        whole_col, whole_row = MODEL.image(lon, lat, np.full(2, 700.0))
        found, _ = read_image(image)
        here = found[:, (row - 0.5).astype(int), (col - 0.5).astype(int)]
        assert here[0].tolist() == pytest.approx(100 + whole_col - 0.5, abs=1e-3)  # what `coordinates` writes there
        assert here[1].tolist() == pytest.approx(100 + whole_row - 0.5, abs=1e-3)
    assert (WIDTH, HEIGHT) != (cols, rows)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({f"DIM_{PRODUCT}.XML": b""}, "R1C2.TIF: a tile of a larger image, and there is no DIM_*.XML"),
        ({f"DIM_{PRODUCT}.XML": dim_xml(0, 50)}, f"and {{}}DIM_{PRODUCT}.XML does not say the size of the tiles"),
        ({f"RPC_{PRODUCT}.XML": rpc_xml(MODEL).replace(b"LINE_OFF", b"LINE_OF")}, "LINE_OFF is missing"),
        ({f"RPC_{PRODUCT}.XML": rpc_xml(MODEL)[:900]}, f"RPC_{PRODUCT}.XML: not an XML"),
        ({f"RPC_{PRODUCT}.XML": rpc_xml(MODEL, model="Forward")}, "it has no model from ground to image"),
        (
            {f"RPC_{PRODUCT}.XML": rpc_xml(MODEL).replace(b"<LAT_OFF>24.8", b"<LAT_OFF>248")},
            f"RPC_{PRODUCT}.XML: latitude 248.0, longitude 105.3 is not a place on Earth",
        ),
    ],
)
def test_what_lacks_is_named(tmp_path: Path, change: dict[str, bytes], fault: str) -> None:
    files = {
        f"IMG_{PRODUCT}_R1C2.TIF": tiff(coordinates()),
        f"RPC_{PRODUCT}.XML": rpc_xml(MODEL),
        f"DIM_{PRODUCT}.XML": dim_xml(70, 90),
    } | change
    (refusal,) = read(write_folder(tmp_path, {name: content for name, content in files.items() if content}))
    assert isinstance(refusal, Refusal)
    assert fault.format(f"{tmp_path}/") in refusal.detail
