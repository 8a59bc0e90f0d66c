"""What came of a build and a training run, as a short table."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from geokr.index import read_summary


def summary_table(summary: dict[str, Any]) -> list[str]:
    """Lines for a person from dataset.json."""
    counts = summary["counts"]
    status = {key: value for key, value in counts["tiles"].items() if value}
    lines = [
        f"scenes            {counts['scenes']} built, {counts['quarantined']} refused",
        f"tiles             {sum(status.values())}: " + ", ".join(f"{value} {key}" for key, value in status.items()),
        f"index             {counts['index']} tiles with labels of {summary['labels']}, {counts['unknown']} left out "
        "for want of land cover",
        "splits            "
        + ", ".join(f"{value} {key}" for key, value in counts["splits"].items())
        + f", {counts['between_splits']} between two",
    ]
    for split, shares in summary["class_shares"].items():
        largest = sorted(shares.items(), key=lambda item: -item[1])
        text = ", ".join(f"{name} {100 * share:.1f} %" for name, share in largest if share >= 0.0005)
        lines.append(f"shares in {split:<8}{text}")
    return lines


def run_table(metrics: dict[str, Any], run: Path) -> list[str]:
    """Lines for a person from a training run's metrics.json."""
    lines = [
        f"{key:<18}{value:.4f}" if isinstance(value, float) else f"{key:<18}{value}" for key, value in metrics.items()
    ]
    return [*lines, f"encoder           {run / 'encoder.safetensors'}"]


def main() -> int:
    """`python -m pipeline.report DATASET [RUN]`."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.report", description=__doc__)
    parser.add_argument("dataset", type=Path, help="a finished data set")
    parser.add_argument("run", type=Path, nargs="?", help="a finished training run")
    options = parser.parse_args()
    try:
        lines = summary_table(read_summary(options.dataset))
        if options.run is not None:
            lines += run_table(json.loads((options.run / "metrics.json").read_text(encoding="utf-8")), options.run)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
