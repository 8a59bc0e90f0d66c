"""What the pages say is so: commands are accepted, examples name what there is, each error sentence is in the code.

The examples themselves run in `tests/build/test_examples.py`, on a data set.
"""

import argparse
import ast
import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from benchmarks.__main__ import BENCHMARKS
from pipeline.command import COMMANDS, load_command, make_parser
from pipeline.config import read_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block of code in a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """The lines of all blocks that call `geokr` or a module, joined where they go on, without what stands before."""
    texts = [text.replace("\\\n", " ") for page in PAGES for language, text in blocks(page) if not language]
    lines = [line for text in texts for line in text.splitlines()]
    starts = [re.search(r"^(?:\w+=\S+ |torchrun .*?)*((?:geokr|python -m|-m) .*)", line.strip()) for line in lines]
    return sorted({start[1].removeprefix("python ") for start in starts if start})


def find_parser(line: str) -> tuple[argparse.ArgumentParser | None, list[str]]:
    """The parser of a command and its arguments; no parser if it has none. Raises KeyError if there is no command."""
    program, name, *words = shlex.split(line, comments=True)
    if program == "geokr":
        if name.startswith("-"):
            return make_parser(), [name, *words]
        module = load_command(name) if name in COMMANDS else None
    else:
        module = import_module(f"{name}.__main__" if (ROOT / name.replace(".", "/")).is_dir() else name)
    if module is None or (name == "benchmarks" and words and words[0] not in BENCHMARKS):
        raise KeyError(name)
    return (module.make_parser() if hasattr(module, "make_parser") else None), words


def options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The options of a command and of its subcommands."""
    yield from parser._option_string_actions
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action.choices.values():
                yield from options_of(choice)


def find_faults(line: str) -> list[str]:
    """What is wrong with a line: the command or options that do not exist, or what its parser says of it."""
    try:
        parser, words = find_parser(line)
    except (KeyError, ModuleNotFoundError) as error:
        return [str(error.args[0])]
    if parser is None:
        return []
    given = {*options_of(parser)}
    if unknown := [word for word in (w.strip("[]") for w in words) if word.startswith("-") and word not in given]:
        return unknown
    settings = [word for word in words if re.match(r"[a-z_]+=", word)]
    words = [word for word in words if word not in settings]
    if any(mark in word for word in words for mark in ("[", "|", "...", "$")):
        return []  # what may be given, not what is
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            parser.parse_args(words)
        except SystemExit as left:
            return [said.getvalue().splitlines()[-1]] if left.code else []
    return []


def test_every_command_in_the_pages_is_accepted() -> None:
    lines = commands()
    assert len(lines) > 30
    assert {line: faults for line in lines if (faults := find_faults(line))} == {}


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("geokr bild --out x", "bild"),
        ("geokr build --ut x", "--ut"),
        ("geokr verify d [--fast | --slow]  # --x", "--slow"),
        ("geokr verify", "geokr verify: error: the following arguments are required: DATASET"),
        ("geokr build --tile big", "geokr build: error: argument --tile: invalid int value: 'big'"),
        ("-m benchmarks zeon", "benchmarks"),
        ("-m pipeline.reports x", "No module named 'pipeline.reports'"),
    ],
)
def test_a_wrong_command_is_found(line: str, wrong: str) -> None:
    assert find_faults(line) == [wrong]


def test_every_example_compiles_and_imports_what_there_is() -> None:
    examples = [(page, text) for page in PAGES for language, text in blocks(page) if language == "python"]
    assert len(examples) > 3
    for page, text in examples:
        for node in ast.walk(ast.parse(text, page.name)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith(("geokr", "pipeline")):
                module = import_module(str(node.module))
                missing = [alias.name for alias in node.names if not has(module.__name__, alias.name)]
                assert not missing, (page.name, node.module)


def has(module: str, name: str) -> bool:
    """Whether a module has an attribute or a submodule of this name."""
    if hasattr(import_module(module), name):
        return True
    return (ROOT / module.replace(".", "/") / f"{name}.py").exists()


def test_every_parameter_file_is_accepted(tmp_path: Path) -> None:
    """YAML with a section of the build, and what it needs beside that."""
    texts = [(page.name, text) for page in PAGES for language, text in blocks(page) if language == "yaml"]
    of_builds = [(page, text) for page, text in texts if "build" in yaml.safe_load(text)]
    assert of_builds
    for page, text in of_builds:
        file = tmp_path / f"{page}.yaml"
        file.write_text(text)
        read_config(file, {"scenes": ["scenes"], "landcover": ["landcover"], "out": "dataset"})


@cache
def sentences() -> str:
    """All texts in the code, a line each, with `…` for what differs."""
    found = []
    for package in ("geokr", "pipeline"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                match node:
                    case ast.JoinedStr(values=values):
                        found.append("".join(v.value if isinstance(v, ast.Constant) else "…" for v in values))
                    case ast.Constant(value=str(text)):
                        found.append(re.sub(r"%(\.\d)?[sdfg]", "…", text).replace("%%", "%"))
    return "\n".join(found)


def causes() -> list[str]:
    """The sentences of the page about errors."""
    return re.findall(r"^\| `(.+?)` \|", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_sentence_with_a_cause_is_one_of_the_program() -> None:
    said = sentences()
    known = causes()
    assert len(known) > 40
    # A sentence may be put together from several texts; each part between what differs must be in the code.
    assert [sentence for sentence in known if any(part.strip() not in said for part in re.split("…", sentence))] == []


def test_every_page_is_in_the_contents_of_the_site() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = re.findall(r"([\w-]+\.md)$", text, re.MULTILINE)
    assert sorted(named) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    assert yaml.safe_load(text)["site_dir"].startswith("build/")
