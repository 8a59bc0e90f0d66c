"""The rows of the index: accepted tiles with their footprints, land-cover shares and splits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geokr.crs import transformer
from geokr.dataset import contents, layout
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
class Table:
    """The listed tiles of all scenes, with their splits."""

    columns: dict[str, npt.NDArray[Any]]
    """(n,) each: the columns of the index, without geometry."""
    corners: Floats
    """(n, 4, 2) float64: footprint corners, longitude and latitude in degrees."""
    statuses: dict[str, int]
    unknown: int
    unfit: int
    splits: tuple[str, ...]

    def counts(self) -> dict[str, Any]:
        """Numbers of tiles, as in `counts` of dataset.json."""
        split = self.columns["split"]
        return {
            "tiles": self.statuses,
            "unknown": self.unknown,
            "unfit": self.unfit,
            "index": len(split),
            "splits": {name: int((split == name).sum()) for name in self.splits},
            "between_splits": sum(value is None for value in split),
        }

    def class_shares(self, classes: Sequence[str]) -> dict[str, dict[str, float]]:
        """Split -> class -> mean share, for each split that has a tile."""
        shares = {}
        for name in self.splits:
            mask = self.columns["split"] == name
            if mask.any():
                shares[name] = {c: round(float(self.columns[c][mask].mean(dtype=np.float64)), 6) for c in classes}
        return shares


def build_table(parts: Sequence[SceneRows], split: SplitConfig, cell: float) -> Table:
    """Concatenate the rows of at least one scene, in this order, and assign their splits by cells of this side, m."""
    corners = np.concatenate([part.corners for part in parts])
    columns = {key: np.concatenate([part.columns[key] for part in parts]) for key in parts[0].columns}
    columns["split"] = split_by_place(corners, split.shares, cell, split.seed)
    statuses = {key: sum(part.statuses[key] for part in parts) for key in parts[0].statuses}
    unknown, unfit = sum(part.unknown for part in parts), sum(part.unfit for part in parts)
    return Table(columns, corners, statuses, unknown, unfit, tuple(split.shares))
