"""A file is the one before or the new one, whenever a run ends; and a checkpoint reads back as it was."""

import dataclasses
import os
import threading
from pathlib import Path

import pytest
import torch

from geokr.pretraining import checkpoint
from geokr.pretraining.checkpoint import VERSION, Checkpoint, CheckpointWriter, load, save
from geokr.storage.files import replace_file

STATE = Checkpoint(
    step=3,
    total=9,
    config={"lr": 0.5, "bands": ("red", "nir")},
    datasets=("somewhere",),
    facts={"classes": ("water", "forest")},
    mean=[0.25],
    std=[0.5],
    start="random weights",
    networks={"student": {"head.weight": torch.arange(6.0).reshape(2, 3)}},
    exported="student",
    end_share=1.0,
    memory={"queue": torch.arange(4.0)},
    optimiser={"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": []},
    scaler={},
    window=torch.ones(3, 3, dtype=torch.float64),
    best={"step": 2, "kl": 0.5},
)


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "run" / "last.pt"
    for content in (b"one", b"another"):
        before = path.read_bytes() if path.exists() else None
        with replace_file(path) as file:
            file.write(content)
            file.flush()
            assert (path.read_bytes() if path.exists() else None) == before
        assert path.read_bytes() == content
        assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("fault", [OSError("no space left"), KeyboardInterrupt()])
def test_a_write_that_ends_halfway_leaves_the_file_as_it_was(tmp_path: Path, fault: BaseException) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(b"one")

    def fail() -> None:
        with replace_file(path) as file:
            file.write(b"half of ano")
            raise fault

    with pytest.raises(type(fault)):
        fail()
    assert path.read_bytes() == b"one"
    assert [*tmp_path.iterdir()] == [path]


def test_what_a_kill_left_of_a_file_is_written_over(tmp_path: Path) -> None:
    path, left = tmp_path / "last.pt", []
    with replace_file(path) as file:
        left += [*tmp_path.iterdir()]
        file.write(b"one")
    (partial,) = left
    partial.write_bytes(b"of a kill, and longer")
    with replace_file(path) as file:
        file.write(b"two")
    assert path.read_bytes() == b"two"
    assert [*tmp_path.iterdir()] == [path]


def test_a_checkpoint_reads_back_as_it_was(tmp_path: Path) -> None:
    save(tmp_path / "last.pt", STATE)
    found = load(tmp_path / "last.pt")
    for field in dataclasses.fields(Checkpoint):
        wanted, value = getattr(STATE, field.name), getattr(found, field.name)
        assert type(value) is type(wanted)
        if field.name == "window":
            assert value.dtype == wanted.dtype
            assert torch.equal(value, wanted)
        elif field.name not in ("networks", "memory", "optimiser"):
            assert value == wanted
    assert torch.equal(found.networks["student"]["head.weight"], STATE.networks["student"]["head.weight"])
    assert torch.equal(found.memory["queue"], STATE.memory["queue"])
    assert found.optimiser["state"][0]["step"] == 3


def test_a_checkpoint_and_its_name_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    sync = os.fsync

    def recording(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", recording)
    save(tmp_path / "last.pt", STATE)
    file, directory = synced
    assert file.startswith("last.pt.")
    assert directory == tmp_path.name


def test_a_checkpoint_of_another_version_or_with_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save({**dataclasses.asdict(STATE), "version": VERSION - 2}, path)
    with pytest.raises(ValueError, match=rf"last\.pt: a checkpoint of version {VERSION - 2}, this program reads"):
        load(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"last\.pt: a checkpoint of version None"):
        load(path)
    torch.save({"version": VERSION, "step": Path("code")}, path)
    with pytest.raises(ValueError, match=r"last\.pt: not a checkpoint, or a damaged one"):
        load(path)


def at(step: int) -> Checkpoint:
    return dataclasses.replace(STATE, step=step)


def test_steps_go_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one waits for it, and so do those who ask."""
    may_write, begun = threading.Event(), threading.Event()
    write = checkpoint.save

    def slow(path: Path, state: Checkpoint) -> None:
        begun.set()
        may_write.wait()
        write(path, state)

    monkeypatch.setattr(checkpoint, "save", slow)
    with CheckpointWriter(tmp_path, keep=1) as writer:
        writer.write(at(1), is_best=False)  # returns though nothing is written
        begun.wait()
        writer.check()
        assert not (tmp_path / "last.pt").exists()
        may_write.set()
        writer.write(at(2), is_best=False)
        assert (tmp_path / "last.pt").exists()
        writer.wait()
        assert load(tmp_path / "last.pt").step == 2
        writer.write(at(3), is_best=True)
    assert [load(tmp_path / name).step for name in ("last.pt", "best.pt")] == [3, 3]


def test_a_checkpoint_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, state: Checkpoint) -> None:
        raise OSError(f"{path}: no space left")

    monkeypatch.setattr(checkpoint, "save", fail)
    for ask in ("wait", "check", "write"):
        with CheckpointWriter(tmp_path, keep=1) as writer:
            writer.write(at(1), is_best=False)
            writer._writing.exception()  # type: ignore[union-attr]  # written, or not
            with pytest.raises(OSError, match=r"last\.pt: no space left"):
                getattr(writer, ask)(*((at(2), False) if ask == "write" else ()))


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_few_are_kept(tmp_path: Path, keep: int) -> None:
    with CheckpointWriter(tmp_path, keep) as writer:
        for step in (8, 9, 10, 11, 11):  # the last one again, as after a kill
            writer.write(at(step), is_best=step == 9)
    kept = sorted((tmp_path / "checkpoints").glob("*")) if keep > 1 else []
    assert [load(path).step for path in kept] == [9, 10, 11][-keep:] * (keep > 1)
    assert [path.name for path in kept][-1:] == ["step00000011.pt"] * (keep > 1)
    assert [load(tmp_path / name).step for name in ("last.pt", "best.pt")] == [11, 9]
