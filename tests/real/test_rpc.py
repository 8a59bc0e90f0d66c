"""The cameras of real deliveries, as delivered and at the coarser GSD of their browse images, against GDAL's."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import RPCTransformer

from pipeline.scenes.gaofen import parse_rpb
from tests.deliveries import coordinates, tiff


def test_real_cameras_agree_with_gdal_to_a_millionth_of_a_pixel(real: Path, tmp_path: Path) -> None:
    """All over the camera's own range of place and height; GDAL reads the RPB itself."""
    files = sorted((real / "gaofen").rglob("*.rpb"))
    assert len(files) == 9
    worst = {}
    for n, file in enumerate(files):
        (tmp_path / f"{n}.tiff").write_bytes(tiff(coordinates(7, 5)))
        (tmp_path / f"{n}.rpb").write_bytes(file.read_bytes())
        rpc = parse_rpb(file.read_text())
        x, y, z = np.random.default_rng(n).uniform(-1, 1, (3, 20_000))
        lon, lat = rpc.lon_off + x * rpc.lon_scale, rpc.lat_off + y * rpc.lat_scale
        height = rpc.height_off + z * rpc.height_scale
        with rasterio.open(tmp_path / f"{n}.tiff") as source, RPCTransformer(source.rpcs) as gdal:
            rows, cols = gdal.rowcol(lon, lat, zs=height, op=lambda value: value)
        col, row = rpc.image(lon, lat, height)
        worst[f"{file.parent.name}/{file.name}"] = float(np.hypot(col - cols, row - rows).max())
        back = rpc.ground(col[:2000], row[:2000], height[:2000])
        assert np.abs(np.subtract(back, [lon[:2000], lat[:2000]])).max() < 1e-9  # degrees
    for name, away in worst.items():
        print(f"{name}: at most {away:.1e} px from GDAL")
    assert max(worst.values()) == pytest.approx(0, abs=1e-6)
