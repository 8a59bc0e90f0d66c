"""The command: resumable cells, one table, and one sentence for what is wrong."""

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from geokr import evaluate
from geokr.evaluation import protocols
from geokr.evaluation.results import RESULTS, Row, read_results, tabulate

FAST = ("size=32", "lr=0.001", "epochs=1", "least_steps=2", "batch=16", "val=0.15", "model=test_resnet")
ARGUMENTS = ("--mode", "knn", "linear", "--labels", "10%", "1.0", "--seeds", "2")


def command(data: Path, out: Path, *encoders: Any, more: tuple[str, ...] = ARGUMENTS) -> int:
    names = [str(encoder) for encoder in encoders]
    given = ["classification", "--data", str(data), "--out", str(out), "--encoder", *names, *more, *FAST]
    return evaluate.main(given)


def stable(out: Path) -> list[dict[str, Any]]:
    """The lines of the results without the time that they took."""
    lines = [json.loads(line) for line in (out / RESULTS).read_text().splitlines()]
    return sorted(({k: v for k, v in line.items() if k != "seconds"} for line in lines), key=lambda x: x["cell"])


@pytest.fixture(scope="session")
def evaluated(textures: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluation")
    assert command(textures, out, "scratch", trained) == 0
    return out


def test_a_line_a_cell(evaluated: Path) -> None:
    results = read_results(evaluated)
    assert len(results) == 2 * 2 * 2 * 2  # encoders, modes, shares, seeds
    assert {r.images["test"] for r in results} == {48}
    assert {(r.labels, r.images["train"]) for r in results} == {(0.1, 6), (1.0, 54)}
    split = json.loads((evaluated / "splits" / f"{results[0].split}.json").read_text())
    assert [len(split[name]) for name in ("train", "val", "test")] == [54, 18, 48]
    assert split["classes"] == ["coarse", "fine", "plain"]


def test_tables_and_labels_needed_are_printed(
    evaluated: Path, textures: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (evaluated / RESULTS).read_bytes()
    assert command(textures, evaluated, "scratch", trained) == 0
    said = capsys.readouterr()
    assert "| labels | 10% (6) | 100% (54) |" in said.out
    assert f"{trained} - scratch, 10% of the labels: +" in said.out
    assert "with 10% of the labels (6 images); scratch reaches" in said.out
    assert said.err == ""  # nothing was computed again
    assert (evaluated / RESULTS).read_bytes() == before


def test_that_the_labels_do_not_suffice_is_said_too() -> None:
    rows = [
        Row("classification", "chips", "s", "knn", name, share, "accuracy", mean, 0.0, 1, images)
        for name, share, images, mean in (("scratch", 0.1, 5, 0.5), ("scratch", 1.0, 50, 0.7), ("run", 1.0, 50, 0.6))
    ]
    assert evaluate.describe_labels(rows, "run", "scratch") == (
        "run does not get there with any share of the labels; scratch reaches 0.700 with 100% (50)"
    )


def test_interrupted_and_resumed_gives_the_same_table(
    evaluated: Path, textures: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    command(textures, evaluated, "scratch", trained)
    whole = capsys.readouterr().out
    run_cell, count = protocols.run_cell, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count > 5:
            raise KeyboardInterrupt
        return run_cell(*arguments)

    monkeypatch.setattr(protocols, "run_cell", interrupted)
    assert command(textures, tmp_path, "scratch", trained) == 130
    assert len(read_results(tmp_path)) == 5
    with (tmp_path / RESULTS).open("a") as file:
        file.write('{"cell": "a line that brea')
    monkeypatch.setattr(protocols, "run_cell", run_cell)
    capsys.readouterr()
    assert command(textures, tmp_path, "scratch", trained) == 0
    assert capsys.readouterr().out == whole
    assert stable(tmp_path) == stable(evaluated)
    assert (tmp_path / "metrics.json").read_bytes() == (evaluated / "metrics.json").read_bytes()


def test_several_processes_give_the_same_table(textures: Path, tmp_path: Path) -> None:
    few, others = ("--mode", "linear", "--labels", "20%", "--seeds", "2"), {*multiprocessing.active_children()}
    assert command(textures, tmp_path / "one", "scratch", more=few) == 0
    assert command(textures, tmp_path / "two", "scratch", more=(*few, "workers=2")) == 0
    values = [[result.value for result in read_results(tmp_path / name)] for name in ("one", "two")]
    assert values[0] == pytest.approx(values[1], abs=0.05)  # other numbers of threads add up in another order
    assert {r["cell"] for r in stable(tmp_path / "one")} == {r["cell"] for r in stable(tmp_path / "two")}
    assert {*multiprocessing.active_children()} <= others  # a cluster of other tests may be there


def test_all_encoders_see_the_same_labels(textures: Path, trained: Path) -> None:
    task = protocols.choose_task("classification")
    settings = protocols.configure(task, {"size": 32, "val": 0.15}, "test")
    evaluation = protocols.prepare(task, str(textures), settings)
    sources = protocols.find_sources(["scratch", str(trained)], settings)
    scratch, other = sources
    assert (scratch.model, scratch.bands, scratch.mean) == (other.model, other.bands, other.mean)
    assert (scratch.weights, scratch.size) == ("random", other.size)
    jobs = {}
    for cell in protocols.list_cells(sources, ["linear"], [0.1, 1.0], 2):
        jobs[cell.source.name, cell.labels, cell.seed] = evaluation.make_job(cell)
    for (name, labels, seed), job in jobs.items():
        assert (job.train == jobs["scratch", labels, seed].train).all(), name
        assert (job.test == jobs["scratch", 1.0, 0].test).all()
        assert set(jobs[name, 0.1, seed].train.tolist()) <= set(job.train.tolist())


def test_other_labels_or_weights_are_other_cells(textures: Path, trained: Path, tmp_path: Path) -> None:
    task = protocols.choose_task("classification")
    settings = protocols.configure(task, {"val": 0.15}, "test")
    (source,) = protocols.find_sources(["scratch"], settings)
    cell = protocols.Cell(source, "knn", 1.0, 0)
    before = protocols.prepare(task, str(textures), settings).digest_cell(cell)
    computed_elsewhere = protocols.configure(task, {"val": 0.15, "workers": 2, "device": "cpu"}, "test")
    assert protocols.prepare(task, str(textures), computed_elsewhere).digest_cell(cell) == before
    longer = protocols.configure(task, {"val": 0.15, "epochs": 2}, "test")
    assert protocols.prepare(task, str(textures), longer).digest_cell(cell) != before
    more = protocols.configure(task, {"val": 0.15, "split_seed": 1}, "test")
    assert protocols.prepare(task, str(textures), more).digest_cell(cell) != before


def test_the_papers_protocol_is_a_set_of_defaults() -> None:
    task = protocols.choose_task("classification")
    settings = protocols.configure(task, {"protocol": "paper", "val": 0.05}, "test")
    assert (settings.test, settings.val, settings.size) == (0.25, 0.05, 256)


def test_a_parameter_file_is_overridden_by_the_command_line(textures: Path, tmp_path: Path) -> None:
    params = tmp_path / "mine.yaml"
    params.write_text(
        f"evaluate:\n  data: {textures}\n  encoder: [scratch]\n  mode: [knn]\n  labels: [10%, 1]\n  seeds: 1\n"
        "  settings: {size: 32, model: test_resnet, val: 0.15}\n"
    )
    given = ["classification", "--params", str(params), "--out", str(tmp_path / "out"), "--labels", "20%", "batch=8"]
    assert evaluate.main(given) == 0
    (row,) = tabulate(read_results(tmp_path / "out"))
    assert (row.labels, row.mode, row.images) == (0.2, "knn", 12)


def test_other_settings_replace_the_earlier_results_in_the_tables(textures: Path, tmp_path: Path) -> None:
    few = ("--mode", "knn", "--labels", "1", "--seeds", "1")
    for neighbours in ("1", "3", "3"):
        assert command(textures, tmp_path, "scratch", more=(*few, f"neighbours={neighbours}")) == 0
    assert [result.settings["neighbours"] for result in read_results(tmp_path)] == [[3]]
    assert len(read_results(tmp_path, every=True)) == 2
    (row,) = tabulate(read_results(tmp_path))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["classification"][textures.name]["knn"]["scratch"]["100%"] == round(row.mean, 6)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--encoder", "nowhere.pth"], "nowhere.pth: no such file of weights"),
        (["--encoder", "scratch", "scratch"], "the encoder scratch is named twice"),
        (["--mode", "zero-shot"], "classification has no mode zero-shot, only knn, linear, finetune"),
        (["--labels", "150%"], "labels: Input should be less than or equal to 1"),
        (["--labels", "few"], "labels: few is no share"),
        (["lrs=1"], "there is no setting lrs; lr?"),
        (["bands=a,b"], "3 bands, but 2 names: a, b"),
        (["bands=blue,green,nir"], "the encoder needs red, green, blue, but the data have blue, green, nir: red mis"),
        (["protocol=paper", "model=none5"], "timm has no model none5"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    textures: Path, tmp_path: Path, change: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["classification", "--data", str(textures), "--out", str(tmp_path), "--encoder", "scratch"]
    assert evaluate.main([*given, "model=test_resnet", *change]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert sentence in said


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda path: path.write_bytes(b""), "plain_3.png: the file is empty"),
        (lambda path: path.write_bytes(b"text"), "plain_3.png: not a readable image"),
        (lambda path: Image.fromarray(np.zeros((4, 4, 4), np.uint8)).save(path.with_suffix(".tif")), "3.tif: 4 bands"),
    ],
)  # fmt: skip
def test_a_bad_image_is_named(
    tmp_path: Path, spoil: Callable[[Path], Any], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("fine", "plain"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "data" / name / f"{name}_{i}.png")
    spoil(tmp_path / "data" / "plain" / "plain_3.png")
    few = ("--mode", "knn", "--labels", "1", "--seeds", "1")
    assert command(tmp_path / "data", tmp_path / "out", "scratch", more=few) == 2
    assert sentence in capsys.readouterr().err


def test_a_line_that_is_no_result_is_refused(
    tmp_path: Path, textures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / RESULTS).write_text('{"cell": 1}\n')
    assert command(textures, tmp_path, "scratch") == 2
    assert "results.jsonl, line 1: not a result" in capsys.readouterr().err
