"""The installed command: `geokr build`, `geokr train` and so on, each the same as its `python -m` form.

A command's module is imported once it is asked for, so that `geokr --help` does not wait for libraries.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from types import ModuleType

import shtab

CLOSED_PIPE = 141
"""Exit status of a program whose output nobody reads any more, as the shell says it: 128 + SIGPIPE."""
COMMANDS = {
    "sample": ("pipeline.sample.__main__", "write a small world whose truth is known, to try everything on"),
    "build": ("pipeline.build_levir_kr", "turn scenes and land-cover maps into a data set of labelled tiles"),
    "label": ("pipeline.relabel", "label an existing data set with another map"),
    "verify": ("pipeline.verify.__main__", "prove that a data set is whole"),
    "report": ("pipeline.report.__main__", "show what a data set and a run contain"),
    "check": ("pipeline.geocheck", "measure how far a scene lies from a reference image"),
    "landcover": ("geokr.landcover.__main__", "list products, check maps, draft a legend"),
    "train": ("geokr.train", "pre-train an encoder on a data set"),
    "export": ("geokr.export", "write the encoder of a run for other software"),
    "evaluate": ("geokr.evaluate", "measure how many labels an encoder saves on a downstream task"),
    "predict": ("geokr.predict", "map the class shares of new scenes"),
    "doctor": ("pipeline.doctor", "say what works on this machine, what does not, and why"),
}
"""Name -> its module, which has `make_parser()` and `main(arguments)`, and what it does."""
EXTRAS = {"geokr.evaluate": "train,evaluate"}
"""Module -> the extras that it needs; `train` for the other modules of geokr."""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the options that stand alone. The commands parse their own arguments."""
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="geokr",
        usage="geokr COMMAND ... | --version | --completion SHELL",
        description="Pre-train encoders on satellite scenes and land-cover maps.",
        epilog="\n".join(["commands:", *(f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items())])
        + "\n\n`geokr COMMAND --help` describes a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"geokr {version('geokr')}")
    parser.add_argument(
        "--completion",
        choices=shtab.SUPPORTED_SHELLS,
        metavar="SHELL",
        help=f"print a script that completes commands and options in {', '.join(shtab.SUPPORTED_SHELLS)}",
    )
    return parser


def load_command(name: str) -> ModuleType:
    """The module of a command. Raises ModuleNotFoundError with one sentence if a package that it needs is missing."""
    module = COMMANDS[name][0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        extras = f"[{EXTRAS.get(module, 'train')}]" if module.startswith("geokr.") else ""
        message = f"geokr {name} needs {error.name}, which is not installed: pip install 'geokr{extras}'"
        raise ModuleNotFoundError(message, name=error.name) from error


def format_completion(shell: str) -> str:
    """A script that completes the commands, their options and their values in a shell; files where none are listed.

    Commands whose packages are not installed are completed by name alone.
    """
    parser = argparse.ArgumentParser(prog="geokr")
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("--completion", choices=shtab.SUPPORTED_SHELLS, help="print a script for completion")
    commands = parser.add_subparsers(dest="command")
    for name, (_, what) in COMMANDS.items():
        try:
            parents = [load_command(name).make_parser()]
        except ModuleNotFoundError:
            parents = []
        command = commands.add_parser(name, parents=parents, add_help=False, help=what, conflict_handler="resolve")
        for action in command._actions:
            if action.choices is None and action.nargs != 0:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns its exit status: 2 if its packages are not installed, else its own.

    It is CLOSED_PIPE if nobody reads the output any more.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given and given[0] in COMMANDS:
            status = int(load_command(given[0]).main(given[1:]))
            sys.stdout.flush()
            return status
        parser = make_parser()
        options = parser.parse_args(given)
        print(format_completion(options.completion) if options.completion else parser.format_help(), flush=True)
    except BrokenPipeError:  # who read the output, such as `head`, has enough; Python would fail to flush it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except ModuleNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
