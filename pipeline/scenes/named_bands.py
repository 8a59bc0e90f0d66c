"""Scenes with a file for each band, in file names of the user's own, which a pattern describes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.scenes.band_files import Files, Product
from pipeline.scenes.image_files import find_images
from pipeline.scenes.sensor_bands import find_sensor


@dataclass(frozen=True, slots=True)
class NamedBands:
    """The reader of such scenes: see `band_files.Reader`."""

    pattern: re.Pattern[str]
    """Regular expression of complete file names, with the group `band` and, if the rest of the name is not that of the
    scene, the group `scene`. Case is ignored."""

    def find_products(self, names: Sequence[str]) -> dict[str, list[str]]:
        """Group the images whose names match: path of a scene -> its images."""
        products: dict[str, list[str]] = {}
        for name in find_images(names):
            file = name.rpartition("/")[2]
            if match := self.pattern.fullmatch(file):
                products.setdefault(name[: -len(file)] + self.scene_of(match), []).append(name)
        return products

    def find_folder(self, name: str) -> str:
        """Nothing: the files of a scene lie side by side."""
        return ""

    def describe(self, files: Files) -> Product:
        """Describe a scene by the names of its files."""
        ((path, images),) = self.find_products([*files]).items()
        scene = path.rpartition("/")[2]
        matches = {name: self.pattern.fullmatch(name.rpartition("/")[2]) for name in images}
        sensor = find_sensor([scene])
        return Product(
            id=scene,
            satellite="",
            sensor="",
            acquired=None,
            sensor_bands=sensor,
            names={name: (match["band"],) for name, match in matches.items() if match},
            lacking=frozenset(sensor.values()),
            nodata=None,
        )

    def scene_of(self, match: re.Match[str]) -> str:
        """Name of the scene of a file."""
        if "scene" in self.pattern.groupindex:
            return match["scene"]
        start, end = match.span("band")
        stem, before = match.string.rpartition(".")[0], match.string[:start].rstrip("_-. ")
        return before + stem[end:] or "scene"


def parse_pattern(text: str) -> str:
    """The same text if it is a pattern for `NamedBands`. Raises ValueError that says what it lacks."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is not a regular expression: {error}") from error
    if text and "band" not in pattern.groupindex:
        raise ValueError(f"{text!r} has no group (?P<band>...) for the name of the band")
    return text
