"""The parameter files are valid, and DVC runs exactly the stages that a change affects."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from affine import Affine
from dvc.repo import Repo

from benchmarks.evidence_rules import ARMS, SEEDS
from geokr.pretraining.config import PRESETS, TrainConfig, configure
from geokr.settings import ConfigError
from pipeline.config import BuildConfig, read_config, setting_names
from tests.deliveries import STEM, members, write_dem, write_folder
from workflows import stages

ROOT = Path(__file__).parents[1]
STAGES = ("sample", "catalog", "tiles", "labels", "index", "chips", "pretrain", "evaluate")
FIRST = {"survey": "catalog", "grid": "tiles", "tiles": "tiles", "labels": "labels", "index": "index", "out": "catalog"}
"""Group of settings -> the first stage that it affects."""


@pytest.mark.parametrize("params", [ROOT / "workflows" / f"{name}.yaml" for name in ("sample", "levir_kr")])
def test_parameter_files_are_read_by_both_halves(params: Path) -> None:
    name = yaml.safe_load(params.read_text())
    assert read_config(params, {}).index.label_set == "globeland30_2020"
    assert configure(name["preset"], params).model == name["train"]["model"]
    assert name["name"] == params.stem


def test_the_stages_are_those_of_the_sample_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert (ROOT / "dvc.yaml").read_text() == stages.render(Path("workflows/sample.yaml"))
    assert stages.main(["--check", "workflows/sample.yaml"]) == 0


def test_the_stages_of_the_evidence_are_its_arms(tmp_path: Path) -> None:
    (tmp_path / "workflows/evidence").mkdir(parents=True)
    shutil.copy(ROOT / "workflows/evidence/dvc.yaml", tmp_path / "workflows/evidence/dvc.yaml")
    dvc(tmp_path, "init", "--no-scm", "-q")
    names = dvc(tmp_path, "stage", "list", "workflows/evidence/dvc.yaml", "--name-only").split()
    assert sorted(name.partition("arm@")[2] for name in names) == sorted(ARMS)
    text = (ROOT / "workflows/evidence/dvc.yaml").read_text()
    assert all(f"/results/${{item}}-{seed}:" in text for seed in SEEDS)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with the files of the stages only, reproduced once, with a training run of three steps."""
    project = tmp_path_factory.mktemp("checkout")
    for name in ("dvc.yaml", ".dvcignore", ".dvc/config", "workflows/sample.yaml", "workflows/stages.py"):
        (project / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    for name in ("geokr", "pipeline"):
        (project / name).symlink_to(ROOT / name)
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    edit(project, "train", steps=3, batch=16, image_size=32, loggers=[])
    edit(project, "evaluate", mode=["knn"], labels=[1], seeds=1)
    dvc(project, "repro")
    return project


@pytest.fixture
def params(project: Path) -> Iterator[Path]:
    """The parameter file, restored after the test."""
    path = project / "workflows" / "sample.yaml"
    before = path.read_text()
    yield path
    path.write_text(before)


def edit(project: Path, *place: str, **values: object) -> None:
    """Change parameters in a section. place: its keys from the top."""
    path = project / "workflows" / "sample.yaml"
    params = yaml.safe_load(path.read_text())
    section = params
    for name in place:
        section = section[name]
    section |= values
    path.write_text(yaml.safe_dump(params))


def dvc(project: Path, *arguments: str) -> str:
    """Run DVC, whose stages use this interpreter. Returns its output."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=project, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def stale(project: Path) -> list[str]:
    """The stages that a change affects directly; later stages become stale after these have run."""
    with Repo(str(project)) as repo:
        return sorted((name.rpartition(":")[2] for name in repo.status()), key=STAGES.index)


def ran(said: str) -> list[str]:
    """The stages that DVC reports to have run."""
    return [line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")]


def test_a_second_run_does_nothing(project: Path) -> None:
    assert "Data and pipelines are up to date" in dvc(project, "repro")


def test_a_change_runs_its_stage_and_those_after_it(project: Path, params: Path) -> None:
    before = params.read_text()
    edit(project, "train", lr=0.002)
    weights = (project / "runs/sample/encoder.safetensors").read_bytes()
    said = dvc(project, "repro", "pretrain")
    assert ran(said) == ["pretrain"]
    assert stale(project) == ["evaluate"]
    assert (project / "runs/sample/encoder.safetensors").read_bytes() != weights
    edit(project, "build", "index", min_known=0.6)
    said = dvc(project, "repro", "pretrain")
    assert ran(said) == ["index", "pretrain"]
    params.write_text(before)
    dvc(project, "repro")


def others(value: Any) -> Any:
    """A different value for a setting. DVC does not care whether the value is valid."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case None | str():
            return f"{value}-other"
        case list() | tuple():
            return [*value, *(value or ["other"])]
        case dict():
            key = next(iter(value))
            return {**value, key: others(value[key])}
    raise TypeError(value)


BUILD = [(group, name) for group, field in BuildConfig.model_fields.items() for name in setting_names(field)] + [
    ("out", "")
]


def test_every_setting_of_a_build_concerns_its_stage_and_none_before_it(project: Path, params: Path) -> None:
    before = params.read_text()
    config = read_config(params, {}).model_dump(mode="json")
    assert {group for group, _ in BUILD} == set(FIRST)
    assert len(BUILD) >= 22
    for group, name in BUILD:
        if group == "out":
            edit(project, "build", out=others(config["out"]))
        else:
            edit(project, "build", group, **{name: others(config[group][name])})
        found = stale(project)
        assert FIRST[group] in found, (group, name)
        assert found[0] == FIRST[group], (group, name, found)
        params.write_text(before)
    assert stale(project) == []


def test_every_rule_and_split_setting_is_followed_too(project: Path, params: Path) -> None:
    before = params.read_text()
    config = read_config(params, {}).model_dump(mode="json")
    for place in (("tiles", "rules"), ("index", "split")):
        for name, value in config[place[0]][place[1]].items():
            edit(project, "build", *place, **{name: others(value)})
            assert stale(project)[0] == FIRST[place[0]], (*place, name)
            params.write_text(before)


def test_every_setting_of_training_concerns_it_alone(project: Path, params: Path) -> None:
    before = params.read_text()
    config = PRESETS["geokr"].model_dump(mode="json")
    for name in TrainConfig.model_fields:
        edit(project, "train", **{name: others(yaml.safe_load(before)["train"].get(name, config[name]))})
        assert stale(project) == ["pretrain"], name
        params.write_text(before)
    edit(project, preset="reference")
    assert stale(project) == ["pretrain"]


def test_an_evaluation_is_a_stage_after_pre_training(tmp_path: Path) -> None:
    text = yaml.safe_load((ROOT / "workflows/sample.yaml").read_text())
    del text["evaluate"]
    params = tmp_path / "mine.yaml"
    params.write_text(yaml.safe_dump(text))
    assert not {"chips", "evaluate"} & stages.make_stages(params)["stages"].keys()
    plan = {"task": "classification", "data": "scenes", "encoder": ["scratch", "runs/sample"], "labels": ["5%", 1]}
    params.write_text(yaml.safe_dump(text | {"evaluate": plan}))
    assert "chips" not in stages.make_stages(params)["stages"]
    stage = stages.make_stages(params)["stages"]["evaluate"]
    assert stage["deps"] == ["scenes", "runs/sample/encoder.safetensors"]
    assert stage["params"] == [{str(params): ["evaluate"]}]
    assert stage["cmd"][1].startswith("python -m geokr.evaluate classification --params ")
    assert stage["outs"] == [{"evaluations/sample/results.jsonl": {"cache": False, "persist": True}}]
    params.write_text(yaml.safe_dump(text | {"evaluate": {"task": "classification", "data": "mine"}}))
    with pytest.raises(ConfigError, match="say what to evaluate; encoder is missing"):
        stages.make_stages(params)


def test_the_evaluation_follows_its_settings_alone(project: Path, params: Path) -> None:
    edit(project, "evaluate", seeds=2)
    assert stale(project) == ["evaluate"]


def test_every_input_is_a_dependency_of_the_stages_that_read_it(tmp_path: Path) -> None:
    text = yaml.safe_load((ROOT / "workflows/sample.yaml").read_text())
    text["build"]["survey"] |= {"scenes": ["a", "b", "s3://bucket/c"], "dem": "dem.vrt", "geoid": "geoid.tif"}
    text["build"]["survey"] |= {"radiometry": "toa", "coefficients": "mine.csv"}
    text["build"]["labels"] |= {"landcover": ["maps", "more"], "legends": ["own.toml"], "taxonomy": "classes.toml"}
    text["train"]["pretrained"] = "start.pth"
    params = tmp_path / "mine.yaml"
    params.write_text(yaml.safe_dump(text))
    deps = {name: set(stage["deps"]) for name, stage in stages.make_stages(params)["stages"].items()}
    maps = {"maps", "more", "own.toml", "classes.toml"}
    assert deps["catalog"] == {"a", "b", "dem.vrt", "geoid.tif", "mine.csv"}
    assert deps["tiles"] >= {"a", "b", "dem.vrt", "geoid.tif"}
    assert deps["labels"] >= maps
    assert deps["index"] >= maps
    assert "start.pth" in deps["pretrain"]
    assert "sample" not in deps


def test_what_belongs_to_an_input_is_a_dependency_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mosaic's rasters, the metadata next to an image that is named alone, a taxonomy's file whatever its name."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "scene", members())
    write_dem(tmp_path / "north.tif", np.zeros((4, 4), np.float32), Affine(0.1, 0, 105, 0, -0.1, 25), "EPSG:4326")
    (tmp_path / "dem.vrt").write_text(
        '<VRTDataset rasterXSize="4" rasterYSize="4"><VRTRasterBand dataType="Float32" band="1"><SimpleSource>'
        '<SourceFilename relativeToVRT="1">north.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>'
    )
    (tmp_path / "mine").write_text("a taxonomy")
    text = yaml.safe_load((ROOT / "workflows/sample.yaml").read_text())
    text["build"]["survey"] |= {"scenes": [f"scene/{STEM}.tiff"], "dem": "dem.vrt", "radiometry": "toa"}
    text["build"]["labels"] |= {"landcover": ["maps"], "taxonomy": "mine"}
    params = tmp_path / "with space.yaml"
    params.write_text(yaml.safe_dump(text))
    found = stages.make_stages(params)["stages"]
    images = {f"scene/{STEM}{suffix}" for suffix in (".tiff", ".rpb", ".xml")}
    assert set(found["catalog"]["deps"]) == {*images, "dem.vrt", "north.tif", "pipeline/imaging/calibration.csv"}
    assert "mine" in found["labels"]["deps"]
    assert all(f"'{params}'" in line for stage in found.values() for line in stage["cmd"])
    text["build"]["out"] = "s3://bucket/dataset"
    params.write_text(yaml.safe_dump(text))
    assert stages.main([str(params)]) == 2
    assert "DVC needs a local data set, got out: s3://bucket/dataset" in capsys.readouterr().err


def test_each_stage_that_reads_parameters_checks_them_first() -> None:
    """Otherwise a changed preset would be noted as run, with the command of the old one."""
    for name, stage in stages.make_stages(ROOT / "workflows/sample.yaml")["stages"].items():
        if name not in ("sample", "chips"):
            assert stage["cmd"][0].startswith("python -m workflows.stages --check ")


def test_an_input_that_changed_concerns_the_stages_that_read_it(project: Path) -> None:
    extra = project / "data/sample/world/landcover/notes.txt"
    extra.write_text("another file")
    assert stale(project) == ["sample", "labels", "index"]  # `sample` wrote the folder
    extra.unlink()
    assert stale(project) == []


def test_stages_that_do_not_follow_from_their_parameters_are_refused(
    project: Path, params: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    edit(project, "build", "survey", scenes=["data/sample/world/scenes", "data/more"])
    assert stages.main(["--check", "workflows/sample.yaml"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "write it with python -m workflows.stages workflows/sample.yaml" in said
    edit(project, "build", tiles=None)
    text = yaml.safe_load(params.read_text())
    del text["build"]["grid"]
    params.write_text(yaml.safe_dump(text))
    assert stages.main(["--check", "workflows/sample.yaml"]) == 2
    assert "workflows/sample.yaml" in capsys.readouterr().err


def test_stages_that_can_be_resumed_keep_their_outputs(project: Path) -> None:
    """DVC deletes outputs that are not `persist` before it runs a stage."""
    stages = yaml.safe_load((project / "dvc.yaml").read_text())["stages"]
    for stage in ("catalog", "tiles", "labels"):
        assert all(options["persist"] for out in stages[stage]["outs"] for options in out.values())


def test_dvc_shows_metrics_and_plots(project: Path) -> None:
    shown = json.loads(dvc(project, "metrics", "show", "--json").splitlines()[0])
    metrics = shown[""]["data"][str(Path("runs/sample/metrics.json"))]["data"]
    assert metrics["steps"] == 3
    assert metrics["val_kl"] > 0
    evaluated = shown[""]["data"][str(Path("evaluations/sample/metrics.json"))]["data"]
    assert evaluated["classification"]["chips"]["knn"].keys() == {"scratch", "runs/sample"}
    assert "failed to load" not in dvc(project, "plots", "show")
    page = (project / "dvc_plots" / "index.html").read_text()
    assert "KL divergence of the land-cover shares" in page
    assert "plots/val.csv" in page
