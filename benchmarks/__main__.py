"""`python -m benchmarks [NAME]`: run one benchmark, or all of them in turn."""

import sys
from collections.abc import Callable

from benchmarks import label_noise, storage, zion

BENCHMARKS: dict[str, Callable[[list[str]], int]] = {
    "storage": storage.main,
    "label-noise": label_noise.main,
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
