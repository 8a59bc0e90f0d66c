"""What the pages say is so: commands and options exist, examples compile, and each error sentence is in the code."""

import argparse
import ast
import re
import shlex
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from pipeline.command import COMMANDS, load_command

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block of code in a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """The lines of all blocks that call `geokr`, joined where they go on."""
    texts = [text.replace("\\\n", " ") for page in PAGES for language, text in blocks(page) if not language]
    return sorted({line.strip() for text in texts for line in text.splitlines() if line.startswith("geokr ")})


@cache
def options(name: str) -> frozenset[str]:
    """The options of a command and of its subcommands."""
    found: set[str] = set()
    parsers = [load_command(name).make_parser()]
    for parser in parsers:
        found |= parser._option_string_actions.keys()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
    return frozenset(found)


def unknown_words(line: str) -> list[str]:
    """The command or options of a line that do not exist."""
    _, name, *words = shlex.split(line, comments=True)
    if name.startswith("-"):
        return []
    if name not in COMMANDS:
        return [name]
    given = [word.strip("[]") for word in words]
    return [word for word in given if word.startswith("-") and word not in options(name)]


def test_every_command_in_the_pages_exists_with_its_options() -> None:
    lines = commands()
    assert len(lines) > 15
    assert {line: wrong for line in lines if (wrong := unknown_words(line))} == {}


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("geokr bild --out x", ["bild"]),
        ("geokr build --ut x", ["--ut"]),
        ("geokr verify d [--fast | --slow]  # --x", ["--slow"]),
    ],
)
def test_a_wrong_command_is_found(line: str, wrong: list[str]) -> None:
    assert unknown_words(line) == wrong


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
