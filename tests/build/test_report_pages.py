"""The report's pages open in a browser without a network, and say what is on the disk."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from geokr import train
from geokr.dataset.index import read_index
from geokr.evaluation.report.html import render_page
from pipeline.catalog import quarantine
from pipeline.report import cards, site
from pipeline.report import pages as pages_of_report
from pipeline.report.__main__ import main
from pipeline.report.cards import Report
from pipeline.report.site import make_tiles
from tests.browser import Tab, open_browser
from tests.build.conftest import Built

IDLE = "new Promise(done => { const d = Bokeh.documents[0]; d.is_idle ? done(1) : d.idle.connect(() => done(1)) })"
DRAWN = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))"
PAGES = {"index.html", "scenes.html", "tiles.html", "labels.html", "run.html"}


@pytest.fixture(scope="module")
def run(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    settings = ["model=test_resnet", "image_size=32", "batch=32", "steps=4", "crop=1.0", "loggers=[]", "probe=0"]
    assert train.main(["--data", str(built.dataset), "--out", str(run), *settings]) == 0
    return run


@pytest.fixture(scope="module")
def pages(built: Built, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "pages"
    assert main([str(built.dataset), str(run), "--html", str(folder)]) == 0
    return folder


def colours(tab: Tab, name: str) -> list[str]:
    """The different colours of the scenes or tiles on the map, as they are drawn."""
    script = f"""(() => {{
      const drawn = Bokeh.documents[0].get_model_by_name("{name}")
      return drawn.data_source.data[drawn.glyph.fill_color.field]
    }})()"""
    return sorted({*tab.run(script)})


def place(tab: Tab, name: str) -> tuple[float, float]:
    """Where the circle of a scene is in the window, px."""
    x, y = tab.run(f"""(() => {{
      const [map, scenes] = ["map", "scenes"].map(name => Bokeh.documents[0].get_model_by_name(name))
      const at = scenes.data_source.data.name.indexOf("{name}"), data = scenes.data_source.data
      const view = Bokeh.index.find_one(map), box = view.el.getBoundingClientRect(), frame = view.frame
      return [box.left + frame.x_scale.compute(data.x[at]), box.top + frame.y_scale.compute(data.y[at])]
    }})()""")
    return x, y


def test_a_browser_clicks_through_the_pages(built: Built, pages: Path, tmp_path: Path) -> None:
    assert {path.name for path in pages.iterdir()} == PAGES
    scene = built.entries[1].scene.id
    with open_browser(tmp_path / "profile") as tab:
        tab.open(pages / "index.html")
        tab.run(IDLE)
        # The map is coloured by what is chosen, and its key changes with it.
        assert colours(tab, "tiles") != ["#4c9f50"]
        assert "#4c9f50" in colours(tab, "tiles")
        choose = '(() => {{ const s = document.getElementById("{}"); s.value = "{}"; s.onchange({{target: s}}) }})()'
        tab.run(choose.format("mode", "split"))
        assert set(colours(tab, "scenes")) <= {"#0072b2", "#d55e00", "#ffffff", "#aaaaaa"}
        assert tab.run('[...document.querySelectorAll(".keys")].filter(key => !key.hidden).map(key => key.id)') == [
            "keys-split"
        ]
        # It goes to a scene, and a click there opens the scene's part of its page.
        tab.run(choose.format("place", scene))
        tab.run(DRAWN)
        tab.screenshot(tmp_path / "map.png")
        loaded = tab.loaded
        tab.click(*place(tab, scene))
        tab.wait_for_load(loaded)
        assert tab.run("location.pathname.split('/').pop() + location.hash") == "scenes.html#scene-1"
        assert tab.run("document.querySelector(':target h2').innerText") == scene
        # Every page can be reached from every other, and all pictures are in the pages themselves.
        for page in sorted(PAGES - {"scenes.html"}):
            tab.follow(f"""document.querySelector('nav a[href="{page}"]').click()""")
            pictures = tab.run("[...document.images].map(image => [image.src.slice(0, 5), image.naturalWidth])")
            assert all(start == "data:" and width > 0 for start, width in pictures)
            assert pictures or page == "index.html"
            assert (
                tab.run("performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:')).length") == 0
            )
        assert tab.complaints == []
        # What asks for more than that is refused, and the test would see it.
        changed = tmp_path / "changed.html"
        text = (pages / "tiles.html").read_text(encoding="utf-8")
        changed.write_text(text.replace("<h1>", '<img src="http://127.0.0.1:9/a.png"><script>1</script><h1>'))
        tab.open(changed)
        assert len(tab.complaints) >= 2
    with Image.open(tmp_path / "map.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 50


def test_the_pages_say_what_is_on_the_disk(built: Built, pages: Path) -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in pages.iterdir()}
    counts = json.loads((built.dataset / "dataset.json").read_text())["counts"]
    assert sum(len(text) for text in texts.values()) < 6e6
    for entry in built.entries:
        assert f"<h2>{entry.scene.id}</h2>" in texts["scenes.html"]
    for status, count in counts["tiles"].items():
        if count and status not in ("accepted", "not_built"):
            assert f"{status.replace('_', ' ')}: {count:,} tiles" in texts["tiles.html"]
    assert "of the pixels have no data; allowed 0%" in texts["tiles.html"]
    assert texts["tiles.html"].count("the map: largest class of") == 2 * 24
    rows = read_index(built.dataset, ["split"])
    assert f"All {len(rows):,} tiles in the index" in texts["labels.html"]
    assert texts["run.html"].count(">disagreement 0.") == 24
    assert texts["run.html"].count("similarity ") >= 12


def test_of_many_scenes_some_are_listed(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pages list does not grow with the scenes; what they leave out is counted."""
    dataset, lost = tmp_path / "dataset", [f"lost-{number}" for number in range(3)]
    shutil.copytree(built.dataset, dataset)
    refusals = [{"stage": "catalog", "scene": name, "reason": "SceneError", "detail": "cut"} for name in lost]
    quarantine.replace(dataset, "catalog", refusals)
    names = sorted(entry.scene.id for entry in built.entries)
    for limit, listed in ((3, names), (1, names[:1])):
        monkeypatch.setattr(cards, "LISTED", limit)
        monkeypatch.setattr(site, "LISTED", limit)
        monkeypatch.setattr(site, "CARDS", 2 if limit == 1 else 24)
        folder = site.write_site(str(dataset), None, None, tmp_path / f"pages{limit}").parent
        scenes, world = ((folder / name).read_text() for name in ("scenes.html", "index.html"))
        assert [name for name in lost if f"<td>{name}</td>" in scenes] == lost[:limit]
        assert [name for name in names if f"<option>{name}</option>" in world] == listed
        assert ("drawn\nevenly; scenes.parquet has all" in scenes) == (limit == 1)
        assert ("2 more are in" in scenes) == (limit == 1)


def test_false_colours_are_named(built: Built) -> None:
    with ThreadPoolExecutor(1) as threads:
        report = Report(str(built.dataset), threads)
        assert make_tiles(report)["false_colours"] == []
        report = Report(str(built.dataset), threads)
        for scene in report.scenes.values():
            scene.attributes["bands"] = ["nir", "red", "green", "pan"]
        values = make_tiles(report)
    assert values["false_colours"] == ["nir, green, pan as red, green, blue"]
    assert not values["coarse"]  # eight parts along a side
    page = render_page(pages_of_report.PAGES["tiles.html"], "Tiles", dataset="", **values | {"coarse": True})
    assert "Shown in false colours: nir, green, pan as red, green, blue." in page
    assert "wider than half a tile" in page


def test_rejected_tiles_of_a_lost_image_are_left_out_with_the_reason(built: Built, tmp_path: Path) -> None:
    gone = built.entries[0].scene
    path, moved = Path(gone.delivery), tmp_path / "moved"
    shutil.move(path, moved)
    try:
        with ThreadPoolExecutor(1) as threads:
            values = make_tiles(Report(str(built.dataset), threads))
    finally:
        shutil.move(moved, path)
    assert [*values["faults"]] == [gone.id]
    shown = [card.title for cards in values["rejected"].values() for card in cards]
    assert shown
    assert not [title for title in shown if title.startswith(gone.id)]


def test_an_evaluation_without_results_is_named(
    built: Built, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(built.dataset), str(run), str(tmp_path), "--html", str(tmp_path / "pages")]) == 2
    assert "no results; run an evaluation first" in capsys.readouterr().err
