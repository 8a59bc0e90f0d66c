"""Small data sets that carry their own answer."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import timm
import torch

from geokr.dataset import layout, store
from geokr.dataset.index import write_index
from geokr.dataset.layout import SCHEMA

BANDS = ("blue", "green", "red", "nir")
CLASSES = ("water", "forest", "bare")
COLOURS = np.array([[200, 90, 40, 20], [40, 120, 50, 200], [60, 110, 190, 130]])
"""Blue, green, red and near infrared of each class: what a network has to find out."""

Build = Callable[..., Path]


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty place in a bucket of a server on this machine, which the usual variables name."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        boto3.client("s3").create_bucket(Bucket="tiles")
        yield f"s3://tiles/{tmp_path.name}"  # all servers of a process hold the same buckets
    finally:
        server.stop()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """A step waits for its slowest thread: with two, and other work on the machine, it takes ten times as long."""
    torch.set_num_threads(1)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm cannot download weights."""
    made = timm.create_model

    def create(name: str, pretrained: bool = False, **settings: Any) -> torch.nn.Module:
        if pretrained:
            raise ConnectionError("no route to host\nat all")
        return made(name, **settings)

    monkeypatch.setattr(timm, "create_model", create)


def write_dataset(
    root: Path,
    pixels: dict[str, np.ndarray],
    share: dict[str, np.ndarray],
    *,
    bands: dict[str, Sequence[str]] | None = None,
    split: Callable[[str, int, int], str | None] = lambda scene, row, col: "train",
    known: Callable[[str, int, int], float] = lambda scene, row, col: 1.0,
    more: dict[str, Sequence[Any]] | None = None,
    block: int = 4,
    classes: Sequence[str] = CLASSES,
    parts: dict[str, np.ndarray] | None = None,
    radiometry: dict[str, dict[str, Any]] | None = None,
) -> Path:
    """A data set as the pipeline leaves it.

    pixels: scene -> (row, col, band, y, x) uint8 or uint16. share: scene -> (row, col, class).
    more: further columns of the index, a value a tile, in the order of the pixels. parts: scene -> (row, col, grid,
    grid, class) uint8, the labels of the parts of its tiles. radiometry: scene -> this attribute of its group.
    """
    columns: dict[str, list[Any]] = {name: [] for name in ("tile", "scene", "row", "col", "known", "split", *classes)}
    tiles = str(root / layout.TILES)
    for scene, image in pixels.items():
        rows, cols, count, tile = image.shape[:4]
        its_bands = list((bands or {}).get(scene, BANDS))
        attributes: dict[str, Any] = {"bands": its_bands, "tile": tile, "stride": tile, "proj:code": "EPSG:32647"}
        if radiometry:
            attributes["radiometry"] = radiometry[scene]
        attributes["spatial:transform"] = [10.0, 0.0, 400000.0, 0.0, -10.0, 3400000.0]
        store.create_tiles(
            tiles,
            scene,
            shape=(rows, cols),
            bands=count,
            tile=tile,
            block=block,
            dtype=str(image.dtype),
            attributes=attributes,
        )
        for top in range(0, rows, block):
            for left in range(0, cols, block):
                place = slice(top, min(top + block, rows)), slice(left, min(left + block, cols))
                part = image[place]
                store.write_block(tiles, scene, *place, {"image": part}, np.ones(part.shape[:2], np.uint8))
        for row in range(rows):
            for col in range(cols):
                values = [f"{scene}_{row}_{col}", scene, row, col, known(scene, row, col), split(scene, row, col)]
                for name, value in zip(columns, [*values, *share[scene][row, col].tolist()], strict=True):
                    columns[name].append(value)
    store.consolidate(tiles)
    for scene, areas in (parts or {}).items():
        labels = str(root / layout.label_store("made_2020"))
        rows, cols, grid = areas.shape[:3]
        store.create_labels(
            labels, scene, shape=(rows, cols), classes=tuple(classes), grid=grid, block=max(rows, cols), attributes={}
        )
        whole = slice(0, rows), slice(0, cols)
        store.write_block(labels, scene, *whole, {"fraction_grid": areas}, np.ones((rows, cols), np.uint8))
    kinds: dict[str, Any] = {"row": np.int32, "col": np.int32, **dict.fromkeys(("known", *classes), np.float32)}
    typed = {name: np.asarray(values, kinds.get(name, object)) for name, values in columns.items()}
    count = len(columns["tile"])
    extra = {"satellite": np.full(count, "GF1", object), "gsd": np.full(count, 16.0, np.float32)}
    write_index(
        root,
        {**typed, **extra, **{k: np.asarray(v) for k, v in (more or {}).items()}},
        [shapely.box(100, 30, 100.01, 30.01)] * count,
    )
    summary = {
        "schema": SCHEMA,
        "classes": list(classes),
        "colours": ["#0000ff", "#00ff00", "#888888", *["#000000"] * (len(classes) - 3)],
        "label_set": "made_2020",
    }
    (root / "dataset.json").write_text(json.dumps(summary), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def build() -> Build:
    """`write_dataset`, for tests that need a data set of their own."""
    return write_dataset


def coordinates(scene: int, rows: int, cols: int, tile: int = 8) -> np.ndarray:
    """Tiles whose pixels are their own address: scene in blue, row in green, column in red, 200 in near infrared."""
    image = np.full((rows, cols, 4, tile, tile), 200, np.uint8)
    image[:, :, 0] = scene
    image[:, :, 1] = np.arange(rows)[:, None, None, None]
    image[:, :, 2] = np.arange(cols)[None, :, None, None]
    return image


def some_shares(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet([0.5] * len(CLASSES), (rows, cols)).astype(np.float32)


@pytest.fixture
def addressed(tmp_path: Path) -> Path:
    """Three scenes of unlike shape, 57 training tiles, whose pixels are their address; one held-out column."""
    shapes = {"alpha": (5, 7), "beta": (3, 4), "gamma": (6, 3)}
    pixels = {scene: coordinates(i, *shape) for i, (scene, shape) in enumerate(shapes.items())}
    share = {scene: some_shares(*shape, seed=i) for i, (scene, shape) in enumerate(shapes.items())}

    def split(scene: str, row: int, col: int) -> str | None:
        if scene == "alpha" and col == 6:
            return "val"
        return None if (scene, row) == ("beta", 2) and col > 0 else "train"

    return write_dataset(tmp_path / "addressed", pixels, share, split=split)


@pytest.fixture(scope="session")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiles of 32 px in which two classes meet along a line; colour tells which. 192 training tiles, 64 held out."""
    rng = np.random.default_rng(7)
    pixels, share = {}, {}
    for scene in ("east", "west"):
        rows, cols, side = 8, 16, 32
        image = np.empty((rows, cols, 4, side, side), np.uint8)
        shares = np.zeros((rows, cols, 3), np.float32)
        for row in range(rows):
            for col in range(cols):
                first, second = rng.permutation(3)[:2]
                edge = int(rng.integers(0, side + 1))
                which = np.full((side, side), second)
                which[:, :edge] = first
                noise = rng.normal(0, 12, (4, side, side))
                image[row, col] = (COLOURS[which].transpose(2, 0, 1) + noise).clip(0, 255)
                shares[row, col, first] += edge / side
                shares[row, col, second] += 1 - edge / side
        pixels[scene], share[scene] = image, shares
    return write_dataset(
        tmp_path_factory.mktemp("coloured"),
        pixels,
        share,
        split=lambda scene, row, col: "val" if col >= 12 else "train",
        known=lambda scene, row, col: 0.6 + 0.1 * ((3 * row + col) % 5),
        more={"year_gap": np.tile(np.array([0, -3], np.float32), 128)},
        block=8,
    )
