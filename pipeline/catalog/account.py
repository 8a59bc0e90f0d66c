"""The account of the inputs: each file that was given, once, with what was read from it or why nothing was.

It is written beside the data set as inputs.jsonl, one JSON object per line.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from geokr.storage import files, inputs
from pipeline.catalog.stac_items import public_address
from pipeline.scenes import roles, vrt
from pipeline.scenes.archive import IMAGES
from pipeline.scenes.delivery import NoImagery, Refusal
from pipeline.scenes.discovery import STORES, Delivery, Inventory
from pipeline.scenes.scene import Scene

FILE = "inputs.jsonl"
USED = ("scene", "map", "heights", "setting")
"""Roles of files that something was read from."""


@dataclass(frozen=True, slots=True)
class Given:
    """A file that was given, and what became of it."""

    file: str
    """Absolute path or URL; of a Zarr store, its directory."""
    role: str
    """scene, map, heights or setting if something was read from it; refused; or what it is instead."""
    of: str = ""
    """The scenes or the label set that was read from it, or that it belongs to."""
    reason: str = ""
    """Why nothing was read from it; empty if something was, or if its role says it."""


def take_account(
    inventory: Inventory, outcomes: Mapping[str, Sequence[Scene | Refusal]], known: Iterable[Given] = ()
) -> list[Given]:
    """What became of each given file, sorted by name: those of the inventory, and the known ones.

    outcomes: path of a delivery -> its scenes, and what was refused of it. known: files that are given for something
    else than scenes, and what is known of them. What was read from a file counts before what was not.
    """
    known = [*known]
    lines: dict[str, Given] = {}
    for file, scenes in scenes_of_files(inventory, outcomes).items():
        lines[file] = Given(file, "scene", ", ".join(sorted(scenes)))
    for group in (
        (given for given in known if given.role in USED),
        (given for delivery in inventory.deliveries for given in explain_rest(delivery, outcomes)),
        (Given(file, "own output", "", "this program wrote it") for file in inventory.own),
        (given for given in known if given.role not in USED),
        map(describe, inventory.files),
    ):
        for given in group:
            lines.setdefault(given.file, given)
    return [lines[file] for file in sorted({*inventory.files, *(given.file for given in known)})]


def scenes_of_files(inventory: Inventory, outcomes: Mapping[str, Sequence[Scene | Refusal]]) -> dict[str, set[str]]:
    """File -> ids of the scenes that were read from it."""
    found: dict[str, set[str]] = {}
    for delivery in inventory.deliveries:
        for scene in outcomes.get(delivery.path, ()):
            if isinstance(scene, Scene):
                addresses = [public_address(image.path) for image in scene]
                # Of files on a server, a scene lists none: all are read but the images that it does not have.
                beside = [name for name in delivery.files if not name.lower().endswith(IMAGES)]
                for file in {*addresses, *(scene.files or beside), *(delivery.files if delivery.item else ())}:
                    found.setdefault(file, set()).add(scene.id)
    return found | find_links(found, inventory)


def find_links(found: Mapping[str, set[str]], inventory: Inventory) -> dict[str, set[str]]:
    """The same for given files that are links to those which a VRT names."""
    elsewhere = {os.path.realpath(file): scenes for file, scenes in found.items() if not inputs.is_remote(file)}
    if elsewhere.keys() <= {*inventory.files}:
        return {}
    links = {file: os.path.realpath(file) for file in inventory.files if file not in found}
    return {file: elsewhere[path] for file, path in links.items() if path in elsewhere}


def explain_rest(delivery: Delivery, outcomes: Mapping[str, Sequence[Scene | Refusal]]) -> Iterator[Given]:
    """Why files of a delivery are in no scene, for those that are not."""
    results = outcomes.get(delivery.path, ())
    scenes = [result.id for result in results if isinstance(result, Scene)]
    refusals = [result for result in results if isinstance(result, Refusal)]
    if refusals and not scenes:
        first = refusals[0]
        line = first.reason if isinstance(first, NoImagery) else "refused", first.scene, first.detail
    elif scenes:
        line = "unused", ", ".join(sorted(scenes)), "the scene is made without it"
    elif refused := [r for path in delivery.items for r in outcomes.get(path, ()) if isinstance(r, Refusal)]:
        line = "refused", refused[0].scene, refused[0].detail
    elif vrt.is_vrt(delivery.path):
        line = "mosaic", "", f"the images that it shows are read themselves: {', '.join(delivery.items)}"
    else:
        line = "unused", "", f"{', '.join(delivery.items)} refers to it, but the settings do not ask for it"
    for file in delivery.files:
        yield Given(file, *line)


def describe(file: str) -> Given:
    """What a file is that was looked at by its name alone."""
    local = not inputs.is_remote(file)
    if file.endswith(STORES):
        return Given(file, "store", "", "Zarr stores are not read as scenes")
    if local and Path(file).is_dir():
        return Given(file, "unreadable", "", "the directory cannot be listed")
    if local and not Path(file).exists():
        return Given(file, "unreadable", "", "a link that leads nowhere")
    role, reason = roles.describe_file(file)
    return Given(file, role, "", reason)


def write_account(dataset: str, lines: Iterable[Given]) -> None:
    """Write inputs.jsonl."""
    values = ({key: value for key, value in asdict(line).items() if value} for line in lines)
    files.write_text(files.join(dataset, FILE), "".join(json.dumps(value) + "\n" for value in values))


def read_account(dataset: str | Path) -> list[Given]:
    """Read inputs.jsonl; no lines if there is none."""
    path = files.join(dataset, FILE)
    if not files.exists(path):
        return []
    return [Given(**json.loads(line)) for line in files.read(path).decode().split("\n") if line]


def summarise(lines: Sequence[Given]) -> list[str]:
    """Lines of text: how many files were used for what, and one line per role of the others, with an example."""
    roles_found = {line.role for line in lines}
    counts = {role: [line for line in lines if line.role == role] for role in sorted(roles_found)}
    used = [describe_use(role, counts[role]) for role in USED if role in counts]
    rest = sum(len(found) for role, found in counts.items() if role not in USED)
    text = [f"{'inputs':<18}{len(lines)} files: {', '.join([*used, f'{rest} in nothing'])}"]
    for role, found in sorted(counts.items(), key=lambda item: (item[0] != "refused", -len(item[1]), item[0])):
        if role not in USED:
            name, reason = found[0].file, found[0].reason
            example = reason if name in reason else f"{name}: {reason}" if reason else name
            text.append(f"{'':<18}{len(found)} {role}{',' if len(found) == 1 else ', such as'} {example}")
    return text


def describe_use(role: str, lines: Sequence[Given]) -> str:
    """`12 in 3 scenes`, `2 in 1 map`, `1 with heights`, `1 with settings`."""
    count = len({name for line in lines for name in line.of.split(", ")})
    match role:
        case "scene" | "map":
            return f"{len(lines)} in {count} {role}{'' if count == 1 else 's'}"
        case _:
            return f"{len(lines)} with {'settings' if role == 'setting' else role}"
