"""The doctor names what is missing on a machine, and what will not work for it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import rasterio
import torch
from packaging.requirements import Requirement

from pipeline import doctor
from pipeline.doctor import FAIL, NOTE, OK, Finding


def found(findings: Iterator[Finding], name: str) -> tuple[str, str]:
    """Level and sentence of the finding about a name."""
    return next((level, sentence) for level, about, sentence in findings if about == name)


def test_each_part_of_the_machine_has_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = doctor.main([str(tmp_path / "not" / "yet")])
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} <= {OK, NOTE, FAIL}
    assert status == any(line.startswith(FAIL) for line in lines)
    assert all(any(f" {name} " in line for line in lines) for name in ("GPU", "GDAL", "PROJ", "memory", "disk"))


def test_a_missing_or_old_package_is_named() -> None:
    needs = [Requirement("numpy>=1000"), Requirement("not-there>=1"), Requirement("pyproj>=3")]
    old, missing = doctor.describe_missing(needs)
    assert old.startswith("numpy is ")
    assert old.endswith(", expected >=1000")
    assert missing == "not-there is not installed"


def test_extras_are_told_from_what_all_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "requires", lambda _: ["numpy>=2", 'not-there>=1; extra == "s3"'])
    level, sentence = found(doctor.check_packages(), "extra s3")
    assert (level, sentence.split(";")[0]) == (NOTE, "not-there is not installed")
    assert "data sets and inputs on s3:// will not work: pip install 'geokr[s3]'" in sentence
    assert found(doctor.check_packages(), "extra train")[0] == OK
    monkeypatch.setattr(doctor, "requires", lambda _: ["not-there>=1"])
    assert found(doctor.check_packages(), "packages") == (FAIL, "not-there is not installed")


@pytest.mark.parametrize(
    ("driver", "built", "why"),
    [(None, "13.0", "no NVIDIA driver"), ("/bin/nvidia-smi", "13.0", "built for CUDA 13.0, which the driver may be"),
     ("/bin/nvidia-smi", None, "this torch is built without CUDA")],
)  # fmt: skip
def test_why_there_is_no_gpu(driver: str | None, built: str | None, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(shutil, "which", lambda _: driver)
    level, sentence = found(doctor.check_gpu(), "GPU")
    assert level == NOTE
    assert why in sentence


def test_each_gpu_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(name="Some GPU", total_memory=80 << 30, major=7)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda n, device: ones(n))
    assert found(doctor.check_gpu(), "GPU 0") == (OK, "Some GPU, 80 GiB, no bf16: use amp=fp16")

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel image is available\nmore lines")

    monkeypatch.setattr(torch, "ones", fail)
    assert found(doctor.check_gpu(), "GPU 0") == (FAIL, "Some GPU: no kernel image is available")


def test_a_missing_driver_costs_what_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Env:
        def __enter__(self) -> Any:
            return SimpleNamespace(drivers=lambda: {"GTiff": "GeoTIFF", "VRT": "mosaic"})

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(rasterio, "Env", Env)
    level, sentence = found(doctor.check_gdal(), "GDAL JP2OpenJPEG")
    assert level == NOTE
    assert "Sentinel-2" in sentence
    monkeypatch.setattr(Env, "__enter__", lambda self: SimpleNamespace(drivers=dict))
    assert found(doctor.check_gdal(), "GDAL GTiff")[0] == FAIL


def test_systems_that_need_a_grid_are_named_with_their_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {"EPSG:4267": (False, 20.0), "EPSG:27700": (True, 1.0), "EPSG:31467": (True, 1.0)}

    def group(code: str, _: str) -> Any:
        best, accuracy = groups[code]
        return SimpleNamespace(best_available=best, transformers=[SimpleNamespace(accuracy=accuracy)])

    monkeypatch.setattr(doctor, "TransformerGroup", group)
    monkeypatch.setattr(doctor, "is_network_enabled", lambda: False)
    level, sentence = found(doctor.check_proj(), "PROJ grids")
    assert level == NOTE
    assert ": NAD27 to 20 m; maps in these lie off" in sentence
    groups["EPSG:4267"] = True, 2.0
    assert found(doctor.check_proj(), "PROJ grids")[0] == OK


def test_little_memory_and_a_full_disk_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "memory_per_worker", lambda: 300 << 20)
    assert found(doctor.check_memory(), "memory")[0] == FAIL
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5e8))
    monkeypatch.setenv("GEOKR_SCRATCH", str(tmp_path / "scratch"))
    assert found(doctor.check_disk(tmp_path), "disk") == (FAIL, f"0.5 GB free in {tmp_path}")
    assert str(tmp_path / "scratch") in found(doctor.check_disk(tmp_path), "scratch")[1]
    monkeypatch.setattr("os.access", lambda *_: False)
    assert found(doctor.check_disk(tmp_path), "disk") == (FAIL, f"{tmp_path} cannot be written")
    assert doctor.main([str(tmp_path)]) == 1
    assert "FAIL  memory" in capsys.readouterr().out
