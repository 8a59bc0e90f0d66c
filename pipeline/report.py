"""What came of a build and of a training run: a short table, and a picture of tiles with their labels."""

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt

from geokr import files, store
from geokr.index import INDEX, read_summary
from pipeline.watch import LOG


def summary_table(summary: dict[str, Any]) -> list[str]:
    """Lines for a person from dataset.json."""
    counts = summary["counts"]
    status = {key: value for key, value in counts["tiles"].items() if value}
    tiles = f"{sum(status.values())}: " + ", ".join(f"{value} {key}" for key, value in status.items())
    splits = ", ".join(f"{value} {key}" for key, value in counts["splits"].items())
    rows = [
        (
            "scenes",
            f"{counts['scenes']} built, {counts['incomplete']} of them in part, {counts['quarantined']} refused",
        ),
        ("tiles", tiles),
        ("index", f"{counts['index']} tiles, labels of {summary['labels']}"),
        ("", f"{counts['unknown']} left out for want of land cover"),
        ("", f"{counts['unfit']} left out since label sets disagree or their year is too far away"),
        ("splits", f"{splits}, {counts['between_splits']} between two"),
    ]
    for split, shares in summary["class_shares"].items():
        largest = sorted(shares.items(), key=lambda item: -item[1])
        rows.append((f"{split} shares", ", ".join(f"{name} {100 * share:.1f} %" for name, share in largest if share)))
    return [f"{name:<18}{text}" for name, text in rows]


def run_table(metrics: dict[str, Any], run: Path) -> list[str]:
    """Lines for a person from a training run's metrics.json."""
    rows = [
        ("held-out loss", f"{metrics['val_kl']:.4f} nats KL; {metrics['val_kl_mean_baseline']:.4f} for the mean label"),
        ("held-out top-1", f"{100 * metrics['val_top1']:.1f} % of {metrics['val_tiles']} tiles"),
        ("encoder", f"{run / 'encoder.safetensors'}, after {metrics['steps']} steps on {metrics['tiles']} tiles"),
    ]
    return [f"{name:<18}{text}" for name, text in rows]


def dashboard(dataset: str | Path) -> list[str]:
    """A line with the address that the dashboard had while the data set was built; none where no log says."""
    path = files.join(dataset, LOG)
    lines = files.read(path).decode().splitlines() if files.exists(path) else []
    found = [line["dashboard"] for line in map(json.loads, lines) if "dashboard" in line]
    return [f"{'dashboard was':<18}{found[-1]}"] if found else []


def picture(dataset: str | Path, path: Path, tiles: int = 6) -> None:
    """Draw tiles, each above the shares of its classes: of each large class a tile, the most mixed first.

    Colours are true where the scene has red, green and blue, otherwise of its first bands.
    """
    from matplotlib.figure import Figure  # half a second that only a picture is worth

    summary = read_summary(dataset)
    classes, colours = summary["classes"], summary["colours"]
    index = geopandas.read_parquet(io.BytesIO(files.read(files.join(dataset, INDEX))))
    shares = index[classes].to_numpy(dtype=float)
    mixed = -(shares * np.log(np.maximum(shares, 1e-12))).sum(axis=1)
    dominant = shares.argmax(axis=1)
    common = np.argsort(-np.bincount(dominant, minlength=len(classes)), kind="stable")
    ranks = np.empty(len(index), dtype=int)  # how many tiles of its class are more mixed
    for k in common:
        of_class = np.flatnonzero(dominant == k)
        ranks[of_class[np.argsort(-mixed[of_class], kind="stable")]] = np.arange(len(of_class))
    chosen = np.lexsort([np.argsort(common)[dominant], ranks])[:tiles]
    figure = Figure(figsize=(2.1 * len(chosen), 3.6), layout="constrained")
    axes = figure.subplots(2, len(chosen), height_ratios=[2.1, 1.2], squeeze=False)
    for above, below, k in zip(axes[0], axes[1], chosen, strict=True):
        tile = index.iloc[int(k)]
        group = store.open_scene(store.join(dataset, store.TILES), tile["scene"])
        pixels = np.asarray(group["image"][int(tile["row"]), int(tile["col"])])  # type: ignore[index]
        above.imshow(in_colour(pixels, list(group.attrs["bands"])))  # type: ignore[arg-type]
        above.set_axis_off()
        order = [c for c in np.argsort(-shares[k], kind="stable")[:3] if shares[k][c] > 0][::-1]
        below.barh([classes[c] for c in order], 100 * shares[k][order], color=[colours[c] for c in order], ec="0.4")
        below.set_xlim(0, 100)
        below.tick_params(labelsize=7, length=0)
        below.spines[["top", "right"]].set_visible(False)
        below.set_xlabel("% of the tile", fontsize=7)
    figure.savefig(path, dpi=110)


def in_colour(pixels: npt.NDArray[np.uint8], bands: Sequence[str]) -> npt.NDArray[np.uint8]:
    """(y, x, 3) uint8 from (band, y, x), each band stretched to its own range."""
    names = ("red", "green", "blue")
    chosen = [bands.index(name) for name in names] if set(names) <= set(bands) else [0, len(bands) // 2, len(bands) - 1]
    image = np.moveaxis(pixels[chosen].astype(float), 0, -1)
    low, high = np.percentile(image, [1, 99], axis=(0, 1))
    return np.asarray(np.clip((image - low) / np.maximum(high - low, 1) * 255, 0, 255).astype(np.uint8))


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.report", description=__doc__)
    parser.add_argument("dataset", help="a finished data set: a directory, or s3://...")
    parser.add_argument("run", type=Path, nargs="?", help="a finished training run")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="draw tiles with their class shares")
    options = parser.parse_args(argv)
    try:
        lines = summary_table(read_summary(options.dataset))
        if options.run is not None:
            metrics = options.run / "metrics.json"
            if not metrics.is_file():
                raise ValueError(f"{metrics}: no such file; is {options.run} a training run that has ended?")
            lines += run_table(json.loads(metrics.read_text(encoding="utf-8")), options.run)
        lines += dashboard(options.dataset)
        if options.picture is not None:
            if not options.picture.parent.is_dir():
                raise ValueError(f"{options.picture}: there is no such directory to write to")
            picture(options.dataset, options.picture)
            lines.append(f"{'picture':<18}{options.picture}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
