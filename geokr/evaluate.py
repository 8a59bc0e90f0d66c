"""Evaluate encoders on downstream tasks: `geokr evaluate classification --data FOLDER --encoder ...`.

Each cell, which is an encoder trained in one mode on one share of the labels with one seed, is a line of
EVAL/results.jsonl. Run the same command again to go on where it stopped.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from geokr.evaluation import protocols
from geokr.evaluation.backbones import SCRATCH
from geokr.evaluation.plan import SECTION, TASKS, Plan, read_plan
from geokr.evaluation.report.page import write_report
from geokr.evaluation.results import (
    Result,
    compare,
    format_table,
    labels_to_reach,
    read_parts,
    read_results,
    tabulate,
    write_summary,
)
from geokr.evaluation.task import Task
from geokr.settings import ConfigError
from geokr.storage import inputs


def evaluate(plan: Plan, out: Path) -> list[Result]:
    """Compute what has no result yet. Returns the results of the plan, those that were there already among them."""
    task = protocols.choose_task(plan.task)
    settings = protocols.configure(task, plan.settings, "settings")
    modes = plan.mode or task.modes
    if wrong := [mode for mode in modes if mode not in task.modes]:
        raise ConfigError(f"{plan.task} has no mode {wrong[0]}, only {', '.join(task.modes)}")
    sources = protocols.find_sources(plan.encoder, settings)
    evaluation = protocols.prepare(task, plan.data, settings)
    cells = protocols.list_cells(sources, modes, plan.labels, plan.seeds)
    wanted = {evaluation.digest_cell(cell) for cell in cells}
    done = sum(result.cell in wanted for result in read_results(out, every=True))
    with tqdm(total=len(cells), initial=done, unit="cell", disable=not sys.stderr.isatty()) as bar:
        for number, result in enumerate(protocols.compute(evaluation, cells, out), start=done + 1):
            line = f"{describe_cell(result)}: {result.primary} {result.value:.3f}, {result.seconds:.1f} s"
            if bar.disable:
                print(f"{number}/{len(cells)} {line}", file=sys.stderr, flush=True)
            else:
                bar.set_postfix_str(line, refresh=False)
                bar.update()
    results = [result for result in read_results(out, every=True) if result.cell in wanted]
    order = [source.name for source in sources]
    return sorted(results, key=lambda result: order.index(result.encoder))


def describe_cell(result: Result) -> str:
    return f"{result.encoder}, {result.mode}, {result.labels:.0%} of the labels, seed {result.seed}"


def print_results(task: Task, results: Sequence[Result], out: Path) -> None:
    """Print a table a mode, differences from scratch, or else from the first encoder, and labels needed."""
    encoders = list(dict.fromkeys(result.encoder for result in results))
    baseline = SCRATCH if SCRATCH in encoders else encoders[0]
    for mode in task.modes:
        members = [result for result in results if result.mode == mode]
        if not members:
            continue
        rows = tabulate(members)
        print(f"\n{members[0].data}, {mode}: {task.primary}, mean and standard deviation over the seeds\n")
        print(format_table(rows))
        for encoder in encoders:
            if encoder != baseline:
                print()
                print_differences(task, members, encoder, baseline, out)
                print(describe_labels(rows, encoder, baseline))


def print_differences(task: Task, results: Sequence[Result], encoder: str, baseline: str, out: Path) -> None:
    """Print the difference of two encoders in one mode, with its interval, at each share of the labels."""
    for share in sorted({result.labels for result in results}):
        pairs: dict[str, dict[int, Result]] = {encoder: {}, baseline: {}}
        for result in results:
            if result.labels == share and result.encoder in pairs:
                pairs[result.encoder][result.seed] = result
        seeds = sorted(pairs[encoder].keys() & pairs[baseline].keys())
        if not seeds:
            continue
        one, other = ([read_parts(out, pairs[name][seed]) for seed in seeds] for name in (encoder, baseline))
        difference = compare(one, other, task.prepare, task.primary)
        print(
            f"{encoder} - {baseline}, {share:.0%} of the labels: {difference.mean:+.3f}, "
            f"95 % interval {difference.low:+.3f} to {difference.high:+.3f}"
        )


def describe_labels(rows: Sequence[Any], encoder: str, baseline: str) -> str:
    """With how many labels an encoder reaches what the baseline reaches with the most, or that it does not."""
    row, goal = labels_to_reach(rows, encoder, baseline)
    said = f"{baseline} reaches {goal.mean:.3f} with {goal.labels:.0%} ({goal.images})"
    if row is None:
        return f"{encoder} does not get there with any share of the labels; {said}"
    return f"{encoder} reaches {row.mean:.3f} with {row.labels:.0%} of the labels ({row.images} images); {said}"


def report(arguments: list[str]) -> int:
    """Run the subcommand `report`. Returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="geokr evaluate report",
        description="Write EVAL/report.html, which opens without a network, and tables.md and tables.tex for a paper.",
    )
    parser.add_argument("out", type=inputs.local_path, metavar="EVAL", help="folder of the results")
    parser.add_argument(
        "--against", default="", metavar="ENCODER", help="encoder that the others are compared with (default: scratch)"
    )
    options = parser.parse_args(arguments)
    try:
        print(write_report(options.out, options.against))
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="geokr evaluate",
        description="Evaluate encoders on a downstream task. Run the same command again to resume. "
        "`report EVAL` writes tables and pictures of the results.",
        epilog="Settings follow as key=value; they are described in geokr/evaluation/task.py and in the task's file. "
        "Exit status: 0 done; 2 a setting, a path or the data are invalid; 130 stopped by Ctrl-C.",
    )
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--data", metavar="FOLDER", help="labelled set")
    parser.add_argument("--encoder", nargs="+", help="scratch, imagenet, runs, exports or files of weights")
    parser.add_argument("--mode", nargs="+", help="knn, linear, finetune (default: all that the task knows)")
    parser.add_argument(
        "--labels", nargs="+", metavar="SHARE", help="shares of the labels (default: 1%% 5%% 10%% 100%%)"
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="number of seeds (default: 5)")
    parser.add_argument("--out", type=inputs.local_path, required=True, metavar="EVAL", help="folder of the results")
    parser.add_argument(
        "--params",
        type=inputs.local_path,
        metavar="FILE.yaml",
        help=f"parameter file with a section `{SECTION}:`",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["report"]:
        return report(given[1:])
    pairs = [argument for argument in given if re.match(r"[a-z_]+=", argument)]  # also after a list such as --labels
    options = make_parser().parse_args([argument for argument in given if argument not in pairs])
    try:
        given_here = {name: value for name in Plan.model_fields if (value := getattr(options, name, None)) is not None}
        plan = read_plan(options.params, given_here, pairs)
        results = evaluate(plan, options.out)
        write_summary(options.out, results)
        print_results(protocols.choose_task(plan.task), results, options.out)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
