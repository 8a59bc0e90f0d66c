"""The rows of the index: accepted tiles with their footprints, land-cover shares and splits."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geokr.crs import footprint_polygons, transformer
from geokr.dataset import contents, index, layout
from geokr.dataset.splits import split_by_place
from geokr.storage import files
from pipeline.config import IndexConfig, SplitConfig
from pipeline.geometry.grid import TileGrid
from pipeline.geometry.sensor import Floats
from pipeline.scenes.scene import Scene


@dataclass(frozen=True, slots=True)
class RowJob:
    """The input for listing the tiles of one scene."""

    dataset: str
    scene: Scene
    grid: TileGrid
    label_set: str
    """`<product>_<year>`, the label set of the index."""
    other_label_sets: tuple[str, ...]
    """Label sets to compare it with, for the column `agreement`."""
    config: IndexConfig


@dataclass(frozen=True, slots=True)
class SceneRows:
    """The listed tiles of one scene, and counts of those left out."""

    statuses: dict[str, int]
    """Status -> number of tiles; `not_built` is 0 for a complete scene."""
    unknown: int
    """Accepted tiles that are left out because too little of their land cover is known."""
    unfit: int
    """Tiles that are left out because label sets disagree, or because image and label are too many years apart."""
    missing: int
    """Tiles in blocks whose pixels or labels are not built."""
    columns: dict[str, npt.NDArray[Any]]
    """(n,) each: the columns of the index in its order, without split and geometry."""
    corners: Floats
    """(n, 4, 2) float64: footprint corners, longitude and latitude in degrees."""


def list_scene(job: RowJob) -> SceneRows:
    """List the tiles of one scene. Tiles of blocks that could not be built are only counted, as missing.

    Raises StoreError if the scene is not in the stores or none of its blocks is built.
    """
    scene, grid = job.scene, job.grid
    tiles, labels = (files.join(job.dataset, name) for name in (layout.TILES, layout.label_store(job.label_set)))
    status, cloud = contents.read_arrays(tiles, scene.id, "status", "cloud")
    label_status, known, fraction = contents.read_arrays(labels, scene.id, "status", "known", "fraction")
    classes = contents.read_attributes(labels, scene.id)["classes"]
    statuses = dict(contents.count_statuses(status, layout.TILE_STATUS))
    built = status != 0
    for root, mask in ((tiles, built), (labels, label_status != 0)):
        if not mask.any():
            raise layout.StoreError(f"{root}/{scene.id}: none of the tiles of this scene is built")
        built = built & mask
    accepted = built & (status == layout.ACCEPTED)
    fit = accepted & (known >= job.config.min_known) & (known > 0)
    known_count = int(fit.sum())
    agreement = measure_agreement(job, fraction, classes)
    gap = float("nan") if scene.acquired is None else float(job.label_set.rpartition("_")[2]) - scene.acquired.year
    # A tile without a value (NaN) meets no condition, as in training.
    if job.config.min_agreement is not None:
        fit &= agreement >= job.config.min_agreement
    if job.config.max_year_gap is not None:
        fit &= abs(gap) <= job.config.max_year_gap
    row, col = np.nonzero(fit)
    listed_fraction = fraction[row, col]
    corners = grid.corners(slice(0, grid.rows), slice(0, grid.cols))[row, col]
    lon, lat = transformer(str(grid.geobox.crs), "EPSG:4326").transform(corners[..., 0], corners[..., 1])
    n = len(row)
    acquired = np.datetime64("NaT") if scene.acquired is None else np.datetime64(scene.acquired.replace(tzinfo=None))
    columns: dict[str, npt.NDArray[Any]] = {
        "tile": np.array([f"{scene.id}_r{r:03d}_c{c:03d}" for r, c in zip(row, col, strict=True)], dtype=object),
        "scene": np.full(n, scene.id, dtype=object),
        "place": np.array(grid.place_ids(row.tolist(), col.tolist()), dtype=object),
        "row": row.astype(np.int32),
        "col": col.astype(np.int32),
        "satellite": np.full(n, scene.satellite, dtype=object),
        "sensor": np.full(n, scene.sensor, dtype=object),
        "acquired": np.full(n, acquired, dtype="datetime64[us]"),
        "gsd": np.full(n, scene.gsd, dtype=np.float32),
        "known": known[row, col],
        "cloud": cloud[row, col],
        "agreement": agreement[row, col],
        "year_gap": np.full(n, gap, dtype=np.float32),
    }
    for k, name in enumerate(classes):
        columns[name] = listed_fraction[:, k]
    unknown, unfit, missing = int(accepted.sum()) - known_count, known_count - n, int((~built).sum())
    return SceneRows(statuses, unknown, unfit, missing, columns, np.stack([lon, lat], axis=-1))


def measure_agreement(job: RowJob, fraction: npt.NDArray[np.float32], classes: object) -> npt.NDArray[np.float32]:
    """How well the other label sets agree with a scene's fractions: (row, col) float32 in 0..1.

    The agreement with one set is 1 - half the sum of the absolute differences of the class shares. The result is the
    mean over the other sets that have the same classes and for which something of the tile is known; NaN if there is
    no such set.
    """
    total, count = np.zeros(fraction.shape[:2]), np.zeros(fraction.shape[:2])
    for name in job.other_label_sets:
        root = files.join(job.dataset, layout.label_store(name))
        try:
            if contents.read_attributes(root, job.scene.id)["classes"] != classes:
                continue
            other, known = contents.read_arrays(root, job.scene.id, "fraction", "known")
        except layout.StoreError:  # its labelling was refused
            continue
        total += np.where(known > 0, 1 - np.abs(fraction - other).sum(axis=-1, dtype=np.float64) / 2, 0)
        count += known > 0
    mean: npt.NDArray[np.float64] = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    return np.clip(mean, 0.0, 1.0).astype(np.float32)  # float32 shares may sum to slightly more than 1


@dataclass(frozen=True, slots=True)
class PartJob:
    """The input for writing a part of the index."""

    number: int
    parts: int
    """Number of parts of the index."""
    scenes: tuple[RowJob, ...]
    """At least one, in the order of the rows."""
    classes: tuple[str, ...]
    split: SplitConfig
    cell: float
    """Side of a cell of the splits, m."""
    published: str | None = None
    """Path of a part of the present index that the same job wrote, maybe from other stores."""

    def fingerprint(self) -> str:
        """Equal for jobs that write the same rows, as long as the stores do not change."""
        scenes = [
            (job.scene.id, job.scene.satellite, job.scene.sensor, job.scene.acquired, job.scene.gsd, job.grid)
            for job in self.scenes
        ]
        first, split = self.scenes[0], (self.split.shares, self.split.seed, self.cell)
        config = first.config.model_dump(exclude={"label_set", "split"})  # as they were given; what came of them counts
        settings = first.label_set, first.other_label_sets, config, self.classes, split
        return hashlib.sha256(repr((scenes, settings)).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class PartReport:
    """What a part of the index contains. Those of all parts are added up."""

    digest: str
    """SHA-256 of the file."""
    scenes: dict[str, dict[str, Any]]
    """Scene -> its `statuses`, `unknown`, `unfit` and `missing`, as in `SceneRows`."""
    refused: list[dict[str, str]]
    """`scene`, `reason` and `detail` for each scene that is not in the stores, or of which nothing is built."""
    rows: int
    splits: dict[str, int]
    """Split -> number of tiles."""
    shares: dict[str, list[float]]
    """Split -> sum of the shares of each class over its tiles."""


def write_part(job: PartJob) -> PartReport:
    """List the tiles of some scenes with their splits, and write them as a part of the index.

    A part that an interrupted run wrote for the same job is kept, and one of the present index is copied, if the
    stores have the same blocks of these scenes as they had then.
    """
    dataset = job.scenes[0].dataset
    origin = {"job": job.fingerprint(), "stores": fingerprint_stores(job)}
    unfinished = index.read_unfinished(dataset, job.number, job.parts)
    for stored in (unfinished, job.published and files.read(job.published)):
        if stored and (facts := index.read_facts(stored)) | origin == facts and not facts["report"]["refused"]:
            digest = hashlib.sha256(stored).hexdigest() if stored is unfinished else save_part(job, stored)
            return PartReport(digest, **facts["report"])
    listed: list[SceneRows] = []
    scenes: dict[str, dict[str, Any]] = {}
    refused = []
    for scene_job in job.scenes:
        try:
            rows = list_scene(scene_job)
        except layout.StoreError as error:
            refused.append({"scene": scene_job.scene.id, "reason": type(error).__name__, "detail": str(error)})
            continue
        listed.append(rows)
        scenes[scene_job.scene.id] = {key: getattr(rows, key) for key in ("statuses", "unknown", "unfit", "missing")}
    listed = listed or [SceneRows({}, 0, 0, 0, empty_columns(job.classes), np.empty((0, 4, 2)))]
    columns = {key: np.concatenate([rows.columns[key] for rows in listed]) for key in listed[0].columns}
    corners = np.concatenate([rows.corners for rows in listed])
    del listed
    split = columns["split"] = split_by_place(corners, job.split.shares, job.cell, job.split.seed)
    masks = {name: split == name for name in job.split.shares}
    report: dict[str, Any] = {
        "scenes": scenes,
        "refused": refused,
        "rows": len(split),
        "splits": {name: int(mask.sum()) for name, mask in masks.items()},
        "shares": {
            name: [float(columns[c][mask].sum(dtype=np.float64)) for c in job.classes] for name, mask in masks.items()
        },
    }
    content = index.make_part(columns, footprint_polygons(corners), origin | {"report": report})
    return PartReport(save_part(job, content), **report)


def save_part(job: PartJob, content: bytes) -> str:
    """Write a part. Returns its SHA-256. Raises StoreWriteError if it cannot be written."""
    dataset = job.scenes[0].dataset
    try:
        return index.write_part(dataset, job.number, job.parts, content)
    except OSError as error:  # for example a full disk: every other part would fail too
        raise layout.StoreWriteError(f"{dataset}: the index cannot be written: {error}") from error


def fingerprint_stores(job: PartJob) -> str:
    """Equal as long as the stores have the same blocks of the job's scenes, built from the same inputs.

    Only metadata are read, and names listed: a block is a function of what its scene's attributes say.
    """
    first, names = job.scenes[0], [scene.scene.id for scene in job.scenes]
    found = []
    for root in (layout.TILES, *map(layout.label_store, (first.label_set, *first.other_label_sets))):
        stored = contents.read_scene_contents(files.join(first.dataset, root), names)
        found.append([(n, s.attributes, s.shape, sorted(s.blocks)) for n in names if (s := stored.get(n)) is not None])
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def empty_columns(classes: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """The columns of a scene without rows."""
    types: dict[str, Any] = dict.fromkeys(("tile", "scene", "place"), object) | {"row": np.int32, "col": np.int32}
    types |= {"satellite": object, "sensor": object, "acquired": "datetime64[us]"}
    types |= dict.fromkeys(("gsd", "known", "cloud", "agreement", "year_gap", *classes), np.float32)
    return {name: np.empty(0, kind) for name, kind in types.items()}
