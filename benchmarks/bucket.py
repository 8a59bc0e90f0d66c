"""The requests of a build in an S3 bucket: how many of each kind a scene and a block add.

Small scenes are built from a bucket into it, on a server of this machine that records each request: some scenes of a
block each, twice as many, and the first ones again in smaller blocks. From the three follow what a scene adds, without
its blocks, and what a block adds, apart for the data set and the inputs.
"""

import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock
from urllib.parse import unquote

from benchmarks.archive import write_many
from benchmarks.s3 import Server, s3_server
from geokr.dataset import layout
from geokr.landcover.discovery import find_landcover
from pipeline.config import BuildConfig
from pipeline.stages import catalog, index, labels, tiles

KINDS = ("put", "delete", "post", "get", "head", "list")
"""Kinds of requests. `post` is an upload in parts, or one request that deletes many objects."""
SCENES, SIDE = 4, 3
"""Scenes of the smaller builds; rows and columns of tiles of a scene, which is one block, or nine of one tile each."""
DATASET, INPUTS = "dataset", "inputs"
PLACE = re.compile(rf"(?:/bucket/|prefix=)\w+/({DATASET}|{INPUTS})\b")
"""Matches what a recorded request is about."""

Counts = dict[str, dict[str, float]]
"""DATASET and INPUTS -> kind -> number of requests."""


@dataclass(frozen=True)
class Build:
    """The requests of one build."""

    scenes: int
    blocks: int
    requests: Counts


def kind_of(request: str) -> str:
    """The kind of a recorded request."""
    method, _, target = request.partition(" ")
    path, _, query = target.partition("?")
    if method == "GET" and path.rstrip("/").count("/") == 1:  # of the bucket itself
        return "list"
    return "post" if "uploadId=" in query else method.lower()


def count_requests(asked: Iterable[str]) -> Counts:
    """Count recorded requests. Those about neither the data set nor the inputs are left out.

    A request that deletes many objects names them in its body: they are the data set's, since nothing writes inputs.
    """
    counted: Counter[tuple[str, str]] = Counter()
    for request in asked:
        place = PLACE.search(unquote(request))
        if place is not None or request.startswith("POST"):
            counted[place[1] if place is not None else DATASET, kind_of(request)] += 1
    return {place: {kind: counted[place, kind] for kind in KINDS} for place in (DATASET, INPUTS)}


def build(server: Server, archive: Path, name: str, scenes: int, block: int) -> Build:
    """Build scenes of an archive of `write_many` in a plain loop, under a name in the bucket of a server.

    block: tiles along a side of a block.
    """
    for path in sorted((archive / "scenes").iterdir())[:scenes]:
        server.upload(path, f"{name}/{INPUTS}/scenes/{path.name}")
    landcover = server.upload(archive / "landcover", f"{name}/{INPUTS}/landcover")
    config = BuildConfig.model_validate(
        {
            "out": f"s3://bucket/{name}/{DATASET}",
            "survey": {"scenes": [f"s3://bucket/{name}/{INPUTS}/scenes"]},
            "labels": {"landcover": [landcover]},
            "grid": {"tile": 32, "stride": 24, "block": block},
        }
    )
    with server.listening() as asked:
        covers = find_landcover(config.labels.landcover)
        entries = catalog.run(config, None)
        tiles.run(config, entries, None)
        labels.run(config, covers, entries, None)
        index.run(config, covers, entries, None)
    blocks = sum("/status/c/" in key for key in server.keys(f"{name}/{DATASET}/{layout.TILES}"))
    return Build(scenes, blocks, count_requests(asked))


def measure() -> tuple[list[Build], dict[str, Counts]]:
    """Build three times. Returns the builds, and `scene` and `block` -> the requests that one adds."""
    builds = []
    with tempfile.TemporaryDirectory(prefix="geokr-bucket-") as folder, s3_server() as server:
        archive = Path(folder)
        write_many(archive, 2 * SCENES)
        with mock.patch.dict(os.environ, server.environment):
            for name, scenes, block in (("few", SCENES, SIDE), ("many", 2 * SCENES, SIDE), ("small", SCENES, 1)):
                builds.append(build(server, archive, name, scenes, block))
    few, many, small = builds
    of_block = {
        place: {kind: (small.requests[place][kind] - n) / (small.blocks - few.blocks) for kind, n in counts.items()}
        for place, counts in few.requests.items()
    }
    of_scene = {
        place: {
            kind: (many.requests[place][kind] - n - (many.blocks - few.blocks) * of_block[place][kind]) / SCENES
            for kind, n in counts.items()
        }
        for place, counts in few.requests.items()
    }
    return builds, {"scene": of_scene, "block": of_block}


def format_requests(builds: Iterable[Build], added: dict[str, Counts]) -> str:
    """A line for each build, and for what a scene and a block add, of the data set and of the inputs."""
    lines = [
        f"case=scale-bucket of={place} scenes={found.scenes} blocks={found.blocks} {format_counts(counts)}"
        for found in builds
        for place, counts in found.requests.items()
    ]
    lines += [
        f"case=scale-bucket of={place} added_by={unit} {format_counts(counts)}"
        for unit, found in added.items()
        for place, counts in found.items()
    ]
    return "\n".join(lines)


def format_counts(counts: dict[str, float]) -> str:
    return " ".join(f"{kind}={number:.4g}" for kind, number in counts.items())
