"""The project's rules: the same versions everywhere, and which module may import which."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent

# Rules for geokr and pipeline. Benchmarks measure peers, and may import any of them.
STAIRS = (
    # Each folder or file imports only from itself and from the steps before its own, not from others on its step.
    ("geokr/settings", "geokr/crs", "geokr/storage"),
    ("geokr/dataset", "geokr/landcover"),
    ("geokr/weights",),
    ("geokr/loading", "geokr/encoder"),
    ("geokr/pretraining", "geokr/evaluation", "geokr/prediction"),
    ("geokr/export",),
    ("geokr/train", "geokr/evaluate", "geokr/predict"),
    ("pipeline/geometry",),
    ("pipeline/scenes",),
    ("pipeline/imaging",),
    ("pipeline/catalog",),
    ("pipeline/config",),
    ("pipeline/tasks",),
    ("pipeline/runtime",),
    ("pipeline/plan",),
    ("pipeline/stages",),
    ("pipeline/sample", "pipeline/geocheck", "pipeline/report", "pipeline/verify"),
    ("pipeline/relabel", "pipeline/build_levir_kr", "pipeline/doctor"),
    ("pipeline/command",),
)
"""From the lowest step to the highest."""
ALONE = {"pipeline/runtime"}
"""Folders that import no other folder of their package."""
WITH_DASK = ("pipeline/runtime/",)
WITH_TORCH = ("geokr/loading/", "geokr/pretraining/", "geokr/evaluation/", "geokr/encoder.py", "geokr/weights.py")
WITH_TORCH += ("geokr/train.py", "geokr/evaluate.py", "geokr/export.py", "geokr/predict.py")
WITH_TORCH += ("pipeline/doctor.py",)  # it asks whether torch works
WITH_ARRAYS = ("geokr/dataset/store.py",)
WITH_IMPORTS = ("geokr/pretraining/objectives/__init__.py",)
"""The only `__init__.py` that contains more than a docstring."""
TRAINING_ALSO = (
    "geokr/dataset/index.py",
    "geokr/dataset/layout.py",
    "geokr/landcover/legend.py",
    "geokr/storage/files.py",
    "geokr/storage/inputs.py",
)
TRAINING = (
    "geokr/settings.py",
    "geokr/loading/",
    "geokr/pretraining/",
    "geokr/encoder.py",
    "geokr/weights.py",
    "geokr/train.py",
    "geokr/export.py",
    *TRAINING_ALSO,
)
"""Modules that a machine imports which only trains."""
TRAINING_NEEDS = {
    "geokr",
    "torch",
    "timm",
    "numpy",
    "pyarrow",
    "tensorstore",
    "safetensors",
    "pydantic",
    "yaml",
    "tqdm",
}
TRAINING_LACKS = ("dask", "distributed", "geopandas", "pyproj", "rasterio", "shapely", "zarr")

DASK = {"dask", "distributed"}
TORCH = {"torch", "torchvision", "timm", "safetensors"}

CREATE_ON_ANYTHING = {"create_array", "create_dataset", "require_array", "require_dataset", "to_zarr"}
CREATE_IN_ZARR = re.compile(
    r"zarr(\.\w+)*\.(create|array|from_array|open_like|save\w*|(empty|full|ones|zeros)(_like)?)"
)


# --- versions


def locked(text: str) -> dict[str, str]:
    """Distribution -> version. Raises ValueError for a line that is not `name==version` with an optional marker."""
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
    """The requirements that pyproject.toml names; the lock must contain them."""
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
    assert "-c requirements.lock" in pip  # it also fixes indirect dependencies
    versions = lock()
    assert locked("\n".join(line for line in pip if not line.startswith("-"))) == {
        canonicalize_name(need.name): versions[canonicalize_name(need.name)] for need in direct()
    }


# --- tests


def test_pytest_looks_into_every_directory_of_tests(pytestconfig: pytest.Config) -> None:
    """By default it skips some directories by name, without a message."""
    passed_over = pytestconfig.getini("norecursedirs")
    directories = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}
    assert len(directories) >= 4
    assert not [d for d in directories for pattern in passed_over if fnmatch(d.name, pattern)]


# --- layers


def sources(root: Path) -> dict[str, ast.Module]:
    """Path from the root -> syntax tree, for every module of the two packages."""
    paths = sorted(path for package in ("geokr", "pipeline") for path in (root / package).rglob("*.py"))
    return {path.relative_to(root).as_posix(): ast.parse(path.read_text(), path) for path in paths}


def imported(node: ast.AST) -> list[str]:
    """Dotted names that a node imports. A relative import stays within the package and gives []."""
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
    """The nodes that run when a module is imported: none in functions, and none only for the type checker."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                continue
            case ast.If(test=ast.Name("TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                continue
        yield child
        yield from at_import(child)


def creates_array(call: ast.Call, names: dict[str, str]) -> bool:
    """Whether a call creates an array on disk. names: imported name -> dotted name in the module."""
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
        case "zarr.open" | "zarr.open_array":  # they create unless a mode forbids it
            mode = given.get("mode")
            return not (isinstance(mode, ast.Constant) and mode.value in ("r", "r+"))
        case "tensorstore.open":
            return "create" in given
    return False


def place(path: str) -> str:
    """The top-level folder or file of a package that a module belongs to: `geokr/dataset`, `pipeline/plan`."""
    return "/".join(path.removesuffix(".py").split("/")[:2])


def step(path: str) -> int | None:
    """The step of the stairs on which a module stands; None if there is none, as for the packages' `__init__.py`."""
    return next((number for number, places in enumerate(STAIRS) if place(path) in places), None)


def targets(node: ast.AST, modules: Collection[str]) -> list[str]:
    """Paths of the modules of the two packages that a node imports."""
    found = []
    for name in imported(node):
        path = name.replace(".", "/")
        parent = path.rpartition("/")[0]
        candidates = (f"{path}.py", f"{path}/__init__.py", f"{parent}.py", f"{parent}/__init__.py")
        found += (
            [next((c for c in candidates if c in modules), f"{path}.py")] if name[:6] in ("geokr.", "pipeli") else []
        )
    return found


def violations(root: Path) -> list[str]:
    """Violations of the layers, as `path:line: sentence`."""
    found = []
    trees = sources(root)
    for path, tree in trees.items():
        names = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            if isinstance(node, ast.ImportFrom)
            else alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        here = step(path)
        if here is None and path not in ("geokr/__init__.py", "pipeline/__init__.py"):
            found.append(f"{path}:0: it stands on no step of the stairs")
        for node in ast.walk(tree):
            at = f"{path}:{getattr(node, 'lineno', 0)}"
            for package in {name.partition(".")[0] for name in imported(node)}:
                if package in DASK and not path.startswith(WITH_DASK):
                    found.append(f"{at}: {package} is for pipeline/runtime alone")
                if package in TORCH and not path.startswith(WITH_TORCH):
                    found.append(f"{at}: {package} is for the training side of geokr")
                if package == "pipeline" and path.startswith("geokr/"):
                    found.append(f"{at}: geokr must not import pipeline")
            for other in targets(node, trees.keys()):
                there = step(other)
                if place(other) == place(path) or path.split("/")[0] != other.split("/")[0]:
                    continue
                if place(path) in ALONE:
                    found.append(f"{at}: {place(path)} imports no other folder, but {other}")
                elif here is not None and (there is None or there >= here):
                    found.append(f"{at}: {other} does not stand below {path}")
            if isinstance(node, ast.Call) and path not in WITH_ARRAYS and creates_array(node, names):
                found.append(f"{at}: arrays on disk are made in geokr/dataset/store.py alone")
            if path.endswith("__init__.py") and path not in WITH_IMPORTS and imported(node):
                found.append(f"{at}: an __init__.py imports nothing")
        if path.startswith(TRAINING):
            found += [
                f"{path}:{getattr(node, 'lineno', 0)}: {name} is not among what training needs"
                for node in at_import(tree)
                for name in imported(node)
                if name.partition(".")[0] not in TRAINING_NEEDS | sys.stdlib_module_names
            ]
    found += [f"{circle[0]}:0: a circle of imports: {' -> '.join(circle)}" for circle in circles(trees)]
    return found + [f"{paths[-1]}:0: {paths[0]} has the same name" for paths in namesakes(trees)]


def circles(trees: Mapping[str, ast.Module]) -> list[tuple[str, ...]]:
    """Modules that import each other directly or through others; imports in functions count too."""
    imports = {
        path: {other for node in ast.walk(tree) for other in targets(node, trees.keys()) if other != path}
        for path, tree in trees.items()
    }
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return [tuple(error.args[1])]
    return []


def namesakes(paths: Iterable[str]) -> list[list[str]]:
    """Modules of a package that share a name, except a stage and the task that it runs."""
    named: dict[tuple[str, str], list[str]] = {}
    for path in sorted(paths):
        package, *_, name = path.split("/")
        if not name.startswith("__"):
            named.setdefault((package, name), []).append(path)
    stage_and_task = ["pipeline/stages", "pipeline/tasks"]
    return [same for same in named.values() if len(same) > 1 and [place(path) for path in same] != stage_and_task]


def import_without(root: Path, modules: list[str], missing: tuple[str, ...]) -> str:
    """Import modules of a source tree in a process without some packages. Returns the errors."""
    code = f"import sys\nsys.modules |= dict.fromkeys({missing!r})\nimport {', '.join(modules)}"
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    return run.stderr if run.returncode else ""


def test_layers_hold() -> None:
    assert {"geokr/dataset/store.py", "pipeline/geometry/grid.py"} <= sources(ROOT).keys()
    assert violations(ROOT) == []


def test_training_runs_where_nothing_else_is_installed() -> None:
    paths = [path for path in sources(ROOT) if path.startswith(TRAINING)]
    assert len(paths) > 20
    modules = [path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in paths]
    assert import_without(ROOT, modules, TRAINING_LACKS) == ""


@pytest.mark.parametrize(
    ("path", "line", "sentence"),
    [
        ("pipeline/tasks/tiles.py", "import dask.array as da", "dask is for pipeline/runtime alone"),
        ("pipeline/verify/checks.py", "import importlib; importlib.import_module('dask')", "dask is for"),
        ("geokr/dataset/store.py", "def f():\n    from distributed import Client", "distributed is for"),
        ("pipeline/relabel.py", "import torch.nn.functional as F", "torch is for the training side of geokr"),
        ("geokr/landcover/sheets.py", "from safetensors.torch import save_file", "safetensors is for"),
        (
            "geokr/storage/files.py",
            "def f():\n    from pipeline.geometry.grid import TileGrid",
            "must not import pipeline",
        ),
        ("pipeline/tasks/tiles.py", "from pipeline.runtime.stream import stream", "does not stand below"),
        ("pipeline/tasks/tiles.py", "from pipeline.stages import blocks", "does not stand below"),
        (
            "pipeline/geometry/terrain.py",
            "def f():\n    from pipeline.scenes.scene import Scene",
            "does not stand below",
        ),
        ("pipeline/runtime/worker.py", "from pipeline.scenes.scene import SceneError", "imports no other folder"),
        ("pipeline/stages/tiles.py", "import pipeline.build_levir_kr", "does not stand below"),
        ("pipeline/helpers.py", "", "stands on no step"),
        ("geokr/dataset/index.py", "from geokr.landcover import legend", "does not stand below"),
        ("geokr/encoder.py", "from geokr.pretraining.checkpoint import load", "does not stand below"),
        ("geokr/loading/loader.py", "def f():\n    import geokr.pretraining.config", "does not stand below"),
        ("geokr/dataset/index.py", "import zarr", "is not among what training needs"),
        ("geokr/train.py", "try:\n    from rasterio import open\nexcept ImportError: pass", "is not among what"),
        ("pipeline/tasks/tiles.py", "import zarr\nzarr.create_array('a', shape=(1,), dtype='u1')", "arrays on disk"),
        ("pipeline/tasks/tiles.py", "def f(group): group.create_array('a', shape=(1,), dtype='u1')", "arrays on disk"),
        ("pipeline/tasks/tiles.py", "import zarr as z\nz.open_array('a', mode='w')", "arrays on disk"),
        ("pipeline/tasks/tiles.py", "from zarr import open_array\nopen_array('a')", "arrays on disk"),
        ("geokr/landcover/sheets.py", "import zarr.api.synchronous as z\nz.zeros((1,))", "arrays on disk"),
        ("geokr/loading/loader.py", "import tensorstore as ts\nts.open({}, create=True)", "arrays on disk"),
        ("geokr/dataset/__init__.py", "from geokr.dataset import layout", "an __init__.py imports nothing"),
    ],
)
def test_a_broken_layer_is_found(tmp_path: Path, path: str, line: str, sentence: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(f"{line}\n")
    (message,) = violations(tmp_path)
    assert message.startswith(f"{path}:")
    assert sentence in message


def test_a_circle_of_files_is_found(tmp_path: Path) -> None:
    (tmp_path / "geokr/dataset").mkdir(parents=True)
    for one, other in ("ab", "bc", "ca"):
        (tmp_path / f"geokr/dataset/{one}.py").write_text(f"def f():\n    from geokr.dataset.{other} import g\n")
    (message,) = violations(tmp_path)
    assert "a circle of imports" in message


def test_two_modules_of_one_name_are_found(tmp_path: Path) -> None:
    for folder in ("geometry", "scenes", "stages", "tasks"):
        (tmp_path / "pipeline" / folder).mkdir(parents=True)
    for folder in ("stages", "tasks"):  # a stage and its task may share a name
        (tmp_path / "pipeline" / folder / "labels.py").touch()
    assert violations(tmp_path) == []
    for folder in ("geometry", "scenes"):
        (tmp_path / "pipeline" / folder / "index.py").touch()
    (message,) = violations(tmp_path)
    assert message == "pipeline/scenes/index.py:0: pipeline/geometry/index.py has the same name"


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("pipeline/runtime/cluster.py", "import dask\nfrom distributed import Client"),
        (
            "geokr/train.py",
            "import json\nimport torch\nfrom geokr.dataset.index import read_index\ndef f(): import tensorboard",
        ),
        ("geokr/dataset/index.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING: import geopandas"),
        ("geokr/dataset/store.py", "def f(group): group.create_array('a', shape=(1,), dtype='u1')"),
        ("pipeline/stages/tiles.py", "from pipeline.runtime.stream import stream\nfrom geokr.storage import files"),
        ("pipeline/tasks/tiles.py", "import zarr\nzarr.open_array('a', mode='r')\nzarr.open_group('a', mode='r+')"),
        ("pipeline/tasks/tiles.py", "import numpy as np\nfrom . import rows\nnp.zeros((1,))"),
    ],
)
def test_what_the_layers_allow_is_left_alone(tmp_path: Path, path: str, line: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(f"{line}\n")
    assert violations(tmp_path) == []


def test_a_package_that_training_gets_at_second_hand_is_found(tmp_path: Path) -> None:
    (tmp_path / "first.py").write_text("import second\n")
    (tmp_path / "second.py").write_text("import zarr\n")
    assert "zarr" in import_without(tmp_path, ["first"], TRAINING_LACKS)
    assert import_without(tmp_path, ["first"], ()) == ""


# --- texts


def private(text: str) -> list[str]:
    """Paths on a particular machine and URLs of package indexes, which a user chooses."""
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
    assert private(text.replace("~", ""))  # in one piece it would be found in this file
    assert not private(text)


@pytest.mark.parametrize("text", ["$HOME/data", "data/home/a.tif", "https://host/docs/sim_ple.html", "/home"])
def test_other_paths_and_addresses_are_left_alone(text: str) -> None:
    assert not private(text)
