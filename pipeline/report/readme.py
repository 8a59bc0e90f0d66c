"""What lies beside a finished data set for people and other programs: README.md with pictures, croissant.json and the
STAC collection.json."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from geokr.dataset import index, layout
from geokr.dataset.contents import open_array, read_attributes
from geokr.dataset.index import read_summary
from geokr.evaluation.report.figures import to_png
from geokr.landcover.legend import read_toml
from geokr.landcover.products import LandCoverError, load_products
from geokr.storage import files
from pipeline.catalog.table import Entry
from pipeline.report.croissant import make_collection, make_croissant
from pipeline.report.figures import choose_tiles, to_rgb
from pipeline.report.scene_tiles import GAMMA, paint_map, read_map_parts
from pipeline.report.totals import Totals, draw_shares

log = logging.getLogger(__name__)

README, CROISSANT, COLLECTION = "README.md", "croissant.json", "collection.json"
TILES_PICTURE, SHARES_PICTURE = "README-tiles.png", "README-shares.png"
TERMS = {
    "sentinel": "free and open; published works name `contains modified Copernicus Sentinel data [year]`",
    "landsat": "public domain (U.S. Geological Survey)",
    "gf": "terms of the China Centre for Resources Satellite Data and Application; as a rule not to be passed on",
    "zy": "terms of the China Centre for Resources Satellite Data and Application; as a rule not to be passed on",
}
"""Start of a satellite's name, in lower case -> terms of its images."""
PARTS = 8
"""Parts of the index from which the tiles of the picture are chosen, at most."""
OWNERS_TERMS = "the rights remain with the owner of the images"


def write_readme(dataset: str, summary: dict[str, Any], entries: Sequence[Entry]) -> None:
    """Describe a data set whose stages are complete. summary: content of dataset.json.

    A data set is whole without a description, so a fault is only logged.
    """
    try:
        for name, content in make_files(dataset, summary, entries).items():
            files.write(files.join(dataset, name), content)
    except Exception as error:  # pictures are drawn by libraries that can raise anything
        log.warning("%s: its description cannot be written: %s", dataset, " ".join(str(error).split()) or repr(error))


def make_files(dataset: str, summary: dict[str, Any], entries: Sequence[Entry]) -> dict[str, bytes]:
    """Name -> content of the files that describe a data set. The same data set has the same bytes, wherever it is."""
    parts = index.list_parts(dataset)
    schema = pq.read_schema(pa.BufferReader(files.read(parts[0])))
    title = f"Satellite tiles with class shares of {summary['label_set']}"
    counts = summary["counts"]
    description = (
        f"{counts['index']} tiles of {counts['scenes']} satellite scenes, each with the exact area share of "
        f"{len(summary['classes'])} land-cover classes in its footprint, and in parts of it; split by location."
    )
    maps = {name: describe_product(name, summary["settings"]["labels"]["legends"]) for name in summary["label_sets"]}
    images = count_images(entries)
    licences = [f"{title}: {licence}" for title, licence, _ in maps.values()]
    licences += list_terms(images)
    croissant = make_croissant(summary, schema, title, description, licences)
    collection = make_collection(summary, entries, schema, title, description)
    shares = {
        split: np.array([of[name] for name in summary["classes"]]) * counts["splits"][split]
        for split, of in summary["class_shares"].items()
    }
    totals = Totals(tuple(summary["classes"]), {split: counts["splits"][split] for split in shares}, shares)
    pictures = {TILES_PICTURE: draw_tiles(dataset)} if counts["index"] else {}
    pictures |= {SHARES_PICTURE: draw_shares(totals, summary["colours"])} if shares else {}
    text = format_readme(title, description, summary, images, maps, [*pictures])
    return {
        **pictures,
        CROISSANT: to_json(croissant),
        COLLECTION: to_json(collection),
        README: text.encode(errors="backslashreplace"),
    }


def draw_tiles(dataset: str, tiles: int = 6) -> bytes:
    """Draw tiles, each above the map under it and its largest class shares, as PNG. `choose_tiles` chooses them.

    Of a large index, some parts are read, evenly spaced. The image is in true colour if the scene has red, green and
    blue bands, otherwise it shows its first, middle and last band.
    """
    from matplotlib.figure import Figure

    summary = read_summary(dataset)
    classes, colours = summary["classes"], summary["colours"]
    paths = index.list_parts(dataset)
    rows = pa.concat_tables(
        pq.read_table(pa.BufferReader(files.read(path)), columns=["scene", "row", "col", *classes], partitioning=None)
        for path in paths[:: -(-len(paths) // PARTS)]
    ).to_pandas()
    shares = rows[classes].to_numpy(dtype=float)
    chosen = choose_tiles(shares, tiles)
    figure = Figure(figsize=(2.1 * len(chosen), 5.4), layout="constrained")
    axes = figure.subplots(3, len(chosen), height_ratios=[2.1, 2.1, 1.2], squeeze=False)
    for image_axes, map_axes, bar_axes, k in zip(*axes, chosen, strict=True):
        scene, row, col = rows.iloc[int(k)][["scene", "row", "col"]]
        root = files.join(dataset, layout.TILES)
        pixels = np.asarray(open_array(root, f"{scene}/image").result()[row, col].read().result())
        image_axes.imshow(to_rgb(pixels, read_attributes(root, scene)["bands"], gamma=GAMMA))
        (parts,) = read_map_parts(dataset, summary["label_set"], scene, [(row, col)])
        map_axes.imshow(paint_map(parts, colours))
        for picture in (image_axes, map_axes):
            picture.set_axis_off()
        order = [c for c in np.argsort(-shares[k], kind="stable")[:3] if shares[k][c] > 0][::-1]
        bar_axes.barh([classes[c] for c in order], 100 * shares[k][order], color=[colours[c] for c in order], ec="0.4")
        bar_axes.set_xlim(0, 100)
        bar_axes.tick_params(labelsize=7, length=0)
        bar_axes.spines[["top", "right"]].set_visible(False)
        bar_axes.set_xlabel("% of the tile", fontsize=7)
    return to_png(figure)


def to_json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def count_images(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Satellite -> its scenes; the satellite is `an unknown satellite` if nothing names it."""
    named: dict[str, list[Entry]] = {}
    for entry in entries:
        named.setdefault(entry.scene.satellite or "an unknown satellite", []).append(entry)
    return dict(sorted(named.items()))


def find_terms(satellite: str) -> str:
    """The terms of a satellite's images."""
    return next((terms for start, terms in TERMS.items() if satellite.lower().startswith(start)), OWNERS_TERMS)


def list_terms(satellites: Iterable[str]) -> list[str]:
    """The terms of the images of some satellites, a line for those of the same terms."""
    named: dict[str, list[str]] = {}
    for satellite in satellites:
        named.setdefault(find_terms(satellite), []).append(satellite)
    return [f"Images of {', '.join(names)}: {terms}" for terms, names in named.items()]


def describe_product(label_set: str, legends: Sequence[str]) -> tuple[str, str, str]:
    """Title, licence and citation of the product of a label set, as its description states them."""
    name = label_set.rpartition("_")[0]
    try:
        paths = [product.path for product in load_products(legends) if product.name == name]
    except (LandCoverError, OSError):  # the user's description has gone since
        paths = [product.path for product in load_products() if product.name == name]
    facts = read_toml(paths[0]) if paths else {}
    title, licence = facts.get("title", name), facts.get("licence", "not stated; ask the owner of the product")
    return str(title), str(licence), str(facts.get("citation", ""))


def format_readme(
    title: str,
    description: str,
    summary: dict[str, Any],
    images: dict[str, list[Entry]],
    maps: dict[str, tuple[str, str, str]],
    pictures: Sequence[str],
) -> str:
    """The data card: Markdown with a YAML header for hubs of data sets. Arguments: see `make_files`."""
    counts, classes = summary["counts"], summary["classes"]
    rows = [
        f"| {satellite} | {count_by(entry.scene.sensor for entry in entries)} | {span_of(entries)} | "
        f"{', '.join(f'{gsd:g}' for gsd in sorted({entry.scene.gsd for entry in entries}))} | "
        f"{'; '.join(sorted({', '.join(entry.scene.bands) for entry in entries}))} |"
        for satellite, entries in images.items()
    ]
    splits = [f"| {name} | {count} |" for name, count in counts["splits"].items()]
    rejected = {name: count for name, count in counts["tiles"].items() if count and name != "accepted"}
    captions = {
        TILES_PICTURE: "Accepted tiles, the land cover under them, and their largest class shares",
        SHARES_PICTURE: "Mean share of each class in each split, in % of the area",
    }
    shown = [f"![{captions[name]}]({name})\n\n*{captions[name]}.*\n" for name in pictures]
    products = [
        f"- Land cover `{name}`: {title}: {licence}.{f' {citation}' if citation else ''}"
        for name, (title, licence, citation) in maps.items()
    ]
    products += [f"- {line}." for line in list_terms(images)]
    grid = summary["settings"]["grid"]
    return f"""---
tags: [remote-sensing, land-cover, croissant]
---

# {title}

{description}

{chr(10).join(shown)}
Classes: {", ".join(classes)}. Side of a tile: {grid["tile"]} px, every {grid["stride"]} px.

| satellite | sensor: scenes | dates | GSD, m | bands |
|---|---|---|---|---|
{chr(10).join(rows)}

| split | tiles |
|---|---|
{chr(10).join(splits)}
| none, between two splits | {counts["between_splits"]} |

Not in the index: {", ".join(f"{count} {name}" for name, count in rejected.items()) or "no rejected tile"}; {
        counts["unknown"]
    } with too little known land cover, {counts["unfit"]} whose label sets or years disagree.

## Reading it

```python
import geopandas
import xarray

index = geopandas.read_parquet("index.parquet")
tree = xarray.open_datatree("tiles.zarr", engine="zarr", chunks={{}})
tile = index.iloc[0]
pixels = tree[tile.scene]["image"][tile.row, tile.col].values  # (band, y, x)
shares = tile[{json.dumps(classes[:2])}]
```

`croissant.json` describes the index for programs that read Croissant, `collection.json` for those that read STAC.

## Licences

{chr(10).join(products)}
"""


def count_by(names: Iterable[str]) -> str:
    """`PMS1: 3, WFV2: 1` from a name a scene."""
    return ", ".join(f"{name or 'unknown'}: {count}" for name, count in sorted(Counter(names).items()))


def span_of(entries: Sequence[Entry]) -> str:
    """The first and the last date of some scenes."""
    days = sorted(f"{entry.scene.acquired:%Y-%m-%d}" for entry in entries if entry.scene.acquired is not None)
    if not days:
        return "unknown"
    return days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
