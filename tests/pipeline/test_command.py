"""The installed command: what it starts, what it says without its packages, and what it completes."""

import os
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint, version
from pathlib import Path

import pytest

from pipeline import command
from pipeline.command import COMMANDS, EXTRAS, format_completion, load_command, main

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_the_installed_command_is_this_one() -> None:
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    assert {name: EntryPoint(name, value, "").load() for name, value in project["scripts"].items()} == {"geokr": main}
    assert set(",".join([*EXTRAS.values(), "train"]).split(",")) <= project["optional-dependencies"].keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_calls_itself_as_it_is_typed(name: str) -> None:
    assert load_command(name).make_parser().prog == f"geokr {name}"
    assert callable(load_command(name).main)


def test_a_command_gets_its_arguments_and_gives_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "nowhere", "--fast"]) == 2
    assert "error: nowhere: there is no dataset.json" in capsys.readouterr().err


def test_help_and_version_come_without_libraries() -> None:
    code = (
        "import sys; from pipeline.command import main; main([]);"
        "print(sorted(name for name in ('numpy', 'torch', 'dask', 'rasterio', 'pydantic') if name in sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "[]"
    assert all(f"\n  {name} " in said for name in COMMANDS)


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"geokr {version('geokr')}\n"


def test_an_unknown_command_is_refused_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bild"])
    said = capsys.readouterr().err
    assert "invalid choice: 'bild'" in said
    assert all(name in said for name in COMMANDS)


@pytest.mark.parametrize(
    ("name", "package", "advice"),
    [("evaluate", "torchmetrics", "'geokr[train,evaluate]'"), ("train", "torch", "'geokr[train]'"),
     ("build", "dask", "'geokr'")],
)  # fmt: skip
def test_a_command_without_its_packages_says_how_to_get_them(
    name: str, package: str, advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def halted(module: str) -> None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(command, "import_module", halted)
    assert main([name, "--help"]) == 2
    said = capsys.readouterr().err
    assert said == f"error: geokr {name} needs {package}, which is not installed: pip install {advice}\n"


def test_bash_completes_commands_options_values_and_files(tmp_path: Path) -> None:
    (tmp_path / "scenes").mkdir()
    script = tmp_path / "geokr.bash"
    script.write_text(format_completion("bash"))
    complete = 'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _shtab_geokr; echo "${COMPREPLY[*]}"'

    def completions(*words: str) -> list[str]:
        call = ["bash", "-c", f". {script}; {complete}", "bash", "geokr", *words]
        return subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()

    assert completions("la") == ["label", "landcover"]
    assert completions("build", "--only", "") == ["catalog", "tiles", "labels", "index"]
    assert completions("landcover", "check", "--a") == ["--all"]
    assert completions("build", "--scenes", "sc") == ["scenes"]
    assert completions("verify", "sc") == ["scenes"]


def test_a_command_without_its_packages_is_completed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(command, "load_command", missing)
    script = format_completion("bash")
    assert "predict" in script
    assert "--scenes" not in script


def test_output_that_nobody_reads_ends_a_command_without_a_traceback() -> None:
    """As in `geokr verify DATASET | head -1`."""
    for arguments in ("[]", "['landcover', 'list']"):
        read, write = os.pipe()
        os.close(read)
        code = f"import sys; from pipeline.command import main; sys.exit(main({arguments}))"
        ended = subprocess.run(
            [sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, check=False
        )
        os.close(write)
        assert (ended.returncode, ended.stderr) == (141, "")
