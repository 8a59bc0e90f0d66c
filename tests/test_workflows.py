"""The parameter files are sound, and DVC runs the stages that a change concerns and no others."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from geokr.pretraining.config import configure
from pipeline.config import read_config

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("params", [ROOT / "workflows" / f"{name}.yaml" for name in ("sample", "levir_kr")])
def test_parameter_files_are_read_by_both_halves(params: Path) -> None:
    name = yaml.safe_load(params.read_text())
    assert read_config(params, {}).labels == "globeland30_2020"
    assert configure(name["preset"], params).model == name["train"]["model"]
    assert name["name"] == params.stem


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of the stages alone, reproduced once, with a training run of three steps."""
    project = tmp_path_factory.mktemp("checkout")
    for name in ("dvc.yaml", ".dvcignore", ".dvc/config", "workflows/sample.yaml"):
        (project / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    for name in ("geokr", "pipeline"):
        (project / name).symlink_to(ROOT / name)
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    edit(project, "train", steps=3, batch=16, image_size=32, loggers=[])
    dvc(project, "repro")
    return project


def edit(project: Path, section: str, **values: object) -> None:
    """Change parameters."""
    path = project / "workflows" / "sample.yaml"
    params = yaml.safe_load(path.read_text())
    params[section] |= values
    path.write_text(yaml.safe_dump(params))


def dvc(project: Path, *arguments: str) -> str:
    """What DVC prints. Stages run this interpreter."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=project, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def stages_to_run(project: Path) -> list[str]:
    lines = dvc(project, "repro", "--dry").splitlines()
    return [line.split("'")[1] for line in lines if line.startswith("Running stage")]


def test_dvc_runs_what_a_change_concerns(project: Path) -> None:
    assert "Data and pipelines are up to date" in dvc(project, "repro")
    before = (project / "workflows" / "sample.yaml").read_text()
    edit(project, "train", lr=0.002)
    assert stages_to_run(project) == ["pretrain"]
    weights = (project / "runs/sample/encoder.safetensors").read_bytes()
    assert "Running stage 'pretrain'" in dvc(project, "repro")
    assert (project / "runs/sample/encoder.safetensors").read_bytes() != weights
    edit(project, "build", min_known=0.9)
    assert stages_to_run(project)[0] == "index"
    edit(project, "build", stride=32)
    assert stages_to_run(project)[:2] == ["tiles", "labels"]
    (project / "workflows" / "sample.yaml").write_text(before)


def test_stages_that_can_be_resumed_keep_their_outputs(project: Path) -> None:
    """DVC deletes what is not `persist` before it runs a stage."""
    stages = yaml.safe_load((project / "dvc.yaml").read_text())["stages"]
    for stage in ("catalog", "tiles", "labels"):
        assert all(options["persist"] for out in stages[stage]["outs"] for options in out.values())


def test_dvc_shows_metrics_and_plots(project: Path) -> None:
    shown = json.loads(dvc(project, "metrics", "show", "--json").splitlines()[0])
    metrics = shown[""]["data"][str(Path("runs/sample/metrics.json"))]["data"]
    assert metrics["steps"] == 3
    assert metrics["val_kl"] > 0
    assert "failed to load" not in dvc(project, "plots", "show")
    page = (project / "dvc_plots" / "index.html").read_text()
    assert "KL divergence of the land-cover shares" in page
    assert "plots/val.csv" in page
