"""A map of scenes and tiles over land, drawn by Bokeh, that needs no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pyogrio
import shapely
from affine import Affine
from bokeh.embed import components
from bokeh.models import ColumnDataSource, HoverTool, OpenURL, TapTool
from bokeh.plotting import figure
from bokeh.resources import Resources
from markupsafe import Markup

from geokr.crs import cut_at_antimeridian, transformer

LAND = Path(pyogrio.__file__).parent / "tests" / "fixtures" / "naturalearth_lowres" / "naturalearth_lowres.shp"
"""Natural Earth's countries, 1 : 110 million, public domain, as the wheel of pyogrio has them."""
MERCATOR, CIRCUMFERENCE, NORTHERNMOST = "EPSG:3857", 2 * 20037508.342789244, 85.0
MODES = {"scene": "scene", "split": "split", "class": "largest class", "status": "status"}
"""What scenes and tiles can be coloured by -> how it is called."""


@dataclass
class Squares:
    """Tiles on the map. All lists have one value a tile."""

    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)
    """Centre, Mercator metres."""
    side: list[float] = field(default_factory=list)
    angle: list[float] = field(default_factory=list)
    """rad, counter-clockwise."""
    values: dict[str, list[str]] = field(default_factory=lambda: {mode: [] for mode in MODES})
    """Mode -> value."""
    name: list[str] = field(default_factory=list)

    def add(
        self,
        scene: str,
        attributes: Mapping[str, Any],
        row: npt.NDArray[Any],
        col: npt.NDArray[Any],
        values: Mapping[str, Sequence[str]],
    ) -> None:
        """Add tiles of a scene. attributes: of its group. values: mode but `scene` -> value of each tile."""
        side, transform = attributes["tile"], Affine(*attributes["spatial:transform"])
        left, top = col * attributes["stride"], row * attributes["stride"]
        x, y = zip(*(transform * (left + dx, top + side / 2) for dx in (0, side)), strict=True)
        east, north = transformer(attributes["proj:code"], MERCATOR).transform(np.array(x), np.array(y))
        width = (east[1] - east[0] + CIRCUMFERENCE / 2) % CIRCUMFERENCE - CIRCUMFERENCE / 2
        height = north[1] - north[0]
        self.x += (east[0] + width / 2).round(1).tolist()
        self.y += north.mean(axis=0).round(1).tolist()
        self.side += np.hypot(width, height).round(1).tolist()
        self.angle += np.arctan2(height, width).round(4).tolist()
        self.name += [f"{scene} ({r}, {c})" for r, c in zip(row.tolist(), col.tolist(), strict=True)]
        for mode, texts in {**values, "scene": [scene] * len(row)}.items():
            self.values[mode] += texts


def draw_map(
    outlines: Mapping[str, Any],
    values: Mapping[str, Mapping[str, str]],
    links: Mapping[str, str],
    squares: Squares,
    colours: Mapping[str, Mapping[str, str]],
) -> tuple[Markup, Markup, dict[str, list[float]]]:
    """Draw the map. Returns what goes into the page's head and body, and each scene's box in Mercator metres.

    outlines: scene -> polygon, longitude and latitude, degrees. values: scene -> mode -> value. links: scene -> page to
    open at a click. colours: mode -> value -> #rrggbb.
    """
    shown = list(outlines)
    shapes = {name: project(cut_at_antimeridian(outline)) for name, outline in outlines.items()}
    boxes = {name: [round(value) for value in shape.bounds] for name, shape in shapes.items()}
    bounds = np.array(list(boxes.values()))
    low, high = bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)
    margin = max(0.15 * float((high - low).max()), 2000.0)
    options: dict[str, Any] = {f"{axis}_axis_type": "mercator" for axis in "xy"}
    options |= {f"{axis}_range": (low[k] - margin, high[k] + margin) for k, axis in enumerate("xy")}
    options |= {"tools": "pan,wheel_zoom,box_zoom,reset", "active_scroll": "wheel_zoom"}
    plot = figure(
        name="map",
        **options,
        match_aspect=True,
        sizing_mode="stretch_width",
        height=560,
        background_fill_color="#dfeaf2",
        toolbar_location="above",
    )
    plot.toolbar.logo = None
    xs, ys = read_land()
    plot.patches(xs, ys, fill_color="#f3efe6", line_color="#b9b09c", line_width=0.6)
    rings = [
        (name, ring) for name, shape in shapes.items() for ring in shapely.get_rings(shape) if len(ring.coords) > 3
    ]
    xs, ys = ([np.round(np.asarray(ring.coords)[:, side], 1).tolist() for _, ring in rings] for side in (0, 1))
    plot.patches(xs, ys, fill_alpha=0, line_color="#444444", line_width=1)
    tiles = plot.rect(
        x="x",
        y="y",
        width="side",
        height="side",
        angle="angle",
        fill_color="status",
        fill_alpha=0.75,
        line_color=None,
        name="tiles",
        source=ColumnDataSource(
            {
                "x": np.array(squares.x),
                "y": np.array(squares.y),
                "side": np.array(squares.side),
                "angle": np.array(squares.angle),
                "name": squares.name,
                **{f"{mode}_is": squares.values[mode] for mode in MODES if mode != "scene"},
                **{mode: [colours[mode][value] for value in squares.values[mode]] for mode in MODES},
            }
        ),
    )
    centre = np.array([[(box[0] + box[2]) / 2, (box[1] + box[3]) / 2] for box in boxes.values()])
    marks = plot.scatter(
        x="x",
        y="y",
        size=13,
        fill_color="status",
        fill_alpha=0.9,
        line_color="black",
        name="scenes",
        source=ColumnDataSource(
            {
                "x": centre[:, 0],
                "y": centre[:, 1],
                "name": shown,
                "link": [links[name] for name in shown],
                **{f"{mode}_is": [values[name][mode] for name in shown] for mode in MODES if mode != "scene"},
                **{mode: [colours[mode][values[name][mode]] for name in shown] for mode in MODES},
            }
        ),
    )
    says = [("", "@name"), *((MODES[mode], f"@{mode}_is") for mode in MODES if mode != "scene")]
    plot.add_tools(
        HoverTool(renderers=[tiles, marks], tooltips=says),
        TapTool(renderers=[marks], callback=OpenURL(url="@link", same_tab=True)),
    )
    script, body = components(plot)
    library = "".join(Resources(mode="inline", components=["bokeh"]).js_raw)
    return Markup(f"<script>{library}</script>\n{script}"), Markup(body), boxes


def project(shape: Any) -> Any:
    """A shape in longitude and latitude as one in Mercator metres. What is nearer to a pole than 85 degrees is lost."""
    clipped = shapely.intersection(shape, shapely.box(-180, -NORTHERNMOST, 180, NORTHERNMOST))
    to_plane = transformer("EPSG:4326", MERCATOR)
    return shapely.transform(clipped, lambda points: np.stack(to_plane.transform(*points.T), axis=-1))


@cache
def read_land() -> tuple[list[list[float]], list[list[float]]]:
    """The rings of the countries, x and y in Mercator metres; none if pyogrio was installed without its map."""
    if not LAND.exists():
        return [], []
    shapes = [project(shape) for shape in geopandas.read_file(LAND).geometry]
    rings = [np.asarray(part.exterior.coords) for shape in shapes for part in shapely.get_parts(shape)]
    return [ring[:, 0].round().tolist() for ring in rings], [ring[:, 1].round().tolist() for ring in rings]
