"""The project's own rules: the same versions everywhere, and who may import whom."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent

# Rules for geokr and pipeline. Benchmarks measure peers, and may import any of them.
WITH_DASK = {"pipeline/run.py", "pipeline/worker.py", "pipeline/cluster.py"}
WITH_TORCH = {f"geokr/{name}.py" for name in ("augment", "config", "loader", "models", "objectives", "teacher")}
WITH_TORCH |= {f"geokr/{name}.py" for name in ("checkpoint", "export", "journal", "learner", "processes", "train")}
WITH_TORCH |= {f"geokr/{name}.py" for name in ("classifier", "metrics", "validation")}
ABOVE_TASKS = ("pipeline.run.", "pipeline.stages", "pipeline.plan.")
CREATES_ARRAYS = {"geokr/store.py"}
TRAINING_ALSO = ("card", "files", "index", "layout", "legend", "order", "pixels", "selection")
TRAINING = WITH_TORCH | {f"geokr/{name}.py" for name in TRAINING_ALSO}
"""What a machine that only trains imports."""
TRAINING_NEEDS = {"geokr", "torch", "timm", "numpy", "pyarrow", "tensorstore", "safetensors", "yaml", "tqdm"}
TRAINING_LACKS = ("dask", "distributed", "geopandas", "pydantic", "pyproj", "rasterio", "shapely", "zarr")

DASK = {"dask", "distributed"}
TORCH = {"torch", "torchvision", "timm", "safetensors"}

CREATE_ON_ANYTHING = {"create_array", "create_dataset", "require_array", "require_dataset", "to_zarr"}
CREATE_IN_ZARR = re.compile(
    r"zarr(\.\w+)*\.(create|array|from_array|open_like|save\w*|(empty|full|ones|zeros)(_like)?)"
)


# --- versions


def locked(text: str) -> dict[str, str]:
    """Distribution -> version. Raises ValueError for a line that is not `name==version`, with or without a marker."""
    versions: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)( ; .+)?", line)
        if match is None:
            raise ValueError(f"not an exact version: {line!r}")
        versions[canonicalize_name(match[1])] = match[2]
    return versions


def lock() -> dict[str, str]:
    return locked((ROOT / "requirements.lock").read_text())


def direct() -> list[Requirement]:
    """What pyproject.toml names and the lock must hold."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [Requirement(line) for line in [*project["dependencies"], *chain(*extras.values())]]


@pytest.mark.parametrize("line", ["numpy", "numpy>=2", "numpy @ file:///numpy.whl", "-i https://host", ""])
def test_a_lock_is_exact(line: str) -> None:
    with pytest.raises(ValueError, match="not an exact version"):
        locked(f"affine==3.0.1\n{line}\n\n")


def test_the_lock_holds_every_direct_dependency_in_its_range() -> None:
    versions = lock()
    wrong = [
        f"{need}: locked {versions.get(canonicalize_name(need.name))}"
        for need in direct()
        if not need.specifier.contains(versions.get(canonicalize_name(need.name), "0"))
    ]
    assert not wrong


def test_the_lock_installs_without_cuda_elsewhere_than_on_linux() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    cuda = [line for line in lines if re.match(r"nvidia-(?!ml-py)|cuda-|triton=", line)]
    assert cuda
    assert all(line.endswith(' ; platform_system == "Linux" and platform_machine == "x86_64"') for line in cuda)


def test_conda_users_get_the_locked_versions() -> None:
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in entries if isinstance(entry, dict)]
    assert "-c requirements.lock" in pip  # holds what the direct dependencies need in turn
    versions = lock()
    assert locked("\n".join(line for line in pip if not line.startswith("-"))) == {
        canonicalize_name(need.name): versions[canonicalize_name(need.name)] for need in direct()
    }


# --- tests


def test_pytest_looks_into_every_directory_of_tests(pytestconfig: pytest.Config) -> None:
    """By default it passes over some by their names, and says nothing of it."""
    passed_over = pytestconfig.getini("norecursedirs")
    directories = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}
    assert len(directories) >= 4
    assert not [d for d in directories for pattern in passed_over if fnmatch(d.name, pattern)]


# --- layers


def sources(root: Path) -> dict[str, ast.Module]:
    """Path from the root -> syntax tree, of every module of the two packages."""
    paths = sorted(path for package in ("geokr", "pipeline") for path in (root / package).rglob("*.py"))
    return {path.relative_to(root).as_posix(): ast.parse(path.read_text(), path) for path in paths}


def imported(node: ast.AST) -> list[str]:
    """Dotted names that a node imports, if it is one that imports. A relative import is of the own package: []."""
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom(module=str(module), level=0):
            return [f"{module}.{alias.name}" for alias in node.names]
        case ast.Call(
            func=ast.Name("__import__" | "import_module") | ast.Attribute(attr="import_module"),
            args=[ast.Constant(str(name)), *_],
        ):
            return [name]
    return []


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported: none in functions, none for the type checker alone."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                continue
            case ast.If(test=ast.Name("TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                continue
        yield child
        yield from at_import(child)


def creates_array(call: ast.Call, names: dict[str, str]) -> bool:
    """Whether a call makes an array on disk. names: what the module's names stand for, as dotted names."""
    parts: list[str] = []
    target = call.func
    while isinstance(target, ast.Attribute):
        parts.append(target.attr)
        target = target.value
    parts.append(names.get(target.id, "") if isinstance(target, ast.Name) else "")
    name = ".".join(reversed(parts))
    if name.rpartition(".")[2] in CREATE_ON_ANYTHING or CREATE_IN_ZARR.fullmatch(name):
        return True
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    match name:
        case "zarr.open" | "zarr.open_array":  # without a mode they create
            mode = given.get("mode")
            return not (isinstance(mode, ast.Constant) and mode.value in ("r", "r+"))
        case "tensorstore.open":
            return "create" in given
    return False


def violations(root: Path) -> list[str]:
    """What breaks the layers, as `path:line: sentence`."""
    found = []
    for path, tree in sources(root).items():
        names = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            if isinstance(node, ast.ImportFrom)
            else alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        for node in ast.walk(tree):
            at = f"{path}:{getattr(node, 'lineno', 0)}"
            for package in {name.partition(".")[0] for name in imported(node)}:
                if package in DASK and path not in WITH_DASK:
                    found.append(f"{at}: {package} is for pipeline/run.py alone")
                if package in TORCH and path not in WITH_TORCH:
                    found.append(f"{at}: {package} is for the training files of geokr")
                if package == "pipeline" and path.startswith("geokr/"):
                    found.append(f"{at}: geokr must not import pipeline")
            if path.startswith("pipeline/tasks/") and any(name.startswith(ABOVE_TASKS) for name in imported(node)):
                found.append(f"{at}: a task knows neither stages nor Dask")
            if isinstance(node, ast.Call) and path not in CREATES_ARRAYS and creates_array(node, names):
                found.append(f"{at}: arrays on disk are made in geokr/store.py alone")
        if path in TRAINING:
            found += [
                f"{path}:{getattr(node, 'lineno', 0)}: {name} is not among what training needs"
                for node in at_import(tree)
                for name in imported(node)
                if name.partition(".")[0] not in TRAINING_NEEDS | sys.stdlib_module_names
            ]
    return found


def import_without(root: Path, modules: list[str], missing: tuple[str, ...]) -> str:
    """Errors of a process that imports modules of a source tree while some packages cannot be imported."""
    code = f"import sys\nsys.modules |= dict.fromkeys({missing!r})\nimport {', '.join(modules)}"
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    return run.stderr if run.returncode else ""


def test_layers_hold() -> None:
    assert {"geokr/store.py", "pipeline/grid.py"} <= sources(ROOT).keys()
    assert violations(ROOT) == []


def test_training_runs_where_nothing_else_is_installed() -> None:
    modules = [path.removesuffix(".py").replace("/", ".") for path in sorted(TRAINING)]
    assert import_without(ROOT, modules, TRAINING_LACKS) == ""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("pipeline/tiles.py", "import dask.array as da"),
        ("pipeline/tasks/tiles.py", "from pipeline.run import stream"),
        ("pipeline/tasks/tiles.py", "from pipeline.stages import blocks"),
        ("geokr/store.py", "def f():\n    from distributed import Client"),
        ("pipeline/labels.py", "import importlib; importlib.import_module('dask')"),
        ("pipeline/labels.py", "import torch.nn.functional as F"),
        ("geokr/landcover.py", "from safetensors.torch import save_file"),
        ("geokr/landcover.py", "def f():\n    from pipeline.grid import TileGrid"),
        ("geokr/index.py", "import zarr"),
        ("geokr/train.py", "try:\n    from pydantic import BaseModel\nexcept ImportError: pass"),
        ("pipeline/tiles.py", "import zarr\nzarr.create_array('a', shape=(1,), dtype='u1')"),
        ("pipeline/tiles.py", "def f(group): group.create_array('a', shape=(1,), dtype='u1')"),
        ("pipeline/tiles.py", "import zarr as z\nz.open_array('a', mode='w')"),
        ("pipeline/tiles.py", "from zarr import open_array\nopen_array('a')"),
        ("geokr/landcover.py", "import zarr.api.synchronous as z\nz.zeros((1,))"),
        ("geokr/loader.py", "import tensorstore as ts\nts.open({}, create=True)"),
    ],
)
def test_a_broken_layer_is_found(tmp_path: Path, path: str, line: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(f"{line}\n")
    (message,) = violations(tmp_path)
    assert message.startswith(f"{path}:")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("pipeline/run.py", "import dask\nfrom distributed import Client"),
        (
            "geokr/train.py",
            "import json\nimport torch\nfrom geokr.index import read_index\ndef f(): import tensorboard",
        ),
        ("geokr/index.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING: import geopandas"),
        ("geokr/store.py", "def f(group): group.create_array('a', shape=(1,), dtype='u1')"),
        ("pipeline/tiles.py", "import zarr\nzarr.open_array('a', mode='r')\nzarr.open_group('a', mode='r+')"),
        ("pipeline/tiles.py", "import numpy as np\nfrom . import grid\nnp.zeros((1,))"),
    ],
)
def test_what_the_layers_allow_is_left_alone(tmp_path: Path, path: str, line: str) -> None:
    (tmp_path / path).parent.mkdir()
    (tmp_path / path).write_text(f"{line}\n")
    assert violations(tmp_path) == []


def test_a_package_that_training_gets_at_second_hand_is_found(tmp_path: Path) -> None:
    (tmp_path / "first.py").write_text("import second\n")
    (tmp_path / "second.py").write_text("import zarr\n")
    assert "zarr" in import_without(tmp_path, ["first"], TRAINING_LACKS)
    assert import_without(tmp_path, ["first"], ()) == ""


# --- texts


def private(text: str) -> list[str]:
    """Paths of one machine and addresses of package indexes, which are the reader's own business."""
    return re.findall(
        r"(?<![\w./$}-])/(?:home|Users|root|work)/\w+"
        r"|[A-Z]:\\Users"
        r"|--(?:find-link[s]|(?:extra-)?index-ur[l])\b"
        r"|https?://[\w.-]+/(?:simple|whl)\b|files\.pythonhosted",
        text,
    )


def test_no_text_names_a_machine_or_a_package_index() -> None:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    found = {
        name: hits
        for name in filter(None, names)
        if (ROOT / name).is_file() and (hits := private((ROOT / name).read_text(errors="replace")))
    }
    assert not found


@pytest.mark.parametrize("text", ["in /ho~me/me/data", "--index~-url", "https://host/sim~ple/", "C:\\Us~ers\\me"])
def test_a_machine_or_a_package_index_is_found(text: str) -> None:
    assert private(text.replace("~", ""))  # whole, it would be found in this file
    assert not private(text)


@pytest.mark.parametrize("text", ["$HOME/data", "data/home/a.tif", "https://host/docs/sim_ple.html", "/home"])
def test_other_paths_and_addresses_are_left_alone(text: str) -> None:
    assert not private(text)
