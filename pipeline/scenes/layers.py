"""Read the variables of a NetCDF or HDF5 file as the bands of a scene."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from affine import Affine
from pyproj import CRS
from pyproj.exceptions import ProjError
from rasterio.errors import RasterioIOError

from geokr.storage import inputs
from pipeline.geometry.sensor import Georeferenced
from pipeline.scenes import roles
from pipeline.scenes.footprint import image_footprint, make_flat_terrain, measure_gsd
from pipeline.scenes.netcdf import require_complete
from pipeline.scenes.raster import LAYER, Header, open_image, read_header
from pipeline.scenes.scene import Image, Imagery, NoImageryError, Scene, SceneError
from pipeline.scenes.sensor_bands import choose_bands, find_sensor

CF_CRS = CRS.from_epsg(4326)
"""What longitudes and latitudes in degrees refer to where a file does not say it, by the CF conventions' usage."""
UNEVEN = 0.1
"""Rows that lie off an even spacing by more than this, in distances of rows, are not those of a map."""
MAX_LAYERS = 500
"""A file with more variables than this is refused: its headers would take minutes."""


def read_layers(name: str, imagery: Imagery, wanted: Sequence[str]) -> Scene:
    """Read the scene of a NetCDF or HDF5 file: of the variables on one grid, the one with the most of them.

    A variable with one band has its own name as that of the band; otherwise its bands are numbered. wanted: the bands
    to read if the file has any of them, common names or those of variables: see `choose_bands`; otherwise all are read.
    The caller adds delivery, files and bytes. Raises NoImageryError if no variable is an image on a map, and SceneError
    if the file is on a server, has too many variables, or lacks the image that `imagery` needs.
    """
    if product := roles.find_sheet_product(name):
        raise NoImageryError(
            "land cover", f"{name}: its name is that of a sheet of {product}; give it with --landcover"
        )
    if inputs.is_remote(name):
        raise SceneError(f"{name}: NetCDF and HDF5 are not read from servers; download it")
    if imagery != "mss":
        raise SceneError(f"{name}: no panchromatic image, but --imagery {imagery} needs one")
    grids: dict[tuple[Any, ...], list[tuple[Image, Header]]] = {}
    uneven = False
    for path in list_layers(name):
        if has_uneven_rows(path):
            uneven = True
        elif (layer := read_layer(path)) is not None:
            image = layer[0]
            grids.setdefault((image.model, image.width, image.height, image.read_type), []).append(layer)
    if not grids and uneven:
        raise SceneError(f"{name}: its latitudes are not evenly spaced; resample its variables to a grid that is")
    if not grids:
        raise NoImageryError("container", f"{name}: none of its variables is an image on a map")
    layers = max(grids.values(), key=lambda group: sum(len(image.bands) for image, _ in group))
    single = {k: ("", image.bands[0]) for k, (image, _) in enumerate(layers) if len(image.bands) == 1}
    chosen = choose_bands(wanted, single, find_sensor([PurePosixPath(name).stem]))
    if chosen:
        layers = [(replace(layers[found[0]][0], bands=(band,)), layers[found[0]][1]) for band, found in chosen.items()]
    images = tuple(image for image, _ in layers)
    digest = hashlib.sha256(repr([header for _, header in layers]).encode()).hexdigest()
    return Scene(
        id=PurePosixPath(name).stem,
        satellite="",
        sensor="",
        level="L2A",
        acquired=None,
        gsd=images[0].gsd,
        images=images,
        pan=None,
        delivery="",
        files=(),
        bytes=0,
        metadata_digest=digest,
        footprint=image_footprint(images[0], make_flat_terrain(images[0].model)),
        metadata=layers[0][1].tags,
    )


def list_layers(name: str) -> list[str]:
    """Paths for `open_image` of the variables of a file.

    Raises NoImageryError if it has no image, and SceneError if it is not complete or has too many variables.
    """
    require_complete(name)
    try:
        with open_image(name) as file:
            variables = [layer.rpartition(":")[2].strip('"') for layer in file.subdatasets]
            if not variables and file.count:  # a file of one variable is opened as that
                variables = [file.tags(1).get("NETCDF_VARNAME", "")]
    except RasterioIOError as error:
        raise NoImageryError("container", f"{name}: GDAL finds no image in it, as NetCDF or HDF5: {error}") from error
    if len(variables) > MAX_LAYERS:
        raise SceneError(f"{name}: it has {len(variables)} variables, more than {MAX_LAYERS}")
    return [f'NETCDF:"{name}":{variable}' for variable in variables if variable]


def has_uneven_rows(path: str) -> bool:
    """Whether the rows of a variable lie elsewhere than its transform says, by more than UNEVEN of their distance.

    GDAL gives latitudes that are not evenly spaced a transform nevertheless, and lists them.
    """
    try:
        with open_image(path) as file:
            values = file.tags(ns="GEOLOCATION2").get("Y_VALUES", "")
    except RasterioIOError:
        return False
    rows = np.array([float(number) for number in values.strip("{}").split(",") if number])
    if len(rows) < 3:
        return False
    even = np.linspace(rows[0], rows[-1], len(rows))
    return bool(np.abs(rows - even).max() > UNEVEN * abs(even[1] - even[0]))


def read_layer(path: str) -> tuple[Image, Header] | None:
    """A variable as an image, with its header; None if it is no measurement, is not on a map, or cannot be read."""
    match = LAYER.fullmatch(path)
    variable = PurePosixPath(match["layer"]).name if match else ""
    if any(words.search(variable) for words in roles.WORDS.values()):
        return None
    try:
        header = read_header(path)
        crs = header.crs or (CF_CRS if "degrees_east" in header.tags.values() else None)
        if crs is None or header.transform == Affine.identity():
            return None
        count = header.count
        names = (variable,) if count == 1 else tuple(f"{variable}_{k}" for k in range(1, count + 1))
        image = header.image(path, names, 1.0, Georeferenced(crs.to_wkt(), tuple(header.transform)[:6]))
        return replace(image, gsd=measure_gsd(image)), header
    except (SceneError, ProjError, ValueError):
        return None
