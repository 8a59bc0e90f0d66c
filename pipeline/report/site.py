"""The report as pages: a map, scenes, tiles, labels, and what a run and an evaluation came to."""

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from geokr.dataset.layout import ACCEPTED, TILE_STATUS
from geokr.evaluation.report.figures import COLOURS
from geokr.evaluation.report.html import embed_png, render_page
from geokr.storage import files
from pipeline.catalog.table import Entry
from pipeline.config import BuildConfig
from pipeline.report import pages
from pipeline.report.cards import LISTED, Card, Report, group_scenes
from pipeline.report.figures import choose_tiles
from pipeline.report.rejected import make_again
from pipeline.report.scene_tiles import STATUS_COLOURS, TRUE_COLOUR, SceneTiles
from pipeline.report.summary import summary_table
from pipeline.report.totals import NO_SPLIT, draw_histograms, draw_shares, draw_together
from pipeline.report.worldmap import MODES, Squares
from pipeline.report.worldmap import draw_map as draw_world
from pipeline.scenes.scene import SceneError

REJECTED_SAMPLE = 4_000
"""Rejected tiles on the map, about."""
CARDS = 24
"""Scenes with a picture, at most: half of them those with the smallest accepted share."""
GALLERY = 24
"""Accepted tiles that are shown."""
REJECTED_GALLERY = 6
"""Rejected tiles that are shown of each reason."""


def write_site(dataset: str, run: Path | None, evaluation: Path | None, folder: Path) -> Path:
    """Write the pages into a folder, which is created. Returns the first page, `index.html`.

    Raises ValueError or OSError naming what cannot be read.
    """
    links = [("index.html", "Map"), ("scenes.html", "Scenes"), ("tiles.html", "Tiles"), ("labels.html", "Labels")]
    links += [("run.html", "Run")] if run else []
    links += [("evaluation.html", "Evaluation of encoders")] if evaluation else []
    folder.mkdir(parents=True, exist_ok=True)
    if evaluation is not None:
        from geokr.evaluation.report.page import write_report

        write_report(evaluation, page=folder / "evaluation.html", links=links)
    with ThreadPoolExecutor(8) as threads:
        report = Report(dataset, threads)
        steps = {
            "index.html": lambda: make_map(report),
            "scenes.html": lambda: make_scenes(report),
            "tiles.html": lambda: make_tiles(report),
            "labels.html": lambda: make_labels(report),
        }
        if run is not None:
            from pipeline.report.network import make_run  # torch, which a machine for builds may lack

            steps["run.html"] = lambda: make_run(report, run)
        for file, make in tqdm(steps.items(), unit="page", disable=None):
            values = make()
            title = dict(links)[file]
            text = render_page(pages.PAGES[file], title, links, width=84, dataset=dataset, **values)
            files.write_text(folder / file, text)
    return folder / "index.html"


def make_map(report: Report) -> dict[str, Any]:
    """The map: all scenes, and a sample of the tiles."""
    squares, sample = Squares(), report.totals.sample
    rejected = sum(scene.status.size - int((scene.status <= ACCEPTED).sum()) for scene in report.scenes.values())
    random = np.random.default_rng(0)
    for name, scene in report.scenes.items():  # first, so that accepted tiles lie above them
        row, col = np.nonzero(scene.status > ACCEPTED)
        keep = random.random(len(row)) * rejected < REJECTED_SAMPLE
        status = [TILE_STATUS[code] for code in scene.status[row[keep], col[keep]]]
        none = ["not in the index"] * len(status)
        squares.add(name, scene.attributes, row[keep], col[keep], {"status": status, "split": none, "class": none})
    largest = np.array(report.classes)[sample[report.classes].to_numpy().argmax(axis=1)]
    values: dict[str, dict[str, str]] = {}
    for name, rows in group_scenes(sample):
        one = sample.iloc[rows]
        at = {"status": ["accepted"] * len(rows), "split": one["split"].tolist(), "class": largest[rows].tolist()}
        squares.add(name, report.scenes[name].attributes, one["row"].to_numpy(), one["col"].to_numpy(), at)
        values[name] = {mode: max(set(texts), key=texts.count) for mode, texts in at.items()}
    for name, scene in report.scenes.items():
        counts = scene.counts()
        texts = values.setdefault(name, {"split": "not in the index", "class": "not in the index"})
        texts["status"] = max(counts, key=lambda status: counts[status])
        texts["scene"] = name
    grey = {"not in the index": "#aaaaaa"}
    splits = {name: COLOURS[k] for k, name in enumerate(sorted({*report.totals.tiles} - {NO_SPLIT}))}
    colours: dict[str, dict[str, str]] = {
        "scene": {name: COLOURS[k % len(COLOURS)] for name, k in report.numbers.items()},
        "split": {**splits, NO_SPLIT: "#ffffff", **grey},
        "class": {**report.colours, **grey},
        "status": STATUS_COLOURS,
    }
    outlines = {name: report.entries[name].scene.footprint for name in report.listed}
    anchors = {name: f"scenes.html#scene-{number}" for name, number in report.numbers.items()}
    head, body, boxes = draw_world(outlines, values, anchors, squares, colours)
    used = {mode: {*squares.values[mode]} for mode in MODES}
    keys = {
        mode: {name: colour for name, colour in colours[mode].items() if name in used[mode]}
        for mode in MODES
        if mode != "scene"
    }
    shown = len(squares.x)
    total = rejected + report.summary["counts"]["tiles"]["accepted"]
    return {
        "head": head,
        "map": body,
        "boxes": boxes,
        "modes": MODES,
        "keys_of": keys,
        "shown": shown if shown < total else None,
        "lines": [line.split(" ", 1) for line in tidy(report.summary)],
    }


def tidy(summary: dict[str, Any]) -> Iterator[str]:
    """The lines of the table that the build prints, with one word at the start of each."""
    for line in summary_table(summary):
        yield re.sub(r"^(\w+) shares +", "shares,\u00a0\\1 ", line)


def make_scenes(report: Report) -> dict[str, Any]:
    """Scenes as a table, and some of them with a picture."""
    accepted = {name: float((scene.status == ACCEPTED).mean()) for name, scene in report.scenes.items()}
    names = [*report.scenes]
    worst = sorted(names, key=lambda name: accepted[name])[: CARDS // 2]
    even = names[:: max(1, -(-len(names) // (CARDS - len(worst))))]
    listed = report.totals.values["scene"]
    cards = []
    for name in names if len(names) <= CARDS else sorted({*worst, *even}, key=names.index):
        scene, entry = report.scenes[name], report.entries[name]
        cards.append(
            {
                "number": report.numbers[name],
                "name": name,
                "picture": scene.picture(),
                "caption": scene.colours(),
                "every": "Accepted tiles" if scene.step == 1 else f"One of {scene.step**2} accepted tiles",
                "facts": scene_facts(entry, scene),
                "counts": scene.counts(),
                "listed": listed.get(name, 0),
                "refused": [f"{r['reason']}: {r['detail']}" for r in report.refused if r["scene"] == name],
            }
        )
    shown = {str(card["name"]) for card in cards}
    rows = [
        (report.numbers[name], name, scene.attributes, scene.counts(), accepted[name], listed.get(name, 0))
        for name in sorted({*report.listed, *shown}, key=report.numbers.__getitem__)
        for scene in [report.scenes[name]]
    ]
    outside = [entry for entry in report.refused if entry["scene"] not in report.scenes]
    statuses = [status for status in TILE_STATUS[1:] if any(status in row[3] for row in rows)]
    return {
        "cards": cards,
        "rows": rows,
        "scenes": len(names),
        "with_card": {report.numbers[name] for name in shown},
        "statuses": statuses,
        "refused": outside[:LISTED],
        "more_refused": len(outside) - len(outside[:LISTED]),
        "colours": {status: STATUS_COLOURS[status] for status in statuses if status != "accepted"},
    }


def scene_facts(entry: Entry, scene: SceneTiles) -> dict[str, str]:
    """What is known of a scene, as text."""
    image, terrain = entry.scene.images[0], entry.terrain
    facts = {
        "satellite, sensor": " ".join(filter(None, [entry.scene.satellite, entry.scene.sensor])) or "unknown",
        "acquired": f"{entry.scene.acquired:%Y-%m-%d %H:%M} UTC" if entry.scene.acquired else "unknown",
        "GSD": f"{entry.scene.gsd:g} m",
        "bands": ", ".join(entry.scene.bands),
        "image": f"{image.width} x {image.height} px, {entry.scene.level}",
        "tiles": f"{scene.status.shape[0]} rows x {scene.status.shape[1]} columns of {scene.attributes['tile']} px, "
        f"every {scene.attributes['stride']} px, {scene.attributes['proj:code']}",
        "heights": f"{Path(terrain.dem).name}, over {entry.dem_coverage:.0%} of the outline"
        if terrain.dem
        else f"flat ground at {terrain.height:.0f} m: relief shifts the pixels",
        "0 to 255": f"{entry.stretch.low:g} to {entry.stretch.high:g} of the image",
        "pixels with data": f"{entry.valid_share:.1%} of those sampled",
    }
    if cloud := entry.scene.metadata.get("CloudPercent"):
        facts["cloud, by the provider"] = f"{cloud} %"
    return facts


def make_tiles(report: Report) -> dict[str, Any]:
    """Galleries: accepted tiles with their map, and rejected tiles by reason with the figure that decided."""
    sample = report.totals.sample
    chosen = choose_tiles(sample[report.classes].to_numpy(dtype=float), GALLERY)
    accepted = [report.describe(sample.iloc[k]) for k in chosen.tolist()]
    config = BuildConfig.model_validate({**report.summary["settings"], "out": report.dataset})
    rejected: dict[str, list[Card]] = {}
    counts: dict[str, int] = {}
    faults: dict[str, str] = {}
    for code in range(ACCEPTED + 1, len(TILE_STATUS)):
        status = TILE_STATUS[code]
        count = sum(int((scene.status == code).sum()) for scene in report.scenes.values())
        if not count:
            continue
        rejected[status], counts[status] = [], count
        for scene, row, col in draw_evenly(report.scenes, code, REJECTED_GALLERY):
            if scene.name in faults:
                continue
            try:
                tile = make_again(report.dataset, report.entries[scene.name], config, row, col, code)
            except (SceneError, OSError) as error:
                faults[scene.name] = " ".join(str(error).split())
                continue
            picture = scene.show_levels(tile.pixels, tile.valid)
            rejected[status].append(Card(f"{scene.name} ({row}, {col})", [tile.figure], [(scene.colours(), picture)]))
    return {
        "accepted": accepted,
        "rejected": rejected,
        "counts": counts,
        "faults": faults,
        "false_colours": sorted({name for card in accepted for name, _ in card.pictures[:1]} - {TRUE_COLOUR}),
        "coarse": any(" of 1 x 1 parts" in name for card in accepted for name, _ in card.pictures),
        "colours": report.colours,
        "label_set": report.summary["label_set"],
    }


def draw_evenly(scenes: Mapping[str, SceneTiles], code: int, number: int) -> list[tuple[SceneTiles, int, int]]:
    """Draw tiles of a status, from as many scenes as there are; the same ones each time."""
    random = np.random.default_rng(code)
    having = [scene for scene in scenes.values() if (scene.status == code).any()]
    random.shuffle(having)
    drawn = []
    cells = {scene.name: random.permutation(np.argwhere(scene.status == code))[:number] for scene in having[:number]}
    for k in range(number):
        drawn += [(scene, *map(int, cells[scene.name][k])) for scene in having[:number] if k < len(cells[scene.name])]
    return drawn[:number]  # type: ignore[return-value]


def make_labels(report: Report) -> dict[str, Any]:
    """Totals over all tiles in the index."""
    totals = report.totals
    return {
        "pictures": [
            embed_png(
                "Mean share of each class in the tiles of each split.", draw_shares(totals, [*report.colours.values()])
            ),
            embed_png("How good the labels are, and of when: numbers of tiles in the index.", draw_histograms(totals)),
            embed_png(
                "Which classes occur together: row by row, what is in the tiles of a class, in % of their area, each "
                "tile counted as much as it has of that class. A high number off the diagonal is a pair of classes "
                "that a label cannot tell apart.",
                draw_together(totals),
            ),
        ],
        "label_sets": report.summary["label_sets"],
        "label_set": report.summary["label_set"],
        "rows": report.summary["counts"]["index"],
    }
