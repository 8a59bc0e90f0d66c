"""One delivery, straight through: its metadata read, its pixels sampled, and what becomes of them decided."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely
from rasterio.windows import Window

from geokr.storage.inputs import InputError
from pipeline.catalog.table import Entry
from pipeline.config import SurveyConfig
from pipeline.geometry.sensor import Georeferenced
from pipeline.imaging.calibration import CALIBRATION, read_coefficients, solar_zenith, sun_position, toa_radiometry
from pipeline.imaging.pansharpen import brovey, equal_weights
from pipeline.imaging.radiometry import (
    Radiometry,
    RadiometryError,
    from_scales,
    percentile_stretch,
    stretch_per_band,
    unchanged_numbers,
)
from pipeline.scenes.delivery import Refusal, read_delivery, refuse
from pipeline.scenes.discovery import Delivery
from pipeline.scenes.footprint import flat_terrain, image_footprint
from pipeline.scenes.raster import Pixels, Valid, read_image
from pipeline.scenes.scene import Image, Scene, SceneError

SURVEY_STEP = 20
"""The stretch is decided on every 20th pixel of every 20th line, as the GeoKR authors did."""


@dataclass(frozen=True, slots=True)
class CatalogJob:
    """One delivery to read and survey."""

    delivery: Delivery
    config: SurveyConfig


def read_and_survey(job: CatalogJob) -> list[Entry | Refusal]:
    """The scenes of one delivery, surveyed; what cannot be used is a Refusal."""
    found: list[Entry | Refusal] = []
    for scene in read_delivery(job.delivery, job.config.imagery, job.config.bands):
        if isinstance(scene, Refusal):
            found.append(scene)
            continue
        try:
            found.append(survey(scene, job.config, job.delivery.source_version))
        except InputError as error:
            found.append(refuse(scene.id, "unusable", str(error)))
    return found


def survey(scene: Scene, config: SurveyConfig, source_version: str = "") -> Entry:
    """Decide a scene's ground and what becomes of its pixels: reads every 20th of them.

    source_version: see `discovery.Delivery`.
    Raises SceneError naming file and fault.
    """
    first = scene.images[0]
    terrain = flat_terrain(first.model)
    if not isinstance(first.model, Georeferenced):
        terrain = replace(terrain, dem=config.dem, geoid=config.geoid)
    footprint = image_footprint(first, terrain)
    outlined = shapely.get_coordinates(footprint.exterior).T
    shape = (max(1, first.height // SURVEY_STEP), max(1, first.width // SURVEY_STEP))
    samples, valid = [], np.ones(shape, np.bool_)
    for image in scene.images:
        found, known = read_decimated(image, shape)
        samples.append(found)
        valid &= True if known is None else known
    sample = np.concatenate(samples)
    scene = replace(scene, footprint=footprint)
    weights: tuple[float, ...] = ()
    try:
        if scene.pan is not None:
            weights = config.pansharpen_weights or equal_weights(len(sample))
            detail, _ = read_decimated(scene.pan, shape)
            sharpened = np.ascontiguousarray(np.moveaxis(sample, 0, -1))
            brovey(sharpened, detail[0], weights)
            sample = np.moveaxis(sharpened, -1, 0)
        stretch = percentile_stretch(sample, valid, *config.stretch)
        radiometry = decide_radiometry(scene, config, sample, valid)
    except ValueError as error:
        raise SceneError(f"{first.path}: {error}") from error
    digest = hashlib.sha256()
    for found in samples:
        digest.update(found.tobytes())
    heights = terrain.coverage(*outlined), terrain.holes(*outlined)
    return Entry(scene, terrain, stretch, *heights, radiometry, weights, digest.hexdigest(), source_version)


def decide_radiometry(
    scene: Scene, config: SurveyConfig, sample: Pixels, valid: npt.NDArray[np.bool_]
) -> Radiometry | None:
    """What is stored of a scene's pixels. Raises ValueError where it cannot be what was asked for."""
    match config.radiometry:
        case "percentile":
            return None
        case "percentile-per-band":
            return stretch_per_band(sample, valid, *config.stretch, scene.bands)
        case "dn":
            return unchanged_numbers(scene.dtype, len(scene.bands))
        case "toa":
            return top_of_atmosphere(scene, config.coefficients or CALIBRATION)


def top_of_atmosphere(scene: Scene, table: str | Path) -> Radiometry:
    """Reflectance from a scene's own scales or from a table. Raises RadiometryError where neither has the numbers."""
    scales = [scale for image in scene.images for scale in image.scales]
    if len(scales) == len(scene.bands):
        offsets = [offset for image in scene.images for offset in (image.offsets or (0.0,) * len(image.bands))]
        return from_scales(scales, offsets)
    if scene.acquired is None:
        raise RadiometryError("reflectance needs the time at which the image was taken, and it is not known")
    known, found = read_coefficients(table), {}
    for band in scene.bands:
        key = (scene.satellite, scene.sensor, scene.acquired.year, band)
        if key not in known:
            said = " ".join(map(str, key))
            raise RadiometryError(f"{Path(table).name} has no coefficients of {said}; give a table that has")
        found[band] = known[key]
    centre = scene.footprint.centroid
    zenith = solar_zenith(scene.metadata, scene.acquired, centre.x, centre.y)
    return toa_radiometry(found, zenith, sun_position(scene.acquired, centre.x, centre.y)[1])


def read_decimated(image: Image, shape: tuple[int, int]) -> tuple[Pixels, Valid]:
    """Every so-maniest pixel of an image and its validity. Raises SceneError where it cannot be read to its end."""
    try:
        sample, valid = read_image(image, shape=shape)
        # The decimated read skips lines; the last one must be there too.
        read_image(image, Window(0, image.height - 1, image.width, 1))
    except SceneError as error:
        raise SceneError(str(error).replace("cannot be read", "cannot be read to its end", 1)) from error
    return sample, valid
