"""The SLURM job is queued again if its run was stopped and can go on, and never otherwise."""

import os
import subprocess
from pathlib import Path

import pytest
from torch.distributed.launcher.api import LaunchConfig

SCRIPT = Path(__file__).parents[1] / "workflows" / "pretrain.slurm"
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
case "$1" in
  show) echo first-node; echo second-node ;;
  *) echo "$@" >> said ;;
esac
"""
TORCHRUN = """#!/bin/bash
printf '%s\\n' "$@" > arguments
echo -n "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT" > timeout
mkdir -p runs/levir_kr
rm -f runs/levir_kr/stopped
[ "$OUTCOME" = stopped ] && touch runs/levir_kr/stopped
[ "$OUTCOME" = finished ]
"""


def run_job(folder: Path, outcome: str, restarts: int = 0) -> tuple[int, str]:
    """Run the job, with a torchrun that exits with 1 unless the run has finished: its status, and what scontrol got."""
    programs = folder / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("torchrun", TORCHRUN)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    environment = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "OUTCOME": outcome, "SLURM_JOB_ID": "7"}
    environment |= {"SLURM_JOB_NODELIST": "nodes", "SLURM_NNODES": "2", "SLURM_RESTART_COUNT": str(restarts)}
    done = subprocess.run(["bash", SCRIPT, "batch=512"], cwd=folder, env=environment, check=False)
    said = folder / "said"
    return done.returncode, said.read_text() if said.exists() else ""


@pytest.mark.parametrize(
    ("outcome", "restarts", "status", "said"),
    [
        ("stopped", 0, 0, "requeue 7\n"),
        ("stopped", 19, 0, "requeue 7\n"),
        ("stopped", 20, 1, ""),
        ("refused", 0, 1, ""),
        ("finished", 3, 0, ""),
    ],
)
def test_a_job_is_queued_again_if_its_run_can_go_on(
    tmp_path: Path, outcome: str, restarts: int, status: int, said: str
) -> None:
    assert run_job(tmp_path, outcome, restarts) == (status, said)


def test_a_run_has_two_minutes_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as SLURM leaves it. torch reads the time from the environment."""
    run_job(tmp_path, "finished")
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert arguments[-1] == "batch=512"
    assert "first-node:29500" in arguments
    assert "#SBATCH --signal=TERM@120" in SCRIPT.read_text().splitlines()
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", (tmp_path / "timeout").read_text())
    assert LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2).shutdown_timeout == 120
