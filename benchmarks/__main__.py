"""`python -m benchmarks [NAME]`: run one benchmark, or all of them in turn."""

import sys
from collections.abc import Callable

from benchmarks import (
    build,
    chaos,
    downstream,
    evidence,
    grid,
    imagenet,
    jpeg2000,
    label_noise,
    labels,
    loader,
    ortho,
    outdated,
    scale,
    step,
    storage,
    zion,
)
from benchmarks.real_data import MISSING

BENCHMARKS: dict[str, Callable[[list[str]], int]] = {
    "build": build.main,
    "chaos": chaos.main,
    "downstream": downstream.main,
    "evidence": evidence.main,
    "grid": grid.main,
    "imagenet": imagenet.main,
    "jpeg2000": jpeg2000.main,
    "label-noise": label_noise.main,
    "labels": labels.main,
    "loader": loader.main,
    "ortho": ortho.main,
    "outdated": outdated.main,
    "scale": scale.main,
    "step": step.main,
    "storage": storage.main,
    "zion": zion.main,
}
BY_NAME_ONLY = {"evidence", "outdated"}
"""Benchmarks that do not run with all others: one takes days, one needs the run of `make demo`."""


def main(argv: list[str]) -> int:
    """Return the highest exit status of the benchmarks that ran, or 2 if there is no benchmark of that name.

    If all run, one whose real data are missing does not count; if it is run by name, the status is MISSING.
    """
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: python -m benchmarks [NAME [options]]\nNAME: {', '.join(BENCHMARKS)}; all of them by default")
        return 0
    if argv and argv[0] in BENCHMARKS:
        return BENCHMARKS[argv[0]](argv[1:])
    if argv:
        print(f"error: there is no benchmark {argv[0]!r}, only {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    statuses = [benchmark([]) for name, benchmark in BENCHMARKS.items() if name not in BY_NAME_ONLY]
    return max((status for status in statuses if status != MISSING), default=0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
