"""The report opens in a browser without a network, and shows every name as it is."""

import re
import subprocess
from pathlib import Path

BROWSER = "chromium"


def browse(page: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    given = [BROWSER, *quiet, "--enable-logging=stderr", f"--user-data-dir={profile}", *options, page.as_uri()]
    return subprocess.run(given, capture_output=True, text=True, check=True)


def test_a_browser_shows_all_of_it_and_asks_for_nothing_else(page: Path, tmp_path: Path) -> None:
    shown = browse(page, tmp_path, "--dump-dom")
    assert "CONSOLE" not in shown.stderr
    assert "textures0, classification, knn" in shown.stdout
    assert "<b>" not in shown.stdout
    assert "&lt;b&gt;a_b &amp; 50%&lt;|b&gt;.pth" in shown.stdout
    sources = re.findall(r'(?:src|href)="([^"]{5})', shown.stdout)
    assert len(sources) >= 5  # an icon, curves, two confusion matrices, a gallery
    assert set(sources) == {"data:"}


def test_a_changed_page_could_not_ask_for_anything(page: Path, tmp_path: Path) -> None:
    """The page's own policy refuses what lies elsewhere, and the test above would see it."""
    changed = tmp_path / "changed.html"
    text = page.read_text(encoding="utf-8")
    changed.write_text(text.replace("<h1>", '<img src="http://127.0.0.1:9/a.png"><h1>'), encoding="utf-8")
    assert "CONSOLE" in browse(changed, tmp_path / "profile", "--dump-dom").stderr
