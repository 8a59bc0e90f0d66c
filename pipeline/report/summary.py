"""The results of a build and of a training run, as lines of text."""

import json
from pathlib import Path
from typing import Any

from geokr.storage import files
from pipeline.runtime.progress import LOG_FILE


def summary_table(summary: dict[str, Any]) -> list[str]:
    """Lines of text from dataset.json."""
    counts = summary["counts"]
    status = {key: value for key, value in counts["tiles"].items() if value}
    tiles = f"{sum(status.values())}: " + ", ".join(f"{value} {key}" for key, value in status.items())
    splits = ", ".join(f"{value} {key}" for key, value in counts["splits"].items())
    rows = [
        (
            "scenes",
            f"{counts['scenes']} built, {counts['incomplete']} of them incomplete, {counts['quarantined']} refused",
        ),
        ("tiles", tiles),
        ("index", f"{counts['index']} tiles, labels of {summary['label_set']}"),
        ("", f"{counts['unknown']} left out because too little land cover is known"),
        ("", f"{counts['unfit']} left out because label sets disagree or their year is too far from the image's"),
        ("splits", f"{splits}, {counts['between_splits']} between two splits"),
    ]
    for split, shares in summary["class_shares"].items():
        largest = sorted(shares.items(), key=lambda item: -item[1])
        rows.append((f"{split} shares", ", ".join(f"{name} {100 * share:.1f} %" for name, share in largest if share)))
    return [f"{name:<18}{text}" for name, text in rows]


def read_metrics(run: Path) -> dict[str, Any]:
    """The metrics.json of a training run. Raises ValueError naming it if the run is not finished."""
    metrics = run / "metrics.json"
    if not metrics.is_file():
        raise ValueError(f"{metrics}: no such file; is {run} a finished training run?")
    values: dict[str, Any] = json.loads(metrics.read_text(encoding="utf-8"))
    return values


def run_table(metrics: dict[str, Any], run: Path) -> list[str]:
    """Lines of text from the metrics.json of a training run."""
    rows = [
        ("held-out loss", f"{metrics['val_kl']:.4f} nats KL; {metrics['val_kl_mean_baseline']:.4f} for the mean label"),
        ("held-out top-1", f"{100 * metrics['val_top1']:.1f} % of {metrics['val_tiles']} tiles"),
        ("encoder", f"{run / 'encoder.safetensors'}, after {metrics['steps']} steps on {metrics['tiles']} tiles"),
    ]
    return [f"{name:<18}{text}" for name, text in rows]


def dashboard_line(dataset: str | Path) -> list[str]:
    """A line with the dashboard address of the last build; no line if the log has none."""
    last = ""
    for line in files.read_lines(files.join(dataset, LOG_FILE)):
        last = json.loads(line).get("dashboard", last)
    return [f"{'last dashboard':<18}{last}"] if last else []
