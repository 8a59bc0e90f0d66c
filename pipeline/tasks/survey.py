"""Survey one delivery: read its metadata, sample its pixels, and decide how its pixels are stored."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import shapely
from rasterio.windows import Window

from geokr.storage.inputs import InputError
from pipeline.catalog.stac_items import geoparquet_columns
from pipeline.catalog.table import QUANTILES, Entry
from pipeline.config import SurveyConfig
from pipeline.geometry.sensor import Georeferenced
from pipeline.imaging.calibration import CALIBRATION, find_solar_zenith, find_sun, read_coefficients, toa_radiometry
from pipeline.imaging.clouds import find_clouds
from pipeline.imaging.pansharpen import equal_weights, sharpen_brovey
from pipeline.imaging.radiometry import (
    Radiometry,
    RadiometryError,
    identity_radiometry,
    percentile_stretch,
    radiometry_from_scales,
    stretch_per_band,
)
from pipeline.scenes.delivery import Refusal, read_delivery, refuse
from pipeline.scenes.discovery import Delivery
from pipeline.scenes.footprint import image_footprint, make_flat_terrain
from pipeline.scenes.numbers import AS_THEY_ARE
from pipeline.scenes.raster import Pixels, Valid, read_image
from pipeline.scenes.scene import Image, Scene, SceneError

SURVEY_STEP = 20
"""The stretch is computed from every 20th pixel of every 20th line, as the GeoKR authors did."""


@dataclass(frozen=True, slots=True)
class SurveyJob:
    """The input for the survey of one delivery."""

    delivery: Delivery
    config: SurveyConfig


def read_and_survey(job: SurveyJob) -> list[Entry | Refusal]:
    """Read the scenes of one delivery and survey them; a scene that cannot be used becomes a Refusal.

    So does one with which the program fails, since no scene may stop the others.
    """
    results: list[Entry | Refusal] = []
    try:
        config = job.config
        how = (config.imagery, config.bands, config.alpha, config.band_names, config.mask, config.band_files)
        scenes = read_delivery(job.delivery, *how)
    except Exception as error:
        return [refuse(PurePosixPath(job.delivery.path).name, "unusable", describe(error, job.delivery.path))]
    for scene in scenes:
        if isinstance(scene, Refusal):
            results.append(scene)
            continue
        try:
            entry = survey(scene, job.config, job.delivery.source_version)
            geoparquet_columns(entry.scene)  # the catalog has a row for it
            results.append(entry)
        except Exception as error:
            results.append(refuse(scene.id, "unusable", describe(error, scene.images[0].path)))
    return results


def describe(error: Exception, path: str) -> str:
    """One sentence on why a file cannot be used: the error's own if it is about an input."""
    return str(error) if isinstance(error, InputError) else f"{path}: {type(error).__name__}: {error}"


def survey(scene: Scene, config: SurveyConfig, source_version: str = "") -> Entry:
    """Decide on the terrain of a scene and on how its pixels are stored. Reads every 20th pixel of every 20th line.

    source_version: see `discovery.Delivery`. Raises SceneError, which names the file and the fault.
    """
    first = scene.images[0]
    terrain = make_flat_terrain(first.model)
    if not isinstance(first.model, Georeferenced):
        terrain = replace(terrain, dem=config.dem, geoid=config.geoid)
    footprint = image_footprint(first, terrain)
    outline = shapely.get_coordinates(footprint.exterior).T
    shape = (max(1, first.height // SURVEY_STEP), max(1, first.width // SURVEY_STEP))
    samples, valid = [], np.ones(shape, np.bool_)
    for image in scene.images:
        pixels, image_valid = read_decimated(image, shape)
        samples.append(pixels)
        valid &= True if image_valid is None else image_valid
    valid_share = float(valid.mean())
    if scene.quality is not None:
        quality, _ = read_decimated(scene.quality, shape)
        clear = valid & ~find_clouds(scene.quality.bands[0], quality).any(axis=0)
        valid = clear if clear.any() else valid  # the stretch is that of the ground, if any is in sight
    sample = np.concatenate([image.numbers.decode(part) for image, part in zip(scene.images, samples, strict=True)])
    scene = replace(scene, footprint=footprint)
    weights: tuple[float, ...] = ()
    try:
        if scene.pan is not None:
            if {*scene.numbers, scene.pan.numbers} != {AS_THEY_ARE}:
                raise RadiometryError("pixels that are negative or no whole numbers cannot be pansharpened")
            weights = config.pansharpen_weights or equal_weights(len(sample))
            pan, _ = read_decimated(scene.pan, shape)
            sharpened = np.ascontiguousarray(np.moveaxis(sample, 0, -1))
            sharpen_brovey(sharpened, pan[0], weights)
            sample = np.moveaxis(sharpened, -1, 0)
        stretch = percentile_stretch(sample, valid, *config.stretch)
        radiometry = decide_radiometry(scene, config, sample, valid)
    except ValueError as error:
        raise SceneError(f"{first.path}: {error}") from error
    digest = hashlib.sha256()
    for pixels in samples if scene.quality is None else (*samples, quality):
        digest.update(pixels.tobytes())
    heights = terrain.coverage(*outline), terrain.count_holes(*outline)
    grey = sample.mean(axis=0)[valid]
    quantiles = tuple(map(float, np.percentile(grey, QUANTILES)))
    return Entry(
        scene,
        terrain,
        stretch,
        *heights,
        radiometry,
        weights,
        digest.hexdigest(),
        valid_share,
        quantiles,
        source_version,
    )


def decide_radiometry(
    scene: Scene, config: SurveyConfig, sample: Pixels, valid: npt.NDArray[np.bool_]
) -> Radiometry | None:
    """How the pixels of a scene are stored. Raises ValueError if they cannot be stored as the settings ask."""
    match config.radiometry:
        case "percentile":
            return None
        case "percentile-per-band":
            return stretch_per_band(sample, valid, *config.stretch, scene.bands)
        case "dn":
            return identity_radiometry(scene.read_type, scene.numbers)
        case "toa":
            return top_of_atmosphere(scene, config.coefficients or CALIBRATION, config.reflectance_scale)


def top_of_atmosphere(scene: Scene, table: str | Path, reflectance_scale: float | None) -> Radiometry:
    """Reflectance from the scene's own scales, from a given one for satellites that the table lacks, or from a table.

    Raises RadiometryError if none of these is known.
    """
    scales = [scale for image in scene.images for scale in image.scales]
    if len(scales) == len(scene.bands):
        offsets = [offset for image in scene.images for offset in (image.offsets or (0.0,) * len(image.bands))]
        return radiometry_from_scales(scales, offsets)
    table_coefficients, coefficients = read_coefficients(table), {}
    if reflectance_scale is not None and scene.satellite not in {key[0] for key in table_coefficients}:
        return radiometry_from_scales([reflectance_scale] * len(scene.bands), [0.0] * len(scene.bands))
    if scene.acquired is None:
        raise RadiometryError(
            "reflectance needs the acquisition time of the image, which is not known, or the setting reflectance_scale"
        )
    for band in scene.bands:
        key = (scene.satellite, scene.sensor, scene.acquired.year, band)
        if key not in table_coefficients:
            label = " ".join(map(str, key))
            raise RadiometryError(f"{Path(table).name} has no coefficients for {label}; give a table that has them")
        coefficients[band] = table_coefficients[key]
    centre = scene.footprint.centroid
    zenith = find_solar_zenith(scene.metadata, scene.acquired, centre.x, centre.y)
    return toa_radiometry(coefficients, zenith, find_sun(scene.acquired, centre.x, centre.y)[1])


def read_decimated(image: Image, shape: tuple[int, int]) -> tuple[Pixels, Valid]:
    """An image decimated to a shape (y, x), and its validity. Raises SceneError if it cannot be read to its end."""
    try:
        sample, valid = read_image(image, shape=shape)
        # The decimated read skips lines; check that the last line can be read too.
        read_image(image, Window(0, image.height - 1, image.width, 1))
    except SceneError as error:
        raise SceneError(str(error).replace("cannot be read", "cannot be read to its end", 1)) from error
    return sample, valid
