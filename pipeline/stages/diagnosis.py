"""Why few tiles or none are in an index, and which setting to change: sentences for a person."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from geokr.dataset.splits import propose_cell
from pipeline.catalog.table import QUANTILES, Entry
from pipeline.config import IndexConfig, SplitConfig, TilesConfig
from pipeline.geometry.sensor import Floats
from pipeline.imaging.quality import Rules

FEW = 0.02
"""An index with less than this share of the tiles is explained."""
SAMPLE = 200_000
"""Most tiles for which another side of the splits' cells is tried."""
MOST = 0.5
"""A reason is given if it left out more than this share of the tiles that reached its rule."""


def explain_losses(
    entries: Sequence[Entry], statuses: Mapping[str, Mapping[str, int]], tiles: TilesConfig
) -> Iterator[str]:
    """Which rule rejected most tiles of scenes that have few or none accepted, and which setting to change.

    statuses: scene -> status -> number of tiles.
    """
    lost: dict[str, list[Entry]] = {}
    for entry in entries:
        counts = dict(statuses.get(entry.scene.id, {}))
        total, accepted = sum(counts.values()), counts.pop("accepted", 0)
        if total and accepted < FEW * total:
            lost.setdefault(max(counts, key=lambda status: counts[status]), []).append(entry)
    for status, scenes in sorted(lost.items(), key=lambda item: -len(item[1])):
        ids = {entry.scene.id for entry in scenes}
        rejected = sum(statuses[name].get(status, 0) for name in ids)
        total = sum(sum(statuses[name].values()) for name in ids)
        first = min(scenes, key=lambda entry: entry.scene.id)
        of = first.scene.id if len(scenes) == 1 else f"{len(scenes)} scenes, such as {first.scene.id}"
        if advice := advise(status, first, tiles.rules):
            yield f"{rejected} of {total} tiles of {of} are {status}: {advice}"


def advise(status: str, entry: Entry, rules: Rules) -> str:
    """What decided that a scene's tiles have this status, and which setting to change."""
    match status:
        case "void":
            return advise_void(entry.valid_share, rules)
        case "dark":
            return advise_dark(entry, rules)
        case "flat":
            return (
                f"their grey levels span less than build.tiles.rules.flat_range ({rules.flat_range:g}) of the stretch "
                f"of the scene, {entry.stretch.low:g} to {entry.stretch.high:g}; lower it for calm water, sand or snow"
            )
        case "cloud":
            return (
                f"more than build.tiles.rules.cloud_share ({rules.cloud_share:g}) of their pixels are above "
                f"build.tiles.rules.cloud_level ({rules.cloud_level}); raise one of them if this is snow, sand or roofs"
            )
        case "missing_lines":
            return (
                "lines of the image are darker than build.tiles.rules.missing_level "
                f"({rules.missing_level:g}) of their neighbours; 0 turns this rule off"
            )
        case _:
            return ""  # blocks that failed are in the quarantine


def advise_void(valid_share: float, rules: Rules) -> str:
    """void: pixels without data are scattered, or are most of the image, or the tile is larger than the image."""
    share = f"{100 * valid_share:.3g} % of the sampled pixels have data"
    if valid_share >= 0.999:
        return f"{share}, but no tile lies inside the image; choose a smaller build.grid.tile"
    if valid_share < MOST:
        return f"only {share}; is the value or mask for missing data the right one?"
    enough = min(1.0, math.ceil(200 * (1 - valid_share) - 1e-9) / 100)
    return (
        f"{share}, but a tile is rejected if more than build.tiles.rules.void_share ({rules.void_share:g}) of its "
        f"pixels have none; {enough:g} would accept those where a usual number is missing"
    )


def advise_dark(entry: Entry, rules: Rules) -> str:
    """dark: the stretch was ruled by a few bright pixels, or the rule is too strict for this scene."""
    fault = (
        f"more than build.tiles.rules.dark_share ({rules.dark_share:g}) of their pixels are below "
        f"build.tiles.rules.dark_level ({rules.dark_level}) after the stretch of the scene, {entry.stretch.low:g} to "
        f"{entry.stretch.high:g}"
    )
    levels = dict(zip(QUANTILES, entry.quantiles, strict=False))
    dark = next((levels[q] for q in QUANTILES if q in levels and q >= 100 * rules.dark_share), None)
    if dark is None:
        return f"{fault}; raise the one or lower the other"
    for percent in sorted((q for q in QUANTILES if 50 < q < 99), reverse=True):
        span = levels[percent] - entry.stretch.low
        if span > 0 and (dark - entry.stretch.low) / span * 255 >= 1.5 * rules.dark_level:
            return (
                f"{fault}, whose upper end a few bright pixels such as clouds decided; "
                f"build.survey.stretch: [1, {percent:g}] would end it at {levels[percent]:g}"
            )
    return f"{fault}; raise the one or lower the other"


def explain_labels(counts: Mapping[str, int], config: IndexConfig) -> Iterator[str]:
    """Why accepted tiles are not in the index: counts of those that land cover or years left out, and of the index."""
    accepted = counts["unknown"] + counts["unfit"] + counts["index"]
    if counts["unknown"] > MOST * accepted:
        yield (
            f"{counts['unknown']} of {accepted} accepted tiles are left out since less than build.index.min_known "
            f"({config.min_known:g}) of them has a known class; add sheets for their place, or lower it"
        )
    if counts["unfit"] > MOST * accepted:
        limits = [f"build.index.{key} ({value:g})" for key in ("min_agreement", "max_year_gap")
                  if (value := getattr(config, key)) is not None]  # fmt: skip
        yield f"{counts['unfit']} of {accepted} accepted tiles are left out by {' and '.join(limits)}; relax it"


def explain_splits(
    read_corners: Callable[[], Floats], tiles: int, counts: Mapping[str, int], split: SplitConfig, cell: float
) -> Iterator[str]:
    """Which splits have no tile, and the side of a cell with which all have some.

    read_corners: reads (n, 4, 2) of the tiles in the index, or of some of them, longitude and latitude in degrees; it
    is called if a split has none. tiles: number of tiles in the index. counts: split -> tiles. cell: side of a cell, m.
    """
    empty = [name for name, count in counts.items() if split.shares[name] and not count]
    if not empty or not tiles:
        return
    corners = read_corners()
    proposal = propose_cell(corners, split.shares, cell, split.seed)
    if proposal is None:
        advice = "no other size of cells changes that: the tiles are too few or too close to each other"
    else:
        side, found = proposal
        sample = f" of {len(corners)} sampled" if len(corners) < tiles else ""
        parts = ", ".join(f"{n} to {name}" for name, n in found.items())
        advice = f"build.index.split.cell: {side:g} gives {parts}{sample}"
    yield f"split {' and '.join(empty)} has no tile: none of {tiles} lies in its cells of {cell:g} m; {advice}"
