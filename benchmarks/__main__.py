"""`python -m benchmarks [NAME]`: run one benchmark, or all of them in turn."""

import sys
from collections.abc import Callable

from benchmarks import build, chaos, label_noise, labels, loader, ortho, step, storage, zion

BENCHMARKS: dict[str, Callable[[list[str]], int]] = {
    "build": build.main,
    "chaos": chaos.main,
    "label-noise": label_noise.main,
    "labels": labels.main,
    "loader": loader.main,
    "ortho": ortho.main,
    "step": step.main,
    "storage": storage.main,
    "zion": zion.main,
}


def main(argv: list[str]) -> int:
    """Returns the worst exit status of those run; 2 for a name that is none."""
    if argv and argv[0] in BENCHMARKS:
        return BENCHMARKS[argv[0]](argv[1:])
    if argv:
        print(f"error: there is no benchmark {argv[0]!r}, only {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    return max(benchmark([]) for benchmark in BENCHMARKS.values())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
